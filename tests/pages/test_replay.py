"""The replay of a session: the session of the evaluation, slot by slot, with the policy's reasons."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest

from edgerec_gym.agents.baselines import Keep, Random
from edgerec_gym.agents.find_policy import find_policy
from edgerec_gym.agents.insertion.policies import InsertionPlan, policy_of
from edgerec_gym.agents.insertion.values import TrueValues
from edgerec_gym.agents.requests.planner import PriceController, RequestPlanner
from edgerec_gym.errors import InputError
from edgerec_gym.evaluation.play import play
from edgerec_gym.pages.replay import write_replay
from edgerec_gym.pages.session import record_session
from edgerec_gym.policy import Explanation
from edgerec_gym.registration import track_of
from edgerec_gym.scenario import Scenario


def recorded(policy, env_id, session=3, users="synthetic", seed=0):
    return record_session(policy, env_id=env_id, scenario="lite", users=users, session=session, seed=seed)


@pytest.mark.parametrize("seed", [0, 2])
def test_a_replay_is_the_session_of_the_evaluation(env_id, seed):
    options = {"env_id": env_id, "scenario": "lite", "users": "synthetic", "seed": seed}
    evaluated = play(find_policy("oracle", env_id, "lite", "synthetic"), sessions=4, **options)
    told = record_session(find_policy("oracle", env_id, "lite", "synthetic"), session=3, **options)
    about = told["about"]
    assert about["reward"] == pytest.approx(evaluated["reward"][3])
    assert about["clicks"] == evaluated["clicks"][3] and about["requests"] == evaluated["requests"][3]
    answers = [answer for answer in told["answers"] if answer]
    assert len(answers) == evaluated["exposures"][3]
    assert sum(answer["click"] for answer in answers) == about["clicks"]
    assert sum(slot["reward"] for slot in told["slots"]) == pytest.approx(about["reward"], abs=1e-3)
    assert sum(sum(slot["terms"].values()) for slot in told["slots"]) == pytest.approx(
        about["reward"], abs=1e-3
    )


def test_what_is_placed_leaves_the_pool_or_the_cards(env_id):
    told = recorded(find_policy("random", env_id, "lite", "synthetic"), env_id)
    assert len(told["frames"]) == len(told["slots"]) + 1 == len(told["answers"]) + 1
    for before, slot, after in zip(told["frames"], told["slots"], told["frames"][1:], strict=False):
        card = slot["card"]
        part = "cards" if card["placed"] == "inserted" else "pool"
        assert before[part][card["row"]] == card["item"]
        passed = sum(item >= 0 for item in before["pool"][: card["row"]]) if part == "pool" else 0
        assert card["passed"] == passed and (card["placed"] == "promoted") == (passed > 0)
        if not slot["arrived"]:
            changed = [k for k, item in enumerate(after[part]) if item != before[part][k]]
            assert changed == [card["row"]] and after[part][card["row"]] == -1
        for item in (*before["pool"], *before["cards"]):
            assert item < 0 or told["items"][item][0] < len(told["colours"])


class Watched(Random):
    """Keeps the masks that it has seen."""

    def __init__(self):
        super().__init__()
        self.masks = []

    def act(self, observation):
        self.masks.append(observation["action_mask"][0].copy())
        return super().act(observation)


def test_reasons_agree_with_the_mask(lite):
    """A card type has no reason against it where a card of it is legal, and only there; so has a request."""
    n_pool, n_types, reasons = lite.config.pool_size, len(lite.config.card_types), set()
    for session in range(3):
        policy = Watched()
        told = recorded(policy, "EdgeFeed-v0", session)
        for mask, frame in zip(policy.masks, told["frames"], strict=False):
            for k, (name, _, why) in enumerate(frame["rules"]):
                assert name == lite.config.card_types[k]
                assert (why == "") == bool(mask[n_pool + k : -1 : n_types].any()), (why, mask)
                reasons.add(why.split(" ")[0].rstrip(","))
            assert (frame["request"] == "") == bool(mask[-1])
    assert {"", "from", "gap", "share"} <= reasons


def test_latent_intent_is_told_of_synthetic_users_only():
    synthetic = recorded(Keep(), "EdgeFeed-v0")["frames"]
    learned = recorded(Keep(), "EdgeFeed-v0", users="learned")["frames"]
    assert all(frame["intent"][0][1] >= frame["intent"][1][1] for frame in synthetic)
    assert not any("intent" in frame for frame in learned)


def planner(track, every=None):
    plan = InsertionPlan("planner", TrueValues(), Scenario.load("lite").config, horizon=8)
    return policy_of(plan, track, every)


@pytest.mark.parametrize("env_id", ["EdgeFeedMix-v0", "EdgeFeedSlate-v0", "EdgeFeed-v0"])
def test_a_planned_card_is_the_one_that_lands(env_id):
    """What is planned for a slot is played there, also later in a plan, and has a finite gain before."""
    told = recorded(planner(track_of(env_id)), env_id)
    planned = 0
    for frame, slot in zip(told["frames"], told["slots"], strict=False):
        why = frame["why"]
        for row, place in enumerate(why["plan"]):
            assert place < 0 or np.isfinite(why["matrix"][row][place])
            if place == 0:
                planned += 1
                assert (slot["card"]["placed"], slot["card"]["row"]) == ("inserted", row)
        assert (0 in why["plan"]) == (slot["card"]["placed"] == "inserted")
    assert planned


def test_a_plan_in_force_moves_along_and_names_its_trigger():
    """Between triggers, the plan of the slot before is one slot nearer; a trigger starts a new one."""
    frames = recorded(planner("mix", every=5), "EdgeFeedMix-v0")["frames"][:-1]
    triggers = [frame["why"]["trigger"] for frame in frames]
    assert triggers[0] == "start" and {None, "no click for long"} <= set(triggers)
    for before, now in zip(frames, frames[1:], strict=False):
        if now["why"]["trigger"] is None:
            moved = [place - 1 if place > 0 else -1 for place in before["why"]["plan"]]
            assert now["why"]["plan"] == moved
            assert [row[1:] for row in before["why"]["matrix"]] == now["why"]["matrix"]


def test_the_oracle_tells_the_values_that_it_compares():
    told = recorded(find_policy("oracle", "EdgeFeed-v0", "lite", "synthetic"), "EdgeFeed-v0")
    for frame, slot in zip(told["frames"], told["slots"], strict=False):
        if slot["card"]["placed"] != "inserted" and slot["card"]["request"] != "requested":
            assert frame["why"]["scores"][slot["card"]["row"]] == max(frame["why"]["scores"])


@pytest.mark.parametrize("price", [0.5, PriceController(0.5, np.linspace(0, 1, 11))])
def test_a_request_planner_tells_score_and_price(price):
    rng = np.random.default_rng(0)
    policy = RequestPlanner("chance", lambda seen: rng.random(len(seen["context"])), price, cool_down=2)
    told = recorded(policy, "EdgeFeedRequest-v0")
    asked = 0
    for frame, slot in zip(told["frames"], told["slots"], strict=False):
        why = frame["why"]
        if slot["card"]["request"] == "requested":
            asked += 1
            assert why["uplift"] >= why["price"]
        elif why["uplift"] is not None and isinstance(price, float):
            assert why["uplift"] <= why["price"]
    assert asked and any(frame["why"]["uplift"] is None for frame in told["frames"][:-1])


@pytest.mark.parametrize(
    ("part", "value"), [("scores", np.zeros(3)), ("matrix", np.zeros((2, 4))), ("plan", np.zeros((8, 1)))]
)
def test_an_explanation_of_a_wrong_shape_is_refused(part, value):
    policy = SimpleNamespace(name="mine", reset=Keep().reset, act=Keep().act)
    policy.explain = lambda row: Explanation(**{part: value})
    with pytest.raises(InputError, match=f"'mine' explains {part} of shape"):
        recorded(policy, "EdgeFeed-v0")


@pytest.mark.parametrize("session", [-1, 2**20])
def test_sessions_out_of_range(session):
    with pytest.raises(InputError, match=f"session {session} is out of range; allowed: 0 to 1048575"):
        recorded(Keep(), "EdgeFeed-v0", session)


def test_the_page_holds_the_session_and_loads_nothing(tmp_path):
    policy = Keep()
    policy.name = "</script><b>keep"
    told = recorded(policy, "EdgeFeed-v0")
    told["frames"][0]["why"] = {"scores": [float("-inf")] * 20}
    text = write_replay(told, tmp_path / "new" / "replay.html").read_text()
    (data,) = re.findall(r'<script type="application/json" id="session">(.*?)</script>', text)
    content = json.loads(data)
    assert content["about"]["policy"] == policy.name and content["frames"][0]["why"]["scores"][0] is None
    assert "</script><b>" not in text
    assert not re.findall(r'(?:src|href)="(?!data:,)|@import|url\(', text)
    assert not list((tmp_path / "new").glob(".*"))
