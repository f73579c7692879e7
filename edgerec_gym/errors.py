"""One error type for bad input, so that callers (and the CLI) can tell bad input from a bug."""


class InputError(ValueError):
    """Bad input: the message says in one line what is wrong, where, and what is allowed."""


class MissingExtraError(ImportError):
    """An optional dependency is not installed; the message names the pip line that installs it."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs an extra: pip install 'edgerec_gym[{extra}]'")
