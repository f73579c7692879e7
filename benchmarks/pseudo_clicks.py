"""Do actions on opened cards help because of pseudo-clicks? The same re-rankers in worlds with and without.

    python -m benchmarks.pseudo_clicks [--out FOLDER] [--sessions N] [--seeds 3]

Two logs of the preset `default`: as it is, and with SyntheticUserConfig.pseudo_click = 0, where attractive
items no longer disappoint. In both, CRBAN is trained in full, without actions, and with exposures only. The
figure is the lead of the full one in GAUC on held-out days, and how much it shrinks without pseudo-clicks.
Intervals are 95 % bootstraps over training seeds and sessions. Logs and runs of the first world are those of
`rerank_offline.py` and of `edgerec bench rerank`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.rerank_offline import (
    FULL,
    HYPER,
    RESULTS,
    about,
    held_out,
    save,
    session_sums,
    train_and_score,
)
from edgerec_gym.bench.rerank import FULL as TRACK
from edgerec_gym.evaluation.intervals import Interval, seeds_interval
from edgerec_gym.files import make_folder
from edgerec_gym.logs.collect import collect
from edgerec_gym.logs.store import LogReader

PARTIAL = ("CRBAN without actions", "CRBAN, exposures only")
WORLDS: dict[str, dict[str, Any]] = {"with": {}, "without": {"pseudo_click": 0.0}}  # pseudo-clicks
Sums = tuple[dict[str, np.ndarray], np.ndarray]


def advantage(sums: Sums, partial: str) -> Interval:
    """GAUC of the full CRBAN minus that of a partial one."""
    values, impressions = sums
    columns = [values[FULL] - values[partial], impressions[None]]
    return seeds_interval(columns, lambda m: m[..., 0] / m[..., 1])


def shrinkage(first: Sums, second: Sums, partial: str) -> Interval:
    """Advantage in the first world minus that in the second; sessions of both are resampled together."""
    columns = []
    for own, (values, impressions) in enumerate((first, second)):
        others = len((second, first)[own][1])
        for column in (values[FULL] - values[partial], impressions[None]):
            none = np.zeros((len(column), others))
            columns.append(np.concatenate([none, column] if own else [column, none], axis=1))
    return seeds_interval(columns, lambda m: m[..., 0] / m[..., 1] - m[..., 2] / m[..., 3])


def click_rate(logs: Path) -> float:
    """Share of the answered cards that were clicked."""
    clicks = [table["click"].drop_null().to_numpy() for table in LogReader(logs).batches(["click"])]
    return float(np.concatenate(clicks).mean())


def main() -> None:
    """Collect, train, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/bench-rerank-default"))
    parser.add_argument("--sessions", type=int, default=TRACK["default"].log_sessions)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    hyper = HYPER["default"]
    folders = {
        "with": arguments.out,
        "without": arguments.out.with_name(arguments.out.name + "-no-pseudo-clicks"),
    }
    sums: dict[str, Sums] = {}
    found: dict[str, Any] = {"worlds": {}, "advantage": {}, "shrinkage": {}}
    for world, changes in WORLDS.items():
        out = make_folder(folders[world])
        logs = out / "logs"
        collect(logs, preset_name="default", sessions=arguments.sessions, synthetic=changes)
        held, _, _ = held_out(logs)
        scores, epochs = train_and_score(held, logs, out, (FULL, *PARTIAL), arguments.seeds, hyper)
        sums[world] = session_sums(held, scores, np.ones(held.informative, bool))
        values, impressions = sums[world]
        found["worlds"][world] = {
            "requests": held.informative,
            "click_rate": click_rate(logs),
            "epochs": epochs,
            "gauc": {name: (value.sum(1) / impressions.sum()).tolist() for name, value in values.items()},
        }
        found["advantage"][world] = {name: advantage(sums[world], name) for name in PARTIAL}
    found["shrinkage"] = {name: shrinkage(sums["with"], sums["without"], name) for name in PARTIAL}
    table = Table("full CRBAN minus", *(f"{w} pseudo-clicks" for w in WORLDS), "shrinks by")
    for name in PARTIAL:
        intervals = [*(found["advantage"][world][name] for world in WORLDS), found["shrinkage"][name]]
        table.add_row(name, *("{mean:+.4f} [{low:+.4f}, {high:+.4f}]".format(**i) for i in intervals))
    Console(width=140).print(table)
    told = about(folders["with"] / "logs", arguments.seeds, hyper)
    save(RESULTS, "pseudo_clicks", {"about": told, **found})


if __name__ == "__main__":
    main()
