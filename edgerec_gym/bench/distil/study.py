"""The study: train teachers and students, judge them by the ground truth, weigh and time them.

Nothing is trained twice: runs, judged pages and played sessions are kept in the study's folder. Teachers and
students learn from the same days and sessions of one log; the teacher with the best mean validation NDCG@10
teaches the students. The ground truth only judges.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from edgerec_gym.agents.data.event_sequences import SequenceStream, UserHistory, split_sequences
from edgerec_gym.agents.distillation.train import distil
from edgerec_gym.agents.distillation.train import score_pages as score_student
from edgerec_gym.agents.registry import TEACHER, family, train_agent
from edgerec_gym.agents.rerank.reranker import ListScorer
from edgerec_gym.agents.rerank.train import load_reranker
from edgerec_gym.agents.teachers.train import load_teacher
from edgerec_gym.agents.teachers.train import score_pages as score_teacher
from edgerec_gym.bench.distil.cost import student_cost, teacher_cost
from edgerec_gym.bench.distil.judge import Judge, mean_ndcg, ndcg_difference, ndcg_loss
from edgerec_gym.bench.distil.truth import true_pages
from edgerec_gym.bench.rows import difference, mean, values_of
from edgerec_gym.bench.setting import make_policy
from edgerec_gym.bench.training import collect_logs, run_folder
from edgerec_gym.config import FeedConfig
from edgerec_gym.errors import InputError
from edgerec_gym.evaluation.cache import Entry, Place, Rows, played, row, table
from edgerec_gym.files import atomic_path, make_folder
from edgerec_gym.logs.collect import collect
from edgerec_gym.logs.store import LogReader
from edgerec_gym.runs import read_run
from edgerec_gym.scenario import Scenario

ENV_ID = "EdgeFeedRerank-v0"
TEACHERS = family(TEACHER)
PLAIN, DISTILLED = "student, clicks alone", "student, distilled"
STUDENTS: dict[str, dict[str, Any]] = {  # name -> what differs from the full distillation
    PLAIN: {"ranking": 0.0, "embedding": 0.0, "interpolation": 0.0},
    DISTILLED: {},
    "without ranking": {"ranking": 0.0},
    "without embedding": {"embedding": 0.0},
    "without interpolation": {"interpolation": 0.0},
    "without confidence": {"by_confidence": 0},
}
HELD_USERS, HELD_DAYS = "held-out users", "held-out days"
CLOUD = "cloud order"
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Sizes:
    """The amount of work.

    Attributes:
        log_sessions: sessions collected to learn from.
        held_sessions: sessions of held-out users, to judge.
        sessions: sessions that each policy plays.
        teacher: hyper-parameters of the teachers, by agent.
        student: hyper-parameters of the student.
    """

    log_sessions: int = 6_000
    held_sessions: int = 2_000
    sessions: int = 2_000
    teacher: dict[str, dict[str, Any]] = field(
        default_factory=lambda: {
            "lightgcn": {
                "learning_rate": 5e-3,
                "batch_size": 1024,
                "weight_decay": 1e-4,
                "epochs": 20,
                "earlier": 50,
            },
            "sasrec": {"learning_rate": 2e-3, "epochs": 6, "dim": 32},
            "deepfm": {"learning_rate": 2e-3, "epochs": 6, "dim": 32, "attention": 0},
        }
    )
    student: dict[str, Any] = field(
        default_factory=lambda: {
            "hidden": 8,
            "match": 1,
            "per_session": 2,
            "learning_rate": 1e-2,
            "epochs": 6,
            "patience": 3,
        }
    )


def quick() -> Sizes:
    """Return the sizes of a run of a few minutes."""
    full = Sizes()
    teacher = {name: hyper | {"epochs": 1, "dim": 16} for name, hyper in full.teacher.items()}
    student = full.student | {"epochs": 1}
    return Sizes(log_sessions=600, held_sessions=200, sessions=60, teacher=teacher, student=student)


@dataclass(frozen=True)
class Study:
    """One study.

    Attributes:
        out: folder of logs, runs and results.
        scenario: a scenario with synthetic users.
        logs: log folder to learn from.
        sizes: amount of work.
        seeds: number of training seeds.
        students: names in :data:`STUDENTS`.
    """

    out: Path
    scenario: str
    logs: Path
    sizes: Sizes
    seeds: int
    students: tuple[str, ...]

    def run(self, name: str, seed: int) -> Path:
        """Return the folder of a run."""
        return run_folder(self.out, name, seed)


def run(
    out: str | Path,
    *,
    scenario: str = "lite-v2",
    logs: str | Path | None = None,
    sizes: Sizes | None = None,
    seeds: int = 3,
    students: Sequence[str] = tuple(STUDENTS),
    workers: int = 1,
    progress: Progress | None = None,
) -> tuple[Rows, dict[str, Any]]:
    """Run the study, reusing what is finished.

    Args:
        out: folder of logs, runs and results.
        scenario: a scenario with synthetic users.
        logs: a log of that scenario's users with the scenario's item columns; None collects one.
        sizes: amount of work.
        seeds: number of training seeds 0, 1, ...
        students: which of :data:`STUDENTS` to train; the plain one always is.
        workers: processes that play.
        progress: called with (steps done, total, text).

    Returns:
        Rows as in :mod:`edgerec_gym.evaluation.cache`, and what was decided: the chosen teacher, whether the
        gate is open, and the sizes.

    Raises:
        InputError: the scenario has no synthetic users, or the log does not fit it.
    """
    sizes = sizes or Sizes()
    place = Scenario.load(scenario)
    if place.synthetic is None:
        raise InputError(f"the scenario {scenario!r} has no ground truth to judge by")
    unknown = [name for name in students if name not in STUDENTS]
    if unknown:
        raise InputError(f"unknown student {unknown[0]!r}; allowed: {', '.join(STUDENTS)}")
    folder = make_folder(out)
    own = Path(logs) if logs is not None else folder / "logs"
    names = (PLAIN, *(name for name in students if name != PLAIN))
    study = Study(folder, scenario, own, sizes, seeds, names)
    total = 2 + seeds * (len(TEACHERS) + len(names)) + 2
    steps = iter(range(1, total + 1))

    def tell(text: str) -> None:
        if progress:
            progress(next(steps, total), total, text)

    if logs is None:
        collect_logs(own, scenario, sizes.log_sessions)
    tell("logs collected")
    collect(folder / "held", scenario=scenario, sessions=sizes.held_sessions, split="eval", seed=7)
    judges = read_judges(study)
    tell("pages judged by the truth")
    for name in TEACHERS:
        for seed in range(seeds):
            hyper = sizes.teacher[name]
            train_agent(name, study.run(name, seed), logs=own, seed=seed, resume=True, hyper=hyper)
            tell(f"teacher {name}, seed {seed}")
    best = best_teacher(study)
    for name in names:
        for seed in range(seeds):
            distil(
                study.run(name, seed),
                own,
                study.run(best, seed),
                seed=seed,
                resume=True,
                distillation=STUDENTS[name],
                **sizes.student,
            )
            tell(f"{name}, seed {seed}")
    rows, gate = ndcg_rows(study, judges, best)
    tell("NDCG")
    rows += cost_rows(study, judges[0])
    rows += play_rows(study, workers)
    tell("played")
    about = {"teacher": best, "gate": gate, "log_sessions": LogReader(own).sessions}
    return rows, about | {"held_sessions": sizes.held_sessions, "student": sizes.student}


def everything(session: np.ndarray) -> np.ndarray:
    """Keep all sessions (S,): (S,) bool."""
    return np.ones(len(session), np.bool_)


def best_teacher(study: Study) -> str:
    """Return the teacher with the best mean validation NDCG@10."""

    def figure(name: str) -> float:
        records = [read_run(study.run(name, seed)).record for seed in range(study.seeds)]
        return float(np.mean([max(record["ndcg"]) for record in records]))

    return max(TEACHERS, key=figure)


def read_judges(study: Study) -> list[Judge]:
    """Return the pages of held-out users on held-out days, and of the log's users on its held-out days."""
    reader = LogReader(study.logs)
    held = LogReader(study.out / "held")
    if held.config.item_columns != reader.config.item_columns:
        raise InputError(
            f"{study.logs} has the item columns {reader.config.item_columns}; the scenario "
            f"{study.scenario!r} has {held.config.item_columns}"
        )
    earlier = max(hyper.get("earlier", 20) for hyper in study.sizes.teacher.values())
    users = SequenceStream(held, None, everything, history=UserHistory.read(held), earlier=earlier)
    _, _, days = split_sequences(reader, UserHistory.read(reader), earlier)
    return [
        Judge.read(HELD_USERS, users, true_pages(study.out / "held")),
        Judge.read(HELD_DAYS, days, true_pages(study.logs, days.days)),
    ]


