"""Waiting for a better moment of a page: by hand, at a rate, against a price alone, replayed from a log."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgerec_gym.agents.data.decisions import DecisionStream
from edgerec_gym.agents.requests.planner import RequestPlanner, price_of
from edgerec_gym.agents.requests.scores import UpliftScore
from edgerec_gym.agents.requests.train import UpliftConfig, build
from edgerec_gym.agents.requests.waiting import WaitingScore, plan_waiting, replay_pages
from edgerec_gym.errors import InputError
from edgerec_gym.evaluation.play import play
from edgerec_gym.logs.collect import collect
from edgerec_gym.logs.store import LogReader


def random_pages(seed: int, pages: int = 1500, ages: int = 6) -> np.ndarray:
    """Estimates that persist, wander and grow with the age; some pages end early."""
    rng = np.random.default_rng(seed)
    estimates = rng.normal(size=(pages, 1)) + np.cumsum(0.5 * rng.normal(size=(pages, ages)), axis=1)
    estimates += 0.3 * np.arange(ages)
    estimates[np.arange(ages) > rng.integers(ages, size=(pages, 1))] = np.nan
    return estimates


def fired(pages: np.ndarray, scores: np.ndarray, price: float) -> np.ndarray:
    """Estimates at the first moment of each page whose score exceeds the price."""
    above = np.isfinite(pages) & (np.where(np.isfinite(scores), scores, -np.inf) > price)
    rows = np.flatnonzero(above.any(axis=1))
    return pages[rows, above[rows].argmax(axis=1)]


def test_two_ages_by_hand() -> None:
    # What comes later is worth (0.5 - 0.1) / 2 on average at a price of 0.1, which 0.2 - 0.1 does not reach.
    pages = np.array([[0.2, 0.5], [0.2, -0.5]] * 50)
    waiting = plan_waiting(pages, 0.25)
    assert 0.2 < waiting.price + 0.5 * (0.5 - waiting.price)
    now = waiting.over_later(np.array([0.2, 0.5, -0.5]), np.array([0, 1, 1]))
    assert (now > waiting.price).tolist() == [False, True, False]


def patient(pages: np.ndarray, rate: float) -> np.ndarray:
    """Estimates at the moments that waiting requests at."""
    waiting = plan_waiting(pages, rate)
    ages = np.broadcast_to(np.arange(pages.shape[1]), pages.shape)
    scores = waiting.over_later(pages.ravel(), ages.ravel()).reshape(pages.shape)
    return fired(pages, scores, waiting.price)


@given(rate=st.floats(0.01, 0.2), seed=st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_waiting_requests_at_the_rate(rate: float, seed: int) -> None:
    pages = random_pages(seed)
    assert len(patient(pages, rate)) / np.isfinite(pages).sum() == pytest.approx(rate, abs=0.004)


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.02, 0.08, 0.2])
def test_waiting_finds_better_moments_than_a_price_alone(rate: float) -> None:
    gains = []  # a regression may miss on some pages, so many count
    for seed in range(16):
        pages = random_pages(seed)
        found, prices = patient(pages, rate), np.quantile(pages[np.isfinite(pages)], np.linspace(0, 1, 400))
        # The price alone that asks as often as that.
        hasty = min((fired(pages, pages, price) for price in prices), key=lambda f: abs(len(f) - len(found)))
        gains.append(found.mean() - hasty.mean())
    assert np.mean(gains) > 2 * np.std(gains) / np.sqrt(len(gains))


def test_ends_of_the_budget_and_bad_input() -> None:
    pages = random_pages(0)
    assert plan_waiting(pages, 0.0).price == np.inf
    everything = plan_waiting(pages, 1.0)
    last = np.isfinite(pages).sum(axis=1) - 1
    ages = np.broadcast_to(np.arange(pages.shape[1]), pages.shape)
    net = everything.over_later(pages.ravel(), ages.ravel()).reshape(pages.shape)
    assert (np.nan_to_num(net, nan=-np.inf) > everything.price).any(axis=1).mean() > 0.8 and (last >= 0).all()
    for rate in (-0.1, 1.1, np.nan):
        with pytest.raises(InputError, match="must be a share of the moments"):
            plan_waiting(pages, rate)
    for bad in (np.full((3, 2), np.nan), np.zeros(4)):
        with pytest.raises(InputError, match="rows of estimates, by age"):
            plan_waiting(bad, 0.1)


def test_replayed_pages_of_a_log_and_a_planner_that_waits(tmp_path: Path) -> None:
    collect(tmp_path, preset_name="lite", sessions=120, seed=3, randomise=["request"])
    reader = LogReader(tmp_path)
    stream = DecisionStream(
        reader, None, lambda session: session >= 0, horizon=15, controls=1.0, surrogate=False, seed=0
    )
    network = build("uplift-t", reader.config, UpliftConfig(behaviour=0, hidden=4)).eval()
    pages = replay_pages(network, stream, 100)
    seen = np.isfinite(pages)
    size, latency = reader.config.page_size, reader.config.request_latency
    # A page's ages go up one by one, until the next page is on its way.
    assert seen[:, 0].mean() > 0.99 and not (seen[:, 1:] & ~seen[:, :-1]).any()
    assert seen[:, : size - latency].any(axis=0).all() and not seen[:, size - latency + 1 :].any()
    assert 100 < len(pages) < 100 * reader.config.max_slots / (size - latency)
    waiting = plan_waiting(pages, 0.05)
    score = WaitingScore(UpliftScore(network), waiting, size)
    planner = RequestPlanner("waits", score, waiting.price)
    found = play(
        planner, env_id="EdgeFeedRequest-v0", scenario="lite", users="synthetic", sessions=30, seed=0
    )
    assert found["violations"].sum() == 0
    assert price_of(np.sort(pages[seen]), 0.05) > -np.inf
