"""Writing a compacted segment (`storage.compacted`), batch by batch.

It has an unfinished name until all of it is synced. Each batch is synced by itself, so that a sync
of the log never has to wait for much of this.
"""

import contextlib
import errno
import os
import time

from storage.batch import RunEntry, encode_batch, joined_blocks
from storage.compacted import Summary
from storage.directory import DataDirectory
from storage.disk import Disk
from storage.index_entries import RunPlace
from storage.record import Entry, Record, RecordType, encode
from storage.segment import (
    HEADER_BYTES,
    KIND_COMPACTED,
    UNFINISHED_SUFFIX,
    encode_header,
    new_header,
    segment_path,
)

BATCH_BYTES = 1 << 20
BATCH_RECORDS = 4_096


class Output:
    """A compacted segment that is being written. Methods raise `OSError`."""

    def __init__(
        self,
        disk: Disk,
        directory: DataDirectory,
        segment_id: int,
        next_stream_id: int,
        bytes_max: int,
    ) -> None:
        """`bytes_max`: what is larger counts as a full disk."""
        self.id = segment_id
        self.streams = 0
        self.tombstones = 0
        self.payload_bytes = 0
        self._disk = disk
        self._bytes_max = bytes_max
        self._folder = directory.segments
        self._path = segment_path(directory.segments, segment_id)
        self._unfinished = self._path.with_suffix(UNFINISHED_SUFFIX)
        self._time_ms = time.time_ns() // 1_000_000
        header = new_header(segment_id, next_stream_id, 1, 0, 0, 0, self._time_ms)
        self._header = header._replace(kind=KIND_COMPACTED)
        self._fd = disk.create(self._unfinished)
        self._position = HEADER_BYTES
        self._sequence = 0
        self._checksum = 0
        self._records: list[bytes] = []
        self._runs: list[bytes] = []
        self._payloads: list[bytes] = []
        self._pending_bytes = 0

    def add(self, record: Record) -> None:
        """Put a record in."""
        data = encode(record)
        self._records.append(data)
        self._pending_bytes += len(data)

    def add_run(self, stream_id: int, places: list[RunPlace], parts: list[bytes]) -> None:
        """Put the payload of contiguous runs in as one run."""
        data = b"".join(parts)
        start = places[0].start
        tables = [place.blocks for place in places]
        blocks = joined_blocks(self._header.seed, stream_id, start, tables, data)
        self._runs.append(RunEntry(stream_id, start, len(data), blocks).pack())
        self._payloads.append(data)
        self._pending_bytes += len(data)
        self.payload_bytes += len(data)

    def is_full(self) -> bool:
        """Whether there is enough for a batch."""
        return self._pending_bytes >= BATCH_BYTES or len(self._records) >= BATCH_RECORDS

    def flush(self) -> int:
        """Write and sync what was put in; how many bytes that took."""
        if not self._records and not self._runs:
            return 0
        self._sequence += 1
        encoded = encode_batch(
            self._header.seed,
            self._sequence,
            self._time_ms,
            self._checksum,
            self._runs,
            self._payloads,
            self._records,
        )
        if self._position + encoded.size_bytes > self._bytes_max:
            raise OSError(errno.ENOSPC, "what is live takes more than there is room for")
        self._disk.write(self._fd, encoded.buffers, self._position)
        self._disk.sync(self._fd)
        self._position += encoded.size_bytes
        self._checksum = encoded.checksum
        self._records, self._runs, self._payloads = [], [], []
        self._pending_bytes = 0
        return encoded.size_bytes

    def finish(self, summary: Summary) -> None:
        """Write the summary and the header, and give the file its name, all of it durably."""
        self.flush()
        position = self._position
        value = Entry(b"", summary.pack())
        self.add(Record(RecordType.STATE, 0, 0, origin=summary.high, value=value))
        self.flush()
        header = self._header._replace(
            predecessor_end=position, predecessor_checksum=self._checksum
        )
        self._disk.write(self._fd, [encode_header(header)], 0)
        self._disk.sync(self._fd)
        self._disk.replace(self._unfinished, self._path)
        self._disk.sync_directory(self._folder)

    def close(self) -> None:
        """Let go; a file that has no name yet is removed."""
        os.close(self._fd)
        with contextlib.suppress(OSError):
            self._disk.unlink(self._unfinished)
