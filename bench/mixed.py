"""Appends at a fixed rate, first alone and then beside readers: do readers hurt writers?

First the ceiling is measured, in a closed loop. Then a `Pacer` lets the same connections append
at a fixed share of it, alone, and with two kinds of readers beside them:

- some who replay streams of some MiB from their start, each again and again, but no more often
  than every `REPLAY_SECONDS`, so that neither they nor the generator are the limit;
- SSE subscribers of the streams that are being written.

What is reported is the appends beside readers; the figures say what they were alone. A server
could save its appends by starving its readers, so what these were given is a figure, too.

Afterwards every written stream is read back, every byte that was replayed has been compared, and
every subscriber must have been sent the end of its stream, from when it began to follow.
"""

import asyncio
import time
from collections.abc import Callable

from msgspec.structs import replace

from bench.catchup import CatchUpReader
from bench.connections import Appender, connect, until, watch
from bench.followers import Follower
from bench.loops import ClosedLoop, Pacer
from bench.measure import Figure, Job, Measurement, Messages, Sizes, Window
from bench.wire import Client

__all__ = ["mixed"]

SHARE = 0.6
"""Of the ceiling: well below it, so that a writer that is slowed down is slowed by readers."""

REPLAYERS = 16
REPLAYED_STREAMS = 4
REPLAYED_MESSAGES = 4
REPLAYED_MESSAGE_BYTES = 1 << 20
REPLAY_SECONDS = 0.5
"""All together 134 MB/s, a twentieth of a core for the generator."""

SUBSCRIBERS = 16
"""One for every fourth stream. With 100, what is sent to them is more work than the appends: on 2
cores this daemon then loses 27 % of its appends and the Rust server 17 %, each of its own 60 %."""

CONTENT_TYPE = "text/plain"
"""Messages of text come as they are; bytes would come in base64."""


async def mixed(job: Job) -> Measurement:
    """Drive the scenario `mixed` once. Raises LoadError."""
    writers = _Writers(job)
    await writers.connect()
    ceiling = await writers.ceiling()
    readers = _Readers(job, writers.appenders)
    pacer = writers.pace(SHARE * ceiling)
    alone = await writers.window()
    await readers.begin()
    beside = await writers.window(readers.open, readers.close)
    await pacer.stop(job.sizes.stall_seconds_max)
    await readers.end()
    count = writers.check()
    a = alone.measurement("")
    b = beside.measurement(
        f"{len(writers.appenders)} streams read back: {count} messages, each once, in order; "
        f"{SUBSCRIBERS} subscribers were sent the end of theirs; {readers.replays} replays, each "
        "byte compared"
    )
    return replace(
        b,
        figures=(
            Figure("most appends, in a closed loop", ceiling, "/s"),
            Figure("appends alone", a.rate, "/s"),
            Figure("lost beside readers", 100 * (1 - b.rate / a.rate), "%"),
            Figure("p99 alone", a.latency_p99_us / 1e3, "ms"),
            Figure("p99 beside readers", b.latency_p99_us / 1e3, "ms"),
            *readers.figures(b.seconds),
        ),
    )


