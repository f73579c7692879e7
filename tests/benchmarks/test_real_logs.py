"""The study of real logs: features look strictly back; the command resumes and refuses bad input."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_table
from small_log import N_GOODS, columns, writer

from benchmarks import click_baselines, real_logs
from benchmarks.click_baselines import CLICK_BASELINES, ClickTask
from benchmarks.streaming_features import HOUR, PlacedSlots, answers_above, hourly_rate, streaming_slots
from benchmarks.user_scores import Truth, auc_differences, resampled_page_auc
from edgerec_gym.documents import read_json
from edgerec_gym.errors import InputError
from edgerec_gym.evaluation.ranking import grouped_auc
from edgerec_gym.logs.store import LogReader
from edgerec_gym.logs.table import import_table

DAYS = 4


def made_up(seed: int = 0, sessions: int = 80) -> tuple[dict[str, Any], np.ndarray]:
    """Sessions of few users that overlap, some over an hour long, and the true second of every slot."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 16, sessions)
    table = columns(lengths.tolist(), seed=seed)
    of = np.repeat(np.arange(sessions), lengths)
    start = np.sort(rng.integers(0, DAYS * 24 * HOUR, sessions))[of]
    time = np.round(np.array(table["slot"]) * rng.choice([0.5, 60.0, 700.0], sessions)[of], 1)
    table |= {"day": start // (24 * HOUR), "hour": start // HOUR % 24, "time": time, "user": of % 4}
    return table, start + time


def read(folder: Path, table: dict[str, Any], unidentified: tuple[str, ...] = ()) -> LogReader:
    log = writer(folder, unidentified=unidentified)
    log.write(table)
    log.finish()
    return LogReader(folder)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_later_slots_change_no_feature(tmp_path: Path, seed: int, share: float) -> None:
    table, second = made_up(seed)
    rng = np.random.default_rng(seed)
    cut = np.quantile(second, share)
    page = np.unique(np.stack([table["session"], table["page"]]), axis=1, return_inverse=True)[1]
    begun = np.full(page.max() + 1, np.inf)
    np.minimum.at(begun, page, second)
    begun = begun[page]
    changed = dict(table)
    late = begun >= cut
    item = np.array(table["item"])
    item[late] = rng.permutation(item[late])
    changed["item"], changed["card_type"] = item, (item >= N_GOODS).astype(int)
    for name in ("price_level", "base_ctr"):
        changed[name] = np.where(late, rng.random(len(late)), table[name])
    changed["click"] = [
        c if c is None or s < cut else not c for c, s in zip(table["click"], second, strict=True)
    ]
    # Page views exist only where there was a click.
    changed["page_view_actions"] = table["page_view_actions"] = [None] * len(late)
    before, after = (
        streaming_slots(PlacedSlots(read(tmp_path / name, log)))
        for name, log in (("before", table), ("after", changed))
    )
    early = ~late[np.array(table["answered"])]
    names = [name for name in before.features.columns if name in after.features.columns]
    assert {"item_rate_1h", "user_views_ever", "item_age", "price_level_in_page", "position"} <= set(names)
    for name in names:
        a, b = (slots.features[name].to_numpy()[early] for slots in (before, after))
        np.testing.assert_array_equal(a, b, err_msg=name)
    assert not before.features[names].equals(after.features[names])


def three_sessions(gap: float) -> dict[str, Any]:
    """Item 1 in three sessions: by user 0 on two pages, by user 1 `gap` seconds later, by user 0 next day."""
    table = columns([3, 2, 2])
    n = 7
    return table | {
        "user": [0, 0, 0, 1, 1, 0, 0],
        "day": [0, 0, 0, 0, 0, 1, 1],
        "hour": [0, 0, 0, 0, 0, 5, 5],
        "time": [0.0, 10.0, 10.0, gap, gap + 1, 0.0, 1.0],
        "page": [0, 1, 1, 0, 0, 0, 0],
        "page_age": [0, 0, 1, 0, 1, 0, 1],
        "item": [1, 1, 2, 1, 2, 1, 2],
        "card_type": [0] * n,
        "answered": [True] * n,
        "click": [True, False, True, False, True, False, False],
        "exposure_actions": [None] * n,
        "page_view_actions": [None] * n,
        "leave": [None] * n,
    }


@pytest.mark.parametrize(
    ("gap", "views"),
    [(10.0, 0), (3599.0, 0), (3600.0, 1), (3609.0, 1), (3610.0, 2)],
)
def test_counts_by_hand(tmp_path: Path, gap: float, views: int) -> None:
    reader = read(tmp_path / "log", three_sessions(gap), ("leave", "exposure_actions", "page_view_actions"))
    placed = PlacedSlots(reader)
    sums = placed.before(placed.item, {"ever": np.inf})[:, 0]
    # In other sessions, the slots at 0 and 10 s count from an hour later on.
    assert sums[0].tolist() == [0, 0, 0, views, views and int(gap >= 3610), 3, 2]
    inside = placed.by_user(placed.user, placed.session)[:, 1]
    assert inside[0].tolist() == [0, 1, 1, 0, 0, 3, 3]
    assert inside[1].tolist() == [0, 1, 1, 0, 0, 2, 2]
    above = answers_above(placed)
    assert above["clicks_above"].to_list() == [0, 0, 0, 0, 0, 0, 0]
    np.testing.assert_array_equal(above["since_click"], [np.nan, 1, 2, np.nan, np.nan, np.nan, np.nan])


def test_decay_and_prior(tmp_path: Path) -> None:
    placed = PlacedSlots(read(tmp_path / "log", three_sessions(0.0), ("leave",)))
    rate = hourly_rate(placed, np.inf, 1e9)
    every = hourly_rate(placed, np.inf, 0.0 + 1e-9)
    assert rate[5] == pytest.approx((3 + 1) / (5 + 20))  # the average, of all five earlier slots
    assert every[5] == pytest.approx(1 / 3)  # item 1: one click in three views


def test_times_are_needed(tmp_path: Path) -> None:
    reader = read(tmp_path / "log", three_sessions(0.0) | {"time": [None] * 7}, ("leave",))
    with pytest.raises(InputError, match="'time' is null"):
        PlacedSlots(reader)


def test_every_baseline_predicts_and_choices_never_see_held_out_days(tmp_path: Path) -> None:
    table, _ = made_up(1, sessions=200)
    reader = read(tmp_path / "log", table, ("leave",))
    session = np.unique(np.array(table["session"])[np.array(table["day"]) == DAYS - 1])
    task = ClickTask(reader, session)
    assert not (task.late & task.early).any() and not (task.train & task.validation).any()
    day = np.array(table["day"])[np.array(table["answered"])]
    assert set(day[task.validation]) == {DAYS - 2} and set(day[task.train]) == {0, 1}
    for name, model in CLICK_BASELINES.items():
        predicted = model.predict(task, 0)
        assert predicted.shape == (task.late.sum(),), name
        assert ((predicted > 0) & (predicted < 1)).all(), name


def test_resampled_page_auc() -> None:
    rng = np.random.default_rng(0)
    session = np.repeat(np.arange(100), 8)
    click = rng.random(800) < 0.3
    truth = Truth({"click": click}, np.repeat(np.arange(200), 4), session)
    good, bad = click + rng.normal(size=800), rng.normal(size=800)
    assert resampled_page_auc(good, truth).mean() == pytest.approx(
        grouped_auc(good, click, truth.page), abs=0.01
    )
    models = {"good": [{"click": good}], "bad": [{"click": bad}], "same": [{"click": bad}]}
    found = auc_differences(models, "bad", truth, within_page=True)
    assert found["same"] == {"mean": 0, "low": 0, "high": 0}
    assert 0 < found["good"]["low"] < found["good"]["mean"] < found["good"]["high"]


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_table, "USERS", 40)
    monkeypatch.setattr(real_logs, "fidelity_report", partial(real_logs.fidelity_report, repeats=1))
    monkeypatch.setattr(click_baselines, "GRID", click_baselines.GRID[:1])

    def made(data: Path, folder: Path) -> Path:
        path = small_table.save(small_table.table(), folder / "table.parquet")
        import_table(path, small_table.save_mapping(folder / "mapping.json"), folder / "logs")
        return folder / "logs"

    monkeypatch.setattr(real_logs, "SOURCES", {"made-up": made})


