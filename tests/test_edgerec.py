"""The EdgeRec agent: rules kept and read, plans explained, one perception, joint training that resumes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from edgerec_gym.agents import checkpoint, edgerec_runs, edgerec_training, joint_rows, joint_track
from edgerec_gym.agents.base import Policy
from edgerec_gym.agents.edgerec import EdgeRec
from edgerec_gym.agents.edgerec_judges import JointNetwork, load_parts, readable
from edgerec_gym.agents.edgerec_network import EdgeRecNetwork
from edgerec_gym.agents.edgerec_rollouts import Explorer, play_sessions
from edgerec_gym.agents.edgerec_rules import Rules, load_rules, rules_from
from edgerec_gym.agents.edgerec_values import FEATURES, N_CANDIDATES, Branch, fit
from edgerec_gym.agents.esan import ESANConfig
from edgerec_gym.agents.evaluator_training import build
from edgerec_gym.agents.lookup import find_policy
from edgerec_gym.agents.registry import train_agent
from edgerec_gym.errors import InputError
from edgerec_gym.evaluate import play
from edgerec_gym.logs.collect import collect
from edgerec_gym.registration import make_feeds
from edgerec_gym.scenario import Scenario
from tests.small_pools import stir

ID = "EdgeFeed-v0"
TINY: dict[str, Any] = {
    "hidden": 8, "teach_sessions": 12, "teach_epochs": 2, "batch_size": 4, "samples": 2, "moments": 40,
    "select_every": 1, "select_sessions": 8, "compare_sessions": 6,
}  # fmt: skip


@pytest.fixture(scope="module")
def lite() -> Scenario:
    return Scenario.load("lite")


@pytest.fixture(scope="module")
def network(lite: Scenario) -> EdgeRecNetwork:
    network = EdgeRecNetwork(build(lite.config, ESANConfig(hidden=8), (True,) * 4), 8, True, len(FEATURES))
    stir(network)
    with torch.no_grad():
        network.effect.copy_(torch.tensor([1.0, 0.1]))  # about as much as a request costs
        network.price.zero_()
        network.plan.copy_(torch.linspace(-0.2, 0.2, len(FEATURES)))
    return network.eval()


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Runs of the three parts, hardly trained."""
    folder = tmp_path_factory.mktemp("parts")
    collect(folder / "logs", preset_name="lite", sessions=150, seed=1)
    small = {"epochs": 1, "hidden": 8}
    runs = {"crban": small, "esan": small, "uplift-x": {"epochs": 1, "hidden": 4, "behaviour": 4}}
    for agent, hyper in runs.items():
        train_agent(agent, folder / agent, logs=folder / "logs", seed=0, resume=False, threads=1, hyper=hyper)
    return [folder / agent for agent in runs]


def agent_of(network: EdgeRecNetwork, rules: dict[str, Any] | None = None) -> EdgeRec:
    return EdgeRec(JointNetwork(network), network.config, rules_from(rules or {}))


def results(policy: Policy, lite: Scenario, sessions: int = 30, **options: Any) -> dict[str, np.ndarray]:
    options = {"users": "synthetic", "seed": 0} | options
    return play(policy, env_id=ID, scenario=lite, sessions=sessions, **options)


# --- rules --------------------------------------------------------------------------------------------


