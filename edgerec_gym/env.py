"""EdgeFeedEnv: a single feed, run as a batch of one. Its docstring is the manual page of every id."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import index
from typing import Any, NoReturn

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode

from edgerec_gym.answers import CLICK_PROBABILITY, PURCHASE_PROBABILITY, RESPONSE_SIZE, UserModel
from edgerec_gym.compiled.workers import refuse_turn
from edgerec_gym.config import check_options
from edgerec_gym.drawing.render import FPS, RENDER_MODES
from edgerec_gym.drawing.screen import Screen
from edgerec_gym.errors import InputError
from edgerec_gym.feed.batch import refuse_shallow_copy
from edgerec_gym.scenario import Scenario
from edgerec_gym.vector_env import EdgeFeedVectorEnv, with_max_slots

_PASSED_ON = {"copy", "threads"}  # options of EdgeFeedVectorEnv that change nothing for one feed
_ROW = np.zeros(1, np.int64)  # the only row of the batch


def check_single_options(made: type[EdgeFeedEnv], options: dict[str, Any]) -> None:
    """Raise UnknownOptionError for an option that a single environment does not have."""
    check_options(made.__name__, options.keys() - _PASSED_ON, EdgeFeedEnv)


class EdgeFeedEnv(gym.Env[dict[str, np.ndarray], Any]):
    """A feed on a phone, slot by slot.

    ## Description
    A feed is an infinite list. The cloud ships a *page* of candidates ranked with a stale view of the user.
    The device sees every scroll and tap and decides, slot by slot, what comes next: any unexposed candidate
    of the pool (re-rank) or a mix-in card (video, live, content, ad) within share and spacing rules. It also
    decides whether to pay for a fresh page now (request). EdgeRec, CIKM'20 (arXiv 2005.08416).

    ## Action Space
    | id | space | meaning |
    | --- | --- | --- |
    | EdgeFeed-v0 | Discrete(N + M + 1) | 0..N-1 place pool row; N..N+M-1 place card; N+M request and keep |
    | EdgeFeedRerank-v0 | Discrete(N) | place that pool row |
    | EdgeFeedMix-v0 | Discrete(M + 1) | 0 keep; k place card k - 1 |
    | EdgeFeedRequest-v0 | Discrete(2) | 0 keep; 1 request a page and keep |

    EdgeFeedSlate-v0 plays up to K slots in a step: :class:`~edgerec_gym.slate_env.EdgeFeedSlateEnv`.

    *Keep* places the lowest unused pool row, following the cloud's order. `action_mask` marks the legal
    actions; there is always at least one. An illegal action plays keep, incurs the `invalid` term and sets
    `info["invalid_action"]`. A value outside the space raises InputError.

    ## Observation Space
    Dict of float32 arrays with finite bounds (T card types, goods included; F item features = embedding d,
    price level, base ctr, base cvr, freshness, then the scenario's `item_columns`; empty rows are zero):

    | key | shape | content |
    | --- | --- | --- |
    | user | (U,) | the cloud's long-term embedding of the user, then the profile |
    | pool | (N, F) | candidates of the page in cloud order; zero once used |
    | cards | (M, F + T) | mix-in cards with their type; zero once used |
    | exposures | (50, F + T + 7 + R) | answered cards, oldest first: e1..e6, R named responses, e7 |
    | page_views | (25, F + T + 12) | opened cards, oldest first, with page-view actions d1..d12 |
    | screen | (lookahead, F + T) | cards placed but not answered yet |
    | context | (C,) | :data:`edgerec_gym.spaces.CONTEXT`, then share used and slots since, per card type |
    | action_mask | (A,) int8 | 1 = legal |

    e7 and d12 give the slot of the event / max_slots; recency is `context[0]` minus that.

    ## Rewards
    The weighted sum of named terms (RewardConfig). `info["reward_terms"]` holds the terms; their default
    weights are click 1, purchase 5, request -0.3, invalid -0.1, insert_click 0, leave 0, uncertainty 0. Each
    named response (FeedConfig.responses) is a term of its own, and `info["responses"]` (R,) holds 0 or 1. The
    user answers the card `lookahead` slots above the bottom, so a decision is rewarded `lookahead` steps
    later. Cards still on screen at the end are not answered.

    ## Starting State
    A new session: a user, a day, an hour, and the first page. The episode depends only on (split, seed,
    episodes since seeding) and the actions.

    ## Episode End
    Terminated when the user leaves; truncated at `max_slots` slots.

    ## Arguments
    `scenario` ("default", "lite", a folder, or a Scenario), `users` ("learned", "synthetic" or a UserModel),
    `split`, any FeedConfig field (:class:`~edgerec_gym.config.FeedConfig`), `render_mode` (None; "ansi":
    text; "rgb_array": a phone of 390 x 760 pixels; "human": that phone in a window after every slot),
    `uncertainty` (report in `info` how far the ensemble of learned users disagrees; slower), `members` (the
    networks that learned users draw from, e.g. (0, 1); default all), `shift` (other synthetic users, e.g.
    "impatient": :data:`~edgerec_gym.config.SHIFTS`).

    ## Version History
    v0: first version; may change until release 0.1.0.
    """

    _spec: EnvSpec | None = None
    metadata = {"render_modes": list(RENDER_MODES), "render_fps": FPS}

    def __init__(
        self,
        *,
        track: str = "joint",
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
        self._bind(
            EdgeFeedVectorEnv(
                1,
                track=track,
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
        )
        self._action, self._uncertainty = np.zeros(1, np.int64), uncertainty
        self._link()

    def _bind(self, vector: EdgeFeedVectorEnv) -> None:
        """Expose the attributes of `vector`, the batch of one that does the work."""
        self._vector, self.batch = vector, vector.batch
        self.track, self.render_mode = vector.track, vector.render_mode
        self.config, self.scenario, self.users = vector.config, vector.scenario, vector.users
        self.observation_space = vector.single_observation_space
        self.action_space = vector.single_action_space
        self._started = self._ended = False

    def _link(self) -> None:
        """Make what points into the batch."""
        self._arrays = a = self.batch.arrays
        self._turn = self.batch.turn
        # Bind methods once: looking them up takes a good part of a step's time in Python.
        self._copies = [(key, values[0].copy) for key, values in self.batch.observation(copy=False).items()]
        outcome: dict[str, Callable[[], Any]] = {
            "invalid_action": a.invalid.item,
            "cost": a.cost.item,
            "click_probability": a.response[0, CLICK_PROBABILITY : CLICK_PROBABILITY + 1].item,
            "purchase_probability": a.response[0, PURCHASE_PROBABILITY : PURCHASE_PROBABILITY + 1].item,
            "page_arrived": a.arrived.item,
            "request_sent": a.sent.item,
            "placed_item": a.placed_item.item,
            "placed_action": a.placed_action.item,
            "answered": a.focus_active.item,
        }
        if self.config.responses:
            outcome["responses"] = a.response[0, RESPONSE_SIZE:].copy
        if self._uncertainty:
            outcome["uncertainty"] = a.uncertainty.item
        self._outcome = outcome.items()

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy starts from; a copy does not render."""
        linked = dict.fromkeys(("_arrays", "_turn", "_copies", "_outcome", "render_mode"))
        return self.__dict__ | linked

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._action = np.zeros(1, np.int64)
        self._link()

    def __copy__(self) -> NoReturn:
        refuse_shallow_copy(self)

    def __repr__(self) -> str:
        """Return what tells this environment from others."""
        return f"{type(self).__name__}({self._vector.about})"

    def __str__(self) -> str:
        """Return the same, in brackets, as wrappers put their names before it."""
        return f"<{self!r}>"

    @property
    def spec(self) -> EnvSpec | None:
        """What gym.make made this from; `max_episode_steps` is the feed's max_slots.

        The spec of an id alone (`gym.spec`) has None, as the scenario and its options decide.
        """
        return self._spec

    @spec.setter
    def spec(self, spec: EnvSpec | None) -> None:
        self._spec = with_max_slots(spec, self.config)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Start an episode; without a seed, the next episode of the last seed."""
        super().reset(seed=seed)
        if seed is None and not self._started:
            seed = int(self.np_random.integers(2**31))
        with self._turn:
            self.batch._reset(_ROW, None if seed is None else np.array([seed], np.int64))
            self._started, self._ended = True, False
            observation = self._observation()
            return observation, self._info(observation)

    def step(self, action: Any) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Play one slot."""
        turn, arrays = self._turn, self._arrays
        turn.take(False) or refuse_turn()
        try:
            if self._ended or not self._started:
                raise InputError(
                    "the episode has ended: call reset before the next step"
                    if self._started
                    else "call reset before step"
                )
            self.batch._play(self._checked(action))
            terminated, truncated = arrays.terminated.item(), arrays.truncated.item()
            self._ended = terminated or truncated
            observation = self._observation()
            return observation, self.batch.reward.item(), terminated, truncated, self._info(observation)
        finally:
            turn.give()

    def _checked(self, action: Any) -> Any:
        """Check an action and return it as the batch takes it."""
        n, value = self.batch.n_actions, None
        try:
            value = index(action)
        except TypeError:  # not a whole number, or an array of one
            if isinstance(action, np.ndarray) and action.size == 1:
                value = action.item()
        if isinstance(action, bool) or not isinstance(value, int):
            raise InputError(f"action must be a whole number from 0 to {n - 1}, got {action!r}")
        if not 0 <= value < n:
            raise InputError(f"action {value} is outside the action space; allowed: 0 to {n - 1}")
        self._action[0] = value
        return self._action

    def _observation(self) -> dict[str, np.ndarray]:
        return {key: copy() for key, copy in self._copies}

    def _info(self, observation: dict[str, np.ndarray]) -> dict[str, Any]:
        info: dict[str, Any] = {name: read() for name, read in self._outcome}
        info["action_mask"] = observation["action_mask"]
        info["reward_terms"] = dict(
            zip(self.config.reward_terms, self.batch.reward_terms.tolist()[0], strict=True)
        )
        return info

    def action_masks(self) -> np.ndarray:
        """Return the legal actions, (A,) bool; sb3-contrib expects this name."""
        a = self.batch.arrays
        return a.observation_bytes[0, a.mask_at : a.mask_at + self.batch.n_actions] != 0

    def render(self) -> Any:
        """Return the screen: text with "ansi", a frame (760, 390, 3) uint8 with "rgb_array".

        Return None without a render mode, and with "human", where the window follows every step.
        """
        screens = self._vector.render()
        return None if screens is None else screens[0]

    def screen(self) -> Screen:
        """Return what is on the screen as plain values; InputError without a render mode."""
        return self._vector.screen()

    def close(self) -> None:
        """Release the batch."""
        self._vector.close()
