"""The list generator: a pointer network that chooses K of N candidates, one by one.

Exact-K (Gong et al., KDD'19) and the generators of EdgeRec's "2.0" draw a list from a learned distribution.
The encoder reads the candidates (self-attention, no order), each of which attends to the behaviour (HUBSM,
as in CRBAN). The decoder is a GRU that reads the last chosen card, glimpses at the remaining cards, and
points at one of them. Used-up and chosen cards have probability 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from edgerec_gym.agents.data.observed_log import NOT_SHOWN
from edgerec_gym.agents.learning.tensors import TensorObservation
from edgerec_gym.agents.perception.attention import AdditiveAttention, SelfAttentionBlock, attend
from edgerec_gym.agents.perception.interest_match import BehaviourMatch
from edgerec_gym.agents.perception.perception import (
    SEQUENCES,
    Perception,
    base_logit,
    candidate_cards,
    card_features,
    take,
)
from edgerec_gym.agents.rerank.reranker import (
    ABSENT,
    ListEmitter,
    ListInputs,
    RerankerConfig,
    pool_present,
    safe_mask,
)
from edgerec_gym.config import FeedConfig

PRIOR = 1.0  # an untrained pointer draws cards in proportion to the odds of their base ctr


class Candidates(NamedTuple):
    """Encoded candidates of B sessions.

    Attributes:
        codes: (B, N, H) float32 candidate codes.
        present: (B, N) bool, which candidates may be chosen.
        prior: (B, N) float32, added to the pointer's logits.
        glimpsed: (B, N, H) float32 keys of the glimpse.
        pointed: (B, N, H) float32 keys of the pointer.
    """

    codes: Tensor
    present: Tensor
    prior: Tensor
    glimpsed: Tensor
    pointed: Tensor

    def repeat(self, lists: int) -> Candidates:
        """Repeat every session `lists` times: (B x lists, ...)."""
        return Candidates(*(part.repeat_interleave(lists, 0) for part in self))


class Decoded(NamedTuple):
    """Lists of K cards; places after the end of a shorter list hold -1 and count 0.

    Attributes:
        rows: (B, K) int64 pool rows.
        log_probabilities: (B, K) float32 log-probability of each card given the cards before.
        entropies: (B, K) float32 entropy of the distribution of each card.
    """

    rows: Tensor
    log_probabilities: Tensor
    entropies: Tensor


Choose = Callable[[int, Tensor], Tensor]  # (step, log-probabilities (B, N)) -> columns (B,) int64


class PointerNet(ListEmitter):
    """Encoder, GRU decoder with a glimpse, and pointer; decodes greedily, by sampling, forced, or by beams.

    Trained on clicks (:meth:`loss`), it is the starting point for training on rewards
    (:mod:`edgerec_gym.agents.lists.policy_gradient`).
    """

    def __init__(self, config: FeedConfig, settings: RerankerConfig) -> None:
        super().__init__(config, settings)
        hidden, n_card = settings.hidden, config.n_item_features + config.n_types
        self.perception = Perception(config, hidden, settings.layers)
        self.query = nn.Linear(n_card, hidden)
        self.attention = nn.ModuleDict(
            {name: AdditiveAttention(hidden, hidden, hidden) for name in SEQUENCES}
        )
        self.inputs = ListInputs(config)
        self.match = BehaviourMatch(config, SEQUENCES if settings.match else ())
        self.project = nn.Linear(self.inputs.size + 4 * hidden + self.match.size, hidden)
        self.blocks = nn.ModuleList(
            SelfAttentionBlock(hidden, settings.heads) for _ in range(settings.layers)
        )
        self.first = nn.Parameter(torch.zeros(hidden))  # decoder input before the first card
        self.start = nn.Linear(hidden, hidden)
        self.decoder = nn.GRUCell(hidden, hidden)
        self.glimpse = AdditiveAttention(hidden, hidden, hidden)
        self.pointer = AdditiveAttention(2 * hidden, hidden, hidden)
        nn.init.zeros_(self.pointer.score.weight)
        self.sharpness = nn.Parameter(torch.ones(()), requires_grad=False)  # of logits; saved, not trained

    def sharpen(self, factor: float) -> None:
        """Multiply all logits by a factor: greedy lists stay the same, and draws get closer to them."""
        self.sharpness.mul_(factor)

    def encode(self, observation: TensorObservation) -> Candidates:
        """Encode the pool."""
        d = self.config.embedding_size
        pool, present = observation["pool"], pool_present(observation)
        query = self.query(card_features(candidate_cards(pool, self.config.n_types), d))
        parts = [self.inputs(observation)]
        for name, behaviour in self.perception(observation).items():
            attended = self.attention[name](query, behaviour.items, behaviour.values, behaviour.present)
            parts.append(attended)
        if self.match:
            parts.append(self.match(observation, pool))
        codes = self.project(torch.cat(parts, -1))
        for block in self.blocks:
            codes = block(codes, safe_mask(present))
        prior = base_logit(pool, d) * (PRIOR * self.settings.residual)
        # Project the keys once: the decoder uses the same ones at every step.
        return Candidates(codes, present, prior, self.glimpse.key(codes), self.pointer.key(codes))

    def decode(self, candidates: Candidates, k: int, choose: Choose) -> Decoded:
        """Choose k cards one by one; illegal cards have the log-probability ABSENT in `choose`."""
        codes, left = candidates.codes, candidates.present
        state, read = self.begin(candidates)
        rows, chosen_log, entropies = [], [], []
        for step in range(k):
            state, log_p = self.step(candidates, left, state, read)
            some = left.any(1)
            column = torch.where(some, choose(step, log_p.detach()), 0)
            picked = log_p.gather(1, column.unsqueeze(1)).squeeze(1)
            rows.append(torch.where(some, column, NOT_SHOWN))
            chosen_log.append(torch.where(some, picked, 0.0))
            entropies.append(-(log_p.exp() * log_p * left).sum(1))
            left = left.scatter(1, column.unsqueeze(1), False)
            read = take(codes, column.unsqueeze(1))[:, 0]
        return Decoded(torch.stack(rows, 1), torch.stack(chosen_log, 1), torch.stack(entropies, 1))

    def begin(self, candidates: Candidates) -> tuple[Tensor, Tensor]:
        """Return the initial state (B, H) and input (B, H) of the decoder."""
        weight = candidates.present.unsqueeze(-1).to(candidates.codes.dtype)
        mean = (candidates.codes * weight).sum(1) / weight.sum(1).clamp(min=1)
        return torch.tanh(self.start(mean)), self.first.expand(len(mean), -1)

    def step(
        self, candidates: Candidates, left: Tensor, state: Tensor, read: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the next state (B, H) and the log-probabilities (B, N) of the next card."""
        state = self.decoder(read, state)
        query = state.unsqueeze(1)
        seen = attend(self.glimpse.compare(query, candidates.glimpsed), candidates.codes, left)
        logits = self.pointer.compare(torch.cat((query, seen), -1), candidates.pointed).squeeze(1)
        logits = self.sharpness * (logits + candidates.prior)
        log_p = logits.masked_fill(~left, ABSENT).log_softmax(-1)
        return state, log_p.masked_fill(~left, ABSENT)

    def greedy(self, candidates: Candidates, k: int) -> Decoded:
        """Take the most probable card at every step."""
        return self.decode(candidates, k, lambda _, log_p: log_p.argmax(1))

    def sample(self, candidates: Candidates, k: int, generator: torch.Generator) -> Decoded:
        """Draw a list from the distribution."""
        return self.decode(candidates, k, lambda _, log_p: _draw(log_p, generator))

    def sample_with_others(
        self, candidates: Candidates, k: int, others: int, generator: torch.Generator
    ) -> tuple[Decoded, Tensor]:
        """Draw a list, and other cards for each of its places from the same distributions.

        Returns:
            The list, and the other cards (B, k, others) int64. One can be the list's own card, or one that
            the list has further down; at places after the end of a list they mean nothing.
        """
        beside: list[Tensor] = []

        def choose(step: int, log_p: Tensor) -> Tensor:
            drawn = torch.stack([_draw(log_p, generator) for _ in range(1 + others)], 1)
            beside.append(drawn[:, 1:])
            return drawn[:, 0]

        return self.decode(candidates, k, choose), torch.stack(beside, 1)

    def forced(self, candidates: Candidates, rows: Tensor) -> Decoded:
        """Follow given lists (B, K) int64, -1 after their end, to differentiate their probability.

        A list may end before the candidates run out; places after its end count 0.
        """
        shown = rows != NOT_SHOWN
        columns = rows.clamp(min=0)
        decoded = self.decode(candidates, rows.shape[1], lambda step, _: columns[:, step])
        return Decoded(
            rows,
            decoded.log_probabilities.masked_fill(~shown, 0.0),
            decoded.entropies.masked_fill(~shown, 0.0),
        )

    def beams(self, candidates: Candidates, k: int, width: int) -> tuple[Tensor, Tensor]:
        """Search for the most probable lists by beam search.

        Args:
            candidates: N candidates of B sessions.
            k: K.
            width: W, the number of beams; the search is exact if W is at least the number of lists.

        Returns:
            Rows (B, W, K) int64, best first, and log-probabilities (B, W). If there are fewer than W lists,
            the remaining ones hold -1 and minus infinity.
        """
        n_sessions, n_pool = candidates.present.shape
        repeated = candidates.repeat(width)
        state, read = self.begin(repeated)
        left = repeated.present
        first = torch.arange(n_sessions).unsqueeze(1) * width  # (B, 1)
        rows = torch.full((n_sessions * width, k), NOT_SHOWN)
        total = torch.full((n_sessions, width), -torch.inf)
        total[:, 0] = 0.0  # all beams start equal, so only one may grow
        for step in range(k):
            state, log_p = self.step(repeated, left, state, read)
            grown = log_p.masked_fill(~left, -torch.inf)
            ended = ~left.any(1)
            grown[ended, 0] = 0.0  # a list that contains all candidates stays as it is
            scores = (total.view(-1, 1) + grown).view(n_sessions, -1)  # (B, W N)
            total, flat = scores.topk(width, 1)
            parent = (first + flat // n_pool).flatten()
            column = (flat % n_pool).flatten()
            rows = rows[parent]
            rows[:, step] = torch.where(ended[parent], NOT_SHOWN, column)
            state, left = state[parent], left[parent].scatter(1, column.unsqueeze(1), False)
            read = take(repeated.codes, column.unsqueeze(1))[:, 0]
        rows = rows.view(n_sessions, width, k)
        return rows.masked_fill(torch.isinf(total).unsqueeze(-1), NOT_SHOWN), total

    def emit(self, observation: TensorObservation, k: int) -> Tensor:
        """Return the greedy list, (B, k) int64, -1 where the pool has fewer."""
        return self.greedy(self.encode(observation), k).rows

    def loss(
        self, observation: TensorObservation, shown: Tensor, click: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Return the cross-entropy with the clicked cards, mean over moments with a click.

        These are demonstrations as in the RLfD of Exact-K. At every place of a list drawn from the pointer
        itself, so that it meets its own mistakes, the remaining clicked cards are the target. They compete
        only with shown cards, since the log and not the user chose these. The order of the other cards
        carries no information.
        """
        taught = ((click > 0) & (shown != NOT_SHOWN)).any(1)
        taught[0] |= ~taught.any()
        some = {key: values[taught] for key, values in observation.items()}  # the others do not contribute
        return demonstration_loss(self, self.encode(some), shown[taught], click[taught], generator)


def demonstration_loss(
    network: PointerNet, candidates: Candidates, shown: Tensor, click: Tensor, generator: torch.Generator
) -> Tensor:
    """Return the loss of :meth:`PointerNet.loss` for encoded candidates."""
    n_sessions, n_pool = candidates.present.shape
    clicked = (click > 0) & (shown != NOT_SHOWN)

    def columns(mask: Tensor) -> Tensor:
        """Return which pool rows the shown cards in `mask` are, (B, N) bool."""
        at = torch.where(mask, shown, n_pool)
        return torch.zeros(n_sessions, n_pool + 1, dtype=torch.bool).scatter(1, at, True)[:, :n_pool]

    left, wanted = candidates.present & columns(shown != NOT_SHOWN), columns(clicked)
    state, read = network.begin(candidates)
    total = candidates.codes.sum() * 0.0  # keeps the loss differentiable if there is no click
    for _ in range(shown.shape[1]):
        state, log_p = network.step(candidates, left, state, read)
        target = (wanted & left).to(log_p.dtype)
        target = target / target.sum(1, keepdim=True).clamp(min=1)
        total = total - (target * log_p).sum()
        drawn = _draw(log_p.detach(), generator)
        left = left.scatter(1, drawn.unsqueeze(1), False)
        read = take(candidates.codes, drawn.unsqueeze(1))[:, 0]
    return total / clicked.any(1).sum().clamp(min=1)


def gumbel(shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
    """Draw Gumbel noise: the argmax of logits plus noise is a sample from their softmax."""
    uniform = torch.rand(shape, generator=generator, dtype=dtype)
    return -torch.log(-torch.log(uniform.clamp(1e-10, 1 - 1e-7)))


def _draw(log_p: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a column (B,) from log-probabilities (B, N); ABSENT columns are never drawn."""
    noise = gumbel(tuple(log_p.shape), generator, log_p.dtype)
    return torch.where(log_p > ABSENT / 2, log_p + noise, 2 * ABSENT).argmax(1)
