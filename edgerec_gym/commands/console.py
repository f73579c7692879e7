"""Terminal output of the commands of `edgerec`: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from edgerec_gym import interrupts
from edgerec_gym.evaluation.report import tables
from edgerec_gym.files import json_ready

if TYPE_CHECKING:
    from edgerec_gym.scenario import Scenario

WIDE = 160  # characters
BREAKS = 28  # characters of a text column that may break its lines
EVERY = 10.0  # seconds between the lines of progress, where there is no terminal
INTERRUPTED = 130  # exit code of a program that Ctrl-C ended


def print_json(value: Any) -> None:
    """Print machine-readable results on stdout."""
    print(json.dumps(json_ready(value), indent=1, allow_nan=False))


def print_table(title: str, header: list[str], body: list[list[str]], left: int = 1) -> None:
    """Print a table on stdout.

    In a terminal that is too narrow, the last columns are left out and named below the table; the first
    column, which holds names, is always whole.

    Args:
        title: line above the table.
        header: names of the columns.
        body: cells by row.
        left: columns that are left-aligned, from the first; of these, the last may break its lines if it is
            not the first.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # A file needs no truncation.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDE)
    shown, dropped = _fitting(header, body, left, console.width)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for k in shown:
        wraps = 0 < k == left - 1
        table.add_column(
            header[k], justify="left" if k < left else "right", no_wrap=not wraps, overflow="fold"
        )
    for cells in body:
        table.add_row(*(Text(cells[k]) for k in shown))
    console.print(Text(title, style="bold"), table)
    if dropped:
        names = ", ".join(header[k] for k in dropped)
        console.print(Text(f"left out in {console.width} columns: {names}; --json has all"))
    console.print("")


def _fitting(header: list[str], body: list[list[str]], left: int, width: int) -> tuple[list[int], list[int]]:
    """Return the columns that fit a width, and those that do not; columns with long texts may break lines."""
    widths = [max(len(row[k]) for row in [header, *body]) for k in range(len(header))]
    if left > 1:
        widths[left - 1] = min(widths[left - 1], BREAKS)
    shown = list(range(len(header)))
    while len(shown) > 1 and sum(widths[k] + 1 for k in shown) > width:
        shown.pop()
    return shown, [k for k in range(len(header)) if k not in shown]


def print_results(results: list[dict[str, Any]]) -> None:
    """Print the tables of an evaluation on stdout."""
    for title, (header, body) in tables(results, brief=True).items():
        print_table(title, header, body)


def print_nested(values: dict[str, Any], indent: int = 0) -> None:
    """Print nested dicts on stdout, one line per number or text."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            print(f"{'  ' * indent}{key}")
            print_nested(value, indent + 1)
        else:
            if isinstance(value, dict | list | tuple):
                value = ", ".join(map(str, value)) or "none"
            print(f"{'  ' * indent}{key}: {f'{value:.4g}' if isinstance(value, float) else value}")


def note(text: str) -> None:
    """Print one line on stderr."""
    print(text, file=sys.stderr)


def tell_terminal(text: str) -> None:
    """Print one line on stderr if someone watches; elsewhere an error is to be the only line."""
    if sys.stderr.isatty():
        note(text)


def note_weakness(scenario: Scenario) -> None:
    """Print one line on stderr if the scenario's learned users are known to be weak."""
    if text := scenario.weakness():
        note(f"note: the users of scenario {scenario.name!r} are weak: {text}")


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[..., None]]:
    """Show progress on stderr from the first update on; yields update(done, total, text="").

    A terminal gets a bar, anything else a line every ten seconds.
    """
    if not sys.stderr.isatty():
        yield _progress_lines(label)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn(f"{label:<9}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    progress = Progress(*columns, TextColumn("{task.description}"), console=Console(stderr=True))
    task = progress.add_task("", total=None)

    def update(done: int, total: int, text: str = "") -> None:
        progress.start()  # no earlier: bad input must print its one line only
        progress.update(task, completed=done, total=total, description=text)

    try:
        yield update
    finally:
        if progress.live.is_started:
            progress.stop()


def _progress_lines(label: str) -> Callable[..., None]:
    """Return an update(done, total, text) that prints a line at most every ten seconds."""
    start = last = time.monotonic()

    def update(done: int, total: int, text: str = "") -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= EVERY:
            last = now
            note(f"{label}: {done:,} of {total:,} after {now - start:.0f} s{f', {text}' if text else ''}")

    return update


def over_all(
    update: Callable[..., None], policies: list[Any], users: Sequence[str]
) -> Callable[[str, int, int], None]:
    """Turn a progress bar into the callback of `evaluate`: one bar over all policies and users."""
    pairs = sum(kind == "synthetic" or not hasattr(policy, "bind") for policy in policies for kind in users)
    done_by: dict[str, int] = {}

    def progress(label: str, done: int, sessions: int) -> None:
        done_by[label] = done
        update(sum(done_by.values()), pairs * sessions, label)

    return progress


@contextmanager
def interruptible(message: str) -> Iterator[None]:
    """Turn Ctrl-C into one line and exit code 130, and SIGTERM into the same line and 143."""
    try:
        with interrupts.raising():
            yield
    except BaseException as error:
        code = interrupts.exit_code()
        if code is None and not isinstance(error, KeyboardInterrupt):
            raise
        # Any other error after a signal is what a library made of the KeyboardInterrupt.
        note(f"interrupted: {message}")
        raise typer.Exit(code or INTERRUPTED) from None


def peak_memory() -> float:
    """Return the peak resident set of this process in MB; nan where the system does not report it."""
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, kilobytes on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
