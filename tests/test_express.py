"""The express lane from the inside: one connection on a transport that only remembers.

Here what arrives is cut exactly where a test wants it, and the socket's buffer is full exactly when
a test says so. The real store answers; `test_http_robustness` has the real sockets.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import os
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from raw_http import encode

from durable_streamsd.config import Settings
from durable_streamsd.core.effects import Offload
from durable_streamsd.core.live import Reader
from durable_streamsd.core.message import Request, Response
from durable_streamsd.core.problems import Code
from durable_streamsd.daemon import build_services
from durable_streamsd.edge.connections import Guest
from durable_streamsd.express import connection as connection_module
from durable_streamsd.express import lane as lane_module
from durable_streamsd.express.body import Body, ChunkedBody, SizedBody, body_of
from durable_streamsd.express.connection import Connection
from durable_streamsd.express.head import CHUNKED, Head, Refused, parse_head
from durable_streamsd.express.lane import REMEMBERED_HEAD_BYTES_MAX, Lane
from durable_streamsd.services import Services
from storage.disk import Disk
from storage.store import Store

TEXT = "Content-Type: text/plain"
PATH = "/v1/stream/test"


class Transport(asyncio.Transport):
    """What a connection wrote, and what it asked for."""

    def __init__(self) -> None:
        super().__init__({"peername": ("192.0.2.1", 1234)})
        self.written = b""
        self.writes = 0
        self.reading = True
        self.eof = False
        self.closed = False
        self.aborted = False
        self.protocol: asyncio.BaseProtocol | None = None
        self.changed = asyncio.Event()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.eof
        self.written += bytes(data)
        self.writes += 1
        self.changed.set()

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def write_eof(self) -> None:
        self.eof = True
        self.changed.set()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True
        self.changed.set()

    def abort(self) -> None:
        self.closed = self.aborted = True
        self.changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition on what was written or asked for."""
        async with asyncio.timeout(20):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    async def answers(self, count: int) -> list[int]:
        """Wait for so many answers; returns their statuses."""
        await self.until(lambda: len(self.statuses) >= count)
        return self.statuses

    @property
    def statuses(self) -> list[int]:
        return [int(part[:3]) for part in self.written.split(b"HTTP/1.1 ")[1:]]


class FailingDisk(Disk):
    """A disk whose syncs fail from the moment that it is told so."""

    error: int | None = None

    def sync(self, fd: int) -> None:
        if self.error is not None:
            raise OSError(self.error, os.strerror(self.error))
        super().sync(fd)


class Foreign(asyncio.Protocol):
    """Stands for a connection of the general lane."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.received = b""

    def data_received(self, data: bytes) -> None:
        self.received += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.services.connections.leave(cast(Guest, self))


class Bench:
    """A lane on a store, and connections on it."""

    def __init__(self, store: Store, settings: Settings) -> None:
        loop = asyncio.get_running_loop()
        self.services = build_services(settings, store, loop, lambda: None)
        self.lane = Lane(self.services, lambda: Foreign(self.services))
        self.services.committer.start()

    def connect(self) -> tuple[Connection, Transport]:
        """A new connection."""
        connection, transport = self.lane(), Transport()
        connection.connection_made(transport)
        return connection, transport

    async def ask(self, *requests: bytes) -> list[bytes]:
        """Send each request on a connection of its own; returns the answers' bodies."""
        bodies = []
        for request in requests:
            connection, transport = self.connect()
            connection.data_received(request)
            await transport.answers(1)
            bodies.append(transport.written.partition(b"\r\n\r\n")[2])
            connection.connection_lost(None)
        return bodies

    async def content(self) -> bytes:
        """What the test stream holds."""
        return (await self.ask(encode("GET", PATH)))[0]


