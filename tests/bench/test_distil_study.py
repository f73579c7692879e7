"""The study of distillation: the truth is that of the logged pages, and the study ends with rows."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from edgerec_gym.agents.data.event_sequences import SequenceStream, UserHistory
from edgerec_gym.agents.data.judged_pages import read_pages
from edgerec_gym.bench.distil import study
from edgerec_gym.bench.distil.judge import mean_ndcg, ndcg_difference, ndcg_loss
from edgerec_gym.bench.distil.truth import TruePages, true_pages
from edgerec_gym.compiled.random_stream import CLI_SEED_STRIDE
from edgerec_gym.errors import InputError
from edgerec_gym.logs.collect import collect
from edgerec_gym.logs.store import LogReader
from edgerec_gym.registration import make_feeds


@pytest.fixture(scope="module", params=["log", "eval"])
def logs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logs") / request.param
    collect(folder, scenario="lite", sessions=40, seed=3, split=request.param)
    return folder


def test_every_logged_page_has_its_truth(logs: Path) -> None:
    truth, reader = true_pages(logs), LogReader(logs)
    stream = SequenceStream(reader, None, study.everything, history=UserHistory.read(reader), earlier=2)
    pages = read_pages(stream, clicked=False)
    assert sum(map(len, pages)) == len(truth.session)
    for part in pages:
        click = truth.of(part.session, part.slot)
        np.testing.assert_array_equal(click > 0, part.pages.ids > 0)  # the same rows of the pool
    with pytest.raises(InputError, match="no page at slot 1"):
        truth.of(np.array([0]), np.array([1]))


def test_the_truth_of_first_pages_is_that_of_the_environment(logs: Path) -> None:
    truth = true_pages(logs)
    env = make_feeds("EdgeFeed-v0", 40, scenario="lite", users="synthetic", split=logs.name, copy=False)
    env.reset(seed=3 * CLI_SEED_STRIDE)
    expected = env.users.true_values(env.batch.arrays)[:, : env.config.pool_size, 0]
    first = truth.slot == 0
    np.testing.assert_allclose(truth.click[first], expected[truth.session[first]], rtol=1e-6)


def test_a_log_that_does_not_replay_is_refused(logs: Path, tmp_path: Path) -> None:
    shutil.copytree(logs, tmp_path / "log")
    part = tmp_path / "log" / "part-00000.parquet"
    table = pq.read_table(part)
    item = table["item"].to_numpy().copy()
    goods = np.flatnonzero(table["card_type"].to_numpy() == 0)
    item[goods[0]], item[goods[1]] = item[goods[1]], item[goods[0]]
    at = table.schema.get_field_index("item")
    pq.write_table(table.set_column(at, table.schema.field(at), pa.array(item)), part)
    with pytest.raises(InputError, match="shows another item"):
        true_pages(tmp_path / "log")


def test_collect_knows_two_splits(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="allowed: log, eval"):
        collect(tmp_path / "log", preset_name="lite", sessions=1, split="train")


def test_only_synthetic_logs_have_a_truth(tmp_path: Path) -> None:
    collect(tmp_path / "log", scenario="lite", users="learned", sessions=2)
    with pytest.raises(InputError, match="no log of synthetic users"):
        true_pages(tmp_path / "log")


def test_intervals_are_paired_by_session_and_leave_undefined_pages_out() -> None:
    session = np.array([0, 0, 1, 2])
    one = np.array([[0.5, np.nan, 0.7, 0.9], [0.6, np.nan, 0.8, 1.0]])
    assert mean_ndcg(one, session)["mean"] == pytest.approx(0.75)
    other = ndcg_difference(one, one - 0.1, session)
    assert other == pytest.approx({"mean": 0.1, "low": 0.1, "high": 0.1})
    assert ndcg_loss(0.9 * one, one, session) == pytest.approx({"mean": 0.1, "low": 0.1, "high": 0.1})


def test_pages_are_found_by_session_and_slot() -> None:
    truth = TruePages(np.array([5, 2, 2]), np.array([0, 9, 0]), np.arange(3.0)[:, None])
    found = truth.of(np.array([2, 5, 2]), np.array([0, 0, 9]))
    assert found[:, 0].tolist() == [2.0, 0.0, 1.0]


@pytest.mark.slow
def test_a_tiny_study_ends_with_rows_and_a_verdict(tmp_path: Path) -> None:
    tiny = {"dim": 4, "hidden": 4, "layers": 1, "epochs": 1, "earlier": 2}
    sizes = study.Sizes(
        log_sessions=200,
        held_sessions=20,
        sessions=4,
        teacher={name: tiny for name in study.TEACHERS},
        student={"hidden": 4, "epochs": 1, "per_session": 1},
    )
    students = (study.PLAIN, study.DISTILLED)
    rows, decided = study.run(tmp_path, scenario="lite", sizes=sizes, seeds=1, students=students)
    assert decided["teacher"] in study.TEACHERS
    assert set(decided["gate"]) >= {"held-out users, all pages", "held-out days, later pages"}
    found = {(r["policy"], r["metric"], r["judged"], r["part"], r["gain"]): r["mean"] for r in rows}
    everywhere = ("held-out users", "all pages", "truth")
    for name in (*study.TEACHERS, *students, study.CLOUD):
        assert 0 < found[name, "ndcg", *everywhere] <= 1
    assert found[study.DISTILLED, "bytes", "held-out users", "all pages", ""] > 1000
    assert np.isfinite(found[study.DISTILLED, "value_over_plain", "played", "whole sessions", ""])
    assert all(len(body) > 0 for _, body in study.tables(rows).values())
    again, _ = study.run(tmp_path, scenario="lite", sizes=sizes, seeds=1, students=students)
    slow = ("ms_p50", "ms_p99", "cpu_ms_p50")
    assert [r for r in again if r["metric"].removeprefix("event_") not in slow] == [
        r for r in rows if r["metric"].removeprefix("event_") not in slow
    ]
