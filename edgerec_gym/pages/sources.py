"""The results in a run that a report can show; most files are recognised by their content, not by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgerec_gym.errors import InputError
from edgerec_gym.files import read_json

Row = dict[str, Any]
LEARNING_CURVE = "learning_curve.json"
POLICY = "policy.json"  # of a training run
# Files searched for one level below the folder, such as demo/report/results.json and demo/policy/policy.json.
BELOW = ("results.json", "fidelity.json", POLICY, LEARNING_CURVE)


@dataclass
class Sources:
    """The results found, as lists of (file, content)."""

    tracks: list[tuple[Path, list[Row]]] = field(default_factory=list)  # rows of `edgerec bench`
    evaluations: list[tuple[Path, list[Row]]] = field(default_factory=list)  # rows of `edgerec evaluate`
    curves: list[tuple[Path, dict[str, Any]]] = field(default_factory=list)  # learning curves
    trainings: list[tuple[Path, dict[str, Any]]] = field(default_factory=list)  # policy.json of runs
    exploitation: list[tuple[Path, dict[str, Any]]] = field(default_factory=list)
    fidelity: list[tuple[Path, dict[str, Any]]] = field(default_factory=list)
    about: dict[str, str] = field(default_factory=dict)  # file -> versions and machine that made it

    def __bool__(self) -> bool:
        return any(
            (self.tracks, self.evaluations, self.curves, self.trainings, self.exploitation, self.fidelity)
        )


def find_sources(run: str | Path) -> Sources:
    """Read the results of a run.

    Args:
        run: a folder of benchmark results, a training run, a demo, an evaluation or a fidelity report, or one
            of their JSON files.

    Raises:
        InputError: `run` does not exist or holds nothing that a report can show, or a file is broken.
    """
    run = Path(run)
    if run.is_file():
        files = [run]
    elif run.is_dir():
        files = sorted(run.glob("*.json")) + [
            file for name in BELOW for file in sorted(run.glob(f"*/{name}"))
        ]
    else:
        raise InputError(
            f"{run} does not exist: name a folder that edgerec bench, train, evaluate or demo made"
        )
    found = Sources()
    for file in files:
        _sort_in(found, file, read_json(file))
    if any("checkpoints" in curve for _, curve in found.curves):  # these include the training's curve
        found.curves = [(file, curve) for file, curve in found.curves if "checkpoints" in curve]
    if not found:
        raise InputError(
            f"{run} holds nothing to report: no results of edgerec bench, evaluate --out, train, "
            "fidelity --out or demo"
        )
    return found


def _sort_in(found: Sources, file: Path, content: dict[str, Any]) -> None:
    """Add a file to the list of its kind; ignore unknown files."""
    rows: Any = content.get("results", content.get("rows"))
    if file.name == POLICY:
        found.trainings.append((file, content))
    elif file.name == LEARNING_CURVE:
        found.curves.append((file, content))
    elif _rows_with(rows, "policy", "metric") and any(r.get("metric") == "value" for r in rows):
        found.tracks.append((file, _checked(file, rows, ("policy", "metric", "mean", "low", "high"))))
    elif _rows_with(rows, "policy", "users"):
        found.evaluations.append((file, _checked(file, rows, ("policy", "users", "value", "sessions"))))
        if content.get("training_curve"):
            found.curves.append((file, {"training": content["training_curve"]}))
    elif _rows_with(rows, "measure", "stop"):
        found.exploitation.append((file, content))
    elif any("events" in part for part in fidelity_parts(content).values()):
        found.fidelity.append((file, content))
    else:
        return
    if told := _about(content):
        found.about[str(file)] = told


def fidelity_parts(content: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return a file's fidelity reports by scenario: one of `edgerec fidelity`, or several of a benchmark."""
    if "events" in content:
        return {str(content.get("scenario", "")): content}
    return {name: part for name, part in content.items() if isinstance(part, dict) and "events" in part}


def _rows_with(rows: Any, *keys: str) -> bool:
    return isinstance(rows, list) and bool(rows) and isinstance(rows[0], dict) and set(keys) <= set(rows[0])


def _checked(file: Path, rows: list[Any], keys: tuple[str, ...]) -> list[Row]:
    """Return the rows; raise InputError at the first one that lacks a key."""
    for k, row in enumerate(rows):
        for key in keys:
            if not isinstance(row, dict) or key not in row:
                raise InputError(f"{file}: row {k} lacks {key!r}")
    return rows


def _about(content: dict[str, Any]) -> str:
    """Return versions and machine, whichever form the file stores them in."""
    last = content["runs"][-1] if content.get("runs") else content
    versions = last.get("versions")
    parts = [f"{name} {number}" for name, number in versions.items()] if isinstance(versions, dict) else []
    return ", ".join([*parts, *([str(last["machine"])] if last.get("machine") else [])])
