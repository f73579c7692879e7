"""How well do learned users predict held-out sessions, compared with simpler models and ablations?

    python -m benchmarks.user_models LOGS [--quick] [--seeds 3] [--threads 1] [--work FOLDER] [--out FILE]

Every model is trained on the same sessions, tuned or stopped on the same sessions and judged on the same
held-out sessions as the users of `edgerec fit`. Finished fits, and every epoch of the others, are kept in the
work folder: the same command continues, and more seeds only add theirs. Results of each log are stored under
its name in one JSON file.

Clicks and long looks are predicted before anything about the slot is known; leaving is predicted given the
slot's answer (except for rates by position), as in the network's heads.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import sklearn
import torch
from rich.console import Console
from rich.table import Table
from safetensors.numpy import load_file, save_file

import edgerec_gym
from benchmarks.user_baselines import BASELINES, EVENTS
from benchmarks.user_scores import Predictions, auc_differences, figures, over_seeds
from benchmarks.user_study import QUICK, Design, Effort, Study, open_study
from edgerec_gym.commands.console import note, progress_bar
from edgerec_gym.documents import read_json
from edgerec_gym.errors import InputError
from edgerec_gym.fidelity.expected import LONG_LOOK
from edgerec_gym.files import atomic_path, make_folder, write_json
from edgerec_gym.logs.sessions import LoggedSessions
from edgerec_gym.simulator.dataset import padded
from edgerec_gym.simulator.fit import run_trainers
from edgerec_gym.simulator.model import UserNetwork
from edgerec_gym.simulator.trainer import UserTrainer, batch_slots

RESULTS = Path(__file__).parent / "results" / "user_models.json"
BLOCK = 256  # sessions predicted at a time
COLUMNS = {
    "click_auc": "click AUC",
    "click_log_loss": "click log-loss",
    "click_ece": "click ECE",
    "click_auc_within_page": "click AUC\nwithin a page",
    "leave_auc": "leave AUC",
    "long_look_auc": "long-look AUC",
}


ENSEMBLE = "network, ensemble"
NETWORKS = {
    "network without behaviour": Design(behaviour=False),
    "network without neighbours": Design(neighbours=False),
    "network": Design(),
    ENSEMBLE: Design(ensemble=True),
}


def baseline_predictions(study: Study, name: str, seed: int) -> Predictions:
    """Fit a baseline to every event, or read the predictions of an earlier run."""
    path = study.work / f"{name.replace(' ', '-')}-seed{seed}.safetensors"
    if not path.exists():
        predicted = {}
        for event in study.truth.happened:
            probability = BASELINES[name].predict(study.parts, event, seed)
            predicted[event] = np.ascontiguousarray(probability)  # written in memory order
        with atomic_path(path) as temporary:
            save_file(predicted, temporary)
    return load_file(path)


def network_predictions(
    study: Study, seed: int, threads: int, progress: Callable[[int, int, str], None] | None = None
) -> dict[str, Predictions]:
    """Train the networks of a seed, or continue; returns predictions by model."""
    trainers: dict[str, list[UserTrainer]] = {}
    for name, design in NETWORKS.items():
        stem = f"{name.replace(',', '').replace(' ', '-')}-seed{seed}"
        trainers[name] = [
            study.trainer(design, seed, k, study.work / f"{stem}-member{k}.safetensors")
            for k in range(study.effort.members if design.ensemble else 1)
        ]
    every = [trainer for found in trainers.values() for trainer in found]
    run_trainers(every, study.effort.epochs, batch_slots(study.seen.slots), threads, progress)
    return {
        name: mean_prediction([trainer.network.eval() for trainer in found], study.held_out)
        for name, found in trainers.items()
    }


@torch.no_grad()
def mean_prediction(networks: list[UserNetwork], sessions: LoggedSessions) -> Predictions:
    """Mean over networks of the events' probabilities at all answered slots, in order."""
    index = np.flatnonzero(sessions.answered > 0)
    parts: dict[str, list[np.ndarray]] = {event: [] for event in EVENTS}
    for first in range(0, len(index), BLOCK):
        block = index[first : first + BLOCK]
        batch = padded(sessions, block, np.ones(len(block)))
        by_network: dict[str, list[torch.Tensor]] = {event: [] for event in EVENTS}
        for network in networks:
            logits, _ = network.forward_sequence(batch)
            by_network["click"].append(logits["click_probability"])
            by_network["leave"].append(torch.sigmoid(logits["leave"][:, 0]))
            by_network["long_look"].append(torch.softmax(logits["dwell"], 1)[:, LONG_LOOK:].sum(1))
        for event, values in by_network.items():
            parts[event].append(torch.stack(values).mean(0).numpy())
    return {event: np.concatenate(values) for event, values in parts.items()}


