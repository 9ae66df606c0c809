"""Memory of a server that has come to rest, and what the kernel holds for its connections.

Garbage collectors and allocators give memory back some time after it was used, so one look is not
enough: it counts when several looks in a row agree, or when it has been waited for long enough.
"""

import asyncio
import os
import re
import time

from bench.measure import LoadError
from bench.processes import PROC, usage

__all__ = ["anonymous_bytes", "kernel_tcp_bytes", "settled_bytes"]

LOOK_SECONDS = 0.1
LOOKS_ALIKE = 5
ALIKE_SHARE = 0.005
SETTLE_SECONDS_MAX = 3.0


async def settled_bytes(pid: int) -> int:
    """Anonymous resident memory of `pid` and its descendants, as soon as it has settled.

    Raises LoadError if the server has ended.
    """
    end = time.monotonic() + SETTLE_SECONDS_MAX
    looks: list[int] = []
    while time.monotonic() < end:
        looks = [*looks[1 - LOOKS_ALIKE :], anonymous_bytes(pid)]
        if len(looks) == LOOKS_ALIKE and max(looks) - min(looks) <= ALIKE_SHARE * min(looks):
            break
        await asyncio.sleep(LOOK_SECONDS)
    return looks[-1]


def anonymous_bytes(pid: int) -> int:
    """Anonymous resident memory now. Raises LoadError if the server has ended."""
    try:
        return usage(pid).rss_anonymous_bytes
    except (FileNotFoundError, ProcessLookupError):
        raise LoadError("the server ended during the measurement") from None


def kernel_tcp_bytes() -> int:
    """What the kernel holds in buffers of TCP, of all connections of this machine together."""
    pages = re.search(r"^TCP: .* mem (\d+)$", (PROC / "net" / "sockstat").read_text(), re.MULTILINE)
    assert pages is not None
    return int(pages[1]) * os.sysconf("SC_PAGE_SIZE")
