"""The phone's store: what it has told is kept, whatever happens to process, disk and file."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from places import ROOT

from edgerec_gym.device.event_store import EventStore, PhoneSession
from edgerec_gym.device.phone_schema import Decision
from edgerec_gym.errors import InputError
from edgerec_gym.protocol.messages import Answer, Page

ANSWERS = st.builds(
    Answer,
    item=st.integers(0, 2**31 - 1),
    page=st.integers(0, 10_000),
    age=st.integers(0, 10_000),
    action=st.integers(-1, 4000),
    exposure=st.binary(max_size=64),
    page_view=st.binary(max_size=64),
    leave=st.booleans(),
    requested=st.booleans(),
)


def session(key: int = 1, **more: int) -> PhoneSession:
    return PhoneSession(**{"session": key, "user": 2, "day": 3, "hour": 4, **more})


def answer(number: int = 0) -> Answer:
    return Answer(number, 0, number, 1, bytes([number % 85]))


def page(number: int = 0) -> Page:
    return Page(number, number, b"abcd", b"xy", b"", b"", bytes(20))


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def store(tmp_path: Path, said: list[str]):
    with closing(EventStore(tmp_path / "phone.db", keep=2, say=said.append)) as opened:
        opened.begin(session())
        yield opened


def reopened(store: EventStore, said: list[str]) -> EventStore:
    store.close()
    return EventStore(store.path, keep=2, say=said.append)


def test_an_answer_is_committed_when_append_returns(store: EventStore) -> None:
    assert store.append(1, answer(7)) == 0
    with closing(sqlite3.connect(store.path)) as other:
        assert other.execute("SELECT session, number, item FROM events").fetchall() == [(1, 0, 7)]


@settings(deadline=None, max_examples=15, derandomize=True)
@given(st.lists(st.tuples(st.sampled_from([-(2**63), 5, 2**63 - 1]), ANSWERS), max_size=20), st.data())
def test_answers_come_back_as_they_were(told: list[tuple[int, Answer]], data: st.DataObject) -> None:
    expected: dict[int, list[Answer]] = {}
    with TemporaryDirectory() as folder:
        store = EventStore(Path(folder) / "phone.db")
        for key, one in told:
            store.begin(session(key))
            expected.setdefault(key, []).append(one)
            assert store.append(key, one) == len(expected[key]) - 1
            if data.draw(st.booleans()):
                store.close()
                store = EventStore(Path(folder) / "phone.db")
        for key, answers in expected.items():
            first, last = data.draw(st.integers(0, 22)), data.draw(st.integers(0, 22))
            assert store.answers(key) == answers
            assert store.answers(key, first, last) == answers[first:last]
            found = store.session(key)
            assert found is not None and found.answers == len(answers)
        assert [found.session for found in store.sessions()] == list(expected)
        store.close()


def test_what_is_no_answer_is_not_kept(store: EventStore) -> None:
    with pytest.raises(InputError, match="an answer: .*4000"):
        store.append(1, msgspec.structs.replace(answer(), action=4001))
    assert store.append(1, answer()) == 0


def test_a_session_goes_on(store: EventStore, said: list[str]) -> None:
    store.append(1, answer())
    store.acknowledge(1, 1)
    store.keep_user(1, b"abcd")
    store.end(1, [answer(3)])
    store.end(1, [])  # the first time counts
    again = reopened(store, said)
    again.begin(session(user=9, day=9))
    expected = session(user_features=b"abcd", answers=1, acknowledged=1, placed=[answer(3)])
    assert again.sessions() == [expected]
    assert again.append(1, answer(1)) == 1
    again.ended(1)
    assert again.session(1) == msgspec.structs.replace(expected, answers=2, ended=True)
    assert again.session(2) is None
    assert again.user_features(2) == b"abcd" and again.user_features(3) == b""
    again.close()
    assert not said


def test_pages_arms_and_decisions(store: EventStore, said: list[str]) -> None:
    assert store.page(1) is None
    for number in (0, 2, 1):
        store.keep_page(1, page(number))
    store.keep_page(1, msgspec.structs.replace(page(2), pool=b"another"))
    store.keep_arms({"a": "1", "b": "2"})
    store.keep_arms({"a": "3"})
    decisions = [
        Decision(4, "click", "d" * 64, 1.5),
        Decision(4, "start", "", 0.0, "cloud order", "too late"),
    ]
    for decision in decisions:
        store.record(1, decision)
    again = reopened(store, said)
    assert again.page(1) == page(2) and again.page(1, 1) == page(1) and again.page(1, 3) is None
    assert again.arms() == {"a": "3"}
    assert again.decisions(1) == decisions and again.decisions(2) == []
    again.close()


def test_sessions_that_the_cloud_has_are_removed(store: EventStore) -> None:
    """All but the last two; one that it lacks stays, however old it is."""
    for key in range(1, 8):
        store.begin(session(key))
        store.append(key, answer())
        store.keep_page(key, page())
        store.record(key, Decision(0, "start", "", 0.0))
        store.end(key, [])
        if key not in (2, 3, 4):
            store.acknowledge(key, 1)
        if key != 4:
            store.ended(key)
    store.begin(session(8))
    assert [found.session for found in store.sessions()] == [2, 3, 4, 6, 7, 8]
    assert store.answers(1) == [] and store.page(1) is None and store.decisions(1) == []
    assert store.answers(4) == [answer()]


def test_the_file_stays_small(tmp_path: Path) -> None:
    store = EventStore(tmp_path / "phone.db", keep=1)
    sizes = []
    for key in range(40):
        store.begin(session(key))
        for number in range(20):
            store.append(key, answer(number))
        store.keep_page(key, msgspec.structs.replace(page(), pool=bytes(8000)))
        store.acknowledge(key, 20)
        store.end(key, [])
        store.ended(key)
        sizes.append(sum(file.stat().st_size for file in tmp_path.iterdir()))
    store.close()
    assert max(sizes[10:]) <= max(sizes[:10])


def test_a_damaged_page_is_none(store: EventStore, said: list[str]) -> None:
    store.begin(session(5))
    store.keep_page(5, page())
    store._database.execute("UPDATE pages SET data = x'93a4'")
    user = session(5).user
    assert store.last_page(user) is None and store.page(5) is None
    assert len(said) == 1 and "a page in it is damaged" in said[0]


def test_answers_that_are_cut_do_not_come_back(store: EventStore) -> None:
    for number in range(5):
        store.append(1, answer(number))
    assert store.cut(1, 3) and store.answers(1) == [answer(number) for number in range(3)]
    assert store.append(1, answer(9)) is None and len(store.answers(1)) == 3


def test_no_clock_orders_anything(store: EventStore, monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([1e9, 0.0, 2e9, 5.0] * 10)
    monkeypatch.setattr(time, "time", lambda: next(now))
    for key, day in ((5, 300), (4, 1), (6, 200)):
        store.begin(session(key, day=day))
        for number in range(3):
            store.append(key, answer(number))
    assert [found.session for found in store.sessions()] == [1, 5, 4, 6]
    assert store.answers(4) == [answer(number) for number in range(3)]


def fill(store: EventStore) -> int:
    """Append until the disk is full; returns the number of answers that are kept."""
    pages = store._database.execute("PRAGMA page_count").fetchone()[0]
    store._database.execute(f"PRAGMA max_page_count = {pages + 2}")
    kept = 0
    while store.append(1, msgspec.structs.replace(answer(kept), exposure=bytes(64))) is not None:
        kept += 1
        assert kept < 10_000
    return kept


def test_a_full_disk_makes_the_store_read_only(store: EventStore, said: list[str]) -> None:
    store.keep_page(1, page())
    kept = fill(store)
    assert kept and "full" in store.read_only
    assert store.append(1, answer()) is None and not store.keep_page(1, page(1))
    assert not store.acknowledge(1, 1) and not store.keep_arms({"a": "b"})
    assert len(said) == 1 and "read-only" in said[0] and str(store.path) in said[0]
    assert len(store.answers(1)) == kept and store.page(1) == page()
    again = reopened(store, said)
    assert len(again.answers(1)) == kept and again.append(1, answer()) == kept
    again.close()


def test_a_session_after_a_full_disk_is_kept_if_there_is_room(store: EventStore, said: list[str]) -> None:
    kept = fill(store)
    store._database.execute("PRAGMA max_page_count = 100000")
    assert store.begin(session(2)) and store.append(2, answer()) == 0
    assert store.append(1, answer()) is None  # an answer of this one is missing
    assert len(store.answers(1)) == kept and len(said) == 1


class _Failing:
    """A database whose writes fail."""

    def __init__(self, database: sqlite3.Connection, error: Exception) -> None:
        self.database, self.error = database, error

    def __getattr__(self, name: str):
        return getattr(self.database, name)

    def execute(self, statement: str, *values):
        if statement.startswith(("INSERT", "UPDATE", "DELETE", "BEGIN", "COMMIT")):
            raise self.error
        return self.database.execute(statement, *values)


@pytest.mark.parametrize(
    "error", [sqlite3.OperationalError("disk I/O error"), OSError(28, "No space left on device")]
)
def test_a_failing_disk_makes_the_store_read_only(
    store: EventStore, said: list[str], error: Exception
) -> None:
    store.append(1, answer())
    good = store._database
    store._database = _Failing(good, error)  # type: ignore[assignment]
    assert store.append(1, answer(1)) is None and not store.keep_arms({"a": "b"})
    assert not store.begin(session(2))  # tries anew, and does not say it again
    assert len(said) == 1 and store.answers(1) == [answer()]
    store._database = good


@pytest.mark.parametrize("data", [b"", b"no database at all" * 100, b"SQLite format 3\0" + bytes(4000)])
def test_a_file_that_is_no_store_is_set_aside(tmp_path: Path, said: list[str], data: bytes) -> None:
    path = tmp_path / "phone.db"
    for number in range(2):
        path.write_bytes(data)
        with closing(EventStore(path, say=said.append)) as store:
            assert store.begin(session()) and store.append(1, answer()) == 0
        aside = path.with_name(f"phone.db.corrupt-{number}")
        assert aside.exists() == bool(data)
        assert not data or (aside.read_bytes() == data and aside.name in said[number])
    assert len(said) == (2 if data else 0)


DAMAGE = {
    "an answer is missing": "DELETE FROM events WHERE number = 1",
    "out of range": "UPDATE events SET action = 5000 WHERE number = 1",
    "of another type": "UPDATE events SET exposure = 'text' WHERE number = 2",
    "another version": "PRAGMA user_version = 99",
    "a table is missing": "DROP TABLE arms",
    "a column is missing": "ALTER TABLE pages RENAME COLUMN data TO other",
}


@pytest.mark.parametrize("statement", DAMAGE.values(), ids=DAMAGE)
def test_wrong_content_is_set_aside(store: EventStore, said: list[str], statement: str) -> None:
    for number in range(3):
        store.append(1, answer(number))
    store.close()
    with closing(sqlite3.connect(store.path)) as other:
        other.execute(statement)
        other.commit()
    again = reopened(store, said)
    assert again.answers(1) == [] and again.begin(session()) and again.append(1, answer()) == 0
    again.close()
    assert len(said) == 1 and "phone.db.corrupt-0" in said[0]


@settings(deadline=None, max_examples=30, derandomize=True)
@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=8), st.floats(0.0, 1.0))
def test_a_damaged_file_never_stops_play(flips: list[tuple[float, int]], length: float) -> None:
    """Flipped bytes and a lost tail: what is read is right or nothing, and play goes on."""
    told = [answer(number) for number in range(30)]
    with TemporaryDirectory() as folder:
        said: list[str] = []
        path = Path(folder) / "phone.db"
        with closing(EventStore(path)) as store:
            store.begin(session())
            for one in told:
                store.append(1, one)
            store.keep_page(1, page())
        data = bytearray(path.read_bytes())
        for place, value in flips:
            data[int(place * (len(data) - 1))] = value
        path.write_bytes(data[: int(length * len(data))])
        with closing(EventStore(path, say=said.append)) as store:
            store.begin(session())
            store.sessions(), store.page(1), store.arms(), store.decisions(1)
            found = store.answers(1)
            number = store.append(1, answer())
            assert number == len(found) or (number is None and store.read_only and said)
            assert len(said) <= 2


@pytest.mark.parametrize("place", ["a folder", "below a file"])
def test_without_a_place_for_the_file_play_goes_on(tmp_path: Path, said: list[str], place: str) -> None:
    path = tmp_path / "phone.db"
    if place == "a folder":
        path.mkdir()
    else:
        path.write_bytes(b"")
        path = path / "phone.db"
    store = EventStore(path, say=said.append)
    assert not store.begin(session()) and store.append(1, answer()) is None
    assert store.session(1) is None and store.answers(1) == [] and len(said) == 1
    store.close()


def test_kill_9_loses_nothing_that_was_committed(tmp_path: Path) -> None:
    """Between any two operations, and inside of them."""
    script = Path(__file__).with_name("killed_store.py")
    subprocess.run([sys.executable, script, tmp_path], check=True, env={"PYTHONPATH": str(ROOT)}, timeout=120)
    counts = set()
    for folder in tmp_path.iterdir():
        told = len((folder / "told").read_bytes())
        said: list[str] = []
        with closing(EventStore(folder / "phone.db", say=said.append)) as store:
            store.begin(session())
            found = store.session(1)
            assert found is not None and not said
            answers = store.answers(1)
            assert answers == [Answer(n, 0, n, 1, bytes([n, 84])) for n in range(len(answers))]
            assert told <= len(answers) <= told + 1  # the last one may be committed and not yet told
            assert store.append(1, answer()) == len(answers)
            pages = max(0, told - 1)
            assert not pages or store.page(1, pages - 1) is not None
            assert found.acknowledged >= pages - 1
            counts.add(told)
    assert counts == set(range(7))
