"""What caches may keep of a read: `ETag` and `Cache-Control` (protocol 10.1).

Decided here, where the protocol leaves it open:

- A read whose request carries credentials is `private`: the daemon authenticates nobody, but a
  proxy in front may, and its cache must not mix users.
- A lifetime (`Stream-TTL`, `Stream-Expires-At`) caps how long a copy may be used, and so does
  retention by seconds.
- An empty answer at the tail of an open stream must be asked again each time (`no-cache`): a copy
  of it would hide data that the same client has just appended.
- `offset=now` is never kept, whatever comes of it, and has no ETag.
"""

from typing import Final

from storage.reading import Chunk
from storage.state import Stream, StreamConfig

__all__ = ["cache_line", "entity_tag", "has_credentials"]

FRESH_S: Final = 60
STALE_S: Final = 300

_PUBLIC: Final = b"Cache-Control: public, max-age=60, stale-while-revalidate=300\r\n"


def has_credentials(headers: dict[bytes, bytes]) -> bool:
    """Whether the request says who is asking."""
    return b"authorization" in headers or b"cookie" in headers


def cache_line(config: StreamConfig, private: bool, now_ms: int) -> bytes:
    """`Cache-Control` for data from a fixed offset."""
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
    return b"Cache-Control: %b, max-age=%d, stale-while-revalidate=%d\r\n" % values


def entity_tag(stream: Stream, chunk: Chunk) -> bytes:
    """The tag of one answer, quotes included: incarnation, range, and what its headers say.

    The time of creation is in it because ids start again in a new data directory.

    Closing changes the tag, and so does growing past a chunk that had reached the tail: a 304 must
    hide neither.
    """
    end = b"c" if chunk.closed else b"t" if chunk.up_to_date else b"p"
    values = (stream.id, stream.created_ms, chunk.start, chunk.next, end)
    return b'"%x-%x:%x:%x%b"' % values
