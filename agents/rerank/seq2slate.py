"""Seq2Slate (Bello et al., 2018): a pointer network emits the list card by card."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from edgerec_gym.agents.data.observed_log import NOT_SHOWN
from edgerec_gym.agents.learning.tensors import TensorObservation
from edgerec_gym.agents.perception.attention import AdditiveAttention
from edgerec_gym.agents.perception.perception import base_logit, take, to_front
from edgerec_gym.agents.rerank.reranker import ABSENT, ListEmitter, ListInputs, RerankerConfig, pool_present
from edgerec_gym.config import FeedConfig


class Seq2Slate(ListEmitter):
    """An LSTM encodes the candidates in cloud order; an LSTM decoder points at the next card.

    It is supervised by clicks. At every step of a list drawn from the pointer itself, the loss is the
    cross-entropy of the pointer with the clicked cards not yet placed, weighted by 1 / log2(step + 1).
    """

    needs_click = True

    def __init__(self, config: FeedConfig, settings: RerankerConfig) -> None:
        super().__init__(config, settings)
        hidden = settings.hidden
        self.inputs = ListInputs(config)
        self.encoder = nn.LSTM(self.inputs.size, hidden, settings.layers, batch_first=True)
        self.decoder = nn.LSTMCell(hidden, hidden)
        self.first = nn.Parameter(torch.zeros(hidden))  # decoder input before the first card
        self.pointer = AdditiveAttention(hidden, hidden, hidden)

    def _encode(self, observation: TensorObservation) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return codes (B, N, H) of the pool rows and the decoder's initial state."""
        order, count = to_front(pool_present(observation))
        codes = self.encoder(take(self.inputs(observation), order))[0]
        last = take(codes, (count - 1).clamp(min=0).unsqueeze(1))[:, 0] * (count > 0).unsqueeze(1)
        return take(codes, order.argsort(1)), (last, torch.zeros_like(last))

    def _point(self, state: Tensor, codes: Tensor, prior: Tensor) -> Tensor:
        """Return the logits (B, N) of the next card."""
        return self.pointer.logits(state.unsqueeze(1), codes).squeeze(1) + prior

    def _prior(self, observation: TensorObservation) -> Tensor:
        logit = base_logit(observation["pool"], self.config.embedding_size)
        return logit * self.settings.residual

    def emit(self, observation: TensorObservation, k: int) -> Tensor:
        """Return k pool rows in greedy order, (B, k) int64; -1 where the pool has fewer."""
        codes, (hidden, cell) = self._encode(observation)
        prior, left = self._prior(observation), pool_present(observation)
        read = self.first.expand(len(left), -1)
        emitted = []
        for _ in range(k):
            hidden, cell = self.decoder(read, (hidden, cell))
            chosen = self._point(hidden, codes, prior).masked_fill(~left, ABSENT).argmax(1, keepdim=True)
            emitted.append(torch.where(left.any(1, keepdim=True), chosen, NOT_SHOWN))
            left = left.scatter(1, chosen, False)
            read = take(codes, chosen)[:, 0]
        return torch.cat(emitted, 1)

    def loss(
        self, observation: TensorObservation, shown: Tensor, click: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Return the sum of the weighted step losses over the shown cards, mean over moments with a click."""
        codes, (hidden, cell) = self._encode(observation)
        rows = shown.clamp(min=0)
        left, clicked = shown != NOT_SHOWN, click > 0  # (B, K)
        codes, prior = take(codes, rows), self._prior(observation).gather(1, rows)
        read = self.first.expand(len(left), -1)
        total = prior.new_zeros(())
        taught = clicked.any(1).sum().clamp(min=1)
        for step in range(shown.shape[1]):
            hidden, cell = self.decoder(read, (hidden, cell))
            log_p = self._point(hidden, codes, prior).masked_fill(~left, ABSENT).log_softmax(-1)
            wanted = (clicked & left).to(log_p.dtype)
            wanted = wanted / wanted.sum(-1, keepdim=True).clamp(min=1)
            total = total - (wanted * log_p).sum() / math.log2(step + 2)
            drawn = torch.multinomial(log_p.detach().exp(), 1, generator=generator)
            left = left.scatter(1, drawn, False)
            read = take(codes, drawn)[:, 0]
        return total / taught
