"""The commands `edgerec compress` and `edgerec bench compress`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from edgerec_gym.commands import console
from edgerec_gym.commands.options import AsJson, Engine, RunScenarioName, Seed
from edgerec_gym.device.engines.engine import ENGINES
from edgerec_gym.errors import InputError, closest
from edgerec_gym.files import folder_bytes


def compress(
    run: Annotated[Path, typer.Argument(help="Run of an agent that edgerec export takes.")],
    out: Annotated[Path, typer.Option(help="Folder of the device model; an existing one is replaced.")],
    bits: Annotated[int, typer.Option(help="Bits of the weights: 4, 8, or 32 to keep them.")] = 8,
    prune: Annotated[
        float, typer.Option(help="Share of the hidden units to remove, 0 to below 1; dnn, crban, *values*.")
    ] = 0.0,
    qat: Annotated[
        bool,
        typer.Option(
            help="Fine-tune while weights and kept state are rounded; --no-qat rounds at export only."
        ),
    ] = True,
    engine: Annotated[Engine, typer.Option(help="Engine that runs it on the phone.")] = "onnxruntime",
    logs: Annotated[
        Path | None,
        typer.Option(
            help="Log folder to fine-tune a re-ranker on. Without it, learned users are played, and the "
            "network before compression is the target."
        ),
    ] = None,
    scenario: RunScenarioName = None,
    work: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the fine-tuned run, which is resumed; default: that of --out, with -run."
        ),
    ] = None,
    places: Annotated[
        int | None, typer.Option(min=1, help="Maximum cards in a list; default: the scenario's slate_size.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="A hyper-parameter of the fine-tuning, e.g. epochs=5."
        ),
    ] = None,
    importance: Annotated[
        Literal["taylor", "norm"], typer.Option(help="What tells a unit's worth.")
    ] = "taylor",
    threads: Annotated[int, typer.Option(min=1, help="Torch threads.")] = 1,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Compress a trained agent for a phone.

    Hidden units are pruned, the rest is fine-tuned under rounding and exported with few bits.
    """
    from edgerec_gym.agents.compression.compress import Compression
    from edgerec_gym.agents.compression.compress import compress as compress_run
    from edgerec_gym.agents.compression.fine_tuning import TuningConfig
    from edgerec_gym.agents.run_place import run_place
    from edgerec_gym.commands.policies import assignments

    scenario = scenario or run_place(run).scenario or "default"

    tuning = TuningConfig.from_dict(assignments(set_ or []))
    how = Compression(bits, prune, qat, importance, tuning)
    with (
        console.interruptible("finished epochs are kept; the same command resumes"),
        console.progress_bar("compress") as progress,
    ):
        described = compress_run(
            run,
            out,
            how,
            scenario=scenario,
            logs=logs,
            work=work,
            engine=engine,
            places=places,
            seed=seed,
            threads=threads,
            progress=progress,
        )
    if as_json:
        console.print_json(described | {"out": str(out)})
        return
    size = folder_bytes(out)
    pruned = f", {prune:.0%} of the units pruned" if prune else ""
    print(f"{out}: {described['agent']} for {engine}, {bits} bits{pruned}, {size / 1e3:.1f} kB")


def bench_compress(
    out: Annotated[
        Path | None, typer.Option(help="Folder of models and figures; default runs/bench-compress[-quick].")
    ] = None,
    results: Annotated[Path, typer.Option(help="JSON file for the rows.")] = Path(
        "benchmarks/results/compress.json"
    ),
    students: Annotated[
        list[str] | None,
        typer.Option(
            "--student", help="crban, dnn or values-pg, the shipped runs; repeatable. Default: all."
        ),
    ] = None,
    engines: Annotated[
        list[str] | None,
        typer.Option("--engine", metavar="NAME", help=f"{', '.join(ENGINES)}; repeatable. Default: all."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="One student and seed, in a few minutes.")] = False,
    seeds: Annotated[int | None, typer.Option(min=1, max=100, help="Seeds of the fine-tuning.")] = None,
    sessions: Annotated[int | None, typer.Option(min=2, help="Sessions that each model plays.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare engines, bits, pruning and fine-tuning.

    Each combination is a row: bytes, time, ranking, and value on the ground truth.
    """
    from edgerec_gym.bench import compress as benchmark
    from edgerec_gym.evaluation.cache import save_rows, saved_rows

    known = {student.name: student for student in benchmark.shipped_students()}
    names = list(students or (["dnn"] if quick else known))
    for name in names:
        if name not in known:
            raise InputError(f"unknown student {name!r}{closest(name, known)}")
    saved_rows(results)  # fail before the work starts
    sizes = benchmark.QUICK if quick else benchmark.Sizes()
    sizes = replace(sizes, seeds=seeds or sizes.seeds, sessions=sessions or sizes.sessions)
    out = out or Path("runs") / f"bench-compress{'-quick' if quick else ''}"
    with (
        console.interruptible(f"what is finished in {out} is kept; the same command resumes"),
        console.progress_bar("bench") as progress,
    ):
        rows = benchmark.run(
            out,
            students=tuple(known[name] for name in names),
            engines=tuple(engines or ENGINES),
            sizes=sizes,
            progress=progress,
        )
    about = {
        "study": "compress",
        "quick": quick,
        "students": names,
        "seeds": sizes.seeds,
        "sessions": sizes.sessions,
        "judged": sizes.judged,
        "calls": sizes.calls,
        "logs": sizes.logs,
        "tuning": sizes.tuning.to_dict(),
        **benchmark.machine(),
    }
    save_rows(results, rows, about, same=("quick",))
    if as_json:
        console.print_json({"rows": rows, "about": about})
        return
    for title, (header, body) in benchmark.tables(rows).items():
        console.print_table(title, header, body)
    print(f"rows: {results}")
