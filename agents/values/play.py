"""Sessions that the value network plays on learned users, and what they would have answered to others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from edgerec_gym.agents.learning.tensors import to_tensors
from edgerec_gym.agents.perception.perception import SEQUENCES, occupied
from edgerec_gym.agents.rerank.reranker import ABSENT
from edgerec_gym.agents.values.network import ValueNetwork
from edgerec_gym.agents.values.policy import best_of, candidates_of, prices_of
from edgerec_gym.agents.values.teacher import AskedUsers
from edgerec_gym.answers import (
    CLICK,
    CLICK_PROBABILITY,
    FOCUSED,
    LEAVE,
    N_EXPOSURE_ACTIONS,
    PAGE_VIEW,
    PURCHASE_PROBABILITY,
    RESPONSE_SIZE,
)
from edgerec_gym.policy import Observation
from edgerec_gym.vector_env import EdgeFeedVectorEnv

LEAST_VALUE = 1e-6  # of a candidate, before its logarithm is taken


@dataclass(frozen=True)
class SessionSlots:
    """What a network sees of B sessions of up to T slots, whether they were played or logged.

    Attributes:
        user: (B, U) float32.
        context: (B, T, contexts) float32, before each slot was filled.
        screen: (B, T, lookahead, F + T) float32.
        cards: (B, T, F + T) float32, the card that was answered at each slot.
        exposures: (B, T, 6 + R) float32, e1..e6 and the named responses.
        page_views: (B, T, 11) float32, d1..d11.
        clicked: (B, T) bool.
        answered: (B, T) bool, whether the slot was answered.
    """

    user: Tensor
    context: Tensor
    screen: Tensor
    cards: Tensor
    exposures: Tensor
    page_views: Tensor
    clicked: Tensor
    answered: Tensor


@dataclass(frozen=True)
class LabelledSessions(SessionSlots):
    """Sessions that were played; C candidates of every answered slot are labelled.

    Attributes:
        candidates: (B, T, C, F + T) float32, zero where the pool had fewer; the first one was placed.
        click, purchase: (B, T, C) float32 probabilities; 0 if the users were not asked.
        acted: (B, T) bool, whether a card was placed at the slot.
        earned: (B, T) float32, expected reward of the step that placed it: what an earlier slot brought.
        drawn: (B, T) float32, log probability of the card that was placed among the candidates; 0 if
            the candidates are not the choice.
        hidden: (B, T, P) float32, what only the users know (:attr:`AskedUsers.hidden`), if it is kept.
        value: (B,) float64, expected reward of the session.
    """

    candidates: Tensor
    click: Tensor
    purchase: Tensor
    acted: Tensor
    earned: Tensor
    drawn: Tensor
    hidden: Tensor
    value: np.ndarray

    def __len__(self) -> int:
        return len(self.user)

    @property
    def lengths(self) -> np.ndarray:
        """Number of answered slots of every session, (B,) int64."""
        lengths: np.ndarray = self.answered.sum(1).numpy()
        return lengths

    def take(self, index: np.ndarray) -> LabelledSessions:
        """Return some sessions (R,) int64, cut after the longest of them."""
        longest, chosen = max(1, int(self.lengths[index].max(initial=0))), torch.from_numpy(index)
        parts = {name: part[chosen] for name, part in vars(self).items() if isinstance(part, Tensor)}
        cut = {name: part if name == "user" else part[:, :longest] for name, part in parts.items()}
        return LabelledSessions(**cut, value=self.value[index])


def play_labelled(
    network: ValueNetwork,
    env: EdgeFeedVectorEnv,
    users: AskedUsers,
    seeds: np.ndarray,
    *,
    best: float,
    noise: np.ndarray,
    generator: np.random.Generator,
    margin: float | None = None,
    sample: bool = False,
) -> LabelledSessions:
    """Play one session per row to its end, and label candidates of every answered slot.

    With `sample`, a card is drawn among the best candidates with probabilities in proportion to the values to
    the power of 1 / noise. Then the users are not asked, but what only they know is kept.

    Args:
        network: plays.
        env: an environment of the track rerank or joint whose users are `users`.
        users: learned users; they are asked about the card that is placed and others.
        seeds: (B,) seeds.
        best: share of the others that are the network's best; the rest is drawn evenly.
        noise: (B,) scale of the Gumbel noise on the log values; 0 plays the best card.
        generator: draws noise and candidates.
        margin: value by which a card must exceed the best pool row; None takes the network's.
        sample: whether to draw among the candidates.
    """
    batch, config, n_rows, n_asked = env.batch, env.config, env.num_envs, users.n_candidates
    a, lag, n_slots = batch.arrays, config.lookahead, config.max_slots
    width = config.n_item_features + config.n_types
    env.reset(seed=[int(seed) for seed in seeds])
    first, legal_to = batch.observation(copy=False), n_candidates(env)
    shapes = {
        "context": first["context"].shape[1:],
        "screen": (lag, width),
        "cards": (width,),
        "exposures": (N_EXPOSURE_ACTIONS + config.n_responses,),
        "page_views": (LEAVE - PAGE_VIEW,),
        "candidates": (n_asked, width),
        "click": (n_asked,),
        "purchase": (n_asked,),
        "earned": (),
        "drawn": (),
        "hidden": (users.n_hidden if sample else 0,),
    }
    kept = {name: np.zeros((n_rows, n_slots, *shape), np.float32) for name, shape in shapes.items()}
    clicked, answered, acted = np.zeros((3, n_rows, n_slots), np.bool_)
    user, value, done = first["user"].copy(), np.zeros(n_rows), np.zeros(n_rows, np.bool_)
    prices = prices_of(legal_to, config.pool_size, network.settings.margin if margin is None else margin)
    slot = 0
    while not done.all():
        live = np.flatnonzero(~done)
        observation = {key: part[live] for key, part in batch.observation(copy=False).items()}
        cards = candidates_of(observation, config.n_types)[:, :legal_to]
        legal = observation["action_mask"][:, :legal_to] != 0
        score = _scores(network, observation, cards)
        if sample:
            placed, asked, drawn = _draw(score - prices, legal, n_asked, noise[live], generator)
            kept["drawn"][live, slot], kept["hidden"][live, slot] = drawn, users.hidden[live]
            cards = cards * legal[:, :, None]  # what is not legal was no choice
        else:
            placed, asked = _choose(score, prices, legal, n_asked, best, noise[live], generator)
        acted[live, slot] = True
        kept["context"][live, slot] = observation["context"]
        if lag:
            kept["screen"][live, slot] = observation["screen"]
        kept["candidates"][live, slot] = np.take_along_axis(cards, asked[:, :, None], axis=1)
        actions = np.zeros(n_rows, np.int64)
        actions[live] = placed
        at = slot - lag  # the slot that is answered in this step
        users.candidates = kept["candidates"][:, at] if at >= 0 and not sample else None
        batch.step(actions, done)
        rows = np.flatnonzero(~done & a.focus_active)
        if len(rows):
            kept["cards"][rows, at] = a.window_cards[rows, FOCUSED]
            kept["exposures"][rows, at] = exposure_actions(a.response[rows])
            kept["page_views"][rows, at] = a.response[rows, PAGE_VIEW:LEAVE]
            if not sample:
                kept["click"][rows, at], kept["purchase"][rows, at] = users.click[rows], users.purchase[rows]
            clicked[rows, at], answered[rows, at] = a.response[rows, CLICK] > 0, True
            given = config.response_value(a.response[rows, RESPONSE_SIZE:])
            kept["earned"][rows, slot] = config.reward.value(*_told(a.response[rows]), responses=given)
            value[rows] += kept["earned"][rows, slot]
        done |= a.terminated | a.truncated
        slot += 1
    tensors = {name: torch.from_numpy(part) for name, part in kept.items()}
    more = {"user": user, "clicked": clicked, "answered": answered, "acted": acted}
    return LabelledSessions(
        **tensors, **{name: torch.from_numpy(part) for name, part in more.items()}, value=value
    )


def exposure_actions(response: np.ndarray) -> np.ndarray:
    """Return what a history tells of response rows (R, 21 + ...): e1..e6 and the named responses."""
    return np.concatenate([response[:, :N_EXPOSURE_ACTIONS], response[:, RESPONSE_SIZE:]], axis=1)


def _told(response: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the probabilities of click and purchase in response rows (R, 21 + ...)."""
    click, purchase = response[:, CLICK_PROBABILITY], response[:, PURCHASE_PROBABILITY]
    return click.astype(np.float64), purchase.astype(np.float64)


