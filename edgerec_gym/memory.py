"""How much memory there is, asked before a large allocation: afterwards the kernel would end the process."""

from __future__ import annotations

import os
from pathlib import Path

from edgerec_gym.errors import InputError

_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of a container
SMALL = 2**26  # bytes that nobody needs to ask for


def available() -> int:
    """Return the number of bytes that this process can still allocate."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")]
    try:  # free pages leave out the file cache, which gives way
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")] or found
    except (OSError, ValueError):
        pass  # another system, or one that hides it
    for name in _LIMITS:
        try:
            found.append(int(Path(name).read_text(encoding="ascii")))
        except (OSError, ValueError):
            continue  # no such limit
    return min(found)


def check(needed: int, what: str) -> None:
    """Raise InputError, which names the memory, if something needs more bytes than there are."""
    if needed > SMALL and needed > (there := available()):
        raise InputError(f"{what} needs {size(needed)} of memory; {size(there)} are available")


def size(count: int) -> str:
    """Return a number of bytes as text."""
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"
