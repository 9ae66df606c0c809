"""Live readers of one stream: the SSE reader and the long-poll reader.

A reader tells its `Audience` when it has begun, whenever it was given a message, and when the
server has ended it. It takes no message but the one on its way, and that once, so whoever appends
the next one only when everybody has the last knows that all was delivered, each once, in order.

The generator shares the machine with the server, so it must be cheap: many readers are sent the
same bytes, which are parsed once and remembered (`Audience.known`) for as long as a message lives.
"""

import asyncio
import time
from typing import Protocol, cast

from bench.measure import LoadError
from bench.wire import SHOWN_BYTES_MAX, Address, Answer, SseBody, parse_answer, parse_head

__all__ = ["KNOWN_MAX", "Audience", "LongPollReader", "Reader", "SseReader"]

KNOWN_MAX = 64
"""Different pieces of answer that are remembered for one message; usually one or two exist."""


class Audience(Protocol):
    """What readers share, and whom they tell."""

    message: bytes
    """The one message on its way; empty when there is none."""
    known: dict[bytes, tuple[bytes, bytes]]
    """Pieces of answer that were parsed before: the payload, and the request that follows."""
    closing: bool
    """The stream is being closed, so readers may be ended."""

    def begun(self, reader: "Reader") -> None:
        """The reader is connected and waits."""

    def delivered(self, reader: "Reader") -> None:
        """The reader has the message on its way."""

    def ended(self, reader: "Reader") -> None:
        """The server has ended the reader, because the stream was closed."""


class Reader(asyncio.Protocol):
    """One connection; what all kinds of readers have in common."""

    def __init__(self, audience: Audience, address: Address, name: str, number: int) -> None:
        self.name = name
        """Of the stream."""
        self.connected_ns = 0
        """When the connection was there and the request was sent, by `time.perf_counter_ns`."""
        self.received_ns = 0
        """When bytes came last, before they were parsed; by the same clock."""
        self._audience = audience
        self._address = address
        self._number = number
        self._last = b""
        """The last message this reader was given."""
        self._ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it
        self.connected_ns = time.perf_counter_ns()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._ended:
            raise LoadError(f"the connection of {self} was cut: {exc}")

    def leave(self) -> None:
        """Give up reading."""
        self._ended = True
        self._transport.abort()

    def __str__(self) -> str:
        return f"reader {self._number} of {self.name}"

    def _take(self, payload: bytes) -> None:
        if payload != self._audience.message or payload == self._last:
            raise LoadError(
                f"{self} was sent {payload[:SHOWN_BYTES_MAX]!r} after "
                f"{self._last[:SHOWN_BYTES_MAX]!r}, when "
                f"{self._audience.message[:SHOWN_BYTES_MAX]!r} was on its way"
            )
        self._last = payload
        self._audience.delivered(self)

    def _end(self) -> None:
        """The server has ended the answer, or said that the stream is closed."""
        self._ended = True
        self._transport.close()
        if not self._audience.closing:
            raise LoadError(f"{self} was sent away while it was reading")
        self._audience.ended(self)


class SseReader(Reader):
    """An SSE reader from the start of the stream."""

    def __init__(self, audience: Audience, address: Address, name: str, number: int) -> None:
        super().__init__(audience, address, name, number)
        self._head: bytes | None = b""
        """What came of the answer's head; None once it is whole."""
        self._body = SseBody()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        target = f"{self.name}?offset=-1&live=sse"
        self._transport.write(self._address.head("GET", target, "Accept: text/event-stream"))

    def data_received(self, data: bytes) -> None:
        self.received_ns = time.perf_counter_ns()
        body, known = self._body, self._audience.known
        if body.at_rest and self._head is None:
            seen = known.get(data)
            if seen is not None:
                if seen[0]:
                    self._take(seen[0])
                return
        if self._head is not None:
            data = self._begin(self._head + data)
        rested = body.at_rest
        payload = body.feed(data)
        if rested and body.at_rest and data and not body.ended and len(known) < KNOWN_MAX:
            known[data] = payload, b""
        if payload:
            self._take(payload)
        if body.ended:
            self._end()

    def _begin(self, data: bytes) -> bytes:
        """Read the answer's head and return what follows it."""
        head = parse_head(data)
        if head is None:
            self._head = data
            return b""
        if head.status != 200 or head.fields.get(b"transfer-encoding") != b"chunked":
            raise LoadError(f"{self} was answered: {data[:SHOWN_BYTES_MAX]!r}")
        self._head = None
        self._audience.begun(self)
        return data[head.body_at :]


class LongPollReader(Reader):
    """A long-poll reader from the start of the stream, with the next request out at once.

    It has begun when its first request is sent: an answer comes only with the first message.
    """

    def __init__(self, audience: Audience, address: Address, name: str, number: int) -> None:
        super().__init__(audience, address, name, number)
        self._pending = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._transport.write(self._request("-1", ""))
        self._audience.begun(self)

    def data_received(self, data: bytes) -> None:
        self.received_ns = time.perf_counter_ns()
        known = self._audience.known
        seen = None if self._pending else known.get(data)
        if seen is None:
            whole = self._pending + data
            answer = parse_answer(whole)
            if answer is None:
                self._pending = whole
                return
            self._pending = b""
            if b"stream-closed" in answer.head.fields:
                if answer.body:
                    self._take(answer.body)
                self._end()
                return
            seen = answer.body, self._next_request(answer)
            if len(known) < KNOWN_MAX:
                known[whole] = seen
        payload, request = seen
        self._transport.write(request)
        if payload:
            self._take(payload)

    def _next_request(self, answer: Answer) -> bytes:
        """What to ask after an answer with a message, or after a time-out."""
        fields = answer.head.fields
        if answer.head.status not in (200, 204) or b"stream-next-offset" not in fields:
            shown = answer.body[:SHOWN_BYTES_MAX]
            raise LoadError(f"{self} was answered {answer.head.status}, {fields}: {shown!r}")
        cursor = fields.get(b"stream-cursor", b"")
        return self._request(fields[b"stream-next-offset"].decode(), cursor.decode())

    def _request(self, offset: str, cursor: str) -> bytes:
        target = f"{self.name}?offset={offset}&live=long-poll"
        return self._address.head("GET", f"{target}&cursor={cursor}" if cursor else target)
