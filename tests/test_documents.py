"""Documents: whatever is wrong with one, an error of one line names file, place and what is allowed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgerec_gym.agents.edgerec.rules import load_rules
from edgerec_gym.bench.mix.prices import Found
from edgerec_gym.bench.request.track import waiting_plans
from edgerec_gym.config import FeedConfig, SyntheticUserConfig, preset
from edgerec_gym.documents import MOST_DEPTH, Document, decode, read_document, read_json, read_object
from edgerec_gym.errors import InputError, shown
from edgerec_gym.evaluation.cache import saved_rows
from edgerec_gym.files import check_file, write_json
from edgerec_gym.logs.store import KIND as LOG_KIND
from edgerec_gym.logs.store import LogReader
from edgerec_gym.logs.table_mapping import read_mapping
from edgerec_gym.pages.report import write_report_page
from edgerec_gym.pages.sources import LEARNING_CURVE
from edgerec_gym.runs import read_run
from edgerec_gym.scenario import KIND, SHIPPED_FOLDER, Scenario, _load

FIGURE = {"mean": 1.0, "low": 0.5, "high": 1.5}
CHART = {"slots": [1.0, 2.0], "reward": [0.5, 0.75]}
SHIPPED: dict[str, Any] = json.loads((SHIPPED_FOLDER / "lite" / "scenario.json").read_text())
LOG = {
    "kind": LOG_KIND,
    "schema_version": 1,
    "config": preset("lite")[0].to_dict(),
    "provenance": {"policy": "randomised", "randomise": ["order"]},
    "unidentified": ["position"],
    "complete": False,
}
RUN = {"agent": "crban", "track": "rerank", "hyper": {"hidden": 4}, "sizes": {"pool": [20, 20]}, "steps": 3}
TRACK = {"rows": [{"policy": "keep", "metric": "value", **FIGURE, "sessions": 5}], "runs": [{"machine": "x"}]}
EVALUATED = {
    "results": [{"policy": "keep", "users": "learned", "value": FIGURE, "sessions": 5, "clicks": FIGURE}]
}
STUDY = {
    "keep": {"learned": FIGURE, "synthetic": FIGURE},
    "rows": [
        {"measure": "a", "stop": "after 1", "steps": [1], "true_value": [1.0], "exploitation_gap": [FIGURE]}
    ],
}
FIDELITY = {
    "events": {"click": {"reliability": [{"observed": 0.5, "predicted": 0.5, "slots": 9}]}},
    "policies": [{"policy": "keep", "value": FIGURE, "true_value": FIGURE}],
    "interventions": {"request": {"clicks": {"log": FIGURE, "simulated": FIGURE}}},
    "distributions": {"click_rate_by_slot": {"log": {"values": [0.5]}, "simulated": {"values": [0.5]}}},
}


def read_scenario(file: Path) -> Any:
    for name in ("catalog.parquet", "simulator.onnx", "simulator.safetensors"):
        shutil.copyfile(SHIPPED_FOLDER / "lite" / name, file.parent / name)
    return Scenario.load(file.parent)


def read_log(file: Path) -> Any:
    shutil.copyfile(SHIPPED_FOLDER / "lite" / "catalog.parquet", file.parent / "catalog.parquet")
    return LogReader(file.parent, allow_empty=True)


def report(file: Path) -> Any:
    return write_report_page(file.parent)


# Kind -> name of the file, a right document, and what reads it.
KINDS: dict[str, tuple[str, Any, Callable[[Path], Any]]] = {
    "scenario": ("scenario.json", SHIPPED, read_scenario),
    "log": ("logs.json", LOG, read_log),
    "run": ("policy.json", RUN, lambda file: read_run(file.parent)),
    "mapping": ("m.json", {"user": "u", "item": "i", "time": "t", "click": "c", "list": "l"}, read_mapping),
    "price": ("p.json", {"price": 0.5, "share": 0.25}, lambda file: read_document(file, Found)),
    "waiting": (
        "waiting.json",
        {"0.5": {"price": 0.1, "later": [[0.5, 0.1]]}},
        lambda file: waiting_plans(file.parent),
    ),
    "rows": ("rows.json", TRACK, saved_rows),
    "track": ("rerank.json", TRACK, report),
    "evaluation": ("results.json", EVALUATED, report),
    "study": ("study.json", STUDY, report),
    "fidelity": ("fidelity.json", FIDELITY, report),
    "curve": (
        LEARNING_CURVE,
        {"training": CHART, "checkpoints": [{"slots": 3, "learned": FIGURE}]},
        report,
    ),
}


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """All places in a document."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, part in inside for place in [(*at, key), *places(part, (*at, key))]]


