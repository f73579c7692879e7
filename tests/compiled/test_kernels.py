"""What kernels stand on: tables of arrays, worker threads, the order of a page's candidates."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from edgerec_gym.compiled import jit
from edgerec_gym.compiled.arrays import AddressTable, Float32Matrix, Int32Vector, move, reader
from edgerec_gym.compiled.selection import BUCKETS, best_first
from edgerec_gym.compiled.workers import Workers
from edgerec_gym.evaluation.throughput import measure


class Inner(NamedTuple):
    """Nested arrays."""

    counts: Int32Vector


class Outer(NamedTuple):
    """Numbers, an array and a nested named tuple."""

    n: int
    rate: float
    values: Float32Matrix
    inner: Inner


read_outer = reader(Outer)


@njit
def change(address):
    outer = read_outer(address)
    outer.values[1, 2] += outer.rate * outer.n
    row = outer.values[0]
    move(row, 0, 1, outer.values.shape[1] - 1)
    outer.inner.counts[outer.inner.counts.shape[0] - 1] = 7


def test_a_kernel_reads_and_writes_the_arrays_of_a_table():
    outer = Outer(3, 0.5, np.arange(8, dtype=np.float32).reshape(2, 4), Inner(np.zeros(5, np.int32)))
    table = AddressTable(outer)  # the address is good as long as the table lives
    change(table.address)
    assert outer.values.tolist() == [[1, 2, 3, 3], [4, 5, 7.5, 7]]
    assert outer.inner.counts.tolist() == [0, 0, 0, 0, 7]


@pytest.mark.parametrize(
    "values", [np.zeros((2, 4)), np.zeros(4, np.float32), np.zeros((4, 2), np.float32).T], ids=str
)
def test_a_table_takes_only_what_its_class_declares(values):
    with pytest.raises(TypeError, match="values is "):
        AddressTable(Outer(1, 1.0, values, Inner(np.zeros(1, np.int32))))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=300))
def test_candidates_are_ordered_to_a_thousandth_of_their_range(ranks):
    rank, n = np.array(ranks, np.float32), len(ranks)
    order, bucket, first = np.zeros(n, np.int32), np.zeros(n, np.int32), np.zeros(BUCKETS + 1, np.int32)
    best_first(rank, n, order, bucket, first)
    assert sorted(order) == list(range(n))
    step = max(rank.max() - rank.min(), 1e-30) / (BUCKETS - 1) * 1.01  # smaller ranges are ties
    assert (np.diff(rank[order]) <= step).all()


@pytest.mark.parametrize(("rows", "threads"), [(64, 1), (130, 2), (4096, 3)])
def test_workers_share_all_rows_once(rows, threads):
    seen, names = np.zeros(rows, np.int64), set()

    def kernel(by, start, stop, worker):
        names.add((worker, threading.current_thread().name))
        seen[start:stop] += by

    workers = Workers(rows, threads)
    for _ in range(3):
        workers.run(kernel, 2)
    assert (seen == 6).all()
    assert len(names) == threads == len(workers)
    done = []
    workers.each(lambda job, worker: done.append((job, worker)), list(range(20)))
    assert sorted(job for job, _ in done) == list(range(20))
    workers.close()
    workers.run(kernel, 1)
    assert (seen == 7).all()


def test_an_error_in_a_worker_reaches_the_caller_and_the_next_call_works():
    def kernel(fail, start, stop, worker):
        if fail and worker == 1:
            raise ValueError("in a worker")

    workers = Workers(128, 2)
    with pytest.raises(ValueError, match="in a worker"):
        workers.run(kernel, True)
    workers.run(kernel, False)
    workers.close()


def test_every_file_with_kernels_is_in_the_digest():
    root = Path(jit.__file__).parents[1]
    kernels = ("@kernel", "@product_kernel")
    found = {
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        if "agents" not in path.parts[len(root.parts) :]
        and any(line.startswith(kernels) for line in path.read_text(encoding="utf-8").splitlines())
    }
    assert (
        {"feed/kernels.py", "feed/slate.py", "feed/batch.py", "users/synthetic_kernels.py"}
        <= found
        <= set(jit._SOURCES)
    )


@pytest.mark.parametrize("num_envs", [1, 16])
@pytest.mark.parametrize("env_id", ["EdgeFeedMix-v0", "EdgeFeedSlate-v0"])
def test_throughput_measures_steps_beside_copies(num_envs, env_id):
    row = {"id": env_id, "preset": "lite", "users": "synthetic", "num_envs": num_envs}
    figures = measure({**row, "threads": 1, "copy": True}, seconds=0.2)
    assert 100 < figures["steps_per_s"] < figures["copies_per_s"]
    assert figures["ratio"] < 1
    slots = figures["slots_per_s"] / figures["steps_per_s"]
    assert slots == 1 if env_id == "EdgeFeedMix-v0" else 2 < slots < 10
    assert figures["observation_bytes"] > 5000
