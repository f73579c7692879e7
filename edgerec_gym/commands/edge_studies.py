"""The commands `edgerec bench sync` and `edgerec bench edge`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from edgerec_gym.commands import console
from edgerec_gym.commands.options import AsJson
from edgerec_gym.documents import read_json
from edgerec_gym.errors import InputError
from edgerec_gym.files import make_folder, write_json

RESULTS = Path("benchmarks/results/edge.json")
Quick = Annotated[bool, typer.Option("--quick", help="Few sessions, in a few minutes.")]
Out = Annotated[Path | None, typer.Option(help="Folder of models and sessions played.")]
Results = Annotated[Path, typer.Option(help="JSON file for the rows.")]


def bench_sync(
    scenario: Annotated[
        list[str] | None, typer.Option("--scenario", metavar="NAME", help="Shipped scenario; repeatable.")
    ] = None,
    quick: Quick = False,
    out: Out = None,
    results: Results = RESULTS,
    as_json: AsJson = False,
) -> None:
    """Measure interest sync: mood switches noticed, bytes."""
    study = _study(quick, out)
    names = scenario or ["lite", "lite-v2", "default-v2"]
    with console.interruptible("nothing is kept"):
        rows = study.sync(names)
    _save(results, "sync", rows, quick)
    if as_json:
        console.print_json(rows)
        return
    body = [
        [
            row["scenario"],
            row["sync"],
            f"{row['switches']:,}",
            str(row["horizon"]),
            _share(row["capture"]),
            _share(row["ceiling"]),
            f"{row['sync_bytes']:,.0f}",
            f"{row['sync_bytes'] / row['snapshot_bytes']:.1%}",
        ]
        for row in rows
    ]
    header = ["scenario", "sync", "switches", "H", "captured", "phone", "bytes", "of snapshots"]
    console.print_table("Mood switches that the cloud notices within H slots", header, body)
    print(f"rows: {results}")


def bench_edge(
    scenario: Annotated[
        str, typer.Option("--scenario", metavar="NAME", help="Shipped scenario with a joint agent.")
    ] = "lite-v2",
    scenes: Annotated[
        bool, typer.Option("--scenes/--no-scenes", help="Also short-video, live and food.")
    ] = True,
    quick: Quick = False,
    out: Out = None,
    results: Results = RESULTS,
    as_json: AsJson = False,
) -> None:
    """Measure what phone, sync and small models are worth.

    Each is left out in turn: latency, value, bytes and requests.
    """
    from edgerec_gym.agents.compression.compress import Compression, compress
    from edgerec_gym.agents.export.export import export
    from edgerec_gym.bench.shipped import shipped_folder
    from edgerec_gym.commands.demo import SCENES

    study = _study(quick, out)
    models = make_folder(study.folder / "models")
    runs = {scenario: shipped_folder("joint", scenario) / "runs" / "values-pg-0"}
    if scenes:
        runs |= {name: shipped_folder("rerank", name) / "runs" / "values-0" for name in SCENES}
    for name, run in runs.items():
        if not run.is_dir():
            raise InputError(f"scenario {name!r} ships no agent at {run}")
        if not (models / name).is_dir():
            export(run, models / name, scenario=name)
    rounded = models / f"{scenario}-8-bits"
    if not rounded.is_dir():
        compress(runs[scenario], rounded, Compression(8, 0.0, qat=False), scenario=scenario)
    with console.interruptible(f"sessions played in {study.folder} are kept; the same command resumes"):
        rows = study.ablation(scenario, runs[scenario], models / scenario, rounded)
        _save(results, "ablation", rows, quick)
        found = [study.scene(name, runs[name], models / name) for name in runs if name != scenario]
    _save(results, "scenes", found, quick)
    if as_json:
        console.print_json({"ablation": rows, "scenes": found})
        return
    header = ["system", "value", "below full", "decision p50", "p99 ms", "kB", "up B", "down B", "requests"]
    body = [
        [
            row["system"],
            _number(row["value"]),
            _number(row["below_full"]),
            f"{row['decision_p50_ms']:.1f}",
            f"{row['decision_p99_ms']:.1f}",
            f"{row['model_bytes'] / 1e3:,.0f}",
            f"{row['bytes_up']:,.0f}",
            f"{row['bytes_down']:,.0f}",
            f"{row['requests']:.2f}",
        ]
        for row in rows
    ]
    console.print_table(f"Phone and cloud on {scenario}", header, body)
    if found:
        header = ["scenario", "budget ms", "decision p50", "p99 ms", "decisions", "missed", "over keep"]
        body = [
            [
                row["scenario"],
                f"{row['budget_ms']:.0f}",
                f"{row['decision_p50_ms']:.1f}",
                f"{row['decision_p99_ms']:.1f}",
                f"{row['decisions']:,}",
                f"{row['missed_share']:.2%}",
                _number(row["over_keep"]),
            ]
            for row in found
        ]
        console.print_table("Scenes with a latency budget", header, body)
    print(f"rows: {results}")


def _study(quick: bool, out: Path | None) -> Any:
    from edgerec_gym.bench.edge.study import QUICK, Sizes, Study

    folder = make_folder(out or Path("runs") / f"bench-edge{'-quick' if quick else ''}")
    return Study(folder, QUICK if quick else Sizes(), tell=console.note)


def _save(results: Path, part: str, rows: list[dict[str, Any]], quick: bool) -> None:
    """Replace a part of the results file."""
    from edgerec_gym.evaluation.latency import measured_on

    make_folder(results.parent)
    known = read_json(results) if results.is_file() else {}
    about = {"quick": quick, **measured_on("onnxruntime", "numpy")}
    write_json(results, known | {part: {"about": about, "rows": rows}})


def _share(interval: dict[str, float]) -> str:
    return f"{interval['mean']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]"


def _number(interval: dict[str, float]) -> str:
    return f"{interval['mean']:.2f} [{interval['low']:.2f}, {interval['high']:.2f}]"
