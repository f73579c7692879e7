"""Random play of all ids with both kinds of users; test_checked.py runs it with EDGEREC_CHECK=1."""

from __future__ import annotations

from typing import NamedTuple

import gymnasium as gym
import numpy as np
from actions import random_action

import edgerec_gym  # noqa: F401  (registers the ids)
from edgerec_gym.compiled.arrays import AddressTable, Int32Vector, move, reader
from edgerec_gym.compiled.jit import CHECKED, entry_point
from edgerec_gym.registration import IDS


class Counts(NamedTuple):
    """Three numbers."""

    values: Int32Vector


read_counts = reader(Counts)


@entry_point
def get(address, k):
    return read_counts(address).values[k]


@entry_point
def put(address, k):
    read_counts(address).values[k] = 1


@entry_point
def shift(address, to, count):
    move(read_counts(address).values, to, 0, count)


def refused(kernel, *arguments) -> bool:
    try:
        kernel(*arguments)
    except IndexError:
        return True
    return False


def main() -> None:
    """Show that indices are checked, then play."""
    assert CHECKED
    table = AddressTable(Counts(np.zeros(3, np.int32)))
    for k in (3, -1, 1 << 40):
        assert refused(get, table.address, k) and refused(put, table.address, k)
    assert refused(shift, table.address, 1, 3) and not refused(shift, table.address, 1, 2)
    assert not refused(get, table.address, 2)
    for env_id in IDS:
        for users in ("synthetic", "learned"):
            env = gym.make_vec(env_id, num_envs=4, scenario="lite", users=users)
            rng = np.random.default_rng(0)
            observation, _ = env.reset(seed=0)
            for _ in range(80):
                observation, *_ = env.step(random_action(env, observation, rng))
    print("played")


if __name__ == "__main__":
    main()
