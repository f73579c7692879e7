"""Whole sessions of rollouts against those of the log: what is weak, and what a log cannot tell."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command_line import run
from small_log import CONFIG, columns, writer

from edgerec_gym.answers import CLICK, LEAVE, PAGE_AGE, SINCE_PAGE_VIEW, SLOT
from edgerec_gym.fidelity.offer import check_offer, offer_figures, weak_offer
from edgerec_gym.fidelity.two_sample import session_features, two_sample
from edgerec_gym.logs.sessions import LoggedSessions, SessionStream
from edgerec_gym.logs.store import LogReader
from edgerec_gym.scenario import SHIPPED_FOLDER, UNIDENTIFIED, Scenario
from edgerec_gym.simulator.fit import fit

UNKNOWN = frozenset({"leave", "exposure_actions", "position", "page_view_duration", "page_view_actions"})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of 300 sessions, which does not tell when users leave."""
    folder = tmp_path_factory.mktemp("offer")
    w = writer(folder / "logs", config=CONFIG.replace(cloud={"supply": "logged"}))
    w.write(columns([11] * 300))
    w.finish()
    return folder


@pytest.fixture(scope="module")
def log(folder: Path) -> LoggedSessions:
    (sessions,) = SessionStream(LogReader(folder / "logs"), None).chunks()
    return sessions


def with_actions(sessions: LoggedSessions, column: int, values: np.ndarray | float) -> LoggedSessions:
    actions = sessions.actions.copy()
    actions[:, column] = values
    return replace(sessions, actions=actions)


def halves(log: LoggedSessions) -> tuple[LoggedSessions, LoggedSessions]:
    order = np.random.default_rng(0).permutation(len(log))
    return log.select(order[::2]), log.select(order[1::2])


def test_equal_sessions_do_not_differ(log):
    figures = offer_figures(log, log)
    for name in ("click_rate", "length"):
        assert figures[name]["difference"] == 0 and not figures[name]["weak"]
        assert figures[name]["low"] <= 0 <= figures[name]["high"]
    assert figures["length"]["log"] == 10
    assert figures["click_rate"]["log"] == pytest.approx(log.actions[:, CLICK].sum() / 3000)
    assert figures["items"]["distance"] == 0 and not figures["items"]["weak"]
    assert weak_offer(figures) == []
    again = offer_figures(log, log)
    assert again == figures != offer_figures(log, log, seed=1)
    assert weak_offer(offer_figures(*halves(log))) == []  # chance is not called weak


def test_a_shifted_click_rate_is_weak(log):
    more = np.maximum(log.actions[:, CLICK], np.random.default_rng(0).random(len(log.item)) < 0.3)
    figures = offer_figures(log, with_actions(log, CLICK, more))
    found = figures["click_rate"]
    assert found["weak"] and found["low"] > 0.5 and found["low"] < found["difference"] < found["high"]
    (text,) = weak_offer(figures)
    assert text.startswith("click rate 0.") and "in the log (+" in text


def test_shorter_sessions_are_weak(log):
    figures = offer_figures(log, replace(log, answered=log.answered - 3))
    assert figures["length"]["weak"] and figures["length"]["difference"] == pytest.approx(-0.3)
    assert weak_offer(figures) == ["session length 7 in rollouts, 10 in the log (-30%)"]


def test_other_items_are_weak(log):
    figures = offer_figures(log, replace(log, item=np.minimum(log.item, 5)))
    assert figures["items"]["weak"] and figures["items"]["distance"] == pytest.approx(0.5, abs=0.05)
    (text,) = weak_offer(figures)
    assert text.startswith("items shown differ from the log's by 0.5")


def test_two_rates_of_zero_are_equal(log):
    never = with_actions(log, CLICK, 0)
    figures = offer_figures(never, never)
    assert figures["click_rate"]["difference"] == 0 and not figures["click_rate"]["weak"]
    assert offer_figures(never, log)["click_rate"]["weak"] and offer_figures(log, never)["click_rate"]["weak"]


