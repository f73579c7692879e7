"""What makes an agent decide anew: the triggers of a rules file, for the environment and for the phone.

A trigger looks at what the user has just answered, at the time since the last plan, or at what a page would
gain. Its name is the reason of the decision that follows. Each may have a cool-down, the minimum number of
slots from one firing to the next; events within it are dropped.

| trigger | fires at |
| --- | --- |
| every_slot | every slot |
| click | a click |
| deletion | a deletion |
| quiet_exposures | so many answered cards without a click since the last plan |
| long_dwell | a card looked at for so many seconds: the lower edge of its dwell bucket |
| fast_scroll | a scroll speed (e3, 0 to 1) of at least this |
| category_repeat | so many answered cards of one category in a row without a click |
| after_seconds | so many seconds after the last plan |
| request_uplift | an estimated gain of a page of at least this, where a page may be requested |

Observations hold no categories. Two cards count as one category if the cosine of their embeddings is at least
`same_category`. In the shipped scenarios, whose items lie around the directions of their categories, .6 takes
half of the pairs of one category, and seven of ten pairs that it takes are of one.

The time is that of the runtime's clock on the phone. The environment has no clock: there it is the time that
the answers took, the middle of each dwell bucket, as in the logs' column `time`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from edgerec_gym.agents.edgerec.rules import TRIGGERS, Triggers
from edgerec_gym.agents.list_policy import (
    PAGE_AGE,
    SLOT,
    Answered,
    ListPolicy,
    NewAnswers,
    SlotBySlot,
)
from edgerec_gym.answers import DWELL_EDGES, DWELL_SECONDS, EXPOSURE_ACTIONS, PAGE_VIEW_SECONDS
from edgerec_gym.config import FeedConfig
from edgerec_gym.errors import InputError
from edgerec_gym.policy import Explanation, Observation
from edgerec_gym.spaces import first_action

# Reasons that are no rules
NEW_PAGE, START, END_OF_PLAN, NEW_MODEL = "new page", "start", "end of the plan", "new model"
REASONS = {  # by trigger, in order of priority
    "click": "click",
    "deletion": "deletion",
    "quiet_exposures": "no click for long",
    "long_dwell": "long dwell",
    "fast_scroll": "fast scroll",
    "category_repeat": "category repeat",
    "after_seconds": "after seconds",
    "every_slot": "every slot",
    "request_uplift": "request uplift",
}
DURATION, SPEED = EXPOSURE_ACTIONS.index("duration"), EXPOSURE_ACTIONS.index("scroll_speed")
LOWER_EDGES = np.array([0.0, *DWELL_EDGES])  # seconds, of the dwell buckets
NEVER = -(10**9)
SMALL = 1e-6  # numbers of the answers are float32

Clock = Callable[[], float]  # seconds that never go back
# (observation of R rows, these rows (R,) int64) -> (R,) estimated gain of a page, -inf where none is allowed
Gain = Callable[[Observation, np.ndarray], np.ndarray]


class TriggerWatch:
    """Looks at the new answers of a batch of sessions, once per slot, and says which trigger fires.

    Args:
        triggers: the rules.
        config: the feed.
        gain: estimates what a page gains; needed by request_uplift, and asked only where nothing else fires.
        clock: the runtime's clock; None counts the time that the answers took.

    Raises:
        InputError: long_dwell is beyond the feed's last dwell bucket, or request_uplift has no estimate.
    """

    def __init__(
        self, triggers: Triggers, config: FeedConfig, gain: Gain | None = None, clock: Clock | None = None
    ) -> None:
        self.triggers, self.config, self.gain, self.clock = triggers, config, gain, clock
        longest = config.dwell_scale * DWELL_EDGES[-1]
        if triggers.long_dwell is not None and triggers.long_dwell > longest:
            raise InputError(
                f"[triggers] long_dwell = {triggers.long_dwell:g} never fires in this feed, whose last dwell "
                f"bucket begins at {longest:g} s; allowed: up to that"
            )
        if triggers.request_uplift is not None and gain is None:
            raise InputError("[triggers] request_uplift needs an agent that estimates what a page gains")
        self._cool_downs = dict(triggers.cool_downs)
        self._allocate(0)

    def _allocate(self, n: int) -> None:
        self._answers = NewAnswers(n)
        self._quiet, self._run = np.zeros((2, n), np.int64)  # answers since a click; cards of one category
        self._last_card = np.zeros((n, self.config.embedding_size), np.float32)
        self._seconds = np.zeros(n)  # since the last plan; the clock's time of the plan, if there is one
        self._fired = {name: np.full(n, NEVER) for name in TRIGGERS}  # slots

    def reset(self, mask: np.ndarray) -> None:
        """Restart the rows where `mask` (B,) bool is True; the first call fixes the batch size."""
        if len(self._quiet) != len(mask):
            self._allocate(len(mask))
            mask = np.ones(len(mask), np.bool_)
        self._answers.reset(mask)
        self._run[mask] = 0
        for fired in self._fired.values():
            fired[mask] = NEVER
        self.planned(mask)

    def planned(self, mask: np.ndarray) -> None:
        """Count exposures and seconds from now on where `mask` (B,) bool is True: the agent decided anew."""
        self._quiet[mask] = 0
        self._seconds[mask] = 0.0 if self.clock is None else self.clock()

    def follow_on(self, earlier: TriggerWatch) -> None:
        """Go on where another watch of the same sessions stands; what it saw is not new."""
        for name in ("_answers", "_run", "_last_card", "_fired"):
            setattr(self, name, copy.deepcopy(getattr(earlier, name)))
        self._quiet, self._seconds = np.zeros_like(earlier._quiet), np.zeros_like(earlier._seconds)
        self.planned(np.ones(len(self._quiet), np.bool_))

    def look(self, observation: Observation) -> np.ndarray:
        """Return the reason to decide anew, (B,) str objects; "" where there is none.

        A new page is always one. If several triggers fire, the first of :data:`REASONS` is told, and the
        cool-down of each begins.
        """
        context = observation["context"]
        if len(self._quiet) != len(context):
            self.reset(np.ones(len(context), np.bool_))
        now = np.rint(context[:, SLOT] * self.config.max_slots).astype(np.int64)
        why = np.where(context[:, PAGE_AGE] == 0, NEW_PAGE, "").astype(object)
        due = self._due(observation, self._answers.see(observation))
        for name, reason in REASONS.items():
            if name in due:
                fires = due[name] & self._cooled(name, now)
                self._fired[name][fires] = now[fires]
                why[fires & (why == "")] = reason
                if name == "category_repeat":
                    self._run[fires] = 0
        least = self.triggers.request_uplift
        rows = np.flatnonzero((why == "") & self._cooled("request_uplift", now))
        if least is not None and self.gain is not None and len(rows):
            asked = {key: values[rows] for key, values in observation.items()}
            rows = rows[self.gain(asked, rows) >= least]
            self._fired["request_uplift"][rows] = now[rows]
            why[rows] = REASONS["request_uplift"]
        return why

    def _cooled(self, name: str, now: np.ndarray) -> np.ndarray:
        passed = now - self._fired[name]
        cooled: np.ndarray = (passed >= self._cool_downs.get(name, 0)) | (
            passed < 0
        )  # began anew unannounced
        return cooled

    def _due(self, observation: Observation, new: Answered) -> dict[str, np.ndarray]:
        """What has happened, (B,) bool by trigger; those that are switched off are left out."""
        triggers, scale = self.triggers, self.config.dwell_scale
        at = first_action(observation)
        card = observation["exposures"][np.arange(len(new.newest)), new.newest]
        bucket = _bucket(card[:, at + DURATION], len(DWELL_SECONDS))
        self._quiet = np.where(new.clicked, 0, self._quiet + new.answered)
        due = {}
        if triggers.click:
            due["click"] = new.clicked
        if triggers.deletion:
            due["deletion"] = new.deleted
        if triggers.quiet_exposures is not None:
            due["quiet_exposures"] = self._quiet >= triggers.quiet_exposures
        if triggers.long_dwell is not None:
            least = triggers.long_dwell * (1 - SMALL)
            due["long_dwell"] = new.answered & (scale * LOWER_EDGES[bucket] >= least)
        if triggers.fast_scroll is not None:
            due["fast_scroll"] = new.answered & (card[:, at + SPEED] >= triggers.fast_scroll - SMALL)
        if triggers.category_repeat is not None:
            self._compare(new, card)
            due["category_repeat"] = self._run >= triggers.category_repeat
        if triggers.after_seconds is not None:
            due["after_seconds"] = self._passed(observation, new, bucket) >= triggers.after_seconds
        if triggers.every_slot:
            due["every_slot"] = np.ones(len(card), np.bool_)
        return due

    def _compare(self, new: Answered, card: np.ndarray) -> None:
        """Count the answered cards of one category in a row."""
        vector = card[:, : self._last_card.shape[1]]
        length = np.linalg.norm(vector, axis=1) * np.linalg.norm(self._last_card, axis=1)
        product = (vector * self._last_card).sum(axis=1)
        same = (length > 0) & (product >= (self.triggers.same_category - SMALL) * length)
        run = np.where(new.clicked, 0, np.where(same, self._run + 1, 1))
        self._run = np.where(new.answered, run, self._run)
        self._last_card[new.answered] = vector[new.answered]

    def _passed(self, observation: Observation, new: Answered, bucket: np.ndarray) -> np.ndarray:
        """Seconds since the last plan, (B,)."""
        if self.clock is not None:
            return self.clock() - self._seconds
        views, at = observation["page_views"], first_action(observation)
        view = views[np.arange(len(views)), views[:, :, -1].argmax(axis=1)]
        opened = PAGE_VIEW_SECONDS[_bucket(view[:, at], len(PAGE_VIEW_SECONDS))]
        self._seconds += new.answered * self.config.dwell_scale * DWELL_SECONDS[bucket]
        self._seconds += new.clicked * opened
        return self._seconds


def _bucket(duration: np.ndarray, buckets: int) -> np.ndarray:
    return np.clip(np.rint(duration * (buckets - 1)), 0, buckets - 1).astype(np.int64)


class TriggeredSlots(SlotBySlot):
    """Plays a list policy slot by slot, like its base; the triggers of rules end its plans.

    Args:
        list_policy: makes the plans.
        watch: says when to plan anew.
    """

    def __init__(self, list_policy: ListPolicy, watch: TriggerWatch) -> None:
        super().__init__(list_policy, watch.triggers.quiet_exposures)
        self.watch = watch
        self._begins = START

    def reset(self, mask: np.ndarray) -> None:
        """Restart the rows where `mask` (B,) is True."""
        super().reset(mask)
        self.watch.reset(mask)

    def follow_on(self, earlier: TriggeredSlots) -> None:
        """Go on in the sessions of another policy: the next slot plans anew, and old answers are not new."""
        self.watch.follow_on(earlier.watch)
        self._begins = NEW_MODEL

    def _triggered(self, observation: Observation) -> np.ndarray:
        fired = self.watch.look(observation)
        told = np.where(fired == "", END_OF_PLAN, fired)
        self._why, self._begins = np.where(self._stale, self._begins, told), START
        triggered: np.ndarray = fired != ""
        return triggered

    def _renew(self, observation: Observation, stale: np.ndarray) -> None:
        super()._renew(observation, stale)
        self.watch.planned(stale)

    def explain(self, row: int) -> Explanation | None:
        """Explain the current plan, with the order that it plays."""
        said = super().explain(row) or Explanation()
        if said.scores is not None or self._plan is None:
            return said
        return replace(said, scores=self._plan.order[row].copy())
