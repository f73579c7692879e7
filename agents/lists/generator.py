"""Train list generators on rewards or on a search, assemble a sequence search, and load both.

| agent | learns from | needs |
| --- | --- | --- |
| pointer-evaluator | the evaluator's value of the list, by one of four updates | logs, an evaluator |
| pointer-users | policy gradient, reward = the rest of the session with the users | a scenario |
| pointer-distilled | cross-entropy to the list that the sequence search picks | logs, an evaluator |
| sequence-search | nothing: it combines an evaluator and an optional generator | an evaluator, a scenario |

`pointer-evaluator` learns by policy gradient (REINFORCE, or clipped PPO). With the setting `update`, it
learns by GoalRank, Rerank-DPO or NLGR's credit instead (:mod:`edgerec_gym.agents.lists.list_updates`). Each
agent can start from a trained generator. A run is a folder as described in :mod:`edgerec_gym.runs`, with the
mean reward of every update. A killed run resumes after its last checkpoint and ends with the same parameters
as an uninterrupted one.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgerec_gym.agents.data.moments import RerankBatch, RerankStream, split_moments
from edgerec_gym.agents.data.observed_log import NOT_SHOWN
from edgerec_gym.agents.learning import parameters
from edgerec_gym.agents.learning.epochs import Report, moment_settings
from edgerec_gym.agents.learning.tensors import TensorObservation, to_tensors, torch_threads
from edgerec_gym.agents.lists.evaluator import EvaluatorConfig, ListEvaluator
from edgerec_gym.agents.lists.evaluator_training import AGENT as JUDGE
from edgerec_gym.agents.lists.evaluator_training import build as build_evaluator
from edgerec_gym.agents.lists.evaluator_training import load_evaluator
from edgerec_gym.agents.lists.list_updates import (
    Group,
    evaluator_group,
    group_loss,
    neighbour_credit,
    neighbour_values,
)
from edgerec_gym.agents.lists.pointer_net import PointerNet
from edgerec_gym.agents.lists.policy_gradient import (
    Decisions,
    PolicyGradientConfig,
    leave_one_out,
    plan_decisions,
    policy_loss,
    scale_advantages,
)
from edgerec_gym.agents.lists.sequence_search import SearchConfig, SequenceSearch
from edgerec_gym.agents.rerank.reranker import Reranker, RerankerConfig, end_with_page, slots_left
from edgerec_gym.agents.rerank.train import build, check_track, policy_of
from edgerec_gym.compiled.random_stream import CLI_SEED_STRIDE
from edgerec_gym.config import FeedConfig
from edgerec_gym.errors import InputError
from edgerec_gym.files import make_folder, one_writer
from edgerec_gym.logs.store import LogReader
from edgerec_gym.policy import Policy
from edgerec_gym.runs import (
    PARAMETERS,
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
from edgerec_gym.slate_env import EdgeFeedSlateVectorEnv

GENERATORS = ("pointer-evaluator", "pointer-users", "pointer-distilled")
SEARCH = "sequence-search"
AGENTS = (*GENERATORS, SEARCH)
EVALUATOR, GENERATOR = "evaluator", "generator"
Parts = Mapping[str, Path]


def find_parts(agent: str, based_on: Sequence[str | Path]) -> dict[str, Path]:
    """Identify the runs that an agent is based on by their content.

    Returns:
        Folders under the keys "evaluator" and "generator"; each may be missing.

    Raises:
        InputError: if a folder has no run or one of another kind, two are of the same kind, a required
            evaluator is missing, or an evaluator is given but not used.
    """
    parts: dict[str, Path] = {}
    for folder in based_on:
        kind = read_run(folder).agent
        if kind == JUDGE:
            part = EVALUATOR
        elif kind in ("pointer", *GENERATORS):
            part = GENERATOR
        else:
            raise InputError(f"{folder} holds the agent {kind!r}, neither an evaluator nor a generator")
        if part in parts:
            raise InputError(f"{parts[part]} and {folder} both hold {part}s; give one")
        parts[part] = Path(folder)
    if agent == "pointer-users" and EVALUATOR in parts:
        raise InputError(f"agent {agent!r} is rewarded by users; leave the evaluator {parts[EVALUATOR]} out")
    if agent != "pointer-users" and EVALUATOR not in parts:
        raise InputError(f"agent {agent!r} needs an evaluator: give its run's folder with --based-on")
    return parts


def network_settings(parts: Parts) -> RerankerConfig:
    """Return a generator's settings: those of the run it starts from, else the defaults."""
    if GENERATOR not in parts:
        return RerankerConfig()
    _, record = read_run(parts[GENERATOR])
    return RerankerConfig.from_dict(record["hyper"] if record["agent"] == "pointer" else record["network"])


