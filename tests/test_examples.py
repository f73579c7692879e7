"""Every example runs, top to bottom, with small numbers."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
from places import ROOT

EXAMPLES = {
    "quickstart.py": ("--num-envs 8", "8 sessions, greedy by base ctr"),
    "train_maskable_ppo.py": ("--steps 4096 --sessions 10", "value"),
    "dqn_request.py": ("--steps 2400 --sessions 10", "dqn"),
    "train_generator_evaluator.py": ("--log-sessions 150 --epochs 1 --updates 2 --sessions 4", "over keep"),
    "offline_rl.py": ("--sessions 60 --updates 20", "offline cql  estimated from the log"),
    "plan_insertions.py": ("--log-sessions 200 --epochs 1 --seed 6", "picture:"),
    "record_gif.py": ("--slots 6", "picture: "),
    "fit_your_logs.py": ("--sessions 100 --epochs 1", "of the learned users"),
    "uplift_requests.py": ("--log-sessions 150 --epochs 1 --sessions 20", "plots: "),
}


def test_every_example_is_run():
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == set(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name, tmp_path):
    pytest.importorskip("sb3_contrib")
    if name == "offline_rl.py" and not all(map(importlib.util.find_spec, ("minari", "h5py", "torchrl"))):
        pytest.skip("needs the extra offline")
    arguments, printed = EXAMPLES[name]
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / name, *arguments.split()],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    assert printed in done.stdout
