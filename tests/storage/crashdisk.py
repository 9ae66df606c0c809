"""A disk that knows what a power cut would leave: the seam `storage.disk` with a durable shadow.

Beside the real directory this keeps what is on stable storage: a file's content as of its last
sync, names as of their directory's last sync. After a sync that failed, the sectors it should have
written read back well and are *not* stable, and later syncs do not make them so (assumption M3 of
FORMAT.md). LMDB syncs its own file, so the index counts as durable as it lies.

It can also fail: the N-th write (short first, then an error), the N-th sync, or be full.
"""

import os
import random
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from storage.disk import Disk

SECTOR_BYTES = 512

Image = dict[str, bytes]
"""A directory's files by relative name: what a machine finds when it comes up again."""


class File:
    """A file's stable content, and the sectors that a failed sync lost."""

    def __init__(self, durable: bytes = b"") -> None:
        self.durable = durable
        self.lost: set[int] = set()


def _sectors(start: int, size: int) -> range:
    return range(start // SECTOR_BYTES, -(-(start + size) // SECTOR_BYTES))


def _mixed(old: bytes, new: bytes, take_new: Callable[[int], bool]) -> bytes:
    """`new`, with each sector that differs taken from `old` unless `take_new` says otherwise."""
    parts = []
    for sector in range(-(-len(new) // SECTOR_BYTES)):
        piece = slice(sector * SECTOR_BYTES, (sector + 1) * SECTOR_BYTES)
        fresh = new[piece]
        stale = old[piece].ljust(len(fresh), b"\0")[: len(fresh)]
        parts.append(fresh if fresh == stale or take_new(sector) else stale)
    return b"".join(parts)


class CrashDisk(Disk):
    """The real disk under `root`, and what would survive a power cut.

    `on_event` is called before and after everything that makes something durable. What it finds
    there with `durable`, `everything` and `torn` is what a crash at that moment may leave.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.on_event: Callable[[], None] = lambda: None
        self.on_name: Callable[[], None] = lambda: None
        """Called after each change of a name, when it is visible and not yet durable."""
        self.syncs = 0
        self.writes = 0
        self.fail_write_at = 0
        self.fail_sync_at = 0
        self.error = 0
        self.short = True
        self.free = 1 << 40
        self._owner = threading.get_ident()
        self._guard = threading.RLock()
        self._by_fd: dict[int, File] = {}
        self._names: dict[Path, File] = {}
        for path in root.glob("**/*"):
            if path.is_file() and not _is_index(path):
                self._names[path] = File(path.read_bytes())
        self._durable_names = dict(self._names)

    # The seam

    def create(self, path: Path) -> int:
        """A new name, or an old one whose content goes; neither is durable yet."""
        with self._guard:
            fd = super().create(path)
            file = self._names.setdefault(path, File())
            self._by_fd[fd] = file
            return fd

    def open_write(self, path: Path) -> int:
        """Another descriptor of a file."""
        with self._guard:
            fd = super().open_write(path)
            self._by_fd[fd] = self._names[path]
            return fd

    def write_some(self, fd: int, buffers: Sequence[bytes | memoryview], position: int) -> int:
        """One write; the N-th fails, after it wrote a part."""
        with self._guard:
            self.writes += 1
            data = b"".join(buffers)
            if self.writes == self.fail_write_at and self.short and len(data) > 1:
                return self._written(fd, [data[: len(data) * 2 // 3]], position)
            if self.writes == self.fail_write_at + self.short and self.fail_write_at:
                raise OSError(self.error, os.strerror(self.error))
            return self._written(fd, buffers, position)

    def _written(self, fd: int, buffers: Sequence[bytes | memoryview], position: int) -> int:
        size = super().write_some(fd, buffers, position)
        self._by_fd[fd].lost.difference_update(_sectors(position, size))
        return size

    def sync(self, fd: int) -> None:
        """Content becomes durable, whoever wrote it, except for what an earlier failure lost."""
        self._event()
        with self._guard:
            self.syncs += 1
            file = self._by_fd[fd]
            content = os.pread(fd, os.fstat(fd).st_size, 0)
            if self.syncs == self.fail_sync_at:
                self._lose(file, content)
                raise OSError(self.error, os.strerror(self.error))
            lost = file.lost
            file.durable = _mixed(file.durable, content, lambda sector: sector not in lost)
        self._event()

    @staticmethod
    def _lose(file: File, content: bytes) -> None:
        """Everything that was dirty counts as clean from now on, and is not on the medium."""
        for sector in _sectors(0, len(content)):
            piece = slice(sector * SECTOR_BYTES, (sector + 1) * SECTOR_BYTES)
            if content[piece] != file.durable[piece]:
                file.lost.add(sector)

    def sync_directory(self, path: Path) -> None:
        """The directory's names become durable."""
        self._event()
        with self._guard:
            self.syncs += 1
            if self.syncs == self.fail_sync_at:
                raise OSError(self.error, os.strerror(self.error))
            self._durable_names = {
                name: file for name, file in self._durable_names.items() if name.parent != path
            } | {name: file for name, file in self._names.items() if name.parent == path}
        self._event()

    def replace(self, source: Path, target: Path) -> None:
        """A file gets another name."""
        with self._guard:
            super().replace(source, target)
            self._names[target] = self._names.pop(source)
        self.on_name()

    def unlink(self, path: Path) -> None:
        """A name goes."""
        with self._guard:
            super().unlink(path)
            self._names.pop(path, None)
        self.on_name()

    def free_bytes(self, path: Path) -> int:
        """What the test says."""
        return self.free

    def _event(self) -> None:
        if threading.get_ident() == self._owner:
            self.on_event()

    # What a crash leaves

    def durable(self) -> Image:
        """What is surely there after a power cut."""
        with self._guard:
            image = {str(name): file.durable for name, file in self._durable_names.items()}
            return self._complete(image)

    def everything(self) -> Image:
        """What is there when only the process ended, or when all of it reached the medium."""
        with self._guard:
            return self._complete({str(name): name.read_bytes() for name in self._names})

    def torn(self, chance: random.Random) -> Image:
        """A power cut of which some sectors, and the names or not, had reached the medium."""
        with self._guard:
            image: Image = {}
            names = self._names if chance.random() < 0.5 else self._durable_names
            for name, file in names.items():
                content = file.durable
                if self._names.get(name) is file:
                    lost = file.lost
                    content = _mixed(
                        content,
                        name.read_bytes(),
                        lambda sector: sector not in lost and chance.random() < 0.5,  # noqa: B023
                    )
                image[str(name)] = content
            return self._complete(image)

    def _complete(self, image: Image) -> Image:
        relative = {str(Path(name).relative_to(self.root)): data for name, data in image.items()}
        for path in (self.root / "index").glob("data.mdb"):
            relative["index/data.mdb"] = path.read_bytes()
        return relative


def _is_index(path: Path) -> bool:
    return path.parent.name == "index" or path.name in ("LOCK", "INDEXER")


def come_up(image: Image, path: Path) -> Path:
    """Make the directory that an image describes."""
    for folder in ("segments", "index"):
        (path / folder).mkdir(parents=True)
    for name, data in image.items():
        (path / name).write_bytes(data)
    return path
