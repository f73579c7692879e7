"""One generator in training: lists drawn and rewarded, or found by a search, and the steps towards them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgerec_gym.agents import checkpoint
from edgerec_gym.agents.epochs import request_settings
from edgerec_gym.agents.evaluator import ListEvaluator
from edgerec_gym.agents.plan_rollouts import plan_decisions
from edgerec_gym.agents.pointer_net import PointerNet
from edgerec_gym.agents.policy_gradient import (
    Decisions,
    PolicyGradientConfig,
    leave_one_out,
    policy_loss,
    scale_advantages,
)
from edgerec_gym.agents.request_log import NOT_SHOWN
from edgerec_gym.agents.rerank_data import RequestBatch, RequestStream, split_requests
from edgerec_gym.agents.reranker import TensorObservation, end_with_page, slots_left, to_tensors
from edgerec_gym.agents.sequence_search import SequenceSearch
from edgerec_gym.errors import InputError
from edgerec_gym.logs.store import LogReader
from edgerec_gym.random_stream import CLI_SEED_STRIDE
from edgerec_gym.runs import read_run
from edgerec_gym.slate_env import EdgeFeedSlateVectorEnv

MOMENTS_AT_ONCE = 256  # in one pass of a gradient step, to bound memory


class GeneratorTrainer:
    """One generator in training.

    Args:
        record: content of policy.json; steps and reward grow.
        settings: hyper-parameters.
        network: the generator, trained in place.
        evaluator: of pointer-evaluator and pointer-distilled.
        reader: the log, if there is one.
        env: of pointer-users, with batch_size x (samples + self_critical) rows.
    """

    def __init__(
        self,
        record: dict[str, Any],
        settings: PolicyGradientConfig,
        network: PointerNet,
        evaluator: ListEvaluator | None,
        reader: LogReader | None,
        env: EdgeFeedSlateVectorEnv | None,
    ) -> None:
        self.record, self.settings, self.network, self.env = record, settings, network, env
        self.evaluator, self.seed = evaluator, record["seed"]
        self.optimizer = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)
        self.distils = record["agent"] == "pointer-distilled"
        self.stream: RequestStream | None = None
        if reader is not None:
            drawn = request_settings(network.settings, self.seed)
            self.stream, _, _ = split_requests(reader, **drawn)
        self._requests: Iterator[RequestBatch] | None = None

    def update(self) -> None:
        """Draw lists, reward them, and take the gradient steps of one update."""
        done = self.record["steps"]
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + done) % 2**63)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.rate(done)
        requests = self._next_requests()
        if self.distils:
            assert requests is not None
            reward = self._distil(to_tensors(requests.observation))
        else:
            decisions, reward = self._decisions(requests, generator)
            self._learn(scale_advantages(decisions), requests, generator)
        self.record = self.record | {"steps": done + 1, "reward": [*self.record["reward"], reward]}

    def _next_requests(self) -> RequestBatch | None:
        """The logged requests of this update."""
        if self.stream is None:
            return None
        if self._requests is None:
            batch_size, done = self.settings.batch_size, self.record["steps"]
            self._requests = request_batches(self.stream, batch_size, self.seed, done)
        return next(self._requests)

    def _decisions(
        self, requests: RequestBatch | None, generator: torch.Generator
    ) -> tuple[Decisions, float]:
        """Lists with advantages, and their mean reward."""
        s = self.settings
        if self.env is None:
            assert requests is not None and self.evaluator is not None
            observation = to_tensors(requests.observation)
            return evaluator_decisions(
                self.network, self.evaluator, observation, s.samples, bool(s.self_critical), generator
            )
        first = self.record["steps"] * s.batch_size % (CLI_SEED_STRIDE - s.batch_size)
        seeds = self.seed * CLI_SEED_STRIDE + first + np.arange(s.batch_size)
        return plan_decisions(
            self.network, self.env, seeds.tolist(), s.samples, bool(s.self_critical), s.discount, generator
        )

    def _learn(self, decisions: Decisions, requests: RequestBatch | None, generator: torch.Generator) -> None:
        """REINFORCE takes one step over all moments, PPO one for each part of them in every epoch."""
        s, epochs = self.settings, max(1, self.settings.ppo_epochs)
        clip = s.clip if s.ppo_epochs else None
        for _ in range(epochs):
            parts = torch.randperm(len(decisions), generator=generator).split(MOMENTS_AT_ONCE)
            for at, part in enumerate(parts):
                share = 1.0 if clip is not None else len(part) / len(decisions)
                (share * policy_loss(self.network, decisions.take(part), s.entropy, clip)).backward()
                if clip is not None or at == len(parts) - 1:
                    self._demonstrate(requests, generator)
                    self._step()

    def _demonstrate(self, requests: RequestBatch | None, generator: torch.Generator) -> None:
        """Add the gradient of the demonstrations."""
        weight = self.settings.demonstration_weight(self.record["steps"])
        if requests is None or not weight:
            return
        observation = to_tensors(requests.observation)
        shown, click = torch.from_numpy(requests.shown), torch.from_numpy(requests.click)
        (weight * self.network.loss(observation, shown, click, generator)).backward()

    def _distil(self, observation: TensorObservation) -> float:
        """Take a step towards the lists that the search picks; returns their mean value."""
        assert self.evaluator is not None
        search = SequenceSearch(self.network.config, self.evaluator, self.network)
        with torch.no_grad():
            found = search.search(observation, self.evaluator.settings.horizon)
        distillation_loss(self.network, observation, found.rows).backward()
        self._step()
        return found.value.mean().item()

    def _step(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def restore(self, folder: Path) -> None:
        """Go on from a checkpoint."""
        checkpoint.restore_checkpoint(folder, self.network, self.optimizer)
        earlier = read_run(folder).record
        self.record = self.record | {key: earlier[key] for key in ("steps", "reward")}


def evaluator_decisions(
    network: PointerNet,
    evaluator: ListEvaluator,
    observation: TensorObservation,
    samples: int,
    self_critical: bool,
    generator: torch.Generator,
) -> tuple[Decisions, float]:
    """Draw lists for B requests; advantage = the evaluator's value minus the baseline.

    Lists end with their page: else good cards would be put off to places that never come. The baseline is
    the value of the greedy list, or the mean of the other lists. Returns the decisions and the mean value.
    """
    k = evaluator.settings.horizon
    with torch.no_grad():
        candidates = network.encode(observation)
        decoded = network.sample(candidates.repeat(samples), k, generator)
        left = slots_left(observation, evaluator.config)
        rows = end_with_page(decoded.rows.view(-1, samples, k), left)
        encoded = evaluator.encode_pool(observation)
        value = evaluator.values(encoded, rows)
        if self_critical:
            best = end_with_page(network.greedy(candidates, k).rows.unsqueeze(1), left)
            advantage = value - evaluator.values(encoded, best)
        else:
            advantage = leave_one_out(value)
    return Decisions(
        observation,
        rows,
        decoded.log_probabilities.view_as(rows).masked_fill(rows == NOT_SHOWN, 0.0),
        advantage.unsqueeze(-1).expand_as(rows).contiguous(),
        rows != NOT_SHOWN,
    ), value.mean().item()


def distillation_loss(network: PointerNet, observation: TensorObservation, rows: Tensor) -> Tensor:
    """Cross-entropy of the generator with lists (B, K) that a search has picked, mean over places."""
    decoded = network.forced(network.encode(observation), rows)
    return -decoded.log_probabilities.sum() / (rows != NOT_SHOWN).sum().clamp(min=1)


def request_batches(stream: RequestStream, size: int, seed: int, start: int) -> Iterator[RequestBatch]:
    """Yield batches of up to `size` requests for ever, in an order of `seed`, from number `start` on."""
    number, passes = 0, 0
    while True:
        order = np.random.default_rng([seed, passes])
        for chunk in stream.chunks():
            shuffled = order.permutation(len(chunk))
            for at in range(0, len(chunk), size):
                if number >= start:
                    yield chunk.batch(shuffled[at : at + size])
                number += 1
        if not number:
            raise InputError(f"{stream.reader.folder} has no requests to learn from")
        passes += 1
