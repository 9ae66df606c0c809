"""The access log: a line for every request that was answered, or broke off, in both lanes.

    message=request method=POST path=/v1/stream/a status=204 bytes=0 seconds=0.0004 peer=192.0.2.1:7

`bytes` is of the answer's body, of an event stream all that was sent. `seconds` is from when the
request was here as a whole to when its answer was given to the system, or the event stream ended.
What was refused before it was read has `-` for what is not known; a `status` of 0 says that the
client went away unanswered. Queries are left out: there may be tokens in them.
"""

import logging
from typing import Final

from durable_streamsd.logs import fields

__all__ = ["UNREAD", "log_request", "set_up_access_log"]

UNREAD: Final = "-"
PATH_BYTES_MAX: Final = 1_024

log = logging.getLogger(__name__)


def set_up_access_log() -> None:
    """Whoever asks for an access log gets it, whatever else is logged."""
    log.setLevel(logging.INFO)


def log_request(
    method: str, target: bytes, status: int, size_bytes: int, seconds: float, peer: str
) -> None:
    """Log a request; of `target` only the path."""
    path = target.partition(b"?")[0]
    cut = "…" if len(path) > PATH_BYTES_MAX else ""
    log.info(
        "request",
        extra=fields(
            method=method,
            path=path[:PATH_BYTES_MAX].decode("ascii", "backslashreplace") + cut,
            status=status,
            bytes=size_bytes,
            seconds=round(seconds, 6),
            peer=peer,
        ),
    )
