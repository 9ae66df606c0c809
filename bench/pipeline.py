"""Connections with several requests in flight, for work that is large rather than measured closely.

A million streams are created, and a hundred thousand are read back, without waiting for one answer
before the next request is sent. Answers come in the order of the requests, so each is given to
`Work.answered` with the number of its request. Only as much of an answer is read as shows where it
ends.
"""

import asyncio
import re
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import cast

from bench.connections import connect, until, watch
from bench.measure import LoadError
from bench.wire import HEAD_BYTES_MAX, SHOWN_BYTES_MAX, Address

__all__ = ["Pipeline", "answer_at", "create_streams", "exchange", "read_back"]

REQUESTS_IN_FLIGHT = 32
"""On each connection; little enough that no server's or socket's buffer is ever the limit."""

ANSWER_BYTES_MAX = 64 << 20

_STATUS = re.compile(rb"HTTP/1\.1 (\d\d\d) ")
_LENGTH = re.compile(
    rb"\r\n(?:content-length: *(?P<length>\d+)|transfer-encoding: *chunked)\r\n", re.IGNORECASE
)
_CHUNK = re.compile(rb"([0-9a-fA-F]+)[^\r\n]*\r\n")

Answered = Callable[[int, int, bytes, int], None]
"""Is told a request's number, status and body of its answer, and the latency in nanoseconds."""


class Pipeline(asyncio.Protocol):
    """One connection that makes the requests it is given, and tells what was answered."""

    def __init__(
        self,
        requests: Iterator[tuple[int, bytes]],
        answered: Answered,
        ended: Callable[[], None],
        in_flight: int = REQUESTS_IN_FLIGHT,
    ) -> None:
        """`requests` gives a number and the bytes of each request; `ended` is called when all
        were answered, and the connection is closed then."""
        self._requests = requests
        self._answered = answered
        self._ended = ended
        self._in_flight_max = in_flight
        self._in_flight: deque[tuple[int, int]] = deque()
        """Number of each request, and when it was sent, by `time.perf_counter_ns`."""
        self._exhausted = False
        self._received = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it
        self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._exhausted or self._in_flight:
            raise LoadError(f"a connection was cut with {len(self._in_flight)} requests in flight")

    def data_received(self, data: bytes) -> None:
        now_ns = time.perf_counter_ns()
        received, at = self._received + data, 0
        while (found := answer_at(received, at)) is not None:
            status, body, at = found
            if not self._in_flight:
                raise LoadError(f"an answer that nobody asked for: {data[:SHOWN_BYTES_MAX]!r}")
            number, sent_ns = self._in_flight.popleft()
            self._answered(number, status, body, now_ns - sent_ns)
        self._received = received[at:]
        if len(self._received) > ANSWER_BYTES_MAX:
            raise LoadError(f"an answer of more than {ANSWER_BYTES_MAX} bytes")
        if at:
            self._send()

    def _send(self) -> None:
        """Have as many requests in flight as there may be."""
        assert self._transport is not None
        now_ns = time.perf_counter_ns()
        pieces = []
        while not self._exhausted and len(self._in_flight) < self._in_flight_max:
            request = next(self._requests, None)
            if request is None:
                self._exhausted = True
                break
            number, piece = request
            self._in_flight.append((number, now_ns))
            pieces.append(piece)
        if pieces:
            self._transport.write(b"".join(pieces))
        elif self._exhausted and not self._in_flight:
            self._transport.close()
            self._ended()


async def exchange(
    address: Address,
    connections: int,
    requests: Iterator[tuple[int, bytes]],
    answered: Answered,
    seconds_max: float,
    what: str,
) -> None:
    """Make all these requests over some connections. Raises LoadError if that takes too long.

    `what` is done says the error.
    """
    finished = watch()
    busy = connections

    def ended() -> None:
        nonlocal busy
        busy -= 1
        if not busy:
            finished.set_result(None)

    pipelines = [Pipeline(requests, answered, ended) for _ in range(connections)]
    await connect(address, pipelines, seconds_max)
    await until(finished, seconds_max, lambda: f"{busy} of {connections} connections still {what}")


