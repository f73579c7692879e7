"""Pictures of the benchmark's rows: one figure of every policy against one other column."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgerec_gym.atomic import atomic_path, make_folder
from edgerec_gym.report import FAINT, INK, require_matplotlib

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")
MARKERS = "osD^vPX*"


def draw_frontier(rows: list[dict[str, Any]], path: str | Path) -> None:
    """Draw value against the share of cards; see :func:`draw_lines`."""
    labels = ("share of cards among the slots that were seen", "value of a session")
    draw_lines(rows, "frontier", "share", labels, path, percent="x")


def draw_positions(rows: list[dict[str, Any]], path: str | Path) -> None:
    """Draw the click rate at every place of a page; see :func:`draw_lines`."""
    labels = ("slots since the page came", "click rate")
    draw_lines(rows, "click_rate_by_position", "position", labels, path, percent="y")


def draw_lines(
    rows: list[dict[str, Any]],
    metric: str,
    column: str,
    labels: tuple[str, str],
    path: str | Path,
    percent: str,
) -> None:
    """Draw the rows of a metric into a PNG file, a line with its interval for each policy.

    Args:
        rows: of a track; those of other metrics are ignored.
        metric: on the vertical axis.
        column: of the rows, on the horizontal axis.
        labels: of both axes.
        path: of the file.
        percent: the axis in per cent, "x" or "y".

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    points = [item for item in rows if item["metric"] == metric]
    for k, policy in enumerate(dict.fromkeys(item["policy"] for item in points)):
        own = sorted((p[column], p["mean"], p["low"], p["high"]) for p in points if p["policy"] == policy)
        x, mean, low, high = zip(*own, strict=True)
        colour = COLOURS[k % len(COLOURS)]
        axes.fill_between(x, low, high, color=colour, alpha=0.08, linewidth=0)
        axes.plot(x, mean, MARKERS[k % len(MARKERS)] + "-", color=colour, markersize=4.5, label=policy)
    axes.set_xlabel(labels[0], color=INK, fontsize=9)
    axes.set_ylabel(labels[1], color=INK, fontsize=9)
    axis = axes.xaxis if percent == "x" else axes.yaxis
    axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid(color=FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=0, labelsize=9, colors=INK)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8, labelcolor=INK)
    make_folder(Path(path).parent)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150, facecolor="white")


PICTURES = {"mix": draw_frontier, "rerank": draw_positions}  # of tracks
