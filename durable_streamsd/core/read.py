"""GET without waiting (catch-up, protocol 5.6) and HEAD (protocol 5.5).

A GET counts as an access and slides a TTL when it begins; HEAD does not, and reads no data.
"""

from durable_streamsd.auth.caller import Caller
from durable_streamsd.core.bodies import body_of
from durable_streamsd.core.caching import cache_line, entity_tag, is_private
from durable_streamsd.core.context import Context
from durable_streamsd.core.direct import Direct
from durable_streamsd.core.headers import etag_matches, format_rfc3339
from durable_streamsd.core.lines import (
    CLOSED,
    NO_CACHE,
    NO_STORE,
    PRIVATE_NO_CACHE,
    chunk_lines,
    content_type_line,
    earliest_offset_line,
    next_offset_line,
    retention_lines,
)
from durable_streamsd.core.lookup import look_up
from durable_streamsd.core.message import Request, Response
from durable_streamsd.core.offsets import EARLIEST, NOW
from durable_streamsd.core.pressure import refuse_large
from durable_streamsd.core.query import Query
from durable_streamsd.core.snapshot import (
    SMALL_ANSWER_BYTES,
    begin_read,
    limit_of,
    read_chunk,
)
from storage.errors import StorageError
from storage.reading import Chunk, ColdRead
from storage.state import Stream

__all__ = ["DirectRead", "catch_up", "head"]


async def catch_up(request: Request, path: bytes, query: Query, context: Context) -> Response:
    """Answer a GET with what is there."""
    stream, position = await begin_read(context, path, query.offset)
    refuse_large(stream, position, context)
    limit = await limit_of(context, stream, position, context.options.read_bytes_max)
    chunk = await read_chunk(context, stream, position, limit)
    private = is_private(request.headers, path, context)
    return _answer(request.headers, query, stream, chunk, private, context)


class DirectRead(Direct):
    """A catch-up read of what is in memory, and small."""

    __slots__ = ("_headers", "_path", "_private", "_query")

    def __init__(
        self,
        path: bytes,
        query: Query,
        headers: dict[bytes, bytes],
        private: bool,
        caller: Caller | None,
    ) -> None:
        super().__init__(repeats=True, caller=caller)
        self._path = path
        self._query = query
        self._headers = headers
        self._private = private

    def attempt(self, body: bytes, context: Context) -> Response | None:
        store = context.store
        caller = self.caller
        if caller is not None and not caller.holds(store.now_ms):
            return None
        stream = store.visible_now(self._path)
        if stream is None:
            return None
        offset = self._query.offset
        tail = stream.durable_tail
        if offset is NOW:
            position = tail
        elif offset is EARLIEST:
            position = stream.durable_earliest
            if tail - position > SMALL_ANSWER_BYTES:
                return None
        elif offset.is_in(stream.root, tail) and tail - offset.position <= SMALL_ANSWER_BYTES:
            position = offset.position
        else:
            return None
        try:
            chunk = store.read(stream, position, context.options.read_bytes_max)
        except StorageError:
            return None
        if isinstance(chunk, ColdRead):
            return None
        return _answer(self._headers, self._query, stream, chunk, self._private, context)


def _answer(
    headers: dict[bytes, bytes],
    query: Query,
    stream: Stream,
    chunk: Chunk,
    private: bool,
    context: Context,
) -> Response:
    config = stream.config
    lines = [context.common, chunk_lines(stream, chunk)]
    if query.offset is NOW:
        lines.append(NO_STORE)
    else:
        tag = entity_tag(stream, chunk)
        lines.append(b"ETag: %b\r\n" % tag)
        if chunk.data or chunk.closed:
            lines.append(cache_line(query.offset, config, private, context.store.now_ms()))
        else:
            lines.append(PRIVATE_NO_CACHE if private else NO_CACHE)
        condition = headers.get(b"if-none-match")
        if condition is not None and etag_matches(condition, tag):
            return Response(304, lines)
    lines.append(content_type_line(config.content_type))
    return Response(200, lines, body_of(config.framing, chunk.data))


async def head(_request: Request, path: bytes, context: Context) -> Response:
    """Answer a HEAD: where the stream ends, how long it lives, and what of it is kept."""
    stream = await look_up(context.store.visible, path)
    config = stream.config
    lines = [
        context.common,
        content_type_line(config.content_type),
        next_offset_line(stream.root, stream.durable_tail),
        NO_STORE,
    ]
    if config.ttl_s is not None:
        lines.append(b"Stream-TTL: %d\r\n" % config.ttl_s)
    if config.expires_ms is not None:
        lines.append(b"Stream-Expires-At: %b\r\n" % format_rfc3339(config.expires_ms))
    if config.retention is not None:
        lines.append(retention_lines(config.retention))
    if config.retention is not None or stream.durable_earliest:
        lines.append(earliest_offset_line(stream.root, stream.durable_earliest))
    if stream.durable_closed:
        lines.append(CLOSED)
    return Response(200, lines)
