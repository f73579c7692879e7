"""Latency budgets: late decisions are never played, and all of them are counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_rerankers import build

from edgerec_gym.agents.device.policy import DevicePolicy, load_policy
from edgerec_gym.agents.export.export import export_network
from edgerec_gym.agents.registry import find_agent
from edgerec_gym.agents.rerank.reranker import RerankerConfig
from edgerec_gym.config import FeedConfig
from edgerec_gym.device.budget import DECISION, EVENTS, Budget, StandingOrder, TimedDecisions, read_budget
from edgerec_gym.device.session import load
from edgerec_gym.errors import InputError
from edgerec_gym.evaluation.play import evaluate, play
from edgerec_gym.evaluation.report import tables
from edgerec_gym.registration import make_feeds
from edgerec_gym.scenario import Scenario
from tests.small_pools import stir

BUDGET_MS = 20.0


class ScriptedClock:
    """A clock whose every reading comes some milliseconds after the last one."""

    def __init__(self, steps: Iterator[float]) -> None:
        self.steps, self.ms = steps, 0.0

    def __call__(self) -> float:
        self.ms += next(self.steps)
        return self.ms / 1000.0


def draws(seed: int) -> Iterator[float]:
    generator = np.random.default_rng(seed)
    while True:
        yield float(generator.exponential(9.0))


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Exports a small re-ranker; returns its folder."""

    def folder(agent: str) -> Path:
        out = tmp_path_factory.mktemp(agent)
        config = Scenario.load("lite").config
        network = stir(build(agent, config, RerankerConfig(hidden=8)))
        export_network(network, out / "device", find_agent(agent), "lite", config, 10)
        return out / "device"

    return folder


spent = st.floats(0, 50, allow_nan=False)


@given(st.lists(st.tuples(spent, spent), min_size=1, max_size=20), st.floats(0.5, 40))
def test_a_decision_counts_only_within_its_budget(times: list[tuple[float, float]], ms: float) -> None:
    now = [0.0]
    timed = TimedDecisions(Budget(ms=ms), lambda: now[0] / 1000)
    timed.reset(np.array([True]))
    late = []
    for slot, (events, decision) in enumerate(times):
        started, asked = timed.clock(), []

        def compute(decision: float = decision, asked: list[bool] = asked) -> str:
            asked.append(True)
            now[0] += decision
            return "decided"

        now[0] += events
        after_events = 1000 * (timed.clock() - started)  # in the clock's own rounding
        shown, in_time = timed.decide(0, slot, started, compute, lambda: "stands")
        total = 1000 * (timed.clock() - started)
        assert bool(asked) == (after_events <= ms)  # nothing is computed once the time is over
        assert in_time == (total <= ms)
        assert shown == ("decided" if in_time else "stands")
        if not in_time:
            late.append((slot, EVENTS if after_events > ms else DECISION))
    assert timed.decisions.tolist() == [len(times)] and timed.missed.tolist() == [len(late)]
    assert [(miss.slot, miss.reason) for miss in timed.misses] == late
    assert all(miss.ms > ms for miss in timed.misses)


@given(st.data())
def test_the_standing_order_never_shows_another_pages_row(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 8))
    pool = np.arange(1, n + 1, dtype=np.float32)[:, None] * np.ones((1, 3), np.float32)
    kept = np.array(data.draw(st.permutations(range(n))))[: data.draw(st.integers(0, n))].astype(np.int64)
    now = pool.copy()
    gone = data.draw(st.sets(st.integers(0, n - 1)))
    refilled = data.draw(st.sets(st.integers(0, n - 1)))
    now[sorted(gone)] = 0
    now[sorted(refilled)] = 100
    standing, cloud = StandingOrder("standing plan"), StandingOrder("cloud order")
    present = [row for row in range(n) if now[row].any()]
    assert standing.order(now).tolist() == present  # nothing was decided yet
    for order in (standing, cloud):
        order.keep(kept, pool)
    first = [row for row in kept.tolist() if row not in gone | refilled]
    assert standing.order(now).tolist() == first + [row for row in present if row not in first]
    assert cloud.order(now).tolist() == present


