"""The body of a request, taken piece by piece from what a connection received.

Two kinds: of known length (`SizedBody`) and chunked (`ChunkedBody`). `feed` takes what belongs to
the body and says where it ended, so that the next request of the connection begins right there.
A body above its limit is still taken to its end, but not kept: whoever closes a connection while
the client sends makes it lose the answer.

The chunked coding is read strictly (RFC 9112, 7.1): lines end with CRLF and with nothing else,
sizes are hexadecimal digits, extensions and trailers are checked, counted and dropped. What two
servers may read differently is how requests are smuggled.

Left out: when a body is refused, and how long it may take (`connection`).
"""

import re
from collections.abc import Callable

from durable_streamsd.core.problems import Code
from durable_streamsd.express.head import CHUNKED, Refused

__all__ = ["Body", "ChunkedBody", "SizedBody", "body_of"]

LINE_BYTES_MAX = 4_096
"""Of a chunk's size line with its extensions, and of one trailer field."""
TRAILER_BYTES_MAX = 16_384
EXCESS_BYTES_MAX = 16_384
"""Of size lines that carry next to nothing: tiny chunks cost more than they bring."""

_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?")
_TRAILER = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t\x20-\x7e\x80-\xff]*")


class Body:
    """What has arrived so far. `received` counts every byte, also those that were not kept.

    `reserve_bytes` is what to set aside for it, should it turn out not to be small.
    """

    __slots__ = ("data", "done", "limit_bytes", "received", "reserve_bytes", "too_large")

    def __init__(self, limit_bytes: int) -> None:
        self.data = bytearray()
        self.done = False
        self.limit_bytes = limit_bytes
        self.reserve_bytes = limit_bytes
        self.received = 0
        self.too_large = False

    def feed(self, data: bytes, start: int) -> int:
        """Take what belongs to the body from `data[start:]`; returns where that ends.

        Raises Refused.
        """
        raise NotImplementedError

    def _keep(self, data: bytes, start: int, end: int) -> None:
        if not self.too_large:
            if len(self.data) + end - start > self.limit_bytes:
                self.too_large = True
                self.data = bytearray()
            else:
                self.data += memoryview(data)[start:end]


class SizedBody(Body):
    """A body of `length` bytes."""

    __slots__ = ("length",)

    def __init__(self, length: int, limit_bytes: int) -> None:
        super().__init__(limit_bytes)
        self.length = length
        self.reserve_bytes = length
        self.too_large = length > limit_bytes

    def feed(self, data: bytes, start: int) -> int:
        end = min(start + self.length - self.received, len(data))
        self._keep(data, start, end)
        self.received += end - start
        self.done = self.received == self.length
        return end


class ChunkedBody(Body):
    """A body in chunks: whenever `_left` is 0 a line is due, which `_on_line` judges."""

    __slots__ = ("_excess", "_left", "_line", "_on_line", "_trailer_bytes")

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(limit_bytes)
        self._left = 0
        self._line = b""
        # Functions, not methods: a bound method in here would be a cycle that keeps the body.
        self._on_line: Callable[[ChunkedBody, bytes], None] = ChunkedBody._size_line
        self._excess = 0
        self._trailer_bytes = 0

    def feed(self, data: bytes, start: int) -> int:
        position = start
        while position < len(data) and not self.done:
            if self._left:
                end = min(position + self._left, len(data))
                self._keep(data, position, end)
                self._left -= end - position
            else:
                end = data.find(b"\n", position) + 1 or len(data)
                self._take_line(data[position:end])
            position = end
        self.received += position - start
        return position

    def _take_line(self, piece: bytes) -> None:
        line = self._line + piece
        if len(line) > LINE_BYTES_MAX:
            raise Refused(Code.BAD_REQUEST)
        if not line.endswith(b"\n"):
            self._line = line
            return
        self._line = b""
        if not line.endswith(b"\r\n"):
            raise Refused(Code.BAD_REQUEST)
        self._on_line(self, line[:-2])

    def _size_line(self, line: bytes) -> None:
        match = _SIZE_LINE.fullmatch(line)
        if match is None:
            raise Refused(Code.BAD_REQUEST)
        self._left = size = int(match[1], 16)
        self._excess = max(0, self._excess + len(line) - 16 - 2 * size)
        if self._excess > EXCESS_BYTES_MAX:
            raise Refused(Code.BAD_REQUEST)
        self._on_line = ChunkedBody._end_of_chunk if size else ChunkedBody._trailer

    def _end_of_chunk(self, line: bytes) -> None:
        if line:
            raise Refused(Code.BAD_REQUEST)
        self._on_line = ChunkedBody._size_line

    def _trailer(self, line: bytes) -> None:
        self._trailer_bytes += len(line)
        if not line:
            self.done = True
        elif self._trailer_bytes > TRAILER_BYTES_MAX or not _TRAILER.fullmatch(line):
            raise Refused(Code.BAD_REQUEST)


def body_of(length: int, limit_bytes: int) -> Body:
    """A body of that length, which may be CHUNKED; more than `limit_bytes` are not kept."""
    return ChunkedBody(limit_bytes) if length == CHUNKED else SizedBody(length, limit_bytes)
