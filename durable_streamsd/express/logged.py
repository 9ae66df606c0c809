"""A connection of the express lane that writes an access log; the others know nothing of one."""

from time import monotonic
from typing import TYPE_CHECKING

from durable_streamsd.access import UNREAD, log_request
from durable_streamsd.core.message import Frame, Response
from durable_streamsd.core.problems import Problem
from durable_streamsd.express.connection import BUSY
from durable_streamsd.express.guarded import GuardedConnection
from durable_streamsd.express.head import Head

if TYPE_CHECKING:
    from durable_streamsd.express.lane import Lane

__all__ = ["LoggedConnection"]


class LoggedConnection(GuardedConnection):
    """See the module. The line is written before the answer: that may begin the next request."""

    __slots__ = ("_arrived_s", "_client", "_method", "_sent_bytes", "_status", "_target")

    def __init__(self, lane: "Lane") -> None:
        super().__init__(lane)
        self._forget()

    def _forget(self) -> None:
        self._method = UNREAD
        self._target = UNREAD.encode()
        self._client = ""  # who asked, if a trusted proxy says so
        self._arrived_s = monotonic()
        self._status = 0
        self._sent_bytes = 0

    def _dispatch(self, head: Head, body: bytes) -> None:
        self._forget()
        self._is_for(head)
        super()._dispatch(head, body)

    def _is_for(self, head: Head) -> None:
        self._method, self._target = head.method, head.target
        if self._proxied:
            proxies = self.services.front.proxies
            self._client = proxies.client(head.headers, self._address).address

    def respond(self, response: Response, last: bool = False) -> None:
        self._status = response.status
        self._sent_bytes = len(response.body or b"")
        self._log()
        super().respond(response, last)

    def start(self, response: Response) -> None:
        self._status = response.status
        super().start(response)

    def write(self, frame: Frame) -> bool:
        self._sent_bytes += frame.size
        return super().write(frame)

    def finish(self) -> None:
        self._log()
        super().finish()

    def _refuse(self, problem: Problem) -> None:
        head = self._head
        self._forget()
        if head is not None:
            self._is_for(head)
        self._status = problem.code.status
        self._log()
        super()._refuse(problem)

    def abort(self) -> None:
        if self._phase == BUSY:
            self._log()
        super().abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._phase == BUSY:
            self._log()
        super().connection_lost(exc)

    def _log(self) -> None:
        seconds = monotonic() - self._arrived_s
        peer = self._client or self._peer
        log_request(self._method, self._target, self._status, self._sent_bytes, seconds, peer)
