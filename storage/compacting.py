"""Compaction in the indexer's process: a piece at a time between its steps, as much as was granted.

What it may do is granted every second, in bytes and in time on the processor, so that it takes the
same small share of a busy machine whatever the data looks like. Only where that does not keep up,
and much waits to be given back, it takes more, up to all of one processor.

Left out: what a piece is (`storage.compaction`), and how much is granted
(`Store.compaction_grant`).
"""

import contextlib
import logging
import math
import struct
import time
from collections.abc import Generator
from dataclasses import replace
from typing import IO

from storage.compaction import LEFT_ALONE_S, Compactor, Grant, Reclaimed
from storage.directory import DataDirectory
from storage.disk import Disk
from storage.errors import CorruptData, IndexFailed, OpenError, OutOfSpace, StorageError
from storage.index import Index
from storage.index_entries import Checkpoint
from storage.limits import Limits

PROGRESS = struct.Struct("<QQQIQ")
GRANT = 0
"""In the place of a segment's id: what follows is about compaction."""
LOOK_INTERVAL_S = 10.0
"""Between two looks at whether anything is worth compacting, when nothing was and no segment has
been filled since."""
NEVER_S = float("inf")
PROCESSOR_MS_MAX = 1_000
"""Of a second, on one processor."""

log = logging.getLogger(__name__)


class Compacting:
    """Compaction in the child: a piece at a time, as much as was granted."""

    def __init__(
        self, directory: DataDirectory, index: Index, limits: Limits, sink: IO[bytes]
    ) -> None:
        self.granted = Grant(0, 0)
        """What is left of it; below zero what was used in advance."""
        self._compactor = Compactor(directory, index, Disk(), limits)
        self._bytes_max = limits.compact_bytes_per_s
        self._sink = sink
        self._times = 1.0
        """How much more than was granted is taken, because too much waits."""
        self._weigh_after_s = 0.0
        self._work: Generator[int, None, None] | None = None
        self._told = Reclaimed()
        self._look_after_s = 0.0
        self._checkpoint: Checkpoint | None = None
        self._looked_at: Checkpoint | None = None

    def reached(self, checkpoint: Checkpoint) -> None:
        """The index is here now."""
        before = self._checkpoint
        if (
            before is not None
            and checkpoint.segment_id != before.segment_id
            and self._look_after_s != NEVER_S
        ):
            self._look_after_s = 0.0
        self._checkpoint = checkpoint

    def grant(self, more: Grant) -> None:
        """So much from now on, less what was used in advance; what was left is not added.

        The more waits to be given back, the more it is, so that a log does not grow for ever.
        """
        now_s = time.monotonic()
        if now_s >= self._weigh_after_s:
            self._weigh_after_s = now_s + LOOK_INTERVAL_S
            self._times = 1.0
            with contextlib.suppress(StorageError, OSError):  # A step will say so.
                self._times = max(self._compactor.pressure(), 1.0)
        more = Grant(
            max(more.size_bytes, min(int(more.size_bytes * self._times), self._bytes_max)),
            max(more.processor_ms, min(int(more.processor_ms * self._times), PROCESSOR_MS_MAX)),
        )
        self.granted = Grant(
            *(new + min(old, 0) for new, old in zip(more, self.granted, strict=True))
        )

    def may_go_on(self) -> bool:
        """Whether there may be something to do, and it is granted."""
        if min(self.granted) <= 0:
            return False
        if self._work is not None:
            return True
        now_s = time.monotonic()
        if now_s < self._look_after_s:
            return False
        idle = self._checkpoint == self._looked_at and self._look_after_s > 0
        return not idle or now_s >= self._look_after_s + LEFT_ALONE_S

    def step(self) -> None:
        """Do a piece."""
        begun_s = time.process_time()
        if self._work is None:
            self._looked_at = self._checkpoint
            self._work = self._compactor.run()
        size_bytes = 0
        try:
            size_bytes = next(self._work)
        except StopIteration:
            self._end(again=self._compactor.done.changes != self._told.changes)
        except (OutOfSpace, CorruptData, OpenError, IndexFailed) as error:
            log.warning("nothing was compacted: %s", error)
            self._end(again=False)
        except OSError as error:
            log.error("nothing more is compacted until a restart: %s", error)
            self._end(again=False)
            self._look_after_s = NEVER_S
        used_ms = 1_000 * (time.process_time() - begun_s)
        left = self.granted
        self.granted = Grant(left.size_bytes - size_bytes, left.processor_ms - math.ceil(used_ms))

    def close(self) -> None:
        """Leave what is under way."""
        if self._work is not None:
            self._work.close()

    def _end(self, *, again: bool) -> None:
        self._work = None
        self._look_after_s = 0.0 if again else time.monotonic() + LOOK_INTERVAL_S
        done, told = self._compactor.done, self._told
        if done.changes == told.changes:
            return
        self._sink.write(
            PROGRESS.pack(
                GRANT,
                done.removed - told.removed,
                done.removed_bytes - told.removed_bytes,
                done.written - told.written,
                done.written_bytes - told.written_bytes,
            )
        )
        self._sink.flush()
        self._told = replace(done)