def test_the_example_holds_the_defaults_and_files_come_back(tmp_path: Path) -> None:
    assert load_rules("examples/edgerec.toml") == Rules()
    other = rules_from(
        {
            "decide": {"order": False, "joint": True},
            "insert": {"price": 0.25, "gaps": [6, 6, 6, 6], "solver": "greedy"},
            "request": {"price": 0.5, "per_session": 2},
            "triggers": {"quiet_exposures": False, "click": False},
        }
    )
    other.save(tmp_path / "rules.toml")
    assert load_rules(tmp_path / "rules.toml") == other


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[decide]\norder = 'yes'", ("[decide] order", "true or false", "'yes'")),
        ("[decide]\nordr = true", ("[decide]", "'ordr'", "'order'")),
        ("[insrt]\nprice = 1", ("[insrt]", "insert")),
        ("price = 1", ("[price]", "sections")),
        ("insert = 3", ("insert must be a section",)),
        ("[insert]\nshare_caps = [0.1, 2]", ("[insert] share_caps[1] = 2", "0.0 to 1.0")),
        ("[insert]\nprice = nan", ("[insert] price = nan", "allowed")),
        ("[insert]\nsolver = 'magic'", ("[insert] solver", "exact", "'magic'")),
        ("[request]\ncool_down = -1", ("[request] cool_down = -1", "0 to 10000")),
        ("[request]\nper_session = 1.5", ("[request] per_session", "whole number")),
        ("[triggers]\nquiet_exposures = 0", ("[triggers] quiet_exposures = 0", "1 to")),
        ("[decide\n", ("not valid TOML",)),
    ],
)
def test_bad_rules_name_file_field_and_what_is_allowed(
    text: str, told: tuple[str, ...], tmp_path: Path
) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(text)
    with pytest.raises(InputError) as error:
        load_rules(file)
    assert str(file) in str(error.value)
    for part in told:
        assert part in str(error.value)


@pytest.mark.parametrize("insert", [{"gaps": [1, 2]}, {"gaps": [11, 1, 1, 1]}])
def test_rules_that_do_not_fit_the_feed_are_refused(insert: dict[str, Any], lite: Scenario) -> None:
    with pytest.raises(InputError, match="gaps"):
        rules_from({"insert": insert}).feed(lite.config)


def test_rules_only_make_the_feed_stricter(lite: Scenario) -> None:
    free = rules_from({"insert": {"share_caps": [1.0] * 4, "gaps": [0] * 4, "first_slots": [0] * 4}})
    assert free.feed(lite.config) == lite.config


# --- playing ------------------------------------------------------------------------------------------

STRICT = {
    "insert": {"gaps": [10, 10, 10, 10], "price": -1.0},
    "request": {"price": -10.0, "cool_down": 12, "per_session": 2},
}


@pytest.mark.parametrize(
    "rules", [{}, STRICT, {"triggers": {"every_slot": True}}], ids=["", "strict", "each"]
)
@pytest.mark.parametrize("users", ["synthetic", "learned"])
def test_it_breaks_no_rule_of_the_feed(
    rules: dict[str, Any], users: str, network: EdgeRecNetwork, lite: Scenario
) -> None:
    played = results(agent_of(network, rules), lite, users=users)
    assert played["violations"].sum() == 0


def test_its_own_rules_are_kept(network: EdgeRecNetwork, lite: Scenario) -> None:
    env = make_feeds(ID, 40, scenario=lite, users="synthetic", copy=False)
    policy, n_pool, slots = agent_of(network, STRICT), lite.config.pool_size, []
    env.reset(seed=3)
    policy.reset(np.ones(40, np.bool_))
    for _ in range(25):
        action = policy.act(env.batch.observation(copy=False))
        env.batch.step(action, np.zeros(40, np.bool_))
        slots.append(action)
    actions = np.stack(slots, 1)  # (B, slots)
    asked = actions == n_pool + lite.config.n_cards
    assert asked.any() and (asked.sum(1) <= 2).all()
    for row in asked:
        assert (np.diff(np.flatnonzero(row)) >= 12).all()
    types = np.where((actions >= n_pool) & ~asked, (actions - n_pool) % 4, -1)
    assert (types >= 0).any()
    for row in types:
        for kind in range(4):
            assert (np.diff(np.flatnonzero(row == kind)) >= 10).all()


def test_decisions_that_are_off_are_left_to_the_cloud(network: EdgeRecNetwork, lite: Scenario) -> None:
    eager = {"insert": {"price": -1.0}, "request": {"price": -1.0}}
    off = {"decide": {"order": False, "insert": False, "request": False}}
    idle = results(agent_of(network, eager | off), lite)
    keep = results(find_policy("keep", ID, lite, "synthetic"), lite)
    np.testing.assert_array_equal(idle["value"], keep["value"])
    busy = results(agent_of(network, eager), lite)
    assert busy["requests"].sum() > 0 and busy["cards_video"].sum() > 0
    alone = results(agent_of(network, eager | {"decide": {"insert": False}}), lite)
    assert alone["requests"].sum() > 0 and not any(alone[k].any() for k in alone if k.startswith("cards_"))


