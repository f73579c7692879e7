"""Structured pruning: remove whole hidden units, which leaves a smaller dense network.

A *unit* is one output of a layer: a row of its weights, and a column in every layer that reads it; in a GRU,
a row of each of the three gates. All groups of units lose the same share, so that the smaller network is an
ordinary one with a smaller `hidden`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgerec_gym.agents.rerank.crban import CRBAN
from edgerec_gym.agents.rerank.dnn import DNN
from edgerec_gym.agents.values.network import ValueConfig, ValueNetwork
from edgerec_gym.errors import InputError
from edgerec_gym.spaces import context_size

GATES = 3  # of a GRU


@dataclass(frozen=True)
class Part:
    """Where the units of a group are in one parameter.

    Attributes:
        name: the parameter.
        dim: 0 where it makes the units, 1 where it reads them.
        start: index of the first unit.
        repeats: how often the units follow each other (3 in the gates of a GRU).
    """

    name: str
    dim: int
    start: int = 0
    repeats: int = 1


@dataclass(frozen=True)
class Units:
    """A group of units.

    Attributes:
        size: their number.
        parts: where they are.
    """

    size: int
    parts: tuple[Part, ...]


def prunable(network: nn.Module) -> bool:
    """Whether :func:`units_of` knows the network."""
    return type(network) in _UNITS


def units_of(network: nn.Module) -> list[Units]:
    """Return the groups of units whose sizes `hidden` decides; InputError for other networks."""
    if not prunable(network):
        allowed = ", ".join(kind.__name__ for kind in _UNITS)
        raise InputError(f"the units of a {type(network).__name__} cannot be pruned; allowed: {allowed}")
    return _UNITS[type(network)](network)


def _layer(name: str, *readers: Part, bias: bool = True) -> tuple[Part, ...]:
    """The outputs of a linear layer and those who read them."""
    made = (Part(f"{name}.weight", 0), *((Part(f"{name}.bias", 0),) if bias else ()))
    return (*made, *readers)


def _gru(name: str, layers: int, hidden: int, readers: Iterable[Part]) -> list[Units]:
    """The states of each layer of a GRU; `readers` read the last one."""
    groups = []
    for k in range(layers):
        made = tuple(
            Part(f"{name}.{part}_l{k}", 0, repeats=GATES)
            for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        above = readers if k == layers - 1 else [Part(f"{name}.weight_ih_l{k + 1}", 1)]
        groups.append(Units(hidden, (*made, Part(f"{name}.weight_hh_l{k}", 1), *above)))
    return groups


def _dnn(network: DNN) -> list[Units]:
    hidden = network.settings.hidden
    return [
        Units(2 * hidden, _layer("network.0", Part("network.2.weight", 1))),
        Units(hidden, _layer("network.2", Part("network.4.weight", 1))),
    ]


def _crban(network: CRBAN) -> list[Units]:
    hidden, layers = network.settings.hidden, network.settings.layers
    groups, at = [], 0
    for name in network.perception.sequences:
        key, encoder = f"attention.{name}", f"perception.encoders.{name}"
        readers = [Part(f"{key}.key.weight", 1), Part("head.0.weight", 1, at)]
        groups += _gru(f"{encoder}.cards", layers, hidden, readers)
        if network.perception.encoder(name).actions is not None:
            groups += _gru(f"{encoder}.actions", layers, hidden, [Part("head.0.weight", 1, at + hidden)])
        at += network.perception.encoder(name).value_size
        compared = (*_layer(f"{key}.query"), Part(f"{key}.key.weight", 0), Part(f"{key}.score.weight", 1))
        groups.append(Units(hidden, compared))
    readers = [Part(f"attention.{name}.query.weight", 1) for name in network.perception.sequences]
    readers += [Part("head.0.weight", 1, at), Part("head.0.weight", 1, at + hidden)]  # code, final state
    groups += _gru("candidates.gru", layers, hidden, readers)
    return [*groups, Units(hidden, _layer("head.0", Part("head.2.weight", 1)))]


def _values(network: ValueNetwork) -> list[Units]:
    config, s = network.config, network.settings
    hidden, code, size = s.hidden, s.hidden // 2, config.embedding_size + s.keys
    described, readers, at = [], [], 0
    for name in network.evidence:
        inner = f"evidence.{name}"
        at += s.heads * size
        summed = Part("state.0.weight", 1, at)
        described.append(
            Units(code, _layer(f"{inner}.describe.0", Part(f"{inner}.weight.weight", 1), summed))
        )
        readers.append(Part(f"{inner}.describe.0.weight", 1))
        at += code
    at += config.n_user_features + context_size(config)
    readers += [Part("state.0.weight", 1, at + k * code) for k in range(config.lookahead)]
    readers += [Part(name, 1) for name in ("key.weight", "candidate.weight", "plain.weight")]
    candidate = (*_layer("candidate"), Part("by_state.weight", 0), Part("head.0.weight", 1))
    return [
        Units(hidden, _layer("item.0", Part("item.2.weight", 1))),
        Units(code, _layer("item.2", *readers)),
        *described,
        Units(hidden, _layer("state.0", Part("state.2.weight", 1))),
        Units(hidden, _layer("state.2", Part("query.weight", 1), Part("by_state.weight", 1))),
        Units(hidden, candidate),
        Units(hidden, _layer("head.0", Part("head.2.weight", 1))),
    ]


_UNITS: dict[type[nn.Module], Callable[[Any], list[Units]]] = {
    DNN: _dnn,
    CRBAN: _crban,
    ValueNetwork: _values,
}


def norms(network: nn.Module) -> list[Tensor]:
    """Importance by size: the norm of what makes a unit times that of what reads it, (units,) by group."""
    found = []
    for group in units_of(network):
        sizes = [torch.zeros(group.size), torch.zeros(group.size)]
        for part in group.parts:
            sizes[part.dim] += _of_units(network.get_parameter(part.name).detach().square(), part, group.size)
        found.append((sizes[0] * sizes[1]).sqrt())
    return found


def sensitivities(network: nn.Module, losses: Iterable[Tensor]) -> list[Tensor]:
    """Importance by first-order Taylor expansion: the squared change of a loss if a unit went silent.

    The sum of gradient times weight over all that reads a unit is the derivative by the unit's gain
    (Molchanov et al., CVPR'19).

    Args:
        network: the network.
        losses: scalars, one for each batch; each has the gradient of the network.

    Returns:
        (units,) float32 by group, the mean over batches.
    """
    groups = units_of(network)
    found = [torch.zeros(group.size) for group in groups]
    count = 0
    for loss in losses:
        network.zero_grad(set_to_none=True)
        loss.backward()
        count += 1
        for group, total in zip(groups, found, strict=True):
            change = torch.zeros(group.size)
            for part in group.parts:
                weight = network.get_parameter(part.name)
                if part.dim == 1 and weight.grad is not None:
                    change += _of_units(weight.grad * weight.detach(), part, group.size)
            total += change.square()
    network.zero_grad(set_to_none=True)
    return [total / max(count, 1) for total in found]


def _of_units(values: Tensor, part: Part, size: int) -> Tensor:
    """Sum what belongs to each unit, (size,)."""
    rows = values.sum(1) if part.dim == 0 and values.ndim > 1 else values.sum(0) if part.dim == 1 else values
    return rows[part.start : part.start + part.repeats * size].view(part.repeats, size).sum(0)


def smaller_settings(network: Any, share: float) -> Any:
    """Return the settings without a share of the hidden units, rounded so that `hidden` stays valid."""
    settings = network.settings
    step = 2 if isinstance(settings, ValueConfig) else settings.heads
    hidden = max(step, round(settings.hidden * (1 - share) / step) * step)
    return replace(settings, hidden=hidden)


def pruned(network: Any, share: float, importance: list[Tensor]) -> Any:
    """Return a smaller network without the least important units of each group.

    Args:
        network: a DNN, CRBAN or ValueNetwork.
        share: of the units to remove, 0 to below 1.
        importance: (units,) by group, as :func:`norms` returns.
    """
    settings = smaller_settings(network, share)
    keep: dict[tuple[str, int], np.ndarray] = {}
    for group, values in zip(units_of(network), importance, strict=True):
        left = group.size * settings.hidden // network.settings.hidden
        dropped = np.argsort(-values.numpy(), kind="stable")[left:]
        for part in group.parts:
            length = network.get_parameter(part.name).shape[part.dim]
            mask = keep.setdefault((part.name, part.dim), np.ones(length, np.bool_))
            for k in range(part.repeats):
                mask[part.start + k * group.size + dropped] = False
    with torch.random.fork_rng(devices=[]):
        smaller = type(network)(network.config, settings)
    own = dict(network.named_parameters())
    with torch.no_grad():
        for name, parameter in smaller.named_parameters():
            values = own[name]
            for dim in range(values.ndim):
                if (name, dim) in keep:
                    values = values.index_select(dim, torch.from_numpy(np.flatnonzero(keep[name, dim])))
            parameter.copy_(values)
    return smaller.eval()
