"""The command line: scenarios are fitted and shown, and the demo."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest
import small_ebnerd
from command_line import fails_with, run, run_well, tiny_logs

from edgerec_gym.commands import demo
from edgerec_gym.files import remove_folder
from edgerec_gym.logs.store import LogReader
from edgerec_gym.scenario import Scenario


@pytest.fixture(scope="module")
def logs(tmp_path_factory) -> Path:
    return tiny_logs(tmp_path_factory.mktemp("cli") / "logs")


def test_info_shows_sizes_provenance_and_fidelity(lite):
    text = run_well("info", "lite")
    assert f"pool_size: {lite.config.pool_size}" in text and "provenance" in text
    content = json.loads(run_well("info", "lite", "--json"))
    assert content["config"] == json.loads(json.dumps(lite.config.to_dict()))
    assert content["items"] == len(lite.catalog)


@pytest.fixture(scope="module")
def fitted(logs, tmp_path_factory) -> Path:
    """Users fitted on the tiny log."""
    pytest.importorskip("torch")
    out = tmp_path_factory.mktemp("cli") / "scenario"
    run_well("fit", logs, "--out", out, "--ensemble", 1, "--epochs", 1)
    return out


def test_fit_writes_a_scenario_and_keeps_a_finished_one(logs, fitted):
    written = {path: path.stat().st_mtime_ns for path in fitted.iterdir()}
    arguments = ("fit", logs, "--out", fitted, "--ensemble", 1, "--epochs", 1)
    figures = json.loads(run_well(*arguments, "--json"))
    assert 0 < figures["click_auc"] <= 1 and figures["out"] == str(fitted)
    assert f"click_auc: {figures['click_auc']:.4g}" in run_well(*arguments)
    assert {path: path.stat().st_mtime_ns for path in fitted.iterdir()} == written
    assert json.loads(run_well("info", fitted, "--json"))["fidelity"]["click_auc"] == figures["click_auc"]
    rows = json.loads(run_well("evaluate", "keep", "--scenario", fitted, "--sessions", 4, "--json"))
    assert [(row["policy"], row["users"]) for row in rows] == [
        ("keep", "learned"),
        ("keep", "synthetic"),
        ("oracle", "synthetic"),
    ]


def test_fit_on_real_logs_compares_with_references(tmp_path):
    pytest.importorskip("lightgbm")
    source = small_ebnerd.save(small_ebnerd.bundle(), tmp_path / "bundle")
    arguments = ("fit", source, "--out", tmp_path / "scenario", "--ensemble", 1, "--epochs", 1)
    text = run_well(*arguments)
    for name in (
        "item popularity",
        "200 boosted trees on 7 streaming features",
        "lambdarank",
        "learned users",
    ):
        assert name in text
    answer = json.loads(run_well(*arguments, "--json"))
    assert {"popularity", "boosted_trees", "lambdarank_trees"} < set(answer["reference"])
    assert LogReader(tmp_path / "scenario" / "logs").complete
    evaluation = ("evaluate", "keep", "--scenario", tmp_path / "scenario", "--users", "synthetic")
    fails_with("was fitted on real logs and has no synthetic users", *evaluation)


TINY = demo.Sizes(
    collect_sessions=40,
    ensemble=2,
    epochs=1,
    updates=3,
    update_sessions=4,
    evaluate_sessions=5,
    curve_sessions=4,
)


@pytest.fixture
def tiny_demo(monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setattr(demo, "QUICK", TINY)


def test_the_demo_goes_from_logs_to_a_report(tiny_demo, tmp_path, monkeypatch):
    arguments = ("demo", "--quick", "--out", tmp_path, "--json")
    monkeypatch.setattr("edgerec_gym.evaluation.play.evaluate", interrupt)
    stopped = run(*arguments)
    assert stopped.exit_code == 130 and stopped.stdout == ""
    kept = f"interrupted: finished stages and checkpoints in {tmp_path} are kept; the same command resumes"
    assert stopped.stderr.splitlines()[-1] == kept
    monkeypatch.undo()
    monkeypatch.setattr(demo, "QUICK", TINY)
    made = [*(tmp_path / "logs").glob("*.parquet"), *(tmp_path / "scenario").iterdir()]
    made += [*(tmp_path / "policy" / "checkpoints").rglob("*.*")]
    assert tmp_path / "logs" / "item_table.parquet" in made
    written = {path: path.stat().st_mtime_ns for path in made}
    answer = json.loads(run_well(*arguments))
    assert {path: path.stat().st_mtime_ns for path in written} == written  # nothing was done again
    played = {row["policy"] for row in answer["results"]}
    assert played == {*demo.POLICIES, "distilled-values", demo.SHIPPED_NAME, "oracle"}
    report = tmp_path / "report"
    assert answer["report"] == str(report) and (report / "training.png").is_file()
    page = (tmp_path / "report.html").read_text()
    assert answer["page"] == str(tmp_path / "report.html")
    for title in ("Evaluation: EdgeFeed-v0", "Learning curves", "Training: distilled-values"):
        assert title in page
    assert "ground truth, best actions" in page  # the learning curve on the ground truth
    curve = json.loads((tmp_path / "policy" / "learning_curve.json").read_text())
    assert curve["unit"] == "updates" and [point["slots"] for point in curve["checkpoints"]] == [1, 2, 3]
    assert curve["training"]["slots"] == [1, 2, 3]
    assert f"Session {demo.REPLAYED}: {demo.SHIPPED_NAME}" in (tmp_path / "replay.html").read_text()
    monkeypatch.setattr("edgerec_gym.logs.collect.collect", interrupt)  # a finished demo does nothing
    text = run_well(*arguments[:-1])
    assert f"open in a browser: {tmp_path / 'report.html'}" in text
    assert "The policy that you have just trained closes " in text and "pretrained" in text
    monkeypatch.undo()  # what is printed as next can be copied
    following = [shlex.split(line) for line in text.split("next:\n")[1].splitlines()]
    assert [words[:2] for words in following] == [["edgerec", name] for name in ("replay", "export", "demo")]
    run_well(*following[0][1:])
    run_well(*following[1][1:])
    (tmp_path / "mine.html").unlink()
    assert (tmp_path / "phone" / "device.json").is_file()
    remove_folder(tmp_path / "phone")
    monkeypatch.setattr(demo, "QUICK", TINY)
    monkeypatch.setattr("edgerec_gym.logs.collect.collect", interrupt)
    fails_with("holds a demo with other arguments", *arguments, "--seed", 1)
    stopped = run(*arguments, "--seed", 1, "--fresh")
    assert stopped.exit_code == 130
    assert [path.name for path in tmp_path.iterdir()] == ["demo.json"]


def interrupt(*arguments, **keywords):
    raise KeyboardInterrupt


def test_the_shipped_scenarios_record_their_command(fitted, tmp_path, monkeypatch):
    def fit(logs, out, **settings):
        assert settings["seed"] == 3 and settings["ensemble"] == 2 and LogReader(logs).sessions == 30
        shutil.copytree(fitted, out)
        return {"click_auc": 0.5}

    monkeypatch.setattr("edgerec_gym.simulator.fit.fit", fit)
    options = "--name lite --sessions 30 --ensemble 2 --epochs 1 --seed 3"
    folders = ("--out", tmp_path / "out", "--work", tmp_path / "work")
    assert json.loads(run_well("scenario", *options.split(), *folders, "--json")) == {
        "lite": {"click_auc": 0.5}
    }
    assert not (tmp_path / "work" / "lite").exists()
    shipped = tmp_path / "out" / "lite"
    content = json.loads(run_well("info", shipped, "--json"))
    assert content["name"] == "lite" and content["provenance"]["command"] == f"edgerec scenario {options}"
    assert {path.name for path in shipped.iterdir()} == {
        "scenario.json",
        "catalog.parquet",
        "simulator.onnx",
        "simulator.safetensors",
    }
    assert Scenario.load(shipped).simulator_files()[0] == shipped / "simulator.onnx"


def test_the_demo_says_honestly_what_was_learned():
    def rows(own):
        shares = {"keep": 0.0, "random": -0.2, "greedy": 0.1, "device-greedy": 0.2, "item-greedy": 0.15} | {
            demo.OWN: own
        }
        return [
            {
                "policy": name,
                "users": "synthetic",
                "gap_closed": {"mean": mean, "low": mean - 0.03, "high": mean + 0.03},
            }
            for name, mean in shares.items()
        ]

    said = "more than the best heuristic, device-greedy, with 20% [17%, 23%]."
    assert demo.learned(rows(0.4)).endswith(f"mind reader, {said}")
    assert "[37%, 43%]" in demo.learned(rows(0.4))
    assert "which cannot be told from the best heuristic" in demo.learned(rows(0.21))
    assert "less than the best heuristic" in demo.learned(rows(0.0))