def changed(document: Any, at: tuple[Any, ...], value: Any) -> Any:
    copy = json.loads(json.dumps(document))
    part = copy
    for key in at[:-1]:
        part = part[key]
    if value is KeyError:
        del part[at[-1]]
    else:
        part[at[-1]] = value
    return copy


def text_of(document: Any) -> str:
    return json.dumps(document).replace('"HUGE"', "9" * 400).replace('"VAST"', "9" * 5000)


def refused(read: Callable[[Path], Any], file: Path) -> str:
    """Read a broken file; return the one line that says so, or "" if it was accepted."""
    try:
        read(file)
    except InputError as error:
        assert "\n" not in str(error) and str(error) and len(str(error)) < 1500
        assert str(file.parent) in str(error)
        return str(error)
    return ""


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Any, Callable[[Path], Any]]:
    name, document, read = KINDS[request.param]
    if request.param == "waiting":
        from edgerec_gym.bench.request.track import WAITING_PLANS

        name = WAITING_PLANS
    file = tmp_path / name
    file.write_text(json.dumps(document))
    read(file)  # as it stands it is right
    return file, document, read


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 1e999}',
        b'{"a": ' + b"9" * 400 + b"}",
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": 1, "a": 2}',
        b'\xef\xbb\xbf{"a": 1}',
        b'{"a": "\xff"}',
        b'{"a": "\\ud800"}',
        b"[]",
        b"null",
        b"7",
        b'{"a": 1} {}',
        b"\x00" * 100,
    ],
)
def test_documents_that_are_broken_everywhere_alike(kind: Any, content: bytes) -> None:
    file, _, read = kind
    file.write_bytes(content)
    assert refused(read, file)


@pytest.mark.parametrize("cut", [0.1, 0.5, 0.9, 0.999])
def test_truncated_documents(kind: Any, cut: float) -> None:
    file, document, read = kind
    text = json.dumps(document)
    file.write_text(text[: int(cut * len(text))])
    assert "is not valid JSON" in refused(read, file)


