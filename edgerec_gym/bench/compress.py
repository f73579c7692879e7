"""What compression costs and saves: engine x bits x pruning x quantisation-aware training (QAT).

Every variant becomes a device model (`edgerec compress`) and is judged by

- bytes of all files that a phone stores;
- milliseconds of a re-ranking and of an event, on one thread;
- NDCG@10 at page arrivals of held-out users of the ground truth, whose gains are true click probabilities;
- value of sessions of the ground truth in EdgeFeedRerank-v0;
- share of decisions that are those of the float32 model.

All variants of a student see the same observations and sessions. What is finished in the folder is kept.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from edgerec_gym.agents.compression.compress import Compression, compress
from edgerec_gym.agents.compression.fine_tuning import TuningConfig
from edgerec_gym.agents.find_policy import find_policy
from edgerec_gym.agents.registry import LOGS, find_agent
from edgerec_gym.device.description import DESCRIPTION, SEQUENCES
from edgerec_gym.device.engines.engine import ENGINES, REFERENCE
from edgerec_gym.device.session import DeviceSession, load
from edgerec_gym.documents import read_json
from edgerec_gym.errors import InputError
from edgerec_gym.evaluation.cache import Progress, Rows, row
from edgerec_gym.evaluation.intervals import Interval, seeds_interval
from edgerec_gym.evaluation.latency import measure
from edgerec_gym.evaluation.play import play
from edgerec_gym.evaluation.ranking import ndcg
from edgerec_gym.files import atomic_path, folder_bytes, make_folder, write_json
from edgerec_gym.logs.collect import collect
from edgerec_gym.policy import Observation
from edgerec_gym.registration import make_feeds
from edgerec_gym.runs import read_run
from edgerec_gym.scenario import SHIPPED_FOLDER
from edgerec_gym.spaces import CONTEXT
from edgerec_gym.tensors import read_tensors
from edgerec_gym.users.synthetic import SyntheticUsers

ENV_ID = "EdgeFeedRerank-v0"
CUT = 10  # of NDCG
SEED = 11  # of the sessions that judge
OTHERS = 2  # further decisions of a judged session, at random slots
PAGE_AGE, SLOT = CONTEXT.index("page_age"), CONTEXT.index("slot")


@dataclass(frozen=True)
class Student:
    """A trained run to compress.

    Attributes:
        name: name of its rows.
        run: its folder.
        scenario: name of the scenario that it plays.
    """

    name: str
    run: Path
    scenario: str


def shipped_students() -> tuple[Student, ...]:
    """The runs of this package that are compressed unless others are named."""
    rerank = SHIPPED_FOLDER / "lite" / "agents" / "rerank" / "runs"
    joint = SHIPPED_FOLDER / "lite-v2" / "agents" / "joint" / "runs"
    return (
        Student("crban", rerank / "crban-0", "lite"),
        Student("dnn", rerank / "dnn-0", "lite"),
        Student("values-pg", joint / "values-pg-0", "lite-v2"),
    )


@dataclass(frozen=True)
class Sizes:
    """How much is run.

    Attributes:
        shares: of the units to prune.
        bits: of the weights.
        seeds: of the fine-tuning.
        sessions: of the ground truth that each model plays for its value.
        judged: sessions that give the observations of NDCG and of equal decisions.
        calls: timed calls of a kind.
        logs: sessions of the log that re-rankers are fine-tuned on.
        tuning: hyper-parameters of the fine-tuning.
    """

    shares: tuple[float, ...] = (0.0, 0.25, 0.5)
    bits: tuple[int, ...] = (32, 8, 4)
    seeds: int = 3
    sessions: int = 400
    judged: int = 400
    calls: int = 1000
    logs: int = 2000
    tuning: TuningConfig = TuningConfig(epochs=2, patience=2)


QUICK = Sizes(
    shares=(0.0, 0.5), seeds=1, sessions=40, judged=60, calls=100, logs=150,
    tuning=TuningConfig(epochs=1, sessions=40, num_envs=40),
)  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """One way to compress a student.

    Attributes:
        student: the run.
        engine: engine that plays it.
        bits: of the weights.
        prune: share of the units removed.
        qat: whether it was trained while weights and kept state were rounded.
        seed: of the fine-tuning; None if nothing is trained.
    """

    student: Student
    engine: str
    bits: int
    prune: float
    qat: bool
    seed: int | None

    @property
    def model(self) -> str:
        """Name of its model's folder."""
        seed = "" if self.seed is None else f"-seed-{self.seed}"
        return f"{self.bits}-bits-{self.prune:g}-pruned{'-qat' if self.qat else ''}{seed}"

    @property
    def group(self) -> tuple[Any, ...]:
        """What the seeds of a row share."""
        return self.student.name, self.engine, self.bits, self.prune, self.qat

    def __str__(self) -> str:
        return f"{self.student.name} {self.engine} {self.model}"


