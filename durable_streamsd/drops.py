"""How often each limit turned something away: plain integers, by the name of the setting.

Turning away costs little, and must go on costing little when it happens ten thousand times a
second: it adds one to a number, and the log is told at most once a minute for each limit (`tell`).
"""

import logging
import time
from collections.abc import Callable
from typing import Final

__all__ = ["Drops"]

SAID_AGAIN_S: Final = 60.0

log = logging.getLogger(__name__)


class Drops:
    """`counts` only ever grow. Its keys are names of settings, so it has few entries."""

    def __init__(self, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self.counts: dict[str, int] = {}
        self._told: dict[str, tuple[int, float]] = {}
        self._monotonic_s = monotonic_s

    def add(self, limit: str) -> None:
        """One more was turned away because of this limit."""
        self.counts[limit] = self.counts.get(limit, 0) + 1

    def tell(self) -> None:
        """Log which limits were met since they were told last; called once a second."""
        now_s = self._monotonic_s()
        for limit, count in self.counts.items():
            told, told_s = self._told.get(limit, (0, now_s - SAID_AGAIN_S))
            if count > told and now_s >= told_s + SAID_AGAIN_S:
                self._told[limit] = count, now_s
                log.warning("%s was reached: turned away %d", limit, count - told)
