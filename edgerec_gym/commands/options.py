"""Options shared by several commands."""

from __future__ import annotations

from typing import Annotated

import typer

Seed = Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Seed of everything random.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print machine-readable results on stdout.")]
EnvId = Annotated[str, typer.Option("--id", help="EdgeFeed-v0, EdgeFeedRerank-v0, ...")]
ScenarioName = Annotated[
    str, typer.Option("--scenario", help="A shipped scenario (default, lite) or a folder.")
]
NumEnvs = Annotated[int, typer.Option(min=1, help="Number of environments stepped together.")]
