"""What is known of commits: for each batch, not for each append in it."""

from durable_streamsd.metrics.histogram import BYTES, RECORDS, SECONDS, Histogram
from storage.errors import CommitError, OutOfSpace
from storage.pending import Sealed

__all__ = ["Arrivals", "CommitCounts"]

AGE_SHARE = 16


class Arrivals:
    """When those came who wait for one batch: as many as came in one turn of the loop at a time.

    A turn is noted only when a sixteenth of the batch's age has gone by since the last that was, so
    that a slow disk makes no long list; those of the turns between count with the next one.
    """

    __slots__ = ("_noted", "_turns")

    def __init__(self) -> None:
        self._noted = 0
        self._turns: list[tuple[float, int]] = []

    def note(self, now_s: float, waiting: int, *, last: bool) -> None:
        """So many wait by now, in all. `last`: nobody else will come."""
        came = waiting - self._noted
        turns = self._turns
        if not came:
            return
        if not last and turns and (now_s - turns[-1][0]) * AGE_SHARE < now_s - turns[0][0]:
            return
        turns.append((now_s, came))
        self._noted = waiting

    def told(self, now_s: float, waits_s: Histogram) -> None:
        """All were told now: enter how long each has waited."""
        for came_s, count in self._turns:
            waits_s.observe(now_s - came_s, count)


class CommitCounts:
    """Batches: how large, how long they took, and those that failed."""

    def __init__(self) -> None:
        self.records = Histogram(RECORDS)
        self.size_bytes = Histogram(BYTES)
        self.sync_s = Histogram(SECONDS)
        self.write_s = Histogram(SECONDS)
        """Writing and syncing, and whatever it takes to begin a segment."""
        self.ack_s = Histogram(SECONDS)
        self.failures = {"out-of-space": 0, "latched": 0}

    def settled(self, sealed: Sealed, error: CommitError | None, took_s: float) -> None:
        """A batch was written within `took_s`, or was not."""
        if error is not None:
            self.failures["out-of-space" if isinstance(error, OutOfSpace) else "latched"] += 1
            return
        self.records.observe(sealed.records)
        self.size_bytes.observe(sealed.size_bytes)
        self.sync_s.observe(sealed.sync_s)
        self.write_s.observe(took_s)
