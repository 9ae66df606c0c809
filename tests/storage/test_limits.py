"""Bounds: what is accepted and kept in memory, how much a read gives, how long streams live."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import engine
import pytest
from engine import BYTES, JSON, READ_BYTES, SMALL, START_MS, TEXT, abandon, bounded, open_store
from hypothesis import given
from hypothesis import strategies as st

from storage.backlog import INDEX_INTERVAL_MS
from storage.batch import BLOCK_BYTES_MAX
from storage.errors import OffsetError, Unsettled
from storage.framing import Framing, text_boundary
from storage.index_entries import RunPlace
from storage.limits import Limits
from storage.reading import ColdRead, Snapshot, select
from storage.record import Producer
from storage.residents import RUN_OVERHEAD_BYTES
from storage.state import Kind
from storage.stream_config import StreamConfig

LARGE = Limits(zero_ahead_bytes=0, reserve_bytes=4_096)

# Accepting


def test_accepting_stops_at_a_full_batch(tmp_path: Path) -> None:
    """A batch with its bytes or its records full takes no more, until it is sealed."""
    store = open_store(tmp_path, replace(SMALL, batch_bytes_max=100, batch_records_max=5))
    engine.create(store, b"s", body=b"x" * 99)
    assert store.accepting
    engine.append(store, b"s", b"x")
    assert not store.accepting
    sealed = store.seal()
    assert sealed is not None
    assert store.accepting
    store.write(sealed)
    store.finish(sealed, None)
    for _ in range(5):
        assert store.accepting
        engine.append(store, b"s", b"y")
    assert not store.accepting
    engine.commit(store)
    assert store.accepting
    store.close()


@pytest.mark.parametrize("what", ["records", "bytes"])
def test_accepting_waits_for_the_index(tmp_path: Path, what: str) -> None:
    """When too much of the log is not indexed yet nothing more is accepted, and index steps make
    room again."""
    limits = replace(SMALL, unindexed_records_max=10)
    if what == "bytes":
        limits = replace(SMALL, unindexed_bytes_max=1_000)
    store = open_store(tmp_path, limits)
    engine.create(store, b"s")
    commits = 0
    while store.accepting:
        engine.append(store, b"s", b"x" * 10)
        engine.commit(store)
        commits += 1
    assert 5 <= commits <= 10
    assert store.index_due() is not None
    while not store.accepting:
        store.index_step()
    engine.index_all(store)
    assert (store._backlog.records, store._backlog.size_bytes) == (0, 0)
    assert store.index_due() is None
    store.close()


def test_the_index_is_due_by_time_and_by_amount(tmp_path: Path) -> None:
    """A little that is not indexed waits a while; a step's worth is due at once; a step that is
    under way is not asked for twice."""
    store = open_store(tmp_path, SMALL)
    engine.create(store, b"s")
    engine.commit(store)
    waited_ms = store.now_ms() - store._backlog._reached_ms
    assert store.index_due() is None or waited_ms >= INDEX_INTERVAL_MS
    store._backlog._reached_ms = store.now_ms()
    assert store.index_due() is None
    store.clock_ms += INDEX_INTERVAL_MS
    assert store.index_due() == store._log.end
    store._backlog._reached_ms = store.now_ms()
    for _ in range(SMALL.index_step_records):
        engine.append(store, b"s", b"x")
        engine.commit(store)
    assert store.index_due() == store._log.end
    store.indexing = True
    assert store.index_due() is None
    store.close()


def test_an_answer_waits_for_the_batch_it_rests_on(tmp_path: Path) -> None:
    """A retry while the original is being written waits for that batch, not for a later one that
    may never come; after it, for none; and what came later rests on the later one."""
    store = open_store(tmp_path, SMALL)
    engine.create(store, b"s")
    engine.create(store, b"other")
    engine.commit(store)
    writer = Producer(b"p", 0, 0)
    original = engine.append(store, b"s", b"x", producer=writer)
    sealed = store.seal()
    assert sealed is not None
    assert original.batch is sealed.batch
    retry = engine.append(store, b"s", b"x", producer=writer)
    assert (retry.kind, retry.batch) == (Kind.DUPLICATE, sealed.batch)
    later = engine.append(store, b"other", b"x")
    assert later.batch is store._open
    assert engine.append(store, b"s", b"y", producer=Producer(b"p", 0, 2)).batch is sealed.batch
    assert store.seal() is None, "two batches were in flight"
    store.write(sealed)
    finished = store.finish(sealed, None)
    assert finished.batches == [sealed.batch]
    assert finished.woken == [engine.present(store, b"s")]
    assert engine.append(store, b"s", b"x", producer=writer).batch is None
    store.close()


@pytest.mark.parametrize("path", [b"", b"p" * 481, b"p" * 600])
def test_a_path_that_the_index_cannot_hold_is_not_accepted(tmp_path: Path, path: bytes) -> None:
    """A record that could never be indexed would keep the directory from opening for ever."""
    store = open_store(tmp_path)
    with pytest.raises(ValueError, match="path"):
        store.create(path, StreamConfig(BYTES), b"", False)
    engine.create(store, b"p" * 480)
    with pytest.raises(ValueError, match="producer"):
        engine.append(store, b"p" * 480, b"x", producer=Producer(b"i" * 481, 0, 0))
    engine.append(store, b"p" * 480, b"x", producer=Producer(b"i" * 480, 0, 0))
    engine.commit(store)
    store.close()
    store = open_store(tmp_path)
    stream = engine.seen(store, b"p" * 480)
    assert store.load_producer(stream, b"i" * 480) == (0, 0)
    store.close()


# Memory


def test_the_tail_cache_is_bounded(tmp_path: Path) -> None:
    """Payload in memory stays within its bound, overhead included; all of it is readable."""
    store = open_store(tmp_path, SMALL)
    engine.create(store, b"s")
    for number in range(60):
        engine.append(store, b"s", b"%04d" % number * 20)
        engine.commit(store)
        cached = [run for run in store._cache._runs if run.data is not None]
        held = sum(len(run.data or b"") + RUN_OVERHEAD_BYTES for run in cached)
        assert held <= SMALL.tail_cache_bytes_max
    engine.append(store, b"s", b"z" * 5_000)
    engine.commit(store)
    assert not [run for run in store._cache._runs if run.data is not None]
    assert engine.content(store, b"s")[:4800] == b"".join(b"%04d" % n * 20 for n in range(60))
    store.close()


def test_what_is_indexed_and_not_cached_leaves_memory(tmp_path: Path) -> None:
    """A stream that grows for ever keeps a bounded list of runs."""
    store = open_store(tmp_path, SMALL)
    engine.create(store, b"s")
    for number in range(300):
        engine.append(store, b"s", b"x")
        engine.commit(store)
        if number % 10 == 0:
            engine.index_all(store)
    stream = engine.seen(store, b"s")
    assert len(stream.runs) <= 16
    assert len(stream.runs._runs) <= 200
    store.close()


def test_idle_streams_are_evicted(tmp_path: Path) -> None:
    """Idle streams leave memory when the index has them, and come back as they were."""
    store = open_store(tmp_path, SMALL)
    for number in range(30):
        engine.create(store, b"%d" % number, TEXT, body=b"text %d" % number)
    engine.append(store, b"3", b"", producer=Producer(b"p", 4, 0), stream_seq=b"9", close=True)
    engine.commit(store)
    store.clock_ms += SMALL.idle_ms
    store.tick(store.now_ms())
    assert len(store._residents) == 30, "what is not indexed was evicted"
    engine.index_all(store)
    held = engine.present(store, b"7")
    store.clock_ms += SMALL.idle_ms
    store.hold(held)
    store.tick(store.now_ms())
    assert len(store._residents) == 1, "only the stream with a reader stays"
    store.release(held)
    again = engine.present(store, b"3")
    assert (again.closed, again.closer, again.stream_seq) == (True, (b"p", 4, 0), b"9")
    assert engine.content(store, b"3") == b"text 3"
    store.close()


def test_a_stream_that_is_read_is_not_idle(tmp_path: Path) -> None:
    """Reads that load nothing keep a stream, and the bytes that are cached of it, in memory."""
    store = open_store(tmp_path, SMALL)
    engine.create(store, b"s", body=b"hello")
    engine.commit(store)
    engine.index_all(store)
    for _ in range(3):
        store.clock_ms += SMALL.idle_ms - 1
        stream = store.visible_now(b"s")
        assert stream is not None
        store.tick(store.now_ms())
    assert store.visible_now(b"s") is stream
    store.close()


def test_a_crowd_is_evicted_at_once(tmp_path: Path) -> None:
    """Above the limit streams leave as soon as the index has them, idle or not."""
    store = open_store(tmp_path, replace(SMALL, resident_streams_max=10, tail_cache_bytes_max=0))
    for number in range(50):
        engine.create(store, b"%d" % number, body=b"x")
    engine.commit(store)
    engine.index_all(store)
    store.tick(store.now_ms())
    assert len(store._residents) <= 10
    store.close()


def test_free_paths_are_remembered_up_to_a_bound(tmp_path: Path) -> None:
    """Asking for paths that are free does not fill memory."""
    store = open_store(tmp_path, replace(SMALL, known_absent_max=10))
    for number in range(50):
        assert engine.find(store, b"%d" % number) is None
    assert len(store._residents._absent) <= 10
    store.close()


def test_a_look_up_that_comes_late_is_not_believed(tmp_path: Path) -> None:
    """What was read from the index before a stream changed and was evicted does not come back: its
    next append would go to an offset that is taken."""
    store = open_store(tmp_path, SMALL)
    nothing = store.load(b"s")
    engine.create(store, b"s", body=b"one")
    engine.commit(store)
    engine.forget(store)
    store.admit(nothing)
    assert engine.present(store, b"s").tail == 3
    engine.forget(store)
    three_bytes = store.load(b"s")
    engine.append(store, b"s", b"two")
    engine.commit(store)
    engine.forget(store)
    store.admit(three_bytes)
    assert engine.append(store, b"s", b"!").tail == 7
    engine.delete(store, b"s")
    engine.commit(store)
    engine.index_all(store)
    store.tick(store.now_ms())
    store.admit(three_bytes)
    assert engine.find(store, b"s") is None
    store.close()


def test_producers_survive_eviction_one_by_one(tmp_path: Path) -> None:
    """After an eviction each producer is loaded when it writes, and is judged as before; the bound
    on their number holds across it."""
    store = open_store(tmp_path, replace(SMALL, producers_per_stream_max=5))
    engine.create(store, b"s")
    for number in range(5):
        engine.append(store, b"s", b"x", producer=Producer(b"p%d" % number, 2, 0))
    engine.commit(store)
    engine.forget(store)
    for number in range(5):
        identity = b"p%d" % number
        duplicate = engine.append(store, b"s", b"x", producer=Producer(identity, 2, 0))
        assert (duplicate.kind, duplicate.seq, duplicate.batch) == (Kind.DUPLICATE, 0, None)
        stale = engine.append(store, b"s", b"x", producer=Producer(identity, 1, 9))
        assert stale.kind is Kind.STALE_EPOCH
    more = engine.append(store, b"s", b"x", producer=Producer(b"new", 0, 0))
    assert more.kind is Kind.TOO_MANY_PRODUCERS
    assert engine.append(store, b"s", b"x", producer=Producer(b"p1", 2, 1)).kind is Kind.APPENDED
    store.close()


# Reading


def cold_and_warm(path: Path, limits: Limits = LARGE) -> list[engine.ManualStore]:
    """Two stores with other amounts in memory: everything, and nothing."""
    warm = open_store(path / "warm", limits)
    cold = open_store(path / "cold", replace(limits, tail_cache_bytes_max=0))
    return [warm, cold]


def test_chunks_of_bytes_stay_within_the_limit(tmp_path: Path) -> None:
    """However the bytes were appended, a chunk has at most its limit, once that is a block."""
    for store in cold_and_warm(tmp_path):
        engine.create(store, b"s")
        sizes = [1, 70_000, 3, 200_000, 65_536, 65_537, 10, 131_072]
        for at, size in enumerate(sizes):
            engine.append(store, b"s", bytes([at]) * size)
            if at % 3:
                engine.commit(store)
        engine.commit(store)
        if store.limits.tail_cache_bytes_max == 0:
            engine.index_all(store)
        expected = b"".join(bytes([at]) * size for at, size in enumerate(sizes))
        stream = engine.seen(store, b"s")
        for limit in (65_536, 100_000, 200_000, 1 << 20):
            parts = list(engine.chunks(store, stream, 0, limit))
            assert b"".join(part.data for part in parts) == expected
            assert all(len(part.data) <= limit for part in parts)
            assert len(parts) <= 3 * len(expected) // limit + 2
        for offset in (1, 5, 65_537, 70_001, 70_004, 135_540, 270_003, len(expected) - 1):
            chunk = engine.read(store, stream, offset, 100_000)
            assert chunk.data == expected[offset : chunk.next]
        store.close()


def json_bodies(store: engine.ManualStore, sizes: list[list[int]]) -> tuple[bytes, list[int]]:
    """Append messages of these sizes, a list of bodies to each batch; payload and offsets."""
    data = b""
    ends = [0]
    for batch in sizes:
        for size in batch:
            message = b'"' + b"m" * (size - 3) + b'"'
            outcome = engine.append(store, b"s", message)
            data += message + b","
            ends.append(len(data))
            assert outcome.tail == len(data)
        engine.commit(store)
    return data, ends


BLOCK = BLOCK_BYTES_MAX
JSON_BATCHES = [
    [100, 200_000, 50, 60, 70_000],
    [BLOCK, 5, BLOCK + 1, 5, 2 * BLOCK, 7],
    [10] * 40,
    [300_000],
    [40_000, 40_000, 40_000],
]


def test_every_offset_that_was_told_can_be_read_from(tmp_path: Path) -> None:
    """The offset after each append is a place to read from, also behind a message of many blocks in
    the same batch; what comes is whole messages, within the limit unless one is longer."""
    for store in cold_and_warm(tmp_path):
        engine.create(store, b"s", JSON)
        data, ends = json_bodies(store, JSON_BATCHES)
        if store.limits.tail_cache_bytes_max == 0:
            engine.index_all(store)
        stream = engine.seen(store, b"s")
        for limit in (10, 1_000, 66_000, 210_000, 1 << 20):
            for at, offset in enumerate(ends[:-1]):
                chunk = engine.read(store, stream, offset, limit)
                assert chunk.data == data[offset : chunk.next]
                assert chunk.next in ends[at + 1 :]
                block_end = max(ends[at + 1], offset + limit, offset + BLOCK)
                assert chunk.next <= block_end, "more than one message beyond the limit"
                json.loads(b"[" + chunk.data[:-1] + b"]")
        store.close()


def test_offsets_inside_messages_are_refused(tmp_path: Path) -> None:
    """An offset inside a message is an `OffsetError`, in any block, in memory and on disk."""
    for store in cold_and_warm(tmp_path):
        engine.create(store, b"s", JSON)
        _, ends = json_bodies(store, JSON_BATCHES)
        if store.limits.tail_cache_bytes_max == 0:
            engine.index_all(store)
        stream = engine.seen(store, b"s")
        wrong = {offset + step for offset in ends[:-1] for step in (1, 3, BLOCK, 2 * BLOCK)}
        wrong |= {end - 1 for end in ends[1:]}
        for offset in sorted(wrong - set(ends)):
            if offset < ends[-1]:
                with pytest.raises(OffsetError):
                    engine.read(store, stream, offset, 1_000)
        store.close()


def test_a_long_message_is_not_begun_when_the_chunk_has_something(tmp_path: Path) -> None:
    """Only a message that comes first may pass the limit."""
    for store in cold_and_warm(tmp_path):
        engine.create(store, b"s", JSON)
        _, ends = json_bodies(store, [[100, 500_000, 100]])
        if store.limits.tail_cache_bytes_max == 0:
            engine.index_all(store)
        stream = engine.seen(store, b"s")
        assert engine.read(store, stream, 0, 100_000).next == ends[1]
        assert engine.read(store, stream, ends[1], 100_000).next == ends[2]
        store.close()


@bounded(25)
@given(
    st.lists(st.sampled_from(["é", "€", "😀", "a", "é" * 40_000, "x€" * 30_000]), max_size=6),
    st.sampled_from([2 * BLOCK_BYTES_MAX, 3 * BLOCK_BYTES_MAX]),
    st.integers(0, 3),
    st.booleans(),
)
def test_text_chunks_end_on_characters(
    parts: list[str], limit: int, shift: int, indexed: bool
) -> None:
    """A chunk of text that is not the last ends on a whole character, wherever blocks were cut."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        store = open_store(Path(folder) / "data", replace(LARGE, tail_cache_bytes_max=0))
        engine.create(store, b"s", "text/plain; charset=utf-8", body=b"a" * shift)
        for part in parts:
            engine.append(store, b"s", part.encode())
            engine.commit(store)
        engine.commit(store)
        if indexed:
            engine.index_all(store)
        stream = engine.seen(store, b"s")
        for chunk in engine.chunks(store, stream, 0, limit):
            chunk.data.decode()
            assert len(chunk.data) <= limit
        assert engine.content(store, b"s").decode() == "a" * shift + "".join(parts)
        store.close()


