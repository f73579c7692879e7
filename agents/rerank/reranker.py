"""The interface of re-rankers, which score the pool or emit a list, and the policy that plays them.

A re-ranker is a torch module over the environment's observation (float32 tensors, batch first). Two forms:

- :class:`ListScorer`: `score(observation) -> (B, N)`, higher first;
- :class:`ListEmitter`: `emit(observation, k) -> (B, k)` pool rows in order.

:class:`RerankPolicy` plays either form in EdgeFeedRerank-v0 and EdgeFeed-v0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from edgerec_gym.agents.data.observed_log import NOT_SHOWN
from edgerec_gym.agents.learning.tensors import PLAY_BATCH, TensorObservation, to_tensors, torch_threads
from edgerec_gym.agents.perception.perception import (
    base_logit,
    candidate_cards,
    card_features,
    occupied,
    take,
)
from edgerec_gym.config import Config, FeedConfig, bounded
from edgerec_gym.errors import InputError
from edgerec_gym.policy import Explanation, Observation, best_legal, check_observation
from edgerec_gym.spaces import CONTEXT, MODEL_KEYS, context_size, observation_layout

ABSENT = -1e9  # score of a used-up pool row: below all others but finite
PAGE_AGE = CONTEXT.index("page_age")


@dataclass(frozen=True)
class RerankerConfig(Config):
    """Hyper-parameters of the re-rankers and their training."""

    learning_rate: float = bounded(5e-3, 1e-7, 1.0)  # of Adam
    batch_size: int = bounded(512, 1, 1_000_000)  # moments per gradient step
    epochs: int = bounded(30, 1, 10_000)  # at most
    patience: int = bounded(4, 1, 10_000)  # epochs without a better GAUC before training ends
    weight_decay: float = bounded(0.0, 0.0, 10.0)  # L2 penalty of Adam
    max_grad_norm: float = bounded(1.0, 1e-3, 1e6)
    horizon: int = bounded(10, 1, 1000)  # K, slots that the labels look ahead
    no_click: int = bounded(10, 1, 1000)  # exposures without a click that trigger re-ranking
    per_session: int = bounded(8, 1, 10_000)  # maximum number of moments per session
    misses: float = bounded(1.0, 0.01, 1.0)  # share of moments without a click that represents all of them
    hidden: int = bounded(32, 2, 4096)  # width of every layer
    layers: int = bounded(1, 1, 10)  # layers of GRUs, number of self-attention blocks
    heads: int = bounded(2, 1, 64)  # of self-attention (PRM, SetRank); must divide `hidden`
    residual: int = bounded(1, 0, 1)  # 1 adds the logit of the base ctr to the score
    exposures: int = bounded(1, 0, 1)  # 0 omits the exposures (CRBAN)
    page_views: int = bounded(1, 0, 1)  # 0 omits the page views (CRBAN)
    actions: int = bounded(1, 0, 1)  # 0 omits the actions (CRBAN)
    match: int = bounded(0, 0, 1)  # 1 adds the match of embeddings with live interest (CRBAN, pointer)
    raw_inputs: int = bounded(1, 0, 1)  # 1 feeds raw candidate, user and context to the head (CRBAN)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden % self.heads:
            raise InputError(f"RerankerConfig.heads = {self.heads} must divide hidden = {self.hidden}")


def pool_present(observation: TensorObservation) -> Tensor:
    """Return which pool rows are present, (B, N) bool."""
    return occupied(observation["pool"])


def slots_left(observation: TensorObservation, config: FeedConfig) -> Tensor:
    """Return how many more slots the current page fills, (B,) int64, at least 1."""
    filled = observation["context"][:, PAGE_AGE] * config.page_size
    return (config.page_size - filled.round()).clamp(min=1).to(torch.int64)


def end_with_page(rows: Tensor, left: Tensor) -> Tensor:
    """Set lists (B, S, K) to -1 after the `left` (B,) slots of their page, where cards will not be seen."""
    behind = torch.arange(rows.shape[-1], device=rows.device) >= left.view(-1, 1, 1)
    return rows.masked_fill(behind, NOT_SHOWN)


def safe_mask(present: Tensor) -> Tensor:
    """Mark the first place of empty rows in `present` (B, N): self-attention over nothing yields NaN."""
    first = torch.zeros_like(present)
    first[:, 0] = ~present.any(1)
    return present | first


class ListInputs(nn.Module):
    """Concatenate candidates with the user and the context: (B, N, size)."""

    def __init__(self, config: FeedConfig) -> None:
        super().__init__()
        self.embedding_size, self.n_types = config.embedding_size, config.n_types
        self.size = config.n_item_features + config.n_types + config.n_user_features + context_size(config)

    def forward(self, observation: TensorObservation, rows: Tensor | None = None) -> Tensor:
        """Repeat user and context for every candidate, or for the pool rows `rows` (B, K)."""
        pool = observation["pool"] if rows is None else take(observation["pool"], rows)
        cards = card_features(candidate_cards(pool, self.n_types), self.embedding_size)
        session = torch.cat((observation["user"], observation["context"]), -1)
        return torch.cat((cards, session.unsqueeze(1).expand(-1, pool.shape[1], -1)), -1)


class ListScorer(nn.Module):
    """A re-ranker that scores all candidates at once.

    A subclass implements :meth:`logits` and sets its loss, `objective`.
    """

    objective: staticmethod[[Tensor, Tensor, Tensor], Tensor]  # of (score, click, shown)
    needs_click = False  # True: moments without a click do not affect the loss and are skipped
    plan_every: int | None = None  # exposures between plans of whole lists; None plays slot by slot

    def __init__(self, config: FeedConfig, settings: RerankerConfig) -> None:
        super().__init__()
        self.config, self.settings = config, settings

    def logits(self, observation: TensorObservation, rows: Tensor) -> Tensor:
        """Score the pool rows `rows` (B, K) int64 without the residual base ctr: (B, K)."""
        raise NotImplementedError

    def score_rows(self, observation: TensorObservation, rows: Tensor) -> Tensor:
        """Score pool rows (B, K) int64: (B, K) float32, logits if the loss is the log-loss."""
        score = self.logits(observation, rows)
        if self.settings.residual:
            score = score + base_logit(observation["pool"], self.config.embedding_size).gather(1, rows)
        return score

    def score(self, observation: TensorObservation) -> Tensor:
        """Score every candidate: (B, N) float32, :data:`ABSENT` for used-up rows."""
        present = pool_present(observation)
        rows = torch.arange(present.shape[1], device=present.device).expand(len(present), -1)
        return self.score_rows(observation, rows).masked_fill(~present, ABSENT)

    def rank_scores(self, observation: TensorObservation, rows: Tensor) -> Tensor:
        """Return scores (B, K) that rank the pool rows `rows` (B, K) as this re-ranker would."""
        return self.score_rows(observation, rows)

    def loss(
        self, observation: TensorObservation, shown: Tensor, click: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Return the mean loss over moments with pool rows `shown` (B, K), then -1, and clicks (B, K)."""
        answered = shown != NOT_SHOWN
        score = self.score_rows(observation, shown.clamp(min=0))
        return type(self).objective(score, click, answered)


