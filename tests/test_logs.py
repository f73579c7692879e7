"""Log folders: round trip, streaming, resume after a kill, and one message for each kind of broken input."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from edgerec_gym.catalog import Catalog
from edgerec_gym.config import FeedConfig
from edgerec_gym.errors import InputError
from edgerec_gym.logs import store
from edgerec_gym.logs.schema import SCHEMA, VERSION_KEY
from edgerec_gym.logs.store import LogReader, LogWriter

CONFIG = FeedConfig(embedding_size=3, profile_size=1)
PROVENANCE = {"source": "test", "seed": 3, "nested": {"a": [1, 2]}}
N_GOODS, N_CARDS = 8, 4


def catalog() -> Catalog:
    n = N_GOODS + N_CARDS
    vectors = np.random.default_rng(0).normal(size=(n, 3))
    return Catalog(
        (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32),
        np.full((n, 4), 0.5, np.float32),
        np.repeat([0, 1], [N_GOODS, N_CARDS]).astype(np.int32),
        np.zeros(n, np.int32),
        np.arange(n),
    )


def columns(lengths: list[int], first: int = 0, seed: int = 0) -> dict[str, Any]:
    """Sessions of the given lengths with random answers; the last slot of each is not answered."""
    rng = np.random.default_rng(seed)
    session = np.repeat(np.arange(first, first + len(lengths)), lengths)
    slot = np.concatenate([np.arange(k) for k in lengths])
    n = len(slot)
    item = rng.integers(0, N_GOODS + N_CARDS, n)
    answered = slot < np.repeat(lengths, lengths) - 1
    click = answered & (rng.random(n) < 0.3)
    return {
        "session": session,
        "user": session % 3,
        "day": session % 4,
        "hour": session % 24,
        "slot": slot,
        "time": slot * 1.5,
        "item": item,
        "card_type": (item >= N_GOODS).astype(int),
        "page": slot // 5,
        "page_age": slot % 5,
        "page_requested": np.zeros(n, bool),
        "candidates": [[0, 1, 2] if s % 5 == 0 else None for s in slot],
        "cards": [[N_GOODS] if s % 5 == 0 else None for s in slot],
        "user_features": [rng.uniform(-1, 1, 4) if s == 0 else None for s in slot],
        **{name: rng.random(n) for name in ("price_level", "base_ctr", "base_cvr", "freshness")},
        "action": np.zeros(n, int),
        "propensity": np.full(n, 0.5),
        "randomised": np.ones(n, bool),
        "request": np.zeros(n, bool),
        "request_propensity": np.full(n, 0.1),
        "answered": answered,
        "exposure_actions": [rng.random(6) if a else None for a in answered],
        "click": [bool(c) if a else None for c, a in zip(click, answered, strict=True)],
        "page_view_actions": [rng.random(11) if c else None for c in click],
        "leave": [False if a else None for a in answered],
    }


def writer(folder: Path, **changes: Any) -> LogWriter:
    arguments: dict[str, Any] = {"config": CONFIG, "catalog": catalog(), "provenance": PROVENANCE}
    return LogWriter(folder, **(arguments | {"unidentified": ("leave",)} | changes))


def read(folder: Path, **arguments: Any) -> pa.Table:
    return pa.concat_tables(LogReader(folder).batches(**arguments))


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Two parts: sessions 0..4 and 5..6."""
    w = writer(tmp_path / "log")
    w.write(columns([3, 1, 7, 5, 6]))
    w.write(columns([4, 9], first=5, seed=1))
    w.finish()
    return tmp_path / "log"


def rewrite(path: Path, change: Any) -> None:
    """Change a part behind the writer's back."""
    pq.write_table(change(pq.read_table(path)), path)


def with_value(name: str, row: int, value: Any) -> Any:
    def change(table: pa.Table) -> pa.Table:
        values = table[name].to_pylist()
        values[row] = value
        position = SCHEMA.get_field_index(name)
        return table.set_column(position, SCHEMA.field(name).with_nullable(True), pa.array(values, SCHEMA.field(name).type))

    return change


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
    with pytest.raises(InputError, match="no column 'clicks'; columns are session"):
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
import edgerec_gym.logs.store as store
from tests.test_logs import columns, writer
from pathlib import Path

