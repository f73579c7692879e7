"""Logged visits on offer: pages as logged, by day or from the catalogue, in every environment; their file."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import polars as pl
import pytest
import scipy.stats
from actions import keep_action, random_action
from gymnasium.utils.env_checker import data_equivalence
from safetensors.numpy import load_file, save_file
from small_table import PAGE, Place, table

from edgerec_gym.adapters.sb3 import make_vec_env
from edgerec_gym.cloud.supply import SUPPLY_FILE, Supply
from edgerec_gym.config import CloudConfig
from edgerec_gym.errors import InputError
from edgerec_gym.logs.sessions import LoggedSessions
from edgerec_gym.logs.store import LogReader
from edgerec_gym.logs.visits import sample_visits
from edgerec_gym.registration import make_feeds
from edgerec_gym.scenario import Scenario, _sha256
from edgerec_gym.simulator.fit import fit

HELD_OUT_FROM = 7
SUPPLIES = ["logged", "daily", "catalogue"]
FIT: dict[str, Any] = {"ensemble": 1, "epochs": 1, "hidden": 8, "held_out_from": HELD_OUT_FROM}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Logs of two pages a visit, with video cards among the goods, and users fitted on them."""
    place = Place(tmp_path_factory.mktemp("supply"))
    kind = pl.when(pl.col("sku") % 6 == 0).then(pl.lit("clip")).otherwise(pl.lit("sku"))
    kinds = {"sku": "goods", "clip": "video"}
    place.run(table().with_columns(kind=kind), card_type="kind", card_types=kinds)
    fit(place.out, place.folder / "users", **FIT)
    return place.folder


@pytest.fixture(scope="module")
def scenario(folder: Path) -> Scenario:
    return Scenario.load(folder / "users")


@pytest.fixture(scope="module")
def supply(scenario: Scenario) -> Supply:
    assert scenario.catalog.supply is not None
    return scenario.catalog.supply


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Scenario:
    """Users fitted on one card after another: each a page of one, and half of the visits a single slot."""
    place = Place(tmp_path_factory.mktemp("stream"))
    frame = table().filter(pl.col("rank") < 3)
    later = ((pl.col("rank") > 0) | pl.col("page_id").str.ends_with("-1")).cast(pl.Int64) * 3600
    frame = frame.with_columns(ts=pl.col("ts") + pl.col("rank") + later)
    place.run(frame, list="row number", position=None)
    fit(place.out, place.folder / "users", **FIT)
    return Scenario.load(place.folder / "users")


def pages_of(supply: Supply, page: int) -> slice:
    return slice(supply.first_entry[page], supply.first_entry[page + 1])


def expected_pool(scenario: Scenario, supply: Supply, page: int) -> np.ndarray:
    """The goods of a logged page as the cloud ships them, (n, F)."""
    entries = pages_of(supply, page)
    item, catalog = supply.item[entries], scenario.catalog
    known = supply.known[entries, None]
    cards = np.concatenate([catalog.embeddings[item] * known, supply.values[entries]], axis=1)
    return cards[catalog.card_type[item] == 0]


# What is sampled


def test_the_supply_is_what_the_log_showed(folder, scenario, supply):
    """All 120 visits fit in; the pages and values are those of the log, in its order."""
    reader = LogReader(folder / "logs")
    (rows,) = reader.batches()
    log = LoggedSessions.from_table(rows, reader.config, reader.catalog)
    order = np.lexsort((log.session, log.day, log.day >= HELD_OUT_FROM))
    log = log.select(order)
    assert len(supply.hour) == len(log) == 120 and supply.held_out == (log.day < HELD_OUT_FROM).sum()
    assert np.array_equal(supply.day, log.day) and set(supply.hour) == {12}
    assert set(supply.slots) == {2 * PAGE} == set(log.answered)
    assert np.array_equal(supply.item, log.item) and np.array_equal(supply.known, log.known)
    assert 0 < supply.known.mean() < 1
    assert np.array_equal(supply.features, log.user)
    assert np.array_equal(supply.values, np.concatenate([log.scalars, log.columns], axis=1))
    assert set(np.diff(supply.first_entry)) == {PAGE} and set(np.diff(supply.first_page)) == {2}
    again = sample_visits(reader, HELD_OUT_FROM, 0)
    assert all(np.array_equal(a, b) for a, b in zip(vars(again).values(), vars(supply).values(), strict=True))


