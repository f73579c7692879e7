"""Steps per second compared with other recommendation environments, alternating in one run, as ratios.

    python benchmarks/peers.py

Each peer is installed from PyPI into its own virtual environment under benchmarks/.peers (they pin other
versions), and steps there with random actions while ours waits. sardine-rec 1.0.8 (SARDINE, RecSys'24) is the
only one that still installs and runs on a current Python: RecSim needs TensorFlow 1 and gym, RecoGym an old
gym, VirtualTaobao has no release, KuaiSim and RL4RS are not packaged.
"""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

import edgerec_gym
from edgerec_gym.files import make_folder, write_json

HERE = Path(__file__).parent
ROUNDS, SECONDS = 7, 2.0
PEERS = {
    "sardine-rec==1.0.8": ("sardine", ["sardine/SingleItem-BoredInf-v0", "sardine/SlateTopK-Bored-v0"]),
    "edgerec_gym": ("edgerec_gym", ["EdgeFeed-v0 synthetic", "EdgeFeed-v0 learned"]),
}
# Runs in the peer's interpreter; prints steps per second for every line that it reads.
LOOP = """
import sys, time, importlib, numpy as np, gymnasium as gym
module, name = sys.argv[1:]
importlib.import_module(module)
name, _, users = name.partition(" ")
env = gym.make(name, **({"users": users} if users else {}))
observation, _ = env.reset(seed=0)
env.action_space.seed(0)
draws = np.random.default_rng(0).random(1 << 16).tolist()
masked = "action_mask" in observation if isinstance(observation, dict) else False
for line in sys.stdin:
    n, start, seconds = 0, time.perf_counter(), float(line)
    while n % 64 or time.perf_counter() - start < seconds:
        if masked:
            legal = observation["action_mask"].nonzero()[0]
            action = legal[int(draws[n & 0xFFFF] * len(legal))]
        else:
            action = env.action_space.sample()
        observation, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            observation, _ = env.reset()
        n += 1
    print(n / (time.perf_counter() - start), flush=True)
"""


def interpreter(package: str) -> str:
    """Path of a Python that has the package."""
    if package == "edgerec_gym":
        return sys.executable
    folder = HERE / ".peers" / package.split("==")[0]
    python = folder / "bin" / "python"
    if not (folder / ".installed").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", package], check=True)
        (folder / ".installed").touch()
    return str(python)


def main() -> None:
    """Measure, print, write."""
    runs = {}
    for package, (module, names) in PEERS.items():
        for name in names:
            runs[f"{package}: {name}"] = subprocess.Popen(
                [interpreter(package), "-c", LOOP, module, name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for k in range(ROUNDS + 1):
        for name, run in runs.items():
            assert run.stdin is not None
            assert run.stdout is not None
            print(SECONDS if k else 0.5, file=run.stdin, flush=True)
            rate = float(run.stdout.readline())
            if k:  # the first round warms up
                rates[name].append(rate)
    for run in runs.values():
        run.communicate()

    fastest = np.array(next(iter(rates.values())))
    rows = [
        {
            "environment": name,
            "steps_per_s": float(np.median(values)),
            "ratio": float(np.median(values / fastest)),
        }
        for name, values in rates.items()
    ]
    table = Table("environment", "steps/s", "ratio to the first", title="One environment, random policy")
    for row in rows:
        table.add_row(str(row["environment"]), f"{row['steps_per_s']:,.0f}", f"{row['ratio']:.2f}")
    Console().print(table)
    about = {"edgerec_gym": edgerec_gym.__version__, "python": platform.python_version(), "rounds": ROUNDS}
    write_json(make_folder(HERE / "results") / "peers.json", {"about": about, "rows": rows})


if __name__ == "__main__":
    main()