def test_text_that_is_no_utf8_is_served_to_its_end(tmp_path: Path) -> None:
    """Bytes that only look like the start of a character do not stop a reader."""
    store = open_store(tmp_path, SMALL)
    engine.create(store, b"s", TEXT)
    for body in (b"\xff" * 3, b"\xf0", b"\xc3", b"\xe2\x82", b"\xff" * 70_000, b"\xc3" * 66_000):
        engine.append(store, b"s", body)
        engine.commit(store)
    for limit in (1, 2, 65_536):
        content = engine.content(store, b"s", limit)
        assert content.endswith(b"\xff" * 70_000 + b"\xc3" * 66_000)
    assert text_boundary(b"\xff") == 0
    store.close()


def test_a_read_that_ends_where_the_index_was_left(tmp_path: Path) -> None:
    """A chunk that is full exactly where the index's answer ends is served, although memory goes on
    further along."""
    indexed = [RunPlace(start, 1, 100 + start, b"\x0a\0\0\x80" + bytes(4)) for start in (0, 10)]
    later = RunPlace(90, 1, 500, b"\x0a\0\0\x80" + bytes(4))
    snapshot = Snapshot(1, Framing.BYTES, 0, 20, 100, False)
    pieces = select(snapshot, [*indexed, later])
    assert [piece.start for piece in pieces] == [0, 10]