def test_a_sample_keeps_whole_visits_of_both_periods(folder, supply, monkeypatch):
    monkeypatch.setattr("edgerec_gym.logs.visits.MOST_VISITS", 10)
    some = sample_visits(LogReader(folder / "logs"), HELD_OUT_FROM, 0)
    assert (len(some.hour), some.held_out) == (20, 10)
    assert (some.day[:10] < HELD_OUT_FROM).all() and (some.day[10:] >= HELD_OUT_FROM).all()
    whole = {supply.item[2 * PAGE * v : 2 * PAGE * (v + 1)].tobytes() for v in range(120)}
    assert all(some.item[2 * PAGE * v : 2 * PAGE * (v + 1)].tobytes() in whole for v in range(20))
    other = sample_visits(LogReader(folder / "logs"), HELD_OUT_FROM, 1)
    assert not np.array_equal(some.item, other.item)
    monkeypatch.setattr("edgerec_gym.logs.visits.MOST_ENTRIES", 5 * 2 * PAGE)
    assert len(sample_visits(LogReader(folder / "logs"), HELD_OUT_FROM, 0).hour) == 10


# What is played


@pytest.mark.parametrize("split", ["log", "train", "eval"])
def test_logged_pages_come_in_their_order_with_their_values(scenario, supply, split):
    env = make_feeds("EdgeFeed-v0", 64, scenario=scenario, split=split)
    observation, _ = env.reset(seed=0)
    visit = env.batch.arrays.visit.copy()
    held_out = visit >= supply.held_out
    assert held_out.all() if split == "eval" else not held_out.any()
    assert len(set(visit)) > 20
    begin = np.where(held_out, supply.first_page[supply.held_out], 0)
    end = np.where(held_out, supply.pages, supply.first_page[supply.held_out])
    shown = np.zeros(64, np.int64)  # pages
    assert np.allclose(observation["user"], supply.features[visit])
    for _ in range(2 * PAGE - 1):
        for row in range(64):
            page = begin[row] + (supply.first_page[visit[row]] - begin[row] + shown[row]) % (
                end[row] - begin[row]
            )
            wanted = expected_pool(scenario, supply, page)
            pool = observation["pool"][row]
            used = int(env.batch.arrays.page_age[row])
            assert np.array_equal(pool[used : len(wanted)], wanted[used:])
            assert not pool[:used].any() and not pool[len(wanted) :].any()
            cards = observation["cards"][row]
            item = supply.item[pages_of(supply, page)]
            assert (cards[:, -1] > 0).sum() == (scenario.catalog.card_type[item] == 1).sum()
        observation, *_, info = env.step(keep_action(env, observation))
        shown += info["page_arrived"]
    assert shown.min() == 1


@pytest.mark.parametrize("split", ["train", "eval"])
def test_the_first_page_of_the_period_follows_its_last(scenario, supply, split):
    """Training never sees a held-out page, however long a session goes on."""
    endless = replace(supply, slots=np.zeros_like(supply.slots))
    catalog = scenario.catalog.with_supply(endless)
    env = make_feeds("EdgeFeed-v0", 8, scenario=replace(scenario, catalog=catalog), split=split)
    env.reset(seed=0)
    first, end = (0, supply.held_out) if split == "train" else (supply.held_out, len(supply.hour))
    arrays = env.batch.arrays
    arrays.visit[:] = end - 1  # the last visit of the period
    observation = env.batch.observation()
    arrived = np.zeros(8, np.int64)
    for _ in range(3 * PAGE):
        observation, *_, info = env.step(keep_action(env, observation))
        arrived += info["page_arrived"]
        at_second = (arrived == 2) & info["page_arrived"]
        for row in np.flatnonzero(at_second):
            wanted = expected_pool(scenario, supply, supply.first_page[first])
            assert np.array_equal(observation["pool"][row][: len(wanted)], wanted)
    assert arrived.min() >= 2


def test_a_session_ends_at_the_length_of_its_visit(scenario, supply):
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 2 * PAGE + 1, len(supply.slots)).astype(np.int32)
    catalog = scenario.catalog.with_supply(replace(supply, slots=lengths))
    env = make_feeds("EdgeFeed-v0", 32, scenario=replace(scenario, catalog=catalog))
    observation, _ = env.reset(seed=0)
    visit, answered, ended = env.batch.arrays.visit.copy(), np.zeros(32, np.int64), np.zeros(32, np.bool_)
    for _ in range(2 * PAGE + scenario.config.lookahead):
        observation, _, terminated, truncated, info = env.step(keep_action(env, observation))
        answered += info["answered"] & ~ended
        assert np.array_equal(terminated[~ended], (answered == lengths[visit])[~ended])
        assert not truncated.any()
        ended |= terminated
        if ended.all():
            break
    assert np.array_equal(answered, lengths[visit])


