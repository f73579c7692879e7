"""Which policy plays an exported agent on a track: the agent's own, with graphs in place of torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from edgerec_gym.agents.device.heads import (
    DeviceGain,
    DeviceJudge,
    DeviceLogits,
    DeviceScores,
    DeviceSlotValues,
    DeviceValues,
)
from edgerec_gym.agents.device.settings import (
    EdgeRecSettings,
    InsertionSettings,
    PolicySettings,
    ValueSettings,
)
from edgerec_gym.agents.edgerec.agent import EdgeRec
from edgerec_gym.agents.edgerec.rules import FILE, load_rules, read_triggers
from edgerec_gym.agents.edgerec.triggers import Clock, TriggeredSlots, TriggerWatch
from edgerec_gym.agents.insertion import policies as insertion
from edgerec_gym.agents.list_policy import EmittedList, ScoredList, SlateBySlate, SlotBySlot
from edgerec_gym.agents.requests.effects import TRACKS as REQUEST_TRACKS
from edgerec_gym.agents.requests.planner import RequestPlanner
from edgerec_gym.agents.values.policy import ValuePolicy
from edgerec_gym.device.description import DESCRIPTION, DQN, EDGEREC, ESAN, PPO, UPLIFT, VALUES
from edgerec_gym.device.files import DeviceModel
from edgerec_gym.device.session import DeviceSession
from edgerec_gym.documents import Document, decode
from edgerec_gym.errors import InputError
from edgerec_gym.policy import Policy
from edgerec_gym.registration import SLATE

RERANK_TRACKS = ("joint", "rerank", SLATE)
Player = Callable[[DeviceSession], Policy]
Settings = TypeVar("Settings", bound=Document)


def player(model: DeviceModel, feed: Any, timed: bool = False, clock: Clock | None = None) -> Player:
    """Return what makes a phone's policy for one session.

    Args:
        model: the exported model.
        feed: the environment to play.
        timed: whether decisions have a budget.
        clock: seconds that triggers read; None counts the time that the answers took.

    Raises:
        InputError: the agent does not play the environment's track, or its settings are wrong.
    """
    graphs = model.graphs
    if EDGEREC in graphs:
        return _whole(model, feed, clock)
    if VALUES in graphs:
        settings = settings_of(model, VALUES, ValueSettings)
        if feed.track == settings.track == "joint":
            return _values(model, feed, settings)
        return _reranker(model, feed, timed, clock)
    if ESAN in graphs:
        return _insertion(model, feed)
    if PPO in graphs:
        return _policy(model, feed)
    if UPLIFT in graphs or DQN in graphs:
        return _requests(model, feed)
    return _reranker(model, feed, timed, clock)


def settings_of(model: DeviceModel, network: str, kind: type[Settings]) -> Settings:
    """Read what an agent decides by besides its graphs; InputError names the place in device.json."""
    written = msgspec.json.encode(model.described.settings.get(network, {}))
    return decode(written, kind, f"{model.folder / DESCRIPTION}: settings.{network}")


def _plays(model: DeviceModel, does: str, tracks: tuple[str, ...], feed: Any) -> None:
    if feed.track not in tracks:
        raise InputError(
            f"{model.folder} {does}; it plays the tracks {', '.join(tracks)}, not {feed.track!r}"
        )


def _whole(model: DeviceModel, feed: Any, clock: Clock | None) -> Player:
    _plays(model, "takes all three decisions", ("joint",), feed)
    settings = settings_of(model, EDGEREC, EdgeRecSettings)
    config, n_plan = feed.config, len(settings.plan)
    sizes = [len(row) for row in settings.plan_spread]
    if len(settings.prices) != config.n_cards or sizes != [n_plan] * n_plan:
        raise InputError(
            f"{model.folder / DESCRIPTION}: settings.edgerec needs {config.n_cards} prices and a plan_spread "
            f"of {n_plan} x {n_plan} numbers"
        )
    rules = load_rules(model.folder / FILE)

    def make(session: DeviceSession) -> Policy:
        judge = DeviceJudge(session, settings, config)
        return EdgeRec(judge, config, rules, model.agent, clock=clock)

    return make


def _values(model: DeviceModel, feed: Any, settings: ValueSettings) -> Player:
    config = feed.config

    def make(session: DeviceSession) -> Policy:
        gain = DeviceGain(session, UPLIFT, config) if UPLIFT in model.graphs else None
        price, age = -config.reward.request, config.request_latency
        return ValuePolicy(model.agent, config, DeviceValues(session), settings.margin, gain, price, age)

    return make


def _insertion(model: DeviceModel, feed: Any) -> Player:
    _plays(model, "inserts cards", insertion.TRACKS, feed)
    settings, config = settings_of(model, ESAN, InsertionSettings), feed.config

    def make(session: DeviceSession) -> Policy:
        values = DeviceSlotValues(session, config)
        plan = insertion.InsertionPlan(model.agent, values, config, price=settings.price)
        return insertion.policy_of(plan, feed.track)

    return make


def _requests(model: DeviceModel, feed: Any) -> Player:
    _plays(model, "requests pages", REQUEST_TRACKS, feed)
    config = feed.config
    network = DQN if DQN in model.graphs else UPLIFT
    price = 0.0 if network == DQN else -float(config.reward.request)
    return lambda session: RequestPlanner(model.agent, DeviceGain(session, network, config), price)


def _policy(model: DeviceModel, feed: Any) -> Player:
    settings = settings_of(model, PPO, PolicySettings)
    if feed.track != settings.track:
        raise InputError(
            f"{model.folder} was trained for the track {settings.track!r}; this environment is {feed.track!r}"
        )
    n_actions = model.graphs[PPO]["logits"].fixed("logits")[1]
    if settings.groups and sum(settings.groups) != n_actions:
        raise InputError(f"{model.folder / DESCRIPTION}: settings.ppo.groups must add up to {n_actions}")
    return lambda session: DeviceLogits(model.agent, session, settings.groups, settings.keys)


def _reranker(model: DeviceModel, feed: Any, timed: bool, clock: Clock | None) -> Player:
    _plays(model, "re-ranks", RERANK_TRACKS, feed)
    k = feed.config.slate_size
    scored = any("scores" in graphs for graphs in model.graphs.values()) or VALUES in model.graphs
    if not scored and k > model.places and (feed.track == SLATE or model.search is not None):
        raise InputError(
            f"{model.folder} was exported for lists of {model.places} cards; this environment asks for {k}"
        )
    triggers = read_triggers(model.folder)
    if triggers is not None:
        TriggerWatch(triggers, feed.config)  # says what is wrong before a session begins

    def make(session: DeviceSession) -> Policy:
        source = DeviceScores(model.agent, session, timed)
        plans = ScoredList(source, k) if scored else EmittedList(source, k)
        if feed.track == SLATE:
            return SlateBySlate(plans)
        if triggers is not None:
            return TriggeredSlots(plans, TriggerWatch(triggers, feed.config, clock=clock))
        if model.search is not None:
            return SlotBySlot(plans, model.search.settings.every)
        return source

    return make
