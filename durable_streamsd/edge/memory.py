"""Whether memory is short: looked at once a second, so that reads are refused before it is gone.

What counts is what the process cannot give back: its anonymous memory (`RssAnon`), without the
pages of files that are mapped, such as the index. To that comes what was promised and may be taken
within the next second: what is left of the allowances for large answers and bodies. When both
together pass the bound, memory that was freed but is still with the allocator is given back first
(`malloc_trim`), and only then it is called short; and it stays so until there is some margin again.

The bound is by default a part of what the system has: of the memory limit of the control group
(version 2), or of the machine's memory, whichever is less.

Left out: what is refused then (`core.pressure`).
"""

import ctypes
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from durable_streamsd.config import Settings

__all__ = ["Memory", "anonymous_bytes", "system_bytes", "within_memory"]

DEFAULT_SHARE: Final = 0.8
ALLOWANCE_SHARE: Final = 0.25
"""The most of the bound that one allowance may be."""
ENOUGH_SHARE: Final = 0.95
TRIM_PAUSE_S: Final = 10
"""Giving memory back holds up the loop; how many seconds it is left be after that."""

log = logging.getLogger(__name__)


def anonymous_bytes(status: Path = Path("/proc/self/status")) -> int:
    """Memory of this process that is not backed by files; 0 where the system does not say."""
    try:
        lines = status.read_bytes().splitlines()
    except OSError:  # a root of its own, without /proc
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(b"RssAnon:")), 0)


def system_bytes(root: Path = Path("/")) -> int:
    """What there is for this process: the machine's memory, or less by its control groups."""
    least = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    mounted = root / "sys/fs/cgroup"
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return least
    for line in groups:
        if not line.startswith("0::/"):
            continue
        group = mounted / line.removeprefix("0::/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(mounted):
                break
            try:
                limit = (folder / "memory.max").read_text().strip()
            except OSError:
                continue
            if limit.isdigit():
                least = min(least, int(limit))
    return least


def within_memory(settings: Settings) -> Settings:
    """The settings with the memory bound filled in, and with allowances that fit into it."""
    bound = settings.memory_bytes_max or int(system_bytes() * DEFAULT_SHARE)
    most = max(1, int(bound * ALLOWANCE_SHARE))
    changed = {"memory_bytes_max": bound}
    for name in ("answers_bytes_max", "bodies_bytes_max"):
        if getattr(settings, name) > most:
            changed[name] = most
            log.info("%s is %d: a quarter of memory_bytes_max", name, most)
    return msgspec.structs.replace(settings, **changed)


class Memory:
    """Says whether memory is `short`. `promised` is how many bytes may yet be taken at once."""

    def __init__(
        self,
        bytes_max: int,
        promised: Callable[[], int],
        measure: Callable[[], int] = anonymous_bytes,
    ) -> None:
        self._bytes_max = bytes_max
        self._promised = promised
        self._measure = measure
        self._trim_in = 0
        self.short = False

    def tick(self) -> bool:
        """Look, once a second; returns whether it is short."""
        bound = self._bytes_max * (ENOUGH_SHARE if self.short else 1)
        self._trim_in = max(0, self._trim_in - 1)
        need = self._need()
        if need > bound and not self._trim_in:
            self._trim_in = TRIM_PAUSE_S
            _give_back()
            need = self._need()
        short = need > bound
        if short and not self.short:
            log.warning(
                "memory is short: %d bytes with what is promised, memory_bytes_max is %d; large "
                "reads and new live readers are refused",
                need,
                self._bytes_max,
            )
        elif self.short and not short:
            log.info("there is memory again")
        self.short = short
        return short

    def _need(self) -> int:
        return self._measure() + self._promised()


def _give_back() -> None:
    """Have the C library return what it keeps of freed memory, where it knows how to."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
