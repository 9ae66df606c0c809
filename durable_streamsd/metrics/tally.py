"""One request of the general lane, counted and logged; the express lane has no object for this."""

from time import monotonic

from durable_streamsd.access import UNREAD, log_request
from durable_streamsd.metrics.operations import Operations

__all__ = ["Tally"]


class Tally:
    """From when a request's head is here until `ended`, which says how it went."""

    __slots__ = (
        "_asked_bytes",
        "_began_s",
        "_begun",
        "_log",
        "_method",
        "_operation",
        "_operations",
        "_peer",
        "_sent_bytes",
        "_status",
        "_target",
        "_weight",
    )

    def __init__(self, operations: Operations, peer: str, *, log: bool) -> None:
        self._operations = operations
        self._operation = operations.unread
        self._peer = peer
        self._log = log
        self._method, self._target = UNREAD, UNREAD.encode()
        self._status = 0
        self._begun = False
        self._asked_bytes = self._sent_bytes = 0
        self._weight = 0
        self._began_s = monotonic()

    def is_for(self, method: str, target: bytes) -> None:
        """The head is here, and says this."""
        self._method, self._target = method, target
        self._operation = self._operations.of(method, target)

    def is_from(self, peer: str) -> None:
        """A trusted proxy says who asked."""
        self._peer = peer

    def begun(self, asked_bytes: int) -> None:
        """The whole request is here."""
        self._begun = True
        self._asked_bytes = asked_bytes
        self._began_s = monotonic()
        operation = self._operation
        operation.in_general_lane += 1
        operation.left -= 1
        if not operation.left:
            self._weight = operation.sample()

    def answered(self, status: int, size_bytes: int) -> None:
        """A whole answer is about to be sent."""
        self._status, self._sent_bytes = status, size_bytes
        self._count(size_bytes)

    def started(self, status: int) -> None:
        """An event stream begins."""
        self._status = status
        self._count(0)

    def sent(self, size_bytes: int) -> None:
        """An event was sent."""
        self._sent_bytes += size_bytes

    def ended(self) -> None:
        """It is over, one way or another."""
        operation = self._operation
        if self._begun:
            operation.in_general_lane -= 1
            operation.broken += not self._status
        if self._log and (self._begun or self._status):
            seconds = monotonic() - self._began_s
            log_request(
                self._method, self._target, self._status, self._sent_bytes, seconds, self._peer
            )

    def _count(self, size_bytes: int) -> None:
        operation = self._operation
        operation.statuses[self._status] += 1
        if self._weight:
            operation.measured(
                self._status, self._began_s, self._weight, self._asked_bytes, size_bytes
            )
