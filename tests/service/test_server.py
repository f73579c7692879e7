"""The service over real sockets: what is refused, what that does to the connection, and that it lives on."""

from __future__ import annotations

import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("websockets")

from small_feed_service import (
    SECRET,
    USER,
    Running,
    answer,
    delta,
    end,
    hello,
    request,
    running,
)
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from edgerec_gym.protocol.messages import (
    MOST_BYTES,
    SUBPROTOCOL,
    Ack,
    Delta,
    Ended,
    ModelWant,
    Page,
    Refuse,
    Welcome,
    encode,
    from_cloud,
)
from edgerec_gym.protocol.tokens import make_token
from edgerec_gym.service.phones import Limits, TokenBucket
from edgerec_gym.service.server import ServeSettings, address, bind, is_loopback

PROTOCOLS: Any = [SUBPROTOCOL]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("service")) as started:
        yield started


def phone(server: Running, subprotocols: Any = PROTOCOLS) -> ClientConnection:
    return connect(server.url, subprotocols=subprotocols, compression=None, max_size=2 * MOST_BYTES)


def say(connection: ClientConnection, *messages: Any) -> None:
    for message in messages:
        connection.send(message if isinstance(message, bytes) else encode(message))


def hear(connection: ClientConnection) -> Any:
    data = connection.recv(timeout=10)
    assert isinstance(data, bytes)
    return from_cloud(data)


def ask(connection: ClientConnection, message: Any) -> Any:
    say(connection, message)
    return hear(connection)


def closed_with(connection: ClientConnection) -> int:
    """The close code of a connection that the service closes."""
    with pytest.raises(ConnectionClosed):
        connection.recv(timeout=10)
    assert connection.close_code is not None
    return connection.close_code


def lives(server: Running) -> None:
    """The service plays a whole session."""
    session = time.monotonic_ns()
    with phone(server) as connection:
        assert isinstance(ask(connection, hello(session)), Welcome)
        assert ask(connection, delta(0, 2)) == Ack(2)
        assert ask(connection, request(0, 2)).answers == 2
        assert ask(connection, end(2)) == Ended(2)


def test_a_session_over_a_connection(server: Running) -> None:
    with phone(server) as connection:
        assert connection.subprotocol == SUBPROTOCOL
        welcome = ask(connection, hello(11))
        assert isinstance(welcome, Welcome) and welcome.version == 2
        # All at once: the page and the end wait for the answers that they name.
        say(connection, request(0, 0), request(1, 3), end(3, [8]), delta(0, 3))
        heard = [hear(connection) for _ in range(4)]
        assert Ack(3) in heard and Ended(3) in heard
        pages = [message for message in heard if isinstance(message, Page)]
        assert sorted((page.page, page.answers) for page in pages) == [(0, 0), (1, 3)]
    with phone(server) as connection:
        welcome = ask(connection, hello(11))
        assert (welcome.acknowledged, welcome.ended) == (3, True)
        assert ask(connection, request(1, 3)) == next(page for page in pages if page.page == 1)


ROWS = {
    "unauthenticated": ([hello(20, token="")], "token", 1008),
    "forged token": ([hello(20, token=f"phone.{USER}.99999." + "0" * 64)], "token", 1008),
    "token of another user": ([hello(20, token=make_token(SECRET, "phone", 1))], "token", 1008),
    "expired token": ([hello(20, token=make_token(SECRET, "phone", USER, -1))], "token", 1008),
    "unknown user": ([hello(20, user=5000)], "unknown", 1008),
    "unknown version": ([hello(20, versions=(7, 9))], "version", 1002),
    "other features": ([hello(20, features="0" * 64)], "features", 1008),
    "answers before Hello": ([delta(0, 1)], "order", 1008),
    "request before Hello": ([request()], "order", 1008),
    "end before Hello": ([end(0)], "order", 1008),
    "model before Hello": ([ModelWant("", "device.json", 0)], "order", 1008),
    "garbage": ([b"\xc1 no message"], "malformed", 1007),
    "nothing": ([b""], "malformed", 1007),
    "garbage after Hello": ([hello(20), b"\x93\xa5delta"], "malformed", 1007),
    "an answer of the cloud": ([hello(20), Ack(3)], "malformed", 1007),
    "unknown item": ([hello(20), Delta(0, [answer(10**6)])], "malformed", 1007),
    "negative number": ([hello(20), encode(Ack(3)).replace(b"ack\x03", b"end\xff")], "malformed", 1007),
    "oversized": ([hello(20), bytes(MOST_BYTES + 1)], "size", 1009),
    "foreign session": ([hello(21, user=USER + 1)], "session", 1008),
    "foreign device": ([hello(21, device="tablet")], "session", 1008),
}


