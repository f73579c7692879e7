"""Edge Surrounding-Aware Network (ESAN): what every card would earn at every slot ahead, in one pass.

Mixed insertion on the phone (EdgeRec's second talk) has two stages: a network predicts a matrix of M cards
x T slots, then a planner chooses. A prediction looks at the card and its slot; at the surroundings, which
are the cards up to `window` places above the slot and those below it (at most `lookahead`) that are on
screen by the time of the answer; and at the behaviour so far (HUBSM, attended by every card as in CRBAN).
There is no paper; the network is ours.

It learns from exposed lists: at each slot, from the card that was shown there among its true neighbours.
When it plans, the surroundings are the organic list (the pool in the order in which it will be shown),
pushed apart at the slot, so a matrix of values adds up as long as cards are not side by side. The same
network judges the organic items, whose value an insertion displaces, and predicts who leaves, which gives
the probability that a slot will be seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from edgerec_gym.agents.data.exposed_lists import OUTCOMES, ListBatch
from edgerec_gym.agents.learning.tensors import TensorObservation, to_tensors
from edgerec_gym.agents.lists.evaluator import CLICK, LEAVE, PURCHASE, Judged
from edgerec_gym.agents.perception.attention import BehaviourAttention
from edgerec_gym.agents.perception.perception import (
    SEQUENCES,
    BehaviourCodes,
    Perception,
    base_logit,
    card_features,
)
from edgerec_gym.config import Config, FeedConfig, bounded
from edgerec_gym.spaces import context_size


@dataclass(frozen=True)
class ESANConfig(Config):
    """Hyper-parameters of ESAN and of its training."""

    learning_rate: float = bounded(3e-3, 1e-7, 1.0)  # learning rate of Adam
    batch_size: int = bounded(256, 1, 1_000_000)  # lists in a gradient step
    epochs: int = bounded(12, 1, 10_000)  # maximum number of epochs
    patience: int = bounded(3, 1, 10_000)  # epochs without a smaller loss after which training stops
    weight_decay: float = bounded(1e-5, 0.0, 10.0)  # L2 penalty of Adam
    max_grad_norm: float = bounded(1.0, 1e-3, 1e6)
    horizon: int = bounded(10, 1, 1000)  # T, slots ahead that are learned; later slots count as the last
    no_click: int = bounded(10, 1, 1000)  # exposures without a click that trigger re-ranking
    per_session: int = bounded(8, 1, 10_000)  # maximum number of lists from one session
    hidden: int = bounded(32, 2, 4096)  # width of every layer
    layers: int = bounded(1, 1, 10)  # layers of the perception's GRUs
    window: int = bounded(2, 1, 100)  # places above the slot that are seen; below it at most `lookahead`
    card_weight: float = bounded(3.0, 0.01, 1e3)  # loss weight of mix-in cards, which are rare; goods have 1
    surroundings: int = bounded(1, 0, 1)  # 0 leaves out the cards around the slot
    behaviour: int = bounded(1, 0, 1)  # 0 leaves out the behaviour sequences


class Candidates(NamedTuple):
    """Cards of B sessions, encoded with behaviour and session.

    Attributes:
        codes: (B, Q, 2 H) float32.
        embeddings: (B, Q, d) float32.
        base: (B, Q) float32 logit of the base ctr.
    """

    codes: Tensor
    embeddings: Tensor
    base: Tensor


class Surroundings(NamedTuple):
    """Cards around T slots of B sessions, W places from top to bottom; zero where there is no card.

    Attributes:
        codes: (B, T, W, H) float32.
        embeddings: (B, T, W, d) float32.
    """

    codes: Tensor
    embeddings: Tensor


class Prediction(NamedTuple):
    """Probabilities of the OUTCOMES of exposed lists in T slots ahead, of B sessions.

    Attributes:
        cards: (B, M, T, 4) float32 for each card at each slot, 0 where there is no card.
        goods: (B, T, 4) float32 for the organic items, 0 beyond the end of the list.
        exposure: (B, T) float32 probability that the slot will be seen, 0 from `max_slots` on.
    """

    cards: Tensor
    goods: Tensor
    exposure: Tensor


class ESAN(nn.Module):
    """Probabilities of :data:`~edgerec_gym.agents.data.exposed_lists.OUTCOMES` of cards at slots.

    Probabilities of purchases and long page views are conditional on the click and multiplied by it. The
    click's logit is that of the base ctr plus the network's correction, which is zero before training.

    Args:
        config: gives the sizes and the reward weights.
        settings: hyper-parameters.
        identified: which outcomes the log identifies, (4,) bool; the probabilities of others are 0.
    """

    def __init__(
        self, config: FeedConfig, settings: ESANConfig, identified: tuple[bool, ...] = (True,) * 4
    ) -> None:
        super().__init__()
        hidden, n_card = settings.hidden, config.n_item_features + config.n_types
        self.config, self.settings, self.identified = config, settings, identified
        self.below = min(settings.window, config.lookahead)
        width = n_card + hidden
        if settings.behaviour:
            self.perception = Perception(config, hidden, settings.layers)
            attention = {name: BehaviourAttention(n_card, hidden, 2 * hidden) for name in SEQUENCES}
            self.attention = nn.ModuleDict(attention)
            width += sum(part.size for part in attention.values())
        self.session = nn.Linear(config.n_user_features + context_size(config), hidden)
        self.card = nn.Linear(width, 2 * hidden)
        self.place = nn.Embedding(settings.horizon, 2 * hidden)
        if settings.surroundings:
            n_around = settings.window + self.below
            self.neighbour = nn.Linear(n_card, hidden)
            self.around = nn.Linear(n_around * hidden, 2 * hidden)
            self.likeness = nn.Linear(n_around, 2 * hidden, bias=False)
        last = nn.Linear(hidden, len(OUTCOMES))
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(2 * hidden, hidden), nn.ReLU(), last)
        nn.init.zeros_(last.weight)
        with torch.no_grad():  # start at rare events; the click starts at the base ctr
            last.bias.copy_(torch.tensor([0.0, -2.0, 0.0, -3.0]))
        # Platt scaling, fitted once after training: logit -> scale * logit + shift.
        self.scale = nn.Parameter(torch.ones(len(OUTCOMES)), requires_grad=False)
        self.shift = nn.Parameter(torch.zeros(len(OUTCOMES)), requires_grad=False)

    def encode(
        self,
        observation: TensorObservation,
        cards: Tensor,
        behaviour: dict[str, BehaviourCodes] | None = None,
    ) -> Candidates:
        """Encode cards (B, Q, F + T) float32 in the session in which they would be shown.

        `behaviour` is perception's output, if already computed; None encodes the observation's histories.
        """
        d = self.config.embedding_size
        features = card_features(cards, d)
        parts = [features]
        if self.settings.behaviour:
            behaviour = self.perception(observation) if behaviour is None else behaviour
            for name, part in behaviour.items():
                parts.append(self.attention[name](features, part.items, part.values, part.present))
        session = torch.relu(self.session(torch.cat((observation["user"], observation["context"]), -1)))
        parts.append(session.unsqueeze(1).expand(-1, cards.shape[1], -1))
        return Candidates(self.card(torch.cat(parts, -1)), cards[..., :d], base_logit(cards, d))

    def surroundings(self, observation: TensorObservation, cards: Tensor, inserted: bool) -> Surroundings:
        """Collect the cards around each slot of a list.

        Args:
            observation: when the list begins; the cards of its `screen` are above the list.
            cards: (B, T + below, F + T) float32 the list, zero beyond its end; the last ones only serve as
                neighbours below.
            inserted: False: around the list's own cards; True: around a card that pushes the list's card at
                its slot, and all after it, one slot down.
        """
        config, above, below = self.config, self.settings.window, self.below
        d, n_slots = config.embedding_size, cards.shape[1] - below
        before = [cards.new_zeros(len(cards), max(0, above - config.lookahead), cards.shape[2])]
        if config.lookahead:
            before.append(observation["screen"][:, -above:])
        stream = torch.cat((*before, cards), 1)  # slot t of the list is at `above` + t
        features = card_features(stream, d)
        codes = torch.relu(self.neighbour(features)) * (stream != 0).any(-1, keepdim=True)
        embeddings = stream[..., :d]
        offsets = [*range(above), *range(above + (not inserted), above + (not inserted) + below)]

        def around(values: Tensor) -> Tensor:
            return torch.stack([values[:, k : k + n_slots] for k in offsets], 2)

        return Surroundings(around(codes), around(embeddings))

    def logits(self, cards: Candidates, around: Surroundings | None, place: Tensor) -> Tensor:
        """Judge cards at slots, before calibration: (..., 4).

        Args:
            cards: parts (..., size).
            around: surroundings, parts (..., W, size); leading dimensions broadcast with the cards'.
            place: (...) int64 slots ahead; broadcasts too.
        """
        hidden = cards.codes + self.place(place.clamp(max=self.settings.horizon - 1))
        if self.settings.surroundings:
            assert around is not None
            alike = (around.embeddings * cards.embeddings.unsqueeze(-2)).sum(-1)
            hidden = hidden + self.around(around.codes.flatten(-2)) + self.likeness(alike)
        logits = self.head(hidden)
        residual = torch.zeros_like(logits)
        residual[..., CLICK] = cards.base
        return logits + residual

    @property
    def list_size(self) -> int:
        """Cards of a logged list that is learned from; the last ones only serve as neighbours below."""
        return self.settings.horizon + self.below

    def judge(self, batch: ListBatch) -> Judged:
        """Judge logged lists: each card at its slot among its true neighbours."""
        observation, cards = to_tensors(batch.observation), torch.from_numpy(batch.cards)
        n_slots = cards.shape[1] - self.below
        around = self.surroundings(observation, cards, False) if self.settings.surroundings else None
        mixed_in = cards[:, :n_slots, self.config.n_item_features + 1 :].any(-1)
        return Judged(
            self.logits(self.encode(observation, cards[:, :n_slots]), around, torch.arange(n_slots)),
            torch.from_numpy(batch.outcomes[:, :n_slots]),
            torch.from_numpy(batch.answered[:, :n_slots]),
            torch.where(mixed_in, self.settings.card_weight, 1.0),
        )

    def probabilities(self, logits: Tensor) -> Tensor:
        """Calibrated probabilities (..., 4); purchases and long page views include their click."""
        p = torch.sigmoid(logits * self.scale + self.shift)
        click = p[..., CLICK : CLICK + 1]
        joint = torch.cat((click, click * p[..., PURCHASE:LEAVE], p[..., LEAVE:]), -1)
        return joint * p.new_tensor(self.identified)

    def predict(self, observation: TensorObservation, goods: Tensor, n_slots: int) -> Prediction:
        """Predict all cards at all slots ahead, among the goods that would be shown there without them.

        Args:
            observation: with the cards.
            goods: (B, n_slots + below, F + T) float32 goods cards in the order in which they will be shown,
                zero beyond the end.
            n_slots: T.
        """
        n_cards = observation["cards"].shape[1]
        coded = self.encode(observation, torch.cat((observation["cards"], goods[:, :n_slots]), 1))
        mixed, organic = (
            Candidates(*(part[:, some] for part in coded)) for some in (slice(n_cards), slice(n_cards, None))
        )
        return self.predict_coded(observation, mixed, organic, goods)

    def predict_coded(
        self, observation: TensorObservation, mixed: Candidates, organic: Candidates, goods: Tensor
    ) -> Prediction:
        """Predict as :meth:`predict`, from cards (B, M) and the first T goods that are already encoded."""
        cards, n_slots = observation["cards"], organic.base.shape[1]
        place = torch.arange(n_slots)
        beside = between = None
        if self.settings.surroundings:
            beside = self.surroundings(observation, goods, False)
            between = Surroundings(*(p.unsqueeze(1) for p in self.surroundings(observation, goods, True)))
        mixed = Candidates(*(part.unsqueeze(2) for part in mixed))
        there = (cards != 0).any(-1).view(*cards.shape[:2], 1, 1)
        listed = (goods[:, :n_slots] != 0).any(-1).unsqueeze(-1)
        of_goods = self.probabilities(self.logits(organic, beside, place)) * listed
        of_cards = self.probabilities(self.logits(mixed, between, place)) * there
        return Prediction(of_cards, of_goods, self._exposure(observation, of_goods[..., LEAVE]))

    def _exposure(self, observation: TensorObservation, leave: Tensor) -> Tensor:
        """Probability (B, T) that each slot will be seen: the user has not left, and the session goes on."""
        config = self.config
        stay = torch.cumprod(1 - leave, 1)
        stay = torch.cat((torch.ones_like(stay[:, :1]), stay[:, :-1]), 1)
        stay = stay * (1 - leave[:, :1]) ** config.lookahead  # for cards on screen that are not answered yet
        slot = torch.round(observation["context"][:, :1] * config.max_slots) + torch.arange(leave.shape[1])
        return stay * (slot < config.max_slots - config.lookahead)

    def values(self, probabilities: Tensor, cards: bool) -> Tensor:
        """Expected reward (...) of probabilities (..., 4)."""
        click, purchase = probabilities[..., CLICK], probabilities[..., PURCHASE]
        return self.config.reward.value(click, purchase, card=float(cards))
