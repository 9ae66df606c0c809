"""The indexer: follows the log and writes the index, one large transaction a step.

A plain object with a `step` method. Opening a store steps it until the index has everything;
afterwards the daemon runs it in a process of its own (`storage.indexer_process`), tests run it
inline. It is idempotent: a step begins where the index says it ended.
"""

from collections.abc import Collection
from pathlib import Path

from storage.chain import LogEnd, Position, batches_between, open_chain
from storage.errors import CorruptData
from storage.gap_step import GapStep
from storage.index import Index
from storage.index_entries import Checkpoint
from storage.rebuild import conclude, load
from storage.scan import FIRST_BATCH_POSITION
from storage.segment import COMPACTED_IDS
from storage.step import Step


class Indexer:
    """Writes what the log says into the index."""

    def __init__(
        self, segments: Path, index: Index, compacted: Collection[int] | None = None
    ) -> None:
        """`compacted` are the compacted segments that an index begins with; None: all there are."""
        self._segments = segments
        self._index = index
        self._compacted = compacted

    def step(self, target: LogEnd, records_max: int) -> Checkpoint:
        """Take the index on towards `target`, by about `records_max` records; how far it is now.

        `target` must be durable. Raises `CorruptData`, having changed nothing, where the log or
        the index is damaged.
        """
        checkpoint = self._index.checkpoint() or self._begin()
        horizon = self._index.horizon()
        due = 0 < horizon <= target.sequence
        if checkpoint.sequence >= target.sequence and not due:
            return checkpoint
        start = Position(checkpoint.segment_id, checkpoint.position)
        end = Position(target.segment_id, target.position)
        known = self._index.live_bytes(COMPACTED_IDS)
        with self._index.write() as transaction:
            step = GapStep(transaction, checkpoint) if horizon else Step(transaction, checkpoint)
            for segment, batch in batches_between(self._segments, start, end, known):
                if 0 < horizon < batch.head.sequence:
                    break
                step.apply(segment, batch)
                if step.records >= records_max:
                    due = 0 < horizon <= batch.head.sequence
                    break
            else:
                step.reach(target)
            checkpoint = step.finish()
            if due:
                conclude(transaction)
            return checkpoint

    def _begin(self) -> Checkpoint:
        """Take in what compacted segments say; where the log begins."""
        chain = open_chain(self._segments, self._compacted)
        if not chain.segments:
            raise CorruptData("segments", 0, "the log is empty")
        first = chain.segments[0].header
        beginning = Checkpoint(
            first.segment_id,
            FIRST_BATCH_POSITION,
            first.first_sequence - 1,
            first.predecessor_checksum,
            first.next_stream_id,
        )
        if not chain.compacted:
            return beginning
        with self._index.write() as transaction:
            return load(transaction, chain, beginning)
