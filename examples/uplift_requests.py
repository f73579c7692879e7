"""When is a fresh page worth its query? Uplift of a request from logs, spent under a budget.

Collects a log whose requests were drawn by chance, trains an estimator, and plots what its planner buys for
its requests beside simple rules, how well the estimates order moments (Qini), and when requests fire.
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from edgerec_gym.agents.baselines import make_policy
from edgerec_gym.agents.effect_sample import true_effects
from edgerec_gym.agents.request_audit import audit
from edgerec_gym.agents.request_planner import OneExtra, RequestPlanner, TrueEffectPlanner, price_of
from edgerec_gym.agents.request_scores import ChanceScore, IntentScore, UpliftScore, readable
from edgerec_gym.agents.uplift_metrics import RankedSample
from edgerec_gym.agents.uplift_training import load_model, train, uplift
from edgerec_gym.atomic import make_folder
from edgerec_gym.evaluate import play
from edgerec_gym.logs.collect import collect
from edgerec_gym.scenario import Scenario

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--log-sessions", type=int, default=20_000)
parser.add_argument("--epochs", type=int, default=5)
parser.add_argument("--sessions", type=int, default=1500, help="played by each policy")
parser.add_argument("--run", type=Path, help="an estimator's run, instead of training one")
parser.add_argument("--out", type=Path, default=Path("runs/uplift_requests"))
parser.add_argument("--seed", type=int, default=0)
arguments = parser.parse_args()
out, scenario = make_folder(arguments.out), Scenario.load("lite")
config, sessions = scenario.config, arguments.sessions
wait = config.page_size - config.request_latency  # a page is given what an automatic one gets
INK, GREY = "#333333", "#8a8a8a"
COLOURS = {
    "uplift": "#1b6ca8",
    "interval": "#d1702b",
    "chance": GREY,
    "intent": "#3a8f5c",
    "true effect": INK,
}

# 1. Learn the uplift from a randomised log.
run = arguments.run
if run is None:
    run = out / "uplift-x"
    collect(out / "log", preset_name="lite", sessions=arguments.log_sessions, randomise=["request"])
    train(run, out / "log", agent="uplift-x", seed=arguments.seed, resume=True, epochs=arguments.epochs)
network = load_model(run, config)

# 2. What the same sessions buy for more and more requests.
sample = true_effects(scenario, sessions, seed=arguments.seed, share=0.12)
tau_hat = uplift(network, readable(sample.observation)).tau.double().numpy()
quantiles = np.quantile(tau_hat, np.linspace(0, 1, 201))


def planner(rate):
    return RequestPlanner("uplift", UpliftScore(network), price_of(quantiles, rate), cool_down=wait)


families = {
    "uplift": [planner(rate) for rate in (0.02, 0.05, 0.1, 0.2, 0.4)],
    "interval": [make_policy("fixed-interval", "request", every=m) for m in (8, 6, 5, 4, 3)],
    "chance": [RequestPlanner("chance", ChanceScore(1), 1 - p) for p in (0.02, 0.05, 0.1, 0.2)],
    "intent": [RequestPlanner("intent", IntentScore(config), x, cool_down=wait) for x in (0.6, 0.45, 0.3)],
    "true effect": [TrueEffectPlanner(x, continuations=4, cool_down=wait) for x in (0.5, 0.3, 0.1)],
    "one extra a page": [OneExtra()],
}
reward = config.reward


def figures(policy):
    played = play(
        policy,
        env_id="EdgeFeedRequest-v0",
        scenario=scenario,
        users="synthetic",
        sessions=sessions,
        seed=arguments.seed,
    )
    bought = reward.click * played["expected_clicks"] + reward.purchase * played["expected_purchases"]
    return played["requests"].mean(), bought.mean()


kept = figures(make_policy("keep", "request"))
curves = {name: np.array([kept, *map(figures, members)]) for name, members in families.items()}
for name, points in curves.items():
    gains = ", ".join(f"{y - kept[1]:+.3f} for {x:.2f}" for x, y in points[1:])
    print(f"{name:17s} value over keep for requests a session: {gains}")

plot, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
for name, points in curves.items():
    if name == "one extra a page":
        axes.plot(*points[1], "D", color="#b0306a", label=name, markersize=8, zorder=5)
        continue
    style = "--" if name == "true effect" else "-"
    points = points[np.argsort(points[:, 0])]
    axes.plot(*points.T, style, marker="o", markersize=4, color=COLOURS[name], label=name)
axes.set(xlabel="requests a session", ylabel="clicks + 5 purchases a session (expected)")
axes.set_xlim(0, 6)
axes.set_title(f"What requests buy, {sessions:,} sessions of the ground truth", loc="left", fontsize=11)
axes.legend(frameon=False)
axes.spines[["top", "right"]].set_visible(False)
plot.savefig(out / "requests.png", dpi=150)

# 3. Qini: the outcome gained among the moments with the largest estimates.
_, _, drawn = sample.values(15, reward.click, reward.purchase)
kept_value, requested_value, _ = sample.values(15, reward.click, reward.purchase)
tau = requested_value - kept_value
ranked = RankedSample(tau_hat, sample.treated, drawn)
share, curve = ranked.qini_curve()
plot, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
axes.plot(share, curve, color=GREY, linewidth=0.8, label="estimate, drawn outcomes")
for label, score, colour in (("estimate", tau_hat, COLOURS["uplift"]), ("true order", tau, INK)):
    order = np.argsort(-score, kind="stable")
    axes.plot(
        np.arange(1, len(tau) + 1) / len(tau),
        np.cumsum(tau[order]) / len(tau),
        color=colour,
        linestyle="--" if label == "true order" else "-",
        label=f"{label}, true effects",
    )
axes.plot([0, 1], [0, tau.mean()], ":", color=INK, label="by chance")
axes.set(xlabel="share of the moments with a request", ylabel="clicks + 5 purchases gained a moment")
axes.set_title(f"Qini curves, {len(tau):,} moments", loc="left", fontsize=11)
axes.legend(frameon=False)
axes.spines[["top", "right"]].set_visible(False)
plot.savefig(out / "qini.png", dpi=150)
print(f"Qini {ranked.qini():.4f} on drawn outcomes")

# 4. When requests fire: page age, and whether the latent intent had moved.
found = {
    "uplift": audit(planner(0.1), scenario, max(2, sessions // 3), arguments.seed, continuations=2),
    "true effect": audit(
        families["true effect"][1], scenario, max(2, sessions // 3), arguments.seed, continuations=2
    ),
    "chance": audit(families["chance"][2], scenario, max(2, sessions // 3), arguments.seed, continuations=2),
}
plot, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.8), layout="constrained")
ages, moves = np.arange(config.page_size - 1) - 0.5, np.linspace(0, 1.6, 9)
for name, moments in found.items():
    if not len(moments.slot):
        continue
    for axis, values, bins in ((left, moments.page_age, ages), (right, moments.intent_moved, moves)):
        height, _ = np.histogram(values, bins)
        axis.stairs(height / len(values), bins, color=COLOURS[name], linewidth=1.8, label=name)
    print(f"{name}: the intent had moved at {np.mean(moments.intent_moved > 0.3):.0%} of its requests")
left.set(xlabel="slots since the page arrived", ylabel="share of the requests")
right.set(xlabel="latent intent: 1 - cosine to when the page was first seen")
left.set_title("When requests fire", loc="left", fontsize=11)
left.legend(frameon=False)
for axis in (left, right):
    axis.spines[["top", "right"]].set_visible(False)
plot.savefig(out / "moments.png", dpi=150)
print(f"plots: {out}")
