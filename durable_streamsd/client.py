"""An asynchronous client for the Durable Streams protocol: one method for one request.

Invariants:
- Each `Chunk` is whole: its bytes and the offset behind them come from one answer, so a caller that
  remembers `next_offset` only after it used `data` neither skips nor repeats a byte.
- No request is repeated here. Whether that is safe is known to whoever holds the offset or the
  producer state; `cli/client_follow.py` resumes reads, `cli/client_write.py` repeats appends.
- Nothing read is unbounded: answers and events end at `ANSWER_BYTES_MAX`.

Left out: subscriptions, `Stream-Seq`, caching.

Errors, by what the caller can do about them:

    StreamError
    ├── Unreachable       no answer, or half of one; `sent` tells whether the server may have acted
    ├── NotTheProtocol    an answer, but not one of this protocol: most likely a wrong URL
    └── Refused           the server said no: `status`, `code`, `detail`
        ├── Missing       404, 410: there is no such stream, or no longer
        ├── Closed        409 of a closed stream: no append will ever succeed
        └── Unavailable   429 and most 5xx: the same request may succeed later
"""

import base64
import binascii
import json
import os
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import NamedTuple, Self
from urllib.parse import quote

import aiohttp
from yarl import URL

ANSWER_BYTES_MAX = 256 * 1024 * 1024
ERROR_BODY_BYTES_MAX = 64 * 1024
DETAIL_CHARACTERS_MAX = 500
# The sentences for these say it all, and name the stream besides.
TOLD_WITHOUT_DETAIL = (
    "not-found",
    "closed",
    "fork-source-not-found",
    "offset-not-retained",
    "fork-not-retained",
)
PAGE_STREAMS = 1_000
CONNECT_SECONDS_MAX = 10.0
# Longer than any sensible long-poll time-out and any heartbeat: past it the connection is dead.
SILENCE_SECONDS_MAX = 90.0
# Shorter than servers keep an idle connection (Node: 5 s): an append must not meet one just closed.
KEEPALIVE_SECONDS_MAX = 4.0


class StreamError(Exception):
    """Base of all the client's errors; the message is one sentence."""


class Unreachable(StreamError):
    """No answer, or a connection that broke in the middle of one."""

    def __init__(self, sentence: str, *, sent: bool) -> None:
        super().__init__(sentence)
        self.sent = sent
        """Whether the request may have reached the server: if so, its outcome is unknown."""


class NotTheProtocol(StreamError):
    """The answer is not one that this protocol knows."""


class Refused(StreamError):
    """The server answered with an error; `code` and `detail` are those of its problem+json body."""

    def __init__(self, sentence: str, status: int, code: str | None, detail: str | None) -> None:
        super().__init__(sentence)
        self.status = status
        self.code = code
        self.detail = detail


class Missing(Refused):
    """There is no such stream (404), or no longer (410)."""


class Closed(Refused):
    """The stream is closed: it takes no more appends."""


class Unavailable(Refused):
    """Too many requests or trouble at the server: the same request may succeed later."""


class StreamInfo(NamedTuple):
    """What PUT and HEAD tell about a stream (PROTOCOL.md 5.1, 5.5)."""

    url: str
    content_type: str
    next_offset: str
    closed: bool
    ttl_seconds: int | None
    expires_at: str | None
    retain_bytes: int | None
    retain_seconds: int | None
    earliest_offset: str | None
    """Where what is kept begins; told of streams that were cut, or may be."""
    created: bool
    """Whether this request created the stream."""


class Fork(NamedTuple):
    """What a stream is to be forked from (PROTOCOL.md 4.2)."""

    source: str
    """The source's path below the base URL, as plain text."""
    offset: str | None = None
    sub_offset: int | None = None


class Listed(NamedTuple):
    """A stream in a listing, which is an extension of this project's daemon."""

    path: str
    content_type: str
    next_offset: str
    closed: bool
    created_at: str
    size_bytes: int
    forked_from: str | None


class Chunk(NamedTuple):
    """Consecutive bytes of a stream and what was true of it when they were read."""

    data: bytes
    """Raw bytes, or for a JSON stream one array of messages; may be empty."""
    next_offset: str
    content_type: str
    """The stream's, not the response's."""
    up_to_date: bool
    closed: bool
    cursor: str | None


class Appended(NamedTuple):
    """What the server says about an append (PROTOCOL.md 5.2, 5.2.1)."""

    next_offset: str
    duplicate: bool
    """Nothing was done: the server has a request of this producer with this number already."""
    last_seq: int | None
    """The highest number that the server has of the producer's epoch, if it told."""


