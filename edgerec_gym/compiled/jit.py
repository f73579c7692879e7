"""How kernels are compiled: decorators, and what the disk cache depends on.

A kernel is a plain function over scalars and rows of arrays (bundled in named tuples, see
compiled/arrays.py). It uses no objects, allocations or exceptions, so the same source can be compiled for a
GPU.

With the environment variable `EDGEREC_CHECK=1` every index is checked: a kernel that reaches beyond an array
raises IndexError instead of reading or writing foreign memory. This is for tests, since it is slower.
"""

from __future__ import annotations

import ast
import hashlib
import math
import os
import warnings
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

from numba import njit

_ROOT = Path(__file__).parents[1]
_OWN = "compiled/jit.py"
CHECKED = os.environ.get("EDGEREC_CHECK", "0") not in ("", "0")  # kernels check their indices
_KERNELS = {"kernel", "product_kernel", "entry_point"}
_SOURCES = (
    "answers.py",
    "cloud/interest.py",
    "service/pages.py",
    "cloud/retrieval.py",
    "cloud/supply.py",
    "cloud/wire.py",
    "compiled/arrays.py",
    "compiled/jit.py",
    "compiled/random_stream.py",
    "compiled/selection.py",
    "device/features.py",
    "feed/batch.py",
    "feed/kernels.py",
    "feed/observe.py",
    "feed/reward.py",
    "feed/rules.py",
    "feed/slate.py",
    "spaces.py",
    "state.py",
    "users/learned_answer.py",
    "users/learned_encode.py",
    "users/learned_kernels.py",
    "users/learned_layout.py",
    "users/synthetic.py",
    "users/synthetic_kernels.py",
)


def source_digest(folder: Path, names: Iterable[str]) -> str:
    """Hash the files of `folder` that hold kernels."""
    digest = hashlib.sha256()
    for name in names:
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()


# Numba's disk cache looks only at the file of the compiled function, not at the functions it calls. Closing
# over this digest puts the source of every kernel into an entry point's cache key. Checked kernels have their
# own.
SOURCE_DIGEST = source_digest(_ROOT, _SOURCES) + ("-checked" if CHECKED else "")


@cache
def dynamics_digest() -> str:
    """Hash what the kernels compute, wherever they are defined: functions and constants, no text, no imports.

    Moving a kernel to another file keeps this digest, so sessions played before the move stay valid.
    :data:`SOURCE_DIGEST` changes with every byte, as a compiler's cache requires.
    """
    parts = set()
    for name in _SOURCES:
        tree = ast.parse((_ROOT / name).read_text(encoding="utf-8"))
        constants = [node for node in tree.body if isinstance(node, ast.Assign | ast.AnnAssign)]
        kernels = [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef) and _KERNELS & {ast.unparse(d) for d in node.decorator_list}
        ]
        for node in kernels:
            if ast.get_docstring(node) is not None:
                del node.body[0]
        if name != _OWN:  # its constants are paths
            parts |= {ast.unparse(node) for node in constants}
        parts |= {ast.unparse(node) for node in kernels}
    return hashlib.sha256("\n".join(sorted(parts)).encode()).hexdigest()


# No exceptions and no memory management.
_OPTIONS: Any = {"error_model": "numpy", "_nrt": False, "boundscheck": CHECKED}


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a function that kernels call; the compiler decides whether to inline it."""
    return njit(**_OPTIONS)(function)


def product_kernel(function: Callable[..., Any]) -> Any:
    """Compile a kernel without NaNs whose sums may be reordered, so that they are vectorised."""
    return njit(fastmath={"reassoc", "contract", "nnan", "nsz"}, **_OPTIONS)(function)


def entry_point(function: Callable[..., Any]) -> Any:
    """Compile a kernel that Python calls: cached on disk, runs without the interpreter's lock."""
    return cached(nogil=True, **_OPTIONS)(function)


def cached(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Return njit with these options, cached on disk if numba finds a folder that it can write to."""

    def compile_cached(function: Callable[..., Any]) -> Any:
        try:
            return njit(cache=True, **options)(function)
        except RuntimeError as error:
            if "cannot cache function" not in str(error):
                raise
            _say_uncached()
            return njit(**options)(function)

    return compile_cached


@cache
def _say_uncached() -> None:
    warnings.warn(
        "compiled kernels cannot be kept: neither the package's folder nor a home can be written to. Every "
        "start compiles anew; NUMBA_CACHE_DIR may name a folder that can be written to",
        RuntimeWarning,
        stacklevel=2,
    )


@kernel
def sigmoid(x):
    """Logistic function."""
    return 1.0 / (1.0 + math.exp(-x))
