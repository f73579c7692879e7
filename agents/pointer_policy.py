"""A small pointer policy for sb3-contrib's MaskablePPO, on every Discrete id.

The behaviour history becomes a few *interest vectors* in the embedding space: every history row gets a signed
weight from its actions, type and age, and the weighted embeddings are summed. A candidate is scored by its
match with the interests, its own scalars and the state of the session. One scorer is shared by all pool rows,
one by all cards, and one gives the request, so matching is learned once and not a hundred times.

All tracks share one layout of logits. Pool rows are normalised among themselves (log-softmax), so *some pool
row* has logit 0, and cards and the request compete with that.
"""

from __future__ import annotations

from typing import Any, cast

from gymnasium import spaces

from edgerec_gym.errors import InputError, MissingExtraError
from edgerec_gym.spaces import CONTEXT, N_EXPOSURE_COLUMNS, N_PAGE_VIEW_COLUMNS

try:
    import torch
    from sb3_contrib.common.maskable.distributions import MaskableCategoricalDistribution
    from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
    from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
    from torch import Tensor, nn
except ImportError:
    raise MissingExtraError("PointerPolicy", "train") from None

ABSENT = -30.0  # logit of a pool row that is used up: below any score, still finite
N_SCALARS = 4  # price level, base ctr, base cvr, freshness
LOGIT_SCALE = 3.0  # brings logit(base ctr) to order 1
MATCH_SCALE = 10.0  # on matches with the interest vectors: a larger unit learns faster
POOL_PRIOR = 1.0  # an untrained policy samples pool rows by the odds of their base ctr,
CARD_BIAS = -1.0  # inserts a card now and then,
REQUEST_BIAS = -2.0  # and seldom asks for a page
DWELL_CENTRE = 0.4  # looks shorter than this (of 0..1) speak against the item


def infer_track(n_pool: int, n_cards: int, n_actions: int) -> str:
    """Tell the track from the sizes of the spaces; InputError where that is not possible."""
    sizes = {"joint": n_pool + n_cards + 1, "rerank": n_pool, "mix": n_cards + 1, "request": 2}
    fitting = [track for track, size in sizes.items() if size == n_actions]
    if len(fitting) != 1:
        raise InputError(
            f"{n_actions} actions with {n_pool} pool rows and {n_cards} cards fit "
            f"{' and '.join(fitting) or 'no track'}; name the track of PointerPolicy: {', '.join(sizes)}"
        )
    return fitting[0]


def _scalars(items: Tensor, d: int) -> Tensor:
    """Item scalars (..., 4), the base ctr as a logit of order 1."""
    price, ctr, cvr, freshness = items[..., d : d + N_SCALARS].unbind(-1)
    return torch.stack((price, torch.logit(ctr, 1e-4) / LOGIT_SCALE, cvr, freshness), -1)


