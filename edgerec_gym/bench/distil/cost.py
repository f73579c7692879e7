"""Bytes and milliseconds of teachers and students, both in ONNX Runtime on one thread."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime as ort

from edgerec_gym.agents.export.export import export_network
from edgerec_gym.agents.registry import find_agent
from edgerec_gym.agents.rerank.reranker import ListScorer
from edgerec_gym.agents.teachers.graph import page_inputs, teacher_graph
from edgerec_gym.agents.teachers.networks import PageTeacher
from edgerec_gym.bench.distil.judge import Judge
from edgerec_gym.config import FeedConfig
from edgerec_gym.device.session import DeviceModel, DeviceSession, load
from edgerec_gym.errors import InputError
from edgerec_gym.files import folder_bytes
from edgerec_gym.policy import Observation

CALLS, WARM_UP = 1000, 20
MOMENTS = 32


def moments(judge: Judge) -> list[tuple[int, int]]:
    """Return parts and rows of second pages, at which much has happened."""
    found = [
        (k, int(row))
        for k, part in enumerate(judge.pages)
        for row in np.flatnonzero((part.slot > 0) & (part.pages.known > 1))
    ]
    if not found:
        raise InputError("no session has a second page; nothing to time")
    return found[:MOMENTS]


def timed(calls: list[Callable[[], object]], count: int = CALLS) -> dict[str, float]:
    """Return wall ms at p50 and p99, and the thread's own ms at p50, of `count` calls in turn."""
    wall, own = np.empty(count), np.empty(count)
    for k in range(-WARM_UP, count):
        call = calls[k % len(calls)]
        started, started_own = time.perf_counter(), time.thread_time()
        call()
        ended_own, ended = time.thread_time(), time.perf_counter()
        if k >= 0:
            wall[k], own[k] = (ended - started) * 1e3, (ended_own - started_own) * 1e3
    return {
        "ms_p50": float(np.median(wall)),
        "ms_p99": float(np.quantile(wall, 0.99)),
        "cpu_ms_p50": float(np.median(own)),
    }


def teacher_cost(teacher: PageTeacher, judge: Judge) -> dict[str, float]:
    """Return bytes of the graph, with its table of ids, and the time to score a page from the session."""
    inputs = [page_inputs(judge.pages[part], row) for part, row in moments(judge)]
    content = teacher_graph(teacher, inputs[0])
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    read = {value.name for value in session.get_inputs()}  # a teacher may not read everything
    inputs = [{name: value for name, value in given.items() if name in read} for given in inputs]
    calls: list[Callable[[], object]] = [partial(session.run, None, given) for given in inputs]
    return {"bytes": float(len(content)), **timed(calls)}


def student_cost(student: ListScorer, scenario: str, config: FeedConfig, judge: Judge) -> dict[str, float]:
    """Return bytes of the exported folder, the time to score a page, and that of one event.

    The phone keeps the codes of the events so far, so scoring does not read them again.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "model"
        export_network(student, out, find_agent("crban"), scenario, config)
        size = folder_bytes(out)
        model = load(out)
    calls: list[Callable[[], object]] = []
    events: list[Callable[[], object]] = []
    for part, row in moments(judge):
        observation = {key: values[row] for key, values in judge.pages[part].observation.items()}
        session = _after_events(model, observation)
        calls.append(partial(session.scores, observation))
        last = observation["exposures"][-1]
        if last.any():
            events.append(partial(DeviceSession(model).append, "exposures", last))
    figures = {"bytes": float(size), **timed(calls)}
    if events:
        figures |= {f"event_{name}": value for name, value in timed(events).items()}
    shipped = config.pool_size * config.n_item_features * np.dtype(np.float32).itemsize
    return figures | {"page_bytes": float(shipped)}


def _after_events(model: DeviceModel, observation: Observation) -> DeviceSession:
    session = DeviceSession(model)
    for name in ("exposures", "page_views"):
        for event in observation[name]:
            if event.any():
                session.append(name, event)
    return session
