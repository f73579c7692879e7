"""Distil what learned users would answer into a network that sees observations only (DAgger).

1. *Play*. The network plays sessions of learned users, with some noise, so that the states are those that it
   meets itself (Ross et al., AISTATS'11).
2. *Ask*. At every slot, the learned users tell the probabilities of a click and of a purchase for several
   candidates, as if each had stood there (:mod:`edgerec_gym.agents.values.teacher`).
3. *Learn*. The network regresses on these probabilities. Since it does not know which member of the ensemble
   answers or what happens in the slots that are not answered yet, it learns expectations over both.
4. *Select*. Every few updates it plays sessions of the members that are held out. The best network is kept.
   In EdgeFeed-v0, the margin by which a card must exceed the best pool row is chosen in the same way.

0. *Start*, on request: learn the clicks of a log first, with auxiliary losses on the looks and moods of the
   slots that follow (:mod:`edgerec_gym.agents.values.pretrain`).

Policy gradients learn from the sum of one session's rewards; here, every slot teaches several values, free of
noise. A run is a folder as in :mod:`edgerec_gym.runs`. A killed run resumes after its last checkpoint and
ends with the same parameters as an uninterrupted one.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgerec_gym.errors import InputError, MissingExtraError

try:
    import torch
    from torch import Tensor, nn
except ImportError:
    raise MissingExtraError("training", "train") from None

from edgerec_gym.agents.learning import parameters
from edgerec_gym.agents.learning.epochs import Report
from edgerec_gym.agents.learning.tensors import torch_seed, torch_threads
from edgerec_gym.agents.registry import ESTIMATOR, find_agent
from edgerec_gym.agents.requests.scores import UpliftScore
from edgerec_gym.agents.requests.train import load_model
from edgerec_gym.agents.rerank.reranker import RerankPolicy
from edgerec_gym.agents.rerank.train import check_track, policy_of
from edgerec_gym.agents.values.network import ValueConfig, ValueNetwork
from edgerec_gym.agents.values.play import LabelledSessions, loss_of, play_labelled
from edgerec_gym.agents.values.policy import ValuePolicy
from edgerec_gym.agents.values.pretrain import pretrain
from edgerec_gym.agents.values.scores import ValueScore
from edgerec_gym.agents.values.teacher import AskedUsers
from edgerec_gym.compiled.random_stream import CLI_SEED_STRIDE
from edgerec_gym.config import FeedConfig
from edgerec_gym.evaluation.play import play
from edgerec_gym.files import atomic_folder, make_folder, one_writer
from edgerec_gym.logs.store import LogReader
from edgerec_gym.policy import Policy
from edgerec_gym.registration import make_feeds, track_of
from edgerec_gym.runs import (
    PARAMETERS,
    RECORD,
    Run,
    check_seed,
    check_sizes,
    find_start,
    model_sizes,
    new_record,
    read_run,
    write_record,
)
from edgerec_gym.scenario import Scenario
from edgerec_gym.users.learned import LearnedUsers

AGENT = "distilled-values"
TRACKS = ("rerank", "joint")
MARGINS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.4)  # of cards, in reward units, tried on members held out
UPLIFT = "uplift"  # folder of the estimator's run, in the run's folder
FIXED = ("agent", "track", "logs", "based_on", "scenario", "seed", "hyper", "sizes")  # in a resumed run
RESULTS = ("start", "steps", "loss", "reward", "held_out")  # updated during training
SELECT = 2**31  # first seed of the sessions that select, beyond those of training


@one_writer("out")
def train(
    out: str | Path,
    *,
    agent: str = AGENT,
    env_id: str = "EdgeFeedRerank-v0",
    scenario: str | Scenario = "default",
    logs: str | Path | None = None,
    based_on: Sequence[str | Path] = (),
    seed: int = 0,
    keep_checkpoints: int = parameters.KEEP_LAST,
    resume: bool = False,
    threads: int = 1,
    progress: Report | None = None,
    **hyper: Any,
) -> dict[str, Any]:
    """Train on the split `train` of a scenario's learned users, and write the run's folder.

    Args:
        out: the run's folder.
        agent: the agent's name.
        env_id: "EdgeFeedRerank-v0" (the order) or "EdgeFeed-v0" (the order and cards), or a track.
        scenario: a shipped name, a folder, or a Scenario, with learned users.
        logs: a log folder to start from, whose feed has the scenario's sizes; None starts anew.
        based_on: in EdgeFeed-v0, at most one run of an uplift estimator: pages are then requested where it
            tells more gain than a request costs. It is copied into the folder.
        seed: seed of sessions, noise and initial parameters.
        keep_checkpoints: number of checkpoints to keep, at least 1.
        resume: continue from the last checkpoint in `out`, if there is one.
        threads: torch threads.
        progress: called with (updates done, updates in all, text).
        **hyper: fields of :class:`~edgerec_gym.agents.values.network.ValueConfig`.

    Returns:
        The content of policy.json: loss and mean reward of every update, and what the tests on members held
        out found.

    Raises:
        InputError: unknown names, values out of range, no member left to learn from, or `out` is not writable
            or in use by another run.
    """
    check_seed(seed)
    settings = ValueConfig.from_dict(hyper)
    track = track_of(env_id)
    if track not in TRACKS:
        raise InputError(f"agent {agent!r} learns the tracks {', '.join(TRACKS)}, not {track!r}")
    loaded = scenario if isinstance(scenario, Scenario) else Scenario.load(scenario)
    estimator = _estimator(based_on, track, loaded.config)
    reader = None if logs is None else LogReader(logs)
    if reader is None and not settings.updates:
        raise InputError(f"agent {agent!r} learns nothing with updates = 0 and no logs to start from")
    run = make_folder(out)
    record = new_record(
        agent,
        track,
        seed=seed,
        settings=settings,
        sizes=model_sizes(loaded.config),
        scenario=loaded.name,
        users="learned",
        based_on=[] if estimator is None else [_described(estimator)],
        logs=None if reader is None else {"provenance": reader.provenance, "sessions": reader.sessions},
        loss=[],
        reward=[],
        held_out=[],
    )
    start = find_start(run, record, resume, FIXED)
    if estimator is not None:
        keep_estimator(estimator.folder, run)
    with torch_threads(threads):
        trainer = ValueTrainer(record, settings, loaded)
        if start is None and reader is not None:
            trainer.learn_from(reader, progress)
        run_updates(run, trainer, start, progress, keep_checkpoints)
    return trainer.record


def run_updates(
    run: Path,
    trainer: ValueTrainer,
    start: Path | None,
    progress: Report | None,
    keep_checkpoints: int = parameters.KEEP_LAST,
) -> None:
    """Train from a checkpoint, or from the beginning, to the end; write checkpoints and the run."""
    settings = trainer.settings
    if start is not None:
        trainer.restore(start)
    if not settings.updates:
        trainer.select()
    while (done := trainer.record["steps"]) < settings.updates:
        trainer.update()
        done += 1
        if done % settings.select_every == 0 or done == settings.updates:
            trainer.select()
            parameters.save_checkpoint(
                run, trainer.best, trainer.record, trainer.optimizer, trainer.training, keep_checkpoints
            )
        if progress:
            loss, reward = trainer.record["loss"][-1], trainer.record["reward"][-1]
            progress(done, settings.updates, f"loss {loss:.4f}, reward {reward:.3f}")
    trainer.finish()
    parameters.save_parameters(run / PARAMETERS, trainer.best)
    write_record(run, trainer.record)


def _estimator(based_on: Sequence[str | Path], track: str, config: FeedConfig) -> Run | None:
    """Return the run of an uplift estimator, if one is given; InputError if it does not fit."""
    runs = [read_run(folder) for folder in based_on]
    if len(runs) > 1 or any(find_agent(run.agent).family != ESTIMATOR for run in runs):
        raise InputError(f"agent {AGENT!r} is based on nothing or on one run of an uplift estimator")
    if runs and track != "joint":
        raise InputError(f"agent {AGENT!r} requests pages in EdgeFeed-v0 only; leave --based-on out")
    for run in runs:
        load_model(run.folder, config)
    return runs[0] if runs else None


def keep_estimator(estimator: Path, run: Path) -> None:
    """Copy the run of an uplift estimator into the run that requests by it, so that this one can be moved."""
    with atomic_folder(run / UPLIFT) as folder:
        for name in (RECORD, PARAMETERS):
            shutil.copyfile(estimator / name, folder / name)


def _described(run: Run) -> dict[str, Any]:
    return {key: run.record[key] for key in ("agent", "seed", "steps", "hyper")}


def make_network(config: FeedConfig, settings: ValueConfig, seed: int = 0) -> ValueNetwork:
    """Return an untrained network; the global generator is left alone."""
    with torch_seed(seed):
        return ValueNetwork(config, settings)


def make_optimizer(*parts: tuple[nn.Module, float]) -> torch.optim.Adam:
    """Return the optimizer of networks, each with the learning rate of the first update."""
    return torch.optim.Adam(
        [{"params": list(part.parameters()), "lr": rate, "initial_lr": rate} for part, rate in parts]
    )


def find_members(scenario: Scenario, held_out: int) -> tuple[list[int], list[int]]:
    """Return the networks of the ensemble to learn from, and those held out; InputError if none is left."""
    count = LearnedUsers(scenario).simulator.members
    if held_out >= count:
        raise InputError(
            f"held_out = {held_out} leaves none of the {count} networks of scenario {scenario.name!r} to "
            "learn from"
        )
    return list(range(count - held_out)), list(range(count - held_out, count))


class ValueTrainer:
    """Training of one network.

    Args:
        record: content of policy.json; steps, loss, reward and held_out are updated.
        settings: hyper-parameters.
        scenario: the scenario whose learned users teach.

    Attributes:
        network: after the last update.
        training: all that is trained.
        best: the best one on the members held out.
    """

    def __init__(self, record: dict[str, Any], settings: ValueConfig, scenario: Scenario) -> None:
        self.record, self.settings, self.scenario, self.seed = record, settings, scenario, record["seed"]
        self.members, self.others = find_members(scenario, settings.held_out)
        self.network = make_network(scenario.config, settings, self.seed)
        self.training: nn.Module = self.network
        self.best = copy.deepcopy(self.network)
        self.earlier: list[LabelledSessions] = []  # of the last updates, to learn from again
        self.optimizer = make_optimizer((self.network, settings.learning_rate))
        self.users = self.teachers()
        self.track, self.margin = record["track"], settings.margin
        self.env = make_feeds(
            self.track, settings.sessions, scenario=scenario, users=self.users, split="train", copy=False
        )

    def teachers(self) -> AskedUsers:
        """Return the users that play and are asked."""
        settings, cautious = self.settings, self.settings.pessimism > 0 or self.settings.every_member
        n_candidates = min(settings.candidates, self.scenario.config.pool_size)
        return AskedUsers(self.scenario, n_candidates, self.members, settings.pessimism if cautious else None)

    def restore(self, folder: Path) -> None:
        """Continue from a checkpoint."""
        parameters.restore_checkpoint(folder, self.best, self.optimizer, self.training)
        earlier = read_run(folder).record
        self.record = self.record | {key: earlier[key] for key in RESULTS if key in earlier}

    def learn_from(self, reader: LogReader, progress: Report | None) -> None:
        """Start from a log."""
        s = self.settings
        told = pretrain(
            self.network,
            reader,
            epochs=s.log_epochs,
            auxiliary=s.auxiliary,
            learning_rate=s.learning_rate,
            batch_size=s.batch_size,
            seed=self.seed,
            progress=progress,
        )
        self.record = self.record | {"start": told}

    def update(self) -> None:
        """Play sessions, and learn from what the users would have answered."""
        s, done = self.settings, self.record["steps"]
        generator = np.random.default_rng([self.seed, done])
        first = done * s.sessions % (CLI_SEED_STRIDE - s.sessions)
        played = play_labelled(
            self.network,
            self.env,
            self.users,
            self.seed * CLI_SEED_STRIDE + first + np.arange(s.sessions),
            best=s.best,
            noise=s.noise * generator.random(s.sessions),
            generator=generator,
        )
        self.set_rate()
        losses = []
        for k in range(s.passes + s.replays):
            sessions = played
            if k >= s.passes and self.earlier:
                sessions = self.earlier[generator.integers(len(self.earlier))]

            def loss(at: np.ndarray, sessions: LabelledSessions = sessions) -> Tensor:
                return loss_of(self.network, sessions.take(at), s.purchase_weight)

            losses += self.descend(sessions, loss, generator)
        if s.replays:
            self.earlier = [*self.earlier, played][-s.kept :]
        self.note(losses, played)

    def set_rate(self) -> None:
        """Lower the learning rates linearly from update to update."""
        s = self.settings
        left = 1 - (1 - s.final_rate) * self.record["steps"] / max(1, s.updates - 1)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * left

    def descend(
        self,
        sessions: LabelledSessions,
        loss: Callable[[np.ndarray], Tensor],
        generator: np.random.Generator,
    ) -> list[float]:
        """Take a gradient step on each batch of sessions once; return the losses.

        Args:
            sessions: of one update.
            loss: called with the indices of some of the sessions (R,) int64.
            generator: draws the batches and their order.
        """
        s, losses = self.settings, []
        # Sessions of similar length share a batch, so that little of it is padding.
        order = np.argsort(sessions.lengths + generator.random(s.sessions), kind="stable")
        batches = np.array_split(order, -(-s.sessions // s.batch_size))
        for at in generator.permutation(len(batches)):
            found = loss(batches[at])
            self.optimizer.zero_grad(set_to_none=True)
            found.backward()
            torch.nn.utils.clip_grad_norm_(self.training.parameters(), s.max_grad_norm)
            self.optimizer.step()
            losses.append(found.item())
        return losses

    def note(self, losses: list[float], played: LabelledSessions) -> None:
        """Record an update."""
        told = self.record
        self.record = told | {
            "steps": told["steps"] + 1,
            "loss": [*told["loss"], float(np.mean(losses))],
            "reward": [*told["reward"], float(played.value.mean())],
        }

    def select(self) -> None:
        """Keep the network if it is the best so far on the members held out, or if none are."""
        value = self._held_out(self.network, self.margin) if self.others else None
        earlier = [figures["value"] for figures in self.record["held_out"]]
        if value is None or value > max(earlier, default=-np.inf):
            self.best.load_state_dict(self.network.state_dict())
        if value is not None:
            figures = {"updates": self.record["steps"], "value": value}
            self.record = self.record | {"held_out": [*self.record["held_out"], figures]}
        self.earlier = []  # checkpoints do not hold them, and a resumed run must not differ

    def finish(self) -> None:
        """Choose the margin of cards for the best network; without members held out, it stays as trained."""
        if self.track != "joint":
            return
        found = {margin: self._held_out(self.best, margin) for margin in MARGINS} if self.others else {}
        price = max(found, key=lambda margin: found[margin], default=self.margin)
        self.record = self.record | {"price": price, "figures": {str(k): v for k, v in found.items()}}

    def judges(self) -> dict[str, Any]:
        """Return the users that select, as arguments of :func:`~edgerec_gym.evaluation.play.play`."""
        return {"users": "learned", "members": self.others}

    def _held_out(self, network: ValueNetwork, margin: float) -> float:
        """Return the mean value of sessions of the judges."""
        found = play(
            ValuePolicy(AGENT, network.config, ValueScore(network), margin)
            if self.track == "joint"
            else RerankPolicy(AGENT, network),
            env_id=self.track,
            scenario=self.scenario,
            sessions=self.settings.select_sessions,
            seed=SELECT // CLI_SEED_STRIDE,
            split="train",
            **self.judges(),
        )
        return float(found["value"].mean())


def load_network(folder: str | Path | Run, config: FeedConfig) -> ValueNetwork:
    """Load a run; raise InputError if files are broken or made for other sizes."""
    run = read_run(folder)
    check_sizes(run, config)
    network = make_network(config, ValueConfig.from_dict(run.record.get("network", run.record["hyper"])))
    parameters.load_parameters(run.parameters, network)
    return network.eval()


def load_policy(folder: str | Path | Run, env: Any, *, threads: int = 1) -> Policy:
    """Load a run to play the joint, rerank or slate track; see rerank.train.load_policy.

    Cards are inserted and pages requested in EdgeFeed-v0 if the run was trained there.
    """
    feed = getattr(env, "unwrapped", env)
    run = read_run(folder)
    check_track(run.folder, feed.track)
    network = load_network(run, feed.config)
    if feed.track == run.record["track"] == "joint":
        margin = run.record.get("price", network.settings.margin)
        gain = None
        if (run.root / UPLIFT).is_dir():
            gain = UpliftScore(load_model(run.root / UPLIFT, feed.config), threads=threads)
        price, age = -feed.config.reward.request, feed.config.request_latency
        values = ValueScore(network, threads)
        return ValuePolicy(run.agent, feed.config, values, margin, gain, price, age)
    return policy_of(run.agent, network, feed, threads)
