"""Markdown tables and headings in docstrings, as reStructuredText."""

from __future__ import annotations

from typing import Any


def convert(app: Any, what: str, name: str, found: Any, options: Any, lines: list[str]) -> None:
    """Change the lines of a docstring in place; called by Sphinx for each one."""
    out: list[str] = []
    table: list[str] = []
    for line in [*lines, ""]:
        if line.lstrip().startswith("|"):
            table.append(line)
            continue
        if table:
            out += _list_table(table)
            table = []
        heading = line.lstrip("#").strip() if line.startswith("#") else ""
        out += ["", f"**{heading}**", ""] if heading else [line]
    lines[:] = out


def _list_table(rows: list[str]) -> list[str]:
    """A Markdown table as the directive list-table."""
    indent = rows[0][: len(rows[0]) - len(rows[0].lstrip())]
    cells = [[cell.strip() for cell in row.strip().strip("|").split("|")] for row in rows]
    if set("".join(cells[1])) > set("-: "):
        raise ValueError(f"not a Markdown table: {rows[:2]}")
    out = ["", f"{indent}.. list-table::", f"{indent}   :header-rows: 1", ""]
    for row in [cells[0], *cells[2:]]:
        for place, cell in enumerate(row):
            out.append(f"{indent}   {'* -' if place == 0 else '  -'} {cell}".rstrip())
    return [*out, ""]
