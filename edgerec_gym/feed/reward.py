"""The reward: a weighted sum of named terms (RewardConfig), which are in `info["reward_terms"]`."""

from __future__ import annotations

from edgerec_gym.answers import BUY, CLICK, LEAVE, RESPONSE_SIZE
from edgerec_gym.compiled.jit import kernel
from edgerec_gym.config import REWARD_TERMS

(
    TERM_CLICK,
    TERM_PURCHASE,
    TERM_REQUEST,
    TERM_INVALID,
    TERM_INSERT_CLICK,
    TERM_LEAVE,
    TERM_UNCERTAINTY,
) = range(len(REWARD_TERMS))
FIRST_RESPONSE = len(REWARD_TERMS)  # the terms of the named responses follow


@kernel
def clear(feed, row):
    """Zero the reward terms of one row."""
    for term in range(feed.reward_terms.shape[1]):
        feed.reward_terms[row, term] = 0.0


@kernel
def count_answer(feed, row, is_card):
    """Record what the user did with the focused card."""
    terms = feed.reward_terms
    click = feed.response[row, CLICK]
    terms[row, TERM_CLICK] = click
    terms[row, TERM_PURCHASE] = feed.response[row, BUY]
    terms[row, TERM_INSERT_CLICK] = click if is_card else 0.0
    terms[row, TERM_LEAVE] = feed.response[row, LEAVE]
    terms[row, TERM_UNCERTAINTY] = feed.uncertainty[row]
    for r in range(feed.n_responses):
        terms[row, FIRST_RESPONSE + r] = feed.response[row, RESPONSE_SIZE + r]


@kernel
def settle(feed, row):
    """Weight the terms, which turns them into reward units, and sum them."""
    total = 0.0
    for term in range(feed.reward_terms.shape[1]):
        value = feed.reward_terms[row, term] * feed.reward_weights[term]
        feed.reward_terms[row, term] = value
        total += value
    feed.reward[row] = total
