"""What a phone still has to tell the cloud about a session, and when."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from edgerec_gym.device.event_store import EventStore
from edgerec_gym.device.link_settings import LinkCounts, LinkSettings
from edgerec_gym.device.model_download import Download
from edgerec_gym.device.phone_schema import PhoneSession
from edgerec_gym.errors import InputError
from edgerec_gym.protocol.messages import MOST_ANSWERS, Answer, Delta, End, FromPhone, PageRequest

WINDOW = 2 * MOST_ANSWERS  # answers on their way without an acknowledgement
MOST_TRIES = 4  # of a message on one connection
CODINGS_SINCE = 2  # version in which a phone may choose the coding of pages


class StuckError(Exception):
    """The cloud does not reply on this connection, or the two sides disagree: a new one makes it clear."""


class _Repeat:
    """When a message without a reply is sent again: after a time that doubles.

    Attributes:
        at: when it is to be sent, seconds of the monotonic clock.
    """

    def __init__(self, settings: LinkSettings) -> None:
        self._settings = settings
        self.reset()

    def reset(self) -> None:
        """Send at once, and wait the shortest time for the reply."""
        self.at = 0.0
        self._tries = 0
        self._seconds = self._settings.reply_seconds

    def sent(self, now: float) -> None:
        """Wait for a reply; StuckError if there was none too often."""
        self._tries += 1
        if self._tries > MOST_TRIES:
            raise StuckError
        self.at = now + self._seconds
        self._seconds = min(2 * self._seconds, self._settings.longest_reply_seconds)


class Outbox:
    """The answers, the request, the wish for a model and the end that the cloud has yet to get.

    Args:
        session: the session as the store knows it.
        store: holds the answers.
        settings: when to send.
        counts: counts what is sent again.

    Attributes:
        kept: number of answers that are kept.
        acknowledged: number of answers that the cloud has committed.
        is_ending: whether the session is over for the phone.
        last_page: number of the last page that was asked for; -1 before.
        most_sent: number of answers that have been sent or acknowledged.
        download: the model that is being fetched.
    """

    def __init__(
        self, session: PhoneSession, store: EventStore, settings: LinkSettings, counts: LinkCounts
    ) -> None:
        self._session, self._store, self._settings, self._counts = session.session, store, settings, counts
        self.kept, self.acknowledged = session.answers, min(session.acknowledged, session.answers)
        self.is_ending = session.placed is not None
        self.last_page = -1
        self.download: Download | None = None
        self._placed = session.placed or []
        self._sent = self.most_sent = self.acknowledged
        everything = self.is_ending or settings.sync == "incremental"
        self._due = self.kept if everything else self.acknowledged  # answers that are to be sent by now
        self._gathered_at = math.inf  # when the answers that wait have waited long enough
        self._request: PageRequest | None = None
        self._version = settings.versions[1]
        self._answers, self._pages = _Repeat(settings), _Repeat(settings)
        self._models, self._end = _Repeat(settings), _Repeat(settings)

    def tell(self, answer: Answer, at_once: bool, now: float) -> bool:
        """Keep an answer; False if it cannot be kept."""
        if self.is_ending:
            raise InputError("an answer after the end of its session")
        number = self._store.append(self._session, answer)
        if number is None:
            return False
        self.kept = number + 1
        settings = self._settings
        if settings.sync == "periodic":
            if self.kept % settings.period == 0:
                self._due = self.kept
        elif settings.sync == "incremental":
            if at_once or self.kept - self._due >= settings.most_answers:
                self.send_all()
            elif self._gathered_at == math.inf:
                self._gathered_at = now + settings.most_seconds
        return True

    def cut(self, answers: int) -> None:
        """Forget the answers from a number on, and keep no more."""
        self._store.cut(self._session, answers)
        self.kept = min(self.kept, answers)
        self._due = min(self._due, self.kept)

    def send_all(self) -> None:
        """Let all answers be sent now."""
        self._due = self.kept
        self._gathered_at = math.inf

    def want(self, request: PageRequest) -> None:
        """Ask for a page instead of an earlier one."""
        if request.answers > self.kept:
            raise InputError(f"a page of {request.answers} answers is asked for; {self.kept} are kept")
        self._request = request
        self.last_page = max(self.last_page, request.page)
        self._due = max(self._due, request.answers)
        self._pages.reset()

    def is_wanted(self, page: int) -> bool:
        """Whether a page with this number is waited for."""
        return self._request is not None and self._request.page == page

    def came(self) -> None:
        """Wait for the page no longer."""
        self._request = None

    def end(self, placed: Sequence[Answer]) -> None:
        """End the session; the first call counts."""
        if not self.is_ending:
            self._store.end(self._session, placed)
            self.is_ending, self._placed = True, list(placed)
        self.send_all()

    def fetch(self, download: Download | None) -> None:
        """Fetch a model in place of an earlier one; None for none."""
        self.download = download
        self._models.reset()

    def chunk_came(self) -> None:
        """Ask for the next part of the model."""
        self._models.reset()

    def connected(self, version: int, acknowledged: int) -> None:
        """Begin anew on a connection on which the cloud has told what it has."""
        self._version = version
        self._counts.resent += max(0, self._sent - acknowledged)
        self.acknowledged = self._sent = acknowledged
        self._due = max(self._due, min(self.most_sent, self.kept))
        for repeat in (self._answers, self._pages, self._models, self._end):
            repeat.reset()

    def acknowledge(self, answers: int, now: float) -> bool:
        """Take an acknowledgement; False if it is an old one."""
        if answers <= self.acknowledged:
            return False
        self.acknowledged = answers
        self._sent = max(self._sent, answers)
        self._answers.reset()
        if self._sent > answers:
            self._answers.sent(now)
        return True

    def next(self, now: float) -> tuple[FromPhone | None, float]:
        """Return the message that is due, and else when one will be, seconds of the monotonic clock.

        Raises:
            OSError: the folder of a model that is being fetched cannot be read.
            StuckError: a message has been sent too often without a reply.
        """
        if now >= self._gathered_at:
            self.send_all()
        times = [self._gathered_at]
        if self._sent > self.acknowledged and now >= self._answers.at:
            self._counts.resent += self._sent - self.acknowledged
            self._sent = self.acknowledged
        delta = self._delta(now)
        if delta is not None:
            return delta, now
        if self._sent > self.acknowledged:
            times.append(self._answers.at)
        if self._request is not None:
            if now >= self._pages.at:
                self._pages.sent(now)
                return self._in_version(self._request), now
            times.append(self._pages.at)
        if self.download is not None:
            if now >= self._models.at:
                self._models.sent(now)
                return self.download.want(), now
            times.append(self._models.at)
        if self.is_ending and self.acknowledged >= self.kept:
            if now >= self._end.at:
                self._end.sent(now)
                return End(self.acknowledged, self._placed), now
            times.append(self._end.at)
        return None, min(times)

    def _delta(self, now: float) -> Delta | None:
        """Return the next answers that are due, None if there are none."""
        if self._sent >= self._due or self._sent - self.acknowledged >= WINDOW:
            return None
        answers = self._store.answers(self._session, self._sent, min(self._due, self._sent + MOST_ANSWERS))
        if not answers:  # the file has been damaged since they were kept
            self._due = self._sent
            return None
        if self._sent == self.acknowledged or now >= self._answers.at:
            self._answers.sent(now)
        delta = Delta(self._sent, answers)
        self._sent += len(answers)
        self.most_sent = max(self.most_sent, self._sent)
        return delta

    def _in_version(self, request: PageRequest) -> PageRequest:
        """Return a request as the version of the connection has it."""
        if self._version >= CODINGS_SINCE:
            return request
        return msgspec.structs.replace(request, coding="float32")
