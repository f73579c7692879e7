"""The record of one session, slot by slot as plain values, for a replay."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgerec_gym import __version__
from edgerec_gym.cloud.catalog import Catalog
from edgerec_gym.compiled.random_stream import CLI_SEED_STRIDE
from edgerec_gym.drawing.colours import category_colours
from edgerec_gym.drawing.screen import Answer, Feeds, ScreenRecorder
from edgerec_gym.errors import InputError
from edgerec_gym.feed.batch import BEGIN, FeedBatch
from edgerec_gym.policy import Policy
from edgerec_gym.registration import SLATE, make_feeds, track_of
from edgerec_gym.scenario import Scenario
from edgerec_gym.state import NO_ITEM
from edgerec_gym.users.synthetic import SyntheticUsers

ROW = 0  # of the batch of one
DIGITS = 4  # of numbers in the page
MATCHES = 5  # best-matching categories that describe the latent intent
INSERTING, REQUESTING = ("joint", "mix", SLATE), ("joint", "request", SLATE)
Frame = dict[str, Any]


class SessionRecorder(ScreenRecorder):
    """Records one feed: the situation before every slot, and the outcome of the slot.

    Args:
        batch: a batch of one feed, before its first reset.
        catalog: catalogue that the cloud retrieves from.
        track: track of the feed.

    Attributes:
        frames: the situations, one more than there are slots.
        slots: the outcomes.
        explanation: explanation of the decision played next; within a plan it moves along with the slots.
    """

    def __init__(self, batch: FeedBatch, catalog: Catalog, track: str) -> None:
        super().__init__(batch, catalog)
        self.track = track
        self.frames: list[Frame] = []
        self.slots: list[Frame] = []
        self.explanation: Frame | None = None

    def __call__(self, modes: np.ndarray) -> None:
        """Record a slot, or the start of the session."""
        super().__call__(modes)
        if modes[ROW] == BEGIN:
            self.frames, self.slots = [], []
        else:
            if self.explanation is None and self.track == SLATE and self.slots:
                self.explanation = one_slot_on(self.frames[-2]["why"])
            self.frames[-1]["why"], self.explanation = self.explanation, None
            self.slots.append(self._slot())
        self.frames.append(self._frame())

    def _slot(self) -> Frame:
        a = self.batch.arrays
        screen = self.screen(ROW)
        terms = dict(zip(self.batch.config.reward_terms, a.reward_terms[ROW].tolist(), strict=True))
        return {
            "card": vars(screen.cards[-1]) | {"answer": None},
            "reward": screen.last_reward,
            "terms": {name: value for name, value in terms.items() if value},
            "arrived": screen.arrived,
            "end": screen.end,
        }

    def _frame(self) -> Frame:
        a, screen = self.batch.arrays, self.screen(ROW)
        told = {
            "pool": a.pool_items[ROW].tolist(),
            "cards": a.card_items[ROW].tolist(),
            "rules": self._rules() if self.track in INSERTING else None,
            "request": self._request() if self.track in REQUESTING else None,
            "page": screen.page,
            "page_age": screen.page_age,
            "page_from": screen.page_from,
            "wire": screen.on_the_wire,
            "arrives_in": screen.arrives_in,
            "requests": screen.requests,
            "why": None,
        }
        users = self.batch.users
        if isinstance(users, SyntheticUsers):
            match = users.world.centres @ users.arrays.intent_now[ROW]
            best = np.argsort(-match)[:MATCHES]
            told["intent"] = [[int(k), round(float(match[k]), DIGITS)] for k in best]
            told["boredom"] = round(float(users.arrays.boredom[ROW]), DIGITS)
        return told

    def _rules(self) -> list[list[Any]]:
        """Return for each card type its name, count so far, and why no card may land now ("" if one may)."""
        a, config = self.batch.arrays, self.batch.config
        slot, found = int(a.slot[ROW]), []
        for k, name in enumerate(config.card_types):
            count, last = int(a.type_count[ROW, k + 1]), int(a.type_last[ROW, k + 1])
            most = config.share_caps[k] * max(slot + 1, config.page_size) + 1e-9  # as in feed/rules.py
            left = a.card_items[ROW, k :: len(config.card_types)] != NO_ITEM
            if slot < config.first_slots[k]:
                why = f"from slot {config.first_slots[k]}"
            elif last >= 0 and slot - last < config.gaps[k]:
                why = f"gap, {config.gaps[k] - slot + last} to go"
            elif count + 1 > most:
                why = f"share, {count} of {int(most)}"
            else:
                why = "" if left.any() else "none left"
            found.append([name, count, why])
        return found

    def _request(self) -> str:
        """Return why the policy may not request a page now, or "" if it may."""
        a, budget = self.batch.arrays, self.batch.config.request_budget
        if a.wire[ROW]:
            return "a page is on its way"
        return "" if budget is None or a.requests[ROW] < budget else "budget spent"

    def answers(self) -> list[Frame | None]:
        """Return the user's answer to each card, None if the session ended first."""
        return [None if card.answer is None else listed(card.answer) for card in self.screen(ROW).cards]


def listed(answer: Answer) -> Frame:
    """Return an answer as a page shows it."""
    return vars(answer) | {"actions": list(answer.actions), "responses": list(answer.responses)}


