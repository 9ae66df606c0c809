"""Catch-up reads in a closed loop: of one large stream, and of one whose bytes lie scattered.

Both fill the stream first. An operation is a read of the whole stream, every byte compared.
"""

from bench.catchup import CatchUpReader
from bench.connections import Requester, append_head, connect, until, watch
from bench.loops import ClosedLoop
from bench.measure import Job, Measurement, Messages
from bench.wire import Address, Answer, Client

__all__ = ["PLAIN_FILE", "large_content", "read_large", "read_scattered"]

CONTENT_TYPE = "application/octet-stream"

PLAIN_FILE = "plain file"
"""The phase of `read_large` that reads a file of a web server, the yardstick."""

RECENT_BYTES = 96 << 20
"""More than any server here keeps in memory of what it was given last, unless told to."""


def large_content(job: Job) -> bytes:
    """What the stream that is read holds, or the plain file."""
    return Messages(0, job.sizes.message_bytes).first(job.sizes.stored_messages)


async def read_large(job: Job) -> Measurement:
    """All connections read the same large stream. Raises LoadError.

    In the phase `PLAIN_FILE` there must be a file of that content at the job's URL, with the name
    of the run.
    """
    is_stream = job.phase != PLAIN_FILE
    if is_stream:
        client = Client(job.url)
        messages = Messages(0, job.sizes.message_bytes)
        client.fill(job.run, CONTENT_TYPE, map(messages.at, range(job.sizes.stored_messages)))
        client.end()
    return await _read_in_loop(job, large_content(job), is_stream)


async def read_scattered(job: Job) -> Measurement:
    """All connections read one stream, of which each message was written by itself.

    Between any two of its messages one was appended to another stream, of which there are many.
    After the last one so much else was written that no server has it still at hand: what is
    measured is finding the pieces and putting them together, though from the page cache.
    Raises LoadError.
    """
    sizes = job.sizes
    client = Client(job.url)
    client.create(job.run, CONTENT_TYPE)
    others = [f"{job.run}-{number}" for number in range(sizes.streams - 1)]
    for name in others:
        client.create(name, CONTENT_TYPE)
    client.end()
    messages = Messages(0, sizes.message_bytes)
    scatter = _Scatter(client.address, job.run, others, messages, sizes.stored_messages)
    await scatter.run(sizes.stall_seconds_max, sizes.setup_seconds_max)
    recent = bytes(1 << 20)
    for _ in range(RECENT_BYTES // len(recent)):
        client.append(others[0], CONTENT_TYPE, recent)
    client.end()
    return await _read_in_loop(job, messages.first(sizes.stored_messages))


async def _read_in_loop(job: Job, content: bytes, is_stream: bool = True) -> Measurement:
    """Let all connections read the stream named like the run, until the time is over."""
    loop = ClosedLoop(job)
    address = Address.of(job.url)

    def has_read(reader: CatchUpReader, latency_ns: int) -> None:
        loop.done(latency_ns, reader.read)

    readers = [
        CatchUpReader(address, job.run, content, has_read, is_stream)
        for _ in range(job.sizes.connections)
    ]
    loop.count_bytes(lambda: sum(reader.bytes_read for reader in readers))
    await connect(address, readers, job.sizes.stall_seconds_max)
    await loop.run([reader.read for reader in readers])
    for reader in readers:
        reader.end()
    reads = sum(reader.bytes_read for reader in readers) // len(content)
    return loop.measurement(f"{reads} reads of {len(content)} bytes, each byte compared")


class _Scatter(Requester):
    """Appends in turn to one stream and to the next of many others, one append after the other.

    One after the other, so that each is written by itself. (The npm reference server could not do
    with more: it answers 404 to concurrent appends to more streams than it keeps files open.)
    """

    def __init__(
        self, address: Address, name: str, others: list[str], messages: Messages, count: int
    ) -> None:
        super().__init__(f"appends to {name} and others")
        size = messages.message_bytes
        self._address = address
        self._head = append_head(address, name, CONTENT_TYPE, size)
        self._other_heads = [append_head(address, other, CONTENT_TYPE, size) for other in others]
        self._messages = messages
        self._appends = 2 * count
        self._done = 0
        self._finished = watch()

    async def run(self, stall_seconds_max: float, seconds_max: float) -> None:
        """Append all messages. Raises LoadError."""
        await connect(self._address, [self], stall_seconds_max)
        self._append()
        await until(self._finished, seconds_max, self._missing)
        self.end()

    def answered(self, status: int, answer: Answer | None) -> None:
        if status not in (200, 204):
            raise self.refused(status, answer)
        self._done += 1
        if self._done < self._appends:
            self._append()
        else:
            self._finished.set_result(None)

    def _append(self) -> None:
        number, is_other = divmod(self._done, 2)
        head = self._other_heads[number % len(self._other_heads)] if is_other else self._head
        self.send(head + self._messages.at(number))

    def _missing(self) -> str:
        return f"{self._done} of {self._appends} appends are done"
