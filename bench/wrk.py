"""Small reads, made by wrk: a server answers them faster than Python can ask.

wrk is an HTTP load generator in C. Its script (`wrk.lua`) compares each body with what the stream
holds, at 0.4 µs each: so it reads 130,000/s from nginx, as many as if it did not look at them.
It has one thread, like our own generator. Its percentiles are corrected for coordinated omission:
an answer that takes longer than usual counts for the requests that its connection did not make.

A run of wrk cannot be looked into, so its whole run is the window, after another one to warm up.
"""

import resource
import shutil
import subprocess
from pathlib import Path

import msgspec

from bench.measure import Job, LoadError, Measurement, Messages
from bench.processes import Usage, usage
from bench.wire import Client

__all__ = ["read_small"]

CONTENT_TYPE = "application/octet-stream"
SCRIPT = Path(__file__).with_suffix(".lua")


class _Found(msgspec.Struct, forbid_unknown_fields=True):
    """What the script prints."""

    requests: int
    duration_us: int
    wrong: int
    """Answers with another status than 200, or another body."""
    cut: int
    """Connections that could not be opened, or failed."""
    stalled: int
    """Requests whose answer took longer than the generator waits for anything."""
    p50_us: int
    p99_us: int
    p999_us: int


async def read_small(job: Job) -> Measurement:
    """All connections read the same stream of one message, again and again. Raises LoadError."""
    if shutil.which("wrk") is None:
        raise LoadError("wrk is not on PATH, which makes the requests: `apt-get install wrk`")
    sizes = job.sizes
    content = Messages(0, sizes.message_bytes).at(0)
    client = Client(job.url)
    client.create(job.run, CONTENT_TYPE)
    client.append(job.run, CONTENT_TYPE, content)
    client.check(job.run, content)
    client.end()
    _run(job, content, sizes.warmup_seconds)
    server_before = _server(job)
    generator_before = _generator_seconds()
    found = _run(job, content, sizes.measured_seconds)
    generator_seconds = _generator_seconds() - generator_before
    server_after = _server(job)
    client.check(job.run, content)
    seconds = found.duration_us / 1e6
    return Measurement(
        operations=found.requests,
        seconds=seconds,
        latency_p50_us=found.p50_us,
        latency_p99_us=found.p99_us,
        latency_p999_us=found.p999_us,
        server=server_after - server_before if server_before and server_after else None,
        generator_cpu_share=generator_seconds / seconds,
        checked=f"{found.requests} reads of {len(content)} bytes, each body compared",
    )


def _run(job: Job, content: bytes, seconds: float) -> _Found:
    """Run wrk once, for whole seconds. Raises LoadError if any answer was wrong, or none came."""
    command = ["wrk", "--threads", "1", "--connections", str(job.sizes.connections)]
    command += ["--duration", f"{max(1, round(seconds))}s"]
    command += ["--timeout", f"{round(job.sizes.stall_seconds_max)}s", "--script", str(SCRIPT)]
    command += [f"{job.url}/{job.run}?offset=-1", "--", content.decode()]
    seconds_max = seconds + job.sizes.stall_seconds_max
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds_max)
    except subprocess.TimeoutExpired:
        raise LoadError(f"wrk did not end within {seconds_max:g} s") from None
    try:
        found = msgspec.json.decode(done.stdout.splitlines()[-1], type=_Found)
    except (IndexError, msgspec.DecodeError):
        raise LoadError(f"wrk failed:\n{done.stdout}{done.stderr}") from None
    if found.wrong or found.cut or found.stalled or not found.requests:
        raise LoadError(
            f"of {found.requests} reads {found.wrong} were wrong and {found.stalled} stalled; "
            f"{found.cut} connections failed"
        )
    return found


def _server(job: Job) -> Usage | None:
    """What the server has used so far. Raises LoadError if it has ended."""
    if job.server_pid is None:
        return None
    try:
        return usage(job.server_pid)
    except (FileNotFoundError, ProcessLookupError):
        raise LoadError("the server ended during the measurement") from None


def _generator_seconds() -> float:
    """CPU time of all runs of wrk so far."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return children.ru_utime + children.ru_stime
