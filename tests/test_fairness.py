"""Readers that take much, and readers that take nothing, are no burden to the others."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import test_express
from authority import LANES, lane_settings
from daemon import Daemon
from raw_http import RawClient, encode
from test_express import PATH, TEXT, Bench, Run, Transport

from durable_streamsd.express.connection import Connection
from durable_streamsd.services import ANSWERS_PER_TURN_BYTES_MAX

run = test_express.run

LARGE = "/v1/stream/large"
SIZE = 512 << 10
EVENTS = f"{LARGE}?offset=-1&live=sse"
BYTES = "Content-Type: application/octet-stream"


class Stuck(Transport):
    """A socket whose client takes nothing until the test says so."""

    connection: Connection
    high = 1
    left = 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert high is not None
        self.high = high

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        super().writelines(list_of_data)
        if self.high == 0:
            self.left = len(self.written)
            self.connection.pause_writing()

    def get_write_buffer_size(self) -> int:
        return self.left

    def take(self) -> None:
        """The client has taken everything."""
        self.connection.resume_writing()


def stuck(bench: Bench) -> Stuck:
    """A connection whose client takes nothing."""
    transport = Stuck()
    transport.connection = bench.lane()
    transport.connection.connection_made(transport)
    return transport


async def fill(bench: Bench, count: int = 1) -> None:
    """Make the large stream."""
    block = encode("POST", LARGE, TEXT, body=b"x" * SIZE)
    await bench.ask(encode("PUT", LARGE, TEXT), *[block] * count)


def up_to_date(transport: Transport) -> bool:
    """Whether the last event says so."""
    return b'"upToDate":true' in transport.written[-200:]


async def some_turns() -> None:
    """Let the loop come round often enough for whatever could be sent to be sent."""
    loop = asyncio.get_running_loop()
    for _ in range(5):
        done = asyncio.Event()
        loop.call_later(0.001, done.set)  # due after anything that was put off before
        await done.wait()


@pytest.mark.parametrize("readers", [1, 3])
def test_a_turn_of_the_loop_sends_so_much_and_no_more(run: Run, readers: int) -> None:
    """Sockets that take everything get a long backlog in many turns, whoever reads it."""

    async def scenario(bench: Bench) -> None:
        await fill(bench, 16)
        connected = [bench.connect() for _ in range(readers)]
        frame_max = bench.services.context.options.event_bytes_max + 1_000
        turns: list[int] = []
        loop = asyncio.get_running_loop()

        def sent() -> int:
            return sum(len(transport.written) for _, transport in connected)

        def watch() -> None:
            turns.append(sent())
            if turns[-1] < readers * 16 * SIZE:
                loop.call_soon(watch)

        watch()
        for connection, _ in connected:
            connection.data_received(encode("GET", EVENTS))
        for _, transport in connected:
            await transport.until(partial(up_to_date, transport))
        turns.append(sent())
        grown = [after - before for before, after in pairwise(turns)]
        assert max(grown) <= ANSWERS_PER_TURN_BYTES_MAX + frame_max

    run(scenario)


@pytest.mark.parametrize("target", [LARGE, EVENTS], ids=["GET", "SSE"])
def test_answers_that_nobody_takes_have_a_limit_together(run: Run, target: str) -> None:
    """Beyond it a large answer waits, in order, for one to be taken or its reader to be gone."""

    async def scenario(bench: Bench) -> None:
        await fill(bench)
        readers = [stuck(bench) for _ in range(5)]
        for reader in readers:
            reader.connection.data_received(encode("GET", target))
        one, two, gone, three, four = readers
        await one.answers(1)
        await two.answers(1)
        gone.connection.connection_lost(None)
        await some_turns()
        assert not gone.written + three.written + four.written
        assert bench.services.answers.outstanding_bytes <= 2 * SIZE
        # small ones have nothing to wait for
        assert await bench.content() == b""
        one.take()
        await three.answers(1)
        await some_turns()
        assert not four.written
        two.connection.connection_lost(None)
        await four.answers(1)

    size = SIZE if target == LARGE else 256 << 10
    run(scenario, answers_bytes_max=2 * size + 1_000)


def test_an_answer_above_the_limit_goes_alone(run: Run) -> None:
    """No limit makes a stream unreadable."""

    async def scenario(bench: Bench) -> None:
        await fill(bench)
        one, two = stuck(bench), stuck(bench)
        for reader in (one, two):
            reader.connection.data_received(encode("GET", LARGE))
        await one.answers(1)
        await some_turns()
        assert not two.written
        one.take()
        await two.answers(1)

    run(scenario, answers_bytes_max=1_000)


def test_a_connection_goes_on_after_a_large_answer(run: Run) -> None:
    """What was asked behind it is answered once it is taken, and with the usual buffer."""

    async def scenario(bench: Bench) -> None:
        await fill(bench)
        reader = stuck(bench)
        reader.connection.data_received(encode("GET", LARGE) + encode("GET", PATH))
        assert await reader.answers(1) == [200]
        assert reader.high == 0
        reader.take()
        assert await reader.answers(2) == [200, 200]
        assert reader.high == bench.services.settings.write_buffer_bytes_max

    run(scenario)


def test_a_slow_reader_is_not_cut_off_while_it_takes_something(run: Run) -> None:
    """A large answer may take as long as it takes, at 64 KiB for each time-out at least."""

    async def scenario(bench: Bench) -> None:
        await fill(bench)
        transport = stuck(bench)
        connection = transport.connection
        connection.data_received(encode("GET", LARGE))
        await transport.until(lambda: len(transport.written) > SIZE)
        for _ in range(4):
            transport.left -= 64 << 10
            connection.on_deadline()
            assert not transport.is_closing()
        transport.left -= 1_000
        connection.on_deadline()
        assert transport.is_closing()

    run(scenario)


def test_a_stream_deleted_while_its_reader_waits(run: Run) -> None:
    """The answer is that of a stream that is not there."""

    async def scenario(bench: Bench) -> None:
        await fill(bench)
        one, two = stuck(bench), stuck(bench)
        for reader in (one, two):
            reader.connection.data_received(encode("GET", LARGE))
        await one.answers(1)
        await bench.ask(encode("DELETE", LARGE))
        one.take()
        assert await two.answers(1) == [404]

    run(scenario, answers_bytes_max=1_000)


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("query", ["", "?offset=-1&live=sse"], ids=["GET", "SSE"])
def test_readers_that_take_nothing_are_waited_for_only_so_long(
    tmp_path: Path, lane: str, query: str
) -> None:
    """They are cut off, and who waited for their memory is answered; small answers never wait."""
    environment = {
        "DURABLE_STREAMSD_ANSWERS_BYTES_MAX": "4MiB",
        "DURABLE_STREAMSD_WRITE_TIMEOUT_S": "0.5",
    }
    environment |= lane_settings(lane, tmp_path)
    with Daemon(tmp_path / "data", env=environment) as daemon:
        block = b"x" * (4 << 20)
        with RawClient(daemon.url) as client:
            client.request("PUT", LARGE, BYTES)
            for _ in range(4):
                assert client.request("POST", LARGE, BYTES, body=block).status == 204
        idle = [RawClient(daemon.url) for _ in range(3)]
        for client in idle:
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            client.send(encode("GET", LARGE + query) * 4)
        with RawClient(daemon.url) as client:
            assert client.request("GET", "/healthz").status == 200
            assert client.request("GET", LARGE).body == block
        for client in idle:
            client.vanish()