def test_the_same_sessions_whatever_the_batch(network: EdgeRecNetwork, lite: Scenario) -> None:
    together = results(agent_of(network), lite, sessions=24, num_envs=24)
    policy = agent_of(network)  # one policy for batches of another size, as the evaluator has it
    apart = results(policy, lite, sessions=24, num_envs=8)
    np.testing.assert_allclose(together["value"], apart["value"])


def test_perception_takes_in_one_event_at_a_time(network: EdgeRecNetwork, lite: Scenario) -> None:
    env = make_feeds(ID, 32, scenario=lite, users="synthetic", copy=False)
    judge, late = JointNetwork(network), JointNetwork(network)
    env.reset(seed=0)
    judge.reset(np.ones(32, np.bool_))
    late.reset(np.ones(32, np.bool_))
    for _ in range(15):  # no longer than the history
        observation = env.batch.observation(copy=False)
        judge.see(observation)
        env.batch.step(observation["action_mask"].argmax(axis=1), np.zeros(32, np.bool_))
    observation = env.batch.observation(copy=False)
    judge.see(observation)
    late.see(observation)  # one that comes late reads the histories
    with torch.no_grad():
        at_once = network.esan.perception(readable(observation))
    for found in (judge.behaviour(np.arange(32)), late.behaviour(np.arange(32))):
        for name, codes in at_once.items():
            here = codes.present
            torch.testing.assert_close(found[name].present, here)
            torch.testing.assert_close(found[name].values[here], codes.values[here], atol=1e-5, rtol=1e-4)


def test_explanations_agree_with_actions(network: EdgeRecNetwork, lite: Scenario) -> None:
    env = make_feeds(ID, 24, scenario=lite, users="synthetic", copy=False)
    policy, n_pool, seen = agent_of(network), lite.config.pool_size, set()
    env.reset(seed=1)
    policy.reset(np.ones(24, np.bool_))
    for _ in range(20):
        observation = env.batch.observation()
        action = policy.act(observation)
        for row, chosen in enumerate(action):
            told = policy.explain(row)
            assert told.scores is not None and told.plan is not None and told.matrix is not None
            mask = observation["action_mask"][row]
            here = np.flatnonzero(told.plan == 0)
            asks = told.uplift is not None and told.price is not None and told.uplift > told.price
            if chosen == len(mask) - 1:
                assert asks
            elif len(here) and mask[n_pool + here[0]]:
                assert chosen == n_pool + here[0]
            else:
                assert chosen == np.where(mask[:n_pool] != 0, told.scores, -np.inf).argmax()
            assert told.matrix.shape[0] == lite.config.n_cards
            assert (told.plan < told.matrix.shape[1]).all()
            assert (told.trigger is None) == (told.uplift is None)
            seen.add(told.trigger)
        env.batch.step(action, np.zeros(24, np.bool_))
    assert {"start", "new page", "click", "no click for long", None} <= seen


def test_hidden_page_views_change_nothing(lite: Scenario) -> None:
    blind = stir(EdgeRecNetwork(build(lite.config, ESANConfig(hidden=8), (True,) * 4), 8, False)).eval()
    env = make_feeds(ID, 64, scenario=lite, users="synthetic")
    observation, _ = env.reset(seed=0)
    for _ in range(10):
        observation, *_ = env.step(observation["action_mask"].argmax(axis=1))
    assert observation["page_views"].any()
    other = observation | {"page_views": np.zeros_like(observation["page_views"])}
    rows, found = np.arange(64), []
    for seen in (observation, other):
        judge = JointNetwork(blind)
        judge.reset(np.ones(64, np.bool_))
        judge.see(seen)
        scores = judge.scores(seen, rows)
        found.append((scores, judge.judge(seen, rows, scores).gain))
    for one, same in zip(*found, strict=True):
        np.testing.assert_array_equal(one, same)


