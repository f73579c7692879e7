"""Heterogeneous user behaviour sequence modelling (HUBSM; Gong et al., EdgeRec, CIKM'20, section 4.1).

Exposures and page views are two sequences, since exposures are frequent and page views rare. Cards and the
actions on them are encoded separately and fused after encoding, since attention compares cards with cards:
four GRUs in all. The age of an action is not a feature: rows hold the slot at which they happened. So a row
never changes, and a new event costs one GRU step (:meth:`Perception.append`) however long the session is.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from edgerec_gym.agents.perception.cards import BASE_CTR, LOGIT_SCALE
from edgerec_gym.errors import InputError
from edgerec_gym.files import atomic_path
from edgerec_gym.spaces import N_PAGE_VIEW_COLUMNS, FeedSizes, exposure_columns
from edgerec_gym.tensors import read_tensors

SEQUENCES = ("exposures", "page_views")


def action_columns(sizes: FeedSizes) -> dict[str, int]:
    """Return the number of columns after the card in a row of each sequence, including the slot."""
    return dict(zip(SEQUENCES, (exposure_columns(sizes), N_PAGE_VIEW_COLUMNS), strict=True))


def base_logit(items: Tensor, embedding_size: int) -> Tensor:
    """Return the logit of the base ctr of item features (..., F): (...)."""
    return torch.logit(items[..., embedding_size + BASE_CTR], 1e-4)


def occupied(rows: Tensor) -> Tensor:
    """Return which rows of (..., W) are not padding, (...) bool; faster than `any`."""
    return rows.abs().sum(-1) != 0


def card_features(cards: Tensor, embedding_size: int) -> Tensor:
    """Replace the base ctr of cards (..., F + T) by its logit, scaled to order 1; zero for absent cards."""
    at = embedding_size + BASE_CTR
    present = occupied(cards).unsqueeze(-1)
    logit = base_logit(cards, embedding_size).unsqueeze(-1) / LOGIT_SCALE
    return torch.cat((cards[..., :at], logit * present, cards[..., at + 1 :]), -1)


def candidate_cards(pool: Tensor, n_types: int) -> Tensor:
    """Turn pool rows (..., F) into goods cards (..., F + T), the format of the histories."""
    types = pool.new_zeros((*pool.shape[:-1], n_types))
    types[..., 0] = occupied(pool)
    return torch.cat((pool, types), -1)


def to_front(present: Tensor) -> tuple[Tensor, Tensor]:
    """Return the order (B, L) int64 that moves present rows (B, L) to the front, and their number (B,)."""
    return torch.argsort((~present).to(torch.int8), dim=1, stable=True), present.sum(1)


def take(rows: Tensor, order: Tensor) -> Tensor:
    """Select rows (B, L, W) by index (B, K) int64: (B, K, W)."""
    return rows.gather(1, order.unsqueeze(-1).expand(-1, -1, rows.shape[-1]))


def compact(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Move the rows of (B, L, W) that are not padding to the front, keeping their order.

    Returns:
        The rows (B, K, W), with K the longest sequence but at least 1, and which are present, (B, K) bool.
    """
    order, count = to_front(occupied(rows))
    longest = max(1, int(count.max()))
    present = torch.arange(longest, device=rows.device) < count.unsqueeze(1)
    return take(rows, order[:, :longest]), present


@dataclass(frozen=True)
class BehaviourCodes:
    """One encoded sequence of B sessions; padding comes last and has arbitrary codes.

    Attributes:
        items: (B, L, H) float32 codes of the cards, compared by attention.
        values: (B, L, 2 H) float32 codes of cards and actions (or (B, L, H) without actions).
        present: (B, L) bool.
    """

    items: Tensor
    values: Tensor
    present: Tensor


@dataclass
class SequenceState:
    """The encoded sequence of B sessions so far; `append` changes it in place.

    Attributes:
        hidden: (layers, B, H) float32 state of the card encoder.
        action_hidden: (layers, B, H) float32 state of the action encoder.
        items: (B, L, H) float32 ring buffer of the last L card codes; event n is stored at n mod L.
        actions: (B, L, H) float32 ring buffer of the action codes.
        count: (B,) int64 number of events so far.
    """

    hidden: Tensor
    action_hidden: Tensor
    items: Tensor
    actions: Tensor
    count: Tensor


