"""Copy finished runs into the package, where `edgerec bench --quick` finds them.

    python -m benchmarks.ship_agents [--runs runs] [--track TRACK ...] [--policy POLICY ...]

Copies the first training seed's runs that `edgerec bench` has made for `lite` (bench-TRACK-lite in the folder
of runs) and the prices of insertion policies to edgerec_gym/scenarios/lite/agents. With --policy, it copies
only what these policies need, such as distilled-values.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from edgerec_gym.bench.run import Order, settings_of
from edgerec_gym.bench.shipped import ship
from edgerec_gym.bench.track import TRACKS


def main() -> None:
    """Copy, and print what was copied."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--track", action="append", choices=TRACKS)
    parser.add_argument("--policy", action="append", default=[])
    arguments = parser.parse_args()
    tracks = [
        name
        for name in arguments.track or TRACKS
        if not arguments.policy or set(arguments.policy) & set(TRACKS[name].names())
    ]
    order = Order(tracks=tuple(tracks), policies=tuple(arguments.policy))
    for setting in settings_of(order, arguments.runs):
        written = ship(setting)
        files = [file for folder in written for file in folder.rglob("*") if file.is_file()]
        size = sum(file.stat().st_size for file in files)
        print(f"{setting.track.name}: {len(written)} runs, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
