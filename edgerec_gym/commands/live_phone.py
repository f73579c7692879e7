"""The phone of `edgerec demo --live`: one user's sessions without end, and documents that tell of them."""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgerec_gym.agents.device.policy import DevicePolicy
from edgerec_gym.agents.device.runtime import ONE, Pace, Session, look_seconds
from edgerec_gym.agents.phones.simulated import DATABASE, PhoneSettings
from edgerec_gym.config import FeedConfig
from edgerec_gym.device.budget import TimedDecisions
from edgerec_gym.device.event_store import EventStore
from edgerec_gym.device.files import DeviceModel
from edgerec_gym.device.link_settings import Phone
from edgerec_gym.device.traffic import Amount, Traffic, frame_header
from edgerec_gym.drawing.screen import Card, Screen, ScreenRecorder
from edgerec_gym.errors import InputError
from edgerec_gym.feed.batch import BEGIN, PLAY
from edgerec_gym.files import make_folder
from edgerec_gym.pages.session import explained, listed, rounded
from edgerec_gym.policy import Policy
from edgerec_gym.protocol.messages import Delta, encode
from edgerec_gym.protocol.tokens import make_token
from edgerec_gym.registration import track_of
from edgerec_gym.scenario import Scenario
from edgerec_gym.state import FeedArrays
from edgerec_gym.users.people import People, Person

LONGEST_LOOK = 7.0  # seconds of the phone, so that something happens on the page
PAUSE_SECONDS = 3.0  # of the phone, between two sessions
TICK_SECONDS = 0.15  # between two looks at the network
RECENT = 8  # messages that a page gets when it opens
MOST_DECISIONS = 500  # whose times are kept
SPEEDS = 0.1, 20.0  # slowest and fastest
Document = dict[str, Any]


@dataclass
class Choice:
    """An agent that the phone can play.

    Attributes:
        name: of the agent.
        form: what sets it apart from the others.
        policy: plays it.
        model: its exported model; None for a baseline.
        kilobytes: size of that model.
    """

    name: str
    form: str
    policy: Policy
    model: DeviceModel | None = None
    kilobytes: float = 0.0


class Clock:
    """The phone's time: it can be paused, and go faster than that of people.

    Attributes:
        speed: how much faster.
        paused: whether it stands.
    """

    def __init__(self, speed: float) -> None:
        self.speed, self.paused = speed, False
        self._changed = asyncio.Event()

    def set(self, *, speed: float | None = None, paused: bool | None = None) -> None:
        """Change the speed, pause or go on; InputError if the speed is out of range."""
        if speed is not None:
            if not SPEEDS[0] <= speed <= SPEEDS[1]:
                raise InputError(
                    f"speed = {speed:g} is out of range; allowed: {SPEEDS[0]:g} to {SPEEDS[1]:g}"
                )
            self.speed = speed
        self.paused = self.paused if paused is None else paused
        self._changed.set()
        self._changed = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        """Let seconds of the phone pass, at most :data:`LONGEST_LOOK`."""
        left = min(seconds, LONGEST_LOOK)
        while left > 0 or self.paused:
            changed, speed, started = self._changed, self.speed, time.monotonic()
            if self.paused:
                await changed.wait()
                continue
            with suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), left / speed)
            left -= (time.monotonic() - started) * speed
        await asyncio.sleep(0)


@dataclass
class OwnFeed:
    """The feed of one phone, as what draws feeds follows it."""

    config: FeedConfig
    arrays: FeedArrays
    num_envs: int = 1
    users: Any = None
    watcher: Any = None