class _Writers:
    """The connections that append, each to a stream of its own."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._client = Client(job.url)
        self._loop = ClosedLoop(replace(job, sizes=_half(job)))
        self._pacer: Pacer | None = None
        self._window = Window(job.server_pid)
        self.appenders = []
        for number in range(job.sizes.connections):
            name = f"{job.run}-{number}"
            messages = Messages(number, job.sizes.message_bytes)
            self._client.create(name, CONTENT_TYPE)
            self.appenders.append(
                Appender(self._client.address, name, CONTENT_TYPE, messages, self._acknowledged)
            )
        self._client.end()

    async def connect(self) -> None:
        """Open the connections. Raises LoadError."""
        await connect(self._client.address, self.appenders, self._job.sizes.stall_seconds_max)

    async def ceiling(self) -> float:
        """How many appends a second are acknowledged if each follows the last. Raises LoadError."""
        await self._loop.run([appender.append for appender in self.appenders])
        return self._loop.measurement("").rate

    def pace(self, rate: float) -> Pacer:
        """Begin to append at a rate, in appends per second."""
        self._pacer = Pacer(rate, self.appenders)
        return self._pacer

    async def window(
        self, opened: Callable[[], None] | None = None, closed: Callable[[], None] | None = None
    ) -> Window:
        """Let the load settle, then measure. Raises LoadError."""
        sizes = self._job.sizes
        await _pass(sizes.warmup_seconds, sizes.stall_seconds_max)
        window = self._window = Window(self._job.server_pid)
        window.open()
        if opened is not None:
            opened()
        await _pass(sizes.measured_seconds, sizes.stall_seconds_max)
        window.close()
        if closed is not None:
            closed()
        return window

    def check(self) -> int:
        """Read everything back, and tell how many messages it is. Raises LoadError."""
        for appender in self.appenders:
            appender.end()
            self._client.check(appender.name, appender.messages.first(appender.count))
        return sum(appender.count for appender in self.appenders)

    def _acknowledged(self, appender: Appender, latency_ns: int) -> None:
        if self._pacer is None:
            self._loop.done(latency_ns, appender.append)
        else:
            self._window.latencies_ns.append(self._pacer.acknowledged(appender))


class _Readers:
    """Those who replay, and the subscribers, in three phases: beginning, stopping, closing.

    In each of them some have something left to do, and `_finished` completes when none has.
    """

    _finished: "asyncio.Future[None]"

    def __init__(self, job: Job, appenders: list[Appender]) -> None:
        """Fill the streams that are replayed."""
        self.replays = 0
        self._stall_seconds_max = job.sizes.stall_seconds_max
        self._client = Client(job.url)
        self._appenders = appenders
        self._replayers: list[CatchUpReader] = []
        self._stopping = self._closing = False
        self._bytes_before = self._bytes_within = 0
        self._message_bytes = job.sizes.message_bytes
        address = self._client.address
        for number in range(REPLAYED_STREAMS):
            name = f"{job.run}-replayed-{number}"
            messages = Messages(number, REPLAYED_MESSAGE_BYTES)
            bodies = [messages.at(each) for each in range(REPLAYED_MESSAGES)]
            self._client.fill(name, CONTENT_TYPE, bodies)
            content = b"".join(bodies)
            self._replayers += [
                CatchUpReader(address, name, content, self._replayed)
                for _ in range(number, REPLAYERS, REPLAYED_STREAMS)
            ]
        self._client.end()
        self._followers = [
            Follower(address, appenders[number % len(appenders)], self._changed)
            for number in range(SUBSCRIBERS)
        ]

    async def begin(self) -> None:
        """Connect all, and wait until every subscriber follows. Raises LoadError."""
        self._finished = watch()
        connections = [*self._replayers, *self._followers]
        await connect(self._client.address, connections, self._stall_seconds_max)
        await until(self._finished, self._stall_seconds_max, self._missing)
        loop = asyncio.get_running_loop()
        for number, replayer in enumerate(self._replayers):
            loop.call_later(REPLAY_SECONDS * number / REPLAYERS, self._replay, replayer)

    def open(self) -> None:
        """The window opens."""
        self._bytes_before = self._bytes_read()
        for follower in self._followers:
            follower.open()

    def close(self) -> None:
        """The window closes."""
        self._bytes_within = self._bytes_read() - self._bytes_before
        for follower in self._followers:
            follower.close()

    async def end(self) -> None:
        """Let replays end, close the streams, and check the subscribers. Raises LoadError."""
        self._finished = watch()
        self._stopping = True
        self._changed()
        await until(self._finished, self._stall_seconds_max, self._missing)
        for replayer in self._replayers:
            replayer.end()
        self._finished = watch()
        self._closing = True
        for follower in self._followers:
            follower.parse()
        for appender in self._appenders:
            self._client.close_stream(appender.name)
        self._client.end()
        await until(self._finished, self._stall_seconds_max, self._missing)
        for follower in self._followers:
            follower.check()

    def figures(self, seconds: float) -> tuple[Figure, ...]:
        """What readers were given in the window of so many seconds."""
        sent = sum(follower.bytes_within for follower in self._followers) / self._message_bytes
        return (
            Figure("replayed beside", self._bytes_within / seconds / 1e6, "MB/s"),
            Figure("SSE deliveries beside", sent / seconds, "/s"),
        )

    def _replayed(self, replayer: CatchUpReader, _: int) -> None:
        self.replays += 1
        if self._stopping:
            self._changed()
            return
        since_seconds = (time.perf_counter_ns() - replayer.begun_ns) / 1e9
        wait_seconds = max(0.0, REPLAY_SECONDS - since_seconds)
        asyncio.get_running_loop().call_later(wait_seconds, self._replay, replayer)

    def _replay(self, replayer: CatchUpReader) -> None:
        if not self._stopping:
            replayer.read()

    def _changed(self) -> None:
        """Something has happened that may be the last that a phase waits for."""
        if not self._left() and not self._finished.done():
            self._finished.set_result(None)

    def _left(self) -> int:
        """How many have not done yet what the present phase waits for."""
        if self._closing:
            return sum(not follower.ended for follower in self._followers)
        if self._stopping:
            return sum(replayer.is_reading for replayer in self._replayers)
        return sum(not follower.follows for follower in self._followers)

    def _missing(self) -> str:
        return f"{self._left()} readers wait for the server"

    def _bytes_read(self) -> int:
        return sum(replayer.bytes_read for replayer in self._replayers)


def _half(job: Job) -> Sizes:
    """Sizes for measuring the ceiling: half as long."""
    return replace(job.sizes, measured_seconds=job.sizes.measured_seconds / 2)


async def _pass(seconds: float, stall_seconds_max: float) -> None:
    """Let the load go on for so long. Raises LoadError, also for what fails meanwhile."""
    finished = watch()
    asyncio.get_running_loop().call_later(seconds, _finish, finished)
    await until(finished, seconds + stall_seconds_max, lambda: "the generator is late")


def _finish(finished: "asyncio.Future[None]") -> None:
    if not finished.done():
        finished.set_result(None)