@pytest.mark.parametrize("agent", ["crban", "pointer"])
@pytest.mark.parametrize("fallback", ["standing plan", "cloud order"])
def test_late_orders_are_not_played(device: Callable[[str], Path], agent: str, fallback: str) -> None:
    """Beside a policy without a budget: the same rows where it is in time, what stands where it is late."""
    scenario = Scenario.load("lite")
    env = make_feeds("EdgeFeedRerank-v0", 6, scenario=scenario, users="synthetic")
    model, clock = load(device(agent)), ScriptedClock(draws(1))
    timed = TimedDecisions(Budget(ms=BUDGET_MS, fallback=fallback), clock)
    policy, free = DevicePolicy("timed", model, env, timed), DevicePolicy("free", model, env)
    script = draws(1)  # what the clock will say
    plans: list[tuple[np.ndarray, np.ndarray] | None] = [None] * 6
    observation, _ = env.reset(seed=3)
    everyone = np.ones(6, np.bool_)
    policy.reset(everyone)
    free.reset(everyone)
    late_before, reasons = np.zeros(6, np.int64), set()
    for slot in range(8):
        wanted = np.zeros(observation["pool"].shape[:2])
        for row, phone in enumerate(free.phones):
            one = {key: values[row : row + 1] for key, values in observation.items()}
            phone.follow(one)
            if agent == "crban":
                wanted[row] = phone.policy.scores(one)
                continue
            listed = phone.policy.lists(one, 10)[0]
            wanted[row, listed[listed >= 0]] = np.arange((listed >= 0).sum(), 0, -1)
        expected, late = np.zeros(6, np.int64), np.zeros(6, np.int64)
        for row in range(6):
            pool = observation["pool"][row]
            left = np.flatnonzero(pool.any(axis=1))
            next(script)
            events = next(script)
            total = events if events > BUDGET_MS else events + next(script)
            if total <= BUDGET_MS:
                order = left[np.argsort(-wanted[row, left], kind="stable")]
                plans[row] = order, pool
                expected[row] = order[0]
                continue
            late[row] = 1
            reasons.add(EVENTS if events > BUDGET_MS else DECISION)
            plan = plans[row]
            stands = [r for r in plan[0] if pool[r].any() and (pool[r] == plan[1][r]).all()] if plan else []
            expected[row] = stands[0] if stands and fallback == "standing plan" else left[0]
        played = policy.act(observation)
        assert (timed.missed - late_before == late).all()
        assert (played == expected).all(), slot
        assert (timed.decisions == slot + 1).all()
        late_before = timed.missed.copy()
        observation, _, terminated, truncated, _ = env.step(played)
        if (terminated | truncated).any():
            break
    assert slot > 2 and reasons == {EVENTS, DECISION} and 0 < timed.missed.sum() < timed.decisions.sum()
    env.close()


def test_a_slot_is_decided_once(device: Callable[[str], Path]) -> None:
    env = make_feeds("EdgeFeedRerank-v0", 2, scenario="lite", users="synthetic")
    timed = TimedDecisions(Budget(ms=BUDGET_MS), ScriptedClock(draws(0)))
    policy = DevicePolicy("timed", load(device("crban")), env, timed)
    observation, _ = env.reset(seed=0)
    policy.reset(np.ones(2, np.bool_))
    first = policy.act(observation)
    assert (policy.act(observation) == first).all() and timed.decisions.tolist() == [1, 1]
    policy.reset(np.array([True, False]))
    assert timed.decisions.tolist() == [0, 1]
    env.close()


