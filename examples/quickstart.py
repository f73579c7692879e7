"""One session of EdgeFeed-v0, slot by slot; then many sessions at once."""

import argparse

import gymnasium as gym
import numpy as np

import edgerec_gym  # noqa: F401  (registers the ids)

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--scenario", default="lite", help="default, lite, or a scenario folder")
parser.add_argument("--users", default="learned", choices=("learned", "synthetic"))
parser.add_argument("--num-envs", type=int, default=256)
parser.add_argument("--seed", type=int, default=0)
arguments = parser.parse_args()
feed = {"scenario": arguments.scenario, "users": arguments.users}

# One session. The lowest legal action is *keep*: the cloud's next candidate, no card, no request.
env = gym.make("EdgeFeed-v0", **feed)
observation, info = env.reset(seed=arguments.seed)
total, slots, done = 0.0, 0, False
while not done:
    action = int(observation["action_mask"].argmax())
    observation, reward, terminated, truncated, info = env.step(action)
    total, slots, done = total + float(reward), slots + 1, terminated or truncated
    if reward:
        earned = {term: value for term, value in info["reward_terms"].items() if value}
        print(f"slot {slots:3d}: {earned}")
print(f"one session: {slots} slots, reward {total:.1f}")
env.close()

# A batch of sessions, stepped together, under a policy that picks the pool's highest base ctr.
envs = gym.make_vec("EdgeFeed-v0", num_envs=arguments.num_envs, **feed)
observation, info = envs.reset(seed=arguments.seed)
base_ctr = -3  # column of `pool`: the last four are price level, base ctr, base cvr, freshness
rewards = np.zeros(arguments.num_envs)
alive = np.ones(arguments.num_envs, bool)
while alive.any():
    action = observation["pool"][:, :, base_ctr].argmax(axis=1)
    observation, reward, terminated, truncated, info = envs.step(action)
    rewards += reward * alive
    alive &= ~(terminated | truncated)
print(f"{arguments.num_envs} sessions, greedy by base ctr: reward {rewards.mean():.2f} a session")
envs.close()
