"""The log's growing end: where the next batch goes, writing it, and rolling to a new segment.

The owner thread places and advances; one committer thread writes; both never for two batches at
once: a batch is placed only after its predecessor was synced or given up. That one batch at most is
in flight is what recovery relies on: a valid batch proves that all before it were durable.

Zeroes are written and synced ahead of the end by a thread of their own, because a sync that changes
no file length is the cheapest. It uses a descriptor of its own: each open file reports a failed
write-back once, and the committer must not miss one that this thread was told.
"""

import contextlib
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from storage.chain import LogEnd
from storage.disk import NO_SPACE, ZEROS, Disk
from storage.errors import Latched, OutOfSpace
from storage.segment import (
    HEADER_BYTES,
    UNFINISHED_SUFFIX,
    SegmentHeader,
    encode_header,
    new_header,
    segment_path,
)

LARGE_BATCH_BYTES = 256 * 1024


class Placement(NamedTuple):
    """Where a batch goes; with `new`, its segment has to be created first."""

    header: SegmentHeader
    position: int
    new: bool


def create_segment(
    disk: Disk, directory: Path, header: SegmentHeader, contents: Sequence[bytes] = ()
) -> int:
    """Create a segment, with batches if there are any to move into it, and make it durable.

    It gets its name when all is synced. Returns its descriptor. Raises `OSError`: then it either
    has no name, or (the directory's sync failed) is whole.
    """
    path = segment_path(directory, header.segment_id)
    unfinished = path.with_suffix(UNFINISHED_SUFFIX)
    fd = disk.create(unfinished)
    try:
        disk.write(fd, [encode_header(header), *contents], 0)
        disk.sync(fd)
        disk.replace(unfinished, path)
        disk.sync_directory(directory)
    except BaseException:
        os.close(fd)
        with contextlib.suppress(OSError):
            disk.unlink(unfinished)
        raise
    return fd


class Log:
    """The end of the log. `write` belongs to the committer thread, all else to the owner."""

    def __init__(
        self,
        disk: Disk,
        directory: Path,
        end: LogEnd,
        segment_bytes: int,
        zero_ahead_bytes: int,
    ) -> None:
        """Go on after `end`, always in a segment of its own: old files are never appended to."""
        self.end = end
        self._disk = disk
        self._directory = directory
        self._segment_bytes = segment_bytes
        self._active: SegmentHeader | None = None
        self._fd = -1
        self._roll_next = False
        self._ahead = ZeroAhead(disk, zero_ahead_bytes) if zero_ahead_bytes else None

    def place(self, size_bytes_max: int, next_stream_id: int) -> Placement:
        """Where a batch of at most this size goes (owner thread)."""
        active = None if self._roll_next else self._active
        if active is not None and self.end.position + size_bytes_max <= self._segment_bytes:
            return Placement(active, self.end.position, False)
        header = new_header(
            self.end.segment_id + 1,
            next_stream_id,
            self.end.sequence + 1,
            self.end.segment_id,
            self.end.position,
            self.end.checksum,
            time.time_ns() // 1_000_000,
        )
        return Placement(header, HEADER_BYTES, True)

    def roll_soon(self) -> None:
        """Have the next batch begin a segment, so that this one can be compacted (owner thread)."""
        self._roll_next = True

    def write(self, placement: Placement, buffers: Sequence[bytes], size_bytes: int) -> float:
        """Write and sync a batch (committer thread); returns how long the sync took, in seconds.

        Raises `OutOfSpace` when nothing of it is on disk and that is synced, `Latched` when what
        is on disk is not known.
        """
        if placement.new:
            self._roll(placement.header)
        if self._ahead is not None:
            end = placement.position + size_bytes
            self._ahead.pass_over(end, large=size_bytes >= LARGE_BATCH_BYTES)
        try:
            self._disk.write(self._fd, buffers, placement.position)
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise _latched("writing the log", error) from error
            self._take_back(placement)
            raise OutOfSpace(f"the disk is full: {error.strerror}") from error
        began_s = time.monotonic()
        try:
            self._disk.sync(self._fd)
        except OSError as error:
            raise _latched("syncing the log", error) from error
        took_s = time.monotonic() - began_s
        if self._ahead is not None and self._ahead.failed is not None:
            raise _latched("syncing the log", self._ahead.failed)
        return took_s

    def advance(self, placement: Placement, size_bytes: int, sequence: int, checksum: int) -> None:
        """The batch is durable: the log ends after it now (owner thread)."""
        if placement.new:
            self._roll_next = False
        self._active = placement.header
        self.end = LogEnd(
            placement.header.segment_id, placement.position + size_bytes, sequence, checksum
        )

    def close(self) -> None:
        """Cut off what was zeroed ahead, and close."""
        if self._ahead is not None:
            self._ahead.close()
        self._close_active()

    def _roll(self, header: SegmentHeader) -> None:
        try:
            fd = create_segment(self._disk, self._directory, header)
            self._close_active()
            self._fd = fd
            if self._ahead is not None:
                path = segment_path(self._directory, header.segment_id)
                self._ahead.start_file(path, HEADER_BYTES, self._segment_bytes)
        except OSError as error:
            # A segment that has its name voids what would be written to its predecessor now.
            named = segment_path(self._directory, header.segment_id).exists()
            if error.errno not in NO_SPACE or named:
                raise _latched("creating a segment", error) from error
            raise OutOfSpace(f"the disk is full: {error.strerror}") from error

    def _close_active(self) -> None:
        if self._ahead is not None:
            self._ahead.stop_file()
        if self._active is not None:
            # The successor's header says where this one ends; the rest is space to give back.
            with contextlib.suppress(OSError):
                self._disk.truncate(self._fd, self.end.position)
            self._active = None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _take_back(self, placement: Placement) -> None:
        """Remove a partial write; a segment that was made for it goes as a whole."""
        try:
            if placement.new:
                self._close_active()
                self._disk.unlink(segment_path(self._directory, placement.header.segment_id))
                self._disk.sync_directory(self._directory)
                return
            if self._ahead is not None:
                self._ahead.cut(self._fd, placement.position)
            else:
                self._disk.truncate(self._fd, placement.position)
            self._disk.sync(self._fd)
        except OSError as error:
            raise _latched("removing a partial write", error) from error


