"""The phone's link: what it sends and when, and that neither network nor cloud can harm play."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from places import ROOT
from small_cloud import DIGEST, SESSION, USER, SmallCloud, answer, page_of

from edgerec_gym import device
from edgerec_gym.config import SYNC_MODES
from edgerec_gym.device.backoff import Backoff
from edgerec_gym.device.event_store import EventStore
from edgerec_gym.device.link import Link
from edgerec_gym.device.link_settings import Heard, LinkSettings, Phone
from edgerec_gym.device.model_download import Download
from edgerec_gym.errors import InputError, MissingExtraError
from edgerec_gym.faults.lag_proxy import LagProxy
from edgerec_gym.faults.schedule import CutAtByte, Schedule
from edgerec_gym.protocol.messages import (
    Ack,
    Delta,
    Ended,
    Hello,
    Message,
    ModelChunk,
    ModelFile,
    ModelOffer,
    ModelWant,
    Page,
    PageRequest,
    Refuse,
    Welcome,
    encode,
)

PATIENCE = 30  # seconds; a test that waits for so long has failed
NEVER = 1000.0  # seconds
KEY = SESSION.session
FAST = LinkSettings(
    most_seconds=0.002,
    reply_seconds=0.05,
    longest_reply_seconds=0.2,
    first_wait=0.004,
    longest_wait=0.02,
    open_seconds=5.0,
)
SLOW = replace(FAST, most_seconds=NEVER, reply_seconds=NEVER, longest_reply_seconds=NEVER)


def run(work: Coroutine[None, None, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(PATIENCE):
            await work

    asyncio.run(bounded())


def request(page: int, answers: int = 0, **more) -> PageRequest:
    return PageRequest(page, answers, answers, [], "automatic", **more)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[EventStore]:
    with closing(EventStore(tmp_path / "phone.db")) as opened:
        yield opened


def make_link(
    url: str, store: EventStore, given: LinkSettings = FAST, heard: Heard | None = None, session=SESSION
) -> Link:
    return Link(Phone(url, "device", "token"), session, store, np.random.default_rng(0), given, heard)


@asynccontextmanager
async def running(link: Link):
    """Run a link; at the end it is stopped, and its error raised."""
    task = asyncio.create_task(link.run())
    try:
        yield link
    finally:
        link.stop()
        await task


async def until(holds: Callable[[], object]) -> None:
    while not holds():
        await asyncio.sleep(0.001)


def numbered(count: int) -> list:
    return [answer(number) for number in range(count)]


def test_a_session(store: EventStore) -> None:
    async def work() -> None:
        welcomes: list[Welcome] = []
        pages: list[Page] = []
        async with SmallCloud() as cloud:
            link = make_link(cloud.url, store, heard=Heard(page=pages.append, welcome=welcomes.append))
            async with running(link):
                for number in range(3):
                    link.want_page(request(number, link.answers))
                    page = await link.wait_page()
                    assert page == page_of(request(number, link.answers), numbered(link.answers))
                    assert link.take_page() is None
                    for _ in range(5):
                        assert link.tell(answer(link.answers))
                assert link.answers == 15
                assert await link.flushed() and link.acknowledged == 15
                link.end([answer(99)])
                assert await link.wait_done()
            assert cloud.answers[KEY] == numbered(15) and cloud.placed[KEY] == [answer(99)]
            assert [page.page for page in pages] == [0, 1, 2] and len(welcomes) == 1
            kept = store.session(KEY)
            assert kept is not None and kept.ended and kept.acknowledged == 15
            assert kept.user_features == USER and store.arms() == {"order": "crban"}
            assert store.page(KEY) == pages[-1] and store.answers(KEY) == numbered(15)
            with pytest.raises(InputError, match="after the end"):
                link.tell(answer(15))

    run(work())


def test_bytes_are_counted_at_the_socket(store: EventStore) -> None:
    """By kind they add up to what a proxy in between has seen, without the handshake."""

    async def work() -> None:
        async with SmallCloud() as cloud, LagProxy(cloud.port) as proxy:
            link = make_link(proxy.url(), store)
            async with running(link):
                link.want_page(request(0))
                await link.wait_page()
                for number in range(20):
                    link.tell(answer(number), now=number % 7 == 0)
                link.end()
                await link.wait_done()
            traffic = link.traffic
            for way in ("up", "down"):
                assert traffic.socket[way] == proxy.passed[way, "bytes"]
                assert traffic.total(way).messages == proxy.passed[way, "messages"]
                assert 0 < traffic.rest(way) < 400  # handshake and closing frame
            sent = [message for message in cloud.received if isinstance(message, Delta)]
            deltas = traffic.amounts["up", "delta"]
            assert deltas.messages == len(sent) == traffic.amounts["down", "ack"].messages
            assert deltas.payload == sum(len(encode(message)) for message in sent)
            assert deltas.frames - deltas.payload == sum(
                6 if len(encode(message)) < 126 else 8 for message in sent
            )
            assert traffic.amounts["up", "hello"].payload == len(encode(cloud.received[0]))

    run(work())


def test_answers_gather_until_they_are_enough(store: EventStore) -> None:
    async def work() -> None:
        async with SmallCloud() as cloud:
            async with running(make_link(cloud.url, store, SLOW)) as link:
                await until(lambda: link.connected)
                for number in range(20):
                    link.tell(answer(number))
                await until(lambda: link.acknowledged == 16)
                assert len(cloud.answers[KEY]) == 16
                link.tell(answer(20), now=True)
                await until(lambda: link.acknowledged == 21)

    run(work())


def test_answers_gather_until_they_have_waited_long_enough(store: EventStore) -> None:
    async def work() -> None:
        async with SmallCloud() as cloud:
            async with running(make_link(cloud.url, store, replace(SLOW, most_seconds=0.01))) as link:
                await until(lambda: link.connected)
                for number in range(3):
                    link.tell(answer(number))
                await until(lambda: link.acknowledged == 3)
                assert cloud.kinds() == ["Hello", "Delta"]

    run(work())


@pytest.mark.parametrize("sync", SYNC_MODES)
def test_when_answers_are_sent(store: EventStore, sync: str) -> None:
    """With a page in between: what each way to synchronise has told the cloud by then, and at the end."""
    expected = {"page": [6, 7], "periodic": [4, 6, 7], "incremental": [1, 2, 3, 4, 5, 6, 7]}[sync]

    async def work() -> None:
        async with SmallCloud() as cloud:
            async with running(make_link(cloud.url, store, replace(SLOW, sync=sync, period=4))) as link:
                await until(lambda: link.connected)
                for number in range(6):
                    link.tell(answer(number), now=True)
                    await asyncio.sleep(0.005)
                link.want_page(request(0, 6))
                page = await link.wait_page()
                assert page is not None and page.answers == 6
                link.tell(answer(6), now=True)
                await asyncio.sleep(0.005)
                if sync != "incremental":
                    assert len(cloud.answers[KEY]) == 6
                link.end()
                assert await link.wait_done()
            deltas = [message for message in cloud.received if isinstance(message, Delta)]
            assert [delta.first + len(delta.answers) for delta in deltas] == expected

    run(work())


def test_what_is_not_acknowledged_is_sent_again(store: EventStore) -> None:
    async def work() -> None:
        async with SmallCloud() as cloud:
            cloud.deaf = 3
            async with running(make_link(cloud.url, store)) as link:
                for number in range(8):
                    link.tell(answer(number))
                assert await link.flushed()
                link.want_page(request(0, 8))
                cloud.deaf = 2
                assert await link.wait_page() is not None
                cloud.deaf = 2
                link.end()
                assert await link.wait_done()
            assert cloud.answers[KEY] == numbered(8)
            assert link.counts.resent >= 8 and link.counts.welcomes == 1

    run(work())


def test_a_late_page_is_dropped(store: EventStore) -> None:
    async def work() -> None:
        async with SmallCloud() as cloud:
            pages: list[Page] = []
            async with running(make_link(cloud.url, store, SLOW, Heard(page=pages.append))) as link:
                cloud.deaf = 1
                link.want_page(request(0))
                await until(lambda: "PageRequest" in cloud.kinds())
                link.want_page(request(1))
                assert (await link.wait_page() or page_of(request(9), [])).page == 1
                for number in (0, 1):  # an old one, and one that has come
                    await cloud.tell(encode(page_of(request(number), [])))
                await until(lambda: link.counts.late_pages == 2)
                assert link.take_page() is None and [page.page for page in pages] == [1]
                assert store.page(KEY, 0) is None and link.counts.violations == 0

    run(work())


WRONG: dict[str, bytes | str] = {
    "text": "hello",
    "no MessagePack": b"\xc1\xff",
    "another array": msgspec.msgpack.encode(["what", 1]),
    "a message of the phone": encode(Hello((1, 2), "d", "t", 1, 1, 1, 1, 1, "")),
    "a number out of range": msgspec.msgpack.encode(["ack", -1]),
    "answers that were never sent": encode(Ack(1000)),
    "a page that was never asked for": encode(page_of(request(7), [])),
    "a page of answers to come": encode(msgspec.structs.replace(page_of(request(0), []), answers=999)),
    "an end": encode(Ended(0)),
    "too large": bytes(2**20 + 1),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_wrong_message_ends_the_connection_only(store: EventStore, wrong: bytes | str) -> None:
    async def work() -> None:
        async with SmallCloud() as cloud:
            cloud.replies = [wrong]
            async with running(make_link(cloud.url, store)) as link:
                link.want_page(request(0))
                assert await link.wait_page() is not None
                for number in range(9):
                    link.tell(answer(number))
                link.end()
                assert await link.wait_done()
            assert cloud.answers[KEY] == numbered(9) and link.counts.welcomes == 2
            assert link.counts.violations + link.counts.failures == 1

    run(work())


CODES = ["malformed", "order", "size", "unknown", "rate", "busy", "elsewhere", "new"]
ALLOWED = ["", "0.001", "nan", "-1", "1e999", "http://127.0.0.1", "ws://", "ws://[", "ws://a:99999"]
NUMBERS = st.integers(0, 20)
DATA = st.binary(max_size=9)
MESSAGES = st.one_of(
    st.builds(Ack, NUMBERS),
    st.builds(Ended, NUMBERS),
    st.builds(Welcome, st.integers(1, 3), NUMBERS, DATA, st.just("")),
    st.builds(ModelChunk, st.just(DIGEST), st.just("a"), NUMBERS, DATA),
    st.builds(ModelOffer, st.just(DIGEST), st.just([])),
    st.builds(Refuse, st.sampled_from(CODES), st.text(max_size=5), st.sampled_from(ALLOWED)),
)


@settings(deadline=None, max_examples=20, derandomize=True)
@given(st.lists(st.binary(max_size=60) | st.text(max_size=20) | MESSAGES.map(encode), max_size=5))
def test_whatever_the_cloud_says_play_goes_on(replies: list[bytes | str]) -> None:
    """No exception; an honest cloud gets everything in the end, each answer once."""

    async def work() -> None:
        said: list[str] = []
        async with SmallCloud() as cloud:
            cloud.replies = list(replies)
            with (
                TemporaryDirectory() as folder,
                closing(EventStore(f"{folder}/phone.db", say=said.append)) as store,
            ):
                given = replace(FAST, longest_told_wait=0.01)
                async with running(make_link(cloud.url, store, given)) as link:
                    for number in range(9):
                        assert link.tell(answer(number), now=number % 2 == 0)
                        await asyncio.sleep(0)
                    link.want_page(request(0, 4))
                    assert await link.wait_page() is not None
                    link.end()
                    assert await link.wait_done()
                    assert not link.refused
            assert cloud.answers[KEY][:9] == numbered(9)[: len(cloud.answers[KEY])] and not said

    run(work())


@pytest.mark.parametrize("code", ["version", "features", "token", "session"])
def test_a_final_refusal_ends_the_link_and_not_play(store: EventStore, code: str) -> None:
    async def work() -> None:
        async with SmallCloud() as cloud:
            cloud.refusals = [Refuse(code, "so it is")]
            link = make_link(cloud.url, store)
            await link.run()
            assert link.refused == f"{code}: so it is" and link.counts.refusals == {code: 1}
            assert link.tell(answer(0)) and store.answers(KEY) == [answer(0)]
            link.want_page(request(0))
            assert await link.wait_page() is None and not await link.flushed()
            assert cloud.kinds() == ["Hello"]

    run(work())


@pytest.mark.parametrize(
    "refusal", [Refuse("busy", "full", "0.01"), Refuse("rate", "", ""), Refuse("new", "")]
)
def test_other_refusals_are_tried_again(store: EventStore, refusal: Refuse) -> None:
    async def work() -> None:
        async with SmallCloud() as cloud:
            cloud.refusals = [refusal, refusal]
            async with running(make_link(cloud.url, store)) as link:
                link.tell(answer(0))
                assert await link.flushed()
            assert link.counts.refusals == {refusal.code: 2} and not link.refused

    run(work())


@settings(deadline=None, max_examples=100, derandomize=True)
@given(st.lists(st.sampled_from(["", "5", "1e9", "-3", "nan", "inf", "x"]), max_size=30), st.integers(0, 99))
def test_waits_grow_to_a_bound_and_are_random(told: list[str], seed: int) -> None:
    backoff, other = (Backoff(np.random.default_rng([seed, who]), 0.5, 30, 300) for who in (0, 1))
    for tries, seconds in enumerate(told):
        backoff.tell(seconds)
        least = {"5": 5.0, "1e9": 300.0}.get(seconds, 0.0)
        wait = backoff.draw()
        assert least <= wait <= least + min(0.5 * 2**tries, 30)
        assert wait != other.draw()
    backoff.was_useful()
    assert backoff.draw() <= 0.5


def test_another_address_is_followed(store: EventStore) -> None:
    async def work() -> None:
        async with SmallCloud() as cloud, SmallCloud() as other:
            cloud.refusals = [Refuse("elsewhere", "", other.url)] * 9
            store.begin(msgspec.structs.replace(SESSION, session=1))
            store.append(1, answer(1))
            async with running(make_link(cloud.url, store)) as link:
                link.tell(answer(0))
                link.end()
                assert await link.wait_done()
            assert not cloud.answers[KEY] and other.answers == {KEY: [answer(0)], 1: [answer(1)]}

    run(work())


NO_ADDRESSES = ["", "http://127.0.0.1", "ws://", "ws://[", "ws://a:99999", f"ws://{80 * 'a'}", "ws://a b"]


def test_addresses_that_lead_in_circles_do_not_harm(store: EventStore) -> None:
    async def work() -> None:
        async with SmallCloud() as cloud:
            cloud.refusals = [Refuse("elsewhere", "", cloud.url.replace("feed", "a"))] * 12
            cloud.refusals += [Refuse("elsewhere", "", wrong) for wrong in NO_ADDRESSES]
            async with running(make_link(cloud.url, store)) as link:
                link.tell(answer(0))
                assert await link.flushed()
            assert link.counts.refusals == {"elsewhere": 12 + len(NO_ADDRESSES)}

    run(work())


@pytest.mark.parametrize("versions", [(1, 1), (2, 5)])
def test_other_versions_are_spoken(store: EventStore, versions: tuple[int, int]) -> None:
    """An old service ships float32, whatever the phone would like."""

    async def work() -> None:
        async with SmallCloud(versions=versions) as cloud:
            async with running(make_link(cloud.url, store)) as link:
                link.want_page(request(0, coding="uint8"))
                page = await link.wait_page()
                assert page is not None and page.coding == ("float32" if versions[1] == 1 else "uint8")

    run(work())


def test_a_service_that_is_far_ahead_is_not_spoken_to(store: EventStore) -> None:
    async def work() -> None:
        async with SmallCloud(versions=(3, 9)) as cloud:
            link = make_link(cloud.url, store)
            await link.run()
            assert link.refused.startswith("version: ")
        async with SmallCloud() as cloud:
            cloud.refusals = [Welcome(7, 0, USER, "")]  # type: ignore[list-item]
            link = make_link(cloud.url, store)
            await link.run()
            assert link.refused == "version: the cloud speaks 7, this phone 1 to 2"

    run(work())


def test_earlier_sessions_come_first(store: EventStore) -> None:
    """One that was killed, one that ended without a network; not one of another user."""
    for key, user in ((1, 3), (2, 3), (3, 8)):
        store.begin(msgspec.structs.replace(SESSION, session=key, user=user))
        for number in range(600):
            store.append(key, answer(number + key))
    store.end(2, [answer(50)])

    async def work() -> None:
        async with SmallCloud() as cloud:
            async with running(make_link(cloud.url, store)) as link:
                link.want_page(request(0))
                assert await link.wait_page() is not None
            hellos = [message.session for message in cloud.received if isinstance(message, Hello)]
            assert hellos == [1, 2, KEY]
            for key in (1, 2):
                assert cloud.answers[key] == [answer(number + key) for number in range(600)]
                kept = store.session(key)
                assert kept is not None and kept.ended and kept.acknowledged == 600
            assert cloud.placed == {1: [], 2: [answer(50)]} and 3 not in cloud.answers

    run(work())


@pytest.mark.parametrize("reply", [Refuse("session", "of another device"), b"\xc1", None])
def test_an_earlier_session_does_not_hold_up_play(store: EventStore, reply: Message | bytes | None) -> None:
    """It is refused, answered with nonsense or never answered."""
    store.begin(msgspec.structs.replace(SESSION, session=1))
    store.append(1, answer(5))

    async def work() -> None:
        async with SmallCloud() as cloud:
            if reply is None:
                cloud.deaf = 10**6
            elif isinstance(reply, bytes):
                cloud.replies = [reply]
            else:
                cloud.refusals = [reply]  # type: ignore[list-item]
            given = replace(FAST, earlier_seconds=0.3)
            async with running(make_link(cloud.url, store, given)) as link:
                await until(lambda: link.connected)
                cloud.deaf = 0
                link.want_page(request(0))
                assert await link.wait_page() is not None
                link.end()
                assert await link.wait_done()
            assert store.answers(1) == [answer(5)] and not link.refused

    run(work())


def test_a_phone_that_lost_its_last_answers_begins_anew(store: EventStore) -> None:
    """A loss of power can take them: the next session delivers what is left of it."""

    async def work() -> None:
        async with SmallCloud() as cloud:
            cloud.answers[KEY] = numbered(5)
            store.begin(SESSION)
            for number in range(3):
                store.append(KEY, answer(number))
            link = make_link(cloud.url, store)
            await link.run()
            assert (
                link.refused == "session: the cloud has 5 answers of it, the phone had 3; begin a new session"
            )
            following = make_link(cloud.url, store, session=msgspec.structs.replace(SESSION, session=KEY + 1))
            async with running(following):
                following.end()
                assert await following.wait_done()
            assert cloud.answers[KEY] == numbered(5) and cloud.placed[KEY] == []
            kept = store.session(KEY)
            assert kept is not None and kept.ended

    run(work())


def test_answers_after_a_loss_of_power_never_follow_on_others(store: EventStore) -> None:
    """Offline the user went on in the place of what was lost, beyond what the cloud has."""

    async def work() -> None:
        async with SmallCloud() as cloud:
            cloud.answers[KEY] = numbered(5)
            store.begin(SESSION)
            for number in range(3):
                store.append(KEY, answer(number))
            link = make_link(cloud.url, store)
            for number in range(40, 44):
                assert link.tell(answer(number))
            await link.run()
            assert link.refused.startswith("session: the cloud has 5 answers of it, the phone had 3")
            assert store.answers(KEY) == numbered(3) and not link.tell(answer(44))
            following = make_link(cloud.url, store, session=msgspec.structs.replace(SESSION, session=KEY + 1))
            async with running(following):
                following.end()
                assert await following.wait_done()
            assert cloud.answers[KEY] == numbered(5)

    run(work())


def test_a_page_that_is_left_is_not_taken(store: EventStore) -> None:
    async def work() -> None:
        async with SmallCloud() as cloud:
            cloud.deaf = 1
            async with running(make_link(cloud.url, store)) as link:
                link.want_page(request(0))
                await until(lambda: not cloud.deaf)
                link.leave_page()
                await cloud.tell(encode(page_of(request(0), [])))
                await until(lambda: link.counts.late_pages)
                assert link.take_page() is None and store.page(KEY) is None
                link.want_page(request(1))
                page = await link.wait_page()
                assert page is not None and page.page == 1

    run(work())


def test_a_session_that_ended_for_the_cloud_is_not_played_on(store: EventStore) -> None:
    async def work() -> None:
        async with SmallCloud() as cloud:
            cloud.placed[KEY] = []
            link = make_link(cloud.url, store)
            await link.run()
            assert "ended for the cloud" in link.refused

    run(work())


def test_a_cloud_that_lost_answers_gets_them_again(store: EventStore) -> None:
    async def work() -> None:
        async with SmallCloud() as cloud:
            async with running(make_link(cloud.url, store)) as link:
                for number in range(8):
                    link.tell(answer(number))
                await link.flushed()
            del cloud.answers[KEY][3:]
            async with running(make_link(cloud.url, store)) as link:
                link.tell(answer(8))
                assert await link.flushed()
            assert cloud.answers[KEY] == numbered(9)

    run(work())


def test_the_cloud_is_started_again(store: EventStore) -> None:
    async def work() -> None:
        cloud = SmallCloud()
        await cloud.start()
        async with running(make_link(cloud.url, store)) as link:
            for number in range(30):
                link.tell(answer(number), now=True)
                if number % 10 == 5:
                    await link.flushed()
                    await cloud.close()
                if number % 10 == 8:
                    await cloud.start()
            link.end()
            assert await link.wait_done()
        await cloud.close()
        assert cloud.answers[KEY] == numbered(30) and link.counts.failures >= 3

    run(work())


def test_with_a_full_disk_the_cloud_gets_what_is_kept(store: EventStore) -> None:
    async def work() -> None:
        async with SmallCloud() as cloud:
            async with running(make_link(cloud.url, store)) as link:
                for number in range(4):
                    assert link.tell(answer(number))
                good = store._database
                store._database = _Full(good)  # type: ignore[assignment]
                assert not link.tell(answer(4)) and not link.tell(answer(5))
                link.want_page(request(0, 4))
                assert await link.wait_page() is not None
                link.end()
                assert await link.wait_done()
                store._database = good
            assert cloud.answers[KEY] == numbered(4) and KEY in cloud.placed

    run(work())


class _Full:
    def __init__(self, database: sqlite3.Connection) -> None:
        self.database = database

    def execute(self, statement: str, *values):
        if not statement.startswith("SELECT"):
            raise sqlite3.OperationalError("database or disk is full")
        return self.database.execute(statement, *values)

    def __getattr__(self, name: str):
        return getattr(self.database, name)


FILES = {"device.json": b"{}", "a.onnx": bytes(range(256)) * 2500, "empty.toml": b""}


@pytest.mark.parametrize("byte", [300, 4000, 200_000, 300_000, 600_000])
def test_a_model_is_fetched_although_the_connection_breaks(
    store: EventStore, tmp_path: Path, byte: int
) -> None:
    async def work() -> None:
        async with SmallCloud() as cloud:
            cloud.model = dict(FILES)
            offers: list[ModelOffer] = []
            fetched: list[tuple[ModelOffer, Path]] = []
            heard = Heard(offer=offers.append, model=lambda *model: fetched.append(model))
            async with LagProxy(cloud.port, Schedule(faults=(CutAtByte("down", byte),))) as proxy:
                async with running(make_link(proxy.url(), store, heard=heard)) as link:
                    await until(lambda: link.connected or link.counts.failures)
                    offer = cloud.offer()
                    link.want_model(offer, tmp_path / "model")
                    await until(lambda: fetched)
                    await cloud.tell(encode(offer))
                    await until(lambda: offers)
            assert fetched == [(offer, tmp_path / "model")] and offers == [offer]
            assert {file.name: file.read_bytes() for file in (tmp_path / "model").iterdir()} == FILES
            parts = [message for message in cloud.received if isinstance(message, ModelWant)]
            assert len(parts) <= 1 + 3 + 1  # one again after the cut

    run(work())


def test_a_download_goes_on_in_another_process(store: EventStore, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "a.onnx").write_bytes(FILES["a.onnx"][:600_001])
    (folder / "device.json").write_bytes(b"too long, so it is begun anew")

    async def work() -> None:
        async with SmallCloud() as cloud:
            cloud.model = dict(FILES)
            fetched: list[Path] = []
            heard = Heard(model=lambda offer, where: fetched.append(where))
            async with running(make_link(cloud.url, store, heard=heard)) as link:
                link.want_model(cloud.offer(), folder)
                await until(lambda: fetched)
            assert {file.name: file.read_bytes() for file in folder.iterdir()} == FILES
            wanted = [(m.name, m.offset) for m in cloud.received if isinstance(m, ModelWant)]
            assert wanted == [("device.json", 0), ("a.onnx", 600_001)]

    run(work())


@pytest.mark.parametrize("case", ["gone", "too long", "empty", "no folder"])
def test_a_model_that_cannot_be_fetched_changes_nothing(store: EventStore, tmp_path: Path, case: str) -> None:
    async def work() -> None:
        async with SmallCloud() as cloud:
            why: list[str] = []
            heard = Heard(model_failed=lambda offer, reason: why.append(reason))
            offer = ModelOffer(DIGEST, [ModelFile("a", 5)])
            if case in ("too long", "empty"):
                data = b"123456" if case == "too long" else b""
                cloud.replies = [encode(ModelChunk(DIGEST, "a", 0, data))]
            async with running(make_link(cloud.url, store, heard=heard)) as link:
                await until(lambda: link.connected)
                link.want_model(offer, tmp_path / "model")
                if case == "no folder":
                    (tmp_path / "model" / "a").unlink()
                await until(lambda: why)
                link.tell(answer(0))
                assert await link.flushed()
            assert link.counts.welcomes == 1 and len(why) == 1

    run(work())


@settings(deadline=None, max_examples=100, derandomize=True)
@given(st.text(max_size=20) | st.sampled_from(["..", "a/b", "/etc/passwd", ".hidden", "a\0", "C:\\a"]))
def test_no_file_lands_outside_of_the_folder(name: str) -> None:
    with TemporaryDirectory() as outside:
        folder = Path(outside) / "model"
        try:
            download = Download(ModelOffer(DIGEST, [ModelFile(name, 1)]), folder)
        except InputError:
            assert not folder.exists()
            return
        assert download.take(ModelChunk(DIGEST, name, 0, b"x")) and download.want() is None
        assert [file.name for file in folder.iterdir()] == [name]
        assert [file.name for file in Path(outside).iterdir()] == ["model"]


@pytest.mark.parametrize(
    "files", [[], [ModelFile("a", 1), ModelFile("a", 1)], [ModelFile(name, 2**26) for name in "abcde"]]
)
def test_offers_without_sense_are_refused(tmp_path: Path, files: list[ModelFile]) -> None:
    with pytest.raises(InputError, match="the offered model"):
        Download(ModelOffer(DIGEST, files), tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_page_that_does_not_fit_is_not_used(store: EventStore) -> None:
    async def work() -> None:
        looks: list[int] = []

        def check(page: Page) -> None:
            looks.append(page.page)
            if len(looks) == 1:
                raise InputError("another number of items")

        async with SmallCloud() as cloud:
            async with running(make_link(cloud.url, store, heard=Heard(check_page=check))) as link:
                link.want_page(request(0))
                assert await link.wait_page() is not None
            assert link.counts.violations == 1 and looks == [0, 0] and link.counts.welcomes == 2

    run(work())


def test_a_request_names_answers_that_are_kept(store: EventStore) -> None:
    link = make_link("ws://127.0.0.1:1", store)
    with pytest.raises(InputError, match="1 answers is asked for; 0 are kept"):
        link.want_page(request(0, 1))


def test_without_a_network_everything_is_kept(store: EventStore) -> None:
    async def work() -> None:
        async with SmallCloud() as cloud:
            port = cloud.port
        async with running(make_link(f"ws://127.0.0.1:{port}", store)) as link:
            for number in range(5):
                assert link.tell(answer(number), now=True)
            link.end()
            await until(lambda: link.counts.failures > 3)
        async with SmallCloud() as cloud:
            link = make_link(cloud.url, store)
            await link.run()  # in another process: nothing is told anew
            assert link.done and cloud.answers[KEY] == numbered(5)

    run(work())


@pytest.mark.parametrize("lines", [1, 5, 8, 17])
def test_a_killed_phone_goes_on(tmp_path: Path, lines: int) -> None:
    """kill -9 after so many steps, twice; then it plays to the end."""
    script = str(Path(__file__).with_name("killed_phone.py"))

    async def work() -> None:
        async with SmallCloud() as cloud:
            acknowledged = 0
            for dies_after in (lines, lines, 10**6):
                child = await asyncio.create_subprocess_exec(
                    sys.executable,
                    script,
                    cloud.url,
                    str(tmp_path / "phone.db"),
                    "14",
                    stdout=asyncio.subprocess.PIPE,
                    env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
                )
                assert child.stdout is not None
                seen = 0
                while seen < dies_after and await child.stdout.readline():
                    seen += 1
                if dies_after < 10**6 and child.returncode is None:
                    child.kill()
                code = await child.wait()
                assert dies_after < 10**6 or code == 0
                assert len(cloud.answers[KEY]) >= acknowledged
                acknowledged = cloud.acknowledged[KEY]
            with closing(EventStore(tmp_path / "phone.db")) as kept:
                assert cloud.answers[KEY] == kept.answers(KEY) == numbered(14)
            assert cloud.placed[KEY] == [answer(99)]

    run(work())


def test_a_session_belongs_to_one_user(store: EventStore) -> None:
    make_link("ws://127.0.0.1:1", store)
    with pytest.raises(InputError, match="is of the user 3, not 4"):
        make_link("ws://127.0.0.1:1", store, session=msgspec.structs.replace(SESSION, user=4))


def test_the_extra_is_named(store: EventStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "edgerec_gym.device.connection", raising=False)
    monkeypatch.delattr(device, "connection", raising=False)
    monkeypatch.setitem(sys.modules, "websockets.asyncio.client", None)
    with pytest.raises(MissingExtraError, match="edgerec_gym.edge"):
        make_link("ws://127.0.0.1:1", store)


@pytest.mark.parametrize(
    "make",
    [
        lambda: LinkSettings(sync="often"),
        lambda: LinkSettings(most_answers=0),
        lambda: LinkSettings(period=0),
        lambda: LinkSettings(reply_seconds=0.0),
        lambda: LinkSettings(versions=(2, 9)),
        lambda: Phone("http://127.0.0.1", "device", "token"),
        lambda: Phone("wss://[::1", "device", "token"),
    ],
)
def test_settings_without_sense_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(InputError, match="allowed"):
        make()
