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
from command_line import fails_with, run_well, tiny_logs
from places import ROOT

import edgerec_gym
import edgerec_gym.agents
from edgerec_gym.logs import collect as collect_module
from edgerec_gym.logs.store import LogReader


@pytest.fixture(scope="module")
def logs(tmp_path_factory) -> Path:
    return tiny_logs(tmp_path_factory.mktemp("cli") / "logs")


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
        ("unknown preset 'lit'; did you mean 'lite'?", "collect --out x --preset lit"),
        ("unknown preset 'lit'; did you mean 'lite'?", "scenario --name lit"),
        ("either a preset or a scenario", "collect --out x --preset lite --scenario lite"),
        ("cannot randomise 'ordr'; allowed: order, insert, request", "collect --out x --randomise ordr"),
        (
            "'real' is not one of 'learned', 'synthetic'",
            "collect --out x --scenario lite --users real",
        ),
        ("no scenario 'nowhere'", "info nowhere"),
        (
            "no scenario 'nowhere': neither a folder nor shipped; shipped are default",
            "train --out x --scenario nowhere",
        ),
        ("unknown id 'EdgeFeed-v9'; did you mean 'EdgeFeed-v0'?", "evaluate keep --id EdgeFeed-v9"),
        ("unknown id 'EdgeFeed-v9'; did you mean 'EdgeFeed-v0'?", "train --out x --id EdgeFeed-v9"),
        ("unknown agent 'crbn'; did you mean 'crban'?", "train --out x --agent crbn"),
        ("agent 'crban' learns from logs: give a log folder with --logs", "train --out x --agent crban"),
        ("logs.json does not exist", "train --out x --agent crban --logs nowhere"),
        ("agent 'pointer-ppo' does not read --logs", "train --out x --logs nowhere"),
        ("PPOConfig has no field 'gama'; did you mean 'gamma'?", "train --out x --set gama=0.9"),
        ("PPOConfig.gamma = 1.5 is out of range; allowed: 0.0 to 1.0", "train --out x --set gamma=1.5"),
        ("--set 'gamma' must read NAME=VALUE", "train --out x --set gamma"),
        ("PPOConfig.gamma must be a number, got 'high'", "train --out x --set gamma=high"),
        ("GradientConfig.critic must be one of", "train --out x --agent values-pg --set critic=blind"),
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
        (
            "'real' is not one of 'learned', 'synthetic'",
            "replay keep --scenario lite --users real --out x.html",
        ),
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
    monkeypatch.setattr(edgerec_gym, "agents", edgerec_gym.agents)  # importing it anew sets another one
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
from edgerec_gym import files
from edgerec_gym.cli import main
from edgerec_gym.logs import collect
collect.SESSIONS_PER_PART = 10
rename = files.os.replace
def replace(source, target):
    if Path(target).name == "part-00002.parquet":
        Path(target).with_name("stopped").touch()
        time.sleep(60)
    rename(source, target)
files.os.replace = replace
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