class SequenceEncoder(nn.Module):
    """Encode one behaviour sequence: a GRU over the cards, another over the actions on them.

    Args:
        n_card: F + T.
        n_action: number of action columns, including the slot.
        embedding_size: d.
        length: L, the number of rows remembered.
        hidden: H.
        layers: layers of each GRU.
        with_actions: False omits the actions (the paper's ablation).
    """

    def __init__(
        self,
        n_card: int,
        n_action: int,
        embedding_size: int,
        length: int,
        hidden: int,
        layers: int,
        with_actions: bool,
    ) -> None:
        super().__init__()
        self.n_card, self.embedding_size, self.length, self.hidden = n_card, embedding_size, length, hidden
        self.n_action, self.layers = n_action, layers
        self.cards = nn.GRU(n_card, hidden, layers, batch_first=True)
        self.actions = nn.GRU(n_action, hidden, layers, batch_first=True) if with_actions else None

    @property
    def value_size(self) -> int:
        """Width of the fused codes."""
        return self.hidden * (1 if self.actions is None else 2)

    def forward(self, rows: Tensor) -> BehaviourCodes:
        """Encode rows (B, L, W), oldest first; zero rows at any place are padding."""
        return self.encode(*compact(rows))

    def encode(self, rows: Tensor, present: Tensor, features: Tensor | None = None) -> BehaviourCodes:
        """Encode rows (B, K, W), those `present` (B, K) first, as returned by :func:`compact`.

        `features` (B, K, F + T) are the :func:`card_features` of the rows, if the caller has them.
        """
        begun = present[:, 0]  # many sessions have no page view yet: skip their padding
        if features is None:
            features = card_features(rows[..., : self.n_card], self.embedding_size)
        cards = features[begun]
        values = [self.cards(cards)[0]]
        if self.actions is not None:
            values.append(self.actions(rows[begun, :, self.n_card :])[0])
        codes = rows.new_zeros(*rows.shape[:2], self.value_size).index_put((begun,), torch.cat(values, -1))
        return BehaviourCodes(codes[..., : self.hidden], codes, present)

    def start(self, sessions: int) -> SequenceState:
        """Return the state of sessions in which nothing has happened."""
        hidden = torch.zeros(self.layers, sessions, self.hidden)
        ring = torch.zeros(sessions, self.length, self.hidden)
        count = torch.zeros(sessions, dtype=torch.int64)
        return SequenceState(hidden, hidden.clone(), ring, ring.clone(), count)

    def append(self, state: SequenceState, sessions: Tensor, rows: Tensor) -> None:
        """Append one event (R, W) to each of `sessions` (R,) int64 in place, with one step per GRU."""
        cards = card_features(rows[:, : self.n_card], self.embedding_size).unsqueeze(1)
        place = state.count[sessions] % self.length
        code, hidden = self.cards(cards, state.hidden[:, sessions].contiguous())
        state.hidden[:, sessions] = hidden
        state.items[sessions, place] = code[:, 0]
        if self.actions is not None:
            actions = rows[:, self.n_card :].unsqueeze(1)
            code, hidden = self.actions(actions, state.action_hidden[:, sessions].contiguous())
            state.action_hidden[:, sessions] = hidden
            state.actions[sessions, place] = code[:, 0]
        state.count[sessions] += 1

    def codes(self, state: SequenceState) -> BehaviourCodes:
        """Return the codes of the last L events, oldest first, like :meth:`forward`."""
        present = torch.arange(self.length) < state.count.clamp(max=self.length).unsqueeze(1)
        oldest = (state.count - self.length).clamp(min=0)
        order = (oldest.unsqueeze(1) + torch.arange(self.length)) % self.length
        items = take(state.items, order)
        values = items if self.actions is None else torch.cat((items, take(state.actions, order)), -1)
        return BehaviourCodes(items, values, present)


class RowEncoder(nn.Module):
    """Encode every row of a sequence by itself: what a network without recurrence knows of a row.

    It takes the place of :class:`SequenceEncoder` where a fast training matters more than order.

    Args:
        n_card: F + T.
        n_action: number of action columns, including the slot.
        embedding_size: d.
        hidden: H.
    """

    def __init__(self, n_card: int, n_action: int, embedding_size: int, hidden: int) -> None:
        super().__init__()
        self.n_card, self.embedding_size = n_card, embedding_size
        self.cards, self.actions = nn.Linear(n_card, hidden), nn.Linear(n_action, hidden)

    def encode(self, rows: Tensor, present: Tensor, features: Tensor | None = None) -> BehaviourCodes:
        """Encode rows (B, K, W), as :meth:`SequenceEncoder.encode`."""
        if features is None:
            features = card_features(rows[..., : self.n_card], self.embedding_size)
        items = torch.tanh(self.cards(features))
        actions = torch.tanh(self.actions(rows[..., self.n_card :]))
        return BehaviourCodes(items, torch.cat((items, actions), -1), present)


