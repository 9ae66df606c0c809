"""Compaction gives space back, loses nothing, and may be ended anywhere."""

import contextlib
import errno
import os
import random
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import engine
import pytest
from crashdisk import CrashDisk, Image, come_up
from engine import SMALL, ManualStore, abandon, open_store
from workload import Workload, check_store, index_agrees_with_log

from storage.chain import open_chain
from storage.compaction import Compactor
from storage.directory import DataDirectory
from storage.errors import CorruptData, OpenError, OutOfSpace
from storage.record import Producer, RecordType
from storage.segment import COMPACTED_IDS
from storage.sources import IdSet
from storage.store import Store
from storage.verify import LogReport, check_log

LIMITS = replace(SMALL, segment_bytes=4_096, reserve_bytes=512)
BODY = b"x" * 500


def compact(store: Store) -> Compactor:
    """Compact all that is worth it."""
    compactor = store.compactor()
    changes = -1
    while compactor.done.changes != changes:
        changes = compactor.done.changes
        for _ in compactor.run():
            pass
    store.segments_removed()
    return compactor


def files(store: Store) -> list[str]:
    """The names of the log's files."""
    return sorted(path.name for path in store.directory.segments.iterdir())


def short_lived(store: ManualStore, first: int, count: int, keep: int = 0) -> dict[bytes, bytes]:
    """Streams that come and go, every `keep`-th of which stays; what those hold."""
    kept = {}
    for number in range(first, first + count):
        path = b"s/%d" % number
        engine.create(store, path, body=b"%d:" % number + BODY)
        engine.commit(store)
        if keep and number % keep == 0:
            kept[path] = b"%d:" % number + BODY
        else:
            engine.delete(store, path)
    engine.commit(store)
    engine.index_all(store)
    return kept


def holds(store: ManualStore, kept: dict[bytes, bytes]) -> None:
    """These streams are there, whole."""
    for path, data in kept.items():
        assert engine.content(store, path) == data


def records(store: Store) -> list[RecordType]:
    """The types of all records in compacted segments."""
    chain = open_chain(store.directory.segments)
    return [
        record.type
        for file in chain.compacted
        for batch in file.batches()
        for record in batch.records
    ]


def tombstones(store: Store) -> set[int]:
    """The streams that compacted segments say are deleted."""
    return {
        record.stream_id
        for file in open_chain(store.directory.segments).compacted
        for batch in file.batches()
        for record in batch.records
        if record.type is RecordType.DELETE
    }


def test_dead_segments_are_given_back(tmp_path: Path) -> None:
    """What is left of a hundred streams that were deleted is the newest segment, and what says
    that the others are gone."""
    store = open_store(tmp_path / "data", LIMITS)
    short_lived(store, 0, 100)
    before_bytes, _ = store.space()
    done = compact(store).done
    assert done.removed >= 10
    assert len(files(store)) == 3, "the newest, and two that stand for sixteen others each"
    after_bytes, live_bytes = store.space()
    assert after_bytes < 2 * LIMITS.segment_bytes < before_bytes // 5
    assert live_bytes == 0
    told = records(store)
    assert set(told) <= {RecordType.DELETE}
    assert len(told) < 10, "tombstones went with what they were for, but for those at the edge"
    index_agrees_with_log(store, tmp_path / "scratch")
    store.close()


def test_what_is_live_is_kept(tmp_path: Path) -> None:
    """Streams that stay are read as before: right after the compaction, after a restart, and with
    an index that was built from what is left."""
    store = open_store(tmp_path / "data", LIMITS)
    kept = short_lived(store, 0, 100, keep=9)
    compact(store)
    assert any(name.startswith("compacted-") for name in files(store))
    holds(store, kept)
    engine.forget(store)
    holds(store, kept)
    store.close()
    shutil.rmtree(tmp_path / "data" / "index")
    store = open_store(tmp_path / "data", LIMITS)
    holds(store, kept)
    assert engine.find(store, b"s/1") is None
    index_agrees_with_log(store, tmp_path / "scratch")
    store.close()


