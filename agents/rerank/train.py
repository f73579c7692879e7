"""Train a re-ranker on logs, and load it back to play.

A run is a folder:

| file | content |
| --- | --- |
| policy.json | agent, log, sizes, hyper-parameters, epochs, GAUC of every epoch, seed, versions |
| policy.safetensors | the parameters of the best epoch |
| checkpoints/step-000000000003/ | after three epochs: the same two files, and how to go on |

Nothing is pickled. A killed run resumes after its last complete epoch and ends with the same parameters as
one that was not interrupted (on one machine and library versions).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from edgerec_gym.config import FeedConfig
from edgerec_gym.errors import InputError, MissingExtraError
from edgerec_gym.files import make_folder
from edgerec_gym.logs.store import LogReader
from edgerec_gym.registration import SLATE
from edgerec_gym.runs import (
    PARAMETERS,
    Run,
    check_seed,
    check_sizes,
    find_start,
    is_finished,
    read_run,
    write_record,
)

try:
    import torch
    from torch import Tensor, nn
except ImportError:
    raise MissingExtraError("training", "train") from None

from edgerec_gym.agents.data.moments import RerankBatch, RerankMoments, RerankStream, split_moments
from edgerec_gym.agents.data.observed_log import NOT_SHOWN
from edgerec_gym.agents.learning import parameters
from edgerec_gym.agents.learning.epochs import EpochTrainer, Report, log_record, moment_settings
from edgerec_gym.agents.learning.tensors import to_tensors, torch_threads
from edgerec_gym.agents.list_policy import EmittedList, ScoredList, SlateBySlate, SlotBySlot
from edgerec_gym.agents.registry import find_agent
from edgerec_gym.agents.rerank.reranker import ListEmitter, Reranker, RerankerConfig, RerankPolicy
from edgerec_gym.evaluation.gauc import gauc
from edgerec_gym.policy import Policy

Network = TypeVar("Network", bound=nn.Module)
TRACKS = ("joint", "rerank", SLATE)  # that a re-ranker plays
SCORE_BATCH = 1024  # requests scored at once
MOST_HELD = 10_000  # requests kept in memory to score; about 200 MB with the paper's sizes
FIXED = ("agent", "logs", "seed", "hyper", "sizes")  # in a resumed run


def train(
    out: str | Path,
    logs: str | Path,
    *,
    agent: str,
    network: type[Reranker],
    seed: int = 0,
    resume: bool = False,
    threads: int = 1,
    progress: Report | None = None,
    **hyper: Any,
) -> dict[str, Any]:
    """Train a re-ranker and write the run's folder.

    The last seventh of the days is left out; a tenth of the other sessions decides when to stop, by the
    GAUC of their requests. The same arguments give the same parameters on one machine and library versions.

    Args:
        out: the run's folder.
        logs: a log folder (:class:`~edgerec_gym.logs.store.LogReader`).
        agent: its name.
        network: class of the re-ranker.
        seed: of initial parameters, of the requests drawn from each session and of their order.
        resume: go on after the last complete epoch in `out`, if there is one.
        threads: torch threads.
        progress: called with (epochs done, epochs at most, text).
        **hyper: fields of :class:`~edgerec_gym.agents.rerank.reranker.RerankerConfig`.

    Returns:
        The content of policy.json.

    Raises:
        InputError: unknown names, values out of range, a bad log or one without clicks to learn from, `out`
            not writable or in use by another run.
    """
    check_seed(seed)
    settings = RerankerConfig.from_dict(hyper)
    reader = LogReader(logs)
    run = make_folder(out)
    record = log_record(agent, "rerank", reader, seed, settings) | {"gauc": []}
    start = find_start(run, record, resume, FIXED)
    if start is not None and is_finished(run):
        return read_run(run).record  # finished: the settings, and so its end, are the same
    with torch_threads(threads):
        trainer = RerankTrainer(reader, record, settings, network)
        trainer.run(run, start, "GAUC", progress)
    parameters.save_parameters(run / PARAMETERS, trainer.best)
    write_record(run, trainer.record)
    return trainer.record


class RerankTrainer(EpochTrainer[Reranker]):
    """One re-ranker in training; the GAUC of the stopping sessions' requests decides when to stop.

    Args:
        reader: the log.
        record: content of policy.json; steps and gauc grow.
        settings: hyper-parameters.
        kind: class of the re-ranker.
    """

    figure, sign = "gauc", 1

    def __init__(
        self, reader: LogReader, record: dict[str, Any], settings: RerankerConfig, kind: type[Reranker]
    ) -> None:
        network = build(kind, reader.config, settings, record["seed"])
        train, stop, _ = split_moments(reader, **moment_settings(settings, record["seed"]))
        super().__init__(network, record, settings, train)
        self.stopping = Held.from_stream(stop)
        if not self.stopping.informative:
            raise InputError(
                f"{reader.folder} has no request with both a click and a miss among the sessions that decide "
                "when to stop; a re-ranker needs more sessions"
            )

    def loss(self, chunk: RerankMoments, index: np.ndarray, generator: torch.Generator) -> Tensor:
        """Mean loss of the requests `index` (B,) of a chunk, in random order.

        Of those without a click the first ones stand for all.
        """
        clicked = chunk.click[index].any(1)
        hits, misses = index[clicked], index[~clicked]
        share = 0.0 if self.network.needs_click and len(hits) else self.settings.misses
        if share == 1.0:
            return self._mean_loss(chunk, index, generator)
        some = misses[: math.ceil(share * len(misses))]
        parts = [(rows, len(all_)) for rows, all_ in ((hits, hits), (some, misses)) if len(rows)]
        losses = [n * self._mean_loss(chunk, rows, generator) for rows, n in parts]
        return torch.stack(losses).sum() / sum(n for _, n in parts)

    def _mean_loss(self, chunk: RerankMoments, index: np.ndarray, generator: torch.Generator) -> Tensor:
        batch = chunk.batch(index)
        return self.network.loss(
            to_tensors(batch.observation),
            torch.from_numpy(batch.shown),
            torch.from_numpy(batch.click),
            generator,
        )

    def stopping_figure(self) -> float:
        """GAUC of the stopping sessions' requests."""
        return self.stopping.gauc(self.network)