# --- whole plans --------------------------------------------------------------------------------------


def test_ridge_finds_what_plans_are_worth() -> None:
    generator = np.random.default_rng(0)
    told, weights = generator.standard_normal((500, N_CANDIDATES, 3)), np.array([0.5, -1.0, 0.0])
    worth = told @ weights + generator.standard_normal((500, 1))  # what copies of a session share
    np.testing.assert_allclose(fit(told, worth, 1.0).weights, weights, atol=1e-2)


def test_copies_differ_by_one_plan_only(network: EdgeRecNetwork, lite: Scenario) -> None:
    branch = Branch(np.full(2 * N_CANDIDATES, 1))
    policy = EdgeRec(JointNetwork(network), lite.config, choose=branch)
    env = make_feeds("joint", 2 * N_CANDIDATES, scenario=lite, users="synthetic", split="train", copy=False)
    earned = play_sessions(policy, env, np.repeat([5, 6], N_CANDIDATES))
    slots = branch.slot.reshape(2, N_CANDIDATES)
    told = branch.told.reshape(2, N_CANDIDATES, N_CANDIDATES, -1)
    for session in range(2):
        assert (slots[session] == slots[session, 0]).all() and slots[session, 0] > 0
        np.testing.assert_allclose(told[session], told[session, :1].repeat(N_CANDIDATES, 0), atol=1e-5)
        before = earned.reshape(2, N_CANDIDATES, -1)[session, :, : slots[session, 0] - 2]
        np.testing.assert_allclose(before, before[:1].repeat(N_CANDIDATES, 0), atol=1e-6)


def test_joint_plans_need_weights(network: EdgeRecNetwork, lite: Scenario) -> None:
    joint = {"decide": {"joint": True}}
    assert results(agent_of(network, joint), lite)["violations"].sum() == 0
    bare = EdgeRecNetwork(network.esan, 8)
    with pytest.raises(InputError, match="joint"):
        agent_of(bare, joint)


# --- training -----------------------------------------------------------------------------------------


def train(out: Path, parts: list[Path], updates: int, **options: Any) -> dict[str, Any]:
    lite = Scenario.load("lite")
    short = replace(lite, config=lite.config.replace(max_slots=16))
    hyper = TINY | {"updates": updates}
    return edgerec_training.train(out, based_on=parts, scenario=short, resume=True, **options, **hyper)