w = writer(Path(sys.argv[1]))
w.write(columns([3, 2]))

def half(table, path, **options):
    Path(path).write_bytes(b"PAR1 half a part")
    os.kill(os.getpid(), signal.SIGKILL)

store.pq.write_table = half
w.write(columns([4], first=2))
"""


def test_killed_writer_loses_only_its_open_part(tmp_path: Path) -> None:
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=root, check=False)
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
        ({"catalog": Catalog(*(getattr(catalog(), f)[:-1] for f in Catalog.__annotations__))}, "catalogue"),
        ({"unidentified": ("mood",)}, "unidentified: 'mood' is unknown; allowed: position"),
    ],
)
def test_resume_refuses_another_log(log: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        writer(log, **changes)


@pytest.mark.parametrize(
    ("name", "row", "value", "message"),
    [
        ("item", 4, 12, "row 4: item 12 is out of range; allowed: 0 to 11"),
        ("item", 4, -1, "row 4: item -1 is out of range"),
        ("hour", 0, 24, "row 0: hour 24 is out of range; allowed: 0 to 23"),
        ("card_type", 2, 7, "row 2: card_type 7 is out of range; allowed: 0 to 4"),
        ("slot", 5, -3, "row 5: slot -3 is negative"),
        ("slot", 2, 5, "row 2: slot 5 of session 0 should be 2"),
        ("session", 10, 1, "row 10: session 1 comes after session 2"),
        ("session", 1, None, "row 1: session is empty"),
        ("base_ctr", 3, float("nan"), "row 3: base_ctr nan is out of range; allowed: 0 to 1"),
        ("price_level", 3, 1.5, "row 3: price_level 1.5 is out of range"),
        ("propensity", 3, float("nan"), "row 3: propensity nan is out of range"),
        ("candidates", 0, [3, 99], "row 0: candidates 99 is out of range; allowed: 0 to 11"),
        (
            "user_features",
            3,
            [0.0, 2.0, 0.0, 0.0],
            "row 3: user_features 2.0 is out of range; allowed: -1 to 1",
        ),
        ("user_features", 3, [0.0], "row 3: user_features has 1 numbers; it needs 4"),
        ("exposure_actions", 5, [0, 0, np.nan, 0, 0, 0], "row 5: exposure_actions nan is out of range"),
        ("exposure_actions", 5, [0, 0, 1.1, 0, 0, 0], "row 5: exposure_actions 1.1"),
        ("page_view_actions", 5, [0.0, None] + [0.0] * 9, "row 5: page_view_actions nan is out of range"),
        ("page_view_actions", 5, [0.0] * 3, "row 5: page_view_actions has 3 numbers; it needs 11"),
        ("click", 5, None, "row 5: answered, but click is empty"),
    ],
)
def test_broken_rows(log: Path, name: str, row: int, value: Any, message: str) -> None:
    rewrite(log / "part-00000.parquet", with_value(name, row, value))
    with pytest.raises(InputError, match=rf"part-00000\.parquet: {message}"):
        list(LogReader(log).batches())


def test_row_numbers_count_from_the_start_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    w = writer(tmp_path)
    w.write(columns([3] * 10))
    path = tmp_path / "part-00000.parquet"
    pq.write_table(with_value("base_ctr", 25, -1.0)(pq.read_table(path)), path, row_group_size=7)
    with pytest.raises(InputError, match="row 25: base_ctr -1.0"):
        list(LogReader(tmp_path).batches(["base_ctr"]))


def test_card_type_must_match_the_catalogue(log: Path) -> None:
    expected = read(log)["card_type"][6].as_py()
    rewrite(log / "part-00000.parquet", with_value("card_type", 6, 1 - expected))
    message = f"row 6: card_type {1 - expected} differs from the catalogue's {expected}"
    with pytest.raises(InputError, match=message):
        list(LogReader(log).batches())


def test_writer_refuses_what_the_reader_would(tmp_path: Path) -> None:
    w = writer(tmp_path)
    broken = columns([3, 2])
    broken["slot"][1] = 2
    with pytest.raises(InputError, match="row 1: slot 2 of session 0 should be 1"):
        w.write(broken)
    missing = columns([3])
    del missing["click"]
    with pytest.raises(InputError, match="missing column 'click'"):
        w.write(missing)
    with pytest.raises(InputError, match="unknown column 'dwell'"):
        w.write({**columns([3]), "dwell": [0, 0, 0]})
    with pytest.raises(InputError, match="column 'item' must be int64"):
        w.write({**columns([3]), "item": ["a", "b", "c"]})
    with pytest.raises(InputError, match="differ in length"):
        w.write({**columns([3]), "item": [0, 0]})
    assert w.parts == 0 and not list(tmp_path.glob("part-*"))
    with pytest.raises(InputError, match="at least one part"):
        w.finish()


def test_truncated_file(log: Path) -> None:
    path = log / "part-00001.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"part-00001\.parquet is not a readable Parquet file"):
        list(LogReader(log).batches())


def test_damaged_data_pages(log: Path) -> None:
    path = log / "part-00001.parquet"
    data = bytearray(path.read_bytes())
    data[4:600] = bytes(596)
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"part-00001\.parquet"):
        list(LogReader(log).batches())


def test_missing_column_and_wrong_type(log: Path) -> None:
    path = log / "part-00001.parquet"
    whole = pq.read_table(path)
    rewrite(path, lambda t: t.drop_columns(["click"]))
    with pytest.raises(InputError, match=r"part-00001\.parquet: missing column 'click'"):
        list(LogReader(log).batches(["item"]))
    slot = SCHEMA.get_field_index("slot")
    rewrite(path, lambda t: whole.set_column(slot, "slot", whole["slot"].cast(pa.float64())))
    with pytest.raises(InputError, match="column 'slot' has type double; it must be int32"):
        list(LogReader(log).batches(["item"]))


def test_wrong_versions(log: Path) -> None:
    rewrite(log / "part-00001.parquet", lambda t: t.replace_schema_metadata({VERSION_KEY: b"7"}))
    with pytest.raises(InputError, match=r"part-00001\.parquet has log schema version 7; supported: 1"):
        list(LogReader(log).batches())
    header = json.loads((log / "logs.json").read_text())
    (log / "logs.json").write_text(json.dumps({**header, "schema_version": 2}))
    with pytest.raises(InputError, match=r"logs\.json has log schema version 2; supported: 1"):
        LogReader(log)


def test_session_in_two_parts(log: Path) -> None:
    pq.write_table(pq.read_table(log / "part-00000.parquet").slice(16), log / "part-00001.parquet")
    with pytest.raises(InputError, match=r"part-00001\.parquet: row 0: session 4 appears in two parts"):
        list(LogReader(log).batches())


def test_broken_folders(log: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"logs\.json does not exist"):
        LogReader(tmp_path / "nowhere")
    header = json.loads((log / "logs.json").read_text())
    (log / "part-00000.parquet").rename(log / "kept")
    with pytest.raises(InputError, match=r"part-00000\.parquet is missing"):
        LogReader(log)
    (log / "kept").rename(log / "part-00000.parquet")
    (log / "part-00001.parquet").unlink()
    with pytest.raises(InputError, match="names 2 parts, the folder holds 1"):
        LogReader(log)
    for name, value, message in (
        ("kind", "scenario", "kind is 'scenario'; a log folder has 'edgerec_gym logs'"),
        ("config", {**header["config"], "page_sise": 3}, "no field 'page_sise'; did you mean 'page_size'"),
        ("provenance", None, "'provenance' is missing or not a dict"),
        ("unidentified", ["mood"], "'mood' is unknown"),
    ):
        (log / "logs.json").write_text(json.dumps({**header, name: value}))
        with pytest.raises(InputError, match=message):
            LogReader(log)
    empty = tmp_path / "empty"
    writer(empty)
    with pytest.raises(InputError, match="holds no log parts"):
        LogReader(empty)
    (log / "logs.json").unlink()
    with pytest.raises(InputError, match="holds log parts but no logs.json"):
        writer(log)
