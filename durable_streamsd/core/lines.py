"""Response header lines as bytes, built once where they are constant.

Two blocks are the same for every answer of a daemon and are built when it starts: `common_block`
goes with every answer, errors too, and `preflight_block` answers OPTIONS.
"""

from typing import Final

from durable_streamsd.core.offsets import format_offset
from storage.reading import Chunk
from storage.record import Retention
from storage.state import Stream

__all__ = [
    "CLOSED",
    "NO_CACHE",
    "NO_STORE",
    "PRIVATE_NO_CACHE",
    "UP_TO_DATE",
    "allow_line",
    "chunk_lines",
    "common_block",
    "content_type_line",
    "earliest_offset_line",
    "next_offset_line",
    "preflight_block",
    "retention_lines",
    "tail_lines",
]

CLOSED: Final = b"Stream-Closed: true\r\n"
UP_TO_DATE: Final = b"Stream-Up-To-Date: true\r\n"
NO_STORE: Final = b"Cache-Control: no-store\r\n"
NO_CACHE: Final = b"Cache-Control: no-cache\r\n"
PRIVATE_NO_CACHE: Final = b"Cache-Control: private, no-cache\r\nVary: Authorization\r\n"

PREFLIGHT_AGE_S: Final = 86_400

_EXPOSED = (
    "Stream-Next-Offset",
    "Stream-Cursor",
    "Stream-Up-To-Date",
    "Stream-Closed",
    "Stream-TTL",
    "Stream-Expires-At",
    "Stream-Retain-Bytes",
    "Stream-Retain-Seconds",
    "Stream-Earliest-Offset",
    "Stream-SSE-Data-Encoding",
    "Producer-Epoch",
    "Producer-Seq",
    "Producer-Expected-Seq",
    "Producer-Received-Seq",
    "ETag",
    "Location",
    "Retry-After",
    "X-Offset",
)
_ALLOWED = (
    "Authorization",
    "Cache-Control",
    "Content-Type",
    "If-None-Match",
    "Last-Event-ID",
    "Producer-Epoch",
    "Producer-Id",
    "Producer-Seq",
    "Stream-Closed",
    "Stream-Expires-At",
    "Stream-Fork-Offset",
    "Stream-Fork-Sub-Offset",
    "Stream-Forked-From",
    "Stream-Retain-Bytes",
    "Stream-Retain-Seconds",
    "Stream-Seq",
    "Stream-TTL",
)
_METHODS = "GET, HEAD, PUT, POST, DELETE, OPTIONS"


def common_block(cors_origins: tuple[str, ...]) -> bytes:
    """The lines of every answer: security headers (protocol 12.7) and CORS.

    One origin is the same for all answers, so that a cache may keep one for everybody. Which of
    several is allowed depends on who asks, and is the lane's to add.
    """
    cors = (
        f"Access-Control-Allow-Origin: {cors_origins[0]}\r\n"
        if len(cors_origins) == 1
        else "Vary: Origin\r\n"
    )
    return (
        "X-Content-Type-Options: nosniff\r\n"
        "Cross-Origin-Resource-Policy: cross-origin\r\n"
        f"{cors}"
        f"Access-Control-Expose-Headers: {', '.join(_EXPOSED)}\r\n"
    ).encode("ascii")


def preflight_block() -> bytes:
    """The lines that answer a CORS preflight, beside the common ones."""
    return (
        f"Access-Control-Allow-Methods: {_METHODS}\r\n"
        f"Access-Control-Allow-Headers: {', '.join(_ALLOWED)}\r\n"
        f"Access-Control-Max-Age: {PREFLIGHT_AGE_S}\r\n"
    ).encode("ascii")


def allow_line(methods: str = _METHODS) -> bytes:
    """`Allow`, by default with the methods of a stream."""
    return f"Allow: {methods}\r\n".encode("ascii")


def next_offset_line(root: int, position: int) -> bytes:
    """`Stream-Next-Offset`."""
    return b"Stream-Next-Offset: %b\r\n" % format_offset(root, position)


def earliest_offset_line(root: int, position: int) -> bytes:
    """`Stream-Earliest-Offset`, an extension: where what is there of a stream begins."""
    return b"Stream-Earliest-Offset: %b\r\n" % format_offset(root, position)


def retention_lines(retention: Retention) -> bytes:
    """How much of a stream is kept: an extension."""
    lines = b""
    if retention.keep_bytes is not None:
        lines += b"Stream-Retain-Bytes: %d\r\n" % retention.keep_bytes
    if retention.keep_s is not None:
        lines += b"Stream-Retain-Seconds: %d\r\n" % retention.keep_s
    return lines


def tail_lines(root: int, tail: int, closed: bool) -> bytes:
    """What PUT and POST say about a stream's end. `X-Offset` is an alias for older clients."""
    token = format_offset(root, tail)
    lines = b"Stream-Next-Offset: %b\r\nX-Offset: %b\r\n" % (token, token)
    return lines + CLOSED if closed else lines


def chunk_lines(stream: Stream, chunk: Chunk) -> bytes:
    """What a read says about where its data ends; presence is what counts, so never `false`."""
    lines = next_offset_line(stream.root, chunk.next)
    if chunk.up_to_date:
        lines += UP_TO_DATE
    if chunk.closed:
        lines += CLOSED
    return lines


def content_type_line(content_type: str) -> bytes:
    """`Content-Type`, exactly as the stream was created with it."""
    return b"Content-Type: %b\r\n" % content_type.encode("ascii")
