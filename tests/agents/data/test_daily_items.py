"""Imported logs with propensities: what another order of the items would have earned."""

from __future__ import annotations

import itertools
import json

import numpy as np
import polars as pl
import pytest
from command_line import fails_with, run_well
from places import SHARED_DATA
from small_table import BEGIN, Place

from edgerec_gym.agents.baselines import Random
from edgerec_gym.agents.data.daily_items import DailyItems
from edgerec_gym.agents.data.logged_decisions import read_decisions
from edgerec_gym.errors import InputError
from edgerec_gym.evaluation.off_policy import off_policy_estimates
from edgerec_gym.logs.store import LogReader
from edgerec_gym.logs.table import import_table

OPEN_BANDIT = SHARED_DATA / "open_bandit" / "exposures.csv.gz"
SIZE = 4  # of the embeddings
MAPPING = {"list": "page", "price": "price", "propensity": "p", "feed": {"embedding_size": SIZE}}


class Dearest:
    """The item of the highest price first."""

    name = "dearest"
    stateless = True

    def reset(self, mask):
        pass

    def act(self, observation):
        price = observation["pool"][:, :, SIZE]
        return np.where(observation["action_mask"] > 0, price, -1.0).argmax(axis=1)


class Stateful(Dearest):
    stateless = False


def clicked(item, slot):
    """Whether an item is clicked; the dearest at the first place only."""
    return int(item == 2 and slot == 0 or item == 1)


def table(slots: int, days: int = 3) -> pl.DataFrame:
    """Each order of three items as often as its propensity says: item 0 first in half of the pages."""
    first = {0: 0.5, 1: 0.25, 2: 0.25}
    rows, user = [], 0
    for day, order in itertools.product(range(days), itertools.permutations(range(3), slots)):
        p = [first[order[0]], 0.5]
        for _ in range(round(8 * np.prod(p[:slots]) * (1 if slots == 2 else 4))):
            user += 1
            for slot, item in enumerate(order):
                rows.append(
                    (user, item, BEGIN + 86400 * day + 60 * user, f"p{user}", slot, 1 + item, p[slot],
                     clicked(item, slot))
                )  # fmt: skip
    names = ["uid", "sku", "ts", "page", "rank", "price", "p", "clicked"]
    return pl.DataFrame(rows, names, orient="row")


@pytest.mark.parametrize("policy", [Dearest(), Stateful()])
@pytest.mark.parametrize(("slots", "truth"), [(1, 1.0), (2, 2.0)])
def test_a_log_of_all_choices_tells_the_value_exactly(tmp_path, slots, truth, policy):
    place = Place(tmp_path)
    place.run(table(slots), **MAPPING)
    reader = LogReader(place.out)
    decisions = read_decisions(reader, policy)
    assert len(decisions.session) == slots * reader.sessions
    np.testing.assert_allclose(decisions.weights.mean(axis=0), 1.0)
    found = off_policy_estimates(decisions)
    for name in ("ips", "snips"):
        assert found[name]["mean"] == pytest.approx(truth)
    assert found["dr"]["mean"] == pytest.approx(truth, abs=0.2)
    assert found["logged"]["mean"] < truth


def test_what_a_policy_sees_does_not_tell_what_was_shown(tmp_path):
    place = Place(tmp_path)
    place.run(table(1), **MAPPING)
    seen = []

    class Watch(Random):
        stateless = True

        def probabilities(self, observation):
            seen.append(observation["pool"])
            return super().probabilities(observation)

    reader = LogReader(place.out)
    read_decisions(reader, Watch())
    day = pl.concat([pl.from_arrow(t) for t in reader.batches(["session", "slot", "day"])])["day"].to_numpy()
    pools = np.concatenate(seen)
    for one in np.unique(day):
        assert (pools[day == one] == pools[day == one][0]).all()
    shown = place.read()
    assert shown["randomised"].all() and sorted(shown["propensity"].unique()) == [0.25, 0.5]


def test_a_pool_must_hold_the_items_of_a_day(tmp_path):
    place = Place(tmp_path)
    frame = table(1).with_columns(sku=pl.col("uid"), price=pl.lit(1))
    feed = {"pool_size": 5, "page_size": 2, "request_latency": 1}
    place.run(frame, **MAPPING | {"feed": feed})
    with pytest.raises(InputError, match="day 0 shows 32 items, but pool_size is 5"):
        DailyItems.of(LogReader(place.out))


