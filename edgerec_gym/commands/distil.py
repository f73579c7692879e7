"""Commands about distillation: distil, and bench distil."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from edgerec_gym.commands import console
from edgerec_gym.commands.bench import RESULTS, RUNS
from edgerec_gym.commands.options import AsJson, ScenarioName, Seed
from edgerec_gym.commands.policies import assignments


def distil(
    teacher: Annotated[Path, typer.Option(help="Run of a teacher: lightgcn, sasrec or deepfm.")],
    logs: Annotated[Path, typer.Option(help="Log folder that the teacher was trained on.")],
    out: Annotated[Path, typer.Option(help="Folder of the student's run.")],
    scenario: ScenarioName = "default",
    student: Annotated[Literal["crban", "dnn"], typer.Option(help="Network of the student.")] = "crban",
    resume: Annotated[bool, typer.Option(help="Resume from the last checkpoint in the folder.")] = True,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="A hyper-parameter of the student (hidden=8) or the weight of a term: ranking, embedding, "
            "interpolation, by_confidence, top; 0 leaves a term out.",
        ),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Torch threads; more is rarely faster.")] = 1,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Distil a teacher into a small re-ranker.

    The student plays and is exported like any other agent.
    """
    from edgerec_gym.agents.distillation.train import DistillationConfig
    from edgerec_gym.agents.distillation.train import distil as train

    given = assignments(set_ or [])
    terms = {field.name for field in fields(DistillationConfig)}
    with (
        console.interruptible(f"checkpoints in {out} are kept; the same command resumes"),
        console.progress_bar("distil") as progress,
    ):
        record = train(
            out,
            logs,
            teacher,
            scenario=scenario,
            student=student,
            seed=seed,
            resume=resume,
            threads=threads,
            progress=progress,
            distillation={name: value for name, value in given.items() if name in terms},
            **{name: value for name, value in given.items() if name not in terms},
        )
    if as_json:
        console.print_json(record | {"out": str(out)})
        return
    best = max(record["ndcg"])
    print(f"{out}: {record['steps']} epochs, NDCG@10 {best:.4f} on the stopping sessions")


def bench_distil(
    scenario: Annotated[
        str, typer.Option("--scenario", metavar="NAME", help="A shipped scenario with synthetic users.")
    ] = "lite-v2",
    logs: Annotated[
        Path | None, typer.Option(help="Log of that scenario's users to learn from; default: collect one.")
    ] = None,
    sessions: Annotated[
        int | None, typer.Option("--sessions", min=2, help="Sessions that each policy plays.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of logs and runs; default runs/bench-distil-SCENARIO.")
    ] = None,
    results: Annotated[
        Path | None, typer.Option(help="JSON file for the rows; default benchmarks/results/distil.json.")
    ] = None,
    students: Annotated[
        list[str] | None,
        typer.Option(
            "--student",
            metavar="NAME",
            help="Only this student besides the plain one; repeatable. Default: all.",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, max=100, help="Number of training seeds.")] = 3,
    quick: Annotated[bool, typer.Option("--quick", help="Tiny networks, one seed, a few minutes.")] = False,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Number of processes that play.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Compare teachers, students and terms of distillation.

    The ground truth judges what each term is worth.
    """
    from edgerec_gym.bench.distil import study
    from edgerec_gym.evaluation.cache import save_rows, saved_rows

    sizes = study.quick() if quick else study.Sizes()
    if sessions is not None:
        sizes = replace(sizes, sessions=sessions)
    out = out or RUNS / f"bench-distil-{scenario}{'-quick' if quick else ''}"
    results = results or (out / "distil.json" if quick else RESULTS / "distil.json")
    saved_rows(results)  # fail before the work starts
    with (
        console.interruptible(f"what is finished in {out} is kept; the same command resumes"),
        console.progress_bar("bench distil") as progress,
    ):
        rows, decided = study.run(
            out,
            scenario=scenario,
            logs=logs,
            sizes=sizes,
            seeds=1 if quick else seeds,
            students=tuple(students) if students else tuple(study.STUDENTS),
            workers=workers,
            progress=progress,
        )
    about = {"scenario": scenario, "quick": quick, "seeds": 1 if quick else seeds, **decided}
    save_rows(results, rows, about, same=("scenario", "quick"))
    if as_json:
        console.print_json({"rows": rows, "about": about})
        return
    for title, (header, body) in study.tables(rows).items():
        console.print_table(title, header, body)
    for where, gate in decided["gate"].items():
        state = "open" if gate["open"] else "closed: nothing to distil"
        over = f"{gate['mean']:+.4f} [{gate['low']:+.4f}, {gate['high']:+.4f}]"
        print(f"gate, {where}: {decided['teacher']} over the plain student {over}, {state}")
    print(f"rows: {results}")
