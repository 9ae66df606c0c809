"""One coarse timer for every deadline of every connection.

A timer per connection and request would cost more than answering the request. Here a deadline is
an integer, the number of the tick at which it is due. Whoever has one (`Timed`) sits in the bucket
of a tick that is not later than it; when that tick comes and the deadline has moved meanwhile, it
moves to a later bucket. So moving a deadline later, which is what nearly every request does,
stores one integer.

Invariants:
- by the loop's clock nothing fires early, and nothing more than two ticks late; a loop that is held
  up in one turn for longer than a tick may be wrong by as much
- `slot` is the bucket's tick, 0 when in none; `slot <= deadline` unless in none
- the loop's timer runs only while some bucket is filled: an idle daemon is not woken

Left out: deadlines that need to be precise. Nothing in HTTP does.
"""

import asyncio
import math

__all__ = ["TICK_S", "Timed", "Wheel", "ticks_of"]

TICK_S = 0.25


def ticks_of(seconds: float) -> int:
    """How many ticks from now are never less than `seconds` from now."""
    return math.ceil(seconds / TICK_S) + 1  # the tick that is running has begun already


class Timed:
    """Something with a deadline; what to do about it is the subclass's `on_deadline`."""

    __slots__ = ("deadline", "slot")

    def __init__(self) -> None:
        self.deadline = 0
        self.slot = 0

    def on_deadline(self) -> None:
        """The deadline has passed. It fires once: whoever wants another one arms it again."""
        raise NotImplementedError


class Wheel:
    """Deadlines by tick; on the loop's thread only."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._buckets: dict[int, set[Timed]] = {}
        self._handle: asyncio.TimerHandle | None = None
        self._now = int(loop.time() / TICK_S)

    def __len__(self) -> int:
        return sum(len(bucket) for bucket in self._buckets.values())

    def arm(self, timed: Timed, ticks: int) -> None:
        """Make the deadline of `timed`, its only one, due in `ticks` (see `ticks_of`)."""
        if self._handle is None:
            self._start()
        timed.deadline = deadline = self._now + ticks
        if timed.slot == 0 or deadline < timed.slot:
            self.forget(timed)
            timed.slot = deadline
            self._buckets.setdefault(deadline, set()).add(timed)

    def forget(self, timed: Timed) -> None:
        """Drop the deadline of `timed`, if it has one."""
        if timed.slot == 0:
            return
        bucket = self._buckets[timed.slot]
        bucket.discard(timed)
        if not bucket:
            del self._buckets[timed.slot]
        timed.slot = 0

    def stop(self) -> None:
        """Let nothing fire any more."""
        if self._handle is not None:
            self._handle.cancel()
        self._buckets.clear()

    def _start(self) -> None:
        self._now = int(self._loop.time() / TICK_S)
        self._handle = self._loop.call_at((self._now + 1) * TICK_S, self._tick)

    def _tick(self) -> None:
        self._now = now = int(self._loop.time() / TICK_S)
        self._handle = self._loop.call_at((now + 1) * TICK_S, self._tick)
        for tick in sorted(tick for tick in self._buckets if tick <= now):
            while bucket := self._buckets.get(tick):
                timed = bucket.pop()
                timed.slot = 0
                if timed.deadline > now:
                    timed.slot = timed.deadline
                    self._buckets.setdefault(timed.deadline, set()).add(timed)
                else:
                    timed.on_deadline()
            self._buckets.pop(tick, None)
        if not self._buckets:
            self._handle.cancel()
            self._handle = None
