"""Tables in every form that they come in give the same log."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
import small_table as small
from small_table import Place

from edgerec_gym.errors import InputError
from edgerec_gym.logs import table_text
from edgerec_gym.logs.table import import_table
from edgerec_gym.logs.table_files import find_files, open_table


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def imported(place: Place, path: Path, out: str, **mapping: Any) -> pl.DataFrame:
    place.out = place.folder / out
    import_table(path, small.save_mapping(place.folder / f"{out}.json", **mapping), place.out)
    assert not list(place.out.glob(".*")), "scratch files are removed"
    return place.read()


def write(frame: pl.DataFrame, path: Path) -> None:
    """Write a file of the kind that its name tells."""
    name, text = path.name, b""
    if ".parquet" in name:
        frame.write_parquet(path)
        return
    if ".jsonl" in name:
        text = frame.write_ndjson().encode()
    else:
        mark = "\t" if ".tsv" in name else "|" if "bar" in name else ";" if "semi" in name else ","
        text = frame.write_csv(separator=mark).encode()
    if name.endswith(".gz"):
        text = gzip.compress(text)
    elif name.endswith(".zst"):
        text = pa.compress(text, codec="zstd", asbytes=True)
    path.write_bytes(text)


FILES = (
    "a.csv",
    "semi.csv",
    "bar.txt",
    "a.tsv",
    "a.csv.gz",
    "a.csv.zst",
    "a.tsv.gz",
    "a.jsonl",
    "a.ndjson.gz".replace("ndjson", "jsonl"),
    "a.parquet",
)


@pytest.mark.parametrize("name", FILES)
def test_every_kind_of_file_gives_the_same_log(place, name, monkeypatch):
    monkeypatch.setattr(table_text, "BLOCK", 5000)  # several blocks
    place.run(small.table())
    expected = place.read()
    write(small.table(), place.folder / name)
    assert imported(place, place.folder / name, "other").equals(expected)


@pytest.mark.parametrize("kind", ["parquet", "csv", "csv.gz", "jsonl"])
def test_a_folder_of_parts_and_a_glob_are_one_table(place, kind):
    frame, folder = small.table(), place.folder / f"feed.{kind}"
    place.run(frame)
    expected = place.read()
    folder.mkdir()
    for k, part in enumerate((frame.head(500), frame.slice(500))):
        write(part, folder / f"part-0000{k}.{kind}")
    (folder / "_SUCCESS").touch()
    (folder / ".part-00000.crc").write_text("x")
    assert imported(place, folder, "folder").equals(expected)
    assert imported(place, folder / f"part-*.{kind}", "glob").equals(expected)


def test_a_file_of_exactly_this_name_comes_before_the_glob(tmp_path):
    for name in ("feed[1].csv", "feed1.csv"):
        (tmp_path / name).write_text("a,b\n1,2\n")
    assert find_files(tmp_path / "feed[1].csv") == [tmp_path / "feed[1].csv"]
    assert find_files(tmp_path / "feed[0-9].csv") == [tmp_path / "feed1.csv"]
    with pytest.raises(InputError, match="no file matches"):
        find_files(tmp_path / "none*.csv")


def test_parts_must_belong_together(tmp_path):
    (tmp_path / "a.csv").write_text("a,b\n1,2\n")
    (tmp_path / "b.csv").write_text("a,c\n1,2\n")
    with pytest.raises(InputError, match=r"b.csv has other columns than .*a.csv: 'a, c'"):
        open_table(tmp_path)
    (tmp_path / "b.parquet").write_text("")
    with pytest.raises(InputError, match="files of several kinds: .csv, .parquet"):
        open_table(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="a folder without files"):
        open_table(tmp_path / "empty")


@pytest.mark.parametrize(
    ("separator", "named"), [("\t", ""), ("::", ""), ("|", "|"), ("^", "^"), ("~~", "~~")]
)
def test_files_without_a_header(place, separator, named):
    place.run(small.table())
    expected = place.read()
    lines = [separator.join(map(str, row)) for row in small.table().rows()]
    (place.folder / "u.data").write_text("\n".join(lines))
    header = small.table().columns
    more = {"separator": named} if named else {}
    assert imported(place, place.folder / "u.data", "other", header=header, **more).equals(expected)
    with pytest.raises(InputError, match="row 0 has 6 values; 'header' of the mapping names 2"):
        imported(place, place.folder / "u.data", "wrong", header=header[:2], **more)


def test_recbole_files_bring_their_side_tables(place):
    frame = small.table()
    (place.folder / "x.inter").write_text(
        frame.rename({"uid": "uid:token", "sku": "sku:token", "ts": "ts:float", "page_id": "page_id:token",
                      "rank": "rank:float", "clicked": "clicked:float"}).write_csv(separator="\t")
    )  # fmt: skip
    items = pl.DataFrame({"sku:token": range(1000, 1060), "shelf:token": [f"s{k % 4}" for k in range(60)]})
    (place.folder / "x.item").write_text(items.write_csv(separator="\t"))
    place.run(frame.with_columns(shelf=pl.format("s{}", pl.col("sku") % 4)), category="shelf")
    expected = place.read()
    assert imported(place, place.folder / "x.inter", "other", category="shelf").equals(expected)


def test_quoted_text_is_read_as_python_reads_it(tmp_path, monkeypatch):
    """Whatever csv.writer writes, and however the blocks fall."""
    for seed in range(60):
        rng = random.Random(seed)
        monkeypatch.setattr(table_text, "BLOCK", rng.choice([7, 40, 2**20]))
        rows = [
            ["".join(rng.choice('ab",\n ') for _ in range(rng.randrange(6))) or "z" for _ in "xyw"]
            for _ in range(30)
        ]
        text = io.StringIO()
        csv.writer(text, lineterminator=rng.choice(["\n", "\r\n"])).writerows([["x", "y", "w"], *rows])
        (tmp_path / "a.csv").write_bytes(text.getvalue().encode())
        assert [list(row) for row in open_table(tmp_path / "a.csv").sample(100).rows()] == rows, seed


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ('a,b\n1,6" pipe\n2,x\n3,7" pipe\n', [("1", '6" pipe'), ("2", "x"), ("3", '7" pipe')]),
        ('a,b\n1,"Quo" ted\n2,"x"\n', [("1", '"Quo" ted'), ("2", "x")]),
        ("\ufeffa,b\r\n\r\n1,2\r\n,\r\n\r\n", [("1", "2")]),
        ('a,b\n1,"x\ny"\n', [("1", "x\ny")]),
        ("a b\n1 2", None),
    ],
)
def test_stray_quotes_and_blank_lines_lose_no_row(tmp_path, text, rows):
    (tmp_path / "a.csv").write_text(text)
    sample = open_table(tmp_path / "a.csv").sample(10)
    assert sample.rows() == rows if rows else sample.columns == ["a b"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "a,b\n1,2\n3,4,\n", r"row 1 \(line 3\) has 3 values; the header names 2 columns"),
        ("a.csv", "a,b\n1,2\n\n3\n", r"row 1 \(line 4\) has 1 value; the header names 2 columns"),
        ("a.csv", 'a,b\n1,"2,3\n', "line 2: a quotation mark opens a value that does not end"),
        ("a.csv", "a,a\n1,2\n", "two columns are named 'a'"),
        ("a.csv", b"a,b\n1,\xe9\n", r"is not UTF-8: b'1,\\xe9'"),
        ("a.csv", "", "is empty"),
        ("a.jsonl", '{"a": 1}\n{"a": \n', "line 2 is not a JSON object"),
        ("a.jsonl", '{"a": 1}\n[1]\n', "line 2 is not a JSON object"),
        ("a.csv.gz", gzip.compress(b"a,b\n" + b"1,2\n" * 99, mtime=0)[:-9], "not a readable .*: Truncated"),
        ("a.csv.gz", "a,b\n", "is not a readable table"),
    ],
)
def test_broken_text_is_refused_with_its_place(tmp_path, name, text, message):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=message):
        open_table(tmp_path / name).sample(10**6)


def lists(kind: str) -> tuple[pl.DataFrame, dict[str, Any]]:
    """The small table with one row per page, in one of the ways that lists are written."""
    pages = small.table().group_by("uid", "page_id", maintain_order=True)
    frame = pages.agg(pl.col("ts").first(), pl.col("sku"), pl.col("clicked"))
    rows = [list(zip(*row, strict=True)) for row in frame.select("sku", "clicked").rows()]
    if kind == "item-click":
        pairs = pl.Series([" ".join(f"{item}-{click}" for item, click in row) for row in rows])
        return frame.select("uid", "page_id", "ts", items=pairs), {"items": "items", "form": "item-click"}
    if kind == "clicks":
        return frame, {"items": "sku", "clicks": "clicked"}
    clicked = [[item for item, click in row if click] for row in rows]
    frame = frame.drop("clicked").with_columns(taken=pl.Series(clicked, dtype=pl.List(pl.Int64)))
    if kind == "text":
        frame = frame.with_columns(pl.col("sku", "taken").cast(pl.List(pl.String)).list.join(","))
    return frame, {"items": "sku", "clicked": "taken"}


@pytest.mark.parametrize("kind", ["item-click", "clicks", "clicked", "text"])
def test_lists_are_exploded_to_rows(place, kind):
    place.run(small.table())
    expected = place.read()
    frame, form = lists(kind)
    small.save(frame, place.folder / "lists.parquet")
    none = {"item": None, "click": None, "position": None}
    log = imported(
        place, place.folder / "lists.parquet", "other", **none, list_column=form | {"order": "screen"}
    )
    same = ["user", "item", "click", "slot", "page", "page_age"]
    assert log.select(same).equals(expected.select(same))
    result = import_table(
        place.folder / "lists.parquet",
        small.save_mapping(place.folder / "m.json", **none, list_column=form),
        place.folder / "third",
    )
    assert "position" in result["unidentified"]


@pytest.mark.parametrize(
    ("change", "form", "message"),
    [
        ({"items": pl.lit("1-0 2")}, {"form": "item-click"}, "row 0: column 'item of the list' is empty"),
        (
            {"clicks": pl.lit([1, 0, 1])},
            {"clicks": "clicks"},
            "row 0: the lists 'items' and 'clicks' have different",
        ),
        ({"items": pl.struct(a=1)}, {"form": "item-click"}, "must hold lists, not Struct"),
        ({}, {}, "list_column needs one of 'clicked', 'clicks'"),
        ({}, {"form": "pairs"}, "list_column.form must be one of item, item-click"),
    ],
)
def test_one_message_for_each_wrong_list(place, change, form, message):
    frame = pl.DataFrame(
        {"uid": ["a", "b"], "ts": [small.BEGIN] * 2, "page_id": ["p", "p"], "items": ["1-0 2-1"] * 2}
    )
    small.save(frame.with_columns(**change), place.folder / "lists.parquet")
    with pytest.raises(InputError, match=message):
        imported(place, place.folder / "lists.parquet", "out", item=None, click=None, position=None,
                 list_column={"items": "items"} | form)  # fmt: skip


def test_a_mapping_may_be_toml(place):
    table = small.save(small.table(), place.folder / "table.parquet")
    place.run(small.table())
    expected = place.read()
    text = "\n".join(f"{name} = {json.dumps(value)}" for name, value in small.MAPPING.items())
    (place.folder / "mapping.toml").write_text(text)
    place.out = place.folder / "toml"
    import_table(table, place.folder / "mapping.toml", place.out)
    assert place.read().equals(expected)
