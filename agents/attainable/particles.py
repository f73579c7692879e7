"""Kernels of the particle filter: a session's prior, switches of the intent, and the choice of particles.

A particle is an intent, with a hypothesis about the user behind it. After every answer, each category adds a
particle for an intent that has just switched to it. The next answer weighs all of them; then those that
matter least are thinned out without bias, by the optimal resampling of Fearnhead and Clifford (JRSS B, 2003).
"""

from __future__ import annotations

import math

import numpy as np

from edgerec_gym.agents.attainable.items import dot
from edgerec_gym.compiled.jit import kernel
from edgerec_gym.compiled.random_stream import fast_normal, fold, uniform

SCALE = 16777216.0  # 2^24: shipped features as whole numbers
(ACROSS, NOISE, DAY, HINT, ACTIVE, FIRST, PARENT, THIN) = range(32, 40)  # purposes of the draws


@kernel
def begin(b, row):
    """Set the belief of a session that begins: hypotheses about the user, and intents."""
    know, d = b.know, b.query.shape[0]
    key = np.uint64(b.seed)
    for k in range(b.seen.user.shape[1]):
        key = fold(key, np.uint64(np.int64(SCALE * b.seen.user[row, k])))
    for k in range(d + 1):
        key = fold(key, np.uint64(np.int64(SCALE * b.seen.pool[row, 0, k])))
    b.key[row] = key
    b.answered[row] = 0
    b.arrival[row] = -1
    for k in range(d):
        b.evidence[row, 0, k] = 0.0
    for c in range(know.centres.shape[0]):
        b.satiation[row, c] = 0.0
        b.weariness[row, c] = 0.0
        b.switch[c] = 0.0
    for h in range(b.taste.shape[1]):
        _draw_user(b, row, h)
    _draw_intents(b, row)


@kernel
def _draw_user(b, row, h):
    """Draw a hypothesis: a taste given the shipped estimate, and the rest given the shipped profile."""
    know, key, taste, d = b.know, b.key[row], b.taste[row], b.query.shape[0]
    user = b.seen.user[row]
    # The estimate is the direction of taste + noise, both of known length and of any direction.
    length, along = 0.0, 0.0
    for k in range(d):
        x = fast_normal(key, h, NOISE, k)
        length += x * x
        if k == 0:
            along = x
    along /= math.sqrt(length)
    noise = know.long_term_noise
    cosine = (1.0 + noise * along) / math.sqrt(max(1.0 + noise * noise + 2.0 * noise * along, 1e-9))
    length, along = 0.0, 0.0
    for k in range(d):
        taste[h, k] = fast_normal(key, h, ACROSS, k)
        along += taste[h, k] * user[k]
    for k in range(d):
        taste[h, k] -= along * user[k]
        length += taste[h, k] ** 2
    scale = math.sqrt(max(0.0, 1.0 - cosine * cosine) / max(length, 1e-12))
    length = 0.0
    for k in range(d):
        day = know.day_drift * fast_normal(key, h, DAY, k) / math.sqrt(d)
        taste[h, k] = cosine * user[k] + scale * taste[h, k] + day
        length += taste[h, k] ** 2
    for k in range(d):
        taste[h, k] /= math.sqrt(length)
    total = 0.0
    for c in range(know.centres.shape[0]):
        b.odds[row, h, c] = math.exp(3.0 * dot(taste, h, know.centres, c, d))
        total += b.odds[row, h, c]
    for c in range(know.centres.shape[0]):
        b.odds[row, h, c] /= total
    _draw_hints(b, row, h, d)


@kernel
def _draw_hints(b, row, h, d):
    """Draw type tastes, sensitivity to requested pages and the leave logit."""
    know, key = b.know, b.key[row]
    n_hints, n_profile = know.hints.shape[0], know.hints.shape[1] - 1
    for i in range(n_hints):
        value = float(know.hints[i, 0])
        for k in range(n_profile):
            x = min(max(float(b.seen.user[row, d + k]), -0.9999), 0.9999)
            value += know.hints[i, 1 + k] * 0.5 * math.log((1.0 + x) / (1.0 - x))
        for k in range(i + 1):
            value += know.hint_root[i, k] * fast_normal(key, h, HINT, k)
        if i < n_hints - 2:
            b.type_taste[row, h, 1 + i] = value
        elif i == n_hints - 2:
            b.sensitivity[row, h] = 0.5 + 0.5 * value
        else:
            active = uniform(key, h, ACTIVE, 0) < know.active
            b.leave[row, h] = (know.leave_active if active else know.leave_other) - 0.5 * value


