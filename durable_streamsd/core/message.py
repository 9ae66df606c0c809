"""Request and response values, and how a response looks on an HTTP/1.1 connection.

The core decides every status, header and body byte. What stays with a lane, because only it knows
the connection: `Date`, `Connection`, `Transfer-Encoding`, and when to write.

A `Response` holds its headers as *blocks*: byte strings of one or more complete lines
(`b"Name: value\\r\\n"`). The express lane joins them as they are (`Response.encode`, one join, no
parsing); a lane on top of an HTTP library takes them apart again with `Response.fields`.

Two values are made to be shared between thousands of waiting readers: `SharedResponse` (a
long-poll answer) and `Frame` (an SSE write). Each remembers its encoding, so that every waiter
is handed the same bytes object, and a frame keeps no other form of it.

Left out: parsing of HTTP (the lanes), meaning of headers (`headers`, `query`, `paths`).
"""

from collections.abc import Iterable
from http import HTTPStatus
from typing import TYPE_CHECKING

from storage.state import Batch

if TYPE_CHECKING:
    from durable_streamsd.auth.caller import Caller

__all__ = ["STATUS_LINES", "Frame", "Request", "Response", "SharedResponse"]

STATUS_LINES: dict[int, bytes] = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode("ascii")
    for status in HTTPStatus
}


class Request:
    """One request with its whole body, as a lane hands it over.

    `path` and `query` are the raw bytes of the target, still percent-encoded: `path` begins with
    `/`, `query` lacks the `?` (a target without a query and one with an empty query look alike).
    `headers` has lower-case names and values without surrounding white space; the values of a
    repeated header are joined with `b", "`. `scheme` is `"http"` or `"https"`, `peer` is for logs.
    `caller` is who sends it, once that was found out; None where nobody is asked.
    """

    __slots__ = ("body", "caller", "headers", "method", "path", "peer", "query", "scheme")

    def __init__(
        self,
        method: str,
        path: bytes,
        query: bytes,
        headers: dict[bytes, bytes],
        body: bytes = b"",
        scheme: str = "http",
        peer: str = "",
    ) -> None:
        self.method = method
        self.path = path
        self.query = query
        self.headers = headers
        self.body = body
        self.scheme = scheme
        self.peer = peer
        self.caller: Caller | None = None

    def __repr__(self) -> str:
        # Without the query, as a token may be in it.
        return f"<Request {self.method} {self.path!r}, {len(self.body)} bytes>"


class Response:
    """One answer; immutable by convention, because the same object may go to many connections.

    `headers` are blocks of complete header lines, without the lane's own (see the module).
    `body` is `None` when the answer must have neither body nor `Content-Length`: 204, 304, every
    answer to HEAD, and the head of an event stream (`effects.StartStream`). An empty `bytes` is a
    body of length 0. `rests_on` is the batch that must be durable before the answer is told, where
    the core leaves that wait to the lane.
    """

    __slots__ = ("body", "headers", "rests_on", "status")

    def __init__(
        self,
        status: int,
        headers: Iterable[bytes],
        body: bytes | None = None,
        rests_on: Batch | None = None,
    ) -> None:
        self.status = status
        self.headers = tuple(headers)
        self.body = body
        self.rests_on = rests_on

    def for_method(self, method: str) -> "Response":
        """The answer as a request with this method wants it: without a body for HEAD."""
        return Response(self.status, self.headers) if method == "HEAD" else self

    def encode(self, lane_lines: bytes) -> bytes:
        """The whole answer as HTTP/1.1 bytes, with the lane's own header lines put in."""
        body = self.body
        if body is None:
            # A list, because Python makes one to begin with: a tuple costs 0.02 µs more.
            return b"".join([STATUS_LINES[self.status], *self.headers, lane_lines, b"\r\n"])
        return b"".join((*self._head(body, lane_lines), body))

    def encode_head(self, lane_lines: bytes) -> bytes:
        """Only the head, blank line included: for bodies too large to be worth a copy, and for SSE.

        With a `body` of `None` the result is that of `encode`.
        """
        if self.body is None:
            return self.encode(lane_lines)
        return b"".join(self._head(self.body, lane_lines))

    def fields(self) -> list[tuple[str, str]]:
        """The header fields one by one, in order, for a lane that writes through a library."""
        lines = b"".join(self.headers).decode("latin-1").split("\r\n")
        return [(name, value) for name, _, value in (line.partition(": ") for line in lines[:-1])]

    def _head(self, body: bytes, lane_lines: bytes) -> tuple[bytes, ...]:
        return (
            STATUS_LINES[self.status],
            *self.headers,
            b"Content-Length: %d\r\n" % len(body),
            lane_lines,
            b"\r\n",
        )

    def __repr__(self) -> str:
        size = "no body" if self.body is None else f"{len(self.body)} bytes"
        return f"<{type(self).__name__} {self.status}, {size}>"


class SharedResponse(Response):
    """An answer that many waiting readers get at once; it remembers its last encoding.

    All waiters of one wake are answered within one callback, with the same `lane_lines`, so that
    remembering one encoding is enough.
    """

    __slots__ = ("_encoded", "_encoded_with")

    def __init__(self, status: int, headers: Iterable[bytes], body: bytes | None = None) -> None:
        super().__init__(status, headers, body)
        self._encoded = b""
        self._encoded_with: bytes | None = None

    def encode(self, lane_lines: bytes) -> bytes:
        """Like `Response.encode`; the same bytes object as long as `lane_lines` stay the same."""
        if lane_lines != self._encoded_with:
            self._encoded = super().encode(lane_lines)
            self._encoded_with = lane_lines
        return self._encoded


class Frame:
    """One write to an event stream: whole SSE events, never a part of one.

    `chunked` is it as one chunk of an HTTP/1.1 body; the pieces are joined into that and nothing
    else is kept, because a frame may be as large as the largest message.
    """

    __slots__ = ("chunked", "size")

    def __init__(self, *pieces: bytes) -> None:
        self.size = sum(map(len, pieces))
        if not self.size:
            raise ValueError("an empty chunk would end the response")
        self.chunked = b"".join((b"%x\r\n" % self.size, *pieces, b"\r\n"))

    @property
    def plain(self) -> memoryview:
        """The events alone, for a body without the coding; no copy."""
        return memoryview(self.chunked)[-2 - self.size : -2]

    @property
    def data(self) -> bytes:
        """A copy of the events."""
        return bytes(self.plain)

    def __repr__(self) -> str:
        return f"<Frame {self.size} bytes>"
