"""Readers that stop reading: what they cost the server, and whether others notice.

Fifty good SSE readers follow a stream whose writer appends at a modest pace; how fast messages
reach them is measured twice. The first time they are alone. The second time, on a stream of its
own so that both begin alike, there are slow readers too: they ask for everything from the start,
read the head of the answer and nothing more. The deliveries to the good readers, the slow ones
beside them, are what the rate and the latencies are about.

The slow readers have small receive buffers, so that their side of the kernel takes little off the
server; what the kernel holds is not the server's memory but a figure of its own. Before, so much
is appended to another stream that what the server keeps of recent messages is as large as it gets.

A server may cut slow readers off: how many it has cut is a figure. In the end some of those that
are left read on, and must get everything from the first message on, each once, in order.
"""

import asyncio
import contextlib
import select
import socket
import time

import msgspec

from bench.fanout import CONTENT_TYPE, Fan
from bench.measure import Figure, Job, LoadError, Measurement, Messages, Sizes
from bench.memory import anonymous_bytes, kernel_tcp_bytes, settled_bytes
from bench.readers import SseReader
from bench.wire import SHOWN_BYTES_MAX, Address, Client, SseBody, parse_head

__all__ = ["slow_readers"]

GOOD_READERS = 50
PAUSE_SECONDS = 0.002
"""After everybody has a message, before the next one is sent."""
RECEIVE_BUFFER_BYTES = 4_096
SAMPLE_READERS = 3
"""So many of the slow readers read on at the end."""

FILL_BYTES = 96 << 20
FILL_MESSAGE_BYTES = 1 << 20

WARMUP_MESSAGES = 100
"""Messages before the window opens, if the time for warming up is enough for them. Meanwhile the
slow readers are sent what everybody is sent, until the buffers between here and there are full: of
the kernel, a megabyte for each of them, and of the server."""

GROWTH_BYTES_MAX = 4 << 30
"""Above this the load is stopped, lest a server that keeps everything takes the whole machine."""
MESSAGES_PER_LOOK = 20
"""How often the server's memory is looked at meanwhile."""

_CUT = select.POLLRDHUP | select.POLLHUP | select.POLLERR


async def slow_readers(job: Job) -> Measurement:
    """Drive the scenario `slow-readers` once. Raises LoadError."""
    client = Client(job.url)
    _fill(client, f"{job.run}-fill")
    alone = _Paced(job, client, f"{job.run}-alone")
    await alone.connect()
    await alone.send()
    await alone.close()
    fan = _Paced(job, client, f"{job.run}-slow")
    await fan.connect()
    figures = await _beside_slow_ones(fan, job, client.address)
    checked = await fan.close()
    measurement = fan.window.measurement(f"{checked}; what slow readers were sent was right, too")
    without_us = alone.window.measurement("").latency_p99_us
    figures = [
        Figure("p99 without the slow readers", without_us / 1e3, "ms"),
        Figure("p99 with / without", measurement.latency_p99_us / without_us, "x"),
        *figures,
    ]
    return msgspec.structs.replace(measurement, figures=tuple(figures))


async def _beside_slow_ones(fan: "_Paced", job: Job, address: Address) -> list[Figure]:
    """Send while there are slow readers; then let some of them read on. Raises LoadError."""
    before = await _Memory.now(job.server_pid)
    fan.anonymous_bytes_max = before.anonymous + GROWTH_BYTES_MAX
    slow = [_Slow(address, fan.name, job.sizes) for _ in range(job.sizes.connections)]
    with contextlib.ExitStack() as opened:
        for one in slow:
            opened.callback(one.close)
            one.begin()
        await fan.send()
        after = await _Memory.now(job.server_pid)
        left = [one for one in slow if not one.is_cut()]
        sample = left[:SAMPLE_READERS]
        expected = fan.writer.messages.first(fan.writer.count)
        complete = sum(one.read_on(expected) for one in sample)
    figures = [
        Figure("appended meanwhile", len(expected) / 2**20, "MiB"),
        Figure("slow readers cut off", len(slow) - len(left) + len(sample) - complete, ""),
    ]
    if job.server_pid is not None:
        figures += after.figures_since(before, len(slow))
    return figures


