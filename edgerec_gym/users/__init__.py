"""The users who answer: the hidden ground truth (synthetic) or the simulator learned from logs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edgerec_gym.answers import UserModel
from edgerec_gym.config import FeedConfig, preset
from edgerec_gym.errors import InputError, closest

if TYPE_CHECKING:
    from edgerec_gym.scenario import Scenario

USERS = ("learned", "synthetic")


def ground_truth(name: str, **synthetic: Any) -> Scenario:
    """Return a scenario with the ground truth of a preset and no learned users.

    Args:
        name: "default" or "lite".
        **synthetic: fields of SyntheticUserConfig that differ from the preset's.
    """
    from edgerec_gym.scenario import Scenario
    from edgerec_gym.users.synthetic import world_feed
    from edgerec_gym.users.world import make_world

    feed, users = preset(name)
    users = users.replace(**synthetic)
    return Scenario(name, feed, make_world(users, world_feed(feed)).catalog, synthetic=users)


def make_users(
    kind: str | UserModel,
    scenario: Scenario,
    config: FeedConfig,
    uncertainty: bool = False,
    members: Sequence[int] | None = None,
) -> UserModel:
    """Make the users of a scenario, "learned" or "synthetic"; InputError if it has none of that kind.

    A :class:`UserModel` is returned unchanged; it serves one environment only.

    With `uncertainty`, or a reward that weights it, learned users report how far they disagree. `members`
    selects the networks of the ensemble that an episode draws from; None for all.
    """
    if not isinstance(kind, str):
        return kind
    if kind == "learned":
        from edgerec_gym.users.learned import LearnedUsers

        disagreement = uncertainty or config.reward.uncertainty != 0
        return LearnedUsers(scenario, uncertainty=disagreement, members=members)
    if members is not None:
        raise InputError("members applies to learned users only")
    if kind == "synthetic":
        from edgerec_gym.users.synthetic import SyntheticUsers

        if scenario.synthetic is None:
            raise InputError(f"scenario {scenario.name!r} was fitted on real logs and has no synthetic users")
        return SyntheticUsers(scenario.synthetic, config)
    raise InputError(f"unknown users {kind!r}{closest(kind, USERS)}")
