"""Round weights, and what a phone keeps between events, to the grids of few bits; gradients pass through.

Training with rounded numbers in the forward pass and the gradient of the unrounded ones is quantisation-aware
training (Jacob et al., CVPR'18) with the straight-through estimator (Bengio et al., 2013).

- Weights: 8 bits with one scale for each output (symmetric, -127 to 127), or 4 bits with one scale for each
  block of 32 inputs of an output (-8 to 7). These are the grids of the quantised graphs
  (:mod:`edgerec_gym.agents.export.quantised`), so a weight that is rounded here is stored there as it is,
  unless export merges it with another layer first.
- Kept state: 8 bits with one scale for each row: a GRU's state, the key or the code of one event.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from edgerec_gym.agents.export.quantised import BLOCK, LEAST_NUMBERS
from edgerec_gym.agents.perception.attention import AdditiveAttention
from edgerec_gym.agents.perception.interest_match import InterestMatch
from edgerec_gym.agents.perception.perception import SequenceEncoder
from edgerec_gym.agents.values.network import Cards, Evidence

T = TypeVar("T")


def straight_through(values: Tensor, rounded: Tensor) -> Tensor:
    """Return `rounded` with the gradient of `values`."""
    return values + (rounded - values).detach()


def round_rows(values: Tensor) -> Tensor:
    """Round each row of (..., n) to 8 bits, symmetric, with its own scale; the gradient passes through."""
    scale = values.detach().abs().amax(-1, keepdim=True) / 127
    scale = torch.where(scale > 0, scale, 1.0)
    return straight_through(values, torch.round(values / scale) * scale)


def round_blocks(values: Tensor, block: int = BLOCK) -> Tensor:
    """Round each block of a row of (outputs, inputs) to 4 bits; the gradient passes through.

    The number of a block that is largest in size becomes -8 steps exactly.
    """
    outputs, inputs = values.shape
    count = -(-inputs // block)
    blocks = nn.functional.pad(values.detach(), (0, count * block - inputs)).view(outputs, count, block)
    most, least = blocks.amax(-1, keepdim=True), blocks.amin(-1, keepdim=True)
    scale = torch.where(most.abs() > least.abs(), most, least) / -8
    scale = torch.where(scale == 0, 1.0, scale)
    steps = torch.floor(blocks / scale + 0.5).clamp(-8, 7)
    return straight_through(values, (steps * scale).view(outputs, -1)[:, :inputs])


ROUND: dict[int, Callable[[Tensor], Tensor]] = {8: round_rows, 4: round_blocks}


def rounded_weights(network: nn.Module, bits: int) -> dict[str, Tensor]:
    """Return the rounded weights of linear layers and GRUs by name; small ones are left out.

    Args:
        network: the network.
        bits: 4, 8, or 32, which rounds nothing.
    """
    if bits not in ROUND:
        return {}
    found = {}
    for prefix, module in network.named_modules():
        if isinstance(module, nn.Linear | nn.GRU | nn.GRUCell):
            for name, parameter in module.named_parameters(prefix, recurse=False):
                if parameter.ndim == 2 and parameter.numel() >= LEAST_NUMBERS:
                    found[name] = ROUND[bits](parameter)
    return found


class _Call(nn.Module):
    """Calls a function while other parameters stand in for those of a network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, function: Callable[[], Any]) -> Any:
        return function()


def with_rounded_weights(network: nn.Module, bits: int, function: Callable[[], T]) -> T:
    """Call a function that uses `network` while its weights are rounded; gradients reach the weights."""
    weights = {f"network.{name}": weight for name, weight in rounded_weights(network, bits).items()}
    result: T = functional_call(_Call(network), weights, (function,))
    return result


@torch.no_grad()
def round_in_place(network: nn.Module, bits: int) -> None:
    """Replace the weights by their rounded ones."""
    own = dict(network.named_parameters())
    for name, weight in rounded_weights(network, bits).items():
        own[name].copy_(weight)


def round_kept_state(network: nn.Module) -> None:
    """Round what the phone keeps between events, from now on, whenever the network reads a history.

    That is the state of the GRUs at every step, keys of attention, the embeddings behind the live interest,
    and in the value network the keys and descriptions of events.
    """
    for module in network.modules():
        if isinstance(module, SequenceEncoder):
            for gru in (module.cards, module.actions):
                if gru is not None:
                    gru.register_forward_hook(_step_by_step)
        elif isinstance(module, InterestMatch):
            module.register_forward_pre_hook(_round_items)
        elif isinstance(module, Evidence):
            module.register_forward_pre_hook(_round_keys)
            module.describe.register_forward_hook(_round_output)
        elif isinstance(module, nn.ModuleDict):
            for part in module.values():
                if isinstance(part, AdditiveAttention):
                    part.key.register_forward_hook(_round_output)


def _round_output(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return round_rows(output)


def _round_items(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    candidates, items, *others = inputs
    return (candidates, round_rows(items), *others)


def _round_keys(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    cards, *others = inputs
    return (Cards(cards.codes, round_rows(cards.keys), cards.scalars), *others)


def _step_by_step(gru: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> tuple[Tensor, Tensor]:
    """Run a GRU again, (B, L, inputs), its state rounded after every step: a fused GRU cannot be told to."""
    assert isinstance(gru, nn.GRU)
    x, lasts = inputs[0], []
    starts = inputs[1] if len(inputs) > 1 else x.new_zeros(gru.num_layers, len(x), gru.hidden_size)
    for layer in range(gru.num_layers):
        weight, bias = getattr(gru, f"weight_hh_l{layer}"), getattr(gru, f"bias_hh_l{layer}")
        gates = nn.functional.linear(
            x, getattr(gru, f"weight_ih_l{layer}"), getattr(gru, f"bias_ih_l{layer}")
        )
        state, states = starts[layer], []
        for given in gates.unbind(1):
            reset, update, new = given.chunk(3, -1)
            own_reset, own_update, own_new = nn.functional.linear(state, weight, bias).chunk(3, -1)
            update = torch.sigmoid(update + own_update)
            new = torch.tanh(new + torch.sigmoid(reset + own_reset) * own_new)
            state = round_rows(new + update * (state - new))
            states.append(state)
        x = torch.stack(states, 1)
        lasts.append(state)
    return x, torch.stack(lasts)