def n_candidates(env: EdgeFeedVectorEnv) -> int:
    """Return how many candidates an action may place: pool rows, and in EdgeFeed-v0 cards."""
    return env.config.pool_size + (env.config.n_cards if env.track == "joint" else 0)


def _scores(network: ValueNetwork, observation: Observation, cards: np.ndarray) -> np.ndarray:
    """Return the value of every candidate, (R, N + M)."""
    with torch.inference_mode():
        score: np.ndarray = network.values(to_tensors(observation), torch.from_numpy(cards)).numpy()
    return score


def _gumbel(uniform: np.ndarray) -> np.ndarray:
    noise: np.ndarray = -np.log(-np.log(np.clip(uniform, 1e-12, 1 - 1e-12)))
    return noise


def _choose(
    score: np.ndarray,
    prices: np.ndarray,
    legal: np.ndarray,
    n_asked: int,
    best: float,
    noise: np.ndarray,
    generator: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the candidate to place (R,), and candidates (R, C) to ask about, the placed one first."""
    present = score > ABSENT / 2
    uniform = generator.random((2, *score.shape))
    noisy = np.maximum(score, LEAST_VALUE) * np.exp(noise[:, None] * _gumbel(uniform[0]))
    placed = best_of(noisy, legal & present, prices)
    n_best = round(best * (n_asked - 1))
    rows = np.arange(len(score))
    # The order of being asked: the placed one, the best by score, then evenly drawn ones, absent ones last.
    rank = np.argsort(np.argsort(np.where(present, -score, np.inf), axis=1, kind="stable"), axis=1)
    priority = np.where(rank < n_best, -1.0 + rank / score.shape[1], uniform[1])
    priority = np.where(present, priority, 2.0)
    priority[rows, placed] = -2.0
    order = np.argsort(priority, axis=1, kind="stable")[:, :n_asked]
    return placed, order


def _draw(
    worth: np.ndarray, legal: np.ndarray, n_best: int, temperature: np.ndarray, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw one of the best candidates.

    Returns:
        The candidate to place (R,); it and the other ones it was drawn from (R, C), illegal ones where fewer
        are legal; and the log probability of the draw (R,).
    """
    logits = np.log(np.maximum(worth, LEAST_VALUE)) / temperature[:, None]
    logits = np.where(legal & (worth > ABSENT / 2), logits, -np.inf)
    order = np.argsort(-logits, axis=1, kind="stable")[:, :n_best]
    among = np.take_along_axis(logits, order, axis=1)
    rows = np.arange(len(worth))
    chosen = (among + _gumbel(generator.random(among.shape))).argmax(axis=1)
    log_probability = among[rows, chosen] - np.logaddexp.reduce(among, axis=1)
    order[rows, chosen], order[:, 0] = order[:, 0].copy(), order[rows, chosen]
    return order[:, 0], order, log_probability


def loss_of(network: ValueNetwork, sessions: LabelledSessions, purchase_weight: float) -> Tensor:
    """Return the mean excess log-loss (Kullback-Leibler divergence) over labelled candidates.

    The loss of a purchase after a click counts in proportion to the probability of the click.
    """
    state, vectors = session_states(network, sessions)
    at = sessions.answered
    candidates = sessions.candidates[at]  # (R, C, F + T)
    present = occupied(candidates)
    click, purchase = sessions.click[at], sessions.purchase[at]
    logits = network.logits(network.cards(candidates), state[at], vectors[at])
    buys = (purchase / click.clamp(min=1e-6)).clamp(0, 1)
    loss = _divergence(logits[..., 0], click) + purchase_weight * click * _divergence(logits[..., 1], buys)
    return (loss * present).sum() / present.sum().clamp(min=1)


def _divergence(logit: Tensor, wanted: Tensor) -> Tensor:
    """Return the divergence of sigmoid(logit) from probabilities `wanted`."""
    missed = torch.nn.functional.binary_cross_entropy_with_logits(logit, wanted, reduction="none")
    entropy = -(torch.xlogy(wanted, wanted) + torch.xlogy(1 - wanted, 1 - wanted))
    return missed - entropy


def session_states(network: ValueNetwork, sessions: SessionSlots) -> tuple[Tensor, Tensor]:
    """Return states and vectors of all slots, as the network sees them in play one by one.

    The histories are those of the observation: from a slot, the last rows that were answered before it. The
    only difference is that page views are not cut to the last rows.
    """
    config, n_slots = network.config, sessions.context.shape[1]
    slot = torch.arange(n_slots)
    age = (slot.view(-1, 1) - slot).unsqueeze(0).to(torch.float32)  # (1, T, S)
    seen = age > config.lookahead
    cards = network.cards(sessions.cards)
    windows = {"exposures": config.exposure_history, "page_views": n_slots}
    present = {"exposures": sessions.answered, "page_views": sessions.clicked}
    evidence = []
    for name in SEQUENCES:
        known = seen & (age <= config.lookahead + windows[name])
        actions = getattr(sessions, name)
        evidence.append(network.evidence[name](cards, actions, present[name], age.clamp(min=0), known))
    screen = network.cards(sessions.screen)
    return network.states(sessions.user, sessions.context, screen, evidence)
