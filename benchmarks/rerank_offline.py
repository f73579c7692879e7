"""Offline ablation of re-rankers as in EdgeRec's Table 2: GAUC per request on held-out days of a log.

    python -m benchmarks.rerank_offline [--preset lite] [--sessions 3000] [--logs FOLDER] [--quick]

Rows: the cloud's order and its base ctr, DNN, DLCM, PRM, SetRank, Seq2Slate, and CRBAN with parts left out.
Each is trained with every seed; requests and held-out days are the same for all. Intervals are 95 %
bootstraps over sessions of the mean over seeds, and of its difference to the full CRBAN on the same requests;
figures of the single seeds stand beside them. Activity bands split users by their events in the training
days. A run that was interrupted resumes; --quick trains one epoch with one seed, to see every part.
"""

from __future__ import annotations

import argparse
import platform
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import edgerec_gym
from edgerec_gym.agents.gauc import request_auc
from edgerec_gym.agents.perception import base_logit
from edgerec_gym.agents.request_log import NOT_SHOWN
from edgerec_gym.agents.rerank_data import split_requests
from edgerec_gym.agents.reranker import RerankerConfig
from edgerec_gym.agents.supervised import Held, load_reranker, request_settings, train
from edgerec_gym.atomic import make_folder, write_json
from edgerec_gym.logs.collect import collect
from edgerec_gym.logs.store import LogReader
from edgerec_gym.metrics import ratio_interval

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "DNN": ("dnn", {}),
    "DLCM": ("dlcm", {}),
    "PRM": ("prm", {}),
    "SetRank": ("setrank", {}),
    "Seq2Slate": ("seq2slate", {}),
    "CRBAN, the paper's inputs": ("crban", {"raw_inputs": 0}),
    "CRBAN, exposures only": ("crban", {"page_views": 0}),
    "CRBAN, page views only": ("crban", {"exposures": 0}),
    "CRBAN, without actions": ("crban", {"actions": 0}),
    "CRBAN": ("crban", {}),
}
FULL = "CRBAN"
BANDS = {"most active 20 %": (0.8, 1.0), "middle 30 %": (0.5, 0.8), "least active 50 %": (0.0, 0.5)}
NEW = "not seen before"
Figures = dict[str, Any]


def untrained_scores(held: Held, embedding_size: int) -> dict[str, list[np.ndarray]]:
    """Scores of what the cloud ships."""
    rows = np.maximum(held.joined("shown"), 0)
    logit = np.concatenate(
        [base_logit(torch.from_numpy(b.observation["pool"]), embedding_size).numpy() for b in held.batches]
    )
    return {"cloud order": [-rows.astype(float)], "base ctr": [np.take_along_axis(logit, rows, 1)]}


def band_of(user: np.ndarray, reader: LogReader, days: list[int] | None) -> np.ndarray:
    """Name of the activity band of each user (R,), by events in the training days."""
    parts = [table["user"].to_numpy() for table in reader.batches(["user"], days)]
    known, events = np.unique(np.concatenate(parts), return_counts=True)
    rank = np.empty(len(known))
    rank[np.argsort(events, kind="stable")] = (np.arange(len(known)) + 1) / len(known)
    bands = np.full(len(user), NEW, dtype=object)
    at = np.minimum(np.searchsorted(known, user), len(known) - 1)
    seen = known[at] == user
    for name, (low, high) in BANDS.items():
        bands[seen & (rank[at] > low) & (rank[at] <= high)] = name
    return bands


