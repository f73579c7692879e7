"""What a student learns from a teacher's scores of the same candidates."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

LOWEST = -1e9  # finite, so that nothing becomes NaN


def relaxed_ranking_loss(student: Tensor, teacher: Tensor, present: Tensor, top: int) -> Tensor:
    """Return the relaxed ranking distillation loss (DE-RRD; Kang et al., CIKM'20), a mean over places.

    The likelihood of the teacher's order among its top candidates, each chosen from those below it and all
    the rest. Nothing is asked of the order within the rest.

    Args:
        student: (R, N) scores that are trained.
        teacher: (R, N) scores.
        present: (R, N) bool.
        top: number of candidates whose order counts.
    """
    top = min(top, student.shape[1])
    chosen = torch.where(present, teacher, LOWEST).topk(top, dim=1).indices
    counted = present.gather(1, chosen)
    rest = present.scatter(1, chosen, False)
    above = torch.where(counted, student.gather(1, chosen), LOWEST)
    below = torch.where(rest, student, LOWEST).logsumexp(1, keepdim=True)
    # At place k: everything from k on, and the rest.
    remaining = torch.logaddexp(above.flip(1).logcumsumexp(1).flip(1), below)
    losses = (remaining - above) * counted
    return losses.sum() / counted.sum().clamp(min=1)


def confidence(teacher: Tensor, present: Tensor) -> Tensor:
    """Return how sure a teacher is of its ranking, (R,) in 0..1.

    One less the entropy of the softmax of its logits (R, N) over the candidates that are present, as a share
    of the largest possible entropy; 0 for fewer than two candidates.
    """
    log_share = torch.where(present, teacher, LOWEST).log_softmax(1)
    entropy = -(log_share.exp() * log_share * present).sum(1)
    count = present.sum(1)
    largest = torch.log(count.clamp(min=2).to(teacher.dtype))
    return torch.where(count > 1, (1 - entropy / largest).clamp(0, 1), torch.zeros_like(entropy))


def interpolated_log_loss(
    student: Tensor, click: Tensor, shown: Tensor, teacher: Tensor, weight: Tensor
) -> Tensor:
    """Return the mean log-loss of the shown cards against clicks mixed with the teacher's probabilities.

    Args:
        student: (R, K) logits that are trained.
        click: (R, K) of 0 or 1.
        shown: (R, K) bool.
        teacher: (R, K) logits.
        weight: (R,) share of the teacher's probability in the label, 0..1; 0 is the plain log-loss.
    """
    share = weight.unsqueeze(1)
    label = (1 - share) * click + share * torch.sigmoid(teacher)
    return functional.binary_cross_entropy_with_logits(student[shown], label[shown])


def embedding_loss(mapped: Tensor, teacher: Tensor, present: Tensor) -> Tensor:
    """Return the mean squared distance of mapped codes and the teacher's codes of the candidates.

    The teacher's codes (R, N, h) are scaled to a mean square of 1, so that the loss is 1 for a student that
    knows nothing. `present` (R, N) bool.
    """
    scale = teacher[present].square().mean().sqrt().clamp(min=1e-6)
    return (mapped - teacher / scale)[present].square().mean()
