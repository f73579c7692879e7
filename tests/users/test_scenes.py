"""The presets for latency budgets: their worlds, and that old presets stay as they were."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from edgerec_gym.config import PRESETS, SyntheticUserConfig, preset
from edgerec_gym.drawing.screen import _answer
from edgerec_gym.evaluation.play import play
from edgerec_gym.logs.collect import collect
from edgerec_gym.logs.store import LogReader
from edgerec_gym.scenario import SHIPPED, Scenario
from edgerec_gym.users.synthetic import SyntheticUsers
from edgerec_gym.users.world import make_world

BUDGETS = {"short-video": 20.0, "live": 30.0, "food": 50.0}
OLD = ("default", "lite", "default-v2", "lite-v2")


@cache
def unshipped(name: str) -> Scenario:
    """The preset with its synthetic users alone."""
    feed, users = preset(name)
    return Scenario(name, feed, SyntheticUsers(users, feed).world.catalog, users)


def test_every_scene_has_its_budget_and_no_other_preset_has_one() -> None:
    assert {name: preset(name)[0].latency_budget_ms for name in PRESETS} == dict.fromkeys(OLD) | BUDGETS


@pytest.mark.parametrize("name", BUDGETS)
def test_configs_survive_a_round_trip(name: str) -> None:
    for config in preset(name):
        assert type(config).from_dict(config.to_dict()) == config


@pytest.mark.parametrize("name", OLD)
def test_old_files_lack_the_new_fields(name: str) -> None:
    feed, users = preset(name)
    assert not {"dwell_scale", "latency_budget_ms"} & feed.to_dict().keys()
    assert not {"price", "freshness"} & users.to_dict().keys()


@pytest.mark.parametrize("name", ["lite", "lite-v2", *(name for name in BUDGETS if name in SHIPPED)])
def test_the_world_is_that_of_the_shipped_catalogue(name: str) -> None:
    """Bit for bit, so learned users know the items that synthetic users answer."""
    shipped = Scenario.load(name)
    feed, users = preset(name)
    assert shipped.synthetic == users
    assert shipped.config == feed.replace(item_columns=shipped.config.item_columns)
    world = SyntheticUsers(users, feed).world
    for part in ("embeddings", "scalars", "card_type", "category", "names"):
        assert np.array_equal(getattr(world.catalog, part), getattr(shipped.catalog, part))


@pytest.mark.parametrize(("effect", "column", "sign"), [("price", 0, -1), ("freshness", 3, 1)])
def test_price_and_freshness_are_part_of_attractiveness(effect: str, column: int, sign: int) -> None:
    """They move it in proportion, and the cloud's popularity by half of that; all else stays as it is."""
    feed, _ = preset("food")
    plain = SyntheticUserConfig(n_items=400, n_categories=5, n_users=20)
    without, with_it = make_world(plain, feed), make_world(plain.replace(**{effect: 2.0}), feed)
    level = without.catalog.scalars[:, column].astype(np.float64)
    moved = 2.0 * sign * (level - 0.5)
    np.testing.assert_allclose(with_it.attractiveness - without.attractiveness, moved, atol=1e-5)
    popularity = with_it.catalog.scalars[:, 1] - without.catalog.scalars[:, 1]
    np.testing.assert_allclose(popularity, 0.5 * moved, atol=1e-5)
    for part in ("factors", "quality", "category", "taste", "estimate", "profile", "patience"):
        assert np.array_equal(getattr(with_it, part), getattr(without, part))
    others = [k for k in range(4) if k != 1]
    assert np.array_equal(with_it.catalog.scalars[:, others], without.catalog.scalars[:, others])


@pytest.mark.parametrize("name", BUDGETS)
def test_sessions_are_plausible(name: str) -> None:
    """Click rates, lengths and purchases as in docs/results/scenes.md, with a margin for 300 sessions."""
    scenario = unshipped(name)
    told = play(_Keep(), env_id="rerank", scenario=scenario, users="synthetic", sessions=300, seed=0)
    length = told["exposures"].mean()
    rate = told["clicks"].sum() / told["exposures"].sum()
    bought = told["purchases"].sum() / told["clicks"].sum()
    low, high = {"short-video": (0.04, 0.08), "live": (0.06, 0.12), "food": (0.06, 0.11)}[name]
    assert low < rate < high
    assert 15 < length < 0.6 * scenario.config.max_slots
    assert bought < 0.1
    if name == "food":
        assert bought > 0.02


class _Keep:
    """The cloud's order."""

    name = "keep"

    def reset(self, mask: np.ndarray) -> None:
        """Do nothing."""

    def act(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        """Return (B,) int64."""
        return observation["action_mask"].argmax(axis=1)


def test_a_dwell_scale_stretches_the_log_and_the_screen(tmp_path: Path) -> None:
    """Buckets are what users answer; the scale tells how many seconds they are."""
    feed, _ = preset("short-video")
    assert feed.dwell_scale == 8
    collect(tmp_path, preset_name="short-video", sessions=3, seed=0, randomise=())
    reader = LogReader(tmp_path)
    rows = [row for batch in reader.batches() for row in batch.to_pylist()]
    quick, after = next(
        (one, other)
        for one, other in pairwise(rows)
        if one["session"] == other["session"] and one["answered"] and not one["click"]
        and round(7 * one["exposure_actions"][0]) == 3
    )  # fmt: skip
    assert after["time"] - quick["time"] == pytest.approx(8 * 2.8, abs=1e-3)
    response = np.zeros(21, np.float32)
    response[0] = 3 / 7
    assert _answer(response, feed).dwell_seconds == "16-32 s"
    assert _answer(response, feed.replace(dwell_scale=1.0)).dwell_seconds == "2-4 s"