@pytest.mark.parametrize(
    "value", [KeyError, None, True, -1, 0.5, "x", [], {}, [[1]], {"a": [1]}, "HUGE", "VAST"]
)
def test_every_place_with_every_wrong_value(kind: Any, value: Any) -> None:
    """One line or a harmless document; never another exception."""
    file, document, read = kind
    every = places(document)
    for at in every if len(every) < 40 else every[:: len(every) // 20]:
        file.write_text(text_of(changed(document, at, value)))
        told = refused(read, file)
        assert told or value not in ("HUGE", "VAST")
        _load.cache_clear()


class Inner(Document):
    page_size: int
    shares: dict[str, list[float]] = {}


class Outer(Document):
    config: Inner
    rows: list[Inner] = []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"config": {"page_size": "ten"}}', "config.page_size must be a whole number, got 'ten'"),
        ('{"config": {"page_size": 1.5}}', "config.page_size must be a whole number, got 1.5"),
        ('{"config": {"page_size": true}}', "config.page_size must be a whole number, got True"),
        ('{"config": {}}', "config.page_size is missing"),
        ("{}", "config is missing"),
        ('{"config": {"page_size": 1}, "rows": [{"page_size": 2}, {}]}', "rows[1].page_size is missing"),
        (
            '{"config": {"page_size": 1, "shares": {"good": [1], "bad one": [1, "x"]}}}',
            "config.shares['bad one'][1] must be a number, got 'x'",
        ),
        ('{"config": {"page_size": 1}, "row": []}', "unknown field 'row'; did you mean 'rows'?"),
        ('{"config": {"page_size": ' + "9" * 400 + "}}", "config.page_size is a number of 400 digits"),
        ('{"config": {"page_size": NaN}}', "config.page_size is NaN; allowed: numbers and null"),
        ('{"config": {"page_size": 1, "page_size": 2}}', "config has the key 'page_size' twice"),
        ('{"config": ' + "[" * 99 + "]" * 99 + "}", f"is nested 100 deep; allowed: up to {MOST_DEPTH}"),
    ],
)
def test_the_error_names_the_place(content: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text(content)
    with pytest.raises(InputError) as error:
        read_document(file, Outer)
    assert str(error.value).startswith(str(file)) and message in str(error.value)
    with pytest.raises(InputError, match="metadata"):
        decode(content, Outer, "metadata")


def test_long_decimals_and_quoted_brackets_are_fine(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text(
        '{"a": 0.1234567890123456789012345, "b": "[[[{:\\"9999999999999999999999", "c": -9223372036854775807}'
    )
    assert read_json(file)["b"] == '[[[{:"9999999999999999999999'


@pytest.mark.parametrize(
    "content",
    [
        "[insert]\nprice = " + "9" * 400,
        "[insert]\nprice = " + "9" * 5000,
        "[insert]\nprice = 1979-05-27",
        "[insert]\nprice = inf",
        "a = " + "[" * 900,
        "a = " + "[\n" * 20_000,
        ".".join("a" * 30_000) + " = 1",
        "[decide]\norder = true\norder = false",
        "\ufeff[decide]",
        "[decide]\norder = 'x",
        "#" * 70_000,
    ],
)
def test_rules_that_are_broken(content: str, tmp_path: Path) -> None:
    file = tmp_path / "rules.txt"
    file.write_text(content, encoding="utf-8")
    assert refused(load_rules, file)


def test_special_files_are_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, what in (
        (tmp_path / "pipe", "a pipe"),
        (Path("/dev/zero"), "a device"),
        (tmp_path, "a folder"),
    ):
        with pytest.raises(InputError, match=f"is {what}; allowed: a regular file"):
            read_json(path)
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(10**12)
    with pytest.raises(InputError, match="has 1,000,000,000,000 bytes; allowed: up to 67,108,864"):
        read_json(large)
    with pytest.raises(InputError, match="does not exist"):
        check_file(tmp_path / "none")
    with pytest.raises(InputError, match="cannot read"):
        check_file(tmp_path / ("x" * 5000))


def test_undefined_numbers_are_written_as_null(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": float("nan"), "b": [float("inf"), 1.5]})
    assert read_object(tmp_path / "x.json") == {"a": None, "b": [None, 1.5]}


@pytest.mark.parametrize("value", [10**400, 10**5000, float("inf"), -(10**400)], ids=["a", "b", "c", "d"])
def test_huge_numbers_in_a_config(value: Any) -> None:
    with pytest.raises(InputError, match=r"FeedConfig.page_size = .* is out of range; allowed: 2 to 500"):
        FeedConfig(page_size=value)
    with pytest.raises(InputError, match="out of range"):
        SyntheticUserConfig(taste=value)
    assert len(shown(value)) <= 80


def test_too_many_card_types() -> None:
    names = [f"t{k}" for k in range(200)]
    with pytest.raises(InputError, match="names 200 types; allowed: 1 to 100"):
        FeedConfig(card_types=names, share_caps=[0.1] * 200, gaps=[0] * 200, first_slots=[0] * 200)


def test_the_kinds_of_two_files_are_told_apart(tmp_path: Path) -> None:
    write_json(tmp_path / "scenario.json", {"kind": "x" * 1000})
    with pytest.raises(InputError, match="does not describe a scenario") as error:
        Scenario.load(tmp_path)
    assert KIND not in str(error.value) and len(str(error.value)) < 300
