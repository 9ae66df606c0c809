"""Forks on disk: what they cost, what they keep alive, and what no fork can be."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import engine
import pytest
from engine import BYTES, JSON, SMALL, TEXT, abandon, open_store
from family_checks import family_is_whole
from workload import Workload, check_store

from storage.backup import backup
from storage.directory import DataDirectory
from storage.dump import dump
from storage.errors import CorruptData, OpenError
from storage.limits import Limits
from storage.reading import ColdRead
from storage.record import Configuration, Fork, Record, RecordType, encode
from storage.reindex import reindex
from storage.state import Kind
from storage.store import Store
from storage.verify import LogReport, check_index_apart, check_log

ROOMY = Limits(zero_ahead_bytes=0, reserve_bytes=4_096)


def log_bytes(store: Store) -> int:
    """Where the log ends."""
    end = store._log.end
    return end.segment_id * store.limits.segment_bytes + end.position


def test_a_fork_copies_nothing(tmp_path: Path) -> None:
    """A fork of a large stream is one small record, and so is a fork of that."""
    store = open_store(tmp_path, ROOMY)
    engine.create(store, b"s", body=b"x" * (8 << 20))
    engine.commit(store)
    before = log_bytes(store)
    for path, source in ((b"f", b"s"), (b"g", b"f")):
        assert engine.fork(store, path, source).kind is Kind.CREATED
    engine.commit(store)
    assert log_bytes(store) - before < 400
    assert engine.content(store, b"g") == b"x" * (8 << 20)
    store.close()


def live_bytes(store: Store) -> int:
    """Payload that the index counts as needed."""
    return sum(
        int.from_bytes(value, "little", signed=True)
        for _, value in store._index.entries("segments")
    )


def test_what_is_live_of_a_deleted_source(tmp_path: Path) -> None:
    """What any fork reaches stays live, however many streams it goes through; all else is dead."""
    store = open_store(tmp_path, replace(SMALL, index_step_records=1))
    engine.create(store, b"s")
    for _ in range(10):
        engine.append(store, b"s", b"x" * 100)
        engine.commit(store)
    engine.fork(store, b"f", b"s", 700)
    engine.commit(store)
    for _ in range(5):
        engine.append(store, b"f", b"y" * 10)
        engine.commit(store)
    engine.fork(store, b"g", b"f", 720)
    engine.fork(store, b"h", b"f", 300)
    engine.commit(store)
    told = []
    for path in (None, b"s", b"f", b"g", b"h"):
        if path is not None:
            engine.delete(store, path)
            engine.commit(store)
        engine.index_all(store)
        family_is_whole(store._index)
        told.append(live_bytes(store))
    # all; s up to f's seam; f up to g's; then only what h has of s; nothing
    assert told == [1_050, 750, 720, 300, 0]
    store.close()


def test_the_same_live_bytes_from_the_log_alone(tmp_path: Path) -> None:
    """Reindexing counts what is live as following the log did, and forks read on."""
    store = open_store(tmp_path / "data", SMALL)
    engine.create(store, b"s", body=b"0123456789")
    engine.fork(store, b"f", b"s", 4, body=b"abc")
    engine.fork(store, b"g", b"f", 6)
    engine.delete(store, b"s")
    engine.delete(store, b"f")
    store.close()
    store = open_store(tmp_path / "data", SMALL)
    before = list(store._index.entries("forks")), live_bytes(store)
    assert before[1] == 10 + 3
    store.close()
    reindex(tmp_path / "data", lambda reached, end: None)
    backup(tmp_path / "data", tmp_path / "copy", lambda done, total: None)
    for path in (tmp_path / "data", tmp_path / "copy"):
        store = open_store(path, SMALL)
        assert (list(store._index.entries("forks")), live_bytes(store)) == before
        family_is_whole(store._index)
        assert engine.content(store, b"g") == b"0123ab"
        assert engine.is_soft_deleted(store, b"f")
        engine.delete(store, b"g")
        engine.commit(store)
        assert not engine.is_soft_deleted(store, b"s")
        store.close()


@pytest.mark.parametrize("content_type", [BYTES, TEXT, JSON])
def test_seams_in_large_runs(tmp_path: Path, content_type: str) -> None:
    """A seam within a block, at its edge or within a message of many blocks' run is the end of what
    is inherited, from memory and from disk, for any limit."""
    store = open_store(tmp_path, replace(ROOMY, tail_cache_bytes_max=1 << 20))
    if content_type == JSON:
        sizes = [10, 65_534, 65_535, 65_536, 200_000, 30, 40, 60_000, 10_000]
        messages = [b'"%b"' % (b"m" * (size - 3)) for size in sizes]
        body = b"[" + b",".join(messages) + b"]"
        stored = b"".join(message + b"," for message in messages)
        ends = [0]
        for size in sizes:
            ends.append(ends[-1] + size)
    else:
        stored = body = b"".join(b"%06d" % number for number in range(45_000))
        ends = [0, 1, 65_535, 65_536, 65_537, 131_072, 200_000, 269_999, 270_000]
    engine.create(store, b"s", content_type, body=body)
    engine.commit(store)
    own = b"[7,8]" if content_type == JSON else b"own"
    for number, end in enumerate(ends):
        engine.fork(store, b"%d" % number, b"s", end, body=own)
    engine.commit(store)
    for _ in range(2):
        for number, end in enumerate(ends):
            expected = stored[:end] + (b"7,8," if content_type == JSON else own)
            for limit_bytes in (1_000, 65_536, 100_000, 1 << 20):
                assert engine.content(store, b"%d" % number, limit_bytes) == expected
            stream = engine.seen(store, b"%d" % number)
            for start in (at for at in ends if at <= end):
                chunk = engine.read(store, stream, start, 70_000)
                assert chunk.data == expected[start : chunk.next]
                assert chunk.up_to_date == (chunk.next == len(expected))
        engine.forget(store)
    store.close()


def test_a_chunk_is_cut_before_a_part_that_would_pass_its_limit(tmp_path: Path) -> None:
    """What begins behind a seam is left to the next read when the limit has no room for it."""
    store = open_store(tmp_path, ROOMY)
    engine.create(store, b"s", JSON, body=b"[1,2]")
    engine.fork(store, b"f", b"s", body=b'["%b"]' % (b"m" * 1_000))
    engine.commit(store)
    stream = engine.seen(store, b"f")
    for _ in range(2):
        first = engine.read(store, stream, 0, 500)
        assert (first.data, first.up_to_date) == (b"1,2,", False)
        assert engine.read(store, stream, 0, 2_000).up_to_date
        assert len(engine.read(store, stream, 4, 500).data) == 1_003
        engine.forget(store)
        stream = engine.seen(store, b"f")
        assert isinstance(store.read(stream, 0, 500), ColdRead)
    store.close()


def test_one_look_up_brings_the_whole_chain(tmp_path: Path) -> None:
    """After a restart a fork and its sources are in memory together, and leave it together."""
    store = open_store(tmp_path, ROOMY)
    engine.create(store, b"0", body=b"0")
    for level in range(1, store.limits.fork_depth_max + 1):
        made = engine.fork(store, b"%d" % level, b"%d" % (level - 1), body=b"%d" % (level % 10))
        assert made.kind is Kind.CREATED
    last = b"%d" % store.limits.fork_depth_max
    assert engine.fork(store, b"more", last).kind is Kind.FORK_TOO_DEEP
    for level in range(store.limits.fork_depth_max):
        engine.delete(store, b"%d" % level)
    store.close()
    store = open_store(tmp_path, ROOMY)
    expected = b"".join(b"%d" % (level % 10) for level in range(store.limits.fork_depth_max + 1))
    assert engine.content(store, last) == expected
    assert len(store._residents) == store.limits.fork_depth_max + 1
    engine.forget(store)
    engine.delete(store, last)
    engine.commit(store)
    engine.index_all(store)
    assert list(store._index.streams()) == []
    store.close()


def test_a_source_cannot_be_evicted_under_its_fork(tmp_path: Path) -> None:
    """A source stays in memory while a fork of it does, and its later changes are not lost."""
    store = open_store(tmp_path, ROOMY)
    engine.create(store, b"s", body=b"abc")
    engine.fork(store, b"f", b"s")
    engine.commit(store)
    engine.forget(store)
    fork = engine.present(store, b"f")
    fork.live_readers += 1
    source = engine.present(store, b"s")
    assert fork.origin is not None
    assert fork.origin.source is source
    engine.append(store, b"s", b"d")
    engine.commit(store)
    engine.index_all(store)
    for _ in range(3):
        store._residents.evict(store.now_ms() + 100_000, store._backlog.indexed_sequence)
    assert engine.present(store, b"s") is source
    fork.live_readers -= 1
    engine.forget(store)
    assert engine.content(store, b"s") == b"abcd"
    store.close()


@pytest.mark.parametrize("fork_expires_ms", [None, 60_000])
def test_a_family_expires(tmp_path: Path, fork_expires_ms: int | None) -> None:
    """What nobody asks for is reaped all the same, sources before their forks or with them."""
    store = open_store(tmp_path, ROOMY)
    now_ms = store.now_ms()
    own_ms = None if fork_expires_ms is None else now_ms + fork_expires_ms
    engine.create(store, b"s", expires_ms=now_ms + 1_000, body=b"abc")
    engine.fork(store, b"f", b"s", 2, expires_ms=own_ms)
    engine.fork(store, b"g", b"f", 1, ttl_s=5)
    engine.commit(store)
    engine.forget(store)
    store.clock_ms += 2_000
    store.tick(store.now_ms())
    engine.commit(store)
    engine.index_all(store)
    kept = {meta.path: meta.kept for _, meta in store._index.streams()}
    assert kept == {
        b"s": 1 if own_ms is None else 2,
        b"f": 1 if own_ms is None else None,
        b"g": None,
    }
    assert engine.content(store, b"g") == b"a"
    engine.forget(store)
    store.clock_ms += 100_000
    for _ in range(3):
        store.tick(store.now_ms())
        engine.commit(store)
        engine.index_all(store)
    assert list(store._index.streams()) == []
    assert live_bytes(store) == 0
    store.close()


def bad_fork(store: Store, source_id: int, seam: int) -> None:
    """Commit the record of a fork that cannot be."""
    record = Record(
        RecordType.CREATE,
        store._next_stream_id,
        seam,
        configuration=Configuration(b"bad", b"text/plain", None, None),
        fork=Fork(source_id, source_id, seam, 0, 1),
    )
    store._open.records.append(encode(record))
    store._open.record_bytes += 200
    engine.commit(store)


@pytest.mark.parametrize(
    ("source_id", "seam", "what"),
    [
        (1, 4, "would begin at 4, and the source ends at 3"),
        (9, 0, "stream 9 was never created"),
        (3, 0, "is no fork of stream 3"),
        (2, 0, "is a fork of a stream that was deleted"),
    ],
    ids=["beyond the tail", "no source", "its own source", "source kept for others"],
)
def test_forks_that_cannot_be(tmp_path: Path, source_id: int, seam: int, what: str) -> None:
    """A fork of nothing, of itself or beyond its source's end is found by `verify`, and refused
    rather than followed."""
    path = tmp_path / "data"
    store = open_store(path, ROOMY)
    engine.create(store, b"s", body=b"abc")
    if source_id == 2:
        engine.create(store, b"t", body=b"abc")
        engine.fork(store, b"f", b"t")
        engine.delete(store, b"t")
    else:
        store._next_stream_id = 3
    engine.commit(store)
    engine.index_all(store)
    bad_fork(store, source_id, seam)
    with pytest.raises(CorruptData, match=what):
        store.index_step()
    abandon(store)
    directory = DataDirectory(path)
    assert list(check_log(directory, LogReport(), lambda done, total: None)) == []
    (finding,) = check_index_apart(directory)
    assert what in str(finding)
    assert finding.position
    with pytest.raises(OpenError, match=what):
        open_store(path, ROOMY)


def test_the_log_cut_within_the_ends_of_a_family(tmp_path: Path) -> None:
    """Wherever the log is cut, forks and what is kept for them are those of a whole batch."""
    work = Workload(open_store(tmp_path / "data", ROOMY), 1)
    store = work.store
    work.create(b"log")
    work.append(b"log", work.accepted[b"log"])
    for path, source in ((b"once", b"log"), (b"chat/1", b"once"), (b"chat/2", b"log")):
        assert work.commit() is None
        work.fork(path, source)
    starts = []
    for path in (b"log", b"once", b"chat/2", b"chat/1"):
        assert work.commit() is None
        starts.append(store._log.end.position)
        work.delete(path)
    assert work.accepted == {}, "the last of them takes all others along"
    work.create(b"log")
    assert work.commit() is None
    engine.index_all(store)
    abandon(store)
    (segment,) = engine.segment_files(tmp_path / "data")
    data = segment.read_bytes()
    shutil.rmtree(tmp_path / "data" / "index")
    seen = set()
    for cut in range(starts[0], len(data) + 1):
        copy = tmp_path / "cut"
        shutil.copytree(tmp_path / "data", copy)
        (copy / "segments" / segment.name).write_bytes(data[:cut])
        store = open_store(copy, ROOMY, clock_ms=work.store.clock_ms)
        sequence = store.recovered.end.sequence
        seen.add(sequence)
        check_store(store, work.states[sequence], work.values_of[sequence])
        family_is_whole(store._index)
        abandon(store)
        shutil.rmtree(copy)
    assert len(seen) == 5


def test_dump_shows_forks(tmp_path: Path) -> None:
    """A fork's record says what it is a fork of, from where, and what was asked for."""
    store = open_store(tmp_path, ROOMY)
    engine.create(store, b"s", body=b"abcdef")
    engine.fork(store, b"f", b"s", 2, 1, ttl_s=7)
    engine.delete(store, b"s")
    store.close()
    lines = [json.loads(json.dumps(line)) for line in dump(DataDirectory(tmp_path), payload=False)]
    records = [record for line in lines for record in line.get("records", [])]
    assert [record["type"] for record in records] == ["create", "create", "soft_delete"]
    assert records[1]["offset"] == 3
    assert records[1]["fork"] == {
        "source_id": 1,
        "root_id": 1,
        "offset": 2,
        "sub_offset": 1,
        "asked": 3,
        "earliest": 0,
    }
    assert list(check_index_apart(DataDirectory(tmp_path))) == []
