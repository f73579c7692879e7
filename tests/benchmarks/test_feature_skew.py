"""What a phone's model reads and what its training reads of the log are the same numbers, bit for bit."""

from __future__ import annotations

from collections import Counter

import pytest

from benchmarks.feature_skew import compare, play
from edgerec_gym.scenario import Scenario
from edgerec_gym.service.pages import PageBuilder
from edgerec_gym.service.session_log import session_table
from edgerec_gym.service.store import Begun
from edgerec_gym.users.people import People


@pytest.mark.parametrize("name", ["lite-v2", "default"])
def test_no_bit_differs(name: str) -> None:
    scenario = Scenario.load(name)
    builder, people = PageBuilder(scenario), People(scenario, "synthetic")
    seen, tables = [], []
    for seed in range(12):
        person, slots, answers, placed, pages = play(scenario, builder, people, seed)
        begun = Begun(person.session, person.user, "phone", 0, person.hour)
        seen.append(slots)
        tables.append(session_table(scenario, begun, seed, answers, placed, pages, person.features))
    found = compare(scenario, seen, tables)
    assert found["pool"] > 10_000 and found["exposures"] > 10_000
    assert {key: count for key, count in found.items() if key.endswith("differ") and count} == {}
    slots_of_first = seen[0]
    slots_of_first[-1]["pool"][0, 0] += 1e-7  # it would be found
    assert compare(scenario, seen, tables) - found == Counter({"pool differ": 1})
