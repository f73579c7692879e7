"""Requests read from a log: what the environment itself showed, and the answers that followed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from small_log import write_log

from edgerec_gym.agents.data.moments import RerankBatch, RerankStream, split_moments
from edgerec_gym.agents.data.observed_log import NOT_SHOWN, ObservedLog
from edgerec_gym.answers import CLICK
from edgerec_gym.config import CloudConfig, FeedConfig, preset
from edgerec_gym.errors import InputError
from edgerec_gym.feed.batch import FeedBatch
from edgerec_gym.logs.collect import collect, log_batch
from edgerec_gym.logs.logging_policy import RandomisedPolicy
from edgerec_gym.logs.sessions import LoggedSessions
from edgerec_gym.logs.store import LogReader
from edgerec_gym.users.synthetic import SyntheticUsers

SESSIONS = 24
SETTINGS = {"horizon": 10, "no_click": 10, "per_session": 8, "seed": 0}


def make_batch(config: FeedConfig) -> FeedBatch:
    synthetic = preset("lite")[1]
    users = SyntheticUsers(synthetic, config)
    return FeedBatch(SESSIONS, "joint", config, users.world.catalog, users, split="log")


def logged(config: FeedConfig) -> tuple[pa.Table, ObservedLog]:
    batch = make_batch(config)
    table = log_batch(batch, 0, 0, SESSIONS, RandomisedPolicy(), None)
    catalog = batch.users.world.catalog  # type: ignore[attr-defined]
    return table, ObservedLog(table, LoggedSessions.from_table(table, config, catalog), config)


@pytest.fixture(scope="module")
def log_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logs")
    collect(folder, preset_name="lite", sessions=300, seed=3)
    return folder


def all_requests(stream: RerankStream) -> list[RerankBatch]:
    return [chunk.batch(np.arange(len(chunk))) for chunk in stream.chunks()]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"request_latency": 1, "lookahead": 0, "request_budget": 2},
        {"request_latency": 4, "lookahead": 3, "exposure_history": 5, "page_view_history": 2},
        {"cloud": CloudConfig(sync="periodic", sync_period=3)},
        {"cloud": CloudConfig(sync="incremental")},
    ],
)
def test_observations_equal_the_environments(changes: dict[str, Any]) -> None:
    """A logged session, played again in the environment, shows at every slot what is read from the log."""
    config = preset("lite")[0].replace(**changes)
    table, log = logged(config)
    action = table["action"].to_numpy()
    batch = make_batch(config)
    batch.reset(np.arange(SESSIONS), np.arange(SESSIONS))
    length = np.diff(log.sessions.starts)
    compared = 0
    for slot in range(length.max()):
        live = np.flatnonzero(length > slot)
        found = log.observations(live, np.full(len(live), slot))
        expected = batch.observations_of(live)
        for key, values in found.items():
            if key in expected:
                assert values.dtype == np.float32
                np.testing.assert_allclose(values, expected[key], atol=2e-6, err_msg=f"{key} at slot {slot}")
        assert np.array_equal(
            (found["pool"] != 0).any(axis=2), expected["action_mask"][:, : config.pool_size]
        )
        compared += len(live)
        actions = np.zeros(SESSIONS, np.int64)
        actions[live] = action[log.sessions.starts[live] + slot]
        batch.step(actions, length <= slot)
    assert compared == len(action) > 300


def test_moments_are_page_starts_and_triggers() -> None:
    config = preset("lite")[0]
    table, log = logged(config)
    session, slot = log.moments(no_click=5, page_starts_only=False)
    rows = log.sessions.starts[session] + slot
    starts = np.flatnonzero(table["page_age"].to_numpy() == 0)
    assert set(starts) < set(rows)
    click = np.flatnonzero(log.sessions.actions[:, CLICK] > 0) + config.lookahead + 1
    same = np.searchsorted(log.sessions.starts, click, side="right") == np.searchsorted(
        log.sessions.starts, click - config.lookahead - 1, side="right"
    )
    assert set(click[same]) <= set(rows)
    only_starts = log.moments(no_click=5, page_starts_only=True)
    assert np.array_equal(log.sessions.starts[only_starts[0]] + only_starts[1], starts)


def test_labels_are_the_answers_of_the_next_slots() -> None:
    config = preset("lite")[0]
    table, log = logged(config)
    rows = table.to_pylist()
    session, slot = log.moments(no_click=5, page_starts_only=False)
    shown, click = log.labels(session, slot, 4)
    checked = 0
    for s, t, pool_rows, clicks in zip(session, slot, shown, click, strict=True):
        now = log.sessions.starts[s] + t
        expected = [
            (row["item"], row["click"])
            for row in rows[now : min(now + 4, log.sessions.starts[s + 1])]
            if row["answered"] and row["card_type"] == 0 and row["page"] == rows[now]["page"]
        ]
        page = log.pages.of_slot[now]
        found = [(log.pages.candidates[page, r], bool(c)) for r, c in zip(pool_rows, clicks, strict=True)]
        assert found[: len(expected)] == expected
        assert (pool_rows[len(expected) :] == NOT_SHOWN).all()
        checked += len(expected)
    assert checked > 100 and click.any()


def test_split_is_by_day_and_session(log_folder: Path) -> None:
    reader = LogReader(log_folder)
    parts = [all_requests(stream) for stream in split_moments(reader, **SETTINGS)]
    train, stop, held_out = ({int(s) for b in part for s in b.session} for part in parts)
    assert train and stop and held_out
    assert not (train & stop or train & held_out or stop & held_out)
    day: dict[int, int] = {}
    for table in reader.batches(["session", "day"]):
        day |= dict(zip(table["session"].to_pylist(), table["day"].to_pylist(), strict=True))
    assert max(day[s] for s in train | stop) < min(day[s] for s in held_out)


def test_at_most_some_requests_a_session(log_folder: Path) -> None:
    reader = LogReader(log_folder)
    few, _, _ = split_moments(reader, **SETTINGS | {"per_session": 2})
    many, _, _ = split_moments(reader, **SETTINGS | {"per_session": 100})
    counts = [
        np.unique(np.concatenate([b.session for b in all_requests(s)]), return_counts=True)[1]
        for s in (few, many)
    ]
    assert counts[0].max() == 2 < counts[1].max()


def test_a_log_that_does_not_fit_is_read_again_and_gives_the_same(
    log_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgerec_gym.agents.data.log_stream.CHUNK_SLOTS", 500)
    reader = LogReader(log_folder)
    kept = RerankStream(reader, None, lambda s: np.ones(len(s), bool), **SETTINGS)
    streamed = RerankStream(reader, None, lambda s: np.ones(len(s), bool), **SETTINGS, cached_slots=1)
    for _ in range(2):
        for a, b in zip(all_requests(kept), all_requests(streamed), strict=True):
            assert np.array_equal(a.shown, b.shown) and np.array_equal(a.click, b.click)
            assert all(np.array_equal(a.observation[key], b.observation[key]) for key in a.observation)
    assert kept._cache and not streamed._cache


def test_a_log_without_candidates_takes_what_a_page_showed(tmp_path: Path) -> None:
    table, log = logged(preset("lite")[0])
    at = table.schema.get_field_index("candidates")
    table = table.set_column(
        at, table.schema.field(at), pa.nulls(table.num_rows, table.schema.field(at).type)
    )
    without = ObservedLog(table, log.sessions, log.config)
    first = without.observations(np.array([0]), np.array([0]))["pool"][0]
    page = (table["session"].to_numpy() == 0) & (table["page"].to_numpy() == 0)
    goods = np.flatnonzero(page & (table["card_type"].to_numpy() == 0))
    assert (first != 0).any(axis=1).sum() == len(goods)
    assert np.array_equal(
        first[: len(goods), log.config.embedding_size + 1], table["base_ctr"].to_numpy()[goods]
    )


def test_a_hand_made_log_is_read(tmp_path: Path) -> None:
    """Its items repeat and its candidates are few; nothing of that breaks the requests."""
    reader = LogReader(write_log(tmp_path))
    stream = RerankStream(reader, None, lambda s: np.ones(len(s), bool), **SETTINGS)
    batches = all_requests(stream)
    assert sum(len(b.session) for b in batches) > 0
    for batch in batches:
        assert all(np.isfinite(values).all() for values in batch.observation.values())


@pytest.mark.parametrize("name", ["horizon", "no_click", "per_session"])
def test_settings_are_checked(log_folder: Path, name: str) -> None:
    with pytest.raises(InputError, match=f"{name} must be at least 1, got 0"):
        split_moments(LogReader(log_folder), **SETTINGS | {name: 0})