def test_space_stays_bounded(tmp_path: Path) -> None:
    """However much is written and deleted, the log stays within a few segments of what is live,
    and so does the number of its files."""
    store = open_store(tmp_path / "data", LIMITS)
    kept: dict[bytes, bytes] = {}
    for generation in range(25):
        kept |= short_lived(store, 100 * generation, 60, keep=50)
        compact(store)
        total_bytes, live_bytes = store.space()
        assert live_bytes >= sum(map(len, kept.values()))
        assert total_bytes < 3 * live_bytes + 6 * LIMITS.segment_bytes
        assert len(files(store)) < 30
    holds(store, kept)
    index_agrees_with_log(store, tmp_path / "scratch")
    store.close()


def test_state_survives(tmp_path: Path) -> None:
    """Producers, Stream-Seq, the closing tuple, lifetimes and forks are as they were after all the
    segments that said so are gone, and the index too."""
    path = tmp_path / "data"
    store = open_store(path, LIMITS)
    engine.create(store, b"p", ttl_s=5_000)
    engine.append(store, b"p", b"1", producer=Producer(b"a", 3, 0), stream_seq=b"07")
    engine.append(store, b"p", b"2", producer=Producer(b"b", 0, 0))
    engine.append(store, b"p", b"", producer=Producer(b"b", 0, 1), close=True)
    engine.create(store, b"source", body=b"0123456789")
    engine.commit(store)
    engine.fork(store, b"fork", b"source", body=b"abc")
    engine.commit(store)
    engine.delete(store, b"source")
    store.put_value(b"key", b"value", lambda: None)
    engine.commit(store)
    short_lived(store, 0, 30)
    compact(store)
    assert "0000000000000001.log" not in files(store)
    store.close()
    for lost in (False, True):
        if lost:
            shutil.rmtree(path / "index")
        store = open_store(path, LIMITS)
        stream = engine.present(store, b"p")
        assert engine.content(store, b"p") == b"12"
        assert (stream.closed, stream.closer) == (True, Producer(b"b", 0, 1))
        assert stream.stream_seq == b"07"
        assert engine.producer(store, stream, b"a") == (3, 0)
        assert engine.producer(store, stream, b"b") == (0, 1)
        assert stream.config.ttl_s == 5_000
        assert stream.deadline_ms is not None
        assert engine.content(store, b"fork") == b"0123456789abc"
        assert engine.is_soft_deleted(store, b"source")
        assert store.value(b"key") == b"value"
        index_agrees_with_log(store, tmp_path / "scratch")
        store.close()


def test_deleted_stays_deleted(tmp_path: Path) -> None:
    """A tombstone stays as long as the stream's creation is in a segment that stays."""
    path = tmp_path / "data"
    store = open_store(path, LIMITS)
    gone = engine.create(store, b"gone", body=b"g").stream
    assert gone is not None
    engine.create(store, b"stays", body=b"s" * 3_000)  # keeps the first segment dense
    engine.commit(store)
    short_lived(store, 0, 20)
    engine.delete(store, b"gone")
    engine.commit(store)
    short_lived(store, 20, 20)
    compact(store)
    assert "0000000000000001.log" in files(store)
    assert gone.id in tombstones(store)
    store.close()
    shutil.rmtree(path / "index")
    store = open_store(path, LIMITS)
    assert engine.find(store, b"gone") is None
    engine.delete(store, b"stays")
    engine.commit(store)
    short_lived(store, 40, 20)
    compact(store)
    for _ in range(8):
        short_lived(store, 60, 20)
        compact(store)
    assert gone.id not in tombstones(store), "and goes when that has gone"
    store.close()


def test_removed_value_stays_removed(tmp_path: Path) -> None:
    """That a value was removed is told as long as a segment that stays says what it was."""
    path = tmp_path / "data"
    store = open_store(path, LIMITS)
    store.put_value(b"cursor", b"old", lambda: None)
    engine.create(store, b"stays", body=b"s" * 3_000)  # keeps the first segment dense
    engine.commit(store)
    short_lived(store, 0, 20)
    store.put_value(b"cursor", b"", lambda: None)
    engine.commit(store)
    short_lived(store, 20, 20)
    compact(store)
    assert "0000000000000001.log" in files(store)
    assert RecordType.VALUE in records(store)
    store.close()
    shutil.rmtree(path / "index")
    store = open_store(path, LIMITS)
    assert store.value(b"cursor") is None
    engine.delete(store, b"stays")
    engine.commit(store)
    for _ in range(8):
        short_lived(store, 60, 20)
        compact(store)
    assert RecordType.VALUE not in records(store), "and no longer"
    store.close()