def page_scores(study: Study, judge: Judge, name: str, seed: int) -> dict[str, np.ndarray]:
    """Return the NDCG@10 of each page of a run, by "truth" and "clicks"; kept beside the run."""
    folder = study.run(name, seed)
    file = folder / f"{judge.name.replace(' ', '-')}-{len(judge.truth)}.safetensors"
    if not file.exists():
        config = LogReader(study.logs).config
        if name in TEACHERS:
            teacher = load_teacher(folder, config)
            found = judge.ndcg(lambda pages: score_teacher(teacher, pages))
        else:
            student = load_student(folder, config)
            found = judge.ndcg(lambda pages: score_student(student, pages))
        with atomic_path(file) as temporary:
            save_file(found, temporary)
    return load_file(file)


def load_student(folder: Path, config: FeedConfig) -> ListScorer:
    """Load a student's run."""
    network = load_reranker(folder, config)
    assert isinstance(network, ListScorer)
    return network


def ndcg_rows(study: Study, judges: Sequence[Judge], best: str) -> tuple[Rows, dict[str, Any]]:
    """Return the rows of NDCG@10 and the gate: the teacher's NDCG less that of the plain student."""
    rows: Rows = []
    gate: dict[str, Any] = {}
    for judge in judges:
        names = (*TEACHERS, *study.students)
        parts = {"all pages": np.ones(len(judge.truth), np.bool_), "later pages": judge.later}
        for part, chosen in parts.items():
            session = np.unique(judge.sessions[chosen], return_inverse=True)[1]
            for gain in ("truth", "clicks"):
                values = {
                    name: np.stack(
                        [page_scores(study, judge, name, s)[gain][chosen] for s in range(study.seeds)]
                    )
                    for name in names
                }
                values[CLOUD] = _cloud_order(judge)[gain][None, chosen]
                told = {"judged": judge.name, "part": part, "gain": gain}

                for name, own in values.items():
                    figures = {"ndcg": mean_ndcg(own, session)}
                    if name not in (best, CLOUD):
                        figures["ndcg_loss"] = ndcg_loss(own, values[best], session)
                    if name not in (PLAIN, CLOUD):
                        figures["ndcg_over_plain"] = ndcg_difference(own, values[PLAIN], session)
                    count = int(session.max()) + 1
                    rows += [
                        row(name, metric, interval, study.seeds, count, **told)
                        for metric, interval in figures.items()
                    ]
                if gain == "truth":
                    over = ndcg_difference(values[best], values[PLAIN], session)
                    gate[f"{judge.name}, {part}"] = over | {"open": bool(over["low"] > 0)}
    return rows, gate


