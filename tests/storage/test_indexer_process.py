"""The indexer's own process: it follows, may be killed, ends with its parent, and loses nothing."""

import contextlib
import io
import os
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import engine
import pytest
from engine import SMALL, abandon, open_store

from storage.compacting import Compacting
from storage.compaction import Grant
from storage.errors import DirectoryLocked
from storage.index import Index
from storage.indexer_process import IndexerProcess

WAIT_S_MAX = 20.0
LIMITS = replace(SMALL, index_step_records=20, segment_bytes=2_000)


class Loop:
    """The owner thread's queue of calls, run until a condition holds."""

    def __init__(self, store: engine.ManualStore) -> None:
        self.store = store
        self.progress = 0
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self.indexer = IndexerProcess(store, self._note)

    def _note(self) -> None:
        self.progress += 1

    def start(self) -> None:
        """Hand the index over."""
        self.indexer.start(self._calls.put)

    def run_until(self, condition: Callable[[], bool]) -> None:
        """Run posted calls, and poll, until the condition holds."""
        give_up = time.monotonic() + WAIT_S_MAX
        while not condition():
            assert time.monotonic() < give_up, "nothing happened"
            self.store.clock_ms += 100
            self.indexer.poll()
            with contextlib.suppress(queue.Empty):
                self._calls.get(timeout=0.05)()

    def all_indexed(self) -> bool:
        """Whether the index has everything, as far as the store was told."""
        return self.store._backlog.indexed_sequence == self.store._durable_sequence

    def child_pid(self) -> int:
        """The child that runs now."""
        assert self.indexer._child is not None
        return self.indexer._child.pid


def fill(store: engine.ManualStore, batches: int, mark: bytes) -> bytes:
    """Append in many batches; what was appended."""
    if engine.find(store, b"s") is None:
        engine.create(store, b"s")
    data = b""
    for number in range(batches):
        engine.append(store, b"s", b"%b-%d;" % (mark, number))
        data += b"%b-%d;" % (mark, number)
        engine.commit(store)
    return data


def complete(path: Path, expected: bytes) -> None:
    """The index of a closed store is complete: the next start finds nothing to do."""
    store = open_store(path, LIMITS)
    assert store.recovered.records == 0
    assert not store.recovered.moved
    assert engine.content(store, b"s") == expected
    store.close()


def test_it_follows_the_log(tmp_path: Path) -> None:
    """The child indexes what is durable, memory lets go of it, and reads find it; when it is
    stopped and the store is closed the index is complete."""
    store = open_store(tmp_path, replace(LIMITS, tail_cache_bytes_max=0))
    loop = Loop(store)
    loop.start()
    expected = fill(store, 50, b"a")
    loop.run_until(loop.all_indexed)
    assert loop.progress > 1
    assert not len(engine.seen(store, b"s").runs)
    assert engine.content(store, b"s", 100) == expected
    expected += fill(store, 30, b"b")
    loop.indexer.stop()
    store.close()
    complete(tmp_path, expected)


def test_it_is_started_again_when_it_dies(tmp_path: Path) -> None:
    """A killed child is replaced, goes on where the index is, and nothing is lost or doubled."""
    store = open_store(tmp_path, LIMITS)
    loop = Loop(store)
    loop.start()
    expected = b""
    pids = set()
    for generation in range(3):
        expected += fill(store, 30, b"%d" % generation)
        pids.add(loop.child_pid())
        loop.indexer.poll()
        os.kill(loop.child_pid(), signal.SIGKILL)
        loop.run_until(lambda: loop.indexer._child is None or loop.child_pid() not in pids)
        loop.run_until(lambda: loop.indexer._child is not None)
        loop.run_until(loop.all_indexed)
    assert len(pids) == 3
    assert engine.content(store, b"s") == expected
    loop.indexer.stop()
    store.close()
    complete(tmp_path, expected)


def test_stopping_just_after_it_died(tmp_path: Path) -> None:
    """A child that is dead when it is told to end does not keep the store from closing."""
    store = open_store(tmp_path, LIMITS)
    loop = Loop(store)
    loop.start()
    expected = fill(store, 20, b"a")
    child = loop.indexer._child
    assert child is not None
    child.kill()
    child.wait()
    store.clock_ms += 2_000
    loop.indexer.poll()
    loop.indexer.stop()
    store.close()
    complete(tmp_path, expected)


