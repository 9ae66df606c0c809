"""A client's TLS over a bare socket, which can say that it sends no more and go on listening.

`ssl.SSLSocket` cannot: its `shutdown` forgets the session.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from typing import Any

RECORD_BYTES = 16_384


class TlsSocket:
    """As much of a socket as tests use. The handshake is done when it is made."""

    def __init__(self, plain: socket.socket, context: ssl.SSLContext, name: str) -> None:
        self.plain = plain
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self.ssl = context.wrap_bio(self._incoming, self._outgoing, server_hostname=name)
        while True:
            try:
                self.ssl.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
                self._feed()
            except ssl.SSLEOFError:
                raise ConnectionResetError("the server ended the handshake") from None
            else:
                break
        self._flush()

    def sendall(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self.ssl.write(view[:RECORD_BYTES]) :]
            self._flush()

    def recv(self, size: int) -> bytes:
        """Empty when the server has ended the session in order.

        Raises ConnectionResetError where it was cut.
        """
        while True:
            try:
                return self.ssl.read(size)
            except ssl.SSLWantReadError:
                self._feed()
            except ssl.SSLZeroReturnError:
                return b""
            except ssl.SSLEOFError:
                raise ConnectionResetError("the connection ended without a close_notify") from None

    def shutdown(self, _how: int) -> None:
        """Send a close_notify, and the end of the stream."""
        with contextlib.suppress(ssl.SSLError):  # the server's own is not here yet
            self.ssl.unwrap()
        with contextlib.suppress(OSError):  # the server may have ended everything before
            self._flush()
            self.plain.shutdown(socket.SHUT_WR)

    def setsockopt(self, *arguments: Any) -> None:
        self.plain.setsockopt(*arguments)

    def getsockname(self) -> Any:
        return self.plain.getsockname()

    def settimeout(self, seconds: float) -> None:
        self.plain.settimeout(seconds)

    def fileno(self) -> int:
        return self.plain.fileno()

    def close(self) -> None:
        self.plain.close()

    def _flush(self) -> None:
        data = self._outgoing.read()
        if data:
            self.plain.sendall(data)

    def _feed(self) -> None:
        data = self.plain.recv(1 << 20)
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()
