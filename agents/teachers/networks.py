"""The teachers on the cloud's logs: they score a page at its moment, from whole sessions and ids.

All three add their score to the logit of the base ctr, as the phone's re-rankers do. An item is its id's
embedding plus a linear map of what was shipped with it; the id of an item that training did not meet is
dropped at random in training, so that the teacher also learns to do without.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from edgerec_gym.agents.data.event_sequences import ABSENT, PageBatch, SequenceBatch, n_event_actions
from edgerec_gym.agents.perception.perception import base_logit, candidate_cards, card_features
from edgerec_gym.agents.teachers.deepfm import DeepNetwork, second_order
from edgerec_gym.agents.teachers.sasrec import CausalEncoder
from edgerec_gym.answers import N_EXPOSURE_ACTIONS
from edgerec_gym.config import Config, FeedConfig, bounded
from edgerec_gym.errors import InputError
from edgerec_gym.spaces import context_size

HEADS = 4  # interests of a session, each with its own weights and decay


@dataclass(frozen=True)
class TeacherConfig(Config):
    """Hyper-parameters of the teachers and their training."""

    learning_rate: float = bounded(1e-3, 1e-7, 1.0)  # of Adam
    final_rate: float = bounded(0.1, 0.0, 1.0)  # share of it left in the last epoch
    batch_size: int = bounded(64, 1, 1_000_000)  # sessions per gradient step; lightgcn: clicks
    epochs: int = bounded(12, 1, 10_000)  # at most
    patience: int = bounded(3, 1, 10_000)  # epochs without a better NDCG before training ends
    weight_decay: float = bounded(1e-5, 0.0, 10.0)  # L2 penalty of Adam; lightgcn: of the triples
    max_grad_norm: float = bounded(1.0, 1e-3, 1e6)
    dim: int = bounded(64, 2, 4096)  # width of embeddings
    layers: int = bounded(2, 1, 10)  # self-attention blocks, or propagations
    heads: int = bounded(2, 1, 64)  # of self-attention; must divide `dim`
    hidden: int = bounded(128, 2, 4096)  # width of deep layers (deepfm)
    dropout: float = bounded(0.2, 0.0, 0.9)
    id_dropout: float = bounded(0.3, 0.0, 1.0)  # share of ids that training hides
    earlier: int = bounded(20, 0, 1000)  # clicks of earlier days that are read
    attention: int = bounded(1, 0, 1)  # 1 gives deepfm the state of a SASRec encoder as a field

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dim % self.heads:
            raise InputError(f"TeacherConfig.heads = {self.heads} must divide dim = {self.dim}")


class Sequences(NamedTuple):
    """A :class:`~edgerec_gym.agents.data.event_sequences.SequenceBatch` as tensors."""

    ids: Tensor
    cards: Tensor
    actions: Tensor
    known: Tensor
    context: Tensor
    user: Tensor
    earlier: Tensor
    target: Tensor
    click: Tensor


class Pages(NamedTuple):
    """A :class:`~edgerec_gym.agents.data.event_sequences.PageBatch` as tensors."""

    session: Tensor
    known: Tensor
    ids: Tensor
    pool: Tensor
    context: Tensor


def sequences_of(batch: SequenceBatch) -> Sequences:
    """Convert a batch to tensors."""
    return Sequences(**{name: torch.from_numpy(np.ascontiguousarray(v)) for name, v in vars(batch).items()})


def pages_of(batch: PageBatch) -> Pages:
    """Convert a batch to tensors."""
    return Pages(**{name: torch.from_numpy(np.ascontiguousarray(v)) for name, v in vars(batch).items()})


class ItemEncoder(nn.Module):
    """An item as its id's embedding plus a linear map of its card's features.

    Args:
        config: gives the sizes.
        n_items: I; ids are 1..I.
        dim: width.
        id_dropout: share of ids hidden in training.
    """

    def __init__(self, config: FeedConfig, n_items: int, dim: int, id_dropout: float) -> None:
        super().__init__()
        self.embedding_size, self.id_dropout = config.embedding_size, id_dropout
        self.ids = nn.Embedding(n_items + 1, dim, padding_idx=ABSENT)
        nn.init.normal_(self.ids.weight, std=0.02)
        with torch.no_grad():
            self.ids.weight[ABSENT] = 0
        self.cards = nn.Linear(config.n_item_features + config.n_types, dim)

    def of_ids(self, ids: Tensor) -> Tensor:
        """Return the ids' embeddings (..., dim); some are hidden in training."""
        if self.training and self.id_dropout:
            ids = ids * (torch.rand(ids.shape) >= self.id_dropout)
        return self.ids(ids)

    def forward(self, ids: Tensor, cards: Tensor) -> Tensor:
        """Encode items with ids (...) and cards (..., F + T): (..., dim)."""
        return self.of_ids(ids) + self.cards(card_features(cards, self.embedding_size))