Scenario = Callable[[Bench], Awaitable[None]]
Run = Callable[..., None]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Runs a scenario on a bench with a text stream at PATH; afterwards nothing may be left."""

    def run_scenario(scenario: Scenario, disk: Disk | None = None, **settings: Any) -> None:
        async def main() -> None:
            store = Store.open(tmp_path / "data", disk=disk)
            bench = Bench(store, Settings(**settings))
            try:
                await bench.ask(encode("PUT", PATH, TEXT))
                await scenario(bench)
                for guest in list(bench.services.connections._guests):
                    cast(asyncio.Protocol, guest).connection_lost(None)
                assert bench.services.connections.count == 0
                assert len(bench.services.hub) == 0
                assert len(bench.services.wheel) == 0
                assert bench.services.answers.outstanding_bytes == 0
            finally:
                await bench.services.committer.drained()
                bench.services.committer.stop()
                bench.services.workers.stop()
                bench.services.wheel.stop()
                store.close()

        asyncio.run(main())

    yield run_scenario


CHUNKED_POST = (
    f"POST {PATH} HTTP/1.1\r\nHost: test\r\n{TEXT}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    + b"5;a=b\r\nhello\r\n1\r\n,\r\n0\r\nX-Trailer: y\r\n\r\n"
)


@pytest.mark.parametrize(
    "request_bytes",
    [encode("POST", PATH, TEXT, body=b"hello,"), CHUNKED_POST],
    ids=["sized", "chunked"],
)
def test_a_request_may_be_split_anywhere(run: Run, request_bytes: bytes) -> None:
    """Two pieces, cut at every byte, with the next request behind: always the same effect."""

    async def scenario(bench: Bench) -> None:
        data = request_bytes + encode("GET", f"{PATH}?offset=-1")
        for cut in range(1, len(data)):
            connection, transport = bench.connect()
            connection.data_received(data[:cut])
            connection.data_received(data[cut:])
            assert (await transport.answers(2))[:2] == [204, 200]
            connection.connection_lost(None)
        assert await bench.content() == b"hello," * (len(data) - 1)

    run(scenario)


def test_a_plain_append_is_one_write(run: Run) -> None:
    """Head and body of the answer leave in one piece, and many requests' answers one by one."""

    async def scenario(bench: Bench) -> None:
        connection, transport = bench.connect()
        connection.data_received(encode("POST", PATH, TEXT, body=b"x" * 100))
        await transport.answers(1)
        assert transport.writes == 1
        connection.data_received(encode("GET", PATH) * 5)
        await transport.answers(6)
        assert transport.writes == 6

    run(scenario)


def test_requests_of_one_turn_share_a_batch(run: Run) -> None:
    """What arrives on many connections in one turn of the loop costs one sync."""

    async def scenario(bench: Bench) -> None:
        connections = [bench.connect() for _ in range(50)]
        before = bench.services.store._durable_sequence
        for connection, _ in connections:
            connection.data_received(encode("POST", PATH, TEXT, body=b"x"))
        for _, transport in connections:
            assert await transport.answers(1) == [204]
        assert bench.services.store._durable_sequence == before + 1

    run(scenario)


def test_reading_is_paused_while_too_much_waits(run: Run) -> None:
    """Behind a long-poll only so many bytes are taken; they are served when it is answered."""

    async def scenario(bench: Bench) -> None:
        connection, transport = bench.connect()
        connection.data_received(encode("GET", f"{PATH}?offset=now&live=long-poll"))
        request = encode("POST", PATH, TEXT, body=b"y" * 500)
        for _ in range(4):
            assert transport.reading
            connection.data_received(request)
        assert not transport.reading
        await bench.ask(encode("POST", PATH, TEXT, body=b"x"))
        assert await transport.answers(5) == [200, 204, 204, 204, 204]
        assert transport.reading
        assert await bench.content() == b"x" + b"y" * 2_000

    run(scenario, read_ahead_bytes_max=2_000)


def test_nothing_is_answered_while_the_socket_is_full(run: Run) -> None:
    """A reader that takes nothing costs one answer, however much it asks for."""

    async def scenario(bench: Bench) -> None:
        connection, transport = bench.connect()
        connection.pause_writing()
        connection.data_received(encode("GET", PATH) * 3)
        assert transport.statuses == []
        connection.resume_writing()
        assert transport.statuses == [200, 200, 200]

    run(scenario)


