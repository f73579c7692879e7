"""The floor plan: folders stand on floors, and imports only go down.

Every import counts, also those inside functions and those for type checkers only. A new folder or root module
needs a place in FLOORS.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest
from places import ROOT

FLOORS = (  # from bottom to top; a room is a folder, or a module that stands loose
    "errors",
    "interrupts",
    "moved",
    "config",
    "spaces",
    "compiled",
    "files",
    "documents",
    "memory",
    "tensors",
    "parquet",
    "onnx_check",
    "answers",
    "state",
    "policy",
    "onnx_graph",
    "protocol",
    "faults",
    "cloud",
    "scenario",
    "users",
    "feed",
    "drawing",
    "vector_env",
    "env",
    "slate_env",
    "registration",
    "edgerec_gym",  # its __init__: the version, and the ids
    "adapters",
    "device",
    "runs",
    "evaluation",
    "logs",
    "service",
    "simulator",
    "fidelity",
    "pages",
    "agents",  # its __init__
    "agents.perception",
    "agents.list_policy",
    "agents.diversity",
    "agents.baselines",
    "agents.registry",
    "agents.data",
    "agents.learning",
    "agents.rerank",
    "agents.teachers",
    "agents.distillation",
    "agents.lists",
    "agents.planner",
    "agents.insertion",
    "agents.ppo",
    "agents.requests",
    "agents.values",
    "agents.edgerec",
    "agents.device",
    "agents.export",
    "agents.compression",
    "agents.oracle",
    "agents.attainable",
    "agents.run_place",
    "agents.find_policy",
    "agents.shortcuts",
    "agents.phones",
    "bench",
    "commands",
    "cli",
)
ABOVE_AGENTS = ("bench", "commands", "cli")
WITHOUT_TORCH = (
    "device",
    "protocol",
    "service",
    "cloud",
    "compiled",
    "users",
    "feed",
    "agents.registry",
    "agents.device",
    "agents.run_place",
    "agents.find_policy",
)


@cache
def modules() -> dict[str, Path]:
    """All modules of the package by name."""
    found = {}
    for folder, prefix in ((ROOT / "edgerec_gym", "edgerec_gym"), (ROOT / "agents", "edgerec_gym.agents")):
        for file in sorted(folder.rglob("*.py")):
            parts = file.relative_to(folder).with_suffix("").parts
            if prefix == "edgerec_gym" and parts[0] == "agents":
                continue  # the link
            name = ".".join((prefix, *parts)).removesuffix(".__init__")
            found[name] = file
    return found


@cache
def room(module: str) -> str:
    """The room of a module: edgerec_gym.feed.batch is in feed."""
    parts = module.split(".")[1:]
    if not parts:
        return "edgerec_gym"
    return ".".join(parts[: 2 if parts[0] == "agents" else 1])


@cache
def imports(module: str) -> set[str]:
    """Everything that a module imports, wherever it does so; of this package as modules, else top names."""
    found = set()
    for node in ast.walk(ast.parse(modules()[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{module}: a relative import"
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (members & modules().keys()) or {node.module}
    return found


@pytest.mark.parametrize("module", modules())
def test_imports_only_go_down(module: str) -> None:
    own = room(module)
    assert own in FLOORS, f"{own} has no floor yet: give it one in {__name__}"
    for other in imports(module):
        if other.partition(".")[0] == "edgerec_gym" and room(other) != own:
            below = FLOORS.index(room(other)) < FLOORS.index(own)
            assert below, f"{module} imports {other}, which does not stand below it"


def test_every_floor_is_there() -> None:
    assert sorted({room(module) for module in modules()}) == sorted(FLOORS)


@pytest.mark.parametrize("module", modules())
def test_agents_are_known_to_commands_and_the_benchmark_only(module: str) -> None:
    if room(module).partition(".")[0] not in ("agents", *ABOVE_AGENTS):
        assert not [name for name in imports(module) if name.startswith("edgerec_gym.agents")]


@pytest.mark.parametrize("start", WITHOUT_TORCH)
def test_the_phone_and_the_cloud_never_load_torch(start: str) -> None:
    """Neither they nor anything that they import, except what is a model's training alone."""
    waiting = [module for module in modules() if room(module) == start]
    seen = set(waiting)
    while waiting:
        module = waiting.pop()
        for other in imports(module):
            assert other.partition(".")[0] != "torch", f"{module} loads torch"
            if other in modules() and other not in seen:
                seen.add(other)
                waiting.append(other)
