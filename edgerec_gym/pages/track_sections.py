"""Sections of a report about the tracks of the benchmark: leaderboards and figures of each track."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Protocol

from edgerec_gym.config import RESPONSE_PREFIX
from edgerec_gym.pages.charts import ChartEntry, Estimate, Line, interval_chart, legend, line_chart
from edgerec_gym.pages.html import escape, figure, table

Rows = list[dict[str, Any]]
MOST = 30  # policies in a leaderboard
NOT_SHIFTED, SIGNIFICANT = "none", 0.05
# Metric -> title and format of a leaderboard's column; " 95%" adds the interval.
COLUMNS = {
    "value": ("value", ".2f 95%"),
    "gain_over_keep": ("gain over keep", "+.2f 95%"),
    "gain_over_fixed": ("gain over fixed slots", "+.2f 95%"),
    "gain_over_best_single": ("gain over the best single decision", "+.2f 95%"),
    "cost": ("cost of the ablation", "+.2f 95%"),
    "better_than": ("significantly better than", ".0f"),
    "interquartile_mean": ("interquartile mean", ".1% 95%"),
    "attainable_gap_closed": ("attainable gap closed", ".0%"),
    "gap_closed": ("gap closed", ".0%"),
    "clicks": ("clicks", ".2f"),
    "purchases": ("purchases", ".3f"),
    "length": ("slots", ".1f"),
    "share": ("share of cards", ".1%"),
    "cards": ("share of cards", ".1%"),
    "card_click_rate": ("click rate of cards", ".1%"),
    "card_click_rate_gain": ("its gain over fixed slots", "+.0%"),
    "requests": ("requests", ".2f"),
    "gain_per_request": ("gain per request", "+.3f"),
    "true_effect": ("true effect of a request", "+.3f"),
    "negative_share": ("requests that harm", ".0%"),
    "exploitation_gap": ("exploitation gap", "+.1%"),
    "violations": ("violations", ".0f"),
    "policy_steps_per_second": ("slots/s of the policy", ",.0f"),
}


def estimate(row: dict[str, Any] | None) -> Estimate | None:
    """Return a row's estimate, None without a row or a number; missing interval ends become the mean."""
    if row is None or row["mean"] is None:
        return None
    low, high = (row["mean"] if row[key] is None else row[key] for key in ("low", "high"))
    return Estimate(row["mean"], low, high)


def by_policy(rows: Rows, metric: str) -> dict[str, Estimate]:
    """Return the estimates of a metric by policy; each policy has one."""
    found = {row["policy"]: estimate(row) for row in rows if row["metric"] == metric}
    return {policy: value for policy, value in found.items() if value is not None}


class Track(Protocol):
    """The attributes of a track that a report needs, see :class:`edgerec_gym.bench.track.Track`."""

    @property
    def name(self) -> str:
        """Name of the track in the rows."""

    @property
    def title(self) -> str:
        """Title of its section."""

    @property
    def budgets(self) -> bool:
        """Whether its policies form families with one policy per budget of requests."""


def track_sections(file: str, rows: Rows, tracks: Sequence[Track] = ()) -> list[tuple[str, str]]:
    """Return the sections (title, HTML) of a file of rows, one per track, scenario and size.

    Args:
        file: name of the file, which is the track if rows do not name it.
        rows: rows of `edgerec bench`.
        tracks: known tracks; others have their name as title.
    """
    titles = {"all": "The whole benchmark", **{track.name: track.title for track in tracks}}
    budgets = {track.name for track in tracks if track.budgets}
    groups: dict[tuple[str, str, bool], Rows] = {}
    for row in rows:
        place = (row.get("track", file), row.get("scenario", ""), bool(row.get("quick")))
        groups.setdefault(place, []).append(row)
    sections = []
    for (track, scenario, quick), own in groups.items():
        where = ", ".join(filter(None, (scenario if scenario != track else "", "quick" if quick else "")))
        title = titles.get(track, track.replace("_", " "))
        sections.append((f"{title}{': ' if where else ''}{where}", _track(own, track in budgets)))
    return sections


