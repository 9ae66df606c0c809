"""A connection that reads a stream from its start to its tail, as often as it is asked to.

Every byte is compared as it comes, with what the stream is known to hold. To be cheap, it is
received into a buffer that is used again and again, and compared where it lies.
"""

import asyncio
import time
from collections.abc import Callable
from typing import cast

from bench.measure import LoadError
from bench.wire import SHOWN_BYTES_MAX, Address, ChunkedBody, Head, SizedBody, body_of, parse_head

__all__ = ["CatchUpReader"]

BUFFER_BYTES = 256 << 10
"""As much as a core's cache holds beside the bytes it is compared with."""


class CatchUpReader(asyncio.BufferedProtocol):
    """Reads the stream `name`, following `Stream-Next-Offset` until an answer is up to date.

    Calls `has_read` with itself and the latency in nanoseconds, from asking for the first byte to
    having the last one. Raises LoadError for a wrong byte, or for one too few or too many.
    """

    def __init__(
        self,
        address: Address,
        name: str,
        expected: bytes,
        has_read: "Callable[[CatchUpReader, int], None]",
        is_stream: bool = True,
    ) -> None:
        """`is_stream=False` reads a plain file, which is one answer without the protocol's fields.

        That is a server's speed without the protocol.
        """
        self.bytes_read = 0
        """In all reads together."""
        self.begun_ns = 0
        """When the last read began, by `time.perf_counter_ns`."""
        self.is_reading = False
        self._address = address
        self._name = name
        self._expected = expected
        self._has_read = has_read
        self._is_stream = is_stream
        self._transport: asyncio.Transport | None = None
        self._view = memoryview(bytearray(BUFFER_BYTES))
        self._at = 0
        """How much of the stream was read."""
        self._pending = b""
        self._head: Head | None = None
        self._body: SizedBody | ChunkedBody | None = None
        self._ending = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._ending:
            raise LoadError(f"the connection that reads {self._name} was cut: {exc}")

    def end(self) -> None:
        """Close the connection."""
        self._ending = True
        if self._transport is not None:
            self._transport.close()

    def read(self) -> None:
        """Begin to read the stream. The last read must have ended."""
        assert not self.is_reading
        self.is_reading = True
        self._at = 0
        self.begun_ns = time.perf_counter_ns()
        self._ask("-1")

    def get_buffer(self, _: int) -> memoryview:
        return self._view

    def buffer_updated(self, size: int) -> None:
        data = self._view[:size]
        if not self.is_reading:
            raise LoadError(f"an answer that nobody asked for: {bytes(data[:SHOWN_BYTES_MAX])!r}")
        if self._body is None:
            self._pending += data
            self._head = parse_head(self._pending)
            if self._head is None:
                return
            if self._head.status != 200:
                raise LoadError(f"reading {self._name} was answered {self._pending!r}")
            self._body = body_of(self._head)
            data = memoryview(self._pending)[self._head.body_at :]
            self._pending = b""
        for piece in self._body.feed(data):
            self._compare(piece)
        if self._body.ended:
            assert self._head is not None
            self._body = None
            self._answered(self._head)

    def _ask(self, offset: str) -> None:
        assert self._transport is not None
        query = f"?offset={offset}" if self._is_stream else ""
        self._transport.write(self._address.head("GET", self._name + query))

    def _compare(self, piece: memoryview) -> None:
        if not self._expected.startswith(piece, self._at):
            raise LoadError(f"{self._name} was read wrong within {len(piece)} bytes at {self._at}")
        self._at += len(piece)
        self.bytes_read += len(piece)

    def _answered(self, head: Head) -> None:
        if self._is_stream and b"stream-up-to-date" not in head.fields:
            offset = head.fields.get(b"stream-next-offset")
            if offset is None or self._at == len(self._expected):
                raise LoadError(f"reading {self._name} does not get to its tail at {self._at}")
            self._ask(offset.decode())
            return
        if self._at != len(self._expected):
            raise LoadError(
                f"{self._name} was read to byte {self._at}, when it has {len(self._expected)}"
            )
        self.is_reading = False
        self._has_read(self, time.perf_counter_ns() - self.begun_ns)
