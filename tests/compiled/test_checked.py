"""The debug mode in which kernels check their indices."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT


@pytest.mark.slow
@pytest.mark.timeout(1200)  # compiles every kernel the first time
def test_random_play_with_checked_indices():
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("checked_play.py"))],
        env={
            **os.environ,
            "EDGEREC_CHECK": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "played\n"), done.stderr
