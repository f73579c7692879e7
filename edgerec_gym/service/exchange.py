"""What the service answers to each message of a phone: one exchange a connection, without sockets.

| message | answer |
| --- | --- |
| Hello | Welcome, and a ModelOffer if the phone runs another model; the same Hello again: the same again |
| Delta | Ack with the number of answers committed, also if some came twice or are missing in between |
| PageRequest | Page; the same page number: the same bytes, whoever serves it, whenever |
| End | Ended; Refuse "order" with the number held, if answers have not come |
| ModelWant | ModelChunk |

Everything else is refused with a code. After a refusal the connection is closed, and the phone comes back
and sends again what was not acknowledged. After "order" and "unknown" it stays open, once a Hello was
accepted.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import msgspec
import numpy as np

from edgerec_gym.answers import N_EXPOSURE_ACTIONS, N_PAGE_VIEW_ACTIONS
from edgerec_gym.config import FeedConfig
from edgerec_gym.device.description import feature_digest
from edgerec_gym.errors import InputError
from edgerec_gym.protocol.coding import LEVELS
from edgerec_gym.protocol.messages import (
    MOST_BYTES,
    MOST_TEXT,
    VERSIONS,
    Ack,
    Answer,
    Delta,
    End,
    Ended,
    FromPhone,
    Hello,
    Message,
    ModelWant,
    Page,
    PageRequest,
    Refuse,
    Welcome,
    common_version,
    encode,
    from_phone,
)
from edgerec_gym.protocol.tokens import is_valid
from edgerec_gym.service.models import Models
from edgerec_gym.service.sessions import Session, Sessions
from edgerec_gym.service.store import Begun, NotBegunError, SessionStore, StoreError
from edgerec_gym.spaces import n_actions

WAIT = 0.05  # seconds for answers that a message names but that have not come
BUSY_SECONDS = 5  # after which a phone may come back
GOES_ON = ("order", "unknown")  # refusals after which a connection stays open

_log = logging.getLogger(__name__)


class Builder(Protocol):
    """Builds pages (:class:`edgerec_gym.service.pages.PageBuilder`)."""

    config: FeedConfig
    n_items: int

    @property
    def n_users(self) -> int:
        """Number of users; they are numbered from 0."""

    def features(self, user: int) -> np.ndarray:
        """Return what the cloud ships about a user, (U,) float32; InputError if unknown."""

    def build(self, session: int, user: int, request: PageRequest, answers: Sequence[Answer]) -> Page:
        """Build a page from the first answers of a session; a function of the arguments alone."""


class Reply(NamedTuple):
    """A message as it is sent."""

    kind: str  # its tag
    data: bytes


class Refused(Exception):
    """A message is refused.

    Args:
        code: one of :data:`edgerec_gym.protocol.messages.REFUSALS`.
        text: what is wrong.
        allowed: what would be accepted.
    """

    def __init__(self, code: str, text: str, allowed: str = "") -> None:
        super().__init__(text)
        self.message = Refuse(code, " ".join(text.split())[:MOST_TEXT], allowed[:MOST_TEXT])


@dataclass
class FeedService:
    """What all connections of a process share.

    Attributes:
        builder: builds the pages.
        store: keeps the sessions.
        secret: of the tokens.
        models: what phones are offered; None for nothing.
        elsewhere: tells which address serves a user, None if it is this one; its second argument is the
            address that the phone connected to.
        on_end: told of each session that has ended, with its placed cards, after the commit.
    """

    builder: Builder
    store: SessionStore
    secret: bytes
    models: Models | None = None
    elsewhere: Callable[[int, str], str | None] | None = None
    on_end: Callable[[Session, list[Answer]], None] | None = None

    def __post_init__(self) -> None:
        config = self.builder.config
        self.sessions = Sessions(self.store)
        self.features = feature_digest(config)
        self.config = config.digest()
        self.n_items = self.builder.n_items
        self.most_slots = config.max_slots
        self.actions = n_actions(config, "joint")
        self.exposure = N_EXPOSURE_ACTIONS + config.n_responses
        self.failing = False  # whether the last use of the store failed

    def check_answer(self, answer: Answer, answered: bool = True) -> None:
        """Raise Refused if an answer is none that this feed knows; `answered`: it tells what the user did."""
        lengths = ((self.exposure,), (0, N_PAGE_VIEW_ACTIONS)) if answered else ((0, self.exposure), (0,))
        for name, value, least_out in (
            ("item", answer.item, self.n_items),
            ("page", answer.page, self.most_slots + 1),
            ("age", answer.age, self.most_slots + 1),
            ("action", answer.action, self.actions),
        ):
            if value >= least_out:
                raise Refused("malformed", f"{name} is {value}; allowed: up to {least_out - 1}")
        for name, levels, allowed in (
            ("exposure", answer.exposure, lengths[0]),
            ("page_view", answer.page_view, lengths[1]),
        ):
            if len(levels) not in allowed:
                told = " or ".join(map(str, allowed))
                raise Refused("malformed", f"{name} has {len(levels)} numbers; allowed: {told}")
            if levels and max(levels) > LEVELS:
                raise Refused("malformed", f"{name} holds the level {max(levels)}; allowed: 0 to {LEVELS}")

    def check_number(self, name: str, value: int) -> None:
        """Raise Refused if a number of slots, answers or pages is more than a session can have."""
        if value > self.most_slots:
            raise Refused("malformed", f"{name} is {value}; a session has at most {self.most_slots} slots")


def decode(data: bytes) -> FromPhone:
    """Decode what a phone sent; Refused if it is too large or malformed."""
    if len(data) > MOST_BYTES:
        raise Refused("size", f"a message of {len(data):,} bytes", str(MOST_BYTES))
    try:
        return from_phone(data)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise Refused("malformed", f"not a message: {error}") from None


def reply(message: Message) -> Reply:
    """Return a message as it is sent."""
    return Reply(message.kind, encode(message))


class Exchange:
    """The messages of one connection and the answers to them.

    Several messages may be in work at once: a page waits for answers that come after its request.

    Args:
        service: what all connections share.
        address: the host that the phone has connected to.

    Attributes:
        hello: the Hello that was accepted; None before.
        version: of the messages, after the Hello.
    """

    def __init__(self, service: FeedService, address: str = "127.0.0.1") -> None:
        self._service = service
        self._address = address
        self._session: Session | None = None
        self.hello: Hello | None = None
        self.version = VERSIONS[0]

    def closes(self, refusal: Refuse) -> bool:
        """Whether the connection is closed after a refusal."""
        return self.hello is None or refusal.code not in GOES_ON

    async def answer(self, message: FromPhone) -> list[Reply]:
        """Return the replies to a message; raises Refused instead if it is not accepted."""
        try:
            replies = await self._answer(message)
        except StoreError as error:
            if not self._service.failing:
                _log.error("phones are told to wait: %s", error)
            self._service.failing = True
            raise Refused("busy", "sessions cannot be kept at the moment", str(BUSY_SECONDS)) from None
        except NotBegunError:
            self.hello = self._session = None  # it must begin anew
            raise Refused("unknown", "the session is not held any more; begin it again") from None
        except InputError as error:
            raise Refused("malformed", str(error)) from None
        if self._service.failing and not isinstance(message, ModelWant):
            _log.warning("sessions can be kept again")
            self._service.failing = False
        return replies

    async def _answer(self, message: FromPhone) -> list[Reply]:
        if isinstance(message, Hello):
            return await self._greet(message)
        session = self._session
        if session is None:
            raise Refused("order", "the first message of a connection must be a Hello")
        if isinstance(message, Delta):
            return [await self._append(session, message)]
        if isinstance(message, PageRequest):
            return [await self._page(session, message)]
        if isinstance(message, End):
            return [await self._end(session, message)]
        chunk = None if self._service.models is None else self._service.models.chunk(message)
        if chunk is None:
            raise Refused("unknown", f"no file {message.name!r} of a model {message.digest!r} is offered")
        return [reply(chunk)]

    async def _greet(self, hello: Hello) -> list[Reply]:
        service = self._service
        if self.hello is not None and hello.session != self.hello.session:
            raise Refused("order", "the connection serves another session already")
        version = common_version(hello.versions)
        if version is None:
            raise Refused(
                "version",
                f"the phone speaks versions {hello.versions[0]} to {hello.versions[1]}",
                f"{VERSIONS[0]} to {VERSIONS[1]}",
            )
        if not is_valid(service.secret, hello.token, hello.device, hello.user):
            raise Refused("token", f"the token does not let this device speak for user {hello.user}")
        if service.elsewhere is not None:
            address = service.elsewhere(hello.user, self._address)
            if address is not None:
                raise Refused("elsewhere", f"user {hello.user} is served by another address", address)
        if hello.features != service.features and (hello.features or hello.model):
            raise Refused(
                "features", "the phone's model reads other rows than this feed has", service.features
            )
        if hello.user >= service.builder.n_users:
            raise Refused("unknown", f"there is no user {hello.user}", f"0 to {service.builder.n_users - 1}")
        begun = Begun(hello.session, hello.user, hello.device, hello.day, hello.hour)
        session = await service.sessions.begin(begun)
        if (session.begun.user, session.begun.device) != (hello.user, hello.device):
            raise Refused("session", "the session belongs to another user or device")
        self._session, self.hello, self.version = session, hello, version
        model = None if service.models is None else service.models.for_user(hello.user)
        replies = [
            reply(
                Welcome(
                    version,
                    len(session.answers),
                    np.ascontiguousarray(service.builder.features(hello.user), np.float32).tobytes(),
                    service.config,
                    "" if model is None else model.digest,
                    ended=session.ended,
                )
            )
        ]
        if model is not None and model.digest != hello.model:
            replies.append(reply(model.offer))
        return replies

    async def _append(self, session: Session, delta: Delta) -> Reply:
        end = delta.first + len(delta.answers)
        self._service.check_number("the number of answers", end)
        for answer in delta.answers:
            self._service.check_answer(answer)
        held = await self._service.sessions.append(session, delta.first, delta.answers)
        if session.ended and held < end:
            raise Refused("order", "the session has ended", str(held))
        return reply(Ack(held))

    async def _page(self, session: Session, request: PageRequest) -> Reply:
        service, begun = self._service, session.begun
        for name in ("page", "slot", "answers"):
            service.check_number(name, getattr(request, name))
        if request.placed and max(request.placed) >= service.n_items:
            raise Refused(
                "malformed", f"placed names the item {max(request.placed)}", f"up to {service.n_items - 1}"
            )
        if self.version == 1 and request.coding != "float32":
            raise Refused("malformed", f"version 1 knows no coding {request.coding!r}", "float32")
        if session.ended:
            data = await service.store.page(begun.session, request.page)
            if data is None:
                raise Refused("order", "the session has ended")
            return Reply("page", data)
        if not await session.wait_for(request.answers, WAIT):
            await service.sessions.read_on(session)
        page = service.builder.build(begun.session, begun.user, request, session.answers[: request.answers])
        # The first page of a number stays, so one that was built before is found here.
        return Reply("page", await service.store.keep_page(begun.session, request.page, encode(page)))

    async def _end(self, session: Session, end: End) -> Reply:
        service = self._service
        service.check_number("answers", end.answers)
        for answer in end.placed:
            service.check_answer(answer, answered=False)
        if not await session.wait_for(end.answers, WAIT):
            await service.sessions.read_on(session)
        held = len(session.answers)
        if held < end.answers:
            raise Refused("order", f"answers {held} to {end.answers - 1} have not come", str(held))
        if not session.ended:
            await service.sessions.end(session, end.placed)
            if service.on_end is not None:
                service.on_end(session, end.placed)
        return reply(Ended(len(session.answers)))
