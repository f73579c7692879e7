"""Train a policy on the feed with MaskablePPO, and load it back to play.

A run is a folder:

| file | content |
| --- | --- |
| policy.json | agent, id, scenario, sizes, hyper-parameters, steps, seed, versions |
| policy.safetensors | the parameters |
| checkpoints/step-000020480/ | the same two files, and optimizer.safetensors |
| tensorboard/ | event files |

Nothing is pickled: stable-baselines3's own zip files hold cloudpickled objects, so they are not used. A
checkpoint is written under a temporary name and renamed, so a killed run resumes from the last one.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from edgerec_gym.agents.base import Observation
from edgerec_gym.atomic import make_folder, write_json
from edgerec_gym.config import Config, bounded
from edgerec_gym.errors import InputError, MissingExtraError
from edgerec_gym.random_stream import CLI_SEED_STRIDE

try:
    import torch
    from sb3_contrib import MaskablePPO
    from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy, MaskableMultiInputActorCriticPolicy
    from stable_baselines3.common.callbacks import BaseCallback
except ImportError:
    raise MissingExtraError("training", "train") from None

from edgerec_gym.agents import checkpoint
from edgerec_gym.agents.pointer_policy import PointerPolicy
from edgerec_gym.sb3 import FeedVecEnv, make_vec_env

AGENTS = ("maskable-ppo",)
POLICIES = ("pointer", "flat")
