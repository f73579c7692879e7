"""Insertion policies: legal on every track, fewer cards at a higher price, tuned by gradients, scored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from edgerec_gym.agents.baselines import DeviceGreedy, FixedSlot, Keep
from edgerec_gym.agents.find_policy import find_policy
from edgerec_gym.agents.insertion import gradient
from edgerec_gym.agents.insertion.esan import ESAN, ESANConfig
from edgerec_gym.agents.insertion.gradient import ESANGradient, ESANGradientConfig, at_equal_share
from edgerec_gym.agents.insertion.network_values import NetworkValues
from edgerec_gym.agents.insertion.policies import InsertionPlan, insertions, net_gains, policy_of
from edgerec_gym.agents.insertion.train import build
from edgerec_gym.agents.insertion.values import SlotValues, TrueValues
from edgerec_gym.agents.learning.rollouts import PlayedPlan
from edgerec_gym.agents.list_policy import SlotBySlot
from edgerec_gym.agents.planner.solve import SOLVERS
from edgerec_gym.agents.registry import train_agent
from edgerec_gym.bench.mix import track
from edgerec_gym.bench.mix.predictions import auc, calibration_error, log_loss
from edgerec_gym.bench.mix.prices import find_price, share_of
from edgerec_gym.bench.plots import draw_frontier
from edgerec_gym.bench.rows import cards_seen
from edgerec_gym.bench.training import run_track
from edgerec_gym.errors import InputError
from edgerec_gym.evaluation.cache import Entry, Place
from edgerec_gym.evaluation.play import play
from edgerec_gym.logs.collect import collect
from edgerec_gym.policy import bind
from edgerec_gym.registration import IDS, make_feeds, track_of
from edgerec_gym.scenario import Scenario
from edgerec_gym.slate_env import EdgeFeedSlateVectorEnv
from tests.small_pools import stir

PLAYED = ("EdgeFeedMix-v0", "EdgeFeed-v0", "EdgeFeedSlate-v0")
PREFERRED = [0, 4]  # the cards of the first type


@pytest.fixture(scope="module")
def lite() -> Scenario:
    return Scenario.load("lite")


@pytest.fixture(scope="module")
def network(lite: Scenario) -> ESAN:
    return stir(build(lite.config, ESANConfig(hidden=8), (True,) * 4))


def make_plan(network: ESAN, **options: Any) -> InsertionPlan:
    return InsertionPlan("esan", NetworkValues(network), network.config, **options)


def results(policy: Any, lite: Scenario, env_id: str = PLAYED[0], sessions: int = 40, **options: Any) -> Any:
    options = {"users": "synthetic", "seed": 0} | options
    return play(policy, env_id=env_id, scenario=lite, sessions=sessions, **options)


@pytest.mark.parametrize("env_id", PLAYED)
@pytest.mark.parametrize("solver", SOLVERS)
def test_no_rule_is_broken(lite: Scenario, network: ESAN, env_id: str, solver: str) -> None:
    policy = policy_of(make_plan(network, solver=solver, price=-0.05), track_of(env_id))
    found = results(policy, lite, env_id, sessions=16)
    assert not found["violations"].any()
    assert share_of(found) > (0.0 if solver == "fixed" else 0.15)


def test_a_plan_is_played_as_planned(lite: Scenario, network: ESAN) -> None:
    """In the slate environment until a trigger, and alike slot by slot."""
    plan = make_plan(network, price=-0.05)
    env = make_feeds("EdgeFeedSlate-v0", 30, scenario=lite, users="synthetic")
    observation, _ = env.reset(seed=3)
    planned = plan.plan(observation)
    env.step(planned)
    slates = env.batch.slates
    for row, played in enumerate(slates.slots):
        cards = slates.placed_action[row, :played] - lite.config.pool_size + 1
        assert np.maximum(cards, 0).tolist() == planned["insert"][row, :played].tolist()
    mix = make_feeds("EdgeFeedMix-v0", 30, scenario=lite, users="synthetic")
    observation, _ = mix.reset(seed=3)
    policy = policy_of(plan, "mix")
    policy.reset(np.ones(30, np.bool_))
    for slot in range(3):
        action = policy.act(observation)
        assert action.tolist() == planned["insert"][:, slot].tolist()
        observation, *_ = mix.step(action)


def test_plans_of_a_row_do_not_depend_on_the_others(lite: Scenario, network: ESAN) -> None:
    env = make_feeds("EdgeFeedMix-v0", 6, scenario=lite, users="synthetic")
    observation, _ = env.reset(seed=1)
    plan = make_plan(network)
    assert plan.stateless
    whole = plan.plan(observation)["insert"]
    some = plan.plan({key: value[2:4] for key, value in observation.items()})["insert"]
    assert np.array_equal(whole[2:4], some)


def test_the_higher_the_price_the_fewer_cards(lite: Scenario, network: ESAN) -> None:
    shares = [
        share_of(results(policy_of(make_plan(network, price=price), "mix"), lite))
        for price in (-0.1, 0.0, 0.05, 10.0)
    ]
    assert shares == sorted(shares, reverse=True) and shares[0] > 0.25 and shares[-1] == 0


def test_goods_stand_in_the_order_of_the_scorer(lite: Scenario, network: ESAN) -> None:
    env = make_feeds("EdgeFeed-v0", 4, scenario=lite, users="synthetic")
    observation, _ = env.reset(seed=1)
    scorer = DeviceGreedy()
    plan = make_plan(network, scorer=scorer)
    assert np.array_equal(plan.plan(observation)["order"], scorer.scores(observation))
    _, sorted_values = plan.values(observation)
    _, cloud_values = make_plan(network).values(observation)
    assert not np.allclose(sorted_values.goods, cloud_values.goods)
    assert np.allclose(
        np.sort(sorted_values.exposure)[:, -1], np.sort(cloud_values.exposure)[:, -1], atol=0.1
    )


def test_gains_by_hand() -> None:
    values = SlotValues(np.array([[[0.5, 0.4], [0.0, 0.0]]]), np.array([[0.2, 0.1]]), np.array([[1.0, 0.5]]))
    lost = [0.5 * 0.2 + 0.5 * 0.1, 0.5 * 0.1]
    gain = net_gains(values, 0.1)
    assert gain[0, 0] == pytest.approx([1.0 * (0.5 - 0.1) - lost[0], 0.5 * (0.4 - 0.1) - lost[1]])
    assert (gain[0, 1] == -np.inf).all(), "no card"
    assert insertions(np.array([[1, -1, 3]]), 2).tolist() == [[0, 1]]


def test_true_values_beat_fixed_slots_at_no_more_cards(lite: Scenario) -> None:
    oracle = InsertionPlan("oracle", TrueValues(), lite.config, price=0.03)
    found = results(policy_of(oracle, "mix", 1), lite, sessions=300)
    fixed = results(FixedSlot("mix"), lite, sessions=300)
    assert share_of(found) < share_of(fixed) + 0.02
    assert (found["value"] - fixed["value"]).mean() > 0.5
    clicks = [s["expected_card_clicks"].sum() / cards_seen(s).sum() for s in (found, fixed)]
    assert clicks[0] > 1.5 * clicks[1]


def test_oracles_see_the_truth_only(lite: Scenario, network: ESAN) -> None:
    policy = policy_of(InsertionPlan("oracle", TrueValues(), lite.config), "mix")
    with pytest.raises(InputError, match="needs users='synthetic'"):
        bind(policy, make_feeds("EdgeFeedMix-v0", 1, scenario=lite, users="learned"))
    assert not hasattr(policy_of(make_plan(network), "mix"), "bind")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda n: make_plan(n, solver="magic"), "unknown solver 'magic'; allowed: exact"),
        (lambda n: make_plan(n, price=np.nan), "price = nan must be finite"),
        (lambda n: policy_of(make_plan(n), "rerank"), "plays the tracks mix, joint, slate, not 'rerank'"),
    ],
)
def test_bad_arguments(network: ESAN, make: Callable[[ESAN], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(network)


def test_slot_by_slot_knows_its_track(lite: Scenario, network: ESAN) -> None:
    env = make_feeds("EdgeFeedRerank-v0", 2, scenario=lite, users="synthetic")
    observation, _ = env.reset(seed=0)
    policy = SlotBySlot(make_plan(network), mix=True)
    policy.reset(np.ones(2, np.bool_))
    with pytest.raises(InputError, match="plays EdgeFeedMix-v0, not 20 actions"):
        policy.act(observation)


# --- equal share ----------------------------------------------------------------------------------------


def priced(place: Place, price: float) -> Any:
    """An oracle's policy, as an entry makes it."""
    plan = InsertionPlan("oracle", TrueValues(), Scenario.load(place.scenario).config, price=price)
    return policy_of(plan, track_of(place.env_id))


