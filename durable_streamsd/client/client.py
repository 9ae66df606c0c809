"""One method for one request.

Invariants:
- Each `Chunk` is whole: its bytes and the offset behind them come from one answer, so a caller that
  remembers `next_offset` only after it used `data` neither skips nor repeats a byte.
- No request is repeated here. Whether that is safe is known to whoever holds the offset or the
  producer state; `cli/client_follow.py` resumes reads, `cli/client_write.py` repeats appends.
- Nothing read is unbounded: answers end at `ANSWER_BYTES_MAX`, events at `EVENT_BYTES_MAX`.
"""

import json
import os
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Self
from urllib.parse import quote

import aiohttp
from yarl import URL

from durable_streamsd.client.answers import (
    body_of,
    chunk_of,
    control_of,
    from_base64,
    info_of,
    is_closed,
    next_offset_of,
    number_of,
    page_of,
    refusal_of,
    token_of,
)
from durable_streamsd.client.errors import NotTheProtocol, Unreachable
from durable_streamsd.client.sse import EVENT_BYTES_MAX, SseParser
from durable_streamsd.client.values import Appended, Chunk, Fork, Listed, Producer, StreamInfo

PAGE_STREAMS = 1_000
CONNECT_SECONDS_MAX = 10.0
# Longer than any sensible long-poll time-out and any heartbeat: past it the connection is dead.
SILENCE_SECONDS_MAX = 90.0
# Shorter than servers keep an idle connection (Node: 5 s): an append must not meet one just closed.
KEEPALIVE_SECONDS_MAX = 4.0


class StreamClient:
    """A connection pool to one server; use it as an async context manager.

    Every method raises Unreachable, NotTheProtocol or Refused (see `errors`); a `path` is
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
            return info_of(response)

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
            undone = bool(data) or (close and not is_closed(response))
            return Appended(
                next_offset=next_offset_of(response),
                duplicate=producer is not None and response.status == 204 and undone,
                last_seq=number_of(response.headers.get("Producer-Seq", "")),
            )

    async def head(self, path: str) -> StreamInfo:
        """Metadata of a stream (5.5)."""
        async with self._request("HEAD", path, {200}) as response:
            return info_of(response)

    async def delete(self, path: str) -> None:
        """Delete a stream (5.4)."""
        async with self._request("DELETE", path, {200, 202, 204}):
            pass

    async def streams(self, prefix: str = "") -> AsyncIterator[Listed]:
        """All streams whose paths begin with `prefix`, in the order of their paths."""
        query = {"prefix": prefix, "limit": str(PAGE_STREAMS)}
        while True:
            async with self._request("GET", "__ds/streams", {200}, query=query) as response:
                streams, after = page_of(await body_of(response), str(response.url))
            for stream in streams:
                yield stream
            if after is None:
                return
            query["after"] = after

    async def lend(self, path: str, ttl_seconds: int) -> str:
        """A token that reads one stream for so long; an extension of this project's daemon."""
        body = json.dumps({"path": path, "ttl_s": ttl_seconds}).encode()
        async with self._request("POST", "__ds/tokens", {200}, body=body) as response:
            return token_of(await body_of(response), str(response.url))

    async def read(self, path: str, offset: str) -> Chunk:
        """One chunk from `offset` on, without waiting (5.6); `-1` is the start, `now` the tail."""
        async with self._request("GET", path, {200}, query={"offset": offset}) as response:
            return await chunk_of(response)

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
            return await chunk_of(response)

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
                        held.append(from_base64(event.data) if in_base64 else event.data)
                        held_bytes += len(held[-1])
                        if held_bytes > EVENT_BYTES_MAX:
                            raise NotTheProtocol("too much data without a control event")
                    elif event.name == b"control":
                        control = control_of(event.data, content_type)
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
                    raise await refusal_of(response, str(url))
                yield response
        except aiohttp.ClientConnectorError as error:
            reason = _reason(error.os_error)
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


def _encoded(query: Mapping[str, str]) -> str:
    """A query whose values are percent-encoded as paths are: no plus stands for a space."""
    return "&".join(
        f"{name}={quote(value.encode('utf-8', 'surrogateescape'), safe='/~')}"
        for name, value in query.items()
    )


def _reason(error: OSError) -> str:
    """Why there is no connection, in a few words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {error.reason or error}"
    return os.strerror(error.errno).lower() if error.errno else str(error)
