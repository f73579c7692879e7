"""The web application of `edgerec demo --live`: one page, its events, and its buttons.

| path | what |
| --- | --- |
| GET / | the page |
| GET /events | server-sent events, a JSON document each |
| POST /network | `{"action": "cut"}`, `{"action": "restore"}` or `{"action": "lag", "ms": 400}` |
| POST /model | `{}`: the next model |
| POST /pause | `{"paused": true}` |
| POST /speed | `{"speed": 2.0}` |

Other sites that the same browser shows must not reach it: every request must name this machine as its host,
and a button's request must come from the page itself and bring the token that the page was given.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from edgerec_gym.errors import InputError, MissingExtraError
from edgerec_gym.files import json_ready

try:
    from fastapi import FastAPI, Request, Response
    from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
    from starlette.types import Message, Receive, Scope, Send
except ImportError:
    raise MissingExtraError("the live demo", "edge") from None

HOSTS = ("127.0.0.1", "localhost")  # as which a browser may know this machine
TOKEN = "x-edgerec-token"
MOST_BODY = 1024  # bytes
MOST_PAGES = 16  # open at the same time
MOST_WAITING = 500  # documents that a slow page may be behind
QUIET_SECONDS = 10.0  # until a sign of life
LARGEST_LAG = 5000  # milliseconds, there and back
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
T = TypeVar("T")


class NetworkOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the network should do; `ms` is the lag there and back."""

    action: Literal["cut", "restore", "lag"]
    ms: Annotated[int, Meta(ge=0, le=LARGEST_LAG)] = 0


class ModelOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The next model should take over."""


class PauseOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Whether the phone should stand still."""

    paused: bool


class SpeedOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How fast the phone should play."""

    speed: float


Order = NetworkOrder | ModelOrder | PauseOrder | SpeedOrder
ORDERS: dict[str, Any] = {  # by path
    "/network": NetworkOrder,
    "/model": ModelOrder,
    "/pause": PauseOrder,
    "/speed": SpeedOrder,
}


class Audience:
    """Everyone who looks on: the open pages, each with a queue of documents.

    Args:
        everything: returns what a page must know that opens now.
    """

    def __init__(self, everything: Callable[[], dict[str, Any]]) -> None:
        self._everything = everything
        self._queues: set[asyncio.Queue[str | None]] = set()

    def __len__(self) -> int:
        return len(self._queues)

    def tell(self, document: dict[str, Any]) -> None:
        """Send a document to all pages; one that is too far behind has to open its events again."""
        event = _event(document)
        for queue in list(self._queues):
            if queue.qsize() >= MOST_WAITING:
                self._queues.discard(queue)
                queue.put_nowait(None)
            else:
                queue.put_nowait(event)

    def close(self) -> None:
        """End all streams."""
        for queue in self._queues:
            queue.put_nowait(None)
        self._queues.clear()

    async def events(self) -> AsyncIterator[str]:
        """Yield the events for one page."""
        queue: asyncio.Queue[str | None] = asyncio.Queue()
        queue.put_nowait(_event(self._everything()))
        self._queues.add(queue)
        try:
            while True:
                try:
                    event = await asyncio.wait_for(queue.get(), QUIET_SECONDS)
                except TimeoutError:
                    event = ": quiet\n\n"
                if event is None:
                    return
                yield event
        finally:
            self._queues.discard(queue)


def make_app(page: str, token: str, audience: Audience, act: Callable[[Order], object]) -> Guard:
    """Return the application.

    Args:
        page: HTML of the page, which holds the token.
        token: that requests of buttons must bring.
        audience: takes the pages that open.
        act: does what a button asks for; InputError if it cannot.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/")
    async def index() -> Response:
        return HTMLResponse(page)

    @app.get("/events")
    async def events() -> Response:
        if len(audience) >= MOST_PAGES:
            return _refused(503, f"{MOST_PAGES} pages are open already: close one")
        return StreamingResponse(audience.events(), media_type="text/event-stream")

    def button(path: str, kind: type[Order]) -> None:
        @app.post(path)
        async def pressed(request: Request) -> Response:
            try:
                act(await _order(request, kind))
            except InputError as error:
                return _refused(400, str(error))
            return JSONResponse({"done": True})

    for path, kind in ORDERS.items():
        button(path, kind)
    return Guard(app, token)


class Guard:
    """Lets nothing through that the page has not asked for, and adds what browsers should know.

    Args:
        app: the application.
        token: that requests of buttons must bring.
    """

    def __init__(self, app: FastAPI, token: str) -> None:
        self._app, self._token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *added]}
            await send(message)

        if scope["type"] == "http":
            answer = self._refusal(Request(scope)) or self._app
            await answer(scope, receive, with_headers)

    def _refusal(self, request: Request) -> Response | None:
        host, is_button = request.headers.get("host", ""), request.method == "POST"
        if host.rpartition(":")[0] not in HOSTS:
            return _refused(421, f"unknown host; allowed: {', '.join(HOSTS)}")
        if is_button and request.headers.get("origin") != f"http://{host}":
            return _refused(403, "the request does not come from the page")
        if is_button and not _same(request.headers.get(TOKEN, ""), self._token):
            return _refused(403, "the token is missing or wrong: load the page again")
        return None


async def _order(request: Request, kind: type[T]) -> T:
    """Read what a button asks for; InputError if it is too long or malformed."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MOST_BODY:
            raise InputError(f"the request is longer than {MOST_BODY} bytes")
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.MsgspecError as error:
        raise InputError(f"the request is malformed: {error}") from None


def _same(told: str, token: str) -> bool:
    return hmac.compare_digest(told.encode(), token.encode())


def _refused(status: int, why: str) -> Response:
    return JSONResponse({"done": False, "why": why}, status)


def _event(document: dict[str, Any]) -> str:
    text = json.dumps(json_ready(document), separators=(",", ":"), allow_nan=False)
    return f"event: {document['kind']}\ndata: {text}\n\n"
