"""Triggers: each fires at its threshold, after its cool-down, in the environment as on the phone."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_agents import MAKERS

from edgerec_gym.agents.baselines import DeviceGreedy
from edgerec_gym.agents.device.policy import load_policy
from edgerec_gym.agents.edgerec.agent import EdgeRec
from edgerec_gym.agents.edgerec.judges import JointNetwork
from edgerec_gym.agents.edgerec.network import EdgeRecNetwork
from edgerec_gym.agents.edgerec.rules import TRIGGERS, Rules, Triggers, load_rules, rules_from
from edgerec_gym.agents.edgerec.triggers import REASONS, TriggeredSlots, TriggerWatch
from edgerec_gym.agents.export.export import export_network
from edgerec_gym.agents.export.whole import WholeAgent
from edgerec_gym.agents.list_policy import ScoredList, SlotBySlot
from edgerec_gym.agents.registry import find_agent
from edgerec_gym.answers import DWELL_SECONDS, PAGE_VIEW_SECONDS
from edgerec_gym.device.session import DeviceSession
from edgerec_gym.errors import InputError
from edgerec_gym.policy import Observation
from edgerec_gym.registration import make_feeds
from edgerec_gym.scenario import Scenario
from edgerec_gym.spaces import CONTEXT, observation_layout
from tests.small_edgerec import stirred_network

CONFIG = Scenario.load("lite").config
OFF: dict[str, Any] = {"click": False, "deletion": False, "quiet_exposures": None}
CATEGORIES = np.eye(4, CONFIG.embedding_size, dtype=np.float32)
ALL: dict[str, Any] = {
    "long_dwell": 8,
    "fast_scroll": 0.75,
    "category_repeat": 2,
    "after_seconds": 12,
    "request_uplift": 0.0,
    "cool_downs": {"long_dwell": 4, "request_uplift": 6, "fast_scroll": 2},
}


class Card(NamedTuple):
    """A card that was answered."""

    dwell: int = 0  # bucket
    speed: int = 0  # level of 0..4
    category: int = 0
    clicked: bool = False
    view: int = 0  # bucket
    deleted: bool = False


CLICKED = Card(clicked=True)


class Story:
    """Observations of one session, of which only what triggers read is true to life."""

    def __init__(self) -> None:
        layout = observation_layout(CONFIG, "joint")
        self.now = {key: np.zeros(part.shape, part.dtype) for key, part in layout.items()}
        self.context = {name: CONTEXT.index(name) for name in ("slot", "exposures", "page_views", "page_age")}
        self.now["context"][self.context["page_age"]] = 0.1

    def answer(self, card: Card | None) -> Observation:
        """One slot later; None for a slot without an answer."""
        now, context = self.now, self.now["context"]
        at, first = self.context, CONFIG.n_item_features + CONFIG.n_types
        slot = context[at["slot"]]
        for key, name, column in (
            ("exposures", "exposures", None),
            ("page_views", "page_views", 0),
        ):
            if card is None or (key == "page_views" and not card.clicked):
                continue
            row = np.zeros(now[key].shape[1], np.float32)
            row[: CONFIG.embedding_size] = CATEGORIES[card.category]
            row[first] = (card.view if column == 0 else card.dwell) / 7
            if column is None:
                row[first + 2], row[first + 5] = card.speed / 4, card.deleted / 2
            row[-1] = slot
            filled = int(now[key].any(axis=1).sum())
            if filled == len(now[key]):
                now[key] = np.roll(now[key], -1, axis=0)
            now[key][min(filled, len(now[key]) - 1)] = row
            context[at[name]] += np.float32(1 / CONFIG.max_slots)
        context[at["slot"]] += np.float32(1 / CONFIG.max_slots)
        return {key: values[None].copy() for key, values in now.items()}


def watched(cards: list[Card], watch: TriggerWatch) -> list[str]:
    """The reasons, card by card; each makes the agent plan."""
    story, told = Story(), []
    watch.reset(np.ones(1, np.bool_))
    for card in cards:
        told.append(watch.look(story.answer(card))[0])
        watch.planned(np.array([told[-1] != ""]))
    return told


def rules(**values: Any) -> Triggers:
    return Triggers.from_dict(OFF | values)


# --- one trigger each ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "cards", "told"),
    [
        ({"click": True}, [Card(), Card(clicked=True)], ["", "click"]),
        ({"deletion": True}, [Card(), Card(deleted=True)], ["", "deletion"]),
        ({"quiet_exposures": 2}, [Card(), Card(), Card()], ["", "no click for long", ""]),
        ({"quiet_exposures": 2}, [Card(), CLICKED, Card(), Card()], ["", "", "", "no click for long"]),
        ({"long_dwell": 8}, [Card(4), Card(5), Card(0)], ["", "long dwell", ""]),
        ({"long_dwell": 8.5}, [Card(5), Card(6)], ["", "long dwell"]),
        ({"long_dwell": 32}, [Card(6), Card(7)], ["", "long dwell"]),
        ({"fast_scroll": 0.75}, [Card(speed=2), Card(speed=3)], ["", "fast scroll"]),
        ({"fast_scroll": 0.8}, [Card(speed=3), Card(speed=4)], ["", "fast scroll"]),
        ({"category_repeat": 3}, [Card()] * 7, ["", "", "category repeat"] * 2 + [""]),
        ({"category_repeat": 2}, [Card(), Card(category=1), Card(category=1)], ["", "", "category repeat"]),
        ({"category_repeat": 2}, [Card(), Card(clicked=True), Card()], ["", "", ""]),
        ({"every_slot": True}, [Card(), Card()], ["every slot", "every slot"]),
        ({"every_slot": True, "click": True}, [Card(), Card(clicked=True)], ["every slot", "click"]),
    ],
)  # fmt: skip
def test_it_fires_at_its_threshold(values: dict[str, Any], cards: list[Card], told: list[str]) -> None:
    assert watched(cards, TriggerWatch(rules(**values), CONFIG)) == told


def test_a_slot_without_an_answer_fires_nothing() -> None:
    watch, story = TriggerWatch(rules(long_dwell=8, fast_scroll=0.5, click=True), CONFIG), Story()
    assert [watch.look(story.answer(card))[0] for card in (Card(7, 4), None, None)] == ["long dwell", "", ""]


def test_a_new_page_is_always_told() -> None:
    story = Story()
    story.now["context"][story.context["page_age"]] = 0
    assert TriggerWatch(rules(), CONFIG).look(story.answer(Card(clicked=True)))[0] == "new page"


def test_a_category_is_told_by_the_embeddings() -> None:
    """By default, from a cosine of .6; a rules file may ask for another."""
    cards = [Card(), Card(category=1)]
    for cosine, same in ((0.59, False), (0.61, True)):
        story, watch = Story(), TriggerWatch(rules(category_repeat=2), CONFIG)
        strict = TriggerWatch(rules(category_repeat=2, same_category=0.9), CONFIG)
        for k, card in enumerate(cards):
            observation = story.answer(card)
            if k:
                observation["exposures"][0, 1, : CONFIG.embedding_size] = 0
                observation["exposures"][0, 1, :2] = cosine, np.sqrt(1 - cosine**2)
            found, none = watch.look(observation)[0], strict.look(observation)[0]
        assert (found == "category repeat") == same and none == ""


def test_seconds_are_those_of_the_answers_or_of_the_clock() -> None:
    cards = [Card(5), Card(2, clicked=True, view=3), Card(0)]
    spent = np.cumsum([DWELL_SECONDS[5], DWELL_SECONDS[2] + PAGE_VIEW_SECONDS[3], DWELL_SECONDS[0]])
    assert watched(cards, TriggerWatch(rules(after_seconds=spent[1]), CONFIG)) == ["", "after seconds", ""]
    late = TriggerWatch(rules(after_seconds=spent[1] + 0.01), CONFIG)
    assert watched(cards, late) == ["", "", "after seconds"]
    slow = TriggerWatch(rules(after_seconds=2 * spent[0]), CONFIG.replace(dwell_scale=2.0))
    assert watched(cards, slow)[0] == "after seconds"
    time = [100.0]
    watch, story, told = TriggerWatch(rules(after_seconds=6), CONFIG, clock=lambda: time[0]), Story(), []
    watch.reset(np.ones(1, np.bool_))
    for time[0] in (103.0, 106.0, 108.0, 111.9, 112.0):
        told.append(watch.look(story.answer(Card(7)))[0])
        watch.planned(np.array([told[-1] != ""]))
    assert told == ["", "after seconds", "", "", "after seconds"]


def test_a_cool_down_lets_events_pass() -> None:
    clicks = [Card(clicked=True)] * 5
    assert watched(clicks, TriggerWatch(rules(click=True, cool_downs={"click": 2}), CONFIG)) == [
        "click", "", "click", "", "click",
    ]  # fmt: skip
    both = rules(click=True, long_dwell=1, cool_downs={"long_dwell": 3})
    told = watched([Card(7, clicked=True), Card(7), Card(7), Card(7)], TriggerWatch(both, CONFIG))
    assert told == ["click", "", "", "long dwell"], "one that fires beside another cools down, too"


def test_uplift_is_asked_only_where_nothing_else_fires() -> None:
    asked: list[list[int]] = []

    def gain(observation: Observation, rows: np.ndarray) -> np.ndarray:
        assert len(observation["context"]) == len(rows)
        asked.append(rows.tolist())
        return np.where(rows == 2, 0.5, 0.49)

    watch = TriggerWatch(
        rules(click=True, request_uplift=0.5, cool_downs={"request_uplift": 2}), CONFIG, gain
    )
    stories = [Story() for _ in range(3)]
    told = []
    for k in range(3):
        seen = [story.answer(Card(clicked=row == k == 0)) for row, story in enumerate(stories)]
        together = {key: np.concatenate([one[key] for one in seen]) for key in seen[0]}
        told.append(watch.look(together).tolist())
    assert told == [["click", "", "request uplift"], ["", "", ""], ["", "", "request uplift"]]
    assert asked == [[1, 2], [0, 1], [0, 1, 2]]


def test_rules_that_cannot_fire_are_refused() -> None:
    with pytest.raises(InputError, match="long_dwell = 33 never fires .* begins at 32 s"):
        TriggerWatch(rules(long_dwell=33), CONFIG)
    TriggerWatch(rules(long_dwell=33), CONFIG.replace(dwell_scale=2.0))
    with pytest.raises(InputError, match="request_uplift needs an agent that estimates"):
        TriggerWatch(rules(request_uplift=0.1), CONFIG)


# --- properties ---------------------------------------------------------------------------------------

answers = st.builds(
    Card,
    st.integers(0, 7),
    st.integers(0, 4),
    st.integers(0, 1),
    st.booleans(),
    st.integers(0, 7),
    st.booleans(),
)
some_rules = st.builds(
    Triggers.from_dict,
    st.fixed_dictionaries(
        {
            "every_slot": st.booleans(),
            "click": st.booleans(),
            "deletion": st.booleans(),
            "quiet_exposures": st.none() | st.integers(1, 4),
            "long_dwell": st.none() | st.sampled_from([0.5, 3, 8, 32]),
            "fast_scroll": st.none() | st.sampled_from([0.25, 0.6, 1.0]),
            "category_repeat": st.none() | st.integers(2, 4),
            "after_seconds": st.none() | st.sampled_from([1, 10, 60]),
            "cool_downs": st.dictionaries(st.sampled_from(TRIGGERS), st.integers(0, 5)),
        }
    ),
)


def expected(cards: list[Card], triggers: Triggers) -> list[str]:
    """The reasons by the words of the rules, for one session."""
    cool, fired = dict(triggers.cool_downs), dict[str, int]()
    quiet, run, last, seconds, told = 0, 0, -1, 0.0, []
    for slot, card in enumerate(cards):
        quiet = 0 if card.clicked else quiet + 1
        run = 0 if card.clicked else run + 1 if card.category == last else 1
        last = card.category
        seconds += DWELL_SECONDS[card.dwell] + card.clicked * PAGE_VIEW_SECONDS[card.view]
        edge = (0, 0.5, 1, 2, 4, 8, 16, 32)[card.dwell]
        due = {
            "click": triggers.click and card.clicked,
            "deletion": triggers.deletion and card.deleted,
            "quiet_exposures": triggers.quiet_exposures and quiet >= triggers.quiet_exposures,
            "long_dwell": triggers.long_dwell and edge >= triggers.long_dwell,
            "fast_scroll": triggers.fast_scroll and card.speed / 4 >= triggers.fast_scroll,
            "category_repeat": triggers.category_repeat and run >= triggers.category_repeat,
            "after_seconds": triggers.after_seconds and seconds >= triggers.after_seconds,
            "every_slot": triggers.every_slot,
        }
        firing = [n for n, is_due in due.items() if is_due and slot - fired.get(n, -99) >= cool.get(n, 0)]
        fired |= dict.fromkeys(firing, slot)
        run = 0 if "category_repeat" in firing else run
        quiet, seconds = (0, 0.0) if firing else (quiet, seconds)
        told.append(REASONS[firing[0]] if firing else "")
    return told


@settings(deadline=None, max_examples=60)
@given(st.lists(answers, min_size=1, max_size=25), some_rules)
def test_it_fires_as_the_rules_say(cards: list[Card], triggers: Triggers) -> None:
    assert watched(cards, TriggerWatch(triggers, CONFIG)) == expected(cards, triggers)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.lists(answers, min_size=8, max_size=8), min_size=2, max_size=4), some_rules)
def test_sessions_do_not_know_of_each_other(several: list[list[Card]], triggers: Triggers) -> None:
    alone = [watched(cards, TriggerWatch(triggers, CONFIG)) for cards in several]
    stories, watch, told = [Story() for _ in several], TriggerWatch(triggers, CONFIG), []
    for slot in range(8):
        seen = [story.answer(cards[slot]) for story, cards in zip(stories, several, strict=True)]
        told.append(watch.look({key: np.concatenate([one[key] for one in seen]) for key in seen[0]}))
        watch.planned(told[-1] != "")
    assert np.array(told).T.tolist() == alone


# --- the rules file -----------------------------------------------------------------------------------


def test_rules_come_back_from_a_file(tmp_path: Path) -> None:
    found = rules_from({"triggers": ALL | {"same_category": 0.7, "click": False}})
    found.save(tmp_path / "rules.toml")
    assert "cool_downs = { fast_scroll = 2, long_dwell = 4" in (tmp_path / "rules.toml").read_text()
    assert load_rules(tmp_path / "rules.toml") == found
    off = {name: False for name in ("long_dwell", "fast_scroll", "after_seconds", "request_uplift")}
    assert rules_from({"triggers": off | {"category_repeat": False}}) == Rules()


def test_a_run_of_before_keeps_its_rules() -> None:
    """What new triggers are not named changes no file."""
    assert set(Rules().to_dict()["triggers"]) == {"every_slot", "click", "deletion", "quiet_exposures"}


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"cool_downs": {"clik": 3}}, "[triggers] cool_downs names 'clik'; triggers are every_slot, click"),
        ({"cool_downs": {"click": 1.5}}, "[triggers] cool_downs['click'] must be a whole number of slots"),
        ({"cool_downs": {"click": -1}}, "[triggers] cool_downs['click'] = -1 is out of range"),
        ({"cool_downs": 3}, "[triggers] cool_downs must map names to numbers"),
        ({"fast_scroll": 2}, "[triggers] fast_scroll = 2 is out of range; allowed: 0.01 to 1.0"),
        ({"category_repeat": 1}, "[triggers] category_repeat = 1 is out of range; allowed: 2 to 10000"),
        ({"long_dwel": 1}, "[triggers] has no field 'long_dwel'; did you mean 'long_dwell'?"),
        ({"after_seconds": "soon"}, "[triggers] after_seconds must be a number, got 'soon'"),
    ],
)
def test_bad_triggers_are_refused(values: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError) as error:
        rules_from({"triggers": values})
    assert told in str(error.value)


# --- agents -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network(lite: Scenario) -> EdgeRecNetwork:
    return stirred_network(lite)


def test_the_defaults_plan_when_a_plan_slot_by_slot_does(lite: Scenario) -> None:
    """Click, deletion, four quiet exposures: action by action and reason by reason."""
    n, env = 32, make_feeds("joint", 32, scenario=lite, users="synthetic")
    players = [
        SlotBySlot(ScoredList(DeviceGreedy(), 10), 4),
        TriggeredSlots(ScoredList(DeviceGreedy(), 10), TriggerWatch(Triggers(), lite.config)),
    ]
    observation, _ = env.reset(seed=7)
    for player in players:
        player.reset(np.ones(n, np.bool_))
    reasons = set()
    for _ in range(25):
        old, new = (player.act(observation) for player in players)
        assert np.array_equal(old, new)
        for row in range(n):
            said = [player.explain(row) for player in players]
            was = None if said[0] is None else said[0].trigger
            assert said[1] is not None and said[1].trigger == was
            reasons.add(was)
        observation, *_ = env.step(old)
    assert {"start", "new page", "click", "no click for long", None} <= reasons


def test_the_gain_alone_is_that_of_a_judgement(network: EdgeRecNetwork, lite: Scenario) -> None:
    env = make_feeds("joint", 8, scenario=lite, users="synthetic")
    judge, (observation, _) = JointNetwork(network), env.reset(seed=1)
    judge.reset(np.ones(8, np.bool_))
    for _ in range(5):
        judge.see(observation)
        observation, *_ = env.step(observation["action_mask"].argmax(axis=1))
    judge.see(observation)
    rows = np.array([1, 4, 6])
    asked = {key: values[rows] for key, values in observation.items()}
    alone = judge.gain(asked, rows)
    whole = judge.judge(asked, rows, judge.scores(asked, rows)).gain
    np.testing.assert_allclose(alone, whole, rtol=1e-6)
    assert len(set(alone)) == 3


def test_the_agent_acts_the_same_on_a_phone(network: EdgeRecNetwork, tmp_path: Path, lite: Scenario) -> None:
    """With every trigger on: the same actions and reasons in torch and exported."""
    n, env = 12, make_feeds("joint", 12, scenario=lite, users="synthetic", split="eval")
    mine = rules_from({"triggers": OFF | {"quiet_exposures": False} | ALL})
    export_network(WholeAgent(network, mine), tmp_path / "device", find_agent("edgerec"), "lite", lite.config)
    policies: list[Any] = [
        EdgeRec(JointNetwork(network), lite.config, mine),
        load_policy(tmp_path / "device", env),
    ]
    observation, _ = env.reset(seed=list(range(n)))
    for policy in policies:
        policy.reset(np.ones(n, np.bool_))
    live, reasons = np.ones(n, np.bool_), set()
    while live.any():
        torch_acts, phone_acts = (policy.act(observation) for policy in policies)
        assert np.array_equal(torch_acts[live], phone_acts[live])
        for row in np.flatnonzero(live).tolist():
            was, now = (policy.explain(row).trigger for policy in policies)
            assert was == now
            reasons.add(was)
        observation, _, terminated, truncated, _ = env.step(torch_acts)
        live &= ~(terminated | truncated)
    assert {"long dwell", "fast scroll", "category repeat", "after seconds", "request uplift"} <= reasons


@pytest.mark.parametrize("agent", ["dnn", "pointer"])
def test_a_reranker_on_a_phone_decides_when_its_rules_say(
    agent: str, tmp_path: Path, lite: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = make_feeds("rerank", 1, scenario=lite, users="synthetic", split="eval")
    source, _ = MAKERS[agent](agent, env)
    folder = tmp_path / "device"
    export_network(source, folder, find_agent(agent), "lite", lite.config)
    asked: list[int] = []
    for name in ("scores", "rerank"):
        kept = getattr(DeviceSession, name)
        monkeypatch.setattr(
            DeviceSession, name, lambda self, *rest, kept=kept: asked.append(1) or kept(self, *rest)
        )

    def played() -> tuple[list[int], list[str | None]]:
        policy: Any = load_policy(folder, env)
        policy.reset(np.ones(1, np.bool_))
        observation, _ = env.reset(seed=[3])
        actions, reasons, over = [], [], False
        while not over:
            actions.append(int(policy.act(observation)[0]))
            reasons.append(policy.explain(0).trigger)
            observation, _, terminated, truncated, _ = env.step(np.array(actions[-1:]))
            over = bool(terminated[0] | truncated[0])
        return actions, reasons

    plain, none = played()
    assert len(asked) == len(plain) > 15 and set(none) == {None}
    asked.clear()
    (folder / "rules.toml").write_text("[triggers]\nevery_slot = true\n")
    assert played()[0] == plain
    asked.clear()
    (folder / "rules.toml").write_text("[budget]\nfallback = 'cloud order'\n")
    assert played() == (plain, none), "a file without triggers changes nothing"
    asked.clear()
    (folder / "rules.toml").write_text("[triggers]\nclick = false\nfast_scroll = 1.0\nlong_dwell = 16\n")
    actions, reasons = played()
    assert len(asked) == sum(reason is not None for reason in reasons) < 0.7 * len(actions)
    assert reasons[0] == "start" and {"long dwell", "new page"} & set(reasons)
    (folder / "rules.toml").write_text("[triggers]\nrequest_uplift = 0.1\n")
    with pytest.raises(InputError, match="request_uplift needs an agent"):
        load_policy(folder, env)
