"""The command `edgerec`. Torch and the agents are imported inside the commands that need them."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple, NoReturn

import typer
from typer.core import TyperGroup

from edgerec_gym import __version__, interrupts
from edgerec_gym.commands import (
    bench,
    catalogue,
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

    def format_commands(self, context: Any, formatter: Any) -> None:
        """Write the commands of `edgerec` in groups; a group without groups lists its own."""
        own = {"Commands": dict.fromkeys(self.list_commands(context))}
        groups: dict[str, Any] = GROUPS if context.parent is None else own
        longest = max(len(name) for group in groups.values() for name in group)
        for title, group in groups.items():
            with formatter.section(title):
                limit = formatter.width - 6 - longest
                rows = [(name, self._about(context, name, limit)) for name in group]
                formatter.write_dl([(name.ljust(longest), about) for name, about in rows])

    def _about(self, context: Any, name: str, limit: int) -> str:
        command = self.get_command(context, name)
        return "" if command is None else str(command.get_short_help_str(limit))

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
        # pydantic, which typer's errors quote, says "Value error, " before what is wrong
        console.note("error: " + " ".join(message.replace(": Value error, ", ": ").split()))
        sys.exit(2)


app = typer.Typer(
    cls=OneLineErrors,
    name="edgerec",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Train and judge policies for a recommender feed on the phone."""
    if version:
        print(f"edgerec_gym {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


class Command(NamedTuple):
    """A command: what runs, and a line to copy."""

    run: Callable[..., None] | typer.Typer
    example: str


GROUPS: dict[str, dict[str, Command]] = {
    "Start": {
        "demo": Command(studies.demo, "edgerec demo --quick"),
        "agents": Command(catalogue.agents, "edgerec agents"),
        "tracks": Command(catalogue.tracks, "edgerec tracks"),
        "scenarios": Command(catalogue.scenarios, "edgerec scenarios"),
    },
    "Policies": {
        "train": Command(
            policies.train, "edgerec train --agent pointer-ppo --scenario lite --out runs/pointer"
        ),
        "evaluate": Command(policies.evaluate, "edgerec evaluate runs/pointer device-greedy"),
        "replay": Command(pages.replay, "edgerec replay runs/pointer --out runs/replay.html"),
        "report": Command(pages.report, "edgerec report runs/pointer"),
    },
    "Logs and users": {
        "collect": Command(logs.collect, "edgerec collect --preset lite --sessions 1000 --out runs/logs"),
        "import": Command(logs.import_logs, "edgerec import my.csv --guess"),
        "items": Command(logs.items, "edgerec items runs/logs"),
        "fit": Command(users.fit, "edgerec fit runs/logs --out runs/users"),
        "fidelity": Command(users.fidelity, "edgerec fidelity runs/users runs/logs"),
        "info": Command(users.info, "edgerec info lite"),
        "scenario": Command(users.refit, "edgerec scenario --name lite --out runs/scenarios"),
        "export-logs": Command(
            offline.export_logs, "edgerec export-logs runs/logs --out runs/minari/edgefeed-v0"
        ),
        "off-policy": Command(offline.off_policy, "edgerec off-policy runs/logs --policy fixed-interval"),
    },
    "Phone and cloud": {
        "distil": Command(
            distil.distil, "edgerec distil --teacher runs/sasrec --logs runs/logs --out runs/student"
        ),
        "export": Command(policies.export, "edgerec export runs/pointer --out runs/phone-model"),
        "compress": Command(compress.compress, "edgerec compress runs/student --bits 8 --out runs/small"),
        "registry": Command(registry.registry, "edgerec registry publish feed runs/phone-model"),
        "serve": Command(edge.serve, "edgerec serve lite-v2 --state runs/service"),
        "token": Command(edge.token, "edgerec token --state runs/service --device phone-1 --user 7"),
        "phone": Command(phone.phone, "edgerec phone runs/phone-model --secret runs/service/secret"),
    },
    "Benchmarks": {
        "bench": Command(bench.bench, "edgerec bench --quick"),
        "bench-env": Command(studies.bench_env, "edgerec bench-env --quick"),
    },
}
for _group in GROUPS.values():
    for _name, (_run, _example) in _group.items():
        _epilog = f"Example:\n\n\b\n  {_example}"
        if isinstance(_run, typer.Typer):
            app.add_typer(_run, name=_name, epilog=_epilog)
        else:
            app.command(_name, epilog=_epilog)(_run)
bench.bench.command("distil")(distil.bench_distil)
bench.bench.command("sync")(edge_studies.bench_sync)
bench.bench.command("edge")(edge_studies.bench_edge)
bench.bench.command("load")(load.bench_load)
bench.bench.command("faults")(faults.bench_faults)


def main() -> None:
    """Entry point of the command `edgerec`."""
    interrupts.install()
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    app()


if __name__ == "__main__":
    main()
