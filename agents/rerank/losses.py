"""Losses over the cards that were shown: scores (B, K), clicks (B, K) of 0 or 1, shown (B, K) bool."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def log_loss(score: Tensor, click: Tensor, shown: Tensor) -> Tensor:
    """Return the mean binary cross-entropy of clicks over the shown cards; `score` is a logit."""
    return functional.binary_cross_entropy_with_logits(score[shown], click[shown])


def _log_softmax(score: Tensor, shown: Tensor) -> Tensor:
    lowest = torch.finfo(score.dtype).min
    return score.masked_fill(~shown, lowest).log_softmax(-1)


def list_softmax_loss(score: Tensor, click: Tensor, shown: Tensor) -> Tensor:
    """Return the mean list softmax cross-entropy with the clicks (PRM, SetRank) over lists with a click."""
    clicks = (click * shown).sum(-1)
    losses = -(click * _log_softmax(score, shown) * shown).sum(-1)
    return losses.sum() / (clicks > 0).sum().clamp(min=1)


def attention_rank_loss(score: Tensor, click: Tensor, shown: Tensor) -> Tensor:
    """Binary cross-entropy between label attention and score attention (DLCM, SIGIR'18, equation 7).

    Label attention is shared equally among the clicked cards; lists without a click do not contribute.
    """
    click = click * shown
    wanted = click / click.sum(-1, keepdim=True).clamp(min=1)
    log_given = _log_softmax(score, shown)
    log_rest = torch.log1p(-log_given.exp().clamp(max=1 - 1e-6))
    losses = -((wanted * log_given + (1 - wanted) * log_rest) * shown).sum(-1)
    clicked = click.sum(-1) > 0
    return (losses * clicked).sum() / clicked.sum().clamp(min=1)
