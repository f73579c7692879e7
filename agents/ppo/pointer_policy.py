"""The pointer policy for sb3-contrib's MaskablePPO, for every id with Discrete actions, and its features.

All pool rows share one scorer, all cards share another, and a third scores the request, so matching is
learned once and not a hundred times. Candidates are scored by what they find in the encoded behaviour, by the
session state, and by a summary of the pool, the local ranking context.

All tracks share one layout of logits. Pool rows are normalised among themselves (log-softmax), so *some pool
row* as a whole has logit 0, and cards and the request compete with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from gymnasium import spaces

from edgerec_gym.agents.perception.attention import DotProductAttention
from edgerec_gym.agents.perception.cards import LOGIT_SCALE
from edgerec_gym.agents.perception.perception import (
    BehaviourCodes,
    Perception,
    RowEncoder,
    action_columns,
    candidate_cards,
    card_features,
    compact,
    occupied,
    take,
)
from edgerec_gym.agents.ppo.modes import best_of_groups
from edgerec_gym.errors import InputError, MissingExtraError
from edgerec_gym.spaces import CONTEXT, ObservationSizes

try:
    import torch
    from sb3_contrib.common.maskable.distributions import MaskableCategoricalDistribution
    from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
    from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
    from torch import Tensor, nn
except ImportError:
    raise MissingExtraError("PointerPolicy", "train") from None


MATCH_SCALE = 10.0  # scale of matches with the interest vectors; larger values learn faster
SHARPNESS = 3.0  # initial attention logits per unit of embedding similarity
DWELL_CENTRE = 0.4  # dwell below this (of 0..1) is evidence against the item
EVIDENCE = {"exposures": (1.0, -DWELL_CENTRE), "page_views": (2.0, 1.0 - 2 * DWELL_CENTRE)}


class BehaviourReader(nn.Module):
    """Read one encoded sequence for the policy.

    A row is described by its actions, type, scalars, age and codes. Its weight in an interest vector is
    computed from this description, plus a linear part that starts as the cloud's own evidence:
    `offset + slope * duration`, decayed with age at a rate per head. Attention is CRBAN's (Gong et al.,
    EdgeRec, CIKM'20; query: candidate, key: code of a card, value: cards and actions) with dot products. It
    has the similarity of embeddings as a residual, so it finds similar cards from the start.

    Args:
        sizes: sizes of the observation.
        n_columns: number of action columns, including the slot.
        codes: H of the perception.
        heads: number of interest vectors.
        hidden: width of a row's description.
        slope: evidence per unit of duration.
        offset: evidence of an event.
    """

    def __init__(
        self, sizes: ObservationSizes, n_columns: int, codes: int, heads: int, hidden: int, slope: float,
        offset: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.d, self.n_features, self.n_types = sizes.embedding_size, sizes.n_item_features, sizes.n_types
        n_card = sizes.n_item_features + sizes.n_types
        n_actions = n_columns - 1  # the last column is the slot
        n_inputs = n_card - self.d + n_actions + 2 + 2 * codes
        self.rows = nn.Sequential(nn.Linear(n_inputs, hidden), nn.ReLU())
        self.weights = nn.Linear(hidden, heads)
        self.evidence = nn.Linear(n_actions, heads)
        self.decay = nn.Parameter(torch.linspace(1.5, 3.0, heads))  # log of the rate per max_slots
        self.attention = DotProductAttention(n_card, codes, hidden)
        self.sharpness = nn.Parameter(torch.tensor(SHARPNESS))
        nn.init.orthogonal_(self.weights.weight, 0.1)
        for parameter in (self.weights.bias, self.evidence.weight):
            nn.init.zeros_(parameter)
        nn.init.constant_(self.evidence.bias, offset)
        with torch.no_grad():
            self.evidence.weight[:, 0] = slope

    def forward(self, rows: Tensor, cards: Tensor, codes: BehaviourCodes, slot: Tensor) -> Tensor:
        """Describe rows (B, K, W) at the current slot (B, 1): (B, K, hidden), 0 for padding.

        `cards` (B, K, F + T) are their :func:`card_features`.
        """
        n_card = cards.shape[-1]
        age = slot.unsqueeze(1) - rows[..., -1:]
        inputs = (cards[..., self.d :], rows[..., n_card:-1], age, torch.exp(-10 * age), codes.values)
        return self.rows(torch.cat(inputs, -1)) * codes.present.unsqueeze(-1)

    def interests(self, rows: Tensor, described: Tensor, slot: Tensor) -> Tensor:
        """Return interest vectors (B, heads, d) from rows and their descriptions; padding adds nothing."""
        age = slot.unsqueeze(1) - rows[..., -1:]
        actions = rows[..., self.n_features + self.n_types : -1]
        weights = self.evidence(actions) + self.weights(described)
        weights = weights * torch.exp(-age * self.decay.exp())
        interests = weights.transpose(1, 2) @ rows[..., : self.d]
        # With little evidence the norm is small; with much, only the direction counts.
        return MATCH_SCALE * interests / (1 + interests.square().sum(-1, keepdim=True).add(1e-6).sqrt())

    def attend(self, candidates: Tensor, rows: Tensor, codes: BehaviourCodes, described: Tensor) -> Tensor:
        """Return descriptions of the rows that candidates (B, N, F + T) resemble, (B, N, hidden)."""
        alike = candidates[..., : self.d] @ rows[..., : self.d].transpose(1, 2)  # (B, N, K)
        return self.attention(candidates, codes.items, described, codes.present, bias=self.sharpness * alike)


class Scorer(nn.Module):
    """Score every candidate (B, n, features) in a state (B, hidden): (B, n).

    The score is a linear part plus a small network. It starts close to the linear part with the weights
    `prior` (features,).
    """

    def __init__(self, prior: Tensor, hidden: int) -> None:
        super().__init__()
        n_features = len(prior)
        self.linear = nn.Linear(n_features, 1)
        self.candidate = nn.Linear(n_features, hidden)
        self.state = nn.Linear(hidden, hidden, bias=False)
        self.out = nn.Linear(hidden, 1, bias=False)
        nn.init.orthogonal_(self.out.weight, 0.01)
        nn.init.zeros_(self.linear.bias)
        with torch.no_grad():
            self.linear.weight.copy_(prior)

    def forward(self, candidates: Tensor, state: Tensor) -> Tensor:
        """Score the candidates."""
        hidden = torch.relu(self.candidate(candidates) + self.state(state).unsqueeze(1))
        return (self.linear(candidates) + self.out(hidden)).squeeze(-1)


ABSENT = -30.0  # logit of a used-up pool row: below all scores but finite
# An untrained policy samples pool rows by base ctr and match with each interest vector, inserts a card now
# and then, and seldom requests a page.
POOL_PRIOR = 1.0  # logits per logit of the base ctr
MATCH_PRIOR = 1.0  # logits per unit of match
CARD_BIAS = -1.0
REQUEST_BIAS = -2.0


def infer_track(n_pool: int, n_cards: int, n_actions: int, track: str | None = None) -> str:
    """Infer the track from the sizes of the spaces.

    Raises:
        InputError: if several tracks or none fit and `track` is None, or `track` does not fit.
    """
    sizes = {"joint": n_pool + n_cards + 1, "rerank": n_pool, "mix": n_cards + 1, "request": 2}
    fitting = [name for name, size in sizes.items() if size == n_actions]
    found = f"{n_actions} actions with {n_pool} pool rows and {n_cards} cards fit"
    if track is not None and track not in fitting:
        raise InputError(f"{found} {' and '.join(fitting) or 'no track'}, not {track!r}")
    if track is None and len(fitting) != 1:
        raise InputError(
            f"{found} {' and '.join(fitting) or 'no track'}; "
            f"name the track of PointerPolicy: {', '.join(sizes)}"
        )
    return track or fitting[0]


@dataclass(frozen=True)
class _Read:
    """What the network has read of the sessions."""

    queries: Tensor  # (B, d, n_matches), matched with candidates
    parts: list[Tensor]  # parts of the state
    sequences: dict[str, tuple[Tensor, BehaviourCodes, Tensor]]  # rows, codes, descriptions


def _pool_summary(inputs: Tensor, present: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean and maximum over the pool, and the row that *keep* would place; (B, features) each."""
    weight = present.unsqueeze(-1).to(inputs.dtype)
    mean = (inputs * weight).sum(1) / weight.sum(1).clamp(min=1)
    best = inputs.masked_fill(~present.unsqueeze(-1), -10).amax(1)
    keep = inputs[torch.arange(len(inputs), device=inputs.device), weight.squeeze(-1).argmax(1)]
    return mean, best, keep


