"""As much HTTP/1.1 and SSE as the load generator must read, and no more.

Two halves. The parsers take bytes and give values, without I/O, for the connections that are
measured; they trust nothing about how the bytes were cut on the way. `Client` is for what is not
measured (creating, closing and reading back streams) and simply blocks.

Left out: answers without Content-Length or `Transfer-Encoding: chunked`, trailers, redirects,
compression (never asked for), TLS. A server that sends one of these gets a LoadError, not a guess.
"""

import http.client
import re
from urllib.parse import urlsplit

import msgspec

from bench.measure import LoadError

__all__ = ["Address", "Client", "Head", "SseBody", "parse_head"]

HEAD_BYTES_MAX = 16_384
EVENT_BYTES_MAX = 1 << 20
TIMEOUT_SECONDS = 30.0
SHOWN_BYTES_MAX = 200

_STATUS_LINE = re.compile(rb"HTTP/1\.1 (\d\d\d)\b")


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


class SseBody:
    """Reads the chunked body of an SSE answer and gives the payload of its data events.

    `at_rest` means that nothing of a chunk or an event is left over. What `feed` gives then
    depends on its argument alone, so that a caller may remember it.
    """

    def __init__(self) -> None:
        self.at_rest = True
        self.ended = False
        """The chunked body ended as it should; a cut connection leaves it False."""
        self._raw = b""
        self._text = b""

    def feed(self, data: bytes) -> bytes:
        """Payload of the data events that `data` completes, joined; empty if there is none."""
        self._raw += data
        self._unchunk()
        *events, self._text = self._text.replace(b"\r\n", b"\n").split(b"\n\n")
        if len(self._raw) > EVENT_BYTES_MAX or len(self._text) > EVENT_BYTES_MAX:
            raise LoadError(f"a chunk or event of more than {EVENT_BYTES_MAX} bytes")
        self.at_rest = not self._raw and not self._text
        return b"".join(map(_data_payload, events))

    def _unchunk(self) -> None:
        """Move whole chunks from `_raw` to `_text`."""
        at = 0
        while not self.ended:
            line_end = self._raw.find(b"\r\n", at)
            if line_end < 0:
                break
            try:
                size = int(self._raw[at:line_end].partition(b";")[0], 16)
            except ValueError:
                raise LoadError(f"not a chunk: {self._raw[at:][:SHOWN_BYTES_MAX]!r}") from None
            end = line_end + 2 + size
            if len(self._raw) < end + 2:
                break
            if self._raw[end : end + 2] != b"\r\n":
                raise LoadError("a chunk is longer than it says")
            self._text += self._raw[line_end + 2 : end]
            self.ended = size == 0
            at = end + 2
        self._raw = self._raw[at:]


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


def _same_bytes(one: bytes, other: bytes) -> int:
    """Length of what both begin with."""
    for at, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return at
    return min(len(one), len(other))


class Client:
    """Creates, closes and reads back streams, one request after the other, blocking."""

    def __init__(self, url: str) -> None:
        self.address = Address.of(url)
        self._connection: http.client.HTTPConnection | None = None

    def create(self, name: str, content_type: str) -> None:
        """Create the stream `name`, which must not exist yet."""
        self._request("PUT", name, {"Content-Type": content_type}, expected=(201,))

    def close_stream(self, name: str) -> None:
        """Close the stream `name` without another message."""
        self._request("POST", name, {"Stream-Closed": "true"}, expected=(200, 204))

    def check(self, name: str, expected: bytes) -> None:
        """Read the stream `name` from its start to its tail and compare it with `expected`.

        Raises LoadError that says where they differ.
        """
        offset, at = "-1", 0
        while True:
            response, body = self._request("GET", f"{name}?offset={offset}", {}, expected=(200,))
            if body != expected[at : at + len(body)]:
                at += _same_bytes(body, expected[at : at + len(body)])
                raise LoadError(f"stream {name} was read back wrong from byte {at} on")
            at += len(body)
            if response.getheader("Stream-Up-To-Date") is not None:
                break
            offset = response.getheader("Stream-Next-Offset") or ""
            if not body or not offset:
                raise LoadError(f"reading stream {name} back does not get past byte {at}")
        if at != len(expected):
            raise LoadError(f"stream {name} has {at} bytes, but {len(expected)} were acknowledged")

    def end(self) -> None:
        """Give up the connection; the next request opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _request(
        self, method: str, name: str, headers: dict[str, str], expected: tuple[int, ...]
    ) -> tuple[http.client.HTTPResponse, bytes]:
        if self._connection is None:
            self._connection = http.client.HTTPConnection(
                self.address.host, self.address.port, timeout=TIMEOUT_SECONDS
            )
        try:
            self._connection.request(method, f"{self.address.prefix}/{name}", headers=headers)
            response = self._connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise LoadError(f"{method} {name}: {error!r}") from error
        if response.status not in expected:
            raise LoadError(
                f"{method} {name} was answered {response.status}: {body[:SHOWN_BYTES_MAX]!r}"
            )
        return response, body
