"""As much HTTP/1.1 and SSE as the load generator must read, and no more.

Two halves. The parsers take bytes and give values, without I/O, for the connections that are
measured; they trust nothing about how the bytes were cut on the way. `Client` is for what is not
measured (creating, filling, closing and reading back streams) and simply blocks.

Left out: answers without Content-Length or `Transfer-Encoding: chunked`, trailers, redirects,
compression (never asked for), TLS. A server that sends one of these gets a LoadError, not a guess.
"""

import http.client
import re
from collections.abc import Iterable, Iterator
from urllib.parse import urlsplit

import msgspec

from bench.measure import LoadError

__all__ = [
    "Address",
    "Answer",
    "ChunkedBody",
    "Client",
    "Head",
    "SizedBody",
    "SseBody",
    "bare_status",
    "body_of",
    "parse_answer",
    "parse_head",
]

HEAD_BYTES_MAX = 16_384
CHUNK_LINE_BYTES_MAX = 256
EVENT_BYTES_MAX = 1 << 20
TIMEOUT_SECONDS = 30.0
SHOWN_BYTES_MAX = 200

_STATUS_LINE = re.compile(rb"HTTP/1\.1 (\d\d\d)\b")
_NO_BODY = re.compile(rb"\r\ncontent-length: ?0\r\n", re.IGNORECASE)


class Address(msgspec.Struct, frozen=True):
    """Where a server is, and the path below which its streams are."""

    host: str
    port: int
    prefix: str

    @classmethod
    def of(cls, url: str) -> "Address":
        """Raises LoadError if it is not a URL of plain HTTP."""
        parts = urlsplit(url)
        if parts.scheme != "http" or parts.hostname is None:
            raise LoadError(f"not a URL that begins with http:// and a host: {url}")
        return cls(parts.hostname, parts.port or 80, parts.path)

    def head(self, method: str, name: str, *fields: str) -> bytes:
        """Head of a request to the stream `name`, with these header fields."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        first = f"{method} {self.prefix}/{name} HTTP/1.1"
        return "\r\n".join([first, f"Host: {host}:{self.port}", *fields, "", ""]).encode()


class Head(msgspec.Struct, frozen=True):
    """The head of an answer, and where in the bytes its body begins."""

    status: int
    fields: dict[bytes, bytes]
    body_at: int

    @property
    def body_bytes(self) -> int:
        """Length of the body. Raises LoadError if the answer does not say it."""
        if self.status in (204, 304):
            return 0
        try:
            return int(self.fields[b"content-length"])
        except (KeyError, ValueError):
            raise LoadError(f"an answer {self.status} without a valid Content-Length") from None


def parse_head(data: bytes) -> Head | None:
    """The head at the start of `data`, or None if its end has not come yet."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        if len(data) > HEAD_BYTES_MAX:
            raise LoadError(f"a response head of more than {HEAD_BYTES_MAX} bytes")
        return None
    first, *lines = data[:end].split(b"\r\n")
    match = _STATUS_LINE.match(first)
    if match is None:
        raise LoadError(f"not a status line: {first[:SHOWN_BYTES_MAX]!r}")
    fields = {}
    for line in lines:
        name, _, value = line.partition(b":")
        fields[name.lower()] = value.strip()
    return Head(int(match[1]), fields, end + 4)


class Answer(msgspec.Struct, frozen=True):
    """A whole answer."""

    head: Head
    body: bytes


def parse_answer(data: bytes) -> Answer | None:
    """The answer that `data` is, or None if its end has not come yet.

    Raises LoadError if more follows it: nobody here sends a second request before the answer.
    """
    head = parse_head(data)
    if head is None:
        return None
    rest = data[head.body_at :]
    body = body_of(head)
    pieces = body.feed(rest)
    return Answer(head, b"".join(pieces)) if body.ended else None


def bare_status(data: bytes) -> int | None:
    """Status of an answer that is whole and has no body, if that shows at a glance, else None.

    Nearly every answer to an append is such a one: `parse_answer` would give the same, slower.
    """
    if data.find(b"\r\n\r\n") != len(data) - 4:
        return None
    if data.startswith(b"HTTP/1.1 204"):
        return 204
    return 200 if data.startswith(b"HTTP/1.1 200") and _NO_BODY.search(data) else None


