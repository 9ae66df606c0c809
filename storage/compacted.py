"""Compacted segments: files of records and payload that were moved, and what they stand for.

A file is written by `storage.compaction`, gets its name when all of it is synced, and never
changes. Its batches are numbered from 1 and follow each other as those of the log do; the header
names the last of them, the **summary**, so that a file that lacks its end does not open. All
records but the summary carry their origin: the batch of the log up to which they say everything.

    STATE, with configuration   a stream: all that its records said, and where its own bytes begin
    STATE, with producer alone  a producer of that stream
    DELETE                      a tombstone, for a record that another file may still hold
    VALUE                       what another subsystem keeps under a key
    STATE of stream 0           the summary

A stream's value (a key that is empty) beside its sections, and the summary's:

     0          8           16        24         32         40         48
    ┌──────────┬───────────┬─────────┬──────────┬──────────┬──────────┬ ─ ─ ─ ─ ─ ─ ─ ─ ─
    │ created  │ kept      │ seam    │ earliest │ newest ms│ group ms │ marks × (start, ms)
    └──────────┴───────────┴─────────┴──────────┴──────────┴──────────┴ ─ ─ ─ ─ ─ ─ ─ ─ ─

    kept       as `StreamMeta.kept`, all ones when it is not deleted
    seam       where the stream's own bytes begin
    newest ms, group ms, marks    as in `RetentionMeta`; nothing in a stream without retention

     0         8         16        24         32        40     44         48
    ┌─────────┬─────────┬─────────┬──────────┬─────────┬──────┬──────────┬ ─ ─ ─ ─ ─ ┬ ─ ─ ─ ─ ─
    │ low u64 │ high u64│ streams │tombstones│ payload │ gaps │ replaced │ gaps × 72 │ replaced
    │         │         │ u64     │ u64      │ u64     │ u32  │ u32      │           │ × u64
    └─────────┴─────────┴─────────┴──────────┴─────────┴──────┴──────────┴ ─ ─ ─ ─ ─ ┴ ─ ─ ─ ─ ─

**Gaps** are the parts of the log that it stands for: the chain of segments is checked across them.
**Replaced** are compacted files whose content it has taken over. A file that is in a gap, or
replaced, says nothing any more, whether it is still there or not. `low` and `high` are the lowest
and highest origin of its streams' states.

Left out: writing them, and choosing what goes in.
"""

import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from storage.errors import CorruptData, OpenError
from storage.index_entries import ForkMeta, RetentionMeta, StreamMeta
from storage.record import (
    Configuration,
    DecodeError,
    Entry,
    Fork,
    Producer,
    Record,
    RecordType,
    Retention,
)
from storage.scan import FIRST_BATCH_POSITION, BatchView, Scanner
from storage.segment import KIND_COMPACTED, SegmentFile, segment_path

NOT_KEPT = (1 << 64) - 1
STREAM = struct.Struct("<QQQQQQ")
MARK = struct.Struct("<QQ")
SUMMARY = struct.Struct("<QQQQQII")
GAP = struct.Struct("<QQQQQQIQQI")
ID = struct.Struct("<Q")
assert (STREAM.size, SUMMARY.size, GAP.size) == (48, 48, 72)


class Gap(NamedTuple):
    """Segments of the log that are gone, in a row: what the first's header and the last's end said.

    `next_stream_id` and `last_next_stream_id` are of the first's and the last's header.
    """

    first_id: int
    last_id: int
    next_stream_id: int
    last_next_stream_id: int
    first_sequence: int
    predecessor_end: int
    predecessor_checksum: int
    end: int
    last_sequence: int
    last_checksum: int


class Summary(NamedTuple):
    """What a compacted segment stands for."""

    low: int
    high: int
    streams: int
    tombstones: int
    payload_bytes: int
    gaps: list[Gap]
    replaced: list[int]

    def pack(self) -> bytes:
        """The summary's value."""
        counts = (len(self.gaps), len(self.replaced))
        parts = [SUMMARY.pack(*self[:5], *counts)]
        parts += (GAP.pack(*gap) for gap in self.gaps)
        parts += map(ID.pack, self.replaced)
        return b"".join(parts)


def unpack_summary(value: bytes) -> Summary:
    """The summary of `pack`. Raises `DecodeError`."""
    try:
        low, high, streams, tombstones, payload_bytes, gap_count, replaced_count = (
            SUMMARY.unpack_from(value)
        )
        at = SUMMARY.size
        gaps = [Gap(*GAP.unpack_from(value, at + GAP.size * place)) for place in range(gap_count)]
        at += GAP.size * gap_count
        replaced = [ID.unpack_from(value, at + 8 * place)[0] for place in range(replaced_count)]
    except struct.error as error:
        raise DecodeError("the summary is cut short") from error
    return Summary(low, high, streams, tombstones, payload_bytes, gaps, replaced)


def join_gaps(gaps: Iterable[Gap]) -> list[Gap]:
    """Gaps in order, with those that touch made one. Raises `DecodeError` where they contradict."""
    joined: list[Gap] = []
    for gap in sorted(gaps):
        last = joined[-1] if joined else None
        if last is not None and gap.first_id <= last.last_id:
            raise DecodeError(f"two compacted segments stand for segment {gap.first_id}")
        if last is not None and gap.first_id == last.last_id + 1:
            before = (last.end, last.last_checksum, last.last_sequence + 1)
            if before != (gap.predecessor_end, gap.predecessor_checksum, gap.first_sequence):
                raise DecodeError(f"segment {gap.first_id} does not follow its predecessor")
            joined[-1] = last._replace(
                last_id=gap.last_id,
                last_next_stream_id=gap.last_next_stream_id,
                end=gap.end,
                last_sequence=gap.last_sequence,
                last_checksum=gap.last_checksum,
            )
        else:
            joined.append(gap)
    return joined


