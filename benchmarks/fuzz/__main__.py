"""Fuzz the package: random feeds against a model of their rules, and corrupted files against every reader.

Run `python -m benchmarks.fuzz` (make fuzz). Ends with exit code 1 if there is a fault.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import edgerec_gym
from benchmarks.fuzz import files, steps
from benchmarks.fuzz.workers import Lost, ask_all
from edgerec_gym.files import write_json

STEPS = 100_000_000
STEPS_EACH = 250_000  # of a config
FILES = 3200
QUICK_STEPS, QUICK_EACH, QUICK_FILES = 1_000_000, 20_000, 200
CONFIG_LIMIT = 600.0  # seconds for one config
MOST_SHOWN = 40


def main() -> None:
    """Run, print the tables, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("part", nargs="?", default="all", choices=("all", "steps", "files"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, help="end each part after this time")
    parser.add_argument("--steps", type=int, help=f"steps to play; default {STEPS:,}")
    parser.add_argument("--files", type=int, help=f"files to corrupt, at least; default {FILES:,}")
    parser.add_argument("--only", help="only documents whose name contains this text")
    parser.add_argument("--config", type=int, help="play only this config, as a fault names it")
    parser.add_argument("--case", type=int, help="with --only: read only this variant, as a fault names it")
    parser.add_argument("--keep", type=Path, help="with --case: a folder for the corrupted files")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a tenth of a percent: a minute or two")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    started, faults, found = time.time(), 0, {}
    folder = Path(tempfile.mkdtemp(prefix="edgerec-fuzz-"))
    try:
        if arguments.part != "files" and arguments.case is None:
            found["steps"] = fuzz_steps(arguments, folder)
            faults += len(found["steps"]["faults"])
        if arguments.part != "steps" and arguments.config is None:
            found["files"] = fuzz_files(arguments, folder)
            faults += len(found["files"]["faults"])
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if arguments.json is not None:
        about = {
            "edgerec_gym": edgerec_gym.__version__,
            "machine": f"{platform.machine()}, Python {platform.python_version()}",
            "seed": arguments.seed,
            "minutes": round((time.time() - started) / 60, 1),
        }
        write_json(arguments.json, {"about": about, **found})
    sys.exit(1 if faults else 0)


def _progress(label: str, done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"{label} {done:,} of {total:,}", end="\r", file=sys.stderr, flush=True)


# --- steps ----------------------------------------------------------------------------------------------


def fuzz_steps(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Play configs until there are enough steps; print and return the figures."""
    total = arguments.steps or (QUICK_STEPS if arguments.quick else STEPS)
    each = min(total, QUICK_EACH if arguments.quick else STEPS_EACH)
    played: list[steps.Played] = []
    start = time.monotonic()

    def take(number: int, answer: Any) -> None:
        if isinstance(answer, Lost):
            lost = f"{answer.outcome}: {answer.message}"
            answer = steps.Played(f"config {number}", "unknown", "unknown", faults=[lost])
        played.append(answer)
        for fault in answer.faults:
            print(f"{answer.config}: {fault}", file=sys.stderr)
        _progress("steps", sum(one.steps for one in played), total)

    def enough() -> bool:
        late = arguments.minutes is not None and time.monotonic() - start > 60 * arguments.minutes
        return late or sum(one.steps for one in played) >= total

    service = steps.service(arguments.seed, each)
    if arguments.config is None:
        numbers = range(10 * (1 + total // each))
    else:
        numbers = range(arguments.config, arguments.config + 1)
    ask_all(service, numbers, folder, lambda _: CONFIG_LIMIT, take, arguments.workers, enough)
    found = steps.summary(played) | {"seconds": round(time.monotonic() - start)}
    table = Table("id", "configs", "steps", "faults", title="random feeds against the model of their rules")
    for env_id in sorted({one.env_id for one in played}):
        own = [one for one in played if one.env_id == env_id]
        count = sum(one.steps for one in own)
        table.add_row(env_id, f"{len(own)}", f"{count:,}", f"{sum(len(one.faults) for one in own)}")
    table.add_row("all", f"{len(played)}", f"{found['steps']:,}", f"{len(found['faults'])}")
    console = Console(width=120)
    console.print(table)
    refused = Counter(one.refused for one in played if one.refused)
    ended, compared = found["sessions"], found["steps_compared"]
    print(f"{ended:,} sessions ended; {compared:,} steps replayed or seen in other views")
    print(f"{found['refused_configs']} configs refused in one line; {found['seconds']} s")
    for reason, count in refused.most_common(3):
        print(f"  {count} x {reason}")
    for fault in found["faults"][:MOST_SHOWN]:
        print(f"fault: {fault}")
    return found


# --- files ----------------------------------------------------------------------------------------------


def fuzz_files(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Corrupt and read files; print and return the figures."""
    total = arguments.files or (QUICK_FILES if arguments.quick else FILES)
    cases = files.plan(total, arguments.only)
    if arguments.case is not None:
        names = dict.fromkeys(case.document for case in cases)
        cases = [files.Case(name, arguments.case) for name in names]
    if arguments.keep is not None:
        files.keep(cases[0], arguments.seed, arguments.keep)
    start = time.monotonic()
    end = None if arguments.minutes is None else start + 60 * arguments.minutes

    def progress(done: int, last: files.Result) -> None:
        if last.outcome in files.FAULTS:
            print(f"{last.outcome}: {last.case.document}: {last.how}: {last.message}", file=sys.stderr)
        _progress("files", done, len(cases))

    tally = files.run(cases, arguments.seed, folder, arguments.workers, progress, end)
    healthy = [r for r in tally.results if r.case.number < 0 and r.outcome != files.ACCEPTED]
    tally.results = [r for r in tally.results if r.case.number >= 0]
    table = Table("document", *files.OUTCOMES, title="corrupted files, by how reading ended")
    counts = tally.counts()
    for name, counted in sorted(counts.items()):
        table.add_row(name, *(str(counted[outcome] or "") for outcome in files.OUTCOMES))
    totals = sum(counts.values(), Counter())
    table.add_row(f"all {len(tally.results):,}", *(str(totals[outcome]) for outcome in files.OUTCOMES))
    Console(width=140).print(table)
    accepted = tally.accepted()
    print("accepted, and played without harm, by kind and corruption:")
    for name, kinds in accepted.items():
        print(f"  {name}: {', '.join(f'{how} ({n})' if n > 1 else how for how, n in kinds.items())}"[:1000])
    groups = tally.grouped_faults()
    for group in groups[:MOST_SHOWN]:
        print(f"fault: {json.dumps(group)}")
    for result in healthy:
        print(f"fault: the healthy {result.case.document} is not accepted: {result.message}")
    return {
        "variants": len(tally.results),
        "outcomes": {outcome: totals[outcome] for outcome in files.OUTCOMES},
        "by_document": {name: dict(counted) for name, counted in sorted(counts.items())},
        "accepted": accepted,
        "faults": groups + [{"document": r.case.document, "message": r.message} for r in healthy],
        "seconds": round(time.monotonic() - start),
    }


if __name__ == "__main__":
    main()
