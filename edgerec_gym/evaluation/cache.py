"""Play policies in parallel with a cache of results, and keep figures as rows.

A table is a list of rows {policy, metric, mean, low, high, seeds, sessions, ...}. All training seeds of a
policy share one row: the mean over seeds and sessions, with a 95 % interval of a bootstrap that resamples
both. All policies play the same sessions (common random numbers), so differences are paired.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import platform
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from edgerec_gym import __version__, interrupts
from edgerec_gym.compiled.jit import dynamics_digest
from edgerec_gym.config import SCHEMA_VERSION, SHIFTS
from edgerec_gym.documents import MOST_BYTES, OpenDocument, read_object
from edgerec_gym.errors import InputError
from edgerec_gym.evaluation.intervals import Interval, interval_text
from edgerec_gym.evaluation.play import Sessions, Times, play
from edgerec_gym.files import atomic_path, make_folder, write_json
from edgerec_gym.policy import Policy
from edgerec_gym.scenario import Scenario
from edgerec_gym.tensors import read_tensors

Progress = Callable[[int, int, str], None]
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Place:
    """Where policies play.

    Attributes:
        env_id: environment id, "EdgeFeedRerank-v0", ...
        scenario: a shipped name or a folder.
        users: "synthetic" or "learned".
        sessions: number of sessions that each policy plays.
        seed: seed of the sessions.
        config: FeedConfig fields that differ from the scenario's.
        num_envs: number of sessions played together.
        by_position: whether to record outcomes at each place of a page.
        shift: name of :data:`~edgerec_gym.config.SHIFTS`, synthetic users with other parameters; None for
            those of the scenario.
    """

    env_id: str
    scenario: str
    users: str = "synthetic"
    sessions: int = 1000
    seed: int = 0
    config: dict[str, Any] = field(default_factory=dict)
    num_envs: int = 512
    by_position: bool = False
    shift: str | None = None


@dataclass(frozen=True)
class Entry:
    """One policy at one training seed.

    Attributes:
        policy: name of its row, shared by the entries of its other training seeds.
        make: a module-level function (worker processes import it) that returns the policy for a place,
            called as `make(place, **arguments)`.
        arguments: JSON-ready arguments of `make`.
        files: run folders or files whose content determines how it plays.
        seed: training seed; None for a policy that is not trained.
    """

    policy: str
    make: Callable[..., Policy]
    arguments: dict[str, Any] = field(default_factory=dict)
    files: tuple[Path, ...] = ()
    seed: int | None = None

    def __str__(self) -> str:
        return self.policy if self.seed is None else f"{self.policy}, seed {self.seed}"


def played(
    entries: Sequence[Entry],
    place: Place,
    cache: str | Path,
    *,
    workers: int = 2,
    progress: Progress | None = None,
) -> dict[tuple[str, int | None], Sessions]:
    """Play every entry, or read its cached result.

    A result is keyed by everything it depends on: the place, the entry's arguments, the content of its files,
    the package's version and the code of its kernels. Delete the folder to play everything anew.

    Args:
        entries: policies to play.
        place: where they play.
        cache: folder of results.
        workers: number of processes; results do not depend on it.
        progress: called with (entries done, total, name of the last one).

    Returns:
        The results of :func:`~edgerec_gym.evaluation.play.play`, by (policy, training seed).
    """
    folder = make_folder(cache)
    files = [_file(entry, place, folder) for entry in entries]
    waiting = [(entry, place, file) for entry, file in zip(entries, files, strict=True) if not file.exists()]
    for done, index in enumerate(run_jobs(_play_entry, waiting, workers), 1):
        if progress:
            progress(done, len(waiting), str(waiting[index][0]))
    return {(e.policy, e.seed): _read(file, place) for e, file in zip(entries, files, strict=True)}


def _read(file: Path, place: Place) -> Sessions:
    """Read cached results; InputError names the file and what to do if it is broken."""
    sessions = read_tensors(file, finite=False)
    for name, values in sessions.items():
        if values.ndim == 0 or len(values) != place.sessions:
            raise InputError(
                f"{file}: {name!r} has the shape {values.shape}, not one row for each of the "
                f"{place.sessions} sessions; remove the file to play them anew"
            )
    if not np.isfinite(sessions.get("value", np.zeros(1))).all():
        raise InputError(f"{file}: 'value' is not finite; remove the file to play its sessions anew")
    return sessions


def run_jobs(
    function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]], workers: int
) -> Iterable[int]:
    """Call a module-level function with every tuple of arguments in processes; yield indices as they finish.

    With one worker or one call, everything runs in this process. The first error ends all calls.
    """
    if workers <= 1 or len(arguments) <= 1:
        for index, values in enumerate(arguments):
            function(*values)
            yield index
        return
    context = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(min(workers, len(arguments)), context, _start_worker) as pool:
        resource_tracker.ensure_running()  # it would let signals through again
        with interrupts.held_back():  # Ctrl-C is this process's to handle
            futures = {pool.submit(function, *values): index for index, values in enumerate(arguments)}
        try:
            for future in as_completed(futures):
                future.result()
                yield futures[future]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in set(multiprocessing.active_children()) - others:
                process.kill()
            raise


def _start_worker() -> None:
    """End with the parent; limit libraries loaded later to one thread each: workers share the cores."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"


def _end_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


def _play_entry(entry: Entry, place: Place, file: Path) -> None:
    times = Times()
    sessions = play(
        entry.make(place, **entry.arguments),
        env_id=place.env_id,
        scenario=place.scenario,
        users=place.users,
        sessions=place.sessions,
        seed=place.seed,
        num_envs=place.num_envs,
        config=place.config,
        by_position=place.by_position,
        shift=place.shift,
        times=times,
    )
    taken = {name: str(value) for name, value in vars(times).items()}
    with atomic_path(file) as temporary:
        save_file({name: np.ascontiguousarray(values) for name, values in sessions.items()}, temporary, taken)


