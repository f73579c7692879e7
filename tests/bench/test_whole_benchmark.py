"""`edgerec bench`: contests, shifted users, rows, resumption, shipped runs, one's own policy, leaderboard."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import command_line
import gymnasium as gym
import numpy as np
import pytest
import small_track
from scipy.stats import trim_mean

from benchmarks import leaderboard
from edgerec_gym.bench import joint, shipped
from edgerec_gym.bench import run as whole
from edgerec_gym.bench import track as tracks
from edgerec_gym.bench.comparison import make_comparison
from edgerec_gym.bench.mix import prices
from edgerec_gym.bench.mix import track as mix
from edgerec_gym.bench.run import Order, plan, run, settings_of
from edgerec_gym.bench.shipped import ship
from edgerec_gym.bench.track import TRACKS, find_track
from edgerec_gym.bench.training import run_track
from edgerec_gym.config import SHIFTS, SyntheticUserConfig
from edgerec_gym.errors import InputError
from edgerec_gym.evaluation.cache import save_rows
from edgerec_gym.scenario import Scenario

SHIFT = "impatient"
MINE = """
class Last:
    name = "last"

    def reset(self, mask):
        pass

    def act(self, observation):
        mask = observation["action_mask"]
        return mask.shape[1] - 1 - mask[:, ::-1].argmax(axis=1)
"""


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A benchmark of one small track, which ships nothing yet; the folder of its runs."""
    monkeypatch.setitem(tracks.TRACKS, "rerank", small_track.TRACK)
    monkeypatch.setattr(tracks, "track_names", lambda: ("rerank",))
    monkeypatch.setattr(whole, "track_names", lambda: ("rerank",))
    monkeypatch.setattr(shipped, "SHIPPED_FOLDER", tmp_path / "shipped")
    return tmp_path / "runs"


def figures(rows: list[dict[str, Any]], metric: str, **wanted: Any) -> dict[str, dict[str, Any]]:
    fitting = [item for item in rows if wanted.items() <= item.items() and item["metric"] == metric]
    return {item["policy"]: item for item in fitting}


def timeless(rows: list[dict[str, Any]]) -> str:
    return str([item for item in rows if "second" not in item["metric"]])


def test_a_run_in_full_then_again_then_shipped(small: Path, tmp_path: Path) -> None:
    order, told = Order(tracks=("rerank",), seeds=2, shifts=(SHIFT,)), []
    rows = run(order, small, tmp_path / "results", workers=1, progress=lambda *a: told.append(a[2]))
    for item in rows:
        assert {"policy", "metric", "mean", "low", "high", "seeds", "sessions", "track"} <= item.keys()
    value = figures(rows, "value", shift="none")
    assert list(value) == ["keep", "greedy", "fresh", "oracle"] and len(value["fresh"]["by_seed"]) == 2

    # A score is the share of the way from keep to the oracle; tasks are the users as they are, and shifted.
    scores = []
    for shift in ("none", SHIFT):
        mean = {name: np.array(r["by_seed"]) for name, r in figures(rows, "value", shift=shift).items()}
        scores.append((mean["fresh"] - mean["keep"]) / (mean["oracle"] - mean["keep"]))
        closed = figures(rows, "gap_closed", shift=shift)["fresh"]["mean"]
        assert closed == pytest.approx(scores[-1].mean(), abs=1e-5)
    middle = figures(rows, "interquartile_mean")["fresh"]
    assert middle["mean"] == pytest.approx(trim_mean(np.array(scores), 0.25, axis=None), abs=1e-5)
    assert middle["low"] < middle["mean"] < middle["high"] and middle["tasks"] == 2

    pairs = [item for item in rows if item["metric"] == "difference"]
    assert len(pairs) == 3 and all(item["p"] <= item["p_holm"] <= 1 for item in pairs)
    for item in pairs:
        difference = value[item["policy"]]["mean"] - value[item["against"]]["mean"]
        assert item["mean"] == pytest.approx(difference, abs=1e-6) and difference >= 0
    [improved] = [item for item in rows if item["metric"] == "probability_of_improvement"]
    assert {improved["policy"], improved["against"]} == {"greedy", "fresh"} and 0 < improved["mean"] <= 1
    assert set(figures(rows, "exploitation_gap")) == {"greedy", "fresh"}
    for metric in ("policy_steps_per_second", "env_steps_per_second", "seconds"):
        assert figures(rows, metric)["fresh"]["low"] > 0

    content = json.loads((tmp_path / "results" / "benchmark.json").read_text())
    [about] = content["runs"]
    assert {"versions", "machine", "seeds", "sessions", "minutes"} <= about.keys()
    assert len(content["rows"]) == len(rows) and (tmp_path / "results" / "rerank.json").is_file()

    told.clear()
    again = run(order, small, tmp_path / "again", workers=1, progress=lambda *a: told.append(a[2]))
    assert str(again) == str(rows) and not told, "what was played is used again"

    # The runs of the first seed are shipped; a quick run plays them and trains nothing.
    [setting] = settings_of(order, small)
    run_of_seed_0 = small / "bench-rerank-lite/runs/fresh-0"
    for inside in ("uplift", "checkpoints/step-1"):
        (run_of_seed_0 / inside).mkdir(parents=True)
        (run_of_seed_0 / inside / "policy.json").write_text("{}")
    [folder] = ship(setting)
    assert (folder / "uplift/policy.json").is_file() and not (folder / "checkpoints").exists()
    assert folder == tmp_path / "shipped/lite/agents/rerank/runs/fresh-0"
    shutil.rmtree(small)
    quick = Order(tracks=("rerank",), quick=True, sessions=40, shifts=())
    rows = run(quick, small, small, workers=1)
    assert figures(rows, "value")["fresh"]["mean"] == pytest.approx(value["fresh"]["by_seed"][0], abs=1e-5)
    assert np.isnan(figures(rows, "interquartile_mean")["fresh"]["low"]), "one seed tells no spread"
    shutil.rmtree(tmp_path / "shipped")
    rows = run(quick, small, small, workers=1, tell=told.append)
    assert "fresh" not in figures(rows, "value") and told == ["rerank: no run of fresh; left out"]


