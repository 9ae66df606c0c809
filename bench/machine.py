"""On what it was measured: without this, no figure means anything.

The disk is measured too, by the one operation that every durable append waits for.
"""

import os
import platform
import time
from importlib import metadata
from pathlib import Path

import msgspec

__all__ = ["NOT_A_DISK", "Machine", "describe"]

NOT_A_DISK = ("tmpfs", "ramfs")
"""File systems on which a sync does nothing."""

SYNC_BYTES = 4_096
SYNCS = 200
SYNC_SECONDS_MAX = 3.0


class Machine(msgspec.Struct, frozen=True):
    """The machine, the software, and the disk that holds the data directories."""

    cpu: str
    cores: int
    """As many as this process may use."""
    memory_bytes: int
    kernel: str
    python: str
    uvloop: str
    file_system: str
    sync_p50_us: float
    """Median of writing 4 KiB to a new file and `fdatasync`, one after the other."""
    load_average: float
    """Of the last minute, before the first measurement: what else the machine was doing."""

    def __str__(self) -> str:
        return (
            f"machine: {self.cpu}, {self.cores} cores, {self.memory_bytes / 2**30:.1f} GiB, "
            f"load {self.load_average:.1f} before the start\n"
            f"software: Linux {self.kernel}, Python {self.python}, uvloop {self.uvloop}\n"
            f"disk: {self.file_system}, write and fdatasync of 4 KiB p50 {self.sync_p50_us:.0f} µs"
        )


def describe(data_root: Path) -> Machine:
    """Describe this machine and the file system of `data_root`, where it writes a small file."""
    return Machine(
        cpu=_cpu(),
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        kernel=platform.release(),
        python=platform.python_version(),
        uvloop=metadata.version("uvloop"),
        file_system=_file_system(data_root),
        sync_p50_us=_sync_p50_us(data_root / "sync-probe"),
        load_average=os.getloadavg()[0],
    )


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.machine()


def _file_system(path: Path) -> str:
    """Type of the file system that holds `path`: that of the last mount at its nearest parent."""
    types = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        mount, _, source = line.partition(" - ")
        types[mount.split()[4].replace("\\040", " ")] = source.split()[0]
    here = path.resolve()
    return next((types[str(at)] for at in (here, *here.parents) if str(at) in types), "unknown")


def _sync_p50_us(path: Path) -> float:
    block = os.urandom(SYNC_BYTES)
    times_ns: list[int] = []
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        begun_ns = time.perf_counter_ns()
        while len(times_ns) < SYNCS:
            before_ns = time.perf_counter_ns()
            if before_ns - begun_ns > SYNC_SECONDS_MAX * 1e9:
                break
            os.write(descriptor, block)
            os.fdatasync(descriptor)
            times_ns.append(time.perf_counter_ns() - before_ns)
    finally:
        os.close(descriptor)
        path.unlink()
    return sorted(times_ns)[len(times_ns) // 2] / 1_000
