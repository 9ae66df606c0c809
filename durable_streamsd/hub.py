"""Who waits for news of which stream, and waking them when a commit brings some.

No wake is lost because a waiter registers *before* it compares its offset with the durable tail,
and nothing runs in between (`exchange.Exchange`). A commit wakes each stream it touched once,
however many records it brought. A waiter leaves the hub when it is woken: whoever wants to hear
of the next commit registers again.

Invariants:
- a waiter is in at most one group; `waiter.group` is that group, or None
- a group in `_groups` is never empty
- a waiter that fails keeps no other from being woken
- one turn of the loop wakes at most `WAKES_PER_TURN_MAX` waiters, so that a stream with a hundred
  thousand readers delays nobody else for long; the rest follow in the next turns, before the loop
  sleeps

Bounded by the connections: each parks at most one request, so there are never more waiters than
`connections_max`. Left out: time-outs (`wheel`), and whether a wake was worth it (`Exchange`).
"""

import asyncio
import logging
from collections import deque
from collections.abc import Iterable
from typing import Protocol

from storage.state import Stream

__all__ = ["WAKES_PER_TURN_MAX", "Group", "Hub", "Waiter"]

WAKES_PER_TURN_MAX = 1_000

log = logging.getLogger(__name__)


class Waiter(Protocol):
    """What the hub asks of those who wait."""

    group: "Group | None"

    def woken(self) -> None:
        """News; the waiter has left the hub."""


class Group:
    """The waiters of one stream."""

    __slots__ = ("stream", "waiters")

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.waiters: set[Waiter] = set()


class Hub:
    """Waiters by stream; on the loop's thread only."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._groups: dict[int, Group] = {}
        self._waking: deque[Group] = deque()

    def __len__(self) -> int:
        """How many wait and were not called to wake."""
        return sum(len(group.waiters) for group in self._groups.values())

    def register(self, waiter: Waiter, stream: Stream) -> None:
        """From now on a wake of `stream` wakes `waiter`, once. Compare after this, not before."""
        assert waiter.group is None
        group = self._groups.get(stream.id)
        if group is None:
            group = self._groups[stream.id] = Group(stream)
        group.waiters.add(waiter)
        waiter.group = group

    def leave(self, waiter: Waiter) -> None:
        """Wait no more. A waiter that does not wait is let be."""
        group = waiter.group
        if group is None:
            return
        waiter.group = None
        group.waiters.discard(waiter)
        if not group.waiters and self._groups.get(group.stream.id) is group:
            del self._groups[group.stream.id]

    def wake(self, streams: Iterable[Stream]) -> None:
        """Wake all who wait for one of `streams`: the first of them before this returns."""
        before = len(self._waking)
        for stream in streams:
            group = self._groups.pop(stream.id, None)
            if group is not None:
                self._waking.append(group)
        if self._waking and not before:
            self._turn()

    def wake_all(self) -> None:
        """Wake everybody: the daemon stops, or somebody may have lost their right to wait."""
        self.wake([group.stream for group in self._groups.values()])

    def _turn(self) -> None:
        left = WAKES_PER_TURN_MAX
        waking = self._waking
        while waking:
            waiters = waking[0].waiters
            while waiters and left:
                left -= 1
                waiter = waiters.pop()
                waiter.group = None
                try:
                    waiter.woken()
                except Exception:
                    log.exception("a waiter failed when it was woken")
            if waiters:
                self._loop.call_soon(self._turn)
                return
            waking.popleft()
