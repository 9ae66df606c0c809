"""A store of many streams is killed under load and started again: how long until it answers.

An operation is a restart. Its latency runs from starting the program to the first stream that it
lets somebody read; the CPU time is that of the server until then. Beside it stands the same for an
empty store, and the time it takes to start the server's language and load its code and no more.

The server is killed with SIGKILL while appends are on their way, and started on what it left. What
it had acknowledged is read back each time: a hot stream must hold every acknowledged message, and
at most the one whose acknowledgement never came. The page cache is as the killed server left it,
as after the crash of a program; not as after a loss of power.
"""

import asyncio
import http.client
import os
import resource
import signal
import subprocess
import time
from statistics import median
from urllib.parse import urlsplit

from bench.connections import until, watch
from bench.load import ROOT
from bench.many_streams import create_all, refuse_unfit
from bench.measure import Figure, Job, LoadError, Measurement, Window
from bench.processes import Usage, usage
from bench.scattered import Field, Walker, create, hot_streams
from bench.servers import OwnServer, Server
from bench.turns import Turn

__all__ = ["restart", "restart_turn"]

IMPORTS = 5
"""How often they are timed, for the median."""
POLL_SECONDS = 0.001
IDLE_STREAMS_READ_MAX = 10_000
"""How many of those that were never appended to are read after each restart."""
REQUEST_SECONDS_MAX = 30.0


def restart_turn(turn: Turn) -> Measurement:
    """Take a turn in the scenario `restart`."""
    refuse_unfit(turn.target, turn.sizes.streams)
    begun_ns = time.perf_counter_ns()
    with turn.target.running(turn.folder) as server:
        assert isinstance(server, OwnServer)
        _wait_for_answer(server, "none", 404)
        empty_ns = time.perf_counter_ns() - begun_ns
        create_all(turn, server)
        starts = _Starts()
        for _ in range(turn.sizes.operations_max):
            loaded = turn.measure(server, "load")
            starts.again(server, first_read=f"{turn.folder.name}-0")
            read = turn.measure(server, "check")
    figures = [
        Figure("ready with an empty store", empty_ns / 1e6, "ms"),
        Figure("appends before the kill", loaded.rate, "1/s"),
    ]
    if turn.target.imports:
        imports_ns, imports_cpu_ns = _imports_ns(turn.target.imports)
        beyond_ns = median(starts.latencies_ns) - imports_ns
        figures += [
            Figure("start and imports alone", imports_ns / 1e6, "ms"),
            Figure("CPU of start and imports alone", imports_cpu_ns / 1e6, "ms"),
            Figure("beyond start and imports", beyond_ns / 1e6, "ms"),
        ]
    return starts.measurement(read.checked, tuple(figures))


class _Starts:
    """The restarts of one server, timed from outside."""

    def __init__(self) -> None:
        self.latencies_ns: list[int] = []
        self._own_cpu_ns = 0
        self._server = Usage(0, 0, 0)

    def again(self, server: OwnServer, first_read: str) -> None:
        """Start a server that was killed, and wait until it lets that stream be read."""
        server.kill()  # it was killed before: this takes it off the kernel's list
        own_cpu_ns = time.process_time_ns()
        begun_ns = time.perf_counter_ns()
        server.start()
        _wait_for_answer(server, first_read, 200)
        self.latencies_ns.append(time.perf_counter_ns() - begun_ns)
        self._own_cpu_ns += time.process_time_ns() - own_cpu_ns
        used = usage(server.pid)
        self._server = Usage(self._server.cpu_us, 0, 0) + used

    def measurement(self, checked: str, figures: tuple[Figure, ...]) -> Measurement:
        seconds = sum(self.latencies_ns) / 1e9
        longest_us = max(self.latencies_ns) / 1e3
        return Measurement(
            operations=len(self.latencies_ns),
            seconds=seconds,
            latency_p50_us=median(self.latencies_ns) / 1e3,
            latency_p99_us=longest_us,
            latency_p999_us=longest_us,
            server=self._server,
            generator_cpu_share=self._own_cpu_ns / 1e9 / seconds,
            checked=checked,
            figures=figures,
        )


