"""Answers as the page builder reads them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgerec_gym.answers import (
    CLICK,
    N_EXPOSURE_ACTIONS,
    N_PAGE_VIEW_ACTIONS,
    PAGE_VIEW,
    RESPONSE_SIZE,
)
from edgerec_gym.errors import InputError
from edgerec_gym.protocol.answers import responses_of
from edgerec_gym.protocol.coding import LEVELS, from_levels
from edgerec_gym.protocol.messages import Answer


def answer(exposure: bytes, page_view: bytes = b"") -> Answer:
    return Answer(3, 0, 0, -1, exposure, page_view)


@given(st.data(), st.integers(0, 3))
def test_answers_become_rows_of_the_feed(data: st.DataObject, n_responses: int) -> None:
    levels = st.integers(0, LEVELS)

    def drawn(count: int) -> bytes:
        return bytes(data.draw(arrays(np.uint8, count, elements=levels)))

    clicks = data.draw(st.lists(st.booleans(), max_size=5))
    answers = [
        answer(drawn(N_EXPOSURE_ACTIONS + n_responses), drawn(N_PAGE_VIEW_ACTIONS) if clicked else b"")
        for clicked in clicks
    ]
    rows = responses_of(answers, n_responses)
    assert rows.shape == (len(answers), RESPONSE_SIZE + n_responses) and rows.dtype == np.float32
    for row, told, clicked in zip(rows, answers, clicks, strict=True):
        exposure = np.concatenate([row[:N_EXPOSURE_ACTIONS], row[RESPONSE_SIZE:]])
        assert np.array_equal(exposure, from_levels(told.exposure))
        page_view = row[PAGE_VIEW : PAGE_VIEW + N_PAGE_VIEW_ACTIONS]
        assert row[CLICK] == clicked
        assert np.array_equal(page_view, from_levels(told.page_view) if clicked else np.zeros(11, np.float32))
        assert np.count_nonzero(row) <= N_EXPOSURE_ACTIONS + n_responses + N_PAGE_VIEW_ACTIONS + 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (answer(bytes(N_EXPOSURE_ACTIONS - 1)), "exposure actions"),
        (answer(bytes(N_EXPOSURE_ACTIONS), bytes(3)), "page-view actions"),
        (answer(bytes([LEVELS + 1] * N_EXPOSURE_ACTIONS)), "level"),
    ],
)
def test_answers_of_another_feed_are_refused(wrong: Answer, message: str) -> None:
    right = answer(bytes(N_EXPOSURE_ACTIONS))
    with pytest.raises(InputError, match=message):
        responses_of([right, wrong], 0)
    # Two wrong lengths that add up to a right one are wrong as well.
    with pytest.raises(InputError, match="exposure actions"):
        responses_of([answer(bytes(N_EXPOSURE_ACTIONS - 1)), answer(bytes(N_EXPOSURE_ACTIONS + 1))], 0)