@pytest.mark.parametrize("row", ROWS)
def test_what_is_refused_ends_the_connection_and_nothing_else(server: Running, row: str) -> None:
    messages, code, close_code = ROWS[row]
    with phone(server) as owner:
        assert isinstance(ask(owner, hello(21)), Welcome)
        with phone(server) as connection:
            say(connection, *messages)
            for _ in messages[1:]:
                assert isinstance(hear(connection), Welcome)
            refusal = hear(connection)
            assert isinstance(refusal, Refuse) and refusal.code == code, refusal
            assert closed_with(connection) == close_code
        assert isinstance(ask(owner, hello(21)), Welcome)  # other connections stay
    lives(server)


def test_far_too_large_messages_are_cut_off_while_they_come(server: Running) -> None:
    with phone(server) as connection:
        ask(connection, hello(22))
        with pytest.raises(ConnectionClosed):
            say(connection, bytes(3 * MOST_BYTES))
            connection.recv(timeout=10)
        assert connection.close_code == 1009
    lives(server)


def test_text_is_refused(server: Running) -> None:
    with phone(server) as connection:
        connection.send("hello")
        assert hear(connection).code == "malformed"
        assert closed_with(connection) == 1007


@pytest.mark.parametrize("subprotocols", [None, ["edgerec.v9"]])
def test_another_subprotocol_is_refused(server: Running, subprotocols: Any) -> None:
    with phone(server, subprotocols) as connection:
        assert connection.subprotocol is None
        refusal = hear(connection)
        assert (refusal.code, refusal.allowed) == ("version", SUBPROTOCOL)
        assert closed_with(connection) == 1002
    lives(server)


def test_after_order_and_unknown_the_connection_goes_on(server: Running) -> None:
    with phone(server) as connection:
        ask(connection, hello(23))
        assert ask(connection, hello(24)).code == "order"
        assert ask(connection, ModelWant("0" * 64, "../secret", 0)).code == "unknown"
        refusal = ask(connection, end(2))
        assert (refusal.code, refusal.allowed) == ("order", "0")
        assert ask(connection, delta(5, 6)) == Ack(0)  # a gap
        assert ask(connection, delta(0, 2)) == Ack(2)
        assert ask(connection, end(2)) == Ended(2)


def test_replayed_messages_change_nothing(server: Running) -> None:
    with phone(server) as one, phone(server) as two:
        pages = []
        for connection in (one, two, one):
            for _ in range(2):
                assert ask(connection, hello(25)).acknowledged in (0, 4)
                assert ask(connection, delta(0, 4)) == Ack(4)
                pages.append(ask(connection, request(0, 4)))
        assert all(page == pages[0] for page in pages)


def test_a_page_that_is_asked_for_again_while_it_is_made_is_made_once(server: Running) -> None:
    """Phones that grow impatient would otherwise double the work of a service that is slow already."""
    with phone(server) as connection:
        say(connection, hello(17), request(1, 3), request(1, 3), request(1, 3), delta(0, 3), end(3))
        heard = [hear(connection) for _ in range(4)]
        assert sorted(message.kind for message in heard) == ["ack", "ended", "page", "welcome"]
        assert isinstance(ask(connection, hello(17)), Welcome)  # nothing more had come
        assert isinstance(ask(connection, request(1, 3)), Page)  # afterwards it is answered again


def test_cut_connections_leave_the_service_alive(server: Running) -> None:
    for data in (b"", b"GET /v1/feed HTTP/1.1\r\n", bytes(range(256)) * 10):
        with socket.create_connection(("127.0.0.1", server.port), 10) as raw:
            raw.sendall(data)
    with phone(server) as connection:
        say(connection, hello(26), delta(0, 3), request(0, 3), end(3))
        connection.socket.shutdown(socket.SHUT_RDWR)
    lives(server)


