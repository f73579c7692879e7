"""Log folders: round trip, streaming, and going on after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from places import ROOT, TESTS
from small_log import CONFIG, PROVENANCE, catalog, columns, read, write_log, writer

from edgerec_gym.cloud.catalog import Catalog
from edgerec_gym.errors import InputError
from edgerec_gym.logs import store
from edgerec_gym.logs.schema import SCHEMA
from edgerec_gym.logs.store import LogReader

ARRAYS = [name for name in Catalog.__annotations__ if name != "supply"]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return write_log(tmp_path / "log")


def test_round_trip(log: Path) -> None:
    reader = LogReader(log)
    assert (reader.config, reader.provenance, reader.unidentified) == (CONFIG, PROVENANCE, ("leave",))
    assert (reader.complete, reader.sessions, reader.slots) == (True, 7, 35)
    assert np.array_equal(reader.catalog.embeddings, catalog().embeddings)
    table = read(log)
    assert table.schema == SCHEMA and table.schema.metadata == SCHEMA.metadata
    first, second = columns([3, 1, 7, 5, 6]), columns([4, 9], first=5, seed=1)
    for name in SCHEMA.names:
        expected = pa.array([*first[name], *second[name]], SCHEMA.field(name).type)
        assert table[name].to_pylist() == expected.to_pylist(), name


def test_selected_columns_and_days(log: Path) -> None:
    table = read(log, columns=["click", "session"], days=[1, 3])
    assert table.column_names == ["click", "session"]
    assert sorted(set(table["session"].to_pylist())) == [1, 3, 5]
    assert list(LogReader(log).batches(["session"], days=[9])) == []
    with pytest.raises(InputError, match="no column 'clicks'; did you mean 'click'"):
        read(log, columns=["clicks"])


def test_session_starts(log: Path) -> None:
    features, hour = LogReader(log).session_starts()
    expected = [f for f in read(log)["user_features"].to_pylist() if f is not None]
    assert features.dtype == np.float32 and np.array_equal(features, np.array(expected, np.float32))
    assert hour.tolist() == list(range(7))


def test_unknown_user_features_are_zero(tmp_path: Path) -> None:
    w = writer(tmp_path)
    values = columns([2, 2])
    values["user_features"][2] = None
    w.write(values)
    features, _ = LogReader(tmp_path).session_starts()
    assert features[0].any() and not features[1].any()


def test_row_groups_stream_with_whole_sessions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "ROW_GROUP", 7)
    lengths = np.random.default_rng(1).integers(1, 20, 30).tolist()
    values = columns(lengths)
    w = writer(tmp_path)
    w.write(values)
    tables = list(LogReader(tmp_path).batches())
    assert len(tables) > 5 and max(t.num_rows for t in tables) <= 7 + max(lengths)
    for table in tables:  # every session begins at slot 0 and none goes on in the next table
        assert table["slot"][0].as_py() == 0
    seen = [set(t["session"].to_pylist()) for t in tables]
    assert sum(len(s) for s in seen) == len(set().union(*seen)) == len(lengths)
    assert pa.concat_tables(tables)["item"].to_pylist() == values["item"].tolist()


def test_resume_goes_on_after_the_last_complete_part(tmp_path: Path) -> None:
    w = writer(tmp_path)
    w.write(columns([3, 2]))
    leftover = tmp_path / ".part-00001.parquet.77.tmp"
    leftover.write_bytes(b"half")
    w = writer(tmp_path)
    assert (w.parts, w.sessions, w.slots, w.complete) == (1, 2, 5, False)
    assert not leftover.exists()
    with pytest.raises(InputError, match="session 1 does not come after 1"):
        w.write(columns([2], first=1))
    w.write(columns([4], first=2))
    w.finish()
    assert LogReader(tmp_path).sessions == 3
    w = writer(tmp_path)
    assert w.complete and w.parts == 2
    with pytest.raises(InputError, match="is complete"):
        w.write(columns([2], first=9))


KILLED = """
import os, signal, sys
from pathlib import Path
import edgerec_gym.logs.store as store
from small_log import columns, writer

w = writer(Path(sys.argv[1]))
w.write(columns([3, 2]))

def half(table, path, **options):
    Path(path).write_bytes(b"PAR1 half a part")
    os.kill(os.getpid(), signal.SIGKILL)

store.pq.write_table = half
w.write(columns([4], first=2))
"""


def test_killed_writer_loses_only_its_open_part(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    done = subprocess.run(command, cwd=TESTS, env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert list(tmp_path.glob(".*.tmp"))
    reader = LogReader(tmp_path)
    assert (reader.complete, reader.sessions, reader.slots) == (False, 2, 5)
    assert writer(tmp_path).parts == 1
    assert not list(tmp_path.glob(".*.tmp"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": CONFIG.replace(max_slots=99)}, r"config 'max_slots' is 200, not 99"),
        ({"provenance": {**PROVENANCE, "seed": 4}}, r"provenance 'seed' is 3, not 4"),
        ({"unidentified": ()}, r"unidentified is \['leave'\], not \[\]"),
        ({"catalog": Catalog(*(getattr(catalog(), f)[:-1] for f in ARRAYS))}, "catalogue"),
        ({"unidentified": ("mood",)}, "unidentified: 'mood' is unknown; allowed: position"),
    ],
)
def test_resume_refuses_another_log(log: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        writer(log, **changes)
