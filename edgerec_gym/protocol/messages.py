"""The messages between phone and cloud: one WebSocket a phone, one binary MessagePack array a message.

A message is checked while it is decoded: its type, the range of every number and the length of every array.
The answers of a session are numbered from 0 in the order of its slots, so (session, number) is the key of an
answer, and (session, page) that of a page. Sending twice changes nothing: what has come already is dropped,
and a page that was built already is sent again as it was.

Version 1 ships pages in float32. Version 2 adds `PageRequest.coding`, with which a phone asks for smaller
pages. A new field stands at the end and has a default, so that either side decodes the messages of the other.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias, TypeVar

import msgspec
from msgspec import Meta

SUBPROTOCOL = "edgerec.v1"
VERSIONS = (1, 2)  # oldest and newest version that this package speaks
MOST_BYTES = 2**20  # of a message
MOST_ANSWERS = 512  # in a Delta
MOST_SLOTS = 10_000  # of a session
MOST_ITEMS = 1000  # of a page
MOST_TEXT = 500
CHUNK = 2**18  # bytes of a file in a ModelChunk

Version = Annotated[int, Meta(ge=1, le=10_000)]
Session = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Number = Annotated[int, Meta(ge=0, le=MOST_SLOTS)]
Item = Annotated[int, Meta(ge=-1, le=2**31 - 1)]
Levels = Annotated[bytes, Meta(max_length=64)]  # numbers in 0..1 as in coding.py
Digest = Annotated[str, Meta(pattern="^([0-9a-f]{64})?$")]
Name = Annotated[str, Meta(max_length=100)]
Text = Annotated[str, Meta(max_length=MOST_TEXT)]
Coding = Literal["float32", "float16", "uint8"]
Reason = Literal["start", "automatic", "request", "recovery"]

REFUSALS = {
    "version": "the other side speaks no version that this one knows",
    "features": "the phone's model reads other rows than this feed has",
    "token": "the token is missing, wrong or has expired",
    "session": "the session belongs to another user or device",
    "unknown": "there is no such session, page or model",
    "malformed": "the message cannot be decoded, or a number in it is out of range",
    "order": "the message is not allowed now",
    "size": "the message is too large",
    "rate": "too many messages",
    "elsewhere": "another address serves this user; it stands in `allowed`",
    "busy": "too many phones are connected, or the service is ending; come back later",
}


# Kinds of messages by the number that stands first in them: a byte instead of a name in every message.
KINDS = (
    "hello",
    "welcome",
    "delta",
    "ack",
    "request",
    "page",
    "end",
    "ended",
    "offer",
    "want",
    "chunk",
    "refuse",
)


class Message(msgspec.Struct, frozen=True, array_like=True, kw_only=False):
    """Base of all messages: an array whose first entry is the number of its kind (:data:`KINDS`)."""

    @property
    def kind(self) -> str:
        """Name of the kind."""
        return KINDS[self.__struct_config__.tag]  # type: ignore[index]


class Hello(Message, frozen=True, tag=0):
    """The phone begins or continues a session; the first message of a connection.

    Attributes:
        versions: oldest and newest version that it speaks.
        device: name of the device.
        token: proves that the device may speak for the user (:mod:`edgerec_gym.protocol.tokens`).
        user: number of the user.
        session: key of the session as a signed number, also that of everything random in its pages.
        day, hour: the phone's, when the session began.
        answers: number of answers that it has recorded in this session.
        features: digest of what its model reads (:func:`edgerec_gym.device.description.feature_digest`).
        model: digest of its model; "" for none.
    """

    versions: tuple[Version, Version]
    device: Name
    token: Annotated[str, Meta(max_length=300)]
    user: Annotated[int, Meta(ge=0, le=2**31 - 1)]
    session: Session
    day: Annotated[int, Meta(ge=0, le=10**6)]
    hour: Annotated[int, Meta(ge=0, le=23)]
    answers: Number
    features: Digest
    model: Digest = ""


class Welcome(Message, frozen=True, tag=1):
    """The cloud answers a Hello.

    Attributes:
        version: spoken from now on.
        acknowledged: number of this session's answers that are committed.
        user: (U,) float32 bytes, what the cloud ships about the user.
        config: digest of the feed's config.
        model: digest of the model that the phone should run; "" if the cloud has none to offer.
        arms: the user's arm in each experiment.
        ended: whether the session has ended for the cloud.
    """

    version: Version
    acknowledged: Number
    user: Annotated[bytes, Meta(max_length=4 * 1024)]
    config: Digest
    model: Digest = ""
    arms: dict[Name, Name] = {}
    ended: bool = False


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """What the user did with one card.

    Attributes:
        item: row of the catalogue.
        page: number of the page that it came from.
        age: slots placed from that page before it.
        action: index in the action space of EdgeFeed-v0; -1 if unknown.
        exposure: e1..e6 and the named responses.
        page_view: d1..d11; empty without a click.
        leave: whether the user left.
        requested: whether a page was requested at the slot of the card.
    """

    item: Annotated[int, Meta(ge=0, le=2**31 - 1)]
    page: Number
    age: Number
    action: Annotated[int, Meta(ge=-1, le=4000)]
    exposure: Levels
    page_view: Levels = b""
    leave: bool = False
    requested: bool = False


class Delta(Message, frozen=True, tag=2):
    """Answers of the session, in order and without gaps."""

    first: Number
    answers: Annotated[list[Answer], Meta(min_length=1, max_length=MOST_ANSWERS)]


class Ack(Message, frozen=True, tag=3):
    """The number of answers that the cloud has applied and committed."""

    answers: Number


class PageRequest(Message, frozen=True, tag=4):
    """The phone asks for a page. The page is a function of this message and of the answers that it names.

    Attributes:
        page: number of the page; the first one is 0.
        slot: slot at which the phone wants to use it.
        answers: the page is built from the session's first so many answers.
        placed: items that stand on the screen or have left it, beyond those answers.
        reason: why it is asked for.
        coding: of the features, from version 2 on.
    """

    page: Number
    slot: Number
    answers: Number
    placed: Annotated[list[Annotated[int, Meta(ge=0, le=2**31 - 1)]], Meta(max_length=MOST_ITEMS)]
    reason: Reason
    coding: Coding = "float32"


class Page(Message, frozen=True, tag=5):
    """A page, N pool rows in the cloud's order and M cards; empty places hold the item -1.

    Attributes:
        page: its number.
        answers: number of answers that it was built from.
        items: (N,) int32 bytes.
        pool: (N, F) in `coding`.
        cards: (M,) int32 bytes.
        card_features: (M, F) in `coding`.
        summary: (5,) float32 bytes, :data:`edgerec_gym.answers.PAGE_SUMMARY`.
        coding: of the features.
    """

    page: Number
    answers: Number
    items: Annotated[bytes, Meta(max_length=4 * MOST_ITEMS)]
    pool: bytes
    cards: Annotated[bytes, Meta(max_length=400)]
    card_features: bytes
    summary: Annotated[bytes, Meta(min_length=20, max_length=20)]
    coding: Coding = "float32"


class End(Message, frozen=True, tag=6):
    """The session is over: the cards that were placed but never answered, as answers without actions."""

    answers: Number
    placed: Annotated[list[Answer], Meta(max_length=MOST_ITEMS)]


class Ended(Message, frozen=True, tag=7):
    """The cloud has committed the end of the session."""

    answers: Number


class ModelFile(msgspec.Struct, frozen=True, array_like=True):
    """A file of a model's folder."""

    name: Name
    bytes: Annotated[int, Meta(ge=0, le=2**26)]


