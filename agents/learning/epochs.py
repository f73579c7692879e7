"""Epoch-wise training on a log, shared by all networks that learn from logs."""

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
    """Training data in chunks; every chunk has a length."""

    def chunks(self) -> Iterator[Any]:
        """Yield everything once."""


def moment_settings(settings: Any, seed: int) -> dict[str, int]:
    """Return the settings of the re-ranking moments to train on, from hyper-parameters and seed."""
    return {name: getattr(settings, name) for name in ("horizon", "no_click", "per_session")} | {"seed": seed}


def log_record(agent: str, track: str, reader: LogReader, seed: int, settings: Config) -> dict[str, Any]:
    """Return the initial content of policy.json, without the figure of every epoch."""
    logs = {"provenance": reader.provenance, "sessions": reader.sessions, "slots": reader.slots}
    sizes = model_sizes(reader.config)
    return new_record(agent, track, seed=seed, settings=settings, sizes=sizes, logs=logs)


class EpochTrainer(Generic[Network]):
    """Train one network. A subclass names its figure and implements `loss` and `stopping_figure`.

    Args:
        network: with initial parameters; trained in place.
        record: content of policy.json; steps and figures are updated.
        settings: hyper-parameters: learning_rate, weight_decay, max_grad_norm, batch_size, epochs, patience;
            optionally final_rate, the share of the learning rate that is left in the last epoch.
        stream: training data, e.g. re-ranking moments or decisions.

    Attributes:
        network: network after the last epoch.
        best: what is kept of the network, after the best epoch on the early-stopping sessions.
    """

    figure: str  # the record's key for the figure of every epoch
    sign: int  # 1 if larger figures are better, -1 if smaller ones are

    def __init__(self, network: Network, record: dict[str, Any], settings: Any, stream: Stream) -> None:
        self.network, self.record, self.settings, self.stream = network, record, settings, stream
        self.seed = record["seed"]
        self.best: Any = copy.deepcopy(self.kept())  # of the class that `kept` returns
        trained = [p for p in network.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(
            trained, lr=settings.learning_rate, weight_decay=settings.weight_decay
        )

    def loss(self, chunk: Any, index: np.ndarray, generator: torch.Generator) -> Tensor:
        """Return the mean loss of the rows `index` (B,) of a chunk."""
        raise NotImplementedError

    def stopping_figure(self) -> float:
        """Return the network's figure on the early-stopping sessions."""
        raise NotImplementedError

    def kept(self) -> nn.Module:
        """Return the part of the network that is kept at its best and plays: all of it, unless overridden."""
        return self.network

    def _scores(self) -> list[float]:
        """Return the figures of the epochs so far, signed so that larger is better."""
        return [self.sign * figure for figure in self.record[self.figure]]

    @property
    def done(self) -> bool:
        """Whether all epochs are done, or the last `patience` epochs brought no improvement."""
        seen, patience = self._scores(), self.settings.patience
        if len(seen) >= self.settings.epochs:
            return True
        return len(seen) > patience and max(seen[-patience:]) <= max(seen[:-patience])

    def run_epoch(self) -> None:
        """Train on all data once, then score the early-stopping sessions."""
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
        self._keep_best(epoch)

    def _keep_best(self, epoch: int) -> None:
        """Score the early-stopping sessions, keep the network if it is the best so far, count the epoch."""
        figure = self.stopping_figure()
        if self.sign * figure > max(self._scores(), default=-np.inf):
            self.best.load_state_dict(self.kept().state_dict())
        figures = [*self.record[self.figure], figure]
        self.record = self.record | {"steps": epoch + 1, self.figure: figures}

    def _learning_rate(self, epoch: int) -> float:
        """Return a linearly falling rate, so that the last epochs average over more of the log."""
        s, last = self.settings, getattr(self.settings, "final_rate", 1.0)
        return s.learning_rate * (1 - (1 - last) * epoch / max(1, s.epochs - 1))

    def _step(self, loss: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.max_grad_norm)
        self.optimizer.step()

    def restore(self, folder: Path) -> None:
        """Continue from a checkpoint."""
        parameters.restore_checkpoint(folder, self.best, self.optimizer, training=self.network)
        earlier = read_run(folder).record
        self.record = self.record | {key: earlier[key] for key in ("steps", self.figure)}

    def run(self, folder: Path, start: Path | None, label: str, progress: Report | None) -> None:
        """Train to the end, with a checkpoint after every epoch.

        Args:
            folder: the run's folder.
            start: checkpoint to continue from, if any.
            label: name of the figure in progress messages.
            progress: called with (epochs done, maximum number of epochs, text).
        """
        if start is not None:
            self.restore(start)
        while not self.done:
            self.run_epoch()
            parameters.save_checkpoint(folder, self.best, self.record, self.optimizer, training=self.network)
            if progress:
                best = self.sign * max(self._scores())
                progress(self.record["steps"], self.settings.epochs, f"{label} {best:.4f}")
