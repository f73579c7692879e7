"""Fine-tune ESAN end to end: policy gradients through the planner, with users who answer whole sessions.

A planned matrix adds up, but the true effects of two cards close to each other do not, and a prediction
does not know what a card does to the rest of the session. Here plans are sampled by perturb-and-plan:
Gaussian noise is added to the matrix of gains, and the exact planner plans for the result. The plan's
density has no closed form, but that of the perturbed matrix has: grad log N(x; mu, sigma^2) = (x - mu) /
sigma^2 . grad mu (the score function; Williams, 1992), whatever the planner does with x. Its weight is the
return that followed a plan in the session, minus the return in the other copies of the session
(leave-one-out, common random numbers).

The number of cards is not to be learned, since the price decides it. So the part of the return that goes
with the number of cards (a regression over all plans) is removed, and the price is moved after every update
to hold the target share of cards. What was learned from logs is worth more than a noisy gradient, so a
penalty is added: the divergence KL(N(mu, sigma^2), N(mu_0, sigma^2)) = (mu - mu_0)^2 / (2 sigma^2) from the
matrix mu_0 of the network that training started from.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from edgerec_gym.agents.insertion.esan import ESAN
from edgerec_gym.agents.insertion.network_values import NetworkValues, predict_values
from edgerec_gym.agents.insertion.policies import InsertionPlan, insertions, net_gains, solve
from edgerec_gym.agents.insertion.train import AGENT as INSERTER
from edgerec_gym.agents.insertion.train import TUNED as AGENT
from edgerec_gym.agents.insertion.train import load_network
from edgerec_gym.agents.insertion.values import cloud_order
from edgerec_gym.agents.learning import parameters
from edgerec_gym.agents.learning.epochs import Report
from edgerec_gym.agents.learning.rollouts import advantages, play_plans
from edgerec_gym.agents.learning.tensors import torch_threads
from edgerec_gym.compiled.random_stream import CLI_SEED_STRIDE
from edgerec_gym.config import Config, bounded
from edgerec_gym.errors import InputError
from edgerec_gym.files import make_folder, one_writer
from edgerec_gym.policy import Observation
from edgerec_gym.runs import (
    PARAMETERS,
    check_seed,
    find_start,
    model_sizes,
    new_record,
    read_run,
    write_record,
)
from edgerec_gym.scenario import Scenario
from edgerec_gym.slate_env import EdgeFeedSlateVectorEnv

MOMENTS_AT_ONCE = 256  # moments in one pass of a gradient step, to bound memory
FIXED = ("agent", "based_on", "scenario", "users", "seed", "hyper", "sizes")  # in a resumed run
KEYS = ("user", "pool", "cards", "exposures", "page_views", "screen", "context")


@dataclass(frozen=True)
class ESANGradientConfig(Config):
    """Hyper-parameters of the fine-tuning."""

    updates: int = bounded(100, 1, 1_000_000)
    learning_rate: float = bounded(2e-4, 1e-7, 1.0)  # learning rate of Adam
    batch_size: int = bounded(96, 1, 1_000_000)  # sessions in an update
    samples: int = bounded(4, 2, 1000)  # copies of each session, with plans of their own
    noise: float = bounded(0.04, 1e-6, 1e3)  # sigma, standard deviation of the perturbation, reward units
    share: float = bounded(0.19, 0.0, 1.0)  # target share of cards among the slots that are seen
    price: float = bounded(0.05, -1e3, 1e3)  # initial price of a card that is seen
    price_step: float = bounded(0.1, 0.0, 1e3)  # change of the price in an update, per unit of excess share
    anchor: float = bounded(0.1, 0.0, 1e6)  # weight of the divergence from the initial network
    discount: float = bounded(0.9, 0.0, 1.0)  # discount per slot of what users do later
    max_grad_norm: float = bounded(1.0, 1e-3, 1e6)
    checkpoint_every: int = bounded(25, 1, 1_000_000)  # number of updates between checkpoints


class Moments(NamedTuple):
    """Plans made at R moments.

    Attributes:
        observation: keys of arrays (R, ...).
        order: (R, N) int64 order in which the pool is shown.
        direction: (R, M, T) float32 standard normal perturbation, 0 where no card can stand.
        advantage: (R,) float32.
    """

    observation: Observation
    order: np.ndarray
    direction: np.ndarray
    advantage: np.ndarray


@one_writer("out")
def train(
    out: str | Path,
    *,
    agent: str = AGENT,
    based_on: Sequence[str | Path],
    scenario: str | Scenario = "default",
    users: str = "learned",
    seed: int = 0,
    resume: bool = False,
    threads: int = 1,
    progress: Report | None = None,
    **hyper: Any,
) -> dict[str, Any]:
    """Fine-tune a trained ESAN and write the run's folder.

    Args:
        out: the run's folder.
        agent: the agent's name.
        based_on: one run of the agent esan.
        scenario: a shipped name, a folder, or a Scenario.
        users: the user model that answers, "learned" or "synthetic".
        seed: seed of sessions and perturbations.
        resume: continue from the last checkpoint in `out`, if there is one.
        threads: torch threads.
        progress: called with (updates done, updates in all, text).
        **hyper: fields of :class:`ESANGradientConfig`.

    Returns:
        The content of policy.json.

    Raises:
        InputError: unknown names, values out of range, a missing or incompatible run, or `out` is not
            writable or in use by another run.
    """
    check_seed(seed)
    settings = ESANGradientConfig.from_dict(hyper)
    if len(based_on) != 1:
        raise InputError(f"agent {AGENT!r} starts from one run of {INSERTER!r}: give it with --based-on")
    loaded = scenario if isinstance(scenario, Scenario) else Scenario.load(scenario)
    network = load_network(based_on[0], loaded.config)
    earlier = read_run(based_on[0]).record
    run = make_folder(out)
    record = new_record(
        agent,
        "mix",
        seed=seed,
        settings=settings,
        sizes=model_sizes(loaded.config),
        based_on={key: earlier[key] for key in ("agent", "seed", "steps", "logs")},
        scenario=loaded.name,
        users=users,
        network=earlier["hyper"],
        identified=earlier["identified"],
        price=settings.price,
        reward=[],
    )
    start = find_start(run, record, resume, FIXED)
    n_rows = settings.batch_size * settings.samples
    env = EdgeFeedSlateVectorEnv(n_rows, scenario=loaded, users=users, split="train", copy=False)
    with torch_threads(threads):
        trainer = ESANGradient(network, record, settings, env)
        if start is not None:
            trainer.restore(start)
        while (done := trainer.record["steps"]) < settings.updates:
            trainer.update()
            done += 1
            if done % settings.checkpoint_every == 0 or done == settings.updates:
                parameters.save_checkpoint(run, network, trainer.record, trainer.optimizer)
            if progress:
                progress(done, settings.updates, f"reward {np.mean(trainer.record['reward'][-20:]):.3f}")
    parameters.save_parameters(run / PARAMETERS, network)
    write_record(run, trainer.record)
    return trainer.record


class ESANGradient:
    """Fine-tuning of one ESAN.

    Args:
        network: trained in place.
        record: content of policy.json; steps and reward are updated.
        settings: hyper-parameters.
        env: environment with batch_size x samples rows.
    """

    def __init__(
        self,
        network: ESAN,
        record: dict[str, Any],
        settings: ESANGradientConfig,
        env: EdgeFeedSlateVectorEnv,
    ) -> None:
        self.network, self.record, self.settings, self.env = network, record, settings, env
        self.start = copy.deepcopy(network).requires_grad_(False)
        trained = [p for p in network.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(trained, lr=settings.learning_rate)
        self.plan = InsertionPlan(AGENT, NetworkValues(network), env.config)

    def update(self) -> None:
        """Play sessions with sampled plans, and take one gradient step."""
        s, done = self.settings, self.record["steps"]
        moments, reward, share = self.rollouts(np.random.default_rng([self.record["seed"], done]))
        size = np.sqrt(np.mean(moments.advantage**2)) + 1e-8
        for at in range(0, len(moments.advantage), MOMENTS_AT_ONCE):
            part = _take(moments, slice(at, at + MOMENTS_AT_ONCE))
            loss = self.loss(part, size)
            (loss / len(moments.advantage)).backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), s.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        price = self.record["price"] + s.price_step * (share - s.share)
        rewards = [*self.record["reward"], reward]
        self.record = self.record | {"steps": done + 1, "reward": rewards, "price": price}

    def loss(self, moments: Moments, size: float = 1.0) -> Tensor:
        """Policy-gradient loss plus penalty, summed over moments; advantages are divided by `size`."""
        s, n_slots = self.settings, moments.direction.shape[2]
        cards, _, _ = predict_values(self.network, moments.observation, moments.order, n_slots)
        with torch.no_grad():
            before, _, _ = predict_values(self.start, moments.observation, moments.order, n_slots)
        direction, advantage = torch.from_numpy(moments.direction), torch.from_numpy(moments.advantage / size)
        gain = (advantage * (direction * cards).sum((1, 2))).sum() / s.noise
        divergence = ((cards - before) * (direction != 0)).square().sum() / (2 * s.noise**2)
        return s.anchor * divergence - gain

    def rollouts(self, generator: np.random.Generator) -> tuple[Moments, float, float]:
        """Play a batch of sessions, several copies each: all plans, mean session reward, share of cards."""
        s, env, price = self.settings, self.env, self.record["price"]
        first = self.record["steps"] * s.batch_size % (CLI_SEED_STRIDE - s.batch_size)
        seeds = self.record["seed"] * CLI_SEED_STRIDE + first + np.arange(s.batch_size)
        env.reset(seed=np.repeat(seeds, s.samples).tolist())

        def planner(observation: Observation, live: np.ndarray) -> tuple[dict[str, np.ndarray], Any]:
            _, values = self.plan.values(observation)
            gain = net_gains(values, price)
            noise = perturbation(generator, gain.shape)
            perturbed = gain + s.noise * values.exposure[:, None] * noise  # s.noise has the unit of `cards`
            slots = solve(perturbed, values.exposure, observation, env.config, self.plan.solver)
            direction = np.where(np.isfinite(gain), noise, 0.0).astype(np.float32)
            kept = {key: observation[key] for key in KEYS if key in observation}
            return {"insert": insertions(slots, env.config.slate_size)}, (kept, direction)

        reward, cards, played = play_plans(env, planner)
        copies = (s.batch_size, s.samples, -1)
        advantage, more_cards = (
            advantages(values.reshape(copies), s.discount).reshape(len(reward), -1)
            for values in (reward, cards)
        )
        observations = [part.kept[0] for part in played]
        observation = {key: np.concatenate([o[key] for o in observations]) for key in observations[0]}
        gained, inserted = (
            np.concatenate([values[part.rows, part.position[:, 0]] for part in played])
            for values in (advantage, more_cards)
        )
        return (
            Moments(
                observation,
                cloud_order(observation),
                np.concatenate([part.kept[1] for part in played]),
                at_equal_share(gained, inserted).astype(np.float32),
            ),
            float(reward.sum(-1).mean()),
            float(cards.sum() / env.batch.arrays.exposures.sum()),
        )

    def restore(self, folder: Path) -> None:
        """Continue from a checkpoint."""
        parameters.restore_checkpoint(folder, self.network, self.optimizer)
        earlier = read_run(folder).record
        self.record = self.record | {key: earlier[key] for key in ("steps", "reward", "price")}


def at_equal_share(gained: np.ndarray, inserted: np.ndarray) -> np.ndarray:
    """Advantages (R,) without the part that goes with the number of inserted cards (R,): a regression."""
    total = float(inserted @ inserted)
    return gained - (gained @ inserted) / total * inserted if total > 0 else gained


def perturbation(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Draw standard normal noise (B, M, T): one draw per card plus one per slot.

    M + T draws say as much about which card and which slot as M x T, and leave less noise in gradients.
    """
    n, n_cards, n_slots = shape
    of_card, of_slot = generator.standard_normal((n, n_cards, 1)), generator.standard_normal((n, 1, n_slots))
    return (of_card + of_slot) / np.sqrt(2)


def _take(moments: Moments, part: slice) -> Moments:
    observation = {key: value[part] for key, value in moments.observation.items()}
    return Moments(observation, moments.order[part], moments.direction[part], moments.advantage[part])
