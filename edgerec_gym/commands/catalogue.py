"""The commands `edgerec agents`, `edgerec tracks` and `edgerec scenarios`: what there is to choose from."""

from __future__ import annotations

from typing import Any

from edgerec_gym.agents.registry import LOGS, agent_names, find_agent
from edgerec_gym.commands import console
from edgerec_gym.commands.options import AsJson

DECIDES = {
    "joint": "next item, card or not, request or not",
    "rerank": "next item",
    "mix": "card or not",
    "request": "request or not",
    "slate": "a plan for the coming slots",
}
ABOUT = {
    "default": "the sizes of the EdgeRec paper",
    "lite": "a short feed for a first look; heuristics are hard to beat",
    "default-v2": "the paper's sizes, tuned so that there is more to learn",
    "lite-v2": "a short feed, tuned so that there is more to learn",
    "short-video": "full-screen video, one card at a time",
    "live": "live streams that come and go",
    "food": "food delivery, few requests",
}


def agents(as_json: AsJson = False) -> None:
    """List the agents that edgerec train knows."""
    rows = [_agent(name) for name in agent_names()]
    if as_json:
        console.print_json(rows)
        return
    body = [[row["agent"], ", ".join(row["learns_from"]), row["summary"]] for row in rows]
    console.print_table("Agents", ["agent", "learns from", "what it is"], body, left=3)
    starts = [[row["agent"], ", ".join(row["starts_from"])] for row in rows if row["starts_from"]]
    console.print_table("Agents that start from runs", ["agent", "--based-on"], starts, left=2)


def _agent(name: str) -> dict[str, Any]:
    agent = find_agent(name)
    ways = [f"--{way}" if way == LOGS else way for way in agent.learns_from]
    return {
        "agent": name,
        "family": agent.family,
        "summary": agent.summary,
        "learns_from": [*ways, *(["--based-on"] if agent.starts_from else [])],
        "starts_from": list(agent.starts_from),
        "takes": list(agent.takes),
        "plays": agent.load is not None,
        "can_be_exported": agent.graphs is not None,
    }


def tracks(as_json: AsJson = False) -> None:
    """List the ids of the environment and their baselines."""
    from edgerec_gym.agents.baselines import baselines_of
    from edgerec_gym.registration import IDS

    rows = [
        {"id": env_id, "track": track, "decides": DECIDES[track], "baselines": list(baselines_of(track))}
        for env_id, track in IDS.items()
    ]
    if as_json:
        console.print_json(rows)
        return
    body = [[str(row["id"]), str(row["decides"]), ", ".join(row["baselines"])] for row in rows]
    console.print_table("Environments", ["id", "decides", "baselines"], body, left=3)


def scenarios(as_json: AsJson = False) -> None:
    """List the shipped scenarios."""
    from edgerec_gym.scenario import SHIPPED, Scenario

    rows = []
    for name in SHIPPED:
        scenario = Scenario.load(name)
        config = scenario.config
        rows.append(
            {
                "scenario": name,
                "items": len(scenario.catalog),
                "page_size": config.page_size,
                "pool_size": config.pool_size,
                "max_slots": config.max_slots,
                "latency_budget_ms": config.latency_budget_ms,
                "about": ABOUT[name],
            }
        )
    if as_json:
        console.print_json(rows)
        return
    body = [
        [
            str(row["scenario"]),
            str(row["about"]),
            f"{row['items']:,}",
            str(row["page_size"]),
            str(row["pool_size"]),
            str(row["max_slots"]),
            f"{row['latency_budget_ms']:g} ms" if row["latency_budget_ms"] else "",
        ]
        for row in rows
    ]
    header = ["scenario", "what it is for", "items", "page", "pool", "slots", "budget"]
    console.print_table("Scenarios", header, body, left=2)
