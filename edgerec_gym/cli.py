"""The command `edgerec`. Torch and the agents are imported inside the commands that need them."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from edgerec_gym import __version__, interrupts
from edgerec_gym.commands import (
    bench,
    compress,
    console,
    distil,
    edge,
    edge_studies,
    faults,
    load,
    logs,
    offline,
    pages,
    phone,
    policies,
    registry,
    studies,
    users,
)
from edgerec_gym.errors import InputError, MissingExtraError

# Recent versions of typer bundle their own click; this is the UsageError of whichever it uses.
UsageError: Any = typer.BadParameter.__base__


class OneLineErrors(TyperGroup):
    """Commands that end in one line on stderr and exit code 2 on bad input; bugs still show a traceback."""

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Run the command and exit."""
        try:
            code = super().main(*args, **{**kwargs, "standalone_mode": False})
            sys.stdout.flush()  # a full disk is told like any other error
        except (KeyboardInterrupt, typer.Abort):
            console.note("interrupted")
            sys.exit(interrupts.exit_code() or console.INTERRUPTED)
        except BrokenPipeError:  # the reader of a pipe has seen enough
            self._leave_stdout()
            sys.exit(1)
        except UsageError as error:
            self._fail(error.format_message())
        except (InputError, MissingExtraError) as error:
            self._fail(str(error))
        except OSError as error:
            self._leave_stdout()
            self._fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        sys.exit(code if isinstance(code, int) else 0)

    @staticmethod
    def _leave_stdout() -> None:
        """Drop what could not be written: flushing it again at the end of the process would fail again."""
        try:
            sys.stdout.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    @staticmethod
    def _fail(message: str) -> NoReturn:
        console.note("error: " + " ".join(message.split()))
        sys.exit(2)


app = typer.Typer(
    cls=OneLineErrors,
    name="edgerec",
    help="On-device feed recommendation: collect logs, fit users, train and evaluate policies.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """On-device feed recommendation: collect logs, fit users, train and evaluate policies."""
    if version:
        print(f"edgerec_gym {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


COMMANDS: dict[str, Callable[..., None]] = {
    "collect": logs.collect,
    "import": logs.import_logs,
    "items": logs.items,
    "fit": users.fit,
    "train": policies.train,
    "evaluate": policies.evaluate,
    "distil": distil.distil,
    "export": policies.export,
    "compress": compress.compress,
    "export-logs": offline.export_logs,
    "off-policy": offline.off_policy,
    "replay": pages.replay,
    "report": pages.report,
    "info": users.info,
    "fidelity": users.fidelity,
    "scenario": users.refit,
    "phone": phone.phone,
    "serve": edge.serve,
    "token": edge.token,
    "demo": studies.demo,
    "bench-env": studies.bench_env,
}
for _name, _command in COMMANDS.items():
    app.command(_name)(_command)
bench.bench.command("distil")(distil.bench_distil)
bench.bench.command("sync")(edge_studies.bench_sync)
bench.bench.command("edge")(edge_studies.bench_edge)
bench.bench.command("load")(load.bench_load)
bench.bench.command("faults")(faults.bench_faults)
app.add_typer(bench.bench, name="bench")
app.add_typer(registry.registry, name="registry")


def main() -> None:
    """Entry point of the command `edgerec`."""
    interrupts.install()
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    app()


if __name__ == "__main__":
    main()