def test_a_store_whose_indexer_is_alive_is_left_by_a_crash(tmp_path: Path) -> None:
    """The child of a parent that is gone ends by itself, and its directory opens again."""
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from storage.store import Store\n"
        "from storage.state import Append\n"
        "from storage.stream_config import StreamConfig\n"
        "from storage.indexer_process import IndexerProcess\n"
        "store = Store.open(Path(sys.argv[1]))\n"
        "store.admit(store.load(b's'))\n"
        "store.create(b's', StreamConfig('text/plain'), b'kept', False)\n"
        "assert store.commit() is None\n"
        "indexer = IndexerProcess(store, lambda: None)\n"
        "indexer.start(lambda call: None)\n"
        "print(indexer._child.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    )
    assert parent.stdout is not None
    assert parent.stdin is not None
    child = int(parent.stdout.readline())
    os.kill(child, 0)
    with pytest.raises(DirectoryLocked):
        open_store(tmp_path)
    parent.kill()
    parent.wait()
    parent.stdin.close()
    parent.stdout.close()
    store = open_store(tmp_path)
    assert engine.content(store, b"s") == b"kept"
    store.close()
    give_up = time.monotonic() + WAIT_S_MAX
    while Path(f"/proc/{child}/cmdline").exists():
        if not Path(f"/proc/{child}/cmdline").read_bytes():
            break  # It has ended, and whoever adopted it has not looked yet.
        assert time.monotonic() < give_up, "the child outlived its parent"
        os.sched_yield()


def test_the_index_has_one_writer(tmp_path: Path) -> None:
    """While the child has the index the store only reads it, and takes it back when it stops."""
    store = open_store(tmp_path, LIMITS)
    loop = Loop(store)
    loop.start()
    expected = fill(store, 20, b"a")
    loop.run_until(loop.all_indexed)
    with pytest.raises(Exception, match=r"(?i)read-only|permission|EACCES"):
        store._index.write()
    loop.indexer.stop()
    store.index_step()
    assert engine.content(store, b"s") == expected
    store.close()


def test_a_crash_while_the_child_is_behind(tmp_path: Path) -> None:
    """What the child had not indexed when everything stopped is indexed by the next start."""
    store = open_store(tmp_path / "data", LIMITS)
    loop = Loop(store)
    loop.start()
    expected = fill(store, 10, b"a")
    loop.run_until(loop.all_indexed)
    expected += fill(store, 40, b"b")
    child = loop.indexer._child
    assert child is not None
    loop.indexer._stopping = True
    child.kill()
    child.wait()
    abandon(store)
    store = open_store(tmp_path / "data", LIMITS)
    assert store.recovered.records == 40
    assert engine.content(store, b"s") == expected
    store.close()


def test_two_opens_of_one_index_are_told_apart(tmp_path: Path) -> None:
    """A reader that opened the index before the writer changed it sees the change."""
    store = open_store(tmp_path, LIMITS)
    store.share_index()
    assert not store.load(b"s").chain
    abandon(store)
    store = open_store(tmp_path, LIMITS)
    engine.create(store, b"s")
    engine.commit(store)
    store.index_step()
    store._index.close()
    reader = Index(tmp_path / "index", writable=False)
    assert reader.chain_at(b"s")
    reader.close()
    abandon(store)


def churn(store: engine.ManualStore, first: int) -> dict[bytes, bytes]:
    """Streams that are written and deleted, but for some; what those hold."""
    kept = {}
    for number in range(first, first + 60):
        path = b"short/%d" % number
        engine.create(store, path, body=b"%d" % number * 100)
        engine.commit(store)
        if number % 10:
            engine.delete(store, path)
        else:
            kept[path] = b"%d" % number * 100
    engine.commit(store)
    return kept