class ListEmitter(nn.Module):
    """A re-ranker that emits a list card by card. A subclass implements `emit` and `loss`."""

    needs_click = False  # as in ListScorer
    plan_every: int | None = None  # as in ListScorer

    def __init__(self, config: FeedConfig, settings: RerankerConfig) -> None:
        super().__init__()
        self.config, self.settings = config, settings

    def emit(self, observation: TensorObservation, k: int) -> Tensor:
        """Return k distinct pool rows in order, (B, k) int64; -1 where the pool has fewer."""
        raise NotImplementedError

    def loss(
        self, observation: TensorObservation, shown: Tensor, click: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Return the mean loss over moments; see :meth:`ListScorer.loss`."""
        raise NotImplementedError

    def rank_scores(self, observation: TensorObservation, rows: Tensor) -> Tensor:
        """Return scores (B, K) that rank pool rows `rows` (B, K): minus the place in the emitted list."""
        n_pool = observation["pool"].shape[1]
        emitted = self.emit(observation, n_pool)
        place = rows.new_full((len(rows), n_pool + 1), n_pool)
        column = torch.where(emitted < 0, n_pool, emitted)
        order = torch.arange(n_pool, device=rows.device).expand_as(column)
        place.scatter_(1, column, order)
        return -place.gather(1, rows).to(torch.float32)


Reranker = ListScorer | ListEmitter


class RerankPolicy:
    """Play the re-ranker's top legal pool row at every slot, without cards or requests.

    Args:
        name: name of the policy.
        reranker: a ListScorer or a ListEmitter.
        threads: number of torch threads while acting.
    """

    stateless = True

    def __init__(self, name: str, reranker: Reranker, threads: int = 1) -> None:
        self.name, self.reranker, self.threads = name, reranker.eval(), threads
        self._last = np.zeros((0, 0), np.float32)  # scores

    def reset(self, mask: np.ndarray) -> None:
        """Do nothing: the policy has no state."""

    def act(self, observation: Observation) -> np.ndarray:
        """Return (B,) int64 pool rows, legal under the mask."""
        self._last = self.scores(observation)
        return best_legal(self._last, observation["action_mask"])

    def explain(self, row: int) -> Explanation:
        """Return the scores of the last call in one row."""
        return Explanation(scores=self._last[row])

    def scores(self, observation: Observation) -> np.ndarray:
        """Return (B, N) float32; for an emitter, 1 for its first row and 0 elsewhere."""
        n_sessions = self._check(observation)
        with torch_threads(self.threads), torch.inference_mode():
            parts = [
                self._scores(to_tensors(observation, slice(at, at + PLAY_BATCH)))
                for at in range(0, n_sessions, PLAY_BATCH)
            ]
        return torch.cat(parts).numpy()

    def lists(self, observation: Observation, k: int) -> np.ndarray:
        """Return the lists of an emitter, (B, k) int64 pool rows, -1 after the end."""
        assert isinstance(self.reranker, ListEmitter)
        n_sessions = self._check(observation)
        with torch_threads(self.threads), torch.inference_mode():
            parts = [
                self.reranker.emit(to_tensors(observation, slice(at, at + PLAY_BATCH)), k)
                for at in range(0, n_sessions, PLAY_BATCH)
            ]
        return torch.cat(parts).numpy()

    def _check(self, observation: Observation) -> int:
        """Return the number of sessions; InputError names a key with a wrong shape or values not finite."""
        for key, part in observation_layout(self.reranker.config, "joint").items():
            found = observation[key].shape[1:] if key in observation else None
            if key in MODEL_KEYS and found != part.shape:
                raise InputError(
                    f"observation {key!r} has the shape {found} per session; {self.name!r} reads {part.shape}"
                )
        check_observation(observation)
        return len(observation["pool"])

    def _scores(self, observation: TensorObservation) -> Tensor:
        if isinstance(self.reranker, ListScorer):
            return self.reranker.score(observation)
        rows = torch.arange(observation["pool"].shape[1])
        return (rows == self.reranker.emit(observation, 1)).to(torch.float32)
