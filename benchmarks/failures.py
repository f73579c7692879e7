"""Do kills and full disks lose anything? Every command that writes is killed, or out of room, at many points.

    python -m benchmarks.failures [--quick] [--only COMMAND ...] [--kills N] [--limits N] [--seed N]

A killed command gets SIGKILL at a random time; one out of room may write no file beyond a random size
(RLIMIT_FSIZE, whose errors are those of a full disk). Then the same command runs again, undisturbed, and what
it leaves must equal what one run without a failure leaves, file by file. A point is a loss if it does not, if
a file was neither the old nor the new one after the failure, or if a temporary file remains. It counts as a
traceback if the command ended in anything but one line and exit code 2.

Exits with 1 if there was a loss or a traceback. Needs Linux or macOS.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import importlib
import json
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from edgerec_gym.cli import main as edgerec
from edgerec_gym.commands.console import print_table
from edgerec_gym.config import preset
from edgerec_gym.feed.batch import FeedBatch
from edgerec_gym.files import LOCK
from edgerec_gym.logs import collect
from edgerec_gym.logs.logging_policy import DECISIONS, RandomisedPolicy
from edgerec_gym.users.synthetic import SyntheticUsers

SESSIONS, PART = 200, 40  # of the log that everything reads
LOADED = (  # before the fork, so that a point takes only the time of the work; none of these starts a thread
    "edgerec_gym.agents.find_policy",
    "edgerec_gym.agents.rerank.train",
    "edgerec_gym.agents.export.export",
    "edgerec_gym.agents.data.minari",
    "edgerec_gym.bench.run",
    "edgerec_gym.bench.rerank",
    "edgerec_gym.bench.learning_curve",
    "edgerec_gym.commands.demo",
    "edgerec_gym.logs.ebnerd",
    "edgerec_gym.logs.table",
    "edgerec_gym.pages.replay",
    "edgerec_gym.pages.report",
    "edgerec_gym.simulator.fit",
    "h5py",
    "matplotlib.pyplot",
    "minari",
)
TIMES = {
    "minutes",
    "seconds",
    "policy_steps_per_second",
    "env_steps_per_second",
}  # keys and metrics that no two runs share

Content = dict[str, Any]  # of files, by path


@dataclass(frozen=True)
class Case:
    """A command, and how it is disturbed.

    Attributes:
        name: what the table calls it.
        arguments: with {out} for the folder it writes, and {work} for the folder of its inputs.
        killed: whether it is also killed; other commands keep no state between runs.
        replaces: arguments of an earlier run into the same folder, whose files must survive; None = none.
    """

    name: str
    arguments: str
    killed: bool = False
    replaces: str | None = None


EXPORT = "export {work}/run --scenario lite --out {out}/device"
EVALUATE = "evaluate keep --scenario lite --users synthetic --sessions 20 --num-envs 20 --out {out}"
REPLAY = "replay keep --scenario lite --out {out}/session.html"
REPORT = "report {work}/evaluated --out {out}/report.html"
BENCH = "bench --quick --track rerank --shift none --sessions 10 --workers 1 --out {out} --results {out}"
CASES = (
    Case("collect", f"collect --preset lite --sessions {SESSIONS} --out {{out}}", killed=True),
    Case("import", "import {work}/table.csv --mapping {work}/mapping.json --out {out}", killed=True),
    Case("fit", "fit {work}/logs --out {out} --ensemble 2 --epochs 2 --threads 1", killed=True),
    Case("train", "train --agent crban --logs {work}/logs --out {out} --set epochs=4", killed=True),
    Case("bench", BENCH, killed=True),
    Case("evaluate", EVALUATE, replaces=f"{EVALUATE} --seed 1"),
    Case("replay", REPLAY, replaces=f"{REPLAY} --session 1"),
    Case("report", REPORT, replaces=f"{REPORT} --seed 1"),
    Case("export", EXPORT, replaces=f"{EXPORT} --places 4"),
    Case("export-logs", "export-logs {work}/logs --sessions 10 --out {out}/edgefeed-v0"),
    Case("demo", "demo --quick --out {out}"),
)
BEFORE = (  # what the cases read
    f"collect --preset lite --sessions {SESSIONS} --out {{work}}/logs",
    "train --agent crban --logs {work}/logs --out {work}/run --set epochs=1",
    "evaluate keep --scenario lite --users synthetic --sessions 20 --num-envs 20 --out {work}/evaluated",
)


@dataclass
class Tally:
    """What happened at the points of one command under one kind of failure."""

    command: str
    failure: str
    points: int = 0
    struck: int = 0  # points at which the failure came before the end
    losses: int = 0
    tracebacks: int = 0


def write_table(work: Path, seed: int) -> None:
    """Write a table of shown items and its mapping, for `edgerec import`."""
    rng = np.random.default_rng(seed)
    with (work / "table.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["uid", "sku", "ts", "rank", "clicked"])
        for session in range(60):
            for rank in range(12):
                moment = 1_700_000_000 + session * 7200 + rank * 5
                writer.writerow(
                    [f"u{session % 20}", f"i{rng.integers(50)}", moment, rank, int(rng.random() < 0.2)]
                )
    mapping = {"user": "uid", "item": "sku", "time": "ts", "position": "rank", "click": "clicked"}
    (work / "mapping.json").write_text(json.dumps(mapping), encoding="utf-8")


def run(
    arguments: str, work: Path, out: Path, *, kill_after: float | None = None, limit: int | None = None
) -> tuple[int, str]:
    """Run the command in a fork of this process.

    Args:
        arguments: see :class:`Case`.
        work: folder of inputs.
        out: folder of results.
        kill_after: seconds until SIGKILL.
        limit: maximum size of a file, in bytes.

    Returns:
        Exit code (negative: the signal that ended it) and stderr.
    """
    reader, writer = os.pipe()  # unlike a file, it has no limit
    child = os.fork()
    if child == 0:
        _command(arguments.format(work=work, out=out).split(), writer, limit)
    os.close(writer)
    kill_at = time.monotonic() + (kill_after if kill_after is not None else float("inf"))
    told = b""
    with open(reader, "rb", buffering=0) as errors:
        while True:
            wait = max(0.0, min(kill_at - time.monotonic(), 3600.0))
            if select.select([errors], [], [], wait)[0]:
                block = errors.read(65536)
                if not block:  # the child has ended
                    break
                told += block
            elif time.monotonic() >= kill_at:
                os.kill(child, signal.SIGKILL)
                kill_at = float("inf")
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), told.decode(errors="replace")


def _command(arguments: list[str], errors: int, limit: int | None) -> NoReturn:
    """Be the command, in a fork."""
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(errors, 2)
        os.close(errors)
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        sys.argv = ["edgerec", *arguments]
        edgerec()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def content(folder: Path) -> Content:
    """Return what every file of a folder holds, without times and without the lock.

    TensorBoard's event files are left out: their names and contents tell the time and the process.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != LOCK and not path.name.startswith("events.out.tfevents."):
            data = path.read_bytes()
            if path.suffix == ".safetensors":  # its header may tell times
                data = data[8 + int.from_bytes(data[:8], "little") :]
            name = str(path.relative_to(folder))
            found[name] = (
                _timeless(json.loads(data)) if path.suffix == ".json" else hashlib.sha256(data).hexdigest()
            )
    return found


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        if TIMES & {value.get("metric")}:  # a row of a benchmark
            return value["metric"]
        return {key: _timeless(item) for key, item in value.items() if key not in TIMES}
    return [_timeless(item) for item in value] if isinstance(value, list) else value


