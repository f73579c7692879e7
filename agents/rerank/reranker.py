"""What every re-ranker looks like: it scores the pool, or emits a list; and how it plays the feed.

A re-ranker is a torch module over the environment's observation (keys of float32, batch first). Two forms:

- :class:`ListScorer`: `score(observation) -> (B, N)`, higher first;
- :class:`ListEmitter`: `emit(observation, k) -> (B, k)` pool rows in order.

:class:`RerankPolicy` plays either on EdgeFeedRerank-v0 and EdgeFeed-v0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from edgerec_gym.agents.data.observed_log import NOT_SHOWN
from edgerec_gym.agents.learning.tensors import PLAY_BATCH, TensorObservation, to_tensors, torch_threads
from edgerec_gym.agents.perception.perception import base_logit, candidate_cards, card_features, take
from edgerec_gym.config import Config, FeedConfig, bounded
from edgerec_gym.errors import InputError
from edgerec_gym.policy import Explanation, Observation, best_legal, check_observation
from edgerec_gym.spaces import CONTEXT, MODEL_KEYS, context_size, observation_layout

ABSENT = -1e9  # score of a pool row that is used up: below any other, still finite
PAGE_AGE = CONTEXT.index("page_age")


@dataclass(frozen=True)
class RerankerConfig(Config):
    """Hyper-parameters of the re-rankers and of their training."""

    learning_rate: float = bounded(5e-3, 1e-7, 1.0)  # of Adam
    batch_size: int = bounded(512, 1, 1_000_000)  # requests in a gradient step
    epochs: int = bounded(30, 1, 10_000)  # at most
    patience: int = bounded(4, 1, 10_000)  # epochs without a better GAUC that end the training
    weight_decay: float = bounded(0.0, 0.0, 10.0)  # L2 penalty of Adam
    max_grad_norm: float = bounded(1.0, 1e-3, 1e6)
    horizon: int = bounded(10, 1, 1000)  # K, slots that a label looks ahead
    no_click: int = bounded(10, 1, 1000)  # exposures without a click that trigger a request
    per_session: int = bounded(8, 1, 10_000)  # requests of one session at most
    misses: float = bounded(1.0, 0.01, 1.0)  # share of those without a click that stand for all of them
    hidden: int = bounded(32, 2, 4096)  # width of every layer
    layers: int = bounded(1, 1, 10)  # of GRUs and of self-attention blocks
    heads: int = bounded(2, 1, 64)  # of self-attention (PRM, SetRank); they divide `hidden`
    residual: int = bounded(1, 0, 1)  # 1 adds the logit of the base ctr to the score
    exposures: int = bounded(1, 0, 1)  # 0 leaves the exposures out (CRBAN)
    page_views: int = bounded(1, 0, 1)  # 0 leaves the page views out (CRBAN)
    actions: int = bounded(1, 0, 1)  # 0 leaves the actions out (CRBAN)
    match: int = bounded(0, 0, 1)  # 1 adds the match of embeddings with live interest (CRBAN, pointer)
    raw_inputs: int = bounded(1, 0, 1)  # 1 shows the head candidate, user and context as they are (CRBAN)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hidden % self.heads:
            raise InputError(f"RerankerConfig.heads = {self.heads} must divide hidden = {self.hidden}")


def pool_present(observation: TensorObservation) -> Tensor:
    """Which pool rows are there, (B, N) bool."""
    return (observation["pool"] != 0).any(-1)


def slots_left(observation: TensorObservation, config: FeedConfig) -> Tensor:
    """Slots that the page on the phone still fills before the next one comes, (B,) int64, at least 1."""
    filled = observation["context"][:, PAGE_AGE] * config.page_size
    return (config.page_size - filled.round()).clamp(min=1).to(torch.int64)


def end_with_page(rows: Tensor, left: Tensor) -> Tensor:
    """Lists (B, S, K) with -1 behind the `left` (B,) slots of their page: those cards will not be seen."""
    behind = torch.arange(rows.shape[-1], device=rows.device) >= left.view(-1, 1, 1)
    return rows.masked_fill(behind, NOT_SHOWN)


def safe_mask(present: Tensor) -> Tensor:
    """`present` (B, N), but an empty row has its first place: self-attention over nothing is not a number."""
    first = torch.zeros_like(present)
    first[:, 0] = ~present.any(1)
    return present | first


class ListInputs(nn.Module):
    """Candidates beside the user and the context: (B, N, size)."""

    def __init__(self, config: FeedConfig) -> None:
        super().__init__()
        self.embedding_size, self.n_types = config.embedding_size, config.n_types
        self.size = config.n_item_features + config.n_types + config.n_user_features + context_size(config)

    def forward(self, observation: TensorObservation, rows: Tensor | None = None) -> Tensor:
        """Concatenate; user and context are repeated for every candidate, or for the pool rows (B, K)."""
        pool = observation["pool"] if rows is None else take(observation["pool"], rows)
        cards = card_features(candidate_cards(pool, self.n_types), self.embedding_size)
        session = torch.cat((observation["user"], observation["context"]), -1)
        return torch.cat((cards, session.unsqueeze(1).expand(-1, pool.shape[1], -1)), -1)


class ListScorer(nn.Module):
    """A re-ranker that scores all candidates at once.

    A subclass implements :meth:`logits` and names its loss.
    """

    objective: staticmethod[[Tensor, Tensor, Tensor], Tensor]  # of (score, click, shown)
    needs_click = False  # True: a request without a click adds nothing to the loss, so it is left out
    plan_every: int | None = None  # plan whole lists, anew after so many exposures; None: slot by slot

    def __init__(self, config: FeedConfig, settings: RerankerConfig) -> None:
        super().__init__()
        self.config, self.settings = config, settings

    def logits(self, observation: TensorObservation, rows: Tensor) -> Tensor:
        """Score the pool rows `rows` (B, K) int64, without the base ctr: (B, K)."""
        raise NotImplementedError

    def score_rows(self, observation: TensorObservation, rows: Tensor) -> Tensor:
        """Score some pool rows (B, K) int64: (B, K) float32, a logit where the loss is the log-loss."""
        score = self.logits(observation, rows)
        if self.settings.residual:
            score = score + base_logit(observation["pool"], self.config.embedding_size).gather(1, rows)
        return score

    def score(self, observation: TensorObservation) -> Tensor:
        """Score every candidate: (B, N) float32, :data:`ABSENT` where a row is used up."""
        present = pool_present(observation)
        rows = torch.arange(present.shape[1], device=present.device).expand(len(present), -1)
        return self.score_rows(observation, rows).masked_fill(~present, ABSENT)

    def rank_scores(self, observation: TensorObservation, rows: Tensor) -> Tensor:
        """Scores (B, K) that order the pool rows `rows` (B, K) as this re-ranker would."""
        return self.score_rows(observation, rows)

    def loss(
        self, observation: TensorObservation, shown: Tensor, click: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Mean loss of requests whose pool rows `shown` (B, K), then -1, were clicked or not (B, K)."""
        answered = shown != NOT_SHOWN
        score = self.score_rows(observation, shown.clamp(min=0))
        return type(self).objective(score, click, answered)


