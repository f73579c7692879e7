"""Offline ablation of re-rankers as in EdgeRec's Table 2: GAUC per page request on held-out days of a log.

    python -m benchmarks.rerank_offline [--world lite|default] [--sessions N] [--out FOLDER] [--quick]
    python -m benchmarks.rerank_offline --ebnerd BUNDLE

Rows: the cloud's order, its base ctr, device-greedy's hand-made match with live behaviour, DNN, DLCM, PRM,
SetRank, Seq2Slate, and CRBAN with parts left out. Each is trained with every seed; page requests and held-out
days are the same for all. Intervals are 95 % bootstraps over training seeds and sessions, also for the
difference to the full CRBAN on the same requests. Activity bands split users by their events in the training
days; other parts split requests by when they come. Logs and runs are stored in --out in the layout and with
the hyper-parameters of `edgerec bench rerank`, so each reuses what the other has trained. An interrupted run
resumes; --quick trains one epoch with one seed, to try every part.
"""

from __future__ import annotations

import argparse
import platform
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from safetensors.numpy import load_file, save_file

import edgerec_gym
from edgerec_gym.agents.baselines import DeviceGreedy
from edgerec_gym.agents.data.moments import split_moments
from edgerec_gym.agents.data.observed_log import NOT_SHOWN
from edgerec_gym.agents.perception.perception import base_logit
from edgerec_gym.agents.registry import train_agent
from edgerec_gym.agents.rerank.reranker import RerankerConfig
from edgerec_gym.agents.rerank.train import Held, load_reranker, moment_settings
from edgerec_gym.bench.rerank import FULL as TRACK
from edgerec_gym.bench.rerank import RERANKERS
from edgerec_gym.bench.training import run_folder
from edgerec_gym.config import FeedConfig
from edgerec_gym.documents import read_json
from edgerec_gym.evaluation.intervals import seeds_interval
from edgerec_gym.evaluation.ranking import moment_auc
from edgerec_gym.files import atomic_path, make_folder, write_json
from edgerec_gym.logs.collect import collect
from edgerec_gym.logs.ebnerd import convert_ebnerd
from edgerec_gym.logs.store import LogReader
from edgerec_gym.spaces import CONTEXT

RESULTS = Path(__file__).parent / "results" / "rerank_offline.json"
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "DNN": ("dnn", {}),
    "DLCM": ("dlcm", {}),
    "PRM": ("prm", {}),
    "SetRank": ("setrank", {}),
    "Seq2Slate": ("seq2slate", {}),
    "CRBAN": ("crban", {}),
    "CRBAN without actions": ("crban", {"actions": 0}),
    "CRBAN, exposures only": ("crban", {"page_views": 0}),
    "CRBAN, page views only": ("crban", {"exposures": 0}),
    "CRBAN without match": ("crban", {"match": 0}),
    "CRBAN, the paper's inputs": ("crban", {"match": 0, "raw_inputs": 0}),
}
FULL = "CRBAN"
BANDS = {"most active 20 %": (0.8, 1.0), "middle 30 %": (0.5, 0.8), "least active 50 %": (0.0, 0.5)}
NEW = "not seen before"
Hyper = dict[str, dict[str, Any]]  # of each agent, where they differ from RerankerConfig


def _hyper(**common: Any) -> Hyper:
    return {agent: common | ({"match": 1} if agent == "crban" else {}) for agent in RERANKERS}


HYPER: dict[str, Hyper] = {
    "lite": _hyper(),
    "default": TRACK["default"].hyper,
    "ebnerd": _hyper(epochs=2, batch_size=256, learning_rate=0.003),
}
Scores = dict[str, list[np.ndarray]]
Figures = dict[str, Any]


def untrained_scores(held: Held, config: FeedConfig) -> Scores:
    """Scores of the cloud's own figures, and of a rule that matches items with live behaviour."""
    rows = np.maximum(held.joined("shown"), 0)
    logits, matched = [], []
    for batch in held.batches:
        pool = torch.from_numpy(batch.observation["pool"])
        logits.append(base_logit(pool, config.embedding_size).numpy())
        matched.append(DeviceGreedy(item_columns=config.item_columns).scores(batch.observation))
    chosen = [np.take_along_axis(np.concatenate(parts), rows, 1) for parts in (logits, matched)]
    return {"cloud order": [-rows.astype(float)], "base ctr": [chosen[0]], "device-greedy": [chosen[1]]}


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