def test_an_event_stream_waits_for_its_socket(run: Run) -> None:
    """While a socket is full its reader is pushed nothing; then it catches up by offset."""

    async def scenario(bench: Bench) -> None:
        connection, transport = bench.connect()
        connection.data_received(encode("GET", f"{PATH}?offset=now&live=sse"))
        await transport.until(lambda: b"upToDate" in transport.written)
        connection.pause_writing()
        await bench.ask(encode("POST", PATH, TEXT, body=b"first"))
        await transport.until(lambda: b"first" in transport.written)
        for number in range(20):
            await bench.ask(encode("POST", PATH, TEXT, body=b"<%d>" % number))
        assert b"<0>" not in transport.written
        connection.resume_writing()
        everything = b"".join(b"<%d>" % number for number in range(20))
        await transport.until(lambda: b"data:" + everything in transport.written)

    run(scenario)


def test_a_foreign_request_moves_the_connection(run: Run) -> None:
    """Every byte from the foreign request on goes to the general lane, none before it."""

    async def scenario(bench: Bench) -> None:
        connection, transport = bench.connect()
        foreign = encode("GET", "/metrics")
        behind = encode("POST", "/elsewhere", body=b"x" * 10) + encode("GET", PATH)
        connection.data_received(encode("POST", PATH, TEXT, body=b"x") + foreign[:10])
        connection.data_received(foreign[10:] + behind[:20])
        await transport.answers(1)
        protocol = cast(Foreign, transport.protocol)
        assert protocol.received == foreign + behind[:20]
        assert bench.services.connections.count == 1

    run(scenario)


def test_a_foreign_request_waits_for_earlier_answers(run: Run) -> None:
    """The connection does not move while an answer is still to be written."""

    async def scenario(bench: Bench) -> None:
        connection, transport = bench.connect()
        connection.data_received(
            encode("GET", f"{PATH}?offset=now&live=long-poll") + encode("GET", "/metrics")
        )
        assert transport.protocol is None
        await bench.ask(encode("POST", PATH, TEXT, body=b"x"))
        await transport.until(lambda: transport.protocol is not None)
        assert transport.statuses == [200]

    run(scenario)


def test_large_bodies_wait_for_each_other(run: Run) -> None:
    """Bodies beyond what may be in memory are not read until others are done, in order."""

    async def scenario(bench: Bench) -> None:
        size = 100_000
        request = encode("POST", PATH, TEXT, body=b"x" * size)
        head_size = len(request) - size
        connections = [bench.connect() for _ in range(3)]
        for connection, _ in connections:
            connection.data_received(request[: head_size + 10])
        assert [transport.reading for _, transport in connections] == [True, False, False]
        connections[1][0].connection_lost(None)  # who gives up is skipped
        connections[0][0].data_received(request[head_size + 10 :])
        await connections[0][1].answers(1)
        assert connections[2][1].reading
        connections[2][0].data_received(request[head_size + 10 :])
        assert await connections[2][1].answers(1) == [204]
        # small ones need no share
        await bench.ask(encode("POST", PATH, TEXT, body=b"y"))

    run(scenario, body_bytes_max=150_000, bodies_bytes_max=150_000)


def test_a_chunked_body_claims_its_share_when_it_grows(run: Run) -> None:
    """Of unknown length, a body may become as large as the limit: that much is set aside."""

    async def scenario(bench: Bench) -> None:
        head = CHUNKED_POST.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
        chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
        one, two = bench.connect(), bench.connect()
        one[0].data_received(head + chunk + chunk)
        two[0].data_received(head + chunk + chunk)
        assert (one[1].reading, two[1].reading) == (True, False)
        one[0].data_received(b"0\r\n\r\n")
        await one[1].answers(1)
        assert two[1].reading
        two[0].data_received(b"0\r\n\r\n")
        assert await two[1].answers(1) == [204]

    run(scenario, body_bytes_max=200_000, bodies_bytes_max=200_000)


