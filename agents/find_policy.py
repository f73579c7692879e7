"""Find policies by name, as given on the command line."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from edgerec_gym.agents.attainable.policy import NAMES as ATTAINABLE
from edgerec_gym.agents.attainable.policy import AttainablePolicy
from edgerec_gym.agents.baselines import BASELINES, make_policy
from edgerec_gym.agents.device.policy import load_policy as load_device_policy
from edgerec_gym.agents.oracle import OraclePolicy
from edgerec_gym.agents.registry import load_policy
from edgerec_gym.device.description import DESCRIPTION
from edgerec_gym.errors import InputError, closest
from edgerec_gym.policy import Policy
from edgerec_gym.registration import make_feeds
from edgerec_gym.scenario import Scenario


def find_policy(name: str, env_id: str, scenario: str | Scenario, users: str, seed: int = 0) -> Policy:
    """Return a baseline, a reference, a trained policy or the user's own policy.

    Args:
        name: a name of :data:`~edgerec_gym.agents.baselines.BASELINES`, "oracle", "attainable" or
            "attainable, items known" (references for synthetic users), the folder of a trained run or of an
            exported device model, or "module:Class" (the module may be in the working directory).
        env_id: the environment id to play.
        scenario: the scenario to play; a trained policy must fit its sizes.
        users: the kind of users to play with.
        seed: seed of the policy's own generator.

    Raises:
        InputError: if there is no such policy, or it does not fit.
        MissingExtraError: if a trained policy needs torch, which is not installed.
    """
    if name == OraclePolicy.name:
        return OraclePolicy()
    if name in ATTAINABLE:
        return AttainablePolicy(ATTAINABLE[name], seed=seed)
    if Path(name).is_dir():
        env = make_feeds(env_id, 1, scenario=scenario, users=users)
        if (Path(name) / DESCRIPTION).is_file():
            return load_device_policy(name, env)
        return load_policy(name, env)
    if Path(name).suffix == ".zip":
        raise InputError(
            f"{name} is a stable-baselines3 model, which holds pickles and so is not opened here; play it as "
            "module:Class, a Policy that calls MaskablePPO.load (docs/how-to/train_with_sb3.md), or train "
            "with edgerec train --agent pointer-ppo"
        )
    if ":" in name:
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())  # a console script does not put it on the path
    elif name not in BASELINES:
        if Path(name).exists():
            raise InputError(
                f"{name} is a file; allowed: the folder of a trained run or of an exported model"
            )
        if os.sep in name or "/" in name:
            raise InputError(f"no such folder: {name}; it would hold a trained run or an exported model")
        known = (*BASELINES, *ATTAINABLE, OraclePolicy.name, "a trained run's folder", "or module:Class")
        raise InputError(f"unknown policy {name!r}{closest(name, known)}")
    loaded = scenario if isinstance(scenario, Scenario) else Scenario.load(scenario)
    config = loaded.config
    return make_policy(name, env_id, seed, config.slate_size, config.item_columns)


def find_policies(
    names: Sequence[str], env_id: str, scenario: str | Scenario, users: str, seed: int = 0
) -> list[Policy]:
    """Return the named policies without duplicates; if several are runs, they are named by their folders."""
    runs = [name for name in dict.fromkeys(names) if Path(name).is_dir()]
    found: dict[str, Policy] = {}
    for name in dict.fromkeys(names):
        policy = find_policy(name, env_id, scenario, users, seed)
        if name in runs and len(runs) > 1 or policy.name in found:
            policy.name = name
        found[policy.name] = policy
    return list(found.values())
