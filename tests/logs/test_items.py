"""The item table: what it learns from a log, what it must not see, and where it goes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from command_line import fails_with, run_well
from small_log import catalog, columns, write_log, writer

from edgerec_gym.agents.find_policy import find_policy
from edgerec_gym.agents.perception.live_interest import LiveInterest
from edgerec_gym.cloud.item_table import ITEM_TABLE, ItemTable
from edgerec_gym.config import FeedConfig, preset
from edgerec_gym.env import EdgeFeedEnv
from edgerec_gym.errors import InputError
from edgerec_gym.logs.collect import collect
from edgerec_gym.logs.item_statistics import LIFTS, co_click_vectors, item_effects, learn_items
from edgerec_gym.logs.item_statistics import _read as read_answers
from edgerec_gym.logs.sessions import LoggedSessions
from edgerec_gym.logs.store import LogReader
from edgerec_gym.scenario import Scenario
from edgerec_gym.users.world import make_world

N = 60  # items


def outcomes(binary: bool, exposures: np.ndarray, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Items with known effects; the better ones are shown at better places."""
    rng = np.random.default_rng(seed)
    effect = rng.normal(0, 1, N)
    item = np.repeat(np.arange(N), exposures)
    place = rng.normal(0, 1, len(item)) + effect[item]
    logit = -1.5 + 1.0 * place + effect[item]
    if binary:
        outcome = (rng.random(len(item)) < 1 / (1 + np.exp(-logit))).astype(float)
    else:
        outcome = logit + rng.normal(0, 1, len(item))
    return item, outcome, np.column_stack([np.ones(len(item)), place]).astype(np.float32), effect


@pytest.mark.parametrize("binary", [True, False])
def test_effects_are_found_behind_the_place(binary: bool) -> None:
    item, outcome, covariates, effect = outcomes(binary, np.full(N, 400))
    about, category = np.ones((N, 1)), np.zeros(N, int)
    found = item_effects(item, outcome, covariates, about, category, binary=binary)
    assert abs(found[item].mean()) < 1e-9
    assert np.abs(found - (effect - effect[item].mean())).mean() < 0.2
    assert np.polyfit(effect, found, 1)[0] == pytest.approx(1, abs=0.15)  # a raw rate has 2 and more


@pytest.mark.parametrize("binary", [True, False])
def test_an_item_without_exposures_falls_back_on_its_kind(binary: bool) -> None:
    exposures = np.full(N, 400)
    exposures[:10] = 0
    item, outcome, covariates, effect = outcomes(binary, exposures)
    category = (effect > 0).astype(int)
    told = np.random.default_rng(1).normal(0, 1, N)
    found = item_effects(
        item, outcome, covariates, np.column_stack([np.ones(N), told]), category, binary=binary
    )
    cold = found[:10]
    for kind in (0, 1):
        of_kind = category[10:] == kind
        # All items of a kind without exposures have the same mean, apart from what `told` says by chance.
        assert cold[category[:10] == kind].mean() == pytest.approx(found[10:][of_kind].mean(), abs=0.35)
    assert cold[category[:10] == 1].min() > cold[category[:10] == 0].max()


def test_rare_clicks_and_large_effects_converge() -> None:
    """Full steps of Newton's method diverge here."""
    rng = np.random.default_rng(0)
    effect = rng.normal(0, 3, 400)
    item = np.repeat(np.arange(400), rng.integers(1, 60, 400))
    outcome = (rng.random(len(item)) < 1 / (1 + np.exp(6 - effect[item]))).astype(float)
    about = np.column_stack([np.ones(400), effect + rng.normal(0, 0.1, 400)])
    covariates = np.ones((len(item), 1), np.float32)
    found = item_effects(item, outcome, covariates, about, np.zeros(400, int), binary=True)
    assert np.corrcoef(found, effect)[0, 1] > 0.99 and np.abs(found).max() < 20


