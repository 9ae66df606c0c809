"""What has to be asked of the file system, and so is asked in a thread."""

import contextlib
import logging
import math
import os
from typing import NamedTuple

from storage.errors import StorageError
from storage.store import Store

__all__ = ["UNKNOWN", "Survey", "survey"]


log = logging.getLogger(__name__)


class Survey(NamedTuple):
    """The disk that has the data directory, and the log's files on it, in bytes."""

    disk_bytes: float
    free_bytes: float
    """What an unprivileged process may still use."""
    segments: float
    segments_bytes: float
    live_bytes: float
    """Payload in them that somebody can read."""


UNKNOWN = Survey(math.nan, math.nan, math.nan, math.nan, math.nan)


def survey(store: Store) -> Survey:
    """Look now. Raises `OSError`."""
    directory = store.directory
    disk = os.statvfs(directory.path)
    segments = segments_bytes = 0
    for file in directory.segments.iterdir():
        with contextlib.suppress(FileNotFoundError):  # it has just been removed
            segments_bytes += file.stat().st_blocks * 512
            segments += 1
    return Survey(
        disk.f_blocks * disk.f_frsize,
        disk.f_bavail * disk.f_frsize,
        segments,
        segments_bytes,
        _live_bytes(store),
    )


def _live_bytes(store: Store) -> float:
    """Unknown if the index is damaged: just then all the rest is worth knowing."""
    try:
        return store.live_bytes()
    except StorageError as error:
        log.warning("the index does not say what is live: %s", error)
        return math.nan
