"""The benchmark's pipelined answers, its check of many streams, and what its report says aloud."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from pathlib import Path

import pytest
import uvloop
from daemon import Daemon

from bench.measure import Job, LoadError, Measurement, Sizes
from bench.pipeline import answer_at
from bench.report import Outcome, ScenarioReport, table
from bench.scattered import Field, create
from bench.scenarios import SCENARIOS
from bench.targets import Durability

SIZES = Sizes(
    connections=2,
    message_bytes=50,
    warmup_seconds=0,
    measured_seconds=0,
    operations_max=1,
    rounds=1,
    streams=5,
)


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    """For a running daemon whose store is empty."""
    with Daemon(tmp_path / "data") as daemon:
        yield Job(
            scenario="many-streams",
            sizes=SIZES,
            url=f"{daemon.url}/v1/stream",
            run="run",
            server_pid=daemon.pid,
            notes=str(tmp_path / "notes"),
        )


def test_pipelined_answers_may_be_cut_anywhere() -> None:
    """Each is there with its last byte, not before, and the next one begins behind it."""
    answers = [
        (204, b"", b"HTTP/1.1 204 No Content\r\nX: y\r\n\r\n"),
        (200, b"abc", b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc"),
        (201, b"", b"HTTP/1.1 201 Created\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
        (
            200,
            b"abc",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x\r\nabc\r\n0\r\n\r\n",
        ),
    ]
    data = b"".join(raw for _, _, raw in answers)
    at = 0
    for status, body, raw in answers:
        end = at + len(raw)
        assert all(answer_at(data[:cut], at) is None for cut in range(at, end))
        assert answer_at(data, at) == (status, body, end)
        at = end


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\nX: y\r\n\r\n",
        b"ICY 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n",
    ],
    ids=["no end", "no status", "no chunk", "longer than it says"],
)
def test_a_wrong_pipelined_answer_is_an_error(raw: bytes) -> None:
    """What cannot be read is not guessed at."""
    with pytest.raises(LoadError):
        answer_at(raw, 0)


def test_a_lost_or_surplus_message_among_many_streams_is_told(job: Job) -> None:
    """A stream must hold what was acknowledged, and no more than may be on its way beside."""

    async def drive() -> None:
        assert (await create(job)).operations == SIZES.streams
        field = Field(job, [1, 3])
        await _append_one(field)
        await _append_one(field)
        field.save()
        field = Field(job, [1, 3])  # as a later phase does
        assert list(field.counts) == [0, 2, 0, 0, 0]
        assert "1 streams read back: 2 messages" in await field.check()

        field.counts[1] = 3
        with pytest.raises(LoadError, match="read back wrong"):
            await field.check(surplus_max=1)
        field.counts[1] = 1
        with pytest.raises(LoadError, match="read back wrong"):
            await field.check()
        field.counts[1] = 1
        await field.check(surplus_max=1)
        assert field.counts[1] == 2  # from now on, as if it had been acknowledged

    _run(drive())


def test_a_stream_that_should_be_empty_is_read_too(job: Job) -> None:
    """Those that nobody appended to must be there, and hold nothing."""

    async def drive() -> None:
        await create(job)
        field = Field(job, [1, 3])
        await _append_one(field)
        assert len(await field.check_empty(streams_max=5)) == 4
        field.counts[1] = 0
        with pytest.raises(LoadError, match="read back wrong"):
            await field.check_empty(streams_max=5)

    _run(drive())


async def _append_one(field: Field) -> None:
    """Append a message to the first of the streams."""
    finished = asyncio.get_running_loop().create_future()
    walkers = await field.connect(lambda walker, _: finished.set_result(None))
    walkers[0].append()
    await finished
    for walker in walkers:
        walker.end()


def _run(drive: Coroutine[None, None, None]) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(drive)


def test_servers_that_promise_differently_are_not_compared_in_silence() -> None:
    """The table says so; it says nothing when they promise the same."""
    assert "NOT THE SAME PROMISE" in _table(Durability.SYNCED, Durability.UNKNOWN)
    assert "NOT THE SAME PROMISE" not in _table(Durability.SYNCED, Durability.SYNCED)


def test_a_target_that_cannot_be_compared_is_no_failure_but_is_told() -> None:
    """It has no ratio; the reason stands in the table."""
    other = Outcome("other", Durability.UNKNOWN, not_comparable="it has no legs")
    report = _report(_outcome("own", Durability.SYNCED), other)
    assert report.ratio(other) is None
    assert not report.promises_differ
    assert "other: it has no legs" in table(SCENARIOS["append-small"], report)


def _table(own: Durability, other: Durability) -> str:
    report = _report(_outcome("own", own), _outcome("other", other))
    return table(SCENARIOS["append-small"], report)


def _report(*outcomes: Outcome) -> ScenarioReport:
    return ScenarioReport(
        name="append-small",
        summary="",
        operation="append",
        merit="rate",
        sizes=SIZES,
        outcomes=list(outcomes),
        yardsticks=[],
    )


def _outcome(name: str, durability: Durability) -> Outcome:
    one = Measurement(
        operations=1,
        seconds=1.0,
        latency_p50_us=1.0,
        latency_p99_us=1.0,
        latency_p999_us=1.0,
        server=None,
        generator_cpu_share=0.1,
        checked="all",
    )
    return Outcome(name, durability, rounds=[one])