@kernel
def _draw_intents(b, row):
    """Spread the particles evenly over the categories and weigh them by the odds of their hypotheses."""
    n_categories, n = b.know.centres.shape[0], b.n_particles
    start = uniform(b.key[row], 0, FIRST, 0)
    total = 0.0
    for i in range(n + n_categories):
        b.boredom[row, i] = 0.0
        b.response[row, i] = 0.0
        if i < n:
            c = int((i + start) * n_categories / n)
            b.user[row, i] = i % b.taste.shape[1]
            b.weight[row, i] = b.odds[row, b.user[row, i], c]
            total += b.weight[row, i]
        else:
            c = i - n
            b.user[row, i] = 0
            b.weight[row, i] = 0.0
        _set_intent(b, row, i, c)
        for k in range(b.query.shape[0]):
            b.page_intent[row, k, i] = b.intent[row, k, i]
    for i in range(n):
        b.weight[row, i] /= total
        for c in range(n_categories):
            b.switch[c] += b.weight[row, i] * b.odds[row, b.user[row, i], c]


@kernel
def _set_intent(b, row, i, category):
    """Make a particle's intent a new one of a category."""
    b.category[row, i] = category
    for k in range(b.query.shape[0]):
        b.intent[row, k, i] = b.know.centre_share * b.know.centres[category, k]


@kernel
def switch_intents(b, row, step):
    """Add to each category a particle for an intent that switches to it now; particles P on are replaced."""
    know, n, d = b.know, b.n_particles, b.query.shape[0]
    n_categories, hazard = know.centres.shape[0], know.intent_switch
    expect_switch(b, row)
    for c in range(n_categories):
        left = b.switch[c] * uniform(b.key[row], step, PARENT, c)
        parent = 0
        while parent < n - 1:
            left -= b.weight[row, parent] * b.odds[row, b.user[row, parent], c]
            if left < 0.0:
                break
            parent += 1
        i = n + c
        _set_intent(b, row, i, c)
        b.user[row, i] = b.user[row, parent]
        b.boredom[row, i] = b.boredom[row, parent]
        b.response[row, i] = b.response[row, parent]
        b.weight[row, i] = hazard * b.switch[c]
        for k in range(d):
            b.page_intent[row, k, i] = b.page_intent[row, k, parent]
    for i in range(n):
        b.weight[row, i] *= 1.0 - hazard


@kernel
def expect_switch(b, row):
    """Write the probability of each category at a switch into the workspace, given all answers."""
    for c in range(b.switch.shape[0]):
        b.switch[c] = 0.0
    for i in range(b.n_particles):
        h, weight = b.user[row, i], b.weight[row, i]
        for c in range(b.switch.shape[0]):
            b.switch[c] += weight * b.odds[row, h, c]


@kernel
def thin_out(b, row, step):
    """Reduce P + K particles to P: the heavy ones stay as they are, a fair draw of the light ones gets `cut`.

    The weights must sum to 1, and do afterwards.
    """
    n = b.n_particles
    both = n + b.switch.shape[0]
    cut, heavy = 1.0 / n, -1
    while True:  # the cut falls until the number of heavier particles no longer changes
        light, found = 0.0, 0
        for i in range(both):
            if b.weight[row, i] >= cut:
                found += 1
            else:
                light += b.weight[row, i]
        if found == heavy or found >= n:
            break
        heavy, cut = found, light / (n - found)
    left = cut * uniform(b.key[row], step, THIN, 0)
    for i in range(both):
        if b.weight[row, i] < cut:
            left -= b.weight[row, i]
            if left < 0.0 and cut > 0.0:
                left += cut
                b.weight[row, i] = cut
            else:
                b.weight[row, i] = 0.0
    _close_ranks(b, row, n, both)


@kernel
def _close_ranks(b, row, n, both):
    """Move the new particles that are kept to places that have become free, and make the weights sum to 1."""
    free, total = 0, 0.0
    for i in range(n, both):
        if b.weight[row, i] > 0.0:
            while free < n and b.weight[row, free] > 0.0:
                free += 1
            if free < n:
                _move(b, row, i, free)
    for i in range(n):
        total += b.weight[row, i]
    for i in range(n):
        b.weight[row, i] /= total


@kernel
def _move(b, row, i, to):
    b.user[row, to] = b.user[row, i]
    b.category[row, to] = b.category[row, i]
    b.weight[row, to] = b.weight[row, i]
    b.boredom[row, to] = b.boredom[row, i]
    b.response[row, to] = b.response[row, i]
    for k in range(b.query.shape[0]):
        b.intent[row, k, to] = b.intent[row, k, i]
        b.page_intent[row, k, to] = b.page_intent[row, k, i]
