"""Generator and evaluator: learn to judge lists from logs, then learn to write lists that are judged well.

`edgerec train --agent evaluator`, `pointer`, `pointer-evaluator` and `sequence-search` run the same steps.
"""

import argparse
from pathlib import Path

from edgerec_gym.agents.baselines import make_policy
from edgerec_gym.agents.find_policy import find_policies
from edgerec_gym.agents.lists import evaluator_training, generator
from edgerec_gym.agents.registry import train_agent
from edgerec_gym.evaluation.play import evaluate
from edgerec_gym.logs.collect import collect

ID, SCENARIO = "EdgeFeedSlate-v0", "lite"
parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", type=Path, default=Path("runs/generator-evaluator"))
parser.add_argument("--log-sessions", type=int, default=3000)
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--updates", type=int, default=300)
parser.add_argument("--sessions", type=int, default=1000, help="sessions per policy in the comparison")
arguments = parser.parse_args()
out, logs = arguments.out, arguments.out / "logs"

# 1. Logs of a randomised policy: which lists were shown, and what happened.
collect(logs, preset_name=SCENARIO, sessions=arguments.log_sessions)

# 2. The evaluator judges whole lists; the generator starts from what was clicked.
record = evaluator_training.train(out / "evaluator", logs, epochs=arguments.epochs, resume=True)
print(f"evaluator: calibration error of clicks {record['figures']['click']['calibration_error']:.4f}")
train_agent("pointer", out / "pointer", logs=logs, hyper={"epochs": arguments.epochs}, resume=True)

# 3. REINFORCE: the generator writes lists that the evaluator likes; in the search, the evaluator picks.
record = generator.train(
    out / "reinforced",
    agent="pointer-evaluator",
    logs=logs,
    based_on=[out / "evaluator", out / "pointer"],
    updates=arguments.updates,
    resume=True,
)
print(f"value of drawn lists: {record['reward'][0]:.3f} before, {record['reward'][-1]:.3f} after")
generator.train(
    out / "search",
    agent="sequence-search",
    scenario=SCENARIO,
    based_on=[out / "evaluator", out / "reinforced"],
    resume=True,
)

# 4. Does this hold for users that neither of them has seen?
runs = [str(out / name) for name in ("pointer", "reinforced", "search")]
for result in evaluate(
    [make_policy("keep", ID), *find_policies(runs, ID, SCENARIO, "synthetic")],
    env_id=ID,
    scenario=SCENARIO,
    users=["synthetic"],
    sessions=arguments.sessions,
):
    gain = result["gain_over_keep"]
    print(f"{result['policy']}: over keep {gain['mean']:+.3f} ({gain['low']:+.3f} to {gain['high']:+.3f})")