def test_records_of_one_stream_come_together(tmp_path: Path) -> None:
    """A stream that was scattered over many batches is one run afterwards, in offset order."""
    store = open_store(tmp_path / "data", LIMITS)
    engine.create(store, b"talk", engine.JSON)
    for number in range(40):
        engine.append(store, b"talk", b'[{"n":%d},{"m":%d}]' % (number, number))
        engine.create(store, b"noise/%d" % number, body=BODY)
        engine.commit(store)
        engine.delete(store, b"noise/%d" % number)
    engine.commit(store)
    engine.index_all(store)
    expected = engine.content(store, b"talk")
    stream_id = engine.present(store, b"talk").id
    compact(store)
    moved = [
        place
        for place in store._index.places(stream_id, 0, 1_000)
        if place.segment_id >= COMPACTED_IDS
    ]
    assert len(moved) == 1
    assert len(moved[0].blocks) == 8, "small blocks were joined"
    engine.forget(store)
    assert engine.content(store, b"talk") == expected
    stream = engine.seen(store, b"talk")
    for offset in (0, len(b'{"n":0},'), len(b'{"n":0},{"m":0},')):
        assert engine.read(store, stream, offset).data == expected[offset:]
    store.close()


def test_reads_planned_before_find_what_was_moved(tmp_path: Path) -> None:
    """A read that was planned, and one that was remembered, before the compaction are answered
    after it; and readers keep no removed file open."""
    limits = replace(LIMITS, tail_cache_bytes_max=0, open_segments_max=64)
    store = open_store(tmp_path / "data", limits)
    kept = short_lived(store, 0, 60, keep=7)
    planned = []
    for path, data in kept.items():
        stream = engine.seen(store, path)
        assert engine.read(store, stream, 0, 100).data == data  # one block, so it is remembered
        reader = store._reader
        planned.append((reader, stream, data))
    snapshots = [
        (store._reader, stream, list(stream.runs.covering(0, 1 << 20)), data)
        for _, stream, data in planned
    ]
    compactor = store.compactor()
    for _ in compactor.run():
        pass
    assert compactor.done.removed
    for _, stream, _, data in snapshots:
        assert engine.read(store, stream, 0, 100).data == data
        assert engine.read(store, stream, 0).data == data
    store.segments_removed()
    give_up = time.monotonic() + 10
    while any(_removed(_target(link), store) for link in Path("/proc/self/fd").iterdir()):
        assert time.monotonic() < give_up, "a removed file is open"
        time.sleep(0.01)
    store.close()


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:
        return ""


def _removed(target: str, store: Store) -> bool:
    return target.startswith(str(store.directory.segments)) and target.endswith("(deleted)")


def back_up(store: Store, destination: Path) -> None:
    """A backup by a process of its own, which the index has to be open in."""
    command = [sys.executable, "-m", "durable_streamsd", "backup", "--to", str(destination)]
    subprocess.run([*command, "--data-dir", str(store.directory.path)], check=True)


def test_backup_holds_removal_off(tmp_path: Path) -> None:
    """While a backup copies, nothing is removed; it is as soon as the backup has ended."""
    store = open_store(tmp_path / "data", LIMITS)
    kept = short_lived(store, 0, 60, keep=9)
    held = store.directory.keep_segments()  # as a backup does, in its own process
    assert compact(store).done.written == 1
    assert "0000000000000001.log" in files(store)
    back_up(store, tmp_path / "copy")  # sources and output are there
    os.close(held)
    compact(store)
    assert "0000000000000001.log" not in files(store)
    holds(store, kept)
    back_up(store, tmp_path / "second")
    store.close()
    for name in ("copy", "second"):
        copy = open_store(tmp_path / name, LIMITS)
        holds(copy, kept)
        index_agrees_with_log(copy, tmp_path / "scratch")
        copy.close()