def predictions(study: Study, seeds: int, threads: int) -> dict[str, list[Predictions]]:
    """Predictions of every model by training seed; a single one for a model without a seed."""
    found: dict[str, list[Predictions]] = {name: [] for name in (*BASELINES, *NETWORKS)}
    for seed in range(seeds):
        for name, baseline in BASELINES.items():
            if seed == 0 or baseline.random:
                note(f"seed {seed}: {name}")
                found[name].append(baseline_predictions(study, name, seed))
        note(f"seed {seed}: networks")
        with progress_bar(f"seed {seed}") as update:
            for name, predicted in network_predictions(study, seed, threads, update).items():
                found[name].append(predicted)
    return found


def summarise(study: Study, models: dict[str, list[Predictions]]) -> dict[str, Any]:
    """Figures of every model, ready for JSON."""
    differences = auc_differences(models, ENSEMBLE, study.truth)
    rows = []
    for name, fits in models.items():
        scores = [figures(predicted, study.truth) for predicted in fits]
        row: dict[str, Any] = {column: over_seeds([s[column] for s in scores]) for column in COLUMNS}
        rows.append({"model": name, **row, "click_auc_minus_ensemble": differences.get(name)})
    parts = {"train": study.seen.slots, "stop": study.stop.slots, "held_out": study.held_out.slots}
    return {
        "log": study.reader.provenance,
        "slots": parts,
        "held_out_sessions": len(study.held_out),
        **study.effort._asdict(),
        "seeds": len(models[ENSEMBLE]),
        "click_rate": float(study.truth.happened["click"].mean()),
        "rows": rows,
    }


def show(name: str, result: dict[str, Any]) -> None:
    """Print the table."""

    def number(value: float, sign: str = "") -> str:
        return f"{value:{sign}.4f}".replace("0.", ".", 1)

    def cell(figure: dict[str, Any]) -> str:
        if figure["mean"] is None:
            return ""
        spread = "" if figure["low"] is None else f" ± {number(figure['high'] - figure['mean'])}"
        return number(figure["mean"]) + spread

    table = Table(
        "model",
        *COLUMNS.values(),
        f"click AUC minus\n{ENSEMBLE}",
        title=f"{name}: {result['slots']['held_out']:,} slots of {result['held_out_sessions']:,} held-out "
        f"sessions, {result['seeds']} training seeds",
        caption="± 95 % t interval over training seeds (none for models without a seed); in brackets: 95 % "
        "bootstrap over sessions, seeds fixed",
    )
    for row in result["rows"]:
        gap = row["click_auc_minus_ensemble"]
        paired = gap and f"{number(gap['mean'], '+')} [{number(gap['low'], '+')}, {number(gap['high'], '+')}]"
        table.add_row(row["model"], *(cell(row[column]) for column in COLUMNS), paired or "")
    Console(width=170).print(table)


def write(out: Path, name: str, result: dict[str, Any]) -> None:
    """Store the results of a log under its name in the file, beside those of other logs."""
    versions = {
        "edgerec_gym": edgerec_gym.__version__,
        "torch": torch.__version__,
        "lightgbm": lightgbm.__version__,
        "scikit-learn": sklearn.__version__,
    }
    about = {"versions": versions, "machine": f"{platform.machine()}, Python {platform.python_version()}"}
    make_folder(out.resolve().parent)
    earlier = read_json(out) if out.exists() else {}
    write_json(out, {**earlier, name: {"about": about, **result}})


def main(arguments: list[str] | None = None) -> None:
    """Fit, judge, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("logs", type=Path, help="log folder")
    parser.add_argument("--quick", action="store_true", help="train briefly, to try every part")
    parser.add_argument("--seeds", type=int, default=3, help="training seeds")
    parser.add_argument("--threads", type=int, default=1, help="number of networks trained at a time")
    parser.add_argument("--work", type=Path, help="folder of the fits; default runs/user_models/LOGS")
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON file")
    given = parser.parse_args(arguments)
    name = given.logs.resolve().name + ("-quick" if given.quick else "")
    effort = QUICK if given.quick else Effort()
    try:
        for option in ("seeds", "threads"):
            if getattr(given, option) < 1:
                raise InputError(f"--{option} must be at least 1, got {getattr(given, option)}")
        torch.set_num_threads(1)
        study = open_study(given.logs, given.work or Path("runs") / "user_models" / name, effort)
        result = summarise(study, predictions(study, given.seeds, given.threads))
    except InputError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; run the same command to continue")
    show(name, result)
    write(given.out, name, result)


if __name__ == "__main__":
    main()
