"""The planner of inserted cards: exact where it says so, legal always."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_mixes import best_by_counting, broken_rules, random_problem, value_of

from benchmarks.mix_ilp import MixProgramme, solve_ilp
from edgerec_gym.agents.planner.problem import MixBatch, MixProblem, insertions
from edgerec_gym.agents.planner.solve import SOLVERS, DualPrices, fit_dual_prices, plan, plan_batch
from edgerec_gym.errors import InputError


def small(**changes):
    """Two cards of one type, four slots."""
    given = {
        "values": [[1.0, 2.0, 3.0, 0.0], [2.0, 2.0, 2.0, 2.0]],
        "weights": [1.0, 0.5, 0.5, 0.5],
        "types": [0, 0],
        "caps": [np.inf],
        "gaps": [2],
        "first_slots": [0],
    }
    return MixProblem(**{**given, **changes})


@pytest.mark.parametrize("seed", range(60))
def test_exact_equals_highs(seed):
    rng = np.random.default_rng(seed)
    problem = random_problem(rng, 8, int(rng.integers(5, 51)), 4)
    found, reference = plan(problem), solve_ilp(problem)
    assert (found.reason is None) == (reference.reason is None) or not (found.slots >= 0).any()
    assert found.optimal == reference.optimal
    assert found.value == pytest.approx(reference.value, abs=1e-6)
    assert found.bound == found.value == pytest.approx(value_of(problem, found.slots))
    assert not found.optimal or not broken_rules(problem, found.slots)


@pytest.mark.parametrize("seed", range(25))
def test_exact_equals_counting_out(seed):
    rng = np.random.default_rng(1000 + seed)
    n_cards = int(rng.integers(1, 4))
    problem = random_problem(rng, n_cards, {1: 12, 2: 12, 3: 9}[n_cards], int(rng.integers(1, 3)))
    best, found = best_by_counting(problem), plan(problem)
    assert found.optimal == (best is not None)
    assert found.value == pytest.approx(best or 0.0)


@pytest.mark.parametrize("seed", range(10))
def test_the_totally_unimodular_case_is_solved_by_its_linear_programme(seed):
    from scipy.optimize import linprog

    rng = np.random.default_rng(seed)
    n_cards, n_slots = 6, 40
    problem = MixProblem(
        values=np.tile(rng.normal(0.2, 1, n_slots), (n_cards, 1)),
        weights=np.ones(n_slots),
        types=np.zeros(n_cards, int),
        caps=[float(rng.integers(1, 8))],
        gaps=[rng.integers(1, 8)],
        first_slots=[2],
    )
    # Cards are alike, so one variable a slot says it all: every row has its ones side by side.
    one = MixProblem(problem.values[:1], problem.weights, [0], problem.caps, problem.gaps, [2])
    rows = MixProgramme(one)
    matrix, high = rows.matrix.toarray(), rows.high
    high[matrix.all(axis=1)] = min(n_cards, problem.caps[0])  # the one card's own row, and the cap
    kept = np.isfinite(high)
    solved = linprog(-one.values[0, rows.slots], matrix[kept], high[kept], bounds=(0, 1), method="highs-ds")
    assert solved.x == pytest.approx(np.rint(solved.x), abs=1e-9)
    assert plan(problem).value == pytest.approx(-solved.fun)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 30), st.integers(1, 5)),
    width=st.integers(1, 20),
)
def test_no_plan_breaks_a_rule_and_none_passes_the_optimum(seed, sizes, width):
    rng = np.random.default_rng(seed)
    problem = random_problem(rng, *sizes)
    prices = DualPrices(rng.random(sizes[2]) - 0.5, rng.random(sizes[2]))
    plans = {solver: plan(problem, solver, width=width, prices=prices) for solver in SOLVERS}
    exact = plans["exact"]
    assert exact.optimal or exact.reason is not None
    for solver, found in plans.items():
        assert found.bound >= found.value
        if found.reason is not None:
            assert not (found.slots >= 0).any() and found.value == 0
            continue
        assert not broken_rules(problem, found.slots), solver
        assert found.value == pytest.approx(value_of(problem, found.slots))
        assert exact.value >= found.value - 1e-9
        assert found.bound >= exact.value - 1e-9
    if plans["beam"].reason is None and plans["greedy"].reason is None:
        assert plans["beam"].value >= plans["greedy"].value - 1e-9


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_batch_equals_single_calls_whatever_the_threads(solver):
    rng = np.random.default_rng(5)
    problems = [random_problem(rng, 8, 30, 4, ordered=False) for _ in range(50)]
    prices = DualPrices(np.full(4, 0.5), np.full(4, 0.5))
    together = plan_batch(problems, solver, prices=prices)
    assert len(together) == 50
    threaded = plan_batch(MixBatch.stack(problems), solver, prices=prices, threads=2)
    for row, problem in enumerate(problems):
        alone = plan(problem, solver, prices=prices)
        for other in (together[row], threaded[row]):
            assert np.array_equal(alone.slots, other.slots)
            assert (alone.value, alone.bound, alone.optimal, alone.reason) == (
                other.value,
                other.bound,
                other.optimal,
                other.reason,
            )


def test_rules_and_order_by_hand():
    assert plan(small()).slots.tolist() == [2, 0]
    assert plan(small(ordered=True)).slots.tolist() == [1, 3]
    assert plan(small(caps=[1.0])).slots.tolist() == [1, 3]
    assert plan(small(prefix_caps=[[0, 1, 1, 1]])).slots.tolist() == [2, -1]
    assert plan(small(first_slots=[2])).slots.tolist() == [2, -1]
    assert insertions(plan_batch([small()]).slots, 4).tolist() == [[2, 0, 1, 0]]
    assert plan(small(values=-np.ones((2, 4)))).slots.tolist() == [-1, -1]
    assert plan(small(values=-np.ones((2, 4)), floors=[1])).value == -1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"floors": [3]}, "floor of type 0, 3 cards, cannot be met under its gap"),
        ({"floors": [2], "gaps": [4]}, "cannot be met under its gap"),
        ({"floors": [2], "caps": [0.9]}, "cannot be met under its cap"),
        ({"floors": [1], "values": np.full((2, 4), -np.inf)}, "forbidden values"),
        ({"caps": [0.1]}, "no card fits"),
    ],
)
def test_infeasible_rules_give_the_empty_plan_with_the_reason(changes, reason):
    for solver in ("exact", "beam", "greedy", "fixed"):
        found = plan(small(**changes), solver)
        assert found.slots.tolist() == [-1, -1] and found.value == found.bound == 0
        assert found.reason is not None and reason in found.reason
        assert found.optimal == ("floors" not in changes)


def test_floors_that_meet_only_one_by_one_are_refused_together():
    problem = MixProblem([[1.0], [1.0]], [1.0], [0, 1], [1, 1], [1, 1], [0, 0], floors=[1, 1])
    found = plan(problem)
    assert found.reason == "no plan meets the floors of all types together" and not found.optimal


def test_a_search_without_room_gives_its_best_plan_and_a_bound():
    rng = np.random.default_rng(3)
    problems = [random_problem(rng, 14, 40, 4, ordered=False, floors=None) for _ in range(20)]
    cramped, exact = plan_batch(problems, max_labels=1), plan_batch(problems)
    assert exact.optimal.all() and not cramped.optimal.all()
    assert (cramped.bound >= exact.value - 1e-9).all() and (cramped.value <= exact.value + 1e-9).all()
    assert np.array_equal(cramped.optimal, cramped.bound == cramped.value)


def test_beam_comes_close_and_prices_learned_from_the_past_beat_none():
    rng = np.random.default_rng(7)
    problems = [random_problem(rng, 8, 50, 4, ordered=False, floors=None) for _ in range(200)]
    exact, beam = plan_batch(problems), plan_batch(problems, "beam")
    assert beam.value.sum() >= 0.99 * exact.value.sum()
    prices = fit_dual_prices(problems[:100])
    free = DualPrices(np.zeros(4), np.zeros(4))
    learned, myopic = (plan_batch(problems[100:], "dual", prices=p).value.sum() for p in (prices, free))
    assert learned > myopic


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values": [[1.0, np.nan, 0, 0], [0, 0, 0, 0]]}, r"values\[0, 1\] is nan; allowed: finite numbers"),
        ({"values": [[1.0, np.inf, 0, 0], [0, 0, 0, 0]]}, r"values\[0, 1\] is inf"),
        ({"values": [1.0, 2.0]}, r"values must be numbers of shape \(M, T\), got shape \(2,\)"),
        ({"values": np.zeros((2, 0))}, "values must not be empty"),
        ({"values": [[1.0], [1.0, 2.0]]}, "values must be numbers of shape"),
        ({"weights": [1.0, 1.0]}, r"weights must be numbers of shape \(4,\), got shape \(2,\)"),
        ({"weights": [1.0, -0.5, 1, 1]}, r"weights\[1\] is -0.5; allowed: finite numbers, 0 or more"),
        ({"weights": [1.0, np.inf, 1, 1]}, r"weights\[1\] is inf"),
        ({"types": [0, 1]}, r"types\[1\] is 1; allowed: 0 to 0, as caps has 1"),
        ({"types": [0, 0.5]}, r"types\[1\] is 0.5; allowed: whole numbers"),
        ({"types": ["a", "b"]}, "types must be numbers"),
        ({"caps": [-1.0]}, r"caps\[0\] is -1.0; allowed: 0 or more"),
        ({"caps": [np.nan]}, r"caps\[0\] is nan"),
        ({"gaps": [-1]}, r"gaps\[0\] is -1; allowed: 0 or more"),
        ({"first_slots": [np.nan]}, r"first_slots\[0\] is nan; allowed: whole numbers"),
        ({"prefix_caps": [[1, 1]]}, r"prefix_caps must be numbers of shape \(1, 4\)"),
        ({"prefix_caps": [[1, -1, 1, 1]]}, r"prefix_caps\[0, 1\] is -1"),
        ({"floors": [1, 1]}, r"floors must be numbers of shape \(1,\)"),
    ],
)
def test_malformed_problems_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        small(**changes)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plan(small(), "magic"), "unknown solver 'magic'; allowed: exact, beam"),
        (lambda: plan(small(), "beam", width=0), "width = 0 must be a whole number"),
        (lambda: plan(small(), "dual"), "needs prices"),
        (lambda: plan(small(), "dual", prices=DualPrices(np.zeros(2), np.zeros(1))), "prices.card must be 1"),
        (lambda: plan(small(), "fixed", fixed_slots=[4]), "fixed_slots must lie in 0 to 3"),
        (lambda: plan(small(), "fixed", fixed_slots=[0.5]), "whole numbers"),
        (lambda: plan_batch([]), "at least one problem"),
        (lambda: plan_batch([small(), small(ordered=True)]), "problem 1 has"),
    ],
)
def test_wrong_calls_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()
