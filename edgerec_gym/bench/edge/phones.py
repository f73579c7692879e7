"""A phone measured over a real connection: latency, bytes and lateness, with a network as bad as wanted."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np

from edgerec_gym.agents.phones.simulated import DATABASE, PhoneSettings, play_sessions
from edgerec_gym.device.event_store import EventStore
from edgerec_gym.device.link_settings import LinkSettings
from edgerec_gym.device.traffic import frame_header
from edgerec_gym.faults.lag_proxy import LagProxy
from edgerec_gym.protocol.messages import Answer, Delta, encode
from edgerec_gym.service.local import LocalService

PACE = 20.0  # times as fast as people: a slot takes about 50 ms, so requests are still answered within slots


def measure(
    settings: PhoneSettings, service: LocalService, seeds: Sequence[int], lag_ms: float = 0.0
) -> dict[str, Any]:
    """Play sessions one after the other on one phone.

    Args:
        settings: the phone; its address is replaced.
        service: where it is served.
        seeds: of the sessions.
        lag_ms: milliseconds that the network adds in each direction.

    Returns:
        Figures over all sessions: decisions and pages (wall ms, p50 and p99), budgets missed, requests, bytes
        a session by direction and kind, and what it would cost to send all answers so far after each. Pages
        are those that come over an open connection. The first page of a session also opens one, so it has
        figures of its own.
    """
    sessions: list[dict[str, Any]] = []
    kinds: dict[str, int] = {}

    def watch(session: Any) -> None:
        if session.features.ended:
            last.append(session)

    last: list[Any] = []

    async def run() -> list[Any]:
        async with LagProxy(service.port) as proxy:
            proxy.set_lag(lag_ms / 1000, lag_ms / 1000)
            return await play_sessions(replace(settings, url=proxy.url()), seeds, sessions.append, watch)

    reports = asyncio.run(run())
    for session in last:
        for (direction, kind), amount in session.link.traffic.amounts.items():
            name = f"{direction} {kind}"
            kinds[name] = kinds.get(name, 0) + amount.frames
    n = max(1, len(reports))
    with closing(EventStore(settings.store / DATABASE, keep=len(seeds))) as store:
        kept = store.sessions()
        whole = [snapshots(store.answers(session.session)) for session in kept]
    decisions = np.concatenate([report.decision_ms for report in reports])
    first = 1000 * np.array([report.page_seconds[0] for report in reports if report.page_seconds])
    later = 1000 * np.concatenate([report.page_seconds[1:] for report in reports])
    return {
        "sessions": len(reports),
        "decisions": len(decisions),
        "decision_p50_ms": float(np.percentile(decisions, 50)),
        "decision_p99_ms": float(np.percentile(decisions, 99)),
        **{f"first_page_{name}_ms": value for name, value in _quantiles(first).items()},
        **{f"page_{name}_ms": value for name, value in _quantiles(later).items()},
        "missed": sum(report.missed for report in reports),
        "requests": sum(report.requests for report in reports) / n,
        "pages": sum(report.pages for report in reports) / n,
        "bytes_up": sum(row["bytes_up"] for row in sessions) / n,
        "bytes_down": sum(row["bytes_down"] for row in sessions) / n,
        "bytes_by_kind": {kind: total / n for kind, total in sorted(kinds.items())},
        "snapshot_bytes": float(np.mean(whole)),
        "delivered": sum(report.delivered for report in reports) / n,
    }


def _quantiles(milliseconds: np.ndarray) -> dict[str, float]:
    """Return p50 and p99; nan of nothing."""
    if not len(milliseconds):
        return {"p50": float("nan"), "p99": float("nan")}
    return {f"p{q}": float(np.percentile(milliseconds, q)) for q in (50, 99)}


def each_answer_alone(sync: str, period: int) -> LinkSettings:
    """Return settings that tell the cloud of every answer by itself, as at people's own pace.

    People look at a card for about a second, and an answer waits for others for half of one.
    """
    return LinkSettings(sync=sync, period=period, most_answers=1)


def snapshots(answers: Sequence[Answer]) -> int:
    """Return the bytes that a session costs if all answers so far are sent after each."""
    total = 0
    for count in range(1, len(answers) + 1):
        size = len(encode(Delta(0, list(answers[:count]))))
        total += size + frame_header(size, masked=True)
    return total
