"""Kills and full disks at a few points; `python -m benchmarks.failures` takes many."""

from __future__ import annotations

import subprocess
import sys

import pytest
from places import ROOT

pytest.importorskip("resource")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_nothing_is_lost() -> None:
    given = ["--only", "collect", "evaluate", "--kills", "1", "--limits", "1"]
    program = [sys.executable, "-m", "benchmarks.failures", *given]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    total = next(line.split() for line in done.stdout.splitlines() if line.startswith("all "))
    assert (total[1], total[3:]) == ("3", ["0", "0"])
