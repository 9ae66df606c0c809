"""The indexer in a process of its own, so that it does not take the interpreter from the loop.

It compacts, too (`storage.compaction`), between steps: it is the one that writes the index, moving
bytes costs the loop nothing there, and indexing never waits for more than one piece of it. How much
it may do is granted again every second, in bytes and in time on the processor: so it takes the same
small share of a busy machine whatever the data looks like.

The store's process tells it durable ends of the log, one at a time, by a pipe; it steps the index
there and answers how far it got. It is the only writer of the index while it lives. When its pipe
ends it stops; when it dies it is started again, and goes on where the index says.

    parent → child   LogEnd: segment id, position, sequence (u64), checksum (u32)
                     a grant until the next one: 0, ms on the processor, bytes to compact, 0
    child → parent   Checkpoint: the same as LogEnd, and the next stream id (u64)
                     compacted: 0, segments removed, their bytes, segments written, their bytes;
                     each since the last one told

Run as `python -m storage.indexer_process DIRECTORY STEP_RECORDS SEGMENT_BYTES RESERVE_BYTES RATE`.
"""

import contextlib
import logging
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from storage.chain import LogEnd
from storage.child import child_command, child_environment
from storage.compacting import GRANT, PROGRESS, Compacting
from storage.compaction import Grant
from storage.directory import DataDirectory
from storage.errors import CorruptData, StorageError
from storage.index import Index
from storage.index_entries import Checkpoint
from storage.indexer import Indexer
from storage.limits import Limits
from storage.store import Store

TARGET = struct.Struct("<QQQI")
STOP_WAIT_S = 2.0
"""A child that takes longer is killed; whoever opens next indexes what it had not."""
NICE = 5
EXIT_FAILED = 1
EXIT_DAMAGED = 4
RESTART_DELAY_S = 0.1
RESTART_DELAY_S_MAX = 30.0
DAMAGED_DEATHS_MAX = 3
DAMAGED_CODES = frozenset({EXIT_DAMAGED, -signal.SIGSEGV, -signal.SIGBUS, -signal.SIGABRT})
"""How a process ends that walks damaged pages of the index, or finds an entry damaged."""

log = logging.getLogger(__name__)