def make_generator(parts: Parts, config: FeedConfig, seed: int) -> PointerNet:
    """Return the generator to start from, or a new one initialised from `seed`."""
    settings = network_settings(parts)
    network = build(PointerNet, config, settings, seed)
    if GENERATOR in parts:
        run = read_run(parts[GENERATOR])
        check_sizes(run, config)
        parameters.load_parameters(run.parameters, network)
    return network


def make_evaluator(parts: Parts, config: FeedConfig) -> ListEvaluator | None:
    """Return the evaluator that an agent is based on, if any, with frozen parameters."""
    if EVALUATOR not in parts:
        return None
    return load_evaluator(parts[EVALUATOR], config).requires_grad_(False)


def describe(parts: Parts) -> dict[str, Any]:
    """Return the description of base runs for a record; equal only for equal runs."""
    described = {}
    for name, folder in parts.items():
        record = read_run(folder).record
        told = ("agent", "seed", "hyper", "steps", "network", "identified")
        described[name] = {key: record[key] for key in told if key in record}
    return described


def load_network(folder: str | Path | Run, config: FeedConfig) -> Reranker:
    """Load a generator or sequence search; raise InputError if files are broken or of other sizes."""
    run = read_run(folder)
    if run.agent not in AGENTS:
        raise InputError(f"{run.folder} holds the agent {run.agent!r}; allowed: {', '.join(AGENTS)}")
    check_sizes(run, config)
    settings = RerankerConfig.from_dict(run.record["network"])
    network: Reranker = build(PointerNet, config, settings)
    if run.agent == SEARCH:
        assert isinstance(network, PointerNet)
        told = run.record["based_on"][EVALUATOR]
        evaluator = build_evaluator(
            config, EvaluatorConfig.from_dict(told["hyper"]), tuple(told["identified"])
        )
        generator = network if GENERATOR in run.record["based_on"] else None
        network = SequenceSearch(config, evaluator, generator, SearchConfig.from_dict(run.record["hyper"]))
    parameters.load_parameters(run.parameters, network)
    return network.eval()


def load_policy(folder: str | Path | Run, env: Any, *, threads: int = 1) -> Policy:
    """Load a run to play the joint, rerank or slate track; see rerank.train.load_policy."""
    feed = getattr(env, "unwrapped", env)
    run = read_run(folder)
    check_track(run.folder, feed.track)
    return policy_of(run.agent, load_network(run, feed.config), feed, threads)


MOMENTS_AT_ONCE = 256  # moments per pass of a gradient step, to bound memory


