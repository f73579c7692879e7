"""The command line: results on stdout, one-line errors with exit code 2, interruption and resumption."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import small_ebnerd
from typer.testing import CliRunner, Result

import edgerec_gym
from edgerec_gym import demo
from edgerec_gym.cli import app
from edgerec_gym.logs import collect as collect_module
from edgerec_gym.logs.store import LogReader
from edgerec_gym.scenario import Scenario

ROOT = Path(edgerec_gym.__file__).parents[1]


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def run_well(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def fails_with(message: str, *arguments: object) -> None:
    """The command ends with exit code 2 and this one line, and nothing on stdout."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert result.stderr.startswith("error: ") and message in result.stderr, result.stderr


@pytest.fixture(scope="module")
def logs(tmp_path_factory) -> Path:
    """A tiny log folder."""
    out = tmp_path_factory.mktemp("cli") / "logs"
    run_well("collect", "--preset", "lite", "--sessions", 30, "--out", out)
    return out


@pytest.fixture
def logs_copy(logs, tmp_path) -> Path:
    return Path(shutil.copytree(logs, tmp_path / "logs"))


@pytest.fixture
def scenario_copy(lite, tmp_path) -> Path:
    return Path(shutil.copytree(lite.path, tmp_path / "scenario"))


def test_help_and_version():
    assert run_well("--version").split() == ["edgerec_gym", edgerec_gym.__version__]
    listing = run_well()
    for command in ("collect", "fit", "train", "evaluate", "info", "scenario", "demo", "fidelity", "export",
                    "report", "replay"):  # fmt: skip
        assert command in listing
        assert "--seed" in run_well(command, "--help") or command in ("info", "export")


