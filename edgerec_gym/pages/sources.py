"""The results in a run that a report can show; most files are recognised by their content, not by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from edgerec_gym.documents import MOST_BYTES, Document, OpenDocument, check, read_object
from edgerec_gym.errors import InputError
from edgerec_gym.runs import RECORD, Record

Row = dict[str, Any]
LEARNING_CURVE = "learning_curve.json"
# Files searched for one level below the folder, such as demo/report/results.json and demo/policy/policy.json.
BELOW = ("results.json", "fidelity.json", RECORD, LEARNING_CURVE)


# Metric -> what a chart of it needs besides.
COLUMNS = {"value": "sessions", "frontier": "share", "click_rate_by_position": "position"}
RATES = {"click_rate_by_slot", "click_rate_by_page_age"}  # distributions that are drawn
Count = Annotated[int, Meta(ge=0)]
Drawn = Annotated[float, Meta(ge=-1e12, le=1e12)]  # a number that a chart can show
Number = Drawn | None  # an undefined one is null


class Figure(OpenDocument):
    """An estimate with its interval."""

    mean: Number
    low: Number
    high: Number


class Defined(OpenDocument):
    """An estimate that is defined."""

    mean: Drawn


class TrackRow(OpenDocument):
    """A row of `edgerec bench`."""

    policy: str
    metric: str
    mean: Number
    low: Number
    high: Number
    sessions: Count = 0
    seeds: Count | None = None
    track: str = ""
    scenario: str = ""
    quick: bool = False
    shift: str = ""
    against: str = ""
    p_holm: Number = None
    share: Number = None
    position: Number = None


class EvaluationRow(OpenDocument):
    """A row of `edgerec evaluate`; what else it holds is figures by metric."""

    policy: str
    users: str
    value: Figure
    sessions: Count
    env_id: str = ""
    scenario: str = ""


class TrainingCurve(Document):
    """Mean reward of a session by slots played."""

    slots: list[Drawn]
    reward: list[Drawn]


class Checkpoint(OpenDocument):
    """A point of a learning curve."""

    slots: Count
    learned: Figure | None = None
    synthetic: Figure | None = None


class LearningCurve(OpenDocument):
    """The content of learning_curve.json."""

    training: TrainingCurve | None = None
    checkpoints: list[Checkpoint] = []
    sessions: Count = 0
    seed: int = 0
    scenario: str = ""


class Keep(OpenDocument):
    """The value of keep on both kinds of users."""

    learned: Defined
    synthetic: Defined


class ExploitationRow(OpenDocument):
    """One way to train, stopped at one point, with a number for each seed."""

    measure: str
    stop: str
    steps: list[Drawn]
    true_value: list[Drawn]
    exploitation_gap: list[Defined]


class Exploitation(OpenDocument):
    """A study of ways to train."""

    keep: Keep
    rows: list[ExploitationRow]
    scenario: str = ""


class Bin(OpenDocument):
    """Slots of about the same expected rate."""

    observed: Annotated[float, Meta(ge=0, le=1)]
    predicted: Drawn
    slots: Annotated[float, Meta(gt=0)]


class Event(OpenDocument):
    """How true the rates of one event are."""

    reliability: list[Bin]


class Series(OpenDocument):
    """A rate by place."""

    values: list[Number]


class Distribution(OpenDocument):
    """A rate by place in the log and in rollouts."""

    log: Series
    simulated: Series


class TrueValue(OpenDocument):
    """A defined estimate with its interval."""

    mean: Drawn
    low: Number
    high: Number


class PolicyRow(OpenDocument):
    """A policy's true value, and its value on learned users."""

    policy: str
    value: Figure
    true_value: TrueValue


class Effect(OpenDocument):
    """The effect of a decision on an outcome."""

    log: Figure | None = None
    simulated: Figure | None = None


class Fidelity(OpenDocument):
    """A report of `edgerec fidelity`."""

    events: dict[str, Event]
    scenario: str = ""
    kendall_tau: Number = None
    click_auc: Number = None
    click_ece: Number = None
    two_sample_auc: Number = None
    weak: list[str] = []
    distributions: dict[str, dict[str, Any]] = {}
    interventions: dict[str, dict[str, Effect]] | None = None
    policies: list[PolicyRow] | None = None


class About(OpenDocument):
    """What any of these files may tell of its origin."""

    runs: list[dict[str, Any]] = []


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
        _sort_in(found, file, read_object(file, most_bytes=MOST_BYTES))
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
    name = "results" if "results" in content else "rows"
    rows: Any = content.get(name)
    if file.name == RECORD:
        check(file, content, Record)
        found.trainings.append((file, content))
    elif file.name == LEARNING_CURVE:
        check(file, content, LearningCurve)
        found.curves.append((file, content))
    elif _rows_with(rows, "policy", "metric") and any(_holds(row, "metric", "value") for row in rows):
        check(file, rows, list[TrackRow], name)
        for k, row in enumerate(rows):
            column = COLUMNS.get(row["metric"])
            if column is not None and row.get(column) is None:
                raise InputError(f"{file}: {name}[{k}].{column} is missing")
        found.tracks.append((file, rows))
    elif _rows_with(rows, "policy", "users"):
        check(file, rows, list[EvaluationRow], name)
        check(file, rows, list[dict[str, Figure | str | bool | int | float | None]], name)
        found.evaluations.append((file, rows))
        if content.get("training_curve"):
            check(file, content["training_curve"], TrainingCurve, "training_curve")
            found.curves.append((file, {"training": content["training_curve"]}))
    elif _rows_with(rows, "measure", "stop"):
        check(file, content, Exploitation)
        for k, row in enumerate(rows):
            if not len(row["steps"]) == len(row["true_value"]) == len(row["exploitation_gap"]) > 0:
                raise InputError(
                    f"{file}: {name}[{k}] needs as many steps as true_value and exploitation_gap"
                )
        if not content["keep"]["synthetic"]["mean"]:
            raise InputError(f"{file}: keep.synthetic.mean is 0; allowed: any other number")
        found.exploitation.append((file, content))
    elif parts := fidelity_parts(content):
        for part_name, part in parts.items():
            where = "" if part is content else part_name
            check(file, part, Fidelity, where)
            for rate in RATES & part.get("distributions", {}).keys():
                check(file, part["distributions"][rate], Distribution, f"{where}.distributions.{rate}")
        found.fidelity.append((file, content))
    else:
        return
    check(file, content, About)
    if told := _about(content):
        found.about[str(file)] = told


def fidelity_parts(content: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return a file's fidelity reports by scenario: one of `edgerec fidelity`, or several of a benchmark."""
    if "events" in content:
        return {str(content.get("scenario", "")): content}
    return {name: part for name, part in content.items() if isinstance(part, dict) and "events" in part}


def _rows_with(rows: Any, *keys: str) -> bool:
    return isinstance(rows, list) and bool(rows) and isinstance(rows[0], dict) and set(keys) <= set(rows[0])


def _holds(row: Any, key: str, value: str) -> bool:
    return isinstance(row, dict) and row.get(key) == value


def _about(content: dict[str, Any]) -> str:
    """Return versions and machine, whichever form the file stores them in."""
    last = content["runs"][-1] if content.get("runs") else content
    versions = last.get("versions")
    parts = [f"{name} {number}" for name, number in versions.items()] if isinstance(versions, dict) else []
    return ", ".join([*parts, *([str(last["machine"])] if last.get("machine") else [])])