def test_a_visit_longer_than_max_slots_is_truncated(scenario):
    env = gym.make("EdgeFeed-v0", scenario=scenario, max_slots=4)
    observation, _ = env.reset(seed=0)
    for step in range(4):
        observation, _, terminated, truncated, _ = env.step(keep_action(env, observation))
        assert (terminated, truncated) == (False, step == 3)


def test_daily_pages_have_the_items_of_their_day_as_often_as_it_showed_them(scenario, supply):
    env = make_feeds("EdgeFeed-v0", 3000, scenario=scenario, cloud={"supply": "daily"})
    env.reset(seed=0)
    arrays, kinds = env.batch.arrays, scenario.catalog.card_type
    day_of = np.repeat(supply.day, 2 * PAGE)
    share = np.zeros((supply.day.max() + 1, len(kinds)))
    for day in np.unique(day_of[: supply.held_out * 2 * PAGE]):
        item = supply.item[day_of == day]
        share[day] = np.bincount(item[kinds[item] == 0], minlength=len(kinds))
        share[day] /= share[day].sum()
    day = supply.day[arrays.visit]
    expected = share[day].sum(0)
    first = np.bincount(arrays.pool_items[:, 0], minlength=len(kinds))
    goods = kinds == 0
    assert not first[~goods].any()
    assert scipy.stats.chisquare(first[goods], expected[goods]).pvalue > 1e-4
    for row in range(50):
        pool = arrays.pool_items[row][arrays.pool_items[row] >= 0]
        assert len(set(pool)) == len(pool) and (share[day[row], pool] > 0).all()
        assert len(pool) == scenario.config.pool_size


def test_daily_pages_go_on_when_the_day_is_used_up(scenario, supply):
    """Of a day with three goods and a video each page repeats, with each card once."""
    goods = np.flatnonzero(scenario.catalog.card_type == 0)[:3]
    video = np.flatnonzero(scenario.catalog.card_type == 1)[:1]
    item = np.tile(np.concatenate([video, goods, goods[:1]]).astype(np.int32), supply.pages)
    catalog = scenario.catalog.with_supply(replace(supply, item=item))
    env = gym.make("EdgeFeed-v0", scenario=replace(scenario, catalog=catalog), cloud={"supply": "daily"})
    observation, _ = env.reset(seed=0)
    arrays = env.unwrapped.batch.arrays
    for _ in range(8):
        pool, cards = arrays.pool_items[0], arrays.card_items[0]
        assert set(pool[pool >= 0]) <= set(goods) and (pool >= 0).any()
        assert (cards >= 0).sum() <= 1 and set(cards[cards >= 0]) <= set(video)
        observation, *_ = env.step(keep_action(env, observation))


@pytest.mark.parametrize("supply_name", SUPPLIES)
def test_every_id_plays_every_supply(scenario, env_id, supply_name):
    """Observations stay in their space; the same seed gives the same; copies go on as the original."""
    options = {"scenario": scenario, "cloud": {"supply": supply_name}}
    env, again = gym.make(env_id, **options), gym.make(env_id, **options)
    rng = np.random.default_rng(0)
    observation, info = env.reset(seed=3)
    assert data_equivalence((observation, info), again.reset(seed=3))
    for step in range(40):
        assert env.observation_space.contains(observation)
        if step == 6:  # in the middle of an episode
            again = copy.deepcopy(env)
        elif step == 12:
            again = pickle.loads(pickle.dumps(env))
        action = random_action(env, observation, rng)
        told = env.step(action)
        assert data_equivalence(told, again.step(action))
        observation = told[0]
        if told[2] or told[3]:
            observation, info = env.reset()
            assert data_equivalence((observation, info), again.reset())


@pytest.mark.parametrize("supply_name", SUPPLIES)
def test_views_of_many_feeds_play_every_supply(scenario, env_id, supply_name):
    options = {"scenario": scenario, "cloud": {"supply": supply_name}}
    env = gym.make_vec(env_id, num_envs=5, threads=2, **options)
    single = gym.make(env_id, **options)
    rng = np.random.default_rng(0)
    observation, _ = env.reset(seed=3)
    first, _ = single.reset(seed=3)
    assert all(np.array_equal(observation[key][0], first[key]) for key in first)
    for _ in range(30):
        observation, *_ = env.step(random_action(env, observation, rng))
        assert all(np.isfinite(values).all() for values in observation.values())


