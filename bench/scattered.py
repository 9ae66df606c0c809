"""Many streams: creating them, appending to some or all of them in turn, reading them back.

Each connection has streams of its own, one request in flight, and goes round: no two requests for
one stream are ever on their way at once, so what a stream must hold is known exactly.
"""

import time
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.connections import Requester, append_head, connect
from bench.measure import Job, Measurement, Messages, Window
from bench.pipeline import create_streams, read_back
from bench.wire import Address, Answer

__all__ = ["HOT_STREAMS", "Field", "Walker", "create", "hot_streams"]

CONTENT_TYPE = "application/octet-stream"
HOT_STREAMS = 1_000


def hot_streams(streams: int) -> list[int]:
    """Those few of the many that are written to all the time, evenly spread over all."""
    count = min(streams, HOT_STREAMS)
    return [streams * number // count for number in range(count)]


async def create(job: Job) -> Measurement:
    """Create the streams, as many as `setup_seconds_max` allows; an operation is a stream."""
    sizes = job.sizes
    window = Window(job.server_pid)
    window.open()
    latencies_ns = await create_streams(
        Address.of(job.url),
        sizes.connections,
        (_name(job.run, number) for number in range(sizes.streams)),
        CONTENT_TYPE,
        sizes.setup_seconds_max,
    )
    window.latencies_ns.extend(latencies_ns)
    window.close()
    return window.measurement(f"{len(latencies_ns):,} streams created")


class Field:
    """The many streams, those of them that are appended to, and what each must hold.

    What one phase has appended the later ones know by the job's notes.
    """

    def __init__(self, job: Job, numbers: Sequence[int]) -> None:
        """Streams with these numbers are appended to, in turn."""
        self.numbers = numbers
        self.counts = array("L", bytes(array("L").itemsize * job.sizes.streams))
        """How many messages were acknowledged, by the stream's number."""
        self._notes = Path(job.notes)
        if self._notes.exists():
            self.counts = array("L", self._notes.read_bytes())
        self._job = job
        self._address = Address.of(job.url)
        head = append_head(self._address, "|", CONTENT_TYPE, job.sizes.message_bytes)
        self._begin, _, self._end = head.partition(b"|")

    async def connect(
        self,
        acknowledged: "Callable[[Walker, int], None]",
        lost: "Callable[[Walker], None] | None" = None,
    ) -> "list[Walker]":
        """Open the job's connections, and share out the streams among them.

        `lost` is told when a connection was cut, which is an error if it is not given.
        """
        connections = self._job.sizes.connections
        walkers = [
            Walker(self, self.numbers[first::connections], acknowledged, lost)
            for first in range(min(connections, len(self.numbers)))
        ]
        await connect(self._address, walkers, self._job.sizes.stall_seconds_max)
        return walkers

    def save(self) -> None:
        """Leave for later phases what the streams hold."""
        self._notes.write_bytes(self.counts.tobytes())

    def request(self, number: int) -> bytes:
        """The one that appends the next message to the stream with this number."""
        name = _name(self._job.run, number).encode()
        return self._begin + name + self._end + self._messages(number).at(self.counts[number])

    async def check(self, surplus_max: int = 0) -> str:
        """Read all streams that were ever appended to; raises LoadError if one is not right.

        A stream may hold up to `surplus_max` messages that were never acknowledged. They count as
        acknowledged from now on. Returns what was found, as a sentence.
        """
        written = [number for number, count in enumerate(self.counts) if count]

        def is_right(number: int, body: bytes) -> bool:
            messages = len(body) // self._job.sizes.message_bytes
            surplus = messages - self.counts[number]
            right = self._messages(number).first(messages)
            self.counts[number] = messages
            return 0 <= surplus <= surplus_max and body == right

        await self._read(written, is_right)
        return f"{len(written):,} streams read back: {sum(self.counts):,} messages"

    async def check_empty(self, streams_max: int) -> "array[int]":
        """Read some of the streams that were never appended to, evenly spread over all.

        The result is the latencies in nanoseconds.
        """
        step = max(1, len(self.counts) // streams_max)
        empty = [at for at in range(0, len(self.counts), step) if not self.counts[at]]
        return await self._read(empty, lambda _, body: not body)

    async def _read(
        self, numbers: Sequence[int], is_right: Callable[[int, bytes], bool]
    ) -> "array[int]":
        return await read_back(
            self._address,
            self._job.sizes.connections,
            (_name(self._job.run, number) for number in numbers),
            lambda at, body: is_right(numbers[at], body),
            self._job.sizes.setup_seconds_max,
        )

    def _messages(self, number: int) -> Messages:
        return Messages(number, self._job.sizes.message_bytes)


class Walker(Requester):
    """One connection that goes round its streams and appends one message to each.

    Calls `acknowledged` with itself and the latency in nanoseconds; raises LoadError for any
    answer but a success.
    """

    def __init__(
        self,
        field: Field,
        numbers: Sequence[int],
        acknowledged: "Callable[[Walker, int], None]",
        lost: "Callable[[Walker], None] | None",
    ) -> None:
        super().__init__("appends to many streams")
        self._field = field
        self._numbers = numbers
        self._at = 0
        self._acknowledged = acknowledged
        self._lost = lost

    def connection_lost(self, exc: Exception | None) -> None:
        if self._lost is None:
            super().connection_lost(exc)
        else:
            self._lost(self)

    def append(self) -> None:
        """Send the next message. The one before must have been acknowledged."""
        self.send(self._field.request(self._numbers[self._at]))

    def answered(self, status: int, answer: Answer | None) -> None:
        latency_ns = time.perf_counter_ns() - self.sent_ns
        if status not in (200, 204):
            raise self.refused(status, answer)
        self._field.counts[self._numbers[self._at]] += 1
        self._at = (self._at + 1) % len(self._numbers)
        self._acknowledged(self, latency_ns)


def _name(run: str, number: int) -> str:
    return f"{run}-{number}"
