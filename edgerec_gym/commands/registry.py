"""The commands `edgerec registry`: which model is offered to which share of the users."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgerec_gym.commands import console
from edgerec_gym.commands.options import AsJson

registry = typer.Typer(
    help="Publish models to phones: canary, promotion, rollback.",
    rich_markup_mode=None,
)

Folder = Annotated[Path, typer.Option("--registry", help="Folder of the published models.")]
Name = Annotated[str, typer.Argument(help="Name of the model.")]
REGISTRY = Path("registry")


@registry.command("publish")
def publish(
    name: Name,
    model: Annotated[Path, typer.Argument(help="Folder of a device model (edgerec export).")],
    share: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of the users that get it as canary.")
    ] = 0.1,
    folder: Folder = REGISTRY,
    as_json: AsJson = False,
) -> None:
    """Test a model and offer it to a share of the users.

    The first one of a name goes to everyone.
    """
    from edgerec_gym.service.channels import ModelChannels

    channels = ModelChannels(folder, name)
    channels.publish(model, share)
    _tell(channels, as_json)


@registry.command("promote")
def promote(
    name: Name,
    share: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Share of the users; without it, everyone.")
    ] = None,
    folder: Folder = REGISTRY,
    as_json: AsJson = False,
) -> None:
    """Give the canary to another share of the users, or make it stable."""
    from edgerec_gym.service.channels import ModelChannels

    channels = ModelChannels(folder, name)
    channels.promote(share)
    _tell(channels, as_json)


@registry.command("rollback")
def rollback(name: Name, folder: Folder = REGISTRY, as_json: AsJson = False) -> None:
    """Withdraw the canary, or else the last version."""
    from edgerec_gym.service.channels import ModelChannels

    channels = ModelChannels(folder, name)
    channels.rollback()
    _tell(channels, as_json)


@registry.command("list")
def list_(folder: Folder = REGISTRY, as_json: AsJson = False) -> None:
    """Show all models, their versions and who gets them."""
    from edgerec_gym.service.channels import ModelChannels, names

    rows: list[dict[str, Any]] = []
    for name in names(folder):
        channels = ModelChannels(folder, name)
        offered = channels.read()
        for known in channels.versions():
            where = [key for key in ("stable", "canary", "previous") if getattr(offered, key) == known]
            rows.append(
                {
                    "name": name,
                    "version": known.version,
                    "channel": where[0] if where else "",
                    "share": _share(offered, where),
                    "digest": known.digest,
                }
            )
    if as_json:
        console.print_json(rows)
        return
    body = [
        [row["name"], str(row["version"]), row["channel"], f"{row['share']:.0%}", row["digest"][:12]]
        for row in rows
    ]
    console.print_table(str(folder), ["model", "version", "channel", "users", "digest"], body)


def _share(offered: Any, where: list[str]) -> float:
    """Share of the users that get what a channel offers."""
    if where[:1] == ["canary"]:
        return float(offered.share)
    return float(1 - offered.share) if where[:1] == ["stable"] else 0.0


def _tell(channels: Any, as_json: bool) -> None:
    offered = channels.read()
    told = {key: getattr(offered, key) for key in ("stable", "canary", "previous")}
    if as_json:
        shown = {key: None if part is None else part.version for key, part in told.items()}
        console.print_json({"name": channels.name} | shown | {"share": offered.share})
        return
    parts = [f"{key} is version {part.version}" for key, part in told.items() if part is not None]
    print(
        f"{channels.name}: {', '.join(parts)}"
        + (f", for {offered.share:.0%} of the users" if offered.canary else "")
    )
