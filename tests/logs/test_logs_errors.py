"""One clear message for each kind of broken log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_log import columns, read, write_log, writer

from edgerec_gym.errors import InputError
from edgerec_gym.logs.schema import SCHEMA, VERSION_KEY
from edgerec_gym.logs.store import LogReader


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return write_log(tmp_path / "log")


def rewrite(path: Path, change: Any) -> None:
    """Change a part behind the writer's back."""
    pq.write_table(change(pq.read_table(path)), path)


def with_value(name: str, row: int, value: Any) -> Any:
    def change(table: pa.Table) -> pa.Table:
        values = table[name].to_pylist()
        values[row] = value
        position = SCHEMA.get_field_index(name)
        field = SCHEMA.field(name)
        return table.set_column(position, field.with_nullable(True), pa.array(values, field.type))

    return change


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
        ("provenance", None, "provenance must be an object, got None"),
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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sessions": None}, "logs.json: sessions is missing"),
        ({"slots": None}, "logs.json: slots is missing"),
        ({"sessions": 10**7}, "sessions is 10,000,000; allowed: at most one for each of"),
        ({"slots": 10**7}, "logs.json names 10,000,000 slots; the parts hold"),
    ],
)
def test_counts_that_the_parts_contradict(log: Path, changes: dict[str, Any], message: str) -> None:
    path = log / "logs.json"
    header = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in header.items() if value is not None}))
    reader = LogReader(log)
    with pytest.raises(InputError, match=message):
        _ = reader.sessions