def by_session(session: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Sums of the requests' values (R,) over each session."""
    _, index = np.unique(session, return_inverse=True)
    return np.bincount(index, values)


def figures(held: Held, scores: dict[str, list[np.ndarray]], chosen: np.ndarray) -> dict[str, Figures]:
    """GAUC of every row on the chosen requests (R,) bool: mean over seeds, interval, seeds, difference."""
    click, shown = held.joined("click")[chosen], held.joined("shown")[chosen] != NOT_SHOWN
    session = held.joined("session")[chosen]
    weighted = {}
    for name, seeds in scores.items():
        per_seed = [request_auc(score[chosen], click, shown) for score in seeds]
        weighted[name] = np.stack([auc * impressions for auc, impressions in per_seed])  # (seeds, R)
    impressions = by_session(session, shown.sum(1).astype(float))
    reference = weighted[FULL].mean(0)
    return {
        name: {
            "gauc": ratio_interval(by_session(session, values.mean(0)), impressions),
            "seeds": (values.sum(1) / impressions.sum()).tolist(),
            "minus_full": ratio_interval(by_session(session, values.mean(0) - reference), impressions),
        }
        for name, values in weighted.items()
    }


def show(results: dict[str, dict[str, Figures]]) -> None:
    """Print all requests in one table, and the activity bands in another."""

    def cell(interval: dict[str, float], sign: str = "") -> str:
        return f"{interval['mean']:{sign}.4f} [{interval['low']:{sign}.4f}, {interval['high']:{sign}.4f}]"

    everything = results["all"]
    table = Table(
        "ranked by", "GAUC [95 %]", f"minus {FULL}", "seeds", title="GAUC per request, held-out days"
    )
    for name, row in everything.items():
        seeds = " ".join(f"{value:.4f}" for value in row["seeds"])
        table.add_row(name, cell(row["gauc"]), "" if name == FULL else cell(row["minus_full"], "+"), seeds)
    bands = Table(
        "ranked by", *(band for band in results if band != "all"), title="GAUC by activity of the user"
    )
    for name in everything:
        bands.add_row(name, *(cell(part[name]["gauc"]) for band, part in results.items() if band != "all"))
    console = Console(width=160)
    console.print(table)
    console.print(bands)


def run(logs: Path, out: Path, seeds: int, epochs: int) -> dict[str, Any]:
    """Train what is missing, score everything."""
    reader = LogReader(logs)
    train_stream, _, held_out = split_requests(reader, **request_settings(RerankerConfig(), 0))
    held = Held.from_stream(held_out)
    scores = untrained_scores(held, reader.config.embedding_size)
    seen: dict[str, list[int]] = {name: [] for name in VARIANTS}
    for seed in range(seeds):
        for name, (agent, settings) in VARIANTS.items():
            folder = out / f"{re.sub('[^a-z0-9]+', '-', name.lower())}-{seed}"
            record = train(folder, logs, agent=agent, seed=seed, resume=True, epochs=epochs, **settings)
            scores.setdefault(name, []).append(held.scores(load_reranker(folder, reader.config)))
            seen[name].append(record["steps"])
            print(f"{name}, seed {seed}: {record['steps']} epochs", flush=True)
    bands = band_of(held.joined("user"), reader, train_stream.days)
    parts = {"all": np.ones(len(bands), bool)} | {name: bands == name for name in (*BANDS, NEW)}
    return {
        "requests": {name: int(chosen.sum()) for name, chosen in parts.items()},
        "epochs": seen,
        "results": {name: figures(held, scores, chosen) for name, chosen in parts.items() if chosen.any()},
    }


def main() -> None:
    """Collect, train, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="lite", choices=("lite", "default"))
    parser.add_argument("--sessions", type=int, default=3000)
    parser.add_argument("--logs", type=Path, help="a log folder, instead of collecting one")
    parser.add_argument("--out", type=Path, help="folder of the runs; default runs/rerank-offline-PRESET")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=RerankerConfig().epochs, help="at most")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    quick = arguments.quick
    out = arguments.out or Path(f"runs/rerank-offline-{arguments.preset}{'-quick' if quick else ''}")
    out, logs = make_folder(out), arguments.logs
    if logs is None:
        logs = out / "logs"
        collect(logs, preset_name=arguments.preset, sessions=300 if quick else arguments.sessions)
    results = run(logs, out, 1 if quick else arguments.seeds, 1 if quick else arguments.epochs)
    show(results["results"])
    reader = LogReader(logs)
    about = {
        "edgerec_gym": edgerec_gym.__version__,
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "logs": {"provenance": reader.provenance, "sessions": reader.sessions, "slots": reader.slots},
        "hyper": RerankerConfig(epochs=1 if quick else arguments.epochs).to_dict(),
    }
    target = out if quick else make_folder(Path(__file__).parent / "results")
    write_json(target / "rerank_offline.json", {"about": about, **results})


if __name__ == "__main__":
    main()
