"""The report folder of an evaluation: tables as Markdown, numbers as JSON, plots as PNG.

| file | content |
| --- | --- |
| report.md | one table for each kind of users, and the plots |
| results.json | the rows that `edgerec evaluate --json` prints |
| reward.png | reward per policy, on learned and on synthetic users |
| behaviour.png | click rate, purchases, session length and requests per policy |
| bias.png | bias of the learned users per policy |
| training.png | reward against slots played or updates, if a training curve is given |
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgerec_gym.config import RESPONSE_PREFIX
from edgerec_gym.errors import InputError, MissingExtraError
from edgerec_gym.files import atomic_path, make_folder, write_json
from edgerec_gym.runs import is_finished, read_run

Result = dict[str, Any]


class Column(NamedTuple):
    """One column of the tables."""

    key: str
    title: str
    style: str  # a format specification of the mean
    interval: bool = False  # show the 95 % interval too
    brief: str = ""  # title in the brief table (80 characters wide); empty: left out there


COLUMNS = (
    Column("value", "value", ".2f", brief="value"),
    Column("reward", "reward", ".2f", interval=True),
    Column("gain_over_keep", "gain over keep", "+.2f", interval=True, brief="gain over keep"),
    Column("gap_closed", "gap closed", ".0%", brief="gap\nclosed"),
    Column("clicks", "clicks", ".2f"),
    Column("click_rate", "click rate", ".1%", brief="click\nrate"),
    Column("purchases", "purchases", ".3f"),
    Column("exposures", "exposures", ".1f", brief="expo-\nsures"),
    Column("requests", "requests", ".2f", brief="re-\nquests"),
    Column("violations", "violations", ".2f"),
    Column("missed_budgets", "missed budgets", ".2%", brief="missed\nbudgets"),
    Column("bias", "bias", "+.0%", brief="bias"),
    Column("exploitation_gap", "exploitation gap", "+.0%", brief="exploi-\ntation\ngap"),
)
RESULTS = "results.json"
SLOTS, UPDATES = "slots played", "updates"  # steps of a run
USERS_TITLES = {"learned": "learned users", "synthetic": "synthetic users (ground truth)"}
# Line colour, marker, fill of the marker.
USERS_STYLE = {"synthetic": ("#1b6ca8", "o", "#1b6ca8"), "learned": ("#d1702b", "D", "white")}
INK, FAINT = "#333333", "#d9d9d9"

NOTES = """\
Every number is a mean per session; brackets hold the 95 % bootstrap interval. *Reward* sums the drawn
outcomes; *value* is its expectation along the played feed (click and purchase probabilities instead of clicks
and purchases), with the same mean and less noise. All policies play the same sessions with the same luck
(common random numbers), so *gain over keep*, the gain in value, is paired by session. *Gap closed* is the
share of the gap between keep (0 %) and the oracle, the track's reference (100 %). *Bias* is how much more
value the learned users promise than the ground truth gives; the *exploitation gap* is a policy's bias beyond
that of keep. *Missed budgets* is the share of a device model's decisions that took longer than the scenario's
latency budget and were not played. Dashed lines in the plots mark keep.
"""


def estimate(result: Result, key: str) -> tuple[float, float, float] | None:
    """Return (mean, low, high) of a metric, or None if the row lacks it."""
    value = result.get(key)
    if not isinstance(value, dict) or value["mean"] is None or not math.isfinite(value["mean"]):
        return None
    low, high = (value["mean"] if value[end] is None else value[end] for end in ("low", "high"))
    return value["mean"], low, high


def verdict(results: list[Result]) -> str:
    """Return in a sentence which policy earns the most and how sure that is.

    It is judged on the ground truth if there is one. References (keep, the oracle, the attainable ceiling)
    are compared with, and never named as the best.
    """
    kinds = {row["users"] for row in results}
    users = "synthetic" if "synthetic" in kinds else "learned"
    rows = [row for row in results if row["users"] == users and not _is_reference(row["policy"])]
    if not rows:
        return ""
    ranked = sorted(rows, key=lambda row: -row["value"]["mean"])
    best, where = ranked[0], "the ground truth" if users == "synthetic" else "learned users"
    text = f"On {where}, {best['policy']} earns {best['value']['mean']:.2f} a session"
    text += f", the most of {len(rows)} policies" if len(rows) > 1 else ""
    gain = estimate(best, "gain_over_keep")
    if gain is None:
        return f"{text}."
    interval = f"{gain[0]:+.2f} [{gain[1]:+.2f}, {gain[2]:+.2f}]"
    if gain[1] <= 0.0:
        return f"{text}, which cannot be told from keep: {interval}."
    closed = estimate(best, "gap_closed")
    share = "" if closed is None else f", {closed[0]:.0%} of the way to the oracle"
    following = (
        "" if len(rows) == 1 else f" Next is {ranked[1]['policy']} with {ranked[1]['value']['mean']:.2f}."
    )
    return f"{text}: {interval} over keep{share}.{following}"


def _is_reference(policy: str) -> bool:
    return policy in ("keep", "oracle") or policy.startswith("attainable")


def tables(results: list[Result], brief: bool = False) -> dict[str, tuple[list[str], list[list[str]]]]:
    """Format the results, one table for each kind of users, and one of named responses if there are any.

    Args:
        results: rows of :func:`edgerec_gym.evaluation.play.evaluate`.
        brief: include only the columns that fit a terminal of 80 characters.

    Returns:
        title -> (header, rows), without columns that no row has.
    """
    formatted = {}
    for users in dict.fromkeys(row["users"] for row in results):
        rows = [row for row in results if row["users"] == users]
        columns = [c for c in COLUMNS if (c.brief or not brief) and any(estimate(row, c.key) for row in rows)]
        body = [[row["policy"], *(_cell(row, column) for column in columns)] for row in rows]
        header = ["policy", *(column.brief if brief else column.title for column in columns)]
        title = USERS_TITLES.get(users, users)
        formatted[f"{title}, {rows[0]['sessions']:,} sessions"] = (header, body)
        if responses := response_columns(rows):
            formatted[f"{title}, named responses per session"] = (
                ["policy", *(column.title for column in responses)],
                [[row["policy"], *(_cell(row, column) for column in responses)] for row in rows],
            )
    return formatted


def response_columns(rows: list[Result]) -> list[Column]:
    """Return a column for each named response in the rows."""
    names = dict.fromkeys(key for row in rows for key in row if key.startswith(RESPONSE_PREFIX))
    return [Column(key, key.removeprefix(RESPONSE_PREFIX).replace("_", " "), ".3f") for key in names]


def _cell(row: Result, column: Column) -> str:
    value = estimate(row, column.key)
    if value is None:
        return ""
    mean, low, high = (format(v, column.style) for v in value)
    return f"{mean} [{low}, {high}]" if column.interval else mean


def require_matplotlib() -> None:
    """Raise MissingExtraError if the plots cannot be drawn."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise MissingExtraError("a report with plots", "render") from None


