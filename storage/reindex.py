"""Reindex: build the index anew from the segments alone, and put it in the old one's place.

All that the old one is asked is how far the log was known to be durable: a log that ends before
that has lost batches, and is refused. Its pages may be damaged, so a child asks it
(`python -m storage.reindex DIRECTORY`); where that fails nothing is known.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from storage.chain import LogEnd
from storage.child import child_command, child_environment
from storage.directory import DataDirectory
from storage.disk import Disk
from storage.errors import StorageError
from storage.index import Index
from storage.limits import Limits
from storage.recovery import Progress, Recovered, recover, tidy

OLD_INDEX_WAIT_S = 60


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
        durable = _known_durable(directory)
        if fresh.exists():
            shutil.rmtree(fresh)
        index = Index(fresh, writable=True)
        step_records = Limits().index_step_records
        try:
            recovered = recover(directory, disk, index, step_records, progress, durable)
        finally:
            index.close()
        if directory.index.exists():
            shutil.rmtree(directory.index)
        disk.replace(fresh, directory.index)
        disk.sync_directory(path)
        tidy(directory, disk, recovered)
        return recovered
    finally:
        directory.unlock()


def _known_durable(directory: DataDirectory) -> LogEnd | None:
    """The old index's checkpoint, if it can tell."""
    if not directory.has_index():
        return None
    try:
        child = subprocess.run(
            child_command("storage.reindex", str(directory.path)),
            capture_output=True,
            env=child_environment(),
            text=True,
            timeout=OLD_INDEX_WAIT_S,
            check=True,
        )
    except subprocess.SubprocessError:
        return None
    numbers = [int(number) for number in child.stdout.split()]
    return LogEnd(*numbers) if numbers else None


def main(path: str) -> int:
    """The child: segment id, position, sequence and checksum, or nothing."""
    directory = DataDirectory(Path(path))
    try:
        index = Index(directory.index, writable=False)
        checkpoint = index.checkpoint()
        if checkpoint is not None and index.directory_id() == directory.id:
            print(*checkpoint[:4])
    except StorageError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
