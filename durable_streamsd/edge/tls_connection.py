"""TLS in front of either lane: a protocol to the socket, a transport to the lane's protocol.

    HANDSHAKE --> OPEN --close_notify sent--> ENDED
        |
        +-- plain HTTP, or no handshake in time --> ENDED

The asyncio of uvloop has TLS too. It was not used, because it
- hides the socket's buffer behind one of its own that is always empty: an unsent large answer would
  count as taken (`services.Answers`), and a reader that takes nothing as one that takes all
- counts a connection only after the handshake, so that handshakes have no limit
- ends a connection that its client half closes, where the answer is still owed
- cannot tell plain HTTP that this is the wrong port

Invariants:
- nothing is buffered here beyond one receive: what is encrypted goes to the socket at once, whose
  buffer and marks are the lane's own; while the lane pauses, the socket is not read either, nor
  while a client that has TLS itself answer it takes none of that
- in ENDED nothing is decrypted: received bytes are only counted by the lane, which lingers
- the handshake's deadline is this object's; everything later is the lane's

Left out: renegotiation and compression (off), and what a client's certificate says beyond being
signed by an authority that is trusted.
"""

import asyncio
import contextlib
import logging
import ssl
from collections.abc import Callable
from typing import Any, Final, cast

from durable_streamsd.core.problems import Code
from durable_streamsd.edge.certificates import Certificates
from durable_streamsd.edge.connections import Guest
from durable_streamsd.edge.tls_transport import TlsTransport
from durable_streamsd.services import Services, address_of, host_of
from durable_streamsd.wheel import Timed, ticks_of

__all__ = ["TlsFactory"]

HANDSHAKE: Final = 0
OPEN: Final = 1
ENDED: Final = 2

RECORD_BYTES = 16_384
"""Of plain text in one TLS record at most; a call of OpenSSL reads one."""
RECEIVE_BYTES_MAX = 262_144
"""Decrypted at once before the lane's protocol sees it; one more record may pass it."""
SEND_BYTES = 262_144
"""Encrypted at once before the socket gets it."""
HANDSHAKE_RECORD = 0x16

log = logging.getLogger(__name__)


class TlsFactory:
    """Makes connections; a listening socket's protocol factory. `inner` makes what they carry:
    protocols that are guests (`connections.Guest`)."""

    def __init__(
        self,
        services: Services,
        certificates: Certificates,
        inner: Callable[[], asyncio.Protocol],
    ) -> None:
        settings = services.settings
        self.services = services
        self.certificates = certificates
        self.inner = inner
        self.handshake_ticks = ticks_of(settings.tls_handshake_timeout_s)
        self.linger_ticks = ticks_of(settings.linger_timeout_s)

    def __call__(self) -> "TlsConnection":
        return TlsConnection(self)


