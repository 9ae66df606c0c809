"""GET /v1/stream/__ds/streams: what streams there are. An extension of the protocol.

    ?prefix=a/b   only paths that begin with this      ?after=PATH   only paths behind this one
    ?limit=N      at most so many, 1 to 1000, else 100

    {"streams": [{"path": "a/b", "content_type": "text/plain", "next_offset": "…", "closed": false,
                  "created_at": "2026-01-31T12:00:00.123Z", "size_bytes": 5,
                  "earliest_offset": "…", "forked_from": "a"}],
     "next": "a/b"}

`forked_from` is there for forks, whose `size_bytes` has what they inherit in it, and
`earliest_offset` for streams that were cut, whose `size_bytes` is what is left. `next` is there
when there may be more: pass it as `after`. A page may have fewer streams than asked for, even none.
Paths are decoded. Streams that were deleted and are kept for their forks are not told.
"""

import re
from functools import partial
from typing import Any, Final
from urllib.parse import unquote_to_bytes

import msgspec

from durable_streamsd.core.context import Context
from durable_streamsd.core.effects import Hold, Offload
from durable_streamsd.core.headers import format_rfc3339
from durable_streamsd.core.lines import NO_STORE, allow_line
from durable_streamsd.core.message import Request, Response
from durable_streamsd.core.offsets import format_offset
from durable_streamsd.core.paths import PATH_BYTES_MAX, decode_path
from durable_streamsd.core.problems import Problem, reserved_error
from durable_streamsd.core.snapshot import SMALL_ANSWER_BYTES
from storage.listing import PAGE_STREAMS_MAX, Listed, Listing

__all__ = ["BadListing", "list_streams", "parse_listing"]

LIMIT_DEFAULT: Final = 100
ENTRY_BYTES_MAX: Final = 4 * PATH_BYTES_MAX + 1_024
"""Of one stream in an answer: two paths, each byte of which may be escaped, a type, the rest."""

_LIMIT: Final = re.compile(rb"[1-9][0-9]{0,3}")


class BadListing(Exception):
    """A parameter will not do."""


async def list_streams(request: Request, context: Context) -> Response:
    """Answer a listing. The index is read and the answer encoded in a worker thread."""
    if request.method not in ("GET", "HEAD"):
        message = "Use GET to list streams."
        refusal = reserved_error(context.common, 405, "METHOD_NOT_ALLOWED", message)
        allow = allow_line("GET, HEAD, OPTIONS")
        return Response(405, (*refusal.headers, allow), refusal.body)
    try:
        prefix, after, limit = parse_listing(request.query)
    except BadListing as refused:
        return reserved_error(context.common, 400, "INVALID_REQUEST", str(refused))
    if limit * ENTRY_BYTES_MAX > SMALL_ANSWER_BYTES:
        await Hold(limit * ENTRY_BYTES_MAX)
    body = await Offload(partial(_page, context.store.listing(prefix, after, limit)))
    return Response(200, (context.common, b"Content-Type: application/json\r\n", NO_STORE), body)


def parse_listing(query: bytes) -> tuple[bytes, bytes | None, int]:
    """Prefix, after and limit; other parameters are ignored."""
    values: dict[bytes, bytes] = {}
    for field in query.split(b"&"):
        name, _, value = field.partition(b"=")
        name = unquote_to_bytes(name)
        if name in (b"prefix", b"after", b"limit"):
            if name in values:
                raise BadListing(f"Pass {name.decode()} once.")
            values[name] = value
    limit = unquote_to_bytes(values.get(b"limit", b"%d" % LIMIT_DEFAULT))
    if not _LIMIT.fullmatch(limit) or int(limit) > PAGE_STREAMS_MAX:
        raise BadListing(f"Pass a limit from 1 to {PAGE_STREAMS_MAX}.")
    prefix = _parse_path(values.get(b"prefix", b""), "prefix")
    after = _parse_path(values[b"after"], "after") if b"after" in values else None
    return prefix, after or None, int(limit)


def _parse_path(raw: bytes, name: str) -> bytes:
    """A path or the beginning of one, percent-encoded as the path of a stream is."""
    try:
        return decode_path(raw)
    except Problem:
        raise BadListing(
            f"Pass as {name} a stream path, or the beginning of one: UTF-8 without control "
            f"characters, percent-encoded once, at most {PATH_BYTES_MAX} bytes."
        ) from None


def _page(listing: Listing) -> bytes:
    """The answer's body; in a thread."""
    page = listing.run()
    document: dict[str, Any] = {"streams": [_entry(stream) for stream in page.streams]}
    if page.next is not None:
        document["next"] = page.next.decode()
    return msgspec.json.encode(document)


def _entry(stream: Listed) -> dict[str, Any]:
    entry = {
        "path": stream.path.decode(),
        "content_type": stream.content_type,
        "next_offset": format_offset(stream.root, stream.tail).decode("ascii"),
        "closed": stream.closed,
        "created_at": format_rfc3339(stream.created_ms).decode("ascii"),
        "size_bytes": stream.tail - stream.earliest,
    }
    if stream.earliest:
        earliest = format_offset(stream.root, stream.earliest)
        entry["earliest_offset"] = earliest.decode("ascii")
    if stream.source_path is not None:
        entry["forked_from"] = stream.source_path.decode()
    return entry