def _plain(variant: Variant) -> Variant:
    """The float32 model of the reference engine, which the others are compared with."""
    return replace(variant, engine=REFERENCE.name, bits=32, prune=0.0, qat=False, seed=None)


def variants(student: Student, engines: tuple[str, ...], sizes: Sizes) -> Iterator[Variant]:
    """Yield the variants of a student, float32 first; what is pruned is fine-tuned, with QAT if rounded."""
    for engine in engines:
        for prune in sizes.shares:
            for bits in sizes.bits:
                for qat in (False, True):
                    trains = prune > 0 or (qat and bits < 32)
                    if qat == (bits < 32) or (not prune and not qat):
                        for seed in range(sizes.seeds) if trains else (None,):
                            yield Variant(student, engine, bits, prune, qat, seed)


@dataclass(frozen=True)
class Judged:
    """Decisions that the float32 run met in the ground truth.

    Attributes:
        observation: keys of the environment, (R, ...).
        gain: (R, N) true click probability of the pool rows at the next slot.
        arrival: (R,) bool, whether the page has just arrived; one decision of a session at most.
    """

    observation: Observation
    gain: np.ndarray
    arrival: np.ndarray


def judge(student: Student, sessions: int, seed: int = SEED) -> Judged:
    """Play held-out users with a run; keep a page arrival of each session, and decisions at random slots.

    The first page says nothing of a session, so an arrival is that of a later one.
    """
    env = make_feeds(ENV_ID, sessions, scenario=student.scenario, users="synthetic", split="eval")
    policy = find_policy(str(student.run), ENV_ID, student.scenario, "synthetic")
    observation, _ = env.reset(seed=seed * 2**20)
    policy.reset(np.ones(sessions, np.bool_))
    users = env.users
    assert isinstance(users, SyntheticUsers)
    draws = np.random.default_rng(seed)
    slots = draws.integers(1, env.config.max_slots, (sessions, OTHERS))
    done, arrived = np.zeros((2, sessions), np.bool_)
    kept: list[tuple[Observation, np.ndarray, np.ndarray]] = []
    n_pool, slot = env.config.pool_size, 0
    while not done.all():
        observation = env.batch.observation(copy=False)
        context = observation["context"]
        arrival = ~done & ~arrived & (context[:, PAGE_AGE] == 0) & (context[:, SLOT] > 0)
        chosen = np.flatnonzero(arrival | (~done & (slots == slot).any(axis=1)))
        if len(chosen):
            gain = users.true_values(env.batch.arrays)[chosen, :n_pool, 0]
            some = {key: values[chosen].copy() for key, values in observation.items()}
            kept.append((some, gain, arrival[chosen]))
        arrived |= arrival
        env.batch.step(policy.act(observation), done)
        done |= env.batch.arrays.terminated | env.batch.arrays.truncated
        slot += 1
    env.close()
    together = {key: np.concatenate([some[key] for some, _, _ in kept]) for key in kept[0][0]}
    return Judged(together, *(np.concatenate([part[k] for part in kept]) for k in (1, 2)))


def figures_of(
    folder: Path, beside: Path, student: Student, judged: Judged, sizes: Sizes
) -> dict[str, np.ndarray]:
    """Measure a device model; `beside` is the float32 model of the reference engine.

    Returns:
        bytes (); ms of a re-ranking and of an event of exposures, wall and processor time, (2,) p50, p99;
        how many times as fast it is as the float32 model, in processor time; ndcg (A,) at arrivals; decisions
        (R,); value (sessions,).
    """
    policy: Any = find_policy(str(folder), ENV_ID, student.scenario, "synthetic")
    count = len(judged.arrival)
    policy.reset(np.ones(count, np.bool_))
    decisions = np.asarray(policy.act(judged.observation))
    arrivals = np.flatnonzero(judged.arrival)
    lists = np.stack([
        policy.phones[at].session.rerank({key: values[at] for key, values in judged.observation.items()}, CUT)
        for at in arrivals.tolist()
    ])  # fmt: skip
    gain = judged.gain[arrivals]
    score = np.full(gain.shape, -1.0)
    rows, places = np.nonzero(lists >= 0)
    score[rows, lists[rows, places]] = CUT - places
    there = judged.observation["pool"][arrivals].any(axis=2)
    policy = find_policy(str(folder), ENV_ID, student.scenario, "synthetic")
    played = play(
        policy,
        env_id=ENV_ID,
        scenario=student.scenario,
        users="synthetic",
        sessions=sizes.sessions,
        seed=SEED + 1,
        num_envs=min(128, sizes.sessions),
    )
    return {
        "bytes": np.array(folder_bytes(folder)),
        "ndcg": ndcg(score, gain, np.array(there), CUT),
        "decisions": decisions,
        "value": played["value"],
        **_times(folder, beside, judged, sizes.calls),
    }


