"""Sections of a report about evaluations, training runs and learned users."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgerec_gym.evaluation.report import NOTES, USERS_TITLES, response_columns, tables, verdict
from edgerec_gym.pages.charts import ChartEntry, Estimate, Line, interval_chart, legend, line_chart
from edgerec_gym.pages.html import escape, figure, table
from edgerec_gym.pages.track_sections import chart_of, line_of

Rows = list[dict[str, Any]]
USERS = ("synthetic", "learned")  # the ground truth first, as charts print the first series' numbers
# Figures per epoch or update in a run's record -> their titles.
RECORDED = {
    "gauc": "GAUC on the stopping sessions",
    "loss": "loss per card on the stopping sessions",
    "residual_loss": "residual loss on the stopping sessions",
    "reward": "reward of an update",
}


def of_metric(row: dict[str, Any], metric: str) -> Estimate | None:
    """Return a metric of a row of `edgerec evaluate`, or None if the row lacks it."""
    value = row.get(metric)
    if not isinstance(value, dict) or value.get("mean") is None:
        return None
    low, high = (value["mean"] if value[key] is None else value[key] for key in ("low", "high"))
    return Estimate(value["mean"], low, high)


def evaluation_section(rows: Rows) -> str:
    """Return the section of an evaluation on ground truth and learned users: value, gain, bias, behaviour."""
    told = escape(" ".join(NOTES.replace("*", "").split()))
    sessions = max(row["sessions"] for row in rows)
    seeds = ", ".join(str(seed) for seed in sorted({row["seed"] for row in rows if "seed" in row}))
    sown = f", seed {seeds}" if seeds else ""
    parts = [
        *([f'<p class="verdict">{escape(said)}</p>'] if (said := verdict(list(rows))) else []),
        f'<p class="note">{sessions:,} sessions{sown}, the same for every policy; '
        "bars are 95 % intervals.</p>",
        f'<details class="note"><summary>How to read this</summary><p>{told}</p></details>',
        '<div class="figures">',
        _evaluated(rows, "value", "Value of a session", ".2f"),
        _evaluated(rows, "gain_over_keep", "Gain over keep", "+.2f", reference=0.0),
        _evaluated(rows, "gap_closed", "Share of the gap to the oracle", ".0%", reference=0.0),
        _evaluated(rows, "bias", "Bias: value on learned users over true value", "+.1%", reference=0.0),
        _evaluated(rows, "exploitation_gap", "Exploitation gap", "+.1%", reference=0.0),
        _evaluated(rows, "requests", "Requests per session", ".2f"),
        *(
            _evaluated(rows, column.key, f"Responses per session: {column.title}", column.style)
            for column in response_columns(rows)
        ),
        "</div>",
    ]
    for title, (header, body) in tables(rows).items():
        shown = table(header, body)
        parts.append(f"<details><summary>All figures on {escape(title)}</summary>{shown}</details>")
    return "\n".join(parts)


def _evaluated(rows: Rows, metric: str, title: str, style: str, reference: float | None = None) -> str:
    """Chart a metric by policy, best first; return "" if no row has it or all are equal."""
    kinds = [users for users in USERS if any(r["users"] == users and of_metric(r, metric) for r in rows)]
    kinds += [
        u for u in dict.fromkeys(r["users"] for r in rows) if u not in USERS and of_metric(rows[0], metric)
    ]
    found = {
        (row["policy"], row["users"]): value for row in rows if (value := of_metric(row, metric)) is not None
    }
    if not kinds or len({value.mean for value in found.values()}) == 1:
        return ""
    best = {
        policy: value.mean
        for users in reversed(kinds)
        for (policy, of), value in found.items()
        if of == users
    }
    order = sorted(best, key=lambda policy: -best[policy])
    entries = [ChartEntry(policy, [found.get((policy, users)) for users in kinds]) for policy in order]
    names = [USERS_TITLES.get(users, users) for users in kinds]
    drawing = interval_chart(entries, title, style, series=names, percent="%" in style, reference=reference)
    return figure(title, drawing, legend(names) if len(names) > 1 else "")


def curve_section(curves: Sequence[dict[str, Any]]) -> str:
    """Return learning curves: reward while training, and checkpoints on learned users and ground truth."""
    charts = []
    for curve in curves:
        lines = []
        for users, name in (("synthetic", "ground truth"), ("learned", "learned users")):
            points = [(p["slots"], of_metric(p, users)) for p in curve.get("checkpoints", ())]
            known = [(slots, value) for slots, value in points if value is not None]
            if known:
                lines.append(line_of(f"{name}, best actions", known))
        if training := curve.get("training"):
            slots, reward = smooth(training["slots"], training["reward"])
            if slots:
                name = "learned users, while training"
                lines.append(Line(name, slots, reward, marked=len(slots) == 1))
        if lines:
            note = "Bands: 95 % intervals of the sessions scored."
            axes = (str(curve.get("unit", "slots played")), "value of a session")
            charts.append(chart_of(lines, "Learning curve", axes, note=note))
    return "\n".join(['<div class="figures">', *charts, "</div>"]) if charts else ""


def smooth(
    slots: Sequence[float], reward: Sequence[float], points: int = 40
) -> tuple[list[float], list[float]]:
    """Return means over neighbouring values, about `points` of them."""
    size = max(1, len(slots) // points)
    groups = range(0, len(slots) - size + 1, size)
    return [sum(slots[k : k + size]) / size for k in groups], [
        sum(reward[k : k + size]) / size for k in groups
    ]


def exploitation_section(content: dict[str, Any]) -> str:
    """Return the learning curves of a study of ways to train: true value, and value on learned users."""
    bias_of_keep = content["keep"]["learned"]["mean"] / content["keep"]["synthetic"]["mean"] - 1
    parts = ['<div class="figures">']
    for measure in dict.fromkeys(row["measure"] for row in content["rows"]):
        true: list[tuple[float, Estimate]] = []
        promised: list[tuple[float, Estimate]] = []
        for row in content["rows"]:
            if row["measure"] != measure or not row["stop"].startswith("after"):
                continue
            values = row["true_value"]
            gaps = [gap["mean"] for gap in row["exploitation_gap"]]
            # The gap is the policy's bias minus that of keep; bias = learned / true - 1.
            learned = [v * (1 + gap + bias_of_keep) for v, gap in zip(values, gaps, strict=True)]
            slots = sum(row["steps"]) / len(row["steps"])
            for points, own in ((true, values), (promised, learned)):
                points.append((slots, Estimate(sum(own) / len(own), min(own), max(own))))
        both = (("ground truth", true), ("learned users", promised))
        lines = [line_of(name, sorted(points)) for name, points in both if points]
        if lines:
            title, note = f"Learning curve: {measure}", "Bands: range over seeds."
            parts.append(chart_of(lines, title, ("slots played", "value of a session"), note=note))
    return "\n".join([*parts, "</div>"])


def training_section(record: dict[str, Any]) -> str:
    """Return a training run's settings and its figures per epoch or update."""
    parts = ['<div class="figures">']
    for key, what in RECORDED.items():
        values = record.get(key)
        if isinstance(values, list) and len(values) > 1:
            points = smooth(range(1, len(values) + 1), values)
            drawing = line_chart(
                [Line(what, *points)], what, ("epochs" if key != "reward" else "updates", what)
            )
            parts.append(figure(f"Learning curve: {what}", drawing))
    parts.append("</div>")
    told = [
        [name.replace("_", " "), str(record[name])]
        for name in ("agent", "id", "track", "users", "seed", "steps", "updates", "num_envs")
        if record.get(name) is not None
    ]
    told += [[name.replace("_", " "), f"{value:g}"] for name, value in record.get("hyper", {}).items()
             if isinstance(value, int | float)]  # fmt: skip
    parts.append(f"<details><summary>Settings</summary>{table(['setting', 'value'], told)}</details>")
    return "\n".join(parts)


