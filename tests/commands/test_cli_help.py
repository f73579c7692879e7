"""Help, tables of what there is, and hints of the command line."""

import json
import re
import shlex
from typing import Any, get_args

import pytest
from command_line import fails_with, run, run_well
from typer.main import get_command

from edgerec_gym.agents.registry import AGENTS
from edgerec_gym.agents.run_place import RunPlace, common_place, run_place
from edgerec_gym.cli import GROUPS, app
from edgerec_gym.commands import catalogue, console, options
from edgerec_gym.config import SYNC_MODES
from edgerec_gym.device.engines.engine import ENGINES
from edgerec_gym.errors import InputError, closest
from edgerec_gym.files import write_json
from edgerec_gym.registration import IDS
from edgerec_gym.scenario import SHIPPED
from edgerec_gym.users import USERS

COMMAND = get_command(app)


def subcommands(group: Any, name: str = "") -> list[tuple[str, Any]]:
    found = []
    for key, command in group.commands.items():
        full = f"{name} {key}".strip()
        found += [(full, command), *(subcommands(command, full) if hasattr(command, "commands") else [])]
    return found


def test_every_command_is_listed_once_and_its_first_sentence_is_whole(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    listed = [name for group in GROUPS.values() for name in group]
    assert sorted(listed) == sorted(COMMAND.commands)
    for arguments in (["-h"], ["bench", "--help"], ["registry", "-h"]):
        text = run_well(*arguments)
        assert "..." not in text.replace("[ARGS]...", ""), text
    assert [line[:-1] for line in run_well("-h").splitlines() if line.endswith(":")][1:] == list(GROUPS)


@pytest.mark.parametrize("name", [name for name, _ in subcommands(COMMAND)])
def test_short_help(name):
    assert "Usage: " in run_well(*name.split(), "-h")


@pytest.mark.parametrize("name", [name for group in GROUPS.values() for name in group])
def test_examples_can_be_copied(name):
    """The example stands in the help, and its options are those of the command."""
    example = next(group[name].example for group in GROUPS.values() if name in group)
    assert example in run_well(name, "-h")
    words = shlex.split(example)
    assert words[:2] == ["edgerec", name]
    context = COMMAND.make_context("edgerec", ["--version"], resilient_parsing=True)
    command, rest = COMMAND.commands[name], words[2:]
    while hasattr(command, "commands") and rest and rest[0] in command.commands:
        command, rest = command.commands[rest[0]], rest[1:]
    command.make_context(name, rest, parent=context)


def test_enumerations_are_those_of_the_code():
    assert get_args(options.Users) == USERS
    assert set(get_args(options.Engine)) == set(ENGINES)
    assert get_args(options.Sync) == SYNC_MODES
    assert list(catalogue.ABOUT) == list(SHIPPED) and catalogue.DECIDES.keys() == set(IDS.values())


def test_tables_of_what_there_is():
    assert [row["agent"] for row in json.loads(run_well("agents", "--json"))][: len(AGENTS)] == list(AGENTS)
    assert [row["id"] for row in json.loads(run_well("tracks", "--json"))] == list(IDS)
    assert [row["scenario"] for row in json.loads(run_well("scenarios", "--json"))] == list(SHIPPED)
    for command, names in (("agents", AGENTS), ("tracks", IDS), ("scenarios", SHIPPED)):
        text = run_well(command)
        assert all(re.search(rf"^{re.escape(name)}\s", text, re.MULTILINE) for name in names)


def test_a_narrow_terminal_drops_columns_and_keeps_names(monkeypatch, capsys):
    monkeypatch.setattr(console, "WIDE", 40)
    name = "a-policy-with-a-long-name"
    console.print_table("Values", ["policy", "value", "gain", "clicks"], [[name, "1.25", "+0.5 [0, 1]", "3"]])
    text = capsys.readouterr().out
    assert name in text and "1.25" in text and "+0.5" not in text
    assert "left out in 40 columns: gain, clicks; --json has all" in " ".join(text.split())


def test_progress_without_a_terminal_is_a_line_now_and_then(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    with console.progress_bar("train") as update:
        for second in range(25):
            now[0] = float(second)
            update(second, 30, "reward 1.5")
    assert capsys.readouterr().err.splitlines() == [
        "train: 10 of 30 after 10 s, reward 1.5",
        "train: 20 of 30 after 20 s, reward 1.5",
    ]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("crbn", "; did you mean 'crban'?"),
        ("CRBAN", "; did you mean 'crban'?"),
        ("q", "; allowed: dnn, crban"),
        ("", "; allowed: dnn, crban"),
    ],
)
def test_closest(name, hint):
    assert closest(name, ("dnn", "crban")) == hint


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("unknown policy 'device-gredy'; did you mean 'device-greedy'?", "evaluate device-gredy"),
        ("no such folder: runs/ppo", "evaluate runs/ppo"),
        ("no such folder: runs/ppo", "replay runs/ppo --out x.html"),
        ("did you mean 'EdgeFeedMix-v0'?", "evaluate keep --id EdgeFeedMx-v0"),
        ("did you mean 'lite-v2'?", "evaluate keep --scenario lite-v3"),
        ("unknown shift 'impatien'; did you mean 'impatient'?", "bench --quick --shift impatien --out b"),
        ("unknown track 'reranc'; did you mean 'rerank'?", "bench --quick --track reranc --out b"),
        ("agent 'dnn' does not read --steps; it reads --logs", "train --agent dnn --steps 5 --out x"),
        ("agent 'dnn' does not read --users", "train --agent dnn --users learned --out x"),
        ("agent 'pointer-ppo' does not read --rules", "train --rules r.toml --out x"),
        ("agent 'values-pg' does not read --id", "train --agent values-pg --id EdgeFeed-v0 --out x"),
        ("unknown agent 'crbn'; did you mean 'crban'?", "train --agent crbn --out x"),
        ("no scenario 'nowhere'", "collect --scenario nowhere --out x"),
        ("logs.json does not exist", "fit nowhere --out x"),
        ("nowhere holds no trained policy", "export nowhere --out x"),
        ("nowhere holds no trained policy", "compress nowhere --out x"),
        ("unknown policy 'nope'", "evaluate nope --scenario lite --out x"),
        ("model.zip is a stable-baselines3 model", "evaluate model.zip --scenario lite --out x"),
    ],
)
def test_mistakes_are_named_and_leave_nothing_behind(message, arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fails_with(message, *arguments.split())
    assert list(tmp_path.iterdir()) == []


def test_a_policy_that_is_a_file(tmp_path):
    (tmp_path / "model.pt").touch()
    fails_with("model.pt is a file; allowed", "evaluate", tmp_path / "model.pt", "--scenario", "lite")


def record(folder, **content):
    values = {"agent": "dnn", "track": "rerank", "hyper": {}, "sizes": {}, "steps": 1}
    write_json(folder / "policy.json", values | content)
    return str(folder)


def test_runs_tell_where_they_play(tmp_path):
    for name in ("a", "b", "c", "d", "e"):
        (tmp_path / name).mkdir()
    logged = record(tmp_path / "a", logs={"provenance": {"preset": "lite-v2"}})
    played = record(tmp_path / "b", track="joint", scenario={"name": "lite", "sha256": "0"})
    own = record(tmp_path / "c", track="mix", scenario="mine", scenario_folder=str(tmp_path))
    other = record(tmp_path / "d", track="mix", scenario="gone")
    assert run_place(logged) == RunPlace("EdgeFeedRerank-v0", "lite-v2")
    assert run_place(played) == RunPlace("EdgeFeed-v0", "lite")
    assert run_place(own) == RunPlace("EdgeFeedMix-v0", str(tmp_path))
    assert run_place(other) == RunPlace("EdgeFeedMix-v0", None)
    assert common_place(["keep", logged], None, None) == ("EdgeFeedRerank-v0", "lite-v2")
    assert common_place(["keep", logged], "EdgeFeed-v0", None) == ("EdgeFeed-v0", "lite-v2")
    assert common_place(["keep"], None, None) == ("EdgeFeed-v0", "default")
    with pytest.raises(InputError, match="plays EdgeFeedRerank-v0, .* EdgeFeed-v0; say which with --id"):
        common_place([logged, played], None, None)
    with pytest.raises(InputError, match="plays lite-v2, .* plays lite; say which with --scenario"):
        common_place([logged, played], "EdgeFeed-v0", None)
    gone = record(tmp_path / "e", scenario_folder=str(tmp_path / "moved"))
    with pytest.raises(InputError, match="trained in the scenario .*moved, which is gone; give --scenario"):
        run_place(gone)


def test_evaluate_and_replay_find_scenario_and_id_in_a_run(tmp_path):
    out = tmp_path / "run"
    pytest.importorskip("sb3_contrib")
    small = ("--num-envs", 4, "--steps", 16, "--set", "n_steps=4", "--set", "batch_size=16")
    trained = run("train", "--id", "EdgeFeedMix-v0", "--scenario", "lite", "--out", out, *small)
    assert trained.exit_code == 0, trained.output
    assert f"next: edgerec evaluate {out}" in trained.stderr
    rows = json.loads(run_well("evaluate", out, "--sessions", 4, "--users", "learned", "--json"))
    assert {(row["env_id"], row["scenario"]) for row in rows} == {("EdgeFeedMix-v0", "lite")}
    about = json.loads(run_well("replay", out, "--out", tmp_path / "page.html", "--json"))
    assert about["scenario"] == "lite"
