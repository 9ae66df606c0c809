"""A step of the indexer behind the horizon of a log with gaps: see `storage.rebuild`."""

from storage.index_entries import Checkpoint, RunPlace
from storage.rebuild import fork_meta, stream_key, value_key
from storage.record import Fork, Record, RecordType
from storage.retention import note_cut, note_run
from storage.scan import BatchView
from storage.segment import SegmentFile
from storage.step import Change, Step


class GapStep(Step):
    """A step behind the horizon of a log with gaps (`storage.rebuild`)."""

    def apply(self, segment: SegmentFile, batch: BatchView) -> None:
        """Gather a batch without what is settled, or of streams that nothing is known of."""
        sequence = batch.head.sequence
        segment_id = segment.header.segment_id
        next_stream_id = self._checkpoint.next_stream_id
        for record in batch.records:
            if record.type is RecordType.VALUE:
                if record.value is not None and not self._settled(
                    value_key(record.value.key), sequence
                ):
                    self._keep(segment, batch, record)
                continue
            if record.type is RecordType.CREATE:
                next_stream_id = max(next_stream_id, record.stream_id + 1)
            if not self._settled(stream_key(record.stream_id), sequence):
                self._follow(segment, batch, record)
        position = batch.payload_position
        self._add_live(segment_id, 0)
        for stream_id, start, length, blocks in batch.runs:
            if self._known(stream_id):
                change = self._change(segment, batch, stream_id)
                change.runs.append(RunPlace(start, segment_id, position, blocks))
                retention = change.meta.retention
                if not self._settled(stream_key(stream_id), sequence):
                    change.meta.tail = start + length
                    if retention is not None:
                        note_run(retention, start, batch.head.time_ms)
                self._add_live(segment_id, length)
            position += length
        self.records += batch.head.records
        self._checkpoint = Checkpoint(
            segment_id, batch.end, sequence, batch.checksum, next_stream_id
        )

    def _follow(self, segment: SegmentFile, batch: BatchView, record: Record) -> None:
        """Gather a record that says something new."""
        if record.type is RecordType.CREATE:
            self._create(record, batch.head.time_ms)
            if record.fork is not None:
                self._note_fork(record, record.fork)
        elif not self._known(record.stream_id):
            return
        elif record.type is RecordType.DELETE:
            self._end(segment, batch, record.stream_id)
            return
        elif record.type is RecordType.SOFT_DELETE:
            meta = self._change(segment, batch, record.stream_id).meta
            meta.kept = record.offset
            meta.deadline_ms = None
        elif record.type is RecordType.RETAIN:
            note_cut(self._change(segment, batch, record.stream_id).meta, record.offset)
        self._note(segment, batch, record)

    def _settled(self, key: bytes, sequence: int) -> bool:
        return sequence <= self._transaction.settled(key)

    def _known(self, stream_id: int) -> bool:
        change = self._changes.get(stream_id)
        if change is not None:
            return not change.deleted
        return self._transaction.meta(stream_id) is not None

    def _put_runs(self, stream_id: int, change: Change) -> None:
        self._transaction.place_runs(stream_id, change.runs, None)

    def _put_path(self, path: bytes, stream_id: int) -> None:
        if self._transaction.newest_at(path) < stream_id:
            self._transaction.put_path(path, stream_id)

    def _put(self, stream_id: int, change: Change) -> None:
        deadline_ms = change.old_deadline_ms
        self._transaction.put_stream(stream_id, change.meta, deadline_ms, change.old_due_ms)

    def _note_fork(self, record: Record, fork: Fork) -> None:
        meta = self._changes[record.stream_id].meta
        meta.earliest = fork.earliest
        meta.fork = fork_meta(fork, record.offset)
        self._transaction.put_fork(fork.source_id, meta.fork, record.stream_id)

    def _end(self, segment: SegmentFile, batch: BatchView, stream_id: int) -> None:
        change = self._change(segment, batch, stream_id)
        change.deleted = True
        fork = change.meta.fork
        if fork is not None:
            self._transaction.delete_fork(fork.source_id, fork, stream_id)
