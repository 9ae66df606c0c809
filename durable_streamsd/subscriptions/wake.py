"""A subscription's wake: generations, leases and retries, as values without clock or I/O.

    IDLE --issued--> WOKEN --claimed--> LEASED --released--> IDLE
                       |--released, when a webhook or its callback is done--> IDLE
                       |--failed--> FAILED --resent--> WOKEN
    WOKEN, LEASED --expired--> IDLE          FAILED --expired, when it was fenced--> IDLE

A webhook's wake has a lease from the moment it is issued; a pull-wake's waits, without one, to be
claimed. A delivery that failed keeps its wake, which is sent again, unless its lease ran out while
the receiver had not answered: then the wake is over, and what comes after the pause is a new one.

`generation` rises with every wake and never falls; `id` is that wake's, empty when there is none.
Every state is immutable, so that whoever takes an accepted change back only puts the old one back.
"""

import enum
from typing import Final, NamedTuple

__all__ = ["RETRY_MS_MAX", "RETRY_MS_MIN", "Phase", "Wake", "retry_delay_ms"]

RETRY_MS_MIN: Final = 1_000
RETRY_MS_MAX: Final = 60_000
RETRY_JITTER: Final = 0.2


class Phase(enum.IntEnum):
    """What a subscription is doing. The numbers are on disk."""

    IDLE = 0
    WOKEN = 1
    LEASED = 2
    FAILED = 3


class Wake(NamedTuple):
    """One state. Times are in ms since 1970; `due_ms` 0 means that time changes nothing."""

    phase: Phase = Phase.IDLE
    generation: int = 0
    id: str = ""
    holder: str = ""
    due_ms: int = 0
    attempts: int = 0
    """Deliveries in a row that failed."""

    def issued(self, wake_id: str, due_ms: int) -> "Wake":
        """A new wake: the next generation."""
        generation = self.generation + 1
        return Wake(Phase.WOKEN, generation, wake_id, "", due_ms, self.attempts)

    def resent(self, due_ms: int) -> "Wake":
        """The same wake, delivered again."""
        return self._replace(phase=Phase.WOKEN, due_ms=due_ms)

    def claimed(self, holder: str, due_ms: int) -> "Wake":
        """A worker holds the lease."""
        return self._replace(phase=Phase.LEASED, holder=holder, due_ms=due_ms)

    def extended(self, due_ms: int) -> "Wake":
        """The worker lives: its lease goes on. It is not delivered again then."""
        phase = Phase.WOKEN if self.phase is Phase.FAILED else self.phase
        return self._replace(phase=phase, due_ms=due_ms)

    def delivered(self) -> "Wake":
        """A receiver took it."""
        return self._replace(attempts=0)

    def failed(self, due_ms: int, *, fenced: bool = False) -> "Wake":
        """A delivery did not work, and is tried again at `due_ms`; `fenced`: as a new wake."""
        return self._replace(
            phase=Phase.FAILED,
            id="" if fenced else self.id,
            due_ms=due_ms,
            attempts=self.attempts + 1,
        )

    def released(self) -> "Wake":
        """The work is done, or given up."""
        return Wake(generation=self.generation)

    def expired(self) -> "Wake":
        """The lease ran out, or the pause after a failure that ended its wake."""
        return Wake(generation=self.generation, attempts=self.attempts)

    def is_held(self, generation: int, wake_id: str) -> bool:
        """Whether this very wake may still be acked, extended and released."""
        return bool(self.id) and (generation, wake_id) == (self.generation, self.id)


def retry_delay_ms(attempts: int, chance: float) -> int:
    """How long to wait after so many failures in a row; `chance` is from 0 to 1 (protocol 7.1)."""
    base = min(RETRY_MS_MIN << min(max(attempts - 1, 0), 10), RETRY_MS_MAX)
    return round(base * (1 + RETRY_JITTER * (2 * chance - 1)))