@pytest.mark.parametrize("limit_bytes", [1, 10, 20, 30, 95, 100, 1_000])
def test_runs_from_index_and_memory_join(tmp_path: Path, limit_bytes: int) -> None:
    """A stream whose old runs are in the index and whose new ones are in memory is read from any
    offset with any limit."""
    store = open_store(tmp_path, replace(SMALL, tail_cache_bytes_max=5 * (10 + 512)))
    engine.create(store, b"s")
    for number in range(300):
        engine.append(store, b"s", b"%010d" % number)
        engine.commit(store)
        if number % 7 == 0 and number < 280:
            engine.index_all(store)
    expected = b"".join(b"%010d" % number for number in range(300))
    stream = engine.seen(store, b"s")
    assert 0 < (stream.runs.first_start() or 0) < len(expected)
    assert engine.content(store, b"s", limit_bytes) == expected
    for offset in range(0, len(expected), 37):
        chunk = engine.read(store, stream, offset, limit_bytes)
        assert chunk.data == expected[offset : chunk.next]
    store.close()


def test_old_reads_are_remembered_up_to_a_bound(tmp_path: Path) -> None:
    """A repeated read of old data needs no index, and what is remembered has a bound, as have open
    segments."""
    store = open_store(tmp_path, replace(SMALL, tail_cache_bytes_max=0))
    engine.create(store, b"s")
    for number in range(100):
        engine.append(store, b"s", b"%0500d" % number)
        engine.commit(store)
    engine.index_all(store)
    stream = engine.seen(store, b"s")
    first = store.read(stream, 0, 1_000)
    assert isinstance(first, ColdRead)
    chunk = first.run()
    again = store.read(stream, 0, 1_000)
    assert not isinstance(again, ColdRead)
    assert again.data == chunk.data
    for offset in range(0, 50_000, 500):
        engine.read(store, stream, offset, 1_000)
    assert len(store._reader._plans._plans) <= SMALL.read_plans_max
    assert len(store._reader._segments._open) <= SMALL.open_segments_max
    store.close()


