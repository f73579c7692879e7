"""`edgerec report`: one HTML file with all results of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgerec_gym import __version__
from edgerec_gym.pages.html import escape, page, write_page
from edgerec_gym.pages.run_sections import (
    curve_section,
    evaluation_section,
    exploitation_section,
    fidelity_section,
    training_section,
)
from edgerec_gym.pages.sources import Sources, fidelity_parts, find_sources
from edgerec_gym.pages.track_sections import Track, track_sections

FILE = "report.html"
Section = tuple[str, str]  # title, HTML
# Content of a section -> the command that makes it; the tracks of the benchmark are added to these.
MAKERS = {
    "evaluation": "edgerec evaluate --out RUN",
    "learning curves": "edgerec train, or edgerec demo",
    "fidelity": "edgerec fidelity --out RUN",
}


def write_report_page(
    run: str | Path,
    out: str | Path | None = None,
    *,
    curve: dict[str, Any] | None = None,
    tracks: Sequence[Track] = (),
) -> tuple[Path, list[str], list[str]]:
    """Write the report of a run.

    Args:
        run: folder or file, see :func:`~edgerec_gym.pages.sources.find_sources`.
        out: the HTML file; None for report.html in the run's folder.
        curve: a learning curve that is not in a file of the run.
        tracks: tracks of the benchmark, for their titles.

    Returns:
        The file, the titles of its sections, and the missing parts, each with the command that makes it.

    Raises:
        InputError: there is nothing to report, a file is broken, or `out` cannot be written.
    """
    run = Path(run)
    found = find_sources(run)
    if curve is not None:
        found.curves.append((run, curve))
    sections, missing = _sections(found, tracks), _missing(found, tracks)
    folder = run if run.is_dir() else run.parent
    path = write_page(out if out is not None else folder / FILE, _page(run, found, sections, missing))
    return path, [title for title, _ in sections], missing


def _sections(found: Sources, tracks: Sequence[Track]) -> list[Section]:
    sections: list[Section] = []
    order = ["joint", *(track.name for track in tracks if track.name != "joint"), "all"]
    ranks = {name: rank for rank, name in enumerate(order)}  # joint first, unknown tracks last
    for file, rows in sorted(found.tracks, key=lambda source: ranks.get(source[0].stem, len(ranks))):
        sections += track_sections(file.stem, rows, tracks)
    for file, rows in found.evaluations:
        places = [tuple(str(r[key]) for key in ("env_id", "scenario") if r.get(key)) for r in rows]
        for place in dict.fromkeys(places):
            own = [row for row, where in zip(rows, places, strict=True) if where == place]
            sections.append((f"Evaluation: {', '.join(place) or file.stem}", evaluation_section(own)))
    if curves := curve_section([curve for _, curve in found.curves]):
        sections.append(("Learning curves", curves))
    for _, content in found.exploitation:
        sections.append((f"Learning curves: {content.get('scenario', '')}", exploitation_section(content)))
    for _, record in found.trainings:
        sections.append((f"Training: {record.get('agent', 'a policy')}", training_section(record)))
    for _, content in found.fidelity:
        for name, part in fidelity_parts(content).items():
            sections.append((f"Fidelity of learned users: {name}", fidelity_section(part)))
    return sections


def _missing(found: Sources, tracks: Sequence[Track]) -> list[str]:
    """Return the parts that the report lacks, each with the command that makes it."""
    here = {row.get("track", file.stem) for file, rows in found.tracks for row in rows}
    here |= {"evaluation"} if found.evaluations else set()
    here |= {"learning curves"} if found.curves or found.exploitation or found.trainings else set()
    here |= {"fidelity"} if found.fidelity else set()
    played = {track.name: f"edgerec bench {track.name}" for track in tracks}
    makers = (played if found.tracks else {}) | MAKERS  # only a benchmark can lack tracks
    return [f"{name} ({maker})" for name, maker in makers.items() if name not in here]


def _page(run: Path, found: Sources, sections: list[Section], missing: list[str]) -> str:
    links = "".join(f'<a href="#s{k}">{escape(title)}</a>' for k, (title, _) in enumerate(sections))
    body = [
        f'<header><h1>Report: {escape(run.resolve().name)}</h1><p class="note">edgerec_gym {__version__}</p>',
        f'<nav aria-label="sections">{links}</nav></header><main>',
    ]
    body += [
        f'<section id="s{k}"><h2>{escape(title)}</h2>{content}</section>'
        for k, (title, content) in enumerate(sections)
    ]
    if missing:
        items = "".join(f"<li>{escape(text)}</li>" for text in missing)
        body.append(f'<section class="missing"><h2>Not in this run</h2><ul>{items}</ul></section>')
    body.append("</main>")
    if found.about:
        told = "".join(f"<li>{escape(Path(f).name)}: {escape(text)}</li>" for f, text in found.about.items())
        body.append(f"<footer><h2>Made by</h2><ul>{told}</ul></footer>")
    return page(
        f"edgerec report: {run.resolve().name}", "\n".join(body), ["base.css", "report.css"], ["report.js"]
    )
