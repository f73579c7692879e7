"""Learned users that also tell what they would have answered to other candidates.

A played slot teaches the value of one card. Learned users are a model, so they can be asked about all others
too: what is the probability of a click and of a purchase if this candidate stood there, everything else the
same? The answers are free of noise, and cost one row of a graph call each.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgerec_gym.answers import (
    CLICK_PROBABILITY,
    FOCUSED,
    PURCHASE_PROBABILITY,
    WINDOW,
    Focus,
    UserStart,
    response_size,
)
from edgerec_gym.compiled.workers import Workers
from edgerec_gym.config import FeedConfig
from edgerec_gym.errors import InputError
from edgerec_gym.scenario import Scenario
from edgerec_gym.users.learned import LearnedUsers

COPIED = ("memory", "evidence", "page_memory", "page_evidence")  # of every member that follows a session
OF_SESSION = ("member", "user", "last", "page_code")


class AskedUsers:
    """Learned users who are asked about C candidates before they answer the focused card.

    Set :attr:`candidates` before a step to ask about them; the answers are in :attr:`click` and
    :attr:`purchase` after it.

    If a candidate was placed below the focused card in what was played, it changes places with that card: no
    card stands next to itself.

    Args:
        scenario: a scenario with learned users.
        n_candidates: C.
        members: networks that an episode draws from; None for the whole ensemble.
        pessimism: k of *mean - k standard deviations* over `members`; None asks only the member that answers
            the session, which costs a fraction.

    Attributes:
        candidates: (B, C, F + T) float32 cards to ask about, zero where absent; None asks nothing.
        click: (B, C) float32 click probabilities; stale in rows without a focused card.
        purchase: (B, C) float32 probabilities of click and purchase, likewise.
    """

    name = "learned"

    def __init__(
        self,
        scenario: Scenario,
        n_candidates: int,
        members: Sequence[int] | None = None,
        pessimism: float | None = None,
    ) -> None:
        if n_candidates < 1:
            raise InputError(f"n_candidates = {n_candidates} must be at least 1")
        every = pessimism is not None
        self._users = LearnedUsers(scenario, uncertainty=every, members=members)
        self._asked = LearnedUsers(scenario, uncertainty=every, members=members)
        self.n_candidates, self.pessimism = n_candidates, pessimism
        self._members = members if members is None else list(members)
        self.uncertainty = None
        self.candidates: np.ndarray | None = None

    @property
    def n_hidden(self) -> int:
        """Number of columns of :attr:`hidden`."""
        return self._users.simulator.members + self._users.simulator.sizes["memory"]

    @property
    def hidden(self) -> np.ndarray:
        """What no policy sees: which member answers (one-hot), and its memory of the user; (B, P) float32.

        With pessimism, every member follows the session; this is the memory of the first.
        """
        memory = self._users._memory
        member = np.eye(self._users.simulator.members, dtype=np.float32)[memory.member]
        return np.concatenate([member, memory.memory[: memory.n_sessions]], axis=1)

    def allocate(self, num_envs: int, config: FeedConfig, workers: Workers) -> None:
        """Allocate `num_envs` sessions, and a copy of each for every candidate."""
        self._users.allocate(num_envs, config, workers)
        self._asked.allocate(num_envs * self.n_candidates, config, workers)
        self.click, self.purchase = np.zeros((2, num_envs, self.n_candidates), np.float32)
        self._focus: Focus | None = None
        self._response = np.zeros((num_envs * self.n_candidates, response_size(config)), np.float32)

    def reset(self, rows: np.ndarray, keys: np.ndarray, split: int) -> UserStart:
        """Start new sessions; see :class:`~edgerec_gym.answers.UserModel`."""
        return self._users.reset(rows, keys, split)

    def respond(self, focus: Focus, response: np.ndarray) -> None:
        """Answer the candidates, then the focused cards; see :class:`~edgerec_gym.answers.UserModel`."""
        if self.candidates is not None and focus.active.any():
            self._ask(focus, self.candidates)
        self._users.respond(focus, response)

    def _ask(self, focus: Focus, candidates: np.ndarray) -> None:
        memory, copy, n = self._users._memory, self._asked._memory, self.n_candidates
        for name in OF_SESSION:
            getattr(copy, name)[:] = np.repeat(getattr(memory, name), n, axis=0)
        for name in COPIED:  # sessions of one member after the other
            getattr(copy, name)[:] = np.repeat(getattr(memory, name), n, axis=0)
        asked = self._copied(focus)
        asked.active[:] = (focus.active[:, None] & candidates.any(axis=2)).ravel()
        asked.cards[:] = _swapped(focus.cards[:, :WINDOW], candidates)
        asked.items[:] = np.repeat(focus.items[:, :WINDOW], n, axis=0)
        asked.context[:] = np.repeat(focus.context, n, axis=0)
        asked.keys[:] = np.repeat(focus.keys, n)
        asked.pages[:] = np.repeat(focus.pages[:, :WINDOW], n, axis=0)
        self._response[:] = 0.0
        self._asked.respond(asked, self._response)
        click, purchase = self._response[:, CLICK_PROBABILITY], self._response[:, PURCHASE_PROBABILITY]
        if self.pessimism is not None:
            by_member = copy.click_probability.reshape(-1, len(click))
            by_member = by_member if self._members is None else by_member[self._members]
            cautious = np.maximum(by_member.mean(axis=0) - self.pessimism * by_member.std(axis=0), 0.0)
            purchase = purchase / np.maximum(click, 1e-6) * cautious
            click = cautious
        self.click[:], self.purchase[:] = click.reshape(-1, n), purchase.reshape(-1, n)

    def _copied(self, focus: Focus) -> Focus:
        """Return the workspace for the focus of every candidate."""
        if self._focus is None:
            rows, width = len(focus.active) * self.n_candidates, focus.cards.shape[2]
            self._focus = Focus(
                active=np.zeros(rows, np.bool_),
                cards=np.zeros((rows, WINDOW, width), np.float32),
                items=np.zeros((rows, WINDOW), np.int32),
                context=np.zeros((rows, focus.context.shape[1]), np.float32),
                keys=np.zeros(rows, np.uint64),
                pages=np.zeros((rows, WINDOW, focus.pages.shape[2]), np.float32),
            )
        return self._focus


def _swapped(cards: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Put every candidate (B, C, W) into the focus of the window (B, 5, W): (B C, 5, W)."""
    n = candidates.shape[1]
    windows = np.repeat(cards[:, None], n, axis=1)  # (B, C, 5, W)
    windows[:, :, FOCUSED] = candidates
    for place in range(FOCUSED + 1, WINDOW):
        same = (candidates == cards[:, None, place]).all(axis=2) & candidates.any(axis=2)
        row, column = np.nonzero(same)
        windows[row, column, place] = cards[row, FOCUSED]
    return windows.reshape(-1, *cards.shape[1:])
