"""Schedules of faults, drawn by hypothesis."""

from __future__ import annotations

from hypothesis import strategies as st

from edgerec_gym.faults.schedule import (
    DIRECTIONS,
    CutAtByte,
    CutAtTime,
    Duplicate,
    Refusal,
    Reorder,
    Schedule,
)


def _seconds(most: float) -> st.SearchStrategy[float]:
    return st.integers(0, int(most * 1000)).map(lambda ms: ms / 1000)


def faults(most_bytes: int = 1500, messages: int = 20) -> st.SearchStrategy:
    """One fault of any kind, early in a session."""
    direction = st.sampled_from(DIRECTIONS)
    message = st.integers(0, messages)
    return st.one_of(
        st.builds(CutAtByte, direction, st.integers(0, most_bytes)),
        st.builds(CutAtTime, _seconds(0.1)),
        st.builds(Refusal, _seconds(0.1), _seconds(0.05)),
        st.builds(Duplicate, direction, message, st.integers(1, 3)),
        st.builds(Reorder, direction, message, st.integers(1, 3)),
    )


def schedules(most_faults: int = 6) -> st.SearchStrategy[Schedule]:
    """Schedules of small lags, so that a session takes milliseconds."""
    return st.builds(
        Schedule,
        seed=st.integers(0, 2**32 - 1),
        up=_seconds(0.004),
        down=_seconds(0.004),
        jitter=_seconds(0.004),
        bytes_per_second=st.sampled_from([0.0, 200_000.0]),
        faults=st.lists(faults(), max_size=most_faults).map(tuple),
        hold=st.just(0.01),
    )
