"""The backlog: durable batches that the index does not have yet, counted and bounded.

What it counts is what recovery has to index after a kill, and what keeps streams in memory.
"""

from collections import deque
from typing import NamedTuple

from storage.limits import Limits
from storage.pending import Sealed
from storage.state import Stream

INDEX_INTERVAL_MS = 5_000
"""Each step writes the pages of the streams in it again: the rarer, the less is written."""


class Unindexed(NamedTuple):
    """A durable batch that the index does not have yet."""

    sequence: int
    records: int
    size_bytes: int
    streams: list[Stream]
    sealed_ms: int


class Backlog:
    """Batches in the order of their sequence numbers; they leave as the index gets further."""

    def __init__(self, limits: Limits, indexed_sequence: int, now_ms: int) -> None:
        self.indexed_sequence = indexed_sequence
        self.added_sequence = indexed_sequence
        """The newest batch whose streams all show it: set when the last of them does."""
        self.records = 0
        self.size_bytes = 0
        self._limits = limits
        self._batches: deque[Unindexed] = deque()
        self._reached_ms = now_ms
        self.bearable = True
        """Whether more may be added."""

    def add(self, sealed: Sealed) -> None:
        """A batch has become durable."""
        batch = sealed.batch
        note = Unindexed(
            batch.sequence,
            len(batch.records),
            sealed.encoded.size_bytes,
            list(batch.touched),
            sealed.time_ms,
        )
        self._batches.append(note)
        self.added_sequence = note.sequence
        self.records += note.records
        self.size_bytes += note.size_bytes
        self._weigh()

    def streams(self) -> list[list[Stream]]:
        """The streams that each batch touched, the oldest batch first."""
        return [note.streams for note in self._batches]

    @property
    def oldest_ms(self) -> int | None:
        """When the oldest batch was sealed, if there is one."""
        return self._batches[0].sealed_ms if self._batches else None

    def due(self, now_ms: int) -> bool:
        """Whether the index should get further now."""
        limits = self._limits
        return bool(self._batches) and (
            self.records >= limits.index_step_records
            or self.size_bytes >= limits.unindexed_bytes_max // 4
            or now_ms - self._reached_ms >= INDEX_INTERVAL_MS
        )

    def reached(self, sequence: int, now_ms: int) -> None:
        """The index has every batch up to this one: streams need not remember their places."""
        self._reached_ms = now_ms
        self.indexed_sequence = max(self.indexed_sequence, sequence)
        batches = self._batches
        while batches and batches[0].sequence <= sequence:
            note = batches.popleft()
            self.records -= note.records
            self.size_bytes -= note.size_bytes
            for stream in note.streams:
                stream.runs.drop(sequence)
        self._weigh()

    def _weigh(self) -> None:
        limits = self._limits
        self.bearable = (
            self.records < limits.unindexed_records_max
            and self.size_bytes < limits.unindexed_bytes_max
        )
