"""What phone and cloud are worth together: the ablation table of the source document, and interest sync.

Values are those of the environment, which phone and service repeat bit for bit (parity.py). Times and bytes
are measured on one phone that speaks to a service over a socket, with 50 ms of lag in each direction.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgerec_gym.agents.phones.simulated import PhoneSettings
from edgerec_gym.bench.edge.capture import CLOUD, HORIZONS, PHONE, find_switches
from edgerec_gym.bench.edge.phones import PACE, each_answer_alone, measure
from edgerec_gym.bench.setting import make_policy
from edgerec_gym.config import SYNC_MODES
from edgerec_gym.device.description import DESCRIPTION
from edgerec_gym.errors import InputError
from edgerec_gym.evaluation.cache import Entry, Place, played
from edgerec_gym.evaluation.intervals import mean_interval
from edgerec_gym.files import folder_bytes
from edgerec_gym.scenario import Scenario
from edgerec_gym.service.local import local_service

KEEP = "keep"
LAG_MS = 50.0  # each way, as in the source document's cloud path of 100 ms
NEVER = 10_000  # slots between uploads when behaviour never reaches the cloud
PERIOD = 20  # slots, of the simple sync
CAPTURE_SEED = 10**6  # sessions that no one has looked at while the horizons were chosen
CAPTURE_HORIZON = {"lite": 15}
USUAL_HORIZON = 20
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Sizes:
    """Amount of work.

    Attributes:
        sessions: that each system plays in the environment.
        capture_sessions: in which mood switches are looked for.
        phone_sessions: that each system plays over a connection.
        rounded_sessions: that the exported and the rounded agent play in the environment.
    """

    sessions: int = 4000
    capture_sessions: int = 6000
    phone_sessions: int = 60
    rounded_sessions: int = 400


QUICK = Sizes(sessions=400, capture_sessions=1000, phone_sessions=8, rounded_sessions=40)


@dataclass(frozen=True)
class System:
    """A way to divide the work between phone and cloud.

    Attributes:
        name: of the row.
        policy: what decides, the name of a baseline or a folder.
        sync: when behaviour reaches the cloud.
        period: slots between uploads, with sync="periodic".
        decided: "phone", or "cloud" if every decision is a round trip.
    """

    name: str
    policy: str
    sync: str
    period: int = PERIOD
    decided: str = "phone"

    def cloud(self, scenario: str) -> dict[str, Any]:
        """Return the cloud's config under this system."""
        own = Scenario.load(scenario).config.cloud
        return own.replace(sync=self.sync, sync_period=self.period).to_dict()


