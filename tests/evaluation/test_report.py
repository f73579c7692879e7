"""The report folder: tables, JSON, plots, and what happens where there is nothing to show."""

from __future__ import annotations

import builtins
import json
import struct

import pytest

from edgerec_gym.errors import InputError, MissingExtraError
from edgerec_gym.evaluation.report import read_training_curve, tables, unit_of, verdict, write_report
from edgerec_gym.runs import write_record


def interval(mean, half=0.1):
    return {"mean": mean, "low": mean - half, "high": mean + half}


def result(policy, users, value, **metrics):
    names = ("reward", "clicks", "click_rate", "purchases", "exposures", "requests", "violations")
    common = {"policy": policy, "users": users, "sessions": 2000, "seed": 0, "value": interval(value)}
    return common | {name: interval(value / 10) for name in names} | metrics


@pytest.fixture
def results():
    return [
        result("keep", "learned", 1.5, bias=interval(0.5)),
        result("keep", "synthetic", 1.0),
        result("oracle", "synthetic", 3.0, gap_closed=interval(1.0), gain_over_keep=interval(2.0)),
    ]


def png_size(path):
    header = path.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", header[16:24])


def test_a_report_folder_holds_tables_numbers_and_plots(results, tmp_path):
    curve = {"slots": [0.0, 10.0], "reward": [1.0, 2.0]}
    folder = write_report(results, tmp_path / "new" / "report", training_curve=curve, title="A title")
    text = (folder / "report.md").read_text()
    assert text.startswith("# A title\n")
    assert "| oracle | 3.00 | 0.30 [0.20, 0.40] | +2.00 [+1.90, +2.10] | 100% |" in text
    stored = json.loads((folder / "results.json").read_text())
    assert stored["results"] == results and stored["training_curve"] == curve
    for name in ("reward", "behaviour", "bias", "training"):
        assert f"![{name}]({name}.png)" in text
        assert min(png_size(folder / f"{name}.png")) > 200
    assert not list(folder.glob(".*"))  # no temporaries


def test_plots_without_content_are_left_out(results, tmp_path):
    folder = write_report(results[1:], tmp_path, training_curve={"slots": [], "reward": []})
    assert {path.name for path in folder.glob("*.png")} == {"reward.png", "behaviour.png"}
    assert "bias.png" not in (folder / "report.md").read_text()


def test_tables_show_the_columns_that_the_rows_have(results):
    (learned, learned_rows), (synthetic, synthetic_rows) = tables(results).values()
    assert "bias" in learned and "gap closed" not in learned
    assert "gap closed" in synthetic and "bias" not in synthetic
    assert [row[0] for row in learned_rows] == ["keep"]
    assert [row[0] for row in synthetic_rows] == ["keep", "oracle"]
    assert synthetic_rows[0][synthetic.index("gap closed")] == ""


def test_numbers_that_do_not_exist_are_null_in_json_and_empty_in_tables(tmp_path):
    nothing = {"mean": float("nan"), "low": float("nan"), "high": float("nan")}
    rows = [
        result("keep", "synthetic", 1.0, gap_closed=nothing),
        result("a", "synthetic", 1.0, gap_closed=interval(0.5)),
    ]
    folder = write_report(rows, tmp_path)
    stored = json.loads((folder / "results.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert stored["results"][0]["gap_closed"] == {"mean": None, "low": None, "high": None}
    (header, body), *_ = tables(stored["results"]).values()
    assert [row[header.index("gap closed")] for row in body] == ["", "50%"]


def test_the_results_file_is_written_last(results, tmp_path, monkeypatch):
    monkeypatch.setattr("edgerec_gym.evaluation.report.tables", lambda results: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_report(results, tmp_path)
    assert not (tmp_path / "results.json").exists()


def test_no_results_and_no_matplotlib(results, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="no results"):
        write_report([], tmp_path)
    real_import = builtins.__import__

    def without_matplotlib(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_matplotlib)
    with pytest.raises(MissingExtraError, match=r"edgerec_gym\[render\]"):
        write_report(results, tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_the_training_curve_is_read_from_every_tensorboard_file(tmp_path):
    writer = pytest.importorskip("torch.utils.tensorboard").SummaryWriter
    for folder, steps in (("ppo_0", (100, 200)), ("ppo_1", (300,))):
        with writer(str(tmp_path / "tensorboard" / folder)) as log:
            for step in steps:
                log.add_scalar("rollout/ep_rew_mean", step / 100, step)
                log.add_scalar("train/loss", -1, step)
    assert read_training_curve(tmp_path) == {"slots": [100.0, 200.0, 300.0], "reward": [1.0, 2.0, 3.0]}
    record = {"agent": "a", "track": "joint", "hyper": {}, "sizes": {}, "steps": 3}
    (tmp_path / "run").mkdir()
    write_record(tmp_path / "run", record)
    assert read_training_curve(tmp_path / "run") == {"slots": [], "reward": []}
    write_record(tmp_path / "run", record | {"reward": [1.0, None, 3.0]})
    assert read_training_curve(tmp_path / "run") == {"slots": [1.0, 3.0], "reward": [1.0, 3.0]}
    assert unit_of(tmp_path / "run") == "updates"
    assert read_training_curve(tmp_path / "nothing") == {"slots": [], "reward": []}


def test_the_verdict_names_the_best_on_the_ground_truth_and_says_how_sure_it_is():
    rows = [
        result("keep", "synthetic", 2.0, gain_over_keep=interval(0.0)),
        result("mine", "synthetic", 2.7, gain_over_keep=interval(0.7), gap_closed=interval(0.35)),
        result("greedy", "synthetic", 2.5, gain_over_keep=interval(0.5), gap_closed=interval(0.25)),
        result("greedy", "learned", 9.0, gain_over_keep=interval(7.0)),
        result("oracle", "synthetic", 4.0, gain_over_keep=interval(2.0), gap_closed=interval(1.0)),
        result("attainable", "synthetic", 3.0, gain_over_keep=interval(1.0), gap_closed=interval(0.5)),
    ]
    assert verdict(rows) == (
        "On the ground truth, mine earns 2.70 a session, the most of 2 policies: +0.70 [+0.60, +0.80] over "
        "keep, 35% of the way to the oracle. Next is greedy with 2.50."
    )
    assert verdict(rows[3:4]) == (
        "On learned users, greedy earns 9.00 a session: +7.00 [+6.90, +7.10] over keep."
    )
    unsure = verdict([rows[0], result("mine", "synthetic", 2.05, gain_over_keep=interval(0.05))])
    assert unsure.endswith("a session, which cannot be told from keep: +0.05 [-0.05, +0.15].")
    assert verdict([rows[0], rows[4]]) == ""
