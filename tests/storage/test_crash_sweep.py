"""Power cuts at every sync, faults at every write and sync: what was acknowledged stays.

One run of a workload on a disk that keeps a durable shadow yields an image for each moment: what is
surely durable, what the process left in the page cache, and a mixture with torn sectors. Each is
opened as a store of its own and held to every guarantee.
"""

import errno
import os
import random
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import engine
import pytest
from crashdisk import CrashDisk, Image, come_up
from engine import SMALL, ManualStore, abandon, open_store
from workload import (
    Seen,
    Workload,
    check_store,
    index_agrees_with_log,
    no_reader_saw_what_is_gone,
    seen,
)

from storage.errors import Latched, OpenError, OutOfSpace
from storage.limits import Limits

TINY = replace(SMALL, segment_bytes=3_000, reserve_bytes=512)


@dataclass
class Moment:
    """What a crash may leave at one moment, and what had been acknowledged by then."""

    images: list[Image]
    seen: Seen
    acknowledged: int
    in_flight: bool
    clock_ms: int


class Camera:
    """Takes the images of a workload's disk at each of its events."""

    def __init__(self, disk: CrashDisk, work: Workload, seed: int) -> None:
        self.moments: list[Moment] = []
        self._disk = disk
        self._work = work
        self._chance = random.Random(seed)
        self._last: Image = {}
        self.syncs = 0

    def take(self) -> None:
        """A moment, unless it is the one before."""
        disk = self._disk
        self.syncs = disk.syncs
        images = [disk.durable(), disk.everything(), disk.torn(self._chance)]
        distinct = [image for at, image in enumerate(images) if image not in images[:at]]
        work = self._work
        if distinct == [self._last]:
            return
        self._last = distinct[-1]
        self.moments.append(
            Moment(
                distinct, seen(work.store), work.acknowledged, work.in_flight, work.store.clock_ms
            )
        )


@contextmanager
def reopened(path: Path, clock_ms: int, disk: CrashDisk | None = None) -> Iterator[ManualStore]:
    """A store on a directory, abandoned at the end."""
    store = open_store(path, TINY, disk, clock_ms)
    try:
        yield store
    finally:
        abandon(store)


def check_image(
    image: Image, moment: Moment, work: Workload, path: Path, scratch: Path | None = None
) -> int:
    """Open what a crash left; it holds all that was acknowledged, and whole batches only."""
    come_up(image, path)
    with reopened(path, moment.clock_ms) as store:
        sequence = store.recovered.end.sequence
        assert moment.acknowledged <= sequence <= moment.acknowledged + moment.in_flight
        check_store(store, work.states[sequence], work.values_of[sequence])
        no_reader_saw_what_is_gone(store, work.states[sequence], moment.seen)
        ids = [stream.stream_id for stream in work.states[sequence].values()]
        assert store._next_stream_id > max(ids, default=0)
        if scratch is not None:
            index_agrees_with_log(store, scratch)
    return sequence


def run(path: Path, seed: int, turns: int, limits: Limits) -> tuple[Workload, Camera]:
    """A workload on a crash disk, photographed at each sync."""
    disk = CrashDisk(path)
    work = Workload(open_store(path, limits, disk), seed)
    camera = Camera(disk, work, seed)
    disk.on_event = camera.take
    for _ in range(turns):
        assert work.turn() is None
    camera.take()
    disk.on_event = lambda: None
    abandon(work.store)
    return work, camera


@pytest.mark.parametrize(
    ("seed", "turns", "zero_ahead_bytes"), [(1, 200, 0), (2, 40, 0), (8, 40, 2_048)]
)
def test_power_cut_at_every_sync(
    tmp_path: Path, seed: int, turns: int, zero_ahead_bytes: int
) -> None:
    """Whenever the power goes, the store comes up with every acknowledged batch, at most the one
    in flight besides, and an index that says what the log says."""
    limits = replace(TINY, zero_ahead_bytes=zero_ahead_bytes)
    work, camera = run(tmp_path / "data", seed, turns, limits)
    assert work.acknowledged >= turns * 3 // 4
    assert camera.syncs >= (300 if turns == 200 else 60)
    assert len(list((tmp_path / "data" / "segments").iterdir())) >= 8
    assert len(camera.moments) > 2 * work.acknowledged
    seen = set()
    for number, moment in enumerate(camera.moments):
        for image in moment.images:
            path = tmp_path / "image"
            scratch = tmp_path / "scratch" if number % 4 == 0 else None
            sequence = check_image(image, moment, work, path, scratch)
            seen.add(sequence - moment.acknowledged)
            shutil.rmtree(path)
    assert seen == {0, 1}, "no crash was between a write and its acknowledgement"


