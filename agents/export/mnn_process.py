"""The process that converts a model for MNN; it may not open a socket or run a program.

Run as `python -I mnn_process.py MNNConvert ARGUMENT ...`. An attempt ends the process: an audit hook sees
what Python does, and on Linux a seccomp filter what C++ does. So a conversion that succeeds has tried
neither. Of MNN only the converter is imported, not the Python package, whose scripts would phone home.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
from typing import Any

FORBIDDEN = (
    "socket.",
    "subprocess.",
    "os.system",
    "os.exec",
    "os.spawn",
    "os.posix_spawn",
    "os.fork",
    "pty.",
)
# Architecture of seccomp, and the numbers of socket, execve and execveat there.
CALLS = {"x86_64": (0xC000003E, (41, 59, 322)), "aarch64": (0xC00000B7, (198, 221, 281))}
LOAD, EQUAL, AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06  # instructions of a filter
KILL, ALLOW = 0x80000000, 0x7FFF0000
NO_NEW_PRIVILEGES, SECCOMP, FILTER = 38, 22, 2
OTHER_NUMBERS = 0x40000000  # x86's second set of system calls


def forbid() -> None:
    """End this process at the next attempt to open a socket or to run a program."""
    sys.addaudithook(_refuse)
    if sys.platform == "linux" and platform.machine() in CALLS:
        _filter_calls(*CALLS[platform.machine()])


def _refuse(event: str, arguments: Any) -> None:
    if event.startswith(FORBIDDEN):
        os.write(2, f"{event} is forbidden\n".encode())
        os._exit(3)


def _filter_calls(architecture: int, numbers: tuple[int, ...]) -> None:
    """Load a seccomp filter (Linux, no privileges needed); OSError if the kernel refuses."""
    last = len(numbers) + 1  # index of KILL behind the comparisons, counted from the first of them
    steps = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, architecture), (RETURN, 0, 0, KILL), (LOAD, 0, 0, 0)]
    steps += [(EQUAL, last - k, 0, number) for k, number in enumerate(numbers)]
    steps += [(AT_LEAST, 1, 0, OTHER_NUMBERS), (RETURN, 0, 0, ALLOW), (RETURN, 0, 0, KILL)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(steps), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    for call in ((NO_NEW_PRIVILEGES, 1, 0, 0, 0), (SECCOMP, FILTER, ctypes.addressof(program), 0, 0)):
        if libc.prctl(*(ctypes.c_ulong(part) for part in call)):
            raise OSError(ctypes.get_errno(), "the kernel takes no seccomp filter")


if __name__ == "__main__":
    forbid()
    import _tools  # MNN's converter, C++

    _tools.mnnconvert(sys.argv[1:])
