"""The benchmark of user models: its features, its figures, its rows; and networks with parts switched off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_log import CONFIG, columns, writer

from benchmarks import user_models, user_study
from benchmarks.user_baselines import BASELINES
from benchmarks.user_features import slot_features
from benchmarks.user_scores import Truth, auc_differences, over_seeds, resampled_auc
from edgerec_gym.errors import InputError
from edgerec_gym.evaluation.intervals import RESAMPLES
from edgerec_gym.evaluation.ranking import auc
from edgerec_gym.logs.sessions import LoggedSessions, SessionStream
from edgerec_gym.logs.store import LogReader
from edgerec_gym.simulator.dataset import padded
from edgerec_gym.simulator.fit import new_network
from edgerec_gym.simulator.model import UserNetwork
from edgerec_gym.simulator.pack import pack
from edgerec_gym.simulator.statistics import LogStatistics
from edgerec_gym.simulator.trainer import UserTrainer

SLOTS = 16  # placed in a session; the last one is not answered
ANSWERS = ("exposure_actions", "click", "page_view_actions")
CARDS = ("item", "card_type", "price_level", "base_ctr", "base_cvr", "freshness")


def permute(table: dict[str, Any], names: tuple[str, ...], first: int, last: int) -> None:
    """Reverse some columns within slots first .. last of every session."""
    n = len(table["slot"])
    rows = np.arange(n)
    inside = (rows % SLOTS >= first) & (rows % SLOTS <= last)
    source = np.where(inside, rows - rows % SLOTS + first + last - rows % SLOTS, rows)
    for name in names:
        table[name] = [table[name][k] for k in source]


def read_sessions(folder: Path, table: dict[str, Any]) -> LoggedSessions:
    w = writer(folder, unidentified=())
    w.write(table)
    w.finish()
    [sessions] = SessionStream(LogReader(folder), None).chunks()
    return sessions


def network_of(
    sessions: LoggedSessions, unidentified: tuple[str, ...] = (), behaviour: bool = True
) -> UserNetwork:
    seen = LogStatistics(CONFIG, 0)
    seen.add(sessions)
    return new_network(CONFIG, unidentified, seen, seed=0, behaviour=behaviour).eval()


@torch.no_grad()
def click_logits(network: UserNetwork, sessions: LoggedSessions) -> np.ndarray:
    """Of every answered slot before its dwell is known, (S, slots)."""
    every = np.arange(len(sessions))
    logits, _ = network.forward_sequence(padded(sessions, every, np.ones(len(every))))
    return torch.logit(logits["click_probability"]).view(len(every), -1).numpy()


@pytest.fixture
def original(tmp_path: Path) -> LoggedSessions:
    return read_sessions(tmp_path / "original", columns([SLOTS] * 40))


@pytest.fixture
def other_answers(tmp_path: Path) -> LoggedSessions:
    """The same cards, answered otherwise."""
    table = columns([SLOTS] * 40)
    permute(table, ANSWERS, 0, SLOTS - 2)
    return read_sessions(tmp_path / "answers", table)


def test_a_network_without_behaviour_knows_no_earlier_answer_or_card(tmp_path, original, other_answers):
    ablated, full = network_of(original, behaviour=False), network_of(original)
    np.testing.assert_array_equal(click_logits(ablated, other_answers), click_logits(ablated, original))
    changed = click_logits(full, other_answers) != click_logits(full, original)
    assert changed[:, 1:].mean() > 0.9
    table = columns([SLOTS] * 40)
    permute(table, CARDS, 0, 4)
    other_cards = read_sessions(tmp_path / "cards", table)
    far = slice(7, None)  # two cards before slot 7 stand where they stood
    np.testing.assert_array_equal(
        click_logits(ablated, other_cards)[:, far], click_logits(ablated, original)[:, far]
    )
    assert (click_logits(ablated, other_cards) != click_logits(ablated, original))[:, 3:7].any()
    assert (click_logits(full, other_cards) != click_logits(full, original))[:, far].mean() > 0.9


def test_a_network_without_neighbours_sees_no_card_beside(tmp_path, original):
    table = columns([SLOTS] * 40)
    permute(table, CARDS, 6, 13)
    others = read_sessions(tmp_path / "cards", table)
    full, ablated = network_of(original), network_of(original, ("neighbours",))
    # Slot 5 stands before the cards that moved; slot 4 has one of them after it.
    before = slice(0, 6)
    np.testing.assert_array_equal(
        click_logits(ablated, others)[:, before], click_logits(ablated, original)[:, before]
    )
    assert (click_logits(full, others) != click_logits(full, original))[:, 4:6].mean() > 0.8


def test_a_network_without_behaviour_is_not_exported(original):
    with pytest.raises(InputError, match="behaviour=False is for comparison only"):
        pack(network_of(original, behaviour=False))


@pytest.mark.parametrize("slot", [0, 4, 9])
def test_features_do_not_look_ahead(tmp_path, original, slot):
    table = columns([SLOTS] * 40)
    permute(table, ANSWERS, slot, SLOTS - 2)
    permute(table, CARDS, slot + CONFIG.lookahead + 1, SLOTS - 1)
    encoder = network_of(original).inputs
    wanted = slot_features(original, encoder, False).reshape(40, SLOTS - 1, -1)
    found = slot_features(read_sessions(tmp_path / "future", table), encoder, False).reshape(wanted.shape)
    np.testing.assert_array_equal(found[:, : slot + 1], wanted[:, : slot + 1])
    assert (found != wanted).any(2)[:, slot + 1].mean() > 0.9  # the next slot knows


def test_features_of_a_frozen_page_know_its_start_only(original, other_answers):
    encoder = network_of(original, ("order_within_page",)).inputs
    wanted, found = (
        slot_features(sessions, encoder, True).reshape(40, SLOTS - 1, -1)
        for sessions in (original, other_answers)
    )
    np.testing.assert_array_equal(found[:, :5], wanted[:, :5])  # pages of five
    assert (found != wanted).any(2)[:, 5:].mean() > 0.9


def test_behaviour_features_are_decayed_sums(original):
    network = network_of(original)
    features = slot_features(original, network.inputs, False).reshape(40, SLOTS - 1, -1)
    t, decay = 6, 0.9
    rows = original.starts[0] + np.arange(t + 1)
    vectors = original.catalog.embeddings[original.item[rows]]
    weight = original.actions[rows[:t], 0] * decay ** np.arange(t - 1, -1, -1)
    total = (weight[:, None] * vectors[:t]).sum(0)
    column = 2 * 4 + 1  # third decay, dwell
    match, cosine, length, count = features[0, t, -64:].reshape(4, 16)[:, column]
    np.testing.assert_allclose(match, total @ vectors[t], atol=1e-5)
    np.testing.assert_allclose(cosine, total @ vectors[t] / np.linalg.norm(total), atol=1e-5)
    np.testing.assert_allclose([length, count], [np.linalg.norm(total), weight.sum()], atol=1e-5)


def test_intervals_over_seeds():
    found = over_seeds([1.0, 2.0, 3.0])
    assert found["mean"] == 2 and found["by_seed"] == [1, 2, 3]
    assert found["high"] - 2 == pytest.approx(4.3027 / 3**0.5, rel=1e-4) == 2 - found["low"]
    assert over_seeds([1.0]) == {"mean": 1, "low": None, "high": None, "by_seed": [1]}
    assert over_seeds([None, 1.0])["mean"] is None


def test_resampled_auc_is_that_of_the_resampled_sessions():
    rng = np.random.default_rng(1)
    session = np.repeat(np.arange(12), 5)
    score = np.round(rng.random(60), 1)  # with ties
    click = rng.random(60) < 0.2 + 0.6 * score
    truth = Truth({"click": click}, session, session)
    found = resampled_auc(score, truth, seed=4)
    assert found.shape == (RESAMPLES,)
    counts = np.random.default_rng(4).multinomial(12, np.full(12, 1 / 12), size=50)
    for k in range(3):
        rows = np.repeat(np.arange(60), counts[k][session])
        assert found[k] == pytest.approx(auc(score[rows], click[rows]))
    same, worse = {"click": score}, {"click": score + rng.normal(0, 1, 60)}
    differences = auc_differences({"same": [same], "worse": [worse], "full": [same, same]}, "full", truth)
    assert differences["same"] == {"mean": 0, "low": 0, "high": 0}
    assert differences["worse"]["low"] < differences["worse"]["mean"] < 0 and "full" not in differences


def taste_log(folder: Path) -> Path:
    """Clicks come from the match of user and item; half of the sessions of each day end by leaving."""
    w = writer(folder, unidentified=())
    rng = np.random.default_rng(0)
    for part in range(3):
        table = columns([SLOTS] * 80, first=part * 80, seed=part)
        user = np.repeat(np.stack(table["user_features"][::SLOTS]), SLOTS, axis=0)[:, :3]
        pleased = (user * w.catalog.embeddings[table["item"]]).sum(1) > 0.1
        click = table["answered"] & (rng.random(len(pleased)) < np.where(pleased, 0.6, 0.05))
        table["click"] = [bool(c) if a else None for c, a in zip(click, table["answered"], strict=True)]
        table["page_view_actions"] = [rng.random(11) if c else None for c in click]
        left = (table["slot"] == SLOTS - 2) & (table["session"] // 4 % 2 == 0)
        table["leave"] = [bool(x) if a else None for x, a in zip(left, table["answered"], strict=True)]
        w.write(table)
    w.finish()
    return folder


@pytest.mark.slow
def test_every_row_computes_and_finished_fits_are_kept(tmp_path, monkeypatch, capsys):
    log, out = taste_log(tmp_path / "tastes"), tmp_path / "results.json"
    command = [str(log), "--quick", "--work", str(tmp_path / "work"), "--out", str(out)]
    out.write_text('{"earlier": {}}')
    user_models.main([*command, "--seeds", "1"])
    assert "training seeds" in capsys.readouterr().out
    one = json.loads(out.read_text())
    assert set(one) == {"earlier", "tastes-quick"}
    rows = {row["model"]: row for row in one["tastes-quick"]["rows"]}
    assert list(rows) == [*BASELINES, *user_models.NETWORKS]
    for row in rows.values():
        assert all(0 < row[column]["mean"] < 1 for column in user_models.COLUMNS), row
    assert rows["rates by position"]["click_auc"]["mean"] < 0.6
    assert min(rows[name]["click_auc"]["mean"] for name in ("logistic regression", "boosted trees")) > 0.68
    assert rows["rates by position"]["leave_auc"]["mean"] > 0.9  # sessions of this log end at one slot
    assert rows["rates by position"]["click_auc_minus_ensemble"]["mean"] == pytest.approx(
        rows["rates by position"]["click_auc"]["mean"] - rows[user_models.ENSEMBLE]["click_auc"]["mean"]
    )

    def refuse(*_: Any) -> None:
        raise AssertionError("a finished fit is done again")

    with monkeypatch.context() as patch:
        patch.setattr(UserTrainer, "run_epoch", refuse)
        patch.setattr(user_study, "answered_slots", refuse)
        user_models.main([*command, "--seeds", "1"])
    assert json.loads(out.read_text()) == one
    user_models.main([*command, "--seeds", "2"])
    for row in json.loads(out.read_text())["tastes-quick"]["rows"]:
        earlier = rows[row["model"]]["click_auc"]
        assert row["click_auc"]["by_seed"][0] == earlier["mean"] and earlier["low"] is None
        deterministic = row["model"] in ("rates by position", "logistic regression")
        assert (row["click_auc"]["low"] is None) == deterministic
    with pytest.raises(SystemExit, match="holds an unfinished fit with epochs = 2, not 20"):
        user_models.main([argument for argument in command if argument != "--quick"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--seeds", "0"], "--seeds must be at least 1, got 0"), ([], "does not exist")],
)
def test_bad_input_is_one_line(tmp_path, arguments, message):
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):
        user_models.main([str(tmp_path / "nothing"), *arguments])
