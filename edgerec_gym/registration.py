"""The environment ids. `import edgerec_gym` registers them once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gymnasium as gym

from edgerec_gym.errors import InputError, closest

if TYPE_CHECKING:
    from edgerec_gym.vector_env import EdgeFeedVectorEnv

SLATE = "slate"  # the track whose actions are plans; the others decide slot by slot
IDS = {
    "EdgeFeed-v0": "joint",
    "EdgeFeedRerank-v0": "rerank",
    "EdgeFeedMix-v0": "mix",
    "EdgeFeedRequest-v0": "request",
    "EdgeFeedSlate-v0": SLATE,
}


def register_envs() -> None:
    """Register every id with both entry points; ids already registered are left alone."""
    for env_id, track in IDS.items():
        if env_id not in gym.registry:
            slate = track == SLATE
            gym.register(
                id=env_id,
                entry_point="edgerec_gym.slate_env:EdgeFeedSlateEnv"
                if slate
                else "edgerec_gym.env:EdgeFeedEnv",
                vector_entry_point="edgerec_gym.slate_env:EdgeFeedSlateVectorEnv"
                if slate
                else "edgerec_gym.vector_env:EdgeFeedVectorEnv",
                kwargs={} if slate else {"track": track},
                # EdgeFeedEnv itself refuses steps out of order, and the tests run Gymnasium's check_env.
                disable_env_checker=True,
                order_enforce=False,
            )


def track_of(id_or_track: str) -> str:
    """Return the track of an id ("EdgeFeedMix-v0" -> "mix"); a track name is returned unchanged."""
    name = id_or_track.removeprefix("edgerec_gym:")
    if name in IDS.values():
        return name
    if name not in IDS:
        raise InputError(f"unknown id {id_or_track!r}{closest(name, IDS, 'ids are')}")
    return IDS[name]


def make_feeds(id_or_track: str, num_envs: int, **options: Any) -> EdgeFeedVectorEnv:
    """Make the vector environment of an id or track, as `gym.make_vec` does for an id."""
    from edgerec_gym.slate_env import EdgeFeedSlateVectorEnv
    from edgerec_gym.vector_env import EdgeFeedVectorEnv

    track = track_of(id_or_track)
    if track == SLATE:
        return EdgeFeedSlateVectorEnv(num_envs, **options)
    return EdgeFeedVectorEnv(num_envs, track=track, **options)
