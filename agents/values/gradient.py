"""Fine-tune distilled values by policy gradient on whole sessions of learned users (PPO).

Distilled values look one card ahead. What a card does to its neighbours, to the user's interest and to the
time until the user leaves shows in the rest of the session only. Here the network plays stochastically: a
card is drawn with a probability in proportion to its value to the power of 1 / temperature, among the best
few. The clipped objective (Schulman et al., 2017) then raises what was followed by more reward than expected.
Rewards are the probabilities that the users themselves report, not drawn clicks.

What was to be expected is told by a critic. It may also see what only the learned users know: which member
of the ensemble answers, and its memory of the user (asymmetric actor-critic; Pinto et al., RSS'18). Without
a critic, it is the mean return of other copies of the session (leave-one-out, common random numbers).

The network with the best value on members held out is kept, the one that training started from included.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edgerec_gym.errors import InputError, MissingExtraError

try:
    import torch
    from torch import Tensor, nn
except ImportError:
    raise MissingExtraError("training", "train") from None

from edgerec_gym.agents.learning.epochs import Report
from edgerec_gym.agents.learning.rollouts import discounted, leave_one_out
from edgerec_gym.agents.learning.tensors import torch_seed, torch_threads
from edgerec_gym.agents.perception.perception import occupied
from edgerec_gym.agents.values.network import ValueNetwork
from edgerec_gym.agents.values.play import LEAST_VALUE, LabelledSessions, play_labelled, session_states
from edgerec_gym.agents.values.teacher import AskedUsers
from edgerec_gym.agents.values.train import (
    AGENT as WARM_START,
)
from edgerec_gym.agents.values.train import (
    FIXED,
    UPLIFT,
    ValueTrainer,
    find_members,
    keep_estimator,
    load_network,
    make_optimizer,
    run_updates,
)
from edgerec_gym.compiled.random_stream import CLI_SEED_STRIDE
from edgerec_gym.config import Config, bounded
from edgerec_gym.files import make_folder, one_writer
from edgerec_gym.registration import make_feeds
from edgerec_gym.runs import check_seed, find_start, model_sizes, new_record, read_run
from edgerec_gym.scenario import Scenario

AGENT = "values-pg"
FIRST = CLI_SEED_STRIDE // 2  # first session of a seed, beyond those of the warm start


@dataclass(frozen=True)
class GradientConfig(Config):
    """Hyper-parameters of the fine-tuning."""

    updates: int = bounded(60, 1, 1_000_000)  # times that sessions are played and learned from
    sessions: int = bounded(256, 1, 100_000)  # sessions played per update
    passes: int = bounded(2, 1, 100)  # passes over each update's sessions
    batch_size: int = bounded(64, 1, 100_000)  # sessions per gradient step
    candidates: int = bounded(8, 2, 1000)  # best candidates of a slot that a card is drawn from
    temperature: float = bounded(0.3, 1e-3, 100.0)  # of the draw, on log values
    learning_rate: float = bounded(3e-4, 1e-7, 1.0)  # of Adam
    final_rate: float = bounded(0.1, 0.0, 1.0)  # share of it left in the last update; linear decay
    max_grad_norm: float = bounded(0.5, 1e-3, 1e6)
    discount: float = bounded(0.95, 0.0, 1.0)  # per slot
    trace: float = bounded(0.9, 0.0, 1.0)  # lambda of generalised advantages (Schulman et al., 2016)
    clip: float = bounded(0.2, 1e-3, 10.0)  # largest change of a probability's ratio that is rewarded
    critic: Literal["privileged", "plain", "none"] = "privileged"  # what it sees; "none": other copies
    copies: int = bounded(4, 2, 1000)  # of a session, if there is no critic
    critic_rate: float = bounded(3e-3, 1e-7, 1.0)  # learning rate of the critic
    warm_up: int = bounded(2, 0, 1_000_000)  # first updates, in which only the critic learns
    held_out: int = bounded(1, 0, 100)  # members never learned from: they select the best network
    select_every: int = bounded(10, 1, 1_000_000)  # updates between two tests on the members held out
    select_sessions: int = bounded(4000, 1, 1_000_000)  # sessions of such a test


@one_writer("out")
def train(
    out: str | Path,
    *,
    agent: str = AGENT,
    based_on: Sequence[str | Path],
    scenario: str | Scenario = "default",
    seed: int = 0,
    resume: bool = False,
    threads: int = 1,
    progress: Report | None = None,
    **hyper: Any,
) -> dict[str, Any]:
    """Fine-tune a run of distilled-values on the split `train` of learned users, and write the run's folder.

    Args:
        out: the run's folder.
        agent: the agent's name.
        based_on: one run of the agent distilled-values; its track is learned.
        scenario: a shipped name, a folder, or a Scenario, with learned users.
        seed: seed of sessions and draws.
        resume: continue from the last checkpoint in `out`, if there is one.
        threads: torch threads.
        progress: called with (updates done, updates in all, text).
        **hyper: fields of :class:`GradientConfig`.

    Returns:
        The content of policy.json.

    Raises:
        InputError: unknown names, values out of range, a missing or incompatible run, no member left to learn
            from, or `out` is not writable or in use by another run.
    """
    check_seed(seed)
    settings = GradientConfig.from_dict(hyper)
    if len(based_on) != 1 or (warm := read_run(based_on[0])).agent != WARM_START:
        raise InputError(f"agent {AGENT!r} starts from one run of {WARM_START!r}: give it with --based-on")
    loaded = scenario if isinstance(scenario, Scenario) else Scenario.load(scenario)
    network = load_network(warm, loaded.config)
    earlier = warm.record
    margin = earlier.get("price", network.settings.margin)
    run = make_folder(out)
    record = new_record(
        agent,
        earlier["track"],
        seed=seed,
        settings=settings,
        sizes=model_sizes(loaded.config),
        scenario=loaded.name,
        users="learned",
        based_on=[{key: earlier[key] for key in ("agent", "seed", "steps", "hyper")}],
        network=earlier["hyper"],
        price=margin,
        loss=[],
        reward=[],
        held_out=[],
    )
    start = find_start(run, record, resume, FIXED)
    if (warm.root / UPLIFT).is_dir():
        keep_estimator(warm.root / UPLIFT, run)
    with torch_threads(threads):
        trainer = GradientTrainer(network, record, settings, loaded)
        run_updates(run, trainer, start, progress)
    return trainer.record


class Critic(nn.Module):
    """The expected rest of a session.

    Args:
        n_state: columns of the network's state.
        n_hidden: columns of what only the users know; 0 leaves it out.
        width: of the layers.
    """

    def __init__(self, n_state: int, n_hidden: int, width: int = 64) -> None:
        super().__init__()
        self.n_hidden = n_hidden
        self.hidden = nn.LayerNorm(n_hidden) if n_hidden else nn.Identity()
        self.layers = nn.Sequential(
            nn.Linear(n_state + n_hidden, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, 1),
        )

    def forward(self, state: Tensor, hidden: Tensor) -> Tensor:
        """Return reward units (...) from states (..., H) and what the users know (..., P)."""
        told: Tensor = self.layers(torch.cat((state, self.hidden(hidden[..., : self.n_hidden])), -1))
        return told.squeeze(-1)


class GradientTrainer(ValueTrainer):
    """Fine-tuning of one network.

    Args:
        network: the warm start; trained in place.
        record: content of policy.json; steps, loss, reward and held_out are updated.
        settings: hyper-parameters.
        scenario: the scenario whose learned users play.
    """

    settings: GradientConfig  # type: ignore[assignment]

    def __init__(
        self, network: ValueNetwork, record: dict[str, Any], settings: GradientConfig, scenario: Scenario
    ) -> None:
        self.record, self.settings, self.scenario, self.seed = record, settings, scenario, record["seed"]
        self.track, self.margin = record["track"], record["price"]
        self.members, self.others = find_members(scenario, settings.held_out)
        n_candidates = min(settings.candidates, scenario.config.pool_size)
        self.users = AskedUsers(scenario, n_candidates, self.members)
        self.env = make_feeds(
            self.track, settings.sessions, scenario=scenario, users=self.users, split="train", copy=False
        )
        self.network, self.best = network, copy.deepcopy(network)
        with torch_seed(self.seed):
            n_hidden = self.users.n_hidden if settings.critic == "privileged" else 0
            self.critic = Critic(network.settings.hidden, n_hidden)
        self.training: nn.Module = nn.ModuleDict({"network": network, "critic": self.critic})
        self.optimizer = make_optimizer(
            (network, settings.learning_rate), (self.critic, settings.critic_rate)
        )

    def update(self) -> None:
        """Play sessions, and take the gradient steps of one update."""
        s, done = self.settings, self.record["steps"]
        if not done:
            self.select()  # the warm start is a candidate itself
        generator = np.random.default_rng([self.seed, done, 1])
        copies = s.copies if s.critic == "none" else 1
        n_seeds = -(-s.sessions // copies)
        first = FIRST + done * n_seeds % (CLI_SEED_STRIDE - FIRST - n_seeds)
        seeds = np.repeat(self.seed * CLI_SEED_STRIDE + first + np.arange(n_seeds), copies)[: s.sessions]
        played = play_labelled(
            self.network,
            self.env,
            self.users,
            seeds,
            best=1.0,
            noise=np.full(s.sessions, s.temperature),
            generator=generator,
            margin=self.margin,
            sample=True,
        )
        expected = self._expected(played)
        if s.critic == "none":
            wanted = discounted(played.earned.numpy(), s.discount)[:, :-1]
            advantage = against_copies(wanted, copies)
        else:
            advantage = generalised(played.earned.numpy(), expected, s.discount, s.trace)
            wanted = advantage + expected
        acted = played.acted.numpy()
        usual, spread = advantage[acted].mean(), advantage[acted].std()
        advantage = np.where(acted, (advantage - usual) / (spread + 1e-8), 0.0)
        targets = torch.from_numpy(np.stack([advantage, wanted]).astype(np.float32))
        self.set_rate()

        def loss(at: np.ndarray) -> Tensor:
            some = played.take(at)
            cut = targets[:, torch.from_numpy(at), : some.acted.shape[1]]
            return self._loss(some, cut[0], cut[1], only_critic=done < s.warm_up)

        losses = [one for _ in range(s.passes) for one in self.descend(played, loss, generator)]
        self.note(losses, played)

    def _expected(self, played: LabelledSessions) -> np.ndarray:
        """Return what the critic expects at every slot, (B, T); 0 where no card was placed."""
        found = np.zeros(played.acted.shape, np.float32)
        with torch.inference_mode():
            for at in np.array_split(np.arange(len(played)), -(-len(played) // self.settings.batch_size)):
                some = played.take(at)
                state, _ = session_states(self.network, some)
                found[at, : state.shape[1]] = self.critic(state, some.hidden).numpy()
        return np.where(played.acted.numpy(), found, 0.0)

    def _loss(self, some: LabelledSessions, advantage: Tensor, wanted: Tensor, only_critic: bool) -> Tensor:
        """Return the clipped objective's loss plus the critic's squared error."""
        s, at = self.settings, some.acted
        state, vectors = session_states(self.network, some)
        loss = state.new_zeros(())
        if s.critic != "none":
            missed = self.critic(state[at].detach(), some.hidden[at]) - wanted[at]
            loss = missed.square().mean()
        if only_critic and s.critic != "none":
            return loss
        log_probability = self._log_probability(some.candidates[at], state[at], vectors[at])
        ratio = torch.exp(log_probability - some.drawn[at])
        clipped = ratio.clamp(1 - s.clip, 1 + s.clip)
        return loss - torch.minimum(ratio * advantage[at], clipped * advantage[at]).mean()

    def _log_probability(self, candidates: Tensor, state: Tensor, vectors: Tensor) -> Tensor:
        """Return the log probability (R,) that the first of the candidates (R, C, F + T) is drawn."""
        value = self.network.value(self.network.logits(self.network.cards(candidates), state, vectors))
        is_card = candidates[..., self.network.config.n_item_features + 1 :].any(-1)
        worth = (value - self.margin * is_card).clamp(min=LEAST_VALUE)
        logits = (worth.log() / self.settings.temperature).masked_fill(~occupied(candidates), -torch.inf)
        return torch.log_softmax(logits, -1)[:, 0]


def generalised(earned: np.ndarray, expected: np.ndarray, discount: float, trace: float) -> np.ndarray:
    """Return generalised advantages (B, T); `expected` (B, T) is 0 after a session's end."""
    after = np.pad(expected[:, 1:], ((0, 0), (0, 1)))
    return discounted(earned + discount * after - expected, discount * trace)[:, :-1]


def against_copies(returns: np.ndarray, copies: int) -> np.ndarray:
    """Return returns (B, T) less the mean of the other copies of the session; B in groups of `copies`.

    A last group of one has nothing to compare with, and gets 0.
    """
    groups = [returns[first : first + copies] for first in range(0, len(returns), copies)]
    return np.concatenate(
        [leave_one_out(group[None])[0] if len(group) > 1 else np.zeros_like(group) for group in groups]
    )
