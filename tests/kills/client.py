"""HTTP as an actor of a kill run speaks it: what came back, when, or that nothing did.

A connection that breaks is an answer of its own (status 0): the server was killed, and what became
of the request is not known. One that is refused is tried again: nothing was sent on it. A server
that is up and does not answer within `ANSWER_SECONDS_MAX` is an error of the run.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from types import TracebackType

import aiohttp

ANSWER_SECONDS_MAX = 60.0
CONNECTIONS_MAX = 200
REFUSED_WAIT_S = 0.03


@dataclass(frozen=True)
class Reply:
    """What a client knows about a request that has ended."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    started: float
    ended: float

    @property
    def code(self) -> str:
        """The stable code of an error answer."""
        if "problem+json" not in self.headers.get("Content-Type", ""):
            return ""
        return str(json.loads(self.body)["code"])

    @property
    def offset(self) -> str:
        """The offset told."""
        return self.headers.get("Stream-Next-Offset", "")

    @property
    def unknown(self) -> bool:
        """Whether the request may or may not have been carried out."""
        return self.status == 0 or (self.status >= 500 and self.status != 507)


@dataclass(frozen=True)
class SseEvent:
    """A data event (or nothing) with the control event that belongs to it."""

    data: bytes | None
    control: dict[str, object]
    at: float


class Client:
    """Requests to the streams of one server."""

    def __init__(self, url: str) -> None:
        self._root = f"{url}/v1/stream/"
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=ANSWER_SECONDS_MAX),
            connector=aiohttp.TCPConnector(limit=CONNECTIONS_MAX),
        )
        # It would send PUT and DELETE twice behind the caller's back when a connection breaks.
        self._session._retry_connection = False

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._session.close()

    async def request(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        query: Mapping[str, str] | None = None,
    ) -> Reply:
        """One request. Raises TimeoutError when a server that is up does not answer."""
        while True:
            started = time.monotonic()
            try:
                async with self._session.request(
                    method,
                    self._root + path,
                    params=query,
                    headers=headers,
                    data=body or None,
                    skip_auto_headers=("Content-Type",),
                ) as response:
                    data = await response.read()
                    return Reply(response.status, response.headers, data, started, time.monotonic())
            except TimeoutError:
                raise
            except aiohttp.ClientConnectorError:
                await asyncio.sleep(REFUSED_WAIT_S)
            except (aiohttp.ClientError, OSError):
                return Reply(0, {}, b"", started, time.monotonic())

    async def sse(self, path: str, offset: str) -> AsyncIterator[Reply | SseEvent]:
        """An event stream: first its head (or the error answer), then events until it ends."""
        started = time.monotonic()
        try:
            async with self._session.get(
                self._root + path, params={"offset": offset, "live": "sse"}
            ) as response:
                body = b"" if response.status == 200 else await response.read()
                yield Reply(response.status, response.headers, body, started, time.monotonic())
                if response.status == 200:
                    async for event in _events(response):
                        yield event
        except TimeoutError:
            raise
        except (aiohttp.ClientError, OSError):
            yield Reply(0, {}, b"", started, time.monotonic())


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[SseEvent]:
    """Pairs of data and control; a pair that was cut by the connection's end is dropped."""
    pending = b""
    data: bytes | None = None
    async for received in response.content.iter_any():
        *blocks, pending = (pending + received).split(b"\n\n")
        for block in blocks:
            name, lines = _parse(block)
            if name == b"data":
                data = b"\n".join(lines)
            elif name == b"control":
                yield SseEvent(data, json.loads(b"\n".join(lines)), time.monotonic())
                data = None


def _parse(block: bytes) -> tuple[bytes, list[bytes]]:
    name = b""
    lines = []
    for line in block.split(b"\n"):
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"event":
            name = value
        elif field == b"data":
            lines.append(value)
    return name, lines
