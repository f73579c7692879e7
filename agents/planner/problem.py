"""Mixed insertion as a constrained knapsack: the problem and its plans.

M cards of C types may be placed at T slots. A slot's weight is what a card there adds to the exposure of its
type, for example the probability that the user gets that far. A plan may leave any card out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgerec_gym.errors import InputError

LEFT_OUT = -1  # the slot of a card that is not placed


@dataclass(frozen=True, eq=False)
class MixBatch:
    """B problems of one size, every array with a first axis of B rows; see :class:`MixProblem`.

    Raises:
        InputError: a field is wrong; names the field, the place and what is allowed.
    """

    values: np.ndarray  # (B, M, T) float64
    weights: np.ndarray  # (B, T) float64
    types: np.ndarray  # (B, M) int64
    caps: np.ndarray  # (B, C) float64
    gaps: np.ndarray  # (B, C) int64
    first_slots: np.ndarray  # (B, C) int64
    prefix_caps: np.ndarray | None = None  # (B, C, T) int64
    floors: np.ndarray | None = None  # (B, C) int64
    ordered: bool = False

    def __post_init__(self) -> None:
        _check(self, ("B",))

    def __len__(self) -> int:
        """Number of problems (B)."""
        return len(self.values)

    def __getitem__(self, row: int) -> MixProblem:
        """Return one of the problems."""
        arrays: dict[str, Any] = {name: value[row] for name, value in _given(self)}
        return MixProblem(**arrays, ordered=self.ordered)

    def rows(self, rows: np.ndarray) -> MixBatch:
        """Return some of the problems."""
        arrays: dict[str, Any] = {name: value[rows] for name, value in _given(self)}
        return MixBatch(**arrays, ordered=self.ordered)

    @classmethod
    def stack(cls, problems: Sequence[MixProblem]) -> MixBatch:
        """Stack problems of one size; those without prefix caps or floors get values that never bind.

        Raises:
            InputError: no problem at all, or problems that differ in size or in `ordered`.
        """
        if not problems:
            raise InputError("there must be at least one problem")
        first = problems[0]
        for k, problem in enumerate(problems):
            if problem.size != first.size or problem.ordered != first.ordered:
                raise InputError(
                    f"problem {k} has (cards, slots, types) = {problem.size}, ordered = {problem.ordered}; "
                    f"problem 0 has {first.size} and {first.ordered}; a batch needs them equal"
                )
        given: dict[str, Any] = {name: np.stack([getattr(p, name) for p in problems]) for name in _ARRAYS[:6]}
        return cls(
            **given,
            prefix_caps=np.stack([p.most_by_slot() for p in problems]),
            floors=np.stack([p.fewest() for p in problems]),
            ordered=first.ordered,
        )

    @property
    def size(self) -> tuple[int, int, int]:
        """Numbers of cards, slots and types (M, T, C)."""
        return self.values.shape[1], self.values.shape[2], self.caps.shape[1]

    def most_by_slot(self) -> np.ndarray:
        """Return the prefix caps, (B, C, T) int64; M where there are none."""
        return _prefix_caps(self.prefix_caps, (len(self), self.size[2], self.size[1]), self.size[0])

    def fewest(self) -> np.ndarray:
        """Return the floors, (B, C) int64; 0 where there are none."""
        return np.zeros(self.caps.shape, np.int64) if self.floors is None else self.floors


@dataclass(frozen=True, eq=False)
class MixProblem:
    """One mixed insertion problem: maximise the sum of the values of the placed cards under the rules.

    A slot takes one card at most, and a card is placed once at most. The spacing rules are those of the
    environment (feed/rules.py), counted from the first slot of the plan.

    Args:
        values: (M, T), gain of card m at slot t, net of the organic item that it displaces; may be negative;
            -inf = forbidden.
        weights: (T,), not negative.
        types: (M,), 0..C-1.
        caps: (C,), maximum weight of a type, where its weight is the sum over the slots of its cards;
            inf = no cap.
        gaps: (C,), minimum number of slots from one card of a type to the next (0 and 1 both mean no rule).
        first_slots: (C,), first slot that a type may take.
        prefix_caps: (C, T), maximum number of cards of a type in slots 0..t, t included; None = no such rule.
        floors: (C,), minimum number of cards of a type; None = no such rule.
        ordered: the cards of a type are a queue: a card is placed only after the one before it (by index),
            which must be placed too.

    Raises:
        InputError: a field is wrong; names the field, the place and what is allowed.
    """

    values: np.ndarray
    weights: np.ndarray
    types: np.ndarray
    caps: np.ndarray
    gaps: np.ndarray
    first_slots: np.ndarray
    prefix_caps: np.ndarray | None = None
    floors: np.ndarray | None = None
    ordered: bool = False

    def __post_init__(self) -> None:
        _check(self, ())

    @property
    def size(self) -> tuple[int, int, int]:
        """Numbers of cards, slots and types (M, T, C)."""
        return self.values.shape[0], self.values.shape[1], self.caps.shape[0]

    def most_by_slot(self) -> np.ndarray:
        """Return the prefix caps, (C, T) int64; M where there are none."""
        return _prefix_caps(self.prefix_caps, (self.size[2], self.size[1]), self.size[0])

    def fewest(self) -> np.ndarray:
        """Return the floors, (C,) int64; 0 where there are none."""
        return np.zeros(self.caps.shape, np.int64) if self.floors is None else self.floors


@dataclass(frozen=True)
class Plan:
    """Where the cards of a problem are placed.

    If no plan was found that obeys the rules, it is empty and not optimal, its value and bound are 0, and
    `reason` says why.
    """

    slots: np.ndarray  # (M,) int64, the card's slot; -1 = left out
    value: float  # sum of the values of the placed cards
    bound: float  # no plan is worth more; equals the value of an optimal plan
    optimal: bool  # whether it is proven optimal
    reason: str | None = None  # why the plan is empty


@dataclass(frozen=True)
class PlanBatch:
    """The plans of B problems."""

    slots: np.ndarray  # (B, M) int64
    value: np.ndarray  # (B,) float64
    bound: np.ndarray  # (B,) float64
    optimal: np.ndarray  # (B,) bool
    reason: tuple[str | None, ...]

    def __len__(self) -> int:
        """Number of plans (B)."""
        return len(self.value)

    def __getitem__(self, row: int) -> Plan:
        """Return one of the plans."""
        return Plan(
            self.slots[row],
            float(self.value[row]),
            float(self.bound[row]),
            bool(self.optimal[row]),
            self.reason[row],
        )


def insertions(slots: np.ndarray, n_slots: int) -> np.ndarray:
    """Convert plans to one card per slot, the form that EdgeFeedSlate-v0 takes.

    Args:
        slots: (B, M), of a :class:`PlanBatch`.
        n_slots: T.

    Returns:
        (B, T) int64, 0 = no card, m = card m - 1.
    """
    insert = np.zeros((len(slots), n_slots), np.int64)
    row, card = np.nonzero(slots >= 0)
    insert[row, slots[row, card]] = card + 1
    return insert


_SHAPES = {
    "values": ("M", "T"),
    "weights": ("T",),
    "types": ("M",),
    "caps": ("C",),
    "gaps": ("C",),
    "first_slots": ("C",),
    "prefix_caps": ("C", "T"),
    "floors": ("C",),
}
_ARRAYS = tuple(_SHAPES)
_REAL = ("values", "weights", "caps")


def _given(problem: MixProblem | MixBatch) -> list[tuple[str, np.ndarray]]:
    arrays = ((name, getattr(problem, name)) for name in _ARRAYS)
    return [(name, value) for name, value in arrays if value is not None]


def _prefix_caps(caps: np.ndarray | None, shape: tuple[int, ...], n_cards: int) -> np.ndarray:
    return np.full(shape, n_cards, np.int64) if caps is None else caps


def _check(problem: MixProblem | MixBatch, lead: tuple[str, ...]) -> None:
    """Turn the fields into arrays of the declared dtypes, or raise InputError for the first that is wrong."""
    sizes: dict[str, int] = {}
    for name, value in _given(problem):
        object.__setattr__(problem, name, _array(name, value, (*lead, *_SHAPES[name]), sizes))
    object.__setattr__(problem, "ordered", bool(problem.ordered))
    values, weights, caps = problem.values, problem.weights, problem.caps
    _refuse("values", values, np.isnan(values) | (values == np.inf), "finite numbers, or -inf = forbidden")
    _refuse("weights", weights, ~((weights >= 0) & np.isfinite(weights)), "finite numbers, 0 or more")
    _refuse("caps", caps, ~(caps >= 0), "0 or more; inf = no cap")
    n_types = sizes["C"]
    types = problem.types
    _refuse("types", types, (types < 0) | (types >= n_types), f"0 to {n_types - 1}, as caps has {n_types}")
    for name in _ARRAYS[4:]:
        value = getattr(problem, name)
        if value is not None:
            _refuse(name, value, value < 0, "0 or more")


def _array(name: str, value: object, axes: tuple[str, ...], sizes: dict[str, int]) -> np.ndarray:
    """Return a field as a contiguous float64 or int64 array; its axes must agree with or extend `sizes`."""
    try:
        array = np.asarray(value)
    except ValueError:  # rows of different lengths
        array = np.array(None)
    if array.ndim == len(axes) and array.dtype.kind in "iuf":
        for axis, size in zip(axes, array.shape, strict=True):
            sizes.setdefault(axis, size)
    wanted = tuple(sizes.get(axis, axis) for axis in axes)
    shown = f"({', '.join(map(str, wanted))}{',' if len(wanted) == 1 else ''})"
    if array.shape != wanted or array.dtype.kind not in "iuf":
        raise InputError(f"{name} must be numbers of shape {shown}, got shape {array.shape} of {array.dtype}")
    if not array.size:
        raise InputError(f"{name} must not be empty, got shape {array.shape}")
    if name in _REAL:
        return np.ascontiguousarray(array, np.float64)
    if array.dtype.kind == "f":
        _refuse(name, array, ~(np.isfinite(array) & (array == np.rint(array))), "whole numbers")
    # Values beyond 2^30 slots or cards all mean the same.
    return np.ascontiguousarray(np.clip(array, -1, 1 << 30), np.int64)


def _refuse(name: str, values: np.ndarray, wrong: np.ndarray, allowed: str) -> None:
    """Raise InputError for the first wrong value, if there is one."""
    if wrong.any():
        place = tuple(np.argwhere(wrong)[0].tolist())
        where = ", ".join(map(str, place))
        raise InputError(f"{name}[{where}] is {values[place]}; allowed: {allowed}")
