"""How fast is `edgerec import` beside a bare scan of the same file, and how much memory does it need?

Writes a made-up table, imports it in a child process whose peak memory is taken, interrupts a second import
and resumes it. Prints only.

    python -m benchmarks.import_speed [--rows 10000000] [--kind parquet --kind csv] [--folder DIR]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

CHUNK = 1_000_000  # rows written at a time
PAGE, VISITS = 10, 10  # rows of a page, pages of a user
MAPPING = {
    "user": "user_id",
    "item": "item_id",
    "time": "ts",
    "click": "clicked",
    "list": "page_id",
    "position": "rank",
    "category": "category",
    "price": "price",
}
SCAN = (
    "import polars as pl, sys; p = sys.argv[1]; "
    "f = pl.scan_parquet(p) if p.endswith('.parquet') else pl.scan_csv(p); "
    "print(f.select(pl.len(), pl.col('clicked').sum()).collect(engine='streaming').row(0))"
)
IMPORT = (
    "import sys; from edgerec_gym.commands.console import peak_memory; "
    "from edgerec_gym.logs.table import import_table; "
    "r = import_table(*sys.argv[1:4]); print(r['counts']['rows'], r['counts']['sessions'], peak_memory())"
)


def write_table(path: Path, rows: int) -> None:
    """Write pages of ten rows, ten pages per user over two weeks, 50,000 items; sorted by time within a "
    "user."""
    writer = None
    for begin in range(0, rows, CHUNK):
        rng = np.random.default_rng(begin)
        row = np.arange(begin, min(begin + CHUNK, rows))
        page, user = row // PAGE, row // (PAGE * VISITS)
        item = (rng.integers(5000, size=len(row)) * PAGE + row % PAGE).astype(np.int64)  # different in a page
        table = pa.table(
            {
                "user_id": user,
                "item_id": item,
                "ts": 1_700_000_000 + page % VISITS * 120_000 + user % 40_000 + row % PAGE,
                "page_id": page,
                "rank": row % PAGE,
                "clicked": (rng.random(len(row)) < np.where(user % 7 == item % 7, 0.3, 0.05)).astype(np.int8),
                "category": item % 40,
                "price": np.round(1.0 + item % 1000, 2),
                "title": pa.array(item.astype(str)),
            }
        )
        if writer is None:
            kind = pq.ParquetWriter if path.suffix == ".parquet" else pa_csv.CSVWriter
            writer = kind(path, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()


def timed(*command: object) -> tuple[float, float, str]:
    """Run a child process; returns seconds, seconds of all cores together, and what it printed."""
    begin, used = time.perf_counter(), _used()
    done = subprocess.run(
        [sys.executable, "-c", *map(str, command)], capture_output=True, text=True, check=True
    )
    return time.perf_counter() - begin, _used() - used, done.stdout.strip()


def _used() -> float:
    """Return the processor time of all child processes so far, which other jobs do not lengthen much."""
    times = resource.getrusage(resource.RUSAGE_CHILDREN)
    return times.ru_utime + times.ru_stime


def interrupted(table: Path, mapping: Path, out: Path) -> int:
    """Start an import, interrupt it once it has written a part; returns the parts that it left."""
    child = subprocess.Popen([sys.executable, "-c", IMPORT, table, mapping, out], stderr=subprocess.DEVNULL)
    while child.poll() is None and not list(out.glob("part-*.parquet")):
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    child.wait()
    return len(list(out.glob("part-*.parquet")))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--kind", action="append", choices=("parquet", "csv"))
    parser.add_argument("--folder", type=Path, help="where the tables are written; removed at the end")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        mapping = folder / "mapping.json"
        mapping.write_text(json.dumps(MAPPING))
        print(f"{arguments.rows:,} rows, {os.cpu_count()} cores, polars {pl.__version__}")
        for kind in arguments.kind or ["parquet", "csv"]:
            table = folder / f"table.{kind}"
            write_table(table, arguments.rows)
            print(f"{kind}: {table.stat().st_size / 1e6:,.0f} MB")
            seconds, used, _ = timed(SCAN, table)
            print(
                f"  bare scan    {arguments.rows / seconds:>12,.0f} rows/s  {seconds:6.1f} s (with the "
                f"start of Python), {used:.1f} s of the processors"
            )
            seconds, used, text = timed(IMPORT, table, mapping, folder / f"{kind}-logs")
            rows, sessions, peak = text.split()
            print(
                f"  import       {arguments.rows / seconds:>12,.0f} rows/s  {seconds:6.1f} s, {used:.1f} s "
                f"of the processors, peak memory {float(peak):,.0f} MB, {int(rows):,} rows, "
                f"{int(sessions):,} sessions"
            )
            left = interrupted(table, mapping, folder / f"{kind}-again")
            seconds, used, text = timed(IMPORT, table, mapping, folder / f"{kind}-again")
            same = all(
                path.read_bytes() == (folder / f"{kind}-again" / path.name).read_bytes()
                for path in (folder / f"{kind}-logs").glob("part-*.parquet")
            )
            print(
                f"  interrupted after {left} parts, resumed in {seconds:.1f} s, {used:.1f} s of the "
                f"processors: {'the same log' if same else 'ANOTHER LOG'}"
            )
            table.unlink()


if __name__ == "__main__":
    main()
