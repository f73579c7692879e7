"""Trains one member of the ensemble: maximum likelihood with Adam, and a checkpoint after every epoch."""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from edgerec_gym.documents import decode
from edgerec_gym.errors import InputError
from edgerec_gym.files import atomic_path
from edgerec_gym.logs.sessions import LoggedSessions, SessionStream
from edgerec_gym.simulator.dataset import padded, plan_batches
from edgerec_gym.simulator.losses import held_out_loss, log_losses, objective
from edgerec_gym.simulator.model import UserNetwork
from edgerec_gym.tensors import read_tensors

Count = Annotated[int, msgspec.Meta(ge=0)]
LEARNING_RATE = 4e-3
WARM_UP = 30  # steps
LEAST_GAIN = 3e-4  # relative; a smaller held-out gain in an epoch lowers the learning rate
DROP = 0.25  # factor on the learning rate; training then continues from the best weights
DROPS, DROPS_OF_AVERAGES = 3, 2  # the last one ends the training; averaged weights gain little by it
GRADIENT_NORM = 1.0
AVERAGING = 0.98  # decay per step of averaged weights
BATCHES_PER_EPOCH = 60  # target, within the limits below
BOOTSTRAP_SHARE = 0.632  # of the sessions that a bootstrap sees
BATCH_SLOTS = (300, 4000)  # minimum and maximum number of padded slots in a batch


class Progress(msgspec.Struct, forbid_unknown_fields=True):
    """The state of a training run, except the tensors."""

    epoch: Count = 0
    steps: Count = 0
    drops: Count = 0
    best_loss: float = math.inf
    held_out: list[float] = []  # loss after each epoch