@pytest.mark.slow
def test_command_fits_judges_and_resumes(
    tmp_path: Path, source: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results.json"
    command = [str(tmp_path), "--work", str(tmp_path / "work"), "--out", str(out), "--seeds", "1"]
    command += ["--ensemble", "1", "--epochs", "1"]
    real_logs.main([*command, "--skip-fit", "--ablate"])
    first = read_json(out)["made-up"]
    assert {row["model"] for row in first["rows"]} == set(CLICK_BASELINES)
    assert {"all", "item counts", "position"} <= set(first["ablation"])
    assert "fidelity" not in first

    def never(*_: Any) -> np.ndarray:
        raise AssertionError("fitted again")

    for name, model in CLICK_BASELINES.items():
        monkeypatch.setitem(CLICK_BASELINES, name, model._replace(predict=never))
    real_logs.main(command)
    second = read_json(out)["made-up"]
    assert second["rows"][:-1] == first["rows"]
    assert second["rows"][-1]["model"] == real_logs.USERS
    assert set(second["users_minus_trees"]) == {click_baselines.TREES, click_baselines.ABOVE}
    [fidelity] = second["fidelity"]
    assert fidelity["offer"]["length"]["log"] == small_table.PAGE * 2
    assert 0 < fidelity["offer"]["click_rate"]["simulated"] < 1
    assert "learned users" in capsys.readouterr().out


def test_bad_input_ends_in_one_line(
    tmp_path: Path, source: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit) as ended:
        real_logs.main([str(tmp_path), "--seeds", "0"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: --seeds must be at least 1, got 0\n"
    monkeypatch.undo()
    with pytest.raises(SystemExit) as ended:
        real_logs.main([str(tmp_path), "--work", str(tmp_path / "work"), "--logs", "movies"])
    assert ended.value.code == 2
    assert "ml-100k.inter does not exist" in capsys.readouterr().err