def study(case: Case, work: Path, kills: int, limits: int, rng: np.random.Generator) -> list[Tally]:
    """Disturb one command at many points."""
    old_folder, out = work / "old", work / "out"
    for folder in (old_folder, out):
        shutil.rmtree(folder, ignore_errors=True)
    old: Content = {}
    if case.replaces is not None:
        _undisturbed(case.replaces, work, out)
        old = content(out)
        shutil.copytree(out, old_folder)
    start = time.monotonic()
    _undisturbed(case.arguments, work, out)
    took, wanted = time.monotonic() - start, content(out)
    largest = max(path.stat().st_size for path in out.rglob("*") if path.is_file())
    tallies = []
    for failure, points in (("kill -9", kills if case.killed else 0), ("file size", limits)):
        tally = Tally(case.name, failure)
        for _ in range(points):
            shutil.rmtree(out)
            if old:
                shutil.copytree(old_folder, out)
            if failure == "kill -9":
                code, told = run(case.arguments, work, out, kill_after=rng.random() * took)
                right = code in (0, -signal.SIGKILL) and "Traceback" not in told
            else:
                code, told = run(case.arguments, work, out, limit=int(largest ** rng.random()))
                last = (told.strip().splitlines() or [""])[-1]
                right = code == 0 or code == 2 and last.startswith("error: ") and "Traceback" not in told
            tally.points += 1
            tally.struck += code != 0
            tally.tracebacks += not right
            whole = not old or all(
                held in (old.get(name), wanted.get(name)) for name, held in content(out).items()
            )
            again, told_again = run(case.arguments, work, out)
            lost = not whole or again != 0 or content(out) != wanted
            tally.losses += lost
            if lost or not right:
                now = content(out)
                different = sorted(name for name in {*wanted, *now} if wanted.get(name) != now.get(name))
                print(
                    f"{case.name}, {failure}: exit {code}, then {again}; different: {different}",
                    file=sys.stderr,
                )
                print(told[-2000:], told_again[-2000:], file=sys.stderr)
        if tally.points:
            print(f"{vars(tally)}, {took:.1f} s undisturbed", file=sys.stderr, flush=True)
            tallies.append(tally)
    return tallies


