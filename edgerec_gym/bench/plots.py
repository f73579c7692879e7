"""Plots of the benchmark's rows: a metric of every policy against a column, or against its requests."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from edgerec_gym.evaluation.report import FAINT, INK, require_matplotlib
from edgerec_gym.files import atomic_path, make_folder

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")
MARKERS = "osD^vPX*"
REQUEST_STYLES = {  # family of budgets -> colour, marker, line; a policy without a budget is a point
    "true-effect": ("#000000", "P", "--"),
    "attainable": ("#000000", "*", ""),
    "uplift-waits": ("#0b3c6f", "o", "-"),
    "uplift-x": ("#0072b2", "o", "-"),
    "uplift-t": ("#56b4e9", "^", "-"),
    "uplift-class": ("#56b4e9", "v", "-"),
    "uplift-dragon": ("#56b4e9", "s", "-"),
    "outcome": ("#e69f00", "o", "-"),
    "intent": ("#009e73", "o", "-"),
    "interval": ("#d55e00", "o", "-"),
    "chance": ("#999999", "o", "-"),
    "one-extra": ("#cc79a7", "D", ""),
    "request-dqn": ("#7a4fa3", "*", ":"),
    "pointer-ppo": ("#7a4fa3", "X", ":"),
}


def draw_frontier(rows: list[dict[str, Any]], path: str | Path) -> None:
    """Draw value against the share of cards; see :func:`draw_lines`."""
    labels = ("share of cards among the slots that were seen", "value of a session")
    draw_lines(rows, "frontier", "share", labels, path, percent="x")


def draw_positions(rows: list[dict[str, Any]], path: str | Path) -> None:
    """Draw the click rate at every place of a page; see :func:`draw_lines`."""
    labels = ("slots since the page arrived", "click rate")
    draw_lines(rows, "click_rate_by_position", "position", labels, path, percent="y")


def draw_lines(
    rows: list[dict[str, Any]],
    metric: str,
    column: str,
    labels: tuple[str, str],
    path: str | Path,
    percent: str,
) -> None:
    """Draw the rows of a metric into a PNG file, one line with its interval per policy.

    Args:
        rows: rows of a track; those of other metrics are ignored.
        metric: metric on the vertical axis.
        column: column of the rows on the horizontal axis.
        labels: labels of the horizontal and the vertical axis.
        path: path of the file.
        percent: axis in per cent, "x" or "y".

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure, (axes,) = _figure(7.2)
    points = [item for item in rows if item["metric"] == metric]
    for k, policy in enumerate(dict.fromkeys(item["policy"] for item in points)):
        own = sorted((p[column], p["mean"], p["low"], p["high"]) for p in points if p["policy"] == policy)
        x, mean, low, high = zip(*own, strict=True)
        colour = COLOURS[k % len(COLOURS)]
        axes.fill_between(x, low, high, color=colour, alpha=0.08, linewidth=0)
        axes.plot(x, mean, MARKERS[k % len(MARKERS)] + "-", color=colour, markersize=4.5, label=policy)
    _name_axes(axes, *labels)
    _per_cent(axes.xaxis if percent == "x" else axes.yaxis)
    _save(figure, axes, path)


def draw_requests(rows: list[dict[str, Any]], path: str | Path) -> None:
    """Draw the gain over keep against the requests per session, one line per family of budgets.

    Args:
        rows: rows of the track request.
        path: path of the PNG file.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    found = {(item["policy"], item["metric"]): item for item in rows}
    requests = {policy: item for (policy, metric), item in found.items() if metric == "requests"}
    families: dict[str, list[str]] = {}
    for policy in sorted(requests, key=lambda policy: requests[policy]["mean"]):
        if policy != "keep":
            families.setdefault(policy.split(" ")[0], []).append(policy)
    own = {name: ("#333333", marker, "") for name, marker in zip(families, cycle(MARKERS), strict=False)}
    styles = REQUEST_STYLES | {name: own[name] for name in families if name not in REQUEST_STYLES}
    figure, panels = _figure(10.0, 2)
    for axes, metric, label in zip(
        panels,
        ("purchases_over_keep", "benefit_over_keep"),
        ("purchases per session, over keep", "clicks + 5 purchases per session, over keep"),
        strict=True,
    ):
        for family in filter(families.__contains__, styles):
            colour, marker, line = styles[family]
            x = np.array([requests[policy]["mean"] for policy in families[family]])
            mean, low, high = (
                np.array([found[policy, metric][key] for policy in families[family]], np.float64)
                for key in ("mean", "low", "high")
            )
            axes.vlines(x, low, high, color=colour, linewidth=0.8, alpha=0.5)
            axes.plot([0, *x], [0, *mean], line, color=colour, linewidth=1.4)
            axes.plot(x, mean, marker, color=colour, markersize=5)
            axes.plot([], [], marker + line, color=colour, markersize=5, linewidth=1.4, label=family)
        _name_axes(axes, "requests per session", label)
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
    _save(figure, panels[0], path)


def _figure(width: float, panels: int = 1) -> tuple[Any, list[Any]]:
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(1, panels, squeeze=False)[0])


def _name_axes(axes: Any, x: str, y: str) -> None:
    axes.set_xlabel(x, color=INK, fontsize=9)
    axes.set_ylabel(y, color=INK, fontsize=9)
    axes.grid(color=FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=0, labelsize=9, colors=INK)


def _per_cent(axis: Any) -> None:
    from matplotlib.ticker import PercentFormatter

    axis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def _save(figure: Any, axes: Any, path: str | Path) -> None:
    """Write the figure, with the legend of `axes` beside it."""
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right upper", frameon=False, fontsize=8, labelcolor=INK)
    make_folder(Path(path).parent)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150, facecolor="white")
