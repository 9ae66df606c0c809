"""What the kernel says about a process and all its descendants: CPU time and memory.

CPU time is user and system time of the whole tree, with that of children which have ended and
were waited for, so nothing is lost when a child ends between two looks. The kernel counts it in
ticks of 10 ms: windows of some seconds make that less than a percent.

Memory is the sum over the processes; pages that two of them share count twice.
"""

import os
from pathlib import Path

import msgspec

__all__ = ["Usage", "usage"]

PROC = Path("/proc")
PROCESSES_MAX = 1_000

_TICK_US = 1_000_000 // os.sysconf("SC_CLK_TCK")


class Usage(msgspec.Struct, frozen=True):
    """CPU time used since its start, and present memory, of one tree of processes."""

    cpu_us: int
    rss_bytes: int
    rss_anonymous_bytes: int

    def __add__(self, other: "Usage") -> "Usage":
        """Of two processes together."""
        return Usage(
            self.cpu_us + other.cpu_us,
            self.rss_bytes + other.rss_bytes,
            self.rss_anonymous_bytes + other.rss_anonymous_bytes,
        )

    def __sub__(self, earlier: "Usage") -> "Usage":
        """CPU time used since `earlier`, with the memory of now."""
        return Usage(self.cpu_us - earlier.cpu_us, self.rss_bytes, self.rss_anonymous_bytes)


def usage(pid: int) -> Usage:
    """Usage of process `pid` and its descendants. Raises FileNotFoundError if it is gone."""
    total = _usage_of_one(pid)
    found = [pid]
    for parent in found:
        for child in _children(parent)[: PROCESSES_MAX - len(found)]:
            try:
                one = _usage_of_one(child)
            except (FileNotFoundError, ProcessLookupError):
                continue  # ended meanwhile: its time is with its parent's at the next look
            found.append(child)
            total += one
    return total


def _usage_of_one(pid: int) -> Usage:
    stat = (PROC / str(pid) / "stat").read_bytes()
    # The name in parentheses may hold anything, spaces too; counted from its end, the fields
    # utime, stime, cutime and cstime are the 12th to 15th.
    ticks = sum(int(field) for field in stat[stat.rindex(b")") + 2 :].split()[11:15])
    memory = {b"VmRSS": 0, b"RssAnon": 0}
    for line in (PROC / str(pid) / "status").read_bytes().splitlines():
        key, _, value = line.partition(b":")
        if key in memory:
            memory[key] = int(value.split()[0]) * 1024
    return Usage(ticks * _TICK_US, memory[b"VmRSS"], memory[b"RssAnon"])


def _children(pid: int) -> list[int]:
    children: list[int] = []
    try:
        for thread in (PROC / str(pid) / "task").iterdir():
            children += map(int, (thread / "children").read_text().split())
    except (FileNotFoundError, ProcessLookupError):
        pass  # the process or the thread ended meanwhile
    return children
