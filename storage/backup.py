"""Backup and restore: a data directory copied at one moment, while a daemon goes on writing to it.

The index is copied first (LMDB gives a consistent snapshot), then the log up to its last whole
batch: so the copy's index is behind its log, never ahead, and the moment is that batch for all
streams, with their producers' state. Whether the daemon had synced that batch does not matter: the
copy is synced itself. Which compacted segments there are is what the copied index says; no segment
is removed while a backup is made, so all that it rests on is there. `FORMAT` is written last, so an
interrupted backup does not open.

Left out: incremental copies. Sealed segments never change, so a tool that copies files by name and
size can be one.
"""

import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

from storage.chain import open_chain
from storage.directory import FORMAT_FILE, DataDirectory
from storage.disk import Disk, read_at
from storage.errors import OpenError
from storage.index import Index
from storage.record import DecodeError
from storage.scan import FIRST_BATCH_POSITION, Frame, Scanner
from storage.segment import COMPACTED_IDS, SegmentFile

COPY_BYTES = 4 << 20

Progress = Callable[[int, int], None]
"""Told the bytes copied and the bytes there are."""


class Backup(NamedTuple):
    """What a backup holds: the last batch's sequence number, and the log's bytes."""

    sequence: int
    log_bytes: int


def backup(source: Path, destination: Path, progress: Progress) -> Backup:
    """Copy the data directory `source` to `destination`, which must not exist or be empty.

    Raises `OpenError` where one of them will not do, the log is damaged where it is copied, or the
    destination is full.
    """
    directory = DataDirectory(source)
    _refuse_occupied(destination)
    disk = Disk()
    try:
        disk.make_directory(destination / "segments")
        disk.make_directory(destination / "index")
        held = directory.keep_segments()
        try:
            known = _copy_index(directory.index, destination / "index")
            _sync(disk, destination / "index" / "data.mdb")
            made = _copy_log(disk, directory.segments, destination / "segments", known, progress)
        finally:
            os.close(held)
        _copy(disk, source / FORMAT_FILE, destination / FORMAT_FILE)
        for folder in (destination / "segments", destination / "index", destination):
            disk.sync_directory(folder)
        disk.sync_directory(destination.absolute().parent)
    except OSError as error:
        raise OpenError(f"{error.filename or destination}: {error.strerror}") from error
    return made


def _refuse_occupied(destination: Path) -> None:
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise OpenError(
            f"{destination}: it exists and is not an empty directory; nothing is copied"
        )


def _copy_index(source: Path, destination: Path) -> Collection[int]:
    """Copy the index; the compacted segments that the copy knows."""
    index = Index(source, writable=False)
    try:
        index.copy(destination)
    finally:
        index.close()
    copied = Index(destination, writable=False)
    try:
        return copied.live_bytes(COMPACTED_IDS)
    finally:
        copied.close()
        (destination / "lock.mdb").unlink(missing_ok=True)


def _copy_log(
    disk: Disk, source: Path, destination: Path, known: Collection[int], progress: Progress
) -> Backup:
    chain = open_chain(source, known)
    ends = [chain.end(at) for at in range(len(chain.segments))]
    sequence = 0
    if chain.segments:
        last = chain.segments[-1]
        frame = _last_frame(last)
        ends[-1] = FIRST_BATCH_POSITION if frame is None else frame.end
        sequence = last.header.first_sequence - 1 if frame is None else frame.head.sequence
    whole = [(file.segment, file.size_bytes()) for file in chain.compacted]
    whole += [(segment, end or 0) for segment, end in zip(chain.segments, ends, strict=True)]
    total = sum(end for _, end in whole)
    done = 0
    for segment, end in whole:
        target = destination / segment.name
        fd = disk.create(target)
        try:
            for at in range(0, end, COPY_BYTES):
                data = read_at(segment.fd, min(COPY_BYTES, end - at), at)
                disk.write(fd, [data], at)
                done += len(data)
                progress(done, total)
            disk.sync(fd)
        finally:
            os.close(fd)
    return Backup(sequence, total)


def _last_frame(segment: SegmentFile) -> Frame | None:
    """The last whole batch of the last segment. Raises `OpenError` where one in between is damaged.

    A running daemon may complete batches while this looks, so a place without a batch is looked at
    once more when one is found behind it.
    """
    scanner = Scanner(segment)
    position = FIRST_BATCH_POSITION
    sequence = segment.header.first_sequence - 1
    before: Frame | None = None
    last: Frame | None = None
    looked_again = False
    while True:
        try:
            frame = scanner.frame_at(position)
        except DecodeError as error:
            if Scanner(segment).valid_batch_after(position, sequence + 1) is None:
                break
            if looked_again:
                raise OpenError(f"{segment.name}, position {position}: {error}") from error
            looked_again = True
            scanner = Scanner(segment)
            continue
        looked_again = False
        before, last = last, frame
        position, sequence = frame.end, frame.head.sequence
    if last is not None and scanner.damaged_payload(scanner.batch_at(last.position)) is not None:
        return before
    return last


def _copy(disk: Disk, source: Path, target: Path) -> None:
    fd = disk.create(target)
    try:
        disk.write(fd, [source.read_bytes()], 0)
        disk.sync(fd)
    finally:
        os.close(fd)


def _sync(disk: Disk, path: Path) -> None:
    fd = disk.open_write(path)
    try:
        disk.sync(fd)
    finally:
        os.close(fd)
