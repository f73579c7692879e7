"""EdgeFeedSlate-v0: one step plays a plan of up to K slots, as a single or a vector environment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode

from edgerec_gym.answers import UserModel
from edgerec_gym.env import EdgeFeedEnv, check_single_options
from edgerec_gym.errors import UnknownOptionError
from edgerec_gym.feed.slate import Plan
from edgerec_gym.feed.slate_batch import SlateBatch
from edgerec_gym.scenario import Scenario
from edgerec_gym.spaces import slate_action_space
from edgerec_gym.vector_env import EdgeFeedVectorEnv


class EdgeFeedSlateVectorEnv(EdgeFeedVectorEnv):
    """Many feeds that each play a plan per step; row i equals the single environment seeded `seed + i`.

    Takes the arguments of :class:`~edgerec_gym.vector_env.EdgeFeedVectorEnv` except `track`. An action is a
    dict of arrays, batch first: order (B, N), insert (B, K), request (B,); see :class:`EdgeFeedSlateEnv`.

    Infos hold the entries of :class:`EdgeFeedSlateEnv`'s `info`, batch first (with Gymnasium's `_key` masks):
    arrays (B,), or (B, K) for entries per slot.
    """

    batch: SlateBatch

    def __init__(self, num_envs: int = 1, **options: Any) -> None:
        if "track" in options:
            raise UnknownOptionError("EdgeFeedSlateVectorEnv got an unexpected keyword argument 'track'")
        super().__init__(num_envs, track="joint", **options)  # the observation is that of EdgeFeed-v0
        self.track = "slate"
        self.single_action_space = slate_action_space(self.config)

    def _make_batch(self, num_envs: int, track: str, split: str, threads: int) -> SlateBatch:
        return SlateBatch(
            num_envs, self.config, self.scenario.catalog, self.users, split=split, threads=threads
        )


class EdgeFeedSlateEnv(EdgeFeedEnv):
    """A feed on a phone, a plan of up to K slots at a time.

    ## Description
    The device plans the next K = `slate_size` slots at once: how to order the pool, where to insert cards,
    and whether to request a page. The plan is played slot by slot, as in EdgeFeed-v0, until an event makes it
    stale (a *trigger*): an answered click or a new page. A plan is shorthand: the same actions, one by one in
    EdgeFeed-v0, lead to the same states, bit for bit. EdgeRec, CIKM'20 (arXiv 2005.08416).

    ## Action Space
    `Dict` of

    | key | space | meaning |
    | --- | --- | --- |
    | order | Box(-1, 1, (N,)) float32 | scores: the unused pool row with the highest score comes next |
    | insert | MultiDiscrete([M + 1] * K) | for each slot of the plan: 0 no card, m card row m - 1 |
    | request | Discrete(2) | 1 requests a page at the first slot of the plan |

    Rows with equal scores are placed in cloud order. Only the order of the scores matters, so any finite
    numbers are accepted. NaN and infinite scores raise InputError, as do cards and requests outside the
    space. The first slot of a plan with a request equals EdgeFeed-v0's request: it plays keep (cloud order)
    and ignores `insert[0]`.

    A card that is illegal when its slot comes, or an illegal request, is an invalid action as in EdgeFeed-v0:
    keep is played there, the `invalid` term is paid, and the plan goes on. With `rules="penalty"`, cards that
    break the rules are played and counted in `cost`.

    ## Observation Space
    That of EdgeFeed-v0. `action_mask` (N + M + 1,) marks the pool rows, the cards and the request that are
    legal at the first slot of the plan. What is legal later depends on the plan, so no mask can show it.

    ## Rewards
    Rewards, and the terms in `info["reward_terms"]`, are summed over the slots. `info` also holds

    | key | content |
    | --- | --- |
    | slots | slots played, 1..K (0 after a reset) |
    | stopped_by | index into :data:`edgerec_gym.feed.slate.STOPPED_BY`: plan, page, click, end |
    | invalid_action | whether an action of the plan was illegal |
    | cost | violations under rules="penalty" |
    | request_sent | 0 none, 1 the policy's, 2 an automatic one |
    | page_arrived | whether a page has arrived |
    | positions | (K,) slots of the session; -1 after the plan has stopped |
    | placed_action, placed_item | (K,) index in EdgeFeed-v0 (request not counted), item; likewise -1 |
    | invalid_positions | (K,) whether the action was illegal |
    | answered_item, clicked, purchased | (K,) the card answered in that slot (-1 none), what the user did |
    | click_probability, purchase_probability | (K,) of that card, 0 if none |
    | responses | (K, R) named responses to that card, 0 or 1, if the feed has any |
    | uncertainty | (K,) of that click, if enabled |

    ## Starting State
    As in EdgeFeed-v0; the episodes are the same.

    ## Episode End
    Terminated when the user leaves; truncated at `max_slots` slots. Either cuts a plan short.

    ## Arguments
    Those of :class:`~edgerec_gym.env.EdgeFeedEnv`, e.g. `slate_size`.

    ## Version History
    v0: first version; may change until release 0.1.0.
    """

    def __init__(
        self,
        *,
        scenario: str | Scenario = "default",
        users: str | UserModel = "learned",
        split: str = "train",
        render_mode: str | None = None,
        uncertainty: bool = False,
        members: Sequence[int] | None = None,
        shift: str | None = None,
        **config: Any,
    ) -> None:
        check_single_options(type(self), config)
        vector = EdgeFeedSlateVectorEnv(
            1,
            scenario=scenario,
            users=users,
            split=split,
            render_mode=render_mode,
            uncertainty=uncertainty,
            members=members,
            shift=shift,
            autoreset_mode=AutoresetMode.DISABLED,
            **config,
        )
        self._bind(vector)
        self._plans, self._uncertainty = vector.batch, uncertainty
        self._link()

    def _link(self) -> None:
        super()._link()
        shown = {name: rows[:1].reshape(rows.shape[1:]) for name, rows in self.batch.outcomes.items()}
        if not self._uncertainty:
            del shown["uncertainty"]
        self._shown = shown.items()

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_shown": None}

    def _checked(self, action: Any) -> Plan:
        return self._plans.check_action(action)

    def _info(self, observation: dict[str, np.ndarray]) -> dict[str, Any]:
        batch = self.batch
        info = {name: row.copy() if row.ndim else row.item() for name, row in self._shown}
        info["action_mask"] = observation["action_mask"]
        info["reward_terms"] = dict(
            zip(self.config.reward_terms, batch.reward_terms[0].tolist(), strict=True)
        )
        return info