def _track(every: Rows, budgets: bool) -> str:
    shifted = [row for row in every if row.get("shift", NOT_SHIFTED) != NOT_SHIFTED]
    rows = [row for row in every if row.get("shift", NOT_SHIFTED) == NOT_SHIFTED]
    rows += _wins(rows)
    sessions = max((row["sessions"] for row in rows if row["metric"] == "value"), default=0)
    seeds = max((row.get("seeds") or 1 for row in rows), default=1)
    told = f"{sessions:,} sessions, " if sessions else ""
    parts = [
        f'<p class="note">Ground truth, {told}{seeds} training {"seed" if seeds == 1 else "seeds"}; every '
        "policy plays the same sessions with the same luck; bars and bands are 95 % intervals.</p>"
    ]
    parts += ['<div class="figures">', leaderboard(rows), *_of_track(rows, budgets), "</div>"]
    parts += [_table(rows), _shifts(shifted)]
    return "\n".join(parts)


def _wins(rows: Rows) -> Rows:
    """Count the policies that each one is significantly better than, from corrected comparisons."""
    compared = [row for row in rows if row["metric"] == "difference" and row.get("p_holm") is not None]
    wins = dict.fromkeys((name for row in compared for name in (row["policy"], row["against"])), 0)
    for row in compared:
        wins[row["policy"]] += row["p_holm"] < SIGNIFICANT
    return [
        {"policy": name, "metric": "better_than", "mean": n, "low": n, "high": n} for name, n in wins.items()
    ]


def _shifts(rows: Rows) -> str:
    """Tabulate the share of the gap that each policy closes on users unlike the logged ones."""
    names = list(dict.fromkeys(row["shift"] for row in rows))
    found = {name: by_policy([r for r in rows if r["shift"] == name], "gap_closed") for name in names}
    policies = dict.fromkeys(policy for values in found.values() for policy in values)
    body = [[p, *(cell(found[name].get(p), ".1% 95%") for name in names)] for p in policies]
    if not body:
        return ""
    return "<h3>On shifted users: share of the gap closed</h3>" + table(["policy", *names], body)


def family(policy: str) -> str:
    """Return the name of a policy without its budget, the number at its end."""
    return re.sub(r" [\d.]+$", "", policy)


def leaderboard(rows: Rows) -> str:
    """Chart the value of a session by policy, best first."""
    values = by_policy(rows, "value")
    if not values:
        return ""
    keep = values.get("keep")
    order = sorted(values, key=lambda policy: -values[policy].mean)
    if budgets := len(order) > MOST:  # many budgets of a few policies: keep the best of each
        families = [family(policy) for policy in order]
        order = [policy for k, policy in enumerate(order) if families[k] not in families[:k]]
    drawing = interval_chart(
        [ChartEntry(policy, [values[policy]]) for policy in order],
        "value of a session by policy, with 95 % intervals",
        reference=None if keep is None else keep.mean,
    )
    note = "Expected reward. Arrow: beyond the scale." + (" Dashed: keep, the cloud's order." if keep else "")
    note += " The best budget of each policy." if budgets else ""
    return figure("Value of a session", drawing, note=note)


def _of_track(rows: Rows, budgets: bool) -> list[str]:
    """Return the figures for which only some tracks have rows."""
    parts = [
        _intervals(rows, "interquartile_mean", "Interquartile mean over tasks", ".1%",
                   "Share of the gap from keep to the oracle; tasks: scenarios, unshifted and shifted."),
        _intervals(rows, "cost", "What each ablation costs", "+.3f",
                   "Value of the agent minus that of its ablation."),
        _intervals(rows, "exploitation_gap", "Exploitation gap", "+.1%",
                   "How much more learned users overrate a policy than they overrate keep."),
        _intervals(rows, "card_click_rate", "Click rate of inserted cards", ".1%",
                   "At the same share of cards among the slots that were seen."),
        _lines(rows, "click_rate_by_position", "position", "Click rate by position in the page",
               ("slots since the page arrived", "click rate"), "y"),
        _lines(rows, "frontier", "share", "Frontier: value against share of cards",
               ("share of cards among the slots that were seen", "value of a session"), "x"),
    ]  # fmt: skip
    if budgets:
        parts.append(_request_frontier(rows))
    return parts


