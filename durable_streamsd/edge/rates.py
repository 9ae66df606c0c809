"""So many requests in a second, for each of many who ask: token buckets, one number each.

A bucket is kept as the moment at which it will be full (the generic cell rate algorithm): a request
moves that moment on by what it takes to fill one token, and is refused if it would then lie further
ahead than a whole bucket takes.

Bounded: keys live in two tables. When the newer has taken in a period in which every bucket fills,
or as many keys as it may, it becomes the older one, which is forgotten. So nothing that matters is
forgotten unless there are more than `KEYS_MAX` keys within one period; then the oldest get a full
bucket again.
"""

import time
from collections.abc import Callable
from typing import Final

__all__ = ["KEYS_MAX", "Rates"]

KEYS_MAX: Final = 65_536
"""In each of the two tables."""


class Rates:
    """Allows each key `per_second` requests in the long run, and `burst` at once."""

    def __init__(
        self, per_second: float, burst: int, monotonic_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._interval_s = 1 / per_second
        self._slack_s = (burst - 1) / per_second
        self._period_s = burst / per_second
        self._monotonic_s = monotonic_s
        self._newer: dict[str, float] = {}
        self._older: dict[str, float] = {}
        self._turns_s = monotonic_s() + self._period_s

    def __len__(self) -> int:
        return len(self._newer) + len(self._older)

    def wait_s(self, key: str) -> float:
        """0, and the request counts; or in how many seconds to try again, and it does not."""
        now_s = self._monotonic_s()
        if now_s >= self._turns_s or len(self._newer) >= KEYS_MAX:
            self._turn(now_s)
        full_s = self._newer.get(key) or self._older.get(key, 0.0)
        ahead_s = max(0.0, full_s - now_s)
        if ahead_s > self._slack_s:
            return ahead_s - self._slack_s
        self._newer[key] = now_s + ahead_s + self._interval_s
        return 0.0

    def _turn(self, now_s: float) -> None:
        forgotten = now_s >= self._turns_s + self._period_s  # nobody asked for two periods
        self._older = {} if forgotten else self._newer
        self._newer = {}
        self._turns_s = now_s + self._period_s
