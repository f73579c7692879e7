"""Fitting users on a log: what is learned, stopping and going on, bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_log import columns, writer

from edgerec_gym.errors import InputError
from edgerec_gym.scenario import Scenario
from edgerec_gym.simulator.fit import fit


def taste_log(folder: Path, parts: int = 3) -> Path:
    """Clicks come from the match of the user's features with the item, nothing else."""
    w = writer(folder)
    rng = np.random.default_rng(0)
    for part in range(parts):
        table = columns([16] * 60, first=part * 60, seed=part)
        user = np.repeat(np.stack(table["user_features"][::16]), 16, axis=0)[:, :3]
        match = (user * w.catalog.embeddings[table["item"]]).sum(1)
        click = table["answered"] & (rng.random(len(match)) < np.where(match > 0.1, 0.6, 0.05))
        table["click"] = [bool(c) if a else None for c, a in zip(click, table["answered"], strict=True)]
        table["page_view_actions"] = [rng.random(11) if c else None for c in click]
        w.write(table)
    w.finish()
    return folder


@pytest.mark.slow
def test_fit_learns_whom_what_pleases(tmp_path):
    log, out = taste_log(tmp_path / "log", parts=8), tmp_path / "scenario"
    figures = fit(log, out, ensemble=2, epochs=12, hidden=12)
    assert figures["click_auc"] > 0.68 > 0.6 > figures["click_auc_base"]
    assert figures["log_loss"]["click"] < figures["click_log_loss_constant"] - 0.03
    assert abs(figures["click_rate_predicted"] - figures["click_rate"]) < 0.06
    assert "leave" not in figures["log_loss"] and "leave" in figures
    scenario = Scenario.load(out)
    assert scenario.fidelity == figures and scenario.unidentified == ("leave",) and scenario.synthetic is None
    assert not (out / "fit").exists()
    # Sessions of the log have 15 answered slots, and the user's end of them is not known.
    assert set(scenario.catalog.supply.slots) == {15}


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("simulator.onnx", "simulator.safetensors")}


def test_an_interrupted_fit_goes_on_and_ends_the_same(tmp_path):
    log = taste_log(tmp_path / "log")
    arguments: dict[str, Any] = {"ensemble": 2, "epochs": 3, "hidden": 8}
    whole = fit(log, tmp_path / "whole", **arguments)
    calls: list[int] = []

    def interrupt(done: int, total: int, text: str) -> None:
        calls.append(done)
        if done >= 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(log, tmp_path / "cut", **arguments, progress=interrupt)
    assert not (tmp_path / "cut" / "scenario.json").exists()
    with pytest.raises(InputError, match=r"holds an unfinished fit with hidden = 8, not 9"):
        fit(log, tmp_path / "cut", **arguments | {"hidden": 9})
    done: list[int] = []
    figures = fit(log, tmp_path / "cut", **arguments, progress=lambda n, total, text: done.append(n))
    assert done[0] >= 3 and figures == whole
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert fit(log, tmp_path / "cut", **arguments, progress=interrupt) == whole  # finished: nothing is done


def test_fit_refuses_what_it_cannot_use(tmp_path):
    log = taste_log(tmp_path / "log")
    with pytest.raises(InputError, match="ensemble must be at least 1, got 0"):
        fit(log, tmp_path / "out", ensemble=0)
    with pytest.raises(InputError, match="held_out_from = 9 leaves no days on one side"):
        fit(log, tmp_path / "out", held_out_from=9)
    (tmp_path / "out").mkdir(exist_ok=True)
    with pytest.raises(KeyboardInterrupt):
        fit(log, tmp_path / "out", ensemble=1, epochs=2, hidden=8, progress=interrupt_after_one)
    checkpoint = tmp_path / "out" / "fit" / "member0.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:100])
    with pytest.raises(InputError, match="member0.safetensors is not a readable checkpoint"):
        fit(log, tmp_path / "out", ensemble=1, epochs=2, hidden=8)
    fit(log, tmp_path / "out", ensemble=1, epochs=1, hidden=8, resume=False)
    Scenario.load(tmp_path / "out").simulator_files()


def interrupt_after_one(done: int, total: int, text: str) -> None:
    if done:
        raise KeyboardInterrupt
