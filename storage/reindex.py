"""Reindex: build the index anew from the segments alone, and put it in the old one's place."""

import shutil
from pathlib import Path

from storage.directory import DataDirectory
from storage.disk import Disk
from storage.index import Index
from storage.limits import Limits
from storage.recovery import Progress, Recovered, recover


def reindex(path: Path, progress: Progress) -> Recovered:
    """Rebuild the index of a directory that no process has open.

    The old one stays until the new one is complete. Raises `OpenError` where the log is damaged,
    `DirectoryLocked`.
    """
    disk = Disk()
    directory = DataDirectory(path)
    fresh = path / "index.new"
    directory.lock()
    try:
        directory.lock_index()
        if fresh.exists():
            shutil.rmtree(fresh)
        index = Index(fresh, writable=True)
        try:
            recovered = recover(directory, disk, index, Limits().index_step_records, progress)
        finally:
            index.close()
        if directory.index.exists():
            shutil.rmtree(directory.index)
        disk.replace(fresh, directory.index)
        disk.sync_directory(path)
        return recovered
    finally:
        directory.unlock()