def state_record(stream_id: int, meta: StreamMeta, origin: int) -> Record:
    """All that a stream's records said, up to the batch `origin`; producers aside."""
    fork = None
    seam = 0
    if meta.fork is not None:
        fork = Fork(
            meta.fork.source_id, meta.root, meta.fork.offset, meta.fork.sub_offset, meta.fork.asked
        )
        seam = meta.fork.seam
    kept = NOT_KEPT if meta.kept is None else meta.kept
    retention = None
    told = RetentionMeta(None, None, False)
    if meta.retention is not None:
        told = meta.retention
        retention = Retention(told.keep_bytes, told.keep_s, told.asked)
    value = STREAM.pack(
        meta.created_ms, kept, seam, meta.earliest, told.newest_ms, told.group_ms
    ) + b"".join(MARK.pack(*mark) for mark in told.marks)
    return Record(
        RecordType.STATE,
        stream_id,
        meta.tail,
        producer=None if meta.closer is None else Producer(*meta.closer),
        stream_seq=meta.stream_seq,
        closes=meta.closed,
        deadline_ms=meta.deadline_ms,
        configuration=Configuration(
            meta.path, meta.content_type.encode("latin-1"), meta.ttl_s, meta.expires_ms, retention
        ),
        fork=fork,
        origin=origin,
        value=Entry(b"", value),
    )


def meta_of(record: Record) -> StreamMeta:
    """The state that a `state_record` tells. Raises `DecodeError`."""
    configuration, value = record.configuration, record.value
    if configuration is None or value is None or len(value.value) < STREAM.size:
        raise DecodeError("a stream's state is not whole")
    created_ms, kept, seam, earliest, newest_ms, group_ms = STREAM.unpack_from(value.value)
    marks = value.value[STREAM.size :]
    if len(marks) % MARK.size:
        raise DecodeError("a stream's marks are not whole")
    fork = record.fork
    retention = configuration.retention
    return StreamMeta(
        configuration.path,
        configuration.content_type.decode("latin-1"),
        configuration.ttl_s,
        configuration.expires_ms,
        created_ms,
        record.stream_id if fork is None else fork.root_id,
        record.offset,
        record.closes,
        record.producer,
        record.stream_seq,
        record.deadline_ms,
        fork=None
        if fork is None
        else ForkMeta(
            fork.source_id, seam, fork.offset, fork.sub_offset, fork.asked, seam, earliest
        ),
        kept=None if kept == NOT_KEPT else kept,
        earliest=earliest,
        retention=None
        if retention is None
        else RetentionMeta(*retention, newest_ms, group_ms, list(MARK.iter_unpack(marks))),
    )


class Compacted:
    """A compacted segment open for reading."""

    __slots__ = ("id", "segment", "summary")

    def __init__(self, path: Path) -> None:
        """Read header and summary. Raises `OpenError`."""
        self.segment = segment = SegmentFile(path)
        self.id = segment.header.segment_id
        if segment.header.kind != KIND_COMPACTED or segment_path(path.parent, self.id) != path:
            raise OpenError(f"{path.name}, position 16: the segment's name and its id differ")
        position = segment.header.predecessor_end
        try:
            batch = Scanner(segment).batch_at(position)
            record = batch.records[0] if batch.records else None
            if record is None or record.type is not RecordType.STATE or record.stream_id:
                raise DecodeError("the summary is not here")
            if batch.checksum != segment.header.predecessor_checksum or record.value is None:
                raise DecodeError("the summary is of another file")
            self.summary = unpack_summary(record.value.value)
        except DecodeError as error:
            raise OpenError(f"{path.name}, position {position}: {error}") from error

    @property
    def name(self) -> str:
        """The file's name."""
        return self.segment.name

    def batches(self, *, records: bool = True) -> Iterator[BatchView]:
        """All batches but the summary, each checked to follow its predecessor.

        Without `records` they have their runs alone. Raises `CorruptData`.
        """
        scanner = Scanner(self.segment)
        position, sequence, checksum = FIRST_BATCH_POSITION, 0, 0
        end = self.segment.header.predecessor_end
        while position <= end:
            try:
                batch = scanner.batch_at(position, records=records)
                if (batch.head.sequence, batch.head.predecessor) != (sequence + 1, checksum):
                    raise DecodeError("the batch does not follow its predecessor")
            except DecodeError as error:
                raise CorruptData(self.name, position, str(error)) from error
            if position < end:
                yield batch
            position, sequence, checksum = batch.end, batch.head.sequence, batch.checksum
        if checksum != self.segment.header.predecessor_checksum:
            raise CorruptData(self.name, end, "the summary is not the last batch")

    def size_bytes(self) -> int:
        """The file's length."""
        return self.segment.size_bytes()

    def may_hold(self, stream_id: int, deleted_sequence: int) -> bool:
        """Whether it may have a state of a stream that was deleted by that batch."""
        newest = self.segment.header.next_stream_id
        summary = self.summary
        return summary.streams > 0 and stream_id < newest and deleted_sequence > summary.low
