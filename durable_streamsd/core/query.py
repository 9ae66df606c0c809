"""The query of a read: `offset`, `live` and `cursor`; unknown parameters are ignored.

`offset` and `live` are refused when empty or repeated, because a cache in front of the daemon may
read such a query differently than the daemon does. A junk `cursor` is ignored.
"""

import enum
from functools import lru_cache
from typing import Final, NamedTuple
from urllib.parse import unquote_to_bytes

from durable_streamsd.core.cursor import parse_cursor
from durable_streamsd.core.offsets import EARLIEST, Place, parse_offset
from durable_streamsd.core.problems import Code, Problem

__all__ = ["Live", "Query", "parse_query"]


class Live(enum.Enum):
    """How a read waits for data that does not exist yet."""

    LONG_POLL = b"long-poll"
    SSE = b"sse"


class Query(NamedTuple):
    """A read's parameters; `live` is None for catch-up."""

    offset: Place
    live: Live | None
    cursor: int | None


REMEMBERED_MAX: Final = 1_024
REMEMBERED_BYTES_MAX: Final = 256
"""Of a query whose parameters are remembered: all readers at one place send the same."""

_MODES = {mode.value: mode for mode in Live}
_FROM_START = Query(EARLIEST, None, None)


def parse_query(raw: bytes) -> Query:
    """The parameters of a GET. Raises `Problem`."""
    return _parse_again(raw) if len(raw) <= REMEMBERED_BYTES_MAX else _parse(raw)


@lru_cache(REMEMBERED_MAX)
def _parse_again(raw: bytes) -> Query:
    return _parse(raw)


def _parse(raw: bytes) -> Query:
    if not raw:
        return _FROM_START
    values: dict[bytes, bytes] = {}
    for field in raw.split(b"&"):
        name, _, value = field.partition(b"=")
        name = unquote_to_bytes(name)
        if name in values:
            if name == b"offset":
                raise Problem(Code.BAD_OFFSET)
            if name == b"live":
                raise Problem(Code.BAD_LIVE_MODE)
        values[name] = unquote_to_bytes(value)
    token = values.get(b"offset")
    offset = EARLIEST if token is None else parse_offset(token)
    mode = values.get(b"live")
    live = None
    if mode is not None:
        live = _MODES.get(mode)
        if live is None:
            raise Problem(Code.BAD_LIVE_MODE)
        if token is None:
            raise Problem(Code.OFFSET_REQUIRED)
    return Query(offset, live, parse_cursor(values.get(b"cursor", b"")))