def save_figure(figure: Any, path: Path) -> None:
    """Write a matplotlib figure as a PNG file, cut to what it shows; replace the file as a whole."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150, bbox_inches="tight", facecolor="white")


def write_report(
    results: list[Result],
    out: str | Path,
    *,
    training_curve: dict[str, list[float]] | None = None,
    unit: str = SLOTS,
    title: str = "Evaluation",
) -> Path:
    """Write a report folder, replacing each existing file as a whole.

    Args:
        results: rows of :func:`edgerec_gym.evaluation.play.evaluate`.
        out: the folder.
        training_curve: "slots" and "reward" (mean per session) of equal length, see
            :func:`read_training_curve`.
        unit: what "slots" counts, see :func:`unit_of`.
        title: heading of the report.

    Returns:
        The folder.

    Raises:
        InputError: no results, or the folder cannot be written to.
        MissingExtraError: matplotlib is not installed.
    """
    if not results:
        raise InputError("no results to report")
    require_matplotlib()
    folder = make_folder(out)
    plots = {"reward": value_figure(results), "behaviour": _behaviour_figure(results)}
    if any(estimate(row, "bias") for row in results):
        plots["bias"] = _bias_figure(results)
    if training_curve is not None and training_curve["slots"]:
        plots["training"] = _training_figure(training_curve, unit)
    for name, figure in plots.items():
        save_figure(figure, folder / f"{name}.png")
    told = verdict(results)
    seeds = ", ".join(str(seed) for seed in sorted({row["seed"] for row in results if "seed" in row}))
    lines = [
        f"# {title}",
        "",
        *([told, ""] if told else []),
        *([f"Seed {seeds}.", ""] if seeds else []),
        NOTES,
    ]
    for heading, (header, body) in tables(results).items():
        lines += [f"## {heading[0].upper()}{heading[1:]}", "", *markdown_table(header, body), ""]
    lines += [f"![{name}]({name}.png)\n" for name in plots]
    with atomic_path(folder / "report.md") as temporary:
        temporary.write_text("\n".join(lines), encoding="utf-8")
    record = {"title": title, "results": results, "training_curve": training_curve}
    write_json(folder / RESULTS, record)  # written last: it marks the folder as complete
    return folder


def markdown_table(header: list[str], body: list[list[str]]) -> list[str]:
    """Return the lines of a Markdown table, first column left-aligned, the others right-aligned."""
    rule = ["---"] + ["---:"] * (len(header) - 1)
    return ["| " + " | ".join(cells) + " |" for cells in (header, rule, *body)]


def unit_of(run: str | Path) -> str:
    """Return what the steps of a run count: slots played, or updates."""
    return SLOTS if "id" in read_run(run).record else UPDATES


def read_training_curve(run: str | Path) -> dict[str, list[float]]:
    """Read the mean reward per session by slots played from a run's TensorBoard files, else by updates.

    Returns:
        "slots", in rising order, or updates (:func:`unit_of`), and "reward"; empty lists if neither the files
        nor the record of the run tell.

    Raises:
        MissingExtraError: tensorboard is not installed.
    """
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError:
        raise MissingExtraError("reading a training curve", "train") from None
    points: dict[int, float] = {}
    for folder in sorted({path.parent for path in Path(run).rglob("events.out.tfevents.*")}):
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
        if "rollout/ep_rew_mean" in events.Tags()["scalars"]:
            points |= {event.step: event.value for event in events.Scalars("rollout/ep_rew_mean")}
    if not points and is_finished(Path(run)):
        rewards = enumerate(read_run(run).record.get("reward", ()), 1)
        points = {update: reward for update, reward in rewards if reward is not None}
    slots = sorted(points)
    return {"slots": [float(step) for step in slots], "reward": [points[step] for step in slots]}


def _order(results: list[Result]) -> list[str]:
    """Return the policies from the lowest value to the highest, on the ground truth if there is one."""
    values: dict[str, float] = {}
    for row in sorted(results, key=lambda row: row["users"] == "synthetic"):  # ground truth last, to prevail
        values[row["policy"]] = row["value"]["mean"]
    return sorted(values, key=lambda policy: values[policy])


def _figure(n_columns: int, n_policies: int, n_rows: int = 1) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height = n_rows * (0.42 * n_policies + 0.9) + 0.4
    figure = Figure(figsize=(4.0 * n_columns if n_columns > 1 else 7.2, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _plain(axes: Any) -> None:
    """Reduce the axes to a faint grid along x, without a frame."""
    axes.grid(axis="x", color=FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
    axes.tick_params(length=0, labelsize=9, colors=INK)


def _dots(
    axes: Any, results: list[Result], key: str, title: str, unit: str = "", numbers: bool = False
) -> None:
    """Draw one line per policy: for each kind of users a dot with its interval, and the mean as a number."""
    from matplotlib.patheffects import withStroke
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    order = _order(results)
    kinds = [users for users in USERS_STYLE if any(row["users"] == users for row in results)]
    for k, users in enumerate(kinds):
        line, marker, fill = USERS_STYLE[users]
        own = [row for row in results if row["users"] == users]
        rows = {row["policy"]: value for row in own if (value := estimate(row, key))}
        at = [order.index(policy) + 0.13 * (len(kinds) - 1) - 0.26 * k for policy in rows]
        mean = [value[0] for value in rows.values()]
        error = [[v[0] - v[1] for v in rows.values()], [v[2] - v[0] for v in rows.values()]]
        axes.errorbar(
            mean, at, xerr=error, fmt=marker, color=line, markerfacecolor=fill, markersize=5.5,
            elinewidth=1.6, label=USERS_TITLES[users],
        )  # fmt: skip
        if numbers:
            for (number, _, high), y in zip(rows.values(), at, strict=True):
                axes.annotate(
                    f"{number:.2f}", (high, y), xytext=(5, 0), textcoords="offset points", va="center",
                    fontsize=8, color=line, path_effects=[withStroke(linewidth=2.5, foreground="white")],
                )  # fmt: skip
    for edge in range(1, len(order)):
        axes.axhline(edge - 0.5, color=FAINT, linewidth=0.7)
    axes.set_yticks(range(len(order)), order)
    axes.set_ylim(-0.6, len(order) - 0.4)
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    if unit == "%":
        axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}%"))
    _plain(axes)


def _legend(figure: Any, axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper left", ncols=len(handles), frameon=False, fontsize=9,
        labelcolor=INK,
    )  # fmt: skip


def value_figure(results: list[Result]) -> Any:
    """Draw the value of each policy by kind of users, with 95 % intervals; return the matplotlib figure."""
    figure = _figure(1, len(_order(results)))
    axes = figure.add_subplot()
    _dots(axes, results, "value", "Expected reward per session, with 95 % interval", numbers=True)
    for row in results:
        if row["policy"] == "keep":
            colour = USERS_STYLE[row["users"]][0]
            axes.axvline(row["value"]["mean"], color=colour, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0.5)
    _legend(figure, axes)
    return figure


def _behaviour_figure(results: list[Result]) -> Any:
    figure = _figure(2, len(_order(results)), n_rows=2)
    figure.get_layout_engine().set(hspace=0.06, wspace=0.04)
    panels = figure.subplots(2, 2, sharey=True)
    for axes, (key, title, unit) in zip(
        panels.flat,
        (
            ("click_rate", "Click rate", "%"),
            ("purchases", "Purchases per session", ""),
            ("exposures", "Exposures per session", ""),
            ("requests", "Requests per session", ""),
        ),
        strict=True,
    ):
        _dots(axes, results, key, title, unit)
    _legend(figure, panels[0, 0])
    return figure


def _bias_figure(results: list[Result]) -> Any:
    rows = [row for row in results if estimate(row, "bias")]
    figure = _figure(1, len(_order(rows)))
    axes = figure.add_subplot()
    _dots(axes, rows, "bias", "Bias: value on learned users relative to the ground truth", unit="%")
    axes.axvline(0, color=INK, linewidth=0.8)
    keep = next((value for row in rows if row["policy"] == "keep" and (value := estimate(row, "bias"))), None)
    if keep is not None:
        axes.axvline(keep[0], color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.annotate(
            "bias of keep", (keep[0], 1), xycoords=("data", "axes fraction"), xytext=(4, -2), color=INK,
            textcoords="offset points", fontsize=8, va="top",
        )  # fmt: skip
    return figure


def _training_figure(curve: dict[str, list[float]], unit: str) -> Any:
    from matplotlib.ticker import FuncFormatter

    figure = _figure(1, 5)
    axes = figure.add_subplot()
    slots, reward = np.array(curve["slots"]), np.array(curve["reward"])
    width = max(1, len(reward) // 10)
    smooth = np.convolve(reward, np.full(width, 1 / width), mode="valid")
    middle = np.convolve(slots, np.full(width, 1 / width), mode="valid")
    axes.plot(slots, reward, color="#bbbbbb", linewidth=1.2)
    axes.plot(middle, smooth, color=USERS_STYLE["learned"][0], linewidth=1.8)
    title = "Training: mean reward of a session (grey) and its moving average"
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.set_xlabel(unit, fontsize=9, color=INK)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda slots, _: f"{slots:,.0f}"))
    _plain(axes)
    axes.grid(axis="y", color=FAINT, linewidth=0.7)
    return figure