class HistoryEncoder(nn.Module):
    """Behaviour rows (B, L, F + T + columns) -> interest vectors (B, heads, d) and a summary (B, hidden).

    A row's weight is a network of its actions, type, scalars and age, plus a linear part that starts as the
    cloud's own evidence: `offset + slope * duration`, decayed with age, each head at its own rate.
    """

    def __init__(
        self, d: int, n_types: int, n_columns: int, heads: int, hidden: int, slope: float, offset: float
    ) -> None:
        super().__init__()
        self.d, self.n_types = d, n_types
        n_actions = n_columns - 1  # the last column is the slot
        self.rows = nn.Sequential(nn.Linear(N_SCALARS + n_types + n_actions + 2, hidden), nn.ReLU())
        self.weights = nn.Linear(hidden, heads)
        self.evidence = nn.Linear(n_actions, heads)
        self.decay = nn.Parameter(torch.linspace(1.5, 3.0, heads))  # log of the rate per max_slots
        nn.init.orthogonal_(self.weights.weight, 0.1)
        for parameter in (self.weights.bias, self.evidence.weight):
            nn.init.zeros_(parameter)
        nn.init.constant_(self.evidence.bias, offset)
        with torch.no_grad():
            self.evidence.weight[:, 0] = slope

    def forward(self, rows: Tensor, slot: Tensor) -> tuple[Tensor, Tensor]:
        """Encode; `slot` (B, 1) is now, in the unit of the rows' last column."""
        behaviour = rows[..., self.d + N_SCALARS : -1]  # type one-hot, then actions
        present = behaviour[..., : self.n_types].sum(-1, keepdim=True)  # (B, L, 1): 1, or 0 for padding
        age = slot.unsqueeze(1) - rows[..., -1:]
        hidden = self.rows(torch.cat((_scalars(rows, self.d), behaviour, age, torch.exp(-10 * age)), -1))
        weights = self.evidence(behaviour[..., self.n_types :]) + self.weights(hidden)
        weights = weights * torch.exp(-age * self.decay.exp()) * present  # (B, L, heads)
        interests = weights.transpose(1, 2) @ rows[..., : self.d]
        # Little evidence counts little, much evidence counts as a direction.
        interests = MATCH_SCALE * interests / (1 + interests.square().sum(-1, keepdim=True).add(1e-6).sqrt())
        return interests, (hidden * present).mean(1)


class Scorer(nn.Module):
    """Score of every candidate (B, n, features) in a state (B, hidden): (B, n).

    A linear part plus a small network; it starts as `prior * logit(base ctr)`.
    """

    def __init__(self, n_features: int, base_ctr_at: int, hidden: int, prior: float) -> None:
        super().__init__()
        self.linear = nn.Linear(n_features, 1)
        self.candidate = nn.Linear(n_features, hidden)
        self.state = nn.Linear(hidden, hidden, bias=False)
        self.out = nn.Linear(hidden, 1, bias=False)
        nn.init.orthogonal_(self.out.weight, 0.01)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        with torch.no_grad():
            self.linear.weight[0, base_ctr_at] = prior * LOGIT_SCALE

    def forward(self, candidates: Tensor, state: Tensor) -> Tensor:
        """Score."""
        hidden = torch.relu(self.candidate(candidates) + self.state(state).unsqueeze(1))
        return (self.linear(candidates) + self.out(hidden)).squeeze(-1)


