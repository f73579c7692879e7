"""Do learned users of real logs hold against simple models, and do their rollouts show what the log showed?

    python -m benchmarks.real_logs DATA [--logs NAME ...] [--seeds 3] [--ensemble 5] [--epochs 20]
        [--skip-fit] [--ablate] [--work runs/real_logs] [--out FILE]

Each log is imported, users are fitted and judged by `edgerec fidelity`, and their click predictions on the
held-out days are compared with those of popularity, logistic regression and LightGBM on streaming features
(click_baselines.py). The same command resumes. Results are stored under the name of the log in one JSON file.
"""

from __future__ import annotations

import argparse
import platform
import sys
from dataclasses import dataclass
from functools import cached_property
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
from benchmarks.click_baselines import ABOVE, CLICK_BASELINES, TREES, ClickTask, trees_on
from benchmarks.real_log_sources import SOURCES
from benchmarks.user_scores import Predictions, Truth, auc_differences, figures, held_out_truth, over_seeds
from benchmarks.user_study import MOST_SLOTS, gather
from edgerec_gym.commands.console import note, progress_bar
from edgerec_gym.documents import read_json
from edgerec_gym.errors import InputError
from edgerec_gym.evaluation.intervals import interval_text
from edgerec_gym.evaluation.ranking import auc_by_group
from edgerec_gym.fidelity.expected import replay
from edgerec_gym.fidelity.report import fidelity_report
from edgerec_gym.files import atomic_path, make_folder, write_json
from edgerec_gym.logs.sessions import LoggedSessions, split_sessions
from edgerec_gym.logs.store import LogReader
from edgerec_gym.scenario import Scenario
from edgerec_gym.simulator.fit import fit, work_folder

RESULTS = Path(__file__).parent / "results" / "real_logs.json"
USERS = "learned users"
FIGURES = ("click_auc_within_page", "click_auc", "click_log_loss", "click_ece")


@dataclass
class RealLog:
    """A log of the study, split as `edgerec fit` splits it, and the folder of what was computed."""

    name: str
    reader: LogReader
    work: Path

    @cached_property
    def held_out(self) -> LoggedSessions:
        """Held-out sessions."""
        first = self.reader.provenance.get("first_validation_day")
        return gather(split_sessions(self.reader, first)[2], MOST_SLOTS)

    @cached_property
    def task(self) -> ClickTask:
        """What the baselines are to predict."""
        return ClickTask(self.reader, self.held_out.session)

    @cached_property
    def truth(self) -> Truth:
        """Clicks at the held-out slots."""
        return held_out_truth(self.held_out, {"click": self.task.click[self.task.late]})

    @property
    def baselines(self) -> list[str]:
        """Names of the baselines of this log."""
        ordered = "order_within_page" not in self.reader.unidentified
        return [name for name, model in CLICK_BASELINES.items() if ordered or not model.needs_order]

    def baseline(self, name: str, seed: int) -> Predictions:
        """Click probabilities of a baseline, from the work folder if they are there."""
        path = self.work / f"{name.replace(',', '').replace(' ', '-')}-seed{seed}.safetensors"
        if not path.exists():
            probability = CLICK_BASELINES[name].predict(self.task, seed)
            with atomic_path(path) as temporary:
                save_file({"click": np.ascontiguousarray(probability)}, temporary)
        return load_file(path)

    def users(self, seed: int, ensemble: int, epochs: int) -> Scenario:
        """Users fitted with a seed."""
        folder = self.work / f"users-seed{seed}"
        with progress_bar(f"{self.name}, seed {seed}") as progress:
            fit(
                self.reader.folder,
                folder,
                seed=seed,
                ensemble=ensemble,
                epochs=epochs,
                threads=1,
                progress=progress,
            )
        return Scenario.load(folder)

    def users_predictions(self, scenario: Scenario, seed: int) -> Predictions:
        """Click probabilities of learned users that follow the held-out sessions."""
        path = self.work / f"users-seed{seed}.safetensors"
        if not path.exists():
            with atomic_path(path) as temporary:
                save_file({"click": replay(scenario, self.held_out)["click"]}, temporary)
        return load_file(path)

    def fidelity(self, scenario: Scenario, seed: int) -> dict[str, Any]:
        """Rollouts of the policy of the log against the log."""
        path = self.work / f"fidelity-seed{seed}.json"
        if not path.exists():
            report = fidelity_report(scenario, self.reader.folder, seed=seed)
            write_json(path, {key: report[key] for key in ("offer", "two_sample", "weak")})
        found: dict[str, Any] = read_json(path)
        return found


