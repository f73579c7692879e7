"""Fine-tune a network while its weights and kept state are rounded, or after units were removed.

Two ways, both epoch by epoch with checkpoints:

- on the agent's own objective, for re-rankers and a log (:class:`LogTuner`);
- on the logits of the network before compression, over observations that it meets itself in play with learned
  users (:class:`SelfDistiller`): no answers are needed, and the ground truth is never asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgerec_gym.agents.compression.rounding import with_rounded_weights
from edgerec_gym.agents.data.observed_log import NOT_SHOWN
from edgerec_gym.agents.learning.epochs import EpochTrainer
from edgerec_gym.agents.learning.tensors import TensorObservation, to_tensors
from edgerec_gym.agents.perception.perception import occupied
from edgerec_gym.agents.registry import load_policy
from edgerec_gym.agents.rerank.reranker import ListScorer
from edgerec_gym.agents.rerank.train import RerankTrainer
from edgerec_gym.agents.values.network import ValueNetwork
from edgerec_gym.agents.values.play import candidates_of, n_candidates
from edgerec_gym.compiled.random_stream import CLI_SEED_STRIDE
from edgerec_gym.config import Config, bounded
from edgerec_gym.logs.store import LogReader
from edgerec_gym.policy import Observation
from edgerec_gym.registration import make_feeds
from edgerec_gym.runs import Run
from edgerec_gym.scenario import Scenario

# Hyper-parameters that a re-ranker's own training has, too.
SHARED = ("epochs", "patience", "learning_rate", "batch_size", "weight_decay", "max_grad_norm")
ANSWER_BATCH = 256  # observations that a network answers at once
FIRST = (
    CLI_SEED_STRIDE // 4
)  # first session of a seed that is played to distil from, beyond those of training


@dataclass(frozen=True)
class TuningConfig(Config):
    """Hyper-parameters of the fine-tuning."""

    epochs: int = bounded(3, 1, 1000)  # at most
    patience: int = bounded(2, 1, 1000)  # epochs without a better figure before it ends
    learning_rate: float = bounded(1e-3, 1e-7, 1.0)  # of Adam
    final_rate: float = bounded(0.1, 0.0, 1.0)  # share of it left in the last epoch (self-distillation)
    batch_size: int = bounded(256, 1, 1_000_000)  # observations or moments per gradient step
    weight_decay: float = bounded(0.0, 0.0, 10.0)  # L2 penalty of Adam
    max_grad_norm: float = bounded(1.0, 1e-3, 1e6)
    sessions: int = bounded(600, 10, 100_000)  # played to distil from; a fifth of them is held out
    num_envs: int = bounded(200, 1, 10_000)  # sessions played together
    share: float = bounded(0.5, 0.01, 1.0)  # of the observations played that are kept


class LogTuner(RerankTrainer):
    """Fine-tune a re-ranker on a log, on its own objective, with early stopping by GAUC.

    Args:
        reader: the log.
        record: content of policy.json; steps and gauc are updated.
        tuning: hyper-parameters.
        network: trained in place.
        bits: of the weights in training.
    """

    def __init__(
        self, reader: LogReader, record: dict[str, Any], tuning: TuningConfig, network: ListScorer, bits: int
    ) -> None:
        self.bits = bits
        own = {name: getattr(tuning, name) for name in SHARED}
        super().__init__(reader, record, replace(network.settings, **own), network)

    def loss(self, chunk: Any, index: np.ndarray, generator: torch.Generator) -> Tensor:
        """Return the mean loss of some moments, with rounded weights."""
        return with_rounded_weights(
            self.network, self.bits, lambda: RerankTrainer.loss(self, chunk, index, generator)
        )

    def stopping_figure(self) -> float:
        """Return the GAUC with rounded weights on the early-stopping sessions."""
        return with_rounded_weights(self.network, self.bits, lambda: RerankTrainer.stopping_figure(self))

    def probes(self) -> Iterator[Tensor]:
        """Yield the loss of each early-stopping batch, which tells what units are worth."""
        generator = torch.Generator().manual_seed(self.seed)
        for batch in self.stopping.batches:
            shown, click = torch.from_numpy(batch.shown), torch.from_numpy(batch.click)
            if (batch.shown != NOT_SHOWN).any():
                yield self.network.loss(to_tensors(batch.observation), shown, click, generator)


@dataclass(frozen=True)
class Played:
    """Observations that a network met, and what it answered.

    Attributes:
        observation: the keys that models read, (R, ...) float32.
        cards: (R, n, F + T) float32, candidates of the value network; (R, 0, 0) for others.
        logits: (R, n, k) float32, of the network before compression.
        session: (R,) int64, which session each is from.
    """

    observation: Observation
    cards: np.ndarray
    logits: np.ndarray
    session: np.ndarray

    def __len__(self) -> int:
        return len(self.session)

    def take(self, index: np.ndarray) -> Played:
        """Return some rows (R,) int64 or bool."""
        observation = {key: values[index] for key, values in self.observation.items()}
        return Played(observation, self.cards[index], self.logits[index], self.session[index])

    def chunks(self) -> Iterator[Played]:
        """Yield everything, at once."""
        yield self


def answers(network: nn.Module, observation: TensorObservation, cards: Tensor) -> Tensor:
    """Return a network's logits of the candidates, (B, n, k); k is 2 for the value network, else 1."""
    if isinstance(network, ValueNetwork):
        return network.logits(network.cards(cards), *network.read(observation))
    assert isinstance(network, ListScorer)
    rows = torch.arange(observation["pool"].shape[1]).expand(len(observation["pool"]), -1)
    return network.logits(observation, rows).unsqueeze(-1)


