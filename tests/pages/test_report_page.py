"""The HTML report: which sections a run gives, and that the page is whole, safe and self-contained."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from places import RESULTS

from edgerec_gym.bench.track import all_tracks
from edgerec_gym.errors import InputError
from edgerec_gym.pages.charts import ChartEntry, Estimate, Line, interval_chart, line_chart
from edgerec_gym.pages.report import write_report_page
from edgerec_gym.pages.scales import Scale, label, ticks
from edgerec_gym.pages.sources import find_sources

RUN = {"agent": "crban", "track": "rerank", "sizes": {}, "steps": 2}
TRACKS = all_tracks()
VOID = {"meta", "link", "br", "input"}


class Checker(HTMLParser):
    """Checks that elements are closed in order, and gathers texts."""

    def __init__(self):
        super().__init__()
        self.open, self.texts = [], []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data.strip())


def checked(path: Path) -> Checker:
    text = path.read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    assert "nan" not in re.findall(r'[ "(,]nan[ ",)]', text)
    loaded = re.findall(r'(?:src|href)="(?!data:,|#)[^"]*"|@import|url\(', text)
    assert loaded == []
    return checker


def row(policy, metric, mean, **more):
    return {"policy": policy, "metric": metric, "mean": mean, "low": mean - 0.1, "high": mean + 0.1,
            "seeds": 3, "sessions": 500, "scenario": "lite", "quick": False, **more}  # fmt: skip


def write(folder: Path, name: str, content: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(content))
    return folder


def interval(mean):
    return {"mean": mean, "low": mean - 0.1, "high": mean + 0.1}


def test_the_benchmark_results_of_the_repository(tmp_path):
    path, sections, missing = write_report_page(RESULTS, tmp_path / "report.html", tracks=TRACKS)
    assert {"Re-ranking: lite", "Mixed insertion: lite", "Fidelity of learned users: default"} <= set(
        sections
    )
    assert "Learning curves: default" in sections and "Evaluation: EdgeFeed-v0, lite" in sections
    assert any(text.startswith("joint") for text in missing) == (not (RESULTS / "joint.json").exists())
    texts = checked(path).texts
    for title in sections:
        assert title in texts
    for figure in ("Click rate by position in the page", "Frontier: value against share of cards"):
        assert figure in texts
    value = next(r for r in find_sources(RESULTS / "rerank.json").tracks[0][1] if r["metric"] == "value")
    assert value["policy"] in texts and f"{value['mean']:.2f}" in texts


def test_requests_and_all_decisions_at_once(tmp_path):
    rows = []
    for budget, value in (("0.1", 2.5), ("0.2", 2.6)):
        rows += [row(f"uplift-x {budget}", "value", value)]
        rows += [row(f"uplift-x {budget}", "requests", float(budget))]
    rows += [row("keep", "value", 2.4), row("keep", "requests", 0.0)]
    write(tmp_path, "request.json", {"rows": rows})
    quick = [row("edgerec", "value", 3.0, quick=True), row("edgerec", "value", 3.2, scenario="default")]
    write(tmp_path, "joint.json", {"rows": quick, "runs": [{"versions": {"numpy": "2"}, "machine": "m"}]})
    path, sections, _ = write_report_page(tmp_path, tracks=TRACKS)
    assert path == tmp_path / "report.html"
    joint = ["All three decisions: lite, quick", "All three decisions: default"]
    assert sections == [*joint, "Requests: lite"]
    texts = checked(path).texts
    assert "Frontier: value against requests" in texts
    assert "uplift-x" in texts  # the legend names the family
    assert any("numpy 2" in text for text in texts)
    again, *_ = write_report_page(tmp_path, tracks=TRACKS)  # the page that lies there now is no source
    assert again.read_text() == path.read_text()


def test_the_whole_benchmark_in_one_file(tmp_path):
    tags = {"track": "joint", "shift": "none"}
    rows = [row(policy, "value", value, **tags) for policy, value in (("keep", 2.4), ("a", 3.0), ("b", 2.9))]
    rows += [row("a", "difference", 0.6, against="keep", p_holm=0.001, **tags)]
    rows += [row("a", "difference", 0.1, against="b", p_holm=0.2, **tags)]
    rows += [row("b", "difference", 0.5, against="keep", p_holm=0.01, **tags)]
    rows += [row("a", "value", 1.234, **tags | {"shift": "impatient"})]
    rows += [row("a", "gap_closed", 0.25, **tags | {"shift": "impatient"})]
    every = {"track": "all", "scenario": "all", "tasks": 2}
    rows += [row("a", "interquartile_mean", 0.3, **every), row("keep", "value", 2.0, track="mix")]
    path, sections, _ = write_report_page(write(tmp_path, "benchmark.json", {"rows": rows}), tracks=TRACKS)
    assert sections == ["All three decisions: lite", "The whole benchmark", "Mixed insertion: lite"]
    texts = checked(path).texts
    assert "impatient" in texts and "25.0% [15.0%, 35.0%]" in texts and "1.23" not in texts
    assert texts[texts.index("significantly better than") :].count("1") == 2  # a and b beat keep only


def test_an_evaluation_and_its_training(tmp_path):
    results = [
        {
            "policy": policy,
            "users": users,
            "sessions": 50,
            "value": interval(value),
            "reward": interval(value),
        }
        for policy, users, value in (
            ("keep", "synthetic", 1.0),
            ("a", "synthetic", 2.0),
            ("a", "learned", 2.2),
        )
    ]
    curve = {"slots": [float(k) for k in range(100)], "reward": [k / 100 for k in range(100)]}
    write(tmp_path / "report", "results.json", {"results": results, "training_curve": curve})
    write(tmp_path / "policy", "policy.json", {**RUN, "gauc": [0.5, 0.6], "hyper": {"epochs": 2}})
    path, sections, _ = write_report_page(tmp_path, tracks=TRACKS)
    assert sections == ["Evaluation: results", "Learning curves", "Training: crban"]
    points = [{"slots": s, "learned": interval(2.0), "synthetic": interval(1.5)} for s in (10, 20)]
    write(tmp_path / "policy", "learning_curve.json", {"training": curve, "checkpoints": points})
    texts = checked(write_report_page(tmp_path, tracks=TRACKS)[0]).texts
    assert texts.count("Learning curve") == 1  # not the training alone once more
    assert "ground truth, best actions" in texts


def test_names_are_text_and_numbers_that_do_not_exist_are_left_out(tmp_path):
    bad = "<script>alert('&')</script>"
    nothing = row("b", "value", 1.0) | {"mean": None, "low": None, "high": None}
    rows = [row(bad, "value", 2.0), nothing, row(bad, "gap_closed", 0.5) | {"low": None, "high": None}]
    path, *_ = write_report_page(write(tmp_path, "rerank.json", {"rows": rows}), tracks=TRACKS)
    checker = checked(path)
    assert bad in checker.texts and bad not in path.read_text()
    assert "50%" in checker.texts and "b" not in checker.texts


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.json", "{", "x.json is not valid JSON"),
        ("x.json", "{}", "holds nothing to report"),
        ("x.txt", "", "holds nothing to report"),
        (
            "x.json",
            json.dumps({"rows": [row("a", "value", 1), {"policy": "a"}]}),
            r"rows\[1\].metric is missing",
        ),
    ],
)
def test_folders_without_anything_to_show(name, content, message, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        write_report_page(tmp_path, tracks=TRACKS)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_places_that_cannot_be_read_or_written(tmp_path):
    with pytest.raises(InputError, match="nowhere does not exist"):
        write_report_page(tmp_path / "nowhere", tracks=TRACKS)
    with pytest.raises(InputError, match="is a folder; name an HTML file"):
        write_report_page(RESULTS / "rerank.json", tmp_path, tracks=TRACKS)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write to the folder"):
        write_report_page(RESULTS / "rerank.json", tmp_path / "file" / "report.html", tracks=TRACKS)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (2.41, 4.7), (-0.013, 0.002), (1e5, 3e5), (0.1, 0.1001)])
def test_ticks_are_few_round_and_inside(low, high):
    found = ticks(Scale(low, high, 0, 100))
    assert 2 <= len(found) <= 6 and all(low - 1e-9 <= tick <= high + 1e-9 for tick in found)
    assert len({label(tick) for tick in found}) == len(found)
    assert len({round(b - a, 9) for a, b in zip(found, found[1:], strict=False)}) == 1


def test_an_oracle_far_off_does_not_squeeze_the_others():
    entries = [
        ChartEntry(name, [Estimate(x, x - 0.1, x + 0.1)]) for name, x in (("a", 1), ("b", 1.5), ("c", 2))
    ]
    oracle = ChartEntry("oracle", [Estimate(20, 19, 21)])
    alone, beside = interval_chart(entries, "t"), interval_chart([*entries, oracle], "t")
    assert "20.00 [19.00, 21.00]" in beside
    other = interval_chart([*entries, oracle._replace(name="best")], "t")
    assert other.count('class="bar"') == 4  # what is no reference stays on the scale
    assert beside.count('class="bar"') == alone.count('class="bar"') == 3


def test_a_chart_of_a_single_point_has_a_scale():
    assert "nan" not in line_chart([Line("a", [1.0], [0.0])], "t", ("x", "y"))