def test_ones_own_policy_joins(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "module_of_mine.py"
    file.write_text(MINE)
    own, told = "module_of_mine:Last", []
    options = ("--track", "rerank", "--shift", "none", "--sessions", "20", "--workers", "1", "--json")
    result = command_line.run("bench", "--policy", own, "--policy", "greedy", *options)
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["rows"]
    assert set(figures(rows, "value")) == {"keep", "greedy", own, "oracle"}
    assert figures(rows, "gain_over_keep")[own]["high"] < 0 and own in figures(rows, "exploitation_gap")
    assert "0 of 0 runs to train" in result.stderr and not (tmp_path / "benchmarks").exists()
    order = Order(policies=(own,), sessions=20, shifts=())
    assert find_track("rerank").chosen(order.policies) == ("keep", "greedy", "fresh", own, "oracle")
    file.write_text(MINE.replace("1 - mask", "1 - 0 * mask"))  # its content decides what is played anew
    run(order, Path("runs"), Path("runs"), workers=1, progress=lambda *a: told.append(a[2]))
    assert own in told and "greedy" not in told


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--track", "nope"), "unknown track 'nope'; allowed: rerank, mix, request"),
        (("--policy", "nope"), "unknown policy 'nope'; allowed: keep, "),
        (("--policy", "no_module:Nope"), "cannot import 'no_module'"),
        (("--shift", "nope"), "unknown shift 'nope'; allowed: more-switching"),
        (("--scenario", "nope"), "scenario 'nope' has no ground truth; allowed: lite"),
        (("--quick", "rerank"), "options of 'rerank' must follow it"),
        (("request", "--policy", "keep"), "polic"),
    ],
)
def test_bad_input_ends_in_one_line(options: tuple[str, ...], message: str) -> None:
    command_line.fails_with(message, "bench", *options)


def test_every_track_names_its_policies(tmp_path: Path) -> None:
    lines = plan(Order(scenarios=("lite", "default")), tmp_path)
    for track in TRACKS.values():
        assert [line for line in lines if line.startswith(f"{track.name} on lite: ")]
        assert track.env_id in gym.registry
        [setting] = settings_of(Order(tracks=(track.name,), seeds=2), tmp_path)
        entries = setting.entries()
        policies = list(dict.fromkeys(entry.policy for entry in entries))
        known = setting.playable(track.names())
        assert len(policies) == len(known) and policies[0] == "keep"
        assert entries[-1].seed is None and not entries[-1].files, "the oracle is the last"
        assert setting.run_folders()
        assert "attainable" in policies
    assert len(TRACKS["rerank"].names()) >= 12
    for name in ("rerank", "joint"):
        [setting] = settings_of(Order(tracks=(name,), policies=("distilled-values",), seeds=1), tmp_path)
        assert [folder.name for folder in setting.run_folders()] == ["values-0"]
    assert joint.needed(["distilled-values"], "lite") == ("uplift-x", "distilled-values")
    assert joint.needed(["values-pg"], "lite") == ("uplift-x", "distilled-values", "values-pg")


@pytest.mark.parametrize("track", TRACKS)
def test_all_that_quick_plays_is_shipped(track: str, tmp_path: Path) -> None:
    [setting] = settings_of(Order(tracks=(track,), quick=True), tmp_path)
    comparison = make_comparison(setting)
    assert not comparison.missing
    assert comparison.entries[0].policy == comparison.keep
    known = setting.playable(TRACKS[track].names())
    assert len({entry.policy for entry in comparison.entries}) == len(known)


