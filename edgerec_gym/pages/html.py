"""Parts of a page. All text passes through `escape`, and the page fetches nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape as escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from edgerec_gym import __version__
from edgerec_gym.errors import InputError
from edgerec_gym.files import atomic_path, json_ready, make_folder

# Nothing may be loaded: the page contains all it shows.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def asset(name: str) -> str:
    """Return the text of a style sheet or script of this package."""
    return (files(__package__) / name).read_text(encoding="utf-8")


def page(
    title: str, body: str, styles: Sequence[str], scripts: Sequence[str] = (), *, policy: str = POLICY
) -> str:
    """Return a whole page.

    Args:
        title: title of the document.
        body: HTML of the body.
        styles: names of style sheets of this package.
        scripts: names of scripts of this package, run at the end of the body.
        policy: what the page may load (Content-Security-Policy).
    """
    style = "\n".join(asset(name) for name in styles)
    script = "\n".join(f"<script>\n{asset(name)}</script>" for name in scripts)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="generator" content="edgerec_gym {__version__}">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>
{style}</style>
</head>
<body>
{body}
{script}
</body>
</html>
"""


def data(name: str, value: Any) -> str:
    """Return JSON for the page's scripts as an element with an id; NaN and infinity become null."""
    text = json.dumps(json_ready(value), separators=(",", ":"), allow_nan=False)
    # "</script>" in a name must not end the element.
    return f'<script type="application/json" id="{name}">{text.replace("<", chr(92) + "u003c")}</script>'


def table(header: Sequence[str], body: Sequence[Sequence[str]], caption: str = "") -> str:
    """Return a table that scrolls sideways if it is wider than the page, with a fixed first column."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
    rows = "".join(
        f'<tr><th scope="row">{escape(first)}</th>{"".join(f"<td>{escape(c)}</td>" for c in others)}</tr>'
        for first, *others in body
    )
    told = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="table">'
        f"<table>{told}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def figure(title: str, drawing: str, legend: str = "", note: str = "") -> str:
    """Return a drawing with its title above and its legend and note below."""
    told = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<figure><figcaption>{escape(title)}</figcaption>{drawing}{legend}{told}</figure>"


def check_file(path: str | Path) -> Path:
    """Return the path of an output file and make its folder; raise InputError if it cannot be written."""
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder; name an HTML file")
    make_folder(path.parent)
    return path


def write_page(path: str | Path, content: str) -> Path:
    """Write an HTML file atomically; raise InputError if it cannot be written."""
    path = check_file(path)
    with atomic_path(path) as temporary:
        temporary.write_text(content, encoding="utf-8")
    return path