def play_observations(
    run: Run, network: nn.Module, scenario: Scenario, tuning: TuningConfig, seed: int
) -> Played:
    """Play sessions of learned users (split "train") with a run's policy, and keep what it sees and answers.

    Args:
        run: the run that plays, in its own track.
        network: its network, whose answers are kept.
        scenario: where it plays; it must have learned users.
        tuning: sessions, and the share of observations to keep.
        seed: seed of the sessions and of what is kept.
    """
    track, draws = run.record["track"], np.random.default_rng([seed, FIRST])
    is_values = isinstance(network, ValueNetwork)
    kept: list[tuple[Observation, np.ndarray, np.ndarray]] = []
    for first in range(0, tuning.sessions, tuning.num_envs):
        size = min(tuning.num_envs, tuning.sessions - first)
        env = make_feeds(track, size, scenario=scenario, users="learned", split="train", copy=False)
        policy = load_policy(run, env)
        env.reset(seed=seed * CLI_SEED_STRIDE + FIRST + first)
        policy.reset(np.ones(size, np.bool_))
        done = np.zeros(size, np.bool_)
        while not done.all():
            observation = env.batch.observation(copy=False)
            live = np.flatnonzero(~done & (draws.random(size) < tuning.share))
            if len(live):
                some = {key: values[live].copy() for key, values in observation.items()}
                cards = (
                    candidates_of(some, scenario.config.n_types)[:, : n_candidates(env)]
                    if is_values
                    else None
                )
                kept.append(
                    (some, np.zeros((len(live), 0, 0), np.float32) if cards is None else cards, first + live)
                )
            env.batch.step(policy.act(observation), done)
            done |= env.batch.arrays.terminated | env.batch.arrays.truncated
        env.close()
    observation = {key: np.concatenate([some[key] for some, _, _ in kept]) for key in to_tensors(kept[0][0])}
    cards = np.concatenate([some for _, some, _ in kept])
    with torch.inference_mode():
        parts = [
            answers(network, to_tensors(observation, rows), torch.from_numpy(cards[rows]))
            for at in range(0, len(cards), ANSWER_BATCH)
            for rows in [slice(at, at + ANSWER_BATCH)]
        ]
    session = np.concatenate([rows for _, _, rows in kept])
    return Played(observation, cards, torch.cat(parts).numpy(), session)


