"""The log as a chain of segments: reading batches across files, and validating the chain.

A segment ends where its successor's header says; the last one ends where its last valid batch does.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from storage.errors import CorruptData, OpenError
from storage.record import DecodeError
from storage.scan import FIRST_BATCH_POSITION, BatchView, Scanner
from storage.segment import SegmentFile, list_segments, segment_path


class Position(NamedTuple):
    """A place in the log where a batch ends and the next begins."""

    segment_id: int
    position: int


def open_chain(directory: Path) -> list[SegmentFile]:
    """All segments, in order. Raises `OpenError` where one is missing or its header is damaged."""
    chain: list[SegmentFile] = []
    for path in list_segments(directory):
        segment = SegmentFile(path)
        header = segment.header
        if segment_path(directory, header.segment_id) != path:
            raise OpenError(f"{path.name}, position 16: the segment's name and its id differ")
        expected = chain[-1].header.segment_id if chain else 0
        if header.predecessor != expected:
            missing = segment_path(directory, header.predecessor).name
            raise OpenError(
                f"{path.name}, position 48: it follows segment {missing}, which is missing"
            )
        chain.append(segment)
    return chain


def segment_end(chain: list[SegmentFile], at: int) -> int | None:
    """Where the segment at a place of the chain ends; None for the last one."""
    return chain[at + 1].header.predecessor_end if at + 1 < len(chain) else None


def batches_between(
    directory: Path, start: Position, end: Position
) -> Iterator[tuple[SegmentFile, BatchView]]:
    """The batches from one known position of the log to another, without plain appends' records.

    Raises `CorruptData` where the log does not hold what it must.
    """
    if start.segment_id == end.segment_id:
        yield from _in_segment(SegmentFile(segment_path(directory, start.segment_id)), start, end)
        return
    chain = [
        segment
        for segment in open_chain(directory)
        if start.segment_id <= segment.header.segment_id <= end.segment_id
    ]
    if not chain or chain[-1].header.segment_id != end.segment_id:
        missing = segment_path(directory, end.segment_id).name
        raise CorruptData(missing, end.position, "the segment is missing")
    position = start.position
    for at, segment in enumerate(chain):
        known_end = segment_end(chain, at)
        stop = Position(segment.header.segment_id, end.position if known_end is None else known_end)
        yield from _in_segment(segment, Position(stop.segment_id, position), stop)
        position = FIRST_BATCH_POSITION


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
