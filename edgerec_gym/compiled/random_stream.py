"""Counter-based random numbers: every draw is a pure function of (episode key, slot, purpose, item).

There is no state to advance, so a draw does not depend on how many draws came before it, and two
policies with the same seed get the same draws wherever they make the same choice. The mixer is the
finaliser of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014), applied once per counter word.
"""

from __future__ import annotations

import numpy as np

from edgerec_gym.compiled.jit import kernel

SPLITS = ("log", "train", "eval")  # never share an episode key
CLI_SEED_STRIDE = 2**20  # with seed k, the CLI seeds its rows from k * 2^20

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_INVERSE = 1.0 / 9007199254740992.0  # 2^-53


@kernel
def mix(z):
    """Scramble one 64-bit word (bijective)."""
    z = (z ^ (z >> np.uint64(30))) * _MIX_1
    z = (z ^ (z >> np.uint64(27))) * _MIX_2
    return z ^ (z >> np.uint64(31))


@kernel
def fold(key, word):
    """Absorb one counter word into a key; returns uint64."""
    return mix(np.uint64(key) + _GOLDEN * (np.uint64(word) + np.uint64(1)))


@kernel
def bits(key, slot, purpose, item):
    """Draw 64 random bits for (episode key, slot, purpose, item)."""
    return fold(
        key, (np.uint64(slot) << np.uint64(32)) ^ (np.uint64(purpose) << np.uint64(56)) ^ np.uint64(item)
    )


@kernel
def uniform(key, slot, purpose, item):
    """Draw from [0, 1) for (episode key, slot, purpose, item)."""
    return float(bits(key, slot, purpose, item) >> np.uint64(11)) * _INVERSE


@kernel
def below(n, key, slot, purpose, item):
    """Draw a whole number from 0..n-1, n < 2^31."""
    return np.int64(((bits(key, slot, purpose, item) >> np.uint64(32)) * np.uint64(n)) >> np.uint64(32))


@kernel
def fast_normal(key, slot, purpose, item):
    """Draw an approximate standard normal (sum of four 16-bit uniforms) from one word."""
    z = bits(key, slot, purpose, item)
    mask = np.uint64(0xFFFF)
    total = (z & mask) + ((z >> np.uint64(16)) & mask) + ((z >> np.uint64(32)) & mask) + (z >> np.uint64(48))
    return (float(np.int64(total)) / 65536.0 - 2.0) * 1.7320508075688772


@kernel
def episode_key(split, seed, episode):
    """Return the key of one episode: a hash of (split, seed + row, episodes since seeding)."""
    return fold(fold(fold(_GOLDEN, split), seed), episode)


# Purposes of the draws; each has one number, which is never reused.
(
    PAGE_GROUP,
    PAGE_OFFSET,
    PAGE_NOISE,
    CARD_PICK,
    CARD_NOISE,
    USER_PICK,
    USER_DAY,
    USER_HOUR,
    INTENT_PICK,
    INTENT_NOISE,
    _RETIRED_1,  # draws that are no longer made; the others keep their numbers
    INTENT_SWITCH,
    DWELL,
    _RETIRED_2,
    EXPOSURE_COUNT,
    SCROLL_SPEED,
    SCROLL_DURATION,
    SCROLL_COUNT,
    DELETE,
    DELETE_REASON,
    CLICK_DRAW,
    SATISFIED,
    PAGE_VIEW_DURATION,
    BUY_DRAW,
    PAGE_VIEW_ACTION,
    LEAVE_DRAW,
    POLICY_DRAW,
    POLICY_ITEM,
    POLICY_SESSION,
    VISIT_PICK,
) = range(30)
