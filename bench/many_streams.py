"""A million streams: what creating them takes, what they cost idle, and what they cost the others.

An operation is an append to one of a thousand hot streams among the many. The same is measured
before with those thousand alone, on a fresh server of the same kind, and afterwards with appends
spread evenly over all streams, each to another stream than the last.

Disk is counted in blocks that the file system has allocated, the growth since the store was empty:
what a server had allocated ahead before is not in it, what it allocated ahead meanwhile is. What
the file system keeps of a file elsewhere (its inode) is not seen, nor is the kernel's memory for
files that a server holds open.
"""

import asyncio
import contextlib
import os
import random
import resource
import time
from pathlib import Path

import msgspec

from bench.loops import ClosedLoop
from bench.measure import Figure, Job, LoadError, Measurement
from bench.memory import settled_bytes
from bench.processes import usage
from bench.scattered import HOT_STREAMS, Field, create, hot_streams
from bench.servers import FILES_SPARE, Server
from bench.targets import Target
from bench.turns import NotComparable, Turn

__all__ = ["create_all", "many_streams", "many_streams_turn", "refuse_unfit"]

BLOCK_BYTES = 512
"""The unit of `st_blocks`."""

LOOK_SECONDS = 1.0
REST_CPU_SHARE = 0.02
"""Of a core; a server that uses less than this is at rest."""
REST_SECONDS_MAX = 60.0


def many_streams_turn(turn: Turn) -> Measurement:
    """Take a turn in the scenario `many-streams`."""
    refuse_unfit(turn.target, turn.sizes.streams)
    few = msgspec.structs.replace(
        turn,
        sizes=msgspec.structs.replace(turn.sizes, streams=HOT_STREAMS),
        folder=turn.folder / "few",
    )
    few.folder.mkdir()
    with few.target.running(few.folder) as server:
        few.measure(server, "create")
        alone = few.measure(server, "hot")
    with turn.target.running(turn.folder) as server:
        created = create_all(turn, server)
        hot = turn.measure(server, "hot")
        uniform = turn.measure(server, "uniform")
    figures = [
        Figure("creates", created.rate, "1/s"),
        Figure("CPU of a create", created.server_cpu_us_per_operation or 0, "µs"),
        *created.figures,
        Figure("appends to as many streams alone", alone.rate, "1/s"),
        Figure("ratio: among all, to alone", hot.rate / alone.rate, ""),
        Figure("appends over all streams", uniform.rate, "1/s"),
        Figure("ratio: over all, to alone", uniform.rate / alone.rate, ""),
    ]
    if uniform.server is not None:
        mebibytes = uniform.server.rss_anonymous_bytes / 2**20
        figures.append(Figure("RssAnon while appending over all", mebibytes, "MiB"))
    checked = f"{created.checked}; {alone.checked}; {hot.checked}; {uniform.checked}"
    return msgspec.structs.replace(hot, figures=tuple(figures), checked=checked)


def refuse_unfit(target: Target, streams: int) -> None:
    """Raises NotComparable if the target cannot do what is done with so many streams."""
    if target.command is None:
        raise NotComparable("it runs already; this needs an empty store, and a server to stop")
    most = target.streams_max
    if most is not None and most < streams:
        raise NotComparable(
            f"with more than {most} streams it answers some of the appends at once with errors"
        )
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if target.file_per_stream and resource.RLIM_INFINITY != files < streams + FILES_SPARE:
        raise NotComparable(
            f"it keeps a file open for each stream, and {files:,} is the limit here (ulimit -Hn)"
        )


def create_all(turn: Turn, server: Server) -> Measurement:
    """Create the turn's streams. Raises NotComparable if there is not enough time for all."""
    created = turn.measure(server, "create")
    if created.operations < turn.sizes.streams:
        raise NotComparable(
            f"within {turn.sizes.setup_seconds_max:g} s it created {created.operations:,} of "
            f"{turn.sizes.streams:,} streams, {created.rate:,.0f}/s"
        )
    return created


async def many_streams(job: Job) -> Measurement:
    """Drive one phase of the scenario `many-streams`. Raises LoadError."""
    if job.phase == "create":
        return await _create(job)
    field = _field(job)
    loop = ClosedLoop(job)
    walkers = await field.connect(lambda walker, ns: loop.done(ns, walker.append))
    await loop.run(walker.append for walker in walkers)
    for walker in walkers:
        walker.end()
    found = await field.check()
    field.save()
    return loop.measurement(f"{found}, each once, in order")


def _field(job: Job) -> Field:
    if job.phase == "hot":
        return Field(job, hot_streams(job.sizes.streams))
    numbers = list(range(job.sizes.streams))
    random.Random(0).shuffle(numbers)
    return Field(job, numbers)


async def _create(job: Job) -> Measurement:
    """Create the streams, and look at what they cost when the server has come to rest."""
    assert job.server_pid is not None and job.data_dir is not None
    empty_bytes = _allocated_bytes(Path(job.data_dir))
    created = await create(job)
    await _rest(job.server_pid)
    anonymous_bytes = await settled_bytes(job.server_pid)
    full_bytes = _allocated_bytes(Path(job.data_dir))
    figures = (
        Figure("RssAnon idle", anonymous_bytes / 2**20, "MiB"),
        Figure("disk per empty stream", (full_bytes - empty_bytes) / created.operations, "bytes"),
    )
    return msgspec.structs.replace(created, figures=figures)


async def _rest(pid: int) -> None:
    """Wait until the server has done what was left to do in the background, or long enough."""
    end = time.monotonic() + REST_SECONDS_MAX
    try:
        while time.monotonic() < end:
            before_us = usage(pid).cpu_us
            await asyncio.sleep(LOOK_SECONDS)
            if usage(pid).cpu_us - before_us <= REST_CPU_SHARE * LOOK_SECONDS * 1e6:
                return
    except (FileNotFoundError, ProcessLookupError):
        raise LoadError("the server ended during the measurement") from None


def _allocated_bytes(folder: Path) -> int:
    """Of all files and folders in this one, and itself."""
    total = folder.stat().st_blocks * BLOCK_BYTES
    waiting = [str(folder)]
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # removed since it was listed
                    total += entry.stat(follow_symlinks=False).st_blocks * BLOCK_BYTES
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
    return total
