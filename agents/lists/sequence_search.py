"""Sequence search: re-rank-recall proposes lists, and in re-rank-rank the evaluator picks one.

Recall is a beam search over the evaluator's value of a prefix, as in Kuaishou's re-ranker on phones
(2208.09577, CIKM'22). It stops early once the beams are about equally good, min / max of their values > t,
since then one more exact place is worth little. Later places are filled by the values of single cards. The
generator adds lists that it finds likely. The evaluator then judges all whole lists, and the best is played.
A list is judged up to the end of its page, since later cards will not be seen.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from edgerec_gym.agents.data.observed_log import NOT_SHOWN
from edgerec_gym.agents.learning.tensors import TensorObservation
from edgerec_gym.agents.lists.evaluator import EncodedCards, ListEvaluator
from edgerec_gym.agents.lists.pointer_net import PointerNet
from edgerec_gym.agents.rerank.reranker import (
    ListEmitter,
    RerankerConfig,
    end_with_page,
    pool_present,
    slots_left,
)
from edgerec_gym.config import Config, FeedConfig, bounded


@dataclass(frozen=True)
class SearchConfig(Config):
    """Settings of the sequence search."""

    beams: int = bounded(4, 1, 1_000_000)  # beams kept at every place
    candidates: int = bounded(12, 1, 10_000)  # best rows by single value, which lists are made of
    stability: float = bounded(0.95, 0.0, 1.0)  # t; 1 never stops early
    samples: int = bounded(2, 0, 10_000)  # lists drawn from the generator, besides its greedy one
    seed: int = bounded(0, 0, 2**31 - 1)  # seed of these draws, the same in every search
    every: int = bounded(3, 1, 1000)  # exposures without a click before a new search


class SearchResult(NamedTuple):
    """Result and cost of a search for B sessions.

    Attributes:
        rows: (B, K) int64 best list, -1 where the pool has fewer cards.
        value: (B,) float32 value of that list.
        stopped: (B,) int64 number of places after which the beams had settled.
        calls: number of lists and prefixes that the evaluator judged, over all sessions.
        milliseconds: wall time.
    """

    rows: Tensor
    value: Tensor
    stopped: Tensor
    calls: int
    milliseconds: float


class SequenceSearch(ListEmitter):
    """Beam search over an evaluator plus lists of a generator; the evaluator picks among them.

    Args:
        config: gives the sizes.
        evaluator: judges lists.
        generator: proposes lists; None uses the beams only.
        settings: settings of the search.
    """

    def __init__(
        self,
        config: FeedConfig,
        evaluator: ListEvaluator,
        generator: PointerNet | None = None,
        settings: SearchConfig | None = None,
    ) -> None:
        super().__init__(config, RerankerConfig())
        self.evaluator, self.generator, self.search_settings = (
            evaluator,
            generator,
            settings or SearchConfig(),
        )
        self.plan_every = self.search_settings.every  # cards are judged by their neighbours, so plan lists

    def emit(self, observation: TensorObservation, k: int) -> Tensor:
        """Return the best list found, (B, k) int64, -1 where the pool has fewer."""
        with torch.no_grad():
            return self.search(observation, k).rows

    def search(self, observation: TensorObservation, k: int) -> SearchResult:
        """Find a list of k pool rows with a high value for every session."""
        started = time.perf_counter()
        encoded, present = self.evaluator.encode_pool(observation), pool_present(observation)
        single = self.evaluator.single_values(encoded, observation)
        single = single.masked_fill(~present, -torch.inf)
        left = slots_left(observation, self.config)
        beams, stopped, calls = self._beams(encoded, single, k, left)
        lists = [beams, by_score(single, present, k).unsqueeze(1)]
        if self.generator is not None:
            lists.append(self._generated(observation, k))
        rows = torch.cat(lists, 1)  # (B, S, k)
        value = self.evaluator.values(encoded, end_with_page(rows, left))
        best = value.argmax(1, keepdim=True)
        picked = rows.gather(1, best.unsqueeze(-1).expand(-1, -1, k))[:, 0]
        calls += present.numel() + rows.shape[0] * rows.shape[1]
        elapsed = 1000 * (time.perf_counter() - started)
        return SearchResult(picked, value.gather(1, best)[:, 0], stopped, calls, elapsed)

    def _beams(
        self, encoded: EncodedCards, single: Tensor, k: int, left: Tensor
    ) -> tuple[Tensor, Tensor, int]:
        """Grow lists (B, W, k) place by place; also return where sessions stopped (B,) and the calls.

        No session grows beyond the `left` (B,) slots of its page.
        """
        s, n_sessions = self.search_settings, len(single)
        n_rows = min(s.candidates, single.shape[1])
        allowed = single.topk(n_rows, 1).indices  # (B, m) best first
        usable = single.gather(1, allowed) > -torch.inf
        prefixes = torch.full((n_sessions, 1, 0), NOT_SHOWN)
        stopped = left.clamp(max=min(k, n_rows))
        running, calls = torch.ones(n_sessions, dtype=torch.bool), 0
        for place in range(min(k, n_rows)):
            at = running.nonzero()[:, 0]
            grown, legal = _extend(prefixes[at], allowed[at], usable[at])
            some = EncodedCards(*(part[at] for part in encoded))
            value = self.evaluator.values(some, grown).masked_fill(~legal, -torch.inf)
            calls += grown.shape[0] * grown.shape[1]
            width = min(s.beams, grown.shape[1])
            value, index = value.topk(width, 1)
            kept = grown.gather(1, index.unsqueeze(-1).expand(-1, -1, place + 1))
            kept = kept.masked_fill(torch.isinf(value).unsqueeze(-1), NOT_SHOWN)
            prefixes = _put(prefixes, at, kept, width, place + 1)
            settled = _settled(value, s.stability) | (left[at] == place + 1)
            stopped[at[settled]] = place + 1
            running[at[settled]] = False
            if not running.any():
                break
        return _complete(prefixes, single, k), stopped, calls

    def _generated(self, observation: TensorObservation, k: int) -> Tensor:
        """Return lists (B, 1 + samples, k) of the generator."""
        assert self.generator is not None
        s, candidates = self.search_settings, self.generator.encode(observation)
        lists = [self.generator.greedy(candidates, k).rows]
        draws = torch.Generator().manual_seed(s.seed)
        lists += [self.generator.sample(candidates, k, draws).rows for _ in range(s.samples)]
        return torch.stack(lists, 1)


def _extend(prefixes: Tensor, allowed: Tensor, usable: Tensor) -> tuple[Tensor, Tensor]:
    """Extend every prefix (R, W, l) by every allowed row (R, m): (R, W m, l + 1), and which are legal.

    A prefix that has used all its rows is extended once, by -1. A prefix of only -1 is a placeholder (there
    were fewer than W) and is not extended.
    """
    n_sessions, width, place = prefixes.shape
    n_rows = allowed.shape[1]
    head = prefixes.unsqueeze(2).expand(-1, -1, n_rows, -1)
    tail = allowed.view(n_sessions, 1, n_rows, 1).expand(-1, width, -1, -1)
    new = ~(head == tail).any(-1) & usable.unsqueeze(1)  # (R, W, m)
    ended = ~new.any(-1, keepdim=True)
    tail = torch.where(ended.unsqueeze(-1), NOT_SHOWN, tail)
    first = torch.zeros(n_rows, dtype=torch.bool)
    first[0] = True
    real = (head != NOT_SHOWN).any(-1) if place else torch.ones_like(new)
    legal = (new | (ended & first)) & real
    grown = torch.cat((head, tail), -1)
    return grown.flatten(1, 2), legal.flatten(1, 2)


def _put(prefixes: Tensor, at: Tensor, kept: Tensor, width: int, length: int) -> Tensor:
    """Store the beams of the sessions `at`; the other beams are padded to the new size."""
    n_sessions, old_width, old_length = prefixes.shape
    stored = torch.full((n_sessions, max(width, old_width), length), NOT_SHOWN)
    stored[:, :old_width, :old_length] = prefixes
    stored[at] = NOT_SHOWN
    stored[at, :width] = kept
    return stored


def _settled(value: Tensor, threshold: float) -> Tensor:
    """Return (R,) bool: where the beams (R, W), best first, satisfy min / max > threshold."""
    there = torch.isfinite(value)
    most = value[:, 0]
    least = value.masked_fill(~there, torch.inf).amin(1)
    return (there.sum(1) > 1) & (most > 0) & (least > threshold * most)


def by_score(score: Tensor, present: Tensor, k: int) -> Tensor:
    """Return the k present rows (B, N) with the highest scores, (B, k) int64, then -1."""
    score = score.masked_fill(~present, -torch.inf)
    order = torch.argsort(score, dim=1, descending=True, stable=True)[:, :k]
    rows = order.masked_fill(torch.isinf(score.gather(1, order)), NOT_SHOWN)
    return torch.nn.functional.pad(rows, (0, k - rows.shape[1]), value=NOT_SHOWN)


def _complete(prefixes: Tensor, single: Tensor, k: int) -> Tensor:
    """Fill prefixes (B, W, l) up to k rows with the remaining rows by single value: (B, W, k)."""
    n_sessions, width, length = prefixes.shape
    n_pool = single.shape[1]
    score = single.unsqueeze(1).expand(-1, width, -1).reshape(-1, n_pool)
    flat = prefixes.reshape(-1, length)
    column = torch.where(flat == NOT_SHOWN, n_pool, flat)
    chosen = torch.zeros(len(flat), n_pool + 1, dtype=torch.bool).scatter(1, column, True)[:, :n_pool]
    present = ~chosen & (score > -torch.inf)
    rest = by_score(score, present, k)
    used = (flat != NOT_SHOWN).sum(1, keepdim=True)
    at = torch.arange(k)
    own = torch.nn.functional.pad(flat, (0, k - length), value=NOT_SHOWN)
    filled = torch.where(at < used, own, rest.gather(1, (at - used).clamp(min=0)))
    return filled.view(n_sessions, width, k)
