"""The mix planner against HiGHS: equal optima, speed-up, quality of a beam, growth with the slots.

    python -m benchmarks.mix_planner [--instances 1000] [--quick]

Instances have the paper feed's rules (gaps 5, 8, 5, 8; shares 10, 6, 10, 6 %; 8 cards of 4 types, 50 slots).
Half have values as from a click model: click probabilities (logits with effects of card, slot and place) less
the probability of the organic item, times the probability that the slot is seen. The others are uniform
noise, which is harder. A quarter each has prefix caps, floors, or queues. One thread; solvers take turns on
each instance.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import scipy
from rich.console import Console
from rich.table import Table

import edgerec_gym
from benchmarks.mix_ilp import solve_ilp
from edgerec_gym.agents.planner.problem import MixProblem, Plan
from edgerec_gym.agents.planner.solve import plan, plan_batch
from edgerec_gym.config import FeedConfig
from edgerec_gym.files import atomic_path, make_folder, write_json

CARDS, SLOTS, WIDTH = 8, 50, 8
GROWTH = (10, 20, 50, 100, 150, 200)  # slots
SAME = 1e-6  # values closer than this are equal: HiGHS stops at a relative gap


def instance(number: int, slots: int = SLOTS) -> MixProblem:
    """Make the instance with a given number."""
    rng, config = np.random.default_rng([number, slots]), FeedConfig()
    types = np.arange(CARDS) % len(config.card_types)
    weights = np.exp(-np.arange(slots) * rng.uniform(0.003, 0.03))
    if number % 2:
        values = rng.random((CARDS, slots)) - 0.2
    else:
        card, slot = rng.normal(-2.5, 1.0, (CARDS, 1)), rng.normal(0, 0.3, slots)
        logit = card + slot - 0.004 * np.arange(slots) + rng.normal(0, 0.5, (CARDS, slots))
        organic = rng.normal(-2.9, 0.5, slots)
        values = weights * (1 / (1 + np.exp(-logit)) - 1 / (1 + np.exp(-organic)))
    shares, kind = np.array(config.share_caps), number // 2 % 4
    prefix = np.floor(shares[:, None] * np.maximum(np.arange(1, slots + 1), config.page_size))
    return MixProblem(
        values=values,
        weights=weights,
        types=types,
        caps=shares * weights.sum(),
        gaps=np.array(config.gaps),
        first_slots=np.array(config.first_slots),
        prefix_caps=prefix.astype(np.int64) if kind == 1 else None,
        floors=np.array([1, 0, 1, 0]) if kind == 2 else None,
        ordered=kind == 3,
    )


def timed(solve: Any, problem: MixProblem) -> tuple[Plan, float]:
    """Solve once; returns the plan and milliseconds."""
    started = time.perf_counter()
    found = solve(problem)
    return found, 1000 * (time.perf_counter() - started)


def compare(instances: int) -> dict[str, Any]:
    """Solve the same instances with all solvers, one after the other."""
    solvers: dict[str, Any] = {
        "HiGHS": solve_ilp,
        "exact": plan,
        f"beam of {WIDTH}": lambda p: plan(p, "beam", width=WIDTH),
        "greedy": lambda p: plan(p, "greedy"),
    }
    for solve in solvers.values():
        solve(instance(0))  # compile
    value: dict[str, list[float]] = {name: [] for name in solvers}
    spent: dict[str, list[float]] = {name: [] for name in solvers}
    proved = 0
    for number in range(instances):
        problem = instance(number)
        for name, solve in solvers.items():
            found, milliseconds = timed(solve, problem)
            value[name].append(found.value)
            spent[name].append(milliseconds)
            proved += name == "exact" and found.optimal
    best = np.array(value["exact"])
    size = np.maximum(np.abs(best), 1e-9)
    rows = {
        name: {
            **{f"p{q}": float(np.percentile(spent[name], q)) for q in (50, 99)},
            "share_of_optimum": float(np.mean(np.array(value[name]) / size)),
            "worst_share": float(np.min(np.array(value[name]) / size)),
        }
        for name in solvers
    }
    batch = [problem for problem in map(instance, range(instances)) if not problem.ordered]
    plan_batch(batch[:2])
    started = time.perf_counter()
    plan_batch(batch)
    in_batches = 1000 * (time.perf_counter() - started) / len(batch)
    difference = np.abs(np.array(value["HiGHS"]) - best)
    return {
        "instances": instances,
        "equal_to_HiGHS": int((difference <= SAME * np.maximum(1, size)).sum()),
        "largest_difference": float(difference.max()),
        "proved": proved,
        "times_faster_at_the_median": rows["HiGHS"]["p50"] / rows["exact"]["p50"],
        "milliseconds_in_a_batch": in_batches,
        "times_faster_in_a_batch": rows["HiGHS"]["p50"] / in_batches,
        "solvers": rows,
    }


def growth(instances: int) -> list[dict[str, Any]]:
    """Milliseconds by number of slots."""
    found = []
    for slots in GROWTH:
        problems = [instance(number, slots) for number in range(instances)]
        exact = [timed(plan, problem)[1] for problem in problems]
        beam = [timed(lambda p: plan(p, "beam", width=WIDTH), problem)[1] for problem in problems]
        few = problems[: max(4, instances // 10)]
        highs = [timed(solve_ilp, problem)[1] for problem in few]
        medians = {
            name: float(np.median(v)) for name, v in (("exact", exact), ("beam", beam), ("HiGHS", highs))
        }
        found.append({"slots": slots, **medians, "exact_p99": float(np.percentile(exact, 99))})
    return found


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Plot the growth."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    slots = [row["slots"] for row in rows]
    for name, style in (("HiGHS", "s-"), ("exact", "o-"), ("beam", "^-")):
        axes.plot(slots, [row[name] for row in rows], style, label=f"{name}, median")
    axes.plot(slots, [row["exact_p99"] for row in rows], "o:", color="C1", label="exact, p99")
    axes.set(xlabel="slots", ylabel="milliseconds", yscale="log", title="8 cards of 4 types, one thread")
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    plt.close(figure)


def main() -> None:
    """Compare, print, plot, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--instances", type=int, default=1000)
    parser.add_argument("--quick", action="store_true", help="50 instances; nothing is written")
    arguments = parser.parse_args()
    instances = 50 if arguments.quick else arguments.instances
    results = compare(instances)
    table = Table("solver", "p50 ms", "p99 ms", "share of optimum", "worst")
    for name, row in results["solvers"].items():
        table.add_row(
            name, f"{row['p50']:.3f}", f"{row['p99']:.3f}", f"{row['share_of_optimum']:.4f}",
            f"{row['worst_share']:.4f}",
        )  # fmt: skip
    Console(width=100).print(table)
    print({key: value for key, value in results.items() if key != "solvers"})
    results["growth"] = growth(20 if arguments.quick else 100)
    for row in results["growth"]:
        print({name: round(value, 3) for name, value in row.items()})
    if arguments.quick:
        return
    folder = make_folder(Path(__file__).parent / "results")
    draw(results["growth"], folder / "mix_planner.png")
    about = {
        "edgerec_gym": edgerec_gym.__version__,
        "scipy": scipy.__version__,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "load_average": os.getloadavg()[0],
    }
    write_json(folder / "mix_planner.json", {"about": about, **results})


if __name__ == "__main__":
    main()
