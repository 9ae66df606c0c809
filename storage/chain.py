"""The log as a chain of segments: reading batches across files, and validating the chain.

A segment ends where its successor's header says; the last one ends where its last valid batch does.
Segments that were compacted are gone, in the middle too: the compacted ones tell where each gap in
the chain begins and ends, which has to agree with the segments on both sides of it.
"""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from storage.compacted import Compacted, Gap, join_gaps
from storage.errors import CorruptData, OpenError
from storage.record import DecodeError
from storage.scan import FIRST_BATCH_POSITION, BatchView, Scanner
from storage.segment import (
    SegmentFile,
    SegmentHeader,
    compacted_id,
    list_segments,
    segment_path,
)


class LogEnd(NamedTuple):
    """The end of the log: of the batch with this sequence number and checksum, in this segment."""

    segment_id: int
    position: int
    sequence: int
    checksum: int


class Position(NamedTuple):
    """A place in the log where a batch ends and the next begins."""

    segment_id: int
    position: int


class Chain(NamedTuple):
    """The log's segments that are there, and the compacted ones that stand for the others.

    `obsolete` are files that say nothing any more: others stand for them. `unknown` are compacted
    files that the index was not told of, which say nothing yet.
    """

    segments: list[SegmentFile]
    compacted: list[Compacted]
    gaps: list[Gap]
    obsolete: list[Path]
    unknown: list[Path]

    def end(self, at: int) -> int | None:
        """Where the segment at a place of the chain ends; None for the last one."""
        segment_id = self.segments[at].header.segment_id
        for gap in self.gaps:
            if gap.first_id == segment_id + 1:
                return gap.predecessor_end
        return self.segments[at + 1].header.predecessor_end if at + 1 < len(self.segments) else None

    def horizon(self) -> int:
        """Up to which batch something of the log may be gone, or be told by compacted segments."""
        last = max((gap.last_sequence for gap in self.gaps), default=0)
        return max((file.summary.high for file in self.compacted), default=last)


def open_chain(directory: Path, known: Collection[int] | None = None) -> Chain:
    """All segments, in order; the compacted ones only if they are `known` (all, if it is None).

    Raises `OpenError` where one is missing or its header is damaged.
    """
    paths = list_segments(directory)
    unknown = []
    files = []
    for path in paths.compacted:
        if known is None or compacted_id(path) in known:
            files.append(Compacted(path))
        else:
            unknown.append(path)
    there = {file.id for file in files}
    for segment_id in known or ():
        if segment_id not in there:
            missing = segment_path(directory, segment_id).name
            raise OpenError(f"{missing}: the segment is missing")
    replaced = {segment_id for file in files for segment_id in file.summary.replaced}
    obsolete = [file.segment.path for file in files if file.id in replaced]
    compacted = [file for file in files if file.id not in replaced]
    compacted.sort(key=lambda file: (file.summary.low, file.id))
    try:
        gaps = join_gaps(gap for file in compacted for gap in file.summary.gaps)
    except DecodeError as error:
        raise OpenError(f"{directory}: {error}") from error
    segments: list[SegmentFile] = []
    before: LogEnd | None = None
    ahead = list(gaps)
    for path in paths.log:
        number = int(path.stem)
        while ahead and ahead[0].last_id < number:
            before = _pass_gap(directory, ahead.pop(0), before)
        if ahead and ahead[0].first_id <= number:
            obsolete.append(path)
            continue
        segment = SegmentFile(path)
        header = segment.header
        if header.segment_id != number:
            raise OpenError(f"{path.name}, position 16: the segment's name and its id differ")
        expected = 0 if before is None else before.segment_id
        if header.predecessor != expected:
            missing = segment_path(directory, header.predecessor).name
            raise OpenError(
                f"{path.name}, position 48: it follows segment {missing}, which is missing"
            )
        if before is not None and before.sequence >= 0 and before[1:] != _told_by(header):
            raise OpenError(f"{path.name}, position 40: it does not follow its predecessor")
        segments.append(segment)
        before = LogEnd(number, 0, -1, 0)
    if ahead or (files and not segments):
        what = f"after segment {before.segment_id if before else 0}"
        raise OpenError(f"{directory}: segments of the log are missing {what}")
    return Chain(segments, compacted, gaps, obsolete, unknown)


def _pass_gap(directory: Path, gap: Gap, before: LogEnd | None) -> LogEnd:
    """Where the log is after a gap. Raises `OpenError` where segments before it are missing."""
    expected = 1 if before is None else before.segment_id + 1
    if gap.first_id != expected:
        missing = segment_path(directory, expected).name
        raise OpenError(f"{missing}: the segment is missing")
    return LogEnd(gap.last_id, gap.end, gap.last_sequence, gap.last_checksum)


def _told_by(header: SegmentHeader) -> tuple[int, int, int]:
    return header.predecessor_end, header.first_sequence - 1, header.predecessor_checksum


def batches_between(
    directory: Path, start: Position, end: Position, known: Collection[int] | None
) -> Iterator[tuple[SegmentFile, BatchView]]:
    """The batches from one known position of the log to another, without plain appends' records.

    Raises `CorruptData` where the log does not hold what it must.
    """
    if start.segment_id == end.segment_id:
        yield from _in_segment(SegmentFile(segment_path(directory, start.segment_id)), start, end)
        return
    chain = open_chain(directory, known)
    if end.segment_id not in [segment.header.segment_id for segment in chain.segments]:
        missing = segment_path(directory, end.segment_id).name
        raise CorruptData(missing, end.position, "the segment is missing")
    for at, segment in enumerate(chain.segments):
        segment_id = segment.header.segment_id
        if not start.segment_id <= segment_id <= end.segment_id:
            continue
        known_end = None if segment_id == end.segment_id else chain.end(at)
        first = start.position if segment_id == start.segment_id else FIRST_BATCH_POSITION
        stop = Position(segment_id, end.position if known_end is None else known_end)
        yield from _in_segment(segment, Position(segment_id, first), stop)


def _in_segment(
    segment: SegmentFile, start: Position, end: Position
) -> Iterator[tuple[SegmentFile, BatchView]]:
    position = start.position
    scanner = Scanner(segment)
    while position < end.position:
        try:
            batch = scanner.batch_at(position, plain=False)
        except DecodeError as error:
            raise CorruptData(segment.name, position, str(error)) from error
        yield segment, batch
        position = batch.end
    if position != end.position:
        raise CorruptData(segment.name, end.position, "a batch crosses the end of the log")
