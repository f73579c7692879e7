"""The leaderboard: one table per track and scenario, best policy first, from the benchmark's rows."""

from __future__ import annotations

from edgerec_gym.bench.rows import NOT_SHIFTED
from edgerec_gym.config import RESPONSE_PREFIX, SHIFTS
from edgerec_gym.evaluation.cache import Rows, table

SIGNIFICANT = 0.05
COLUMNS = {
    "value": ".3f",
    "gain_over_keep": "+.3f 95%",
    "attainable_gap_closed": ".1%",
    "gap_closed": ".1%",
    **{f"gap_closed_{shift}": ".1%" for shift in SHIFTS},
    "interquartile_mean": ".1% 95%",
    "exploitation_gap": "+.1%",
    "better_than": ".0f",
    "policy_steps_per_second": ",.0f",
}


def leaderboards(rows: Rows) -> dict[str, tuple[list[str], list[list[str]]]]:
    """Return header and body of each track's and scenario's table, best policy first, by title.

    `better_than` counts the policies that a policy significantly outperforms, after Holm's correction. The
    interquartile mean is taken over the shares of the gap closed with unshifted and with all shifted users.
    """
    found = {}
    for track, scenario in dict.fromkeys((item["track"], item["scenario"]) for item in rows):
        all_users = [item for item in rows if (item["track"], item["scenario"]) == (track, scenario)]
        own = [item for item in all_users if item.get("shift", NOT_SHIFTED) == NOT_SHIFTED]
        values = {item["policy"]: item["mean"] for item in own if item["metric"] == "value"}
        compared = [item for item in own if item["metric"] == "difference"]
        taking_part = {name for item in compared for name in (item["policy"], item["against"])}
        wins = {policy: 0 for policy in values if policy in taking_part}  # leaves out references
        for item in compared:
            wins[item["policy"]] += item["p_holm"] < SIGNIFICANT
        own += [
            {"policy": policy, "metric": "better_than", "mean": n, "low": n, "high": n}
            for policy, n in wins.items()
        ]
        own += [
            {**item, "metric": f"gap_closed_{item['shift']}"}
            for item in all_users
            if item["metric"] == "gap_closed" and item.get("shift") in SHIFTS
        ]
        order = sorted(own, key=lambda item: -values.get(item["policy"], 0.0))
        responses = [item["metric"] for item in own if item["metric"].startswith(RESPONSE_PREFIX)]
        columns = COLUMNS | dict.fromkeys(responses, ".3f")
        shown = [item for item in order if item["metric"] in columns]
        metrics = {name: form for name, form in columns.items() if any(i["metric"] == name for i in shown)}
        found[f"{track}, {scenario}"] = table(shown, metrics)
    return found
