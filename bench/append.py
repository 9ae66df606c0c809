"""Appends of one message each, over many connections.

Each connection has a stream of its own and one request in flight: the next message is sent when
the last one was acknowledged, so the rate is what the server makes of it. Afterwards every stream
is read back and must hold exactly what was acknowledged, in order.
"""

import asyncio

from bench.connections import Appender, connect, until, watch
from bench.measure import Job, Measurement, Messages, Window
from bench.wire import Client

__all__ = ["append_small"]

CONTENT_TYPE = "application/octet-stream"


async def append_small(job: Job) -> Measurement:
    """Drive the scenario `append-small` once. Raises LoadError."""
    client = Client(job.url)
    sizes = job.sizes
    load = _Load(job)
    load.finished = watch()
    for number in range(sizes.connections):
        name = f"{job.run}-{number}"
        client.create(name, CONTENT_TYPE)
        messages = Messages(number, sizes.message_bytes)
        load.appenders.append(
            Appender(client.address, name, CONTENT_TYPE, messages, load.acknowledged)
        )
    client.end()
    await connect(client.address, load.appenders, sizes.stall_seconds_max)
    load.start()
    seconds_max = sizes.warmup_seconds + sizes.measured_seconds + sizes.stall_seconds_max
    await until(load.finished, seconds_max, load.state)
    for appender in load.appenders:
        appender.end()
    for appender in load.appenders:
        client.check(appender.name, appender.messages.first(appender.count))
    count = sum(appender.count for appender in load.appenders)
    return load.window.measurement(
        f"{sizes.connections} streams read back: {count} messages, each once, in order"
    )


class _Load:
    """Keeps every connection busy until the window has closed, then lets each finish."""

    finished: "asyncio.Future[None]"

    def __init__(self, job: Job) -> None:
        self.appenders: list[Appender] = []
        self.window = Window(job.server_pid)
        self._sizes = job.sizes
        self._busy = 0

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(self._sizes.warmup_seconds, self.window.open)
        loop.call_later(self._sizes.warmup_seconds + self._sizes.measured_seconds, self._stop)
        self._busy = len(self.appenders)
        for appender in self.appenders:
            appender.append()

    def state(self) -> str:
        """What is missing, as the end of a sentence."""
        return f"{self._busy} of {len(self.appenders)} connections have not finished"

    def acknowledged(self, appender: Appender, latency_ns: int) -> None:
        self.window.latencies_ns.append(latency_ns)
        if len(self.window.latencies_ns) == self._sizes.operations_max:
            self._stop()
        if not self.window.is_closed:
            appender.append()
            return
        self._busy -= 1
        if not self._busy and not self.finished.done():
            self.finished.set_result(None)

    def _stop(self) -> None:
        if not self.window.is_closed:
            self.window.close()