def _times(folder: Path, beside: Path, judged: Judged, calls: int) -> dict[str, np.ndarray]:
    """Time a model and, in turns with it, the float32 model `beside`."""
    moments = np.flatnonzero(judged.arrival)[:32]
    events: dict[str, list[Callable[[], Any]]] = {"own": [], "beside": []}
    reranks: dict[str, list[Callable[[], Any]]] = {"own": [], "beside": []}
    for kind, model in (("own", load(folder)), ("beside", load(beside))):
        for at in moments:
            session = DeviceSession(model)
            one = {key: values[at] for key, values in judged.observation.items()}
            for name in SEQUENCES:
                for event in one[name][one[name].any(axis=1)]:
                    session.append(name, event)
                    if name == SEQUENCES[0]:
                        events[kind].append(partial(session.append, name, event))
            reranks[kind].append(partial(session.rerank, one))
    found = {}
    for name, both in (("event", events), ("rerank", reranks)):
        told = measure(both, calls)
        own, other = told["own"], told["beside"]
        found[f"{name}_ms"] = np.array([own["p50"], own["p99"]])
        found[f"{name}_cpu_ms"] = np.array([own["cpu_p50"], own["cpu_p99"]])
        found[f"{name}_speed"] = np.array(other["cpu_p50"] / own["cpu_p50"])
    return found


def run(
    out: str | Path,
    *,
    students: tuple[Student, ...],
    engines: tuple[str, ...],
    sizes: Sizes,
    progress: Progress | None = None,
) -> Rows:
    """Compress and measure all variants; return their rows.

    Args:
        out: folder of models, runs and figures; what it holds is not done again.
        students: runs to compress.
        engines: names of engines.
        sizes: how much is run.
        progress: called with (variants done, total, name of the last one).

    Raises:
        InputError: an unknown engine, a run whose agent cannot be exported, or no arrival to judge by.
        MissingExtraError: an engine is not installed.
    """
    for engine in engines:
        if engine not in ENGINES:
            raise InputError(f"unknown engine {engine!r}; allowed: {', '.join(ENGINES)}")
        ENGINES[engine].check_installed()
    folder = make_folder(out)
    _check_sizes(folder, sizes)
    work = [variant for student in students for variant in variants(student, engines, sizes)]
    judged: dict[str, Judged] = {}
    found: dict[Variant, dict[str, np.ndarray]] = {}
    for done, variant in enumerate(work):
        file = folder / variant.student.name / variant.engine / variant.model / "figures.safetensors"
        if not file.exists():
            if progress:
                progress(done, len(work), str(variant))
            name = variant.student.name
            if name not in judged:
                judged[name] = judge(variant.student, sizes.judged)
            model = _compressed(variant, folder, sizes)
            beside = _compressed(_plain(variant), folder, sizes)
            figures = figures_of(model, beside, variant.student, judged[name], sizes)
            with atomic_path(file) as temporary:
                save_file({key: np.ascontiguousarray(values) for key, values in figures.items()}, temporary)
        found[variant] = read_tensors(file, finite=False)
    if progress:
        progress(len(work), len(work), "")
    return rows_of(found)


def _check_sizes(folder: Path, sizes: Sizes) -> None:
    """Note what the figures in a folder were measured with; InputError if it was something else."""
    told = {name: getattr(sizes, name) for name in ("sessions", "judged", "calls", "logs")}
    told["tuning"] = sizes.tuning.to_dict()
    file = folder / "sizes.json"
    if not file.exists():
        write_json(file, told)
    elif (earlier := read_json(file)) != told:
        raise InputError(f"{folder} holds figures of other sizes ({earlier}): choose another folder")


def _compressed(variant: Variant, folder: Path, sizes: Sizes) -> Path:
    """Return the folder of a variant's device model; engines share the run that is trained."""
    student, base = variant.student, folder / variant.student.name
    how = Compression(variant.bits, variant.prune, variant.qat, tuning=sizes.tuning)
    logs = None
    if how.trains and find_agent(read_run(student.run).agent).learns_from == (LOGS,):
        logs = folder / f"logs-{student.scenario}"
        collect(logs, preset_name=student.scenario, sessions=sizes.logs)
    out = base / variant.engine / variant.model / "device"
    if (out / DESCRIPTION).is_file():
        return out
    make_folder(out.parent)
    compress(
        student.run,
        out,
        how,
        scenario=student.scenario,
        logs=logs,
        work=base / "runs" / variant.model,
        engine=variant.engine,
        places=CUT,
        seed=variant.seed or 0,
    )
    return out


