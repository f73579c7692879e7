"""Reward = sum of named terms x weights (RewardConfig); the terms are in `info["reward_terms"]`."""

from __future__ import annotations

from numba import njit

from edgerec_gym.state import REWARD_TERMS
from edgerec_gym.users.base import BUY, CLICK, LEAVE

TERM_CLICK, TERM_PURCHASE, TERM_REQUEST, TERM_INVALID, TERM_INSERT_CLICK, TERM_LEAVE = range(
    len(REWARD_TERMS)
)


@njit
def clear(state, row):
    """Start the step's account of one row."""
    for term in range(state.reward_terms.shape[1]):
        state.reward_terms[row, term] = 0.0


@njit
def count_answer(state, row, is_card):
    """Enter what the user did with the focused card."""
    terms = state.reward_terms
    click = state.response[row, CLICK]
    terms[row, TERM_CLICK] = click
    terms[row, TERM_PURCHASE] = state.response[row, BUY]
    terms[row, TERM_INSERT_CLICK] = click if is_card else 0.0
    terms[row, TERM_LEAVE] = state.response[row, LEAVE]


@njit
def settle(state, row):
    """Weigh the terms (they become reward units) and sum them."""
    total = 0.0
    for term in range(state.reward_terms.shape[1]):
        value = state.reward_terms[row, term] * state.reward_weights[term]
        state.reward_terms[row, term] = value
        total += value
    state.reward[row] = total