class PointerNetwork(BaseFeaturesExtractor):
    """Observation -> (B, A + hidden): the logits of all actions, then the features of the value head.

    Args:
        observation_space: of EdgeFeed-v0 or of one of its tracks.
        n_actions: size A of the action space.
        track: "joint", "rerank", "mix" or "request"; told from the sizes if None.
        hidden: width of the hidden layers.
        heads: interest vectors from each of the two histories.
    """

    def __init__(
        self, observation_space: spaces.Dict, n_actions: int, track: str | None, hidden: int, heads: int
    ) -> None:
        super().__init__(observation_space, features_dim=n_actions + hidden)
        shapes = {key: space.shape or () for key, space in observation_space.spaces.items()}
        n_pool, n_features = shapes["pool"]
        n_cards = shapes["cards"][0]
        self.n_types = shapes["cards"][1] - n_features
        self.d = n_features - N_SCALARS
        self.lookahead = shapes["screen"][0] if "screen" in shapes else 0
        self.track = infer_track(n_pool, n_cards, n_actions) if track is None else track

        sizes: dict[str, list[int]] = {
            "joint": [n_pool, n_cards, 1],
            "rerank": [n_pool],
            "mix": [1, n_cards],
            "request": [1, 1],
        }
        self.group_sizes = sizes[self.track]

        n_matches = 2 * heads + 1 + self.lookahead  # one a query vector
        n_candidate = n_matches + N_SCALARS
        n_state = shapes["context"][0] + shapes["user"][0] - self.d + hidden + 3 * n_candidate
        n_state += self.lookahead * (N_SCALARS + self.n_types)
        self.exposures = HistoryEncoder(
            self.d, self.n_types, N_EXPOSURE_COLUMNS, heads, hidden // 2, 1.0, -DWELL_CENTRE
        )
        self.page_views = HistoryEncoder(
            self.d, self.n_types, N_PAGE_VIEW_COLUMNS, heads, hidden // 2, 2.0, 1.0 - 2 * DWELL_CENTRE
        )
        self.query_scale = nn.Parameter(torch.ones(n_matches, self.d))  # weights of the elementwise products
        self.policy_state = nn.Sequential(nn.Linear(n_state, hidden), nn.ReLU())
        self.value_state = nn.Sequential(
            nn.Linear(n_state, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()
        )
        if self.track in ("joint", "rerank"):
            self.pool_scorer = Scorer(n_candidate, n_matches + 1, hidden, POOL_PRIOR)
        if self.track in ("joint", "mix"):
            self.card_scorer = Scorer(n_candidate + self.n_types + 2, n_matches + 1, hidden, 0.0)
        if self.track in ("joint", "request"):
            self.request_scorer = nn.Linear(hidden, 1)
            nn.init.orthogonal_(self.request_scorer.weight, 0.01)
            nn.init.zeros_(self.request_scorer.bias)

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """Compute logits and value features."""
        pool, cards, context = observations["pool"], observations["cards"], observations["context"]
        matches, parts = self._queries(observations)  # (B, n_matches, d)
        pool_inputs = torch.cat((pool[..., : self.d] @ matches, _scalars(pool, self.d)), -1)
        present = (pool != 0).any(-1)  # (B, N)
        state = torch.cat((context, *parts, *self._pool_summary(pool_inputs, present)), -1)
        hidden = self.policy_state(state)

        logits = []
        if self.track in ("joint", "rerank"):
            scores = self.pool_scorer(pool_inputs, hidden).masked_fill(~present, ABSENT)
            logits.append(scores.log_softmax(-1))
        else:
            logits.append(torch.zeros_like(context[:, :1]))
        if self.track in ("joint", "mix"):
            card_inputs = torch.cat((cards[..., : self.d] @ matches, _scalars(cards, self.d)), -1)
            card_inputs = torch.cat((card_inputs, self._card_types(cards, context)), -1)
            logits.append(self.card_scorer(card_inputs, hidden) + CARD_BIAS)
        if self.track in ("joint", "request"):
            logits.append(self.request_scorer(hidden) + REQUEST_BIAS)
        return torch.cat((*logits, self.value_state(state)), -1)

    def _queries(self, observations: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Vectors (B, d, n_matches) to match candidates with, and what else is known of the session."""
        user, slot = observations["user"], observations["context"][:, :1]
        exposed, exposed_summary = self.exposures(observations["exposures"], slot)
        viewed, viewed_summary = self.page_views(observations["page_views"], slot)
        queries = [exposed, viewed, user[:, None, : self.d]]
        parts = [user[:, self.d :], exposed_summary, viewed_summary]
        if self.lookahead:
            screen = observations["screen"]
            queries.append(screen[..., : self.d])
            parts += [_scalars(screen, self.d).flatten(1), screen[..., self.d + N_SCALARS :].flatten(1)]
        return (torch.cat(queries, 1) * self.query_scale).transpose(1, 2), parts

    def _pool_summary(self, inputs: Tensor, present: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and maximum over the pool, and the row that *keep* would place; each (B, features)."""
        weight = present.unsqueeze(-1).to(inputs.dtype)
        mean = (inputs * weight).sum(1) / weight.sum(1).clamp(min=1)
        best = inputs.masked_fill(~present.unsqueeze(-1), -10).amax(1)
        keep = inputs[torch.arange(len(inputs), device=inputs.device), weight.squeeze(-1).argmax(1)]
        return mean, best, keep

    def _card_types(self, cards: Tensor, context: Tensor) -> Tensor:
        """Type one-hot, then that type's share used and slots since its last card: (B, M, T + 2)."""
        types = cards[..., self.d + N_SCALARS :]
        per_type = context[:, len(CONTEXT) :].unflatten(-1, (2, self.n_types - 1))  # (B, 2, T - 1)
        return torch.cat((types, types[..., 1:] @ per_type.transpose(1, 2)), -1)


class GroupedCategorical(MaskableCategoricalDistribution):
    """Categorical over pool rows, cards and request whose mode is taken group first, then within it.

    A hundred good pool rows share their group's probability, so a plain argmax would prefer the one request
    over any of them. For a single group the two are the same.
    """

    def __init__(self, sizes: list[int]) -> None:
        super().__init__(sum(sizes))
        self.sizes = sizes

    def mode(self) -> Tensor:
        """Return (B,) int64, the most probable action of the most probable group."""
        groups = self.distribution.probs.split(self.sizes, dim=1)
        best_group = torch.stack([group.sum(1) for group in groups], 1).argmax(1, keepdim=True)
        starts = [sum(self.sizes[:k]) for k in range(len(self.sizes))]
        best = torch.stack([group.argmax(1) + start for group, start in zip(groups, starts, strict=True)], 1)
        return best.gather(1, best_group).squeeze(1)


class _Split(nn.Module):
    """Stand-in for SB3's MLP extractor: the network's output is already (logits, value features)."""

    def __init__(self, n_actions: int, hidden: int) -> None:
        super().__init__()
        self.latent_dim_pi, self.latent_dim_vf = n_actions, hidden

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self.forward_actor(features), self.forward_critic(features)

    def forward_actor(self, features: Tensor) -> Tensor:
        return features[:, : self.latent_dim_pi]

    def forward_critic(self, features: Tensor) -> Tensor:
        return features[:, self.latent_dim_pi :]


class PointerPolicy(MaskableActorCriticPolicy):
    """MaskablePPO policy with one scorer for all pool rows, one for all cards, one for the request.

    Use it as `MaskablePPO(PointerPolicy, env)`. Sizes come from the spaces alone.

    Args:
        observation_space: Dict space of EdgeFeed-v0 or of one of its tracks.
        action_space: Discrete.
        lr_schedule: learning rate as a function of the remaining progress.
        track: which track it is; told from the sizes if None, InputError if they do not tell.
        hidden: width of the hidden layers.
        heads: interest vectors from each of the two histories.
        optimizer_class: as in stable-baselines3.
        optimizer_kwargs: as in stable-baselines3.
    """

    def __init__(
        self,
        observation_space: spaces.Dict,
        action_space: spaces.Discrete,
        lr_schedule: Any,
        track: str | None = None,
        hidden: int = 32,
        heads: int = 2,
        optimizer_class: type[torch.optim.Optimizer] = torch.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
    ) -> None:
        self.track, self.hidden, self.heads = track, hidden, heads
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            ortho_init=False,
            features_extractor_class=PointerNetwork,
            features_extractor_kwargs={
                "n_actions": int(action_space.n),
                "track": track,
                "hidden": hidden,
                "heads": heads,
            },
            normalize_images=False,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
        )

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            "observation_space": self.observation_space,
            "action_space": self.action_space,
            "lr_schedule": self._dummy_schedule,
            "track": self.track,
            "hidden": self.hidden,
            "heads": self.heads,
            "optimizer_class": self.optimizer_class,
            "optimizer_kwargs": self.optimizer_kwargs,
        }

    def _build(self, lr_schedule: Any) -> None:
        sizes = cast(PointerNetwork, self.features_extractor).group_sizes
        self.action_dist = GroupedCategorical(sizes)
        self.mlp_extractor = cast(Any, _Split(sum(sizes), self.hidden))
        self.action_net = nn.Identity()
        self.value_net = nn.Linear(self.hidden, 1)
        make_optimizer = cast(Any, self.optimizer_class)
        self.optimizer = make_optimizer(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)
