"""Sessions that have ended become a log, as `edgerec collect` writes it: what was served is trained on.

Pages and answers come from the store. Each session enters the log once, whenever the service is killed: the
store first notes the number of the part that sessions go into, then the part is written. When the service
starts, sessions of parts that were not written are free again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa

from edgerec_gym.answers import N_EXPOSURE_ACTIONS
from edgerec_gym.errors import InputError
from edgerec_gym.logs.checks import as_log_table, check_rows
from edgerec_gym.logs.collect import DWELL_SECONDS, PAGE_VIEW_SECONDS
from edgerec_gym.logs.schema import list_column, log_schema
from edgerec_gym.logs.store import LogWriter
from edgerec_gym.protocol.coding import from_levels, read_features
from edgerec_gym.protocol.messages import Answer, Page, from_cloud
from edgerec_gym.scenario import Scenario
from edgerec_gym.service.sqlite_store import NO_PART, SqliteStore
from edgerec_gym.service.store import Begun, StoreError

SECONDS = 30.0  # between looks for sessions that have ended
PART = 500  # sessions in a part
SCALARS = ("price_level", "base_ctr", "base_cvr", "freshness")

_log = logging.getLogger(__name__)
_answer = msgspec.msgpack.Decoder(Answer)


class SessionLog:
    """Writes the sessions of a store into a log folder.

    Args:
        folder: the log folder; one that is there is continued.
        store: keeps the sessions.
        scenario: that is served.
        features: returns what the cloud ships about a user, (U,).
        users: "synthetic" or "learned", for the log's provenance.

    Raises:
        InputError: the folder holds another log or cannot be written to.
    """

    def __init__(
        self,
        folder: str | Path,
        store: SqliteStore,
        scenario: Scenario,
        features: Callable[[int], np.ndarray],
        users: str,
    ) -> None:
        provenance = {"source": f"service, {users} users", "scenario": scenario.name}
        self._writer = LogWriter(folder, scenario.config, scenario.catalog, provenance)
        self._store, self._scenario, self._features = store, scenario, features
        self._writing = asyncio.Lock()

    async def run(self, seconds: float = SECONDS) -> None:
        """Write sessions that have ended, again and again, until cancelled."""
        while True:
            try:
                while await self.write_part():
                    pass
            except (InputError, OSError, StoreError) as error:
                _log.error("ended sessions are not logged for now: %s", error)
            await asyncio.sleep(seconds)

    async def end(self, running: asyncio.Task[None]) -> None:
        """Stop :meth:`run`, which is `running`, and write what is left."""
        async with self._writing:
            running.cancel()
        try:
            while await self.write_part():
                pass
        except (InputError, OSError, StoreError) as error:
            _log.error("sessions are logged when the service starts again: %s", error)

    async def begin(self) -> None:
        """Free the sessions of parts that were not written; comes before everything else."""
        await self._store.release_parts(self._writer.parts)

    async def write_part(self) -> int:
        """Write up to :data:`PART` sessions that have ended; returns how many the store had."""
        async with self._writing:
            return await self._write_part()

    async def _write_part(self) -> int:
        store, found = self._store, await self._store.ended(PART)
        tables: list[pa.Table] = []
        kept: list[int] = []
        wrong: list[int] = []
        for begun in found:
            number = self._writer.sessions + len(kept)
            try:
                tables.append(await self._table(begun, number))
            except InputError as error:
                _log.warning("session %d is not logged: %s", begun.session, error)
                wrong.append(begun.session)
            else:
                kept.append(begun.session)
        if wrong:
            await store.assign_part(wrong, NO_PART)
        if kept:
            await store.assign_part(kept, self._writer.parts)
            try:
                await asyncio.to_thread(self._writer.write, pa.concat_tables(tables))
            except BaseException:
                await store.release_parts(self._writer.parts)
                raise
        return len(found)

    async def _table(self, begun: Begun, number: int) -> pa.Table:
        """Return the rows of a session; InputError if what its phone has told makes none."""
        store = self._store
        answers = [_answer.decode(data) for data in await store.answers(begun.session)]
        placed = [_answer.decode(data) for data in await store.placed(begun.session)]
        pages = [from_cloud(data) for data in await store.pages(begun.session)]
        served = {page.page: page for page in pages if isinstance(page, Page)}
        table = session_table(
            self._scenario, begun, number, answers, placed, served, self._features(begun.user)
        )
        where = self._writer.folder / f"session {begun.session}"
        table = as_log_table(table, where, self._scenario.config)
        check_rows(table, where, 0, self._scenario.config, self._scenario.catalog)
        return table


def session_table(
    scenario: Scenario,
    begun: Begun,
    number: int,
    answers: list[Answer],
    placed: list[Answer],
    pages: dict[int, Page],
    features: np.ndarray,
) -> pa.Table:
    """Return the rows of one session.

    Args:
        scenario: that was served.
        begun: the beginning of the session.
        number: of the session in the log.
        answers: of the session, in order.
        placed: cards without an answer, which follow.
        pages: as they were served, by number.
        features: (U,), what the cloud shipped about the user.

    Raises:
        InputError: no cards, or a card that was on no page it names.
    """
    config, cards = scenario.config, [*answers, *placed]
    if not cards:
        raise InputError("it has no cards")
    size, answered = len(cards), np.arange(len(cards)) < len(answers)
    read = {page: _Served(served, config.n_item_features) for page, served in pages.items()}
    ctr = config.embedding_size + 1  # column of the base ctr
    rows, ranks = [], []
    candidates, scores, mixed = [], [], []  # at first slots of pages only
    requested, seen, rank, last = np.zeros(size, np.bool_), set[int](), -1, None
    asked = False  # whether the policy asked for a page since the current one came
    for slot, card in enumerate(cards):
        served = read.get(card.page)
        if served is None or card.item not in served.rows:
            raise InputError(f"slot {slot} shows item {card.item}, which was not on page {card.page}")
        fresh = card.page != last
        if fresh:
            rank, last = rank + 1, card.page
            came_by_request, asked = asked, False
        requested[slot] = came_by_request
        offered = [item for item in served.pool if item not in seen] if fresh else None
        candidates.append(offered)
        scores.append(None if offered is None else [served.rows[item][ctr] for item in offered])
        mixed.append([item for item in served.cards if item not in seen] if fresh else None)
        ranks.append(rank)
        rows.append(served.rows[card.item])
        seen.add(card.item)
        asked = asked or card.requested
    shipped = np.array(rows, np.float32)
    item = np.array([card.item for card in cards], np.int64)
    exposure = _matrix([answer.exposure for answer in answers], N_EXPOSURE_ACTIONS + config.n_responses, size)
    click = np.array([bool(card.page_view) for card in cards])
    views = [from_levels(card.page_view) for card in answers if card.page_view]
    view = np.zeros((size, len(views[0]) if views else 1), np.float32)
    if views:
        view[click] = views
    seconds = np.where(
        answered, config.dwell_scale * DWELL_SECONDS[np.rint(exposure[:, 0] * 7).astype(int)], 0
    )
    seconds += np.where(click, PAGE_VIEW_SECONDS[np.rint(view[:, 0] * 7).astype(int)], 0)
    unknown = np.ones(size, np.bool_)
    action = np.array([card.action for card in cards])
    d = config.embedding_size
    columns = {
        "session": np.full(size, number),
        "user": np.full(size, begun.user),
        "day": np.full(size, begun.day),
        "hour": np.full(size, begun.hour),
        "slot": np.arange(size),
        "time": np.cumsum(seconds) - seconds,
        "item": item,
        "card_type": scenario.catalog.card_type[item],
        "page": ranks,
        "page_age": [card.age for card in cards],
        "page_requested": requested,
        "candidates": candidates,
        "cards": mixed,
        "user_features": [features.tolist(), *[None] * (size - 1)],
        # Rounding in a smaller coding may lead out of 0..1.
        **{name: np.clip(shipped[:, d + k], 0, 1) for k, name in enumerate(SCALARS)},
        "action": pa.array(action, mask=action < 0),
        "propensity": pa.array(np.zeros(size), mask=unknown),
        "randomised": np.zeros(size, np.bool_),
        "request": [card.requested for card in cards],
        "request_propensity": pa.array(np.zeros(size), mask=unknown),
        "answered": answered,
        "exposure_actions": list_column(exposure[:, :N_EXPOSURE_ACTIONS], answered),
        "click": pa.array(click, mask=~answered),
        "page_view_actions": list_column(view, click),
        "leave": pa.array([card.leave for card in cards], mask=~answered),
    }
    columns["candidate_ctr"] = pa.array(
        [None if found is None else np.clip(found, 0, 1) for found in scores], pa.list_(pa.float32())
    )
    if config.responses:
        columns["responses"] = list_column(exposure[:, N_EXPOSURE_ACTIONS:], answered)
    schema = log_schema(columns)
    arrays = [
        values.cast(schema.field(name).type)
        if isinstance(values, pa.Array)
        else pa.array(values, type=schema.field(name).type)
        for name, values in columns.items()
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


class _Served:
    """A page as it was served: its items, and the features of each."""

    def __init__(self, page: Page, width: int) -> None:
        items = [np.frombuffer(data, np.int32) for data in (page.items, page.cards)]
        features = [
            read_features(data, (len(found), width), page.coding)
            for found, data in zip(items, (page.pool, page.card_features), strict=True)
        ]
        self.pool, self.cards = (found[found >= 0].tolist() for found in items)
        self.rows = {
            int(item): row
            for found, rows in zip(items, features, strict=True)
            for item, row in zip(found, rows, strict=True)
            if item >= 0
        }


def _matrix(levels: list[bytes], width: int, rows: int) -> np.ndarray:
    """Return levels as numbers, (rows, width) float32; rows beyond them are zero."""
    found = np.zeros((rows, width), np.float32)
    if levels:
        found[: len(levels)] = from_levels(b"".join(levels)).reshape(len(levels), width)
    return found