class PageTeacher(nn.Module):
    """Scores candidates from the state of a session after k known answers.

    A subclass implements :meth:`states` and :meth:`judge`.

    Args:
        config: gives the sizes.
        settings: hyper-parameters.
        n_items: number of items that ids stand for.
    """

    def __init__(self, config: FeedConfig, settings: TeacherConfig, n_items: int) -> None:
        super().__init__()
        self.config, self.settings, self.n_items = config, settings, n_items
        self.n_actions = n_event_actions(N_EXPOSURE_ACTIONS + config.n_responses)

    def states(self, sessions: Sequences) -> Tensor:
        """Return the state after 0..T known answers, (B, T + 1, S)."""
        raise NotImplementedError

    def recent(self, sessions: Sequences) -> Tensor:
        """Return the clicks of earlier days that this teacher reads, the last ones: (B, H) int64."""
        given = sessions.earlier.shape[1]
        return sessions.earlier[:, max(0, given - self.settings.earlier) :]

    def judge(self, state: Tensor, ids: Tensor, cards: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Judge K candidates at R moments.

        Args:
            state: (R, S).
            ids: (R, K) int64.
            cards: (R, K, F + T).
            context: (R, C).

        Returns:
            Scores without the base ctr (R, K), and codes of the candidates at that moment (R, K, h).
        """
        raise NotImplementedError

    @property
    def code_size(self) -> int:
        """Width h of the codes."""
        raise NotImplementedError

    def logits(self, state: Tensor, ids: Tensor, cards: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits of a click (R, K) and codes (R, K, h); see :meth:`judge`."""
        score, code = self.judge(state, ids, cards, context)
        return score + base_logit(cards, self.config.embedding_size), code

    def loss(self, sessions: Sequences) -> Tensor:
        """Return the mean log-loss of the clicks on all answered goods of B sessions."""
        row, slot = torch.nonzero(sessions.target, as_tuple=True)
        state = self.states(sessions)[row, sessions.known[row, slot]]
        ids, cards = sessions.ids[row, slot], sessions.cards[row, slot]
        context = sessions.context[row, slot]
        logits, _ = self.logits(state, ids.unsqueeze(1), cards.unsqueeze(1), context)
        return functional.binary_cross_entropy_with_logits(logits[:, 0], sessions.click[row, slot])

    def score(self, sessions: Sequences, pages: Pages) -> tuple[Tensor, Tensor]:
        """Return logits (R, N) and codes (R, N, h) of pages; those of used-up rows are arbitrary."""
        state = self.states(sessions)[pages.session, pages.known]
        return self.logits(state, pages.ids, candidate_cards(pages.pool, self.config.n_types), pages.context)


class SequenceStates(nn.Module):
    """Self-attention over clicks of earlier days, a place for the user, and the session's events.

    Args:
        config: gives the sizes.
        settings: hyper-parameters.
        items: encodes items.
        n_actions: number of columns of an event's actions.
    """

    def __init__(
        self, config: FeedConfig, settings: TeacherConfig, items: ItemEncoder, n_actions: int
    ) -> None:
        super().__init__()
        dim = settings.dim
        self.items = items
        self.actions = nn.Linear(n_actions, dim)
        self.user = nn.Linear(config.n_user_features, dim)
        self.kind = nn.Parameter(torch.zeros(dim))  # of clicks of earlier days
        length = settings.earlier + 1 + config.max_slots
        self.encoder = CausalEncoder(length, dim, settings.layers, settings.heads, settings.dropout)

    def forward(self, sessions: Sequences, earlier: Tensor) -> Tensor:
        """Return the state after 0..T known answers, (B, T + 1, dim); `earlier` (B, H) int64 are ids."""
        before = self.items.of_ids(earlier) + self.kind
        start = self.user(sessions.user).unsqueeze(1)
        events = self.items(sessions.ids, sessions.cards) + self.actions(sessions.actions)
        places = torch.cat((before, start, events), 1)
        itself = torch.ones_like(sessions.ids[:, :1], dtype=torch.bool)
        present = torch.cat((earlier != ABSENT, itself, sessions.ids != ABSENT), 1)
        return self.encoder(places, present)[:, earlier.shape[1] :]


class SASRecTeacher(PageTeacher):
    """SASRec whose places are events: what was shown, and what the user did with it.

    The score is the product of the state with the candidate, plus a linear map of what was shipped.
    """

    def __init__(self, config: FeedConfig, settings: TeacherConfig, n_items: int) -> None:
        super().__init__(config, settings, n_items)
        dim = settings.dim
        self.items = ItemEncoder(config, n_items, dim, settings.id_dropout)
        self.sequence = SequenceStates(config, settings, self.items, self.n_actions)
        self.query = nn.Linear(dim, dim)
        self.first_order = nn.Linear(config.n_item_features + config.n_types, 1)
        self.moment = nn.Linear(context_size(config), 1)

    @property
    def code_size(self) -> int:
        """Width of the codes."""
        return self.settings.dim

    def states(self, sessions: Sequences) -> Tensor:
        """Return the states (B, T + 1, dim)."""
        return self.sequence(sessions, self.recent(sessions))

    def judge(self, state: Tensor, ids: Tensor, cards: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Judge candidates; a code is the product, place by place, of state and candidate."""
        code = self.query(state).unsqueeze(1) * self.items(ids, cards)
        linear = self.first_order(card_features(cards, self.config.embedding_size)).squeeze(-1)
        return code.sum(-1) / self.settings.dim**0.5 + linear + self.moment(context), code


class DeepFMTeacher(PageTeacher):
    """DeepFM over these fields: item, user, moment, live interests, clicks of earlier days, SASRec's state.

    A live interest is a sum of the items so far, weighted by what the user did with them and decayed with
    the number of events since.
    """

    def __init__(self, config: FeedConfig, settings: TeacherConfig, n_items: int) -> None:
        super().__init__(config, settings, n_items)
        dim, features = settings.dim, config.n_item_features + config.n_types
        self.items = ItemEncoder(config, n_items, dim, settings.id_dropout)
        self.user = nn.Linear(config.n_user_features, dim)
        self.moment = nn.Linear(context_size(config), dim)
        self.weight = nn.Linear(self.n_actions, HEADS)
        self.decay = nn.Parameter(torch.linspace(-3.5, -1.0, HEADS))  # log of the rate per event
        self.sequence = (
            SequenceStates(config, settings, self.items, self.n_actions) if settings.attention else None
        )
        self.first_order = nn.Linear(features, 1)
        self.n_state = 2 + HEADS + settings.attention  # fields of the state
        self.deep = DeepNetwork(
            (self.n_state + 2) * dim, (settings.hidden, settings.hidden // 2), settings.dropout
        )

    @property
    def code_size(self) -> int:
        """Width of the codes."""
        return self.settings.hidden // 2

    def states(self, sessions: Sequences) -> Tensor:
        """Return the fields of the state, (B, T + 1, fields x dim)."""
        items = self.items(sessions.ids, sessions.cards)
        batch, slots, dim = items.shape
        steps = torch.arange(slots + 1)
        age = steps[:, None] - 1 - torch.arange(slots)  # of event j after k known answers
        fade = torch.exp(-age.clamp(min=0).unsqueeze(-1) * self.decay.exp()) * (age >= 0).unsqueeze(-1)
        weight = self.weight(sessions.actions) * (sessions.ids != ABSENT).unsqueeze(-1)  # (B, T, heads)
        live = torch.einsum("kjh,bjh,bjd->bkhd", fade, weight, items)
        live = live / (1 + (live.square().sum(-1, keepdim=True) + 1e-12).sqrt())
        recent = self.recent(sessions)
        there = (recent != ABSENT).unsqueeze(-1)
        earlier = (self.items.of_ids(recent) * there).sum(1) / there.sum(1).clamp(min=1)
        fixed = torch.stack((self.user(sessions.user), earlier), 1)  # (B, 2, dim)
        parts = [fixed.unsqueeze(1).expand(-1, slots + 1, -1, -1), live]
        if self.sequence is not None:
            parts.append(self.sequence(sessions, recent).unsqueeze(2))
        return torch.cat(parts, 2).flatten(2)

    def judge(self, state: Tensor, ids: Tensor, cards: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Judge candidates; a code is the last hidden layer of the deep part."""
        item = self.items(ids, cards)
        fields = torch.cat((state.unflatten(1, (self.n_state, -1)), self.moment(context).unsqueeze(1)), 1)
        fields = fields.unsqueeze(1).expand(-1, item.shape[1], -1, -1)
        fields = torch.cat((fields, item.unsqueeze(2)), 2)  # (R, K, M, dim)
        linear = self.first_order(card_features(cards, self.config.embedding_size)).squeeze(-1)
        deep, code = self.deep(fields.flatten(2))
        return linear + second_order(fields) / self.settings.dim**0.5 + deep, code


class LightGCNTeacher(PageTeacher):
    """Products of propagated embeddings, scaled.

    A user is the mean of the propagated embeddings of the items clicked on earlier days, which is what a
    last propagation without the user's own embedding gives; so users that training did not meet are scored
    alike, and no click is part of what predicts it. The state is that mean.
    """

    def __init__(self, config: FeedConfig, settings: TeacherConfig, n_items: int) -> None:
        super().__init__(config, settings, n_items)
        self.items = nn.Embedding(n_items + 1, settings.dim, padding_idx=ABSENT)
        self.scale, self.offset = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))

    @property
    def code_size(self) -> int:
        """Width of the codes."""
        return self.settings.dim

    def states(self, sessions: Sequences) -> Tensor:
        """Return the user (B, T + 1, dim), the same after every answer."""
        recent = self.recent(sessions)
        there = (recent != ABSENT).unsqueeze(-1)
        user = (self.items(recent) * there).sum(1) / there.sum(1).clamp(min=1)
        return user.unsqueeze(1).expand(-1, sessions.ids.shape[1] + 1, -1)

    def judge(self, state: Tensor, ids: Tensor, cards: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Judge candidates."""
        code = state.unsqueeze(1) * self.items(ids)
        return self.scale * code.sum(-1) + self.offset, code
