"""The data directory: what makes a folder one, its lock, and the names inside it.

FORMAT      one line: what this is, the format version, and an id that the index repeats
LOCK        held (flock) by the one process that has the directory open
INDEXER     held by the process that writes the index
RESERVE     space given back when the disk is full
segments/   the log; locked, shared, by who copies it, and by who removes files of it
index/      LMDB: a view of the log, which can be lost
"""

import contextlib
import fcntl
import os
import re
import time
import uuid
from pathlib import Path

from storage.disk import NO_SPACE, Disk
from storage.errors import DirectoryLocked, OpenError

FORMAT_VERSION = 1
FORMAT_FILE = "FORMAT"
_FORMAT_LINE = re.compile(rb"durable-streamsd data, format (\d{1,9}), id ([0-9a-f]{32})\n")
ORPHANED_INDEXER_WAIT_S = 10.0


class DataDirectory:
    """A data directory that exists and is of this format. It is not locked yet."""

    def __init__(self, path: Path) -> None:
        """Read FORMAT. Raises `OpenError` for a foreign folder or another format version."""
        self.path = path
        self.segments = path / "segments"
        self.index = path / "index"
        self.reserve = path / "RESERVE"
        self._locks: list[int] = []
        try:
            line = (path / FORMAT_FILE).read_bytes()
        except OSError as error:
            raise OpenError(
                f"{path / FORMAT_FILE}: {error.strerror}; this is not a durable-streamsd directory"
            ) from error
        match = _FORMAT_LINE.fullmatch(line)
        if match is None:
            raise OpenError(f"{path / FORMAT_FILE}, position 0: not a durable-streamsd directory")
        if int(match[1]) != FORMAT_VERSION:
            raise OpenError(
                f"{path / FORMAT_FILE}, position 0: the directory has format {int(match[1])}, and "
                f"this program reads format {FORMAT_VERSION}: use the release that wrote it"
            )
        self.id = match[2].decode()
        if not self.segments.is_dir():
            raise OpenError(f"{self.segments}: the folder is missing")

    @classmethod
    def open(cls, path: Path, disk: Disk) -> "DataDirectory":
        """Open a data directory, making one of a folder that is missing or empty."""
        if not (path / FORMAT_FILE).exists():
            try:
                _initialise(path, disk)
            except OSError as error:
                raise OpenError(f"{error.filename or path}: {error.strerror}") from error
        return cls(path)

    def lock(self) -> None:
        """Take the directory for this process. Raises `DirectoryLocked`."""
        self._locks.append(_lock(self.path))

    def lock_index(self) -> None:
        """Become the index's writer, once a writer that outlived its daemon has ended.

        Raises `DirectoryLocked` when it does not end in time.
        """
        fd = _open_lock(self.path / "INDEXER")
        give_up = time.monotonic() + ORPHANED_INDEXER_WAIT_S
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if time.monotonic() > give_up:
                    os.close(fd)
                    raise DirectoryLocked(f"{self.index}: another process writes it") from error
                time.sleep(0.01)
        self._locks.append(fd)

    def keep_segments(self) -> int:
        """Have no segment removed until the descriptor that this returns is closed."""
        fd = os.open(self.segments, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(fd, fcntl.LOCK_SH)
        return fd

    def may_remove_segments(self) -> int | None:
        """Keep others from copying segments until this descriptor is closed; None while they do."""
        fd = os.open(self.segments, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            return None
        return fd

    def unlock_index(self) -> None:
        """Let another process write the index."""
        os.close(self._locks.pop())

    def has_index(self) -> bool:
        """Whether there is an index, whatever its state."""
        return (self.index / "data.mdb").exists()

    def remove_index(self) -> None:
        """Remove the index's files."""
        for file in self.index.glob("*.mdb"):
            file.unlink()

    def unlock(self) -> None:
        """Give the directory back."""
        while self._locks:
            os.close(self._locks.pop())

    def make_reserve(self, disk: Disk, length_bytes: int) -> bool:
        """Take the reserve's space unless it is there; whether it is now.

        Where there is not enough space, a part that was there stays.
        """
        try:
            had_bytes = self.reserve.stat().st_size
        except FileNotFoundError:
            had_bytes = 0
        if had_bytes >= length_bytes:
            return True
        fd = -1
        try:
            fd = disk.open_write(self.reserve) if had_bytes else disk.create(self.reserve)
            disk.allocate(fd, length_bytes)
        except FileNotFoundError:
            return False  # Another process has just given it back.
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise
            if had_bytes:
                disk.truncate(fd, had_bytes)
            else:
                self.release_reserve(disk)
            return False
        finally:
            if fd >= 0:
                os.close(fd)
        return True

    def lend_reserve(self, disk: Disk, left_bytes: int) -> None:
        """Give the reserve's space back to the file system but for so many bytes."""
        with contextlib.suppress(FileNotFoundError):  # It is in use.
            fd = disk.open_write(self.reserve)
            try:
                if os.fstat(fd).st_size > left_bytes:
                    disk.truncate(fd, left_bytes)
            finally:
                os.close(fd)

    def release_reserve(self, disk: Disk) -> None:
        """Give the reserve's space back to the file system, if no other process did."""
        with contextlib.suppress(FileNotFoundError):
            disk.unlink(self.reserve)


def _initialise(path: Path, disk: Disk) -> None:
    if path.exists() and not path.is_dir():
        raise OpenError(f"{path}: not a directory")
    if path.exists() and any(path.iterdir()) and not _half_made(path):
        raise OpenError(
            f"{path}: the directory is not empty and has no {FORMAT_FILE} file; "
            "give an empty one, or one that durable-streamsd made"
        )
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    disk.make_directory(path)
    held = _lock(path)  # two first starts at once must not both give the directory an id
    try:
        if not (path / FORMAT_FILE).exists():
            _make_format(path, disk, made)
    finally:
        os.close(held)


def _open_lock(path: Path) -> int:
    """A file to lock, made where it is missing. Raises `OpenError`."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise OpenError(f"{path}: {error.strerror}") from error


def _lock(path: Path) -> int:
    """Lock a directory; the descriptor that holds it. Raises `DirectoryLocked`."""
    fd = _open_lock(path / "LOCK")
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        raise DirectoryLocked(f"{path}: another process has this directory open") from error
    return fd


def _make_format(path: Path, disk: Disk, made: list[Path]) -> None:
    """Write FORMAT, last of all; `made` are the folders that were not there before."""
    disk.make_directory(path / "segments")
    disk.make_directory(path / "index")
    unfinished = path / f"{FORMAT_FILE}.tmp"
    fd = disk.create(unfinished)
    try:
        line = f"durable-streamsd data, format {FORMAT_VERSION}, id {uuid.uuid4().hex}\n"
        disk.write(fd, [line.encode()], 0)
        disk.sync(fd)
    finally:
        os.close(fd)
    disk.replace(unfinished, path / FORMAT_FILE)
    disk.sync_directory(path)
    for folder in made or [path]:
        disk.sync_directory(folder.parent)


def _half_made(path: Path) -> bool:
    """Whether only an interrupted first start was here: then it may begin again."""
    names = {entry.name for entry in path.iterdir()}
    if not names <= {"LOCK", "segments", "index", f"{FORMAT_FILE}.tmp"}:
        return False
    return not any((path / "segments").glob("*"))
