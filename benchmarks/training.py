"""Training speed of MaskablePPO: our VecEnv against DummyVecEnv over single environments.

    python benchmarks/training.py [--slots 20000]

Both use the same learner with SB3's defaults (10 epochs of batches of 64); the environment's share is the
time inside `step_wait` and `reset`.
"""

from __future__ import annotations

import argparse
import platform
import time
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from rich.console import Console
from rich.table import Table
from sb3_contrib import MaskablePPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

import edgerec_gym
from edgerec_gym.adapters.sb3 import make_vec_env
from edgerec_gym.files import make_folder, write_json

NUM_ENVS, N_STEPS = 64, 32  # as many slots per rollout as SB3 takes from one environment by default


def timed(env: VecEnv) -> dict[str, float]:
    """Start counting the seconds spent inside the environment."""
    spent = {"seconds": 0.0}
    for name in ("step_wait", "reset"):
        original = getattr(env, name)

        def call(*args: Any, original: Any = original) -> Any:
            start = time.perf_counter()
            try:
                return original(*args)
            finally:
                spent["seconds"] += time.perf_counter() - start

        setattr(env, name, call)
    return spent


def learn(env: VecEnv, policy: str, slots: int) -> dict[str, float]:
    """Train for some slots; returns slots per second, and the environment's share of the time."""
    model = MaskablePPO(policy, env, n_steps=N_STEPS, seed=0, device="cpu")
    model.learn(NUM_ENVS * N_STEPS)  # warms up
    spent, start = timed(env), time.perf_counter()
    model.learn(slots, reset_num_timesteps=False)
    seconds = time.perf_counter() - start
    env.close()
    return {"slots_per_s": slots / seconds, "environment_share": spent["seconds"] / seconds}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slots", type=int, default=4 * NUM_ENVS * N_STEPS)
    parser.add_argument("--scenario", default="default")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    rows: list[dict[str, Any]] = []
    for users in ("learned", "synthetic"):
        settings: dict[str, Any] = {"scenario": arguments.scenario, "users": users}
        make: Any = partial(gym.make, "EdgeFeed-v0", **settings)
        for name, env in (
            ("FeedVecEnv", make_vec_env("EdgeFeed-v0", NUM_ENVS, seed=0, **settings)),
            ("DummyVecEnv", DummyVecEnv([make] * NUM_ENVS)),
        ):
            figures = learn(env, "MultiInputPolicy", arguments.slots)
            rows.append({"users": users, "vec_env": name, **figures})
    title = f"MaskablePPO, MultiInputPolicy, {NUM_ENVS} environments, {arguments.scenario} preset"
    table = Table("users", "vec env", "slots/s", "environment's share", title=title)
    for row in rows:
        share = f"{row['environment_share']:.1%}"
        table.add_row(row["users"], row["vec_env"], f"{row['slots_per_s']:,.0f}", share)
    Console().print(table)
    about = {"edgerec_gym": edgerec_gym.__version__, "torch": torch.__version__, "threads": 2}
    about["machine"] = f"{platform.machine()}, Python {platform.python_version()}"
    write_json(
        make_folder(Path(__file__).parent / "results") / "training.json", {"about": about, "rows": rows}
    )


if __name__ == "__main__":
    main()
