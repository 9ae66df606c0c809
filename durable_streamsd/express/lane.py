"""What the connections of the express lane share, and which requests are theirs."""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import cast

from durable_streamsd.core.health import HEALTH_PATHS
from durable_streamsd.core.paths import STREAM_ROOT
from durable_streamsd.core.problems import Problem
from durable_streamsd.core.router import barred_of, direct_of
from durable_streamsd.edge.connections import Guest
from durable_streamsd.express.connection import Connection
from durable_streamsd.express.guarded import GuardedConnection
from durable_streamsd.express.head import Head, parse_head
from durable_streamsd.express.logged import LoggedConnection
from durable_streamsd.metrics.operations import Operation
from durable_streamsd.services import Services
from durable_streamsd.wheel import ticks_of

__all__ = ["Lane"]

_RESERVED = STREAM_ROOT + b"__ds"
HEADS_MAX = 2_048
"""Heads that are remembered."""
REMEMBERED_HEAD_BYTES_MAX = 1_024

_METHODS = frozenset(("GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS"))


class Lane:
    """Makes connections; a listening socket's protocol factory.

    `general` makes a protocol of the general lane (a `Guest`), for connections whose requests are
    not served here.
    """

    def __init__(self, services: Services, general: Callable[[], asyncio.Protocol]) -> None:
        settings = services.settings
        self.services = services
        self.idle_ticks = ticks_of(settings.idle_timeout_s)
        self.head_ticks = ticks_of(settings.head_timeout_s)
        self.body_ticks = ticks_of(settings.body_timeout_s)
        self.write_ticks = ticks_of(settings.write_timeout_s)
        self.linger_ticks = ticks_of(settings.linger_timeout_s)
        self._general = general
        self.scheme = "https" if settings.tls_certificate else "http"
        self._make: type[Connection] = Connection
        if settings.access_log:
            self._make = LoggedConnection
        elif services.front.busy:
            self._make = GuardedConnection
        self.heads: dict[bytes, Head] = {}
        """By their bytes, heads that are likely to come again: from the same client, or from others
        who read the same. Measured: 4 µs less for each that is found here."""

    def __call__(self) -> Connection:
        return self._make(self)

    def parse(self, data: bytes) -> Head:
        """Parse a head, and remember it if that may be of use. Raises Refused."""
        settings = self.services.settings
        head = parse_head(data, settings.head_fields_max)
        head.served = self.serves(head)
        head.operation = self.services.counts.operations.of(head.method, head.target)
        if not 0 <= head.length <= settings.body_bytes_max or not head.served:
            return head
        head.direct = direct = direct_of(
            head.method, head.target, head.headers, self.services.context
        )
        repeats = head.method == "GET" if direct is None else direct.repeats
        if repeats and len(data) <= REMEMBERED_HEAD_BYTES_MAX:
            if len(self.heads) >= HEADS_MAX:
                self.heads.clear()
            self.heads[data] = head
        return head

    def serves(self, head: Head) -> bool:
        """Whether a request is answered here. (Both lanes would answer it alike.)"""
        target = head.target
        if head.upgrade or head.method not in _METHODS:
            return False
        if target.startswith(STREAM_ROOT):
            return not target.startswith(_RESERVED)
        return target in HEALTH_PATHS

    def look(self) -> tuple[Counter[Operation], int]:
        """What is being answered on how many connections, and how many of all have a client that
        has not taken what was written."""
        answering: Counter[Operation] = Counter()
        lagging = 0
        for connection in self.services.connections.guests:
            if not isinstance(connection, Connection):
                continue  # the general lane counts for itself
            lagging += connection.lagging
            operation = connection.answering
            if operation is not None:
                answering[operation] += 1
        return answering, lagging

    def barred(self, head: Head) -> Problem | None:
        """Why a request is refused whatever its body is, if its sender may not send it."""
        return barred_of(head.method, head.target, head.headers, self.services.context)

    def hand_over(
        self, connection: Connection, transport: asyncio.Transport, data: bytes, eof: bool
    ) -> None:
        """Let the general lane go on with a connection, from `data` on."""
        protocol = self._general()
        transport.set_protocol(protocol)
        self.services.connections.replace(connection, cast(Guest, protocol))
        protocol.connection_made(transport)
        protocol.data_received(data)
        if eof and not protocol.eof_received():
            transport.close()
