"""Starting the load generator (`generator`), a process of its own for each measurement.

Its own, so that its CPU time and memory are not the server's, and so that a generator that has
gone wrong spoils one measurement and no more.
"""

import subprocess
import sys
from pathlib import Path

import msgspec

from bench.measure import Job, LoadError, Measurement

__all__ = ["ROOT", "measure"]

ROOT = Path(__file__).resolve().parent.parent
"""Where `bench` can be imported from."""

STDERR_SHOWN_CHARACTERS_MAX = 4_000


def measure(job: Job) -> Measurement:
    """Run one measurement in a process of its own. Raises LoadError if it gives no figure."""
    seconds_max = job.sizes.total_seconds_max
    try:
        done = subprocess.run(
            [sys.executable, "-m", "bench.generator"],
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