@pytest.mark.parametrize("supply_name", SUPPLIES)
def test_the_view_of_stable_baselines3_plays_every_supply(scenario, supply_name):
    env = make_vec_env("EdgeFeedRerank-v0", 3, scenario=scenario, cloud={"supply": supply_name})
    env.reset()
    ends = 0
    for _ in range(15):
        _, rewards, dones, _ = env.step(env.env_method("action_masks")[0].argmax(-1).repeat(3))
        assert np.isfinite(rewards).all()
        ends += dones.sum()
    assert ends == 3


def test_a_request_under_way_arrives_when_the_page_is_used_up(scenario, supply):
    """It is the next logged page, counted as requested; nothing stays on the wire."""
    env = gym.make("EdgeFeedRequest-v0", scenario=scenario)
    for seed in range(5):
        env.reset(seed=seed)
        arrays = env.unwrapped.batch.arrays
        page = supply.first_page[arrays.visit[0]]
        goods = len(expected_pool(scenario, supply, page))
        for slot in range(goods):
            observation, *_, info = env.step(int(slot == goods - 1))
        assert info["page_arrived"] and info["request_sent"] == 1
        assert (arrays.page[0], arrays.page_requested[0], arrays.wire[0]) == (1, 1, 0)
        wanted = expected_pool(scenario, supply, page + 1)
        assert np.array_equal(observation["pool"][: len(wanted)], wanted)
        observation, *_, info = env.step(0)
        assert not info["page_arrived"] or len(wanted) == 1


def test_a_request_skips_the_rest_of_a_logged_page(scenario, supply):
    env = gym.make("EdgeFeedRequest-v0", scenario=scenario, request_latency=1)
    env.reset(seed=1)
    page = supply.first_page[env.unwrapped.batch.arrays.visit[0]]
    observation, *_, info = env.step(1)
    assert info["page_arrived"]
    wanted = expected_pool(scenario, supply, page + 1)
    assert np.array_equal(observation["pool"][: len(wanted)], wanted)


# One card after another


def test_a_stream_plays_pages_of_one_and_visits_of_one_slot(stream, env_id):
    logged = stream.catalog.supply
    assert logged is not None and set(np.diff(logged.first_entry)) == {1}
    assert set(logged.slots) == {1, 5} and stream.config.lookahead == 0
    env = gym.make(env_id, scenario=stream)
    observation, _ = env.reset(seed=0)
    lengths, wanted, slots = [], [], 0
    for _ in range(60):
        wanted_now = int(logged.slots[env.unwrapped.batch.arrays.visit[0]])
        assert (observation["pool"].any(axis=1)).sum() == 1
        observation, _, terminated, truncated, _ = env.step(keep_action(env, observation))
        slots = int(env.unwrapped.batch.arrays.slot[0])
        assert not truncated
        if terminated:
            lengths.append(slots)
            wanted.append(wanted_now)
            observation, _ = env.reset()
    assert lengths == wanted and set(lengths) == set(logged.slots)


# The file


def test_a_supply_survives_its_file(supply, tmp_path):
    supply.save(tmp_path / SUPPLY_FILE)
    found = Supply.load(tmp_path / SUPPLY_FILE)
    for name, values in vars(supply).items():
        assert np.array_equal(getattr(found, name), values)
        if isinstance(values, np.ndarray):
            assert getattr(found, name).dtype == values.dtype and not getattr(found, name).flags.writeable


def changed(name: str, at: Any, value: Any):
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors[name] = tensors[name].copy()
        tensors[name][at] = value

    return change


def cut(name: str):
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors[name] = tensors[name][:-1]

    return change


def wrapping(tensors: dict[str, np.ndarray]) -> None:
    """Bounds whose differences overflow to positive numbers."""
    most = np.iinfo(np.int64)
    end = tensors["first_entry"][-1]
    tensors["first_entry"] = tensors["first_entry"].copy()
    tensors["first_entry"][-4:] = [most.max, most.min, -1, end]


def one_page_of_cards(tensors: dict[str, np.ndarray]) -> None:
    tensors["item"] = tensors["item"].copy()
    tensors["item"][: tensors["first_entry"][1]] = 59  # the last items are videos


