"""Commands that run a whole study: demo, bench-env."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from edgerec_gym.commands import console
from edgerec_gym.commands.options import AsJson, Seed
from edgerec_gym.errors import InputError
from edgerec_gym.files import make_folder


def demo(
    out: Annotated[Path, typer.Option(help="Folder; finished stages in it are skipped.")] = Path("runs/demo"),
    quick: Annotated[bool, typer.Option("--quick", help="Run every stage at a tiny size.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over.")] = False,
    live: Annotated[
        bool, typer.Option("--live", help="Instead: a phone and a cloud at work, to watch in the browser.")
    ] = False,
    speed: Annotated[
        float | None, typer.Option(help="With --live: how much faster than people it plays; default 1.5.")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65_535, help="With --live: of the page; default: one that is free."),
    ] = None,
    browser: Annotated[
        bool, typer.Option(" /--no-browser", help="With --live: print the address only.", show_default=False)
    ] = True,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Go from log to trained policy in a few minutes.

    The demo collects logs, fits users, trains a policy and scores it on the ground truth.
    """
    if live:
        if quick or fresh or as_json:
            raise InputError("--live takes no --quick, --fresh or --json")
        return _live(out / "live", 1.5 if speed is None else speed, port or 0, browser, seed)
    if speed is not None or port is not None or not browser:
        raise InputError("--speed, --port and --no-browser need --live")
    from edgerec_gym.commands.demo import PAGE, REPLAY, learned, run_demo

    with console.interruptible(
        f"finished stages and checkpoints in {out} are kept; the same command resumes"
    ):
        results, report = run_demo(out, quick=quick, fresh=fresh, seed=seed)
    if as_json:
        console.print_json({"results": results, "report": str(report), "page": str(out / PAGE)})
        return
    console.print_results(results)
    print(learned(results))
    print(f"one session of the pretrained agent, slot by slot: {out / REPLAY}")
    print(f"report, to open in a browser: {out / PAGE}")
    policy, scenario = (shlex.quote(str(out / name)) for name in ("policy", "scenario"))
    print("next:")
    print(f"  edgerec replay {policy} --scenario {scenario} --out {shlex.quote(str(out / 'mine.html'))}")
    print(f"  edgerec export {policy} --scenario {scenario} --out {shlex.quote(str(out / 'phone'))}")
    print("  edgerec demo --live")


def _live(folder: Path, speed: float, port: int, browser: bool, seed: int) -> None:
    """Show phone and cloud until Ctrl-C."""
    from edgerec_gym.commands.live import LiveSettings, open_page, run_live

    def ready(url: str) -> None:
        print(f"phone and cloud, live: {url} (Ctrl-C ends it)", flush=True)
        if browser:
            open_page(url)

    with console.interruptible("phone and cloud have ended"):
        run_live(LiveSettings(folder, port, speed, seed), ready)


def bench_env(
    out: Annotated[
        Path, typer.Option(help="JSON file; its figures of this version and machine are kept.")
    ] = Path("runs/throughput.json"),
    quick: Annotated[bool, typer.Option("--quick", help="EdgeFeed-v0 on the default preset only.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure everything again.")] = False,
    seconds: Annotated[float, typer.Option(min=0.1, max=600, help="Seconds per configuration.")] = 2.0,
    as_json: AsJson = False,
) -> None:
    """Measure speed and memory of the environment.

    Steps per second stand beside those of plain copies; imports and the first make are timed, too.
    """
    from edgerec_gym.evaluation.throughput import bench, throughput_tables

    make_folder(out.parent)
    with (
        console.interruptible(f"the figures in {out} are kept; the same command resumes"),
        console.progress_bar("bench-env") as update,
    ):
        results = bench(out, quick=quick, fresh=fresh, seconds=seconds, progress=update)
    if as_json:
        console.print_json(results)
        return
    for title, (header, body) in throughput_tables(results).items():
        console.print_table(title, header, body)
