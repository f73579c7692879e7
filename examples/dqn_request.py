"""DQN on EdgeFeedRequest-v0: when is a fresh page worth its price?

The request is decided from the state of the session, so DQN sees the `context` vector alone, which keeps its
replay buffer small. Plain DQN has no action masks: a request while a page is on its way is played as *keep*
and costs a little.
"""

import argparse

import numpy as np
from stable_baselines3 import DQN
from stable_baselines3.common.vec_env import VecExtractDictObs

from edgerec_gym.adapters.sb3 import make_vec_env
from edgerec_gym.agents.baselines import make_policy
from edgerec_gym.evaluation.play import evaluate
from edgerec_gym.policy import Observation

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--scenario", default="lite", help="default, lite, or a scenario folder")
parser.add_argument("--users", default="learned", choices=("learned", "synthetic"))
parser.add_argument("--steps", type=int, default=200_000)
parser.add_argument("--sessions", type=int, default=2000, help="sessions per policy in the comparison")
parser.add_argument("--seed", type=int, default=0)
arguments = parser.parse_args()

# 1. Train.
feeds = make_vec_env(
    "EdgeFeedRequest-v0", 32, seed=arguments.seed, scenario=arguments.scenario, users=arguments.users
)
model = DQN(
    "MlpPolicy",
    VecExtractDictObs(feeds, "context"),
    learning_rate=1e-3,
    buffer_size=50_000,
    learning_starts=2000,
    batch_size=256,
    train_freq=1,  # steps of the whole batch
    gradient_steps=1,
    target_update_interval=50,
    gamma=0.97,
    exploration_fraction=0.5,
    seed=arguments.seed,
    device="cpu",
    verbose=1,
)
model.learn(arguments.steps, log_interval=2000)


# 2. Score on synthetic users, which training never saw. Any object with these three members is a policy.
class Requests:
    name = "dqn"

    def reset(self, mask: np.ndarray) -> None:
        pass

    def act(self, observation: Observation) -> np.ndarray:
        actions, _ = model.predict(observation["context"], deterministic=True)
        return actions * observation["action_mask"][:, 1].astype(np.int64)


results = evaluate(
    [make_policy("keep", "request"), make_policy("fixed-interval", "request"), Requests()],
    env_id="EdgeFeedRequest-v0",
    scenario=arguments.scenario,
    users=["synthetic"],
    sessions=arguments.sessions,
    seed=arguments.seed,
)
for result in results:
    gain = result["gain_over_keep"]
    print(
        f"{result['policy']:15s} {result['requests']['mean']:.2f} requests a session,"
        f" value over keep {gain['mean']:+.3f} ({gain['low']:+.3f} to {gain['high']:+.3f})"
    )
