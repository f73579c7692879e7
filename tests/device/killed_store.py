"""Play into stores and end with SIGKILL, between and inside of operations.

python killed_store.py FOLDER: a folder per death, with phone.db and `told`, one byte for each answer that the
store has called committed.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from edgerec_gym.device.event_store import EventStore, PhoneSession
from edgerec_gym.protocol.messages import Answer, Page

ANSWERS = 6
OPERATIONS = 2 + 4 * ANSWERS + 2
INSTRUCTIONS = range(40, 1200, 80)  # of SQLite's machine


def answer(number: int) -> Answer:
    return Answer(number, 0, number, 1, bytes([number, 84]))


def play(path: Path, dies_at: int, dies_after: int = 0) -> None:
    """Play a session and die before an operation, or after some instructions of SQLite."""
    told = os.open(path.with_name("told"), os.O_CREAT | os.O_WRONLY)
    done = 0

    def step() -> None:
        nonlocal done
        if done == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        done += 1

    step()
    store = EventStore(path)
    if dies_after:
        count = iter(range(dies_after))
        store._database.set_progress_handler(
            lambda: next(count, None) is None and os.kill(os.getpid(), signal.SIGKILL), 1
        )
    step()
    store.begin(PhoneSession(1, 2, 3, 4))
    for number in range(ANSWERS):
        step()
        store.append(1, answer(number))
        os.write(told, b"x")
        step()
        store.keep_page(1, Page(number, number, b"", b"", b"", b"", bytes(20)))
        step()
        store.acknowledge(1, number)
    step()
    store.end(1, [answer(9)])
    step()
    os.kill(os.getpid(), signal.SIGKILL)


def main(folder: Path) -> None:
    deaths = [(at, 0) for at in range(OPERATIONS)] + [(OPERATIONS, after) for after in INSTRUCTIONS]
    for at, after in deaths:
        path = folder / f"{at}-{after}" / "phone.db"
        path.parent.mkdir()
        child = os.fork()
        if child == 0:
            play(path, at, after)
            os._exit(1)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (at, after, status)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