def test_damaged_source_stays(tmp_path: Path) -> None:
    """Payload that cannot be read is not moved, nothing is removed, and the rest is compacted."""
    store = open_store(tmp_path / "data", LIMITS)
    kept = short_lived(store, 0, 40, keep=5)
    victim = store._index.places(engine.present(store, b"s/5").id, 0, 1)[0]
    segment = store.directory.segments / f"{victim.segment_id:016d}.log"
    data = bytearray(segment.read_bytes())
    data[victim.position + 3] ^= 1
    segment.write_bytes(data)
    compactor = store.compactor()
    with pytest.raises(CorruptData, match=segment.name):
        for _ in compactor.run():
            pass
    assert not any(name.startswith("compacted") for name in files(store))
    for _ in range(5):
        for _ in compactor.run():
            pass
    assert compactor.done.removed
    assert segment.name in files(store)
    store.segments_removed()
    del kept[b"s/5"]
    holds(store, kept)
    with pytest.raises(CorruptData):
        engine.forget(store)
        engine.content(store, b"s/5")
    store.close()


def test_verify_reads_what_a_cut_off_compaction_left(tmp_path: Path) -> None:
    """Damage in a segment is found while an output that says nothing yet would stand for it."""
    path = tmp_path / "data"
    store = open_store(path, LIMITS)
    short_lived(store, 0, 40, keep=5)
    place = store._index.places(engine.present(store, b"s/5").id, 0, 1)[0]
    run = store.compactor().run()
    while not any(name.startswith("compacted") and name.endswith("log") for name in files(store)):
        next(run)
    run.close()
    store.close()
    directory = DataDirectory(path)
    segment = directory.segments / f"{place.segment_id:016d}.log"
    assert not list(check_log(directory, LogReport(), lambda *_: None))
    data = bytearray(segment.read_bytes())
    data[place.position + 3] ^= 1
    segment.write_bytes(data)
    found = list(check_log(directory, LogReport(), lambda *_: None))
    assert [(finding.file, finding.position) for finding in found] == [
        (segment.name, place.position)
    ]


def test_count_that_does_not_come_out_removes_nothing(tmp_path: Path) -> None:
    """If the index still counts live bytes in a source after it was told, all stays as it was."""
    store = open_store(tmp_path / "data", LIMITS)
    kept = short_lived(store, 0, 40, keep=9)
    with store._index.write() as transaction:
        for segment_id in (1, 2, 3):
            transaction.add_live_bytes(segment_id, 1)
    before = files(store)
    compactor = store.compactor()
    with pytest.raises(CorruptData, match="still needed"):
        for _ in compactor.run():
            pass
    assert files(store) == before
    holds(store, kept)
    engine.forget(store)
    holds(store, kept)
    store.close()


def test_missing_compacted_segment_is_refused(tmp_path: Path) -> None:
    """A directory that lacks a compacted segment does not open, with its index or without."""
    path = tmp_path / "data"
    store = open_store(path, LIMITS)
    short_lived(store, 0, 40, keep=9)
    compact(store)
    store.close()
    (path / "segments" / "compacted-0000000000000001.log").unlink()
    with pytest.raises(OpenError, match=r"compacted-0000000000000001\.log: the segment is missing"):
        open_store(path, LIMITS)
    shutil.rmtree(path / "index")
    with pytest.raises(OpenError, match="missing"):
        open_store(path, LIMITS)


def test_compacted_segment_that_was_cut_is_refused(tmp_path: Path) -> None:
    """A compacted segment that lacks its end, at every byte of it, does not open."""
    path = tmp_path / "data"
    store = open_store(path, LIMITS)
    short_lived(store, 0, 30, keep=9)
    compact(store)
    store.close()
    file = path / "segments" / "compacted-0000000000000001.log"
    data = file.read_bytes()
    for length in range(len(data)):
        file.write_bytes(data[:length])
        with pytest.raises(OpenError, match=file.name):
            open_store(path, LIMITS)
    file.write_bytes(data)
    open_store(path, LIMITS).close()


