"""The EdgeRec agent: rules kept and read, plans explained, one perception, whole plans."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgerec_gym.agents.edgerec.agent import EdgeRec
from edgerec_gym.agents.edgerec.judges import JointNetwork, agent_inputs
from edgerec_gym.agents.edgerec.network import EdgeRecNetwork
from edgerec_gym.agents.edgerec.rollouts import play_sessions
from edgerec_gym.agents.edgerec.rules import Rules, load_rules, rules_from
from edgerec_gym.agents.edgerec.values import N_CANDIDATES, Branch, fit
from edgerec_gym.agents.find_policy import find_policy
from edgerec_gym.agents.insertion.esan import ESANConfig
from edgerec_gym.agents.insertion.train import build
from edgerec_gym.errors import InputError
from edgerec_gym.registration import make_feeds
from edgerec_gym.scenario import Scenario
from tests.small_edgerec import ID, results, stirred_network
from tests.small_pools import stir


@pytest.fixture(scope="module")
def network(lite: Scenario) -> EdgeRecNetwork:
    return stirred_network(lite)


def agent_of(network: EdgeRecNetwork, rules: dict[str, Any] | None = None) -> EdgeRec:
    return EdgeRec(JointNetwork(network), network.config, rules_from(rules or {}))


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
        at_once = network.esan.perception(agent_inputs(observation))
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
