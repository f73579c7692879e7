"""Steps per second of every id, preset, kind of users and batch size; the same as `edgerec bench-env`.

    python benchmarks/throughput.py [--quick] [--fresh]

Writes benchmarks/results/throughput.json after every figure; rerun the same command to continue.
"""

from __future__ import annotations

import sys
from pathlib import Path

from edgerec_gym.cli import app

if __name__ == "__main__":
    out = Path(__file__).parent / "results" / "throughput.json"
    app(["bench-env", "--out", str(out), *sys.argv[1:]])