def test_a_read_at_the_tail(tmp_path: Path) -> None:
    """At the tail there is nothing, up to date, and closed only when the closing is durable."""
    store = open_store(tmp_path, SMALL)
    engine.create(store, b"s", body=b"abc")
    engine.commit(store)
    stream = engine.seen(store, b"s")
    engine.append(store, b"s", b"def", close=True)
    chunk = engine.read(store, stream, 0)
    assert (chunk.data, chunk.up_to_date, chunk.closed) == (b"abc", True, False)
    chunk = engine.read(store, stream, 3)
    assert (chunk.data, chunk.up_to_date, chunk.closed) == (b"", True, False)
    engine.commit(store)
    chunk = engine.read(store, stream, 3, READ_BYTES)
    assert (chunk.data, chunk.up_to_date, chunk.closed) == (b"def", True, True)
    store.close()


# Incarnations and time


def test_readers_see_the_old_incarnation_until_the_new_one_is_durable(tmp_path: Path) -> None:
    """Deleted and made anew: writers see the new stream at once, readers the old one until the
    commit, also when both happen in one batch, and again."""
    store = open_store(tmp_path, SMALL)
    engine.create(store, b"s", body=b"old")
    engine.commit(store)
    old = engine.seen(store, b"s")
    for body in (b"never durable", b"new"):
        engine.delete(store, b"s")
        with pytest.raises(Unsettled):
            store.find(b"s")
        engine.create(store, b"s", body=body)
        assert engine.seen(store, b"s") is old
        assert engine.content(store, b"s") == b"old"
    engine.commit(store)
    assert old.gone
    assert engine.present(store, b"s").shadowed is None, "the old one is kept in memory for ever"
    assert engine.content(store, b"s") == b"new"
    assert engine.present(store, b"s").id > old.id
    engine.forget(store)
    assert engine.content(store, b"s") == b"new"
    store.close()


