"""The benchmark: play is cached by content, rows carry intervals, earlier rows stay, tracks run through."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from edgerec_gym.agents.registry import train_agent
from edgerec_gym.bench import rerank
from edgerec_gym.bench.rerank import Sizes, make_policy
from edgerec_gym.bench.training import collect_logs, run_track, track_setting
from edgerec_gym.errors import InputError
from edgerec_gym.evaluation.cache import (
    Entry,
    Place,
    content_key,
    played,
    row,
    run_jobs,
    save_rows,
    saved_rows,
    table,
)
from edgerec_gym.evaluation.intervals import mean_interval, seeds_interval
from edgerec_gym.logs.store import LogReader
from edgerec_gym.scenario import SIMULATOR_FILES, Scenario

PLACE = Place("EdgeFeedRerank-v0", "lite", sessions=12, num_envs=12, by_position=True)


def entry(name: str, **more: object) -> Entry:
    return Entry(name, make_policy, {"name": name}, **more)  # type: ignore[arg-type]


def fail(_: int) -> None:
    raise ValueError("broken")


def test_play_is_cached_by_content(tmp_path):
    told: list[str] = []
    first = played(
        [entry("keep"), entry("greedy")], PLACE, tmp_path, workers=1, progress=lambda *a: told.append(a[2])
    )
    again = played(
        [entry("greedy"), entry("keep")], PLACE, tmp_path, workers=1, progress=lambda *a: told.append(a[2])
    )
    assert told == ["keep", "greedy"]
    for key, sessions in first.items():
        assert all(np.array_equal(values, again[key][name]) for name, values in sessions.items())
    by_place = first["keep", None]
    assert by_place["exposures_by_position"].sum() == by_place["exposures"].sum()
    assert np.allclose(by_place["expected_clicks_by_position"].sum(1), by_place["expected_clicks"], atol=1e-4)


def test_processes_do_not_change_the_results(tmp_path):
    one = played([entry("keep"), entry("greedy")], PLACE, tmp_path / "one", workers=1)
    two = played([entry("keep"), entry("greedy")], PLACE, tmp_path / "two", workers=2)
    assert all(np.array_equal(one[key]["value"], two[key]["value"]) for key in one)


def test_the_key_follows_what_decides(tmp_path):
    run = tmp_path / "run.bin"
    run.write_bytes(b"a")
    keys = {
        content_key(entry("keep", files=(run,)), PLACE),
        content_key(entry("greedy", files=(run,)), PLACE),
    }
    keys.add(content_key(entry("keep", files=(run,)), Place("EdgeFeedRerank-v0", "lite", sessions=13)))
    run.write_bytes(b"b")
    keys.add(content_key(entry("keep", files=(run,)), PLACE))
    assert len(keys) == 4
    moved = tmp_path / "moved.bin"
    moved.write_bytes(b"b")
    one, two = (content_key(Entry("mine", make_policy, {"name": str(f)}, (f,)), PLACE) for f in (run, moved))
    assert one == two
    with pytest.raises(InputError, match="missing.bin does not exist"):
        content_key(entry("keep", files=(tmp_path / "missing.bin",)), PLACE)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_first_error_ends_all(workers):
    with pytest.raises(ValueError, match="broken"):
        list(run_jobs(int, [("broken",), ("1",), ("2",)], workers))  # a process need not load this file


def test_intervals_over_seeds_and_sessions():
    rng = np.random.default_rng(0)
    sessions = rng.normal(size=400)
    alone = seeds_interval([sessions[None]], lambda m: m[..., 0])
    usual = mean_interval(sessions)
    assert alone["mean"] == pytest.approx(usual["mean"])
    assert alone["high"] - alone["low"] == pytest.approx(usual["high"] - usual["low"], rel=0.15)
    apart = sessions + np.array([[-1.0], [0.0], [1.0]])  # training seeds differ more than sessions do
    wide = seeds_interval([apart], lambda m: m[..., 0])
    assert wide["high"] - wide["low"] > 1 > 5 * (alone["high"] - alone["low"])
    paired = seeds_interval([apart, sessions[None]], lambda m: m[..., 0] - m[..., 1])
    assert paired["mean"] == pytest.approx(0) and paired["low"] >= -1 and paired["high"] <= 1


def test_rows_of_other_runs_stay(tmp_path):
    file = tmp_path / "results" / "track.json"
    interval = {"mean": 1.0, "low": 0.5, "high": 1.5}
    for scenario, mean in (("lite", 1.0), ("default", 2.0), ("lite", 3.0)):
        rows = [row("keep", "value", {**interval, "mean": mean}, 1, 10)]
        save_rows(file, rows, {"scenario": scenario, "quick": False}, same=("scenario", "quick"))
    content = json.loads(file.read_text())
    assert [(item["scenario"], item["mean"]) for item in content["rows"]] == [("default", 2.0), ("lite", 3.0)]
    assert [run["scenario"] for run in content["runs"]] == ["default", "lite"]
    header, body = table(content["rows"][1:], {"value": ".1f 95%", "clicks": ".1f"})
    assert header == ["policy", "value", "clicks"] and body == [["keep", "3.0 [0.5, 1.5]", ""]]
    undefined = [row("keep", "ratio", dict.fromkeys(("mean", "low", "high"), float("nan")), 1, 10)]
    save_rows(file, undefined, {"scenario": "lite", "quick": True}, same=("scenario", "quick"))
    assert json.loads(file.read_text(), parse_constant=fail)["rows"][-1]["mean"] is None
    assert table(undefined, {"ratio": ".1f 95%"})[1] == [["keep", ""]]
    file.write_text("{}")
    with pytest.raises(InputError, match="rows is missing"):
        save_rows(file, [], {"scenario": "lite"}, same=("scenario",))
    with pytest.raises(InputError, match="is a folder"):
        saved_rows(tmp_path)


@pytest.mark.slow
def test_the_track_rerank_runs_through(tmp_path):
    hyper = {agent: {"epochs": 1, "hidden": 8} for agent in (*rerank.RERANKERS, "pointer", "evaluator")}
    hyper |= {"pointer-ppo": {"n_steps": 4, "n_epochs": 1, "hidden": 8}}
    hyper |= {name: {"updates": 1, "batch_size": 4} for name in ("pointer-evaluator", "pointer-users")}
    hyper |= {
        a: {"updates": 1, "sessions": 8, "select_sessions": 8} for a in ("distilled-values", "values-pg")
    }
    sizes = Sizes(log_sessions=150, sessions=8, learned_sessions=8, steps=512, hyper=hyper)
    rows = run_track("rerank", tmp_path, sizes=sizes, seeds=1, workers=1)
    policies = {item["policy"] for item in rows}
    assert policies >= {
        "keep",
        "oracle",
        "mmr on dnn",
        "crban",
        "pointer-users",
        "sequence-search",
        "pointer-ppo",
        "distilled-values",
        "values-pg",
    }
    gain = {item["policy"]: item for item in rows if item["metric"] == "gain_over_keep"}
    assert gain["oracle"]["low"] > 0 and gain["oracle"]["sessions"] == 8
    files = list((tmp_path / "played").glob("*.safetensors"))
    assert all(np.isfinite(values).all() for file in files for values in load_file(file).values())
    before = {file: file.stat().st_mtime_ns for file in files}
    assert run_track("rerank", tmp_path, sizes=sizes, seeds=1, workers=1) == rows  # nothing is done again
    assert {file: file.stat().st_mtime_ns for file in before} == before


def test_the_track_rerank_refuses_what_it_does_not_know(tmp_path):
    with pytest.raises(InputError, match="unknown policy 'best'"):
        run_track("rerank", tmp_path, policies=["best"])
    with pytest.raises(InputError, match="runs on lite, default, lite-v2, default-v2; got"):
        run_track("rerank", tmp_path, scenario="mine")


def with_columns(scenario: Scenario, folder: Path, names: tuple[str, ...]) -> str:
    """Save the scenario with other item columns; only its ground truth can be played."""
    values = np.random.default_rng(0).uniform(-1, 1, (len(scenario.catalog), len(names)))
    folder.mkdir()
    for name in SIMULATOR_FILES:
        shutil.copyfile(scenario.path / name, folder / name)
    config = scenario.config.replace(item_columns=names)
    replace(scenario, config=config, catalog=scenario.catalog.with_table(values)).save(folder)
    return str(folder)


def test_agents_learn_from_logs_with_the_columns_of_the_scenario(lite, tmp_path):
    scenario = with_columns(lite, tmp_path / "scenario", ("click_lift", "satisfaction_lift", "mine"))
    collect_logs(tmp_path / "logs", scenario, 150)
    reader, loaded = LogReader(tmp_path / "logs"), Scenario.load(scenario)
    assert reader.config == loaded.config
    assert np.array_equal(reader.catalog.columns, loaded.catalog.columns)
    assert reader.provenance["seed"] != loaded.provenance["seed"], "other sessions than the table's"
    train_agent("dnn", tmp_path / "run", logs=tmp_path / "logs", hyper={"epochs": 1, "hidden": 4})
    place = replace(PLACE, scenario=scenario, by_position=False)
    found = played(
        [entry("item-greedy"), Entry("dnn", make_policy, {"name": str(tmp_path / "run")})],
        place,
        tmp_path / "played",
        workers=1,
    )
    assert all(sessions["value"].sum() > 0 for sessions in found.values())


@pytest.mark.parametrize("track", ["rerank", "joint"])
def test_item_greedy_plays_where_there_is_a_table(track, lite, tmp_path):
    setting = track_setting(track, tmp_path, seeds=1)
    for names in ((), ("click_lift", "satisfaction_lift")):
        scenario = with_columns(lite, tmp_path / f"{len(names)}", names)
        entries = setting.track.code("entries")(replace(setting, scenario=scenario), ["keep", "item-greedy"])
        assert [found.policy for found in entries] == (["keep", "item-greedy"] if names else ["keep"])
