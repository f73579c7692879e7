"""Charts as inline SVG, legible on a phone and in light and dark pages.

A drawing is 340 units wide and scales with its column. Colours are classes of report.css. Every mark has a
`<title>` for browsers to show on hover and for screen readers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from edgerec_gym.pages.html import escape
from edgerec_gym.pages.scales import Scale, fit, label, ticks

WIDTH = 340
LETTER = 5.9  # mean width of a letter in labels
DIGIT = 6.6
ORACLES = ("oracle", "true-effect")  # prefixes of the names of policies that read the ground truth
FEW = 7  # with more lines, only a chosen one shows its band
LONGEST_LABEL = 24  # letters
FAR = 0.5  # the scale leaves oracles out if the others then need less than this share of it
COLOURS = 8
MARKERS = (
    "M-3.4,0a3.4,3.4 0 1,0 6.8,0a3.4,3.4 0 1,0 -6.8,0z",  # circle
    "M-3,-3h6v6h-6z",  # square
    "M0,-4l4,7h-8z",  # triangle
    "M0,-4.4l4.4,4.4l-4.4,4.4l-4.4,-4.4z",  # diamond
    "M0,4l4,-7h-8z",  # triangle, point down
)


class Estimate(NamedTuple):
    """A mean with its interval."""

    mean: float
    low: float
    high: float


class ChartEntry(NamedTuple):
    """A line of an interval chart, with an estimate or None for each series."""

    name: str
    estimates: Sequence[Estimate | None]


class Line(NamedTuple):
    """A series of a line chart; low and high may be empty. If `joined` is False, only points are drawn."""

    name: str
    x: Sequence[float]
    mean: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    joined: bool = True
    marked: bool = True


def legend(names: Sequence[str]) -> str:
    """Return a list of series with their colours and marks; a tap shows one of them alone (report.js)."""
    items = "".join(
        f'<li><button type="button" data-series="{k}">'
        f'<svg viewBox="-6 -6 12 12" aria-hidden="true"><path class="mark c{k % COLOURS}" '
        f'd="{MARKERS[k % len(MARKERS)]}"/></svg>{escape(name)}</button></li>'
        for k, name in enumerate(names)
    )
    return f'<ul class="legend">{items}</ul>'


def interval_chart(
    entries: Sequence[ChartEntry],
    title: str,
    style: str = ".2f",
    *,
    series: Sequence[str] = ("",),
    percent: bool = False,
    reference: float | None = None,
) -> str:
    """Draw a line per entry with a mark and an interval per series, and the first series' number.

    Args:
        entries: entries from top to bottom.
        title: text for screen readers.
        style: format of the number at the right.
        series: names of the estimates of every entry.
        percent: whether the axis is in per cent.
        reference: value that a dashed line marks.
    """
    step = 22 if len(series) == 1 else 30
    left = 8 + LETTER * min(LONGEST_LABEL, max(len(entry.name) for entry in entries))
    right = 8 + DIGIT * max(len(_number(entry, style)) for entry in entries)
    height = step * len(entries) + 26
    scale = _scale(entries, reference, left + 6, WIDTH - right - 8)
    parts = []
    for tick in ticks(scale, 4):
        x = scale.at(tick)
        parts.append(f'<path class="grid" d="M{x:.1f},0V{height - 22}"/>')
        parts.append(_text(x, height - 8, label(tick, percent), "tick middle"))
    if reference is not None:
        parts.append(f'<path class="reference" d="M{scale.at(reference):.1f},0V{height - 22}"/>')
    for k, entry in enumerate(entries):
        middle = step * (k + 0.5)
        if k:
            parts.append(f'<path class="rule" d="M0,{step * k}H{WIDTH}"/>')
        parts.append(_label(entry.name, middle))
        for s, estimate in enumerate(entry.estimates):
            if estimate is not None:
                y = middle + 9 * (s - (len(series) - 1) / 2)
                parts.append(_interval(entry.name, series[s], estimate, scale, y, s, style))
        parts.append(_text(WIDTH, middle + 4, _number(entry, style), "number end"))
    return _svg(height, title, parts)


def _scale(entries: Sequence[ChartEntry], reference: float | None, start: float, end: float) -> Scale:
    """Return the scale of all estimates except oracles far above the others, which get an arrow."""
    extra = [] if reference is None else [reference]

    def numbers(oracles: bool) -> list[float]:
        some = [entry for entry in entries if entry.name.startswith(ORACLES) == oracles]
        return [v for entry in some for estimate in entry.estimates for v in estimate or ()]

    far, near = numbers(True), numbers(False) + extra
    every, without = fit(far + near, start, end), fit(near, start, end)
    narrow = without.high - without.low < FAR * (every.high - every.low)
    return without if narrow and far and near and min(far) >= without.low else every


def _number(entry: ChartEntry, style: str) -> str:
    first = entry.estimates[0]
    return "" if first is None else format(first.mean, style)


def _label(name: str, y: float) -> str:
    short = name if len(name) <= LONGEST_LABEL else name[: LONGEST_LABEL - 1] + "…"
    return f'<text class="label" x="0" y="{y + 4:.1f}"><title>{escape(name)}</title>{escape(short)}</text>'


def _interval(name: str, series: str, estimate: Estimate, scale: Scale, y: float, s: int, style: str) -> str:
    mean, low, high = (format(value, style) for value in estimate)
    told = f"{name}{', ' if series else ''}{series}: {mean} [{low}, {high}]"
    if estimate.mean > scale.high:  # an oracle
        x = scale.end + 2
        arrow = f'<path class="mark" transform="translate({x:.1f},{y:.1f})" d="M-5,-4l7,4l-7,4z"/>'
        return f'<g class="series c{s}" data-series="{s}"><title>{escape(told)}</title>{arrow}</g>'
    x, start, end = (scale.at(value) for value in estimate)
    return (
        f'<g class="series c{s}" data-series="{s}"><title>{escape(told)}</title>'
        f'<path class="hit" d="M{start - 4:.1f},{y:.1f}H{end + 4:.1f}"/>'
        f'<path class="bar" d="M{start:.1f},{y:.1f}H{end:.1f}"/>'
        f'<path class="mark" transform="translate({x:.1f},{y:.1f})" d="{MARKERS[s % len(MARKERS)]}"/></g>'
    )


def line_chart(
    lines: Sequence[Line],
    title: str,
    labels: tuple[str, str],
    *,
    percent: str = "",
    diagonal: bool = False,
    zero: bool = False,
    height: int = 250,
) -> str:
    """Draw lines with bands as their intervals, or points with bars.

    Args:
        lines: the series.
        title: text for screen readers.
        labels: labels of the horizontal and the vertical axis.
        percent: axes in per cent, "", "x", "y" or "xy".
        diagonal: mark where both axes are equal.
        zero: start the vertical axis at 0.
        height: height of the drawing, in units.
    """
    bottom = height - 38
    ys = [v for line in lines for v in (*line.mean, *line.low, *line.high)]
    xs = [v for line in lines for v in line.x]
    vertical = fit(ys, bottom, 20, zero)
    names = [label(tick, "y" in percent) for tick in ticks(vertical)]
    left = 12 + DIGIT * max(map(len, names), default=3)
    across = fit(xs, left, WIDTH - 8)
    parts = [_text(0, 10, labels[1], "axis"), _text(WIDTH, height - 4, labels[0], "axis end")]
    for tick, name in zip(ticks(vertical), names, strict=True):
        y = vertical.at(tick)
        parts.append(f'<path class="grid" d="M{left - 4:.1f},{y:.1f}H{WIDTH}"/>')
        parts.append(_text(left - 8, y + 4, name, "tick end"))
    whole = all(float(x).is_integer() for x in xs)  # epochs and places get no fractional ticks
    for tick in ticks(across):
        if whole and not float(tick).is_integer():
            continue
        parts.append(_text(across.at(tick), bottom + 16, label(tick, "x" in percent), "tick middle"))
    if diagonal:
        low, high = max(across.low, vertical.low), min(across.high, vertical.high)
        parts.append(
            f'<path class="reference" d="M{across.at(low):.1f},{vertical.at(low):.1f}'
            f'L{across.at(high):.1f},{vertical.at(high):.1f}"/>'
        )
    for k, line in enumerate(lines):  # bands go below all lines
        if line.low and line.joined and len(line.x) > 1:
            around = _points(line.x, line.high, across, vertical)
            around += _points(line.x, line.low, across, vertical)[::-1]
            band = f'<path class="band" d="M{"L".join(around)}z"/>'
            parts.append(f'<g class="series c{k % COLOURS}" data-series="{k}">{band}</g>')
    parts += [_line(line, k, across, vertical, percent) for k, line in enumerate(lines)]
    return _svg(height, title, parts, "many" if len(lines) > FEW else "")


def _points(xs: Sequence[float], ys: Sequence[float], across: Scale, vertical: Scale) -> list[str]:
    return [f"{across.at(x):.1f},{vertical.at(y):.1f}" for x, y in zip(xs, ys, strict=True)]


def _line(line: Line, k: int, across: Scale, vertical: Scale, percent: str) -> str:
    points, parts = _points(line.x, line.mean, across, vertical), []
    if line.low and not (line.joined and len(line.x) > 1):
        for x, low, high in zip(line.x, line.low, line.high, strict=True):
            at = f"{across.at(x):.1f}"
            parts.append(f'<path class="bar" d="M{at},{vertical.at(low):.1f}V{vertical.at(high):.1f}"/>')
    if line.joined:
        parts.append(f'<path class="line" d="M{"L".join(points)}"/>')
    for point, x, y in zip(points, line.x, line.mean, strict=True):
        if line.marked:
            told = f"{line.name}: {label(x, 'x' in percent, 4)}, {label(y, 'y' in percent, 4)}"
            parts.append(
                f'<path class="mark" transform="translate({point})" d="{MARKERS[k % len(MARKERS)]}">'
                f"<title>{escape(told)}</title></path>"
            )
    return f'<g class="series c{k % COLOURS}" data-series="{k}">{"".join(parts)}</g>'


def _text(x: float, y: float, text: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _svg(height: float, title: str, parts: Sequence[str], kind: str = "") -> str:
    return (
        f'<svg class="{f"chart {kind}".strip()}" viewBox="0 0 {WIDTH} {height:g}" role="img" '
        f'aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg>"
    )