@dataclass
class Study:
    """One run of the study.

    Attributes:
        folder: of models, sessions played and phones.
        sizes: amount of work.
        workers: processes that play.
        tell: takes a line about what is being done.
    """

    folder: Path
    sizes: Sizes = field(default_factory=Sizes)
    workers: int = 2
    tell: Tell = print

    def sync(self, scenarios: Sequence[str]) -> list[dict[str, Any]]:
        """Return capture rates by scenario and way of telling the cloud, and the bytes that it costs."""
        rows = []
        for name in scenarios:
            scenario = Scenario.load(name)
            horizon = CAPTURE_HORIZON.get(name, USUAL_HORIZON)
            for sync in SYNC_MODES:
                self.tell(f"{name}: mood switches, sync {sync}")
                seeds = range(CAPTURE_SEED, CAPTURE_SEED + self.sizes.capture_sessions)
                switches = find_switches(scenario, sync, seeds)
                told = self._bytes_of(name, sync)
                rows.append(
                    {
                        "scenario": name,
                        "sync": sync,
                        "horizon": horizon,
                        "switches": switches.count(horizon),
                        "capture": switches.rate(horizon),
                        "ceiling": switches.rate(horizon, PHONE),
                        "by_horizon": {str(h): switches.rate(h, CLOUD) for h in HORIZONS},
                        **told,
                    }
                )
        return rows

    def _bytes_of(self, scenario: str, sync: str) -> dict[str, float]:
        """Return the bytes of behaviour a session, and what full snapshots would cost."""
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            with local_service(scenario, folder / "service") as service:
                settings = PhoneSettings(
                    KEEP, service.url, service.secret, scenario, speed=float("inf"),
                    store=folder / "phone", link=each_answer_alone(sync, PERIOD),
                )  # fmt: skip
                seeds = range(self.sizes.phone_sessions)
                found = measure(settings, service, seeds)
        kinds = found["bytes_by_kind"]
        delta = kinds.get("up delta", 0.0) + kinds.get("down ack", 0.0)
        return {
            "sync_bytes": delta,
            "snapshot_bytes": found["snapshot_bytes"],
            "all_bytes": found["bytes_up"] + found["bytes_down"],
        }

    def ablation(self, scenario: str, run: Path, model: Path, rounded: Path) -> list[dict[str, Any]]:
        """Return a row for each system.

        Args:
            scenario: what is served.
            run: the trained run.
            model: the same, exported.
            rounded: the same with weights of 8 bits.
        """
        agent = str(run)
        systems = [
            System("cloud only", KEEP, "page", decided="cloud"),
            System("pure edge (minus sync)", agent, "periodic", NEVER),
            System("simple sync, every 20 slots", agent, "periodic"),
            System("full system", agent, "incremental"),
        ]
        values = {system.name: self._values(scenario, system, self.sizes.sessions) for system in systems}
        full = values["full system"]
        rows = []
        for system in systems:
            exported = str(model) if system.policy == agent else system.policy
            self.tell(f"{scenario}: {system.name} over a connection")
            found = self._measured(scenario, exported, system, LAG_MS)
            own = values[system.name]
            row = {
                "system": system.name,
                "scenario": scenario,
                "value": mean_interval(own["value"]),
                "below_full": mean_interval(full["value"] - own["value"]),
                "model_bytes": folder_bytes(Path(exported)) if Path(exported).is_dir() else 0,
                **found,
            }
            if system.decided == "cloud":  # a decision is a page over an open connection
                row |= {f"decision_{q}_ms": found[f"page_{q}_ms"] for q in ("p50", "p99")}
            rows.append(row)
        return rows + self._rounded(scenario, model, rounded)

    def _rounded(self, scenario: str, model: Path, rounded: Path) -> list[dict[str, Any]]:
        """Return rows of the exported agent with weights of 32 and 8 bits, over the same sessions."""
        rows, exact = [], None
        for name, folder in (("full system, 32 bits", model), ("full system, 8 bits", rounded)):
            system = System(name, str(folder), "incremental")
            own = self._values(scenario, system, self.sizes.rounded_sessions)
            exact = own if exact is None else exact
            self.tell(f"{scenario}: {name} over a connection")
            rows.append(
                {
                    "system": name,
                    "scenario": scenario,
                    "value": mean_interval(own["value"]),
                    "below_full": mean_interval(exact["value"] - own["value"]),
                    "model_bytes": folder_bytes(folder),
                    **self._measured(scenario, str(folder), system, LAG_MS),
                }
            )
        return rows

    def scene(self, scenario: str, run: Path, model: Path) -> dict[str, Any]:
        """Return the row of a scenario with a latency budget; its agent re-ranks."""
        budget = Scenario.load(scenario).config.latency_budget_ms
        if budget is None:
            raise InputError(f"scenario {scenario!r} has no latency budget")
        env_id = "EdgeFeedRerank-v0"
        system = System("full system", str(run), "incremental")
        own = self._values(scenario, system, self.sizes.sessions, env_id)
        keep = self._values(scenario, System(KEEP, KEEP, "incremental"), self.sizes.sessions, env_id)
        self.tell(f"{scenario}: over a connection")
        found = self._measured(scenario, str(model), system, LAG_MS, env_id)
        return {
            "scenario": scenario,
            "budget_ms": budget,
            "value": mean_interval(own["value"]),
            "over_keep": mean_interval(own["value"] - keep["value"]),
            "missed_share": found["missed"] / found["decisions"],
            **found,
        }

    def _values(
        self, scenario: str, system: System, sessions: int, env_id: str = "EdgeFeed-v0"
    ) -> dict[str, np.ndarray]:
        """Return what each session earns in the environment."""
        self.tell(f"{scenario}: {system.name} in the environment")
        place = Place(env_id, scenario, sessions=sessions, config={"cloud": system.cloud(scenario)})
        folder = Path(system.policy)
        exported = folder / DESCRIPTION  # which has the digests of all other files
        files = (exported,) if exported.is_file() else (folder,) if folder.is_dir() else ()
        entry = Entry(system.name, make_policy, {"name": system.policy}, files)
        return next(iter(played([entry], place, self.folder / "played", workers=1).values()))

    def _measured(
        self, scenario: str, policy: str, system: System, lag_ms: float, env_id: str = "EdgeFeed-v0"
    ) -> dict[str, Any]:
        """Return what a phone measures."""
        speed = PACE * Scenario.load(scenario).config.dwell_scale
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            with local_service(scenario, folder / "service") as service:
                settings = PhoneSettings(
                    policy, service.url, service.secret, scenario, env_id=env_id, speed=speed,
                    store=folder / "phone", link=each_answer_alone(system.sync, system.period),
                )  # fmt: skip
                found = measure(settings, service, range(self.sizes.phone_sessions), lag_ms)
        return found
