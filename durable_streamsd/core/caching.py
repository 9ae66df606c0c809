"""What caches may keep of a read: `ETag` and `Cache-Control` (protocol 10.1).

Decided here, where the protocol leaves it open:

- With authentication, a read is `private` unless anybody may read that stream (RFC 9111, 3.5). A
  browser's own cache may have several users, one after the other: hence `Vary: Authorization`.
- Without, a read whose request carries credentials is `private`: a proxy in front may look at them,
  and its cache must not mix users.
- A lifetime (`Stream-TTL`, `Stream-Expires-At`) caps how long a copy may be used, and so does
  retention by seconds.
- An empty answer at the tail of an open stream must be asked again each time (`no-cache`): a copy
  of it would hide data that the same client has just appended.
- So must one from the start of a stream with retention: the start moves, and a copy of an earlier
  one would lead its readers to offsets that are refused, for as long as it is used.
- `offset=now` is never kept, whatever comes of it, and has no ETag.
"""

from typing import Final

from durable_streamsd.auth.scopes import Right
from durable_streamsd.core.context import Context
from durable_streamsd.core.lines import NO_CACHE, PRIVATE_NO_CACHE
from durable_streamsd.core.offsets import EARLIEST, Place
from storage.reading import Chunk
from storage.state import Stream
from storage.stream_config import StreamConfig

__all__ = ["cache_line", "entity_tag", "is_private"]

FRESH_S: Final = 60
STALE_S: Final = 300

_PUBLIC: Final = b"Cache-Control: public, max-age=60, stale-while-revalidate=300\r\n"


def is_private(headers: dict[bytes, bytes], path: bytes, context: Context) -> bool:
    """Whether the answer to a read is for whoever sent it alone."""
    if context.gate is not None:
        return not context.gate.anonymous.may(Right.READ, path)
    return b"authorization" in headers or b"cookie" in headers


def cache_line(offset: Place, config: StreamConfig, private: bool, now_ms: int) -> bytes:
    """`Cache-Control` for data from a place other than `now`."""
    if offset is EARLIEST and config.retention is not None:
        return PRIVATE_NO_CACHE if private else NO_CACHE
    if config.expires_ms is not None:
        left_s = max(0, (config.expires_ms - now_ms) // 1_000)
    elif config.ttl_s is not None:
        left_s = config.ttl_s
    else:
        left_s = FRESH_S + STALE_S
    if config.retention is not None and config.retention.keep_s is not None:
        left_s = min(left_s, config.retention.keep_s)
    if left_s >= FRESH_S + STALE_S and not private:
        return _PUBLIC
    scope = b"private" if private else b"public"
    fresh_s = min(left_s, FRESH_S)
    stale_s = min(left_s - fresh_s, STALE_S)
    values = (scope, fresh_s, stale_s)
    line = b"Cache-Control: %b, max-age=%d, stale-while-revalidate=%d\r\n" % values
    return line + b"Vary: Authorization\r\n" if private else line


def entity_tag(stream: Stream, chunk: Chunk) -> bytes:
    """The tag of one answer, quotes included: incarnation, range, and what its headers say.

    The time of creation is in it because ids start again in a new data directory.

    Closing changes the tag, and so does growing past a chunk that had reached the tail: a 304 must
    hide neither.
    """
    end = b"c" if chunk.closed else b"t" if chunk.up_to_date else b"p"
    values = (stream.id, stream.created_ms, chunk.start, chunk.next, end)
    return b'"%x-%x:%x:%x%b"' % values
