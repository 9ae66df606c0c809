"""The head of a request: from bytes to values, or a reason to refuse it.

The connection finds where a head ends; `parse_head` takes it as a whole. llhttp (httptools) does
the tokenising and refuses what is not HTTP: bare line feeds, control bytes, folded lines, repeated
or malformed `Content-Length`, and one beside `Transfer-Encoding`. A parser is made for every head
and thrown away with it: that costs 0.2 µs, and no connection keeps one while it waits.

What llhttp lets pass and `judge_head` refuses, because another server on the way may read it
differently: a body coding other than exactly `chunked`, any in HTTP/1.0, and a missing or repeated
`Host`.

Left out: what a path or a header means (core); bodies (`body`).
"""

import re
from typing import Final

import httptools

from durable_streamsd.core.direct import Direct
from durable_streamsd.core.problems import Code, Problem
from durable_streamsd.metrics.operations import Operation

__all__ = ["CHUNKED", "Head", "Refused", "judge_head", "parse_head"]

CHUNKED: Final = -1
"""In place of a body's length."""

_HOST = re.compile(rb"[\x21-\x2b\x2d-\x7e]*")  # anything visible but a comma, which joins two
_ABSOLUTE = re.compile(rb"https?://([^/?#]*)", re.IGNORECASE)
_LENGTH = re.compile(rb"[0-9]{1,18}")

_METHODS: Final = {
    name.encode(): name for name in ("GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH")
}

_COMMON_NAMES: Final = (
    "Accept Accept-Encoding Accept-Language Authorization Cache-Control Connection Content-Length "
    "Content-Type Cookie Expect Host If-None-Match Last-Event-ID Origin Producer-Epoch Producer-Id "
    "Producer-Seq Referer Stream-Closed Stream-Expires-At Stream-Seq Stream-TTL Traceparent "
    "Transfer-Encoding User-Agent X-Forwarded-For X-Forwarded-Proto X-Request-Id"
)
_NAMES: Final = {
    spelling.encode(): name.lower().encode()
    for name in _COMMON_NAMES.split()
    for spelling in (name, name.lower())
}
"""Names as they are usually spelt, to one shared object each: no copy per request is kept."""


class Refused(Exception):
    """The request gets an error answer, and the connection ends with it."""

    def __init__(self, reason: Code | Problem) -> None:
        self.problem = reason if isinstance(reason, Problem) else Problem(reason)
        super().__init__(self.problem.code.code)


class Head:
    """A parsed head; many requests may share it. `length` is that of the body, or CHUNKED.

    `served` says whether the express lane answers it, `direct` what to attempt first then, when the
    body is here, `operation` what it is counted as: all are the lane's to set.
    """

    __slots__ = (
        "direct",
        "expects_100",
        "headers",
        "http_11",
        "keep_alive",
        "length",
        "method",
        "operation",
        "served",
        "target",
        "upgrade",
    )

    operation: Operation

    def __init__(self) -> None:
        self.target = b""
        self.headers: dict[bytes, bytes] = {}
        self.method = ""
        self.http_11 = True
        self.keep_alive = True
        self.length = 0
        self.expects_100 = False
        self.upgrade = False
        self.served = False
        self.direct: Direct | None = None

    # called by httptools

    def on_url(self, url: bytes) -> None:
        self.target = url

    def on_header(self, name: bytes, value: bytes) -> None:
        name = _NAMES.get(name) or name.lower()
        value = value.rstrip(b" \t")  # llhttp strips only what stands in front
        headers = self.headers
        if name in headers:
            headers[name] += b", " + value
        else:
            headers[name] = value


def parse_head(data: bytes, fields_max: int) -> Head:
    """Parse a head, blank line included. Raises Refused."""
    if data.count(b"\r\n") - 2 > fields_max:
        raise Refused(Code.HEADERS_TOO_LARGE)
    head = Head()
    parser = httptools.HttpRequestParser(head)
    try:
        parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        head.upgrade = True
    except httptools.HttpParserError as error:
        raise Refused(Code.BAD_REQUEST) from error
    method = parser.get_method()
    version = parser.get_http_version()
    if version != "1.1":
        if version != "1.0":
            raise Refused(Code.HTTP_VERSION)
        head.http_11 = False
    head.method = _METHODS.get(method) or method.decode("ascii")
    judge_head(head)
    return head


def judge_head(head: Head) -> None:
    """Derive what follows from method, version, target and headers. Raises Refused."""
    headers = head.headers
    host = headers.get(b"host")
    if not _HOST.fullmatch(host or b"") or (host is None and head.http_11):
        raise Refused(Code.BAD_HOST)
    connection = headers.get(b"connection")
    if connection is not None or not head.http_11:
        tokens = [token.strip() for token in (connection or b"").lower().split(b",")]
        head.keep_alive = b"close" not in tokens and (head.http_11 or b"keep-alive" in tokens)
    if not head.target.startswith(b"/"):
        _to_origin_form(head)
    length = headers.get(b"content-length")
    if length is not None:
        if not _LENGTH.fullmatch(length):
            raise Refused(Code.BAD_REQUEST)
        head.length = int(length)
    coding = headers.get(b"transfer-encoding")
    if coding is not None:
        if length is not None or not head.http_11:
            raise Refused(Code.BAD_REQUEST)
        if coding.lower() != b"chunked":
            raise Refused(Code.NOT_IMPLEMENTED)
        head.length = CHUNKED
    expect = headers.get(b"expect")
    if expect is not None and head.http_11:
        if expect.lower() != b"100-continue":
            raise Refused(Code.EXPECTATION_FAILED)
        head.expects_100 = True


def _to_origin_form(head: Head) -> None:
    """An absolute target (RFC 9112, 3.2.2) as its path and query; its authority is the host."""
    match = _ABSOLUTE.match(head.target)
    if match is None:
        if head.method not in ("OPTIONS", "CONNECT"):
            raise Refused(Code.BAD_REQUEST)
        return
    authority = match[1]
    if not authority or b"@" in authority or not _HOST.fullmatch(authority):
        raise Refused(Code.BAD_HOST)
    head.headers[b"host"] = authority
    rest = head.target[match.end() :]
    head.target = rest if rest.startswith(b"/") else b"/" + rest
