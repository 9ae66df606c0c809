"""The express lane's connection where there is something to ask of requests (`edge.front`).

A class of its own, so that nothing is asked where nothing is to be asked: the common way through
`Connection` has no branch for it.
"""

import asyncio
from typing import TYPE_CHECKING

from durable_streamsd.core.message import Request
from durable_streamsd.core.problems import Problem
from durable_streamsd.edge.proxies import retold
from durable_streamsd.express.connection import BUSY, Connection
from durable_streamsd.express.head import Head, Refused
from durable_streamsd.services import host_of

if TYPE_CHECKING:
    from durable_streamsd.express.lane import Lane

__all__ = ["GuardedConnection"]


class GuardedConnection(Connection):
    """See the module."""

    __slots__ = ("_address", "_proxied")

    def __init__(self, lane: "Lane") -> None:
        super().__init__(lane)
        self._address = ""
        self._proxied = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._address = host_of(transport)
        self._proxied = self.services.front.proxies.trusts(self._address)
        super().connection_made(transport)

    def _begin_body(self, head: Head) -> None:
        self._choose_clock(head)  # for the answer to a body that is no good
        super()._begin_body(head)

    def _dispatch(self, head: Head, body: bytes) -> None:
        self._choose_clock(head)
        problem = self._rate_refusal(head)
        if problem is None:
            super()._dispatch(head, body)
            return
        self._phase = BUSY
        self._operation = head.operation
        self.respond(self.services.context.failed(problem).for_method(head.method))

    def _refusal(self, head: Head) -> Refused:
        problem = self._rate_refusal(head)  # it counts as much as one whose body is kept
        return super()._refusal(head) if problem is None else Refused(problem)

    def _rate_refusal(self, head: Head) -> Problem | None:
        """Count a request, or why it comes too soon after others."""
        services = self.services
        gate = services.context.gate
        return services.front.refusal(head.target, head.headers, self._address, gate)

    def _request(self, head: Head, body: bytes) -> Request:
        request = super()._request(head, body)
        if self._proxied:
            retold(request, self.services.front.proxies.client(head.headers, self._address))
        return request

    def _choose_clock(self, head: Head) -> None:
        services = self.services
        if services.clocks:
            origin = head.headers.get(b"origin", b"")
            self._clock = services.clocks.get(origin, services.clock)
