"""Sorts the candidates of a page: by counting sort, since pages are built millions of times."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from edgerec_gym.compiled.arrays import Float32Matrix, Int32Matrix
from edgerec_gym.compiled.jit import product_kernel

BUCKETS = 1024


class Ranking(NamedTuple):
    """Workspace of W workers for at most C candidates in G groups; every worker uses its own row."""

    item: Int32Matrix  # (W, C), candidates in the order they were found
    group: Int32Matrix  # (W, C)
    score: Float32Matrix  # (W, C)
    rank: Float32Matrix  # (W, C), sort key, largest first
    order: Int32Matrix  # (W, C), candidates, best first
    bucket: Int32Matrix  # (W, C)
    first: Int32Matrix  # (W, BUCKETS + 1)
    query: Float32Matrix  # (W, d)
    group_rank: Float32Matrix  # (W, G)
    group_taken: Int32Matrix  # (W, G)


def make_ranking(workers: int, capacity: int, groups: int, embedding_size: int) -> Ranking:
    """Allocate the workspace of `workers` workers."""

    def ints(size: int) -> np.ndarray:
        return np.zeros((workers, size), np.int32)

    def floats(size: int) -> np.ndarray:
        return np.zeros((workers, size), np.float32)

    return Ranking(
        item=ints(capacity),
        group=ints(capacity),
        score=floats(capacity),
        rank=floats(capacity),
        order=ints(capacity),
        bucket=ints(capacity),
        first=ints(BUCKETS + 1),
        query=floats(embedding_size),
        group_rank=floats(groups),
        group_taken=ints(groups),
    )


@product_kernel
def best_first(rank, n, order, bucket, first):
    """Sort candidates by rank, to within a thousandth of the ranks' range; ties stay in the order found.

    Args:
        rank: (>= n,) float32.
        n: number of candidates.
        order: (>= n,) int32, written: candidates, best first.
        bucket: (>= n,) int32, overwritten.
        first: (BUCKETS + 1,) int32, overwritten.
    """
    low, high = rank[0], rank[0]
    for j in range(1, n):
        low = rank[j] if rank[j] < low else low
        high = rank[j] if rank[j] > high else high
    scale = np.float32(BUCKETS - 1) / max(high - low, np.float32(1e-30))
    for j in range(n):
        bucket[j] = np.int32((high - rank[j]) * scale)
    for b in range(BUCKETS + 1):
        first[b] = 0
    for j in range(n):
        first[bucket[j] + 1] += 1
    for b in range(BUCKETS):
        first[b + 1] += first[b]
    for j in range(n):
        b = bucket[j]
        order[first[b]] = j
        first[b] += 1
