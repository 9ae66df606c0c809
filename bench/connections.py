"""What the scenarios' connections have in common: failing, waiting, and the one that appends.

Protocol classes may simply raise: whatever leaves a callback of the loop ends the measurement
(`watch`). No wait is without a limit (`until`), and every limit says what it waited for.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, cast

from bench.measure import LoadError, Messages
from bench.wire import SHOWN_BYTES_MAX, Address, parse_head

__all__ = ["Appender", "connect", "until", "watch"]

CONNECTS_AT_ONCE_MAX = 50
"""Well below any server's backlog of connections that it has not accepted yet."""


def watch() -> "asyncio.Future[None]":
    """A future for the caller to complete; any exception in a callback of the loop fails it."""
    loop = asyncio.get_running_loop()
    finished: asyncio.Future[None] = loop.create_future()

    def fail(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception") or LoadError(context["message"])
        if not finished.done():
            finished.set_exception(error)

    loop.set_exception_handler(fail)
    return finished


async def until(awaitable: Awaitable[None], seconds_max: float, what: Callable[[], str]) -> None:
    """Wait; after `seconds_max` raise a LoadError that says `what` was missing."""
    try:
        async with asyncio.timeout(seconds_max):
            await awaitable
    except TimeoutError:
        raise LoadError(f"stalled: after {seconds_max:g} s {what()}") from None


async def connect(
    address: Address, protocols: Iterable[asyncio.Protocol], seconds_max: float
) -> None:
    """Open one connection to the server for each of the protocol objects."""
    loop = asyncio.get_running_loop()
    waiting = list(protocols)
    while waiting:
        group, waiting = waiting[:CONNECTS_AT_ONCE_MAX], waiting[CONNECTS_AT_ONCE_MAX:]
        opening = [
            loop.create_connection(partial(_same, protocol), address.host, address.port)
            for protocol in group
        ]
        try:
            async with asyncio.timeout(seconds_max):
                await asyncio.gather(*opening)
        except TimeoutError:
            raise LoadError(f"the server accepts no connection within {seconds_max:g} s") from None
        except OSError as error:
            raise LoadError(f"cannot connect: {error}") from None


def _same(protocol: asyncio.Protocol) -> asyncio.Protocol:
    return protocol


class Appender(asyncio.Protocol):
    """One connection that appends to one stream, at most one request in flight.

    Calls `acknowledged` with itself and the latency in nanoseconds; raises LoadError for any
    answer but a success.
    """

    def __init__(
        self,
        address: Address,
        name: str,
        content_type: str,
        messages: Messages,
        acknowledged: "Callable[[Appender, int], None]",
    ) -> None:
        self.name = name
        self.messages = messages
        self.count = 0
        """How many messages were acknowledged."""
        self.sent_ns = 0
        """When the last request was sent, by `time.perf_counter_ns`."""
        self._in_flight = False
        self._head = address.head(
            "POST",
            name,
            f"Content-Type: {content_type}",
            f"Content-Length: {messages.message_bytes}",
        )
        self._acknowledged = acknowledged
        self._transport: asyncio.Transport | None = None
        self._pending = b""
        self._ending = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._ending:
            raise LoadError(f"the connection that appends to {self.name} was cut: {exc}")

    def end(self) -> None:
        """Close the connection."""
        self._ending = True
        if self._transport is not None:
            self._transport.close()

    def append(self) -> None:
        """Send the next message. The one before must have been acknowledged."""
        assert self._transport is not None and not self._in_flight
        request = self._head + self.messages.at(self.count)
        self._in_flight = True
        self.sent_ns = time.perf_counter_ns()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        if self._pending:
            data = self._pending + data
        # Nearly every answer is a 204 in one piece; only the others are parsed.
        if not data.startswith(b"HTTP/1.1 204") or data.find(b"\r\n\r\n") != len(data) - 4:
            self._pending = data
            if not self._is_success():
                return
        self._pending = b""
        if not self._in_flight:
            raise LoadError(f"an answer that nobody asked for: {data[:SHOWN_BYTES_MAX]!r}")
        latency_ns = time.perf_counter_ns() - self.sent_ns
        self._in_flight = False
        self.count += 1
        self._acknowledged(self, latency_ns)

    def _is_success(self) -> bool:
        """Whether what came is a whole answer. Raises LoadError if it is not a success."""
        head = parse_head(self._pending)
        if head is None:
            return False
        if head.status not in (200, 204):
            shown = self._pending[:SHOWN_BYTES_MAX]
            raise LoadError(f"an append to {self.name} was answered: {shown!r}")
        end = head.body_at + head.body_bytes
        if len(self._pending) > end:
            raise LoadError(f"more than an answer: {self._pending[end:][:SHOWN_BYTES_MAX]!r}")
        return len(self._pending) == end
