"""How long one append takes to reach its readers when nothing else goes on.

One writer, one SSE reader, one long-poll reader. Between two appends, when both readers have the
last one, the generator does what no server can do without: one round trip to the idle server (a
HEAD of the stream, on a connection that stays open) and one sync of 4 KiB to the server's disk.
So both sides of the comparison meet the same machine, in the same instant.

The sync is the cheapest there is, within a file that was written before: no file has to grow.
"""

import os
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import msgspec

from bench.connections import Appender, Requester, connect
from bench.fanout import Fan
from bench.measure import Figure, Job, LoadError, Measurement
from bench.readers import LongPollReader, Reader, SseReader
from bench.wire import SHOWN_BYTES_MAX, Address, Client, parse_head

__all__ = ["wake_latency"]

SYNC_BYTES = 4_096
SYNC_FILE_BYTES = 4 << 20


async def wake_latency(job: Job) -> Measurement:
    """Drive the scenario `wake-latency` once. Raises LoadError."""
    client = Client(job.url)
    with _sync_probe(job.data_dir) as descriptor:
        pair = _Pair(job, client, descriptor)
        await pair.connect()
        round_trip = pair.round_trip
        await connect(client.address, [round_trip], job.sizes.stall_seconds_max)
        await pair.send()
        round_trip.end()
        checked = await pair.close()
    measurement = pair.window.measurement(checked)
    return msgspec.structs.replace(measurement, figures=tuple(pair.figures()))


class _Pair(Fan):
    """The two readers; the writer rests while round trip and sync are measured."""

    def __init__(self, job: Job, client: Client, descriptor: int | None) -> None:
        super().__init__(job, client, job.run, [SseReader, LongPollReader])
        self.round_trip = _RoundTrip(client.address, job.run, self._after_round_trip)
        self._descriptor = descriptor
        self._at = 0
        self._block = os.urandom(SYNC_BYTES)
        # in nanoseconds, of the window only
        self._acknowledgements = array("q")
        self._sse = array("q")
        self._long_poll = array("q")
        self._round_trips = array("q")
        self._syncs = array("q")

    def figures(self) -> Iterator[Figure]:
        """What was measured beside the deliveries of both readers together."""
        milliseconds = [
            ("SSE p50", self._sse),
            ("long-poll p50", self._long_poll),
            ("acknowledgement p50", self._acknowledgements),
            ("round trip p50", self._round_trips),
        ]
        for name, times_ns in milliseconds:
            yield Figure(name, median(times_ns) / 1e6, "ms")
        if not self._syncs:
            return
        floor_ns = median(self._syncs) + median(self._round_trips)
        delivery_ns = median(self._sse + self._long_poll)
        yield Figure("sync p50", median(self._syncs) / 1e6, "ms")
        yield Figure("delivery p50 above sync and round trip", (delivery_ns - floor_ns) / 1e6, "ms")

    def delivered(self, reader: Reader) -> None:
        if self.measuring:
            times_ns = self._sse if isinstance(reader, SseReader) else self._long_poll
            times_ns.append(reader.received_ns - self.writer.sent_ns)
        super().delivered(reader)

    def acknowledged(self, appender: Appender, latency_ns: int) -> None:
        if self.measuring:
            self._acknowledgements.append(latency_ns)
        super().acknowledged(appender, latency_ns)

    def rest(self) -> None:
        self.round_trip.ask()

    def _after_round_trip(self, latency_ns: int) -> None:
        if self.measuring:
            self._round_trips.append(latency_ns)
        if self._descriptor is not None:
            before_ns = time.perf_counter_ns()
            os.pwrite(self._descriptor, self._block, self._at)
            os.fdatasync(self._descriptor)
            if self.measuring:
                self._syncs.append(time.perf_counter_ns() - before_ns)
            self._at = (self._at + SYNC_BYTES) % SYNC_FILE_BYTES
        self.append()


class _RoundTrip(Requester):
    """Asks for a stream's head, and tells how many nanoseconds the answer took."""

    def __init__(self, address: Address, name: str, answered: Callable[[int], None]) -> None:
        super().__init__("asks for heads")
        self._request = address.head("HEAD", name)
        self._told = answered

    def ask(self) -> None:
        """Send a request. The one before must have been answered."""
        self.send(self._request)

    def data_received(self, data: bytes) -> None:
        """Unlike any other answer, that to a HEAD ends with its head, whatever it says."""
        latency_ns = time.perf_counter_ns() - self.sent_ns
        self._pending += data
        head = parse_head(self._pending)
        if head is None:
            return
        if head.status != 200 or head.body_at != len(self._pending):
            raise LoadError(f"a HEAD was answered: {self._pending[:SHOWN_BYTES_MAX]!r}")
        self._pending = b""
        self._in_flight = False
        self._told(latency_ns)


@contextmanager
def _sync_probe(data_dir: str | None) -> Iterator[int | None]:
    """A file on the server's disk, all of it written once; None if the disk is not known."""
    if data_dir is None:
        yield None
        return
    path = Path(data_dir).parent / "sync-probe"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.pwrite(descriptor, bytes(SYNC_FILE_BYTES), 0)
        os.fsync(descriptor)
        yield descriptor
    finally:
        os.close(descriptor)
        path.unlink()