def test_full_disk_while_compacting(tmp_path: Path) -> None:
    """Whatever write finds the disk full, nothing of the compaction is left but what it was, and it
    is done when there is room."""
    for number in range(1, 12):
        path = tmp_path / str(number)
        disk = CrashDisk(path)
        store = open_store(path, LIMITS, disk)
        kept = short_lived(store, 0, 40, keep=9)
        before = files(store)
        disk.error = errno.ENOSPC
        disk.fail_write_at = disk.writes + number
        try:
            compact(store)
        except OutOfSpace:
            assert files(store) == before
        disk.fail_write_at = 0
        holds(store, kept)
        compact(store)
        assert "0000000000000001.log" not in files(store)
        holds(store, kept)
        abandon(store)


def test_full_disk_gets_room(tmp_path: Path) -> None:
    """On a full disk a part of the reserve is lent to move the little that is live of one segment
    after the other, which gives room; the rest of the reserve stays for deletions meanwhile."""
    limits = replace(LIMITS, reserve_bytes=16_384)
    disk = CrashDisk(tmp_path / "data")
    store = open_store(tmp_path / "data", limits, disk)
    kept = short_lived(store, 0, 60, keep=5)  # one in each segment, so that none is dead wholly
    before_bytes, _ = store.space()
    disk.free = 0
    compactor = store.compactor()
    changes = -1
    while compactor.done.changes != changes:
        changes = compactor.done.changes
        for _ in compactor.run():
            assert store.directory.reserve.stat().st_size >= limits.reserve_bytes // 4
        assert compactor.done.written_bytes <= compactor.done.removed_bytes
        assert store.directory.reserve.stat().st_size == limits.reserve_bytes, "it is back"
    store.segments_removed()
    after_bytes, _ = store.space()
    assert after_bytes < before_bytes // 2
    holds(store, kept)
    engine.forget(store)
    holds(store, kept)
    index_agrees_with_log(store, tmp_path / "scratch")
    store.close()


def test_newest_segment_of_a_full_disk_is_compacted(tmp_path: Path) -> None:
    """What was deleted in the newest segment is given back, too, once the disk was full: the next
    batch begins another."""
    disk = CrashDisk(tmp_path / "data")
    store = open_store(tmp_path / "data", replace(LIMITS, segment_bytes=1 << 20), disk)
    kept = short_lived(store, 0, 40, keep=9)
    disk.error = errno.ENOSPC
    disk.fail_write_at = disk.writes + 1
    engine.create(store, b"refused", body=BODY)
    assert isinstance(store.commit(), OutOfSpace)
    disk.fail_write_at = 0
    engine.delete(store, b"s/0")
    del kept[b"s/0"]
    engine.commit(store)
    engine.index_all(store)
    assert compact(store).done.removed == 1
    assert "0000000000000001.log" not in files(store)
    holds(store, kept)
    index_agrees_with_log(store, tmp_path / "scratch")
    store.close()


def test_what_has_no_room_keeps_no_other_from_it(tmp_path: Path) -> None:
    """A segment whose live streams' states do not fit on a full disk is left alone for a while, and
    the next is compacted."""
    limits = replace(LIMITS, reserve_bytes=2_048)
    disk = CrashDisk(tmp_path / "data")
    store = open_store(tmp_path / "data", limits, disk)
    for number in range(12):  # without payload, and so first in line
        engine.create(store, b"idle/%d" % number)
    engine.create(store, b"dead", body=b"d" * 2_000)
    engine.commit(store)
    engine.delete(store, b"dead")
    short_lived(store, 0, 40)
    disk.free = 0
    compactor = store.compactor()
    with pytest.raises(OutOfSpace):
        for _ in compactor.run():
            pass
    for _ in range(4):
        for _ in compactor.run():
            pass
    assert compactor.done.removed >= 4
    assert "0000000000000001.log" in files(store)
    store.close()


