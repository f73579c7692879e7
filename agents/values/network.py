"""The value network: what each candidate is worth at the next slot, from all that has happened.

Histories are read by decayed sums (linear attention with a decay per head), as the learned users' own
evidence is. Such sums need no recurrence: a whole session, seen from each of its slots, is one matrix product
per head. So a session of T slots costs T encoded events in training, not T histories of L events, and the
policy needs no state: it reads the observation's histories.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from edgerec_gym.agents.learning.tensors import TensorObservation
from edgerec_gym.agents.perception.cards import BASE_CTR, LOGIT_SCALE
from edgerec_gym.agents.perception.perception import (
    SEQUENCES,
    action_columns,
    candidate_cards,
    card_features,
    occupied,
)
from edgerec_gym.agents.rerank.reranker import ABSENT, ListScorer
from edgerec_gym.cloud.interest import DWELL_CENTRE
from edgerec_gym.config import Config, FeedConfig, bounded
from edgerec_gym.spaces import context_size

SLOWEST, FASTEST = 0.03, 0.7  # initial decays of the evidence per slot, from head to head
PURCHASE_PRIOR = -3.0  # initial logit of a purchase after a click


@dataclass(frozen=True)
class ValueConfig(Config):
    """Hyper-parameters of the value network and its training."""

    log_epochs: int = bounded(8, 1, 10_000)  # largest number of passes over a log to start from
    auxiliary: float = bounded(0.0, 0.0, 1000.0)  # weight of the auxiliary losses in these passes
    updates: int = bounded(30, 0, 1_000_000)  # times that sessions are played and learned from
    sessions: int = bounded(256, 1, 100_000)  # sessions played per update
    passes: int = bounded(2, 1, 100)  # passes over each update's sessions
    replays: int = bounded(4, 0, 100)  # passes over sessions of earlier updates, one update's each
    kept: int = bounded(10, 1, 1000)  # updates whose sessions are kept for it, since the last selection
    batch_size: int = bounded(32, 1, 100_000)  # sessions per gradient step
    candidates: int = bounded(
        8, 1, 1000
    )  # candidates of a slot whose value is asked for, the shown one included
    best: float = bounded(
        0.5, 0.0, 1.0
    )  # share of the other ones that are the network's best, not drawn evenly
    noise: float = bounded(0.5, 0.0, 100.0)  # largest Gumbel noise on log values in play; differs by session
    learning_rate: float = bounded(2e-3, 1e-7, 1.0)  # of Adam
    final_rate: float = bounded(0.05, 0.0, 1.0)  # share of it left in the last update; linear decay
    max_grad_norm: float = bounded(1.0, 1e-3, 1e6)
    purchase_weight: float = bounded(2.0, 0.0, 1000.0)  # weight of the loss of purchases, relative to clicks
    pessimism: float = bounded(0.0, 0.0, 100.0)  # k: targets are mean - k sd over the members that are asked
    every_member: int = bounded(0, 0, 1)  # 1 asks all members at every slot (implied by pessimism), 0 one
    held_out: int = bounded(
        1, 0, 100
    )  # members never learned from: they select the best network; 0 keeps the last
    select_every: int = bounded(5, 1, 1_000_000)  # updates between two tests on the members held out
    select_sessions: int = bounded(2000, 1, 1_000_000)  # sessions of such a test
    margin: float = bounded(
        0.05, 0.0, 100.0
    )  # in training, value by which a card must exceed the best pool row
    hidden: int = bounded(64, 4, 4096)  # width of the layers; codes of cards have half of it
    keys: int = bounded(16, 1, 1024)  # learned columns by which cards are compared, besides the embedding
    heads: int = bounded(6, 1, 64)  # decayed sums per history
    queries: int = bounded(6, 1, 64)  # vectors made from the whole state that candidates are compared with


class Cards(NamedTuple):
    """Encoded cards.

    Attributes:
        codes: (..., H / 2) float32.
        keys: (..., d + keys) float32, embedding and learned columns; 0 where there is no card.
        scalars: (..., F - d) float32, scalars and item columns.
    """

    codes: Tensor
    keys: Tensor
    scalars: Tensor


class Evidence(nn.Module):
    """Decayed sums over one history: of keys by head, and of descriptions of the events.

    Args:
        n_actions: action columns of a row, without the slot.
        code: width of the cards' codes.
        heads: number of sums of keys.
        hidden: width of a row's description.
        slope: initial weight of the duration, the first action.
        offset: initial weight of an event.
    """

    def __init__(
        self, n_actions: int, code: int, heads: int, hidden: int, slope: float, offset: float
    ) -> None:
        super().__init__()
        self.describe = nn.Sequential(nn.Linear(code + n_actions, hidden), nn.ReLU())
        self.weight, self.linear = nn.Linear(hidden, heads, bias=False), nn.Linear(n_actions, heads)
        rates = torch.linspace(math.log(SLOWEST), math.log(FASTEST), heads)
        self.rate, self.slow = nn.Parameter(rates), nn.Parameter(torch.tensor([math.log(SLOWEST)]))
        nn.init.orthogonal_(self.weight.weight, 0.1)
        nn.init.zeros_(self.linear.weight)
        nn.init.constant_(self.linear.bias, offset)
        with torch.no_grad():
            self.linear.weight[:, 0] = slope

    def forward(
        self, cards: Cards, actions: Tensor, present: Tensor, age: Tensor, known: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Sum the events (B, S) as seen from T slots.

        Args:
            cards: the events' cards, (B, S, ...).
            actions: (B, S, actions) float32.
            present: (B, S) bool, which events there are.
            age: (B or 1, T, S) float32, slots since the event.
            known: (B or 1, T, S) bool, which events are seen from a slot.

        Returns:
            Evidence (B, T, heads, d + keys) with norms below 1, and sums of descriptions (B, T, hidden).
        """
        described = self.describe(torch.cat((cards.codes, actions), -1)) * present.unsqueeze(-1)
        weight = (self.weight(described) + self.linear(actions)) * present.unsqueeze(-1)  # (B, S, heads)
        weighted = weight.transpose(1, 2).unsqueeze(-1) * cards.keys.unsqueeze(1)  # (B, heads, S, D)
        decay = torch.exp(-age.unsqueeze(1) * self.rate.exp().view(-1, 1, 1)) * known.unsqueeze(1)
        evidence = (decay @ weighted).transpose(1, 2)  # (B, T, heads, D)
        size = (evidence.square().sum(-1, keepdim=True) + 1e-6).sqrt()
        summed = (torch.exp(-age * self.slow.exp()) * known) @ described
        return evidence / (1 + size), summed / (1 + 0.1 * summed)