def test_expect_is_answered_when_there_is_room(run: Run) -> None:
    """100 Continue is a promise to read: it waits for the body's share of memory."""

    async def scenario(bench: Bench) -> None:
        request = encode("POST", PATH, TEXT, "Expect: 100-continue", body=b"x" * 100_000)
        head = request[:-100_000]
        one, two = bench.connect(), bench.connect()
        one[0].data_received(head)
        two[0].data_received(head)
        assert (one[1].statuses, two[1].statuses) == ([100], [])
        one[0].connection_lost(None)
        assert two[1].statuses == [100]
        two[0].data_received(request[-100_000:])
        assert await two[1].answers(2) == [100, 204]

    run(scenario, body_bytes_max=100_000, bodies_bytes_max=100_000)


def test_a_half_closed_connection_may_wait_for_its_share(run: Run) -> None:
    """The whole body is here, the client waits for its answer, and other bodies are in the way."""

    async def scenario(bench: Bench) -> None:
        request = encode("POST", PATH, TEXT, body=b"x" * 100_000)
        one, two, three = (bench.connect() for _ in range(3))
        one[0].data_received(request[:-1])
        for waiting, data in ((two, request), (three, request[:-1])):
            waiting[0].data_received(data)
            waiting[0].eof_received()
            assert waiting[1].statuses == []
        one[0].data_received(request[-1:])
        assert await two[1].answers(1) == [204]
        assert two[1].closed
        assert await three[1].answers(1) == [400]  # that one broke off

    run(scenario, body_bytes_max=100_000, bodies_bytes_max=100_000)


def test_a_refused_request_lingers(run: Run) -> None:
    """The answer is followed by the end of what we send, then by the client's, within bounds."""

    async def scenario(bench: Bench) -> None:
        connection, transport = bench.connect()
        connection.data_received(b"nonsense\r\n\r\n")
        assert transport.statuses == [400]
        assert transport.eof
        assert not transport.closed
        connection.data_received(b"x" * 500)
        assert not transport.closed
        connection.data_received(b"x" * 501)
        assert transport.closed

    run(scenario, discard_bytes_max=1_000)


def test_a_lost_connection_cancels_its_handler(run: Run) -> None:
    """A live reader that is gone is no longer counted, and its late wake does nothing."""

    async def scenario(bench: Bench) -> None:
        connection, transport = bench.connect()
        connection.data_received(encode("GET", f"{PATH}?offset=now&live=sse"))
        await transport.until(lambda: b"upToDate" in transport.written)
        stream = bench.services.store.visible(b"test")
        assert stream is not None
        assert stream.live_readers == 1
        connection.connection_lost(None)
        assert stream.live_readers == 0
        await bench.ask(encode("POST", PATH, TEXT, body=b"x"))

    run(scenario)


def test_an_append_whose_client_vanished_is_kept(run: Run) -> None:
    """It was accepted as a whole; only nobody is told."""

    async def scenario(bench: Bench) -> None:
        connection, transport = bench.connect()
        connection.data_received(encode("POST", PATH, TEXT, body=b"x"))
        connection.connection_lost(None)
        await bench.ask(encode("POST", PATH, TEXT, body=b"y"))
        assert transport.written == b""
        assert await bench.content() == b"xy"

    run(scenario)