def test_few_exposures_are_shrunk() -> None:
    exposures = np.tile([3, 3000], N // 2)
    item, outcome, covariates, effect = outcomes(True, exposures)
    found = item_effects(item, outcome, covariates, np.ones((N, 1)), np.zeros(N, int), binary=True)
    few, many = np.polyfit(effect[::2], found[::2], 1)[0], np.polyfit(effect[1::2], found[1::2], 1)[0]
    assert few < 0.6 * many
    assert found[1::2].std() == pytest.approx(effect[1::2].std(), rel=0.15)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of the lite preset with its item table."""
    folder = tmp_path_factory.mktemp("log")
    collect(folder, preset_name="lite", sessions=600, seed=5)
    run_well("items", str(folder), "--folds", "3")
    return folder


def test_a_log_with_a_table_is_still_the_log(log: Path) -> None:
    assert collect(log, preset_name="lite", sessions=600, seed=5)["sessions"] == 600


def test_lifts_tell_what_the_cloud_does_not(log: Path) -> None:
    reader = LogReader(log)
    feed, users = preset("lite")
    world = make_world(users, FeedConfig())
    assert feed.item_columns == () and reader.config.item_columns == (*LIFTS, "exposures", "page_views")
    known = np.expm1(reader.catalog.columns[:, 3] * 12) > 50

    def unexplained(*told: np.ndarray) -> float:
        told_of = np.column_stack([np.ones(known.sum()), *(values[known] for values in told)])
        fitted = told_of @ np.linalg.lstsq(told_of, world.attractiveness[known], rcond=None)[0]
        return float(np.var(world.attractiveness[known] - fitted))

    scalars, columns = world.catalog.scalars.T, reader.catalog.columns.T
    assert unexplained(*scalars, *columns[:2]) < 0.6 * unexplained(*scalars)


def test_a_session_is_not_told_of_itself(tmp_path: Path) -> None:
    """Other clicks in the sessions of a fold leave what that fold is told as it is."""
    folder = write_log(tmp_path / "a")
    first = learn_items(LogReader(folder), folds=2)
    changed = columns([4, 9], first=5, seed=1)
    changed["click"] = [None if c is None else not c for c in changed["click"]]
    changed["page_view_actions"] = [np.ones(11) if c else None for c in changed["click"]]
    for name in changed:  # only session 6, which is in fold 0
        changed[name] = changed[name][4:]
    original = columns([4, 9], first=5, seed=1)
    w = writer(tmp_path / "b")
    w.write(columns([3, 1, 7, 5, 6]))
    w.write({name: values[:4] for name, values in original.items()})
    w.write(changed)
    w.finish()
    second = learn_items(LogReader(tmp_path / "b"), folds=2)
    np.testing.assert_array_equal(first.folds[:, 0], second.folds[:, 0])
    assert not np.array_equal(first.columns, second.columns)


def test_sessions_see_their_own_fold(log: Path) -> None:
    reader = LogReader(log)
    table = next(reader.batches())
    sessions = LoggedSessions.from_table(table, reader.config, reader.catalog)
    rows = np.arange(len(sessions.item))
    d, item = reader.config.embedding_size, sessions.item
    fold = table["session"].to_numpy() % 3
    cards = sessions.cards(rows)
    assert cards.shape[1] == reader.config.n_item_features + reader.config.n_types
    np.testing.assert_array_equal(cards[:, d + 4 : d + 9], reader.catalog.folds[item, fold])
    assert not np.array_equal(reader.catalog.folds[item, fold], reader.catalog.columns[item])


def with_table(
    scenario: Scenario, seed: int = 0, names: tuple[str, ...] = ("click_lift", "exposures")
) -> Scenario:
    n = len(scenario.catalog)
    values = np.random.default_rng(seed).uniform(-1, 1, (n, len(names))).astype(np.float32)
    config = scenario.config.replace(item_columns=names)
    return replace(scenario, config=config, catalog=scenario.catalog.with_table(values), path=None)


@pytest.mark.parametrize("track", ["joint", "rerank", "mix", "request"])
def test_the_columns_travel_with_the_page(lite: Scenario, track: str) -> None:
    scenario = with_table(lite)
    env = EdgeFeedEnv(scenario=scenario, users="synthetic", track=track)
    plain = EdgeFeedEnv(scenario=lite, users="synthetic", track=track)
    observation, _ = env.reset(seed=3)
    before, _ = plain.reset(seed=3)
    d, features = 16, 22
    assert env.observation_space.contains(observation)
    for _ in range(40):
        items = env.batch.arrays.pool_items[0]
        left = items >= 0
        np.testing.assert_array_equal(
            observation["pool"][left, d + 4 : features], scenario.catalog.columns[items[left]]
        )
        assert not observation["pool"][~left].any()
        for key in ("pool", "cards", "exposures", "page_views", "screen"):
            rest = np.delete(observation[key], [d + 4, d + 5], axis=1)
            np.testing.assert_array_equal(rest, before[key], err_msg=key)  # all else is as without
        observation, *_, end, cut, _ = env.step(observation["action_mask"].argmax())
        before, *_ = plain.step(before["action_mask"].argmax())
        if end or cut:
            break
    assert observation["exposures"][:, d + 4 : features].any()


def test_a_scenario_keeps_its_table(lite: Scenario, tmp_path: Path) -> None:
    scenario = with_table(lite)
    scenario.catalog.save(tmp_path / "catalog.parquet", scenario.config.item_columns)
    loaded = type(lite.catalog).load(tmp_path / "catalog.parquet", 16, scenario.config.item_columns)
    np.testing.assert_array_equal(loaded.columns, scenario.catalog.columns)
    with pytest.raises(InputError, match="missing column 'item.x'"):
        type(lite.catalog).load(tmp_path / "catalog.parquet", 16, ("click_lift", "x"))


def test_columns_belong_to_the_scenario(lite: Scenario) -> None:
    with pytest.raises(InputError, match="item_columns names 1 columns, the catalogue has 0"):
        EdgeFeedEnv(scenario=lite, users="synthetic", item_columns=("click_lift",))
    with pytest.raises(InputError, match="different names"):
        lite.config.replace(item_columns=("a", "a"))


def test_policies_know_where_columns_begin(lite: Scenario) -> None:
    scenario = with_table(lite)
    observation, _ = EdgeFeedEnv(scenario=scenario, users="synthetic").reset(seed=0)
    plain, _ = EdgeFeedEnv(scenario=lite, users="synthetic").reset(seed=0)
    batch = {key: values[None] for key, values in observation.items()}
    for name in ("greedy", "device-greedy"):
        policy = find_policy(name, "EdgeFeed-v0", scenario, "synthetic")
        expected = find_policy(name, "EdgeFeed-v0", lite, "synthetic").scores(
            {key: values[None] for key, values in plain.items()}
        )
        np.testing.assert_allclose(policy.scores(batch), expected)
    with pytest.raises(InputError, match="another number of item columns"):
        LiveInterest().scores(batch)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frame: frame.drop("fold"), "the columns must be item, fold"),
        (lambda frame: frame.head(-1), "it needs as many for each of 12 items"),
        (lambda frame: frame.reverse(), "must be sorted by item and fold"),
        (lambda frame: frame.with_columns(click_lift=pl.lit(1.5)), "click_lift.* is 1.5; allowed: -1 to 1"),
        (lambda frame: frame.with_columns(click_lift=pl.lit(None, pl.Float32)), "is nan; allowed"),
        (lambda frame: frame.with_columns(click_lift=pl.lit("x")), "and numbers"),
        (lambda frame: frame.rename({"click_lift": "x" * 5000}), None),
    ],
)
def test_broken_tables_are_named(tmp_path: Path, change, message: str | None) -> None:
    folder = write_log(tmp_path / "log")
    learn_items(LogReader(folder), folds=2).save(folder / ITEM_TABLE)
    n = len(catalog())
    assert ItemTable.load(folder / ITEM_TABLE, n).folds.shape == (n, 2, 5)
    change(pl.read_parquet(folder / ITEM_TABLE)).write_parquet(folder / ITEM_TABLE)
    if message is None:
        LogReader(folder)
        return
    with pytest.raises(InputError, match=f"item_table.parquet.*{message}"):
        LogReader(folder)


def test_co_clicks_find_what_is_clicked_together(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    folder = write_log(tmp_path / "log")
    early, _ = read_answers(LogReader(folder), None)
    assert early is not None
    group = rng.integers(0, 2, 400)
    item = np.column_stack([2 * rng.integers(0, 5, 400) + group for _ in range(3)]).ravel()
    answers = replace(
        early.select(np.zeros(1200, int)),
        session=np.repeat(np.arange(400), 3),
        item=item,
        click=np.ones(1200),
    )
    vectors = co_click_vectors(answers, 12, 2)
    np.testing.assert_array_equal(vectors, co_click_vectors(answers, 12, 2))
    unit = vectors[:10] / np.linalg.norm(vectors[:10], axis=1, keepdims=True)
    cosine = unit @ unit.T
    assert cosine[::2, ::2].min() > 0.9 and cosine[::2, 1::2].max() < 0.1
    assert not vectors[10:].any()  # never clicked


def test_the_command_says_what_is_wrong(log: Path, tmp_path: Path) -> None:
    fails_with("logs.json", "items", tmp_path)
    fails_with("folds = 1 must be 0, or 2 to 50", "items", log, "--folds", 1)
    fails_with("co_click_size = 500", "items", log, "--co-click-size", 500)


def test_item_greedy_adds_the_lifts(lite: Scenario) -> None:
    scenario = with_table(lite, names=("exposures", "satisfaction_lift", "click_lift"))
    observation, _ = EdgeFeedEnv(scenario=scenario, users="synthetic").reset(seed=0)
    batch = {key: values[None] for key, values in observation.items()}
    found = find_policy("item-greedy", "EdgeFeed-v0", scenario, "synthetic").scores(batch)
    plain = find_policy("device-greedy", "EdgeFeed-v0", scenario, "synthetic").scores(batch)
    lifts = batch["pool"][:, :, 21:23] * 4
    np.testing.assert_allclose(found - plain, lifts[..., 1] + 0.1 * lifts[..., 0], rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match="lacks click_lift, satisfaction_lift"):
        find_policy("item-greedy", "EdgeFeed-v0", lite, "synthetic")
