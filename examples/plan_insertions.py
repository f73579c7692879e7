"""Mixed insertion: ESAN values every card at every slot ahead, the exact planner chooses; plots one plan.

`edgerec train --agent esan` is the first half; `edgerec evaluate RUN --id EdgeFeedMix-v0` plays such plans.
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from edgerec_gym.agents.insertion.network_values import NetworkValues
from edgerec_gym.agents.insertion.policies import InsertionPlan, InsertionState, feed_problems, net_gains
from edgerec_gym.agents.insertion.train import load_network, train
from edgerec_gym.agents.planner.solve import plan_batch
from edgerec_gym.logs.collect import collect
from edgerec_gym.logs.store import LogReader
from edgerec_gym.registration import make_feeds

ID, SCENARIO = "EdgeFeedMix-v0", "lite"
parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", type=Path, default=Path("runs/plan-insertions"))
parser.add_argument("--log-sessions", type=int, default=6000)
parser.add_argument("--epochs", type=int, default=4)
parser.add_argument(
    "--price",
    type=float,
    default=-0.02,
    help="price of a card that is seen, in reward units; negative: the feed wants cards",
)
parser.add_argument("--seed", type=int, default=6, help="seed of the session")
arguments = parser.parse_args()
out, logs = arguments.out, arguments.out / "logs"

# 1. ESAN learns from a log with random insertions.
collect(logs, preset_name=SCENARIO, sessions=arguments.log_sessions)
train(out / "esan", logs, epochs=arguments.epochs, resume=True)
network = load_network(out / "esan", LogReader(logs).config)

# 2. A session whose second page has just arrived: what is each card worth at each of its slots?
env = make_feeds(ID, 1, scenario=SCENARIO, users="synthetic")
config = env.config
observation, info = env.reset(seed=arguments.seed)
for slot in range(config.page_size):
    card = 1 if slot in (1, 6) and observation["action_mask"][0, 1] else 0  # a video, if it is legal there
    observation, reward, terminated, truncated, info = env.step(np.array([card]))
    if terminated[0]:
        raise SystemExit(f"seed {arguments.seed}: the user has left before the second page; take another one")
policy = InsertionPlan("esan", NetworkValues(network), config, price=arguments.price)
score, values = policy.values(observation)
gain = net_gains(values, arguments.price)

# 3. The rules in the session's current state, and the best plan under them.
state = InsertionState.from_observation(observation, config)
types = np.arange(config.n_cards) % len(config.card_types)
problem = feed_problems(config, state, gain, types, values.exposure)
plan = plan_batch(problem)[0]
for m in np.flatnonzero(plan.slots >= 0):
    name, t = config.card_types[types[m]], plan.slots[m]
    print(f"slot {state.slot[0] + t}: card {m} ({name}), gain {gain[0, m, t]:+.3f}")
print(f"value of the plan {plan.value:.3f}, proven best: {plan.optimal}")

# 4. The picture: gains as colours, what the rules forbid in grey, the plan framed.
slots = np.arange(gain.shape[2])
most = problem.most_by_slot()[0]  # (C, T), maximum number of cards of each type up to each slot
allowed = (slots >= problem.first_slots[0][:, None]) & (most > 0)
order = np.argsort(types, kind="stable")  # cards of one type side by side
shown = np.where(allowed[types] & np.isfinite(gain[0]), gain[0], np.nan)[order]
figure = Figure(figsize=(9, 6.2), layout="constrained")
FigureCanvasAgg(figure)
above, below = figure.subplots(2, 1, height_ratios=(1, 2.6), sharex=True)
above.bar(slots, values.goods[0], width=0.8, color="#bbbbbb", label="value of the organic item there")
above.step(slots, values.exposure[0] * values.goods[0].max(), where="mid", color="#0072b2", linewidth=1.5)
above.annotate(
    f"probability that the slot is seen, {values.exposure[0, 0]:.0%} to {values.exposure[0, -1]:.0%}",
    (slots[-1], values.exposure[0, -1] * values.goods[0].max()), xytext=(0, 14), textcoords="offset points",
    ha="right", fontsize=8, color="#0072b2",
)  # fmt: skip
above.set_ylim(0, values.goods[0].max() * 1.25)
above.set_ylabel("value", fontsize=9)
above.legend(frameon=False, fontsize=8, loc="upper left")
below.set_facecolor("#e6e6e6")
limit = np.nanmax(np.abs(shown)) if np.isfinite(shown).any() else 1.0
image = below.imshow(shown, aspect="auto", cmap="RdBu", vmin=-limit, vmax=limit)
for row, m in enumerate(order):
    for t in slots:
        if np.isfinite(shown[row, t]):
            colour = "white" if abs(shown[row, t]) > 0.6 * limit else "#333333"
            below.text(t, row, f"{shown[row, t]:+.2f}", ha="center", va="center", fontsize=7.5, color=colour)
    if plan.slots[m] >= 0:
        below.add_patch(
            Rectangle((plan.slots[m] - 0.5, row - 0.5), 1, 1, fill=False, edgecolor="black", linewidth=2.5)
        )
        for other in np.flatnonzero(types[order] == types[m]):  # its type may not be placed within a gap
            left, width = plan.slots[m] - config.gaps[types[m]] + 0.5, 2 * config.gaps[types[m]] - 1
            below.add_patch(
                Rectangle(
                    (left, other - 0.5), width, 1, fill=False, hatch="///", edgecolor="#00000030", linewidth=0
                )
            )
for boundary in np.flatnonzero(np.diff(types[order])) + 0.5:
    below.axhline(boundary, color="white", linewidth=3)
below.set_xlim(-0.5, slots[-1] + 0.5)
below.set_yticks(range(len(order)), [f"card {m}: {config.card_types[types[m]]}" for m in order], fontsize=8)
below.set_xticks(slots, state.slot[0] + slots)
below.set_xlabel(
    "slot of the session.  framed: the plan;  grey: first slot, gap or share of the type forbids it;  "
    "hatched: gap around a planned card", fontsize=8,
)  # fmt: skip
figure.colorbar(image, ax=below, label="gain over the goods alone, minus the price", pad=0.01)
placed = int((plan.slots >= 0).sum())
title = f"{len(plan.slots)} cards, {len(slots)} slots: {placed} insertions worth {plan.value:.3f}"
figure.suptitle(title, fontsize=11, x=0.01, ha="left")
figure.savefig(out / "plan.png", dpi=130)
print(f"picture: {out / 'plan.png'}")