@pytest.mark.slow
def test_a_price_is_found_for_a_share(lite: Scenario) -> None:
    place = Place("EdgeFeedMix-v0", "lite", sessions=60)
    entry = Entry("oracle", priced, {"price": 0.0})
    for target in (0.1, 0.33):
        price = find_price(entry, place, target)
        found = results(priced(place, price), lite, sessions=60, split="train")
        assert share_of(found) == pytest.approx(target, abs=0.004)
    with pytest.raises(InputError, match="no price in .* gives a share of 60.00%"):
        find_price(entry, place, 0.6)


# --- policy gradient ------------------------------------------------------------------------------------


def trainer(network: ESAN, lite: Scenario, **changes: Any) -> ESANGradient:
    settings = ESANGradientConfig(batch_size=8, samples=4, **changes)
    env = EdgeFeedSlateVectorEnv(32, scenario=lite, users="synthetic", split="train", copy=False)
    record: dict[str, Any] = {"seed": 0, "steps": 0, "reward": [], "price": settings.price}
    return ESANGradient(network, record, settings, env)


def test_plans_are_judged_at_equal_numbers_of_cards() -> None:
    rng = np.random.default_rng(0)
    inserted, luck = rng.standard_normal((2, 500))
    left = at_equal_share(0.7 * inserted + luck, inserted)
    assert abs(left @ inserted) < 1e-9 and np.corrcoef(left, luck)[0, 1] > 0.99
    assert np.array_equal(at_equal_share(luck, np.zeros(500)), luck)


