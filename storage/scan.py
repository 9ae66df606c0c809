"""Reading batches back from a segment: for recovery, the indexer, `verify`, `dump` and `reindex`.

Only heads, header blocks and commit frames are read; payload is skipped, because its checksums are
in the header block and whoever reads payload checks it then.
"""

from typing import NamedTuple

from storage.batch import (
    BATCH_MAGIC_BYTES,
    COMMIT_BYTES,
    HEAD_BYTES,
    BatchHead,
    RunEntry,
    check_commit,
    damaged_block,
    decode_block,
    decode_head,
)
from storage.disk import read_at
from storage.record import DecodeError, Record
from storage.segment import HEADER_BYTES, SegmentFile

WINDOW_BYTES = 256 * 1024
SKIPPING_WINDOW_BYTES = 8 * 1024
FIRST_BATCH_POSITION = HEADER_BYTES


class BatchView(NamedTuple):
    """A batch as it lies in a segment; positions are bytes from the segment's start."""

    head: BatchHead
    position: int
    payload_position: int
    end: int
    checksum: int
    runs: list[RunEntry]
    records: list[Record]


class Frame(NamedTuple):
    """A batch's outline: enough to know that it was committed whole, and where the next begins."""

    head: BatchHead
    position: int
    end: int
    checksum: int
    framed: bytes


class Scanner:
    """Reads the batches of one segment in order, through a window over the file."""

    def __init__(self, segment: SegmentFile) -> None:
        self.segment = segment
        self._window = b""
        self._window_at = 0

    def frame_at(self, position: int) -> Frame:
        """The outline of the batch at a position. Raises `DecodeError` if none is valid there."""
        seed = self.segment.seed
        head = decode_head(self._read(position, HEAD_BYTES), 0, seed)
        end = position + head.size_bytes
        if end > self.segment.size_bytes():
            raise DecodeError("the batch is longer than the file")
        framed = self._read(position, HEAD_BYTES + head.header_bytes)
        commit = self._read(end - COMMIT_BYTES, COMMIT_BYTES)
        return Frame(head, position, end, check_commit(commit, seed, head, framed), framed)

    def batch_at(self, position: int, *, plain: bool = True, records: bool = True) -> BatchView:
        """The batch at a position, without its payload. Raises `DecodeError` if none is valid.

        Without `plain`, also without the records of plain appends: most of them, and not needed by
        who looks at the runs. Without `records` there are none at all.
        """
        head, _, end, checksum, framed = self.frame_at(position)
        runs, found = decode_block(framed[HEAD_BYTES:], head, plain=plain, records=records)
        return BatchView(head, position, position + len(framed), end, checksum, runs, found)

    def damaged_payload(self, batch: BatchView) -> int | None:
        """The position of the first block of the batch's payload that does not check."""
        at = batch.payload_position
        for run in batch.runs:
            data = read_at(self.segment.fd, run.length, at)
            wrong = damaged_block(self.segment.seed, run.stream_id, run.start, run.blocks, data)
            if wrong is not None:
                return at + wrong
            at += run.length
        return None

    def valid_batch_after(self, position: int, sequence: int) -> int | None:
        """Where, past `position`, a committed batch with a higher sequence number begins."""
        size = self.segment.size_bytes()
        overlap = len(BATCH_MAGIC_BYTES) - 1
        at = position + 1
        while at < size:
            data = read_at(self.segment.fd, WINDOW_BYTES, at)
            found = data.find(BATCH_MAGIC_BYTES)
            while found >= 0:
                try:
                    if self.frame_at(at + found).head.sequence > sequence:
                        return at + found
                except DecodeError:
                    pass
                found = data.find(BATCH_MAGIC_BYTES, found + 1)
            if len(data) <= overlap:
                break
            at += len(data) - overlap
        return None

    def _read(self, position: int, size: int) -> bytes:
        start = position - self._window_at
        if start >= 0 and start + size <= len(self._window):
            return self._window[start : start + size]
        skipped = start > len(self._window)  # large payload: there will be more of it
        window = SKIPPING_WINDOW_BYTES if skipped else WINDOW_BYTES
        data = read_at(self.segment.fd, max(size, window), position)
        self._window = data
        self._window_at = position
        return data[:size]