def test_training_resumes_to_the_same_parameters(
    parts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = train(tmp_path / "whole", parts, 2)
    assert len(record["held_out"]) == 3 and len(record["reward"]) == 2
    update = edgerec_training.EdgeRecTrainer.update

    def killed(trainer: edgerec_training.EdgeRecTrainer) -> None:
        if trainer.record["steps"] == 1:
            raise KeyboardInterrupt
        update(trainer)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(edgerec_training.EdgeRecTrainer, "update", killed)
        train(tmp_path / "killed", parts, 2)
    assert train(tmp_path / "killed", parts, 2) == record
    whole, resumed = (load_file(tmp_path / n / checkpoint.PARAMETERS) for n in ("whole", "killed"))
    for name, values in whole.items():
        np.testing.assert_array_equal(values, resumed[name])
    with pytest.raises(InputError, match="rules"):
        train(tmp_path / "whole", parts, 2, rules=rules_from({"decide": {"order": False}}))


def test_a_run_plays_by_the_rules_in_its_folder(parts: list[Path], lite: Scenario, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(out, parts, 1, rules=rules_from({"decide": {"request": False}}))
    policy = find_policy(str(out), ID, lite, "synthetic")
    assert isinstance(policy, EdgeRec) and not policy.rules.decide.request
    assert results(policy, lite)["requests"].sum() == 0
    eager = rules_from({"request": {"price": -5.0}})
    eager.save(out / "rules.toml")
    assert results(find_policy(str(out), ID, lite, "synthetic"), lite)["requests"].sum() > 0
    (out / "rules.toml").write_text("[request]\nprice = 'low'")
    with pytest.raises(InputError, match="rules.toml"):
        find_policy(str(out), ID, lite, "synthetic")
    with pytest.raises(InputError, match="EdgeFeed-v0"):
        find_policy(str(out), "EdgeFeedMix-v0", lite, "synthetic")


def test_noise_pulls_the_heads_toward_what_was_better(network: EdgeRecNetwork, lite: Scenario) -> None:
    generator = np.random.default_rng(0)
    judge = Explorer(network, generator, (0.3, 0.04, 0.05))
    env = make_feeds("joint", 16, scenario=lite, users="synthetic", split="train", copy=False)
    play_sessions(EdgeRec(judge, lite.config), env, np.arange(16))
    moments = edgerec_training.joined(judge.moments)
    trainer = edgerec_training.EdgeRecTrainer.__new__(edgerec_training.EdgeRecTrainer)
    trainer.settings, trainer.network, trainer.taught = edgerec_runs.EdgeRecConfig(), network, network
    wished = moments.told["request_noise"]  # as if a request were always worth what the noise added
    (gradient,) = torch.autograd.grad(trainer.loss(moments, wished), network.effect)
    assert gradient[1] < 0  # descent raises the shift


@pytest.mark.parametrize(
    ("given", "told"),
    [([0, 1], "uplift-x"), ([0, 0, 1, 2], "one re-ranker"), ([1, 2], "crban")],
)
def test_missing_parts_are_named(given: list[int], told: str, parts: list[Path], lite: Scenario) -> None:
    with pytest.raises(InputError, match=told):
        load_parts([parts[k] for k in given], lite.config)


def test_rules_belong_to_the_agent_only(parts: list[Path], tmp_path: Path) -> None:
    common: dict[str, Any] = {"logs": None, "seed": 0, "resume": False, "threads": 1, "hyper": {}}
    with pytest.raises(InputError, match="has no rules"):
        train_agent("crban", tmp_path, rules="examples/edgerec.toml", **common)
    with pytest.raises(InputError, match="reads no logs"):
        train_agent("edgerec", tmp_path, **common | {"logs": tmp_path})


# --- the track ----------------------------------------------------------------------------------------


def test_rows_of_the_track() -> None:
    generator, n = np.random.default_rng(0), 50
    names = {"keep": 0.0, "dnn": 0.5, "edgerec": 1.0, "edgerec, no request": 0.8, "oracle": 4.0}
    keys = (
        "value",
        "expected_clicks",
        "expected_purchases",
        "exposures",
        "requests",
        "violations",
        "cards_ad",
    )

    def sessions(level: float) -> dict[str, np.ndarray]:
        return {key: level + 2 + generator.random(n) for key in keys}

    true = {(name, None): sessions(level) for name, level in names.items()}
    stale = {("edgerec", None): sessions(0.5)}
    rows = joint_rows.make_rows(true, {}, stale)
    found = {(item["policy"], item["metric"]): item for item in rows}
    assert found["edgerec", "gain_over_best_single"]["single"] == "dnn"
    assert found["edgerec", "gain_over_best_single"]["low"] > 0
    assert found["edgerec, no request", "cost"]["mean"] == pytest.approx(0.2, abs=0.15)
    assert found["edgerec, stale cloud", "cost"]["low"] > 0
    titles = joint_track.tables(rows)
    assert len(titles) == 2 and all(body for _, body in titles.values())


def test_policies_of_the_track(tmp_path: Path) -> None:
    assert len(joint_track.POLICIES) - len(joint_rows.ABLATIONS) >= 12
    found = joint_track.entries(tmp_path, range(2), joint_track.POLICIES)
    assert {entry.seed for entry in found if entry.policy == "edgerec"} == {0, 1}
    with pytest.raises(InputError, match="unknown policy"):
        joint_track.entries(tmp_path, range(2), ["nobody"])