def _fill(client: Client, name: str) -> None:
    """Append to a stream that nobody reads."""
    client.create(name, CONTENT_TYPE)
    messages = Messages(1, FILL_MESSAGE_BYTES)
    for number in range(FILL_BYTES // FILL_MESSAGE_BYTES):
        client.append(name, CONTENT_TYPE, messages.at(number))
    client.end()


class _Memory(msgspec.Struct, frozen=True):
    """In bytes; zeroes if the server's process is not known."""

    anonymous: int
    kernel: int

    @classmethod
    async def now(cls, server_pid: int | None) -> "_Memory":
        if server_pid is None:
            return cls(0, 0)
        return cls(await settled_bytes(server_pid), kernel_tcp_bytes())

    def figures_since(self, before: "_Memory", readers: int) -> list[Figure]:
        """What each of the readers has added."""
        return [
            Figure(name, growth / readers / 1024, "KiB")
            for name, growth in (
                ("RssAnon a slow reader", self.anonymous - before.anonymous),
                ("kernel's TCP memory a slow reader", self.kernel - before.kernel),
            )
        ]


class _Paced(Fan):
    """The writer and the good readers."""

    def __init__(self, job: Job, client: Client, name: str) -> None:
        super().__init__(job, client, name, [SseReader] * GOOD_READERS)
        self.anonymous_bytes_max = 0
        """Of the server; 0: as much as it likes."""
        self._server_pid = job.server_pid

    def is_warm(self, seconds: float) -> bool:
        return self.writer.count >= WARMUP_MESSAGES or super().is_warm(seconds)

    def rest(self) -> None:
        if self.writer.count % MESSAGES_PER_LOOK or not self._takes_too_much():
            asyncio.get_running_loop().call_later(PAUSE_SECONDS, self.append)
        elif self.measuring:
            self.stop()
        else:
            raise LoadError(f"the server's memory has grown by {GROWTH_BYTES_MAX >> 30} GiB")

    def _takes_too_much(self) -> bool:
        if self._server_pid is None or not self.anonymous_bytes_max:
            return False
        return anonymous_bytes(self._server_pid) > self.anonymous_bytes_max


class _Slow:
    """An SSE reader that does not read. It blocks when it does."""

    def __init__(self, address: Address, name: str, sizes: Sizes) -> None:
        self._address = address
        self._request = address.head(
            "GET", f"{name}?offset=-1&live=sse", "Accept: text/event-stream"
        )
        self._sizes = sizes
        self._unread = b""
        """What came with the head."""
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)

    def begin(self) -> None:
        """Connect, ask, read the head and stop reading. Raises LoadError."""
        self._socket.settimeout(self._sizes.stall_seconds_max)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        try:
            self._socket.connect((self._address.host, self._address.port))
            self._socket.sendall(self._request)
            while (head := parse_head(self._unread)) is None:
                received = self._socket.recv(RECEIVE_BUFFER_BYTES)
                if not received:
                    raise LoadError("a slow reader was sent away before the head was whole")
                self._unread += received
        except OSError as error:
            raise LoadError(f"a slow reader cannot connect: {error!r}") from error
        if head.status != 200 or head.fields.get(b"transfer-encoding") != b"chunked":
            raise LoadError(f"a slow reader was answered: {self._unread[:SHOWN_BYTES_MAX]!r}")
        self._unread = self._unread[head.body_at :]

    def is_cut(self) -> bool:
        """The server has ended the connection, as far as the kernel knows."""
        poll = select.poll()
        poll.register(self._socket, _CUT)
        return bool(poll.poll(0))

    def read_on(self, expected: bytes) -> bool:
        """Read at last; whether `expected` came to its end, or the server has ended it before.

        Raises LoadError if something else came, or nothing more although the connection stands.
        """
        end = time.monotonic() + self._sizes.setup_seconds_max
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, FILL_MESSAGE_BYTES)
        body, data, at = SseBody(), self._unread, 0
        while True:
            payload = body.feed(data)
            if not expected.startswith(payload, at):
                raise LoadError(f"a slow reader was sent something else from byte {at} on")
            at += len(payload)
            if at == len(expected):
                return True
            try:
                data = self._socket.recv(FILL_MESSAGE_BYTES)
            except ConnectionError:
                return False
            except TimeoutError:
                end = 0
            if time.monotonic() > end:
                raise LoadError(f"a slow reader that reads on got {at} of {len(expected)} bytes")
            if not data:
                return False

    def close(self) -> None:
        self._socket.close()
