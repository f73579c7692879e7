"""The phone's link to the cloud: it sends answers and fetches pages and models, over any network.

Play never waits for it. The phone calls `tell`, `want_page` and `end`, which return at once, and reads what
has come; :meth:`Link.run` is a task that connects, sends and receives until the cloud has the whole session.
What must survive the end of the process is in the
:class:`~edgerec_gym.device.event_store.EventStore`. Sending is at least once: what is not acknowledged is
sent again, and numbers make its effect exactly once.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from edgerec_gym.device.backoff import Backoff
from edgerec_gym.device.event_store import EventStore
from edgerec_gym.device.link_settings import Heard, LinkCounts, LinkSettings, Phone, is_address
from edgerec_gym.device.model_download import Download
from edgerec_gym.device.outbox import Outbox, StuckError
from edgerec_gym.device.phone_schema import PhoneSession
from edgerec_gym.device.traffic import Traffic
from edgerec_gym.errors import InputError, MissingExtraError
from edgerec_gym.protocol.messages import (
    SUBPROTOCOL,
    Ack,
    Answer,
    Ended,
    FromCloud,
    FromPhone,
    Hello,
    ModelChunk,
    ModelOffer,
    Page,
    PageRequest,
    Refuse,
    Welcome,
    common_version,
    encode,
    from_cloud,
)

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

FINAL = ("version", "features", "token", "session")  # refusals that trying again does not change
MOST_HOPS = 3  # from address to address without a wait


class Link:
    """One session's link to the cloud. It also delivers earlier sessions that the cloud lacks.

    Args:
        phone: who speaks, and to which address.
        session: the session; one that the store knows goes on where it was.
        store: keeps what must survive.
        generator: draws the waits between connections.
        settings: when to send and how long to wait.
        heard: what to call when something arrives.

    Attributes:
        welcome: the cloud's last Welcome; None before.
        refused: why the cloud does not serve this session any more; "" while it may. Play goes on offline.
        done: whether the cloud has committed the session and its end.
        connected: whether the cloud has welcomed the phone on a connection that is open.
        traffic: bytes by kind.
        counts: what it has met with.

    Raises:
        InputError: the store has this session for another user.
        MissingExtraError: the extra `edge` is not installed.
    """

    def __init__(
        self,
        phone: Phone,
        session: PhoneSession,
        store: EventStore,
        generator: np.random.Generator,
        settings: LinkSettings | None = None,
        heard: Heard | None = None,
    ) -> None:
        try:
            from edgerec_gym.device import connection
        except ImportError:
            raise MissingExtraError("the link to the cloud", "edge") from None
        self._network = connection
        store.begin(session)
        known = store.session(session.session) or session
        if known.user != session.user:
            raise InputError(f"session {session.session} is of the user {known.user}, not {session.user}")
        self.welcome: Welcome | None = None
        self.refused = ""
        self.done = known.ended
        self.connected = False
        self.traffic, self.counts = Traffic(), LinkCounts()
        self._phone, self._session, self._store, self._generator = phone, known, store, generator
        self._settings, self._heard = settings or LinkSettings(), heard or Heard()
        self._outbox = Outbox(known, store, self._settings, self.counts)
        self._url = phone.url
        self._hops = 0  # from address to address since the last connection that was of use
        self._backoff = Backoff(
            generator,
            self._settings.first_wait,
            self._settings.longest_wait,
            self._settings.longest_told_wait,
        )
        self._page: Page | None = None
        self._left_alone: set[int] = set()  # earlier sessions that the cloud does not take
        self._is_earlier = False
        self._wake, self._stopping, self._changed = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._over = False

    @property
    def answers(self) -> int:
        """Number of answers that are kept."""
        return self._outbox.kept

    @property
    def is_ending(self) -> bool:
        """Whether the session is over for the phone."""
        return self._outbox.is_ending

    @property
    def acknowledged(self) -> int:
        """Number of answers that the cloud has committed."""
        return self._outbox.acknowledged

    def tell(self, answer: Answer, now: bool = False) -> bool:
        """Keep an answer, and send it when the settings say so.

        Args:
            answer: the session's next answer.
            now: send it at once; for clicks, deletions and whatever else tells much about the user.

        Returns:
            Whether it is kept. What is not kept is not sent either.
        """
        kept = self._outbox.tell(answer, now, time.monotonic())
        self._wake.set()
        return kept

    def want_page(self, request: PageRequest) -> None:
        """Ask for a page, in place of the one that was asked for before.

        Raises:
            InputError: the request names answers that are not kept.
        """
        self._page = None
        self._outbox.want(request)
        self._wake.set()

    def take_page(self) -> Page | None:
        """Return the page that was asked for last, once; None if it has not come."""
        page, self._page = self._page, None
        return page

    def leave_page(self) -> None:
        """Wait for the page that was asked for no longer."""
        self._page = None
        self._outbox.came()

    async def wait_page(self) -> Page | None:
        """Wait for the page that was asked for last, and take it; None if the link ends before."""
        await self._until(lambda: self._page is not None)
        return self.take_page()

    def end(self, placed: Sequence[Answer] = ()) -> None:
        """End the session: everything is sent, then what was placed but never answered."""
        self._outbox.end(placed)
        self._wake.set()

    async def wait_done(self) -> bool:
        """Wait until the cloud has the session and its end; False if the link ends before."""
        return await self._until(lambda: self.done)

    async def flushed(self) -> bool:
        """Send all answers, and wait until the cloud has them; False if the link ends before."""
        kept = self.answers
        self._outbox.send_all()
        self._wake.set()
        return await self._until(lambda: self.acknowledged >= kept)

    def want_model(self, offer: ModelOffer, folder: str | Path) -> None:
        """Fetch the files of a model into a folder, in place of an earlier model; goes on where it was.

        Raises:
            InputError: the offer is too large, or a name in it is not that of a file.
            OSError: the folder cannot be written.
        """
        self._outbox.fetch(Download(offer, Path(folder), self._settings.most_model_bytes))
        self._wake.set()

    def stop(self) -> None:
        """Let `run` return soon; everything that is kept is sent by the next link."""
        self._stopping.set()

    async def run(self) -> None:
        """Serve the session until the cloud has it and its end, refuses it, or `stop` is called."""
        talk = asyncio.create_task(self._talk())
        stop = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({talk, stop}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop.cancel()
            talk.cancel()
            outcome, _ = await asyncio.gather(talk, stop, return_exceptions=True)
            self._over = True
            self._note()
        if isinstance(outcome, Exception):
            raise outcome

    async def _talk(self) -> None:
        """Connect until there is nothing left to do."""
        while not (self.done or self.refused):
            await self._deliver_earlier()
            if not self._backoff.told:
                await self._connect()
            if not (self.done or self.refused):
                follows = self._url != self._phone.url and self._hops <= MOST_HOPS
                await asyncio.sleep(0.0 if follows else self._backoff.draw())
        if self.done:
            await self._deliver_earlier()

    async def _deliver_earlier(self) -> None:
        """Try once to deliver sessions that the cloud lacks: it should know them before it builds a page."""
        for session in self._store.sessions():
            known = session.ended or session.session in self._left_alone
            if known or session.user != self._session.user or session.session == self._session.session:
                continue
            link = Link(self._phone, session, self._store, self._generator, self._settings)
            link.traffic, link.counts, link._url = self.traffic, self.counts, self._url
            link._is_earlier = True
            link.end(session.placed or ())
            before = self.counts.violations
            try:
                async with asyncio.timeout(self._settings.earlier_seconds):
                    await link._connect()
                    while link._url != self._phone.url and link._hops <= MOST_HOPS:
                        await link._connect()
            except TimeoutError:
                self._left_alone.add(session.session)
            self._backoff.told = link._backoff.told
            if link.refused or self.counts.violations > before:
                self._left_alone.add(session.session)
            elif not link.done:
                return  # the network is bad, or the cloud busy

    async def _connect(self) -> None:
        """Speak over one connection until it ends."""
        settings = self._settings
        url, self._url = self._url, self._phone.url  # if it does not serve, back to the known address
        opening = self._network.opened(
            url, self.traffic, settings.open_seconds, settings.ping_seconds, settings.silent_seconds
        )
        try:
            async with opening as connection:
                if connection.subprotocol != SUBPROTOCOL:
                    raise _ViolationError(f"it does not speak {SUBPROTOCOL}")
                await self._converse(connection)
        except _ViolationError:
            self.counts.violations += 1
        except self._network.FAILURES:
            self.counts.failures += 1
        finally:
            opening.abort()
            self.connected = False
            self._note()

    async def _converse(self, connection: ClientConnection) -> None:
        """Exchange messages until the session is done, refused or the connection breaks."""
        session = self._session
        hello = Hello(
            self._settings.versions,
            self._phone.device,
            self._phone.token,
            session.user,
            session.session,
            session.day,
            session.hour,
            self.answers,
            session.features,
            self._phone.model,
        )
        await self._send(connection, hello)
        async with asyncio.timeout(self._settings.open_seconds):
            first = self._decode(await connection.recv())
        if isinstance(first, Refuse):
            self._take_refusal(first)
        elif not isinstance(first, Welcome):
            raise _ViolationError("its first message is no Welcome")
        elif self._take_welcome(first):
            speaking = asyncio.create_task(self._speak(connection))
            try:
                while not (self.done or self.refused):
                    if not self._take(self._decode(await connection.recv())):
                        break
            finally:
                speaking.cancel()
                (error,) = await asyncio.gather(speaking, return_exceptions=True)
                if isinstance(error, Exception) and not isinstance(error, self._network.FAILURES):
                    raise error

    async def _speak(self, connection: ClientConnection) -> None:
        """Send what is due, whenever it is."""
        while True:
            self._wake.clear()
            now = time.monotonic()
            try:
                message, wake_at = self._outbox.next(now)
            except OSError as error:
                self._drop_model(f"it cannot be written: {error.strerror}")
                continue
            except StuckError:
                await connection.close()
                return
            except BaseException:
                await connection.close()  # ends the other task, which then raises this
                raise
            if message is not None:
                await self._send(connection, message)
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(None if wake_at == math.inf else max(0.0, wake_at - now)):
                    await self._wake.wait()

    async def _send(self, connection: ClientConnection, message: FromPhone) -> None:
        data = encode(message)
        await connection.send(data)
        self.traffic.count("up", message.kind, len(data))

    def _decode(self, data: str | bytes) -> FromCloud:
        if isinstance(data, bytes):
            with suppress(msgspec.MsgspecError):
                message = from_cloud(data)
                self.traffic.count("down", message.kind, len(data))
                return message
        self.traffic.count("down", "malformed", len(data.encode() if isinstance(data, str) else data))
        raise _ViolationError("a message cannot be decoded")

    def _take(self, message: FromCloud) -> bool:
        """Act on a message; False if the connection has served its purpose."""
        if isinstance(message, Refuse):
            return self._take_refusal(message)
        self._hops = 0
        self._backoff.was_useful()
        if isinstance(message, Ack):
            self._acknowledge(message.answers)
        elif isinstance(message, Page):
            self._take_page(message)
        elif isinstance(message, Ended):
            if message.answers < self.answers or not self._outbox.is_ending:
                raise _ViolationError("it ends a session that has not ended")
            self._finish(message.answers)
        elif isinstance(message, ModelOffer):
            if self._heard.offer is not None:
                self._heard.offer(message)
        elif isinstance(message, ModelChunk):
            self._take_chunk(message)
        self._wake.set()
        self._note()
        return True

    def _take_welcome(self, welcome: Welcome) -> bool:
        """Begin to speak; False if there is nothing to speak about."""
        version = common_version((welcome.version, welcome.version), self._settings.versions)
        if version is None:
            low, high = self._settings.versions
            self.refused = f"version: the cloud speaks {welcome.version}, this phone {low} to {high}"
            return False
        could_have = max(self._session.answers, self._outbox.most_sent)
        if welcome.acknowledged > could_have and not self._is_earlier:  # a loss of power took the last ones
            # What the user has answered since stands in their place: the cloud must not take it for what
            # follows on them.
            self._outbox.cut(self._session.answers)
            self.refused = (
                f"session: the cloud has {welcome.acknowledged} answers of it, the phone had {could_have}; "
                "begin a new session"
            )
            return False
        self.welcome = welcome
        self.counts.welcomes += 1
        self.connected = True
        self._outbox.connected(version, welcome.acknowledged)
        self._store.acknowledge(self._session.session, welcome.acknowledged)
        self._store.keep_user(self._session.session, welcome.user)
        if welcome.arms != self._store.arms():
            self._store.keep_arms(welcome.arms)
        if self._heard.welcome is not None:
            self._heard.welcome(welcome)
        if welcome.ended:
            if not self._outbox.is_ending or welcome.acknowledged < self.answers:
                self.refused = "session: it has ended for the cloud; begin a new session"
            else:
                self._finish(welcome.acknowledged)
            return False
        self._note()
        return True

    def _acknowledge(self, answers: int) -> None:
        if answers > max(self.answers, self._outbox.acknowledged):
            raise _ViolationError("it acknowledges answers that were never sent")
        if self._outbox.acknowledge(answers, time.monotonic()):
            self._store.acknowledge(self._session.session, answers)

    def _take_page(self, page: Page) -> None:
        """Hand over the page that is wanted; one that is not wanted any more is dropped."""
        if page.page > self._outbox.last_page or page.answers > self.answers:
            raise _ViolationError("it sends a page that was never asked for")
        if not self._outbox.is_wanted(page.page):
            self.counts.late_pages += 1
            return
        if self._heard.check_page is not None:
            try:
                self._heard.check_page(page)
            except InputError as error:
                raise _ViolationError(str(error)) from None
        self._outbox.came()
        self._store.keep_page(self._session.session, page)
        self._page = page
        if self._heard.page is not None:
            self._heard.page(page)

    def _take_chunk(self, chunk: ModelChunk) -> None:
        download = self._outbox.download
        if download is None:
            return  # of a model that is not wanted any more
        try:
            if not download.take(chunk):
                return
            self._outbox.chunk_came()
            complete = download.want() is None
        except InputError as error:
            self._drop_model(str(error))
        except OSError as error:
            self._drop_model(f"it cannot be written: {error.strerror}")
        else:
            if complete:
                self._outbox.fetch(None)
                if self._heard.model is not None:
                    self._heard.model(download.offer, download.folder)

    def _drop_model(self, reason: str) -> None:
        download = self._outbox.download
        self._outbox.fetch(None)
        if download is not None and self._heard.model_failed is not None:
            self._heard.model_failed(download.offer, reason)

    def _take_refusal(self, refusal: Refuse) -> bool:
        """Act on a refusal; False if the connection should close."""
        self.counts.refusals[refusal.code] += 1
        if refusal.code == "unknown" and self._outbox.download is not None:
            self._drop_model(f"the cloud does not have it: {refusal.text}")
            return True
        if refusal.code in FINAL:
            self.refused = f"{refusal.code}: {refusal.text}"
        elif refusal.code == "elsewhere":
            secure = self._phone.url.startswith("wss://")
            if not is_address(refusal.allowed) or (secure and not refusal.allowed.startswith("wss://")):
                raise _ViolationError("it names no address")
            self._url = refusal.allowed
            self._hops += 1
        elif refusal.code in ("busy", "rate"):
            self._backoff.tell(refusal.allowed)
        return False

    def _finish(self, answers: int) -> None:
        """Record that the cloud has everything."""
        self._store.acknowledge(self._session.session, answers)
        self._store.ended(self._session.session)
        self._store.trim()
        self.done = True

    async def _until(self, holds: Callable[[], bool]) -> bool:
        """Wait until something holds; False if the link ends before."""
        while not holds() and not self._over:
            await self._changed.wait()
        return holds()

    def _note(self) -> None:
        """Wake whoever waits for a change."""
        self._changed.set()
        self._changed = asyncio.Event()


class _ViolationError(Exception):
    """The cloud sent something that the protocol does not allow."""