@pytest.mark.parametrize(("step_ms", "share"), [(0.0, 0.0), (2 * BUDGET_MS, 1.0)])
def test_evaluate_counts_missed_budgets(device: Callable[[str], Path], step_ms: float, share: float) -> None:
    """A device that is never late plays as without a budget, one that is always late as the cloud."""
    lite = Scenario.load("lite")
    timed = TimedDecisions(Budget(ms=BUDGET_MS), ScriptedClock(iter(lambda: step_ms, None)))
    model = load(device("crban"))
    env = make_feeds("EdgeFeedRerank-v0", 1, scenario=lite, users="synthetic")
    policy, free = DevicePolicy("timed", model, env, timed), DevicePolicy("free", model, env)
    common = {"env_id": "EdgeFeedRerank-v0", "scenario": lite, "users": "synthetic", "sessions": 6, "seed": 0}
    found = play(policy, num_envs=4, **common)
    assert (found["missed_budgets"] == share * found["decisions"]).all()
    assert (found["decisions"] >= found["exposures"] / 1).all()
    keep_or_free = play(free, num_envs=4, **common)
    if share == 0:
        assert (found["value"] == keep_or_free["value"]).all()
        assert "missed_budgets" not in keep_or_free
    else:
        assert (found["value"] != keep_or_free["value"]).any()
    [row] = evaluate([policy], **{**common, "users": ["synthetic"]})
    assert row["missed_budgets"]["mean"] == share
    [(header, body)] = tables([row]).values()
    assert body[0][header.index("missed budgets")] == format(share, ".2%")


def test_a_scenario_and_a_rules_file_set_the_budget(device: Callable[[str], Path], tmp_path: Path) -> None:
    folder, lite = device("crban"), Scenario.load("lite")
    plain = make_feeds("EdgeFeedRerank-v0", 1, scenario=lite, users="synthetic")
    tight = make_feeds("EdgeFeedRerank-v0", 1, scenario=lite, users="synthetic", latency_budget_ms=20)
    assert load_policy(folder, plain).timed is None
    assert load_policy(folder, tight).timed.budget == Budget(ms=20.0)
    (folder / "rules.toml").write_text('[decide]\norder = true\n[budget]\nfallback = "cloud order"\n')
    assert load_policy(folder, plain).timed is None
    assert load_policy(folder, tight).timed.budget == Budget(ms=20.0, fallback="cloud order")
    (folder / "rules.toml").write_text("[budget]\nms = 5\n")
    assert load_policy(folder, tight).timed.budget.ms == 5.0
    slate = make_feeds("EdgeFeedSlate-v0", 1, scenario=lite, users="synthetic", latency_budget_ms=20)
    assert load_policy(folder, slate).timed.budget.ms == 5.0
    for env in (plain, tight, slate):
        env.close()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[budget]\nms = 0", r"rules.toml: \[budget\].ms = 0 is out of range; allowed: 0.001 to 60000"),
        ('[budget]\nfallback = "none"', r"\[budget\].fallback must be one of standing plan, cloud order"),
        ("[budget]\nmilliseconds = 3", r"\[budget\] has no field 'milliseconds'"),
        ("budget = 3", "must be an object with named fields, got 3"),
        ("[budget", "rules.toml"),
    ],
)
def test_a_bad_rules_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "rules.toml").write_text(text)
    with pytest.raises(InputError, match=message):
        read_budget(tmp_path, FeedConfig())


def test_a_budget_needs_a_time() -> None:
    with pytest.raises(InputError, match="Budget.ms is left out"):
        TimedDecisions(Budget())
    assert Budget().of(FeedConfig()) is None
    assert Budget().of(FeedConfig(latency_budget_ms=30)) == Budget(ms=30.0)


@pytest.mark.parametrize("bad", [0, -1, 1e9, float("nan"), "20"])
def test_a_feed_refuses_bad_budgets(bad: object) -> None:
    with pytest.raises(InputError, match="FeedConfig.latency_budget_ms"):
        FeedConfig(latency_budget_ms=bad)  # type: ignore[arg-type]


@settings(deadline=None)
@given(st.none() | st.floats(0.001, 60_000))
def test_old_files_stay_as_they_were(ms: float | None) -> None:
    config = FeedConfig(latency_budget_ms=ms)
    assert ("latency_budget_ms" in config.to_dict()) == (ms is not None)
    assert "dwell_scale" not in config.to_dict()
    assert FeedConfig.from_dict(config.to_dict()) == config