class ModelOffer(Message, frozen=True, tag=8):
    """The cloud offers a model; sent whenever the channel of the phone has changed."""

    digest: Digest
    files: Annotated[list[ModelFile], Meta(max_length=64)]


class ModelWant(Message, frozen=True, tag=9):
    """The phone asks for a part of a file of a model."""

    digest: Digest
    name: Name
    offset: Annotated[int, Meta(ge=0, le=2**26)]


class ModelChunk(Message, frozen=True, tag=10):
    """A part of a file of a model."""

    digest: Digest
    name: Name
    offset: Annotated[int, Meta(ge=0, le=2**26)]
    data: Annotated[bytes, Meta(max_length=CHUNK)]


class Refuse(Message, frozen=True, tag=11):
    """A message was not accepted.

    Attributes:
        code: one of :data:`REFUSALS`.
        text: what is wrong.
        allowed: what would be accepted; an address for "elsewhere", seconds to wait for "busy" and "rate".
    """

    code: Name
    text: Text
    allowed: Text = ""


FromPhone: TypeAlias = Hello | Delta | PageRequest | End | ModelWant
FromCloud: TypeAlias = Welcome | Ack | Page | Ended | ModelOffer | ModelChunk | Refuse
T = TypeVar("T")

_encoder = msgspec.msgpack.Encoder()
_from_phone: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(FromPhone)
_from_cloud: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(FromCloud)


def encode(message: Message) -> bytes:
    """Return a message as bytes."""
    return _encoder.encode(message)


def from_phone(data: bytes) -> FromPhone:
    """Decode what a phone sent; msgspec.MsgspecError if it is malformed or out of range."""
    message: FromPhone = _from_phone.decode(data)
    return message


def from_cloud(data: bytes) -> FromCloud:
    """Decode what the cloud sent; msgspec.MsgspecError if it is malformed or out of range."""
    message: FromCloud = _from_cloud.decode(data)
    return message


def common_version(theirs: tuple[int, int], ours: tuple[int, int] = VERSIONS) -> int | None:
    """Return the newest version that both sides speak, None if there is none."""
    newest = min(theirs[1], ours[1])
    return newest if newest >= max(theirs[0], ours[0]) else None
