"""The load generator, a process of its own for each measurement.

Its own, so that its CPU time and memory are not the server's, and so that a generator that has
gone wrong spoils one measurement and no more. `measure` starts it with a Job on its standard input;
it writes a Measurement to its standard output and exits with 0, or says in a sentence why there is
none and exits with 1.
"""

import asyncio
import gc
import subprocess
import sys
from pathlib import Path

import msgspec
import uvloop

from bench.measure import Job, LoadError, Measurement
from bench.scenarios import SCENARIOS

__all__ = ["ROOT", "measure"]

ROOT = Path(__file__).resolve().parent.parent
"""Where `bench` can be imported from."""

STDERR_SHOWN_CHARACTERS_MAX = 4_000


def measure(job: Job) -> Measurement:
    """Run one measurement in a process of its own. Raises LoadError if it gives no figure."""
    seconds_max = job.sizes.total_seconds_max
    try:
        done = subprocess.run(
            [sys.executable, "-m", "bench.load"],
            input=msgspec.json.encode(job),
            capture_output=True,
            cwd=ROOT,
            timeout=seconds_max,
        )
    except subprocess.TimeoutExpired:
        raise LoadError(f"the load generator did not end within {seconds_max:g} s") from None
    if done.returncode == 0:
        return msgspec.json.decode(done.stdout, type=Measurement)
    if done.returncode == 1 and done.stdout:
        raise LoadError(done.stdout.decode().strip())
    stderr = done.stderr.decode(errors="replace")[-STDERR_SHOWN_CHARACTERS_MAX:]
    raise LoadError(f"the load generator failed, code {done.returncode}:\n{stderr}")


async def _drive(job: Job) -> Measurement:
    return await SCENARIOS[job.scenario].drive(job)


def main() -> int:
    """What the process does."""
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)
    # A collection would show as latency of the server. The process lives for one measurement of
    # bounded size, so nothing has to be collected.
    gc.disable()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            measurement = runner.run(_drive(job))
    except LoadError as error:
        print(error)
        return 1
    sys.stdout.buffer.write(msgspec.json.encode(measurement))
    return 0


if __name__ == "__main__":
    sys.exit(main())