def moments(held: Held, config: FeedConfig) -> dict[str, np.ndarray]:
    """Subsets (R,) bool of the page requests by the age of the page and by what the user has done so far."""
    context = np.concatenate([batch.observation["context"] for batch in held.batches])

    def column(name: str, unit: int) -> np.ndarray:
        return np.rint(context[:, CONTEXT.index(name)] * unit)

    age, views = column("page_age", config.page_size), column("page_views", config.max_slots)
    seen = column("exposures", config.max_slots)
    return {
        "nothing seen yet": seen == 0,
        "1 to 15 cards seen": (seen > 0) & (seen <= 15),
        "more cards seen": seen > 15,
        "no page view yet": (seen > 0) & (views == 0),
        "1 or 2 page views": (views > 0) & (views <= 2),
        "more page views": views > 2,
        "new page, some cards seen": (seen > 0) & (age < config.page_size / 5),
        "old page": age >= config.page_size / 5,
    }


def session_sums(held: Held, scores: Scores, chosen: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """AUC x impressions of the chosen requests (R,) bool, (seeds, S) for every row; impressions (S,)."""
    click, shown = held.joined("click")[chosen], held.joined("shown")[chosen] != NOT_SHOWN
    _, index = np.unique(held.joined("session")[chosen], return_inverse=True)

    def weighted(score: np.ndarray) -> np.ndarray:
        auc, impressions = moment_auc(score[chosen], click, shown)
        return np.bincount(index, auc * impressions)

    sums = {name: np.stack([weighted(score) for score in seeds]) for name, seeds in scores.items()}
    return sums, np.bincount(index, shown.sum(1).astype(float))


def figures(held: Held, scores: Scores, chosen: np.ndarray) -> dict[str, Figures]:
    """GAUC of every row on the chosen requests (R,) bool: mean over seeds, interval, seeds, difference."""
    sums, impressions = session_sums(held, scores, chosen)
    return {
        name: {
            "gauc": seeds_interval([values, impressions[None]], lambda m: m[..., 0] / m[..., 1]),
            "seeds": (values.sum(1) / impressions.sum()).tolist(),
            "minus_full": seeds_interval(
                [values, sums[FULL], impressions[None]], lambda m: (m[..., 0] - m[..., 1]) / m[..., 2]
            ),
        }
        for name, values in sums.items()
    }


def means(held: Held, scores: Scores, chosen: np.ndarray) -> dict[str, Figures]:
    """GAUC of every row on the chosen requests (R,) bool, without intervals."""
    sums, impressions = session_sums(held, scores, chosen)
    return {name: {"gauc": {"mean": float(v.sum(1).mean() / impressions.sum())}} for name, v in sums.items()}


def show(results: dict[str, dict[str, Figures]]) -> None:
    """Print all requests in one table, and subsets of them in another."""

    def cell(interval: dict[str, float], sign: str = "") -> str:
        return f"{interval['mean']:{sign}.4f} [{interval['low']:{sign}.4f}, {interval['high']:{sign}.4f}]"

    everything = results["all"]
    table = Table(
        "ranked by", "GAUC [95 %]", f"minus {FULL}", "seeds", title="GAUC per request, held-out days"
    )
    for name, row in everything.items():
        seeds = " ".join(f"{value:.4f}" for value in row["seeds"])
        table.add_row(name, cell(row["gauc"]), "" if name == FULL else cell(row["minus_full"], "+"), seeds)
    parts = Table("part of the requests", *everything, title="GAUC of parts of the requests")
    for part, rows in results.items():
        parts.add_row(part, *(f"{row['gauc']['mean']:.4f}" for row in rows.values()))
    console = Console(width=180)
    console.print(table)
    console.print(parts)


def held_out(logs: Path) -> tuple[Held, LogReader, list[int] | None]:
    """Requests of the held-out days that have a click and a miss; the log; its training days."""
    reader = LogReader(logs)
    train_stream, _, stream = split_moments(reader, **moment_settings(RerankerConfig(), 0))
    return Held.from_stream(stream), reader, train_stream.days


def run_scores(held: Held, run: Path, config: FeedConfig) -> np.ndarray:
    """Scores of a run (R, K), cached beside it."""
    file = run / "held_out.safetensors"
    if not file.exists():
        scores = held.scores(load_reranker(run, config))
        with atomic_path(file) as temporary:
            save_file({"scores": scores}, temporary)
    return load_file(file)["scores"]


def train_and_score(
    held: Held, logs: Path, out: Path, names: Iterable[str], seeds: int, hyper: Hyper
) -> tuple[Scores, dict[str, list[int]]]:
    """Train what is missing, score the held-out requests; returns scores and epochs of each run."""
    config = LogReader(logs).config
    scores: Scores = {name: [] for name in names}
    epochs: dict[str, list[int]] = {name: [] for name in names}
    for seed in range(seeds):
        for name in scores:
            agent, changes = VARIANTS[name]
            label = re.sub("[^a-z0-9]+", "-", name.lower()) if changes else agent
            folder = run_folder(out, label, seed)
            record = train_agent(
                agent, folder, logs=logs, seed=seed, resume=True, hyper=hyper[agent] | changes
            )
            scores[name].append(run_scores(held, folder, config))
            epochs[name].append(record["steps"])
            print(f"{name}, seed {seed}: {record['steps']} epochs", flush=True)
    return scores, epochs


def run(logs: Path, out: Path, seeds: int, hyper: Hyper) -> dict[str, Any]:
    """Train what is missing, score everything."""
    held, reader, training_days = held_out(logs)
    trained, epochs = train_and_score(held, logs, out, VARIANTS, seeds, hyper)
    scores = untrained_scores(held, reader.config) | trained
    bands = band_of(held.joined("user"), reader, training_days)
    parts = {"all": np.ones(len(bands), bool)} | {name: bands == name for name in (*BANDS, NEW)}
    when = moments(held, reader.config)
    results = {name: figures(held, scores, chosen) for name, chosen in parts.items() if chosen.any()}
    results |= {name: means(held, scores, chosen) for name, chosen in when.items() if chosen.any()}
    return {
        "requests": {name: int(chosen.sum()) for name, chosen in (parts | when).items()},
        "epochs": epochs,
        "results": results,
    }


def about(logs: Path, seeds: int, hyper: Hyper) -> dict[str, Any]:
    """Settings that the figures were made with."""
    reader = LogReader(logs)
    return {
        "edgerec_gym": edgerec_gym.__version__,
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "logs": {"provenance": reader.provenance, "sessions": reader.sessions, "slots": reader.slots},
        "seeds": seeds,
        "hyper": {agent: RerankerConfig(**hyper[agent]).to_dict() for agent in RERANKERS},
    }


def save(path: Path, world: str, found: dict[str, Any]) -> None:
    """Write the figures of one world; keep those of the others."""
    write_json(path, (read_json(path) if path.exists() else {}) | {world: found})


def main() -> None:
    """Collect, train, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--world", default="lite", choices=("lite", "default"))
    parser.add_argument("--ebnerd", type=Path, help="folder of an EB-NeRD bundle, instead of a world")
    parser.add_argument("--sessions", type=int, help="to collect; default: 3000 of lite, 16000 of default")
    parser.add_argument("--out", type=Path, help="folder of logs and runs; default runs/bench-rerank-WORLD")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="at most")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    world = "ebnerd" if arguments.ebnerd else arguments.world
    folder = "rerank-offline-lite" if world == "lite" else f"bench-rerank-{world}"  # its track trains on more
    out = make_folder(arguments.out or Path("runs") / (folder + "-quick" * arguments.quick))
    logs, seeds, hyper = out / "logs", 1 if arguments.quick else arguments.seeds, HYPER[world]
    if epochs := 1 if arguments.quick else arguments.epochs:
        hyper = {agent: values | {"epochs": epochs} for agent, values in hyper.items()}
    if arguments.ebnerd:
        convert_ebnerd(arguments.ebnerd, logs)
    else:
        sessions = arguments.sessions or (3000 if world == "lite" else TRACK[world].log_sessions)
        collect(logs, preset_name=world, sessions=300 if arguments.quick else sessions)
    found = run(logs, out, seeds, hyper)
    show(found["results"])
    target = out / RESULTS.name if arguments.quick else RESULTS
    save(target, world, {"about": about(logs, seeds, hyper), **found})


if __name__ == "__main__":
    main()
