"""Train sb3-contrib's MaskablePPO on learned users, then compare it with the cloud's order.

Everything here is plain stable-baselines3. `edgerec train` does the same, with checkpoints and resuming.
"""

import argparse

from sb3_contrib import MaskablePPO

from edgerec_gym.adapters.sb3 import make_vec_env
from edgerec_gym.agents.baselines import make_policy
from edgerec_gym.agents.ppo.pointer_policy import PointerPolicy
from edgerec_gym.agents.ppo.trained_policy import TrainedPolicy
from edgerec_gym.evaluation.play import evaluate

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--id", default="EdgeFeed-v0")
parser.add_argument("--scenario", default="lite", help="default, lite, or a scenario folder")
parser.add_argument("--users", default="learned", choices=("learned", "synthetic"))
parser.add_argument("--steps", type=int, default=250_000)
parser.add_argument("--sessions", type=int, default=2000, help="sessions per policy in the comparison")
parser.add_argument("--seed", type=int, default=0)
arguments = parser.parse_args()

# 1. Train. 128 feeds are one batch, not 128 processes.
env = make_vec_env(arguments.id, 128, seed=arguments.seed, scenario=arguments.scenario, users=arguments.users)
model = MaskablePPO(
    PointerPolicy,
    env,
    learning_rate=lambda left: 3e-4 + left * 2.7e-3,
    n_steps=32,
    batch_size=512,
    n_epochs=2,
    gamma=0.95,
    ent_coef=0.01,
    seed=arguments.seed,
    device="cpu",
    verbose=1,
)
model.learn(arguments.steps, log_interval=10)

# 2. Score on synthetic users, which training never saw, on sessions that both policies share.
results = evaluate(
    [make_policy("keep", arguments.id), TrainedPolicy("ppo", model.policy)],
    env_id=arguments.id,
    scenario=arguments.scenario,
    users=["synthetic"],
    sessions=arguments.sessions,
    seed=arguments.seed,
)
for result in results:
    value, gain = result["value"], result["gain_over_keep"]
    print(
        f"{result['policy']:5s} value {value['mean']:.3f} a session,"
        f" over keep {gain['mean']:+.3f} ({gain['low']:+.3f} to {gain['high']:+.3f})"
    )