@dataclass
class Wire:
    """What has crossed the wire in all sessions.

    Attributes:
        up, down: bytes at the socket.
        told: bytes of the answers, in the frames that told them.
        snapshots: bytes if each of these messages told all answers of its session anew.
        recent: the last messages: number, direction, kind, count, bytes.
    """

    up: int = 0
    down: int = 0
    told: int = 0
    snapshots: int = 0
    recent: deque[Document] = field(default_factory=lambda: deque(maxlen=RECENT))
    _number: int = 0
    _traffic: Traffic | None = None
    _seen: dict[tuple[str, str], Amount] = field(default_factory=dict)
    _socket: dict[str, int] = field(default_factory=dict)

    def look(self, traffic: Traffic, snapshot_bytes: Callable[[], int]) -> list[Document]:
        """Return the messages since the last look.

        Args:
            traffic: of the present link; the wire goes on when it is another one.
            snapshot_bytes: returns the bytes of a message with all answers of the session.
        """
        if traffic is not self._traffic:
            self._traffic, self._seen, self._socket = traffic, {}, {"up": 0, "down": 0}
        messages = []
        for (direction, kind), amount in list(traffic.amounts.items()):
            before = self._seen.get((direction, kind), Amount())
            count, size = amount.messages - before.messages, amount.frames - before.frames
            if not count:
                continue
            self._seen[direction, kind] = Amount(amount.messages, amount.payload, amount.frames)
            self._number += 1
            messages.append(
                {"number": self._number, "way": direction, "kind": kind, "count": count, "bytes": size}
            )
            if kind == "delta":
                self.told += size
                self.snapshots += max(size, count * snapshot_bytes())
        self.up += traffic.socket["up"] - self._socket["up"]
        self.down += traffic.socket["down"] - self._socket["down"]
        self._socket = {"up": traffic.socket["up"], "down": traffic.socket["down"]}
        self.recent.extend(messages)
        return messages

    def totals(self) -> Document:
        """Return the bytes so far."""
        return {"up": self.up, "down": self.down, "told": self.told, "snapshots": self.snapshots}


