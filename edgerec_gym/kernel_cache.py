"""A digest of every kernel's source, so that numba's disk cache is renewed when any of them changes.

Numba looks only at the file of the compiled function, not at the functions it calls. A function that
closes over the digest gets it into its cache key.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

_ROOT = Path(__file__).parent
_SOURCES = (
    "cloud.py",
    "kernels.py",
    "random_stream.py",
    "reward.py",
    "rules.py",
    "state.py",
    "spaces.py",
    "users/base.py",
    "users/synthetic.py",
    "users/synthetic_kernels.py",
)


def _digest() -> str:
    digest = hashlib.sha256()
    for name in _SOURCES:
        digest.update((_ROOT / name).read_bytes())
    return digest.hexdigest()


SOURCE_DIGEST = _digest()
