"""Files that are complete or absent: renamed into place when written, one writer to a folder.

Reads refuse what is no regular file.
"""

from __future__ import annotations

import inspect
import json
import math
import os
import platform
import re
import shutil
import stat
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from edgerec_gym.errors import InputError

_SPECIAL = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

P = ParamSpec("P")
R = TypeVar("R")

LOCK = ".lock"
OLD = ".old.tmp"
# How libraries in Rust (polars, safetensors) and HDF5 tell the system's error numbers.
_ERROR_NUMBER = re.compile(r"\(os error (\d+)\)|\berrno = (\d+)")


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; rename it to `path` if the block succeeds.

    Raises:
        OSError: it cannot be written (a full disk, a limit); names `path`, whichever library was writing.
    """
    path = Path(path)
    temporary = _temporary(path)
    try:
        with _named_errors(path, temporary):
            yield temporary
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a new temporary folder beside `path`; rename it to `path` if the block succeeds.

    A folder that is already there is replaced. Errors are those of :func:`atomic_path`.
    """
    path = Path(path)
    temporary = _temporary(path)
    old = temporary.with_suffix(OLD)
    try:
        with _named_errors(path, temporary):
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            yield temporary
            if path.exists():
                path.rename(old)
            temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        _remove_old(path, old)


@contextmanager
def scratch_folder(folder: str | Path) -> Iterator[Path]:
    """Yield a new folder for temporary files inside an output folder; it is removed at the end.

    A killed process leaves it to :func:`remove_leftovers`. Errors are those of :func:`atomic_path`.
    """
    scratch = _temporary(Path(folder) / "scratch")
    try:
        with _named_errors(Path(folder), scratch):
            scratch.mkdir(parents=True)
            yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _remove_old(path: Path, old: Path) -> None:
    """Remove what a folder was before it was replaced; put it back if it was not."""
    if old.exists() and not path.exists():
        old.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.tmp")


@contextmanager
def _named_errors(path: Path, temporary: Path) -> Iterator[None]:
    """Raise the errors of writing `temporary` as an OSError that names `path`."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        number = _error_number(error)
        about = getattr(error, "filename", None)
        if number is None or (about is not None and temporary.name not in str(about)):
            raise
        raise OSError(number, f"cannot be written: {os.strerror(number)}", str(path)) from None


def _error_number(error: Exception) -> int | None:
    """Return the system's number of an error, also if a library wraps it; None if there is none."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = _ERROR_NUMBER.search(str(error))
    return None if found is None else int(found[1] or found[2])


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files and folders that killed processes of this machine left in a folder."""
    for path in folder.glob(f".*.{platform.node()}.*.tmp"):
        found = re.fullmatch(rf"\.(.+)\.{re.escape(platform.node())}\.(\d+)(\.old)?\.tmp", path.name)
        if found is None or _runs(int(found[2])):
            continue
        if found[3]:
            _remove_old(folder / found[1], path)
        elif path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder at once: a killed removal leaves no half of it under its name."""
    if folder.exists():
        temporary = _temporary(folder)
        folder.rename(temporary)
        shutil.rmtree(temporary, ignore_errors=True)


def _runs(process: int) -> bool:
    if os.name != "posix":  # there, signal 0 would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


@contextmanager
def only_writer(folder: str | Path) -> Iterator[None]:
    """Create a folder for output and hold its lock; the system releases it when the process dies.

    Raises:
        InputError: another process writes to the folder, or it cannot be written to.
    """
    new = not Path(folder).exists()
    folder = make_folder(folder)
    path = folder / LOCK
    while True:
        with path.open("ab") as file:
            locked = _lock(file.fileno(), folder)
            if locked and not _is_open_file(path, file.fileno()):
                continue  # the last writer has removed it meanwhile
            try:
                yield
            finally:
                if locked:
                    path.unlink(missing_ok=True)
                if new:
                    _remove_if_empty(folder)
            return


def _lock(descriptor: int, folder: Path) -> bool:
    """Lock an open file; False, with a warning, where the system has no locks."""
    if fcntl is not None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            raise InputError(
                f"another process is writing to {folder}; wait for its end, or choose another folder"
            ) from None
        except OSError:
            pass
    warnings.warn(
        f"{folder} cannot be locked on this file system: let no other process write to it", stacklevel=2
    )
    return False


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()


def _is_open_file(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def one_writer(argument: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a function hold the lock of the folder that `argument` names (:func:`only_writer`)."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @wraps(function)
        def locked(*args: P.args, **kwargs: P.kwargs) -> R:
            with only_writer(signature.bind(*args, **kwargs).arguments[argument]):
                return function(*args, **kwargs)

        return locked

    return decorate


def check_room(folder: Path, size: int, file: Path) -> None:
    """Raise OSError unless `size` more bytes fit into a folder and into a file in it.

    For libraries that do not survive a failed write (HDF5).
    """
    present = file.stat().st_size if file.exists() else 0
    temporary = _temporary(folder / "room")
    try:
        with _named_errors(file, temporary), temporary.open("wb") as probe:
            probe.truncate(present + size)  # fails above a limit on the size of files
            probe.truncate(0)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(probe.fileno(), 0, size)
    finally:
        temporary.unlink(missing_ok=True)


def json_ready(value: Any) -> Any:
    """Return nested dicts and lists with null in place of numbers that JSON cannot hold (NaN, infinity)."""
    if isinstance(value, dict):
        return {key: json_ready(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON atomically, indented, keys in the given order; undefined numbers become null."""
    text = json.dumps(json_ready(value), indent=1, allow_nan=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def check_file(path: str | Path, most_bytes: int | None = None) -> Path:
    """Check that a path is a regular file, before anything opens it: opening a pipe or a device may block.

    Args:
        path: the file.
        most_bytes: the largest size to accept; None for any.

    Raises:
        InputError: the file does not exist, is something else, or is too large.
    """
    path = Path(path)
    try:
        found = path.stat()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise InputError(f"cannot read {path}: {getattr(error, 'strerror', error)}") from None
    if not stat.S_ISREG(found.st_mode):
        what = next((name for test, name in _SPECIAL if test(found.st_mode)), "a special file")
        raise InputError(f"{path} is {what}; allowed: a regular file")
    if most_bytes is not None and found.st_size > most_bytes:
        raise InputError(f"{path} has {found.st_size:,} bytes; allowed: up to {most_bytes:,}")
    return path


def read_bytes(path: str | Path, most_bytes: int) -> bytes:
    """Read a regular file of at most `most_bytes`; InputError if it is something else or unreadable."""
    path = check_file(path, most_bytes)
    try:
        with path.open("rb") as file:
            return file.read(most_bytes)  # even if it has grown since
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None


def folder_bytes(folder: Path) -> int:
    """Return the size of the files in a folder, in bytes; folders in it do not count."""
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())


def make_folder(path: str | Path) -> Path:
    """Create a folder for output and remove leftovers in it; InputError if it cannot be written to."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = _temporary(path / "write-test")
        probe.touch()
        probe.unlink()
        remove_leftovers(path)
    except OSError as error:
        raise InputError(f"cannot write to the folder {path}: {error.strerror}") from None
    return path
