"""The web application of the service.

| path | what |
| --- | --- |
| /v1/feed | the WebSocket of a phone, subprotocol `edgerec.v1` |
| /healthz | 200 while the process lives |
| /readyz | 200 while phones are served, else 503 |
| /metrics | counters as Prometheus reads them |
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from edgerec_gym.errors import InputError, MissingExtraError
from edgerec_gym.service.exchange import FeedService
from edgerec_gym.service.metrics import Metrics
from edgerec_gym.service.phones import Limits, Phones
from edgerec_gym.service.store import StoreError

try:
    from fastapi import FastAPI, Response, WebSocket
except ImportError:
    raise MissingExtraError("the service", "edge") from None

PATH = "/v1/feed"
MODEL_SECONDS = 2.0  # between looks at the folder of the model
_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_log = logging.getLogger(__name__)


def make_app(
    service: FeedService,
    metrics: Metrics | None = None,
    limits: Limits | None = None,
    *,
    model_seconds: float = MODEL_SECONDS,
) -> FastAPI:
    """Return the application.

    Args:
        service: pages, sessions and models; its store is the caller's to close, after the server has ended.
        metrics: counters; None for new ones.
        limits: what phones may do; None for the defaults.
        model_seconds: time between looks at the folder of the model.

    Returns:
        The application; `app.state.phones` are the connected phones.
    """
    metrics = metrics or Metrics()
    phones = Phones(service, metrics, limits or Limits())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        watching = asyncio.create_task(_watch_models(service, phones, model_seconds))
        yield
        watching.cancel()
        with suppress(asyncio.CancelledError):
            await watching

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.phones = phones

    @app.websocket(PATH)
    async def feed(socket: WebSocket) -> None:
        await phones.serve(socket)

    @app.get("/healthz")
    async def healthz() -> Response:
        return Response("ok\n", media_type="text/plain")

    @app.get("/readyz")
    async def readyz() -> Response:
        try:
            await service.store.page(0, 0)
            ready = not phones.ending
        except StoreError:
            ready = False
        return Response("ready\n" if ready else "not ready\n", 200 if ready else 503, media_type="text/plain")

    @app.get("/metrics")
    async def counters() -> Response:
        return Response(metrics.text(), headers={"content-type": _METRICS_TYPE})

    return app


async def _watch_models(service: FeedService, phones: Phones, seconds: float) -> None:
    """Offer other models to the phones when the folder of the models changes."""
    models = service.models
    while models is not None:
        await asyncio.sleep(seconds)
        try:
            changed = await asyncio.to_thread(models.renew)
        except InputError as error:
            _log.warning("the model before stays: %s", error)
            continue
        if changed:
            await phones.offer(models)
