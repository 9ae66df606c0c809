"""Errors as clients see them: `application/problem+json` (RFC 9457) with a stable `code`.

`Code` is the one table: code, status, title, and a sentence that says what to do. A handler raises
`Problem`; `router.dispatch` turns it into the answer. Codes never change their meaning; sentences
may. No answer names a file, a class or anything else from inside.

    {"title": ..., "status": 409, "code": "closed", "detail": "..."}

The reserved `__ds` routes have an error shape of their own (`reserved_error`). Errors that the
lanes find (HTTP that cannot be parsed, limits, time-outs) are in the same table.
"""

import enum
import json

from durable_streamsd.core.message import Response
from storage.errors import (
    CommitError,
    CorruptData,
    IndexFailed,
    OffsetError,
    OutOfSpace,
    StorageError,
)

__all__ = ["Code", "Problem", "problem_of", "reserved_error"]


class Code(enum.Enum):
    """A stable code with its status, its title and its sentence; some say when to try again."""

    # 400: the request itself
    BAD_REQUEST = "bad-request", 400, "Malformed request", "Send valid HTTP/1.1."
    BAD_HOST = "bad-host", 400, "Malformed Host", "Send one Host header with a host and a port."
    BAD_PATH = (
        "bad-path",
        400,
        "Malformed stream path",
        "Use non-empty UTF-8 segments without control characters, none of them '.' or '..', "
        "480 bytes in all.",
    )
    BAD_OFFSET = (
        "bad-offset",
        400,
        "Malformed offset",
        "Pass one offset: one that this server gave (Stream-Next-Offset), '-1' or 'now'.",
    )
    OFFSET_REQUIRED = (
        "offset-required",
        400,
        "Offset missing",
        "Add the offset parameter: live reads need one.",
    )
    OFFSET_PAST_TAIL = (
        "offset-past-tail",
        400,
        "Offset past the tail",
        "Resume at or before the stream's end, which HEAD tells.",
    )
    FOREIGN_OFFSET = (
        "foreign-offset",
        400,
        "Offset of another stream",
        "Start again from '-1': this stream never issued the offset.",
    )
    OFFSET_INSIDE_MESSAGE = (
        "offset-inside-message",
        400,
        "Offset inside a message",
        "Resume from an offset that this server gave (Stream-Next-Offset).",
    )
    BAD_LIVE_MODE = (
        "bad-live-mode",
        400,
        "Unknown live mode",
        "Pass live=long-poll or live=sse, once, or leave it out.",
    )
    BAD_CONTENT_TYPE = (
        "bad-content-type",
        400,
        "Malformed Content-Type",
        "Send one media type such as 'text/plain; charset=utf-8', at most 256 bytes.",
    )
    CONTENT_TYPE_REQUIRED = (
        "content-type-required",
        400,
        "Content-Type missing",
        "Send the stream's content type (Content-Type) with the body.",
    )
    BODY_REQUIRED = (
        "body-required",
        400,
        "Empty body",
        "Send a body, or 'Stream-Closed: true' to close the stream without one.",
    )
    BAD_TTL = (
        "bad-ttl",
        400,
        "Malformed Stream-TTL",
        "Send whole seconds in decimal, without sign or leading zero, at most 9007199254740991.",
    )
    BAD_EXPIRES_AT = (
        "bad-expires-at",
        400,
        "Malformed Stream-Expires-At",
        "Send an RFC 3339 date and time with its offset, such as 2030-01-31T12:00:00Z.",
    )
    BAD_RETENTION = (
        "bad-retention",
        400,
        "Malformed retention",
        "Send as Stream-Retain-Bytes and Stream-Retain-Seconds whole numbers in decimal, without "
        "sign or leading zero, from 1 to 9007199254740991.",
    )
    TTL_AND_EXPIRES_AT = (
        "ttl-and-expires-at",
        400,
        "Two lifetimes",
        "Send Stream-TTL or Stream-Expires-At, not both.",
    )
    BAD_STREAM_SEQ = (
        "bad-stream-seq",
        400,
        "Malformed Stream-Seq",
        "Send a sequence string of 1 to 256 bytes.",
    )
    BAD_PRODUCER = (
        "bad-producer",
        400,
        "Malformed producer headers",
        "Send Producer-Id (1 to 256 bytes), Producer-Epoch and Producer-Seq (integers from 0 to "
        "9007199254740991) together, or none of them.",
    )
    EPOCH_START = (
        "epoch-start",
        400,
        "New epoch does not start at 0",
        "Start a new producer epoch with sequence number 0 (Producer-Seq).",
    )
    BAD_JSON = (
        "bad-json",
        400,
        "Body is not valid JSON",
        "Send one JSON value, or an array whose elements become the messages.",
    )
    TOO_MANY_MESSAGES = (
        "too-many-messages",
        413,
        "Too many messages in one request",
        "Send them in several requests.",
    )
    EMPTY_ARRAY = (
        "empty-array",
        400,
        "No messages",
        "Send at least one message: an empty array appends nothing.",
    )
    FORK_SOURCE_REQUIRED = (
        "fork-source-required",
        400,
        "Fork without a source",
        "Send Stream-Forked-From with the fork's offset headers, or leave them out.",
    )
    BAD_FORK_SOURCE = (
        "bad-fork-source",
        400,
        "Malformed Stream-Forked-From",
        "Send the path of the source's URL on this server, without scheme and host: "
        "/v1/stream/{path}.",
    )
    BAD_FORK_OFFSET = (
        "bad-fork-offset",
        400,
        "Malformed Stream-Fork-Offset",
        "Send one offset that this server gave for the source (Stream-Next-Offset), or leave it "
        "out to fork at the tail.",
    )
    BAD_FORK_SUB_OFFSET = (
        "bad-fork-sub-offset",
        400,
        "Malformed Stream-Fork-Sub-Offset",
        "Send a whole number in decimal, without sign or leading zero; above 0 it needs a "
        "Stream-Fork-Offset.",
    )
    FORK_PAST_TAIL = (
        "fork-past-tail",
        400,
        "Fork past the source's tail",
        "Fork at or before the source's end, which HEAD tells, by at most 65536 messages "
        "(Stream-Fork-Sub-Offset) behind an offset.",
    )
    BAD_AUTHORIZATION = (
        "bad-authorization",
        400,
        "Malformed credentials",
        "Send one token, as 'Authorization: Bearer TOKEN'.",
    )
    # other 4xx
    UNAUTHENTICATED = (
        "unauthenticated",
        401,
        "Credentials needed",
        "Send a token that may do this: 'Authorization: Bearer TOKEN'.",
    )
    INVALID_TOKEN = (
        "invalid-token",
        401,
        "Token not valid",
        "Get a new token from whoever gave you this one.",
    )
    NOT_PERMITTED = (
        "not-permitted",
        401,
        "Not allowed",
        "Send a token that has this right.",
    )
    FORBIDDEN = "forbidden", 403, "Not allowed", "Send a token that has this right."
    STALE_EPOCH = (
        "stale-epoch",
        403,
        "Stale producer epoch",
        "Stop this producer, or claim its id with an epoch above the current one (Producer-Epoch).",
    )
    NOT_FOUND = (
        "not-found",
        404,
        "Stream not found",
        "There is no stream at this path.",
    )
    FORK_SOURCE_NOT_FOUND = (
        "fork-source-not-found",
        404,
        "Source not found",
        "There is no stream at the path in Stream-Forked-From.",
    )
    NO_SUCH_ROUTE = (
        "no-such-route",
        404,
        "Nothing here",
        "Streams are at /v1/stream/{path}, health at /healthz and /readyz.",
    )
    METHOD_NOT_ALLOWED = (
        "method-not-allowed",
        405,
        "Method not allowed",
        "Use one of the methods in the Allow header.",
    )
    REQUEST_TIMEOUT = (
        "request-timeout",
        408,
        "Request too slow",
        "Send the whole request in time, on a new connection.",
    )
    TLS_REQUIRED = (
        "tls-required",
        400,
        "TLS required",
        "Use https: this port takes nothing else.",
    )
    TOO_MANY_REQUESTS = (
        "too-many-requests",
        429,
        "Too many requests",
        "Send fewer requests in a second; try again after Retry-After.",
    )
    TOO_MANY_CONNECTIONS = (
        "too-many-connections",
        429,
        "Too many connections",
        "Use the connections that are open: one address may have no more.",
        5,
    )
    CLOSED = (
        "closed",
        409,
        "Stream is closed",
        "The stream takes no more appends: it ends at Stream-Next-Offset.",
    )
    CONTENT_TYPE_MISMATCH = (
        "content-type-mismatch",
        409,
        "Content-Type differs",
        "Send the content type (Content-Type) that the stream was created with.",
    )
    SEQUENCE_GAP = (
        "sequence-gap",
        409,
        "Producer sequence gap",
        "Send the producer's missing appends first, from sequence number Producer-Expected-Seq on.",
    )
    STREAM_SEQ_REGRESSION = (
        "stream-seq-regression",
        409,
        "Stream-Seq does not increase",
        "Send a Stream-Seq that sorts after the stream's last one, byte by byte.",
    )
    TOO_MANY_PRODUCERS = (
        "too-many-producers",
        409,
        "Too many producers",
        "Reuse a Producer-Id that this stream knows, with a higher epoch.",
    )
    CONFIG_CONFLICT = (
        "config-conflict",
        409,
        "Stream exists with another configuration",
        "The stream at this path has another content type, lifetime, retention, closed state or "
        "source: ask for those, or use another path.",
    )
    PATH_RETAINED = (
        "path-retained",
        409,
        "Path is kept for forks",
        "The stream at this path was deleted, and its data is read by forks: use another path, or "
        "delete the forks first.",
    )
    FORK_SOURCE_GONE = (
        "fork-source-gone",
        409,
        "Source was deleted",
        "The stream in Stream-Forked-From was deleted and is kept for its forks alone: fork one of "
        "those.",
    )
    FORK_TOO_DEEP = (
        "fork-too-deep",
        409,
        "Too many forks of forks",
        "Fork a stream that is nearer to the first source, at the same offset.",
    )
    GONE = (
        "gone",
        410,
        "Stream was deleted",
        "The stream was deleted; its path is free again when the last of its forks is gone.",
    )
    OFFSET_NOT_RETAINED = (
        "offset-not-retained",
        410,
        "Offset is not kept any more",
        "Go on from Stream-Earliest-Offset, or from '-1': what was before that was dropped, as the "
        "stream's retention says.",
    )
    FORK_NOT_RETAINED = (
        "fork-not-retained",
        410,
        "Fork offset is not kept any more",
        "Fork at or behind the source's Stream-Earliest-Offset.",
    )
    BODY_TOO_LARGE = (
        "body-too-large",
        413,
        "Body too large",
        "Split the body into several appends.",
    )
    TARGET_TOO_LONG = "target-too-long", 414, "URL too long", "Shorten the path or the query."
    EXPECTATION_FAILED = (
        "expectation-failed",
        417,
        "Unknown expectation",
        "Send 'Expect: 100-continue' or no Expect header.",
    )
    HEADERS_TOO_LARGE = (
        "headers-too-large",
        431,
        "Header section too large",
        "Send fewer or shorter headers.",
    )
    # 5xx
    INTERNAL_ERROR = (
        "internal-error",
        500,
        "Internal error",
        "Try again; if it stays, report the time of the request to the operator.",
    )
    CORRUPT_DATA = (
        "corrupt-data",
        500,
        "Stored data is damaged",
        "Have the operator run 'durable-streamsd verify': this range cannot be read.",
    )
    NOT_IMPLEMENTED = (
        "not-implemented",
        501,
        "Not implemented",
        "Send the request with a method and a transfer coding of HTTP/1.1 that this server knows.",
    )
    INDEX_UNAVAILABLE = (
        "index-unavailable",
        503,
        "Index cannot be read",
        "Have the operator run 'durable-streamsd reindex'; streams in memory are served meanwhile.",
        10,
    )
    OUTCOME_UNKNOWN = (
        "outcome-unknown",
        503,
        "Write failed, outcome unknown",
        "Read the stream to see, or repeat the request if it named a producer: the server takes no "
        "writes until it is restarted.",
        10,
    )
    KEYS_UNAVAILABLE = (
        "keys-unavailable",
        503,
        "Keys are being fetched",
        "Try again: the key that the token is signed with is not here yet.",
        1,
    )
    NOT_READY = (
        "not-ready",
        503,
        "Not ready",
        "Send requests to another instance, or try again later.",
        5,
    )
    TOO_MANY_READERS = (
        "too-many-readers",
        503,
        "Too many live readers",
        "Try again later, or read without waiting: the stream is followed by as many as it may be.",
        5,
    )
    MEMORY_SHORT = (
        "memory-short",
        503,
        "Memory is short",
        "Try again later; small reads and appends go on.",
        5,
    )
    HTTP_VERSION = "http-version", 505, "HTTP version not supported", "Use HTTP/1.1."
    OUT_OF_SPACE = (
        "out-of-space",
        507,
        "Out of disk space",
        "Try again later: nothing of this request was kept.",
        5,
    )

    code: str
    status: int
    title: str
    advice: str
    retry_after_s: int | None

    def __init__(
        self, code: str, status: int, title: str, advice: str, retry_after_s: int | None = None
    ) -> None:
        self.code = code
        self.status = status
        self.title = title
        self.advice = advice
        self.retry_after_s = retry_after_s


