"""The study of compression: which variants there are, and what their figures become."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgerec_gym.bench.compress import (
    OTHERS,
    Sizes,
    Student,
    Variant,
    figures_of,
    judge,
    rows_of,
    run,
    shipped_students,
    tables,
    variants,
)
from edgerec_gym.errors import InputError

STUDENT = Student("dnn", Path("nowhere"), "lite")


def test_every_variant_once_and_float32_first() -> None:
    found = list(variants(STUDENT, ("onnxruntime", "mnn"), Sizes(seeds=2)))
    assert len(set(found)) == len(found)
    first = found[0]
    assert first == Variant(STUDENT, "onnxruntime", 32, 0.0, False, None)
    plain = [v for v in found if v.engine == "mnn" and v.prune == 0]
    assert {(v.bits, v.qat, v.seed) for v in plain} == {
        (32, False, None), (8, False, None), (4, False, None),
        (8, True, 0), (8, True, 1), (4, True, 0), (4, True, 1),
    }  # fmt: skip
    pruned = [v for v in found if v.engine == "mnn" and v.prune == 0.5]
    assert {(v.bits, v.qat) for v in pruned} == {(32, False), (8, True), (4, True)}
    assert len({(v.engine, v.model) for v in found}) == len(found)


def figures(seed: int, lost: float = 0.0) -> dict[str, np.ndarray]:
    draws = np.random.default_rng(seed)
    ndcg = draws.uniform(0.5, 1, 50)
    ndcg[0] = np.nan  # nothing to gain there
    found = {
        "bytes": np.array(1000.0), "ndcg": ndcg * (1 - lost), "decisions": draws.integers(0, 3, 80),
        "value": draws.normal(2, 1, 60) - lost,
    }  # fmt: skip
    times = (f"{name}{kind}_ms" for name in ("rerank", "event") for kind in ("", "_cpu"))
    speeds = {f"{name}_speed": np.array(0.5) for name in ("rerank", "event")}
    return found | speeds | {name: np.array([1.0, 2.0]) for name in times}


def test_rows_pair_a_variant_with_float32_of_the_reference_engine() -> None:
    plain = Variant(STUDENT, "onnxruntime", 32, 0.0, False, None)
    other = replace(plain, engine="mnn", bits=8, qat=True)
    found = {plain: figures(0), **{replace(other, seed=seed): figures(0, 0.1) for seed in (0, 1)}}
    rows = {(item["engine"], item["metric"]): item for item in rows_of(found)}
    assert rows["onnxruntime", "ndcg_loss"]["mean"] == 0
    assert rows["onnxruntime", "equal_decisions"]["mean"] == 1
    loss, gap = rows["mnn", "ndcg_loss"], rows["mnn", "value_difference"]
    assert [loss["low"], loss["high"]] == pytest.approx([0.1, 0.1])  # paired: no spread is left
    assert gap["mean"] == pytest.approx(-0.1) and gap["low"] == pytest.approx(-0.1)
    assert loss["seeds"] == 2 and rows["mnn", "rerank_ms_p99"]["mean"] == 2
    header, body = tables(rows_of(found))["dnn"]
    assert len(body) == 2 and all(len(line) == len(header) for line in body)


def test_the_float32_model_decides_as_its_run(tmp_path: Path) -> None:
    """Judged decisions repeat, and a device model is measured on all of them."""
    from edgerec_gym.agents.export.export import export

    student = next(student for student in shipped_students() if student.name == "dnn")
    judged, again = judge(student, 12), judge(student, 12)
    np.testing.assert_array_equal(judged.gain, again.gain)
    assert 0 < judged.arrival.sum() <= 12 and len(judged.arrival) <= 12 * (1 + OTHERS)
    assert (judged.gain[judged.observation["pool"].any(axis=2)] > 0).all()
    device = tmp_path / "device"
    export(student.run, device, scenario="lite", places=10)
    found = figures_of(device, device, student, judged, Sizes(sessions=4, calls=5))
    assert found["bytes"] == sum(file.stat().st_size for file in device.iterdir())
    assert found["decisions"].shape == judged.arrival.shape and found["value"].shape == (4,)
    assert found["ndcg"].shape == (judged.arrival.sum(),)
    assert ((found["ndcg"] > 0.3) & (found["ndcg"] <= 1 + 1e-9)).all()
    assert (found["rerank_ms"] > 0).all() and (found["event_cpu_ms"] >= 0).all()
    assert found["rerank_speed"] > 0


def test_an_unknown_engine_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown engine 'tflite'; allowed: onnxruntime, mnn"):
        run(tmp_path, students=(STUDENT,), engines=("tflite",), sizes=Sizes())


def test_figures_of_other_sizes_are_not_mixed(tmp_path: Path) -> None:
    assert run(tmp_path, students=(), engines=(), sizes=Sizes(sessions=7)) == []
    assert run(tmp_path, students=(), engines=(), sizes=Sizes(sessions=7, seeds=1)) == []
    with pytest.raises(InputError, match="holds figures of other sizes .*'sessions': 7.*: choose another"):
        run(tmp_path, students=(), engines=(), sizes=Sizes(sessions=8))