class SizedBody:
    """A body of a known length, piece by piece."""

    def __init__(self, size: int) -> None:
        self._left = size

    @property
    def ended(self) -> bool:
        """Whether the whole body has come."""
        return not self._left

    def feed(self, data: bytes | memoryview) -> list[memoryview]:
        """What `data` holds of the body. Raises LoadError if it holds more than that."""
        if len(data) > self._left:
            raise _surplus(data[self._left :])
        self._left -= len(data)
        return [memoryview(data)]


class ChunkedBody:
    """A chunked body, piece by piece; a chunk need not have come as a whole."""

    def __init__(self) -> None:
        self.ended = False
        """Whether the body ended as it should; a cut connection leaves it False."""
        self._line = b""
        """The beginning of a line whose end has not come yet."""
        self._left = 0
        """Bytes of the present chunk that have not come yet."""
        self._behind_chunk = False
        """Whether the present chunk's own line end has not come yet."""
        self._last = False
        """Whether the present chunk is the empty one that ends the body."""

    @property
    def at_rest(self) -> bool:
        """Whether nothing of a chunk is on its way."""
        return not self._line and not self._behind_chunk

    def feed(self, data: bytes | memoryview) -> list[memoryview]:
        """What `data` holds of the body. Raises LoadError if it holds more than that."""
        view, at, pieces = memoryview(data), 0, []
        while at < len(view):
            if self.ended:
                raise _surplus(view[at:])
            if self._left:
                piece = view[at : at + self._left]
                pieces.append(piece)
                self._left -= len(piece)
                at += len(piece)
                continue
            before = len(self._line)
            line = self._line + view[at : at + CHUNK_LINE_BYTES_MAX - before]
            end = line.find(b"\r\n")
            if end >= 0:
                self._next(line[:end])
                self._line = b""
                at += end + 2 - before
            elif len(line) < CHUNK_LINE_BYTES_MAX:
                self._line = line
                break
            else:
                raise LoadError(f"not a chunk: {line!r}")
        return pieces

    def _next(self, line: bytes) -> None:
        """Take the line before a chunk, or the empty one behind it."""
        if self._behind_chunk:
            if line:
                raise LoadError(f"a chunk is longer than it says: {line!r}")
            self._behind_chunk, self.ended = False, self._last
            return
        try:
            self._left = int(line.partition(b";")[0], 16)
        except ValueError:
            raise LoadError(f"not a chunk: {line!r}") from None
        self._behind_chunk, self._last = True, not self._left


def body_of(head: Head) -> SizedBody | ChunkedBody:
    """What reads the body that follows this head. Raises LoadError if its end cannot be told."""
    if head.fields.get(b"transfer-encoding") == b"chunked":
        return ChunkedBody()
    return SizedBody(head.body_bytes)


def _surplus(data: bytes | memoryview) -> LoadError:
    """Nobody here sends a second request before the first one's answer."""
    return LoadError(f"more than an answer: {bytes(data[:SHOWN_BYTES_MAX])!r}")


class SseBody:
    """Reads the chunked body of an SSE answer and gives the payload of its data events.

    `at_rest` means that nothing of a chunk or an event is left over. What `feed` gives then
    depends on its argument alone, so that a caller may remember it.
    """

    def __init__(self) -> None:
        self.at_rest = True
        self._chunks = ChunkedBody()
        self._text = b""

    @property
    def ended(self) -> bool:
        """Whether the body ended as it should; a cut connection leaves it False."""
        return self._chunks.ended

    def feed(self, data: bytes) -> bytes:
        """Payload of the data events that `data` completes, joined; empty if there is none."""
        text = b"".join([self._text, *self._chunks.feed(data)])
        *events, self._text = text.replace(b"\r\n", b"\n").split(b"\n\n")
        if len(self._text) > EVENT_BYTES_MAX:
            raise LoadError(f"an event of more than {EVENT_BYTES_MAX} bytes")
        self.at_rest = self._chunks.at_rest and not self._text
        return b"".join(map(_data_payload, events))


def _data_payload(event: bytes) -> bytes:
    """Payload of one event: its data lines, if it is a data event, otherwise nothing."""
    kind, data = b"", []
    for line in event.split(b"\n"):
        name, _, value = line.partition(b":")
        if name == b"event":
            kind = value.removeprefix(b" ")
        elif name == b"data":
            data.append(value.removeprefix(b" "))
    return b"\n".join(data) if kind == b"data" else b""


