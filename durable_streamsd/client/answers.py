"""What a server's answers say: headers, bodies and control events as values, refusals as errors."""

import base64
import binascii
import json

import aiohttp

from durable_streamsd.client.errors import (
    Closed,
    Missing,
    NotTheProtocol,
    Refused,
    Unavailable,
)
from durable_streamsd.client.values import Chunk, Listed, StreamInfo

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


def info_of(response: aiohttp.ClientResponse) -> StreamInfo:
    """What the headers of an answer to PUT or HEAD tell."""
    return StreamInfo(
        url=str(response.url),
        content_type=response.headers.get("Content-Type", "application/octet-stream"),
        next_offset=next_offset_of(response),
        closed=is_closed(response),
        ttl_seconds=number_of(response.headers.get("Stream-TTL", "")),
        expires_at=response.headers.get("Stream-Expires-At"),
        retain_bytes=number_of(response.headers.get("Stream-Retain-Bytes", "")),
        retain_seconds=number_of(response.headers.get("Stream-Retain-Seconds", "")),
        earliest_offset=response.headers.get("Stream-Earliest-Offset"),
        created=response.status == 201,
    )


async def chunk_of(response: aiohttp.ClientResponse) -> Chunk:
    """The chunk that a read was answered with."""
    return Chunk(
        data=await body_of(response),
        next_offset=next_offset_of(response),
        content_type=response.headers.get("Content-Type", "application/octet-stream"),
        up_to_date="Stream-Up-To-Date" in response.headers,
        closed=is_closed(response),
        cursor=response.headers.get("Stream-Cursor"),
    )


def page_of(body: bytes, url: str) -> tuple[list[Listed], str | None]:
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


def number_of(text: str) -> int | None:
    """A header's number; None for anything else."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


def next_offset_of(response: aiohttp.ClientResponse) -> str:
    """Where the stream goes on. Raises NotTheProtocol."""
    try:
        return response.headers["Stream-Next-Offset"]
    except KeyError:
        raise NotTheProtocol(
            f"{response.url} answers without Stream-Next-Offset: it is no Durable Streams server"
        ) from None


def is_closed(response: aiohttp.ClientResponse) -> bool:
    """Whether the answer says that the stream is closed."""
    return response.headers.get("Stream-Closed", "").lower() == "true"


async def body_of(response: aiohttp.ClientResponse) -> bytes:
    """A whole body. Raises NotTheProtocol if it is too large."""
    pieces: list[bytes] = []
    size = 0
    async for piece in response.content.iter_any():
        pieces.append(piece)
        size += len(piece)
        if size > ANSWER_BYTES_MAX:
            raise NotTheProtocol(f"{response.url} answers more than {ANSWER_BYTES_MAX} bytes")
    return b"".join(pieces)


def from_base64(text: bytes) -> bytes:
    """The bytes of a data event. Raises NotTheProtocol."""
    try:
        return base64.b64decode(text.translate(None, b"\r\n"), validate=True)
    except binascii.Error as error:
        raise NotTheProtocol(f"a data event is not base64 ({error})") from error


def control_of(text: bytes, content_type: str) -> Chunk:
    """What a control event says, with no data yet. Raises NotTheProtocol."""
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


async def refusal_of(response: aiohttp.ClientResponse, url: str) -> Refused:
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
    elif status == 409 and is_closed(response):
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
