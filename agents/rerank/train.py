"""Train a re-ranker on logs, and load it back to play.

A run is a folder:

| file | content |
| --- | --- |
| policy.json | agent, log, sizes, hyper-parameters, epochs, GAUC of every epoch, seed, versions |
| policy.safetensors | the parameters of the best epoch |
| checkpoints/step-000000000003/ | after three epochs: the same two files, and the training state |

Nothing is pickled. A killed run resumes after its last complete epoch and ends with the same parameters as
an uninterrupted one (on the same machine and library versions).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from edgerec_gym.config import FeedConfig
from edgerec_gym.errors import InputError, MissingExtraError
from edgerec_gym.files import make_folder, one_writer
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
from edgerec_gym.agents.learning.tensors import to_tensors, torch_seed, torch_threads
from edgerec_gym.agents.list_policy import EmittedList, ScoredList, SlateBySlate, SlotBySlot
from edgerec_gym.agents.registry import find_agent
from edgerec_gym.agents.rerank.reranker import ListEmitter, Reranker, RerankerConfig, RerankPolicy
from edgerec_gym.evaluation.ranking import gauc
from edgerec_gym.policy import Policy

Network = TypeVar("Network", bound=nn.Module)
TRACKS = ("joint", "rerank", SLATE)  # tracks that a re-ranker plays
SCORE_BATCH = 1024  # moments scored at once
MOST_HELD = 10_000  # moments kept in memory to score; about 200 MB with the paper's sizes
FIXED = ("agent", "logs", "seed", "hyper", "sizes")  # must not change in a resumed run


@one_writer("out")
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

    The last seventh of the days is held out. A tenth of the other sessions is used for early stopping by
    GAUC. The same arguments give the same parameters on the same machine and library versions.

    Args:
        out: the run's folder.
        logs: a log folder (:class:`~edgerec_gym.logs.store.LogReader`).
        agent: name of the agent.
        network: class of the re-ranker.
        seed: seed of the initial parameters, the moments drawn from each session, and their order.
        resume: continue after the last complete epoch in `out`, if any.
        threads: number of torch threads.
        progress: called with (epochs done, maximum number of epochs, text).
        **hyper: fields of :class:`~edgerec_gym.agents.rerank.reranker.RerankerConfig`.

    Returns:
        The content of policy.json.

    Raises:
        InputError: if a name is unknown, a value is out of range, the log is invalid or has no clicks to
            learn from, or `out` is not writable or holds another run.
    """
    check_seed(seed)
    settings = RerankerConfig.from_dict(hyper)
    reader = LogReader(logs)
    run = make_folder(out)
    record = log_record(agent, "rerank", reader, seed, settings) | {"gauc": []}
    start = find_start(run, record, resume, FIXED)
    if start is not None and is_finished(run):
        return read_run(run).record  # finished with the same settings
    with torch_threads(threads):
        trainer = RerankTrainer(reader, record, settings, build(network, reader.config, settings, seed))
        trainer.run(run, start, "GAUC", progress)
    parameters.save_parameters(run / PARAMETERS, trainer.best)
    write_record(run, trainer.record)
    return trainer.record