def test_one_small_file_is_not_joined_to_itself(tmp_path: Path) -> None:
    """Where there is room for one small compacted segment alone, it is not written again and again
    because there are many of them."""
    limits = replace(LIMITS, reserve_bytes=16_384)
    disk = CrashDisk(tmp_path / "data")
    store = open_store(tmp_path / "data", limits, disk)
    disk.free = 0
    for number in range(12):
        short_lived(store, 10 * number, 10, keep=5)
        compactor = store.compactor()
        for _ in range(50):
            before = compactor.done.changes
            for _ in compactor.run():
                pass
            if compactor.done.changes == before:
                break
        else:
            raise AssertionError("it went on and on")
    store.close()


def crash_everywhere(path: Path, seed: int, lost: bool) -> tuple[int, int]:
    """Cut a compaction's power before and after everything that it makes durable, and kill it
    between any two changes of the directory; how many crashes, and compactions finished, that was.

    `lost`: the index is lost as well.
    """
    disk = CrashDisk(path / "data")
    work = Workload(open_store(path / "data", LIMITS, disk), seed)
    crashes = finished = 0
    for _ in range(60):
        assert work.turn() is None
    assert work.commit() is None
    engine.index_all(work.store)
    chance = random.Random(seed)
    for _ in range(2):
        images: list[Image] = []
        disk.on_event = lambda images=images: images.extend(  # type: ignore[misc]
            (disk.durable(), disk.everything(), disk.torn(chance))
        )
        disk.on_name = disk.on_event
        work.compact()
        disk.on_event()
        disk.on_event = disk.on_name = lambda: None
        state, values = work.states[work.acknowledged], work.values_of[work.acknowledged]
        check_store(work.store, state, values)
        for image in [image for at, image in enumerate(images) if image not in images[:at]]:
            crashes += 1
            if lost:
                del image["index/data.mdb"]
            come_up(image, path / "image")
            store = open_store(path / "image", LIMITS, clock_ms=work.store.clock_ms)
            check_store(store, state, values)
            index_agrees_with_log(store, path / "scratch")
            compact(store)
            check_store(store, state, values)
            index_agrees_with_log(store, path / "scratch")
            abandon(store)
            shutil.rmtree(path / "image")
        for _ in range(6):
            assert work.turn() is None
        assert work.commit() is None
        engine.index_all(work.store)
        finished += 1
    abandon(work.store)
    return crashes, finished


@pytest.mark.parametrize("lost", [False, True], ids=["index kept", "index lost"])
def test_crash_at_every_step(tmp_path: Path, lost: bool) -> None:
    """Whenever a compaction ends, everything live is served, the index says what the log says, and
    the next compaction finishes what this one began."""
    crashes, finished = crash_everywhere(tmp_path, 1, lost)
    assert finished == 2
    assert crashes > 15


def test_faults_at_every_write_and_sync(tmp_path: Path) -> None:
    """A write or a sync that fails in a compaction costs nothing but that compaction."""
    for kind in ("write", "sync"):
        for number in range(1, 14, 2 if kind == "write" else 1):
            path = tmp_path / f"{kind}-{number}"
            disk = CrashDisk(path)
            store = open_store(path, LIMITS, disk)
            kept = short_lived(store, 0, 40, keep=9)
            disk.error = errno.EIO
            setattr(disk, f"fail_{kind}_at", getattr(disk, f"{kind}s") + number)
            with contextlib.suppress(OSError):
                compact(store)
            store.segments_removed()
            holds(store, kept)
            abandon(store)
            for image in (disk.durable(), disk.everything(), disk.torn(random.Random(number))):
                come_up(image, tmp_path / "image")
                again = open_store(tmp_path / "image", LIMITS)
                holds(again, kept)
                compact(again)
                holds(again, kept)
                index_agrees_with_log(again, tmp_path / "scratch")
                abandon(again)
                shutil.rmtree(tmp_path / "image")


def test_ids_are_kept_in_order() -> None:
    """A set of ids gives each once, in order."""
    chance = random.Random(1)
    ids = [chance.randrange(1 << 40) for _ in range(500)] + list(range(3_000))
    found = IdSet()
    for stream_id in ids:
        found.add(stream_id)
    assert [stream_id for group in found.groups() for stream_id in group] == sorted(set(ids))
