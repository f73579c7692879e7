"""Import paths that the documentation showed before modules moved; they go on to work, with a warning."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "edgerec_gym.agents.base": "edgerec_gym.policy",
    "edgerec_gym.agents.pointer_policy": "edgerec_gym.agents.ppo.pointer_policy",
    "edgerec_gym.batch": "edgerec_gym.feed.batch",
    "edgerec_gym.sb3": "edgerec_gym.adapters.sb3",
}


class MovedModules(MetaPathFinder, Loader):
    """Finds modules under their old names; asked last, when nothing else has found them."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return a spec for an old name; None for every other name."""
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return a module that hands on the names of the one that has moved."""
        new = MOVED[spec.name]
        warnings.warn(f"{spec.name} is now {new}", DeprecationWarning, stacklevel=2)
        module = ModuleType(spec.name, f"Moved to {new}.")
        module.__dict__.update({k: v for k, v in vars(import_module(new)).items() if k[:2] != "__"})
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: the module is complete."""


def install() -> None:
    """Answer imports under the old names from now on."""
    if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(MovedModules())
