"""Small file systems that can be filled, and a disk that fails: mounted for one test, as root.

A failing disk is two ext4 file systems, one in a file on the other:

    data directory on INNER  ->  loop device  ->  image file on OUTER  ->  loop device  ->  file

`fail` shuts OUTER down (the ioctl with which file systems are tested for crashes): every write of
INNER's device fails from then on. Then INNER behaves as over a disk that broke: writes still go to
the page cache, the sync reports EIO, what is cached can be read. `repair` unmounts both and mounts
them again, which brings back what had reached the disk, as after a power cut.

Left out: running without root. Mounting that fails, fails the test with a sentence.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

_SHUTDOWN = (2 << 30) | (4 << 16) | (ord("X") << 8) | 125
"""EXT4_IOC_SHUTDOWN of <linux/ext4.h>: _IOR('X', 125, __u32)."""
_WITHOUT_FLUSHING_THE_JOURNAL = struct.pack("=I", 2)


BUSY_SECONDS_MAX = 10.0
"""How long an indexer may take to notice that its daemon is gone."""


def run(*command: str | Path) -> None:
    """Run a system program; a failure fails the test with its sentence."""
    arguments = [str(part) for part in command]
    try:
        result = subprocess.run(arguments, capture_output=True, text=True)
    except OSError as error:
        pytest.fail(f"this test needs {arguments[0]!r}: {error.strerror}", pytrace=False)
    if result.returncode != 0:
        pytest.fail(
            f"this test mounts file systems, as root, and {' '.join(arguments)!r} failed: "
            f"{result.stderr.strip()}",
            pytrace=False,
        )


def unmount(folder: Path) -> None:
    """Unmount, at the latest when nobody uses it any more."""
    if subprocess.run(["umount", str(folder)], capture_output=True).returncode != 0:
        subprocess.run(["umount", "--lazy", str(folder)], capture_output=True)


def make_ext4(image: Path, size_bytes: int) -> None:
    """Make a file with an empty ext4 file system in it."""
    with image.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, size_bytes)
    run("mkfs.ext4", "-q", "-m", "0", image)


@contextlib.contextmanager
def small_volume(folder: Path, kind: str, size_bytes: int) -> Iterator[Path]:
    """A mounted file system of this size: "tmpfs", or "ext4" in a file."""
    mounted = folder / "volume"
    mounted.mkdir()
    if kind == "tmpfs":
        run("mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs", mounted)
    else:
        make_ext4(folder / "image", size_bytes)
        run("mount", "-o", "loop", folder / "image", mounted)
    try:
        yield mounted
    finally:
        unmount(mounted)


class FailingDisk:
    """A mounted file system (`path`) whose disk can be made to fail, and be repaired."""

    def __init__(self, folder: Path, size_bytes: int) -> None:
        self.path = folder / "inner"
        self._outer = folder / "outer"
        self._image = folder / "image"
        for mount_point in (self.path, self._outer):
            mount_point.mkdir()
        make_ext4(self._image, size_bytes * 2)
        run("mount", "-o", "loop", self._image, self._outer)
        make_ext4(self._outer / "image", size_bytes)
        run("mount", "-o", "loop", self._outer / "image", self.path)

    def fail(self) -> None:
        """From now on no write reaches the disk."""
        fd = os.open(self._outer, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, _SHUTDOWN, _WITHOUT_FLUSHING_THE_JOURNAL)
        finally:
            os.close(fd)

    def repair(self) -> None:
        """Bring back what had reached the disk, once nobody has anything open on it any more."""
        give_up = time.monotonic() + BUSY_SECONDS_MAX
        while subprocess.run(["umount", str(self.path)], capture_output=True).returncode != 0:
            assert time.monotonic() < give_up, f"{self.path} stays in use"
            time.sleep(0.02)
        run("umount", self._outer)
        run("mount", "-o", "loop", self._image, self._outer)
        run("mount", "-o", "loop", self._outer / "image", self.path)

    def close(self) -> None:
        """Unmount."""
        unmount(self.path)
        unmount(self._outer)


@contextlib.contextmanager
def failing_disk(folder: Path, size_bytes: int) -> Iterator[FailingDisk]:
    """A `FailingDisk` for the length of a test."""
    disk = FailingDisk(folder, size_bytes)
    try:
        yield disk
    finally:
        disk.close()
