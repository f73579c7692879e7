"""Train the EdgeRec agent: from separately trained parts to one network, jointly, on learned users.

1. *Teach*. The parts play learned users together. The network takes perception, attention and the matrix of
   values from ESAN. The order head learns the re-ranker's scores, and the request head the uplift model's
   gain, at the moments that the parts have met (distillation).
2. *Play*. Policy gradient: at each plan, Gaussian noise is added to the scores, to the values of the cards
   and to the gain of a request, and the agent plans for the result (perturb and plan, as in
   :mod:`edgerec_gym.agents.insertion.gradient`). The gradient is the score function of all three, weighted by
   the return that followed in the session minus that in the other copies of the session (leave-one-out,
   common random numbers). The divergence from the taught network is a penalty. Perception is not trained.
3. *Select*. Every few updates the agent plays held-out sessions of learned users. The best network is kept,
   the taught one included.
4. *Compare*. The value of whole plans is learned from rollouts of the best network
   (:mod:`edgerec_gym.agents.edgerec.values`).

A run is a folder as in :mod:`edgerec_gym.runs`, plus rules.toml.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgerec_gym.agents.edgerec.agent import EdgeRec
from edgerec_gym.agents.edgerec.judges import JointNetwork, Parts, load_parts
from edgerec_gym.agents.edgerec.load import AGENT, EdgeRecConfig, make_network
from edgerec_gym.agents.edgerec.network import EdgeRecNetwork
from edgerec_gym.agents.edgerec.rollouts import Explorer, Moments, Teachers, joined, play_sessions
from edgerec_gym.agents.edgerec.rules import FILE, Rules, load_rules
from edgerec_gym.agents.edgerec.values import FEATURES, N_CANDIDATES, Branch, PlanValues, fit
from edgerec_gym.agents.learning import parameters
from edgerec_gym.agents.learning.epochs import Report
from edgerec_gym.agents.learning.rollouts import advantages, discounted
from edgerec_gym.agents.learning.tensors import torch_seed, torch_threads
from edgerec_gym.agents.rerank.reranker import ABSENT
from edgerec_gym.compiled.random_stream import CLI_SEED_STRIDE
from edgerec_gym.errors import InputError
from edgerec_gym.files import make_folder, one_writer
from edgerec_gym.policy import Policy
from edgerec_gym.registration import make_feeds
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
from edgerec_gym.vector_env import EdgeFeedVectorEnv

BATCH, SCALE_SAMPLE, LEAST_SCALE, LEAST_SPREAD = 256, 4096, 0.01, 1e-6


def teach(network: EdgeRecNetwork, moments: Moments, settings: EdgeRecConfig, seed: int) -> list[float]:
    """Fit the order head and the request head; the rest of the network is left unchanged.

    Args:
        network: trained in place.
        moments: moments with the teachers' "scores" and "gain".
        settings: hyper-parameters.
        seed: seed of the order of the moments.

    Returns:
        Mean loss of every epoch, as a share of the teachers' spread: 2 before training, 0 at best.
    """
    standardise(network, moments)
    heads = [*network.order.parameters(), *network.request.parameters()]
    heads = [parameter for parameter in heads if parameter.requires_grad]
    optimizer = torch.optim.Adam(heads, lr=settings.teach_rate)
    generator, losses = np.random.default_rng([seed, len(moments.row)]), []
    for epoch in range(settings.teach_epochs):
        for group in optimizer.param_groups:
            group["lr"] = settings.teach_rate * (1 - epoch / settings.teach_epochs)
        order, total = generator.permutation(len(moments.row)), 0.0
        for at in range(0, len(order), BATCH):
            part = moments.take(order[at : at + BATCH])
            loss = teaching_loss(network, part)
            gradients = torch.autograd.grad(loss, heads)
            for parameter, gradient in zip(heads, gradients, strict=True):
                parameter.grad = gradient
            torch.nn.utils.clip_grad_norm_(heads, settings.max_grad_norm)
            optimizer.step()
            total += loss.item() * len(part.row)
        losses.append(total / len(order))
    for parameter in heads:
        parameter.grad = None
    return losses


@torch.no_grad()
def standardise(network: EdgeRecNetwork, moments: Moments) -> None:
    """Set the input scale of the request head from the first moments."""
    some = moments.take(np.arange(min(SCALE_SAMPLE, len(moments.row))))
    head = network.request
    plain = head.plain(some.observation)
    head.mean.copy_(plain.mean(0))
    head.scale.copy_(plain.std(0).clamp(min=LEAST_SCALE))


def teaching_loss(network: EdgeRecNetwork, moments: Moments) -> Tensor:
    """Sum of the squared errors of centred scores and of gains, each as a share of the teachers' spread."""
    observation, behaviour = moments.observation, moments.behaviour
    teacher, gain = moments.told["scores"], moments.told["gain"]
    present = teacher > ABSENT / 2
    with torch.no_grad():
        coded = network.encode(observation, behaviour)
    wanted = centred(teacher, present)
    # The teacher's scores are the target of the head alone; live match is added to it.
    error = centred(network.scores(observation, coded, with_match=False), present) - wanted
    order = error.square().sum() / wanted.square().sum().clamp(min=LEAST_SPREAD)
    missed = network.request(observation, behaviour) - gain
    return order + missed.square().mean() / gain.var(correction=0).clamp(min=LEAST_SPREAD)