def _cloud_order(judge: Judge) -> dict[str, np.ndarray]:
    return judge.ndcg(lambda pages: -np.arange(pages.pages.ids.shape[1]) + np.zeros(pages.pages.ids.shape))


def cost_rows(study: Study, judge: Judge) -> Rows:
    """Return bytes and milliseconds of the teachers and of the student."""
    config = LogReader(study.logs).config
    rows: Rows = []
    told: dict[str, Any] = {"judged": judge.name, "part": "all pages", "gain": ""}
    costs = {name: teacher_cost(load_teacher(study.run(name, 0), config), judge) for name in TEACHERS}
    chosen = DISTILLED if DISTILLED in study.students else PLAIN
    student = load_student(study.run(chosen, 0), config)
    costs[chosen] = student_cost(student, study.scenario, config, judge)
    for name, figures in costs.items():
        for metric, value in figures.items():
            rows.append(row(name, metric, {"mean": value, "low": value, "high": value}, 1, 1, **told))
    return rows


def play_rows(study: Study, workers: int) -> Rows:
    """Return the value of the students on the ground truth of EdgeFeedRerank-v0, beside keep."""
    place = Place(env_id=ENV_ID, scenario=study.scenario, sessions=study.sizes.sessions)
    entries = [Entry(name, make_policy, {"name": name}) for name in ("keep", "device-greedy")]
    for name in study.students:
        for seed in range(study.seeds):
            folder = study.run(name, seed)
            entries.append(Entry(name, make_policy, {"name": str(folder)}, (folder,), seed))
    results = played(entries, place, study.out / "played", workers=workers)
    kept = values_of(results, "keep")("value")
    plain = values_of(results, PLAIN)("value")
    rows: Rows = []
    told: dict[str, Any] = {"judged": "played", "part": "whole sessions", "gain": ""}
    for name in dict.fromkeys(entry.policy for entry in entries):
        value = values_of(results, name)("value")
        figures = {"value": mean(value), "gain_over_keep": difference(value, kept)}
        if name in STUDENTS and name != PLAIN:
            figures["value_over_plain"] = difference(value, plain)
        for metric, interval in figures.items():
            rows.append(row(name, metric, interval, len(value), study.sizes.sessions, **told))
    return rows


METRICS = {
    "ndcg": ".4f 95%",
    "ndcg_over_plain": "+.4f 95%",
    "ndcg_loss": "+.1% 95%",
}
COSTS = {"bytes": ",.0f", "page_bytes": ",.0f", "ms_p50": ".3f", "ms_p99": ".3f", "cpu_ms_p50": ".3f"}
VALUES = {"value": ".3f 95%", "gain_over_keep": "+.3f 95%", "value_over_plain": "+.3f 95%"}


def tables(rows: Rows) -> dict[str, tuple[list[str], list[list[str]]]]:
    """Return header and body of the study's tables by title."""
    found = {}
    for judged in (HELD_USERS, HELD_DAYS):
        for part in ("all pages", "later pages"):
            for gain in ("truth", "clicks"):
                own = [r for r in rows if (r["judged"], r["part"], r["gain"]) == (judged, part, gain)]
                found[f"NDCG@10 by {gain}, {judged}, {part}"] = table(own, METRICS)
    found["bytes and milliseconds, one thread"] = table([r for r in rows if r["metric"] in COSTS], COSTS)
    found["value on the ground truth of EdgeFeedRerank-v0"] = table(
        [r for r in rows if r["judged"] == "played"], VALUES
    )
    return found
