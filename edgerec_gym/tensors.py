"""Arrays from safetensors files, checked by their header before anything is allocated."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from edgerec_gym import memory
from edgerec_gym.errors import InputError, shown
from edgerec_gym.files import check_file

DTYPES = {
    "F32": np.float32, "F64": np.float64, "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8,
    "U64": np.uint64, "U32": np.uint32, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
Wanted = tuple[type, tuple[int | None, ...]]  # dtype and shape; None is any size


def read_tensors(
    path: str | Path, wanted: Mapping[str, Wanted] | None = None, *, finite: bool = True
) -> dict[str, np.ndarray]:
    """Read a safetensors file.

    Args:
        path: the file.
        wanted: dtype and shape of every tensor by name; None takes any.
        finite: refuse values that are not finite.

    Raises:
        InputError: the file is missing, broken or no regular file, holds other tensors, or needs more memory
            than there is.
    """
    path = check_file(path)
    try:
        with safe_open(path, "numpy") as file:
            names = sorted(file.keys())
            if wanted is not None and names != sorted(wanted):
                missing, unknown = sorted(wanted.keys() - set(names)), sorted(set(names) - wanted.keys())
                told = (
                    f"lacks the tensor {missing[0]!r}"
                    if missing
                    else f"holds the unknown {shown(unknown[0])}"
                )
                raise InputError(f"{path} {told}; another model or version saved it")
            for name in names:
                part = file.get_slice(name)
                _check_header(path, name, part.get_dtype(), tuple(part.get_shape()), wanted)
            memory.check(path.stat().st_size, f"reading {path}")
            tensors = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, ValueError, TypeError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path} is not a readable safetensors file: {reason}") from None
    for name, values in tensors.items():
        if finite and values.dtype.kind == "f" and not np.isfinite(values).all():
            raise InputError(f"{path}: tensor {shown(name)} is not finite")
    return tensors


def _check_header(
    path: Path, name: str, dtype: str, shape: tuple[int, ...], wanted: Mapping[str, Wanted] | None
) -> None:
    if dtype not in DTYPES:
        raise InputError(f"{path}: tensor {shown(name)} is {dtype}; allowed: {', '.join(DTYPES)}")
    if wanted is None:
        return
    kind, sizes = wanted[name]
    fits = len(shape) == len(sizes) and all(w in (None, s) for s, w in zip(shape, sizes, strict=True))
    if DTYPES[dtype] is not kind or not fits:
        told = ", ".join("any" if size is None else str(size) for size in sizes)
        raise InputError(
            f"{path}: tensor {shown(name)} does not fit: {DTYPES[dtype].__name__} {list(shape)}, "
            f"not {kind.__name__} [{told}]"
        )