class TlsConnection(Timed, asyncio.Protocol):
    """See the module; a guest itself until the handshake is done."""

    __slots__ = (
        "_begun",
        "_choked",
        "_cut",
        "_decrypting",
        "_eof",
        "_factory",
        "_incoming",
        "_outgoing",
        "_phase",
        "_reading_paused",
        "_ssl",
        "_told_eof",
        "_writing_paused",
        "protocol",
        "socket",
    )

    socket: asyncio.Transport
    _ssl: ssl.SSLObject

    def __init__(self, factory: TlsFactory) -> None:
        super().__init__()
        self._factory = factory
        self._phase = HANDSHAKE
        self._begun = False
        self._reading_paused = False
        self._writing_paused = False
        self._choked = False  # not read until the client takes what it asked for
        self._decrypting = False
        self._cut = False  # the socket brings no more
        self._eof = False  # the client sends no more, and all before was taken
        self._told_eof = False
        self.protocol: asyncio.Protocol | None = None
        """What the connection carries; None before the handshake is done and after the end."""

    # ---- a guest

    @property
    def stranger(self) -> bool:
        return self._phase == HANDSHAKE

    @property
    def idle(self) -> bool:
        return not self.socket.is_closing()  # also when it was told that it speaks no TLS

    def evict(self) -> None:
        self.abort()

    def drain(self) -> None:
        self.abort()

    def abort(self) -> None:
        self._phase = ENDED
        self.socket.abort()

    # ---- the socket calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        services = self._factory.services
        self.socket = cast(asyncio.Transport, transport)
        refusal = services.connections.enter(self, host_of(transport))
        if refusal is not None:
            services.context.on_problem(refusal)
            self.abort()  # an answer would cost what a handshake does
            return
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        context = self._factory.certificates.context
        self._ssl = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        services.wheel.arm(self, self._factory.handshake_ticks)

    def data_received(self, data: bytes) -> None:
        if self._phase == OPEN:
            self._incoming.write(data)
            self.decrypt()
        elif self._phase == HANDSHAKE:
            if not self._begun and data[0] != HANDSHAKE_RECORD:
                self._refuse_plain(data)
                return
            self._begun = True
            self._incoming.write(data)
            self._shake_hands()
        elif self.protocol is not None:
            self.protocol.data_received(data)  # it lingers, and looks at the length alone

    def eof_received(self) -> bool:
        if self._phase == HANDSHAKE:
            return False
        if self._phase == ENDED:
            return self.protocol is not None and bool(self.protocol.eof_received())
        # Without a close_notify it may be somebody in between who cut it. What was asked as a
        # whole was asked all the same, and what is not whole never counts. OpenSSL is not told:
        # it would take this for an error, after which nothing can be answered.
        self._cut = True
        self.decrypt()
        return True

    def pause_writing(self) -> None:
        self._writing_paused = True
        if self.protocol is not None:
            self.protocol.pause_writing()

    def resume_writing(self) -> None:
        self._writing_paused = False
        if self._choked:
            self._choked = False
            if not self._reading_paused:
                self.resume_reading()
        if self.protocol is not None:
            self.protocol.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._phase = ENDED
        services = self._factory.services
        services.wheel.forget(self)
        protocol, self.protocol = self.protocol, None  # or they would hold each other
        if protocol is not None:
            protocol.connection_lost(exc)
        else:
            services.connections.leave(self)

    def on_deadline(self) -> None:
        if self._phase == HANDSHAKE:
            self._factory.services.counts.refusals.hit("tls_handshake_timeout_s")
        self.abort()

    # ---- the handshake

    def _shake_hands(self) -> None:
        try:
            self._ssl.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return
        except ssl.SSLError as error:
            self._flush()  # the alert that says why
            peer = address_of(self.socket)
            log.debug("TLS handshake with %s failed: %s", peer, error.reason or error)
            self._phase = ENDED
            self.socket.close()
            return
        self._flush()
        services = self._factory.services
        services.wheel.forget(self)
        if services.context.draining:
            self.abort()
            return
        self._phase = OPEN
        self.protocol = protocol = self._factory.inner()
        services.connections.replace(self, cast(Guest, protocol))
        protocol.connection_made(TlsTransport(self))
        self.decrypt()

    def _refuse_plain(self, data: bytes) -> None:
        """Tell a client that speaks no TLS, in its own words, if it seems to speak HTTP."""
        self._phase = ENDED
        services = self._factory.services
        if not data[:1].isalpha():
            self.socket.close()
            return
        problem = services.context.problem(Code.TLS_REQUIRED)
        self.socket.write(problem.encode(services.clock.last))
        self.socket.write_eof()
        services.wheel.arm(self, self._factory.linger_ticks)

    # ---- receiving

    def decrypt(self) -> None:
        """Give the lane's protocol what was received, unless it pauses."""
        if self._decrypting:
            return  # it came from within what is called below, which goes on
        self._decrypting = True
        try:
            while not (self._reading_paused or self._choked) and self._phase == OPEN:
                data = self._take()
                if data and self.protocol is not None:
                    self.protocol.data_received(data)
                elif self._eof and not self._told_eof:
                    self._told_eof = True
                    if self.protocol is not None and not self.protocol.eof_received():
                        self.close()
                else:
                    break
        finally:
            self._decrypting = False

    def _take(self) -> bytes:
        """Decrypt what is there; empty if that is nothing yet."""
        if self._eof:
            return b""
        pieces = []
        size = 0
        try:
            while size < RECEIVE_BYTES_MAX:
                piece = self._ssl.read(RECORD_BYTES)
                if not piece:
                    self._eof = True  # a close_notify
                    break
                pieces.append(piece)
                size += len(piece)
                if not self._incoming.pending and not self._ssl.pending():
                    break
        except ssl.SSLWantReadError:
            self._eof = self._cut
        except ssl.SSLZeroReturnError:
            self._eof = True
        except ssl.SSLError as error:
            self._broken(error)
            return b""
        if self._outgoing.pending:
            self._flush()  # TLS 1.3 answers a change of keys
            if self._writing_paused:
                # Whoever asks for answers and takes none would have them pile up here.
                self._choked = True
                self.socket.pause_reading()
        return b"".join(pieces)

    def _broken(self, error: ssl.SSLError) -> None:
        """What was received is no TLS, or was tampered with."""
        peer = address_of(self.socket)
        log.debug("TLS with %s failed: %s", peer, error.reason or error)
        self._flush()
        self.abort()

    def pause_reading(self) -> None:
        self._reading_paused = True
        self.socket.pause_reading()

    def resume_reading(self) -> None:
        self._reading_paused = False
        if self._choked:
            return
        self.socket.resume_reading()
        # Not from within the lane's own call; there may be more here than the socket will bring.
        asyncio.get_running_loop().call_soon(self.decrypt)

    # ---- sending

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._phase != OPEN or self.socket.is_closing() or not data:
            return
        try:
            sent = self._ssl.write(data)  # one record: as much as the client takes in one
            if sent < len(data):
                self._write_rest(memoryview(data), sent)
        except ssl.SSLError as error:
            self._broken(error)
            return
        self._flush()

    def _write_rest(self, data: memoryview, sent: int) -> None:
        flushed = 0
        while sent < len(data):
            if sent - flushed >= SEND_BYTES:
                flushed = sent
                self._flush()
            sent += self._ssl.write(data[sent:])

    def _flush(self) -> None:
        data = self._outgoing.read()
        if data and not self.socket.is_closing():
            self.socket.write(data)

    # ---- ending

    def close(self) -> None:
        self._say_goodbye()
        self.socket.close()

    def write_eof(self) -> None:
        self._say_goodbye()
        self.socket.write_eof()

    def _say_goodbye(self) -> None:
        """Send a close_notify: the end is ours, and nobody cut it."""
        if self._phase != OPEN:
            return
        self._phase = ENDED
        with contextlib.suppress(ssl.SSLError):  # the client's close_notify is not waited for
            self._ssl.unwrap()
        self._flush()

    def about(self, name: str, default: Any) -> Any:
        """What `get_extra_info` tells of TLS."""
        match name:
            case "ssl_object":
                return self._ssl
            case "sslcontext":
                return self._ssl.context
            case "peercert":
                return self._ssl.getpeercert()
        return self.socket.get_extra_info(name, default)
