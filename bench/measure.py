"""What report and load generator tell each other, and the window in which it is measured.

A window opens and closes while the load runs, never at its ends, and everything that is compared
(operations, CPU time of the server and of the generator, wall time) is read at these same two
instants. Setting up, warming up and reading back lie outside.

Left out: percentiles over several rounds; the report takes the median of the rounds' percentiles.
"""

import time
from array import array

import msgspec

from bench.processes import Usage, usage

__all__ = ["Figure", "Job", "LoadError", "Measurement", "Messages", "Sizes", "Window"]


class LoadError(Exception):
    """A measurement has no figure: the server answered wrongly, or not in time."""


class Sizes(msgspec.Struct, frozen=True):
    """How much is done. `operations_max` ends a measurement even before its time is over."""

    connections: int
    message_bytes: int
    warmup_seconds: float
    measured_seconds: float
    operations_max: int
    rounds: int
    streams: int = 0
    """How many streams there are; 0: one per connection."""
    messages_per_request: int = 1
    in_flight: int = 1
    """Requests that one connection sends before it has the first one's answer."""
    stored_messages: int = 0
    """How many messages a stream holds before it is read."""
    setup_seconds_max: float = 30.0
    """How long filling streams before, and reading them back afterwards, may take each."""
    stall_seconds_max: float = 30.0
    """How long the generator waits for anything before it calls the server stalled."""

    @property
    def total_seconds_max(self) -> float:
        """How long the generator may take for everything, from its start to its end."""
        # It waits four times: to connect, for the load, for its end, and to read back.
        waits = 4 * self.stall_seconds_max + 2 * self.setup_seconds_max
        return self.warmup_seconds + self.measured_seconds + waits


class Job(msgspec.Struct, frozen=True):
    """One measurement of one server: what the generator is told."""

    scenario: str
    sizes: Sizes
    url: str
    """Under which the streams are created, without a slash at the end."""
    run: str
    """A name for this measurement, part of each stream's name."""
    server_pid: int | None
    """None for a server on which the kernel cannot be asked, because somebody else started it."""
    data_dir: str | None = None
    """Where the server keeps its data; None if somebody else started it."""
    phase: str = ""
    """Which part of a scenario that measures in several."""
    notes: str = ""
    """Path of a file in which one phase may leave what a later one must know."""


class Figure(msgspec.Struct, frozen=True):
    """What a scenario measures beside rate, latency and CPU time: memory of a reader, say."""

    name: str
    value: float
    unit: str


class Measurement(msgspec.Struct, frozen=True):
    """One measurement of one server: what the generator found."""

    operations: int
    seconds: float
    latency_p50_us: float
    latency_p99_us: float
    latency_p999_us: float
    server: Usage | None
    """CPU time within the window, memory at its end; None if the server's process is unknown."""
    generator_cpu_share: float
    """Of one core; the generator has one thread, so 1.0 means that it was the limit."""
    checked: str
    """What was read back and found right."""
    figures: tuple[Figure, ...] = ()

    @property
    def rate(self) -> float:
        """Operations per second."""
        return self.operations / self.seconds

    @property
    def server_cpu_us_per_operation(self) -> float | None:
        """User and system time of the server's processes, in microseconds."""
        return None if self.server is None else self.server.cpu_us / self.operations


class Messages:
    """The messages of one stream: all of one size, no two alike, printable, without line ends."""

    def __init__(self, stream: int, message_bytes: int) -> None:
        self.message_bytes = message_bytes
        self._template = b"stream %06d message %%010d " % stream
        head_bytes = len(self._template % 0)
        if message_bytes < head_bytes:
            raise ValueError(f"a message needs at least {head_bytes} bytes")
        self._template += b"." * (message_bytes - head_bytes)

    def at(self, number: int) -> bytes:
        return self._template % number

    def first(self, count: int) -> bytes:
        """The whole stream after `count` messages."""
        return b"".join(map(self.at, range(count)))


class Window:
    """Collects latencies, and what was used between `open` and `close`.

    Whoever generates load appends to `latencies_ns` once per operation, before, within and after
    the window; only what lies within counts.
    """

    def __init__(self, server_pid: int | None) -> None:
        self.latencies_ns = array("q")
        self.is_closed = False
        self._server_pid = server_pid
        self._first = self._last = 0
        self._opened: _Instant | None = None
        self._closed: _Instant | None = None

    def open(self) -> None:
        self._opened = self._instant()
        self._first = len(self.latencies_ns)

    def close(self) -> None:
        self._last = len(self.latencies_ns)
        self._closed = self._instant()
        self.is_closed = True

    def measurement(self, checked: str) -> Measurement:
        """What was found. Raises LoadError if nothing happened in the window."""
        if self._opened is None or self._closed is None or self._first == self._last:
            raise LoadError("no operation was measured: the time is too short for this server")
        before, after = self._opened, self._closed
        latencies_us = [ns / 1_000 for ns in sorted(self.latencies_ns[self._first : self._last])]
        seconds = (after.monotonic_ns - before.monotonic_ns) / 1e9
        return Measurement(
            operations=len(latencies_us),
            seconds=seconds,
            latency_p50_us=_percentile(latencies_us, 0.5),
            latency_p99_us=_percentile(latencies_us, 0.99),
            latency_p999_us=_percentile(latencies_us, 0.999),
            server=after.server - before.server if after.server and before.server else None,
            generator_cpu_share=(after.generator_cpu_ns - before.generator_cpu_ns) / 1e9 / seconds,
            checked=checked,
        )

    def _instant(self) -> "_Instant":
        server = None
        if self._server_pid is not None:
            try:
                server = usage(self._server_pid)
            except (FileNotFoundError, ProcessLookupError):
                raise LoadError("the server ended during the measurement") from None
        return _Instant(time.perf_counter_ns(), time.process_time_ns(), server)


class _Instant(msgspec.Struct, frozen=True):
    monotonic_ns: int
    generator_cpu_ns: int
    server: Usage | None


def _percentile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
