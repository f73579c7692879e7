"""What the joint network learns from the parts: their orders and gains, at the moments that they have met."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from edgerec_gym.agents.edgerec_network import EdgeRecNetwork
from edgerec_gym.agents.edgerec_rollouts import Moments
from edgerec_gym.agents.edgerec_runs import EdgeRecConfig
from edgerec_gym.agents.reranker import ABSENT

BATCH, SCALE_SAMPLE, LEAST_SCALE, LEAST_SPREAD = 256, 4096, 0.01, 1e-6


def teach(network: EdgeRecNetwork, moments: Moments, settings: EdgeRecConfig, seed: int) -> list[float]:
    """Fit the order head and the request head; the rest of the network stays as it is.

    Args:
        network: trained in place.
        moments: with the teachers' "scores" and "gain".
        settings: hyper-parameters.
        seed: of the order of the moments.

    Returns:
        Mean loss of every epoch, in shares of the teachers' spread: 2 before training, 0 at best.
    """
    standardise(network, moments)
    heads = [*network.order.parameters(), *network.request.parameters()]
    heads = [parameter for parameter in heads if parameter.requires_grad]
    optimizer = torch.optim.Adam(heads, lr=settings.teach_rate)
    generator, losses = np.random.default_rng([seed, len(moments.row)]), []
    for epoch in range(settings.teach_epochs):
        for group in optimizer.param_groups:
            group["lr"] = settings.teach_rate * (1 - epoch / settings.teach_epochs)
        order, total = generator.permutation(len(moments.row)), 0.0
        for at in range(0, len(order), BATCH):
            part = moments.take(order[at : at + BATCH])
            loss = teaching_loss(network, part)
            gradients = torch.autograd.grad(loss, heads)
            for parameter, gradient in zip(heads, gradients, strict=True):
                parameter.grad = gradient
            torch.nn.utils.clip_grad_norm_(heads, settings.max_grad_norm)
            optimizer.step()
            total += loss.item() * len(part.row)
        losses.append(total / len(order))
    for parameter in heads:
        parameter.grad = None
    return losses


@torch.no_grad()
def standardise(network: EdgeRecNetwork, moments: Moments) -> None:
    """Give the request head the scale of what it reads, from the first moments."""
    some = moments.take(np.arange(min(SCALE_SAMPLE, len(moments.row))))
    head = network.request
    plain = head.plain(some.observation)
    head.mean.copy_(plain.mean(0))
    head.scale.copy_(plain.std(0).clamp(min=LEAST_SCALE))


def teaching_loss(network: EdgeRecNetwork, moments: Moments) -> Tensor:
    """Squared errors of centred scores and of gains, each as a share of the teachers' spread, added."""
    observation, behaviour = moments.observation, moments.behaviour
    teacher, gain = moments.told["scores"], moments.told["gain"]
    present = teacher > ABSENT / 2
    with torch.no_grad():
        coded = network.encode(observation, behaviour)
    wanted = centred(teacher, present)
    # The teacher says what the head alone is to say: live match comes on top.
    error = centred(network.scores(observation, coded, with_match=False), present) - wanted
    order = error.square().sum() / wanted.square().sum().clamp(min=LEAST_SPREAD)
    missed = network.request(observation, behaviour) - gain
    return order + missed.square().mean() / gain.var(correction=0).clamp(min=LEAST_SPREAD)


def centred(score: Tensor, present: Tensor) -> Tensor:
    """Scores (B, N) minus their mean over what is present, 0 elsewhere."""
    kept = torch.where(present, score, torch.zeros_like(score))
    mean = kept.sum(1, keepdim=True) / present.sum(1, keepdim=True).clamp(min=1)
    return (kept - mean) * present