def test_a_bug_in_pushing_without_the_handler_cuts_the_stream(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event that was lost to it must not be followed by others."""

    def broken(_: Reader) -> None:
        raise ZeroDivisionError

    async def scenario(bench: Bench) -> None:
        connection, transport = bench.connect()
        connection.data_received(encode("GET", f"{PATH}?offset=-1&live=sse"))
        await transport.until(lambda: b"upToDate" in transport.written)
        with monkeypatch.context() as patch:
            patch.setattr(Reader, "next_frame", broken)
            await bench.ask(encode("POST", PATH, TEXT, body=b"x"))
            await transport.until(lambda: transport.aborted)
        connection.connection_lost(None)

    run(scenario)


def test_a_remembered_head_with_another_body_is_not_the_same_request(run: Run) -> None:
    """What a head means is remembered, not where its body ends: pieces, pipelining and more than
    one request in a read are read as ever."""

    async def scenario(bench: Bench) -> None:
        connection, transport = bench.connect()
        request = encode("POST", PATH, TEXT, body=b"12345")
        connection.data_received(request)
        await transport.answers(1)
        connection.data_received(request[:-2])
        connection.data_received(request[-2:] + request)
        await transport.answers(3)
        connection.data_received(request + encode("GET", PATH))
        assert await transport.answers(5) == [204, 204, 204, 204, 200]
        assert await bench.content() == b"12345" * 4

    run(scenario)


def test_remembered_heads_are_bounded(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients that send ever new heads, or long ones, fill no memory."""

    async def scenario(bench: Bench) -> None:
        for number in range(20):
            await bench.ask(encode("GET", f"{PATH}?offset=-1&n={number}"))
            assert len(bench.lane.heads) <= 8
        bench.lane.heads.clear()
        await bench.ask(encode("GET", f"{PATH}?offset=-1&{'n' * REMEMBERED_HEAD_BYTES_MAX}"))
        assert not bench.lane.heads

    monkeypatch.setattr(lane_module, "HEADS_MAX", 8)
    run(scenario)


def test_a_bug_on_the_direct_way_is_a_500_and_the_end(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As in any handler: it is logged, the client is told, and nothing else is harmed."""

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    async def scenario(bench: Bench) -> None:
        connection, transport = bench.connect()
        with monkeypatch.context() as patch:
            patch.setattr(Store, "append_plain", broken)
            connection.data_received(encode("POST", PATH, TEXT, body=b"x"))
            assert await transport.answers(1) == [500]
        assert transport.closed
        assert "ZeroDivisionError" in caplog.text
        assert await bench.content() == b""

    run(scenario)


@pytest.mark.parametrize("late", [False, True])
def test_a_bug_in_a_handler_is_a_500_and_the_end(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, late: bool
) -> None:
    """It is logged with its traceback, the client is told, and nothing else is harmed."""

    async def broken(request: Request, context: object) -> Response:
        if late:
            await Offload(lambda: None)
        raise ZeroDivisionError

    async def scenario(bench: Bench) -> None:
        connection, transport = bench.connect()
        with monkeypatch.context() as patch:
            patch.setattr(connection_module, "dispatch", broken)
            connection.data_received(encode("GET", PATH + "?offset=-1&live=long-poll"))
            assert await transport.answers(1) == [500]
        assert b"Connection: close" in transport.written
        assert b'"internal-error"' in transport.written
        assert transport.closed
        assert "ZeroDivisionError" in caplog.text
        assert await bench.content() == b""

    run(scenario)


def test_a_late_result_of_a_thread_is_dropped(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A handler that was cancelled while a thread worked for it stays cancelled."""
    resumed = []

    async def patient(request: Request, context: object) -> Response:
        resumed.append(await Offload(lambda: 1))
        raise AssertionError("resumed after the end")

    async def scenario(bench: Bench) -> None:
        connection, _ = bench.connect()
        with monkeypatch.context() as patch:
            patch.setattr(connection_module, "dispatch", patient)
            connection.data_received(encode("GET", PATH))
        connection.connection_lost(None)
        bench.services.workers.stop()
        await asyncio.sleep(0)
        assert not resumed

    run(scenario)


def test_a_failed_sync_is_told_to_all_and_reads_go_on(run: Run) -> None:
    """503 for what was in flight and for every write after it; what was durable is served."""
    disk = FailingDisk()

    async def scenario(bench: Bench) -> None:
        await bench.ask(encode("POST", PATH, TEXT, body=b"durable"))
        writers = [bench.connect() for _ in range(5)]
        reader, reader_transport = bench.connect()
        reader.data_received(encode("GET", f"{PATH}?offset=now&live=sse"))
        disk.error = errno.EIO
        for connection, _ in writers:
            connection.data_received(encode("POST", PATH, TEXT, body=b"lost") * 2)
        for _, transport in writers:
            assert await transport.answers(2) == [503, 503]
            assert b'"outcome-unknown"' in transport.written
            assert b"Retry-After: " in transport.written
        assert await bench.content() == b"durable"
        assert b"lost" not in reader_transport.written
        assert b'"not-ready"' in (await bench.ask(encode("GET", "/readyz")))[0]

    run(scenario, disk=disk)


def test_draining_ends_connections_in_order(run: Run) -> None:
    """Idle ones at once, others with their answer, live readers cleanly."""

    async def scenario(bench: Bench) -> None:
        idle, busy, poll, events = (bench.connect() for _ in range(4))
        poll[0].data_received(encode("GET", f"{PATH}?offset=now&live=long-poll"))
        events[0].data_received(encode("GET", f"{PATH}?offset=now&live=sse"))
        await events[1].until(lambda: b"upToDate" in events[1].written)
        busy[0].data_received(encode("POST", PATH, TEXT, body=b"x"))
        bench.services.context.draining = True
        bench.services.connections.drain()
        bench.services.hub.wake_all()
        assert idle[1].closed
        assert await busy[1].answers(1) == [204]
        assert b"Connection: close" in busy[1].written
        assert poll[1].statuses == [204]
        assert events[1].written.endswith(b"\r\n0\r\n\r\n")
        assert all(transport.closed for _, transport in (busy, poll, events))

    run(scenario)


def test_requests_leave_no_cycles(run: Run) -> None:
    """Nothing of a request has to wait for the garbage collector, which runs rarely."""

    async def scenario(bench: Bench) -> None:
        requests = (
            encode("POST", PATH, TEXT, body=b"x"),
            CHUNKED_POST,
            encode("GET", PATH),
            encode("GET", f"{PATH}?offset=-1&live=long-poll"),
            b"nonsense\r\n\r\n",
        )
        await bench.ask(*requests)
        gc.collect()
        gc.disable()
        try:
            await bench.ask(*requests)
            assert not [thing for thing in gc.get_objects() if type(thing) is Connection]
            assert not [thing for thing in gc.get_objects() if isinstance(thing, Body)]
        finally:
            gc.enable()

    run(scenario)


# ---- heads


def head(*lines: bytes, first: bytes = b"POST /v1/stream/a?b=c HTTP/1.1") -> Head:
    return parse_head(b"\r\n".join((first, b"Host: test", *lines, b"", b"")), 100)


def test_a_head_is_taken_apart() -> None:
    """Method, raw target, headers with lower-case names and bare values, repeated ones joined."""
    parsed = head(b"X-One:  a b \t", b"X-Two: 1", b"x-two: 2", b"Content-Length: 012", b"X-Empty:")
    assert (parsed.method, parsed.target) == ("POST", b"/v1/stream/a?b=c")
    assert parsed.headers == {
        b"host": b"test",
        b"x-one": b"a b",
        b"x-two": b"1, 2",
        b"content-length": b"012",
        b"x-empty": b"",
    }
    assert (parsed.length, parsed.keep_alive, parsed.http_11) == (12, True, True)


@pytest.mark.parametrize(
    ("version", "connection", "kept"),
    [
        (b"1.1", None, True),
        (b"1.1", b"close", False),
        (b"1.1", b"TE, Close", False),
        (b"1.1", b"keep-alive", True),
        (b"1.0", None, False),
        (b"1.0", b"Keep-Alive", True),
        (b"1.0", b"keep-alive, close", False),
    ],
)
def test_who_keeps_a_connection(version: bytes, connection: bytes | None, kept: bool) -> None:
    """HTTP/1.1 unless told otherwise, HTTP/1.0 if asked to."""
    lines = [] if connection is None else [b"Connection: " + connection]
    assert head(*lines, first=b"GET / HTTP/" + version).keep_alive is kept


@pytest.mark.parametrize(
    ("first", "target"),
    [
        (b"GET http://x/a?b HTTP/1.1", b"/a?b"),
        (b"GET HTTP://x HTTP/1.1", b"/"),
        (b"GET http://x?b HTTP/1.1", b"/?b"),
        (b"OPTIONS * HTTP/1.1", b"*"),
    ],
)
def test_targets_in_other_forms(first: bytes, target: bytes) -> None:
    """An absolute target counts by its path and query alone."""
    assert head(first=first).target == target


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        ([b"Transfer-Encoding: gzip, chunked"], Code.NOT_IMPLEMENTED),
        ([b"Transfer-Encoding: chunked", b"Content-Length: 1"], Code.BAD_REQUEST),
        ([b"Content-Length: 1234567890123456789"], Code.BAD_REQUEST),
        ([b"Host: other"], Code.BAD_HOST),
        ([b"Expect: wonders"], Code.EXPECTATION_FAILED),
        ([b"X: y"] * 100, Code.HEADERS_TOO_LARGE),
    ],
)
def test_heads_are_refused_with_a_reason(lines: list[bytes], code: Code) -> None:
    """Each with the code that says what was wrong."""
    with pytest.raises(Refused) as caught:
        head(*lines)
    assert caught.value.problem.code is code