BROKEN = [
    (changed("hour", 3, 24), r"hour must lie in 0..23"),
    (changed("day", 0, -1), r"day must lie in 0"),
    (changed("day", 0, 5), r"visits must be in the order of their days"),
    (changed("slots", 0, -1), r"slots must lie in 0"),
    (changed("item", 0, -1), r"item must lie in 0"),
    (changed("item", 0, 60), r"item 60 is not one of the catalogue's 60 items"),
    (changed("values", (0, 1), -0.5), r"the first ones in 0..1"),
    (changed("values", (0, 5), 1.5), r"values must lie in -1..1"),
    (changed("values", (0, 5), np.nan), r"'values' is not finite"),
    (changed("features", (0, 0), 2), r"features must lie in -1..1"),
    (changed("first_page", 1, 0), r"first_page must rise from 0 to 240"),
    (changed("first_entry", 0, 1), r"first_entry must rise from 0 to 1200"),
    (changed("first_entry", -1, 1201), r"first_entry must rise from 0 to 1200"),
    (wrapping, r"first_entry must rise from 0 to 1200"),
    (changed("held_out", 0, 0), r"held_out = 0 leaves no visits on one side of 120"),
    (changed("held_out", 0, 120), r"held_out = 120 leaves no visits"),
    (cut("hour"), r"hour has 119 rows|features has 120 rows, not 119"),
    (cut("item"), r"known has 1200 rows, not 1199"),
    (cut("first_page"), r"first_page must rise"),
    (one_page_of_cards, r"page 0 holds no goods"),
    (lambda tensors: tensors.pop("known"), r"lacks the tensor 'known'"),
    (lambda tensors: tensors.update(more=np.zeros(1)), r"holds the unknown 'more'"),
    (lambda tensors: tensors.update(values=tensors["values"][:, :3].copy()), r"values must have at least 4"),
    (lambda tensors: tensors.update(values=tensors["values"][:, :0].copy()), r"values must have at least 4"),
    (
        lambda tensors: tensors.update(values=tensors["values"][:, :6].copy()),
        r"values has 6 columns",
    ),
    (lambda tensors: tensors.update(hour=tensors["hour"].astype(np.int64)), r"'hour' does not fit"),
    (lambda tensors: tensors.update(first_entry=np.zeros(0, np.int64)), r"first_page must rise"),
]


@pytest.mark.parametrize(("change", "message"), BROKEN, ids=[f"{k}" for k in range(len(BROKEN))])
def test_a_broken_supply_is_refused_in_one_line(folder, tmp_path, change, message):
    out = tmp_path / "users"
    out.mkdir()
    for file in (folder / "users").iterdir():
        (out / file.name).write_bytes(file.read_bytes())
    tensors = dict(load_file(out / SUPPLY_FILE))
    change(tensors)
    save_file({name: np.ascontiguousarray(values) for name, values in tensors.items()}, out / SUPPLY_FILE)
    with pytest.raises(InputError, match=r"supply.safetensors is corrupted"):
        Scenario.load(out)
    described = json.loads((out / "scenario.json").read_text())
    described["sha256"][SUPPLY_FILE] = _sha256(out / SUPPLY_FILE)
    (out / "scenario.json").write_text(json.dumps(described))
    with pytest.raises(InputError, match=message) as error:
        gym.make("EdgeFeed-v0", scenario=Scenario.load(out))
    assert "\n" not in str(error.value) and SUPPLY_FILE in str(error.value)


def test_a_missing_or_cut_file_is_named(folder, tmp_path):
    with pytest.raises(InputError, match=SUPPLY_FILE):
        Supply.load(tmp_path / SUPPLY_FILE)
    (tmp_path / SUPPLY_FILE).write_bytes((folder / "users" / SUPPLY_FILE).read_bytes()[:-7])
    with pytest.raises(InputError, match=r"supply.safetensors is not a readable safetensors file"):
        Supply.load(tmp_path / SUPPLY_FILE)


def test_pages_that_do_not_fit_the_feed_are_refused(scenario, lite):
    with pytest.raises(InputError, match=r"pool_size = 4 is too small for logged pages of up to 5 cards"):
        gym.make("EdgeFeed-v0", scenario=scenario, pool_size=4)
    with pytest.raises(InputError, match=r"cloud.supply = 'logged' needs logged visits"):
        gym.make("EdgeFeed-v0", scenario="lite", users="synthetic", cloud={"supply": "logged"})
    with pytest.raises(InputError, match="supply"):
        CloudConfig(supply="weekly")  # type: ignore[arg-type]
    assert lite.catalog.supply is None
