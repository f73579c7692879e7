"""Phones held by simulated users: what `edgerec phone`, the demo and the studies run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgerec_gym.agents.device.policy import DevicePolicy
from edgerec_gym.agents.device.runtime import Pace, Session, SessionReport, Watch
from edgerec_gym.agents.find_policy import find_policy
from edgerec_gym.answers import Focus
from edgerec_gym.device.description import DESCRIPTION, feature_digest
from edgerec_gym.device.event_store import EventStore
from edgerec_gym.device.link_settings import LinkSettings, Phone
from edgerec_gym.device.registry import ModelRegistry
from edgerec_gym.errors import InputError
from edgerec_gym.files import make_folder
from edgerec_gym.policy import Policy
from edgerec_gym.protocol.tokens import make_token
from edgerec_gym.registration import track_of
from edgerec_gym.scenario import Scenario
from edgerec_gym.users.people import People

DATABASE, MODELS = "phone.db", "models"  # in the phone's folder


@dataclass(frozen=True)
class PhoneSettings:
    """A phone and who holds it.

    Attributes:
        policy: folder of an exported agent, or the name of a baseline.
        url: address of the service.
        secret: of the service's tokens.
        scenario: that the service serves.
        users: "synthetic" or "learned", as the service's.
        env_id: what is decided on the phone.
        speed: how much faster than people the phone plays; inf: as fast as it can.
        store: folder of what the phone keeps.
        device: name of the device.
        split: of the users.
        link: settings of the link; None for those of the scenario.
    """

    policy: str
    url: str
    secret: bytes
    scenario: str
    users: str = "synthetic"
    env_id: str = "EdgeFeed-v0"
    speed: float = 1.0
    store: Path = Path("runs/phone")
    device: str = "phone-1"
    split: str = "eval"
    link: LinkSettings | None = None


def phone_policy(name: str, env_id: str, scenario: str, users: str, seed: int = 0) -> Policy:
    """Return a policy that runs on a phone; InputError for a run that has not been exported."""
    folder = Path(name)
    if folder.is_dir() and not (folder / DESCRIPTION).is_file():
        raise InputError(
            f"{name} is no exported agent: write one with `edgerec export {name} --scenario {scenario} "
            "--out FOLDER`"
        )
    return find_policy(name, env_id, scenario, users, seed)


async def play_sessions(
    settings: PhoneSettings,
    seeds: Iterable[int],
    tell: Callable[[dict[str, Any]], None] | None = None,
    watch: Watch | None = None,
) -> list[SessionReport]:
    """Play sessions one after the other.

    Args:
        settings: the phone.
        seeds: of the sessions; the same as an environment's.
        tell: takes the figures of each session.
        watch: called after every slot.

    Returns:
        What became of each session.
    """
    scenario = Scenario.load(settings.scenario)
    folder = make_folder(settings.store)
    models = ModelRegistry(folder / MODELS, feature_digest(scenario.config))
    policy = phone_policy(settings.policy, settings.env_id, settings.scenario, settings.users)
    if isinstance(policy, DevicePolicy) and (model := models.load()) is not None:
        policy.swap(model)  # one that the cloud has offered before
    people = People(scenario, settings.users, 1, settings.split)
    store = EventStore(folder / DATABASE)
    reports = []
    try:
        for seed in seeds:
            person = people.begin(0, seed)
            known = store.session(person.session)
            if known is not None and known.ended:
                continue  # played and delivered by an earlier call
            session = Session(
                scenario.config,
                track_of(settings.env_id),
                policy,
                Phone(
                    settings.url,
                    settings.device,
                    make_token(settings.secret, settings.device, person.user),
                    policy.model.digest if isinstance(policy, DevicePolicy) else "",
                ),
                store,
                np.random.default_rng([seed, 1]),
                link_settings=settings.link,
                pace=Pace(speed=settings.speed),
                models=models if isinstance(policy, DevicePolicy) else None,
                watch=watch,
            )

            def ask(focus: Focus) -> np.ndarray:
                return people.answer(0, focus)

            report = await session.play(person, ask, remind=ask)
            reports.append(report)
            if tell is not None:
                tell({"seed": seed} | figures(session))
    finally:
        store.close()
    return reports


def figures(session: Session) -> dict[str, Any]:
    """Return the figures of a session that has been played."""
    report, link = session.report, session.link
    assert link is not None
    ms = np.array(report.decision_ms or [0.0])
    return {
        "slots": report.slots,
        "answers": report.answers,
        "clicks": report.terms.get("click", 0.0) / (session.config.reward.click or 1.0),
        "reward": report.reward,
        "requests": report.requests,
        "pages": report.pages,
        "decision_p50_ms": float(np.percentile(ms, 50)),
        "decision_p99_ms": float(np.percentile(ms, 99)),
        "missed": report.missed,
        "page_p99_ms": 1000 * float(np.percentile(report.page_seconds or [0.0], 99)),
        "offline_slots": report.offline_slots,
        "stale_slots": report.stale_slots,
        "starved": report.starved,
        "bytes_up": link.traffic.socket["up"],
        "bytes_down": link.traffic.socket["down"],
        "delivered": report.delivered,
        "refused": report.refused,
    }
