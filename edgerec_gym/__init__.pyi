# What type checkers and editors see of the names that __init__.py imports on first use.
from edgerec_gym.adapters.sb3 import make_vec_env as make_vec_env
from edgerec_gym.agents.shortcuts import evaluate as evaluate
from edgerec_gym.agents.shortcuts import plot as plot
from edgerec_gym.agents.shortcuts import train as train
from edgerec_gym.config import FeedConfig as FeedConfig
from edgerec_gym.config import RewardConfig as RewardConfig
from edgerec_gym.env import EdgeFeedEnv as EdgeFeedEnv
from edgerec_gym.scenario import Scenario as Scenario

LAZY: dict[str, str]
__version__: str
