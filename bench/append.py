"""Appends over many connections, in a closed loop.

Each connection has one request in flight: the next one is sent when the last one was
acknowledged, so the rate is what the server makes of it. Afterwards every stream is read back.
A stream with one writer must hold exactly what was acknowledged, in order. A stream with many must
hold each message once, and those of each connection in order: each was acknowledged before the
next was sent.
"""

from collections.abc import Callable, Sequence

from bench.bodies import JsonBatches
from bench.connections import Appender, Bodies, connect
from bench.loops import ClosedLoop
from bench.measure import Job, LoadError, Measurement, Messages
from bench.wire import Client

__all__ = ["append_json", "append_large", "append_to_one", "append_to_own", "check_merged"]

BYTES = "application/octet-stream"
JSON = "application/json"


async def append_to_own(job: Job) -> Measurement:
    """Each connection appends single messages to a stream of its own. Raises LoadError."""
    return await _append_bytes(job, _Load(job))


async def append_large(job: Job) -> Measurement:
    """Do the same, and count the bytes as well. Raises LoadError."""
    load = _Load(job)
    load.count_bytes()
    return await _append_bytes(job, load)


async def append_json(job: Job) -> Measurement:
    """Each connection appends arrays of JSON messages to a stream of its own. Raises LoadError.

    An operation is a message; it is as late as its request.
    """
    size, messages = job.sizes.message_bytes, job.sizes.messages_per_request
    load = _Load(job)
    client = await load.run_on_own(JSON, lambda number: JsonBatches(number, size, messages))
    for appender in load.appenders:
        client.check_json(appender.name, appender.messages.first(appender.count))
    return load.measurement(f"{job.sizes.connections} streams read back", "each once, in order")


async def append_to_one(job: Job) -> Measurement:
    """All connections append single messages to the same stream. Raises LoadError."""
    size = job.sizes.message_bytes
    load = _Load(job)
    client = await load.run_on_one(BYTES, lambda number: Messages(number, size))
    written = [(appender.messages, appender.count) for appender in load.appenders]
    check_merged(b"".join(client.read(job.run)), written)
    return load.measurement("the stream read back", "each once, those of a connection in order")


async def _append_bytes(job: Job, load: "_Load") -> Measurement:
    size = job.sizes.message_bytes
    client = await load.run_on_own(BYTES, lambda number: Messages(number, size))
    for appender in load.appenders:
        client.check(appender.name, appender.messages.first(appender.count))
    return load.measurement(f"{job.sizes.connections} streams read back", "each once, in order")


class _Load:
    """The appenders and their loop."""

    def __init__(self, job: Job) -> None:
        self.appenders: list[Appender] = []
        self._client = Client(job.url)
        self._run = job.run
        self._sizes = job.sizes
        self._loop = ClosedLoop(job)

    def count_bytes(self) -> None:
        """Let the bytes per second be a figure."""
        size = self._sizes.message_bytes
        self._loop.count_bytes(lambda: size * sum(one.count for one in self.appenders))

    async def run_on_own(self, content_type: str, bodies: Callable[[int], Bodies]) -> Client:
        """Create a stream for each connection, and append `bodies` of its number to it.

        Returns what reads the streams back. Raises LoadError.
        """
        names = [f"{self._run}-{number}" for number in range(self._sizes.connections)]
        return await self._append_to(names, content_type, bodies)

    async def run_on_one(self, content_type: str, bodies: Callable[[int], Bodies]) -> Client:
        """Do the same with one stream for all."""
        return await self._append_to([self._run], content_type, bodies)

    async def _append_to(
        self, names: list[str], content_type: str, bodies: Callable[[int], Bodies]
    ) -> Client:
        client, sizes = self._client, self._sizes
        for name in names:
            client.create(name, content_type)
        client.end()
        for number in range(sizes.connections):
            name = names[number % len(names)]
            self.appenders.append(
                Appender(client.address, name, content_type, bodies(number), self.acknowledged)
            )
        await connect(client.address, self.appenders, sizes.stall_seconds_max)
        await self._loop.run([appender.append for appender in self.appenders])
        for appender in self.appenders:
            appender.end()
        return client

    def acknowledged(self, appender: Appender, latency_ns: int) -> None:
        self._loop.done(latency_ns, appender.append, self._sizes.messages_per_request)

    def measurement(self, what: str, found: str) -> Measurement:
        requests = sum(appender.count for appender in self.appenders)
        count = requests * self._sizes.messages_per_request
        return self._loop.measurement(f"{what}: {count} messages, {found}")


def check_merged(stream: bytes, written: Sequence[tuple[Bodies, int]]) -> None:
    """Check a stream of many writers, each of which appended the first so many of its messages.

    Each message in it must be the next one of one of them. Raises LoadError.
    """
    counts = [0] * len(written)
    next_of = {messages.at(0): writer for writer, (messages, _) in enumerate(written)}
    message_bytes = len(next(iter(next_of)))
    for at in range(0, len(stream), message_bytes):
        message = stream[at : at + message_bytes]
        writer = next_of.pop(message, None)
        if writer is None:
            raise LoadError(f"at byte {at} is {message!r}, no connection's next message")
        counts[writer] += 1
        next_of[written[writer][0].at(counts[writer])] = writer
    for writer, (_, count) in enumerate(written):
        if counts[writer] != count:
            raise LoadError(
                f"{count} messages of connection {writer} were acknowledged, but the stream holds "
                f"{counts[writer]}"
            )
