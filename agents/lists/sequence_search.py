"""Sequence search: re-rank-recall proposes lists, re-rank-rank has the evaluator pick one.

Recall is a beam search over the evaluator's value of a beginning, as in Kuaishou's re-ranker on phones
(2208.09577, CIKM'22): it stops early when the beams are as good as each other, min / max of their values > t,
since then one more exact place is worth little; the places after that follow the cards' values alone. The
generator adds lists that it finds likely. The evaluator then judges all whole lists, and the best is played.
A list is judged as far as its page goes, since the cards behind that will not be seen.
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

    beams: int = bounded(4, 1, 1_000_000)  # kept at every place
    candidates: int = bounded(12, 1, 10_000)  # rows with the best values alone; lists are made of them
    stability: float = bounded(0.95, 0.0, 1.0)  # t; 1 never stops early
    samples: int = bounded(2, 0, 10_000)  # lists drawn from the generator, beside its greedy one
    seed: int = bounded(0, 0, 2**31 - 1)  # of those draws, which repeat in every search
    every: int = bounded(3, 1, 1000)  # exposures without a click after which a new list is searched


class SearchResult(NamedTuple):
    """What a search of B sessions found, and what it cost.

    Attributes:
        rows: (B, K) int64 best list, -1 where the pool has fewer cards.
        value: (B,) float32 of that list.
        stopped: (B,) int64 places after which the beams had settled.
        calls: lists and beginnings that the evaluator judged, all sessions together.
        milliseconds: wall time.
    """

    rows: Tensor
    value: Tensor
    stopped: Tensor
    calls: int
    milliseconds: float


class SequenceSearch(ListEmitter):
    """Beams over an evaluator, lists of a generator, and the evaluator's choice among them.

    Args:
        config: gives the sizes.
        evaluator: judges lists.
        generator: proposes lists; None leaves that to the beams.
        settings: of the search.
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
        self.plan_every = self.search_settings.every  # it judges cards by their neighbours, so it plans lists

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
        lists = [beams, _by_score(single, present, k).unsqueeze(1)]
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
        """Whole lists (B, W, k) grown place by place, where each session stopped (B,), and the calls.

        No session grows beyond the slots that are `left` (B,) on its page.
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
        """Lists (B, 1 + samples, k) of the generator."""
        assert self.generator is not None
        s, candidates = self.search_settings, self.generator.encode(observation)
        lists = [self.generator.greedy(candidates, k).rows]
        draws = torch.Generator().manual_seed(s.seed)
        lists += [self.generator.sample(candidates, k, draws).rows for _ in range(s.samples)]
        return torch.stack(lists, 1)


def _extend(prefixes: Tensor, allowed: Tensor, usable: Tensor) -> tuple[Tensor, Tensor]:
    """Every beginning (R, W, l) with every row that may follow (R, m): (R, W m, l + 1), and which are legal.

    A beginning that is already as long as its pool allows goes on once, with -1. One of nothing but -1 is no
    beginning (there were fewer than W), and does not go on.
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
    """Store the beams of the sessions `at`; those of the others stay, padded to the new size."""
    n_sessions, old_width, old_length = prefixes.shape
    stored = torch.full((n_sessions, max(width, old_width), length), NOT_SHOWN)
    stored[:, :old_width, :old_length] = prefixes
    stored[at] = NOT_SHOWN
    stored[at, :width] = kept
    return stored


def _settled(value: Tensor, threshold: float) -> Tensor:
    """Where the beams (R, W), best first, are as good as each other: min / max > threshold, (R,) bool."""
    there = torch.isfinite(value)
    most = value[:, 0]
    least = value.masked_fill(~there, torch.inf).amin(1)
    return (there.sum(1) > 1) & (most > 0) & (least > threshold * most)


def _by_score(score: Tensor, present: Tensor, k: int) -> Tensor:
    """The k present rows (B, N) with the highest scores, (B, k) int64, then -1."""
    score = score.masked_fill(~present, -torch.inf)
    order = torch.argsort(score, dim=1, descending=True, stable=True)[:, :k]
    rows = order.masked_fill(torch.isinf(score.gather(1, order)), NOT_SHOWN)
    return torch.nn.functional.pad(rows, (0, k - rows.shape[1]), value=NOT_SHOWN)


def _complete(prefixes: Tensor, single: Tensor, k: int) -> Tensor:
    """Fill the beginnings (B, W, l) up to k rows, the others following by their own values: (B, W, k)."""
    n_sessions, width, length = prefixes.shape
    n_pool = single.shape[1]
    score = single.unsqueeze(1).expand(-1, width, -1).reshape(-1, n_pool)
    flat = prefixes.reshape(-1, length)
    column = torch.where(flat == NOT_SHOWN, n_pool, flat)
    chosen = torch.zeros(len(flat), n_pool + 1, dtype=torch.bool).scatter(1, column, True)[:, :n_pool]
    present = ~chosen & (score > -torch.inf)
    rest = _by_score(score, present, k)
    used = (flat != NOT_SHOWN).sum(1, keepdim=True)
    at = torch.arange(k)
    own = torch.nn.functional.pad(flat, (0, k - length), value=NOT_SHOWN)
    filled = torch.where(at < used, own, rest.gather(1, (at - used).clamp(min=0)))
    return filled.view(n_sessions, width, k)
