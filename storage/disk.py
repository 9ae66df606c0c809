"""The fault seam: every write, sync, truncation, rename and directory sync of the engine.

Only this module changes files (LMDB's own pages aside), so a test that subclasses `Disk` sees, and
can fail or forget, each step in the order in which it happens. Reads of segments are here too,
because the way they avoid stalling the caller is a property of the system call.

What the engine assumes of the medium (M1 to M4, cited elsewhere by number) is in FORMAT.md.
"""

import errno
import os
from collections.abc import Sequence
from pathlib import Path

IOV_MAX = min(os.sysconf("SC_IOV_MAX"), 1024)
ZEROS = bytes(1 << 20)

NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})


class Disk:
    """The real disk. Methods raise `OSError` as the system does; no method retries a sync."""

    def create(self, path: Path) -> int:
        """Create or truncate a file for reading and writing; return its descriptor."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)

    def open_write(self, path: Path) -> int:
        """Open an existing file for reading and writing; return its descriptor."""
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def write(self, fd: int, buffers: Sequence[bytes], position: int) -> None:
        """Write all of `buffers` at `position`, going on after short writes."""
        queue: list[bytes | memoryview] = list(buffers)
        while queue:
            written = self.write_some(fd, queue[:IOV_MAX], position)
            if not written and any(map(len, queue)):
                raise OSError(errno.EIO, "the system wrote nothing")
            position += written
            done = 0
            while done < len(queue) and written >= len(queue[done]):
                written -= len(queue[done])
                done += 1
            del queue[:done]
            if written:
                queue[0] = memoryview(queue[0])[written:]

    def write_some(self, fd: int, buffers: Sequence[bytes | memoryview], position: int) -> int:
        """One system call of `write`; may write less than asked."""
        return os.pwritev(fd, buffers, position)

    def sync(self, fd: int) -> None:
        """Make a file's content (and its length) durable."""
        os.fdatasync(fd)

    def sync_directory(self, path: Path) -> None:
        """Make creations, renames and removals in a directory durable."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def truncate(self, fd: int, length_bytes: int) -> None:
        """Cut a file to a length."""
        os.ftruncate(fd, length_bytes)

    def allocate(self, fd: int, length_bytes: int) -> None:
        """Take disk space for a file without writing it (the reserve)."""
        os.posix_fallocate(fd, 0, length_bytes)

    def replace(self, source: Path, target: Path) -> None:
        """Give a file its name, atomically."""
        source.replace(target)

    def unlink(self, path: Path) -> None:
        """Remove a file."""
        path.unlink()

    def make_directory(self, path: Path) -> None:
        """Create a directory, with its parents, unless it exists."""
        path.mkdir(mode=0o750, parents=True, exist_ok=True)

    def free_bytes(self, path: Path) -> int:
        """Disk space that an unprivileged process could still use."""
        stat = os.statvfs(path)
        return stat.f_bavail * stat.f_frsize


def read_at(fd: int, length_bytes: int, position: int) -> bytes:
    """Read up to `length_bytes` at `position`: fewer only at the end of the file."""
    data = os.pread(fd, length_bytes, position)
    if len(data) == length_bytes or not data:
        return data
    parts = [data]
    have = len(data)
    while have < length_bytes:
        data = os.pread(fd, length_bytes - have, position + have)
        if not data:
            break
        parts.append(data)
        have += len(data)
    return b"".join(parts)


def read_cached(fd: int, length_bytes: int, position: int) -> bytes | bytearray | None:
    """Read from the page cache only; None when the disk would have to be asked.

    A file system without the facility (tmpfs) is memory anyway: read plainly there. What was read
    stays in the buffer it was read into: copying it costs half as much as reading it.
    """
    buffer = bytearray(length_bytes)
    try:
        have = os.preadv(fd, [buffer], position, os.RWF_NOWAIT)
    except BlockingIOError:
        return None
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        return read_at(fd, length_bytes, position)
    return buffer if have == length_bytes else None
