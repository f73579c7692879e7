"""How SIGINT (Ctrl-C) and SIGTERM end the command `edgerec`: one line on stderr, exit code 130 or 143.

While the command loads libraries, a signal ends it at once: nothing is open, and libraries swallow a
KeyboardInterrupt or turn it into other errors. While it works (:func:`raising`), the signal becomes a
KeyboardInterrupt, so that the work cleans up; a second signal then ends it at once. Whatever a signal cuts
off, files are only ever renamed into place when complete.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
COMMAND = "edgerec"
MODULE = ["-m", "edgerec_gym.cli"]

_raises = False
_received: int | None = None


def is_command() -> bool:
    """Whether this process is the command, and not a program that imports the package, or its worker."""
    multiprocessing = sys.modules.get("multiprocessing")
    if multiprocessing is not None and multiprocessing.parent_process() is not None:
        return False
    name = os.path.basename(sys.argv[0]) if sys.argv else ""
    return name.split(".")[0].removesuffix("-script") == COMMAND or sys.orig_argv[1:3] == MODULE


def install() -> None:
    """Handle the signals from now on; leaves out those that the caller ignores (nohup, background jobs)."""
    try:
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, _handle)
    except ValueError:  # not in the main thread
        return
    sys.unraisablehook = _again


def exit_code() -> int | None:
    """Return the exit code that a received signal asks for; None if there was none."""
    return None if _received is None else 128 + _received


@contextmanager
def raising() -> Iterator[None]:
    """Raise KeyboardInterrupt on a signal inside this block, if :func:`install` was called."""
    global _raises, _received
    _raises, _received = True, None
    try:
        yield
    finally:
        _raises = False


@contextmanager
def held_back() -> Iterator[None]:
    """Deliver signals after this block; processes started in it never get those of a Ctrl-C."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _handle(number: int, frame: FrameType | None) -> None:
    global _received
    if not _raises or _received is not None:
        os.write(2, b"interrupted\n")
        os._exit(128 + number)
    _received = number
    raise KeyboardInterrupt


def _again(unraisable: Any) -> None:
    """Send a signal again whose KeyboardInterrupt was swallowed, in a finalizer for example."""
    global _received
    if unraisable.exc_type is KeyboardInterrupt and _received is not None:
        number, _received = _received, None
        threading.Timer(0.05, os.kill, (os.getpid(), number)).start()  # outside of this hook
    else:
        sys.__unraisablehook__(unraisable)