def removed_files_open(folder: Path) -> list[str]:
    """Files below a folder that are removed, and that this process has open."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(str(link.readlink()))
    return [name for name in found if name.startswith(str(folder)) and name.endswith("(deleted)")]


def test_it_compacts_what_it_is_granted(tmp_path: Path) -> None:
    """The child gives space back when it may, and not before; the store is told how much, lets go
    of removed files, and reads what was moved."""
    store = open_store(tmp_path, replace(LIMITS, tail_cache_bytes_max=0, open_segments_max=50))
    loop = Loop(store)
    loop.start()
    kept = churn(store, 0)
    loop.run_until(loop.all_indexed)
    for path, data in kept.items():
        assert engine.content(store, path) == data
    before_bytes, _ = store.space()
    assert not store.reclaimed.removed
    loop.indexer.grant(Grant(1 << 20, 1_000))
    loop.run_until(lambda: store.reclaimed.removed > 0)
    after_bytes, live_bytes = store.space()
    assert after_bytes < before_bytes
    assert live_bytes == sum(map(len, kept.values()))
    assert store.reclaimed.removed_bytes > store.reclaimed.written_bytes > 0
    for path, data in kept.items():
        assert engine.content(store, path) == data
    loop.run_until(lambda: not removed_files_open(tmp_path))
    loop.indexer.stop()
    store.close()


def test_it_may_be_killed_while_it_compacts(tmp_path: Path) -> None:
    """However often the child dies on its way, what is live is there, and in the end the space of
    what is not is given back."""
    store = open_store(tmp_path, LIMITS)
    loop = Loop(store)
    loop.start()
    kept: dict[bytes, bytes] = {}
    for generation in range(4):
        kept |= churn(store, 100 * generation)
        pid = loop.child_pid()
        for _ in range(generation):  # so each time it gets further
            loop.indexer.grant(Grant(3_000, 1_000))
            loop.run_until(loop.all_indexed)
        loop.indexer.grant(Grant(1 << 20, 1_000))
        os.kill(pid, signal.SIGKILL)
        loop.run_until(
            lambda dead=pid: loop.indexer._child is not None and loop.child_pid() != dead  # type: ignore[misc]
        )
        loop.run_until(loop.all_indexed)
    loop.indexer.grant(Grant(1 << 30, 60_000))
    loop.run_until(lambda: store.space()[0] < 3 * sum(map(len, kept.values())))
    for path, data in kept.items():
        assert engine.content(store, path) == data
    loop.indexer.stop()
    store.close()
    store = open_store(tmp_path, LIMITS)
    for path, data in kept.items():
        assert engine.content(store, path) == data
    store.close()


def test_more_is_granted_when_much_waits(tmp_path: Path) -> None:
    """Compaction that does not keep up takes more than its share, up to a whole processor, until
    not much waits any more."""
    store = open_store(tmp_path, LIMITS)
    churn(store, 0)
    engine.index_all(store)
    share = Grant(1_000, 50)
    limits = replace(LIMITS, compact_bytes_per_s=4_000)

    def granted(segment_bytes: int) -> Grant:
        sink = io.BytesIO()
        now = replace(limits, segment_bytes=segment_bytes)
        compacting = Compacting(store.directory, store._index, now, sink)
        compacting.grant(share)
        return compacting.granted

    assert granted(1 << 20) == share
    some = granted(LIMITS.segment_bytes // 2)
    assert 50 < some.processor_ms < 1_000
    assert granted(1) == Grant(4_000, 1_000)
    store.close()


def test_files_are_let_go_of_when_the_child_dies(tmp_path: Path) -> None:
    """A child may die after it removed segments and before it said so: what the store has open is
    closed then, since an open file keeps its space."""
    store = open_store(tmp_path, replace(LIMITS, tail_cache_bytes_max=0, open_segments_max=50))
    loop = Loop(store)
    loop.start()
    kept = churn(store, 0)
    loop.run_until(loop.all_indexed)
    for path, data in kept.items():
        assert engine.content(store, path) == data
    os.kill(loop.child_pid(), signal.SIGSTOP)
    for segment in store.directory.segments.glob("*1.log"):
        segment.unlink()  # as a compaction does
    assert removed_files_open(tmp_path)
    os.kill(loop.child_pid(), signal.SIGKILL)
    loop.run_until(lambda: not removed_files_open(tmp_path))
    loop.indexer.stop()
    abandon(store)
