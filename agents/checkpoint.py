"""A trained model as a folder of JSON and safetensors: written whole or not at all, and never pickled."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from edgerec_gym.atomic import atomic_path, read_json, write_json
from edgerec_gym.errors import InputError, MissingExtraError

try:
    import torch
    from safetensors.torch import load_file, save_file
except ImportError:
    raise MissingExtraError("a trained policy", "train") from None

RECORD = "policy.json"
PARAMETERS = "policy.safetensors"
OPTIMIZER = "optimizer.safetensors"
TRAINING = "training.safetensors"
CHECKPOINTS = "checkpoints"
KEEP_LAST = 2  # checkpoints, by default; the one before last is there while the last is looked at


def check_seed(seed: int) -> None:
    """Raise InputError unless a run can be seeded so."""
    if not 0 <= seed < 2**31:
        raise InputError(f"seed = {seed} is out of range; allowed: 0 to {2**31 - 1}")


def save_parameters(path: Path, policy: torch.nn.Module) -> None:
    """Write a policy's parameters atomically."""
    # By name, not state_dict(): SB3 policies list a shared network under several names.
    tensors = {name: p.detach().cpu().contiguous() for name, p in policy.named_parameters()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary)


def load_parameters(path: Path, policy: torch.nn.Module) -> None:
    """Read a policy's parameters in place; InputError names the file, and the parameter that does not fit."""
    tensors = _read(path)
    own = dict(policy.named_parameters())
    for name in own.keys() | tensors.keys():
        if name not in own or name not in tensors or own[name].shape != tensors[name].shape:
            raise InputError(f"{path}: parameter {name!r} does not fit; another version saved it")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(tensors[name])


def _read(path: Path) -> dict[str, torch.Tensor]:
    try:
        tensors: dict[str, torch.Tensor] = load_file(path)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a readable safetensors file: {error}") from None
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise InputError(f"{path}: {name!r} is not finite")
    return tensors


def _save_optimizer(path: Path, optimizer: torch.optim.Optimizer) -> None:
    state = optimizer.state_dict()["state"]
    flat = {f"{i}.{key}": torch.as_tensor(v) for i, values in state.items() for key, v in values.items()}
    save_file({name: tensor.contiguous() for name, tensor in flat.items()}, path)


def _load_optimizer(path: Path, optimizer: torch.optim.Optimizer) -> None:
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in _read(path).items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = tensor
    # The groups (learning rate, ...) come from the settings and the schedule, so they stay as built.
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def save_checkpoint(
    run: Path,
    policy: torch.nn.Module,
    record: dict[str, Any],
    optimizer: torch.optim.Optimizer,
    training: torch.nn.Module | None = None,
    keep: int = KEEP_LAST,
) -> None:
    """Write `checkpoints/step-N` under a temporary name, rename it, then drop the oldest ones.

    Args:
        run: the run's folder.
        policy: the parameters to play with.
        record: content of policy.json; its "steps" names the folder.
        optimizer: of the parameters in training.
        training: the parameters in training, where these are not `policy`'s.
        keep: how many checkpoints stay.
    """
    final = run / CHECKPOINTS / f"step-{record['steps']:012d}"
    if final.exists():
        return
    temporary = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True, exist_ok=True)
    save_parameters(temporary / PARAMETERS, policy)
    _save_optimizer(temporary / OPTIMIZER, optimizer)
    if training is not None:
        save_parameters(temporary / TRAINING, training)
    write_json(temporary / RECORD, record)
    temporary.rename(final)
    for old in [*checkpoints(run)[:-keep], *_left_behind(run)]:
        shutil.rmtree(old, ignore_errors=True)


def restore_checkpoint(
    folder: Path,
    policy: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    training: torch.nn.Module | None = None,
) -> None:
    """Load what :func:`save_checkpoint` wrote into freshly built parameters and optimizer."""
    load_parameters(folder / PARAMETERS, policy)
    _load_optimizer(folder / OPTIMIZER, optimizer)
    if training is not None:
        load_parameters(folder / TRAINING, training)


def checkpoints(run: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path for path in (run / CHECKPOINTS).glob("step-*") if (path / RECORD).is_file())


def _left_behind(run: Path) -> list[Path]:
    """Half-written checkpoints of killed processes."""
    return list((run / CHECKPOINTS).glob(".step-*.tmp"))


def read_run(folder: str | Path) -> tuple[Path, dict[str, Any]]:
    """Return (folder of the parameters, its policy.json): the finished run, else the last checkpoint."""
    run = Path(folder)
    if not (run / RECORD).is_file():
        complete = checkpoints(run)
        if not complete:
            raise InputError(f"{run} holds no trained policy: no {RECORD} and no complete checkpoint")
        run = complete[-1]
    record = read_json(run / RECORD)
    for key in ("agent", "track", "hyper", "sizes", "steps"):
        if key not in record:
            raise InputError(f"{run / RECORD}: {key!r} is missing")
    return run, record


def find_start(run: Path, record: dict[str, Any], resume: bool, fixed: Sequence[str]) -> Path | None:
    """Return the checkpoint to resume from, if there is one.

    Args:
        run: the run's folder.
        record: of the run to come.
        resume: False refuses a folder that holds a run.
        fixed: keys of the record that a resumed run must share.

    Raises:
        InputError: `run` holds another run, or would be overwritten.
    """
    complete = checkpoints(run)
    if not resume:
        if complete or (run / RECORD).exists():
            raise InputError(f"{run} already holds a training run: resume it, or choose another folder")
        return None
    if not complete:
        return None
    _, earlier = read_run(complete[-1])
    for key in fixed:
        if earlier.get(key) != record[key]:
            raise InputError(f"cannot resume {run}: {key} was {earlier.get(key)}, now it is {record[key]}")
    return complete[-1]