class Producer(NamedTuple):
    """What makes an append safe to repeat: `seq` counts requests of one `epoch` (5.2.1)."""

    id: str
    epoch: int
    seq: int


@dataclass(frozen=True, slots=True)
class SseEvent:
    """One dispatched event; `data` keeps the bytes as they came, its lines joined by LF."""

    name: bytes
    data: bytes


class SseParser:
    """Cuts a Server-Sent Events body that arrives in pieces into events, as the standard says.

    Lines end in CR, LF or CRLF, also across pieces; one space after the colon is dropped; comments,
    unknown fields, events without data, and an event that the body's end cuts off are ignored.
    """

    _LINE_END = re.compile(rb"\r\n|\r|\n")
    _BOM = b"\xef\xbb\xbf"

    def __init__(self, event_bytes_max: int = ANSWER_BYTES_MAX) -> None:
        self._event_bytes_max = event_bytes_max
        self._event_bytes = 0  # of the lines of the event so far
        self._line: list[bytes] = []  # the line so far, in pieces
        self._line_bytes = 0
        self._name = b""
        self._data: list[bytes] = []
        self._after_cr = False
        self._first_line = True

    def feed(self, piece: bytes) -> list[SseEvent]:
        """Return the events that `piece` completes; NotTheProtocol if one exceeds its limit."""
        if self._after_cr:
            piece = piece.removeprefix(b"\n")
            self._after_cr = False
        self._after_cr = piece.endswith(b"\r")
        events: list[SseEvent] = []
        *ended, rest = self._LINE_END.split(piece)
        for end in ended:
            self._line.append(end)
            self._take_line(b"".join(self._line), events)
            self._line = []
            self._line_bytes = 0
        self._line.append(rest)
        self._line_bytes += len(rest)
        if self._event_bytes + self._line_bytes > self._event_bytes_max:
            raise NotTheProtocol(f"an event is larger than {self._event_bytes_max} bytes")
        return events

    def _take_line(self, line: bytes, events: list[SseEvent]) -> None:
        if self._first_line:
            self._first_line = False
            line = line.removeprefix(self._BOM)
        if not line:
            if self._data:
                events.append(SseEvent(self._name or b"message", b"\n".join(self._data)))
            self._name = b""
            self._data = []
            self._event_bytes = 0
            return
        self._event_bytes += len(line)
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
        elif field == b"event":
            self._name = value


def is_json(content_type: str) -> bool:
    """Whether a stream of this type is in JSON mode: only `application/json`, parameters aside."""
    return content_type.partition(";")[0].strip().lower() == "application/json"