def _latched(what: str, error: OSError) -> Latched:
    """The error as the operator's log shows it: it ends with what to do."""
    return Latched(
        f"{what} failed: {error.strerror}: no more writes are taken; "
        "check the disk, then restart the daemon"
    )


class ZeroAhead:
    """Writes zeroes ahead of the end of the active segment, in a thread of its own.

    The committer never waits for it as long as its batch lies within what is zeroed.
    """

    STEP_BYTES = len(ZEROS)

    def __init__(self, disk: Disk, ahead_bytes: int) -> None:
        self.failed: OSError | None = None
        self._disk = disk
        self._ahead_bytes = ahead_bytes
        self._folder = Path()
        self._fd = -1
        self._zeroed_to = 0
        self._written_to = 0
        self._file_bytes_max = 0
        self._closing = False
        self._poke = threading.Event()
        self._step_under_way = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="zero-ahead", daemon=True)
        self._thread.start()

    def start_file(self, path: Path, position: int, file_bytes_max: int) -> None:
        """Begin with another segment."""
        with self._step_under_way:
            self._fd = self._disk.open_write(path)
            self._folder = path.parent
            self._zeroed_to = self._written_to = position
            self._file_bytes_max = file_bytes_max

    def stop_file(self) -> None:
        """Leave the current segment alone from now on."""
        with self._step_under_way:
            if self._fd >= 0:
                os.close(self._fd)
            self._fd = -1

    def pass_over(self, end: int, *, large: bool) -> None:
        """A batch will be written up to `end`: keep clear of it, and go ahead of small ones.

        Large batches grow the file themselves: writing their space twice would cost more than the
        cheaper sync gains.
        """
        self._written_to = end
        if end > self._zeroed_to:
            with self._step_under_way:
                self._zeroed_to = max(self._zeroed_to, end)
        if not large and end > self._zeroed_to - self._ahead_bytes // 2:
            self._poke.set()

    def cut(self, fd: int, position: int) -> None:
        """Truncate the file, zeroes and all, to a position."""
        with self._step_under_way:
            self._disk.truncate(fd, position)
            self._zeroed_to = self._written_to = position

    def close(self) -> None:
        """End the thread."""
        self._closing = True
        self._poke.set()
        self._thread.join()
        self.stop_file()

    def _work(self) -> None:
        while not self._closing:
            self._poke.wait()
            self._poke.clear()
            while not self._closing and self._step():
                pass

    def _step(self) -> bool:
        """Zero the next piece; whether there may be more to do."""
        with self._step_under_way:
            goal = min(self._written_to + self._ahead_bytes, self._file_bytes_max)
            size = min(goal - self._zeroed_to, self.STEP_BYTES)
            if size <= 0 or self._fd < 0:
                return False
            try:
                if self._disk.free_bytes(self._folder) < 2 * self._ahead_bytes:
                    return False  # what is left, and the reserve, is for those who need it
                self._disk.write(self._fd, [ZEROS[:size]], self._zeroed_to)
                self._disk.sync(self._fd)
            except OSError as error:
                # Without space there is nothing to prepare: the batch that needs it will say so.
                if error.errno not in NO_SPACE:
                    self.failed = error
                return False
            self._zeroed_to += size
            return True
