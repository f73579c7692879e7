"""Plots of a fidelity report, and its folder.

| file | content |
| --- | --- |
| fidelity.json | the report |
| reliability.png | observed against expected rates on held-out sessions |
| click_rate.png | click rate by slot and by place in the page, of learned users and of the log |
| policies.png | value on learned users against the true value, if there is a ground truth |
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from edgerec_gym.evaluation.report import FAINT, INK, USERS_STYLE, require_matplotlib, save_figure
from edgerec_gym.files import make_folder, write_json

FILE = "fidelity.json"
LOG_COLOUR, SIMULATED_COLOUR = USERS_STYLE["synthetic"][0], USERS_STYLE["learned"][0]
TITLES = {"click_rate_by_slot": "by slot of the session", "click_rate_by_page_age": "by place in the page"}


def write_fidelity(report: dict[str, Any], out: str | Path) -> Path:
    """Write a report of :func:`~edgerec_gym.fidelity.report.fidelity_report` and its plots into a folder.

    Raises:
        InputError: the folder cannot be written to.
        MissingExtraError: matplotlib is not installed.
    """
    require_matplotlib()
    folder = make_folder(out)
    plots = {"reliability": _reliability(report), "click_rate": _click_rate(report)}
    if report["ranking"]:
        plots["policies"] = _policies(report)
    for name, figure in plots.items():
        save_figure(figure, folder / f"{name}.png")
    write_json(folder / FILE, report)  # written last: it marks the folder as complete
    return folder


def _panels(n: int, width: float = 3.6, height: float = 3.4) -> tuple[Any, list[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * n + 0.4, height), layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(np.atleast_1d(figure.subplots(1, n)))
    for axes in panels:
        axes.grid(color=FAINT, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(length=0, labelsize=9, colors=INK)
    return figure, panels


def _diagonal(axes: Any, low: float, high: float) -> None:
    axes.plot([low, high], [low, high], color=INK, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0.5)


def _reliability(report: dict[str, Any]) -> Any:
    """Draw one panel per event: bins with equal numbers of slots, and bars of two standard errors."""
    figure, panels = _panels(len(report["events"]))
    for axes, (name, event) in zip(panels, report["events"].items(), strict=True):
        curve = event["reliability"]
        expected, observed, slots = (
            np.array([b[k] for b in curve]) for k in ("predicted", "observed", "slots")
        )
        error = 2 * np.sqrt(observed * (1 - observed) / slots)
        axes.errorbar(
            expected, observed, yerr=error, fmt="o", markersize=4, elinewidth=1.2, color=SIMULATED_COLOUR
        )
        _diagonal(axes, 0, max(expected.max(), observed.max()))
        axes.set_ylim(bottom=0)
        axes.set_title(name.replace("_", " "), loc="left", fontsize=10, color=INK)
        axes.set_xlabel("expected rate", fontsize=9, color=INK)
    panels[0].set_ylabel("observed rate", fontsize=9, color=INK)
    return figure


def _click_rate(report: dict[str, Any]) -> Any:
    shown = {name: report["distributions"][name] for name in TITLES if name in report["distributions"]}
    figure, panels = _panels(len(shown))
    for axes, (name, found) in zip(panels, shown.items(), strict=True):
        for kind, colour in (("log", LOG_COLOUR), ("simulated", SIMULATED_COLOUR)):
            values = found[kind]["values"]
            at = [k for k, value in enumerate(values) if value is not None]
            axes.plot(
                at, [values[k] for k in at], color=colour, linewidth=1.6, marker="o", markersize=3, label=kind
            )
        axes.set_ylim(bottom=0)
        axes.set_title(f"Click rate {TITLES[name]}", loc="left", fontsize=10, color=INK)
        axes.set_xlabel("slots", fontsize=9, color=INK)
    panels[0].legend(frameon=False, fontsize=9, labelcolor=INK)
    return figure


def _policies(report: dict[str, Any]) -> Any:
    figure, (axes,) = _panels(1, width=6.6, height=4.4)
    rows = sorted(report["policies"], key=lambda row: row["true_value"]["mean"])
    true, simulated = ([row[key] for row in rows] for key in ("true_value", "value"))

    def error(values: list[dict[str, float]]) -> list[list[float]]:
        return [[v["mean"] - v["low"] for v in values], [v["high"] - v["mean"] for v in values]]

    x, y = ([v["mean"] for v in values] for values in (true, simulated))
    axes.errorbar(x, y, xerr=error(true), yerr=error(simulated), fmt="none", elinewidth=0.8, ecolor="#e8b998")
    _diagonal(axes, min(x + y), max(x + y))
    for k, row in enumerate(rows):
        axes.plot(x[k], y[k], "o", markersize=11, color="white", markeredgecolor=SIMULATED_COLOUR)
        axes.annotate(str(k + 1), (x[k], y[k]), ha="center", va="center", fontsize=7, color=INK)
        axes.annotate(
            f"{k + 1:2d}  {row['policy']}", (1.03, k / len(rows)), xycoords="axes fraction", fontsize=8,
            color=INK, annotation_clip=False,
        )  # fmt: skip
    tau = report["kendall_tau"]
    title = "Value per session" + ("" if tau is None else f"; Kendall tau {tau:.2f} over certain pairs")
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.set_xlabel("true value (ground truth)", fontsize=9, color=INK)
    axes.set_ylabel("value on learned users", fontsize=9, color=INK)
    return figure
