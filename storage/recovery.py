"""Recovery: what opening a data directory does before anything is served.

1. Read and check the chain of segments, and that the index is not ahead of it.
2. From the index's checkpoint on, find the last valid batch. What follows it is *torn*, and
   ignored, unless a valid batch comes later: then it is *corrupt*, and opening is refused with
   nothing changed, because cutting there would drop acknowledged data.
3. Index everything that is known durable. A batch is known durable when another was begun after
   it, because one batch at most is in flight.
4. The last batch may have been written and never synced, and after a failed sync the page cache
   shows bytes that are not on disk (assumption M3 of FORMAT.md). So it is moved: a new segment is
   written and synced with it, whose header voids everything past that point in the old one. Then
   it is indexed too.

5. Compacted segments that the index was not told of are removed: what they were made of is all
   there. So are files for which others stand. With no index there is none to know better than the
   compacted segments themselves.

Old segments are never appended to. The index is complete when a store opens, so there is nothing to
replay into memory.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from zlib import crc32

from storage.batch import (
    COMMIT,
    COMMIT_BYTES,
    COMMIT_MAGIC,
    HEAD_BYTES,
    RunEntry,
    encode_batch,
    reseal_blocks,
)
from storage.chain import Chain, LogEnd, open_chain
from storage.directory import DataDirectory
from storage.disk import Disk, read_at
from storage.errors import CorruptData, IndexFailed, OpenError
from storage.index import Index
from storage.index_entries import Checkpoint
from storage.indexer import Indexer
from storage.log import create_segment
from storage.record import DecodeError, encode
from storage.removal import remove
from storage.scan import FIRST_BATCH_POSITION, BatchView, Frame, Scanner
from storage.segment import (
    COMPACTED_IDS,
    UNFINISHED_SUFFIX,
    SegmentFile,
    new_header,
    segment_path,
)
from storage.step import INDEXED_TYPES


@dataclass(slots=True)
class Recovered:
    """Where the log ends now, and what it took to find out."""

    end: LogEnd
    next_stream_id: int
    records: int = 0
    torn_bytes: int = 0
    moved: bool = False
    left: list[Path] = field(default_factory=list)
    """Files that a compaction left behind, for `tidy`."""


class _Tail:
    """The end of the log as found on disk; `doubtful` is a last batch that may be unsynced."""

    def __init__(self, end: LogEnd) -> None:
        self.end = end
        self.doubtful: tuple[SegmentFile, Frame] | None = None
        self.records = 0
        self.torn_bytes = 0


Progress = Callable[[LogEnd, LogEnd], None]
"""Told how far the index is, and how far it has to go."""


def recover(
    directory: DataDirectory,
    disk: Disk,
    index: Index,
    step_records: int,
    progress: Progress = lambda reached, end: None,
    durable: LogEnd | None = None,
) -> Recovered:
    """Bring a locked directory into a state to serve from. Raises `OpenError`, naming the place.

    `durable` is an end of the log that is known otherwise than from this index.
    """
    try:
        return _recover(directory, disk, index, step_records, progress, durable)
    except (CorruptData, IndexFailed) as error:
        raise OpenError(str(error)) from error
    except OSError as error:
        raise OpenError(f"{error.filename or directory.path}: {error.strerror}") from error


def _recover(
    directory: DataDirectory,
    disk: Disk,
    index: Index,
    step_records: int,
    progress: Progress,
    durable: LogEnd | None,
) -> Recovered:
    owner = index.directory_id()
    if owner is not None and owner != directory.id:
        raise OpenError(f"{directory.index}: the index is of another data directory: run reindex")
    checkpoint = index.checkpoint()
    known = None if checkpoint is None else index.live_bytes(COMPACTED_IDS)
    chain = open_chain(directory.segments, known)
    if not chain.segments and checkpoint is not None:
        raise OpenError(f"{directory.segments}: the index is ahead of the log, which is empty")
    tail = (
        _find_end(chain, _start(chain, checkpoint)) if chain.segments else _Tail(LogEnd(0, 0, 0, 0))
    )
    last, position = tail.end.sequence, tail.end.position
    if tail.doubtful is not None:
        last, position = last + 1, tail.doubtful[1].end
    if last < chain.horizon():
        name = segment_path(Path(), tail.end.segment_id).name
        raise OpenError(
            f"{name}, position {position}: the log ends here, after batch {last}, but compacted "
            f"segments rest on batch {chain.horizon()}: bring back the missing part"
        )
    if durable is not None and last < durable.sequence:
        name = segment_path(Path(), tail.end.segment_id).name
        raise OpenError(
            f"{name}, position {position}: the log ends here, after batch {last}, but the "
            f"index had batch {durable.sequence}: bring back the missing part, or remove "
            f"{directory.index} and run reindex to go on without it"
        )
    # Nothing was changed up to here, and nothing is refused from here on.
    if owner is None:
        with index.write() as transaction:
            transaction.put_directory_id(directory.id)
    if not chain.segments:
        return Recovered(tail.end, 1)
    _remove_unfinished(directory.segments, disk)
    indexer = Indexer(directory.segments, index)
    reached = _index_up_to(indexer, tail.end, step_records, progress)
    next_stream_id = max(
        reached.next_stream_id if reached is not None else 1,
        chain.segments[-1].header.next_stream_id,
    )
    recovered = Recovered(tail.end, next_stream_id, tail.records, tail.torn_bytes)
    recovered.left = [*chain.unknown, *chain.obsolete]
    if tail.doubtful is not None:
        segment, frame = tail.doubtful
        recovered.end = _move(directory.segments, disk, segment, frame, next_stream_id)
        recovered.moved = True
        reached = _index_up_to(indexer, recovered.end, step_records, progress)
        if reached is not None:
            recovered.next_stream_id = max(next_stream_id, reached.next_stream_id)
    return recovered


def tidy(directory: DataDirectory, disk: Disk, recovered: Recovered) -> None:
    """Remove what a compaction that was cut off left behind, once the index that knows better is in
    its place; a backup keeps it. Raises `OpenError`."""
    try:
        remove(directory, disk, recovered.left)
    except OSError as error:
        raise OpenError(f"{error.filename or directory.path}: {error.strerror}") from error


def _start(chain: Chain, checkpoint: Checkpoint | None) -> LogEnd:
    """Where to look from: the checkpoint, once the log is seen to hold its batch."""
    first = chain.segments[0].header
    if checkpoint is None:
        return LogEnd(
            first.segment_id,
            FIRST_BATCH_POSITION,
            first.first_sequence - 1,
            first.predecessor_checksum,
        )
    start = LogEnd(*checkpoint[:4])
    for at, segment in enumerate(chain.segments):
        if segment.header.segment_id == start.segment_id:
            end = chain.end(at)
            if (end is None or start.position <= end) and _ends_at(segment, start):
                return start
            break
    name = segment_path(Path(), start.segment_id).name
    raise OpenError(
        f"{name}, position {start.position}: the index is ahead of the log, which does not have "
        f"batch {start.sequence} there: bring back the missing part, or remove the index and run "
        "reindex to go on without it"
    )


def _ends_at(segment: SegmentFile, end: LogEnd) -> bool:
    """Whether the batch with this sequence number and checksum ends there."""
    header = segment.header
    if end.position == FIRST_BATCH_POSITION:
        return (header.first_sequence - 1, header.predecessor_checksum) == end[2:]
    data = read_at(segment.fd, COMMIT_BYTES, end.position - COMMIT_BYTES)
    if len(data) < COMMIT_BYTES:
        return False
    magic, checksum, sequence, _, frame_checksum = COMMIT.unpack(data)
    whole = magic == COMMIT_MAGIC and crc32(data[:-4], segment.seed) == frame_checksum
    return whole and (sequence, checksum) == (end.sequence, end.checksum)


def _find_end(chain: Chain, start: LogEnd) -> _Tail:
    """Follow the log from a durable position to its end. Raises `OpenError` for damage."""
    tail = _Tail(start)
    for at, segment in enumerate(chain.segments):
        if segment.header.segment_id < start.segment_id:
            continue
        if segment.header.segment_id > tail.end.segment_id:
            header = segment.header
            _pass_gap(tail, chain, header.predecessor)
            if (header.first_sequence - 1, header.predecessor_checksum) != tail.end[2:]:
                raise OpenError(f"{segment.name}, position 40: it does not follow its predecessor")
            tail.end = tail.end._replace(
                segment_id=header.segment_id, position=FIRST_BATCH_POSITION
            )
        known_end = chain.end(at)
        if known_end is not None:
            _follow_sealed(tail, segment, known_end)
        else:
            _follow_last(tail, segment)
    return tail


def _pass_gap(tail: _Tail, chain: Chain, predecessor: int) -> None:
    """Go on behind a gap that ends with segment `predecessor`, if there is one."""
    for gap in chain.gaps:
        if gap.last_id != predecessor:
            continue
        if (gap.first_sequence - 1, gap.predecessor_checksum) != tail.end[2:]:
            missing = segment_path(Path(), gap.first_id).name
            raise OpenError(f"{missing} did not follow its predecessor")
        tail.end = LogEnd(gap.last_id, gap.end, gap.last_sequence, gap.last_checksum)


def _follow_sealed(tail: _Tail, segment: SegmentFile, known_end: int) -> None:
    scanner = Scanner(segment)
    while tail.end.position < known_end:
        try:
            _take(tail, _next_frame(scanner, tail.end))
        except DecodeError as error:
            raise OpenError(f"{segment.name}, position {tail.end.position}: {error}") from error
    if tail.end.position != known_end:
        raise OpenError(f"{segment.name}, position {known_end}: no batch ends here")


def _follow_last(tail: _Tail, segment: SegmentFile) -> None:
    scanner = Scanner(segment)
    before_last = tail.end
    last: Frame | None = None
    while True:
        try:
            frame = _next_frame(scanner, tail.end)
        except DecodeError as error:
            reason = error
            break
        before_last, last = tail.end, frame
        _take(tail, frame)
    later = scanner.valid_batch_after(tail.end.position, tail.end.sequence + 1)
    if later is not None:
        raise OpenError(
            f"{segment.name}, position {tail.end.position}: {reason}, but a committed batch "
            f"follows at position {later}: the log is damaged"
        )
    # Zeroes ahead of the end are no write; anything else is one that was not finished.
    if any(read_at(segment.fd, HEAD_BYTES, tail.end.position)):
        tail.torn_bytes = segment.size_bytes() - tail.end.position
    if last is not None:
        if scanner.damaged_payload(_understood(scanner, last)) is None:
            tail.doubtful = (segment, last)
        else:
            tail.records -= last.head.records
        tail.end = before_last


def _understood(scanner: Scanner, frame: Frame) -> BatchView:
    """The batch of a frame. Raises `OpenError` if a newer release wrote it, before it is moved."""
    reason = "a record type is of a newer release"
    try:
        batch = scanner.batch_at(frame.position)
        if all(record.type in INDEXED_TYPES for record in batch.records):
            return batch
    except DecodeError as error:
        reason = str(error)
    raise OpenError(f"{scanner.segment.name}, position {frame.position}: {reason}")


def _next_frame(scanner: Scanner, end: LogEnd) -> Frame:
    frame = scanner.frame_at(end.position)
    if frame.head.sequence != end.sequence + 1 or frame.head.predecessor != end.checksum:
        raise DecodeError("the batch does not follow its predecessor")
    return frame


def _take(tail: _Tail, frame: Frame) -> None:
    tail.end = LogEnd(tail.end.segment_id, frame.end, frame.head.sequence, frame.checksum)
    tail.records += frame.head.records


def _index_up_to(
    indexer: Indexer, end: LogEnd, step_records: int, progress: Progress
) -> Checkpoint | None:
    while True:
        reached = indexer.step(end, step_records)
        progress(LogEnd(*reached[:4]), end)
        if reached.sequence >= end.sequence:
            return reached


def _move(
    directory: Path, disk: Disk, segment: SegmentFile, frame: Frame, next_stream_id: int
) -> LogEnd:
    """Write the last batch into a segment of its own, and make that durable."""
    batch = Scanner(segment).batch_at(frame.position)
    old = segment.header
    header = new_header(
        old.segment_id + 1,
        next_stream_id,
        batch.head.sequence,
        old.segment_id,
        batch.position,
        batch.head.predecessor,
        batch.head.time_ms,
    )
    payloads = []
    runs = []
    at = batch.payload_position
    for run in batch.runs:
        data = read_at(segment.fd, run.length, at)
        at += run.length
        blocks = reseal_blocks(header.seed, run.stream_id, run.start, run.blocks, data)
        payloads.append(data)
        runs.append(RunEntry(run.stream_id, run.start, run.length, blocks).pack())
    encoded = encode_batch(
        header.seed,
        batch.head.sequence,
        batch.head.time_ms,
        batch.head.predecessor,
        runs,
        payloads,
        [encode(record) for record in batch.records],
    )
    fd = create_segment(disk, directory, header, encoded.buffers)
    os.close(fd)
    return LogEnd(
        header.segment_id,
        FIRST_BATCH_POSITION + encoded.size_bytes,
        batch.head.sequence,
        encoded.checksum,
    )


def _remove_unfinished(directory: Path, disk: Disk) -> None:
    for path in directory.glob(f"*{UNFINISHED_SUFFIX}"):
        disk.unlink(path)
