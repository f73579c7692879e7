"""One error type for bad input, so that callers (and the CLI) can tell bad input from a bug."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input: the message says in one line what is wrong, where, and what is allowed."""


class UnknownOptionError(InputError, TypeError):
    """An argument that does not exist; also a TypeError, as Python raises for such arguments.

    Libraries that try arguments (TorchRL's GymEnv: `frameskip`) catch the TypeError and go on without.
    """


class MissingExtraError(ImportError):
    """An optional dependency is not installed; the message names the pip line that installs it."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(feature, extra)  # an error is pickled as its type and these arguments
        self.msg = f"{feature} needs an extra: pip install 'edgerec_gym[{extra}]'"

    def __str__(self) -> str:
        return self.msg


def shown(value: object, most: int = 80) -> str:
    """Return a value as it stands in a message: one short line, whatever it is."""
    try:
        text = repr(getattr(value, "item", lambda: value)() if getattr(value, "ndim", 1) == 0 else value)
    except (ValueError, RecursionError):  # a number of thousands of digits, or endless nesting
        return f"a {type(value).__name__} too large to show"
    return text if len(text) <= most else f"{text[: most - 3]}..."


def closest(name: object, names: Iterable[str], what: str = "allowed:", most: int = 2000) -> str:
    """Return the end of a message about an unknown name: the closest known one, or else all of them.

    Args:
        name: what was given.
        names: what would have been right.
        what: words before the list of all names.
        most: characters after which the list is cut off.
    """
    known = list(names)
    folded = {one.casefold(): one for one in known}
    close = difflib.get_close_matches(str(name).casefold(), folded, n=1)
    text = ", ".join(known)
    text = text if len(text) <= most else f"{text[: most - 3]}..."
    return f"; did you mean {folded[close[0]]!r}?" if close else f"; {what} {text}"
