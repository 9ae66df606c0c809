"""Rebuilding the index of a log with gaps: what compacted segments say, then what is left of it.

A log that was compacted cannot be replayed from its start as it was written: a stream may be
deleted of which nothing else is left, or forked from one that is gone. Up to the **horizon**, the
newest batch that compacted segments have something of, it goes like this:

1. The compacted segments are loaded, the oldest first. Each stream, tombstone and value is
   **settled** up to the batch that it was told as of: what the log says of it up to there is
   skipped. Their runs are put in place.
2. The log is followed. Streams that nothing is known of are skipped: they were deleted. Runs find
   their place among those that were loaded. Forks are noted, and nothing is concluded from them.
3. At the horizon what follows from forks and cuts is worked out at once, for the streams with the
   highest ids first: counts, what soft-deleted streams are kept for, which runs nobody needs, and
   when something can be cut.

From there on the log has no gaps, and `storage.indexer` follows it as ever. All of it is in the
index, so that a rebuild that is interrupted goes on where it was.
"""

from collections.abc import Iterator

from storage.chain import Chain
from storage.compacted import Compacted, meta_of
from storage.errors import CorruptData
from storage.index import IndexTransaction
from storage.index_entries import (
    OFFSET_MAX,
    Checkpoint,
    ForkMeta,
    Need,
    RetentionMeta,
    RunPlace,
    StreamMeta,
)
from storage.record import Configuration, DecodeError, Fork, Record, RecordType
from storage.retention import dead_between, next_due_ms
from storage.scan import BatchView

NO_STREAM = (1 << 64) - 1


def stream_key(stream_id: int) -> bytes:
    """The key of a stream in `settled`."""
    return b"s%b" % stream_id.to_bytes(8, "big")


def value_key(key: bytes) -> bytes:
    """The key of a value in `settled`. Long ones fit, as they fit the table of values."""
    return b"v%b" % key


def load(transaction: IndexTransaction, chain: Chain, beginning: Checkpoint) -> Checkpoint:
    """Take in all compacted segments; where the log goes on from. Raises `CorruptData`."""
    next_stream_id = beginning.next_stream_id
    for file in chain.compacted:
        _Load(transaction, file).run()
        next_stream_id = max(next_stream_id, file.segment.header.next_stream_id)
    checkpoint = beginning._replace(next_stream_id=next_stream_id)
    if chain.compacted:
        transaction.put_horizon(chain.horizon())
    transaction.put_checkpoint(checkpoint)
    return checkpoint


class _Load:
    """Takes in one compacted segment."""

    def __init__(self, transaction: IndexTransaction, file: Compacted) -> None:
        self._transaction = transaction
        self._file = file
        self._live: dict[int, int] = {file.id: 0}

    def run(self) -> None:
        for batch in self._file.batches():
            try:
                for record in batch.records:
                    self._take(record)
            except DecodeError as error:
                raise CorruptData(self._file.name, batch.position, str(error)) from error
            for stream_id, places in placed(self._file.id, batch):
                if self._transaction.meta(stream_id) is None:
                    what = f"stream {stream_id} has payload here and no state"
                    raise CorruptData(self._file.name, batch.position, what)
                self._transaction.place_runs(stream_id, places, None)
                self._live[self._file.id] += sum(place.length for place in places)
        for segment_id, live_bytes in self._live.items():
            self._transaction.add_live_bytes(segment_id, live_bytes)

    def _take(self, record: Record) -> None:
        transaction = self._transaction
        stream_id, origin = record.stream_id, record.origin
        if origin is None:
            raise DecodeError("a record has no origin")
        if record.type is RecordType.VALUE:
            if record.value is None:
                raise DecodeError("a value record has no value")
            key = value_key(record.value.key)
            if origin > transaction.settled(key):
                transaction.put_value(record.value.key, record.value.value)
                transaction.put_settled(key, origin)
        elif record.type is RecordType.DELETE:
            self._end(stream_id)
            transaction.put_settled(stream_key(stream_id), NO_STREAM)
        elif record.type is RecordType.STATE and record.configuration is None:
            if record.producer is None:
                raise DecodeError("a state says nothing")
            meta = transaction.meta(stream_id)
            if meta is None:
                raise DecodeError(f"stream {stream_id} has a producer and no state")
            if transaction.put_producer(stream_id, *record.producer):
                meta.producer_count += 1
                transaction.put_stream(stream_id, meta, meta.deadline_ms, None)
        elif record.type is RecordType.STATE:
            self._state(record, origin)
        else:
            raise DecodeError(f"a record of type {record.type.name} is no compacted one")

    def _state(self, record: Record, origin: int) -> None:
        transaction = self._transaction
        key = stream_key(record.stream_id)
        settled = transaction.settled(key)
        if settled == NO_STREAM:
            raise DecodeError(f"stream {record.stream_id} was deleted before")
        meta = meta_of(record)
        before = transaction.meta(record.stream_id)
        if before is not None:
            meta.producer_count = before.producer_count
            if before.fork is not None:
                transaction.delete_fork(before.fork.source_id, before.fork, record.stream_id)
        old_deadline_ms = None if before is None else before.deadline_ms
        transaction.put_stream(record.stream_id, meta, old_deadline_ms, None)
        if transaction.newest_at(meta.path) <= record.stream_id:
            transaction.put_path(meta.path, record.stream_id)
        if meta.fork is not None:
            transaction.put_fork(meta.fork.source_id, meta.fork, record.stream_id)
        transaction.put_settled(key, origin)

    def _end(self, stream_id: int) -> None:
        meta = self._transaction.meta(stream_id)
        if meta is None:
            return
        if meta.fork is not None:
            self._transaction.delete_fork(meta.fork.source_id, meta.fork, stream_id)
        for place in self._transaction.delete_stream(stream_id, meta):
            self._live[place.segment_id] = self._live.get(place.segment_id, 0) - place.length


