"""Bodies of control requests: from JSON to values, or a `Refusal` that names the member."""

import hashlib
import json
from typing import Annotated, Final, NamedTuple, TypeVar

import msgspec
from msgspec import Meta

from durable_streamsd.core.headers import INTEGER_MAX
from durable_streamsd.core.message import Request
from durable_streamsd.core.offsets import EARLIEST, NOW, START, Offset, parse_offset
from durable_streamsd.core.paths import check_path, is_reserved
from durable_streamsd.core.problems import Problem
from durable_streamsd.subscriptions.model import Kind
from durable_streamsd.subscriptions.patterns import Pattern, PatternError, parse_pattern
from durable_streamsd.subscriptions.refusal import Refusal, invalid
from durable_streamsd.subscriptions.targets import Reach, TargetError, check_url

__all__ = [
    "BODY_BYTES_MAX",
    "Report",
    "Wanted",
    "decode_body",
    "parse_body_path",
    "parse_report",
    "parse_streams",
    "parse_wanted",
    "parse_worker",
]

BODY_BYTES_MAX: Final = 1 << 20
STREAMS_MAX: Final = 1_000
"""Of one request; a subscription may get more by further ones."""
LEASE_MS_MIN: Final = 1_000
LEASE_MS_MAX: Final = 600_000
LEASE_MS: Final = 30_000

Short = Annotated[str, Meta(min_length=1, max_length=256)]
T = TypeVar("T")


class _Webhook(msgspec.Struct):
    url: str


class _Create(msgspec.Struct):
    type: Kind
    pattern: str | None = None
    streams: list[str] | None = None
    webhook: _Webhook | None = None
    wake_stream: str | None = None
    lease_ttl_ms: Annotated[int, Meta(ge=LEASE_MS_MIN, le=LEASE_MS_MAX)] = LEASE_MS
    description: Annotated[str, Meta(max_length=1_024)] | None = None


class _Streams(msgspec.Struct):
    streams: list[str]


class _Worker(msgspec.Struct):
    worker: Short


class _Ack(msgspec.Struct):
    stream: str
    offset: str


class _Report(msgspec.Struct):
    wake_id: Short
    generation: Annotated[int, Meta(ge=0, le=INTEGER_MAX)]
    acks: list[_Ack] = []
    done: bool = False


class Wanted(NamedTuple):
    """What a PUT asks for, in normal form; `digest` is the same for the same (protocol 6.2)."""

    kind: Kind
    pattern: Pattern | None
    streams: list[bytes]
    url: str | None
    wake_stream: bytes | None
    lease_ttl_ms: int
    description: str | None
    digest: bytes


class Report(NamedTuple):
    """What a worker says about its wake."""

    wake_id: str
    generation: int
    acks: list[tuple[bytes, Offset]]
    done: bool


def parse_wanted(request: Request, reach: Reach) -> Wanted:
    """The body of a PUT (protocol 6.2). Raises `Refusal`."""
    body = decode_body(request, _Create)
    streams = _paths(body.streams or [])
    pattern = wake_stream = url = None
    if body.pattern:
        try:
            pattern = parse_pattern(body.pattern)
        except PatternError as error:
            raise invalid(str(error)) from None
    if pattern is None and not streams:
        raise invalid("Send pattern, streams, or both.")
    if body.type is Kind.WEBHOOK:
        if body.webhook is None:
            raise invalid("A webhook subscription needs webhook.url.")
        url = body.webhook.url
        try:
            check_url(url, reach)
        except TargetError as error:
            raise Refusal(400, "WEBHOOK_URL_REJECTED", str(error)) from None
    else:
        if not body.wake_stream:
            raise invalid("A pull-wake subscription needs wake_stream.")
        wake_stream = parse_body_path(body.wake_stream)
        if wake_stream in streams:
            raise invalid("The wake stream cannot be one of the streams that wake.")
    normal = {
        "type": body.type,
        "pattern": None if pattern is None else b"/".join(pattern).decode(),
        "streams": sorted(path.decode() for path in streams),
        "url": url,
        "wake_stream": None if wake_stream is None else wake_stream.decode(),
        "lease_ttl_ms": body.lease_ttl_ms,
        "description": body.description,
    }
    digest = hashlib.sha256(json.dumps(normal, sort_keys=True).encode()).digest()
    return Wanted(
        body.type,
        pattern,
        streams,
        url,
        wake_stream,
        body.lease_ttl_ms,
        body.description,
        digest,
    )


def parse_streams(request: Request) -> list[bytes]:
    """The body that adds streams (protocol 6.4). Raises `Refusal`."""
    streams = _paths(decode_body(request, _Streams).streams)
    if not streams:
        raise invalid("Send at least one path in streams.")
    return streams


def parse_worker(request: Request) -> str:
    """The body of a claim (protocol 7.2): the worker's name. Raises `Refusal`."""
    return decode_body(request, _Worker).worker


def parse_report(request: Request) -> Report:
    """The body of a callback, an ack or a release (protocol 7). Raises `Refusal`."""
    body = decode_body(request, _Report)
    if len(body.acks) > STREAMS_MAX:
        raise invalid(f"Send at most {STREAMS_MAX} acks in one request.")
    acks = [(parse_body_path(ack.stream), _offset(ack.offset)) for ack in body.acks]
    return Report(body.wake_id, body.generation, acks, body.done)


def decode_body(request: Request, kind: type[T]) -> T:
    """A body of this form. Raises `Refusal`."""
    if len(request.body) > BODY_BYTES_MAX:
        raise Refusal(413, "BODY_TOO_LARGE", f"Send at most {BODY_BYTES_MAX} bytes.")
    try:
        return msgspec.json.decode(request.body, type=kind)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise invalid(f"The body is not what it should be: {error}.") from None


def _paths(texts: list[str]) -> list[bytes]:
    """Paths, each once, in their order."""
    if len(texts) > STREAMS_MAX:
        raise invalid(f"Send at most {STREAMS_MAX} paths in one request.")
    return list(dict.fromkeys(map(parse_body_path, texts)))


def parse_body_path(text: str) -> bytes:
    """A stream's path in a body, where nothing is percent-encoded. Raises `Refusal`."""
    try:
        path = check_path(text.strip("/").encode())
    except (Problem, UnicodeEncodeError):
        raise invalid("A stream's path has segments without control characters.") from None
    if is_reserved(path):
        raise invalid("Paths under __ds are no streams.")
    return path


def _offset(text: str) -> Offset:
    try:
        offset = parse_offset(text.encode("utf-8", "replace"))
    except Problem:
        offset = NOW
    if offset is NOW:
        raise invalid("An acked offset is one that this server gave.")
    return START if offset is EARLIEST else offset
