"""Save and load model and optimizer parameters as safetensors: atomically, and without pickle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgerec_gym.errors import InputError, MissingExtraError
from edgerec_gym.files import atomic_folder, atomic_path, remove_folder
from edgerec_gym.runs import CHECKPOINTS, PARAMETERS, checkpoints, write_record
from edgerec_gym.tensors import read_tensors

try:
    import torch
    from safetensors.torch import save_file
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
        if (
            name not in own
            or name not in tensors
            or own[name].shape != tensors[name].shape
            or own[name].dtype != tensors[name].dtype
        ):
            raise InputError(f"{path}: parameter {name!r} does not fit; another version saved it")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(tensors[name])


def _read(path: Path) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(values) for name, values in read_tensors(path).items()}


def _save_optimizer(path: Path, optimizer: torch.optim.Optimizer) -> None:
    state = optimizer.state_dict()["state"]
    flat = {f"{i}.{key}": torch.as_tensor(v) for i, values in state.items() for key, v in values.items()}
    save_file({name: tensor.contiguous() for name, tensor in flat.items()}, path)


def _load_optimizer(path: Path, optimizer: torch.optim.Optimizer) -> None:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in _read(path).items():
        index, _, key = name.partition(".")
        known = index.isascii() and index.isdigit() and int(index) < len(parameters)
        if not known or tensor.ndim and tensor.shape != parameters[int(index)].shape:
            raise InputError(f"{path}: {name!r} does not fit; another version saved it")
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
    with atomic_folder(final) as temporary:
        save_parameters(temporary / PARAMETERS, policy)
        _save_optimizer(temporary / OPTIMIZER, optimizer)
        if training is not None:
            save_parameters(temporary / TRAINING, training)
        write_record(temporary, record)
    for old in checkpoints(run)[:-keep]:
        remove_folder(old)


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