class GeneratorTrainer:
    """Train one generator.

    Args:
        record: content of policy.json; steps and reward are updated.
        settings: hyper-parameters.
        network: the generator as it starts, trained in place.
        evaluator: evaluator for pointer-evaluator and pointer-distilled.
        reader: the log, if any.
        env: environment for pointer-users, with batch_size x (samples + self_critical) rows.
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
        self.start = copy.deepcopy(network).requires_grad_(False) if settings.update == "dpo" else None
        self.optimizer = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)
        self.distils = record["agent"] == "pointer-distilled"
        self.stream: RerankStream | None = None
        if reader is not None:
            drawn = moment_settings(network.settings, self.seed)
            self.stream, _, _ = split_moments(reader, **drawn)
        self._requests: Iterator[RerankBatch] | None = None

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
            self._learn(decisions, requests, generator)
        self.record = self.record | {"steps": done + 1, "reward": [*self.record["reward"], reward]}

    def _next_requests(self) -> RerankBatch | None:
        """Return the logged moments for this update."""
        if self.stream is None:
            return None
        if self._requests is None:
            batch_size, done = self.settings.batch_size, self.record["steps"]
            self._requests = moment_batches(self.stream, batch_size, self.seed, done)
        return next(self._requests)

    def _decisions(
        self, requests: RerankBatch | None, generator: torch.Generator
    ) -> tuple[Decisions | Group, float]:
        """Draw lists; return them with what the update learns from, and their mean reward."""
        s = self.settings
        if self.env is not None:
            decisions, reward = self._played(self.env, generator)
            return scale_advantages(decisions), reward
        assert requests is not None and self.evaluator is not None
        observation = to_tensors(requests.observation)
        if s.update in ("goalrank", "dpo"):
            return evaluator_group(self.network, self.evaluator, observation, s, generator, self.start)
        neighbours = s.neighbours if s.update == "nlgr" else 0
        decisions, reward = evaluator_decisions(
            self.network, self.evaluator, observation, s.samples, bool(s.self_critical), generator, neighbours
        )
        return scale_advantages(decisions), reward

    def _played(self, env: EdgeFeedSlateVectorEnv, generator: torch.Generator) -> tuple[Decisions, float]:
        """Play sessions; return the decisions with their advantages, and the mean reward of a session."""
        s = self.settings
        first = self.record["steps"] * s.batch_size % (CLI_SEED_STRIDE - s.batch_size)
        seeds = self.seed * CLI_SEED_STRIDE + first + np.arange(s.batch_size)
        return plan_decisions(
            self.network, env, seeds.tolist(), s.samples, bool(s.self_critical), s.discount, generator
        )

    def _learn(
        self, decisions: Decisions | Group, requests: RerankBatch | None, generator: torch.Generator
    ) -> None:
        """Take one step over all moments, or one per part of them in every epoch (PPO)."""
        s, epochs = self.settings, max(1, self.settings.ppo_epochs)
        clip = s.clip if s.ppo_epochs else None
        for _ in range(epochs):
            parts = torch.randperm(len(decisions), generator=generator).split(MOMENTS_AT_ONCE)
            for at, part in enumerate(parts):
                share = 1.0 if clip is not None else len(part) / len(decisions)
                (share * self._loss(decisions.take(part), clip)).backward()
                if clip is not None or at == len(parts) - 1:
                    self._demonstrate(requests, generator)
                    self._step()

    def _loss(self, decisions: Decisions | Group, clip: float | None) -> Tensor:
        if isinstance(decisions, Group):
            return group_loss(self.network, decisions, self.settings)
        return policy_loss(self.network, decisions, self.settings.entropy, clip)

    def _demonstrate(self, requests: RerankBatch | None, generator: torch.Generator) -> None:
        """Add the gradient of the demonstrations."""
        weight = self.settings.demonstration_weight(self.record["steps"])
        if requests is None or not weight:
            return
        observation = to_tensors(requests.observation)
        shown, click = torch.from_numpy(requests.shown), torch.from_numpy(requests.click)
        (weight * self.network.loss(observation, shown, click, generator)).backward()

    def _distil(self, observation: TensorObservation) -> float:
        """Take a step towards the lists that the search picks; return their mean value."""
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
        """Continue from a checkpoint."""
        parameters.restore_checkpoint(folder, self.network, self.optimizer)
        earlier = read_run(folder).record
        self.record = self.record | {key: earlier[key] for key in ("steps", "reward")}


def evaluator_decisions(
    network: PointerNet,
    evaluator: ListEvaluator,
    observation: TensorObservation,
    samples: int,
    self_critical: bool,
    generator: torch.Generator,
    neighbours: int = 0,
) -> tuple[Decisions, float]:
    """Draw lists for B moments; the advantage is the evaluator's value minus a baseline.

    Lists end with their page; otherwise, good cards would be deferred to places that are never shown. The
    baseline is the value of the greedy list, or the mean of the other lists. With `neighbours` per place, it
    is their mean value, and every place has an advantage of its own
    (:func:`~edgerec_gym.agents.lists.list_updates.neighbour_credit`). Returns the decisions and the mean
    value.
    """
    k = evaluator.settings.horizon
    with torch.no_grad():
        candidates = network.encode(observation)
        decoded, others = network.sample_with_others(candidates.repeat(samples), k, neighbours, generator)
        left = slots_left(observation, evaluator.config)
        rows = end_with_page(decoded.rows.view(-1, samples, k), left)
        encoded = evaluator.encode_pool(observation)
        value = evaluator.values(encoded, rows)
        if neighbours:
            around = neighbour_values(evaluator, encoded, rows, others.view(*rows.shape, neighbours))
            advantage = neighbour_credit(value, around)
        elif self_critical:
            best = end_with_page(network.greedy(candidates, k).rows.unsqueeze(1), left)
            advantage = (value - evaluator.values(encoded, best)).unsqueeze(-1)
        else:
            advantage = leave_one_out(value).unsqueeze(-1)
    return Decisions(
        observation,
        rows,
        decoded.log_probabilities.view_as(rows).masked_fill(rows == NOT_SHOWN, 0.0),
        advantage.expand_as(rows).contiguous(),
        rows != NOT_SHOWN,
    ), value.mean().item()


def distillation_loss(network: PointerNet, observation: TensorObservation, rows: Tensor) -> Tensor:
    """Return the mean cross-entropy per place of the generator with lists (B, K) picked by a search."""
    decoded = network.forced(network.encode(observation), rows)
    return -decoded.log_probabilities.sum() / (rows != NOT_SHOWN).sum().clamp(min=1)


def moment_batches(stream: RerankStream, size: int, seed: int, start: int) -> Iterator[RerankBatch]:
    """Yield batches of up to `size` moments forever, shuffled by `seed`, from batch `start` on."""
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
            raise InputError(f"{stream.reader.folder} has no re-ranking moments to learn from")
        passes += 1


FIXED = ("agent", "based_on", "logs", "scenario", "users", "seed", "hyper", "network", "sizes")


@one_writer("out")
def train(
    out: str | Path,
    *,
    agent: str,
    based_on: Sequence[str | Path] = (),
    logs: str | Path | None = None,
    scenario: str | Scenario = "default",
    users: str = "learned",
    seed: int = 0,
    resume: bool = False,
    threads: int = 1,
    progress: Report | None = None,
    **hyper: Any,
) -> dict[str, Any]:
    """Train a generator or assemble a sequence search, and write the run's folder.

    Args:
        out: the run's folder.
        agent: pointer-evaluator, pointer-users, pointer-distilled or sequence-search.
        based_on: run folders of an evaluator and of a generator to start from or to search with.
        logs: a log folder; pointer-users needs it only for demonstrations, a search not at all.
        scenario: scenario for pointer-users and the search: a shipped name, a folder, or a Scenario.
        users: users for pointer-users, "learned" or "synthetic".
        seed: seed of the initial parameters, the draws, and the order of moments.
        resume: continue from the last checkpoint in `out`, if any.
        threads: number of torch threads.
        progress: called with (updates done, total, text).
        **hyper: fields of :class:`~edgerec_gym.agents.lists.policy_gradient.PolicyGradientConfig`, or of
            :class:`~edgerec_gym.agents.lists.sequence_search.SearchConfig` for a search.

    Returns:
        The content of policy.json.

    Raises:
        InputError: if a name is unknown, a value is out of range, runs or logs are missing or do not fit, or
            `out` is not writable or holds another run.
    """
    if agent not in AGENTS:
        raise InputError(f"unknown agent {agent!r}; allowed: {', '.join(AGENTS)}")
    check_seed(seed)
    plays = agent in ("pointer-users", SEARCH)
    if agent == SEARCH and logs is not None:
        raise InputError(f"agent {agent!r} reads no logs; leave --logs out")
    if not plays and logs is None:
        raise InputError(f"agent {agent!r} learns from logs: give a log folder with --logs")
    settings = (SearchConfig if agent == SEARCH else PolicyGradientConfig).from_dict(hyper)
    if isinstance(settings, PolicyGradientConfig) and settings.update != "reinforce":
        if agent != "pointer-evaluator":
            raise InputError(f"agent {agent!r} has no update = {settings.update!r}; pointer-evaluator has")
    parts = find_parts(agent, based_on)
    reader = None if logs is None else LogReader(logs)
    place = None
    if plays:
        place = scenario if isinstance(scenario, Scenario) else Scenario.load(scenario)
        config = place.config
    else:
        assert reader is not None
        config = reader.config
    run = make_folder(out)
    record = new_record(
        agent,
        "rerank",
        seed=seed,
        settings=settings,
        sizes=model_sizes(config),
        based_on=describe(parts),
        logs=None if reader is None else {"provenance": reader.provenance, "slots": reader.slots},
        scenario=None if place is None else place.name,
        users=users if agent == "pointer-users" else None,
        network=network_settings(parts).to_dict(),
        reward=[],
    )
    if place is not None and reader is not None and model_sizes(reader.config) != record["sizes"]:
        raise InputError(f"{reader.folder} was logged with other sizes than scenario {place.name!r} has")
    start = find_start(run, record, resume, FIXED)
    evaluator, generator = make_evaluator(parts, config), make_generator(parts, config, seed)
    if isinstance(settings, SearchConfig):
        assert evaluator is not None
        found = generator if "generator" in parts else None
        search = SequenceSearch(config, evaluator, found, settings)
        parameters.save_parameters(run / PARAMETERS, search)
        write_record(run, record)
        return record
    env = None if place is None else _environment(place, users, settings)
    if GENERATOR in parts and agent != "pointer-distilled":
        generator.sharpen(settings.sharpness)
    with torch_threads(threads):
        trainer = GeneratorTrainer(record, settings, generator, evaluator, reader, env)
        if start is not None:
            trainer.restore(start)
        while (done := trainer.record["steps"]) < settings.updates:
            trainer.update()
            done += 1
            if done % settings.checkpoint_every == 0 or done == settings.updates:
                parameters.save_checkpoint(run, generator, trainer.record, trainer.optimizer)
            if progress:
                progress(done, settings.updates, f"reward {np.mean(trainer.record['reward'][-20:]):.3f}")
    parameters.save_parameters(run / PARAMETERS, generator)
    write_record(run, trainer.record)
    return trainer.record


def _environment(scenario: Scenario, users: str, settings: PolicyGradientConfig) -> EdgeFeedSlateVectorEnv:
    rows = settings.batch_size * (settings.samples + settings.self_critical)
    return EdgeFeedSlateVectorEnv(rows, scenario=scenario, users=users, split="train", copy=False)