def _wait_for_answer(server: Server, name: str, status: int) -> None:
    """Wait until a read of this stream is answered so."""
    parts = urlsplit(server.url)
    end = time.monotonic() + REQUEST_SECONDS_MAX
    said = "nothing"
    while time.monotonic() < end:
        assert parts.hostname is not None
        connection = http.client.HTTPConnection(
            parts.hostname, parts.port, timeout=REQUEST_SECONDS_MAX
        )
        try:
            connection.request("GET", f"{parts.path}/{name}?offset=-1")
            response = connection.getresponse()
            response.read()
        except (OSError, http.client.HTTPException) as error:
            said = repr(error)
        else:
            if response.status == status:
                return
            said = str(response.status)
        finally:
            connection.close()
        time.sleep(POLL_SECONDS)
    raise LoadError(f"within {REQUEST_SECONDS_MAX:g} s, GET {name} was last answered {said}")


def _imports_ns(command: tuple[str, ...]) -> tuple[float, float]:
    """How long this command takes, and how much CPU time: medians, in nanoseconds."""
    times_ns, cpu_times_ns = [], []
    for _ in range(IMPORTS):
        cpu_before = _children_cpu_seconds()
        begun_ns = time.perf_counter_ns()
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        times_ns.append(time.perf_counter_ns() - begun_ns)
        cpu_times_ns.append((_children_cpu_seconds() - cpu_before) * 1e9)
    return median(times_ns), median(cpu_times_ns)


def _children_cpu_seconds() -> float:
    """Of children of this process that have ended, and were waited for."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


async def restart(job: Job) -> Measurement:
    """Drive one phase of the scenario `restart`. Raises LoadError."""
    if job.phase == "create":
        return await create(job)
    field = Field(job, hot_streams(job.sizes.streams))
    done = await (_load(job, field) if job.phase == "load" else _check(job, field))
    field.save()
    return done


async def _load(job: Job, field: Field) -> Measurement:
    """Append until it is time to kill the server, in the midst of it."""
    pid = job.server_pid
    assert pid is not None
    window = Window(pid)
    finished = watch()
    connected = 0

    def acknowledged(walker: Walker, latency_ns: int) -> None:
        window.latencies_ns.append(latency_ns)
        walker.append()

    def lost(_: Walker) -> None:
        nonlocal connected
        connected -= 1
        if not window.is_closed:
            raise LoadError("a connection was cut before the server was killed")
        if not connected:
            finished.set_result(None)

    def kill() -> None:
        window.close()
        os.kill(pid, signal.SIGKILL)

    walkers = await field.connect(acknowledged, lost)
    connected = len(walkers)
    sizes = job.sizes
    loop = asyncio.get_running_loop()
    loop.call_later(sizes.warmup_seconds, window.open)
    loop.call_later(sizes.warmup_seconds + sizes.measured_seconds, kill)
    for walker in walkers:
        walker.append()
    seconds_max = sizes.warmup_seconds + sizes.measured_seconds + sizes.stall_seconds_max
    await until(finished, seconds_max, lambda: f"{connected} connections outlive the server")
    return window.measurement(f"{sum(field.counts):,} messages acknowledged")


async def _check(job: Job, field: Field) -> Measurement:
    """Read what was acknowledged, and some of the streams that nobody appended to."""
    window = Window(job.server_pid)
    window.open()
    found = await field.check(surplus_max=1)
    window.latencies_ns.extend(await field.check_empty(IDLE_STREAMS_READ_MAX))
    window.close()
    return window.measurement(
        f"{found}, all that were acknowledged, in order; {len(window.latencies_ns):,} empty streams"
    )