class IndexerProcess:
    """Supervises the child for a store. All methods are for the store's owner thread."""

    def __init__(self, store: Store, on_progress: Callable[[], None]) -> None:
        """`on_progress` is called on the owner thread whenever the index got further."""
        self._store = store
        self._on_progress = on_progress
        self._post: Callable[[Callable[[], None]], object] = lambda call: call()
        self._child: subprocess.Popen[bytes] | None = None
        self._stopping = False
        self._deaths = 0
        """In a row, without progress between them."""
        self._spawn_after_s = 0.0

    def start(self, post: Callable[[Callable[[], None]], object]) -> None:
        """Hand the index over to a child; `post` runs a call on the owner thread, from any."""
        self._post = post
        self._store.share_index()
        self._spawn()

    def poll(self) -> None:
        """Give the child work if there is some; start it again if it died. Call it often."""
        if self._stopping:
            return
        if self._child is None and time.monotonic() >= self._spawn_after_s:
            self._spawn()
        target = self._store.index_due()
        if target is None or self._child is None or self._child.stdin is None:
            return
        try:
            self._child.stdin.write(TARGET.pack(*target))
            self._child.stdin.flush()
        except OSError:
            return  # It has died; its reader thread will say so.
        self._store.indexing = True

    def grant(self, grant: Grant) -> None:
        """Let the child compact so much, until the next grant; call it about once a second."""
        child = self._child
        if self._stopping or child is None or child.stdin is None or not grant.size_bytes:
            return
        with contextlib.suppress(OSError):  # It has died; its reader thread will say so.
            child.stdin.write(TARGET.pack(GRANT, grant.processor_ms, grant.size_bytes, 0))
            child.stdin.flush()

    def stop(self) -> None:
        """End the child and take the index back."""
        self._stopping = True
        child = self._child
        if child is not None and child.stdin is not None:
            with contextlib.suppress(OSError):
                child.stdin.close()  # It may have died with a target unread.
            try:
                child.wait(STOP_WAIT_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        self._child = None
        self._store.own_index()

    def _spawn(self) -> None:
        command = child_command(
            "storage.indexer_process",
            str(self._store.directory.path),
            str(self._store.limits.index_step_records),
            str(self._store.limits.segment_bytes),
            str(self._store.limits.reserve_bytes),
            str(self._store.limits.compact_bytes_per_s),
        )
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=child_environment()
        )
        self._child = child
        threading.Thread(target=self._listen, args=(child,), name="indexer", daemon=True).start()

    def _listen(self, child: subprocess.Popen[bytes]) -> None:
        """Pass on what the child says, in a thread of its own, until it ends."""
        assert child.stdout is not None
        while len(message := child.stdout.read(PROGRESS.size)) == PROGRESS.size:
            numbers = PROGRESS.unpack(message)
            if numbers[0] == GRANT:  # and so is what came of it
                self._post(lambda done=numbers[1:]: self._store.compacted(*done))  # type: ignore[misc]
                continue
            checkpoint = Checkpoint(*numbers)
            self._post(lambda reached=checkpoint: self._progress(reached))  # type: ignore[misc]
        code = child.wait()
        if not self._stopping:
            self._post(lambda: self._died(child, code))

    def _progress(self, checkpoint: Checkpoint) -> None:
        self._deaths = 0
        self._store.indexed(checkpoint)
        self._on_progress()
        self.poll()

    def _died(self, child: subprocess.Popen[bytes], code: int) -> None:
        """Forget a dead child, and have a poll start another, later and later.

        One that found the log or the index damaged would find that again for ever, and what is not
        indexed may not grow for ever: then the store takes no more writes.
        """
        if self._child is not child:
            return
        self._child = None
        self._store.indexing = False
        self._store.segments_removed()  # It may have removed some and not told.
        self._deaths += 1
        delay_s = min(RESTART_DELAY_S_MAX, RESTART_DELAY_S * 2 ** (self._deaths - 1))
        self._spawn_after_s = time.monotonic() + delay_s
        if code in DAMAGED_CODES and self._deaths >= DAMAGED_DEATHS_MAX:
            log.critical("the index cannot follow the log: stop, run verify, and see what it says")
            self._store.latched = True
        else:
            log.error("the indexer ended with code %d, and starts again in %g s", code, delay_s)


def follow(directory: DataDirectory, limits: Limits, source: IO[bytes], sink: IO[bytes]) -> None:
    """The child's life: read targets, step, answer, and compact in between. Raises `StorageError`.

    `source` is not buffered.
    """
    directory.lock_index()
    index = Index(directory.index, writable=True)
    indexer = Indexer(directory.segments, index)
    compacting = Compacting(directory, index, limits, sink)
    while True:
        if compacting.may_go_on() and not select.select([source], [], [], 0)[0]:
            compacting.step()
            continue
        message = source.read(TARGET.size)
        if len(message) != TARGET.size:
            break
        target = LogEnd(*TARGET.unpack(message))
        if target.segment_id == GRANT:
            compacting.grant(Grant(target.sequence, target.position))
            continue
        checkpoint = indexer.step(target, limits.index_step_records)
        compacting.reached(checkpoint)
        sink.write(PROGRESS.pack(*checkpoint))
        sink.flush()
    compacting.close()
    index.close()


def main(arguments: list[str]) -> int:
    """The child's exit code: 0 when its parent has ended it, others when it cannot go on."""
    # A terminal or a service manager signals the whole group; this process ends when its pipe does.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.nice(NICE)
    try:
        step_records, segment_bytes, reserve_bytes, rate = map(int, arguments[1:])
        limits = Limits(
            index_step_records=step_records,
            segment_bytes=segment_bytes,
            reserve_bytes=reserve_bytes,
            compact_bytes_per_s=rate,
        )
        with open(sys.stdin.fileno(), "rb", buffering=0) as source:  # noqa: PTH123
            follow(DataDirectory(Path(arguments[0])), limits, source, sys.stdout.buffer)
    except BrokenPipeError:
        return 0
    except (StorageError, OSError) as error:
        print(f"durable-streamsd indexer: {error}", file=sys.stderr)
        return EXIT_DAMAGED if isinstance(error, CorruptData) else EXIT_FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