class LivePhone:
    """A phone that plays session after session of one user.

    Args:
        settings: the phone; its policy and speed are those of `choices` and `clock`.
        choices: agents to play; the first one begins.
        clock: the phone's time.
        tell: takes a document whenever something has happened: "session", "slot" or "state".
        network: returns the state of the network.
        seed: where the search for sessions begins.

    Attributes:
        chosen: index of the agent that plays.
    """

    def __init__(
        self,
        settings: PhoneSettings,
        choices: list[Choice],
        clock: Clock,
        tell: Callable[[Document], None],
        network: Callable[[], Document],
        seed: int = 0,
    ) -> None:
        scenario = Scenario.load(settings.scenario)
        self.config = scenario.config
        self._settings, self._choices, self._clock = settings, choices, clock
        self._tell, self._network, self._seed = tell, network, seed
        self._catalog = scenario.catalog
        self._people = People(scenario, settings.users, 1, settings.split)
        self._store = EventStore(make_folder(settings.store) / DATABASE)
        self.chosen = 0
        self._policy = choices[0].policy
        self._wire, self._ms = Wire(), deque[float](maxlen=MOST_DECISIONS)
        self._session: Session | None = None
        self._recorder: ScreenRecorder | None = None
        self._slots: list[Document] = []
        self._about: Document = {}
        self._frame: Document = {}
        self._kept: dict[int, bool] = {}  # by number of the page
        self._missed = self._late = self._decisions = self._sessions = 0
        self._told: Document = {}
        self._run = secrets.token_hex(8)  # an open page notices that another demo has taken over

    def close(self) -> None:
        """Close what the phone keeps."""
        self._store.close()

    def swap(self) -> str:
        """Let the next agent take over before the next card; returns its name and form."""
        self.chosen = (self.chosen + 1) % len(self._choices)
        if self._session is not None:
            self._take_over(self._session)
        choice = self._choices[self.chosen]
        return f"{choice.name}, {choice.form}"

    def everything(self) -> Document:
        """Return what a page must know that opens now."""
        state = self._state([])
        state["wire"]["messages"] = list(self._wire.recent)
        return {
            "kind": "all",
            "run": self._run,
            "session": self._about,
            "slots": self._slots,
            "state": state,
        }

    async def play(self) -> None:
        """Play sessions without end."""
        user: int | None = None
        for seed in itertools.count(self._seed):
            person = self._people.begin(0, seed)
            user = person.user if user is None else user
            if person.user != user or self._store.session(person.session) is not None:
                if seed % 50 == 0:
                    await asyncio.sleep(0)
                continue
            session = self._begin(person, seed)
            await session.play(person, lambda focus: self._people.answer(0, focus))
            await self._clock.sleep(PAUSE_SECONDS)

    async def watch_network(self) -> None:
        """Tell what changes between two cards, without end."""
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self.look()

    def look(self) -> None:
        """Tell the state if it is not what was told last."""
        state = self._state(self._messages())
        if state != self._told:
            self._told = state | {"wire": state["wire"] | {"messages": []}}
            self._tell(state)

    def _begin(self, person: Person, seed: int) -> Session:
        settings = self._settings
        token = make_token(settings.secret, settings.device, person.user)
        model = self._policy.model.digest if isinstance(self._policy, DevicePolicy) else ""
        self._session = session = Session(
            self.config,
            track_of(settings.env_id),
            self._policy,
            Phone(settings.url, settings.device, token, model),
            self._store,
            np.random.default_rng([seed, 1]),
            link_settings=settings.link,
            pace=Pace(sleep=self._clock.sleep),
            watch=self._watch,
        )
        feed = OwnFeed(self.config, session.features.arrays)
        self._recorder = ScreenRecorder(feed, self._catalog)
        self._recorder(np.array([BEGIN]))
        self._sessions += 1
        self._kept = {}
        self._missed, self._slots, self._frame = 0, [], {"page": 0, "page_from": "automatic"}
        self._about = {
            "kind": "session", "number": self._sessions, "user": person.user, "hour": person.hour,
        }  # fmt: skip
        self._take_over(session)
        self._tell(self._about)
        return session

    def _take_over(self, session: Session) -> None:
        """Let the chosen agent play, from the next card on."""
        choice = self._choices[self.chosen]
        if choice.model is None:
            self._policy = session.policy = choice.policy
            self._policy.reset(ONE)
        elif isinstance(self._policy, DevicePolicy) and self._policy.model is not choice.model:
            session.swap(choice.model)

    def _watch(self, session: Session) -> None:
        """Tell of the slot that has just been played."""
        recorder = self._recorder
        assert recorder is not None
        recorder(np.array([PLAY]))
        screen = recorder.screen()
        before, after = self._frame, _frame(screen)
        card = screen.cards[-1]
        arrived = card.page != before["page"] and card.slot > 0  # between the slot before and this one
        if arrived:
            before = before | {"page": card.page, "page_from": card.page_from, "wire": None}
        self._frame = after
        messages = self._messages()
        state = self._state(messages)
        focus = card.slot - self.config.lookahead
        answer = screen.cards[focus].answer if focus >= 0 else None
        looked = 0.0 if answer is None else look_seconds(answer.dwell, self.config)
        document = rounded(
            {
                "kind": "slot",
                "slot": card.slot,
                "before": before,
                "after": after,
                "card": vars(card) | {"answer": None},
                "arrived": arrived,
                "end": screen.end,
                "reward": screen.reward,
                "clicks": screen.clicks,
                "answered": None if answer is None else {"slot": focus, "answer": listed(answer)},
                "look_seconds": min(looked, LONGEST_LOOK) / self._clock.speed,
                "decision": self._decision(session, card),
            }
        )
        self._slots.append(document)
        self._told = state | {"wire": state["wire"] | {"messages": []}}
        self._tell(document | {"state": state})

    def _decision(self, session: Session, card: Card) -> Document:
        """Return how the last card was decided."""
        report, policy = session.report, session.policy
        ms, late = report.decision_ms[-1], report.missed > self._missed
        self._missed = report.missed
        self._late += late
        self._decisions += 1
        self._ms.append(ms)
        timed: TimedDecisions | None = getattr(policy, "timed", None)
        told: Document = {
            "ms": ms,
            "budget": None if timed is None else timed.ms,
            "late": late,
            "fallback": "" if timed is None else timed.budget.fallback,
            "reason": session.reason,
            "p50": float(np.percentile(self._ms, 50)),
            "p99": float(np.percentile(self._ms, 99)),
            "decisions": self._decisions,
            "missed": self._late,
            "page_ms": None if self._is_kept_page(session) else 1000 * report.page_seconds[-1],
        }
        try:
            why = None if late else explained(policy, OwnFeed(self.config, session.features.arrays))
        except InputError:
            why = None  # what cannot be shown is no reason to stop
        if why is not None:
            told |= {"uplift": why["uplift"], "price": why["price"]}
            scores, left = why.get("scores"), session.features.arrays.pool_items[0] >= 0
            if scores is not None and card.placed != "inserted":
                own = scores[card.row]
                others = [score for score, there in zip(scores, left.tolist(), strict=True) if there]
                told["rank"] = 1 + sum(score > own for score in others)
                told["of"] = 1 + len(others)
        return told

    def _is_kept_page(self, session: Session) -> bool:
        """Whether the page is one of an earlier session, since the network was away at the beginning."""
        number = session.features.page
        if number not in self._kept:  # looked up when it is new: the cloud's first page may still come
            self._kept[number] = self._store.page(_key(session), number) is None
        return self._kept[number]

    def _messages(self) -> list[Document]:
        session = self._session
        if session is None or session.link is None:
            return []

        def snapshot_bytes() -> int:
            payload = len(encode(Delta(0, self._store.answers(_key(session)))))
            return payload + frame_header(payload, masked=True)

        return self._wire.look(session.link.traffic, snapshot_bytes)

    def _state(self, messages: list[Document]) -> Document:
        """Return how phone, network and cloud stand, with the messages since the last document."""
        session, choice = self._session, self._choices[self.chosen]
        link = None if session is None else session.link
        playing = choice
        if isinstance(self._policy, DevicePolicy):
            playing = next(one for one in self._choices if one.model is self._policy.model)
        features = None if session is None else session.features
        current = None if session is None else _key(session)
        waiting = [one for one in self._store.sessions() if not one.ended and one.session != current]
        return {
            "kind": "state",
            "network": self._network(),
            "connected": link is not None and link.connected,
            "refused": "" if link is None else link.refused,
            "answers": 0 if link is None else link.answers,
            "acknowledged": 0 if link is None else link.acknowledged,
            "delivered": link is not None and link.done,
            "earlier": len(waiting),
            "earlier_answers": sum(one.answers - one.acknowledged for one in waiting),
            "page": -1 if features is None else features.page,
            "candidates": 0 if features is None else features.candidates,
            "ended": features is not None and features.ended,
            "starved": session is not None and session.report.starved,
            "model": {
                "name": playing.name,
                "form": playing.form,
                "kilobytes": playing.kilobytes,
                "digest": "" if playing.model is None else playing.model.digest,
                "next": "" if playing is choice else choice.form,
                "said": "" if session is None else session.said,
            },
            "paused": self._clock.paused,
            "speed": self._clock.speed,
            "wire": self._wire.totals() | {"messages": messages},
        }


def _key(session: Session) -> int:
    """Return the key of a session, signed."""
    return int(session.features.arrays.key.view(np.int64)[0])


def _frame(screen: Screen) -> Document:
    """Return the situation after a slot."""
    return {
        "page": screen.page,
        "page_from": screen.page_from,
        "wire": screen.on_the_wire,
        "arrives_in": screen.arrives_in,
    }