def test_power_cut_in_recovery(tmp_path: Path) -> None:
    """A second power cut at any sync of a recovery loses nothing either, and what a finished
    recovery serves is what every later one serves."""
    work, camera = run(tmp_path / "data", 4, 25, TINY)
    again = 0
    for moment in camera.moments[1::4]:
        for image in moment.images:
            path = come_up(image, tmp_path / "image")
            disk = CrashDisk(path)
            images: list[Image] = []
            disk.on_event = lambda images=images, disk=disk: images.extend(  # type: ignore[misc]
                (disk.durable(), disk.everything(), disk.torn(random.Random(len(images))))
            )
            with reopened(path, moment.clock_ms, disk) as store:
                served = store.recovered.end.sequence
            disk.on_event = lambda: None
            finished = [disk.durable(), disk.everything()]
            shutil.rmtree(path)
            for second in images:
                again += 1
                check_image(second, moment, work, path)
                shutil.rmtree(path)
            for second in finished:
                assert check_image(second, moment, work, path) == served
                shutil.rmtree(path)
    assert again > 50


def test_recovered_stores_go_on(tmp_path: Path) -> None:
    """After a power cut the same workload goes on, and is cut again, over and over."""
    path = tmp_path / "0"
    disk = CrashDisk(path)
    chance = random.Random(5)
    work = Workload(open_store(path, TINY, disk), 5)
    for generation in range(1, 25):
        for _ in range(chance.randint(0, 3)):
            assert work.turn() is None
        work.change()
        work.states[work.store._durable_sequence + 1 :] = [work.accepted]
        work.values_of[work.store._durable_sequence + 1 :] = [dict(work.values)]
        sealed = work.store.seal()
        if sealed is not None and chance.random() < 0.7:
            images: list[Image] = []
            disk.on_event = lambda images=images, disk=disk: images.extend(  # type: ignore[misc]
                (disk.durable(), disk.torn(chance), disk.everything())
            )
            work.store.write(sealed)
            disk.on_event = lambda: None
            image = chance.choice(images)
        else:
            image = disk.durable()
        abandon(work.store)
        shutil.rmtree(path)
        path = come_up(image, tmp_path / str(generation))
        disk = CrashDisk(path)
        work.store = open_store(path, TINY, disk, work.store.clock_ms)
        sequence = work.store.recovered.end.sequence
        assert work.acknowledged <= sequence <= work.acknowledged + 1
        work.acknowledged = sequence
        work.accepted = {key: stream.copy() for key, stream in work.states[sequence].items()}
        work.values = dict(work.values_of[sequence])
        check_store(work.store, work.accepted, work.values)
    engine.index_all(work.store)
    index_agrees_with_log(work.store, tmp_path / "scratch")
    work.store.close()


# Faults


def count(path: Path, turns: int) -> tuple[int, int]:
    """How many writes and syncs a workload takes after the store was opened."""
    disk = CrashDisk(path)
    work = Workload(open_store(path, TINY, disk), 6)
    before = disk.writes, disk.syncs
    for _ in range(turns):
        assert work.turn() is None
    abandon(work.store)
    return disk.writes - before[0], disk.syncs - before[1]


TURNS = 12


def faulty(path: Path) -> tuple[CrashDisk, Workload]:
    """The same workload, its disk ready to be told what to do."""
    disk = CrashDisk(path)
    return disk, Workload(open_store(path, TINY, disk), 6)