def test_the_classifier_never_sees_what_the_log_does_not_tell(log):
    """The log has zeros where it knows nothing; rollouts have values that users made up."""
    rng = np.random.default_rng(0)
    ours, theirs = halves(log)
    actions, context = theirs.actions.copy(), theirs.context.copy()
    actions[:, [0, *range(1, CLICK), *range(CLICK + 1, LEAVE)]] = 1
    actions[:, LEAVE] = np.arange(len(actions)) % 11 == 9  # the last answered slot
    context[:, [SLOT, PAGE_AGE, SINCE_PAGE_VIEW]] = rng.integers(0, 50, (len(context), 3))
    made_up = replace(theirs, actions=actions, context=context)
    assert two_sample(ours, made_up, repeats=2)["auc"] > 0.99
    told = two_sample(ours, made_up, UNKNOWN, repeats=2)
    assert abs(told["auc"] - 0.5) < 0.1 and not told["weak"]
    assert told["auc"] == two_sample(ours, theirs, UNKNOWN, repeats=2)["auc"]
    leaving = replace(theirs, actions=np.where(np.arange(LEAVE + 1) == LEAVE, actions, theirs.actions))
    assert two_sample(ours, leaving, repeats=2)["auc"] > 0.99
    assert abs(two_sample(ours, leaving, frozenset({"leave"}), repeats=2)["auc"] - 0.5) < 0.1


@pytest.mark.parametrize("unknown", UNIDENTIFIED)
def test_each_unknown_leaves_out_features_of_its_own(log, unknown):
    values, names = session_features(log)
    fewer, kept = session_features(log, frozenset({unknown}))
    assert set(kept) <= set(names) and {"length", "clicks", "base_ctr"} <= set(kept)
    assert len(kept) < len(names) or unknown in ("neighbours", "categories", "order_within_page")
    assert np.array_equal(values[:, [names.index(name) for name in kept]], fewer, equal_nan=True)


def test_a_fit_checks_its_rollouts_and_the_check_repeats(folder):
    figures = fit(folder / "logs", folder / "users", ensemble=1, epochs=1, hidden=8, check=check_offer)
    rollouts = figures["rollouts"]
    assert {"click_rate", "length", "items", "two_sample", "weak"} <= set(rollouts)
    assert rollouts["length"]["simulated"] == rollouts["length"]["log"] == 10  # as long as logged visits
    assert "left" not in rollouts["two_sample"]["most_telling"]
    scenario = Scenario.load(folder / "users")
    assert scenario.fidelity["rollouts"] == rollouts == check_offer(scenario, folder / "logs")
    assert scenario.weakness() == "; ".join(rollouts["weak"])


# Commands say so


@pytest.fixture
def weak_users(tmp_path: Path) -> Path:
    """The shipped users of lite, said to be weak in two ways."""
    out = tmp_path / "users"
    shutil.copytree(SHIPPED_FOLDER / "lite", out)
    described = json.loads((out / "scenario.json").read_text())
    described["fidelity"]["rollouts"] = {"weak": ["click rate 92 in rollouts", "too short"]}
    (out / "scenario.json").write_text(json.dumps(described))
    return out


NOTE = "note: the users of scenario 'lite' are weak: click rate 92 in rollouts; too short"
PPO = ("--num-envs", 4, "--set", "n_steps=8", "--set", "batch_size=16", "--steps", 32)


@pytest.mark.parametrize(
    "command",
    [("evaluate", "random", "--sessions", 4, "--users", "learned"), ("train", *PPO)],
    ids=["evaluate", "train"],
)
def test_commands_note_weak_users_in_one_line(weak_users, tmp_path, command):
    arguments = (*command, "--id", "EdgeFeedRequest-v0", "--scenario", weak_users)
    out = ("--out", tmp_path / "run") if command[0] == "train" else ()
    found = run(*arguments, *out, "--json")
    assert found.exit_code == 0, found.output
    assert found.stderr.splitlines().count(NOTE) == 1 and "click rate 92" not in found.stdout
    json.loads(found.stdout)
    other = ("--out", tmp_path / "other") if out else ()
    quiet = run(*(part for part in arguments if part not in ("--users", "learned")), "--users", "synthetic",
                "--json", *other)  # fmt: skip
    assert quiet.exit_code == 0 and "note:" not in quiet.stderr


def test_good_users_need_no_note():
    result = run("evaluate", "random", "--scenario", "lite", "--sessions", 4, "--users", "learned")
    assert result.exit_code == 0 and "note:" not in result.stderr


@pytest.mark.parametrize("fidelity", [{}, {"rollouts": None}, {"rollouts": {"weak": []}}, {"rollouts": {}}])
def test_a_scenario_without_a_check_has_no_weakness(lite, fidelity):
    assert replace(lite, fidelity=fidelity).weakness() == ""
