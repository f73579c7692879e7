"""Same seed, same episode: in a new process, with other thread counts, whatever ran before."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from actions import random_action
from places import TESTS

from edgerec_gym.compiled import random_stream as draws
from edgerec_gym.registration import SLATE, make_feeds
from edgerec_gym.vector_env import EdgeFeedVectorEnv

KINDS = ("synthetic", "learned")
SCRIPT = """
import sys; sys.path[:0] = [{path!r}, {helpers!r}]
from test_determinism import KINDS, trace
for users in KINDS:
    print(trace({env_id!r}, users))
"""


def trace(env_id: str, users: str, threads: int = 1) -> str:
    """A digest of 120 random steps of 130 feeds, or of as many slots of plans."""
    env = make_feeds(env_id, 130, scenario="lite", users=users, threads=threads)
    observation, _ = env.reset(seed=9)
    rng = np.random.default_rng(1)
    digest = hashlib.sha256()
    for _ in range(120 if env.track != SLATE else 24):
        observation, reward, *_ = env.step(random_action(env, observation, rng))
        digest.update(env.batch.arrays.observation.tobytes() + reward.tobytes())
    env.close()
    return digest.hexdigest()


@pytest.mark.parametrize("env_id", ["EdgeFeed-v0", "EdgeFeedSlate-v0"])
def test_same_seed_same_episodes_in_a_new_process(env_id, request):
    script = SCRIPT.format(path=str(request.path.parent), helpers=str(TESTS), env_id=env_id)
    other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert other.stdout.split() == [trace(env_id, users) for users in KINDS]


@pytest.mark.parametrize("env_id", ["EdgeFeed-v0", "EdgeFeedSlate-v0"])
def test_thread_count_does_not_matter(env_id, users):
    assert trace(env_id, users, 1) == trace(env_id, users, 2)


def test_uniform_draws_are_uniform_and_independent_of_each_other():
    key = np.uint64(123)
    u = np.array([[draws.uniform(key, slot, purpose, 7) for slot in range(200)] for purpose in range(30)])
    assert u.min() >= 0 and u.max() < 1
    assert abs(u.mean() - 0.5) < 0.02 and abs(u.var() - 1 / 12) < 0.005
    assert np.abs(np.corrcoef(u) - np.eye(30)).max() < 0.35
    assert len(np.unique(u)) == u.size


@pytest.mark.parametrize("draw", [draws.fast_normal])
def test_normal_draws(draw):
    z = np.array([draw(np.uint64(5), slot, 40, item) for slot in range(100) for item in range(50)])
    assert abs(z.mean()) < 0.05 and abs(z.std() - 1) < 0.05


def test_episode_keys_never_meet():
    keys = {
        int(draws.episode_key(split, seed, episode))
        for split in range(3)
        for seed in [*range(50), *range(2**20, 2**20 + 50)]
        for episode in range(5)
    }
    assert len(keys) == 3 * 100 * 5


def test_choices_made_alike_share_their_luck_after_policies_part():
    """Common random numbers: one other choice early, and the same card later still meets the same draw."""
    envs = [EdgeFeedVectorEnv(400, scenario="lite", users="synthetic", track="rerank") for _ in range(2)]
    for env in envs:
        env.reset(seed=0)
    for t in range(12):
        for k, env in enumerate(envs):
            row = 3 if (t == 0 and k == 1) else None
            mask = env.action_masks()
            env.step(np.full(400, row) if row is not None else mask.argmax(axis=1))
    a, b = (env.batch.arrays for env in envs)
    same = (a.window_items[:, 2] == b.window_items[:, 2]) & a.focus_active & b.focus_active
    assert same.mean() > 0.3
    assert (a.response[same, 6] == b.response[same, 6]).mean() > 0.97
