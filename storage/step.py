"""One step of the indexer: batches gathered by stream, then written in one transaction.

What a record means for the index is said here, and for a log with gaps in `storage.gap_step`. Left
out: which batches, and how many (`storage.indexer`).
"""

import heapq
from collections.abc import Iterator

from storage.chain import LogEnd
from storage.errors import CorruptData
from storage.index import IndexTransaction
from storage.index_entries import OFFSET_MAX, Checkpoint, ForkMeta, Need, RunPlace, StreamMeta
from storage.rebuild import fork_meta, retention_meta
from storage.record import Fork, Record, RecordType
from storage.retention import dead_between, next_due_ms, note_cut, note_run
from storage.scan import BatchView
from storage.segment import SegmentFile

INDEXED_TYPES = frozenset(
    {
        RecordType.APPEND,
        RecordType.CREATE,
        RecordType.DELETE,
        RecordType.TOUCH,
        RecordType.SOFT_DELETE,
        RecordType.VALUE,
        RecordType.RETAIN,
    }
)
"""What this release can follow; the other types are for later ones."""


class Change:
    """What a step found out about one stream."""

    __slots__ = (
        "dead",
        "deleted",
        "meta",
        "old_deadline_ms",
        "old_due_ms",
        "producers",
        "runs",
    )

    def __init__(self, meta: StreamMeta, old_deadline_ms: int | None) -> None:
        self.meta = meta
        self.old_deadline_ms = old_deadline_ms
        self.old_due_ms = None if meta.retention is None else meta.retention.due_ms
        self.runs: list[RunPlace] = []
        self.producers: dict[bytes, tuple[int, int]] = {}
        self.deleted = False
        self.dead: list[Need] = []
        """Between which offsets nobody can read its runs, where that may be more than before."""