def check_durable(disk: CrashDisk, work: Workload, scratch: Path, sequences: set[int]) -> None:
    """Whatever the store's end leaves, powered off or not, is one of these states."""
    clock_ms = work.store.clock_ms
    for image in (disk.durable(), disk.everything(), disk.torn(random.Random(0))):
        path = come_up(image, scratch / "image")
        with reopened(path, clock_ms) as store:
            sequence = store.recovered.end.sequence
            assert sequence in sequences
            check_store(store, work.states[sequence], work.values_of[sequence])
        shutil.rmtree(path)


@pytest.mark.parametrize("short", [True, False], ids=["short write first", "nothing written"])
def test_full_disk_at_every_write(tmp_path: Path, short: bool) -> None:
    """A full disk takes back exactly what was not durable, refuses with a reason, keeps serving,
    still deletes, and lets writing resume when there is room; nothing of it shows after a crash."""
    writes, _ = count(tmp_path / "count", TURNS)
    assert writes > 10
    for number in range(1, writes + 1):
        path = tmp_path / f"{number}"
        disk, work = faulty(path)
        disk.error, disk.short = errno.ENOSPC, short
        disk.fail_write_at = disk.writes + number
        failures = 0
        for _ in range(TURNS):
            error = work.turn()
            if error is None:
                continue
            failures += 1
            assert isinstance(error, OutOfSpace)
            store = work.store
            check_store(store, {**work.accepted}, work.values)
            with pytest.raises(OutOfSpace):
                engine.create(store, b"refused")
            disk.free = 0
            store.tick(store.now_ms())
            assert store.full
            if work.live():
                work.delete(work.live()[0])
                assert work.commit() is None
            check_durable(disk, work, tmp_path, {work.acknowledged})
            disk.free = 1 << 40
            store.tick(store.now_ms())
            assert not store.full
        assert failures <= 1
        check_durable(disk, work, tmp_path, {work.acknowledged})
        work.store.close()
        with reopened(path, work.store.clock_ms) as store:
            check_store(store, work.states[work.acknowledged], work.values_of[work.acknowledged])
        shutil.rmtree(path)


def latched_run(disk: CrashDisk, work: Workload) -> bool:
    """Turns until a fault latches the store; whether one did. Then nothing is taken any more."""
    for _ in range(TURNS):
        error = work.turn()
        if error is None:
            continue
        assert isinstance(error, Latched)
        store = work.store
        assert store.latched
        for path in work.live():
            with pytest.raises(Latched):
                engine.delete(store, path)
        with pytest.raises(Latched):
            engine.create(store, b"refused")
        writes, syncs = disk.writes, disk.syncs
        store.tick(store.now_ms() + 10_000)
        assert store.commit() is None
        assert (disk.writes, disk.syncs) == (writes, syncs), "something was written after a failure"
        check_store(store, work.accepted, work.values)
        return True
    return False


@pytest.mark.parametrize("what", ["write", "sync"])
def test_input_output_error_everywhere(tmp_path: Path, what: str) -> None:
    """A failed write or sync latches the store for good, reads go on, and a restart or a power cut
    then shows the durable state, or that and the whole batch in doubt: never half of it."""
    writes, syncs = count(tmp_path / "count", TURNS)
    latched = 0
    for number in range(1, (writes if what == "write" else syncs) + 1):
        path = tmp_path / f"{number}"
        disk, work = faulty(path)
        disk.error = errno.EIO
        if what == "write":
            disk.fail_write_at = disk.writes + number
        else:
            disk.fail_sync_at = disk.syncs + number
        if latched_run(disk, work):
            latched += 1
            sequences = {work.acknowledged, work.acknowledged + 1}
            check_durable(disk, work, tmp_path, sequences)
            restarted_twice(disk, work, tmp_path, sequences)
            work.store.close()
            check_durable(disk, work, tmp_path, sequences)
        else:
            abandon(work.store)
        shutil.rmtree(path)
    assert latched >= min(writes, syncs) - 1


