"""One connection's messages and their answers, without sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_feed_service import (
    CONFIG,
    N_ITEMS,
    N_USERS,
    SECRET,
    USER,
    answer,
    delta,
    end,
    hello,
    request,
    small_service,
)

from edgerec_gym.protocol import tokens
from edgerec_gym.protocol.messages import (
    MOST_BYTES,
    REFUSALS,
    Ack,
    Delta,
    End,
    Ended,
    ModelWant,
    Page,
    Welcome,
    encode,
    from_cloud,
    from_phone,
)
from edgerec_gym.protocol.tokens import make_token
from edgerec_gym.service.exchange import Exchange, FeedService, Refused, decode
from edgerec_gym.service.redis_store import RedisStore
from edgerec_gym.service.sqlite_store import SqliteStore
from edgerec_gym.service.store import StoreError

MOST = CONFIG.max_slots


def with_service(folder: Path, body: Callable[[FeedService], Awaitable[Any]], **named: Any) -> Any:
    async def run() -> Any:
        store = SqliteStore(folder / "service.db")
        try:
            return await body(small_service(store, **named))
        finally:
            await store.close()

    return asyncio.run(run())


async def ask(exchange: Exchange, message: Any) -> Any:
    """The only reply to a message, over its bytes in both directions."""
    (reply,) = await exchange.answer(decode(encode(message)))
    decoded = from_cloud(reply.data)
    assert reply.kind == decoded.kind
    return decoded


async def refused(exchange: Exchange, message: Any, code: str, text: str = "") -> str:
    """The message is refused; returns what is allowed."""
    with pytest.raises(Refused) as error:
        await exchange.answer(message)
    told = error.value.message
    assert told.code == code and code in REFUSALS and text in told.text, told
    return told.allowed


def items(page: Page) -> list[int]:
    return np.frombuffer(page.items, np.int32).tolist()


def test_a_session_from_hello_to_end(tmp_path: Path) -> None:
    async def body(service: FeedService) -> None:
        exchange = Exchange(service)
        welcome = await ask(exchange, hello())
        assert isinstance(welcome, Welcome)
        assert (welcome.version, welcome.acknowledged, welcome.ended, welcome.model) == (2, 0, False, "")
        assert welcome.config == CONFIG.digest() and len(welcome.config) == 64
        assert np.frombuffer(welcome.user, np.float32).tolist() == service.builder.features(USER).tolist()
        page = await ask(exchange, request())
        assert (page.page, page.answers) == (0, 0) and items(page) == [1, USER, 0]
        assert await ask(exchange, delta(0, 3)) == Ack(3)
        page = await ask(exchange, request(1, 3, placed=[4, 5], coding="uint8"))
        assert page.answers == 3 and items(page) == [1, USER, 1, 4, 5, 0, 1, 2]
        assert page.coding == "uint8"
        assert await ask(exchange, end(3, [4, 5])) == Ended(3)
        assert [msgspec.msgpack.decode(data)[0] for data in await service.store.placed(1)] == [4, 5]

    with_service(tmp_path, body)


def test_what_comes_twice_changes_nothing(tmp_path: Path) -> None:
    async def body(service: FeedService) -> None:
        exchange, builder = Exchange(service), service.builder
        first = await exchange.answer(hello())
        assert await exchange.answer(hello()) == first
        for _ in range(2):
            assert await ask(exchange, delta(0, 4)) == Ack(4)
        assert await ask(exchange, delta(2, 6)) == Ack(6)
        assert await ask(exchange, delta(9, 10)) == Ack(6)  # a gap
        page = await exchange.answer(request(0, 6))
        assert await exchange.answer(request(0, 6)) == page
        assert await exchange.answer(request(0, 2, placed=[9])) == page  # the number alone counts
        for _ in range(2):
            assert await ask(exchange, end(6, [1])) == Ended(6)
            assert await ask(exchange, delta(0, 6)) == Ack(6)
            assert await exchange.answer(request(0, 6)) == page
        assert await ask(exchange, end(6, [2, 3])) == Ended(6)
        assert len(await service.store.placed(1)) == 1
        assert await refused(exchange, delta(6, 7), "order", "has ended") == "6"
        await refused(exchange, request(1, 6), "order", "has ended")
        assert (await ask(Exchange(service), hello())).ended
        assert builder.built == 3  # type: ignore[attr-defined]

    with_service(tmp_path, body)


def test_after_a_restart_the_same_page_has_the_same_bytes(tmp_path: Path) -> None:
    async def before(service: FeedService) -> Any:
        exchange = Exchange(service)
        await exchange.answer(hello())
        await exchange.answer(delta(0, 5))
        return await exchange.answer(request(0, 5))

    async def after(service: FeedService) -> Any:
        exchange = Exchange(service)
        assert (await ask(exchange, hello(hour=23))).acknowledged == 5
        page = await ask(exchange, request(1, 5))
        assert items(page) == [1, USER, 1, 0, 1, 2, 3, 4]
        return await exchange.answer(request(0, 0, placed=[3]))

    assert with_service(tmp_path, before) == with_service(tmp_path, after)


def test_another_worker_goes_on_with_a_session_in_redis(redis_url: str) -> None:
    session = 7_000_001

    async def run() -> None:
        stores = [await RedisStore.open(redis_url) for _ in range(2)]
        one, two = (Exchange(small_service(store)) for store in stores)
        await ask(one, hello(session))
        await ask(one, delta(0, 2))
        page = await one.answer(request(0, 2))
        assert (await ask(two, hello(session))).acknowledged == 2
        assert await two.answer(request(0, 0)) == page
        assert await ask(two, delta(2, 5)) == Ack(5)
        assert await ask(one, delta(4, 6)) == Ack(6)  # it reads on what the other one has kept
        built = await ask(two, request(1, 6))
        assert built.answers == 6 and items(built)[3:] == [0, 1, 2, 3, 4, 5]
        assert await ask(two, end(6)) == Ended(6)
        await refused(one, delta(6, 7), "order", "has ended")
        for store in stores:
            await store.close()

    asyncio.run(run())


def test_a_page_waits_for_the_answers_that_it_names(tmp_path: Path) -> None:
    async def body(service: FeedService) -> None:
        exchange = Exchange(service)
        await exchange.answer(hello())
        page, ended, _ = await asyncio.gather(
            ask(exchange, request(0, 3)), ask(exchange, end(3)), ask(exchange, delta(0, 3))
        )
        assert page.answers == 3 and items(page)[3:] == [0, 1, 2] and ended == Ended(3)

    with_service(tmp_path, body)


def test_without_the_answers_a_page_is_built_from_what_is_there(tmp_path: Path) -> None:
    async def body(service: FeedService) -> None:
        exchange = Exchange(service)
        await exchange.answer(hello())
        await exchange.answer(delta(0, 2))
        page = await ask(exchange, request(0, 4))
        assert page.answers == 2 and items(page)[3:] == [0, 1]
        assert await refused(exchange, end(4), "order", "answers 2 to 3 have not come") == "2"
        assert not (await ask(Exchange(service), hello())).ended
        page = await ask(exchange, request(1, 1))  # and not from more than it names
        assert page.answers == 1 and items(page)[3:] == [0]

    with_service(tmp_path, body)


def test_two_connections_of_a_phone_see_one_session(tmp_path: Path) -> None:
    async def body(service: FeedService) -> None:
        old, new = Exchange(service), Exchange(service)
        await ask(old, hello())
        await ask(new, hello())
        page, _ = await asyncio.gather(ask(new, request(0, 2)), ask(old, delta(0, 2)))
        assert page.answers == 2
        told = await asyncio.gather(*(ask(e, delta(2, 4)) for e in (old, new, old)))
        assert told == [Ack(4)] * 3
        assert len(await service.store.answers(1)) == 4

    with_service(tmp_path, body)


def test_sessions_that_left_memory_are_read_again(tmp_path: Path) -> None:
    async def body(service: FeedService) -> None:
        service.sessions._most = 1
        exchange = Exchange(service)
        await ask(exchange, hello(1))
        await ask(exchange, delta(0, 3))
        for other in range(2, 5):
            await ask(Exchange(service), hello(other))
        assert len(service.sessions._recent) == 1
        again = Exchange(service)
        assert (await ask(again, hello(1))).acknowledged == 3
        assert again._session is exchange._session  # as long as a connection holds it
        del exchange, again
        await ask(Exchange(service), hello(2))
        again = Exchange(service)
        assert (await ask(again, hello(1))).acknowledged == 3
        assert items(await ask(again, request(0, 3)))[3:] == [0, 1, 2]

    with_service(tmp_path, body)


def old_token(days: int) -> str:
    return make_token(SECRET, "phone", USER, days)


@pytest.mark.parametrize(
    ("message", "code", "allowed"),
    [
        (hello(token=""), "token", ""),
        (hello(token="phone.7.99999." + "0" * 64), "token", ""),
        (hello(token=make_token(b"another secret, also long", "phone", USER)), "token", ""),
        (hello(token=make_token(SECRET, "phone", USER + 1)), "token", ""),
        (hello(token=make_token(SECRET, "tablet", USER)), "token", ""),
        (hello(token=old_token(-1)), "token", ""),
        (hello(versions=(3, 9)), "version", "1 to 2"),
        (hello(versions=(2, 1)), "version", "1 to 2"),
        (hello(features="0" * 64), "features", hello().features),
        (hello(features="", model="0" * 64), "features", hello().features),
        (hello(user=N_USERS), "unknown", f"0 to {N_USERS - 1}"),
    ],
)
def test_a_hello_is_refused(tmp_path: Path, message: Any, code: str, allowed: str) -> None:
    async def body(service: FeedService) -> None:
        exchange = Exchange(service)
        assert await refused(exchange, message, code) == allowed
        assert exchange.hello is None
        await refused(exchange, delta(0, 1), "order", "must be a Hello")
        with pytest.raises(Refused) as error:
            await exchange.answer(message)
        assert exchange.closes(error.value.message)
        assert await service.store.answers(1) == []
        await ask(Exchange(service), hello())  # the service lives

    with_service(tmp_path, body)


def test_a_token_is_valid_through_its_last_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(service: FeedService) -> None:
        token = old_token(0)
        await ask(Exchange(service), hello(token=token))
        later = tokens.time.time() + tokens.DAY
        with monkeypatch.context() as patch:
            patch.setattr(tokens.time, "time", lambda: later)
            await refused(Exchange(service), hello(token=token), "token")

    with_service(tmp_path, body)


def test_a_session_of_another_user_or_device_is_refused(tmp_path: Path) -> None:
    async def body(service: FeedService) -> None:
        exchange = Exchange(service)
        await ask(exchange, hello())
        await ask(exchange, delta(0, 2))
        for foreign in (hello(user=USER + 1), hello(device="tablet")):
            thief = Exchange(service)
            await refused(thief, foreign, "session")
            await refused(thief, request(0, 2), "order")
        assert (await ask(Exchange(service), hello())).acknowledged == 2

    with_service(tmp_path, body)


def test_a_connection_serves_one_session(tmp_path: Path) -> None:
    async def body(service: FeedService) -> None:
        exchange = Exchange(service)
        await ask(exchange, hello(1))
        await refused(exchange, hello(2), "order", "another session already")
        assert await ask(exchange, delta(0, 1)) == Ack(1)
        assert await service.store.answers(2) == []

    with_service(tmp_path, body)


@pytest.mark.parametrize("message", [delta(0, 1), request(), end(0), ModelWant("", "device.json", 0)])
def test_nothing_comes_before_a_hello(tmp_path: Path, message: Any) -> None:
    async def body(service: FeedService) -> None:
        exchange = Exchange(service)
        await refused(exchange, message, "order", "must be a Hello")
        assert exchange.closes(from_cloud(encode(Refused("order", "").message)))  # type: ignore[arg-type]

    with_service(tmp_path, body)


CLICKED = bytes(11)
WRONG = [
    (Delta(0, [answer(N_ITEMS)]), "item is 1000; allowed: up to 999"),
    (Delta(0, [answer(1, page=MOST + 1)]), "page is"),
    (Delta(0, [answer(1, age=MOST + 1)]), "age is"),
    (Delta(0, [answer(1, action=CONFIG.pool_size + CONFIG.n_cards + 1)]), "action is"),
    (Delta(0, [answer(1, exposure=bytes(5))]), "exposure has 5 numbers; allowed: 6"),
    (Delta(0, [answer(1, exposure=b"")]), "exposure has 0 numbers; allowed: 6"),
    (Delta(0, [answer(1, exposure=bytes([85]) + bytes(5))]), "exposure holds the level 85"),
    (Delta(0, [answer(1, page_view=bytes(10))]), "page_view has 10 numbers; allowed: 0 or 11"),
    (Delta(0, [answer(1, page_view=bytes(10) + b"\xff")]), "page_view holds the level 255"),
    (Delta(0, [answer(0), answer(N_ITEMS)]), "item is 1000"),
    (Delta(MOST, [answer(1)]), "the number of answers is"),
    (request(MOST + 1), "page is"),
    (request(0, MOST + 1), "slot is"),
    (request(0, 0, placed=[1, N_ITEMS]), "placed names the item 1000"),
    (End(MOST + 1, []), "answers is"),
    (End(0, [answer(N_ITEMS, exposure=b"")]), "item is 1000"),
    (End(0, [answer(1, exposure=b"", page_view=CLICKED)]), "page_view has 11 numbers; allowed: 0"),
]


@pytest.mark.parametrize(("message", "text"), WRONG)
def test_numbers_out_of_range_are_refused_and_nothing_is_kept(
    tmp_path: Path, message: Any, text: str
) -> None:
    async def body(service: FeedService) -> None:
        exchange = Exchange(service)
        await ask(exchange, hello())
        await refused(exchange, message, "malformed", text)
        assert await service.store.answers(1) == [] and await service.store.pages(1) == []
        assert not (await ask(Exchange(service), hello())).ended

    with_service(tmp_path, body)


def test_version_1_ships_float32_only(tmp_path: Path) -> None:
    async def body(service: FeedService) -> None:
        exchange = Exchange(service)
        assert (await ask(exchange, hello(versions=(1, 1)))).version == 1
        await refused(exchange, request(coding="uint8"), "malformed", "version 1 knows no coding")
        assert (await ask(exchange, request())).coding == "float32"

    with_service(tmp_path, body)


def test_users_of_other_addresses_are_sent_there(tmp_path: Path) -> None:
    def elsewhere(user: int, address: str) -> str | None:
        return None if user % 2 == 0 else f"ws://{address}:9/v1/feed"

    async def body(service: FeedService) -> None:
        assert await refused(Exchange(service, "10.0.0.1"), hello(user=3), "elsewhere") == (
            "ws://10.0.0.1:9/v1/feed"
        )
        await refused(Exchange(service), hello(user=3, token=""), "token")  # told to those who may ask
        await ask(Exchange(service), hello(user=4))

    with_service(tmp_path, body, elsewhere=elsewhere)


def test_a_store_that_fails_makes_phones_wait_and_nothing_is_acknowledged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def body(service: FeedService) -> None:
        await ask(Exchange(service), hello(0))
        store = service.store
        limit = store._writer.execute("PRAGMA page_count").fetchone()[0]  # type: ignore[attr-defined]
        store._writer.execute(f"PRAGMA max_page_count = {limit + 2}")  # type: ignore[attr-defined]
        acknowledged: dict[int, int] = {}
        for session in range(1, 1000):
            exchange = Exchange(service)
            try:
                acknowledged[session] = (await ask(exchange, hello(session))).acknowledged
                acknowledged[session] = (await ask(exchange, delta(0, 40))).answers
            except Refused as error:
                assert error.message.code == "busy" and error.message.allowed == "5"
                assert exchange.closes(error.message)
                break
        else:
            raise AssertionError("the disk never filled")
        assert len(acknowledged) > 1
        for known, told in acknowledged.items():
            assert len(await store.answers(known)) == told
        store._writer.execute("PRAGMA max_page_count = 100000")  # type: ignore[attr-defined]
        await ask(exchange, hello(session))
        assert await ask(exchange, delta(0, 40)) == Ack(40)

    with_service(tmp_path, body)
    assert [r.levelname for r in caplog.records if r.name.startswith("edgerec_gym")][:2] == [
        "ERROR",
        "WARNING",
    ]


def test_a_store_that_was_emptied_makes_the_phone_begin_again(tmp_path: Path) -> None:
    async def body(service: FeedService) -> None:
        exchange = Exchange(service)
        await ask(exchange, hello())
        await ask(exchange, delta(0, 3))
        for table in ("sessions", "answers"):
            service.store._writer.execute(f"DELETE FROM {table}")  # type: ignore[attr-defined]
        await refused(exchange, delta(3, 4), "unknown", "begin it again")
        assert exchange.hello is None  # so its connection is closed
        again = Exchange(service)
        assert (await ask(again, hello())).acknowledged == 0
        assert await ask(again, delta(0, 4)) == Ack(4)
        assert items(await ask(again, request(0, 4)))[3:] == [0, 1, 2, 3]

    with_service(tmp_path, body)


def test_a_fault_of_the_store_is_no_fault_of_the_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(*arguments: Any) -> int:
        raise StoreError("no")

    async def body(service: FeedService) -> None:
        exchange = Exchange(service)
        await ask(exchange, hello())
        with monkeypatch.context() as patch:
            patch.setattr(service.store, "append", fails)
            await refused(exchange, delta(0, 2), "busy")
        assert (await ask(exchange, request(0, 0))).answers == 0
        assert await ask(exchange, delta(0, 2)) == Ack(2)

    with_service(tmp_path, body)


def test_a_message_that_is_too_large_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(Refused) as error:
        decode(bytes(MOST_BYTES + 1))
    assert error.value.message.code == "size" and error.value.message.allowed == str(MOST_BYTES)


VALID = [hello(), delta(0, 3), request(1, 2, placed=[1]), end(3, [4]), ModelWant("", "x", 0)]


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=200),
        st.tuples(st.sampled_from(VALID), st.integers(0, 400), st.integers(0, 255)).map(
            lambda drawn: _with_byte(encode(drawn[0]), drawn[1], drawn[2])
        ),
        st.tuples(st.sampled_from(VALID), st.integers(0, 400)).map(lambda d: encode(d[0])[: d[1]]),
    )
)
def test_whatever_comes_is_a_message_or_refused(data: bytes) -> None:
    try:
        message = decode(data)
    except Refused as refusal:
        assert refusal.message.code == "malformed"
        assert from_cloud(encode(refusal.message)) == refusal.message
    else:
        assert from_phone(encode(message)) == message


def _with_byte(data: bytes, place: int, value: int) -> bytes:
    changed = bytearray(data)
    changed[place % len(data)] = value
    return bytes(changed)


@pytest.mark.parametrize(
    "data", [b"\x91" * 100_000, b"\xdd\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xa5hel\xff\xff"]
)
def test_bombs_are_refused(data: bytes) -> None:
    with pytest.raises(Refused) as error:
        decode(data)
    assert error.value.message.code == "malformed"


PIECES = st.lists(
    st.one_of(
        st.tuples(st.just("delta"), st.integers(0, 12), st.integers(1, 5)),
        st.tuples(st.just("page"), st.integers(0, 3), st.integers(0, 12)),
        st.tuples(st.just("hello"), st.just(0), st.just(0)),
    ),
    max_size=25,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=PIECES, session=st.integers(-(2**63), 2**63 - 1))
def test_any_order_of_messages_gives_one_sequence_and_one_page_a_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pieces: list[tuple[str, int, int]], session: int
) -> None:
    monkeypatch.setattr("edgerec_gym.service.exchange.WAIT", 0.001)

    async def body(service: FeedService) -> None:
        exchanges = [Exchange(service), Exchange(service)]
        for exchange in exchanges:
            await ask(exchange, hello(session))
        known = (await ask(exchanges[0], hello(session))).acknowledged  # sessions may repeat
        pages: dict[int, Any] = {}
        for k, (kind, first, second) in enumerate(pieces):
            exchange = exchanges[k % 2]
            if kind == "hello":
                assert (await ask(exchange, hello(session))).acknowledged == known
            elif kind == "delta":
                told = (await ask(exchange, delta(first, first + second))).answers
                assert told == (max(known, first + second) if first <= known else known)
                known = told
            else:
                page = await exchange.answer(request(first, second))
                assert page == pages.setdefault(first, page)
        assert [msgspec.msgpack.decode(data)[0] for data in await service.store.answers(session)] == list(
            range(known)
        )

    with_service(tmp_path, body)
