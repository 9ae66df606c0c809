"""The load generator's process.

It gets a Job on its standard input, writes a Measurement to its standard output and exits with 0,
or says in a sentence why there is none and exits with 1.
"""

import asyncio
import gc
import sys

import msgspec
import uvloop

from bench.measure import Job, LoadError, Measurement
from bench.scenarios import SCENARIOS


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