def test_the_gradient_is_that_of_the_score(
    lite: Scenario, network: ESAN, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a perturbed matrix x = mu + sigma noise: advantage x noise / sigma; and the penalty's."""
    learner = trainer(network, lite, noise=0.2, price=-0.05, anchor=0.5)
    moments, reward, share = learner.rollouts(np.random.default_rng(0))
    n_moments = len(moments.advantage)
    assert n_moments > 32 and reward > 0 and 0.1 < share < 0.4
    assert moments.direction.shape == (n_moments, 8, 10) and moments.direction.any(axis=(1, 2)).all()
    assert abs(moments.advantage.mean()) < 0.1 and moments.advantage.std() > 0.01
    values = torch.full((n_moments, 8, 10), 0.3, requires_grad=True)
    before = torch.zeros(n_moments, 8, 10)
    answers = {learner.network: values, learner.start: before}
    monkeypatch.setattr(gradient, "predict_values", lambda network, *_: (answers[network], None, None))
    learner.loss(moments).backward()
    assert values.grad is not None
    expected = -moments.advantage[:, None, None] * moments.direction / 0.2
    expected += 0.5 * 0.3 / 0.2**2 * (moments.direction != 0)
    assert np.allclose(values.grad.numpy(), expected, rtol=1e-4, atol=1e-4)


def test_learns_which_cards_pay(lite: Scenario, monkeypatch: pytest.MonkeyPatch) -> None:
    """A made-up world pays for cards of the first type, wherever they stand."""
    tuned = stir(build(lite.config, ESANConfig(hidden=8), (True,) * 4))
    learner = trainer(tuned, lite, learning_rate=5e-3, noise=0.3, price=-0.1, price_step=0.0, anchor=0.0)

    def world(env: Any, planner: Any) -> Any:
        rows = np.arange(env.num_envs)
        observation = env.batch.observation()
        plan, kept = planner(observation, rows)
        position = np.tile(np.arange(10), (len(rows), 1))
        reward = np.zeros((len(rows), 60))
        reward[:, :10] = np.isin(plan["insert"] - 1, PREFERRED)
        cards = np.zeros_like(reward)
        cards[:, :10] = plan["insert"] > 0
        env.batch.arrays.exposures[:] = 10
        return reward, cards, [PlayedPlan(kept, rows, position)]

    monkeypatch.setattr(gradient, "play_plans", world)
    env = make_feeds("EdgeFeedMix-v0", 20, scenario=lite, users="synthetic")
    observation, _ = env.reset(seed=9)

    def preference() -> float:
        cards = make_plan(tuned).values(observation)[1].cards.mean(axis=(0, 2))
        return float(cards[PREFERRED].mean() / cards.mean())

    before = preference()
    for _ in range(25):
        learner.update()
    assert preference() > before + 0.1


def test_the_price_holds_the_share(lite: Scenario, network: ESAN) -> None:
    tuned = stir(build(lite.config, ESANConfig(hidden=8), (True,) * 4))
    learner = trainer(tuned, lite, price=0.0, share=0.05, price_step=1.0)
    learner.update()
    assert learner.record["price"] > 0.05


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logs")
    collect(folder, preset_name="lite", sessions=200, seed=1)
    return folder


def test_runs_are_trained_tuned_and_played(
    logs: Path, lite: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common: dict[str, Any] = {"seed": 0, "resume": True, "threads": 1}
    train_agent("esan", tmp_path / "esan", logs=logs, hyper={"epochs": 1, "hidden": 8}, **common)
    hyper = {"updates": 2, "batch_size": 4, "samples": 2, "checkpoint_every": 1}
    tune: dict[str, Any] = {
        "logs": None, "based_on": [tmp_path / "esan"], "hyper": hyper, "scenario": lite, **common
    }  # fmt: skip
    record = train_agent("esan-pg", tmp_path / "whole", **tune)
    assert len(record["reward"]) == 2 and record["price"] != record["hyper"]["price"]
    original, updates = ESANGradient.update, []

    def dies(self: Any) -> None:
        if updates:
            raise KeyboardInterrupt
        updates.append(1)
        original(self)

    monkeypatch.setattr(ESANGradient, "update", dies)
    with pytest.raises(KeyboardInterrupt):
        train_agent("esan-pg", tmp_path / "killed", **tune)
    monkeypatch.setattr(ESANGradient, "update", original)
    assert train_agent("esan-pg", tmp_path / "killed", **tune) == record
    first, second = (load_file(tmp_path / name / "policy.safetensors") for name in ("whole", "killed"))
    assert all(np.array_equal(first[key], second[key]) for key in first)
    before = load_file(tmp_path / "esan" / "policy.safetensors")
    assert any(not np.array_equal(first[key], before[key]) for key in first)
    for run in ("esan", "whole"):
        for env_id in PLAYED:
            policy = find_policy(str(tmp_path / run), env_id, lite, "synthetic")
            assert not results(policy, lite, env_id, sessions=6)["violations"].any()
    with pytest.raises(InputError, match="plays the tracks mix, joint, slate, not 'rerank'"):
        find_policy(str(tmp_path / "esan"), "EdgeFeedRerank-v0", lite, "synthetic")
    with pytest.raises(InputError, match="was trained with pool"):
        find_policy(str(tmp_path / "esan"), PLAYED[0], "default", "synthetic")
    with pytest.raises(InputError, match="starts from one run of 'esan'"):
        train_agent("esan-pg", tmp_path / "alone", **tune | {"based_on": ()})
    with pytest.raises(InputError, match="reads no logs"):
        train_agent("esan-pg", tmp_path / "logged", **tune | {"logs": logs})


# --- the benchmark's track ------------------------------------------------------------------------------


def test_figures_of_predictions() -> None:
    rng = np.random.default_rng(0)
    p = np.round(rng.uniform(0.02, 0.4, 4000), 2)
    click = (rng.random(4000) < p).astype(float)
    weight = rng.integers(0, 3, 4000).astype(float)
    repeated = np.repeat(np.arange(4000), weight.astype(int))
    hit, miss = p[repeated][click[repeated] > 0], p[repeated][click[repeated] == 0]
    pairs = (hit[:, None] > miss).mean() + 0.5 * (hit[:, None] == miss).mean()
    assert auc(p, click, weight) == pytest.approx(pairs)
    ones = np.ones(4000)
    assert calibration_error(p, click, ones) < 0.03 < calibration_error(p + 0.05, click, ones)
    assert log_loss(p, click, ones) < log_loss(np.full(4000, click.mean()), click, ones)


@pytest.mark.slow
def test_the_track_scores_all_at_equal_share(tmp_path: Path) -> None:
    sizes = track.Sizes(
        log_sessions=200,
        held_sessions=200,
        sessions=100,
        price_sessions=50,
        frontier_sessions=10,
        hyper={"esan": {"epochs": 1, "hidden": 8}, "esan-pg": {"updates": 1, "batch_size": 4, "samples": 2}},
    )
    options: dict[str, Any] = {"sizes": sizes, "seeds": 1, "workers": 1}
    policies = ("esan + exact, fine-tuned", "oracle + exact")
    told: list[str] = []
    rows = run_track("mix", tmp_path, policies=policies, progress=lambda *a: told.append(a[2]), **options)
    found = {(item["policy"], item["metric"]): item for item in rows}
    fixed = found["fixed-slot", "share"]["mean"]
    for policy in policies:
        assert found[policy, "share"]["mean"] == pytest.approx(fixed, abs=0.03)
        assert found[policy, "violations"]["mean"] == 0 < found[policy, "slots"]["mean"]
        assert {"mean", "low", "high", "seeds", "sessions"} <= found[policy, "card_click_rate"].keys()
    assert found["oracle + exact", "gain_over_fixed"]["low"] > 0
    assert found["oracle + exact", "card_click_rate_gain"]["low"] > 0.5
    assert found["keep", "share"]["mean"] == 0 and ("keep", "card_click_rate") not in found
    for variant in track.ABLATIONS:
        assert 0.3 < found[variant, "auc"]["mean"] < 0.8
        assert (variant, "auc_minus_full") in found or variant == "esan"
    points = [item for item in rows if item["metric"] == "frontier" and item["policy"] == "oracle + exact"]
    by_price = sorted((item["knob"], item["share"]) for item in points)
    assert [share for _, share in by_price] == sorted((share for _, share in by_price), reverse=True)
    draw_frontier(rows, tmp_path / "frontier.png")
    assert (tmp_path / "frontier.png").stat().st_size > 10_000
    told.clear()
    assert (
        run_track("mix", tmp_path, policies=policies, progress=lambda *a: told.append(a[2]), **options)
        == rows
    )
    assert not told, "everything is used again"


def test_the_track_refuses_what_it_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown policy 'best'; allowed: greedy"):
        run_track("mix", tmp_path, policies=["best"])
    with pytest.raises(InputError, match="runs on lite, default, lite-v2, default-v2; got"):
        run_track("mix", tmp_path, scenario="mine")
    assert set(PLAYED) < set(IDS) and Keep.name == track.KEEP
    assert "esan" in track.ABLATIONS
