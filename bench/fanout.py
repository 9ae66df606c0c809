"""One writer, many readers of one stream: how fast a message reaches all of them.

The writer appends the next message when the last one was acknowledged and every reader has it. An
operation is a delivery: one message, come to one reader. Its latency runs from sending the append
to reading the message, so it includes the sync.

Every reader checks every message against what was sent (`readers`). In the end the stream is
closed, which must end every reader: so a message that comes twice, or too late, does not go
unnoticed.
"""

import asyncio
import time
from collections.abc import Callable, Iterable

import msgspec

from bench.connections import Appender, connect, until, watch
from bench.measure import Figure, Job, Measurement, Messages, Window
from bench.readers import Audience, LongPollReader, Reader, SseReader
from bench.wire import Address, Client

__all__ = ["CONTENT_TYPE", "Fan", "ReaderType", "fanout", "fanout_longpoll"]

CONTENT_TYPE = "text/plain"
"""Messages of text come as they are; bytes would come in base64."""

ReaderType = Callable[[Audience, Address, str, int], Reader]


async def fanout(job: Job) -> Measurement:
    """Drive the scenario `fanout` once. Raises LoadError."""
    return await _drive(job, SseReader)


async def fanout_longpoll(job: Job) -> Measurement:
    """Drive the scenario `fanout-longpoll` once. Raises LoadError."""
    return await _drive(job, LongPollReader)


async def _drive(job: Job, reader_type: ReaderType) -> Measurement:
    client = Client(job.url)
    fan = Fan(job, client, job.run, [reader_type] * job.sizes.connections)
    await fan.connect()
    await fan.send()
    checked = await fan.close()
    measurement = fan.window.measurement(checked)
    spread = measurement.latency_p99_us / measurement.latency_p50_us
    return msgspec.structs.replace(measurement, figures=(Figure("p99 / p50", spread, "x"),))


class Fan:
    """A writer and its readers, in three phases: connecting, sending, closing.

    In each phase `missing` counts those who have not done their part, and `finished` completes
    when the phase is over. It is the `Audience` of its readers.
    """

    finished: "asyncio.Future[None]"

    def __init__(
        self, job: Job, client: Client, name: str, reader_types: Iterable[ReaderType]
    ) -> None:
        """Creates the stream `name`. Raises LoadError."""
        messages = Messages(0, job.sizes.message_bytes)
        self.sizes = job.sizes
        self.name = name
        self.writer = Appender(client.address, name, CONTENT_TYPE, messages, self.acknowledged)
        self.readers = [
            reader_type(self, client.address, name, number)
            for number, reader_type in enumerate(reader_types)
        ]
        self.window = Window(job.server_pid)
        self.message = b""
        self.known: dict[bytes, tuple[bytes, bytes]] = {}
        self.closing = False
        self._client = client
        self._missing = 0
        self._started_ns = self._opened_ns = 0
        client.create(name, CONTENT_TYPE)
        client.end()

    # ---- the phases

    async def connect(self) -> None:
        """Connect the writer and all readers, and wait until the readers have begun."""
        seconds_max = self.sizes.stall_seconds_max
        self.finished = watch()
        self._missing = len(self.readers)
        await connect(self._client.address, [self.writer, *self.readers], seconds_max)
        await until(self.finished, seconds_max, self.state)

    async def send(self) -> None:
        """Append until the window has closed and everybody has the last message."""
        sizes = self.sizes
        self.finished = watch()
        self._started_ns = time.perf_counter_ns()
        self._next()
        seconds_max = sizes.warmup_seconds + sizes.measured_seconds + sizes.stall_seconds_max
        await until(self.finished, seconds_max, self.state)

    async def close(self) -> str:
        """Close the stream, await that this ends all readers, read it back; say what is right."""
        self.finished = watch()
        self.closing = True
        self._missing = len(self.readers)
        self._client.close_stream(self.name)
        await until(self.finished, self.sizes.stall_seconds_max, self.state)
        count = self.writer.count
        self.writer.end()
        self._client.check(self.name, self.writer.messages.first(count))
        return (
            f"{len(self.readers)} readers were sent {count} messages, each once, in order; "
            "the stream was read back"
        )

    def state(self) -> str:
        """What is missing, as the end of a sentence."""
        return f"{self._missing} of {len(self.readers)} readers, or the writer, wait for the server"

    # ---- what the connections tell

    def begun(self, _: Reader) -> None:
        self._done()

    def delivered(self, reader: Reader) -> None:
        self.window.latencies_ns.append(reader.received_ns - self.writer.sent_ns)
        self._done()

    def ended(self, _: Reader) -> None:
        self._done()

    def acknowledged(self, _: Appender, __: int) -> None:
        """The writer has the answer to the append."""
        self._done()

    def _done(self) -> None:
        """One more has done its part in this phase."""
        self._missing -= 1
        if self._missing:
            return
        if self._started_ns and not self.closing:
            self._next()
        else:
            self.finished.set_result(None)

    # ---- sending

    @property
    def measuring(self) -> bool:
        """The window is open."""
        return self._opened_ns != 0 and not self.window.is_closed

    def _next(self) -> None:
        """Between two messages: open or close the window, or go on."""
        now_ns = time.perf_counter_ns()
        if self._opened_ns:
            measured_seconds = (now_ns - self._opened_ns) / 1e9
            deliveries = len(self.window.latencies_ns)
            if measured_seconds >= self.sizes.measured_seconds or (
                deliveries >= self.sizes.operations_max
            ):
                self.stop()
                return
        elif self.is_warm((now_ns - self._started_ns) / 1e9):
            self.window.open()
            self._opened_ns = now_ns
        self.rest()

    def is_warm(self, seconds: float) -> bool:
        """Whether the window may open, so many seconds after the start."""
        return seconds >= self.sizes.warmup_seconds

    def stop(self) -> None:
        """Close the window and send no more. Only between two messages."""
        self.window.close()
        self.finished.set_result(None)

    def rest(self) -> None:
        """Everybody has the last message. Whoever overrides this ends with `append` or `stop`."""
        self.append()

    def append(self) -> None:
        """Send the next message."""
        self.known.clear()
        self.message = self.writer.messages.at(self.writer.count)
        self._missing = len(self.readers) + 1  # the acknowledgement
        self.writer.append()
