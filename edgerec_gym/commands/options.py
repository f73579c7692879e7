"""Options shared by several commands, and the names that they allow."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from edgerec_gym.registration import IDS
from edgerec_gym.scenario import SHIPPED


def _ids(incomplete: str) -> list[str]:
    return [name for name in IDS if name.startswith(incomplete)]


def scenarios(incomplete: str) -> list[str]:
    """Complete the name of a shipped scenario, or of a folder."""
    folders = [f"{path}/" for path in Path().glob(f"{incomplete}*") if path.is_dir()]
    return [name for name in (*SHIPPED, *folders) if name.startswith(incomplete)]


Users = Literal["learned", "synthetic"]
Engine = Literal["onnxruntime", "mnn"]
Sync = Literal["page", "periodic", "incremental"]
Seed = Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Seed of everything random.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print machine-readable results on stdout.")]
NumEnvs = Annotated[int, typer.Option(min=1, help="Number of environments stepped together.")]

_ID, _SCENARIO = "Id of the environment (edgerec tracks).", "A scenario (edgerec scenarios) or its folder."
_OF_RUN = "Default: that of the run that plays, else"
EnvId = Annotated[str, typer.Option("--id", help=_ID, autocompletion=_ids)]
RunEnvId = Annotated[
    str | None, typer.Option("--id", help=f"{_ID} {_OF_RUN} EdgeFeed-v0.", autocompletion=_ids)
]
ScenarioName = Annotated[str, typer.Option("--scenario", help=_SCENARIO, autocompletion=scenarios)]
RunScenarioName = Annotated[
    str | None,
    typer.Option("--scenario", help=f"{_SCENARIO} {_OF_RUN} default.", autocompletion=scenarios),
]
ScenarioPlace = Annotated[str, typer.Argument(help=_SCENARIO, autocompletion=scenarios)]