def get(server: Running, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(server.http + path, timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_health_readiness_and_metrics(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        assert get(server, "/healthz") == (200, "ok\n")
        assert get(server, "/readyz") == (200, "ready\n")
        for path in ("/", "/docs", "/openapi.json", "/v1/feed"):
            assert get(server, path)[0] == 404
        with phone(server) as connection:
            ask(connection, hello(1))
            say(connection, delta(0, 3))
            hear(connection)
            ask(connection, request(0, 3))
            ask(connection, hello(2))
            found = dict(
                line.rsplit(" ", 1) for line in get(server, "/metrics")[1].splitlines() if line[0] != "#"
            )
        assert float(found["edgerec_connections"]) == 1
        assert float(found['edgerec_messages_total{direction="in",kind="hello"}']) == 2
        assert float(found['edgerec_bytes_total{direction="in",kind="delta"}']) == len(encode(delta(0, 3)))
        assert float(found['edgerec_messages_total{direction="out",kind="page"}']) == 1
        assert float(found["edgerec_pages_total"]) == float(found["edgerec_page_seconds_count"]) == 1
        assert float(found['edgerec_refusals_total{code="order"}']) == 1
        assert float(found["edgerec_commit_seconds_count"]) == 3  # begin, append, page
        assert float(found["edgerec_commit_writes_sum"]) == 3
        server.app.state.phones.ending = True
        assert get(server, "/readyz") == (503, "not ready\n")
        with phone(server) as connection:
            assert hear(connection).code == "busy"
            assert closed_with(connection) == 1013


def test_the_rate_of_a_connection_is_limited(tmp_path: Path) -> None:
    with running(tmp_path, limits=Limits(rate=0.01, burst=3)) as server:
        with phone(server) as connection:
            for k in range(3):
                ask(connection, hello(1) if not k else delta(0, 1))
            refusal = ask(connection, delta(1, 2))
            assert refusal.code == "rate" and 50 < int(refusal.allowed) <= 100
            assert closed_with(connection) == 1013
        with phone(server) as connection:
            assert ask(connection, hello(1)).acknowledged == 1


def test_the_number_of_connections_is_limited(tmp_path: Path) -> None:
    with running(tmp_path, limits=Limits(connections=2)) as server:
        with phone(server) as one, phone(server) as two:
            ask(one, hello(1))
            ask(two, hello(2))
            with phone(server) as three:
                refusal = hear(three)
                assert (refusal.code, refusal.allowed) == ("busy", "5")
                assert closed_with(three) == 1013
            assert ask(one, delta(0, 1)) == Ack(1)
        lives_until = time.monotonic() + 10
        while server.app.state.phones._connected and time.monotonic() < lives_until:
            time.sleep(0.01)
        lives(server)


def test_a_phone_that_says_nothing_is_sent_away(tmp_path: Path) -> None:
    with running(tmp_path, limits=Limits(hello_seconds=0.05)) as server:
        with phone(server) as connection:
            assert hear(connection).code == "order"
            assert closed_with(connection) == 1008
        with phone(server) as connection:
            ask(connection, hello(1))
            time.sleep(0.1)
            assert ask(connection, delta(0, 1)) == Ack(1)


def test_a_fault_of_the_service_ends_one_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with running(tmp_path) as server:

        def fails(*arguments: Any) -> Page:
            raise ZeroDivisionError

        with phone(server) as other, phone(server) as connection:
            ask(other, hello(1))
            ask(connection, hello(2))
            with monkeypatch.context() as patch:
                patch.setattr(server.service.builder, "build", fails)
                say(connection, request(0, 0))
                assert closed_with(connection) == 1011
            assert ask(other, request(0, 0)).page == 0
        assert "edgerec_errors_total 1.0" in get(server, "/metrics")[1]
    assert "a PageRequest was not answered" in caplog.text


def test_at_the_end_what_is_in_work_is_answered_and_phones_are_told(tmp_path: Path) -> None:
    with running(tmp_path) as server:
        with phone(server) as working, phone(server) as idle:
            ask(idle, hello(1))
            ask(working, hello(2))
            say(working, request(0, 2))  # waits for answers
            stopping = threading.Thread(target=server.stop)
            # The page must be in work when the end comes, not before or after.
            told = threading.Event()
            build = server.service.builder.build

            def slow(*arguments: Any) -> Page:
                told.set()
                return build(*arguments)

            server.service.builder.build = slow  # type: ignore[method-assign]
            assert told.wait(10)
            stopping.start()
            assert isinstance(hear(working), Page)
            for connection in (working, idle):
                refusal = hear(connection)
                assert refusal.code == "busy" and "ending" in refusal.text
                assert closed_with(connection) == 1012
            stopping.join(20)
            with pytest.raises(OSError):
                socket.create_connection(("127.0.0.1", server.port), 1)


def test_nothing_listens_beyond_this_machine_by_default(server: Running, tmp_path: Path) -> None:
    assert ServeSettings("lite", tmp_path).host == "127.0.0.1"
    assert server.socket_name[0] == "127.0.0.1"
    assert is_loopback("127.0.0.1") and is_loopback("localhost") and is_loopback("::1")
    assert not any(map(is_loopback, ("", "0.0.0.0", "::", "192.168.0.1", "example.org")))


def test_addresses() -> None:
    assert address("127.0.0.1", 80) == "ws://127.0.0.1:80/v1/feed"
    assert address("::1", 80) == "ws://[::1]:80/v1/feed"


def test_an_address_that_is_taken_is_one_error() -> None:
    from edgerec_gym.errors import InputError

    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"cannot listen on 127.0.0.1:{port}"):
            bind("127.0.0.1", port)
    with pytest.raises(InputError, match="cannot listen on 192.0.2.1:0"):  # reserved for documentation
        bind("192.0.2.1", 0)


def test_a_token_bucket_holds_its_rate_whatever_the_clock_does() -> None:
    bucket = TokenBucket(rate=2, burst=4, now=100.0)
    assert [bucket.take(100.0) for _ in range(4)] == [0, 0, 0, 0]
    assert bucket.take(100.0) == pytest.approx(0.5)
    assert bucket.take(100.5) == 0
    assert bucket.take(90.0) == pytest.approx(0.5)  # the clock goes back
    assert bucket.take(1000.0) == 0
    assert sum(bucket.take(1000.0) == 0 for _ in range(10)) == 3
