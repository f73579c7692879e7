"""edgerec_gym: on-device feed recommendation (EdgeRec) as a Gymnasium environment.

Importing registers EdgeFeed-v0, EdgeFeedRerank-v0, EdgeFeedMix-v0, EdgeFeedRequest-v0 and EdgeFeedSlate-v0.
The names of `__all__` are imported when they are first used (PEP 562), so torch is only loaded where needed.
"""

from importlib import import_module
from typing import Any

from edgerec_gym import interrupts

if interrupts.is_command():  # before anything that takes time to load
    interrupts.install()

from edgerec_gym import moved  # noqa: E402
from edgerec_gym.registration import register_envs  # noqa: E402

__version__ = "0.1.0.dev0"

register_envs()
moved.install()

LAZY = {
    "EdgeFeedEnv": "edgerec_gym.env",
    "FeedConfig": "edgerec_gym.config",
    "RewardConfig": "edgerec_gym.config",
    "Scenario": "edgerec_gym.scenario",
    "make_vec_env": "edgerec_gym.adapters.sb3",
    "train": "edgerec_gym.agents.shortcuts",
    "evaluate": "edgerec_gym.agents.shortcuts",
    "plot": "edgerec_gym.agents.shortcuts",
}
__all__ = [*LAZY]


def __getattr__(name: str) -> Any:
    if name not in LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *LAZY})
