"""Old import paths of the documentation go on to work, with a warning that names the new one."""

from __future__ import annotations

import importlib
import sys

import pytest

from edgerec_gym.moved import MOVED


@pytest.mark.parametrize("old", MOVED)
def test_an_old_path_hands_on_what_has_moved(old: str) -> None:
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=f"{old} is now {MOVED[old]}"):
        found = importlib.import_module(old)
    new = importlib.import_module(MOVED[old])
    own = [name for name, value in vars(new).items() if getattr(value, "__module__", None) == new.__name__]
    assert own and all(getattr(found, name) is getattr(new, name) for name in own)


def test_a_path_that_never_was_is_an_import_error() -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("edgerec_gym.no_such_module")
