"""HTTP/1.1 over a bare socket: requests byte by byte, answers taken apart without a library.

A client library would refuse to send most of what a server has to survive.
"""

from __future__ import annotations

import select
import socket
import ssl
import struct
from types import TracebackType
from typing import NamedTuple
from urllib.parse import urlsplit

from authority import careless_context
from tls_socket import TlsSocket

PATIENCE_S = 20.0
"""After this a test fails instead of hanging; nothing is expected to take this long."""


class Answer(NamedTuple):
    """One response; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


class Closed(Exception):
    """The server ended the connection where an answer was expected."""


class RawClient:
    """One connection; `source` is the address that it comes from.

    An https URL gets TLS, by default with a client that believes every certificate.
    """

    socket: socket.socket | TlsSocket

    def __init__(
        self, url: str, context: ssl.SSLContext | None = None, source: str | None = None
    ) -> None:
        address = urlsplit(url)
        assert address.hostname is not None
        assert address.port is not None
        self.host = address.netloc
        plain = socket.create_connection(
            (address.hostname, address.port), PATIENCE_S, None if source is None else (source, 0)
        )
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = plain
        if address.scheme == "https":
            try:
                self.socket = TlsSocket(plain, context or careless_context(), address.hostname)
            except BaseException:
                plain.close()
                raise
        self.received = b""

    def __enter__(self) -> RawClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Send all of `data`. A server that has closed already is no error: it may answer early."""
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return

    def request(self, method: str, path: str, *lines: str, body: bytes = b"") -> Answer:
        """Send a well-formed request and return its answer."""
        self.send(encode(method, path, *lines, body=body))
        return self.answer(head_only=method == "HEAD")

    def answer(self, head_only: bool = False) -> Answer:
        """The next answer. Raises Closed when the connection ends before or within it."""
        head = self.until(b"\r\n\r\n")
        status_line, *lines = head[:-4].decode("latin-1").split("\r\n")
        version, status, _ = status_line.split(" ", 2)
        assert version.startswith("HTTP/")
        headers: dict[str, str] = {}
        for line in lines:
            name, _, value = line.partition(": ")
            name = name.lower()
            if name == "vary" and name in headers:  # a list: lines add up (RFC 9110, 5.3)
                value = f"{headers.pop(name)}, {value}"
            assert name not in headers, f"{name} is there twice"
            headers[name] = value
        code = int(status)
        if head_only or code in (204, 304) or code < 200:
            assert "content-length" not in headers or head_only
            return Answer(code, headers, b"")
        if headers.get("transfer-encoding") == "chunked":
            return Answer(code, headers, b"".join(iter(self.chunk, b"")))
        if "content-length" in headers:
            return Answer(code, headers, self.exactly(int(headers["content-length"])))
        return Answer(code, headers, self.rest())

    def head(self) -> bytes:
        """The head of an answer whose body the test takes apart itself."""
        return self.until(b"\r\n\r\n")

    def chunk(self) -> bytes:
        """The next chunk of a chunked body; empty at its end."""
        size = int(self.until(b"\r\n"), 16)
        data = self.exactly(size)
        assert self.exactly(2) == b"\r\n"
        return data

    def until(self, mark: bytes) -> bytes:
        """What comes up to and with `mark`."""
        while mark not in self.received:
            self._receive()
        end = self.received.index(mark) + len(mark)
        data, self.received = self.received[:end], self.received[end:]
        return data

    def exactly(self, size: int) -> bytes:
        """The next `size` bytes."""
        pieces = [self.received]
        have = len(self.received)
        while have < size:
            self.received = b""
            self._receive()
            pieces.append(self.received)
            have += len(self.received)
        data = b"".join(pieces)
        self.received = data[size:]
        return data[:size]

    def rest(self) -> bytes:
        """All that comes until the server ends the connection."""
        while True:
            try:
                self._receive()
            except Closed:
                data, self.received = self.received, b""
                return data

    def closed(self) -> bool:
        """Whether the server ends the connection, without another byte."""
        return self.rest() == b""

    def end(self) -> None:
        """Send nothing more, but go on listening."""
        self.socket.shutdown(socket.SHUT_WR)

    def vanish(self) -> None:
        """Reset the connection, as a machine does that lost its memory of it."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def hung_up(self) -> bool:
        """Wait, without reading, until the other side has given up the connection."""
        poll = select.poll()
        poll.register(self.socket, select.POLLHUP | select.POLLRDHUP | select.POLLERR)
        return bool(poll.poll(PATIENCE_S * 1_000))

    def _receive(self) -> None:
        try:
            data = self.socket.recv(1 << 20)
        except ConnectionResetError:
            data = b""
        if not data:
            raise Closed(f"the connection ended after {self.received[-200:]!r}")
        self.received += data


def encode(method: str, path: str, *lines: str, body: bytes = b"") -> bytes:
    """A well-formed request; `Host` is added, and `Content-Length` where there is a body."""
    head = [f"{method} {path} HTTP/1.1", "Host: test", *lines]
    if body or method in ("POST", "PUT"):
        head.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*head, "", ""]).encode("latin-1") + body
