"""The network of the EdgeRec agent: one perception of the user's behaviour, and a head for each decision.

Behaviour is encoded once (HUBSM, :class:`~edgerec_gym.agents.perception.perception.Perception`), and every
card, goods or mixed, attends to it once. The resulting codes give the order of the goods and the matrix of
values of cards at slots (ESAN's own layers). The request head attends to the same behaviour. Perception,
attention and matrix start from a trained ESAN; order and request learn from teachers (train.py).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from edgerec_gym.agents.insertion.esan import ESAN, Candidates
from edgerec_gym.agents.learning.tensors import TensorObservation, to_arrays
from edgerec_gym.agents.perception.attention import AdditiveAttention
from edgerec_gym.agents.perception.intent_change import SIGNALS, current_interest, intent_signals
from edgerec_gym.agents.perception.live_interest import LiveInterest
from edgerec_gym.agents.perception.perception import (
    SEQUENCES,
    BehaviourCodes,
    base_logit,
    candidate_cards,
    card_features,
    take,
)
from edgerec_gym.agents.rerank.reranker import ABSENT, MODEL_KEYS
from edgerec_gym.config import FeedConfig
from edgerec_gym.policy import Observation
from edgerec_gym.spaces import CONTEXT, context_size

PAGE_VIEWS = CONTEXT.index("page_views")
READ = (*MODEL_KEYS, "cards")  # keys of the observation that the agent reads
STRENGTH = LiveInterest().strength  # logits per unit of match
Behaviour = dict[str, BehaviourCodes]


class RequestHead(nn.Module):
    """Expected gain of a request, from intent signals, user, context and attended behaviour.

    Its initial prediction is zero.

    Args:
        config: gives the sizes.
        coded: width of the behaviour's item codes.
        hidden: width of the head.
    """

    def __init__(self, config: FeedConfig, coded: int, hidden: int) -> None:
        super().__init__()
        self.config = config
        plain = len(SIGNALS) + config.n_user_features + context_size(config)
        self.attention = nn.ModuleDict({name: AdditiveAttention(plain, coded, hidden) for name in SEQUENCES})
        size = plain + 2 * coded * len(SEQUENCES)
        self.hidden = nn.Linear(size, hidden)
        self.linear, self.out = nn.Linear(size, 1), nn.Linear(hidden, 1, bias=False)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        nn.init.zeros_(self.out.weight)
        self.mean = nn.Parameter(torch.zeros(plain), requires_grad=False)
        self.scale = nn.Parameter(torch.ones(plain), requires_grad=False)

    def plain(self, observation: TensorObservation) -> Tensor:
        """All inputs except the behaviour codes, (B, n)."""
        signals = torch.from_numpy(intent_signals(to_arrays(observation), self.config))
        return torch.cat((signals, observation["user"], observation["context"]), -1)

    def forward(self, observation: TensorObservation, behaviour: Behaviour) -> Tensor:
        """Predict the gain, (B,), in reward units."""
        plain = (self.plain(observation) - self.mean) / self.scale
        parts = [plain]
        for name, codes in behaviour.items():
            attended = self.attention[name](plain.unsqueeze(1), codes.items, codes.values, codes.present)
            parts.append(attended.squeeze(1))
        code = torch.cat(parts, -1)
        return (self.linear(code) + self.out(torch.relu(self.hidden(code)))).squeeze(-1)


class Coded(NamedTuple):
    """The cards of B sessions, encoded with behaviour: M mixed ones and the N of the pool."""

    mixed: Candidates
    pool: Candidates


class Matrix(NamedTuple):
    """Expectations of B sessions for T slots ahead, given an order.

    Attributes:
        cards: (B, M, T) float32 reward of each card at each slot, 0 where there is no card.
        goods: (B, T) float32 reward of the goods that would be shown there.
        exposure: (B, T) float32 probability that the slot will be seen.
    """

    cards: Tensor
    goods: Tensor
    exposure: Tensor


class EdgeRecNetwork(nn.Module):
    """One perception, three heads, and a few scalars between them that joint training adjusts first.

    Args:
        esan: gives perception, attention and matrix; used as it is, not copied.
        hidden: width of the order and request heads.
        page_views: False hides what was opened, in the histories and in the context.
        plan_features: number of features that whole plans are compared by (values.py).
        match: initial weight of live match.

    Attributes:
        match: weight of the match with live interest, added to the order head; 1 = device-greedy's.
        price: (C,) reward that a card of each type must earn beyond what it displaces.
        effect: (2,) scale and shift of the gain of a request.
        plan: (features,) weights of the value of whole plans (values.py); zero = not learned.
        plan_spread: (features, features) uncertainty of these weights.
    """

    def __init__(
        self,
        esan: ESAN,
        hidden: int = 32,
        page_views: bool = True,
        plan_features: int = 0,
        match: float = 0.0,
    ) -> None:
        super().__init__()
        config, coded = esan.config, esan.settings.hidden
        self.config, self.page_views = config, page_views
        self.esan = esan
        width = 2 * coded + config.n_item_features + config.n_types + 1
        last = nn.Linear(hidden, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.order = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), last)
        self.request = RequestHead(config, coded, hidden)
        self.match = nn.Parameter(torch.tensor(match))
        self.price = nn.Parameter(torch.zeros(len(config.card_types)))
        self.effect = nn.Parameter(torch.tensor([1.0, 0.0]))
        self.plan = nn.Parameter(torch.zeros(plan_features), requires_grad=False)
        self.plan_spread = nn.Parameter(torch.zeros(plan_features, plan_features), requires_grad=False)

    @property
    def type_of_card(self) -> Tensor:
        """Type of each card row, (M,) int64, 0 = the first of config.card_types."""
        return torch.arange(self.config.n_cards) % len(self.config.card_types)

    def seen(self, observation: Observation) -> Observation:
        """The part of an observation that the network may read."""
        found = {key: observation[key] for key in READ if key in observation}
        if not self.page_views:
            found["page_views"] = np.zeros_like(found["page_views"])
            found["context"] = found["context"].copy()
            found["context"][:, PAGE_VIEWS] = 0
        return found

    def encode(self, observation: TensorObservation, behaviour: Behaviour) -> Coded:
        """Encode all cards."""
        cards, goods = observation["cards"], candidate_cards(observation["pool"], self.config.n_types)
        coded = self.esan.encode(observation, torch.cat((cards, goods), 1), behaviour)
        n_cards = cards.shape[1]
        return Coded(
            Candidates(*(part[:, :n_cards] for part in coded)),
            Candidates(*(part[:, n_cards:] for part in coded)),
        )

    def scores(self, observation: TensorObservation, coded: Coded, with_match: bool = True) -> Tensor:
        """Score the pool, (B, N) logits; used-up rows get ABSENT.

        `with_match` = False leaves out the weighted match with live interest, for the order head alone.
        """
        pool, d = observation["pool"], self.config.embedding_size
        live = torch.from_numpy(current_interest(to_arrays(observation), self.config))
        match = (pool[..., :d] @ live.unsqueeze(-1)).squeeze(-1)
        features = card_features(candidate_cards(pool, self.config.n_types), d)
        inputs = torch.cat((torch.relu(coded.pool.codes), features, match.unsqueeze(-1)), -1)
        score = self.order(inputs).squeeze(-1) + base_logit(pool, d)
        if with_match:
            score = score + STRENGTH * self.match * match
        return score.masked_fill(~(pool != 0).any(-1), ABSENT)

    def matrix(self, observation: TensorObservation, coded: Coded, order: Tensor, n_slots: int) -> Matrix:
        """Value cards and goods at the slots ahead, with the pool shown in `order` (B, N) int64."""
        needed = n_slots + self.esan.below
        goods = candidate_cards(take(observation["pool"], order[:, :needed]), self.config.n_types)
        goods = nn.functional.pad(goods, (0, 0, 0, needed - goods.shape[1]))
        first = order[:, :n_slots]
        organic = Candidates(
            take(coded.pool.codes, first),
            take(coded.pool.embeddings, first),
            coded.pool.base.gather(1, first),
        )
        found = self.esan.predict_coded(observation, coded.mixed, organic, goods)
        return Matrix(
            self.esan.values(found.cards, True), self.esan.values(found.goods, False), found.exposure
        )

    def prices(self) -> Tensor:
        """Price of each card row, (M,)."""
        return self.price[self.type_of_card]

    def gain(self, observation: TensorObservation, behaviour: Behaviour) -> Tensor:
        """Expected gain of a request now, (B,), in reward units."""
        return self.effect[0] * self.request(observation, behaviour) + self.effect[1]