def test_a_deleted_stream_may_still_be_read_by_who_has_it(tmp_path: Path) -> None:
    """What a reader holds of a deleted stream is its own data or nothing: never the next one's."""
    store = open_store(tmp_path, SMALL)
    engine.create(store, b"s", body=b"old " * 100)
    engine.commit(store)
    old = engine.seen(store, b"s")
    engine.delete(store, b"s")
    engine.create(store, b"s", body=b"new!" * 100)
    engine.commit(store)
    assert engine.read(store, old, 0).data == b"old " * 100
    store.close()


def crashed(store: engine.ManualStore, copy: Path) -> engine.ManualStore:
    """The store that a crash at this moment would leave."""
    shutil.copytree(store.directory.path, copy)
    return open_store(copy, store.limits, clock_ms=store.clock_ms)


def test_a_live_reader_keeps_its_stream_across_a_crash(tmp_path: Path) -> None:
    """While somebody follows a stream its deadline is renewed on disk: a crash leaves it its whole
    TTL."""
    store = open_store(tmp_path / "data", SMALL)
    engine.create(store, b"s", ttl_s=10)
    engine.commit(store)
    store.hold(engine.seen(store, b"s"))
    for second in range(40):
        store.clock_ms += 1_000
        store.tick(store.now_ms())
        store.commit()
        engine.index_all(store)
        if second % 5 == 4:
            after = crashed(store, tmp_path / f"crash-{second}")
            after.clock_ms += 9_000
            assert engine.visible(after, b"s") is not None
            abandon(after)
    store.release(engine.seen(store, b"s"))
    store.clock_ms += 9_999
    assert engine.visible(store, b"s") is not None
    store.clock_ms += 1
    assert engine.visible(store, b"s") is None
    store.close()