def fidelity_section(report: dict[str, Any]) -> str:
    """Return the section of a fidelity report."""
    tau, weak = report.get("kendall_tau"), report.get("weak", [])
    facts = [
        ("click AUC", report.get("click_auc"), ".3f"),
        ("calibration error", report.get("click_ece"), ".4f"),
        ("two-sample AUC", report.get("two_sample_auc"), ".3f"),
        ("Kendall tau of policies", tau, ".2f"),
    ]
    parts = ['<dl class="facts">']
    parts += [f"<div><dt>{n}</dt><dd>{v:{style}}</dd></div>" for n, v, style in facts if v is not None]
    parts.append(f"<div><dt>weak</dt><dd>{escape(', '.join(weak) or 'nothing')}</dd></div></dl>")
    parts.append('<div class="figures">')
    parts += [_reliability(name, event) for name, event in report["events"].items()]
    parts += [_click_rate(name, found) for name, found in report.get("distributions", {}).items()]
    parts += [_effects(report.get("interventions")), _policies(report.get("policies")), "</div>"]
    return "\n".join(parts)


def _reliability(name: str, event: dict[str, Any]) -> str:
    """Chart observed against expected rates in bins with equal numbers of slots."""
    curve = event["reliability"]
    seen = [b["observed"] for b in curve]
    error = [2 * (max(s * (1 - s), 0) / b["slots"]) ** 0.5 for s, b in zip(seen, curve, strict=True)]
    line = Line(
        name.replace("_", " "),
        [b["predicted"] for b in curve],
        seen,
        [s - e for s, e in zip(seen, error, strict=True)],
        [s + e for s, e in zip(seen, error, strict=True)],
        joined=False,
    )
    title = f"Observed against expected: {name.replace('_', ' ')}"
    drawing = line_chart(
        [line], title, ("expected rate", "observed rate"), percent="xy", diagonal=True, zero=True
    )
    return figure(title, drawing, note="Held-out sessions; bars: two standard errors; dashed: perfect.")


