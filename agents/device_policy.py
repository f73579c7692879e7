"""Play an exported re-ranker in the environment: every session is one phone's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgerec_gym.agents.list_policy import EmittedList, ScoredList, SlateBySlate, SlotBySlot
from edgerec_gym.device.files import CRBAN, SEQUENCES, DeviceModel
from edgerec_gym.device.session import DeviceSession, load
from edgerec_gym.errors import InputError
from edgerec_gym.policy import Observation, Policy, best_legal, check_observation
from edgerec_gym.registration import SLATE
from edgerec_gym.spaces import CONTEXT, observation_layout

TRACKS = ("joint", "rerank", SLATE)
COUNTS = {name: CONTEXT.index(name) for name in SEQUENCES}


class DevicePolicy:
    """Sessions on phones, one a row: events are taken up as they show in the observation.

    While a session is no longer than the histories, it plays as the torch policy does; after that the phone
    remembers more. At every slot it plays the row that it puts first (a sequence search plays its lists); no
    cards, no requests.

    Args:
        name: of the policy.
        model: what runs.
        max_slots: of the environment, which scales the counts of events in its context.
    """

    def __init__(self, name: str, model: DeviceModel, max_slots: int) -> None:
        self.name, self.model, self.max_slots = name, model, max_slots
        self.sessions: list[DeviceSession] = []

    def reset(self, mask: np.ndarray) -> None:
        """Start the sessions where `mask` (B,) is True."""
        if len(self.sessions) != len(mask):
            self.sessions = [DeviceSession(self.model) for _ in mask]
        for row in np.flatnonzero(mask):
            self.sessions[row] = DeviceSession(self.model)

    def scores(self, observation: Observation) -> np.ndarray:
        """Return (B, N) float32; of CRBAN only."""
        return np.stack([session.scores(one) for session, one in self._followed(observation)])

    def lists(self, observation: Observation, k: int) -> np.ndarray:
        """Return (B, k) int64 pool rows, -1 behind the end of a list."""
        return np.stack([session.rerank(one, k) for session, one in self._followed(observation)])

    def act(self, observation: Observation) -> np.ndarray:
        """Return (B,) int64 pool rows, legal under the mask."""
        n_pool = observation["pool"].shape[1]
        if CRBAN in self.model.graphs:
            score = self.scores(observation)
        else:
            score = (self.lists(observation, 1) == np.arange(n_pool)).astype(np.float32)
        return best_legal(score, observation["action_mask"])

    def _followed(self, observation: Observation) -> list[tuple[DeviceSession, Observation]]:
        """Sessions that have taken up what has happened, and their observations."""
        check_observation(observation)
        if len(self.sessions) != len(observation["context"]):
            self.reset(np.ones(len(observation["context"]), np.bool_))
        both = []
        for row in range(len(self.sessions)):
            one = {key: values[row] for key, values in observation.items()}
            total = {
                name: round(float(one["context"][column]) * self.max_slots) for name, column in COUNTS.items()
            }
            if any(total[name] < self.sessions[row].count[name] for name in SEQUENCES):
                self.sessions[row] = DeviceSession(self.model)  # a new session, started without a reset
            session = self.sessions[row]
            for name in SEQUENCES:
                new = total[name] - session.count[name]
                events = one[name][one[name].any(axis=1)]
                for event in events[max(0, len(events) - new) :]:
                    session.append(name, event)
                session.count[name] = total[name]  # also those that the history has lost already
            both.append((session, one))
        return both


def load_policy(folder: str | Path, env: Any) -> Policy:
    """Load an exported re-ranker to play an environment of the tracks joint, rerank or slate.

    Raises:
        InputError: broken files, or an environment of another track or of other sizes.
    """
    feed = getattr(env, "unwrapped", env)
    if feed.track not in TRACKS:
        raise InputError(f"{folder} re-ranks; it plays the tracks {', '.join(TRACKS)}, not {feed.track!r}")
    model = load(folder)
    for key, part in observation_layout(feed.config, "joint").items():
        if key in ("cards", "action_mask"):
            continue
        if part.shape != model.sizes.get(key):
            raise InputError(
                f"{folder} was exported for the scenario {model.described['scenario']!r} with {key} "
                f"{list(model.sizes.get(key, ()))}; this environment has {list(part.shape)}"
            )
    policy = DevicePolicy(f"{model.agent} on device", model, feed.config.max_slots)
    if feed.track != SLATE and model.search is None:
        return policy
    if CRBAN in model.graphs:
        return SlateBySlate(ScoredList(policy, feed.config.slate_size))
    if feed.config.slate_size > model.places:
        raise InputError(
            f"{folder} was exported for lists of {model.places} cards; this environment asks for "
            f"{feed.config.slate_size}"
        )
    lists = EmittedList(policy, feed.config.slate_size)
    if feed.track == SLATE or model.search is None:
        return SlateBySlate(lists)
    return SlotBySlot(lists, model.search.settings.every)
