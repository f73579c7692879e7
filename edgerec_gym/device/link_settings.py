"""Settings of the link to the cloud, what it calls, and what it has met with."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path

from edgerec_gym.config import SYNC_MODES
from edgerec_gym.device.model_download import MOST_BYTES
from edgerec_gym.errors import InputError, shown
from edgerec_gym.protocol.messages import MOST_ANSWERS, VERSIONS, ModelOffer, Page, Welcome

_ADDRESS = re.compile(
    r"wss?://(?P<host>[\w-]{1,63}(\.[\w-]{1,63})*|\[::1\])(:(?P<port>\d{1,5}))?(/[!-~]*)?", re.ASCII
)


def is_address(url: str) -> bool:
    """Whether a text is the address of a service: ws:// or wss:// with a host."""
    found = _ADDRESS.fullmatch(url)
    if found is None or "#" in url:
        return False
    return len(found["host"]) < 254 and int(found["port"] or 1) < 2**16


@dataclass(frozen=True)
class LinkSettings:
    """When a phone tells the cloud, and how long it waits.

    Attributes:
        sync: "page" sends answers before a page request and at the end, "periodic" every `period` answers,
            "incremental" at once if it is told so, else when enough have gathered. Every request and the
            end send the answers that they name.
        period: answers between two messages, for "periodic"; a slot has one answer.
        most_answers: number of answers that gather, for "incremental".
        most_seconds: time for which an answer waits for others, for "incremental".
        reply_seconds: a message without a reply is sent again after this time, then after twice it, ...;
            after some tries on a new connection.
        longest_reply_seconds: upper end of these times.
        open_seconds: time for a connection to open, and then for Welcome.
        ping_seconds: time between signs of life.
        silent_seconds: time after which a connection without them is given up.
        first_wait: seconds; upper end of the random wait before the second try to connect. It doubles.
        longest_wait: seconds; where it stops doubling.
        longest_told_wait: seconds; the longest that the cloud may send a phone away for.
        most_model_bytes: largest size of a model.
        earlier_seconds: time for the delivery of an earlier session, which the current one waits for.
        versions: oldest and newest version of the protocol.
    """

    sync: str = "incremental"
    period: int = 20
    most_answers: int = 8
    most_seconds: float = 0.5
    reply_seconds: float = 2.0
    longest_reply_seconds: float = 30.0
    open_seconds: float = 10.0
    ping_seconds: float = 10.0
    silent_seconds: float = 20.0
    first_wait: float = 0.5
    longest_wait: float = 30.0
    longest_told_wait: float = 300.0
    most_model_bytes: int = MOST_BYTES
    earlier_seconds: float = 30.0
    versions: tuple[int, int] = VERSIONS

    def __post_init__(self) -> None:
        if self.sync not in SYNC_MODES:
            raise InputError(f"sync = {self.sync!r}; allowed: {', '.join(SYNC_MODES)}")
        if not 1 <= self.most_answers <= MOST_ANSWERS:
            raise InputError(f"most_answers = {self.most_answers}; allowed: 1 to {MOST_ANSWERS}")
        if self.period < 1:
            raise InputError(f"period = {self.period}; allowed: 1 or more")
        for setting in fields(self):
            value = getattr(self, setting.name)
            if isinstance(value, float) and not (0 < value < math.inf):
                raise InputError(f"{setting.name} = {value}; allowed: above 0 seconds")
        if not VERSIONS[0] <= self.versions[0] <= self.versions[1] <= VERSIONS[1]:
            raise InputError(f"versions = {self.versions}; allowed: within {VERSIONS}")


@dataclass(frozen=True)
class Phone:
    """Who speaks to the cloud, and where it is.

    Attributes:
        url: ws:// or wss:// address of the service.
        device: name of the device.
        token: proves that it may speak for the user.
        model: digest of the model that it runs; "" for none.
    """

    url: str
    device: str
    token: str
    model: str = ""

    def __post_init__(self) -> None:
        if not is_address(self.url):
            raise InputError(f"the address of the service is {shown(self.url)}; allowed: ws://HOST:PORT/PATH")


@dataclass(frozen=True)
class Heard:
    """What a link calls when something arrives, on the loop that it runs in.

    Attributes:
        check_page: raises InputError for a page that does not fit; the connection is closed then.
        page: the page that is wanted has come.
        welcome: the cloud has welcomed the phone.
        offer: the cloud offers a model; `Link.want_model` fetches it.
        model: all files of a model lie in a folder, unchecked.
        model_failed: a model could not be fetched, and why.
    """

    check_page: Callable[[Page], None] | None = None
    page: Callable[[Page], None] | None = None
    welcome: Callable[[Welcome], None] | None = None
    offer: Callable[[ModelOffer], None] | None = None
    model: Callable[[ModelOffer, Path], None] | None = None
    model_failed: Callable[[ModelOffer, str], None] | None = None


@dataclass
class LinkCounts:
    """What a link has met with.

    Attributes:
        welcomes: connections on which the cloud has welcomed the phone.
        failures: connections that did not open or broke.
        violations: connections closed because the cloud sent something malformed or unexpected.
        refusals: by code.
        resent: answers sent again because no reply came or the connection broke.
        late_pages: pages dropped since they are not, or no longer, wanted.
    """

    welcomes: int = 0
    failures: int = 0
    violations: int = 0
    refusals: Counter[str] = field(default_factory=Counter)
    resent: int = 0
    late_pages: int = 0
