"""A session as a GIF: a twenty-line policy re-ranks, inserts cards and requests pages; users answer.

`make gif` writes docs/feed.gif. Needs `pip install '.[render]'`.
"""

import argparse
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from PIL import Image

import edgerec_gym  # noqa: F401, registers the ids
from edgerec_gym.agents.baselines import DeviceGreedy
from edgerec_gym.files import atomic_path
from edgerec_gym.policy import best_legal
from edgerec_gym.spaces import CONTEXT, first_action

PAGE_AGE = CONTEXT.index("page_age")
parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", type=Path, default=Path("runs/feed.gif"))
parser.add_argument("--seed", type=int, default=0, help="seed of the session")
parser.add_argument("--slots", type=int, default=40, help="at most")
parser.add_argument("--pause", type=int, default=700, help="milliseconds per frame")
parser.add_argument("--colours", type=int, default=160, help="size of the palette")
arguments = parser.parse_args()

# 1. A policy, batch first: device-greedy's match with live behaviour decides all three.
device = DeviceGreedy()


def act(observation):
    mask = observation["action_mask"]
    n_pool, n_cards = observation["pool"].shape[1], observation["cards"].shape[1]
    goods = device.scores(observation)
    cards = device.scores({**observation, "pool": observation["cards"][:, :, : observation["pool"].shape[2]]})
    cards = np.where(mask[:, n_pool : n_pool + n_cards] > 0, cards, -np.inf)
    best = np.where(mask[:, :n_pool] > 0, goods, -np.inf).max(axis=1)
    dwell = observation["exposures"][:, :, first_action(observation)]
    shown = (observation["exposures"] != 0).any(axis=2).sum(axis=1)
    lately = [dwell[row, max(0, n - 4) : n].mean() if n else 1.0 for row, n in enumerate(shown)]
    bored = (np.array(lately) < 0.3) & (observation["context"][:, PAGE_AGE] >= 0.4) & (mask[:, -1] > 0)
    action = best_legal(goods, mask)  # re-rank
    action = np.where(cards.max(axis=1) > best, n_pool + cards.argmax(axis=1), action)  # insert
    return np.where(bored, n_pool + n_cards, action)  # request: four short looks, and the page is not fresh


# 2. One session; the frames are what `env.render()` returns.
env: Any = gym.make("EdgeFeed-v0", scenario="lite", users="synthetic", split="eval", render_mode="rgb_array")
observation, info = env.reset(seed=arguments.seed)
frames, done = [env.render()], False
while not done and len(frames) <= arguments.slots:
    action = act({key: values[None] for key, values in observation.items()})[0]
    observation, reward, terminated, truncated, info = env.step(action)
    frames.append(env.render())
    done = terminated or truncated
env.close()

# 3. One palette for all frames, without dithering: the file stays small and flat areas stay flat.
images = [Image.fromarray(frame) for frame in frames]
sample = Image.new("RGB", (images[0].width * 4, images[0].height))
for k in range(4):
    sample.paste(images[(len(images) - 1) * (k + 1) // 4], (images[0].width * k, 0))
palette = sample.quantize(arguments.colours, dither=Image.Dither.NONE)
images = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
pauses = [arguments.pause] * (len(images) - 1) + [5 * arguments.pause]
arguments.out.parent.mkdir(parents=True, exist_ok=True)
with atomic_path(arguments.out) as temporary:
    images[0].save(
        temporary, "GIF", save_all=True, append_images=images[1:], duration=pauses, loop=0, optimize=True
    )
screen = env.unwrapped.screen()
print(
    f"{screen.slot} slots, {screen.clicks} clicks, {screen.purchases} purchases, reward {screen.reward:.1f}"
)
print(f"picture: {arguments.out}, {arguments.out.stat().st_size / 1e6:.2f} MB")