def test_actions_tell_the_places_among_the_candidates(tmp_path):
    place, action = Place(tmp_path), {0: 4, 1: 0, 2: 2}
    frame = table(2).with_columns(a=pl.col("sku").replace_strict(action))
    place.run(frame, **MAPPING, action="a")
    reader = LogReader(place.out)
    assert place.read()["action"].to_list() == frame.sort("uid", "rank")["a"].to_list()
    items = DailyItems.of(reader)
    rows = items.rows(np.array([1, 0]), 6)
    assert rows.shape == (2, 6) and [list(r >= 0) for r in rows] == 2 * [
        [True, False, True, False, True, False]
    ]
    assert (items.day[rows[0][rows[0] >= 0]] == 1).all()
    of = dict(zip(items.item.tolist(), items.row.tolist(), strict=True))
    names = pl.read_parquet(place.out / "items.parquet")["item"]
    assert {names[item]: row for item, row in of.items()} == action
    found = off_policy_estimates(read_decisions(reader, Dearest()))
    assert found["ips"]["mean"] == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (pl.col("sku") % 2, "the action 0 has the items"),
        (pl.col("sku") + 3 * (pl.col("uid") % 2), "the item 0 has the actions 0 and 3"),
    ],
)
def test_actions_that_tell_no_items_apart_are_refused(tmp_path, action, message):
    place = Place(tmp_path)
    place.run(table(1).with_columns(a=action), **MAPPING, action="a")
    with pytest.raises(InputError, match=message):
        DailyItems.of(LogReader(place.out))


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (pl.lit(3), r"row 1: column 'a' is 3, as in row 0 of the same page, but the items differ"),
        (pl.lit(1000), "row 0: column 'a' is 1000; allowed: a whole number of 0 to 999"),
    ],
)
def test_wrong_actions(tmp_path, action, message):
    with pytest.raises(InputError, match=message):
        Place(tmp_path).run(table(2).with_columns(a=action), **MAPPING, action="a")


def test_the_commands(tmp_path):
    place = Place(tmp_path)
    place.run(table(2), **MAPPING)
    rows = json.loads(run_well("off-policy", place.out, "--policy", "random", "--policy", "keep", "--json"))
    assert [row["policy"] for row in rows] == ["random", "keep"] and rows[0]["decisions"] == 48 * 1
    place.run(table(2).drop("p"), out="without", **MAPPING | {"propensity": None})
    fails_with("does not record its scenario", "off-policy", place.out, "--policy", "keep")


@pytest.mark.skipif(not OPEN_BANDIT.is_file(), reason="no Open Bandit data")
def test_open_bandit_values_an_item_at_its_click_rate(tmp_path):
    import_table(OPEN_BANDIT, "benchmarks/mappings/open_bandit_men_random.json", tmp_path / "logs")
    reader = LogReader(tmp_path / "logs")
    items = DailyItems.of(reader)
    logged = np.concatenate([t["item"].to_numpy() for t in reader.batches(["session", "slot", "item"])])
    click = np.concatenate([t["click"].to_numpy() for t in reader.batches(["session", "slot", "click"])])
    rates = np.bincount(logged, click) / np.bincount(logged)
    best = int(rates.argmax())
    at = {
        int(day): int(row)
        for day, item, row in zip(items.day, items.item, items.row, strict=True)
        if item == best
    }
    assert len(set(at.values())) == 1 and len(at) == len(set(items.day))  # the item's number, on each day
    days = np.concatenate([t["day"].to_numpy() for t in reader.batches(["session", "slot", "day"])])

    class Always(Dearest):
        """The item with the highest click rate."""

        def __init__(self):
            self.done = 0

        def act(self, observation):
            some = days[self.done : self.done + len(observation["pool"])]
            self.done += len(some)
            return np.array([at[int(day)] for day in some])

    found = off_policy_estimates(read_decisions(reader, Always()))
    assert found["snips"]["mean"] == pytest.approx(rates[best])
    shown = (logged == best).mean() * 34  # the propensity is 1 / 34
    assert found["ips"]["mean"] == pytest.approx(rates[best] * shown, rel=1e-3)
    assert found["ips"]["low"] < rates[best] < found["ips"]["high"]
