"""What goes wrong on a network, and when.

Up is from the phone to the cloud, down the other way. Messages and bytes are counted by direction from 0 over
all connections, so that every fault happens once at most, and a network heals in the end.
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import msgspec
import numpy as np

from edgerec_gym.errors import InputError

Direction = Literal["up", "down"]
DIRECTIONS: tuple[Direction, ...] = ("up", "down")


class CutAtByte(msgspec.Struct, frozen=True, tag=True):
    """The connection ends after so many bytes in a direction, also within a message."""

    direction: Direction
    byte: int


class CutAtTime(msgspec.Struct, frozen=True, tag=True):
    """All connections end at a time, seconds since the start; what is on its way is lost."""

    seconds: float


class Refusal(msgspec.Struct, frozen=True, tag=True):
    """No connection is taken for a while, from a time in seconds since the start."""

    seconds: float
    lasts: float


class Duplicate(msgspec.Struct, frozen=True, tag=True):
    """A message arrives more than once, `copies` times more."""

    direction: Direction
    message: int
    copies: int = 1


class Reorder(msgspec.Struct, frozen=True, tag=True):
    """A message arrives behind the next ones, `behind` of them; if they do not come, a little later."""

    direction: Direction
    message: int
    behind: int = 1


Fault: TypeAlias = CutAtByte | CutAtTime | Refusal | Duplicate | Reorder


class Schedule(msgspec.Struct, frozen=True):
    """A network's faults. It prints as the expression that makes it.

    Attributes:
        seed: of the jitter.
        up, down: lag in seconds, by direction.
        jitter: seconds; the most that is added to a lag, drawn for each piece. Nothing overtakes by it.
        bytes_per_second: in each direction of a connection; 0 for no limit.
        faults: what happens once.
        hold: seconds for which a message waits for others that it should arrive behind.

    Raises:
        InputError: a number is negative or not finite.
    """

    seed: int = 0
    up: float = 0.0
    down: float = 0.0
    jitter: float = 0.0
    bytes_per_second: float = 0.0
    faults: tuple[Fault, ...] = ()
    hold: float = 0.02

    def __post_init__(self) -> None:
        for part in (self, *self.faults):
            for name in part.__struct_fields__:
                value = getattr(part, name)
                if isinstance(value, int | float) and not 0 <= value < math.inf:
                    raise InputError(f"{name} = {value} of {type(part).__name__}; allowed: 0 or more")
                if name == "direction" and value not in DIRECTIONS:
                    raise InputError(f"direction = {value!r}; allowed: {', '.join(DIRECTIONS)}")


def draw(
    seed: int, faults: int = 6, messages: int = 20, most_bytes: int = 1500, seconds: float = 0.15
) -> Schedule:
    """Draw a schedule: the same one for the same arguments.

    Args:
        seed: of the schedule.
        faults: the most faults.
        messages: faults concern the first so many messages of a direction.
        most_bytes: cuts happen within the first so many bytes of a direction.
        seconds: faults by time happen until then.
    """
    generator = np.random.default_rng(seed)

    def one() -> Fault:
        direction = DIRECTIONS[generator.integers(2)]
        kind = generator.integers(5)
        if kind == 0:
            return CutAtByte(direction, int(generator.integers(most_bytes)))
        if kind == 1:
            return CutAtTime(round(float(generator.uniform(0, seconds)), 4))
        if kind == 2:
            return Refusal(*(round(float(number), 4) for number in generator.uniform(0, seconds, 2)))
        if kind == 3:
            return Duplicate(direction, int(generator.integers(messages)), int(generator.integers(1, 4)))
        return Reorder(direction, int(generator.integers(messages)), int(generator.integers(1, 4)))

    up, down, jitter = (round(float(number), 4) for number in generator.uniform(0, 0.004, 3))
    return Schedule(
        seed, up, down, jitter, faults=tuple(one() for _ in range(generator.integers(faults + 1)))
    )