def ablation(log: RealLog) -> dict[str, dict[str, dict[str, float | None]]]:
    """Figures of the trees without each group of features, and with it alone; one seed, settings fixed."""
    task = log.task
    found = {"all": {"all": _figures(trees_on(task, task.inputs, 0), log.truth)}}
    for group, names in task.slots.groups.items():
        inside = np.isin(task.slots.features.columns, names)
        parts = {"without": ~inside, "alone": inside}
        found[group] = {
            part: _figures(trees_on(task, task.inputs[:, chosen], 0), log.truth)
            for part, chosen in parts.items()
        }
    return found


def _figures(probability: np.ndarray, truth: Truth) -> dict[str, float | None]:
    every = figures({"click": probability}, truth)
    return {name: every[name] for name in FIGURES}


def row(name: str, fits: list[Predictions], truth: Truth) -> dict[str, Any]:
    """Figures of a model over its seeds."""
    scores = [_figures(fit["click"], truth) for fit in fits]
    return {"model": name, **{key: over_seeds([score[key] for score in scores]) for key in FIGURES}}


def users_minus(trees: str, models: dict[str, list[Predictions]], truth: Truth) -> dict[str, Any]:
    """Figures of learned users minus those of trees, with intervals over sessions."""
    pair = {name: models[name] for name in (USERS, trees)}
    return {
        "click_auc_within_page": auc_differences(pair, trees, truth, within_page=True)[USERS],
        "click_auc": auc_differences(pair, trees, truth)[USERS],
    }


def study(log: RealLog, given: argparse.Namespace) -> dict[str, Any]:
    """Compute everything about a log, and write it after every step."""
    task, truth = log.task, log.truth
    result: dict[str, Any] = {
        "about": _about(),
        "log": log.reader.provenance,
        "slots": {part: int(getattr(task, part).sum()) for part in ("train", "validation", "late")},
        "held_out": {
            "sessions": int(truth.session.max()) + 1,
            "pages": len(np.unique(truth.page)),
            "pages_with_click_and_miss": len(
                auc_by_group(np.zeros(len(truth.page)), truth.happened["click"], truth.page)[0]
            ),
            "clicks": int(truth.happened["click"].sum()),
            "click_rate": float(truth.happened["click"].mean()),
        },
        "seeds": given.seeds,
        "rows": [],
    }
    models: dict[str, list[Predictions]] = {}

    def add(name: str, fits: list[Predictions]) -> None:
        models[name] = fits
        result["rows"].append(row(name, fits, truth))
        write(given.out, log.name, result)

    for name in log.baselines:
        note(f"{log.name}: {name}")
        seeds = given.seeds if CLICK_BASELINES[name].random else 1
        add(name, [log.baseline(name, seed) for seed in range(seeds)])
    if not given.skip_fit:
        result |= {"ensemble": given.ensemble, "epochs": given.epochs, "fidelity": []}
        fits = []
        for seed in range(given.seeds):
            scenario = log.users(seed, given.ensemble, given.epochs)
            note(f"{log.name}: predictions and rollouts, seed {seed}")
            fits.append(log.users_predictions(scenario, seed))
            result["fidelity"].append(log.fidelity(scenario, seed))
        add(USERS, fits)
        # Where a log tells the order of answers, users know those above on the page: only the trees that know
        # them, too, have the same inputs.
        result["users_minus_trees"] = {
            trees: users_minus(trees, models, truth) for trees in (TREES, ABOVE) if trees in models
        }
    if given.ablate:
        note(f"{log.name}: ablation")
        result["ablation"] = ablation(log)
    write(given.out, log.name, result)
    return result


def _about() -> dict[str, Any]:
    versions = {
        "edgerec_gym": edgerec_gym.__version__,
        "torch": torch.__version__,
        "lightgbm": lightgbm.__version__,
        "scikit-learn": sklearn.__version__,
    }
    return {"versions": versions, "machine": f"{platform.machine()}, Python {platform.python_version()}"}