class ValueNetwork(ListScorer):
    """Probabilities of a click, and of a purchase after a click, for every candidate; the score is the value.

    Args:
        config: the feed; gives sizes and the weights of the reward.
        settings: widths.
    """

    settings: ValueConfig  # type: ignore[assignment]

    def __init__(self, config: FeedConfig, settings: ValueConfig) -> None:
        super().__init__(config, settings)  # type: ignore[arg-type]
        hidden, code, d = settings.hidden, settings.hidden // 2, config.embedding_size
        self.d, size = d, d + settings.keys
        self.item = nn.Sequential(
            nn.Linear(config.n_item_features + config.n_types, hidden),
            nn.ReLU(),
            nn.Linear(hidden, code),
            nn.ReLU(),
        )
        self.key = nn.Linear(code, settings.keys, bias=False)
        start = {"exposures": (1.0, -DWELL_CENTRE), "page_views": (1.0, 1.0)}
        self.evidence = nn.ModuleDict(
            {
                name: Evidence(action_columns(config)[name] - 1, code, settings.heads, code, *start[name])
                for name in SEQUENCES
            }
        )
        n_state = 2 * (settings.heads * size + code) + config.n_user_features + context_size(config)
        n_state += config.lookahead * code
        self.state = nn.Sequential(
            nn.Linear(n_state, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()
        )
        self.query = nn.Linear(hidden, settings.queries * size)
        n_features = code + 2 * settings.heads + settings.queries + 1 + 2 * config.lookahead
        self.n_scalars = config.n_item_features - d
        n_features += self.n_scalars
        self.candidate, self.by_state = nn.Linear(n_features, hidden), nn.Linear(hidden, hidden, bias=False)
        self.head = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 2))
        self.plain = nn.Linear(n_features, 2)
        self._start()

    @torch.no_grad()
    def _start(self) -> None:
        """Start at the cloud's click rate, and with a nearly silent network."""
        last = self.head[-1]
        assert isinstance(last, nn.Linear)
        last.weight.mul_(0.1)
        last.bias.zero_()
        self.plain.weight.zero_()
        self.plain.weight[0, BASE_CTR - self.n_scalars] = LOGIT_SCALE
        self.plain.bias.copy_(torch.tensor([0.0, PURCHASE_PRIOR]))

    def cards(self, cards: Tensor) -> Cards:
        """Encode cards (..., F + T)."""
        features = card_features(cards, self.d)
        present = occupied(cards).unsqueeze(-1)
        codes = self.item(features)
        keys = torch.cat((features[..., : self.d], self.key(codes) * present), -1)
        return Cards(codes * present, keys, features[..., self.d : self.config.n_item_features])

    def states(
        self, user: Tensor, context: Tensor, screen: Cards, evidence: list[tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """Return states (B, T, hidden) and the vectors (B, T, vectors, d + keys) to compare candidates with.

        Args:
            user: (B, U).
            context: (B, T, C).
            screen: cards that are placed but not answered, (B, T, lookahead, ...).
            evidence: what :class:`Evidence` has returned, by history.
        """
        user = user.unsqueeze(1).expand(-1, context.shape[1], -1)
        parts = [part.flatten(2) for sums in evidence for part in sums]
        state = self.state(torch.cat((*parts, user, context, screen.codes.flatten(2)), -1))
        queries = self.query(state).unflatten(-1, (-1, screen.keys.shape[-1]))
        long_term = torch.nn.functional.pad(user[..., : self.d], (0, queries.shape[-1] - self.d))
        vectors = [sums[0] for sums in evidence]
        return state, torch.cat((*vectors, queries, long_term.unsqueeze(2), screen.keys), 2)

    def logits(self, cards: Cards, state: Tensor, vectors: Tensor) -> Tensor:  # type: ignore[override]
        """Return logits of click and of purchase after a click for candidates (R, N, ...): (R, N, 2).

        Args:
            cards: candidates.
            state: (R, hidden).
            vectors: (R, vectors, d + keys).
        """
        matches = cards.keys @ vectors.transpose(1, 2)
        n_screen = self.config.lookahead
        near = cards.keys[..., : self.d] @ vectors[:, vectors.shape[1] - n_screen :, : self.d].transpose(1, 2)
        features = torch.cat((cards.codes, matches, near, cards.scalars), -1)
        hidden = torch.relu(self.candidate(features) + self.by_state(state).unsqueeze(1))
        return self.plain(features) + self.head(hidden)

    def value(self, logits: Tensor) -> Tensor:
        """Return the value in reward units of logits (..., 2)."""
        click, buys = torch.sigmoid(logits).unbind(-1)
        return self.config.reward.value(click, click * buys)

    def read(self, observation: TensorObservation) -> tuple[Tensor, Tensor]:
        """Return state (B, hidden) and vectors (B, vectors, d + keys) of an observation."""
        config, slot = self.config, observation["context"][:, :1]
        n_card, evidence = config.n_item_features + config.n_types, []
        for name, module in self.evidence.items():
            rows = observation[name]
            present = occupied(rows)
            age = (slot - rows[..., -1]).unsqueeze(1) * config.max_slots
            cards = self.cards(rows[..., :n_card])
            evidence.append(module(cards, rows[..., n_card:-1], present, age, present.unsqueeze(1)))
        screen = observation.get("screen")
        if screen is None:
            screen = slot.new_zeros(len(slot), 0, n_card)
        context = observation["context"].unsqueeze(1)
        state, vectors = self.states(observation["user"], context, self.cards(screen.unsqueeze(1)), evidence)
        return state[:, 0], vectors[:, 0]

    def values(self, observation: TensorObservation, cards: Tensor) -> Tensor:
        """Value of cards (B, n, F + T) at the next slot: (B, n) float32, :data:`ABSENT` for absent ones."""
        value = self.value(self.logits(self.cards(cards), *self.read(observation)))
        return value.masked_fill(~occupied(cards), ABSENT)

    def score(self, observation: TensorObservation) -> Tensor:
        """Value of every candidate of the pool: (B, N) float32, :data:`ABSENT` for used-up rows."""
        return self.values(observation, candidate_cards(observation["pool"], self.config.n_types))

    def score_rows(self, observation: TensorObservation, rows: Tensor) -> Tensor:
        """Value of the pool rows `rows` (B, K): (B, K)."""
        return self.score(observation).gather(1, rows)
