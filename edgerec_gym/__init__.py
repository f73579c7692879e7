"""edgerec_gym: on-device feed recommendation (EdgeRec) as a Gymnasium environment.

Importing registers EdgeFeed-v0, EdgeFeedRerank-v0, EdgeFeedMix-v0, EdgeFeedRequest-v0 and EdgeFeedSlate-v0.
"""

from edgerec_gym import interrupts

if interrupts.is_command():  # before anything that takes time to load
    interrupts.install()

from edgerec_gym import moved  # noqa: E402
from edgerec_gym.registration import register_envs  # noqa: E402

__version__ = "0.1.0.dev0"

register_envs()
moved.install()
