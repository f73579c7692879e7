"""What the study of faults draws, and that it would see a loss."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from command_line import fails_with

pytest.importorskip("uvicorn")

from edgerec_gym.bench.edge.fault_phone import DATABASE, SHORT, TOLD
from edgerec_gym.bench.edge.faults import ALL, NAMES, Outcome, compare, plan, rows_of
from edgerec_gym.device.event_store import EventStore
from edgerec_gym.device.phone_schema import PhoneSession
from edgerec_gym.protocol.messages import Answer
from edgerec_gym.service.sqlite_store import SqliteStore
from edgerec_gym.service.store import Begun

KEY = 7
ANSWERS = [Answer(number, 0, number, 1, bytes([number, 84])) for number in range(6)]
PLACED = [Answer(9, 0, 6, 1, b"")]


def both(folder: Path, held: list[Answer], placed: list[Answer] | None, told: str) -> Outcome:
    """A phone with six answers of which four were acknowledged, and a service that holds others."""
    with closing(EventStore(folder / DATABASE)) as store:
        store.begin(PhoneSession(KEY, 1, 0, 0))
        for answer in ANSWERS:
            store.append(KEY, answer)
        store.end(KEY, PLACED)
        store.ended(KEY)
    (folder / TOLD).write_text(told)
    (folder / SHORT).write_text("0")

    async def serve() -> None:
        service = SqliteStore(folder / "worker-0.db")
        await service.begin(Begun(KEY, 1, "phone-1", 0, 0))
        await service.append(KEY, 0, [msgspec.msgpack.encode(answer) for answer in held])
        if placed is not None:
            await service.end(KEY, [msgspec.msgpack.encode(answer) for answer in placed])
        await service.close()

    asyncio.run(serve())
    outcome = Outcome()
    compare(outcome, folder, KEY, folder)
    return outcome


SEEN = "0 a 0\n1 b 2\n2 c 4\n"
CHANGED = [*ANSWERS[:2], ANSWERS[5], *ANSWERS[3:]]
FOUND: dict[str, tuple[list[Answer], list[Answer] | None, str, tuple[int, int, int, bool]]] = {
    "the same": (ANSWERS, PLACED, SEEN, (0, 0, 0, True)),
    "started again": (ANSWERS, PLACED, SEEN + SEEN + "3 d 4\n", (0, 0, 0, True)),
    "the last two are missing": (ANSWERS[:4], PLACED, SEEN, (0, 2, 0, True)),
    "acknowledged ones are missing": (ANSWERS[:3], PLACED, SEEN, (1, 3, 0, True)),
    "an acknowledged one is another": (CHANGED, PLACED, SEEN, (1, 1, 0, True)),
    "one came twice": ([*ANSWERS, ANSWERS[-1]], PLACED, SEEN, (0, 1, 0, True)),
    "other cards": (ANSWERS, [], SEEN, (0, 1, 0, True)),
    "no end": (ANSWERS, None, SEEN, (0, 1, 0, False)),
    "perceived otherwise": (ANSWERS, PLACED, SEEN + "0 a 4\n1 x 4\n", (0, 0, 1, True)),
    "a slot is missing": (ANSWERS, PLACED, SEEN + "4 e 4\n", (0, 0, 1, True)),
}


@pytest.mark.parametrize("kind", FOUND)
def test_losses_are_seen(tmp_path: Path, kind: str) -> None:
    held, placed, told, wanted = FOUND[kind]
    outcome = both(tmp_path, held, placed, told)
    assert (outcome.lost, outcome.differing, outcome.features, outcome.delivered) == wanted
    assert outcome.answers == 6


def test_schedules_are_drawn_and_half_of_the_phones_are_killed() -> None:
    plans = [plan(number, seed=3) for number in range(200)]
    assert plans == [plan(number, seed=3) for number in range(200)]
    assert plans[0] != plan(0, seed=4) and len({each.seed for each in plans}) == 200
    assert sum(bool(each.deaths) for each in plans) == 100
    assert sum(each.service_killed for each in plans) == 40
    assert sum(each.speed == 0 for each in plans) == 50
    assert sum(each.service_killed and bool(each.deaths) for each in plans) == 20
    assert sum(each.lag > 0.1 for each in plans) == 8 and max(each.lag for each in plans) <= 2.0
    kinds = {type(fault).__name__ for each in plans for fault in each.network.faults}
    assert kinds == set(NAMES) - {"LongLag", "PhoneKilled", "ServiceKilled"}


def test_rows_count_by_fault() -> None:
    outcomes = [
        Outcome(Counter(CutAtByte=2, Refusal=1), 10, lost=1, delivered=True),
        Outcome(Counter(CutAtByte=1), 5, differing=3, crash="ValueError: no", delivered=False),
        Outcome(Counter(), 7, delivered=True),
    ]
    rows = {row["fault"]: row for row in rows_of(outcomes)}
    cut, refused, everything = rows[NAMES["CutAtByte"]], rows[NAMES["Refusal"]], rows[ALL]
    assert (cut["schedules"], cut["times"], cut["lost"], cut["differing"]) == (2, 3, 1, 3)
    assert (cut["crashes"], cut["undelivered"], cut["answers"]) == (1, 1, 15)
    assert (refused["schedules"], refused["times"], refused["differing"]) == (1, 1, 0)
    assert (everything["schedules"], everything["times"], everything["answers"]) == (3, 4, 22)
    assert rows[NAMES["Reorder"]]["schedules"] == 0


def test_a_wrong_option_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text("[]")
    fails_with("rows.json", "bench", "faults", "--results", tmp_path / "rows.json", "--out", tmp_path)
    fails_with("--schedules", "bench", "faults", "--schedules", "0")
