"""Updates of a list generator that compare lists: GoalRank, Rerank-DPO, and credit from neighbours (NLGR).

REINFORCE weights the log-probability of a list by its value minus a baseline
(:mod:`~edgerec_gym.agents.lists.policy_gradient`). Three later methods use the same evaluator otherwise:

| update | learns from | loss |
| --- | --- | --- |
| goalrank | a group: drawn lists and lists of simple rankers | cross-entropy with a reference policy |
| dpo | the best and the worst of the drawn lists | log-loss of telling them apart |
| nlgr | drawn lists and their neighbours | REINFORCE, with a credit for every place |

GoalRank is by Zhang et al. (ICLR'26, 2509.22046). Rerank-DPO is part of GReF by Lin et al. (CIKM'25,
2510.25220) and applies DPO (Rafailov et al., NeurIPS'23) to lists. NLGR is by Wang et al. (WWW'25,
2502.06097). GReF's winners come from users' feedback; here, the evaluator tells the winners. NLGR's generator
writes all places at once; :func:`neighbour_credit` says how its credit applies to a pointer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgerec_gym.agents.data.observed_log import NOT_SHOWN
from edgerec_gym.agents.learning.tensors import TensorObservation
from edgerec_gym.agents.lists.evaluator import EncodedCards, ListEvaluator
from edgerec_gym.agents.lists.pointer_net import Candidates, PointerNet
from edgerec_gym.agents.lists.policy_gradient import PolicyGradientConfig, follow
from edgerec_gym.agents.lists.sequence_search import by_score
from edgerec_gym.agents.perception.perception import base_logit
from edgerec_gym.agents.rerank.reranker import end_with_page, pool_present, slots_left

LEAST_SPREAD = 1e-6  # keeps equal values from dividing by 0
N_RANKERS = 4  # lists that ranker_lists adds to a group


# --- losses -------------------------------------------------------------------------------------------------


def reference_policy(value: Tensor, temperature: float = 1.0) -> Tensor:
    """Return GoalRank's reference policy over a group: the softmax of the standardised values.

    The standard deviation has S - 1 in its denominator, as in the paper's code. Equal values give equal
    probabilities.

    Args:
        value: (..., S) values of a group's lists, S at least 2.
        temperature: divides the standardised values; 1 in the paper.

    Returns:
        (..., S) probabilities.
    """
    deviation = value - value.mean(-1, keepdim=True)
    spread = value.std(-1, keepdim=True) + LEAST_SPREAD
    return (deviation / (temperature * spread)).softmax(-1)


def goalrank_loss(log_probability: Tensor, value: Tensor, temperature: float = 1.0) -> Tensor:
    """Return GoalRank's loss: the cross-entropy of the generator with the reference policy, mean over groups.

    Args:
        log_probability: (B, S) log-probability of each list.
        value: (B, S) value of each list.
        temperature: see :func:`reference_policy`.
    """
    return -(reference_policy(value, temperature) * log_probability).sum(-1).mean()


def best_and_worst(value: Tensor, pairs: int) -> Tensor:
    """Return the lists to compare: the best ones, best first, then the worst ones, worst first.

    Args:
        value: (B, S) value of each list.
        pairs: P, at most S / 2; the best list meets the worst one, the second best the second worst, ...

    Returns:
        (B, 2 P) int64 indices of lists.
    """
    order = torch.argsort(value, dim=1, descending=True, stable=True)
    return torch.cat((order[:, :pairs], order[:, -pairs:].flip(1)), 1)


def dpo_loss(log_probability: Tensor, start: Tensor, value: Tensor, beta: float) -> Tensor:
    """Return the DPO loss -log sigma(beta (gain of the winner - gain of the loser)), mean over pairs.

    The gain of a list is its log-probability minus the one it had at the start. So the generator moves away
    from the start only as far as the comparisons ask for. Pairs of equal value do not count.

    Args:
        log_probability: (B, 2 P) log-probabilities, of the P winners, then of their losers.
        start: (B, 2 P) log-probabilities with the parameters of the start.
        value: (B, 2 P) values.
        beta: weight of the gains; the smaller, the farther from the start.
    """
    winner, loser = (log_probability - start).chunk(2, -1)
    won, lost = value.chunk(2, -1)
    loss = -torch.nn.functional.logsigmoid(beta * (winner - loser))
    return (loss * (won > lost)).mean()


def neighbour_credit(value: Tensor, neighbours: Tensor) -> Tensor:
    """Return the credit of every place: the list's value minus the mean value of its neighbours there.

    A neighbour at a place has another card there, drawn from what the pointer could have chosen after the
    same first cards. If that card stands further down, the two change places. NLGR's generator writes all
    places at once and learns from the same differences. A pointer would answer another card with other cards
    below. The credit leaves these as they are, so it knows the place's own effect on the list with little
    noise, but not its effect on the choices below. At the last place it is the exact policy gradient's.

    Args:
        value: (B, S) value of each list.
        neighbours: (B, S, K, M) values of M neighbours at each place.

    Returns:
        (B, S, K) credits, in units of value.
    """
    return value.unsqueeze(-1) - neighbours.mean(-1)


# --- neighbours ---------------------------------------------------------------------------------------------


def neighbour_lists(rows: Tensor, place: int, cards: Tensor) -> Tensor:
    """Put other cards at one place of lists; a card that stands elsewhere in the list changes places.

    Args:
        rows: (..., K) int64 pool rows, -1 after the end; a place after the end stays as it is.
        place: the place, from 0.
        cards: (..., M) int64 pool rows to put there.

    Returns:
        (..., M, K) int64 lists.
    """
    own = rows[..., place, None]
    cards = torch.where(own == NOT_SHOWN, NOT_SHOWN, cards)
    lists = rows.unsqueeze(-2).expand(*cards.shape, -1)
    lists = torch.where(lists == cards.unsqueeze(-1), own.unsqueeze(-1), lists)
    lists[..., place] = cards
    return lists


def neighbour_values(evaluator: ListEvaluator, encoded: EncodedCards, rows: Tensor, others: Tensor) -> Tensor:
    """Return the values (B, S, K, M) of the neighbours of lists.

    Args:
        evaluator: judges lists.
        encoded: cards of B sessions.
        rows: (B, S, K) int64 lists of pool rows, -1 after the end.
        others: (B, S, K, M) int64 pool rows to put at each place.
    """
    found = []
    for place in range(rows.shape[-1]):
        lists = neighbour_lists(rows, place, others[:, :, place])
        found.append(evaluator.values(encoded, lists.flatten(1, 2)).view(lists.shape[:-1]))
    return torch.stack(found, 2)


# --- groups -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """Lists that are compared with each other (B moments, S lists each, K places).

    Attributes:
        observation: observation of the moments.
        rows: (B, S, K) int64 pool rows, -1 after the end.
        value: (B, S) float32 value of each list by the evaluator.
        start: (B, S) float32 log-probability of each list at the start; 0 unless the update needs it.
    """

    observation: TensorObservation
    rows: Tensor
    value: Tensor
    start: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, index: Tensor) -> Group:
        """Return the moments `index`."""
        observation = {key: value[index] for key, value in self.observation.items()}
        return Group(observation, self.rows[index], self.value[index], self.start[index])


def evaluator_group(
    network: PointerNet,
    evaluator: ListEvaluator,
    observation: TensorObservation,
    settings: PolicyGradientConfig,
    generator: torch.Generator,
    start: PointerNet | None,
) -> tuple[Group, float]:
    """Draw and judge a group of lists for each of B moments.

    Args:
        network: the generator.
        evaluator: judges lists, up to the end of their page.
        observation: observation of the moments.
        settings: `samples` lists are drawn. Update "goalrank" adds those of :func:`ranker_lists` if `rankers`
            is 1; "dpo" keeps the best and the worst `pairs`.
        generator: random generator of the draws.
        start: the generator as it started, for update "dpo".

    Returns:
        The group, and the mean value of the drawn lists.
    """
    k = evaluator.settings.horizon
    with torch.no_grad():
        candidates, encoded = network.encode(observation), evaluator.encode_pool(observation)
        drawn = network.sample(candidates.repeat(settings.samples), k, generator).rows
        rows = drawn.view(-1, settings.samples, k)
        if settings.update == "goalrank" and settings.rankers:
            ranked = ranker_lists(network, evaluator, observation, candidates, encoded)
            rows = torch.cat((rows, ranked), 1)
        rows = end_with_page(rows, slots_left(observation, evaluator.config))
        value = evaluator.values(encoded, rows)
        mean = value[:, : settings.samples].mean().item()
        if settings.update != "dpo":
            return Group(observation, rows, value, torch.zeros_like(value)), mean
        assert start is not None
        kept = best_and_worst(value, settings.pairs)
        rows = rows.gather(1, kept.unsqueeze(-1).expand(-1, -1, k))
        before = follow(start, observation, rows).log_probabilities.sum(-1)
        return Group(observation, rows, value.gather(1, kept), before), mean


def ranker_lists(
    network: PointerNet,
    evaluator: ListEvaluator,
    observation: TensorObservation,
    candidates: Candidates,
    encoded: EncodedCards,
) -> Tensor:
    """Return the lists of four rankers for each moment, (B, 4, K) int64, -1 where the pool has fewer.

    They are the generator's greedy list, the cloud's order, the cards by base ctr, and the cards by the
    evaluator's value of each card alone.
    """
    k, present = evaluator.settings.horizon, pool_present(observation)
    cloud = -torch.arange(present.shape[1], dtype=torch.float32).expand_as(present)
    scores = (
        cloud,
        base_logit(observation["pool"], evaluator.config.embedding_size),
        evaluator.single_values(encoded, observation),
    )
    lists = [network.greedy(candidates, k).rows, *(by_score(score, present, k) for score in scores)]
    return torch.stack(lists, 1)


def group_loss(network: PointerNet, group: Group, settings: PolicyGradientConfig) -> Tensor:
    """Return the loss of update "goalrank" or "dpo" minus the entropy bonus, mean over moments.

    The DPO loss is divided by beta. So the entropy bonus and demonstrations weigh about as much as in the
    other updates, whatever beta is.
    """
    decoded = follow(network, group.observation, group.rows)
    log_probability = decoded.log_probabilities.sum(-1)
    if settings.update == "goalrank":
        loss = goalrank_loss(log_probability, group.value, settings.temperature)
    else:
        loss = dpo_loss(log_probability, group.start, group.value, settings.beta) / settings.beta
    return loss - settings.entropy * decoded.entropies.sum(-1).mean()