def centred(score: Tensor, present: Tensor) -> Tensor:
    """Subtract from scores (B, N) the mean over what is present; 0 elsewhere."""
    kept = torch.where(present, score, torch.zeros_like(score))
    mean = kept.sum(1, keepdim=True) / present.sum(1, keepdim=True).clamp(min=1)
    return (kept - mean) * present


FIXED = ("agent", "based_on", "scenario", "users", "seed", "hyper", "sizes", "rules")  # in a resumed run
TEACH, PLAY, SELECT, COMPARE = (k * CLI_SEED_STRIDE // 4 for k in range(4))  # first seeds of their sessions
ROWS = 256  # number of sessions played at once
RESULTS = ("steps", "reward", "held_out", "parts_value", "teaching_loss")  # updated during training
CAUTION = (1.0, 2.0, 1e6)  # factors of the uncertainty, tried on held-out sessions; the last never deviates
GRADIENT_ROWS = 256  # moments in one pass of a gradient step, to bound memory


@one_writer("out")
def train(
    out: str | Path,
    *,
    agent: str = AGENT,
    based_on: Sequence[str | Path],
    scenario: str | Scenario = "default",
    users: str = "learned",
    rules: Rules | str | Path | None = None,
    seed: int = 0,
    resume: bool = False,
    threads: int = 1,
    progress: Report | None = None,
    **hyper: Any,
) -> dict[str, Any]:
    """Train the agent and write the run's folder.

    Args:
        out: the run's folder.
        agent: the agent's name.
        based_on: runs of a re-ranker that scores, of esan, and of an uplift model, in any order.
        scenario: a shipped name, a folder, or a Scenario.
        users: the user model that answers, "learned" or "synthetic".
        rules: rules that the agent obeys in training and, as rules.toml in the folder, afterwards; a file, or
            None for the defaults.
        seed: seed of sessions, noise and initial parameters.
        resume: continue from the last checkpoint in `out`, if there is one.
        threads: torch threads.
        progress: called with (updates done, updates in all, text).
        **hyper: fields of :class:`EdgeRecConfig`.

    Returns:
        The content of policy.json.

    Raises:
        InputError: unknown names, values out of range, missing or incompatible parts, bad rules, or `out` is
            not writable or in use by another run.
    """
    check_seed(seed)
    settings = EdgeRecConfig.from_dict(hyper)
    rules = load_rules(rules) if isinstance(rules, (str, Path)) else rules or Rules()
    if rules.decide.joint:
        raise InputError("[decide] joint is learned by this training: train without it, then switch it on")
    loaded = scenario if isinstance(scenario, Scenario) else Scenario.load(scenario)
    parts = load_parts([Path(folder) for folder in based_on], loaded.config, threads)
    rules.feed(loaded.config)  # fails early if the rules do not fit
    if not parts.esan.settings.behaviour:
        raise InputError("agent 'edgerec' takes its perception from an esan with behaviour = 1")
    run = make_folder(out)
    earlier = [read_run(folder).record for folder in based_on]
    record = new_record(
        agent,
        "joint",
        seed=seed,
        settings=settings,
        sizes=model_sizes(loaded.config),
        based_on=[{key: part[key] for key in ("agent", "seed", "steps", "hyper")} for part in earlier],
        scenario=loaded.name,
        users=users,
        network=parts.esan.settings.to_dict(),
        identified=list(parts.esan.identified),
        rules=rules.to_toml(),
        reward=[],
        held_out=[],
    )
    start = find_start(run, record, resume, FIXED)
    with torch_threads(threads):
        trainer = EdgeRecTrainer(parts, record, settings, loaded, rules)
        if start is None:
            trainer.teach()
            trainer.select()
            parameters.save_checkpoint(run, trainer.best, trainer.record, trainer.optimizer, trainer.both())
        else:
            trainer.restore(start)
        while (done := trainer.record["steps"]) < settings.updates:
            trainer.update()
            done += 1
            if done % settings.select_every == 0 or done == settings.updates:
                trainer.select()
                parameters.save_checkpoint(
                    run, trainer.best, trainer.record, trainer.optimizer, trainer.both()
                )
            if progress:
                best = max(figures["value"] for figures in trainer.record["held_out"])
                progress(done, settings.updates, f"reward {best:.3f} on held-out sessions")
        trainer.compare()
    parameters.save_parameters(run / PARAMETERS, trainer.best)
    rules.save(run / FILE)
    write_record(run, trainer.record)
    return trainer.record


class EdgeRecTrainer:
    """Training of one agent.

    Args:
        parts: teachers.
        record: content of policy.json; steps, reward and held_out are updated.
        settings: hyper-parameters.
        scenario: the scenario whose users answer.
        rules: rules that the agent obeys.

    Attributes:
        network: after the last update.
        taught: before the first update.
        best: the best one on held-out sessions.
    """

    def __init__(
        self, parts: Parts, record: dict[str, Any], settings: EdgeRecConfig, scenario: Scenario, rules: Rules
    ) -> None:
        self.parts, self.record, self.settings, self.rules = parts, record, settings, rules
        self.scenario, self.seed = scenario, record["seed"]
        with torch_seed(self.seed):
            self.network = make_network(copy.deepcopy(parts.esan), settings)
        self.network.esan.perception.requires_grad_(False)
        self.best, self.taught = (copy.deepcopy(self.network) for _ in range(2))
        network = self.network
        apart = {id(network.match), id(network.price), id(network.effect)}
        heads = [p for p in network.parameters() if p.requires_grad and id(p) not in apart]
        self.optimizer = torch.optim.Adam(
            [
                {"params": heads, "lr": settings.learning_rate},
                {"params": [network.match], "lr": settings.match_rate},
                {"params": [network.price, network.effect], "lr": settings.price_rate},
            ]
        )

    def both(self) -> torch.nn.ModuleDict:
        """The networks that a resumed training needs besides the best one."""
        return torch.nn.ModuleDict({"network": self.network, "taught": self.taught})

    def restore(self, folder: Path) -> None:
        """Continue from a checkpoint."""
        parameters.restore_checkpoint(folder, self.best, self.optimizer, self.both())
        earlier = read_run(folder).record
        self.record = self.record | {key: earlier[key] for key in RESULTS}

    def agent(self, judge: Any, **options: Any) -> EdgeRec:
        """Return the agent with a judge."""
        return EdgeRec(judge, self.scenario.config, self.rules, **options)

    def play(self, policy: Policy, first: int, sessions: int, copies: int = 1) -> np.ndarray:
        """Reward at every slot of some sessions, (sessions, copies, slots)."""
        env = self._env(sessions * copies)
        seeds = np.repeat(self.seed * CLI_SEED_STRIDE + first + np.arange(sessions), copies)
        return play_sessions(policy, env, seeds).reshape(sessions, copies, -1)

    def _env(self, rows: int) -> EdgeFeedVectorEnv:
        return make_feeds(
            "joint", rows, scenario=self.scenario, users=self.record["users"], split="train", copy=False
        )

    def teach(self) -> None:
        """Let the parts play, and fit the heads to their outputs."""
        s, found = self.settings, []
        judge = Teachers(self.network, self.parts)
        for first in range(0, s.teach_sessions, ROWS):
            self.play(self.agent(judge), TEACH + first, min(ROWS, s.teach_sessions - first))
            found += judge.moments
        losses = teach(self.network, joined(found), s, self.seed)
        self.taught.load_state_dict(self.network.state_dict())
        self.record = self.record | {"teaching_loss": losses}

    # --- play -----------------------------------------------------------------------------------------

    def update(self) -> None:
        """Play sessions with noise, and take one gradient step."""
        s, done = self.settings, self.record["steps"]
        generator = np.random.default_rng([self.seed, PLAY, done])
        judge = Explorer(self.network, generator, (s.order_noise, s.card_noise, s.request_noise))
        first = PLAY + done * s.batch_size % (SELECT - PLAY - s.batch_size)
        earned = self.play(self.agent(judge), first, s.batch_size, s.samples)
        moments = joined(judge.moments)
        ahead = advantages(earned, s.discount).reshape(s.batch_size * s.samples, -1)
        advantage = ahead[moments.row, moments.slot]
        size = np.sqrt(np.mean(advantage**2)) + 1e-8
        chosen = generator.permutation(len(advantage))[: s.moments]
        for at in range(0, len(chosen), GRADIENT_ROWS):
            index = chosen[at : at + GRADIENT_ROWS]
            loss = self.loss(
                moments.take(index), torch.from_numpy((advantage[index] / size).astype(np.float32))
            )
            (loss / len(chosen)).backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), s.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        reward = [*self.record["reward"], float(earned.sum(-1).mean())]
        self.record = self.record | {"steps": done + 1, "reward": reward}

    def loss(self, moments: Moments, advantage: Tensor) -> Tensor:
        """Policy-gradient loss plus penalty, summed over moments; `advantage` (R,)."""
        s, told = self.settings, moments.told
        now = self._means(self.network, moments)
        with torch.no_grad():
            before = self._means(self.taught, moments)
        noises = (told["order_noise"], told["card_noise"], told["request_noise"][:, None])
        score, divergence = torch.zeros(len(advantage)), torch.zeros(())
        for mean, was, noise, sigma in zip(
            now, before, noises, (s.order_noise, s.card_noise, s.request_noise), strict=True
        ):
            score = score + (noise * mean).flatten(1).sum(1) / sigma
            divergence = divergence + ((mean - was) * (noise != 0)).square().sum() / (2 * sigma**2)
        return s.anchor * divergence - (advantage * score).sum()

    def _means(self, network: EdgeRecNetwork, moments: Moments) -> tuple[Tensor, Tensor, Tensor]:
        """Outputs of the heads: scores (R, N), cards beyond their price (R, M, T), gain (R, 1)."""
        observation, behaviour = moments[:2]
        coded = network.encode(observation, behaviour)
        score = network.scores(observation, coded)
        score = torch.where(score > ABSENT / 2, score, torch.zeros_like(score))
        n_slots = moments.told["card_noise"].shape[2]
        matrix = network.matrix(observation, coded, moments.told["order"].long(), n_slots)
        return score, matrix.cards - network.prices()[:, None], network.gain(observation, behaviour)[:, None]

    # --- select, compare ------------------------------------------------------------------------------

    def held_out(self, judge: Any) -> np.ndarray:
        """Reward (sessions,) of the agent, without noise, in held-out sessions."""
        return self.held_out_of(self.agent(judge))

    def held_out_of(self, policy: EdgeRec) -> np.ndarray:
        """Reward (sessions,) of a policy in held-out sessions."""
        s, values = self.settings, []
        for first in range(0, s.select_sessions, ROWS):
            values.append(self.play(policy, SELECT + first, min(ROWS, s.select_sessions - first)).sum((1, 2)))
        return np.concatenate(values)

    def select(self) -> None:
        """Keep the network if it is the best one so far; the first time, play the parts too."""
        value = float(self.held_out(JointNetwork(self.network)).mean())
        earlier = self.record["held_out"]
        if not earlier:
            self.record = self.record | {"parts_value": float(self.held_out(self.parts).mean())}
        if value > max((figures["value"] for figures in earlier), default=-np.inf):
            self.best.load_state_dict(self.network.state_dict())
        figures = {"steps": self.record["steps"], "value": value}
        self.record = self.record | {"held_out": [*earlier, figures]}

    def compare(self) -> None:
        """Learn the value of whole plans, from rollouts that differ by one plan."""
        s = self.settings
        if not s.compare_sessions:
            return
        told, worth = [], []
        generator = np.random.default_rng([self.seed, COMPARE])
        for first in range(0, s.compare_sessions, ROWS):
            sessions = min(ROWS, s.compare_sessions - first)
            branch = Branch(np.repeat(generator.integers(0, 8, sessions), N_CANDIDATES))
            policy = self.agent(JointNetwork(self.best), choose=branch)
            earned = self.play(policy, COMPARE + first, sessions, N_CANDIDATES)
            ahead = discounted(earned.reshape(len(branch.at), -1), s.compare_discount)
            # All copies are one session until they branch, at the same slot.
            there = branch.slot.reshape(sessions, N_CANDIDATES)[:, 0] >= 0
            at = ahead[np.arange(len(ahead)), np.maximum(branch.slot, 0)].reshape(sessions, N_CANDIDATES)
            told.append(branch.told[::N_CANDIDATES][there])
            worth.append(at[there])
        found = fit(np.concatenate(told), np.concatenate(worth), s.compare_penalty)
        by_caution = {}
        for caution in CAUTION:
            plans = PlanValues(found.weights, caution * found.spread)
            policy = self.agent(
                JointNetwork(self.best), choose=lambda rows, told, slots, plans=plans: plans.best(told)
            )
            by_caution[caution] = float(self.held_out_of(policy).mean())
        caution = max(reversed(CAUTION), key=by_caution.__getitem__)  # ties go to the most cautious
        with torch.no_grad():
            self.best.plan.copy_(torch.from_numpy(found.weights))
            self.best.plan_spread.copy_(torch.from_numpy(caution * found.spread))
        figures = {
            name: {"weight": float(weight), "standard_error": float(error)}
            for name, weight, error in zip(
                FEATURES, found.weights, np.linalg.norm(found.spread, axis=0), strict=True
            )
        }
        held_out = {str(step): value for step, value in by_caution.items()}
        self.record = self.record | {"compare": figures, "caution": caution, "caution_held_out": held_out}
