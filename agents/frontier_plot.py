"""The frontier of insertion policies as a picture: value of a session against the share of cards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgerec_gym.atomic import atomic_path, make_folder
from edgerec_gym.report import FAINT, INK, require_matplotlib

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")
MARKERS = "osD^vPX*"


def draw_frontier(rows: list[dict[str, Any]], path: str | Path) -> None:
    """Draw the rows with the metric `frontier` into a PNG file; other rows are ignored.

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
    points = [item for item in rows if item["metric"] == "frontier"]
    for k, policy in enumerate(dict.fromkeys(item["policy"] for item in points)):
        own = sorted((p["share"], p["mean"], p["low"], p["high"]) for p in points if p["policy"] == policy)
        share, mean, low, high = zip(*own, strict=True)
        colour = COLOURS[k % len(COLOURS)]
        axes.fill_between(share, low, high, color=colour, alpha=0.08, linewidth=0)
        axes.plot(share, mean, MARKERS[k % len(MARKERS)] + "-", color=colour, markersize=4.5, label=policy)
    axes.set_xlabel("share of cards among the slots that were seen", color=INK, fontsize=9)
    axes.set_ylabel("value of a session", color=INK, fontsize=9)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.grid(color=FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=0, labelsize=9, colors=INK)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8, labelcolor=INK)
    make_folder(Path(path).parent)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150, facecolor="white")