class ListEmitter(nn.Module):
    """A re-ranker that emits a list, one card after the other. A subclass implements `emit` and `loss`."""

    needs_click = False  # as of a ListScorer
    plan_every: int | None = None  # as of a ListScorer

    def __init__(self, config: FeedConfig, settings: RerankerConfig) -> None:
        super().__init__()
        self.config, self.settings = config, settings

    def emit(self, observation: TensorObservation, k: int) -> Tensor:
        """Return k different pool rows in order, (B, k) int64; -1 where the pool has fewer."""
        raise NotImplementedError

    def loss(
        self, observation: TensorObservation, shown: Tensor, click: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Mean loss of requests, as :meth:`ListScorer.loss`."""
        raise NotImplementedError

    def rank_scores(self, observation: TensorObservation, rows: Tensor) -> Tensor:
        """Scores (B, K) that order the pool rows `rows` (B, K) as this re-ranker would: minus the place."""
        n_pool = observation["pool"].shape[1]
        emitted = self.emit(observation, n_pool)
        place = rows.new_full((len(rows), n_pool + 1), n_pool)
        column = torch.where(emitted < 0, n_pool, emitted)
        order = torch.arange(n_pool, device=rows.device).expand_as(column)
        place.scatter_(1, column, order)
        return -place.gather(1, rows).to(torch.float32)


Reranker = ListScorer | ListEmitter


class RerankPolicy:
    """Play a re-ranker: at every slot the legal pool row that it puts first; no cards, no requests.

    Args:
        name: of the policy.
        reranker: a ListScorer or a ListEmitter.
        threads: torch threads while it acts.
    """

    stateless = True

    def __init__(self, name: str, reranker: Reranker, threads: int = 1) -> None:
        self.name, self.reranker, self.threads = name, reranker.eval(), threads
        self._last = np.zeros((0, 0), np.float32)  # scores

    def reset(self, mask: np.ndarray) -> None:
        """Do nothing: the observation holds all there is to know."""

    def act(self, observation: Observation) -> np.ndarray:
        """Return (B,) int64 pool rows, legal under the mask."""
        self._last = self.scores(observation)
        return best_legal(self._last, observation["action_mask"])

    def explain(self, row: int) -> Explanation:
        """Tell the scores of the last call in one of its rows."""
        return Explanation(scores=self._last[row])

    def scores(self, observation: Observation) -> np.ndarray:
        """Return (B, N) float32; of an emitter, 1 for the row that it puts first."""
        n_sessions = self._check(observation)
        with torch_threads(self.threads), torch.inference_mode():
            parts = [
                self._scores(to_tensors(observation, slice(at, at + PLAY_BATCH)))
                for at in range(0, n_sessions, PLAY_BATCH)
            ]
        return torch.cat(parts).numpy()

    def lists(self, observation: Observation, k: int) -> np.ndarray:
        """Return the lists of an emitter, (B, k) int64 pool rows, -1 behind their end."""
        assert isinstance(self.reranker, ListEmitter)
        n_sessions = self._check(observation)
        with torch_threads(self.threads), torch.inference_mode():
            parts = [
                self.reranker.emit(to_tensors(observation, slice(at, at + PLAY_BATCH)), k)
                for at in range(0, n_sessions, PLAY_BATCH)
            ]
        return torch.cat(parts).numpy()

    def _check(self, observation: Observation) -> int:
        """Return the number of sessions; InputError names a key of other sizes, or that is not finite."""
        for key, part in observation_layout(self.reranker.config, "joint").items():
            found = observation[key].shape[1:] if key in observation else None
            if key in MODEL_KEYS and found != part.shape:
                raise InputError(
                    f"observation {key!r} has the shape {found} a session; {self.name!r} reads {part.shape}"
                )
        check_observation(observation)
        return len(observation["pool"])

    def _scores(self, observation: TensorObservation) -> Tensor:
        if isinstance(self.reranker, ListScorer):
            return self.reranker.score(observation)
        rows = torch.arange(observation["pool"].shape[1])
        return (rows == self.reranker.emit(observation, 1)).to(torch.float32)
