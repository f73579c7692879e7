"""Training speed of our own learners on EdgeFeedRerank-v0, of one or several checkouts side by side.

    python -m benchmarks.training_speed [--scenario lite] [--learner NAME ...] [--rounds 3]
    python -m benchmarks.training_speed --checkout ../before --checkout .

| learner | what is timed |
| --- | --- |
| pointer-ppo | MaskablePPO with the pointer policy: 128 feeds, 32 slots each per update |
| pointer-ppo-rows | the same with recurrent = 0, without GRUs |
| pointer-users | policy gradient of the list generator: 32 sessions, 4 copies each per update |
| distilled-values | play, questions to learned users and regression: 256 sessions per update |

Learned users answer, and everything runs on one thread. Slots are those that are played. Each timing is a
process of its own in its checkout; checkouts take turns, so that other work on the machine hits all alike.
Slots per second of processor time vary less than those of wall time; both are printed, the median over the
rounds. The first update warms up. A checkout that lacks a learner is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

FEEDS, SLOTS = 128, 32  # of MaskablePPO
LISTS: dict[str, Any] = {"batch_size": 32, "samples": 4, "updates": 1_000_000}
LEARNERS = ("pointer-ppo", "pointer-ppo-rows", "pointer-users", "distilled-values")
MISSING = ("ModuleNotFoundError", "has no field")  # errors of a checkout that lacks a learner
Times = tuple[int, float, float]  # slots, seconds of processor time, seconds


def main() -> None:
    """Measure and print; as a child process, time one learner."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenario", default="lite")
    parser.add_argument("--learner", action="append", choices=LEARNERS)
    parser.add_argument("--checkout", action="append", type=Path, help="a checkout's root; may be repeated")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=4, help="updates of each timing")
    parser.add_argument("--child", choices=LEARNERS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(time_learner(given.child, given.scenario, given.updates)))
        return
    checkouts = given.checkout or [Path(__file__).parent.parent]
    learners = given.learner or LEARNERS
    found: dict[tuple[str, Path], list[Times]] = {}
    for _ in range(given.rounds):
        for learner in learners:
            for checkout in checkouts:
                timed = _in_checkout(checkout.resolve(), learner, given.scenario, given.updates)
                if timed is not None:
                    found.setdefault((learner, checkout), []).append(timed)
                    print(f"{learner} in {checkout}: {timed[0] / timed[1]:,.0f} slots/s", file=sys.stderr)
    title = f"{given.scenario}, one thread, median of {given.rounds}"
    table = Table("learner", "checkout", "slots/s of processor time", "slots/s", title=title)
    for (learner, checkout), times in found.items():
        by_cpu, by_clock = (median(slots / t[k] for slots, *t in times) for k in (0, 1))
        table.add_row(learner, str(checkout), f"{by_cpu:,.0f}", f"{by_clock:,.0f}")
    Console().print(table)


def _in_checkout(checkout: Path, learner: str, scenario: str, updates: int) -> Times | None:
    """Time a learner in a checkout; None if the checkout lacks it."""
    command = [sys.executable, __file__, "--child", learner, "--scenario", scenario]
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    told = subprocess.run(
        [*command, "--updates", str(updates)], cwd=checkout, env=environment, capture_output=True, text=True
    )
    if told.returncode:
        if any(missing in told.stderr for missing in MISSING):
            return None
        raise SystemExit(told.stderr)
    slots, cpu, seconds = json.loads(told.stdout.splitlines()[-1])
    return slots, cpu, seconds


def time_learner(learner: str, scenario: str, updates: int) -> Times:
    """Train for some updates, after one that warms up."""
    import torch

    torch.set_num_threads(1)
    makers = {"pointer-users": _lists, "distilled-values": _values, "pointer-ppo": _ppo}
    advance = partial(_ppo, recurrent=0)(scenario) if learner.endswith("rows") else makers[learner](scenario)
    advance(1)
    cpu, start = time.process_time(), time.perf_counter()
    slots = advance(updates)
    return slots, time.process_time() - cpu, time.perf_counter() - start


def _ppo(scenario: str, **more: int) -> Any:
    from sb3_contrib import MaskablePPO

    from edgerec_gym.adapters.sb3 import make_vec_env
    from edgerec_gym.agents.ppo.trained_policy import POINTER, PPOConfig, policy_class, policy_kwargs

    settings = PPOConfig.from_dict({"n_steps": SLOTS, **more})
    model = MaskablePPO(
        policy_class(POINTER),
        make_vec_env("EdgeFeedRerank-v0", FEEDS, seed=0, scenario=scenario),
        n_steps=SLOTS,
        batch_size=settings.batch_size,
        n_epochs=settings.n_epochs,
        gamma=settings.gamma,
        policy_kwargs=policy_kwargs(POINTER, "rerank", settings),
        seed=0,
        device="cpu",
    )

    def advance(updates: int) -> int:
        model.learn(updates * FEEDS * SLOTS, reset_num_timesteps=False)
        return updates * FEEDS * SLOTS

    return advance


def _lists(scenario: str) -> Any:
    from edgerec_gym.agents.lists.generator import GeneratorTrainer, _environment, make_generator
    from edgerec_gym.agents.lists.policy_gradient import PolicyGradientConfig
    from edgerec_gym.scenario import Scenario

    place, settings = Scenario.load(scenario), PolicyGradientConfig(**LISTS)
    env = _environment(place, "learned", settings)
    network = make_generator({}, place.config, 0)
    record = {"agent": "pointer-users", "seed": 0, "steps": 0, "reward": []}
    trainer = GeneratorTrainer(record, settings, network, None, None, env)

    def advance(updates: int) -> int:
        slots = 0
        for _ in range(updates):
            trainer.update()
            slots += int(env.batch.arrays.slot.sum())
        return slots

    return advance


def _values(scenario: str) -> Any:
    from edgerec_gym.agents.values import train as values
    from edgerec_gym.agents.values.network import ValueConfig
    from edgerec_gym.scenario import Scenario

    record = {"agent": values.AGENT, "track": "rerank", "seed": 0, "steps": 0, "loss": [], "reward": []}
    trainer = values.ValueTrainer(record, ValueConfig(), Scenario.load(scenario))

    def advance(updates: int) -> int:
        slots = 0
        for _ in range(updates):
            trainer.update()
            slots += int(trainer.env.batch.arrays.slot.sum())
        return slots

    return advance


if __name__ == "__main__":
    main()
