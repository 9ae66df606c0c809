"""Removing segments that say nothing any more, and that durably.

A backup copies files one by one and must find them all, so it holds a lock that removal needs for
itself. Readers need nothing: what they have open stays readable, and who does not find a file any
more asks the index again, which has known better since before.
"""

import os
from pathlib import Path

from storage.directory import DataDirectory
from storage.disk import Disk


def remove(directory: DataDirectory, disk: Disk, paths: list[Path]) -> bool:
    """Remove files of the log for good; False if a backup has to end first.

    The files that stand for them may have their names only since the last start, and not durably.

    Raises `OSError`: then some may be gone, or come back, and it has to be done again.
    """
    if not paths:
        return True
    held = directory.may_remove_segments()
    if held is None:
        return False
    try:
        disk.sync_directory(directory.segments)
        for path in paths:
            disk.unlink(path)
        disk.sync_directory(directory.segments)
    finally:
        os.close(held)
    return True
