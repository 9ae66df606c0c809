"""How operations follow each other: in a closed loop, or at a fixed rate.

In a closed loop each worker begins its next operation when the last one has ended, so that the
rate is what the server makes of it. A `Pacer` begins operations when they are due, whether or not
earlier ones have ended, and latencies run from then: a server that stalls does not get away with
fewer operations to be slow in.
"""

import asyncio
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterable

import msgspec

from bench.connections import Appender, until, watch
from bench.measure import Figure, Job, Measurement, Window

__all__ = ["ClosedLoop", "Pacer"]

TICK_NS = 1_000_000
"""What falls due within a tick is due at its end: the loop's timers know no shorter time."""


class ClosedLoop:
    """Keeps workers busy until the window has closed, then lets each end what it has begun.

    A worker tells `done` whenever it has ended an operation.
    """

    def __init__(self, job: Job) -> None:
        """From here on any exception in a callback of the loop ends `run`."""
        self._finished = watch()
        self._window = Window(job.server_pid)
        self._sizes = job.sizes
        self._busy = self._workers = 0
        self._bytes: Callable[[], int] | None = None
        self._bytes_before = self._bytes_within = 0

    def count_bytes(self, done: Callable[[], int]) -> None:
        """Let the payload within the window be a figure; `done` tells all bytes so far."""
        self._bytes = done

    async def run(self, begin: Iterable[Callable[[], None]]) -> None:
        """Let each worker begin, and wait until all have ended. Raises LoadError."""
        sizes = self._sizes
        loop = asyncio.get_running_loop()
        loop.call_later(sizes.warmup_seconds, self._open)
        loop.call_later(sizes.warmup_seconds + sizes.measured_seconds, self._close)
        workers = list(begin)
        self._busy = self._workers = len(workers)
        for worker in workers:
            worker()
        seconds_max = sizes.warmup_seconds + sizes.measured_seconds + sizes.stall_seconds_max
        await until(self._finished, seconds_max, self._missing)

    def done(self, latency_ns: int, begin_next: Callable[[], None], operations: int = 1) -> None:
        """A worker has ended one operation, or several at once."""
        latencies_ns = self._window.latencies_ns
        if operations == 1:
            latencies_ns.append(latency_ns)
        else:
            latencies_ns.extend(array("q", [latency_ns]) * operations)
        if len(latencies_ns) >= self._sizes.operations_max:
            self._close()
        if not self._window.is_closed:
            begin_next()
            return
        self._busy -= 1
        if not self._busy and not self._finished.done():
            self._finished.set_result(None)

    def measurement(self, checked: str, *figures: Figure) -> Measurement:
        """What was found. Raises LoadError if nothing happened in the window."""
        measurement = self._window.measurement(checked)
        if self._bytes is not None:
            megabytes = self._bytes_within / 1e6
            figures = (Figure("payload", megabytes / measurement.seconds, "MB/s"), *figures)
        return msgspec.structs.replace(measurement, figures=figures)

    def _open(self) -> None:
        self._window.open()
        if self._bytes is not None:
            self._bytes_before = self._bytes()

    def _close(self) -> None:
        if not self._window.is_closed:
            self._window.close()
            if self._bytes is not None:
                self._bytes_within = self._bytes() - self._bytes_before

    def _missing(self) -> str:
        return f"{self._busy} of {self._workers} connections have not finished"


class Pacer:
    """Lets appenders append at a fixed rate together.

    An append that is due while all of them are busy is begun by the first one that is free, and
    none is left out: a backlog shows in the latencies, and if it lasts in the rate. The loop's
    timers wake it up to two ticks late, which counts as latency too.
    """

    def __init__(self, rate: float, appenders: Iterable[Appender]) -> None:
        """`rate` is in appends per second. All appenders must be idle."""
        self._rate = rate
        self._idle = deque(appenders)
        self._appenders = len(self._idle)
        self._due_ns: deque[int] = deque()
        """When those were due that have not begun."""
        self._began_ns: dict[Appender, int] = {}
        """When those were due that are in flight."""
        self._started_ns = time.perf_counter_ns()
        self._ticks = self._due = 0
        self._stopped: asyncio.Future[None] | None = None
        self._tick()

    def acknowledged(self, appender: Appender) -> int:
        """The appender is free again; gives the latency in nanoseconds since it was due."""
        latency_ns = time.perf_counter_ns() - self._began_ns.pop(appender)
        self._idle.append(appender)
        self._begin()
        return latency_ns

    async def stop(self, seconds_max: float) -> None:
        """Begin no more, and wait for those in flight. Raises LoadError."""
        self._stopped = watch()
        self._begin()
        await until(self._stopped, seconds_max, self._missing)

    def _tick(self) -> None:
        """Note what has fallen due, and begin what can be begun."""
        if self._stopped is not None:
            return
        ticks = (time.perf_counter_ns() - self._started_ns) // TICK_NS
        while self._ticks < ticks:
            self._ticks += 1
            tick_ns = self._ticks * TICK_NS
            due = int(self._rate * tick_ns / 1e9)
            self._due_ns.extend([self._started_ns + tick_ns] * (due - self._due))
            self._due = due
        self._begin()
        asyncio.get_running_loop().call_later(TICK_NS / 1e9, self._tick)

    def _begin(self) -> None:
        if self._stopped is None:
            while self._idle and self._due_ns:
                appender = self._idle.popleft()
                self._began_ns[appender] = self._due_ns.popleft()
                appender.append()
        elif len(self._idle) == self._appenders and not self._stopped.done():
            self._stopped.set_result(None)

    def _missing(self) -> str:
        return f"{self._appenders - len(self._idle)} appends have no answer"
