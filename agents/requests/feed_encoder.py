"""The encoder of uplift estimators for the feed: behaviour, intent signals, user and context."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from edgerec_gym.agents.learning.tensors import to_arrays
from edgerec_gym.agents.perception.attention import AdditiveAttention
from edgerec_gym.agents.perception.intent_change import SIGNALS, intent_signals
from edgerec_gym.agents.perception.perception import Perception
from edgerec_gym.config import FeedConfig
from edgerec_gym.spaces import context_size

LEAST_SCALE = 0.01  # minimum scale, for inputs that hardly vary in the sample


class FeedEncoder(nn.Module):
    """Encode both behaviour sequences (HUBSM) by attention, along with intent signals, user and context.

    Args:
        config: gives the sizes.
        hidden: width of the GRUs and of the attention; 0 leaves the sequences out.
        layers: number of GRU layers.
    """

    def __init__(self, config: FeedConfig, hidden: int, layers: int = 1) -> None:
        super().__init__()
        self.config = config
        plain = len(SIGNALS) + config.n_user_features + context_size(config)
        self.perception = Perception(config, hidden, layers) if hidden else None
        self.attention = nn.ModuleDict()
        if self.perception is not None:
            for name in self.perception.sequences:
                self.attention[name] = AdditiveAttention(plain, hidden, hidden)
        self.size = plain + 2 * hidden * len(self.attention)
        self.mean = nn.Parameter(torch.zeros(plain), requires_grad=False)
        self.scale = nn.Parameter(torch.ones(plain), requires_grad=False)

    def _plain(self, observation: dict[str, Tensor]) -> Tensor:
        signals = torch.from_numpy(intent_signals(to_arrays(observation), self.config))
        return torch.cat((signals, observation["user"], observation["context"]), -1)

    @torch.no_grad()
    def standardise(self, observation: dict[str, Tensor]) -> None:
        """Set mean and scale of everything but the sequences from a sample of observations (R, ...)."""
        plain = self._plain(observation)
        self.mean.copy_(plain.mean(0))
        self.scale.copy_(plain.std(0).clamp(min=LEAST_SCALE))

    def forward(self, observation: dict[str, Tensor]) -> Tensor:
        """Encode: (B, size)."""
        plain = (self._plain(observation) - self.mean) / self.scale
        if self.perception is None:
            return plain
        query = plain.unsqueeze(1)
        parts = [plain]
        for name, codes in self.perception(observation).items():
            attended = self.attention[name](query, codes.items, codes.values, codes.present)
            parts.append(attended.squeeze(1))
        return torch.cat(parts, -1)