def _click_rate(name: str, found: dict[str, Any]) -> str:
    titles = {"click_rate_by_slot": "slot of the session", "click_rate_by_page_age": "place in the page"}
    if name not in titles:
        return ""
    lines = []
    for kind, title in (("log", "logs"), ("simulated", "learned users")):
        points = [(k, value) for k, value in enumerate(found[kind]["values"]) if value is not None]
        if points:
            places, rates = zip(*points, strict=True)
            lines.append(Line(title, *smooth(places, rates)))
    if not lines:
        return ""
    drawing = line_chart(
        lines, f"click rate by {titles[name]}", (titles[name], "click rate"), percent="y", zero=True
    )
    return figure(f"Click rate by {titles[name]}", drawing, legend([line.name for line in lines]))


def _effects(interventions: dict[str, Any] | None) -> str:
    """Chart the effects of decisions in logs and in rollouts."""
    entries = [
        ChartEntry(f"{decision} on {outcome}", [of_metric(found, "log"), of_metric(found, "simulated")])
        for decision, outcomes in (interventions or {}).items()
        for outcome, found in outcomes.items()
    ]
    if not entries:
        return ""
    title = "Effects of decisions on the next 10 slots, against keep"
    drawing = interval_chart(entries, title, "+.3f", series=("logs", "learned users"), reference=0.0)
    return figure(title, drawing, legend(["logs", "learned users"]), "95 % intervals.")


def _policies(policies: Rows | None) -> str:
    """Chart the true value of policies and their value on learned users."""
    if not policies:
        return ""
    order = sorted(policies, key=lambda row: -row["true_value"]["mean"])
    entries = [
        ChartEntry(row["policy"], [of_metric(row, "true_value"), of_metric(row, "value")]) for row in order
    ]
    names = [USERS_TITLES["synthetic"], USERS_TITLES["learned"]]
    title = "Do learned users rank policies as the ground truth does?"
    return figure(title, interval_chart(entries, title, series=names), legend(names), "95 % intervals.")
