"""The list evaluator: probabilities of clicks, purchases and leaving at every place of a whole list.

A re-ranker scores a card before its neighbours are known. An evaluator judges a finished list. At every place
it sees all cards above (a GRU that starts with those on screen), the `lookahead` cards below that are on
screen by the time the card is answered, the behaviour so far (HUBSM, attended by every card as in CRBAN),
context and user. It is trained on exposed lists (:mod:`edgerec_gym.agents.lists.evaluator_training`). It is
the simulator of the re-rank-rank stage of EdgeRec's "2.0"; PRank of PRS (2102.12057) is similar.

Cards further below are excluded on purpose. They cannot matter, since they are chosen after the answer. And
logged lists end where the user left, so a network that saw the end would know who is leaving.

A search judges prefixes of lists, where the cards below the last places are not known yet. Training includes
such places (:func:`hidden_below`); otherwise, a missing card below would always mean the end of a page.

The value of a list is its expected reward,

    sum over places i of stay_i * (w_click p_click + w_purchase p_purchase + w_long p_long_page_view),

where stay_i is the probability that the user is still there: the product of 1 - p_leave over the places
before i, or `decay` ** i if the log does not record why sessions end. The value is never negative.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from edgerec_gym.agents.data.exposed_lists import OUTCOMES, ListBatch
from edgerec_gym.agents.data.observed_log import NOT_SHOWN
from edgerec_gym.agents.learning.tensors import TensorObservation, to_tensors
from edgerec_gym.agents.perception.attention import AdditiveAttention
from edgerec_gym.agents.perception.cards import BASE_CVR
from edgerec_gym.agents.perception.interest_match import BehaviourMatch
from edgerec_gym.agents.perception.perception import (
    SEQUENCES,
    Perception,
    base_logit,
    candidate_cards,
    card_features,
)
from edgerec_gym.agents.rerank.reranker import pool_present
from edgerec_gym.config import Config, FeedConfig, bounded
from edgerec_gym.spaces import context_size

CLICK, PURCHASE, LONG_PAGE_VIEW, LEAVE = range(len(OUTCOMES))
CONVERSION = 0.5  # the cloud's cvr is a noisy predictor of purchases
LEAST_CVR = 1e-3  # logs without a cvr hold 0


@dataclass(frozen=True)
class EvaluatorConfig(Config):
    """Hyper-parameters of the list evaluator and its training."""

    learning_rate: float = bounded(3e-3, 1e-7, 1.0)  # of Adam
    final_rate: float = bounded(0.1, 0.0, 1.0)  # share of it left in the last epoch; linear decay
    ranking: float = bounded(1.0, 0.0, 1e3)  # weight of the loss on the order of clicks within a list
    batch_size: int = bounded(256, 1, 1_000_000)  # lists per gradient step
    epochs: int = bounded(20, 1, 10_000)  # at most
    patience: int = bounded(3, 1, 10_000)  # epochs without a smaller loss before training ends
    weight_decay: float = bounded(1e-5, 0.0, 10.0)  # L2 penalty of Adam
    max_grad_norm: float = bounded(1.0, 1e-3, 1e6)
    horizon: int = bounded(10, 1, 1000)  # K, cards per list
    no_click: int = bounded(10, 1, 1000)  # exposures without a click that trigger re-ranking
    per_session: int = bounded(8, 1, 10_000)  # maximum number of lists per session
    hidden: int = bounded(32, 2, 4096)  # width of every layer
    layers: int = bounded(1, 1, 10)  # layers of the perception's GRUs
    match: int = bounded(0, 0, 1)  # 1 adds the match of embeddings with live interest
    click_weight: float = bounded(1.0, 0.0, 1e3)  # in the value of a list
    purchase_weight: float = bounded(5.0, 0.0, 1e3)
    long_page_view_weight: float = bounded(0.0, 0.0, 1e3)
    decay: float = bounded(0.97, 0.01, 1.0)  # probability of staying per place, if leaving is not logged


class EncodedCards(NamedTuple):
    """Encoded cards of B sessions, from which lists are assembled.

    Attributes:
        codes: (B, M, H) float32 card codes.
        base: (B, M, 2) float32 click and purchase logits of a card by itself.
        screen: (B, L, H) float32 codes of the cards on screen above the list.
    """

    codes: Tensor
    base: Tensor
    screen: Tensor


class Judged(NamedTuple):
    """A network's logits for logged lists, with the outcomes.

    Attributes:
        logits: (B, K, 4) float32 logits before calibration.
        outcomes: (B, K, 4) float32 outcomes, 0 or 1.
        answered: (B, K) bool, where outcomes are known.
        weight: (B, K) float32 weight of each place in the loss.
    """

    logits: Tensor
    outcomes: Tensor
    answered: Tensor
    weight: Tensor


class ListEvaluator(nn.Module):
    """Predict :data:`~edgerec_gym.agents.data.exposed_lists.OUTCOMES` at every place of a list.

    Purchases and long page views are conditional on the click and multiplied by its probability. The click's
    logit is the base ctr's plus two learned terms, both zero before training: one from the card alone, as in
    a pointwise re-ranker, and one from the list. Likewise, the purchase's logit builds on the base cvr, since
    logs have too few purchases to learn from them alone.

    Args:
        config: gives the sizes.
        settings: hyper-parameters and weights of the value.
        identified: (4,) bool, which outcomes the log identifies; the other probabilities are 0.
    """

    def __init__(
        self, config: FeedConfig, settings: EvaluatorConfig, identified: tuple[bool, ...] = (True,) * 4
    ) -> None:
        super().__init__()
        hidden, n_card = settings.hidden, config.n_item_features + config.n_types
        self.config, self.settings, self.identified = config, settings, identified
        self.perception = Perception(config, hidden, settings.layers)
        self.query = nn.Linear(n_card, hidden)
        self.attention = nn.ModuleDict(
            {name: AdditiveAttention(hidden, hidden, hidden) for name in SEQUENCES}
        )
        self.session = nn.Linear(config.n_user_features + context_size(config), hidden)
        self.match = BehaviourMatch(config, SEQUENCES if settings.match else ())
        self.card = nn.Linear(n_card + 5 * hidden + self.match.size, hidden)
        self.screen = nn.Linear(n_card, hidden)
        self.place = nn.Embedding(settings.horizon, hidden)
        self.above = nn.GRU(hidden, hidden, batch_first=True)
        width = (2 + config.lookahead) * hidden
        last = nn.Linear(hidden, len(OUTCOMES))
        self.head = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), last)
        nn.init.zeros_(last.weight)
        with torch.no_grad():  # start with low rates; the click's rate comes from the base ctr
            last.bias.copy_(torch.tensor([0.0, -2.0, 0.0, -3.0]))
        self.alone = nn.Sequential(
            nn.Linear(n_card + config.n_user_features + context_size(config) + self.match.size, 2 * hidden),
            nn.ReLU(),
            nn.Linear(2 * hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, 2),
        )
        outcome = self.alone[-1]
        assert isinstance(outcome, nn.Linear)
        nn.init.zeros_(outcome.weight)
        nn.init.zeros_(outcome.bias)
        self.conversion = nn.Parameter(torch.tensor(CONVERSION))  # logits of a purchase per logit of base cvr
        # Platt scaling, fitted once after training: logit -> scale * logit + shift.
        self.scale = nn.Parameter(torch.ones(len(OUTCOMES)), requires_grad=False)
        self.shift = nn.Parameter(torch.zeros(len(OUTCOMES)), requires_grad=False)

    def encode(self, observation: TensorObservation, cards: Tensor) -> EncodedCards:
        """Encode cards (B, M, F + T) float32 in the context of their session."""
        d = self.config.embedding_size
        features = card_features(cards, d)
        query = self.query(features)
        parts = [features]
        for name, behaviour in self.perception(observation).items():
            attended = self.attention[name](query, behaviour.items, behaviour.values, behaviour.present)
            parts.append(attended)
        session = torch.cat((observation["user"], observation["context"]), -1)
        alone = torch.cat((features, session.unsqueeze(1).expand(-1, cards.shape[1], -1)), -1)
        parts.append(self.session(session).unsqueeze(1).expand(-1, cards.shape[1], -1))
        if self.match:
            matched = self.match(observation, cards)
            parts.append(matched)
            alone = torch.cat((alone, matched), -1)
        conversion = self.conversion * torch.logit(cards[..., d + BASE_CVR], LEAST_CVR)
        base = torch.stack((base_logit(cards, d), conversion), -1) + self.alone(alone)
        screen = torch.tanh(self.screen(card_features(observation["screen"], d)))
        return EncodedCards(torch.relu(self.card(torch.cat(parts, -1))), base, screen)

    def encode_pool(self, observation: TensorObservation) -> EncodedCards:
        """Encode the pool rows, so that lists can be given as pool rows."""
        return self.encode(observation, candidate_cards(observation["pool"], self.config.n_types))

    def logits(self, encoded: EncodedCards, placed: Tensor, cut: Tensor | None = None) -> Tensor:
        """Judge one list per session, its cards in order: (B, K, 4) logits before calibration.

        Args:
            encoded: the cards of the lists.
            placed: (B, K) bool, True first; places after the end of a list have no influence.
            cut: (B,) int64; places before the cut do not see the cards from there on.
        """
        n_places, on_screen = placed.shape[1], encoded.screen.shape[1]
        at = torch.arange(n_places, device=placed.device).clamp(max=self.settings.horizon - 1)
        cards = (encoded.codes + self.place(at)) * placed.unsqueeze(-1)
        above = self.above(torch.cat((encoded.screen, cards), 1))[0][:, on_screen:]
        ahead = nn.functional.pad(cards, (0, 0, 0, self.config.lookahead))
        below = [ahead[:, 1 + k : 1 + k + n_places] for k in range(self.config.lookahead)]
        if cut is not None:
            below = [card * ~hidden_below(cut, n_places, 1 + k).unsqueeze(-1) for k, card in enumerate(below)]
        logits = self.head(torch.cat((cards, above, *below), -1))
        residual = torch.zeros_like(logits)
        residual[..., [CLICK, PURCHASE]] = encoded.base
        return logits + residual

    @property
    def list_size(self) -> int:
        """Number of cards in the logged lists used for training."""
        return self.settings.horizon

    def judge(self, batch: ListBatch, cut: Tensor | None = None) -> Judged:
        """Judge logged lists; for `cut` see :meth:`logits`."""
        encoded = self.encode(to_tensors(batch.observation), torch.from_numpy(batch.cards))
        logits = self.logits(encoded, torch.from_numpy(batch.placed), cut)
        answered = torch.from_numpy(batch.answered)
        return Judged(logits, torch.from_numpy(batch.outcomes), answered, torch.ones(answered.shape))

    def probabilities(self, encoded: EncodedCards, placed: Tensor) -> Tensor:
        """Return calibrated probabilities (B, K, 4); purchases and long page views include the click."""
        p = torch.sigmoid(self.logits(encoded, placed) * self.scale + self.shift)
        click = p[..., CLICK : CLICK + 1]
        joint = torch.cat((click, click * p[..., PURCHASE:LEAVE], p[..., LEAVE:]), -1)
        return joint * p.new_tensor(self.identified) * placed.unsqueeze(-1)

    def place_values(self, encoded: EncodedCards, placed: Tensor) -> Tensor:
        """Return the expected value of every place (B, K), weighted by the probability of staying so long."""
        s, p = self.settings, self.probabilities(encoded, placed)
        if self.identified[LEAVE]:
            stay = torch.cumprod(1 - p[..., LEAVE], -1)
            stay = torch.cat((torch.ones_like(stay[:, :1]), stay[:, :-1]), -1)
        else:
            stay = s.decay ** torch.arange(placed.shape[1], device=placed.device, dtype=p.dtype)
        weights = p.new_tensor([s.click_weight, s.purchase_weight, s.long_page_view_weight, 0.0])
        return stay * (p @ weights)

    def values(self, encoded: EncodedCards, rows: Tensor) -> Tensor:
        """Return the values of several lists per session.

        Args:
            encoded: M cards of B sessions.
            rows: (B, S, K) int64 in 0 .. M - 1, then -1 after the end of a list.

        Returns:
            (B, S) float32, at least 0.
        """
        n_lists, n_places = rows.shape[1:]
        flat = rows.flatten(0, 1)  # (B S, K)
        index = flat.clamp(min=0)
        session = torch.arange(len(rows), device=rows.device).repeat_interleave(n_lists).unsqueeze(1)
        lists = EncodedCards(
            encoded.codes[session, index],
            encoded.base[session, index],
            encoded.screen.repeat_interleave(n_lists, 0),
        )
        return self.place_values(lists, flat != NOT_SHOWN).sum(-1).view(-1, n_lists)

    def list_values(self, observation: TensorObservation, rows: Tensor) -> Tensor:
        """Return the values (B, S) of lists of pool rows (B, S, K); see :meth:`values`."""
        return self.values(self.encode_pool(observation), rows)

    def single_values(self, encoded: EncodedCards, observation: TensorObservation) -> Tensor:
        """Return the value (B, N) of every pool row as a list of one card; 0 if used up."""
        present = pool_present(observation)
        alone = torch.arange(present.shape[1], device=present.device).view(1, -1, 1)
        rows = alone.expand(len(present), -1, -1).masked_fill(~present.unsqueeze(-1), NOT_SHOWN)
        return self.values(encoded, rows)


def hidden_below(cut: Tensor, n_places: int, distance: int) -> Tensor:
    """Return (B, K) bool: where a cut hides the card `distance` places below from a place."""
    at = torch.arange(n_places, device=cut.device)
    return (at < cut.unsqueeze(1)) & (at + distance >= cut.unsqueeze(1))


def outcome_losses(found: Judged, identified: tuple[bool, ...]) -> Tensor:
    """Return the negative log-likelihood per place of each outcome, (4,).

    Clicks and leaving are judged at all answered places, purchases and long page views at the clicked ones.
    Outcomes that the log does not identify count 0.
    """
    logits, outcomes, answered, weight = found
    loss = nn.functional.binary_cross_entropy_with_logits(logits, outcomes, reduction="none")
    weighted = loss * judged(outcomes, answered, identified) * weight.unsqueeze(-1)
    return weighted.sum((0, 1)) / (answered * weight).sum().clamp(min=1)


def judged(outcomes: Tensor, answered: Tensor, identified: tuple[bool, ...]) -> Tensor:
    """Return where each outcome can be judged, (B, K, 4) bool."""
    clicked = answered & (outcomes[..., CLICK] > 0)
    where = torch.stack((answered, clicked, clicked, answered), -1)
    return where & torch.tensor(identified)
