"""Write the leaderboard of the README from the benchmark's results.

    python -m benchmarks.leaderboard [--check]

The tables stand between two comments of README.md; what is there is replaced. `--check` writes nothing, and
fails if they are not what the results say.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from edgerec_gym.bench.contest import TRACKS
from edgerec_gym.bench.rows import leaderboards
from edgerec_gym.bench.run import ALL, NAME
from edgerec_gym.evaluation.cache import Rows
from edgerec_gym.evaluation.report import markdown_table
from edgerec_gym.files import atomic_path, read_json

ROOT = Path(__file__).parent.parent
START, END = (
    "<!-- leaderboard: made by python -m benchmarks.leaderboard -->",
    "<!-- end of the leaderboard -->",
)


def published(results: Path) -> tuple[Rows, Rows]:
    """Rows and runs of the last full benchmark, or of a quick run where there is no full one; joint first."""
    file = results / f"{NAME}.json"
    if not file.is_file():
        return [], []
    content = read_json(file)
    full = {(run["track"], run["scenario"]) for run in content["runs"] if not run["quick"]}

    def shown(item: dict[str, Any]) -> bool:
        return item["track"] != ALL and item["quick"] != ((item["track"], item["scenario"]) in full)

    rows, runs = (
        sorted(filter(shown, content[name]), key=lambda item: -TRACKS.index(item["track"]))
        for name in ("rows", "runs")
    )
    return rows, runs


def leaderboard(results: Path) -> str:
    """Return the tables in Markdown, with what they come from; one line if there are no results."""
    rows, runs = published(results)
    if not rows:
        return "No run of the benchmark is published yet."
    lines = []
    about = {(run["track"], run["scenario"]): run for run in runs}
    for (track, scenario), (header, body) in zip(
        dict.fromkeys((item["track"], item["scenario"]) for item in rows),
        leaderboards(rows).values(),
        strict=True,
    ):
        run = about[track, scenario]
        size = "`--quick`, shipped runs" if run["quick"] else f"{run['seeds']} training seeds"
        title = f"**{track}**, `{scenario}`, {run['sessions']:,} sessions, {size}"
        lines += [f"{title} ({run['versions']['edgerec_gym']}, {run['machine']}):", ""]
        lines += [*markdown_table(header, body), ""]
    return "\n".join(lines).rstrip()


def replaced(text: str, tables: str) -> str:
    """Return a text with these tables between the comments; ValueError if it lacks the comments."""
    start, end = text.index(START) + len(START), text.index(END)
    return f"{text[:start]}\n\n{tables}\n\n{text[end:]}"


def main() -> None:
    """Write, or check."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    wanted = replaced(text, leaderboard(ROOT / "benchmarks/results"))
    if parser.parse_args().check:
        raise SystemExit(None if wanted == text else "README.md: the leaderboard is not that of the results")
    with atomic_path(readme) as temporary:
        temporary.write_text(wanted, encoding="utf-8")


if __name__ == "__main__":
    main()
