"""One writer, many SSE readers of one stream: how fast a message reaches all of them.

The writer appends the next message when the last one was acknowledged and every reader has it. An
operation is a delivery: one message, come to one reader. Its latency runs from sending the append
to reading the event, so it includes the sync.

Every reader checks every message against what was sent. In the end the stream is closed, which
must end every reader: so a message that comes twice, or too late, does not go unnoticed.

The generator shares the machine with the server, so it must be cheap: all readers are sent the
same bytes, which are parsed once and remembered (`_Fan.known`) for as long as a message lives.
"""

import asyncio
import time
from typing import cast

from bench.connections import Appender, connect, until, watch
from bench.measure import Job, LoadError, Measurement, Messages, Window
from bench.wire import SHOWN_BYTES_MAX, Address, Client, SseBody, parse_head

__all__ = ["fanout"]

CONTENT_TYPE = "text/plain"
"""Messages of text come as they are; bytes would come in base64."""

KNOWN_MAX = 64
"""Different pieces of answer that are remembered for one message; usually one or two exist."""


async def fanout(job: Job) -> Measurement:
    """Drive the scenario `fanout` once. Raises LoadError."""
    client = Client(job.url)
    sizes = job.sizes
    client.create(job.run, CONTENT_TYPE)
    client.end()
    fan = _Fan(job, client.address)
    fan.finished = watch()
    await connect(client.address, [fan.writer, *fan.readers], sizes.stall_seconds_max)
    await until(fan.finished, sizes.stall_seconds_max, fan.state)

    fan.finished = watch()
    fan.start()
    seconds_max = sizes.warmup_seconds + sizes.measured_seconds + sizes.stall_seconds_max
    await until(fan.finished, seconds_max, fan.state)

    fan.finished = watch()
    fan.closing = True
    client.close_stream(job.run)
    await until(fan.finished, sizes.stall_seconds_max, fan.state)

    count = fan.writer.count
    fan.writer.end()
    client.check(job.run, fan.writer.messages.first(count))
    return fan.window.measurement(
        f"{sizes.connections} readers were sent {count} messages, each once, in order; "
        "the stream was read back"
    )


class _Fan:
    """The writer and its readers, in three phases: connecting, sending, closing.

    In each phase `missing` counts those who have not done their part, and `finished` completes
    when the phase is over.
    """

    finished: "asyncio.Future[None]"

    def __init__(self, job: Job, address: Address) -> None:
        messages = Messages(0, job.sizes.message_bytes)
        self.writer = Appender(address, job.run, CONTENT_TYPE, messages, self._acknowledged)
        self.readers = [_Reader(self, address, number) for number in range(job.sizes.connections)]
        self.window = Window(job.server_pid)
        self.message = b""
        """The one message on its way."""
        self.known: dict[bytes, bytes] = {}
        """What pieces of answer mean that were parsed before, of this message."""
        self.missing = len(self.readers)
        self.closing = False
        self._sizes = job.sizes
        self._started_ns = self._opened_ns = 0

    def state(self) -> str:
        """What is missing, as the end of a sentence."""
        return f"{self.missing} of {len(self.readers)} readers, or the writer, wait for the server"

    def start(self) -> None:
        self._started_ns = time.perf_counter_ns()
        self._next()

    def delivered(self) -> None:
        """A reader has the message on its way."""
        self.window.latencies_ns.append(time.perf_counter_ns() - self.writer.sent_ns)
        self.done()

    def done(self) -> None:
        """One more has done its part in this phase."""
        self.missing -= 1
        if self.missing:
            return
        self.missing = len(self.readers)
        if self._started_ns and not self.closing:
            self._next()
        else:
            self.finished.set_result(None)

    def _acknowledged(self, _: Appender, __: int) -> None:
        self.done()

    def _next(self) -> None:
        """Between two messages: open or close the window, send the next one."""
        now_ns = time.perf_counter_ns()
        if self._opened_ns:
            measured_seconds = (now_ns - self._opened_ns) / 1e9
            deliveries = len(self.window.latencies_ns)
            if (
                measured_seconds >= self._sizes.measured_seconds
                or deliveries >= self._sizes.operations_max
            ):
                self.window.close()
                self.finished.set_result(None)
                return
        elif (now_ns - self._started_ns) / 1e9 >= self._sizes.warmup_seconds:
            self.window.open()
            self._opened_ns = now_ns
        self.known.clear()
        self.message = self.writer.messages.at(self.writer.count)
        self.missing += 1  # the acknowledgement
        self.writer.append()


class _Reader(asyncio.Protocol):
    """One SSE reader from the start of the stream."""

    def __init__(self, fan: _Fan, address: Address, number: int) -> None:
        self._fan = fan
        self._number = number
        self._request = address.head(
            "GET", f"{fan.writer.name}?offset=-1&live=sse", "Accept: text/event-stream"
        )
        self._head: bytes | None = b""
        """What came of the answer's head; None once it is whole."""
        self._body = SseBody()
        self._last = b""
        """The last message this reader was given."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it
        self._transport.write(self._request)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._body.ended:
            raise LoadError(f"the connection of reader {self._number} was cut: {exc}")

    def data_received(self, data: bytes) -> None:
        fan = self._fan
        if self._body.at_rest and self._head is None:
            payload = fan.known.get(data)
            if payload is not None:
                if payload:
                    self._take(payload)
                return
        if self._head is not None:
            data = self._begin(self._head + data)
        rested = self._body.at_rest
        payload = self._body.feed(data)
        if self._body.ended:
            self._end()
        elif rested and self._body.at_rest and data and len(fan.known) < KNOWN_MAX:
            fan.known[data] = payload
        if payload:
            self._take(payload)

    def _take(self, payload: bytes) -> None:
        if payload != self._fan.message or payload == self._last:
            raise LoadError(
                f"reader {self._number} was sent {payload[:SHOWN_BYTES_MAX]!r} after "
                f"{self._last!r}, when {self._fan.message!r} was on its way"
            )
        self._last = payload
        self._fan.delivered()

    def _begin(self, data: bytes) -> bytes:
        """Read the answer's head and return what follows it."""
        head = parse_head(data)
        if head is None:
            self._head = data
            return b""
        if head.status != 200 or head.fields.get(b"transfer-encoding") != b"chunked":
            raise LoadError(f"a reader was answered: {data[:SHOWN_BYTES_MAX]!r}")
        self._head = None
        self._fan.done()
        return data[head.body_at :]

    def _end(self) -> None:
        """The server has ended the answer."""
        self._transport.close()
        if not self._fan.closing:
            raise LoadError(f"reader {self._number} was sent away while it was reading")
        self._fan.done()
