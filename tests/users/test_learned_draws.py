"""Draws of learned users stay within the levels that exist, also where rounding leaves a gap below 1."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from edgerec_gym.answers import DWELL_BUCKETS
from edgerec_gym.compiled.jit import kernel
from edgerec_gym.compiled.random_stream import uniform
from edgerec_gym.users.learned_answer import _draw_exposure, _softmax
from edgerec_gym.users.learned_layout import ANSWER_DRAW, EXPOSURE_AT, LEVELS, MOST_LEVELS, N_LOGITS

FEWEST = LEVELS.index(min(LEVELS))  # of e2..e6, that with the fewest levels
NEVER = -1e4  # logit of a level that does not exist


class Net(NamedTuple):
    """The weights that the draw reads."""

    exposure_by_dwell: np.ndarray


@kernel
def highest_draw(action, keys):
    """Return the key below `keys` whose draw is the highest, and that draw."""
    best, found = -1.0, 0
    for key in range(keys):
        u = uniform(np.uint64(key), 0, ANSWER_DRAW + action, 0)
        if u > best:
            best, found = u, key
    return found, best


def test_no_level_is_drawn_that_does_not_exist() -> None:
    """Float32 probabilities may add up to less than a draw just below 1."""
    key, u = highest_draw(1 + FEWEST, 50_000_000)
    generator, p = np.random.default_rng(0), np.zeros(DWELL_BUCKETS, np.float32)
    logits, at = np.zeros(N_LOGITS, np.float32), EXPOSURE_AT + FEWEST * MOST_LEVELS
    for _ in range(100_000):
        logits[EXPOSURE_AT : EXPOSURE_AT + len(LEVELS) * MOST_LEVELS] = NEVER
        for e, levels in enumerate(LEVELS):
            first = EXPOSURE_AT + e * MOST_LEVELS
            logits[first : first + levels] = generator.normal(size=levels)
        _softmax(logits, at, MOST_LEVELS, p)
        if p[:MOST_LEVELS].astype(np.float64).sum() <= u:
            break
    else:
        raise AssertionError("no probabilities with a gap were found")
    p[:] = 1 / DWELL_BUCKETS
    response = np.zeros(6, np.float32)
    net = Net(np.zeros((1, DWELL_BUCKETS, len(LEVELS) * MOST_LEVELS), np.float32))
    _draw_exposure(net, 0, logits, p, np.uint64(key), 0, 0, response)
    assert response[1 + FEWEST] == 1.0 and (response <= 1.0).all()