def _undisturbed(arguments: str, work: Path, out: Path) -> None:
    code, told = run(arguments, work, out)
    if code:
        raise SystemExit(f"without a failure, edgerec {arguments} ended with {code}:\n{told}")


def warm_up(libraries: bool) -> None:
    """Load kernels, and libraries, into this process, from which every command is forked."""
    for name in LOADED if libraries else ():
        importlib.import_module(name)
    collect.SESSIONS_PER_PART = PART
    config, synthetic = preset("lite")
    users = SyntheticUsers(synthetic, config)
    batch = FeedBatch(2, "joint", config, users.world.catalog, users, split="log")
    collect.log_batch(batch, 0, 0, 2, RandomisedPolicy(DECISIONS), None)  # loads the kernels


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few points, about a minute")
    parser.add_argument("--only", nargs="+", choices=[case.name for case in CASES], help="default: all")
    parser.add_argument("--kills", type=int, help="points per command that keeps its state")
    parser.add_argument("--limits", type=int, help="points per command")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    kills = (2 if given.quick else 40) if given.kills is None else given.kills
    limits = (1 if given.quick else 20) if given.limits is None else given.limits
    chosen = [(index, case) for index, case in enumerate(CASES) if not given.only or case.name in given.only]
    prepared = any("{work}" in case.arguments for _, case in chosen)
    warm_up(libraries=prepared)
    tallies: list[Tally] = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        write_table(work, given.seed)
        for arguments in BEFORE if prepared else ():
            _undisturbed(arguments, work, work)
        for index, case in chosen:
            tallies += study(case, work, kills, limits, np.random.default_rng([given.seed, index]))
    header = ["command", "failure", "points", "struck", "losses", "tracebacks"]
    body = [[str(value) for value in vars(tally).values()] for tally in tallies]
    total = [sum(getattr(tally, name) for tally in tallies) for name in header[2:]]
    print_table("failures, then the same command again", header, [*body, ["all", "", *map(str, total)]])
    if total[2] or total[3]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
