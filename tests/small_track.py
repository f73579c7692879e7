"""A track of the benchmark that trains in no time: its policies rank by base ctr and freshness."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgerec_gym.bench.setting import Setting, make_policy
from edgerec_gym.bench.track import Track
from edgerec_gym.documents import read_json
from edgerec_gym.evaluation.cache import Entry, Place, Rows, row
from edgerec_gym.files import make_folder, write_json
from edgerec_gym.policy import Observation, best_legal

ENV_ID = "EdgeFeedRerank-v0"
POLICIES = ("keep", "greedy", "fresh", "oracle")
CTR, FRESHNESS = -3, -1  # columns of the pool


@dataclass(frozen=True)
class Sizes:
    """Sessions that each policy plays."""

    sessions: int = 40


FULL, QUICK = {"lite": Sizes()}, Sizes(20)


class Fresh:
    """Ranks by base ctr and, with a weight that was drawn, freshness."""

    name, stateless = "fresh", True

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def reset(self, mask: np.ndarray) -> None:
        """Do nothing: there is no state."""

    def act(self, observation: Observation) -> np.ndarray:
        """Return (B,) int64."""
        pool = observation["pool"]
        return best_legal(pool[..., CTR] + self.weight * pool[..., FRESHNESS], observation["action_mask"])


def make_fresh(_: Place, run: str) -> Fresh:
    """Return the policy of a run."""
    return Fresh(read_json(Path(run) / "policy.json")["weight"])


def policies() -> tuple[str, ...]:
    """Names: keep first, the oracle last."""
    return POLICIES


def entries(setting: Setting, names: Sequence[str]) -> list[Entry]:
    """Entries by name; "fresh" is trained."""
    found = []
    for name in names:
        if name != "fresh":
            found.append(Entry(name, make_policy, {"name": name}))
            continue
        for seed in range(setting.seeds):
            run = setting.runs / "runs" / f"fresh-{seed}"
            found.append(Entry(name, make_fresh, {"run": str(run)}, (run,), seed))
    return found


def train(setting: Setting, names: Sequence[str], workers: int, progress: Any) -> None:
    """Draw the weights."""
    assert "fresh" in names
    for seed in range(setting.seeds):
        run = make_folder(setting.runs / "runs" / f"fresh-{seed}")
        weight = float(np.random.default_rng(seed).random())
        write_json(run / "policy.json", {"weight": weight})
        (run / "policy.safetensors").write_bytes(b"")


def rows(setting: Setting, workers: int, progress: Any) -> Rows:
    """Train; one row of its own."""
    train(setting, POLICIES, workers, progress)
    interval = {"mean": 1.0, "low": 1.0, "high": 1.0}
    return [row("fresh", "weight", interval, setting.seeds, setting.sizes.sessions)]


def tables(rows: Rows) -> dict[str, Any]:
    """One table."""
    return {"weights": (["policy"], [[item["policy"]] for item in rows])}


TRACK = Track(
    name="rerank",
    env_id=ENV_ID,
    title="Small",
    summary="Trains in no time.",
    sizes=FULL,
    quick=QUICK,
    policies=policies,
    entries=entries,
    train=train,
    rows=rows,
    tables=tables,
    by_position=True,
)
