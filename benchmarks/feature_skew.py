"""Do a phone's model and its training read the same numbers? Features online and offline, bit by bit.

    python -m benchmarks.feature_skew [--scenario lite-v2] [--sessions 10000] [--out FILE]

Phones play sessions (random legal actions, so that every kind of slot occurs). What they perceive at every
slot is compared with what training reads of the same sessions: the log as the service writes it, read by
`ObservedLog`. A number differs if any of its bits does.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from edgerec_gym.agents.data.observed_log import ObservedLog
from edgerec_gym.commands.console import progress_bar
from edgerec_gym.device.features import NOTHING, SessionFeatures
from edgerec_gym.evaluation.latency import measured_on
from edgerec_gym.files import make_folder, write_json
from edgerec_gym.logs.sessions import LoggedSessions
from edgerec_gym.policy import Observation
from edgerec_gym.protocol.messages import Answer, Page, PageRequest
from edgerec_gym.scenario import Scenario
from edgerec_gym.service.pages import PageBuilder
from edgerec_gym.service.session_log import session_table
from edgerec_gym.service.store import Begun
from edgerec_gym.users.people import People, Person

CHUNK = 250  # sessions compared at once


def play(
    scenario: Scenario, builder: PageBuilder, people: People, seed: int
) -> tuple[Person, list[Observation], list[Answer], list[Answer], dict[int, Page]]:
    """Play a session; returns who played, what was perceived before every slot, and what the cloud knows."""
    person = people.begin(0, seed)
    features = SessionFeatures(scenario.config)
    features.begin(person.session, person.features, person.hour)
    pages = {0: builder.build(person.session, person.user, PageRequest(0, 0, 0, [], "start"), [])}
    features.turn(pages[0])
    rng, waiting = np.random.default_rng(seed), None
    seen: list[Observation] = []
    answers: list[Answer] = []
    while not features.ended:
        observation = features.observation()
        seen.append({key: values[0].copy() for key, values in observation.items() if key != "action_mask"})
        known = features.answers
        action = int(rng.choice(np.flatnonzero(observation["action_mask"][0])))
        if features.place(action) != NOTHING:
            waiting = known
        told = features.answer(people.answer(0, features.focus) if features.focus.active[0] else None)
        answers += [told] if told else []
        if waiting is not None and not features.page_due:
            number, placed = features.page + 1, features.items_since(waiting)
            request = PageRequest(number, features.slot, waiting, placed, "automatic")
            pages[number] = builder.build(person.session, person.user, request, answers)
            features.turn(pages[number])
            waiting = None
        features.show()
    return person, seen, answers, features.placed_since(len(answers)), pages


def compare(scenario: Scenario, seen: list[list[Observation]], tables: list[pa.Table]) -> Counter[str]:
    """Count numbers by key, and those that differ, as "KEY" and "KEY differ"."""
    table = pa.concat_tables(tables)
    log = ObservedLog(
        table, LoggedSessions.from_table(table, scenario.config, scenario.catalog), scenario.config
    )
    session = np.repeat(np.arange(len(seen)), [len(slots) for slots in seen])
    slot = np.concatenate([np.arange(len(slots)) for slots in seen])
    offline = log.observations(session, slot)
    found: Counter[str] = Counter()
    for key, values in offline.items():
        online = np.stack([one[key] for slots in seen for one in slots])
        values = np.asarray(values, np.float32)
        found[key] += online.size
        found[f"{key} differ"] += int((online.view(np.int32) != values.view(np.int32)).sum())
    return found


def main() -> None:
    """Compare, print and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenario", default="lite-v2")
    parser.add_argument("--sessions", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/feature_skew.json"))
    arguments = parser.parse_args()
    scenario = Scenario.load(arguments.scenario)
    builder, people = PageBuilder(scenario), People(scenario, "synthetic")
    total: Counter[str] = Counter()
    with progress_bar("sessions") as progress:
        for first in range(0, arguments.sessions, CHUNK):
            seen, tables = [], []
            for seed in range(first, min(first + CHUNK, arguments.sessions)):
                person, slots, answers, placed, pages = play(scenario, builder, people, arguments.seed + seed)
                begun = Begun(person.session, person.user, "phone", 0, person.hour)
                seen.append(slots)
                tables.append(session_table(scenario, begun, seed, answers, placed, pages, person.features))
            total += compare(scenario, seen, tables)
            progress(min(first + CHUNK, arguments.sessions), arguments.sessions)
    rows: list[dict[str, Any]] = [
        {"key": key, "numbers": total[key], "different": total[f"{key} differ"]}
        for key in total
        if not key.endswith(" differ")
    ]
    for row in rows:
        print(f"{row['key']}: {row['different']:,} of {row['numbers']:,} numbers differ")
    make_folder(arguments.out.parent)
    about = {
        "scenario": arguments.scenario,
        "sessions": arguments.sessions,
        "seed": arguments.seed,
        **measured_on("numpy"),
    }
    write_json(arguments.out, {"about": about, "rows": rows})


if __name__ == "__main__":
    main()