@pytest.mark.slow
def test_one_cell_again_from_its_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = mix.Sizes(
        log_sessions=150,
        held_sessions=200,
        sessions=6,
        price_sessions=6,
        frontier_sessions=3,
        hyper={"esan": {"epochs": 1, "hidden": 8}, "esan-pg": {"updates": 1, "batch_size": 4, "samples": 2}},
    )
    monkeypatch.setitem(mix.FULL, "lite", sizes)
    monkeypatch.setattr(mix, "ABLATIONS", {"esan": {}})
    fast = {"greedy": ("esan", "greedy"), "oracle + exact": (None, "greedy")}
    monkeypatch.setattr(mix, "PLANNERS", fast)
    monkeypatch.setattr(prices, "MOST_TRIALS", 1)
    order = Order(tracks=("mix",), seeds=1, policies=("greedy", "attainable"), shifts=())
    first, again = (run(order, tmp_path / name, tmp_path / name, workers=1) for name in ("a", "b"))
    assert timeless(first) == timeless(again)
    assert set(figures(first, "value")) == {"keep", "greedy", "attainable", "oracle + exact"}
    folder = tmp_path / "a" / "bench-mix-lite"
    alone = run_track("mix", folder, sizes=sizes, seeds=1, policies=("greedy", "attainable"), workers=1)
    for rows in (first, alone):
        for metric, best in (("attainable_gap_closed", "attainable"), ("gap_closed", "oracle + exact")):
            found = figures(rows, metric)
            assert found[best]["mean"] == 1 and "greedy" in found and "keep" not in found


# --- shifted users ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", SHIFTS)
def test_shifted_users_are_other_users_of_the_same_feed(shift: str) -> None:
    scenario = Scenario.load("lite")
    [(name, factor)] = SHIFTS[shift].items()
    assert scenario.synthetic is not None
    shifted = scenario.shifted(shift)
    assert getattr(shifted.synthetic, name) == pytest.approx(factor * getattr(scenario.synthetic, name))
    env = gym.make("EdgeFeedRerank-v0", scenario="lite", users="synthetic", shift=shift)
    plain = gym.make("EdgeFeedRerank-v0", scenario="lite", users="synthetic")
    first, other = env.reset(seed=3)[0], plain.reset(seed=3)[0]
    assert all(np.array_equal(first[key], other[key]) for key in first), "the cloud knows nothing of it"
    assert env.unwrapped.users.config == shifted.synthetic != plain.unwrapped.users.config


def test_shifts_are_of_known_synthetic_users() -> None:
    with pytest.raises(InputError, match="to synthetic users only"):
        gym.make("EdgeFeed-v0", scenario="lite", shift=SHIFT)
    with pytest.raises(InputError, match="unknown shift 'gone'"):
        SyntheticUserConfig().shifted("gone")


# --- the leaderboard --------------------------------------------------------------------------------------


def test_the_page_shows_what_the_results_say() -> None:
    wanted = leaderboard.page(leaderboard.ROOT / "benchmarks/results")
    assert leaderboard.PAGE.read_text(encoding="utf-8") == wanted, "run python -m benchmarks.leaderboard"


def test_the_leaderboard_ranks_and_prefers_full_runs(tmp_path: Path) -> None:
    assert "No run" in leaderboard.leaderboard(tmp_path)

    def made(policy: str, metric: str, mean: float, **more: Any) -> dict[str, Any]:
        interval = {"mean": mean, "low": mean - 1, "high": mean + 1}
        return {"policy": policy, "metric": metric, **interval, "seeds": 3, "sessions": 10, **more}

    rows = [made(name, "value", mean, shift="none") for name, mean in (("keep", 2), ("good", 4), ("mid", 3))]
    rows += [made("good", "difference", 2, against="keep", p=0.001, p_holm=0.002, shift="none")]
    rows += [made("good", "difference", 1, against="mid", p=0.1, p_holm=0.1, shift="none")]
    rows += [made("keep", "value", 99, shift=SHIFT), made("good", "gap_closed", 0.25, shift=SHIFT)]
    for track, quick in (("rerank", False), ("rerank", True), ("joint", True)):
        about = {"track": track, "scenario": "lite", "quick": quick, "seeds": 3, "sessions": 10_000}
        save_rows(tmp_path / "benchmark.json", rows[: None if not quick else 1], about, whole.SAME)
    lines = leaderboard.leaderboard(tmp_path).splitlines()
    assert lines[0] == "## joint, lite"
    assert lines[2].startswith("10,000 sessions, `--quick`, shipped runs (edgerec_gym ")
    assert [line.split(" | ")[0] for line in lines[6:8]] == ["| keep", ""]
    assert lines[8] == "## rerank, lite" and lines[10].startswith("10,000 sessions, 3 training seeds")
    assert lines[12] == f"| policy | value | gap closed {SHIFT} | better than |"
    assert [line.split(" | ")[0] for line in lines[14:]] == ["| good", "| mid", "| keep"]
    assert lines[14] == "| good | 4.000 | 25.0% | 1 |"
