"""Sessions in Redis, for services on several machines: any of them serves any phone.

Every write is one script, which Redis runs alone. Redis must sync each write to disk before it replies
(`appendonly yes`, `appendfsync always`) and must not evict keys; both are checked when the store opens. The
keys of a session share the hash tag `{session}`, so that a cluster keeps them together.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from edgerec_gym.errors import InputError, MissingExtraError
from edgerec_gym.service.store import Begun, Held, NotBegunError, StoreError

if TYPE_CHECKING:
    from redis.asyncio import Redis

MOST_CONNECTIONS = 32
TIMEOUT = 5.0  # seconds for a reply, and for a connection
DURABLE = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}

# KEYS: facts (a hash: begun, placed), answers (a list), pages (a hash).
_BEGIN = """
redis.call('HSETNX', KEYS[1], 'begun', ARGV[1])
return {redis.call('HGET', KEYS[1], 'begun'), redis.call('LLEN', KEYS[2]),
        redis.call('HEXISTS', KEYS[1], 'placed')}
"""
_APPEND = """
if redis.call('EXISTS', KEYS[1]) == 0 then return -1 end
local held, first = redis.call('LLEN', KEYS[2]), tonumber(ARGV[1])
if first > held or redis.call('HEXISTS', KEYS[1], 'placed') == 1 then return held end
for k = held - first + 2, #ARGV do held = redis.call('RPUSH', KEYS[2], ARGV[k]) end
return held
"""
_KEEP_PAGE = """
if redis.call('EXISTS', KEYS[1]) == 0 then return -1 end
redis.call('HSETNX', KEYS[3], ARGV[1], ARGV[2])
return redis.call('HGET', KEYS[3], ARGV[1])
"""
_END = """
if redis.call('EXISTS', KEYS[1]) == 0 then return -1 end
redis.call('HSETNX', KEYS[1], 'placed', ARGV[1])
return 0
"""


class RedisStore:
    """The :class:`~edgerec_gym.service.store.SessionStore` that several services share.

    Make it with :meth:`open`.
    """

    def __init__(self, client: Redis, on_commit: Callable[[float, int], None] | None = None) -> None:
        self._client = client
        self._on_commit = on_commit
        self._begin, self._append, self._keep_page, self._end = (
            client.register_script(text) for text in (_BEGIN, _APPEND, _KEEP_PAGE, _END)
        )

    @classmethod
    async def open(cls, url: str, on_commit: Callable[[float, int], None] | None = None) -> RedisStore:
        """Connect to a server.

        Args:
            url: `redis://HOST:PORT/DATABASE`, `rediss://...` or `unix://...`.
            on_commit: called with the seconds of a write, and 1.

        Raises:
            InputError: the server cannot be reached, or would lose what it has acknowledged.
            MissingExtraError: redis is not installed.
        """
        try:
            from redis import exceptions
            from redis.asyncio import BlockingConnectionPool, Redis
        except ImportError:
            raise MissingExtraError("sessions in Redis", "edge") from None
        where = _without_password(url)
        try:
            pool = BlockingConnectionPool.from_url(
                url,
                max_connections=MOST_CONNECTIONS,
                timeout=TIMEOUT,
                socket_timeout=TIMEOUT,
                socket_connect_timeout=TIMEOUT,
            )
        except ValueError as error:
            raise InputError(f"--redis {where}: {error}") from None
        client = Redis(connection_pool=pool)
        try:
            found: Any = await client.config_get(*DURABLE)
        except (exceptions.RedisError, OSError) as error:
            await client.aclose()
            await pool.disconnect()
            raise InputError(f"--redis {where} cannot be used: {error}") from None
        settings = {_text(name): _text(value) for name, value in found.items()}
        for name, needed in DURABLE.items():
            if settings.get(name) != needed:
                await client.aclose()
                await pool.disconnect()
                raise InputError(
                    f"--redis {where}: {name} is {settings.get(name)!r}; it must be {needed!r}, so that "
                    "nothing acknowledged is lost"
                )
        return cls(client, on_commit)

    async def begin(self, begun: Begun) -> Held:
        """Begin a session, or return it if it has begun before."""
        found, answers, ended = await self._write(self._begin, begun.session, msgspec.msgpack.encode(begun))
        return Held(msgspec.msgpack.decode(found, type=Begun), answers, bool(ended))

    async def append(self, session: int, first: int, answers: list[bytes]) -> int:
        """Append encoded answers of which the first has the number `first`; returns the number held."""
        held: int = await self._write(self._append, session, first, *answers)
        return held

    async def answers(self, session: int) -> list[bytes]:
        """Return the encoded answers of a session in order."""
        async with _errors():
            return await self._client.lrange(_keys(session)[1], 0, -1)  # type: ignore[return-value]

    async def page(self, session: int, page: int) -> bytes | None:
        """Return an encoded page that was built before, None if there is none."""
        async with _errors():
            return await self._client.hget(_keys(session)[2], str(page))  # type: ignore[return-value]

    async def pages(self, session: int) -> list[bytes]:
        """Return the encoded pages of a session in order."""
        async with _errors():
            found: dict[bytes, bytes] = await self._client.hgetall(_keys(session)[2])  # type: ignore[assignment]
        return [data for _, data in sorted(found.items(), key=lambda entry: int(entry[0]))]

    async def keep_page(self, session: int, page: int, data: bytes) -> bytes:
        """Keep an encoded page; returns the one that is held, which is an earlier one if there was one."""
        held: bytes = await self._write(self._keep_page, session, page, data)
        return held

    async def end(self, session: int, placed: list[bytes]) -> None:
        """Record the end of a session and what was placed but never answered; again changes nothing."""
        await self._write(self._end, session, msgspec.msgpack.encode(placed))

    async def placed(self, session: int) -> list[bytes]:
        """Return what the end of a session recorded."""
        async with _errors():
            found: bytes | None = await self._client.hget(_keys(session)[0], "placed")  # type: ignore[assignment]
        return msgspec.msgpack.decode(found, type=list[bytes]) if found else []

    async def close(self) -> None:
        """Close the connections; everything is written already."""
        await self._client.aclose()
        await self._client.connection_pool.disconnect()

    async def _write(self, script: Any, session: int, *arguments: bytes | int) -> Any:
        """Run a script on the keys of a session; NotBegunError if the session is not held."""
        began = time.perf_counter()
        async with _errors():
            result = await script(keys=_keys(session), args=arguments)
        if self._on_commit is not None:
            self._on_commit(time.perf_counter() - began, 1)
        if isinstance(result, int) and result < 0:
            raise NotBegunError(session)
        return result


def _keys(session: int) -> tuple[str, str, str]:
    return tuple(f"edgerec:{{{session}}}:{name}" for name in ("facts", "answers", "pages"))  # type: ignore[return-value]


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _without_password(url: str) -> str:
    """Return a URL as it may be shown."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


@asynccontextmanager
async def _errors() -> AsyncIterator[None]:
    """Raise what Redis or the connection to it raises as a StoreError."""
    from redis import exceptions

    try:
        yield
    except (exceptions.RedisError, OSError, TimeoutError) as error:
        raise StoreError(f"Redis cannot be used: {error}") from None