class PointerNetwork(BaseFeaturesExtractor):
    """Map an observation to (B, A + hidden): the logits of all actions, then the value head's features.

    Args:
        observation_space: observation space of EdgeFeed-v0 or one of its tracks.
        n_actions: A, the size of the action space.
        track: "joint", "rerank", "mix" or "request"; None infers it from the sizes.
        hidden: width of the hidden layers.
        heads: number of interest vectors per history.
        recurrent: False encodes the rows of a history one by one, without GRUs.
    """

    def __init__(
        self,
        observation_space: spaces.Dict,
        n_actions: int,
        track: str | None,
        hidden: int,
        heads: int,
        recurrent: bool = True,
    ) -> None:
        super().__init__(observation_space, features_dim=n_actions + hidden)
        sizes = self.sizes = ObservationSizes.from_space(observation_space)
        self.d, self.n_card = sizes.embedding_size, sizes.n_item_features + sizes.n_types
        self.track = infer_track(sizes.n_pool, sizes.n_cards, n_actions, track)
        groups: dict[str, list[int]] = {
            "joint": [sizes.n_pool, sizes.n_cards, 1],
            "rerank": [sizes.n_pool],
            "mix": [1, sizes.n_cards],
            "request": [1, 1],
        }
        self.group_sizes = groups[self.track]

        width = hidden // 2
        self.encoders: nn.ModuleDict
        if recurrent:
            self.perception = Perception(sizes, hidden)
            self.encoders = self.perception.encoders
        else:
            self.encoders = nn.ModuleDict(
                {
                    name: RowEncoder(self.n_card, n, self.d, hidden)
                    for name, n in action_columns(sizes).items()
                }
            )
        self.readers = nn.ModuleDict(
            {
                name: BehaviourReader(sizes, columns, hidden, heads, width, *EVIDENCE[name])
                for name, columns in action_columns(sizes).items()
            }
        )
        n_matches = 2 * heads + 1 + sizes.lookahead  # one per query vector
        n_scalars = sizes.n_item_features - self.d  # and item columns
        n_candidate = n_matches + n_scalars + 2 * width
        n_state = sizes.n_context + sizes.n_user - self.d + 2 * width + 4 * hidden + 3 * n_candidate
        n_state += sizes.lookahead * (n_scalars + sizes.n_types)
        self.query_scale = nn.Parameter(torch.ones(n_matches, self.d))  # weights of the elementwise products
        self.policy_state = nn.Sequential(nn.Linear(n_state, hidden), nn.ReLU())
        self.value_state = nn.Sequential(
            nn.Linear(n_state, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()
        )
        prior = torch.zeros(n_candidate)
        prior[: 2 * heads] = MATCH_PRIOR / MATCH_SCALE
        if self.track in ("joint", "mix"):
            self.card_scorer = Scorer(torch.cat((prior * 0, torch.zeros(sizes.n_types + 2))), hidden)
        prior[n_matches + 1] = POOL_PRIOR * LOGIT_SCALE
        if self.track in ("joint", "rerank"):
            self.pool_scorer = Scorer(prior, hidden)
        if self.track in ("joint", "request"):
            self.request_scorer = nn.Linear(hidden, 1)
            nn.init.orthogonal_(self.request_scorer.weight, 0.01)
            nn.init.zeros_(self.request_scorer.bias)

    def forward(self, observations: dict[str, Tensor]) -> Tensor:
        """Compute logits and value features."""
        context, n_types = observations["context"], self.sizes.n_types
        read = self._read(observations)
        pool = self._candidates(candidate_cards(observations["pool"], n_types), read)
        present = occupied(observations["pool"])  # (B, N)
        state = torch.cat((context, *read.parts, *_pool_summary(pool, present)), -1)
        hidden = self.policy_state(state)

        logits = []
        if self.track in ("joint", "rerank"):
            scores = self.pool_scorer(pool, hidden).masked_fill(~present, ABSENT)
            logits.append(scores.log_softmax(-1))
        else:
            logits.append(torch.zeros_like(context[:, :1]))
        if self.track in ("joint", "mix"):
            cards = self._candidates(observations["cards"], read)
            cards = torch.cat((cards, self._card_types(observations["cards"], context)), -1)
            logits.append(self.card_scorer(cards, hidden) + CARD_BIAS)
        if self.track in ("joint", "request"):
            logits.append(self.request_scorer(hidden) + REQUEST_BIAS)
        return torch.cat((*logits, self.value_state(state)), -1)

    def _read(self, observations: dict[str, Tensor]) -> _Read:
        """Read user, histories and screen."""
        user, slot = observations["user"], observations["context"][:, :1]
        queries, parts, sequences = [], [user[:, self.d :]], {}
        for name, reader in self.readers.items():
            assert isinstance(reader, BehaviourReader)
            rows, present = compact(observations[name])
            cards = card_features(rows[..., : self.n_card], self.d)
            codes = self.encoders[name].encode(rows, present, cards)  # type: ignore[operator]
            described = reader(rows, cards, codes, slot)
            queries.append(reader.interests(rows, described, slot))
            newest = (present.sum(1) - 1).clamp(min=0).view(-1, 1)
            parts += [described.sum(1) / observations[name].shape[1], take(codes.values, newest)[:, 0]]
            sequences[name] = (rows, codes, described)
        queries.append(user[:, None, : self.d])
        if self.sizes.lookahead:
            screen = observations["screen"]
            queries.append(screen[..., : self.d])
            parts.append(card_features(screen, self.d)[..., self.d :].flatten(1))
        return _Read((torch.cat(queries, 1) * self.query_scale).transpose(1, 2), parts, sequences)

    def _candidates(self, cards: Tensor, read: _Read) -> Tensor:
        """Return features of candidates (B, n, F + T): matches, scalars, attention results."""
        features = card_features(cards, self.d)
        inputs = [cards[..., : self.d] @ read.queries, features[..., self.d : self.sizes.n_item_features]]
        for name, sequence in read.sequences.items():
            reader = self.readers[name]
            assert isinstance(reader, BehaviourReader)
            inputs.append(reader.attend(features, *sequence))
        return torch.cat(inputs, -1)

    def _card_types(self, cards: Tensor, context: Tensor) -> Tensor:
        """Return the type one-hot, its share so far, and slots since its last card: (B, M, T + 2)."""
        types = cards[..., self.sizes.n_item_features :]
        per_type = context[:, len(CONTEXT) :].unflatten(-1, (2, self.sizes.n_types - 1))  # (B, 2, T - 1)
        return torch.cat((types, types[..., 1:] @ per_type.transpose(1, 2)), -1)


class GroupedCategorical(MaskableCategoricalDistribution):
    """Categorical over pool rows, cards and request; its mode picks the best group, then its best action.

    A hundred good pool rows share their group's probability, so a plain argmax would prefer the single
    request to any of them. With a single group, both modes are the same.
    """

    def __init__(self, sizes: list[int]) -> None:
        super().__init__(sum(sizes))
        self.sizes = sizes

    def mode(self) -> Tensor:
        """Return (B,) int64, the most probable action of the most probable group."""
        return torch.from_numpy(best_of_groups(self.distribution.probs.numpy(), self.sizes))


class _Split(nn.Module):
    """Replace SB3's MLP extractor: the network's output is already (logits, value features)."""

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
    """MaskablePPO policy with one scorer for all pool rows, one for all cards and one for the request.

    Use it as `MaskablePPO(PointerPolicy, env)`. All sizes come from the spaces.

    Args:
        observation_space: Dict space of EdgeFeed-v0 or one of its tracks.
        action_space: Discrete action space.
        lr_schedule: learning rate as a function of the remaining progress.
        track: name of the track; None infers it from the sizes, with InputError if they are ambiguous.
        hidden: width of the hidden layers.
        heads: number of interest vectors per history.
        recurrent: False encodes the rows of a history one by one, without GRUs; it trains 1.5 times as fast.
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
        recurrent: bool = True,
        optimizer_class: type[torch.optim.Optimizer] = torch.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
    ) -> None:
        self.track, self.hidden, self.heads, self.recurrent = track, hidden, heads, recurrent
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
                "recurrent": recurrent,
            },
            normalize_images=False,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
        )

    def extract_features(self, obs: Any, features_extractor: BaseFeaturesExtractor | None = None) -> Any:
        """Run the network; InputError if a wrapper has changed the mask, and with it all other keys."""
        mask = obs["action_mask"]
        if not (((mask == 0) | (mask == 1)).all() and mask.any(-1).all()):
            raise InputError(
                "action_mask must hold 0 and 1, and a 1 in each row: leave the observation as it is, "
                "e.g. VecNormalize(env, norm_obs=False), or name the keys to scale in norm_obs_keys"
            )
        return super().extract_features(obs, features_extractor)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            "observation_space": self.observation_space,
            "action_space": self.action_space,
            "lr_schedule": self._dummy_schedule,
            "track": self.track,
            "hidden": self.hidden,
            "heads": self.heads,
            "recurrent": self.recurrent,
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
