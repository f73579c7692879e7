"""EdgeFeedSlate-v0: one step plays a plan of up to K slots. Single and vector environment."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode

from edgerec_gym.env import EdgeFeedEnv
from edgerec_gym.scenario import Scenario
from edgerec_gym.slate import Plan, check_plan
from edgerec_gym.slate_batch import SlateBatch
from edgerec_gym.spaces import slate_action_space
from edgerec_gym.state import REWARD_TERMS
from edgerec_gym.vector_env import EdgeFeedVectorEnv


class EdgeFeedSlateVectorEnv(EdgeFeedVectorEnv):
    """Many feeds, each playing a plan in a step; row i equals the single environment seeded `seed + i`.

    Takes the arguments of :class:`~edgerec_gym.vector_env.EdgeFeedVectorEnv` but `track`, and dicts of arrays,
    batch first, as actions: order (B, N), insert (B, K), request (B,); see :class:`EdgeFeedSlateEnv`.

    Infos hold arrays of length `num_envs` (with `_key` masks as Gymnasium does) of what :class:`EdgeFeedSlateEnv`
    tells in `info`; what it tells of every slot has the shape (B, K).
    """

    def __init__(self, num_envs: int = 1, **options: Any) -> None:
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
    The device plans the next K = `slate_size` slots at once: how it would order the pool, where it would insert
    cards, and whether it asks for a page. The plan is played slot by slot, as in EdgeFeed-v0, until something
    happens that a plan should take into account (a *trigger*). A plan is shorthand: the same actions one by one
    in EdgeFeed-v0 lead to the same states, bit for bit. EdgeRec, CIKM'20 (arXiv 2005.08416).

    ## Action Space
    `Dict` of

    | key | space | meaning |
    | --- | --- | --- |
    | order | Box(-1, 1, (N,)) float32 | scores of the pool rows: the highest unused one is placed; ties: cloud order |
    | insert | MultiDiscrete([M + 1] * K) | for each slot of the plan: 0 no card, m card row m - 1 |
    | request | Discrete(2) | 1 requests a page with the first slot of the plan |

    Only the order of the scores counts, so any finite number is taken; NaN and infinite scores raise InputError,
    as do cards and requests outside the space. With a request the first slot is EdgeFeed-v0's request: cloud order
    stands there, and `insert[0]` is not played.

    A card that is illegal when its slot comes, or an illegal request, is an invalid action as in EdgeFeed-v0: keep
    (cloud order) is played there, the `invalid` term is paid, and the plan goes on. With `rules="penalty"`
    cards against the rules are played and counted in `cost`.

    ## Observation Space
    That of EdgeFeed-v0; `action_mask` (N + M + 1,) has its meaning, too: pool rows, cards and request that are
    legal at the first slot of the plan. What is legal later depends on the plan itself, so that no mask can say it.

    ## Rewards
    The sum of the slots' rewards, as are the terms in `info["reward_terms"]`. `info` also holds

    | key | content |
    | --- | --- |
    | slots | played, 1..K (0 after a reset) |
    | stopped_by | index into :data:`edgerec_gym.slate.STOPPED_BY`: plan, page, click, end |
    | invalid_action, cost | any action of the plan was illegal; violations under rules="penalty" |
    | request_sent, page_arrived | 0 none, 1 the policy's, 2 automatic; a page has come |
    | positions | (K,) slots of the session, -1 where the plan had stopped, as in all that follow |
    | placed_action, placed_item, invalid_positions | (K,) index in EdgeFeed-v0; item; whether it was illegal |
    | answered_item, clicked, purchased | (K,) the card answered in that slot and what the user did |
    | click_probability, purchase_probability | (K,) of that card, 0 if none |
    | uncertainty | (K,) if asked for |

    ## Starting State
    As in EdgeFeed-v0, whose episodes these are.

    ## Episode End
    A step ends after K slots, at an answered click, when a new page has come, or with the session: terminated when
    the user leaves, truncated at `max_slots` slots.

    ## Arguments
    Those of :class:`~edgerec_gym.env.EdgeFeedEnv`, e.g. `slate_size`.

    ## Version History
    v0: first version; may change until release 0.1.0.
    """

    def __init__(
        self,
        *,
        scenario: str | Scenario = "default",
        users: str = "learned",
        split: str = "train",
        render_mode: str | None = None,
        uncertainty: bool = False,
        **config: Any,
    ) -> None:
        self._bind(
            EdgeFeedSlateVectorEnv(
                1,
                scenario=scenario,
                users=users,
                split=split,
                render_mode=render_mode,
                uncertainty=uncertainty,
                autoreset_mode=AutoresetMode.DISABLED,
                **config,
            )
        )
        outcomes = self.batch.outcomes
        self._shown = [name for name in outcomes if uncertainty or name != "uncertainty"]

    def _checked(self, action: Any) -> Plan:
        return check_plan(action, self.config)

    def _info(self, observation: dict[str, np.ndarray]) -> dict[str, Any]:
        batch = self.batch
        rows = {name: batch.outcomes[name][0] for name in self._shown}
        info = {name: row.copy() if row.ndim else row.item() for name, row in rows.items()}
        info["action_mask"] = observation["action_mask"]
        info["reward_terms"] = dict(zip(REWARD_TERMS, batch.reward_terms[0].tolist(), strict=True))
        return info