def test_the_command_line_starts_without_torch():
    heavy = "torch", "matplotlib", "stable_baselines3"
    code = f"import sys, edgerec_gym.cli; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("No such command 'colect'", "colect"),
        ("No such option: --sesions", "collect --out x --sesions 3"),
        ("Missing option '--out'", "train"),
        ("'--sessions': Input should be greater than or equal to 1", "collect --out x --sessions 0"),
        ("'--seed': Input should be greater than or equal to 0", "evaluate --seed -1"),
        ("'--num-envs': Input should be greater than or equal to 1", "train --out x --num-envs 0"),
        ("'--sessions': Input should be a valid integer", "collect --out x --sessions many"),
        ("unknown preset 'lit'; presets are default, lite", "collect --out x --preset lit"),
        ("unknown preset 'lit'; presets are default, lite", "scenario --name lit"),
        ("either a preset or a scenario", "collect --out x --preset lite --scenario lite"),
        ("cannot randomise 'ordr'; allowed: order, insert, request", "collect --out x --randomise ordr"),
        ("unknown users 'real'; allowed: learned, synthetic", "collect --out x --scenario lite --users real"),
        ("no scenario 'nowhere'", "info nowhere"),
        ("no scenario 'nowhere'", "train --out x --scenario nowhere"),
        ("unknown id 'EdgeFeed-v9'; ids are EdgeFeed-v0", "evaluate keep --id EdgeFeed-v9"),
        ("unknown id 'EdgeFeed-v9'; ids are EdgeFeed-v0", "train --out x --id EdgeFeed-v9"),
        ("unknown agent 'dqn'; allowed: pointer-ppo, flat-ppo, crban", "train --out x --agent dqn"),
        ("agent 'crban' learns from logs: give a log folder with --logs", "train --out x --agent crban"),
        ("logs.json does not exist", "train --out x --agent crban --logs nowhere"),
        ("learns by playing and reads no logs", "train --out x --logs nowhere"),
        ("PPOConfig has no field 'gama'; did you mean 'gamma'?", "train --out x --set gama=0.9"),
        ("PPOConfig.gamma = 1.5 is out of range; allowed: 0.0 to 1.0", "train --out x --set gamma=1.5"),
        ("--set 'gamma' must read NAME=NUMBER", "train --out x --set gamma"),
        ("unknown policy 'best'; allowed: random, keep", "evaluate best --scenario lite --users synthetic"),
        ("cannot import 'no_such_module'", "evaluate no_such_module:P --scenario lite --users synthetic"),
        ("plays the tracks joint, mix", "evaluate fixed-slot --id EdgeFeedRequest-v0 --scenario lite"),
        ("stable-baselines3 takes no plans", "train --out x --id EdgeFeedSlate-v0 --scenario lite"),
        (
            "'fixed-slot' plays the tracks joint, mix",
            "evaluate fixed-slot --id EdgeFeedSlate-v0 --scenario lite",
        ),
        ("logs.json does not exist", "fit nowhere --out x"),
        ("nowhere does not exist: name a folder", "report nowhere"),
        (". holds nothing to report", "report ."),
        ("unknown policy 'nowhere'; allowed: random, keep", "replay nowhere --scenario lite --out x.html"),
        ("Missing option '--out'", "replay keep"),
        ("'--session'", "replay keep --out x.html --session -1"),
        ("'--session'", "replay keep --out x.html --session 1048576"),
        ("unknown users 'real'", "replay keep --scenario lite --users real --out x.html"),
        ("not 'request'", "replay fixed-slot --id EdgeFeedRequest-v0 --scenario lite --out x.html"),
        (". is a folder; name an HTML file", "replay keep --scenario lite --out ."),
        ("the oracle needs users='synthetic'", "replay oracle --scenario lite --users learned --out x.html"),
    ],
)
def test_bad_arguments(message, arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fails_with(message, *arguments.split())


def test_folders_that_cannot_be_written_to(tmp_path, logs):
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "out"
    message = f"cannot write to the folder {out}"
    fails_with(message, "collect", "--preset", "lite", "--out", out)
    fails_with(message, "fit", logs, "--out", out)
    fails_with(message, "train", "--scenario", "lite", "--users", "synthetic", "--out", out)
    fails_with(message, "evaluate", "keep", "--scenario", "lite", "--users", "synthetic", "--out", out)
    fails_with(message, "demo", "--out", out)
    fails_with(message, "replay", "keep", "--scenario", "lite", "--out", out / "replay.html")
    fails_with(message, "report", ROOT / "benchmarks" / "results", "--out", out / "report.html")


def test_broken_logs(logs_copy, tmp_path):
    part = logs_copy / "part-00000.parquet"
    whole = part.read_bytes()
    out = ("--out", tmp_path / "scenario")
    part.write_bytes(whole[: len(whole) // 2])
    fails_with(f"{part} is not a readable Parquet file", "fit", logs_copy, *out)
    part.write_bytes(whole)
    pq.write_table(pq.read_table(part).drop_columns(["click"]), part)
    fails_with(f"{part}: missing column 'click'", "fit", logs_copy, *out)
    header = json.loads((logs_copy / "logs.json").read_text())
    (logs_copy / "logs.json").write_text(json.dumps(header | {"schema_version": 99}))
    fails_with("has log schema version 99; supported: 1", "fit", logs_copy, *out)


def test_broken_scenarios(scenario_copy):
    catalog = scenario_copy / "catalog.parquet"
    table = pq.read_table(catalog)
    column = table["e3"].to_numpy().copy()
    column[7] = float("nan")
    index = table.column_names.index("e3")
    pq.write_table(table.set_column(index, "e3", [column]), catalog)
    fails_with(f"{catalog}: catalogue: embeddings of item row 7 is not finite", "info", scenario_copy)
    values = json.loads((scenario_copy / "scenario.json").read_text())
    (scenario_copy / "scenario.json").write_text(json.dumps(values | {"schema_version": 99}))
    fails_with("scenario.json has schema version 99; this version reads 1", "info", scenario_copy)


def test_a_corrupted_simulator(scenario_copy):
    onnx = scenario_copy / "simulator.onnx"
    content = bytearray(onnx.read_bytes())
    content[len(content) // 2] ^= 0xFF
    onnx.write_bytes(content)
    fails_with(f"{onnx} is corrupted", "evaluate", "keep", "--scenario", scenario_copy, "--sessions", 2)


@pytest.mark.parametrize("blocked", ["torch", "sb3_contrib"])
def test_a_missing_extra_is_named(blocked, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, blocked, None)
    for name in [name for name in sys.modules if name.startswith("edgerec_gym.agents")]:
        monkeypatch.delitem(sys.modules, name)
    fails_with("pip install 'edgerec_gym[train]'", "train", "--scenario", "lite", "--out", tmp_path / "run")


def test_collect_writes_logs_and_says_when_they_are_complete(logs):
    reader = LogReader(logs)
    assert reader.complete and reader.sessions == 30
    again = ("collect", "--preset", "lite", "--sessions", 30, "--out", logs)
    assert "30 sessions" in run_well(*again) and "complete before" in run_well(*again)
    answer = json.loads(run_well(*again, "--json"))
    assert answer["sessions"] == 30 and answer["slots"] == reader.slots and answer["out"] == str(logs)
    fails_with("'seed' is 0, not 1", *again, "--seed", 1)


def test_collect_logs_a_policy(tmp_path):
    run_well("collect", "--scenario", "lite", "--policy", "fixed-slot", "--sessions", 20, "--out", tmp_path)
    table = next(LogReader(tmp_path).batches())
    assert (table["card_type"].to_numpy() > 0).any()
    assert table["propensity"].null_count == table.num_rows


# The child stops for good inside the write of its third part, with the file written but not yet renamed.
STOPPING_CHILD = """
import sys, time
from pathlib import Path
from edgerec_gym import atomic
from edgerec_gym.cli import main
from edgerec_gym.logs import collect
collect.SESSIONS_PER_PART = 10
rename = atomic.os.replace
def replace(source, target):
    if Path(target).name == "part-00002.parquet":
        Path(target).with_name("stopped").touch()
        time.sleep(60)
    rename(source, target)
atomic.os.replace = replace
main()
"""


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)])
def test_an_interrupted_collect_resumes(sent, code, tmp_path, monkeypatch):
    out = tmp_path / "logs"
    arguments = ["collect", "--preset", "lite", "--sessions", "45", "--out", str(out)]
    child = subprocess.Popen(
        [sys.executable, "-c", STOPPING_CHILD, *arguments],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not (out / "stopped").exists() and time.monotonic() < deadline and child.poll() is None:
        time.sleep(0.02)
    assert (out / "stopped").exists()
    child.send_signal(sent)
    stderr = child.communicate(timeout=60)[1]
    assert child.returncode == code
    if sent == signal.SIGINT:
        last = stderr.splitlines()[-1]
        assert last == f"interrupted: the complete parts in {out} are kept; the same command resumes"
        assert "Traceback" not in stderr
    partial = LogReader(out)
    assert not partial.complete and partial.sessions == 20
    monkeypatch.setattr(collect_module, "SESSIONS_PER_PART", 10)
    assert json.loads(run_well(*arguments, "--json"))["resumed_from"] == 2
    whole = tmp_path / "whole"
    run_well(*arguments[:-1], whole)
    names = {path.name for path in whole.iterdir()}
    assert {path.name for path in out.iterdir()} == names | {"stopped"}
    for name in names:
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.parametrize("env_id", ["EdgeFeed-v0", "EdgeFeedSlate-v0"])
def test_evaluate_prints_json_or_a_table_and_writes_a_report(tmp_path, env_id):
    arguments = ("evaluate", "greedy", "--id", env_id, "--scenario", "lite", "--users", "synthetic")
    arguments += ("--sessions", 12)
    rows = json.loads(run_well(*arguments, "--json", "--out", tmp_path / "report"))
    assert [row["policy"] for row in rows] == ["keep", "greedy", "oracle"]
    assert json.loads((tmp_path / "report" / "results.json").read_text())["results"] == rows
    text = run_well(*arguments)
    assert "synthetic users (ground truth), 12 sessions" in text
    assert f"{rows[2]['value']['mean']:.2f}" in text
    other = json.loads(run_well(*arguments, "--json", "--seed", 1))
    assert other[0]["value"] != rows[0]["value"]


def test_evaluate_keeps_a_policys_rows_through_a_last_smaller_batch():
    arguments = ("evaluate", "fixed-slot", "--scenario", "lite", "--users", "synthetic", "--json")
    once = json.loads(run_well(*arguments, "--sessions", 12))
    batches = json.loads(run_well(*arguments, "--sessions", 12, "--num-envs", 5))
    assert once == batches


def test_evaluate_imports_a_policy_from_the_working_directory(tmp_path, monkeypatch):
    code = "class Mine:\n name = 'mine'\n def reset(self, mask): pass\n"
    code += " def act(self, observation): return observation['action_mask'].argmax(axis=1)\n"
    (tmp_path / "my_policies.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    arguments = ("--scenario", "lite", "--users", "synthetic", "--sessions", 5, "--json")
    keep, mine, _ = json.loads(run_well("evaluate", "my_policies:Mine", *arguments))
    assert mine["policy"] == "mine" and mine["value"] == keep["value"]


def test_train_resumes_and_its_run_is_evaluated(tmp_path):
    pytest.importorskip("sb3_contrib")
    out = tmp_path / "run"
    arguments = ("train", "--id", "EdgeFeedRequest-v0", "--scenario", "lite", "--users", "synthetic")
    small = ("--out", out, "--num-envs", 4, "--set", "n_steps=8", "--set", "batch_size=16", "--json")
    assert json.loads(run_well(*arguments, *small, "--steps", 32))["steps"] == 32
    assert json.loads(run_well(*arguments, *small, "--steps", 64))["steps"] == 64
    fails_with("already holds a training run", *arguments, *small, "--steps", 64, "--no-resume")
    fails_with("cannot resume", *arguments, *small, "--steps", 64, "--seed", 1)
    evaluation = ("evaluate", out, "--scenario", "lite", "--users", "synthetic", "--sessions", 5, "--json")
    rows = json.loads(run_well(*evaluation, "--id", "EdgeFeedRequest-v0"))
    assert [row["policy"] for row in rows] == ["keep", "pointer-ppo", "oracle"]
    fails_with("was trained for the track 'request'", *evaluation)


def test_a_reranker_is_trained_on_logs_and_evaluated(tmp_path):
    pytest.importorskip("torch")
    logs, out = tmp_path / "logs", tmp_path / "run"
    run_well("collect", "--preset", "lite", "--sessions", 150, "--out", logs)
    small = ("--out", out, "--set", "epochs=1", "--set", "hidden=4")
    assert "1 epochs, GAUC 0." in run_well("train", "--agent", "dnn", "--logs", logs, *small)
    evaluation = ("evaluate", out, "--scenario", "lite", "--users", "synthetic", "--sessions", 5, "--json")
    for env_id in ("EdgeFeedRerank-v0", "EdgeFeed-v0"):
        rows = json.loads(run_well(*evaluation, "--id", env_id))
        assert [row["policy"] for row in rows] == ["keep", "dnn", "oracle"]
    fails_with("it plays the tracks joint, rerank, slate, not 'mix'", *evaluation, "--id", "EdgeFeedMix-v0")


def test_replay_tells_the_session_of_an_evaluation(tmp_path):
    arguments = ("--scenario", "lite", "--seed", 2)
    out = tmp_path / "new" / "replay.html"
    told = json.loads(run_well("replay", "greedy", *arguments, "--session", 1, "--out", out, "--json"))
    assert (told["users"], told["session"], told["policy"]) == ("synthetic", 1, "greedy")
    text = run_well("replay", "greedy", *arguments, "--session", 1, "--out", out)
    assert f"{told['slots']} slots, {told['clicks']} clicks, reward {told['reward']:.2f}" in text
    assert text.rstrip().endswith(f"replay: {out}") and out.read_text().startswith("<!doctype html>")


def test_report_plays_the_checkpoints_of_a_training_once(tmp_path):
    pytest.importorskip("sb3_contrib")
    out = tmp_path / "run"
    small = ("--num-envs", 4, "--steps", 64, "--set", "n_steps=8", "--set", "batch_size=16")
    run_well("train", "--scenario", "lite", "--out", out, *small)
    told = json.loads(run_well("report", out, "--sessions", 4, "--json"))
    assert told["sections"] == ["Learning curves", "Training: pointer-ppo"]
    curve = json.loads((out / "learning_curve.json").read_text())
    (point,) = curve["checkpoints"]
    assert point["slots"] == 64 and point["synthetic"]["low"] <= point["synthetic"]["mean"]
    written = (out / "learning_curve.json").stat().st_mtime_ns
    run_well("report", out, "--sessions", 4)
    assert (out / "learning_curve.json").stat().st_mtime_ns == written
    fails_with("holds no training", "report", ROOT / "benchmarks" / "results", "--scenario", "lite")


def test_info_shows_sizes_provenance_and_fidelity(lite):
    text = run_well("info", "lite")
    assert "pool_size: 20" in text and "provenance" in text
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


@pytest.fixture
def tiny_demo(monkeypatch):
    pytest.importorskip("sb3_contrib")
    sizes = demo.Sizes(
        collect_sessions=40, ensemble=1, epochs=1, train_steps=64, evaluate_sessions=5, curve_sessions=4
    )
    monkeypatch.setattr(demo, "QUICK", sizes)


def test_the_demo_goes_from_logs_to_a_report(tiny_demo, tmp_path, monkeypatch):
    arguments = ("demo", "--quick", "--out", tmp_path, "--json")
    monkeypatch.setattr("edgerec_gym.evaluate.evaluate", interrupt)
    stopped = run(*arguments)
    assert stopped.exit_code == 130 and stopped.stdout == ""
    kept = f"interrupted: finished stages and checkpoints in {tmp_path} are kept; the same command resumes"
    assert stopped.stderr.splitlines()[-1] == kept
    monkeypatch.undo()
    monkeypatch.setattr(demo, "QUICK", demo.Sizes(40, 1, 1, 64, 5, 4))
    made = [*(tmp_path / "logs").glob("*.parquet"), *(tmp_path / "scenario").iterdir()]
    made += [
        *(tmp_path / "policy" / "checkpoints").rglob("*.*"),
        *(tmp_path / "policy" / "tensorboard").rglob("*.*"),
    ]
    written = {path: path.stat().st_mtime_ns for path in made}
    answer = json.loads(run_well(*arguments))
    assert {path: path.stat().st_mtime_ns for path in written} == written  # nothing was done again
    played = {row["policy"] for row in answer["results"]}
    assert played == {*demo.POLICIES, "pointer-ppo", "edgerec", "oracle"}
    report = tmp_path / "report"
    assert answer["report"] == str(report) and (report / "training.png").is_file()
    page = (tmp_path / "report.html").read_text()
    assert answer["page"] == str(tmp_path / "report.html")
    for title in ("Evaluation: EdgeFeed-v0", "Learning curves", "Training: pointer-ppo"):
        assert title in page
    assert "ground truth, best actions" in page  # the learning curve on the ground truth
    assert f"Session {demo.REPLAYED}: edgerec" in (tmp_path / "replay.html").read_text()
    monkeypatch.setattr("edgerec_gym.logs.collect.collect", interrupt)  # a finished demo does nothing
    assert run_well(*arguments[:-1]).rstrip().endswith(f"open in a browser: {tmp_path / 'report.html'}")
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
