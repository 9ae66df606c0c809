"""Many SSE readers that wait, and nothing else: what a waiting reader costs.

An operation is a reader that comes: its latency runs from its request to the head of the answer.
The readers are spread evenly over the streams. When all are there and the server's memory has
settled, the growth is shared out among them.

Each stream has one reader before memory is looked at for the first time, so that what a server
loads or keeps for its first reader, or for a stream, is not put down to the others. In the end one
append to one stream must reach all of that stream's readers.
"""

import asyncio

import msgspec

from bench.connections import CONNECTS_AT_ONCE_MAX, Appender, connect, until, watch
from bench.fanout import CONTENT_TYPE
from bench.measure import Figure, Job, LoadError, Measurement, Messages, Window
from bench.memory import settled_bytes
from bench.readers import Reader, SseReader
from bench.wire import Client

__all__ = ["idle"]


async def idle(job: Job) -> Measurement:
    """Drive the scenario `idle` once. Raises LoadError."""
    sizes = job.sizes
    crowd = _Crowd(job)
    first, rest = crowd.readers[: sizes.streams], crowd.readers[sizes.streams :]
    await crowd.come(first)
    before_bytes = None if job.server_pid is None else await settled_bytes(job.server_pid)
    window = crowd.window = Window(job.server_pid)
    window.open()
    await crowd.come(rest)
    window.close()
    figures: list[Figure] = []
    if job.server_pid is not None and before_bytes is not None:
        after_bytes = await settled_bytes(job.server_pid)
        figures = [
            Figure("RssAnon before", before_bytes / 2**20, "MiB"),
            Figure("RssAnon with all readers", after_bytes / 2**20, "MiB"),
            Figure("RssAnon a reader", (after_bytes - before_bytes) / len(rest), "bytes"),
        ]
    reached = await crowd.tell_one_stream()
    for reader in crowd.readers:
        reader.leave()
    measurement = window.measurement(
        f"{len(crowd.readers)} readers of {sizes.streams} streams were there to the end; "
        f"one append reached all {reached} readers of its stream"
    )
    return msgspec.structs.replace(measurement, figures=tuple(figures))


class _Crowd:
    """The readers; it is their `Audience`."""

    finished: "asyncio.Future[None]"

    def __init__(self, job: Job) -> None:
        """Creates the streams. Raises LoadError."""
        sizes = job.sizes
        client = Client(job.url)
        self._address = client.address
        names = [f"{job.run}-{number}" for number in range(sizes.streams)]
        for name in names:
            client.create(name, CONTENT_TYPE)
        client.end()
        self.readers = [
            SseReader(self, client.address, names[number % sizes.streams], number)
            for number in range(sizes.connections)
        ]
        self.window = Window(job.server_pid)
        self.message = b""
        self.known: dict[bytes, tuple[bytes, bytes]] = {}
        self.closing = False
        self._stall_seconds_max = sizes.stall_seconds_max
        self._message_bytes = sizes.message_bytes
        self._told = ""
        """Name of the stream that is appended to."""
        self._missing = 0

    async def come(self, readers: list[SseReader]) -> None:
        """Connect these, a few at a time, and wait until each has begun.

        The kernel drops connections that come faster than a server accepts them, and repeats them
        a second later: that would be measured instead.
        """
        for start in range(0, len(readers), CONNECTS_AT_ONCE_MAX):
            group = readers[start : start + CONNECTS_AT_ONCE_MAX]
            self.finished = watch()
            self._missing = len(group)
            await connect(self._address, group, self._stall_seconds_max)
            await until(self.finished, self._stall_seconds_max, self._state)

    async def tell_one_stream(self) -> int:
        """Append to the first stream, wait until all its readers have it; say how many."""
        self._told = self.readers[0].name
        messages = Messages(0, self._message_bytes)
        self.message = messages.at(0)
        writer = Appender(self._address, self._told, CONTENT_TYPE, messages, self._acknowledged)
        await connect(self._address, [writer], self._stall_seconds_max)
        self.finished = watch()
        readers = sum(reader.name == self._told for reader in self.readers)
        self._missing = readers + 1  # the acknowledgement
        writer.append()
        await until(self.finished, self._stall_seconds_max, self._state)
        writer.end()
        return readers

    def begun(self, reader: Reader) -> None:
        self.window.latencies_ns.append(reader.received_ns - reader.connected_ns)
        self._done()

    def delivered(self, reader: Reader) -> None:
        if reader.name != self._told:
            raise LoadError(f"{reader} was sent a message of {self._told}")
        self._done()

    def ended(self, reader: Reader) -> None:
        raise LoadError(f"{reader} was ended, although its stream is open")

    def _acknowledged(self, _: Appender, __: int) -> None:
        self._done()

    def _done(self) -> None:
        self._missing -= 1
        if not self._missing:
            self.finished.set_result(None)

    def _state(self) -> str:
        return f"{self._missing} of {len(self.readers)} readers, or the writer, wait for the server"