def test_streams_that_nobody_asks_for_are_reaped(tmp_path: Path) -> None:
    """Expiry is a logged delete: after a tick and a commit nothing of the stream is left."""
    store = open_store(tmp_path / "data", SMALL)
    for number in range(20):
        engine.create(store, b"%d" % number, ttl_s=5 if number % 2 else None, body=b"x")
        engine.create(store, b"at-%d" % number, expires_ms=START_MS + 7_000)
    engine.commit(store)
    engine.forget(store)
    store.clock_ms += 60_000
    store.tick(store.now_ms())
    engine.commit(store)
    engine.index_all(store)
    assert [meta.path for _, meta in store._index.streams()] == [b"%d" % n for n in range(0, 20, 2)]
    assert not list(store._index.entries("expiry"))
    store.close()


def test_nothing_expires_early_after_a_restart(tmp_path: Path) -> None:
    """Accesses that were too close to be written down are covered by what was."""
    store = open_store(tmp_path / "data", SMALL)
    engine.create(store, b"s", ttl_s=10)
    engine.commit(store)
    records = 0
    for step in range(100):
        store.clock_ms += 100
        store.touch(engine.seen(store, b"s"))
        records += bool(store._open.records)
        store.commit()
        if step % 9 == 0:
            after = crashed(store, tmp_path / f"crash-{step}")
            after.clock_ms += 9_999
            assert engine.visible(after, b"s") is not None
            after.clock_ms += 5_000
            assert engine.visible(after, b"s") is None
            abandon(after)
    assert records <= 6, "an access is not written down each time"
    store.close()


