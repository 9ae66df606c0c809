"""SSE readers that only receive while it is measured, and are checked afterwards.

For scenarios in which reading is the background: what comes is kept, with a mark where the window
opened and closed, and parsed when the load is over. A reader of `readers.py` looks at each
message when it comes, and costs the generator as much as the server.
"""

import asyncio
from collections.abc import Callable
from typing import cast

from bench.connections import Appender
from bench.measure import LoadError
from bench.wire import SHOWN_BYTES_MAX, Address, SseBody, parse_head

__all__ = ["Follower"]


class Follower(asyncio.Protocol):
    """One SSE reader of the stream of `appender`, from where it ends now until it is closed."""

    def __init__(self, address: Address, appender: Appender, changed: Callable[[], None]) -> None:
        """`changed` is called when `follows` has become true, and when `ended` has."""
        self.follows = False
        """The server has begun its answer, so what is appended from now on must come."""
        self.ended = False
        """The server has ended its answer, and all that came was parsed."""
        self.bytes_within = 0
        """Payload that came between `open` and `close`."""
        self._address = address
        self._appender = appender
        self._changed = changed
        self._count_before = 0
        """How many appends were acknowledged before `follows`."""
        self._raw: list[bytes] = []
        self._opened = self._closed = 0
        self._payload: list[bytes] = []
        self._body: SseBody | None = None
        self._head = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it
        target = f"{self._appender.name}?offset=now&live=sse"
        self._transport.write(self._address.head("GET", target, "Accept: text/event-stream"))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended:
            raise LoadError(f"an SSE reader of {self._appender.name} was cut: {exc}")

    def data_received(self, data: bytes) -> None:
        if self._body is not None:
            self._parse(data)
        elif self.follows:
            self._raw.append(data)
        else:
            self._begin(data)

    def open(self) -> None:
        """The window opens."""
        self._opened = len(self._raw)

    def close(self) -> None:
        """The window closes."""
        self._closed = len(self._raw)

    def parse(self) -> None:
        """Parse what came, and from now on what comes."""
        self._body = SseBody()
        for number, data in enumerate(self._raw):
            payload_bytes = self._parse(data)
            if self._opened <= number < self._closed:
                self.bytes_within += payload_bytes

    def check(self) -> None:
        """Check all payload against the stream, which was closed. Raises LoadError.

        It must be the stream's end, and hold at least what was appended after `follows`.
        """
        payload, stream = b"".join(self._payload), self._appender
        if not stream.messages.first(stream.count).endswith(payload):
            raise LoadError(f"an SSE reader of {stream.name} was sent what is not its end")
        message_bytes = len(stream.messages.at(0))
        if len(payload) < (stream.count - self._count_before) * message_bytes:
            raise LoadError(
                f"an SSE reader of {stream.name} was sent {len(payload)} bytes, when "
                f"{stream.count - self._count_before} messages of {message_bytes} were appended"
            )

    def _begin(self, data: bytes) -> None:
        """Read the answer's head, and keep what follows it."""
        self._head += data
        head = parse_head(self._head)
        if head is None:
            return
        if head.status != 200 or head.fields.get(b"transfer-encoding") != b"chunked":
            shown = self._head[:SHOWN_BYTES_MAX]
            raise LoadError(f"an SSE reader of {self._appender.name} was answered: {shown!r}")
        self._raw.append(self._head[head.body_at :])
        # An append in flight at this moment may be acknowledged without being sent here: it may
        # have been there when the server looked where the stream ends.
        self._count_before = self._appender.count + 1
        self.follows = True
        self._changed()

    def _parse(self, data: bytes) -> int:
        assert self._body is not None
        payload = self._body.feed(data)
        self._payload.append(payload)
        if self._body.ended:
            self.ended = True
            self._transport.close()
            self._changed()
        return len(payload)
