"""What the processes of a small service do, for the test of those processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path


def start() -> None:
    """Nothing to load."""


def answer(question: str, folder: Path, tell: Callable[[str], None]) -> str:
    tell(f"about to {question}")
    if question == "sleep":
        time.sleep(3600)
    if question == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    return question.upper()