# ---- bodies


def feed(body: Body, data: bytes, step: int) -> int:
    """Feed in pieces of `step` bytes until the body is done; returns where it ended."""
    position = 0
    while not body.done:
        piece = data[position : position + step]
        assert piece
        position += body.feed(piece, 0)
    return position


CODED = b"A\r\n0123456789\r\n03;x\r\nabc\r\n0\r\nA: b\r\n\r\n"


@pytest.mark.parametrize("step", range(1, len(CODED) + 1))
def test_a_chunked_body_in_pieces_of_any_size(step: int) -> None:
    """The same data, and the same end, however it arrives."""
    body = body_of(CHUNKED, 100)
    assert feed(body, CODED + b"GET / HTTP/1.1", step) == len(CODED)
    assert body.data == b"0123456789abc"
    assert body.received == len(CODED)


def test_a_sized_body_ends_where_it_says() -> None:
    """What follows is not its own."""
    body = body_of(5, 100)
    assert isinstance(body, SizedBody)
    assert feed(body, b"0123456789", 3) == 5
    assert body.data == b"01234"


def test_a_body_above_its_limit_is_counted_but_not_kept() -> None:
    """It is taken to its end, so that the request behind it would be found."""
    sized, chunked = body_of(13, 12), body_of(CHUNKED, 12)
    assert sized.too_large
    assert not chunked.too_large
    assert feed(sized, b"x" * 20, 4) == 13
    assert feed(chunked, CODED, 4) == len(CODED)
    assert chunked.too_large
    assert not sized.data
    assert not chunked.data