def write(out: Path, name: str, result: dict[str, Any]) -> None:
    """Store the results of a log under its name, beside those of other logs."""
    make_folder(out.resolve().parent)
    earlier = read_json(out) if out.exists() else {}
    write_json(out, {**earlier, name: result})


def show(results: dict[str, dict[str, Any]]) -> None:
    """Print the tables."""
    console = Console(width=150)
    names = list(dict.fromkeys(entry["model"] for result in results.values() for entry in result["rows"]))
    table = Table(
        "log",
        *names,
        f"{USERS} - {TREES}\n(then - {ABOVE})",
        title="click AUC within a page / over all slots",
    )
    for log, result in results.items():
        by = {entry["model"]: entry for entry in result["rows"]}
        differences = result.get("users_minus_trees", {})
        table.add_row(
            log,
            *(_pair(by.get(name)) for name in names),
            "\n".join(_interval(gap[key]) for gap in differences.values() for key in FIGURES[:2]),
        )
    console.print(table)
    table = Table(
        "log", "click rate\nlog", "\nrollouts", "length\nlog", "\nrollouts", "items, of\nchance",
        "two-sample\nAUC",
        "most telling", "weak", title="rollouts of the log's policy, by seed",
    )  # fmt: skip
    for log, result in results.items():
        for seed, found in enumerate(result.get("fidelity", [])):
            telling = found["two_sample"]["most_telling"]
            table.add_row(
                f"{log}, {seed}",
                *(f"{found['offer']['click_rate'][side]:.4f}" for side in ("log", "simulated")),
                *(f"{found['offer']['length'][side]:.2f}" for side in ("log", "simulated")),
                f"{found['offer']['items']['distance'] / found['offer']['items']['floor']:.2f}",
                f"{found['two_sample']['auc']:.3f}",
                ", ".join(f"{name} {value:.2f}" for name, value in telling.items()),
                ", ".join(found["weak"]),
            )
    if table.row_count:
        console.print(table)
    for log, result in results.items():
        if "ablation" in result:
            console.print(_ablation_table(log, result["ablation"]))


def _pair(entry: dict[str, Any] | None) -> str:
    return "" if entry is None else " / ".join(_number(entry[key]["mean"]) for key in FIGURES[:2])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}".removeprefix("0")


def _interval(interval: dict[str, float | None]) -> str:
    return "-" if interval["mean"] is None else interval_text(interval, "+.3f")  # type: ignore[arg-type]


def _ablation_table(log: str, found: dict[str, Any]) -> Table:
    table = Table(
        "features", "without", "alone", title=f"{log}: {TREES} by features, within a page / all slots"
    )
    for group, parts in found.items():
        cells = [
            " / ".join(_number(part[key]) for key in FIGURES[:2]) if part else ""
            for part in (parts.get("without", parts.get("all")), parts.get("alone"))
        ]
        table.add_row(group, *cells)
    return table


def main(arguments: list[str] | None = None) -> None:
    """Import, fit, judge, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="folder with logs/, ebnerd_demo/ and open_bandit/")
    parser.add_argument("--logs", nargs="+", choices=SOURCES, default=list(SOURCES), metavar="NAME",
                        help=f"of {', '.join(SOURCES)}")  # fmt: skip
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ensemble", type=int, default=5, help="networks of the learned users")
    parser.add_argument("--epochs", type=int, default=20, help="maximum number of epochs")
    parser.add_argument("--skip-fit", action="store_true", help="baselines alone")
    parser.add_argument("--ablate", action="store_true", help="also leave out features of the trees")
    parser.add_argument("--work", type=Path, default=Path("runs/real_logs"))
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON file")
    given = parser.parse_args(arguments)
    results = {}
    try:
        for option in ("seeds", "ensemble", "epochs"):
            if getattr(given, option) < 1:
                raise InputError(f"--{option} must be at least 1, got {getattr(given, option)}")
        torch.set_num_threads(1)
        for name in given.logs:
            note(f"{name}: import")
            reader = LogReader(SOURCES[name](given.data, make_folder(given.work / name)))
            settings = {"slots": reader.slots, "log": reader.provenance}
            log = RealLog(name, reader, work_folder(given.work / name, settings))
            results[name] = study(log, given)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit("interrupted; run the same command to continue")
    show(results)


if __name__ == "__main__":
    main()