class StreamClient:
    """A connection pool to one server; use it as an async context manager.

    Every method raises Unreachable, NotTheProtocol or Refused (see the tree above); a `path` is
    plain text below `base_url` and is percent-encoded here, once.
    """

    def __init__(self, base_url: str, *, authorization: str | None = None) -> None:
        """`authorization` is the whole header value, such as `Bearer TOKEN`."""
        self._base_url = str(URL(base_url)).rstrip("/")
        self._headers = {"Authorization": authorization} if authorization else {}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(keepalive_timeout=KEEPALIVE_SECONDS_MAX),
            timeout=aiohttp.ClientTimeout(
                sock_connect=CONNECT_SECONDS_MAX, sock_read=SILENCE_SECONDS_MAX
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=self._headers,
            skip_auto_headers={"Content-Type"},
        )
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._session is not None:
            await self._session.close()

    def url(self, path: str) -> str:
        """The full URL of a stream; a path's bytes that are not UTF-8 go through as they are."""
        encoded = quote(path.encode("utf-8", "surrogateescape"), safe="/!$&'()*+,;=:@~")
        return f"{self._base_url}/{encoded}"

    async def create(
        self,
        path: str,
        *,
        content_type: str | None = None,
        ttl_seconds: int | None = None,
        expires_at: str | None = None,
        retain_bytes: int | None = None,
        retain_seconds: int | None = None,
        closed: bool = False,
        fork: Fork | None = None,
    ) -> StreamInfo:
        """Create a stream, or find it as described (5.1); Refused (409) if it differs.

        With `fork` it begins with what the source holds (4.2).
        """
        headers = {
            "Content-Type": content_type,
            "Stream-TTL": None if ttl_seconds is None else str(ttl_seconds),
            "Stream-Expires-At": expires_at,
            "Stream-Retain-Bytes": None if retain_bytes is None else str(retain_bytes),
            "Stream-Retain-Seconds": None if retain_seconds is None else str(retain_seconds),
            "Stream-Closed": "true" if closed else None,
        }
        if fork is not None:
            headers |= {
                "Stream-Forked-From": URL(self.url(fork.source), encoded=True).raw_path,
                "Stream-Fork-Offset": fork.offset,
                "Stream-Fork-Sub-Offset": None if fork.sub_offset is None else str(fork.sub_offset),
            }
        async with self._request("PUT", path, {200, 201}, headers=headers) as response:
            return _info(response)

    async def append(
        self,
        path: str,
        data: bytes,
        *,
        content_type: str | None = None,
        close: bool = False,
        producer: Producer | None = None,
    ) -> Appended:
        """Append `data`, close the stream, or both at once (5.2, 5.3).

        Empty `data` needs `close`. After Unreachable with `sent` the outcome is unknown; only with
        a `producer` is it safe to send the same again. Raises Closed if the stream is closed.
        """
        headers = {
            "Content-Type": content_type if data else None,
            "Stream-Closed": "true" if close else None,
        }
        if producer is not None:
            headers |= {
                "Producer-Id": producer.id,
                "Producer-Epoch": str(producer.epoch),
                "Producer-Seq": str(producer.seq),
            }
        async with self._request(
            "POST", path, {200, 204}, headers=headers, body=data or None
        ) as response:
            # A close without data is answered 204 in any case; what counts is that it is closed.
            undone = bool(data) or (close and not _is_closed(response))
            return Appended(
                next_offset=_next_offset(response),
                duplicate=producer is not None and response.status == 204 and undone,
                last_seq=_number(response.headers.get("Producer-Seq", "")),
            )

    async def head(self, path: str) -> StreamInfo:
        """Metadata of a stream (5.5)."""
        async with self._request("HEAD", path, {200}) as response:
            return _info(response)

    async def delete(self, path: str) -> None:
        """Delete a stream (5.4)."""
        async with self._request("DELETE", path, {200, 202, 204}):
            pass

    async def streams(self, prefix: str = "") -> AsyncIterator[Listed]:
        """All streams whose paths begin with `prefix`, in the order of their paths."""
        query = {"prefix": prefix, "limit": str(PAGE_STREAMS)}
        while True:
            async with self._request("GET", "__ds/streams", {200}, query=query) as response:
                streams, after = _page(await _body(response), str(response.url))
            for stream in streams:
                yield stream
            if after is None:
                return
            query["after"] = after

    async def read(self, path: str, offset: str) -> Chunk:
        """One chunk from `offset` on, without waiting (5.6); `-1` is the start, `now` the tail."""
        async with self._request("GET", path, {200}, query={"offset": offset}) as response:
            return await _chunk(response)

    async def read_chunks(self, path: str, offset: str) -> AsyncIterator[Chunk]:
        """All chunks from `offset` to the tail as it is when the last one is read (5.6)."""
        while True:
            chunk = await self.read(path, offset)
            yield chunk
            if chunk.up_to_date or chunk.closed or chunk.next_offset == offset:
                return
            offset = chunk.next_offset

    async def poll(self, path: str, offset: str, cursor: str | None = None) -> Chunk:
        """One long-poll (5.7): data that is or gets there, or an empty chunk at the time-out."""
        query = {"offset": offset, "live": "long-poll"}
        if cursor is not None:
            query["cursor"] = cursor
        async with self._request("GET", path, {200, 204}, query=query) as response:
            return await _chunk(response)

    async def listen(
        self, path: str, offset: str, content_type: str, cursor: str | None = None
    ) -> AsyncGenerator[Chunk, None]:
        """One SSE connection (5.8) until the server ends it; `content_type` is the stream's.

        Data is kept back until the control event that tells the offset behind it, so that a
        connection cut between the two repeats nothing. Of several data events before one control
        event only the last moves `next_offset`. Text has lost its CRs: SSE cannot carry them.
        """
        query = {"offset": offset, "live": "sse"}
        if cursor is not None:
            query["cursor"] = cursor
        async with self._request("GET", path, {200}, query=query) as response:
            if response.content_type != "text/event-stream":
                raise NotTheProtocol(f"{response.url} answers {response.content_type}, not SSE")
            in_base64 = response.headers.get("Stream-SSE-Data-Encoding", "").lower() == "base64"
            parser = SseParser()
            held: list[bytes] = []
            held_bytes = 0
            async for piece in response.content.iter_any():
                for event in parser.feed(piece):
                    if event.name == b"data":
                        held.append(_from_base64(event.data) if in_base64 else event.data)
                        held_bytes += len(held[-1])
                        if held_bytes > ANSWER_BYTES_MAX:
                            raise NotTheProtocol("too much data without a control event")
                    elif event.name == b"control":
                        control = _control(event.data, content_type)
                        for data in held[:-1]:
                            yield control._replace(
                                data=data, next_offset=offset, up_to_date=False, closed=False
                            )
                        yield control._replace(data=held[-1] if held else b"")
                        held, held_bytes, offset = [], 0, control.next_offset
                        if control.closed:
                            return

    @asynccontextmanager
    async def _request(
        self,
        method: str,
        path: str,
        good: set[int],
        *,
        headers: Mapping[str, str | None] | None = None,
        query: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send one request and turn everything but a status in `good` into a StreamError."""
        assert self._session is not None, "StreamClient is used outside `async with`"
        url = URL(self.url(path), encoded=True)
        try:
            async with self._session.request(
                method,
                URL(f"{url}?{_encoded(query)}", encoded=True) if query else url,
                headers={name: value for name, value in (headers or {}).items() if value},
                data=body,
                # A redirected POST becomes a GET in disguise, or sends the credentials elsewhere.
                allow_redirects=method in ("GET", "HEAD"),
            ) as response:
                if response.status not in good:
                    raise await _refusal(response, str(url))
                yield response
        except aiohttp.ClientConnectorError as error:
            number = error.os_error.errno
            reason = os.strerror(number).lower() if number else str(error.os_error)
            raise Unreachable(f"cannot connect to {url} ({reason})", sent=False) from error
        except aiohttp.ConnectionTimeoutError as error:
            reason = f"no answer in {CONNECT_SECONDS_MAX:g} s"
            raise Unreachable(f"cannot connect to {url} ({reason})", sent=False) from error
        except (aiohttp.InvalidURL, aiohttp.ClientResponseError) as error:
            raise NotTheProtocol(f"{url} does not answer in HTTP as expected ({error})") from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            silent = isinstance(error, TimeoutError)
            reason = f" (nothing came for {SILENCE_SECONDS_MAX:g} s)" if silent else ""
            raise Unreachable(f"connection lost: {url}{reason}", sent=True) from error


def _info(response: aiohttp.ClientResponse) -> StreamInfo:
    return StreamInfo(
        url=str(response.url),
        content_type=response.headers.get("Content-Type", "application/octet-stream"),
        next_offset=_next_offset(response),
        closed=_is_closed(response),
        ttl_seconds=_number(response.headers.get("Stream-TTL", "")),
        expires_at=response.headers.get("Stream-Expires-At"),
        retain_bytes=_number(response.headers.get("Stream-Retain-Bytes", "")),
        retain_seconds=_number(response.headers.get("Stream-Retain-Seconds", "")),
        earliest_offset=response.headers.get("Stream-Earliest-Offset"),
        created=response.status == 201,
    )


async def _chunk(response: aiohttp.ClientResponse) -> Chunk:
    return Chunk(
        data=await _body(response),
        next_offset=_next_offset(response),
        content_type=response.headers.get("Content-Type", "application/octet-stream"),
        up_to_date="Stream-Up-To-Date" in response.headers,
        closed=_is_closed(response),
        cursor=response.headers.get("Stream-Cursor"),
    )


def _encoded(query: Mapping[str, str]) -> str:
    """A query whose values are percent-encoded as paths are: no plus stands for a space."""
    return "&".join(
        f"{name}={quote(value.encode('utf-8', 'surrogateescape'), safe='/~')}"
        for name, value in query.items()
    )


def _page(body: bytes, url: str) -> tuple[list[Listed], str | None]:
    """The streams of one page of a listing, and where to go on."""
    try:
        page = json.loads(body)
        streams = [
            Listed(**{name: entry.get(name) for name in Listed._fields})
            for entry in page["streams"]
        ]
        after = page.get("next")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NotTheProtocol(f"{url} does not answer with a list of streams") from error
    return streams, after if isinstance(after, str) else None


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def _next_offset(response: aiohttp.ClientResponse) -> str:
    try:
        return response.headers["Stream-Next-Offset"]
    except KeyError:
        raise NotTheProtocol(
            f"{response.url} answers without Stream-Next-Offset: it is no Durable Streams server"
        ) from None


def _is_closed(response: aiohttp.ClientResponse) -> bool:
    return response.headers.get("Stream-Closed", "").lower() == "true"


async def _body(response: aiohttp.ClientResponse) -> bytes:
    pieces: list[bytes] = []
    size = 0
    async for piece in response.content.iter_any():
        pieces.append(piece)
        size += len(piece)
        if size > ANSWER_BYTES_MAX:
            raise NotTheProtocol(f"{response.url} answers more than {ANSWER_BYTES_MAX} bytes")
    return b"".join(pieces)


def _from_base64(text: bytes) -> bytes:
    try:
        return base64.b64decode(text.translate(None, b"\r\n"), validate=True)
    except binascii.Error as error:
        raise NotTheProtocol(f"a data event is not base64 ({error})") from error


def _control(text: bytes, content_type: str) -> Chunk:
    try:
        control = json.loads(text)
        next_offset = control["streamNextOffset"]
    except (ValueError, KeyError, TypeError) as error:
        raise NotTheProtocol("a control event has no streamNextOffset") from error
    closed = control.get("streamClosed") is True
    cursor = control.get("streamCursor")
    return Chunk(
        data=b"",
        next_offset=str(next_offset),
        content_type=content_type,
        up_to_date=closed or control.get("upToDate") is True,
        closed=closed,
        cursor=cursor if isinstance(cursor, str) else None,
    )


async def _refusal(response: aiohttp.ClientResponse, url: str) -> Refused:
    """The error that a response of the wrong status stands for."""
    status = response.status
    code, detail = _problem(response, await response.content.read(ERROR_BODY_BYTES_MAX))
    kind: type[Refused] = Refused
    if status == 404 and code == "no-such-route":
        kind, sentence = Missing, f"{url} is not the URL of a stream"
    elif status == 404 and code == "fork-source-not-found":
        kind, sentence = Missing, "there is no such stream to fork"
    elif status == 404:
        kind, sentence = Missing, f"no stream at {url}"
    elif status == 410 and (earliest := response.headers.get("Stream-Earliest-Offset")):
        sentence = f"that offset is not kept any more, the stream begins at {earliest}"
    elif status == 410:
        kind, sentence = Missing, f"{url} is gone"
    elif status == 409 and _is_closed(response):
        kind, sentence = Closed, f"{url} is closed and takes no more appends"
    elif status in (429, 500, 502, 503, 504, 507):
        kind, sentence = Unavailable, f"the server cannot do this now, status {status}"
    elif status == 403 and "Producer-Epoch" in response.headers:
        epoch = response.headers["Producer-Epoch"]
        sentence = f"another producer of this id took over with epoch {epoch}"
    elif status == 409 and (expected := _gap(response)):
        sentence = f"the server expects this producer's request number {expected}"
    elif 300 <= status < 400:
        target = response.headers.get("Location", "elsewhere")
        sentence = f"{url} redirects to {target}: use that URL"
    else:
        sentence = f"the server refused this, status {status}"
    if detail and code not in TOLD_WITHOUT_DETAIL:
        sentence += f": {detail.removesuffix('.')}"
    return kind(sentence, status, code, detail)


def _gap(response: aiohttp.ClientResponse) -> str | None:
    expected = response.headers.get("Producer-Expected-Seq")
    return expected if expected != response.headers.get("Producer-Received-Seq") else None


def _problem(response: aiohttp.ClientResponse, body: bytes) -> tuple[str | None, str | None]:
    """`code` and `detail` of a problem body; of a plain-text one, its first line as `detail`."""
    code = detail = None
    if response.content_type in ("application/problem+json", "application/json"):
        try:
            problem = json.loads(body)
        except ValueError:
            problem = None
        if isinstance(problem, dict):
            inner = problem.get("error")  # the shape of the reserved routes
            problem = inner if isinstance(inner, dict) else problem
            code = problem.get("code")
            detail = problem.get("detail") or problem.get("title") or problem.get("message")
    elif response.content_type == "text/plain":
        detail = body.decode("utf-8", "replace").partition("\n")[0].strip()
    return (
        code if isinstance(code, str) else None,
        _printable(detail)[:DETAIL_CHARACTERS_MAX] if isinstance(detail, str) and detail else None,
    )


def _printable(text: str) -> str:
    """`text` without what could steer a terminal."""
    return "".join(character if character.isprintable() else " " for character in text)
