"""When is a fresh page worth its cost? Uplift of a request from logs, spent under a budget.

Collects a log with randomised requests, trains an estimator, and plots what its planner gains from its
requests compared with simple rules, how well scores order moments (Qini), and when requests fire.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import MultipleLocator

from edgerec_gym.agents.baselines import make_policy
from edgerec_gym.agents.requests.planner import OneExtra, RequestPlanner, Score, TrueEffectPlanner, price_of
from edgerec_gym.agents.requests.scores import ChanceScore, IntentScore, UpliftScore, decision_inputs
from edgerec_gym.agents.requests.train import load_model, train, uplift
from edgerec_gym.bench.request.effects import true_effects
from edgerec_gym.evaluation.intervals import mean_interval
from edgerec_gym.evaluation.play import play
from edgerec_gym.evaluation.uplift import RankedSample
from edgerec_gym.files import make_folder
from edgerec_gym.logs.collect import collect
from edgerec_gym.policy import bind
from edgerec_gym.scenario import Scenario

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--log-sessions", type=int, default=20_000)
parser.add_argument("--epochs", type=int, default=5)
parser.add_argument("--sessions", type=int, default=1500, help="sessions per policy")
parser.add_argument("--run", type=Path, help="an estimator's run, instead of training one")
parser.add_argument("--out", type=Path, default=Path("runs/uplift_requests"))
parser.add_argument("--seed", type=int, default=0)
arguments = parser.parse_args()
out, scenario = make_folder(arguments.out), Scenario.load("lite")
config, reward, sessions = scenario.config, scenario.config.reward, arguments.sessions
wait = config.page_size - config.request_latency  # as many slots as an automatic page gets
STYLES = {
    "uplift": ("#0072b2", "o-"),
    "outcome": ("#e69f00", "o-"),
    "intent change": ("#009e73", "o-"),
    "interval": ("#d55e00", "o-"),
    "chance": ("#999999", "o-"),
    "true effect": ("#000000", "P--"),
    "one extra a page": ("#cc79a7", "D"),
}

# 1. Learn the uplift from a randomised log.
run = arguments.run
if run is None:
    run = out / "uplift-x"
    collect(out / "log", preset_name="lite", sessions=arguments.log_sessions, randomise=["request"])
    train(run, out / "log", agent="uplift-x", seed=arguments.seed, resume=True, epochs=arguments.epochs)
network = load_model(run, config)
sample = true_effects(scenario, sessions, seed=arguments.seed, share=0.12)
estimated = uplift(network, decision_inputs(sample.observation))
scores: dict[str, tuple[Score, np.ndarray]] = {
    "uplift": (UpliftScore(network), estimated.tau.double().numpy()),
    "outcome": (UpliftScore(network, outcome=True), estimated.mu1.double().numpy()),
    "intent change": (IntentScore(config), IntentScore(config)(sample.observation).astype(np.float64)),
}


# 2. Policies at several budgets, each recorded as it plays.
class Watched:
    """Plays a policy and records the moments at which it may request."""

    def __init__(self, policy):
        self.policy, self.name, self.moments = policy, policy.name, []

    def bind(self, env):
        bind(self.policy, env)
        self.batch = env.unwrapped.batch
        self.slot = np.full(self.batch.num_envs, -1)
        self.since = np.zeros(self.batch.num_envs, np.int64)
        self.intent = np.zeros_like(self.batch.users.arrays.intent_now)

    def reset(self, mask):
        self.policy.reset(mask)
        self.slot[mask] = -1

    def act(self, observation):
        actions, feed = self.policy.act(observation), self.batch.arrays
        intent, moves = self.batch.users.arrays.intent_now, feed.slot != self.slot
        switched = (intent * self.intent).sum(axis=1) < 0.7  # it also drifts, but never this far in one slot
        self.since = np.where(switched, 0, self.since + moves)
        self.since[feed.slot == 0] = -config.max_slots  # no switch yet
        self.slot, self.intent = feed.slot.copy(), intent.copy()
        rows = moves & (observation["action_mask"][:, -1] > 0)
        asks = actions[rows] == observation["action_mask"].shape[1] - 1
        self.moments.append(np.column_stack([feed.page_age[rows], self.since[rows], asks]))
        return actions


def planners(name, rates):
    score, replayed = scores[name]
    quantiles = np.quantile(replayed, np.linspace(0, 1, 201))
    return [RequestPlanner(name, score, price_of(quantiles, rate), cool_down=wait) for rate in rates]


families = {
    "uplift": planners("uplift", (0.03, 0.1, 0.2, 0.4)),
    "outcome": planners("outcome", (0.03, 0.1, 0.2, 0.4)),
    "intent change": planners("intent change", (0.03, 0.1, 0.2, 0.4)),
    "interval": [make_policy("fixed-interval", "request", every=m) for m in (8, 6, 5, 4)],
    "chance": [RequestPlanner("chance", ChanceScore(1), 1 - p) for p in (0.03, 0.08, 0.16)],
    "true effect": [TrueEffectPlanner(x, continuations=4, cool_down=wait) for x in (0.5, 0.3, 0.1)],
    "one extra a page": [OneExtra()],
}


def played(policy):
    return play(
        policy,
        env_id="EdgeFeedRequest-v0",
        scenario=scenario,
        users="synthetic",
        sessions=sessions,
        seed=arguments.seed,
    )


kept = played(make_policy("keep", "request"))
watched = {name: [Watched(policy) for policy in members] for name, members in families.items()}
results = {name: [played(policy) for policy in members] for name, members in watched.items()}


def over_keep(result, clicks, purchases):
    """Gain over keep in the weighted sum of clicks and purchases, paired by session."""
    gain = clicks * (result["expected_clicks"] - kept["expected_clicks"])
    return mean_interval(gain + purchases * (result["expected_purchases"] - kept["expected_purchases"]))


def finish(axes, title, **labels):
    axes.set(**labels)
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(color="#e5e5e5", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


plot, panels = plt.subplots(1, 2, figsize=(10.5, 4.2), layout="constrained")
for axes, weights, what in (
    (panels[0], (0, 1), "purchases"),
    (panels[1], (reward.click, reward.purchase), f"clicks + {reward.purchase:g} purchases"),
):
    for name, members in results.items():
        colour, style = STYLES[name]
        x = np.array([result["requests"].mean() for result in members])
        gains = [over_keep(result, *weights) for result in members]
        mean, low, high = (np.array([gain[key] for gain in gains]) for key in ("mean", "low", "high"))
        order = np.argsort(x)
        axes.vlines(x, low, high, color=colour, linewidth=0.8, alpha=0.6)
        if len(x) > 1:
            axes.plot([0, x[order[0]]], [0, mean[order[0]]], style[1:], color=colour)
        axes.plot(x[order], mean[order], style, markersize=5, color=colour, label=name)
        if axes is panels[1]:
            text = ", ".join(f"{y:+.3f} for {n:.2f}" for n, y in zip(x[order], mean[order], strict=True))
            print(f"{name:17s} {what} over keep for requests a session: {text}")
    axes.set_xlim(left=0)
    finish(axes, "", xlabel="requests a session", ylabel=f"{what} a session, over keep")
finish(panels[0], f"What requests buy, {sessions:,} sessions of the ground truth, 95 % intervals")
plot.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=9)
plot.savefig(out / "requests.png", dpi=150)

# 3. Qini: the gain if the moments with the largest scores get a request.
without, requested, drawn = sample.values(15, reward.click, reward.purchase)
tau = requested - without
share = np.arange(len(tau) + 1) / len(tau)
ranked = RankedSample(scores["uplift"][1], sample.treated, drawn)
plot, axes = plt.subplots(figsize=(8.4, 4.2), layout="constrained")
axes.plot(*ranked.qini_curve(), color="#9ecae1", linewidth=0.8, label="uplift, by drawn outcomes")
for name, score in (*((name, values) for name, (_, values) in scores.items()), ("true effect", tau)):
    gained = np.append(0, np.cumsum(tau[np.argsort(-score, kind="stable")])) / len(tau)
    colour, style = STYLES[name]
    axes.plot(share, gained, style[1:], color=colour, label=f"{name}, by true effects")
axes.plot([0, 1], [0, tau.mean()], ":", color="#333333", label="by chance")
title = f"Qini curves, {len(tau):,} moments, the next 15 slots"
finish(axes, title, xlabel="share of the moments with a request", ylabel="gain a moment")
plot.legend(loc="outside right upper", frameon=False, fontsize=8)
plot.savefig(out / "qini.png", dpi=150)
print(f"Qini {ranked.qini():.4f} on drawn outcomes")

# 4. When requests fire: age of the page, and slots since the latent intent switched.
plot, (left, right) = plt.subplots(1, 2, figsize=(10.5, 3.8), layout="constrained")
ages, since = np.arange(config.page_size) - 0.5, np.arange(0, 22, 2)
for name, member in (("uplift", 1), ("intent change", 1), ("true effect", 1), ("chance", 1)):
    moments = np.concatenate(watched[name][member].moments)
    asks = moments[moments[:, 2] > 0]
    for axes, column, bins in ((left, 0, ages), (right, 1, since)):
        seen, asked = (np.histogram(part[:, column], bins)[0] for part in (moments, asks))
        rate = asked / np.maximum(seen, 1) / max(len(asks) / len(moments), 1e-9)
        axes.stairs(np.where(seen > 0, rate, np.nan), bins, color=STYLES[name][0], linewidth=1.8, label=name)
    lately = int(((asks[:, 1] >= 0) & (asks[:, 1] < 10)).sum())
    print(f"{name}: the intent had switched in the 10 slots before {lately} of {len(asks)} requests")
for axes in (left, right):
    axes.axhline(1, color="#333333", linewidth=0.8, linestyle=":")
    axes.xaxis.set_major_locator(MultipleLocator(2))
finish(left, "When requests fire", xlabel="slots since the page arrived", ylabel="rate against its own mean")
finish(right, "", xlabel="slots since the latent intent switched")
left.legend(frameon=False, fontsize=9)
plot.savefig(out / "moments.png", dpi=150)
print(f"plots: {out}")