def placed(segment_id: int, batch: BatchView) -> list[tuple[int, list[RunPlace]]]:
    """The runs of a batch by stream, each stream's in order of their offsets."""
    by_stream: dict[int, list[RunPlace]] = {}
    position = batch.payload_position
    for stream_id, start, length, blocks in batch.runs:
        by_stream.setdefault(stream_id, []).append(RunPlace(start, segment_id, position, blocks))
        position += length
    return list(by_stream.items())


def conclude(transaction: IndexTransaction) -> None:
    """Work out what follows from forks and cuts, at the horizon. Raises `CorruptData`."""
    stream_id = NO_STREAM
    while (found := transaction.stream_before(stream_id)) is not None:
        stream_id, meta = found
        _check_fork(transaction, stream_id, meta)
        needs = transaction.needs_of_forks(stream_id)
        if needs or meta.kept is not None or meta.earliest or meta.retention is not None:
            meta.forks = len(needs)
            _shrink(transaction, stream_id, meta, needs)
            old_due_ms = None
            if meta.retention is not None:
                old_due_ms = meta.retention.due_ms
                transaction.note_last_entry(stream_id, meta.retention)
                forks = sources_of(transaction, meta)
                meta.retention.due_ms = next_due_ms(meta, forks, stream_id, transaction.run_at)
            transaction.put_stream(stream_id, meta, meta.deadline_ms, old_due_ms)
    transaction.put_horizon(0)


def _check_fork(transaction: IndexTransaction, stream_id: int, meta: StreamMeta) -> None:
    if meta.fork is None:
        return
    source_id = meta.fork.source_id
    source = transaction.meta(source_id)
    if source is None or not source_id < stream_id or meta.fork.seam > source.tail:
        what = f"stream {stream_id} is a fork of what stream {source_id} does not have"
        raise CorruptData("the log", 0, what)


def _shrink(
    transaction: IndexTransaction, stream_id: int, meta: StreamMeta, needs: list[Need]
) -> None:
    """Let go of what neither a stream nor its forks need, of its own and of its source's."""
    if meta.kept is None and not meta.earliest:
        return
    if meta.kept is None:
        needs.append((meta.earliest, OFFSET_MAX))
    else:
        meta.kept = max((reach for _, reach in needs), default=0)
    for place in transaction.remove_runs(stream_id, dead_between(needs)):
        transaction.add_live_bytes(place.segment_id, -place.length)
    fork = meta.fork
    if fork is not None:
        transaction.delete_fork(fork.source_id, fork, stream_id)
        fork.reach = min(fork.reach, max((reach for _, reach in needs), default=0))
        fork.floor = min((floor for floor, _ in needs), default=fork.reach)
        transaction.put_fork(fork.source_id, fork, stream_id)


def sources_of(transaction: IndexTransaction, meta: StreamMeta) -> Iterator[ForkMeta]:
    """Where a stream, and each of its sources in turn, was forked from."""
    source: StreamMeta | None = meta
    while source is not None and source.fork is not None:
        yield source.fork
        source = transaction.meta(source.fork.source_id)


def fork_meta(fork: Fork, seam: int) -> ForkMeta:
    """What a fork needs of its source when it begins: all that its source has up to there."""
    return ForkMeta(
        fork.source_id, seam, fork.offset, fork.sub_offset, fork.asked, seam, fork.earliest
    )


def retention_meta(configuration: Configuration, time_ms: int) -> RetentionMeta | None:
    """What a fork inherits counts as written when it was made."""
    retention = configuration.retention
    return None if retention is None else RetentionMeta(*retention, newest_ms=time_ms)