# --- rows ---------------------------------------------------------------------------------------------------


def rows_of(found: dict[Variant, dict[str, np.ndarray]]) -> Rows:
    """Return one row for each variant and metric, over its seeds.

    The reference is the float32 model of ONNX Runtime that is not pruned.
    """
    groups: dict[tuple[Any, ...], list[Variant]] = {}
    for variant in found:
        groups.setdefault(variant.group, []).append(variant)
    rows: Rows = []
    for several in groups.values():
        first = several[0]
        reference = found.get(_plain(first), found[first])
        own = {key: np.stack([found[variant][key] for variant in several]) for key in reference}
        for metric, interval in _metrics(own, reference).items():
            about = {
                "student": first.student.name,
                "scenario": first.student.scenario,
                "engine": first.engine,
                "bits": first.bits,
                "prune": first.prune,
                "qat": first.qat,
            }
            count = own["value"].shape[1] if metric.startswith("value") else own["ndcg"].shape[1]
            rows.append(row(str(first.student.name), metric, interval, len(several), count, **about))
    return rows


def _metrics(own: dict[str, np.ndarray], reference: dict[str, np.ndarray]) -> dict[str, Interval]:
    defined = np.isfinite(reference["ndcg"])
    ranked, before = own["ndcg"][:, defined], reference["ndcg"][None, defined]
    value, value_before = own["value"], reference["value"][None]
    same = (own["decisions"] == reference["decisions"]).astype(np.float64)
    found = {
        "bytes": _spread(own["bytes"].astype(np.float64)),
        "ndcg": seeds_interval([ranked], lambda m: m[..., 0]),
        "ndcg_loss": seeds_interval([ranked, before], lambda m: 1 - m[..., 0] / m[..., 1]),
        "value": seeds_interval([value], lambda m: m[..., 0]),
        "value_difference": seeds_interval([value, value_before], lambda m: m[..., 0] - m[..., 1]),
        "equal_decisions": seeds_interval([same], lambda m: m[..., 0]),
    }
    for name in ("rerank_ms", "event_ms", "rerank_cpu_ms", "event_cpu_ms"):
        found |= {f"{name}_{q}": _spread(own[name][:, k]) for k, q in enumerate(("p50", "p99"))}
    found |= {f"{name}_speed": _spread(own[f"{name}_speed"]) for name in ("rerank", "event")}
    return found


def _spread(values: np.ndarray) -> Interval:
    """Mean and range over seeds."""
    return {"mean": float(values.mean()), "low": float(values.min()), "high": float(values.max())}


def tables(rows: Rows) -> dict[str, tuple[list[str], list[list[str]]]]:
    """Return one table per student, by title: header and body."""
    header = ["engine", "bits", "pruned", "QAT", "kB", "re-rank CPU ms p50 / p99", "speed", "event p50",
              "speed", "NDCG@10", "NDCG loss %", "value - float32", "equal"]  # fmt: skip
    found: dict[str, dict[tuple[Any, ...], dict[str, dict[str, Any]]]] = {}
    for item in rows:
        key = tuple(item[name] for name in ("engine", "bits", "prune", "qat"))
        found.setdefault(item["student"], {}).setdefault(key, {})[item["metric"]] = item
    made = {}
    for student, lines in found.items():
        body = []
        for (engine, bits, prune, qat), m in lines.items():
            loss, gap = m["ndcg_loss"], m["value_difference"]
            body.append([
                engine, str(bits), f"{prune:.0%}", "yes" if qat else "", f"{m['bytes']['mean'] / 1e3:.1f}",
                f"{m['rerank_cpu_ms_p50']['mean']:.2f} / {m['rerank_cpu_ms_p99']['mean']:.2f}",
                f"{m['rerank_speed']['mean']:.2f}", f"{m['event_cpu_ms_p50']['mean']:.3f}",
                f"{m['event_speed']['mean']:.2f}", f"{m['ndcg']['mean']:.4f}",
                f"{loss['mean']:.2%} [{loss['low']:.2%}, {loss['high']:.2%}]",
                f"{gap['mean']:+.3f} [{gap['low']:+.3f}, {gap['high']:+.3f}]",
                f"{m['equal_decisions']['mean']:.1%}",
            ])  # fmt: skip
        made[student] = (header, body)
    return made


def machine() -> dict[str, Any]:
    """What the times were measured on."""
    return {
        "processor": platform.processor() or platform.machine(),
        "load_average": round(os.getloadavg()[0], 2),
    }