class Step:
    """One transaction's worth of batches, gathered by stream before anything is written."""

    def __init__(self, transaction: IndexTransaction, checkpoint: Checkpoint) -> None:
        self.records = 0
        self._transaction = transaction
        self._checkpoint = checkpoint
        self._changes: dict[int, Change] = {}
        self._live_bytes: dict[int, int] = {}
        self._less_needed: dict[int, None] = {}
        """Streams that were cut or soft-deleted, or lost a fork or a part of what one needs."""
        self._values: dict[bytes, bytes] = {}

    def apply(self, segment: SegmentFile, batch: BatchView) -> None:
        """Gather a batch: its records first, so that a created stream is known to its run."""
        segment_id = segment.header.segment_id
        next_stream_id = self._checkpoint.next_stream_id
        forks: list[Record] = []
        for record in batch.records:
            if record.type is RecordType.CREATE:
                self._create(record, batch.head.time_ms)
                next_stream_id = max(next_stream_id, record.stream_id + 1)
                if record.fork is not None:
                    self._fork(segment, batch, record, record.fork)
                    forks.append(record)
            elif record.type is RecordType.DELETE:
                self._end(segment, batch, record.stream_id)
            elif record.type is RecordType.SOFT_DELETE:
                meta = self._change(segment, batch, record.stream_id).meta
                meta.kept = record.offset
                meta.deadline_ms = None
                self._less_needed[record.stream_id] = None
            elif record.type is RecordType.VALUE:
                self._keep(segment, batch, record)
                continue  # it is about no stream
            elif record.type is RecordType.RETAIN:
                self._cut(segment, batch, record)
            elif record.type not in INDEXED_TYPES:
                raise CorruptData(
                    segment.name,
                    batch.position,
                    f"the record type {record.type.name} is of a newer release",
                )
            self._note(segment, batch, record)
        position = batch.payload_position
        for stream_id, start, length, blocks in batch.runs:
            change = self._change(segment, batch, stream_id)
            change.runs.append(RunPlace(start, segment_id, position, blocks))
            change.meta.tail = start + length
            if change.meta.retention is not None:
                note_run(change.meta.retention, start, batch.head.time_ms)
            position += length
        self._add_live(segment_id, batch.head.payload_bytes)
        for record in forks:
            self._check_fork(segment, batch, record)
        self.records += batch.head.records
        self._checkpoint = Checkpoint(
            segment_id, batch.end, batch.head.sequence, batch.checksum, next_stream_id
        )

    def reach(self, end: LogEnd) -> None:
        """All batches up to there were gathered, but for the last of them, if those lay in a gap.

        Otherwise it stays where the last batch ends: the segment behind it may not be durable yet.
        """
        if self._checkpoint.sequence < end.sequence:
            self._checkpoint = Checkpoint(*end, self._checkpoint.next_stream_id)

    def finish(self) -> Checkpoint:
        """Write everything gathered, and how far that is."""
        transaction = self._transaction
        self._shrink()
        for stream_id, change in self._changes.items():
            if change.deleted:
                self._delete(stream_id, change)
                continue
            meta = change.meta
            for producer_id, (epoch, seq) in change.producers.items():
                if transaction.put_producer(stream_id, producer_id, epoch, seq):
                    meta.producer_count += 1
            if change.runs:
                self._put_runs(stream_id, change)
            if change.dead:
                for place in transaction.remove_runs(stream_id, change.dead):
                    self._add_live(place.segment_id, -place.length)
        for stream_id, change in self._changes.items():
            if not change.deleted:
                self._put(stream_id, change)
        for segment_id, live_bytes in self._live_bytes.items():
            transaction.add_live_bytes(segment_id, live_bytes)
        for key, value in self._values.items():
            transaction.put_value(key, value)
        transaction.put_checkpoint(self._checkpoint)
        return self._checkpoint

    def _put_runs(self, stream_id: int, change: Change) -> None:
        self._transaction.add_runs(stream_id, change.runs, change.meta.retention)

    def _create(self, record: Record, time_ms: int) -> None:
        configuration = record.configuration
        if configuration is None:
            raise CorruptData("the log", 0, f"stream {record.stream_id} has no configuration")
        meta = StreamMeta(
            configuration.path,
            configuration.content_type.decode("latin-1"),
            configuration.ttl_s,
            configuration.expires_ms,
            time_ms,
            record.fork.root_id if record.fork is not None else record.stream_id,
            record.offset,
            retention=retention_meta(configuration, time_ms),
        )
        self._changes[record.stream_id] = Change(meta, None)
        self._put_path(configuration.path, record.stream_id)

    def _put_path(self, path: bytes, stream_id: int) -> None:
        self._transaction.put_path(path, stream_id)

    def _fork(self, segment: SegmentFile, batch: BatchView, record: Record, fork: Fork) -> None:
        """A fork begins: its source is needed up to its seam."""
        seam = record.offset
        source = self._change(segment, batch, fork.source_id)
        if source.deleted or source.meta.kept is not None:
            what = f"stream {record.stream_id} is a fork of a stream that was deleted"
            raise CorruptData(segment.name, batch.position, what)
        earliest = source.meta.earliest
        if seam < earliest or fork.earliest != earliest:
            what = f"stream {record.stream_id} is a fork of what its source had dropped"
            raise CorruptData(segment.name, batch.position, what)
        source.meta.forks += 1
        meta = self._changes[record.stream_id].meta
        meta.earliest = earliest
        meta.fork = fork_meta(fork, seam)
        self._transaction.put_fork(fork.source_id, meta.fork, record.stream_id)

    def _check_fork(self, segment: SegmentFile, batch: BatchView, record: Record) -> None:
        """Refuse a fork of what its source does not have: only damage, or a bug, can say so."""
        assert record.fork is not None
        source_id = record.fork.source_id
        source = self._change(segment, batch, source_id).meta
        if source_id >= record.stream_id or record.offset > source.tail:
            what = f"stream {record.stream_id} is no fork of stream {source_id}: it would begin at "
            what += f"{record.offset}, and the source ends at {source.tail}"
            raise CorruptData(segment.name, batch.position, what)

    def _end(self, segment: SegmentFile, batch: BatchView, stream_id: int) -> None:
        """A stream is no more, and its source has a fork less."""
        change = self._change(segment, batch, stream_id)
        change.deleted = True
        fork = change.meta.fork
        if fork is not None:
            self._change(segment, batch, fork.source_id).meta.forks -= 1
            self._transaction.delete_fork(fork.source_id, fork, stream_id)
            self._less_needed[fork.source_id] = None

    def _cut(self, segment: SegmentFile, batch: BatchView, record: Record) -> None:
        """What lies below an offset is dropped; forks keep what they inherited of it."""
        meta = self._change(segment, batch, record.stream_id).meta
        if not meta.earliest <= record.offset <= meta.tail:
            what = f"stream {record.stream_id} is cut at {record.offset}, where it is not"
            raise CorruptData(segment.name, batch.position, what)
        note_cut(meta, record.offset)
        self._less_needed[record.stream_id] = None

    def _shrink(self) -> None:
        """Let go of what neither a stream nor any fork of it needs, and so on up the chain.

        Forks come before their sources, so that each stream's forks are looked at once.
        """
        transaction = self._transaction
        waiting = [-stream_id for stream_id in self._less_needed]
        heapq.heapify(waiting)
        while waiting:
            stream_id = -heapq.heappop(waiting)
            change = self._changes[stream_id]
            meta = change.meta
            if change.deleted or (meta.kept is None and not meta.earliest):
                continue
            needs = transaction.needs_of_forks(stream_id)
            if meta.kept is None:
                needs.append((meta.earliest, OFFSET_MAX))
            else:
                meta.kept = max((reach for _, reach in needs), default=0)
            change.dead = dead_between(needs)
            fork = meta.fork
            if fork is None:
                continue
            reach = min(fork.reach, max((reach for _, reach in needs), default=0))
            floor = min((floor for floor, _ in needs), default=reach)
            if (reach, floor) != (fork.reach, fork.floor):
                transaction.delete_fork(fork.source_id, fork, stream_id)
                fork.reach, fork.floor = reach, floor
                transaction.put_fork(fork.source_id, fork, stream_id)
                self._change_of(fork.source_id)
                if fork.source_id not in self._less_needed:
                    self._less_needed[fork.source_id] = None
                    heapq.heappush(waiting, -fork.source_id)

    def _put(self, stream_id: int, change: Change) -> None:
        """Write a stream's state, and from when on a cut will get anything."""
        meta = change.meta
        if meta.retention is not None:
            sources = self._sources(meta)
            meta.retention.due_ms = next_due_ms(meta, sources, stream_id, self._transaction.run_at)
        deadline_ms = change.old_deadline_ms
        self._transaction.put_stream(stream_id, meta, deadline_ms, change.old_due_ms)

    def _sources(self, meta: StreamMeta) -> Iterator[ForkMeta]:
        """Where a stream, and each of its sources in turn, was forked from."""
        while meta.fork is not None:
            yield meta.fork
            change = self._changes.get(meta.fork.source_id)
            source = self._transaction.meta(meta.fork.source_id) if change is None else change.meta
            if source is None:
                return
            meta = source

    def _keep(self, segment: SegmentFile, batch: BatchView, record: Record) -> None:
        if record.value is None:
            raise CorruptData(segment.name, batch.position, "a value record has no value")
        self._values[record.value.key] = record.value.value

    def _note(self, segment: SegmentFile, batch: BatchView, record: Record) -> None:
        """Take over what a record says beside its payload; a plain append says nothing."""
        plain = (record.producer, record.stream_seq, record.deadline_ms)
        if plain == (None, None, None) and not record.closes:
            return
        change = self._change(segment, batch, record.stream_id)
        meta = change.meta
        if record.producer is not None:
            change.producers[record.producer.id] = record.producer[1:]
        if record.stream_seq is not None:
            meta.stream_seq = record.stream_seq
        if record.closes:
            meta.closed = True
            meta.closer = record.producer
        if record.deadline_ms is not None:
            meta.deadline_ms = record.deadline_ms

    def _change(self, segment: SegmentFile, batch: BatchView, stream_id: int) -> Change:
        return self._change_of(stream_id, segment.name, batch.position)

    def _change_of(self, stream_id: int, file: str = "the log", position: int = 0) -> Change:
        change = self._changes.get(stream_id)
        if change is None:
            meta = self._transaction.meta(stream_id)
            if meta is None:
                raise CorruptData(file, position, f"stream {stream_id} was never created")
            change = self._changes[stream_id] = Change(meta, meta.deadline_ms)
        return change

    def _delete(self, stream_id: int, change: Change) -> None:
        change.meta.deadline_ms = change.old_deadline_ms
        if change.meta.retention is not None:
            change.meta.retention.due_ms = change.old_due_ms
        dead = self._transaction.delete_stream(stream_id, change.meta)
        for place in (*dead, *change.runs):
            self._add_live(place.segment_id, -place.length)

    def _add_live(self, segment_id: int, change_bytes: int) -> None:
        self._live_bytes[segment_id] = self._live_bytes.get(segment_id, 0) + change_bytes