def record_session(
    policy: Policy,
    *,
    env_id: str,
    scenario: str | Scenario,
    users: str,
    session: int,
    seed: int = 0,
) -> dict[str, Any]:
    """Replay one session of an evaluation, and record everything about it.

    Args:
        policy: the policy that plays; if it has `explain(row)`, its explanation of each decision is recorded.
        env_id: an id or a track.
        scenario: a shipped name, a folder, or a Scenario.
        users: "learned" or "synthetic".
        session: index of the session in the evaluation, from 0 (below 2^20).
        seed: seed of the evaluation.

    Returns:
        JSON-ready: `about` (names, config, sums), `colours` of the categories, `items` by catalogue row,
        `frames` (the situation before every slot, and after the last), `slots`, `answers` to the cards.

    Raises:
        InputError: `session` is out of range, :func:`~edgerec_gym.registration.make_feeds` refuses the
            arguments, or an explanation has the wrong shape.
    """
    if not 0 <= session < CLI_SEED_STRIDE:
        raise InputError(f"session {session} is out of range; allowed: 0 to {CLI_SEED_STRIDE - 1}")
    scenario = scenario if isinstance(scenario, Scenario) else Scenario.load(scenario)
    env = make_feeds(env_id, 1, scenario=scenario, users=users, split="eval", copy=False)
    batch, track = env.batch, track_of(env_id)
    recorder = SessionRecorder(batch, scenario.catalog, track)
    env.reset(seed=seed * CLI_SEED_STRIDE + session)
    if hasattr(policy, "bind"):
        policy.bind(env)
    policy.reset(np.ones(1, np.bool_))
    while not (batch.arrays.terminated[ROW] or batch.arrays.truncated[ROW]):
        actions = policy.act(batch.observation(copy=False))
        recorder.explanation = explained(policy, batch)
        batch.step(actions)
    config, screen = batch.config, recorder.screen(ROW)
    about = {
        "policy": policy.name,
        "id": env_id,
        "track": track,
        "scenario": scenario.name,
        "users": users,
        "session": session,
        "seed": seed,
        "version": __version__,
        "card_types": list(config.card_types),
        "lookahead": config.lookahead,
        "hour": screen.hour,
        "reward": screen.reward,
        "clicks": screen.clicks,
        "purchases": screen.purchases,
        "requests": screen.requests,
        "end": screen.end,
    }
    told = {
        "about": about,
        "colours": category_colours(scenario.catalog),
        "items": _items(scenario.catalog, recorder.frames),
        "frames": recorder.frames,
        "slots": recorder.slots,
        "answers": recorder.answers(),
    }
    env.close()
    return rounded(told)


def explained(policy: Policy, batch: Feeds) -> Frame | None:
    """Return a policy's explanation of its last decision; raise InputError if it has the wrong shape."""
    said = policy.explain(ROW) if hasattr(policy, "explain") else None
    if said is None:
        return None
    n_pool, n_cards = batch.config.pool_size, batch.config.n_cards
    told: Frame = {"trigger": said.trigger}
    for name, shape in (("scores", (n_pool,)), ("matrix", (n_cards, None)), ("plan", (n_cards,))):
        values = getattr(said, name)
        if values is not None:
            values = np.asarray(values)
            if values.ndim != len(shape) or any(
                w not in (None, n) for w, n in zip(shape, values.shape, strict=True)
            ):
                wanted = ", ".join("T" if n is None else str(n) for n in shape)
                raise InputError(
                    f"policy {policy.name!r} explains {name} of shape {values.shape}; it must be ({wanted})"
                )
            told[name] = values.tolist()
    for name in ("uplift", "price"):
        value = getattr(said, name)
        told[name] = None if value is None else float(value)
    return told


def one_slot_on(why: Frame | None) -> Frame | None:
    """Return a plan's explanation at its next slot; requests and triggers belong to its first slot."""
    if why is None:
        return None
    told = {**why, "trigger": None, "uplift": None, "price": None}
    if why.get("plan") is not None:
        told["plan"] = [place - 1 if place > 0 else -1 for place in why["plan"]]
    if why.get("matrix") is not None:
        told["matrix"] = [row[1:] for row in why["matrix"]]
        if not told["matrix"][0]:
            del told["matrix"]
    return told


def _items(catalog: Catalog, frames: list[Frame]) -> dict[int, list[float]]:
    """Return category, price level, base click rate and freshness of every item in the frames."""
    seen = sorted({item for frame in frames for item in (*frame["pool"], *frame["cards"]) if item != NO_ITEM})
    price, logit, _, fresh = catalog.scalars[seen].astype(np.float64).T
    columns = (catalog.category[seen].tolist(), price, 1 / (1 + np.exp(-logit)), fresh)
    return {item: [row[0], *map(float, row[1:])] for item, *row in zip(seen, *columns, strict=True)}


def rounded(value: Any) -> Any:
    """Return nested values with rounded numbers; non-finite ones stay, for the page to leave out."""
    if isinstance(value, dict):
        return {key: rounded(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(entry) for entry in value]
    return round(value, DIGITS) if isinstance(value, float) else value