class UserTrainer:
    """Train one network.

    Args:
        network: network with input scales set; trained in place.
        train: sessions to train on.
        held_out: sessions that decide when to stop.
        heads: heads to fit.
        bootstrap: generator seeds of the member's session weights; None = every session counts once.
        seed: generator seeds of the order of batches.
        averaged: judge and keep a moving average of the weights (Polyak and Juditsky, 1992), which is less
            noisy than the last weights, so that fewer epochs are enough.
        path: checkpoint; training continues from it if it exists.
    """

    def __init__(
        self,
        network: UserNetwork,
        train: SessionStream,
        held_out: LoggedSessions,
        heads: list[str],
        *,
        bootstrap: list[int] | None,
        seed: list[int],
        path: Path,
        averaged: bool = False,
    ) -> None:
        self.network, self.train, self.held_out, self.heads = network, train, held_out, heads
        self.bootstrap, self.seed, self.path = bootstrap, seed, path
        self.optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98))
        self.best = _copy(network)
        self.average = _copy(network) if averaged else None
        self.progress = Progress()
        if path.exists():
            self._load()

    @property
    def done(self) -> bool:
        """Whether training has ended: the learning rate was lowered often enough."""
        return self.progress.drops >= (DROPS if self.average is None else DROPS_OF_AVERAGES)

    def run_epoch(self, batch_slots: int, stop: threading.Event) -> None:
        """Train on every session once and save a checkpoint; saves nothing if `stop` is set meanwhile."""
        rng = np.random.default_rng([*self.seed, self.progress.epoch])
        steps = self.progress.steps
        for chunk in self.train.chunks():
            weight = self._weights(chunk)
            for index in plan_batches(chunk.answered * (weight > 0), batch_slots, rng):
                if stop.is_set():
                    return
                steps += 1
                self._step(chunk, index, weight[index], steps)
        progress = self.progress
        progress.epoch, progress.steps = progress.epoch + 1, steps
        last = _copy(self.network)
        judged = last if self.average is None else _copy_of(self.average)
        self.network.load_state_dict(judged)
        loss = held_out_loss(self.network, self.held_out, self.heads)
        progress.held_out.append(loss)
        enough = loss < progress.best_loss * (1 - LEAST_GAIN)
        if loss < progress.best_loss:
            progress.best_loss, self.best = loss, judged
        if not enough:
            progress.drops += 1
            self.average = None if self.average is None else _copy_of(self.best)
        self.network.load_state_dict(last if enough else self.best)
        self._save()

    def _weights(self, chunk: LoggedSessions) -> np.ndarray:
        """Return how often each session counts: a bootstrap that is the same in every epoch."""
        if self.bootstrap is None:
            return np.ones(len(chunk))
        rng = np.random.default_rng([*self.bootstrap, int(chunk.session[0])])
        return rng.poisson(1.0, len(chunk)).astype(np.float64)

    def _step(self, chunk: LoggedSessions, index: np.ndarray, weight: np.ndarray, steps: int) -> None:
        batch = padded(chunk, index, weight)
        logits, rows = self.network.forward_sequence(batch)
        loss = objective(log_losses(logits, rows, self.heads), batch.weight.repeat_interleave(batch.length))
        for group in self.optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, steps / WARM_UP) * DROP**self.progress.drops
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), GRADIENT_NORM)
        self.optimizer.step()
        self._average(steps)

    @torch.no_grad()
    def _average(self, steps: int) -> None:
        if self.average is None:
            return
        decay = min(AVERAGING, steps / (steps + 9))  # the first weights are soon forgotten
        for name, value in self.network.named_parameters():
            self.average[name].lerp_(value, 1 - decay)

    def _save(self) -> None:
        tensors = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        tensors |= {f"best.{k}": v for k, v in self.best.items()}
        tensors |= {f"average.{k}": v for k, v in (self.average or {}).items()}
        for number, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{number}.{name}": value for name, value in moments.items()}
        with atomic_path(self.path) as temporary:
            save_file(tensors, temporary, metadata={"progress": msgspec.json.encode(self.progress).decode()})

    def _load(self) -> None:
        try:
            tensors = {name: torch.from_numpy(values) for name, values in read_tensors(self.path).items()}
            with safe_open(self.path, framework="np") as file:
                told = (file.metadata() or {})["progress"]
        except (SafetensorError, OSError, InputError, KeyError) as error:
            reason = str(error).splitlines()[0].removeprefix(f"{self.path} ")
            raise InputError(f"{self.path} is not a readable checkpoint: {reason}") from None
        self.progress = decode(told, Progress, f"{self.path}: progress")
        own = {name: value.shape for name, value in self.network.state_dict().items()}
        parts = ["network", "best", *([] if self.average is None else ["average"])]
        wanted = {f"{part}.{name}": shape for part in parts for name, shape in own.items()}
        parameters = list(self.network.parameters())
        for number, parameter in enumerate(parameters):
            moments = {"step": torch.Size(), "exp_avg": parameter.shape, "exp_avg_sq": parameter.shape}
            wanted |= {f"adam.{number}.{name}": shape for name, shape in moments.items()}
        for name in sorted(tensors.keys() | wanted.keys()):
            optional = name.startswith("adam.") and name in wanted  # a head that is not fitted has no moments
            fits = name in wanted and name in tensors and tensors[name].shape == wanted[name]
            if not (fits or (optional and name not in tensors)):
                raise InputError(f"{self.path}: tensor {name!r} does not fit; another version saved it")
        self.network.load_state_dict(_below(tensors, "network."))
        self.best = _below(tensors, "best.")
        self.average = None if self.average is None else _below(tensors, "average.")
        state = self.optimizer.state_dict()
        for number in range(len(parameters)):
            if known := _below(tensors, f"adam.{number}."):
                state["state"][number] = known
        self.optimizer.load_state_dict(state)


def batch_slots(slots: int, *, bootstrap: bool = True) -> int:
    """Return the number of padded slots in a batch, for an epoch of `slots` answered slots.

    Without a bootstrap, batches are larger, so that an epoch has as many of them.
    """
    least, most = BATCH_SLOTS
    batches = BATCHES_PER_EPOCH if bootstrap else round(BATCHES_PER_EPOCH * BOOTSTRAP_SHARE)
    return min(most, max(least, slots // batches))


def _copy(network: UserNetwork) -> dict[str, torch.Tensor]:
    return _copy_of(network.state_dict())


def _copy_of(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in tensors.items()}


def _below(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