@pytest.mark.parametrize(
    "data",
    [
        b"\r\n",
        b"g\r\n",
        b" 3\r\n",
        b"3 \r\n",
        b"+3\r\n",
        b"3\n",
        b"3;\x00\r\n",
        b"3\r\nabcd\r\n",
        b"3\r\nabc\n",
        b"3\r\nabc\rx\n",
        b"0\r\nfolded\r\n",
        b"0\r\n X: folded\r\n",
        b"0\r\nX: \x00\r\n",
        b"1234567890abcdef\r\n",
        b"3;" + b"x" * 5_000,
        b"3;" + b"x" * 5_000 + b"\r\n",
        b"0\r\n" + b"X: y\r\n" * 5_000,
        b"1;xxxxxxxxxxxxxxxxxxxxxxxx\r\nx\r\n" * 5_000,
    ],
)
def test_chunks_are_read_strictly(data: bytes) -> None:
    """Anything but the exact form is refused, whole or byte by byte."""
    with pytest.raises(Refused):
        ChunkedBody(1_000_000).feed(data, 0)
    body = ChunkedBody(1_000_000)
    with pytest.raises(Refused):
        for at in range(len(data)):
            body.feed(data[at : at + 1], 0)


def test_tiny_chunks_are_allowed_in_reason() -> None:
    """A client that sends byte by byte is served: only extensions can be too much."""
    body = ChunkedBody(100_000)
    body.feed(b"1\r\nx\r\n" * 50_000 + b"0\r\n\r\n", 0)
    assert body.done
    assert len(body.data) == 50_000