@dataclass(frozen=True)
class Held:
    """Requests that are not trained on, in batches."""

    batches: list[RerankBatch]

    @classmethod
    def from_stream(cls, stream: RerankStream, most: int = MOST_HELD) -> Held:
        """Read the requests of a stream that have both a click and a miss, the first `most` of them."""
        batches: list[RerankBatch] = []
        left = most
        for chunk in stream.chunks():
            clicks = chunk.click.sum(1)
            index = np.flatnonzero((clicks > 0) & (clicks < (chunk.shown != NOT_SHOWN).sum(1)))[:left]
            batches += [chunk.batch(index[at : at + SCORE_BATCH]) for at in range(0, len(index), SCORE_BATCH)]
            left -= len(index)
            if not left:
                break
        return cls(batches)

    @property
    def informative(self) -> int:
        """Number of requests."""
        return sum(len(batch.session) for batch in self.batches)

    def joined(self, name: str) -> np.ndarray:
        """Join shown, click, session or user of all requests."""
        return np.concatenate([getattr(batch, name) for batch in self.batches])

    def scores(self, network: Reranker) -> np.ndarray:
        """Scores of the shown cards, (R, K) float32."""
        network.eval()
        with torch.inference_mode():
            parts = [
                network.rank_scores(to_tensors(b.observation), torch.from_numpy(b.shown).clamp(min=0))
                for b in self.batches
            ]
        return torch.cat(parts).numpy()

    def gauc(self, network: Reranker) -> float:
        """GAUC per request."""
        shown = self.joined("shown")
        return gauc(self.scores(network), self.joined("click"), shown != NOT_SHOWN)


def build(network: type[Network], config: FeedConfig, settings: RerankerConfig, seed: int = 0) -> Network:
    """Make a re-ranker with initial parameters drawn from `seed`; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return network(config, settings)


def load_reranker(folder: str | Path | Run, config: FeedConfig) -> Reranker:
    """Load what :func:`train` wrote; InputError if the files are broken or made for other sizes."""
    run = read_run(folder)
    kind = find_agent(run.agent).code("network")
    if kind is None:
        raise InputError(f"{run.folder} holds the agent {run.agent!r}, which is no re-ranker")
    check_sizes(run, config)
    network: Reranker = build(kind, config, RerankerConfig.from_dict(run.record["hyper"]))
    parameters.load_parameters(run.parameters, network)
    return network.eval()


def load_policy(folder: str | Path | Run, env: Any, *, threads: int = 1) -> Policy:
    """Load a run to play an environment of the tracks joint, rerank or slate.

    Args:
        folder: the run's folder (finished, or with a complete checkpoint), or one checkpoint.
        env: any of the package's environments.
        threads: torch threads while it acts.

    Raises:
        InputError: nothing there, broken files, or an environment of another track or of other sizes.
    """
    feed = getattr(env, "unwrapped", env)
    run = read_run(folder)
    check_track(run.folder, feed.track)
    return policy_of(run.agent, load_reranker(run, feed.config), feed, threads)


def check_track(folder: str | Path, track: str) -> None:
    """Raise InputError where re-rankers do not play."""
    if track not in TRACKS:
        raise InputError(f"{folder} re-ranks; it plays the tracks {', '.join(TRACKS)}, not {track!r}")


def policy_of(name: str, network: Reranker, env: Any, threads: int = 1) -> Policy:
    """Return the policy that plays a re-ranker in `env`: slot by slot, or a plan at a time.

    One with `plan_every` (a sequence search) plans whole lists everywhere.
    """
    policy = RerankPolicy(name, network, threads)
    plans = EmittedList if isinstance(network, ListEmitter) else ScoredList
    if env.track == SLATE:
        return SlateBySlate(plans(policy, env.config.slate_size))
    if network.plan_every is not None:
        return SlotBySlot(plans(policy, env.config.slate_size), network.plan_every)
    return policy
