"""Who was turned away, and by which limit: counted each time, logged once a second.

A limit goes by the name of its setting, where it has one. One that a client runs into because of
what it asked shows as the code of its answer; the others are told by whoever enforces them.
"""

import logging
from typing import Final

from durable_streamsd.core.problems import Code
from durable_streamsd.logs import fields

__all__ = ["LIMITS", "Refusals"]

_LIMIT_OF: Final = {
    Code.BODY_TOO_LARGE: "body_bytes_max",
    Code.TOO_MANY_MESSAGES: "messages_max",
    Code.HEADERS_TOO_LARGE: "head_bytes_max",
    Code.TARGET_TOO_LONG: "head_bytes_max",
    Code.TOO_MANY_PRODUCERS: "producers_per_stream_max",
    Code.FORK_TOO_DEEP: "fork_depth_max",
    Code.OUT_OF_SPACE: "disk_space",
    Code.TOO_MANY_CONNECTIONS: "connections_per_address_max",
    Code.TOO_MANY_REQUESTS: "requests_per_second_max",
    Code.TOO_MANY_READERS: "waiters_per_stream_max",
    Code.MEMORY_SHORT: "memory_bytes_max",
}

LIMITS: Final = (
    *dict.fromkeys(_LIMIT_OF.values()),
    "connections_max",
    "head_timeout_s",
    "body_timeout_s",
    "write_timeout_s",
    "tls_handshake_timeout_s",
)

log = logging.getLogger(__name__)


class Refusals:
    """Counts by code of the answer and by limit."""

    def __init__(self) -> None:
        self.codes = {code.code: 0 for code in Code}
        self.limits = dict.fromkeys(LIMITS, 0)
        self._unsaid: dict[str, int] = {}
        """Hits since the last line, for limits that had a line within this second."""

    def told(self, code: Code) -> None:
        """A client is answered with this code."""
        self.codes[code.code] += 1
        limit = _LIMIT_OF.get(code)
        if limit is not None:
            self.hit(limit)

    def hit(self, limit: str) -> None:
        """A limit turned somebody away."""
        self.limits[limit] = self.limits.get(limit, 0) + 1
        if limit in self._unsaid:
            self._unsaid[limit] += 1
        else:
            self._unsaid[limit] = 0
            self._say(limit, 1)

    def tick(self) -> None:
        """A second has passed: say what was not said in it."""
        for limit, count in list(self._unsaid.items()):
            if count:
                self._unsaid[limit] = 0
                self._say(limit, count)
            else:
                del self._unsaid[limit]

    @staticmethod
    def _say(limit: str, count: int) -> None:
        log.warning("a limit turned requests away", extra=fields(limit=limit, count=count))
