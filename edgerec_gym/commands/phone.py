"""The command phone: a phone, held by simulated users, that plays an exported agent against a service."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer

from edgerec_gym.commands import console
from edgerec_gym.commands.options import AsJson, EnvId, Seed, Users
from edgerec_gym.errors import InputError


def phone(
    policy: Annotated[
        str, typer.Argument(help="Folder of an exported agent (edgerec export), or a baseline such as keep.")
    ],
    secret: Annotated[
        Path, typer.Option(help="File with the service's secret, STATE/secret; it makes the phone's tokens.")
    ],
    url: Annotated[str, typer.Option(help="Address of the service.")] = "ws://127.0.0.1:8765/v1/feed",
    scenario: Annotated[
        str, typer.Option("--scenario", help="The scenario that the service serves: a name or a folder.")
    ] = "lite-v2",
    users: Annotated[Users, typer.Option(help="Who holds the phone, as the service's.")] = "synthetic",
    env_id: EnvId = "EdgeFeed-v0",
    sessions: Annotated[int, typer.Option(min=1, help="Sessions, one after the other.")] = 1,
    speed: Annotated[
        float, typer.Option(min=0.01, help="How much faster than people the phone plays.")
    ] = 1.0,
    store: Annotated[
        Path, typer.Option(help="Folder of what the phone keeps; a killed phone goes on from it.")
    ] = Path("runs/phone"),
    device: Annotated[str, typer.Option(help="Name of the device.")] = "phone-1",
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Play sessions on a phone that speaks to edgerec serve.

    Without a connection it plays on, and delivers the answers later.
    """
    from edgerec_gym.agents.phones.simulated import PhoneSettings, play_sessions
    from edgerec_gym.protocol.tokens import read_secret

    settings = PhoneSettings(
        policy=policy,
        url=url,
        secret=read_secret(secret),
        scenario=scenario,
        users=users,
        env_id=env_id,
        speed=speed,
        store=store,
        device=device,
    )
    rows: list[dict[str, Any]] = []

    def tell(row: dict[str, Any]) -> None:
        rows.append(row)
        if not as_json:
            print(_line(row), flush=True)

    with console.interruptible(f"answers are kept in {store}; the same command delivers them and goes on"):
        asyncio.run(play_sessions(settings, range(seed, seed + sessions), tell))
    if as_json:
        console.print_json(rows)
    if not any(row["pages"] for row in rows):
        why = next((row["refused"] for row in rows if row["refused"]), "no page came")
        raise InputError(f"{url}: {why}")


def _line(row: dict[str, Any]) -> str:
    state = "delivered" if row["delivered"] else row["refused"] or "to be delivered later"
    return (
        f"session {row['seed']}: {row['slots']} cards, {row['clicks']:.0f} clicks, "
        f"reward {row['reward']:+.2f}, {row['pages']} pages, "
        f"decisions p99 {row['decision_p99_ms']:.1f} ms, {row['missed']} late, "
        f"{row['bytes_up']:,} bytes up, {row['bytes_down']:,} down, {state}"
    )