PerceptionState = dict[str, SequenceState]


class Perception(nn.Module):
    """Encode both behaviour sequences, all at once or event by event.

    :meth:`forward` reads the environment's observation, whose histories hold the last rows of the session.
    :meth:`append` reads one event and remembers the session from its first event on. The two agree up to
    rounding as long as the session fits into the history; after that, the second remembers more.

    Args:
        config: gives the sizes.
        hidden: width of every GRU.
        layers: layers of every GRU (3 in the paper).
        sequences: "exposures", "page_views", or both.
        with_actions: False omits the actions.
    """

    def __init__(
        self,
        config: FeedSizes,
        hidden: int = 32,
        layers: int = 1,
        sequences: tuple[str, ...] = SEQUENCES,
        with_actions: bool = True,
    ) -> None:
        super().__init__()
        lengths = dict(zip(SEQUENCES, (config.exposure_history, config.page_view_history), strict=True))
        self.encoders = nn.ModuleDict(
            {
                name: SequenceEncoder(
                    config.n_item_features + config.n_types,
                    action_columns(config)[name],
                    config.embedding_size,
                    lengths[name],
                    hidden,
                    layers,
                    with_actions,
                )
                for name in sequences
            }
        )

    def encoder(self, name: str) -> SequenceEncoder:
        """Return the encoder of a sequence."""
        encoder = self.encoders[name]
        assert isinstance(encoder, SequenceEncoder)
        return encoder

    @property
    def sequences(self) -> tuple[str, ...]:
        """Names of the sequences that are encoded."""
        return tuple(self.encoders)

    def forward(self, observation: dict[str, Tensor]) -> dict[str, BehaviourCodes]:
        """Encode the histories of an observation, each (B, L, W) float32."""
        return {name: self.encoder(name)(observation[name]) for name in self.sequences}

    def start(self, sessions: int = 1) -> PerceptionState:
        """Return the state of sessions in which nothing has happened."""
        return {name: self.encoder(name).start(sessions) for name in self.sequences}

    @torch.no_grad()
    def append(self, state: PerceptionState, name: str, sessions: Tensor, rows: Tensor) -> None:
        """Append one event to each of some sessions in place, in time independent of the session's length.

        Args:
            state: state of all sessions.
            name: "exposures" or "page_views".
            sessions: (R,) int64, each at most once.
            rows: (R, W) float32 rows in the format of the observation.
        """
        self.encoder(name).append(state[name], sessions, rows)

    def codes(self, state: PerceptionState) -> dict[str, BehaviourCodes]:
        """Return the codes of the events so far, like :meth:`forward`."""
        return {name: self.encoder(name).codes(part) for name, part in state.items()}


def save_state(path: str | Path, state: PerceptionState) -> None:
    """Write the state that the phone keeps between starts of the app, atomically, as safetensors."""
    tensors = {
        f"{name}.{field}": tensor.detach().contiguous()
        for name, part in state.items()
        for field, tensor in vars(part).items()
    }
    with atomic_path(path) as temporary:
        save_file(tensors, temporary)


def load_state(path: str | Path, perception: Perception) -> PerceptionState:
    """Read a state; InputError names the file and any tensor that does not fit `perception`."""
    tensors = {name: torch.from_numpy(values) for name, values in read_tensors(path, finite=False).items()}
    counts = tensors.get(f"{perception.sequences[0]}.count") if perception.sequences else None
    state = perception.start(0 if counts is None else len(counts))
    expected = {f"{name}.{field}": (name, field) for name, part in state.items() for field in vars(part)}
    for key in sorted(expected.keys() | tensors.keys()):
        if key not in expected or key not in tensors:
            raise InputError(f"{path}: tensor {key!r} does not fit; another model saved it")
        name, field = expected[key]
        wanted, found = getattr(state[name], field), tensors[key]
        if found.shape != wanted.shape or found.dtype != wanted.dtype:
            raise InputError(
                f"{path}: {key!r} is {found.dtype} {list(found.shape)}; "
                f"this model needs {wanted.dtype} {list(wanted.shape)}"
            )
        if not torch.isfinite(found).all() or (field == "count" and (found < 0).any()):
            raise InputError(f"{path}: {key!r} holds values that are not finite or negative counts")
        setattr(state[name], field, found)
    return state
