"""Save and load model and optimizer parameters as safetensors: atomically, and without pickle."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from edgerec_gym.errors import InputError, MissingExtraError
from edgerec_gym.files import atomic_path
from edgerec_gym.runs import CHECKPOINTS, PARAMETERS, checkpoints, write_record

try:
    import torch
    from safetensors.torch import load_file, save_file
except ImportError:
    raise MissingExtraError("a trained policy", "train") from None

OPTIMIZER = "optimizer.safetensors"
TRAINING = "training.safetensors"
KEEP_LAST = 2  # checkpoints kept by default: an older one remains while the last is being read


def save_parameters(path: Path, policy: torch.nn.Module) -> None:
    """Write a policy's parameters atomically."""
    # Not state_dict(): SB3 policies list a shared network under several names.
    tensors = {name: p.detach().cpu().contiguous() for name, p in policy.named_parameters()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary)


def load_parameters(path: Path, policy: torch.nn.Module) -> None:
    """Load a policy's parameters in place; InputError names the file and any parameter that does not fit."""
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
    # Keep the groups (learning rate, ...) as built: they come from the settings and the schedule.
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def save_checkpoint(
    run: Path,
    policy: torch.nn.Module,
    record: dict[str, Any],
    optimizer: torch.optim.Optimizer,
    training: torch.nn.Module | None = None,
    keep: int = KEEP_LAST,
) -> None:
    """Write `checkpoints/step-N` atomically, then remove the oldest checkpoints.

    Args:
        run: the run's folder.
        policy: network to play with.
        record: content of policy.json; its "steps" names the folder.
        optimizer: optimizer of the network in training.
        training: network in training, if it is not `policy`.
        keep: number of checkpoints to keep.
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
    write_record(temporary, record)
    temporary.rename(final)
    for old in [*checkpoints(run)[:-keep], *_left_behind(run)]:
        shutil.rmtree(old, ignore_errors=True)


def restore_checkpoint(
    folder: Path,
    policy: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    training: torch.nn.Module | None = None,
) -> None:
    """Load a checkpoint of :func:`save_checkpoint` into newly built networks and optimizer."""
    load_parameters(folder / PARAMETERS, policy)
    _load_optimizer(folder / OPTIMIZER, optimizer)
    if training is not None:
        load_parameters(folder / TRAINING, training)


def _left_behind(run: Path) -> list[Path]:
    """Return partial checkpoints of killed processes."""
    return list((run / CHECKPOINTS).glob(".step-*.tmp"))