class Problem(Exception):
    """Ends a handler with an error answer.

    `lines` are further header lines (complete, with CRLF), `detail` is a sentence on what exactly
    was wrong; it stands before the code's own sentence. `members` go into the body.
    """

    def __init__(
        self, code: Code, *lines: bytes, detail: str = "", members: dict[str, str] | None = None
    ) -> None:
        super().__init__(code.code)
        self.code = code
        self.lines = lines
        self.detail = detail
        self.members = members or {}

    def response(self, common: bytes) -> Response:
        """The answer; `common` is the block of headers that every answer has."""
        code = self.code
        document = {
            "title": code.title,
            "status": code.status,
            "code": code.code,
            "detail": f"{self.detail} {code.advice}" if self.detail else code.advice,
            **self.members,
        }
        headers = [common, *self.lines, _HEAD_LINES]
        if code.retry_after_s is not None:
            headers.append(b"Retry-After: %d\r\n" % code.retry_after_s)
        return Response(code.status, headers, json.dumps(document).encode())


def problem_of(error: StorageError) -> Problem:
    """What a client is told of an error of the store."""
    for kind, code in _STORAGE_CODES:
        if isinstance(error, kind):
            return Problem(code)
    raise error  # one that handlers have to deal with: a bug


_STORAGE_CODES: tuple[tuple[type[StorageError], Code], ...] = (
    (OutOfSpace, Code.OUT_OF_SPACE),
    (CommitError, Code.OUTCOME_UNKNOWN),
    (OffsetError, Code.OFFSET_INSIDE_MESSAGE),
    (IndexFailed, Code.INDEX_UNAVAILABLE),
    (CorruptData, Code.CORRUPT_DATA),
)

_HEAD_LINES = b"Content-Type: application/problem+json\r\nCache-Control: no-store\r\n"


def reserved_error(
    common: bytes, status: int, code: str, message: str, *lines: bytes, **details: object
) -> Response:
    """An error of the reserved `__ds` routes, which have a shape of their own (protocol 6).

    `lines` are further header lines, `details` further members of the error.
    """
    document = {"error": {"code": code, "message": message, **details}}
    head = b"Content-Type: application/json\r\nCache-Control: no-store\r\n"
    return Response(status, (common, head, *lines), json.dumps(document).encode())