class SelfDistiller(EpochTrainer[nn.Module]):
    """Regress a network on the logits of the one that it was before compression.

    The loss is the mean squared difference of logits over the candidates that are there.

    Args:
        record: content of policy.json; steps and distance are updated.
        tuning: hyper-parameters.
        network: trained in place.
        played: observations and logits; the last fifth of the sessions is held out.
        bits: of the weights in training.
    """

    figure, sign = "distance", -1

    def __init__(
        self, record: dict[str, Any], tuning: TuningConfig, network: nn.Module, played: Played, bits: int
    ) -> None:
        self.bits = bits
        held = played.session >= played.session.max() * 4 // 5
        super().__init__(network, record, tuning, played.take(~held))
        self.held_out = played.take(held)

    def loss(self, chunk: Played, index: np.ndarray, generator: torch.Generator) -> Tensor:
        """Return the mean squared difference on some observations, with rounded weights."""
        return with_rounded_weights(self.network, self.bits, lambda: self._distance(chunk.take(index)))

    def _distance(self, some: Played) -> Tensor:
        found, present = self._answers(some)
        gap = (found - torch.from_numpy(some.logits)).square().mean(-1)
        return (gap * present).sum() / present.sum().clamp(min=1)

    def _answers(self, some: Played) -> tuple[Tensor, Tensor]:
        """Logits of the candidates, and which of them are there."""
        cards, observation = torch.from_numpy(some.cards), to_tensors(some.observation)
        present = occupied(cards if cards.shape[1] else observation["pool"])
        return answers(self.network, observation, cards), present

    def _batches(self) -> Iterator[Played]:
        count = len(self.held_out)
        for at in range(0, count, ANSWER_BATCH):
            yield self.held_out.take(np.arange(at, min(at + ANSWER_BATCH, count)))

    def stopping_figure(self) -> float:
        """Return the mean squared difference with rounded weights on the sessions held out."""
        self.network.eval()

        def total() -> float:
            with torch.inference_mode():
                sums = [len(some) * self._distance(some).item() for some in self._batches()]
            return sum(sums) / len(self.held_out)

        return with_rounded_weights(self.network, self.bits, total)

    def probes(self) -> Iterator[Tensor]:
        """Yield a loss for each held-out batch whose squared gradient is the Fisher information.

        That is the log-loss of answers drawn from the network's own probabilities: the distance to itself,
        which this trains on, has no gradient before anything is removed.
        """
        generator = torch.Generator().manual_seed(self.seed)
        for some in self._batches():
            logits, present = self._answers(some)
            drawn = torch.bernoulli(torch.sigmoid(logits.detach()), generator=generator)
            loss = nn.functional.binary_cross_entropy_with_logits(logits, drawn, reduction="none").sum(-1)
            yield (loss * present).sum() / present.sum().clamp(min=1)


Tuner = LogTuner | SelfDistiller
MakeTuner = Callable[[nn.Module, int], Tuner]


def make_tuner(
    run: Run,
    network: nn.Module,
    record: dict[str, Any],
    tuning: TuningConfig,
    scenario: Scenario,
    reader: LogReader | None,
) -> MakeTuner:
    """Return what makes the trainer of a smaller network and its bits.

    Args:
        run: the run before compression.
        network: its network.
        record: content of the new run's policy.json.
        tuning: hyper-parameters.
        scenario: where sessions are played to distil from.
        reader: a log to learn from, if the agent learns from logs; None distils.
    """
    if reader is not None:
        assert isinstance(network, ListScorer)
        return lambda smaller, bits: LogTuner(reader, record | {"gauc": []}, tuning, smaller, bits)  # type: ignore[arg-type]
    played = play_observations(run, network, scenario, tuning, record["seed"])
    return lambda smaller, bits: SelfDistiller(record | {"distance": []}, tuning, smaller, played, bits)
