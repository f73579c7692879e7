"""Training on the requests of a log, epoch by epoch: what re-rankers and the list evaluator share."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from edgerec_gym.agents.learning import parameters
from edgerec_gym.config import Config
from edgerec_gym.logs.store import LogReader
from edgerec_gym.runs import model_sizes, new_record, read_run

Report = Callable[[int, int, str], None]
Network = TypeVar("Network", bound=nn.Module)


class Stream(Protocol):
    """What a network is trained on, a chunk with a length at a time."""

    def chunks(self) -> Iterator[Any]:
        """Yield everything once."""


def moment_settings(settings: Any, seed: int) -> dict[str, int]:
    """Settings of the requests that a network is trained on, from its hyper-parameters."""
    return {name: getattr(settings, name) for name in ("horizon", "no_click", "per_session")} | {"seed": seed}


def log_record(agent: str, track: str, reader: LogReader, seed: int, settings: Config) -> dict[str, Any]:
    """Content of policy.json before the first epoch, but for the figure of every epoch."""
    logs = {"provenance": reader.provenance, "sessions": reader.sessions, "slots": reader.slots}
    sizes = model_sizes(reader.config)
    return new_record(agent, track, seed=seed, settings=settings, sizes=sizes, logs=logs)


class EpochTrainer(Generic[Network]):
    """One network in training. A subclass names its figure, and implements `loss` and `stopping_figure`.

    Args:
        network: with initial parameters; trained in place.
        record: content of policy.json; steps and figures grow.
        settings: hyper-parameters: learning_rate, weight_decay, max_grad_norm, batch_size, epochs, patience;
            final_rate, if there is one: the learning rate falls to this share of it by the last epoch.
        stream: what to train on: re-rank requests, decisions.

    Attributes:
        network: as of the last epoch.
        best: as of the epoch with the best figure on the stopping sessions.
    """

    figure: str  # key of the record: the figure of every epoch
    sign: int  # 1: the larger the better, -1: the smaller

    def __init__(self, network: Network, record: dict[str, Any], settings: Any, stream: Stream) -> None:
        self.network, self.record, self.settings, self.stream = network, record, settings, stream
        self.seed = record["seed"]
        self.best = copy.deepcopy(network)
        trained = [p for p in network.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(
            trained, lr=settings.learning_rate, weight_decay=settings.weight_decay
        )

    def loss(self, chunk: Any, index: np.ndarray, generator: torch.Generator) -> Tensor:
        """Mean loss of the rows `index` (B,) of a chunk."""
        raise NotImplementedError

    def stopping_figure(self) -> float:
        """Score the network on the stopping sessions."""
        raise NotImplementedError

    def _scores(self) -> list[float]:
        """Figures of the epochs so far, larger = better."""
        return [self.sign * figure for figure in self.record[self.figure]]

    @property
    def done(self) -> bool:
        """Whether all epochs are done, or the last ones have not been better."""
        seen, patience = self._scores(), self.settings.patience
        if len(seen) >= self.settings.epochs:
            return True
        return len(seen) > patience and max(seen[-patience:]) <= max(seen[:-patience])

    def run_epoch(self) -> None:
        """Train on everything once, then score the stopping sessions."""
        epoch = self.record["steps"]
        order = np.random.default_rng([self.seed, epoch])
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        self.network.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self._learning_rate(epoch)
        for chunk in self.stream.chunks():
            shuffled = order.permutation(len(chunk))
            for at in range(0, len(chunk), self.settings.batch_size):
                self._step(self.loss(chunk, shuffled[at : at + self.settings.batch_size], generator))
        figure = self.stopping_figure()
        if self.sign * figure > max(self._scores(), default=-np.inf):
            self.best.load_state_dict(self.network.state_dict())
        figures = [*self.record[self.figure], figure]
        self.record = self.record | {"steps": epoch + 1, self.figure: figures}

    def _learning_rate(self, epoch: int) -> float:
        """Falls linearly, so that the last epochs average over more of the log."""
        s, last = self.settings, getattr(self.settings, "final_rate", 1.0)
        return s.learning_rate * (1 - (1 - last) * epoch / max(1, s.epochs - 1))

    def _step(self, loss: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.max_grad_norm)
        self.optimizer.step()

    def restore(self, folder: Path) -> None:
        """Go on from a checkpoint."""
        parameters.restore_checkpoint(folder, self.best, self.optimizer, training=self.network)
        earlier = read_run(folder).record
        self.record = self.record | {key: earlier[key] for key in ("steps", self.figure)}

    def run(self, folder: Path, start: Path | None, label: str, progress: Report | None) -> None:
        """Train to the end, with a checkpoint after every epoch.

        Args:
            folder: of the run.
            start: checkpoint to go on from, if there is one.
            label: of the figure, for `progress`.
            progress: called with (epochs done, epochs at most, text).
        """
        if start is not None:
            self.restore(start)
        while not self.done:
            self.run_epoch()
            parameters.save_checkpoint(folder, self.best, self.record, self.optimizer, training=self.network)
            if progress:
                best = self.sign * max(self._scores())
                progress(self.record["steps"], self.settings.epochs, f"{label} {best:.4f}")
