"""Keys from a URL: fetched in the background, and kept when they cannot be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from key_server import KeyServer, key_server

from durable_streamsd.auth import jwks
from durable_streamsd.auth.jwks import KeyFetcher
from durable_streamsd.auth.jwt_keys import KeyRing

PATIENCE_S = 20.0
KEY = Ed25519PrivateKey.generate()


@pytest.fixture
def server() -> Iterator[KeyServer]:
    """A server of keys that has none yet."""
    with key_server() as server:
        yield server


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits are short, but for the regular one."""
    monkeypatch.setattr(jwks, "INTERVAL_S_MIN", 0.05)
    monkeypatch.setattr(jwks, "BACKOFF_S_MAX", 0.05)


class Fetched:
    """What came, newest last."""

    def __init__(self) -> None:
        self.rings: list[KeyRing] = []

    @property
    def kids(self) -> list[str | None]:
        return [key.kid for key in self.rings[-1].keys] if self.rings else []


@asynccontextmanager
async def fetching(server: KeyServer) -> AsyncIterator[tuple[KeyFetcher, Fetched]]:
    fetched = Fetched()
    fetcher = KeyFetcher(server.url, fetched.rings.append)
    fetcher.start()
    try:
        yield fetcher, fetched
    finally:
        await fetcher.stop()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.005)


def go(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


@pytest.mark.parametrize(
    "bad",
    [
        (500, b""),
        (302, b""),
        (204, b""),
        (200, b""),
        (200, b"{}"),
        (200, b"x" * 300_000),
        (200, b'{"keys": [{"kty": "oct", "k": "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY"}]}'),
    ],
    ids=lambda bad: str(bad)[:20],
)
def test_an_answer_that_will_not_do_takes_nothing_away(
    server: KeyServer, bad: tuple[int, bytes]
) -> None:
    """It is tried again until there are keys; once there are, a bad answer changes nothing."""

    async def work() -> None:
        server.answer = bad
        async with fetching(server) as (fetcher, fetched):
            await until(lambda: server.asked >= 3)
            assert fetched.rings == []
            assert fetcher.want()
            server.publish(one=KEY)
            await until(lambda: fetched.kids == ["one"])
            server.answer = bad
            asked = server.asked
            await until(lambda: fetcher.want() and server.asked > asked + 2)
            assert len(fetched.rings) == 1
            server.publish(two=KEY)
            await until(lambda: fetched.kids == ["two"])

    go(work())


def test_made_up_ids_cause_a_fetch_now_and_then(
    server: KeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key that is missing is looked for, but not right after the keys came."""
    server.publish(one=KEY)

    async def work() -> None:
        async with fetching(server) as (fetcher, fetched):
            assert fetcher.want()  # the first are on their way
            await until(lambda: bool(fetched.rings))
            monkeypatch.setattr(jwks, "INTERVAL_S_MIN", 3_600)
            await until(lambda: not fetcher.want())
            assert not any(fetcher.want() for _ in range(1_000))
            monkeypatch.setattr(jwks, "INTERVAL_S_MIN", 0)
            assert fetcher.want()
            await until(lambda: server.asked == 2)

    go(work())


def test_a_server_that_does_not_answer_is_given_up(
    server: KeyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a time-out it is asked again; stopping does not wait for it."""
    monkeypatch.setattr(jwks, "TIMEOUT_S", 0.05)
    server.talks.clear()

    async def work() -> None:
        async with fetching(server) as (fetcher, _):
            await until(lambda: server.asked >= 3)
            assert fetcher.want()

    go(work())
