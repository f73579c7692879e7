"""The sequence search as a phone runs it: the beams of the torch module, extended step by step.

:mod:`edgerec_gym.agents.lists.sequence_search` judges every partial list from its first place; the results
agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from edgerec_gym.config import Config, bounded
from edgerec_gym.device.engines.engine import Arrays, Graph


@dataclass(frozen=True)
class BeamConfig(Config):
    """Settings of the beams; fields as in :class:`~edgerec_gym.agents.lists.sequence_search.SearchConfig`."""

    beams: int = bounded(4, 1, 1_000_000)
    candidates: int = bounded(12, 1, 10_000)
    stability: float = bounded(0.95, 0.0, 1.0)
    every: int = bounded(1, 1, 1000)


class Beginnings(NamedTuple):
    """W partial lists; see :mod:`edgerec_gym.agents.export.evaluator_graphs`.

    Attributes:
        cards: (W, places so far) int64.
        above: (W, H) float32.
        pending: (W, lookahead, H) float32, the highest place first.
        pending_base: (W, lookahead, 2) float32.
        settled: (W, 1) float32.
        stay: (W, 1) float32.
    """

    cards: np.ndarray
    above: np.ndarray
    pending: np.ndarray
    pending_base: np.ndarray
    settled: np.ndarray
    stay: np.ndarray


class Found(NamedTuple):
    """Result of a search.

    Attributes:
        cards: (length,) int64.
        value: value of that list.
        stopped: number of places after which the beams had settled.
    """

    cards: np.ndarray
    value: float
    stopped: int


class BeamSearch:
    """Beam search over the evaluator's graphs, and the evaluator's choice among lists.

    Args:
        extend: graph that adds a card.
        judge: graph that values whole lists.
        lookahead: cards below a place that are on screen when it is answered.
        settings: settings of the beams.
    """

    def __init__(self, extend: Graph, judge: Graph, lookahead: int, settings: BeamConfig) -> None:
        self.extend, self.judge, self.lookahead, self.settings = extend, judge, lookahead, settings

    def __call__(self, encoded: Arrays, length: int, proposed: np.ndarray, left: int) -> Found:
        """Find a list of `length` cards with a high value.

        Args:
            encoded: outputs of the evaluator's graph `encode`, n cards.
            length: at most n.
            proposed: (S, length) int64 further lists to choose from.
            left: slots that the page still fills, at least 1; lists are judged only that far.
        """
        tables = {name: encoded[name] for name in ("gates", "parts", "base")}
        single = self._extended(tables, 0, self._start(encoded))["value"][0]
        order = np.argsort(-single, kind="stable")
        beams = self._beams(tables, order, self._start(encoded), min(length, left))
        lists = [self._completed(beam, order, length) for beam in beams]
        everything = np.concatenate([np.stack([*lists, order[:length]]), proposed])
        inputs = {name: encoded[name] for name in ("codes", "base", "start")}
        value = self.judge(inputs | {"lists": everything[:, :left]})["value"]
        best = int(value.argmax())
        return Found(everything[best], float(value[best]), beams.shape[1])

    def _start(self, encoded: Arrays) -> Beginnings:
        hidden = encoded["start"].shape[2]
        return Beginnings(
            np.zeros((1, 0), np.int64),
            encoded["start"][0],
            np.zeros((1, self.lookahead, hidden), np.float32),
            np.zeros((1, self.lookahead, 2), np.float32),
            np.zeros((1, 1), np.float32),
            np.ones((1, 1), np.float32),
        )

    def _extended(self, tables: Arrays, place: int, old: Beginnings) -> Arrays:
        """Outputs of the graph that adds each card of the tables to each partial list."""
        places = np.arange(place - self.lookahead, place + 1)
        inputs = {
            "place": np.array([place]),
            "there": (places >= 0).astype(np.float32),
            "above": old.above,
            "settled": old.settled,
            "stay": old.stay,
        }
        if self.lookahead:
            inputs |= {"pending": old.pending, "pending_base": old.pending_base}
        return self.extend(tables | inputs)

    def _beams(self, tables: Arrays, order: np.ndarray, old: Beginnings, length: int) -> np.ndarray:
        """Cards (W, places) of the beams once they have settled or no cards are left."""
        s = self.settings
        allowed = order[: s.candidates]
        some = {name: table[allowed] for name, table in tables.items()}
        m = len(allowed)
        for place in range(min(length, m)):
            out = self._extended(some, place, old)
            value = out["value"]
            np.put_along_axis(value, old.cards, -np.inf, axis=1)
            best = np.argsort(-value, axis=None, kind="stable")[: min(s.beams, (len(value) * (m - place)))]
            parent, card = np.divmod(best, m)
            value = value[parent, card]
            pending, pending_base = old.pending, old.pending_base
            if self.lookahead:
                pending = out["new_pending"][parent, card]
                base = np.concatenate([old.pending_base[parent], some["base"][card, None]], axis=1)
                pending_base = base[:, 1:]
            stay = old.stay[parent]
            old = Beginnings(
                np.column_stack([old.cards[parent], card]),
                out["new_above"][parent, card],
                pending,
                pending_base,
                old.settled[parent] + stay * out["first_value"][parent, card, None],
                stay * out["first_stay"][parent, card, None],
            )
            if len(value) > 1 and 0 < value[0] and value[-1] > s.stability * value[0]:
                break
        return allowed[old.cards]

    @staticmethod
    def _completed(beam: np.ndarray, order: np.ndarray, length: int) -> np.ndarray:
        """Cards (length,): those of a beam, then the others by their individual values."""
        left = np.ones(len(order), np.bool_)
        left[beam] = False
        return np.concatenate([beam, order[left[order]]])[:length]