def _json_messages(body: bytes) -> bytes:
    """The messages of an array, byte by byte as they are, each followed by a comma."""
    try:
        messages = msgspec.json.decode(body, type=list[msgspec.Raw])
    except msgspec.DecodeError as error:
        raise LoadError(f"not an array of JSON: {error}: {body[:SHOWN_BYTES_MAX]!r}") from None
    return b"".join([part for message in messages for part in (message, b",")])


def _compare(name: str, bodies: Iterable[bytes], expected: bytes) -> None:
    """Compare what was read of the stream `name` with what was acknowledged."""
    at = 0
    for body in bodies:
        if not expected.startswith(body, at):
            at += _same_bytes(body, expected[at : at + len(body)])
            raise LoadError(f"stream {name} was read back wrong from byte {at} on")
        at += len(body)
    if at != len(expected):
        raise LoadError(f"stream {name} has {at} bytes, but {len(expected)} were acknowledged")


def _same_bytes(one: bytes, other: bytes) -> int:
    """Length of what both begin with."""
    for at, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return at
    return min(len(one), len(other))


class Client:
    """Creates, fills, closes and reads back streams, one request after the other, blocking."""

    def __init__(self, url: str) -> None:
        self.address = Address.of(url)
        self._connection: http.client.HTTPConnection | None = None

    def create(self, name: str, content_type: str) -> None:
        """Create the stream `name`, which must not exist yet."""
        self._request("PUT", name, {"Content-Type": content_type}, expected=(201,))

    def subscribe(self, subscription: str, pattern: str, wake_stream: str) -> None:
        """Make a pull-wake subscription to the streams that match `pattern`."""
        body = {"type": "pull-wake", "pattern": pattern, "wake_stream": wake_stream}
        self._request(
            "PUT",
            f"__ds/subscriptions/{subscription}",
            {"Content-Type": "application/json"},
            expected=(200, 201),
            body=msgspec.json.encode(body),
        )

    def close_stream(self, name: str) -> None:
        """Close the stream `name` without another message."""
        self._request("POST", name, {"Stream-Closed": "true"}, expected=(200, 204))

    def append(self, name: str, content_type: str, body: bytes) -> None:
        """Append `body` to the stream `name`."""
        self._request("POST", name, {"Content-Type": content_type}, expected=(200, 204), body=body)

    def fill(self, name: str, content_type: str, bodies: Iterable[bytes]) -> None:
        """Create the stream `name` and append `bodies` to it, one after the other."""
        self.create(name, content_type)
        for body in bodies:
            self.append(name, content_type, body)

    def repeat(self, name: str, fields: dict[str, str], body: bytes) -> None:
        """Repeat a producer's append, which must be taken for a duplicate."""
        self._request("POST", name, fields, expected=(204,), body=body)

    def read(self, name: str) -> Iterator[bytes]:
        """What the stream `name` holds from its start to its tail, answer by answer."""
        offset = "-1"
        while True:
            response, body = self._request("GET", f"{name}?offset={offset}", {}, expected=(200,))
            yield body
            if response.getheader("Stream-Up-To-Date") is not None:
                return
            offset = response.getheader("Stream-Next-Offset") or ""
            if not body or not offset:
                raise LoadError(f"reading stream {name} back does not get to its tail")

    def check(self, name: str, expected: bytes) -> None:
        """Read the stream `name` from its start to its tail and compare it with `expected`.

        Raises LoadError that says where they differ.
        """
        _compare(name, self.read(name), expected)

    def check_json(self, name: str, expected: bytes) -> None:
        """Do the same for a JSON stream; `expected` has each message followed by a comma."""
        _compare(name, map(_json_messages, self.read(name)), expected)

    def end(self) -> None:
        """Give up the connection; the next request opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _request(
        self,
        method: str,
        name: str,
        headers: dict[str, str],
        expected: tuple[int, ...],
        body: bytes | None = None,
    ) -> tuple[http.client.HTTPResponse, bytes]:
        if self._connection is None:
            self._connection = http.client.HTTPConnection(
                self.address.host, self.address.port, timeout=TIMEOUT_SECONDS
            )
        try:
            self._connection.request(method, f"{self.address.prefix}/{name}", body, headers)
            response = self._connection.getresponse()
            answered = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise LoadError(f"{method} {name}: {error!r}") from error
        if response.status not in expected:
            raise LoadError(
                f"{method} {name} was answered {response.status}: {answered[:SHOWN_BYTES_MAX]!r}"
            )
        return response, answered