def test_an_expired_path_is_free_in_the_same_batch(tmp_path: Path) -> None:
    """A create over an expired stream logs the deletion and the creation together."""
    store = open_store(tmp_path / "data", SMALL)
    engine.create(store, b"s", ttl_s=5, body=b"old")
    engine.commit(store)
    engine.forget(store)
    store.clock_ms += 60_000
    assert engine.create(store, b"s", TEXT, body=b"new").kind is Kind.CREATED
    engine.commit(store)
    after = crashed(store, tmp_path / "crash")
    assert engine.content(after, b"s") == b"new"
    assert len(list(after._index.streams())) == 1
    abandon(after)
    store.close()


# Values


def test_values_are_bounded(tmp_path: Path) -> None:
    """Keys and values that the index could not take are refused, and many values fill a batch."""
    store = open_store(tmp_path, replace(SMALL, batch_bytes_max=100))
    limits = store.limits
    for key, value in (
        (b"", b"v"),
        (b"k" * (limits.value_key_bytes_max + 1), b"v"),
        (b"k", b"v" * (limits.value_bytes_max + 1)),
    ):
        with pytest.raises(ValueError, match="index"):
            store.put_value(key, value, print)
    assert store.seal() is None
    store.put_value(b"k" * limits.value_key_bytes_max, b"v" * 99, print)
    assert store.accepting
    store.put_value(b"l", b"v", print)
    assert not store.accepting
    engine.commit(store)
    engine.index_all(store)
    assert store.value(b"k" * limits.value_key_bytes_max) == b"v" * 99
    store.close()


def test_values_leave_memory(tmp_path: Path) -> None:
    """What the index has is not kept in memory, however often it changed."""
    store = open_store(tmp_path)
    for number in range(20):
        store.put_value(b"k", b"%d" % number, print)
        store.put_value(b"k%d" % number, b"x", print)
        engine.commit(store)
    engine.index_all(store)
    assert not store._values._newer
    assert store.value(b"k") == b"19"
    assert len(store.values(b"k")) == 21
    store.close()
