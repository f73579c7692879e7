"""A log split for the comparison of user models, and its networks before training."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.user_baselines import EVENTS, Parts, answered_slots, events_of
from benchmarks.user_scores import Truth, held_out_truth
from edgerec_gym.errors import InputError
from edgerec_gym.logs.sessions import LoggedSessions, SessionStream, split_sessions
from edgerec_gym.logs.store import LogReader
from edgerec_gym.simulator.fit import new_network, stopping_sessions, work_folder
from edgerec_gym.simulator.losses import fitted_heads
from edgerec_gym.simulator.statistics import LogStatistics
from edgerec_gym.simulator.trainer import UserTrainer

MOST_SLOTS = 1_000_000  # maximum for held-out sessions, and for fitting models with hand-made features


class Design(NamedTuple):
    """What the network of a row knows, and how many members its prediction averages."""

    behaviour: bool = True
    neighbours: bool = True
    ensemble: bool = False


class Effort(NamedTuple):
    """Amount of training."""

    epochs: int = 20
    members: int = 5  # of the ensemble, each on its own bootstrap; a single network sees every session once
    baseline_slots: int = MOST_SLOTS  # maximum number of answered slots that baselines are fitted on


QUICK = Effort(epochs=2, members=2, baseline_slots=20_000)


@dataclass
class Study:
    """One log, split as `edgerec fit` splits it."""

    reader: LogReader
    train: SessionStream
    stop: LoggedSessions
    held_out: LoggedSessions
    seen: LogStatistics
    truth: Truth
    effort: Effort
    work: Path

    @property
    def frozen_pages(self) -> bool:
        """Whether the order of answers within a page is not known."""
        return "order_within_page" in self.reader.unidentified

    @cached_property
    def parts(self) -> Parts:
        """Hand-made features of all three parts; computed only if a baseline is still to be fitted."""
        encoder = new_network(self.reader.config, self.reader.unidentified, self.seen, seed=0).inputs
        parts = (gather(self.train, self.effort.baseline_slots), self.stop, self.held_out)
        return Parts(*(answered_slots(sessions, encoder, self.frozen_pages) for sessions in parts))

    def trainer(self, design: Design, seed: int, member: int, path: Path) -> UserTrainer:
        """A network before training, or its checkpoint."""
        hidden = () if design.neighbours else ("neighbours",)
        unidentified = (*self.reader.unidentified, *hidden)
        network = new_network(
            self.reader.config, unidentified, self.seen, seed=seed, member=member, behaviour=design.behaviour
        )
        return UserTrainer(
            network,
            self.train,
            self.stop,
            fitted_heads(frozenset(unidentified)),
            bootstrap=[seed, member, 1] if design.ensemble else None,
            seed=[seed, member, 2],
            path=path,
        )


def gather(stream: SessionStream, most: int) -> LoggedSessions:
    """Sessions of a stream, evenly subsampled if they have more than `most` answered slots."""
    total = sum(chunk.slots for chunk in stream.chunks())
    if not total:
        raise InputError("the log has too few answered slots to train on and to hold out")
    every = -(-total // most)
    return LoggedSessions.concatenate([c.select(np.arange(0, len(c), every)) for c in stream.chunks()])


def open_study(log_folder: str | Path, work: Path, effort: Effort) -> Study:
    """Split a log; InputError if it is too small, or the work folder belongs to other settings."""
    reader = LogReader(log_folder)
    train, stop, late = split_sessions(reader, reader.provenance.get("first_validation_day"))
    stopping, held_out = stopping_sessions(stop), gather(late, MOST_SLOTS)
    seen, count = LogStatistics(reader.config, 0), dict.fromkeys(EVENTS, 0)
    for chunk in train.chunks():
        seen.add(chunk)
        for event, happened in events_of(chunk).items():
            count[event] += int(happened.sum())
    if stopping is None or not seen.slots:
        raise InputError(f"{log_folder} has too few answered slots to train and to stop on")
    if not 0 < count["click"] < seen.slots:
        raise InputError(f"{log_folder} has no clicks to learn, or nothing else, in its training sessions")
    told = [e for e in EVENTS if EVENTS[e] not in reader.unidentified and 0 < count[e] < seen.slots]
    truth = held_out_truth(held_out, {event: events_of(held_out)[event] for event in told})
    settings = {**effort._asdict(), "slots": reader.slots, "log": reader.provenance}
    return Study(reader, train, stopping, held_out, seen, truth, effort, work_folder(work, settings))