class RerankTrainer(EpochTrainer[Reranker]):
    """Train one re-ranker, with early stopping by GAUC.

    Args:
        reader: the log.
        record: content of policy.json; steps and gauc are updated.
        settings: hyper-parameters.
        network: with initial parameters; trained in place.
    """

    figure, sign = "gauc", 1

    def __init__(
        self, reader: LogReader, record: dict[str, Any], settings: RerankerConfig, network: Reranker
    ) -> None:
        train, stop, _ = split_moments(reader, **moment_settings(settings, record["seed"]))
        super().__init__(network, record, settings, train)
        self.stopping = Held.from_stream(stop)
        if not self.stopping.informative:
            raise InputError(
                f"{reader.folder} has no re-ranking moment with both a click and a miss among its "
                "early-stopping sessions; a re-ranker needs more sessions"
            )

    def loss(self, chunk: RerankMoments, index: np.ndarray, generator: torch.Generator) -> Tensor:
        """Return the mean loss of the moments `index` (B,) of a chunk, given in random order.

        Of the moments without a click, only the first ones are used and weighted to represent all.
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
        """Return the GAUC on the early-stopping sessions."""
        return self.stopping.gauc(self.network)


@dataclass(frozen=True)
class Held:
    """Batches of re-ranking moments that are not trained on."""

    batches: list[RerankBatch]

    @classmethod
    def from_stream(cls, stream: RerankStream, most: int = MOST_HELD) -> Held:
        """Read the first `most` moments of a stream that have both a click and a miss."""
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
        """Number of moments."""
        return sum(len(batch.session) for batch in self.batches)

    def joined(self, name: str) -> np.ndarray:
        """Concatenate the field shown, click, session or user of all moments."""
        return np.concatenate([getattr(batch, name) for batch in self.batches])

    def scores(self, network: Reranker) -> np.ndarray:
        """Return the scores of the shown cards, (R, K) float32."""
        network.eval()
        with torch.inference_mode():
            parts = [
                network.rank_scores(to_tensors(b.observation), torch.from_numpy(b.shown).clamp(min=0))
                for b in self.batches
            ]
        return torch.cat(parts).numpy()

    def gauc(self, network: Reranker) -> float:
        """Return the GAUC, grouped by moment."""
        shown = self.joined("shown")
        return gauc(self.scores(network), self.joined("click"), shown != NOT_SHOWN)


def build(network: type[Network], config: FeedConfig, settings: RerankerConfig, seed: int = 0) -> Network:
    """Build a re-ranker with parameters initialised from `seed`, leaving the global generator unchanged."""
    with torch_seed(seed):
        return network(config, settings)


def load_reranker(folder: str | Path | Run, config: FeedConfig) -> Reranker:
    """Load a re-ranker from a run; raise InputError if files are broken or made for other sizes."""
    run = read_run(folder)
    kind = find_agent(run.agent).code("network")
    if not (isinstance(kind, type) and issubclass(kind, Reranker)):
        raise InputError(f"{run.folder} holds the agent {run.agent!r}, which is not a re-ranker")
    check_sizes(run, config)
    settings = RerankerConfig.from_dict(run.record.get("network", run.record["hyper"]))
    network: Reranker = build(kind, config, settings)
    parameters.load_parameters(run.parameters, network)
    return network.eval()


def load_policy(folder: str | Path | Run, env: Any, *, threads: int = 1) -> Policy:
    """Load a run to play the joint, rerank or slate track.

    Args:
        folder: a run's folder (finished, or with a complete checkpoint), or a single checkpoint.
        env: any of the package's environments.
        threads: number of torch threads while acting.

    Raises:
        InputError: if there is no run, files are broken, or the environment has another track or sizes.
    """
    feed = getattr(env, "unwrapped", env)
    run = read_run(folder)
    check_track(run.folder, feed.track)
    return policy_of(run.agent, load_reranker(run, feed.config), feed, threads)


def check_track(folder: str | Path, track: str) -> None:
    """Raise InputError if re-rankers do not play this track."""
    if track not in TRACKS:
        raise InputError(f"{folder} re-ranks; it plays the tracks {', '.join(TRACKS)}, not {track!r}")


def policy_of(name: str, network: Reranker, env: Any, threads: int = 1) -> Policy:
    """Return the policy that plays a re-ranker in `env`, slot by slot or in whole plans.

    A re-ranker with `plan_every` (a sequence search) plans whole lists in every track.
    """
    policy = RerankPolicy(name, network, threads)
    plans = EmittedList if isinstance(network, ListEmitter) else ScoredList
    if env.track == SLATE:
        return SlateBySlate(plans(policy, env.config.slate_size))
    if network.plan_every is not None:
        return SlotBySlot(plans(policy, env.config.slate_size), network.plan_every)
    return policy