def test_a_sync_that_finds_the_disk_full(tmp_path: Path) -> None:
    """Delayed allocation can report a full disk at a sync. Where what is on disk is not known then
    the store latches; no batch is acknowledged in a segment that a half-made successor voids."""
    _, syncs = count(tmp_path / "count", TURNS)
    for number in range(1, syncs + 1):
        path = tmp_path / f"{number}"
        disk, work = faulty(path)
        disk.error = errno.ENOSPC
        disk.fail_sync_at = disk.syncs + number
        for _ in range(TURNS):
            error = work.turn()
            sequences = {work.acknowledged}
            if isinstance(error, Latched):
                sequences.add(work.acknowledged + 1)
            elif error is not None:
                work.store.tick(work.store.now_ms())
                work.create(b"small")
                assert work.commit() is None
                work.delete(b"small")
                sequences = {work.acknowledged}
            check_durable(disk, work, tmp_path, sequences)
            if work.store.latched:
                break
        abandon(work.store)
        shutil.rmtree(path)


def restarted_twice(disk: CrashDisk, work: Workload, scratch: Path, sequences: set[int]) -> None:
    """After a failed sync the page cache still reads well. A restart may serve what it shows only
    if a power cut right after it cannot take that back."""
    abandoned = work.store
    abandon(abandoned)
    with reopened(disk.root, abandoned.clock_ms, disk) as store:
        served = store.recovered.end.sequence
        assert served in sequences
        check_store(store, work.states[served], work.values_of[served])
        check_durable(disk, work, scratch, {served})


@pytest.mark.parametrize("size", [1, 7, 100])
def test_short_writes(tmp_path: Path, size: int) -> None:
    """A system that writes a few bytes at a time writes the same bytes."""

    class Slow(CrashDisk):
        def write_some(self, fd: int, buffers: Sequence[bytes | memoryview], position: int) -> int:
            piece = b"".join(buffers[:3])[:size]
            return super().write_some(fd, [piece], position)

    path = tmp_path / "data"
    disk = Slow(path)
    work = Workload(open_store(path, TINY, disk), 7)
    for _ in range(TURNS):
        assert work.turn() is None
    check_durable(disk, work, tmp_path, {work.acknowledged})
    abandon(work.store)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_zeroing_ahead_fails(tmp_path: Path, error: int) -> None:
    """Without room for zeroes ahead batches are written as before; any other error of that thread
    is one of the log, and latches the store."""
    failed = threading.Event()

    class NoZeroes(CrashDisk):
        def write(self, fd: int, buffers: Sequence[bytes], position: int) -> None:
            if len(buffers) == 1 and not any(buffers[0]):
                failed.set()
                raise OSError(error, os.strerror(error))
            super().write(fd, buffers, position)

    path = tmp_path / "data"
    disk = NoZeroes(path)
    work = Workload(open_store(path, replace(TINY, zero_ahead_bytes=1_500), disk), 8)
    result = work.turn()
    assert failed.wait(20)
    for _ in range(TURNS):
        result = result or work.turn()
    if error == errno.EIO:
        assert isinstance(result, Latched)
        sequences = {work.acknowledged, work.acknowledged + 1}
    else:
        assert result is None
        sequences = {work.acknowledged}
    check_durable(disk, work, tmp_path, sequences)
    work.store.close()


def test_a_full_disk_in_recovery_is_no_loss(tmp_path: Path) -> None:
    """When there is no room to move the last batch, opening is refused, and works later."""
    path = tmp_path / "data"
    disk, work = faulty(path)
    for _ in range(5):
        assert work.turn() is None
    abandon(work.store)
    image = disk.everything()
    for number in range(1, 4):
        copy = come_up(image, tmp_path / f"{number}")
        failing = CrashDisk(copy)
        failing.error, failing.fail_write_at = errno.ENOSPC, number
        try:
            store = open_store(copy, TINY, failing, work.store.clock_ms)
        except OpenError:
            pass
        else:
            abandon(store)
        with reopened(copy, work.store.clock_ms) as store:
            assert store.recovered.end.sequence == work.acknowledged
            check_store(store, work.states[work.acknowledged], work.values_of[work.acknowledged])
