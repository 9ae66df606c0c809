"""PUT: create a stream, or make sure that it is there (protocol 5.1).

A repeated PUT with the stream's configuration is a success that neither compares nor appends its
body. What a fork is made of is in `forks`.
"""

from functools import partial

from durable_streamsd.auth.scopes import Right
from durable_streamsd.core.access import check_stream
from durable_streamsd.core.context import Context
from durable_streamsd.core.effects import Durable, Offload, Resident, Room
from durable_streamsd.core.forks import decide_fork, fork_not_retained, parse_fork
from durable_streamsd.core.headers import (
    parse_content_type,
    parse_expires_at,
    parse_retention,
    parse_ttl,
    says_closed,
)
from durable_streamsd.core.lines import content_type_line, tail_lines
from durable_streamsd.core.message import Request, Response
from durable_streamsd.core.origin import origin_of
from durable_streamsd.core.paths import STREAM_ROOT, quote_path
from durable_streamsd.core.problems import Code, Problem
from storage.errors import NotResident
from storage.framing import is_heavy, try_frame
from storage.state import Kind, Outcome
from storage.stream_config import StreamConfig, stream_config

__all__ = ["create"]

DEFAULT_CONTENT_TYPE = b"application/octet-stream"


async def create(request: Request, path: bytes, context: Context) -> Response:
    """Answer a PUT to the stream at `path`."""
    headers = request.headers
    location = _location(request, path, context)
    ttl_s, expires_ms = _parse_lifetime(headers)
    retention = parse_retention(headers) or context.options.retention_rules.of(path)
    asked = parse_fork(headers, ttl_s, expires_ms, retention)
    if asked is not None:
        check_stream(request, Right.READ, asked.source_path, context)
        outcome = await decide_fork(path, asked, request, context)
    else:
        content_type = parse_content_type(headers.get(b"content-type", DEFAULT_CONTENT_TYPE))
        config = stream_config(content_type, ttl_s, expires_ms, retention)
        outcome = await _decide(path, config, request, context)
    if outcome.kind is Kind.CREATED and context.subscriptions is not None:
        assert outcome.stream is not None
        context.subscriptions.created(outcome.stream)  # within the batch that creates it
    if outcome.batch is not None:
        await Durable(outcome.batch)
    kind = outcome.kind
    if kind is Kind.CREATED or kind is Kind.EXISTS:
        assert outcome.stream is not None
        lines = (
            context.common,
            content_type_line(outcome.stream.config.content_type),
            tail_lines(outcome.root, outcome.tail, outcome.closed),
        )
        if kind is Kind.CREATED:
            return Response(201, (*lines, location), b"")
        return Response(200, lines, b"")
    if kind is Kind.FORK_NOT_RETAINED:
        assert outcome.stream is not None
        raise fork_not_retained(outcome.root, outcome.stream.durable_earliest)
    raise Problem(_REFUSALS[kind], detail=outcome.detail)


_REFUSALS = {
    Kind.CONFLICT: Code.CONFIG_CONFLICT,
    Kind.SOFT_DELETED: Code.PATH_RETAINED,
    Kind.TYPE_MISMATCH: Code.CONTENT_TYPE_MISMATCH,
    Kind.FORK_TOO_DEEP: Code.FORK_TOO_DEEP,
    Kind.TOO_MANY_MESSAGES: Code.TOO_MANY_MESSAGES,
    Kind.BAD_JSON: Code.BAD_JSON,
}


def _parse_lifetime(headers: dict[bytes, bytes]) -> tuple[int | None, int | None]:
    ttl = headers.get(b"stream-ttl")
    expires_at = headers.get(b"stream-expires-at")
    if ttl is not None and expires_at is not None:
        raise Problem(Code.TTL_AND_EXPIRES_AT)
    ttl_s = None if ttl is None else parse_ttl(ttl)
    expires_ms = None if expires_at is None else parse_expires_at(expires_at)
    return ttl_s, expires_ms


async def _decide(path: bytes, config: StreamConfig, request: Request, context: Context) -> Outcome:
    """Have the store decide. Each wait is followed by looking again from the start."""
    store = context.store
    closed = says_closed(request.headers)
    body = request.body
    framed = None
    if is_heavy(config.framing, body):
        framed = await Offload(partial(try_frame, config.framing, body))
    while True:
        if not store.accepting:
            await Room()
            continue
        try:
            return store.create(path, config, body, closed, framed)
        except NotResident:
            await Resident(path)


def _location(request: Request, path: bytes, context: Context) -> bytes:
    """`Location`: absolute, from the configured URL or from `Host`; a path for HTTP/1.0."""
    target = STREAM_ROOT + quote_path(path)
    return b"Location: %b%b\r\n" % (origin_of(request, context), target)
