"""The command line, called in this process."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner, Result

from edgerec_gym.cli import app


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def run_well(*arguments: object) -> str:
    """What the command prints on stdout; it must end well."""
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def fails_with(message: str, *arguments: object) -> None:
    """The command ends with exit code 2 and this one line, and nothing on stdout."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert result.stderr.startswith("error: ") and message in result.stderr, result.stderr


def tiny_logs(out: Path) -> Path:
    """Collect 30 sessions of lite."""
    run_well("collect", "--preset", "lite", "--sessions", 30, "--out", out)
    return out