def _intervals(rows: Rows, metric: str, title: str, style: str, note: str) -> str:
    values = by_policy(rows, metric)
    if not values:
        return ""
    order = sorted(values, key=lambda policy: -values[policy].mean)
    drawing = interval_chart(
        [ChartEntry(policy, [values[policy]]) for policy in order], title, style, percent="%" in style
    )
    return figure(title, drawing, note=note)


def _lines(rows: Rows, metric: str, column: str, title: str, labels: tuple[str, str], percent: str) -> str:
    """Chart a metric against another column of its rows, one line per policy."""
    points = [row for row in rows if row["metric"] == metric and row["mean"] is not None]
    lines = []
    for policy in dict.fromkeys(row["policy"] for row in points):
        own = sorted((p[column], estimate(p)) for p in points if p["policy"] == policy)
        lines.append(line_of(policy, own))
    return chart_of(lines, title, labels, percent) if lines else ""


def line_of(name: str, points: Sequence[tuple[float, Any]]) -> Line:
    """Return a line through points (x, estimate)."""
    xs, estimates = zip(*points, strict=True)
    mean, low, high = zip(*estimates, strict=True)
    return Line(name, xs, mean, low, high)


def chart_of(
    lines: list[Line], title: str, labels: tuple[str, str], percent: str = "", note: str = ""
) -> str:
    """Return a line chart as a figure with its legend."""
    drawing = line_chart(lines, title, labels, percent=percent)
    return figure(title, drawing, legend([line.name for line in lines]), note)


def _request_frontier(rows: Rows) -> str:
    """Chart value against requests; policies whose names differ only in a number share a line."""
    requests, values = by_policy(rows, "requests"), by_policy(rows, "value")
    families: dict[str, list[tuple[float, Estimate]]] = {}
    for policy in values:
        if policy in requests:
            families.setdefault(family(policy), []).append((requests[policy].mean, values[policy]))
    lines = [line_of(name, sorted(points)) for name, points in families.items()]
    if not lines:
        return ""
    note = "Value is net of the cost of requests. A line joins one policy's budgets."
    labels = ("requests per session", "value of a session")
    return chart_of(lines, "Frontier: value against requests", labels, note=note)


def _table(rows: Rows) -> str:
    """Tabulate all columns that the rows have, one line per policy."""
    responses = (row["metric"] for row in rows if row["metric"].startswith(RESPONSE_PREFIX))
    told = COLUMNS | {name: (name.removeprefix(RESPONSE_PREFIX), ".3f") for name in responses}
    columns = {metric: by_policy(rows, metric) for metric in told}
    columns = {metric: values for metric, values in columns.items() if values}
    ranked = columns.get("value", {})
    policies = sorted(
        dict.fromkeys(policy for values in columns.values() for policy in values),
        key=lambda policy: -ranked[policy].mean if policy in ranked else float("inf"),
    )
    body = [
        [policy, *(cell(values.get(policy), told[metric][1]) for metric, values in columns.items())]
        for policy in policies
    ]
    opened = f"<details><summary>{escape('All figures as a table')}</summary>"
    return f"{opened}{table(['policy', *(told[m][0] for m in columns)], body)}</details>"


def cell(value: Estimate | None, style: str) -> str:
    """Return a number's text, with its interval if the format asks for it."""
    if value is None:
        return ""
    number = style.removesuffix(" 95%")
    mean, low, high = (format(v, number) for v in value)
    return mean if number == style else f"{mean} [{low}, {high}]"
