"""The phone: it senses, decides and shows, slot by slot, and never waits for the network to do so.

An answer is kept, read by the model and told to the cloud; then the next card is decided. A page is asked for
when the policy or the feed wants one, and replaces the pool between two slots. Without a network the phone
goes on with the page that it has, and tells the cloud later.

Time is either real, or counted in slots (`virtual`). In virtual time a request is sent when its page is due
and the phone waits for it, so that a session is that of `EdgeFeed-v0` with the same seed, bit for bit.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from msgspec import structs

from edgerec_gym.agents.device.policy import DevicePolicy
from edgerec_gym.answers import CLICK, DELETE_REASON, DWELL_EDGES, Focus
from edgerec_gym.config import FeedConfig
from edgerec_gym.device.budget import TimedDecisions
from edgerec_gym.device.description import feature_digest
from edgerec_gym.device.event_store import Decision, EventStore, PhoneSession
from edgerec_gym.device.features import ASKED, NOTHING, SessionFeatures
from edgerec_gym.device.files import DeviceModel
from edgerec_gym.device.link import Link
from edgerec_gym.device.link_settings import Heard, LinkSettings, Phone
from edgerec_gym.device.registry import ModelRegistry
from edgerec_gym.errors import InputError, MissingExtraError
from edgerec_gym.policy import Policy
from edgerec_gym.protocol.answers import response_of
from edgerec_gym.protocol.messages import Answer, ModelOffer, Page, PageRequest
from edgerec_gym.users.people import Person

ONE = np.ones(1, np.bool_)
LONG_DWELL = 5 / 7  # e1 from which a look is told at once: 8 seconds with dwell_scale 1
# Middle of each dwell bucket, seconds with dwell_scale 1
SECONDS = np.array([0.35, *(np.array(DWELL_EDGES[:-1]) * np.array(DWELL_EDGES[1:])) ** 0.5, 45.0])

_card = msgspec.msgpack.Decoder(Answer)
Ask = Callable[[Focus], np.ndarray]
Watch = Callable[["Session"], None]


@dataclass(frozen=True)
class Pace:
    """How time passes on a phone.

    Attributes:
        virtual: count time in slots; requests are sent when their pages are due, and pages are waited for.
        speed: in real time, how much faster than people the phone plays; inf: as fast as it can.
        first_page_seconds: time to wait for the first page before the last one of an earlier session is
            played.
        patience_seconds: time to wait with an empty pool before the session is given up.
        deliver_seconds: time to wait at the end of a session for a connection that is not there.
        sleep: lets seconds of the phone pass, in real time.
    """

    virtual: bool = False
    speed: float = 1.0
    first_page_seconds: float = 3.0
    patience_seconds: float = 60.0
    deliver_seconds: float = 1.0
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep


@dataclass
class SessionReport:
    """What became of a session.

    Attributes:
        slots, answers: cards placed and answered.
        reward: sum of the rewards.
        terms: the reward by term.
        requests: pages that the policy asked for.
        pages: pages that were played.
        short_pages: pages that were built from fewer answers than the request named, which came later.
        offline_slots: slots that were decided without a connection.
        stale_slots: slots that were played from a page that is older than it should be.
        starved: whether it was given up, since no candidate was left and no page came, or since what the
            phone keeps of it cannot be read.
        delivered: whether the cloud has all of it.
        decision_ms: milliseconds of each decision.
        missed: decisions that were late.
        page_seconds: seconds from each request to its page.
        refused: why the cloud did not serve it; "" if it did.
    """

    slots: int = 0
    answers: int = 0
    reward: float = 0.0
    terms: dict[str, float] = field(default_factory=dict)
    requests: int = 0
    pages: int = 0
    short_pages: int = 0
    offline_slots: int = 0
    stale_slots: int = 0
    starved: bool = False
    delivered: bool = False
    decision_ms: list[float] = field(default_factory=list)
    missed: int = 0
    page_seconds: list[float] = field(default_factory=list)
    refused: str = ""


class Session:
    """One session on a phone.

    Args:
        config: the feed.
        track: what the policy decides.
        policy: decides.
        phone: who speaks to the cloud, and where it is.
        store: keeps what must survive.
        generator: draws the waits of the link.
        link_settings: of the link.
        pace: how time passes.
        models: where models that the cloud offers are kept; None to take none.
        watch: called after every slot, for who looks on.

    Attributes:
        features: what the phone has perceived.
        link: its link; None before the session.
        report: what has happened so far.
        action: the last action.
        reason: what made the policy decide as it did at the last slot.
        said: the last line about a model that was not taken; "" if there is none.
    """

    def __init__(
        self,
        config: FeedConfig,
        track: str,
        policy: Policy,
        phone: Phone,
        store: EventStore,
        generator: np.random.Generator,
        *,
        link_settings: LinkSettings | None = None,
        pace: Pace | None = None,
        models: ModelRegistry | None = None,
        watch: Watch | None = None,
    ) -> None:
        self.config, self.policy, self.phone, self.store = config, policy, phone, store
        self.models = models
        self.features = SessionFeatures(config, track)
        self.pace, self.watch = pace or Pace(), watch
        cloud = config.cloud
        self._settings = link_settings or LinkSettings(sync=cloud.sync, period=cloud.sync_period)
        self._generator = generator
        self.link: Link | None = None
        self.report = SessionReport()
        self.action, self.reason = -1, ""
        self._asked: PageRequest | None = None  # the request whose page has not been played
        self._asked_at = 0.0  # when it was sent; 0 if it has not been
        self._synced = 0  # answers that a request names, with sync="periodic"
        self._next_model: DeviceModel | None = None
        self._receiving: set[asyncio.Task[None]] = set()
        self.said = ""
        if isinstance(policy, DevicePolicy):
            policy.keep_time(self._clock())

    async def play(self, person: Person, ask: Ask, remind: Ask | None = None) -> SessionReport:
        """Play the session of a person to its end, and deliver it if the cloud can be reached.

        A session that the store knows goes on where it was.

        Args:
            person: who holds the phone.
            ask: answers the card in focus, (21 + R,).
            remind: shown the cards that had been answered before the phone was killed; simulated people must
                see them again.
        """
        store, features = self.store, self.features
        goes_on = bool(store.decisions(person.session))
        session = PhoneSession(
            person.session, person.user, 0, person.hour, features=feature_digest(self.config)
        )
        heard = Heard(
            check_page=self._check,
            page=self._came,
            offer=self._offered,
            model=lambda offer, _: self._receive(offer),
            model_failed=lambda offer, reason: self._say(reason),
        )
        self.link = link = Link(self.phone, session, store, self._generator, self._settings, heard)
        talking = asyncio.create_task(link.run())
        try:
            was_over = link.is_ending
            if goes_on:
                await self._go_on(person, link, ask, remind)
            elif not was_over:
                await self._begin(person, link)
            while not (features.ended or self.report.starved or was_over):
                await self._slot(link, ask)
            if not was_over and (not self.report.starved or features.slot):
                link.end(features.placed_since(link.answers))
            if link.is_ending:
                await self._deliver(link)
        finally:
            link.stop()
            (error,) = await asyncio.gather(talking, return_exceptions=True)
            await asyncio.gather(*self._receiving)
            if isinstance(error, Exception):
                raise error
        self.report.delivered, self.report.refused = link.done, link.refused
        return self.report

    def swap(self, model: DeviceModel) -> None:
        """Go on with another model from the next slot on; a model that fails to take over is dropped."""
        self._next_model = model

    def _clock(self) -> Callable[[], float] | None:
        """The person's seconds, for triggers; None where the time of the answers is all the time there is."""
        speed = self.pace.speed
        if self.pace.virtual or speed == float("inf"):
            return None
        return lambda: speed * time.monotonic()

    async def _begin(self, person: Person, link: Link) -> None:
        """Begin with the cloud's first page, or without it with the last page of an earlier session."""
        self.features.begin(person.session, person.features, person.hour)
        self.policy.reset(ONE)
        self._ask_page(link, PageRequest(0, 0, 0, [], "start"))
        page = await self._wait_page(link, self.pace.first_page_seconds)
        if page is None and (kept := self.store.last_page(person.user)) is not None:
            page = replace_page(kept, 0)
            link.leave_page()  # it comes too late
            self.store.keep_page(person.session, page)
        if page is None:
            page = await self._wait_page(link, self.pace.patience_seconds)
        if page is None:
            self.report.starved = True
        else:
            self._turn(page)

    async def _go_on(self, person: Person, link: Link, ask: Ask, remind: Ask | None) -> None:
        """Replay what the store knows of the session, then go on."""
        features, store, session = self.features, self.store, person.session
        features.begin(session, person.features, person.hour)
        self.policy.reset(ONE)
        answers, cards = store.answers(session), self._cards(session)
        for card in cards:
            while features.page < card.page:
                page = store.page(session, features.page + 1)
                if page is None:
                    self.report.starved = True
                    return
                self._turn(page)
            self._decide()  # which lets the policy follow
            known = features.answers
            self._sent(features.replay(card), known)
            response = None
            if features.focus.active[0]:
                if known < len(answers):
                    response = response_of(answers[known], self.config.n_responses)
                    if remind is not None:
                        remind(features.focus)
                elif link.is_ending:
                    break
                else:  # killed between card and answer
                    response = ask(features.focus)
            self._take_in(response, link if known >= len(answers) else None)
            if self._asked is not None and not self.pace.virtual:
                features.wait_for_page()
            features.show()
        if features.ended or link.is_ending:
            return
        page = store.page(session, features.page + 1)
        if page is not None and not (self.pace.virtual and features.page_due):
            self._turn(page)
        elif self._asked is not None and not self.pace.virtual:
            self._ask_page(link, self._asked)
        elif not cards:
            await self._begin(person, link)
        else:
            await self._page_between_slots(link)

    def _cards(self, session: int) -> list[Answer]:
        """Return the cards that were placed, as far as they are kept: a full disk may have left a gap."""
        cards: list[Answer] = []
        for decision in self.store.decisions(session):
            if decision.slot == len(cards):
                cards.append(_card.decode(decision.card))
        return cards

    def _sent(self, sent: int, known: int) -> None:
        """Note what a slot has sent, when so many answers were known."""
        if sent == NOTHING:
            return
        self.report.requests += sent == ASKED
        named = known if self.config.cloud.sync != "periodic" else self._synced
        reason: Any = "request" if sent == ASKED else "automatic"
        self._asked = PageRequest(self.features.page + 1, 0, named, [], reason)

    def _take_in(self, response: np.ndarray | None, link: Link | None) -> None:
        """Let the phone perceive an answer, and tell the cloud unless it has been told."""
        features, report = self.features, self.report
        told = features.answer(response)
        if told is not None and response is not None and link is not None:
            urgent = response[CLICK] > 0 or response[DELETE_REASON] > 0 or response[0] >= LONG_DWELL
            link.tell(told, bool(urgent))
        if features.slot % self.config.cloud.sync_period == 0:
            self._synced = features.answers
        report.slots, report.answers = features.slot, features.answers
        report.reward += float(features.arrays.reward[0])
        terms = features.arrays.reward_terms[0].tolist()
        for name, value in zip(self.config.reward_terms, terms, strict=True):
            report.terms[name] = report.terms.get(name, 0.0) + value

    async def _slot(self, link: Link, ask: Ask) -> None:
        """Decide, show, sense and tell."""
        features, report = self.features, self.report
        if not await self._has_candidates(link):
            return
        self._swap()
        started = time.perf_counter()
        self.action = self._decide()
        report.decision_ms.append(1000 * (time.perf_counter() - started))
        known = features.answers
        self._sent(features.place(self.action), known)
        if self._asked is not None and not self._asked_at and not self.pace.virtual:
            self._ask_page(link, self._asked)
        self._record(report.decision_ms[-1])
        response = ask(features.focus) if features.focus.active[0] else None
        self._take_in(response, link)
        report.offline_slots += not link.connected
        report.stale_slots += int(features.arrays.page_age[0] > self.config.page_size)
        if self.watch is not None:
            self.watch(self)
        await self._pass_time(response, link)
        await self._page_between_slots(link)

    def _decide(self) -> int:
        """Return the policy's action; the feed's own order goes on if a model fails."""
        observation = self.features.observation()
        try:
            action = int(np.asarray(self.policy.act(observation))[0])
        except (InputError, FloatingPointError) as error:
            self.reason = f"the model failed: {error}"
            return int(observation["action_mask"][0].argmax())
        explain = getattr(self.policy, "explain", None)
        told = explain(0) if explain is not None else None
        self.reason = (told.trigger or "") if told is not None else ""
        return action

    async def _has_candidates(self, link: Link) -> bool:
        """Wait until there is something to place; False if the session is given up."""
        while not self.features.candidates:
            if self._asked is None:
                request = PageRequest(self.features.page + 1, 0, self.features.answers, [], "recovery")
                self._ask_page(link, request)
            page = await self._wait_page(link, self.pace.patience_seconds)
            if page is None:
                self.report.starved = True
                return False
            self._turn(page)
        return True

    async def _page_between_slots(self, link: Link) -> None:
        """Go on with the page that has come, if one has."""
        features = self.features
        if self._asked is None:
            features.show()
        elif self.pace.virtual:
            if features.page_due:
                features.show()
                return
            self._ask_page(link, self._asked)
            page = await self._wait_page(link, self.pace.patience_seconds)
            if page is None:
                self.report.starved = True
            else:
                self._turn(page)
        else:
            page = link.take_page()
            if page is None:
                features.wait_for_page()
                features.show()
            else:
                self._turn(page)

    def _ask_page(self, link: Link, request: PageRequest) -> None:
        """Send a request, with what the cloud must know to build its page."""
        features = self.features
        ahead = 0 if self.pace.virtual or request.page == 0 else self.config.request_latency
        slot = min(features.slot + ahead, self.config.max_slots)
        answers = min(request.answers, link.answers)  # a full disk has kept no more
        self._asked = PageRequest(request.page, slot, answers, features.items_since(answers), request.reason)
        self._asked_at = time.perf_counter()
        link.want_page(self._asked)

    async def _wait_page(self, link: Link, seconds: float) -> Page | None:
        try:
            async with asyncio.timeout(seconds):  # before 3.12, wait_for may swallow a cancellation
                return await link.wait_page()
        except TimeoutError:
            return link.take_page()

    def _turn(self, page: Page) -> None:
        self.report.pages += 1
        self.report.short_pages += self._asked is not None and page.answers < self._asked.answers
        self._asked, self._asked_at = None, 0.0
        self.features.turn(page)

    def _came(self, page: Page) -> None:
        """Note how long a page took, which may be played later: between two slots."""
        self.report.page_seconds.append(time.perf_counter() - self._asked_at)

    def _check(self, page: Page) -> None:
        """Refuse a page that does not fit the feed, before it counts as come.

        A session that began with a kept page goes on with it when the cloud's first page comes late.
        """
        if page.page > self.features.page:
            self.features.check(page)

    def _swap(self) -> None:
        """Let the next model take over, between two slots."""
        model, self._next_model = self._next_model, None
        if model is None:
            return
        try:
            if not isinstance(self.policy, DevicePolicy):
                raise InputError(f"policy {self.policy.name!r} is no exported agent")
            self.policy.swap(model)
            if self.models is not None:
                self.models.activate(model.digest)
        except InputError as error:
            if self.models is not None:
                self.models.reject(model.digest, str(error))
            self._say(str(error))

    def _offered(self, offer: ModelOffer) -> None:
        """Fetch the model that the cloud offers, unless it runs, is here or was rejected."""
        if self.models is None or self.link is None:
            return
        try:
            room = self.models.room(offer)
            if room is not None:
                self.link.want_model(offer, room)
            elif self.models.is_wanted(offer.digest):
                self._receive(offer)
        except (InputError, OSError) as error:
            self._say(str(error))

    def _receive(self, offer: ModelOffer) -> None:
        """Verify a model that has come, beside play; it takes over at the next slot."""
        task = asyncio.get_running_loop().create_task(self._verify(offer))
        self._receiving.add(task)
        task.add_done_callback(self._receiving.discard)

    async def _verify(self, offer: ModelOffer) -> None:
        models, link = self.models, self.link
        assert models is not None and link is not None
        version = None if link.welcome is None else link.welcome.version
        try:
            self._next_model = await asyncio.to_thread(models.receive, offer.digest, offer.files, version)
        except (InputError, MissingExtraError) as error:
            self._say(str(error))

    def _say(self, line: str) -> None:
        """Note why a model is not taken; the old one plays on."""
        self.said = line

    def _record(self, ms: float) -> None:
        model = self.policy.model.digest if isinstance(self.policy, DevicePolicy) else ""
        timed: TimedDecisions | None = getattr(self.policy, "timed", None)
        fallback = ""
        if timed is not None and len(timed.missed):
            late, self.report.missed = timed.missed[0] > self.report.missed, int(timed.missed[0])
            fallback = timed.budget.fallback if late else ""
        trigger = self.reason or ("page" if self.features.arrays.page_age[0] == 1 else "slot")
        self.store.record(
            self.features.arrays.key.view(np.int64)[0].item(),
            Decision(
                self.features.slot - 1,
                trigger[:100],
                model,
                ms,
                fallback,
                card=msgspec.msgpack.encode(self.features.last_placed),
            ),
        )

    async def _pass_time(self, response: np.ndarray | None, link: Link) -> None:
        """Let the time pass that a person takes for a card."""
        if self.pace.virtual or self.pace.speed == float("inf"):
            await asyncio.sleep(0)
            return
        looked = 0.0 if response is None else float(response[0])
        await self.pace.sleep(look_seconds(looked, self.config) / self.pace.speed)

    async def _deliver(self, link: Link) -> None:
        """Wait until the cloud has the session; without a network the next session delivers it."""
        pace = self.pace
        with suppress(TimeoutError):
            async with asyncio.timeout(pace.patience_seconds if link.connected else pace.deliver_seconds):
                await link.wait_done()


def look_seconds(looked: float, config: FeedConfig) -> float:
    """Return the seconds that a look takes; `looked` is its bucket in 0..1 (e1)."""
    return float(SECONDS[round(looked * (len(SECONDS) - 1))]) * config.dwell_scale


def replace_page(page: Page, number: int) -> Page:
    """Return a page under another number."""
    return structs.replace(page, page=number, answers=0)