def play_times(
    entries: Sequence[Entry], place: Place, cache: str | Path
) -> dict[tuple[str, int | None], Times]:
    """Return the times of entries that :func:`played` has played; skip those without recorded times."""
    found = {}
    for entry in entries:
        with safe_open(_file(entry, place, Path(cache)), "numpy") as file:
            taken = file.metadata() or {}
        if taken:
            steps, seconds = int(taken["steps"]), (float(taken["policy"]), float(taken["env"]))
            found[entry.policy, entry.seed] = Times(steps, *seconds)
    return found


def _file(entry: Entry, place: Place, folder: Path) -> Path:
    return folder / f"{_slug(entry)}-{content_key(entry, place)}.safetensors"


def content_key(entry: Entry, place: Place) -> str:
    """Return a digest of everything that determines an entry's play, 16 hexadecimal digits."""
    scenario = Scenario.load(place.scenario)
    paths = [str(path) for path in entry.files]
    told = {
        "version": [__version__, dynamics_digest()],
        "make": _stable_name(entry.make),
        # Files count by their content, not by their location.
        "arguments": {key: None if value in paths else value for key, value in entry.arguments.items()},
        "place": {
            **{key: value for key, value in vars(place).items() if key != "shift"},
            "scenario": scenario.name,
        },
        # Only if there is one, so that results from before shifts existed are still found.
        **({} if place.shift is None else {"shift": SHIFTS[place.shift]}),
        "config": scenario.config.to_dict(),
        "provenance": scenario.provenance,
        "files": [_digest(path) for path in entry.files],
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _stable_name(make: Callable[..., Policy]) -> str:
    """Return a function's name, with its module unless it is in this package, whose modules may move."""
    package = __name__.partition(".")[0]
    own = make.__module__.partition(".")[0] == package
    return make.__qualname__ if own else f"{make.__module__}.{make.__qualname__}"


def _digest(path: Path) -> str:
    """Return the digest of a file, or of the parameters and the record in a run's folder."""
    files = [path / name for name in ("policy.json", "policy.safetensors")] if path.is_dir() else [path]
    try:
        return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    except FileNotFoundError as error:
        raise InputError(f"{error.filename} does not exist") from None


def _slug(entry: Entry) -> str:
    return "".join(c if c.isalnum() else "-" for c in str(entry).lower())


# --- rows ---------------------------------------------------------------------------------------------


def row(
    policy: str, metric: str, interval: Interval, seeds: int, sessions: int, **more: Any
) -> dict[str, Any]:
    """Return one row of a table; `more` holds further columns, such as the scenario."""
    return {"policy": policy, "metric": metric, **interval, "seeds": seeds, "sessions": sessions, **more}


class SavedRows(OpenDocument):
    """The file of :func:`save_rows`."""

    rows: list[dict[str, Any]]
    runs: list[dict[str, Any]]


def saved_rows(path: str | Path) -> dict[str, Rows]:
    """Read the file that :func:`save_rows` wrote, or return empty lists if it does not exist.

    Raises:
        InputError: the file holds something else, or its folder cannot be made.
    """
    path = Path(path)
    make_folder(path.parent)
    return read_object(path, SavedRows, most_bytes=MOST_BYTES) if path.exists() else {"rows": [], "runs": []}


def save_rows(path: str | Path, rows: Rows, about: dict[str, Any], same: Sequence[str] = ()) -> None:
    """Write {"rows": [...], "runs": [...]}, keeping the rows of other runs.

    Args:
        path: a JSON file.
        rows: rows of this run.
        about: description of this run: scenario, sizes, seeds. Versions and machine are added.
        same: keys of `about` that identify a run; rows of an earlier run with the same values are replaced.
    """
    earlier = saved_rows(path)
    tag = {name: about[name] for name in same}

    def others(items: Rows) -> Rows:
        return [item for item in items if any(item.get(name) != value for name, value in tag.items())]

    versions = {"edgerec_gym": __version__, "numpy": np.__version__}
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    run = {"schema_version": SCHEMA_VERSION, **about, "versions": versions, "machine": machine}
    tagged = [{**item, **tag} for item in rows]
    content = {"rows": [*others(earlier["rows"]), *tagged], "runs": [*others(earlier["runs"]), run]}
    write_json(path, content)


def table(rows: Rows, metrics: dict[str, str]) -> tuple[list[str], list[list[str]]]:
    """Return header and body of a table with one line per policy and one column per metric.

    Args:
        rows: rows of :func:`row`.
        metrics: format of each metric's numbers, e.g. {"clicks": ".3f", "gain_over_keep": "+.3f 95%"}; the
            suffix " 95%" adds the interval.
    """
    found = {(item["policy"], item["metric"]): item for item in rows}
    body = []
    for policy in dict.fromkeys(item["policy"] for item in rows):
        cells = [_cell(found.get((policy, metric)), form) for metric, form in metrics.items()]
        body.append([policy, *cells])
    return ["policy", *(metric.replace("_", " ") for metric in metrics)], body


def _cell(item: dict[str, Any] | None, form: str) -> str:
    if not _is_number(item, "mean"):
        return ""
    assert item is not None
    number = form.removesuffix(" 95%")
    text = f"{item['mean']:{number}}"
    return text if number == form or not _is_number(item, "low") else interval_text(item, number)


def _is_number(item: dict[str, Any] | None, key: str) -> bool:
    """Whether a row has a defined number; undefined ones are nan, and null in a file."""
    return item is not None and item[key] is not None and bool(np.isfinite(item[key]))