async def create_streams(
    address: Address,
    connections: int,
    names: Iterable[str],
    content_type: str,
    seconds_max: float,
) -> "array[int]":
    """Create streams, as many as can be in `seconds_max`; raises LoadError if one is refused.

    The result is the latencies in nanoseconds, one for each stream that was created.
    """
    begin, _, end = address.head("PUT", "|", f"Content-Type: {content_type}").partition(b"|")
    deadline = time.monotonic() + seconds_max
    latencies_ns = array("q")

    def requests() -> Iterator[tuple[int, bytes]]:
        for number, name in enumerate(names):
            if time.monotonic() > deadline:
                return
            yield number, begin + name.encode() + end

    def answered(number: int, status: int, body: bytes, latency_ns: int) -> None:
        if status != 201:
            shown = body[:SHOWN_BYTES_MAX]
            raise LoadError(f"the PUT of stream {number} was answered {status}: {shown!r}")
        latencies_ns.append(latency_ns)

    seconds_max *= 2  # so that what is in flight at the deadline may still be answered
    await exchange(address, connections, requests(), answered, seconds_max, "create streams")
    return latencies_ns


async def read_back(
    address: Address,
    connections: int,
    names: Iterable[str],
    is_right: Callable[[int, bytes], bool],
    seconds_max: float,
) -> "array[int]":
    """Read these streams, each in one answer; the result is the latencies in nanoseconds.

    `is_right` tells, of the name with this number, whether the stream holds what it should. Raises
    LoadError for the first that does not.
    """
    asked: dict[int, str] = {}
    latencies_ns = array("q")

    def requests() -> Iterator[tuple[int, bytes]]:
        for number, name in enumerate(names):
            asked[number] = name
            yield number, address.head("GET", f"{name}?offset=-1")

    def answered(number: int, status: int, body: bytes, latency_ns: int) -> None:
        name = asked.pop(number)
        if status != 200:
            raise LoadError(f"GET {name} was answered {status}: {body[:SHOWN_BYTES_MAX]!r}")
        if not is_right(number, body):
            raise LoadError(f"stream {name} was read back wrong, {len(body)} bytes")
        latencies_ns.append(latency_ns)

    await exchange(address, connections, requests(), answered, seconds_max, "read streams back")
    return latencies_ns


def answer_at(data: bytes, at: int) -> tuple[int, bytes, int] | None:
    """Status and body of the answer at this place, and where it ends; None if not all has come."""
    head_end = data.find(b"\r\n\r\n", at)
    if head_end < 0:
        if len(data) - at > HEAD_BYTES_MAX:
            raise LoadError(f"a response head of more than {HEAD_BYTES_MAX} bytes")
        return None
    match = _STATUS.match(data, at)
    if match is None:
        raise LoadError(f"not a status line: {data[at:][:SHOWN_BYTES_MAX]!r}")
    status, at = int(match[1]), head_end + 4
    if status in (204, 304):
        return status, b"", at
    length = _LENGTH.search(data, match.end(), head_end + 2)
    if length is None:
        raise LoadError(f"an answer {status} that does not say where it ends")
    if length["length"] is None:
        return _chunked_at(data, at, status)
    end = at + int(length["length"])
    return None if len(data) < end else (status, data[at:end], end)


def _chunked_at(data: bytes, at: int, status: int) -> tuple[int, bytes, int] | None:
    pieces: list[bytes] = []
    while (line := _CHUNK.match(data, at)) is not None:
        begin = line.end()
        end = begin + int(line[1], 16)
        if len(data) < end + 2:
            return None
        if data[end : end + 2] != b"\r\n":
            raise LoadError("a chunk is longer than it says")
        at = end + 2
        if begin == end:
            return status, b"".join(pieces), at
        pieces.append(data[begin:end])
    if data.find(b"\r\n", at) >= 0:
        raise LoadError(f"not a chunk: {data[at:][:SHOWN_BYTES_MAX]!r}")
    return None
