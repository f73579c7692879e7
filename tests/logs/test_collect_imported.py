"""Logs of policies that play an imported scenario: pages ship what the log's pages shipped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from small_table import PAGE, Place, table

from edgerec_gym.agents.data.logged_observations import TrackLog
from edgerec_gym.logs.collect import collect
from edgerec_gym.logs.sessions import LoggedSessions
from edgerec_gym.logs.store import LogReader
from edgerec_gym.scenario import Scenario
from edgerec_gym.simulator.fit import fit

SESSIONS = 40
FIT = {"ensemble": 1, "epochs": 1, "hidden": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small import, users fitted on it, a log that is collected from them, and users fitted on that."""
    place = Place(tmp_path_factory.mktemp("collected"))
    place.run(table().with_columns(weight=pl.col("rank") * 1.5), numbers=["weight"])
    fit(place.out, place.folder / "users", **FIT)
    collect(
        place.folder / "again",
        scenario=str(place.folder / "users"),
        users="learned",
        sessions=SESSIONS,
        seed=3,
    )
    fit(place.folder / "again", place.folder / "users-again", **FIT)
    return place.folder


def rows_of(folder: Path) -> pl.DataFrame:
    return pl.DataFrame(pl.from_arrow(pa.concat_tables(LogReader(folder).batches())))


def test_the_log_holds_what_its_pages_shipped(folder):
    log, scenario = rows_of(folder / "again"), Scenario.load(folder / "users")
    supply = scenario.catalog.supply
    assert supply is not None and log["item_columns"].null_count() == 0
    shipped = {
        (int(item), values.tobytes())
        for item, values in zip(supply.item, supply.values.astype(np.float32), strict=True)
    }
    values = np.concatenate(
        [
            log.select("price_level", "base_ctr", "base_cvr", "freshness").to_numpy(),
            np.stack(log["item_columns"].to_numpy()),
        ],
        axis=1,
    ).astype(np.float32)
    assert {(int(i), v.tobytes()) for i, v in zip(log["item"], values, strict=True)} <= shipped
    catalogue = scenario.catalog.columns[log["item"].to_numpy()]
    assert (np.abs(catalogue - values[:, 4:]) > 1e-3).any(axis=1).mean() > 0.5
    known = log["embedding_known"].to_numpy()
    assert not known.all() and known.any()
    assert set(LogReader(folder / "again").unidentified) == set(scenario.unidentified)


def test_a_fit_of_it_plays_these_pages(folder):
    first, again = (Scenario.load(folder / name).catalog.supply for name in ("users", "users-again"))
    assert first is not None and again is not None
    assert set(map(bytes, again.values.astype(np.float32))) <= set(
        map(bytes, first.values.astype(np.float32))
    )
    assert 0 < len(again.slots) <= SESSIONS and again.most_entries <= PAGE


@pytest.mark.parametrize("name", ["logs", "again"])
def test_observations_of_a_log_show_what_was_shipped(folder, name):
    """A candidate that was shown looks as it did in the slot that showed it, in all slots before."""
    reader = LogReader(folder / name)
    rows = next(reader.batches())
    sessions = LoggedSessions.from_table(rows, reader.config, reader.catalog)
    log = TrackLog(rows, sessions, reader.config, "rerank")
    session = np.arange(10)
    pool = log.observations(session, np.zeros(10, np.int64))["pool"]
    for k, one in enumerate(session):
        first = sessions.starts[one]
        shown = np.flatnonzero(log.pages.of_slot == log.pages.of_slot[first])
        cards = sessions.cards(shown)[:, : pool.shape[2]]
        np.testing.assert_array_equal(pool[k, log.pages.pool_row[shown]], cards)
