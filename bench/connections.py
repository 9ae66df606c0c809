"""What the scenarios' connections have in common: failing, waiting, and the one that appends.

Protocol classes may simply raise: whatever leaves a callback of the loop ends the measurement
(`watch`). No wait is without a limit (`until`), and every limit says what it waited for.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, Protocol, cast

from bench.measure import LoadError
from bench.wire import SHOWN_BYTES_MAX, Address, Answer, bare_status, parse_answer

__all__ = [
    "CONNECTS_AT_ONCE_MAX",
    "Appender",
    "Bodies",
    "Requester",
    "append_head",
    "connect",
    "until",
    "watch",
]

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
    address: Address, protocols: Iterable[asyncio.BaseProtocol], seconds_max: float
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


def _same(protocol: asyncio.BaseProtocol) -> asyncio.BaseProtocol:
    return protocol


class Requester(asyncio.Protocol):
    """One connection with at most one request in flight, and answers that are short.

    Subclasses `send`, and are told by `answered`.
    """

    def __init__(self, purpose: str) -> None:
        """`purpose` is for people, as in: the connection that PURPOSE was cut."""
        self.sent_ns = 0
        """When the last request was sent, by `time.perf_counter_ns`."""
        self._purpose = purpose
        self._in_flight = False
        self._transport: asyncio.Transport | None = None
        self._pending = b""
        self._ending = False

    def answered(self, status: int, answer: Answer | None) -> None:
        """The answer has come; None: it has no body, and nobody has looked at its fields."""
        raise NotImplementedError

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._ending:
            raise LoadError(f"the connection that {self._purpose} was cut: {exc}")

    def end(self) -> None:
        """Close the connection."""
        self._ending = True
        if self._transport is not None:
            self._transport.close()

    def send(self, request: bytes) -> None:
        """Send a request. The one before must have been answered."""
        assert self._transport is not None and not self._in_flight
        self._in_flight = True
        self.sent_ns = time.perf_counter_ns()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        if self._pending:
            data = self._pending + data
        answer = None
        status = bare_status(data)
        if status is None:
            answer = parse_answer(data)
            if answer is None:
                self._pending = data
                return
            status = answer.head.status
        self._pending = b""
        if not self._in_flight:
            raise LoadError(f"an answer that nobody asked for: {data[:SHOWN_BYTES_MAX]!r}")
        self._in_flight = False
        self.answered(status, answer)

    def refused(self, status: int, answer: Answer | None) -> LoadError:
        """What to raise for an answer that is not a success."""
        shown = b"" if answer is None else answer.body[:SHOWN_BYTES_MAX]
        return LoadError(f"a request that {self._purpose} was answered {status}: {shown!r}")


class Bodies(Protocol):
    """What is appended to one stream, request by request: all of one size."""

    def at(self, number: int, /) -> bytes:
        """Body of a request; they count from 0."""
        ...

    def first(self, count: int, /) -> bytes:
        """The whole stream after `count` requests."""
        ...


class Appender(Requester):
    """One connection that appends to one stream, at most one request in flight.

    Calls `acknowledged` with itself and the latency in nanoseconds; raises LoadError for any
    answer but a success.
    """

    def __init__(
        self,
        address: Address,
        name: str,
        content_type: str,
        messages: Bodies,
        acknowledged: "Callable[[Appender, int], None]",
    ) -> None:
        super().__init__(f"appends to {name}")
        self.name = name
        self.messages = messages
        self.count = 0
        """How many requests were acknowledged."""
        self._head = append_head(address, name, content_type, len(messages.at(0)))
        self._acknowledged = acknowledged

    def append(self) -> None:
        """Send the next message. The one before must have been acknowledged."""
        self.send(self._head + self.messages.at(self.count))

    def answered(self, status: int, answer: Answer | None) -> None:
        latency_ns = time.perf_counter_ns() - self.sent_ns
        if status not in (200, 204):
            raise self.refused(status, answer)
        self.count += 1
        self._acknowledged(self, latency_ns)


def append_head(
    address: Address, name: str, content_type: str, body_bytes: int, *fields: str
) -> bytes:
    """Head of a request that appends `body_bytes` to the stream `name`."""
    return address.head(
        "POST",
        name,
        f"Content-Type: {content_type}",
        f"Content-Length: {body_bytes}",
        *fields,
    )
