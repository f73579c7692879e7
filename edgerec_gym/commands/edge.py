"""Commands of the service: serve, token."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgerec_gym.commands import console
from edgerec_gym.commands.options import ScenarioPlace, Users
from edgerec_gym.errors import InputError

State = Annotated[Path, typer.Option(help="Folder of what must survive: sessions and the secret.")]
SecretFile = Annotated[
    Path | None, typer.Option("--secret", help="File with the secret of the tokens; default: STATE/secret.")
]


def serve(
    scenario: ScenarioPlace,
    state: State,
    host: Annotated[str, typer.Option(help="Address to listen on; the default is this machine alone.")] = (
        "127.0.0.1"
    ),
    port: Annotated[
        int, typer.Option(min=0, max=65_535, help="Port of the first worker; 0: any that is free.")
    ] = 8765,
    users: Annotated[Users, typer.Option(help="Whose users the service knows.")] = "synthetic",
    workers: Annotated[
        int, typer.Option(min=1, max=256, help="Processes, on ports one after the other.")
    ] = 1,
    redis: Annotated[
        str | None, typer.Option(help="redis://HOST:PORT/N that keeps the sessions; default: SQLite.")
    ] = None,
    models: Annotated[
        Path | None,
        typer.Option(help="What phones are offered: a device model, or a model's folder in a registry."),
    ] = None,
    secret: SecretFile = None,
    logs: Annotated[
        Path | None, typer.Option(help="Folder for logs of ended sessions, as edgerec collect writes them.")
    ] = None,
    connections: Annotated[int, typer.Option(min=1, help="Phones connected to a worker at once.")] = 5000,
    rate: Annotated[
        float, typer.Option(min=0.1, help="Messages a second of one phone in the long run.")
    ] = 100.0,
) -> None:
    """Serve pages to phones, until Ctrl-C or SIGTERM."""
    if port and port + workers - 1 > 65_535:
        raise InputError(f"--port {port} leaves no ports for {workers} workers")
    if logs is not None and redis is not None:
        raise InputError("--logs needs the sessions in SQLite; omit --redis")
    from edgerec_gym.service.phones import Limits
    from edgerec_gym.service.server import ServeSettings, address, is_loopback
    from edgerec_gym.service.workers import serve as run

    settings = ServeSettings(
        scenario,
        state,
        host,
        port,
        users,
        workers,
        redis,
        models,
        secret,
        logs,
        Limits(connections=connections, rate=rate, burst=max(1, round(5 * rate))),
    )
    if not is_loopback(host):
        console.note(f"warning: {host} can be reached from other machines, and connections are not encrypted")

    def tell(ports: list[int]) -> None:
        further = f" and ports to {ports[-1]}" if len(ports) > 1 else ""
        print(f"serving {scenario}: {address(host, ports[0])}{further}", flush=True)

    run(settings, tell)


def token(
    state: State,
    device: Annotated[str, typer.Option(help="Name of the device.")],
    user: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Number of the user.")],
    days: Annotated[int, typer.Option(min=0, max=3650, help="Days from today that it is valid.")] = 30,
    secret: SecretFile = None,
) -> None:
    """Print a token that lets a device speak for a user."""
    from edgerec_gym.protocol.tokens import make_token, read_secret

    print(make_token(read_secret(secret or state / "secret"), device, user, days))
