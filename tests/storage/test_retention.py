"""Retention: what is dropped and when, what stays, and what that costs."""

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import engine
import pytest
from engine import BYTES, JSON, SMALL, START_MS, TEXT, ManualStore, open_store
from hypothesis import given
from hypothesis import strategies as st
from workload import index_agrees_with_log

from storage.directory import DataDirectory
from storage.dump import dump
from storage.errors import CorruptData, NotRetained
from storage.framing import message_lengths, text_boundary
from storage.index_entries import RetentionMeta
from storage.limits import Limits
from storage.record import Record, RecordType, Retention, encode
from storage.retention import MARKS, MARKS_MAX, dead_between, note_run
from storage.state import Kind
from storage.verify import LogReport, check_index, check_log

BLOCK_BYTES_MAX = 65_536
NEWEST = Retention(1_000, None, asked=True)
LAST_MINUTE = Retention(None, 60, asked=True)


def settle(store: ManualStore) -> int:
    """Index what is durable, and cut until nothing is due; how many cuts that took."""
    count = 0
    while True:
        engine.commit(store)
        engine.index_all(store)
        cuts = engine.retain(store)
        if not cuts:
            return count
        count += cuts


def live_bytes(store: ManualStore) -> int:
    """What all segments hold that somebody can read."""
    values = [value for _, value in store._index.entries("segments")]
    return sum(int.from_bytes(value, "little", signed=True) for value in values)


def test_keeps_at_least_the_bytes_and_hardly_more(tmp_path: Path) -> None:
    """A cut leaves what is to be kept, and of what is older no whole run."""
    store = open_store(tmp_path)
    engine.create(store, b"s", retention=NEWEST)
    for number in range(100):
        engine.append(store, b"s", b"%05d" % number * 8)
        engine.commit(store)
    settle(store)
    stream = engine.seen(store, b"s")
    assert (stream.durable_earliest, stream.durable_tail) == (3_000, 4_000)
    assert engine.content(store, b"s").startswith(b"00075")
    assert live_bytes(store) == 1_000


def test_nothing_is_due_below_the_limit(tmp_path: Path) -> None:
    """A stream that has no more than it may is not looked at again, nor one whose oldest message
    is all that could go."""
    store = open_store(tmp_path)
    engine.create(store, b"small", retention=NEWEST, body=b"x" * 1_000)
    engine.create(store, b"one", JSON, retention=NEWEST, body=b'"%b"' % (b"x" * 100_000))
    engine.create(store, b"none", body=b"x" * 5_000)
    assert settle(store) == 0
    assert not list(store._index.entries("retention"))


def test_dropped_after_its_time(tmp_path: Path) -> None:
    """What was written so long ago goes, a part of the time later at most; an idle stream ends up
    empty, and goes on where it was."""
    store = open_store(tmp_path)
    engine.create(store, b"s", JSON, retention=LAST_MINUTE)
    written: list[tuple[int, int]] = []
    for number in range(200):
        engine.append(store, b"s", b'{"n":%d}' % number)
        written.append((store.clock_ms, engine.present(store, b"s").tail))
        settle(store)
        earliest = engine.seen(store, b"s").durable_earliest
        dropped = [at_ms for at_ms, tail in written if tail <= earliest]
        kept = [at_ms for at_ms, tail in written if tail > earliest]
        assert all(store.clock_ms - at_ms >= 60_000 for at_ms in dropped)
        assert all(store.clock_ms - at_ms <= 60_000 + 60_000 // MARKS + 1_000 for at_ms in kept)
        store.clock_ms += 1_000
    store.clock_ms += 60_000
    settle(store)
    stream = engine.seen(store, b"s")
    assert stream.durable_earliest == stream.durable_tail
    assert live_bytes(store) == 0
    assert not list(store._index.entries("retention")), "there is nothing to wait for"
    assert engine.append(store, b"s", b"1").kind is Kind.APPENDED
    engine.commit(store)
    assert engine.content(store, b"s") == b"1,"


def test_an_idle_stream_costs_nothing_until_it_is_due(tmp_path: Path) -> None:
    """Streams whose time has not come are neither loaded nor looked at."""
    store = open_store(tmp_path)
    for number in range(300):
        engine.create(store, b"%d" % number, retention=LAST_MINUTE, body=b"x")
    engine.commit(store)
    engine.forget(store)
    due = store.due_cuts(store.now_ms() + 59_999)
    assert due.run() == []
    assert not len(store._residents)
    store.clock_ms += 60_000
    assert engine.retain(store) == 300


def test_a_look_goes_on_where_the_last_one_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cuts that the index does not show yet keep none of the others waiting."""
    monkeypatch.setattr("storage.retention.DUE_CUTS_MAX", 2)
    store = open_store(tmp_path)
    for number in range(5):
        engine.create(store, b"%d" % number, retention=LAST_MINUTE, body=b"x")
        store.clock_ms += 1
    engine.commit(store)
    engine.index_all(store)
    store.clock_ms += 60_000
    assert [engine.retain(store) for _ in range(3)] == [2, 2, 1]
    assert engine.retain(store) == 2, "from the beginning again"
    engine.commit(store)
    for number in range(5):
        stream = engine.seen(store, b"%d" % number)
        assert stream.durable_earliest == 1


def test_offsets_before_the_cut_are_refused_once_it_is_durable(tmp_path: Path) -> None:
    """Nobody is told of a cut that a crash could take back; then old offsets are refused, whatever
    memory or the index still have, before and after a restart."""
    store = open_store(tmp_path)
    engine.create(store, b"s", body=b"abcdef")
    engine.commit(store)
    stream = engine.seen(store, b"s")
    store.cut(stream, 3)
    assert engine.read(store, stream, 0).data == b"abcdef"
    engine.commit(store)
    for _ in range(2):
        stream = engine.seen(store, b"s")
        with pytest.raises(NotRetained):
            store.read(stream, 2, 10)
        assert engine.read(store, stream, 3).data == b"def"
        engine.forget(store)
    store.close()
    store = open_store(tmp_path)
    stream = engine.seen(store, b"s")
    assert (stream.earliest, stream.durable_earliest) == (3, 3)
    with pytest.raises(NotRetained):
        store.read(stream, 2, 10)


def test_a_cut_stays_within_what_is_durable_and_never_goes_back(tmp_path: Path) -> None:
    """A cut is not made behind the durable tail, before another, or of a stream that has ended."""
    store = open_store(tmp_path)
    engine.create(store, b"s", body=b"abcdef")
    engine.commit(store)
    engine.append(store, b"s", b"ghi")
    stream = engine.seen(store, b"s")
    for earliest, expected in ((7, 0), (4, 4), (2, 4), (6, 6)):
        store.cut(stream, earliest)
        assert stream.earliest == expected
    engine.delete(store, b"s")
    engine.commit(store)
    store.cut(stream, 9)
    assert not store._open.records


def test_memory_lets_go(tmp_path: Path) -> None:
    """Runs below a cut leave memory with it, indexed or not, and their bytes the tail cache."""
    store = open_store(tmp_path, replace(SMALL, tail_cache_bytes_max=1 << 20))
    engine.create(store, b"s")
    for _ in range(50):
        engine.append(store, b"s", b"x" * 100)
        engine.commit(store)
    before = store._cache._bytes
    stream = engine.seen(store, b"s")
    store.cut(stream, 4_000)
    engine.commit(store)
    assert len(stream.runs) == 10
    assert store._cache._bytes == before - 4_000
    assert engine.content(store, b"s") == b"x" * 1_000


def test_a_fork_keeps_what_it_inherited(tmp_path: Path) -> None:
    """What a source dropped is there as long as a fork has it, exactly that, and no longer."""
    store = open_store(tmp_path)
    engine.create(store, b"s")
    for number in range(40):
        engine.append(store, b"s", b"%02d" % number * 50)
        engine.commit(store)
    engine.fork(store, b"f", b"s", 1_000)
    engine.commit(store)
    store.cut(engine.seen(store, b"s"), 3_000)
    engine.commit(store)
    for _ in range(2):
        assert engine.content(store, b"f") == b"".join(b"%02d" % n * 50 for n in range(10))
        assert engine.content(store, b"s").startswith(b"30")
        engine.forget(store)
    assert live_bytes(store) == 2_000
    assert engine.fork(store, b"g", b"s", 2_999).kind is Kind.FORK_NOT_RETAINED
    assert engine.fork(store, b"g", b"f", 500).kind is Kind.CREATED
    engine.delete(store, b"f")
    engine.commit(store)
    engine.index_all(store)
    assert live_bytes(store) == 1_500, "the fork of the fork has the first 500"
    engine.delete(store, b"g")
    engine.commit(store)
    engine.index_all(store)
    assert live_bytes(store) == 1_000
    index_agrees_with_log(store, tmp_path / "scratch")


def test_a_fork_begins_where_its_source_did(tmp_path: Path) -> None:
    """A fork of a stream that was cut has the same earliest offset, and retention of its own."""
    store = open_store(tmp_path)
    engine.create(store, b"s", retention=NEWEST, body=b"x" * 900)
    engine.append(store, b"s", b"y" * 900)
    engine.commit(store)
    store.cut(engine.seen(store, b"s"), 900)
    engine.fork(store, b"plain", b"s")
    engine.fork(store, b"short", b"s", retention=Retention(10, None, asked=True), body=b"z" * 50)
    settle(store)
    plain, short = engine.seen(store, b"plain"), engine.seen(store, b"short")
    assert (plain.durable_earliest, plain.config.retention) == (900, None)
    assert short.durable_earliest == 1_800
    assert engine.content(store, b"plain") == b"y" * 900
    assert engine.content(store, b"short") == b"z" * 50
    with pytest.raises(NotRetained):
        store.read(plain, 899, 10)


def test_repeated_puts_compare_what_was_asked_for(tmp_path: Path) -> None:
    """Retention that was asked for has to be asked for again; a rule's has not, nor another's."""
    store = open_store(tmp_path)
    by_rule = Retention(5, None, asked=False)
    engine.create(store, b"asked", retention=NEWEST)
    engine.create(store, b"rule", retention=by_rule)
    for path, retention, kind in (
        (b"asked", NEWEST, Kind.EXISTS),
        (b"asked", LAST_MINUTE, Kind.CONFLICT),
        (b"asked", None, Kind.CONFLICT),
        (b"asked", by_rule, Kind.CONFLICT),
        (b"rule", None, Kind.EXISTS),
        (b"rule", Retention(6, 7, asked=False), Kind.EXISTS),
        (b"rule", Retention(5, None, asked=True), Kind.CONFLICT),
    ):
        assert engine.create(store, path, retention=retention).kind is kind
    engine.create(store, b"s", body=b"abc")
    engine.fork(store, b"f", b"s", retention=NEWEST)
    assert engine.fork(store, b"f", b"s", retention=NEWEST).kind is Kind.EXISTS
    assert engine.fork(store, b"f", b"s").kind is Kind.CONFLICT


def test_a_cut_is_written_on_a_full_disk(tmp_path: Path) -> None:
    """Dropping data is how space comes back, so it does not need any."""
    store = open_store(tmp_path)
    engine.create(store, b"s", retention=NEWEST)
    for _ in range(20):
        engine.append(store, b"s", b"x" * 100)
        engine.commit(store)
    engine.index_all(store)
    store.full = True
    assert engine.retain(store) == 1
    assert store._open.reclaims
    engine.commit(store)
    assert engine.seen(store, b"s").durable_earliest == 1_000


def test_large_appends_are_cut_at_blocks(tmp_path: Path) -> None:
    """One large append is not kept as a whole for its end."""
    store = open_store(tmp_path, Limits(reserve_bytes=4_096, zero_ahead_bytes=0))
    engine.create(store, b"b", retention=NEWEST, body=b"x" * 1_000_000)
    messages = b",".join(b'"%06d"' % number for number in range(100_000 // 2))
    engine.create(store, b"j", JSON, retention=NEWEST, body=b"[%b]" % messages)
    engine.create(store, b"t", TEXT, retention=NEWEST, body="€".encode() * 100_000)
    settle(store)
    for path in (b"b", b"j", b"t"):
        stream = engine.seen(store, path)
        kept_bytes = stream.durable_tail - stream.durable_earliest
        assert 1_000 <= kept_bytes <= 1_000 + BLOCK_BYTES_MAX + 3
    assert len(set(message_lengths(engine.content(store, b"j")))) == 1
    engine.content(store, b"t").decode()


def test_text_begins_with_a_character(tmp_path: Path) -> None:
    """Where an append ended within a character the cut is before it."""
    store = open_store(tmp_path)
    engine.create(store, b"s", TEXT, retention=Retention(5, 60, asked=True))
    for piece in (b"ab\xe2", b"\x82", b"\xaccd", b"efg\xf0\x9f"):
        engine.append(store, b"s", piece)
        engine.commit(store)
    settle(store)
    assert engine.content(store, b"s") == b"ab\xe2\x82\xaccdefg\xf0\x9f"[7:]
    store.clock_ms += 60_000
    settle(store)
    assert engine.content(store, b"s") == b"\xf0\x9f"
    assert settle(store) == 0


def test_a_text_cut_before_a_character_is_not_looked_at_for_ever(tmp_path: Path) -> None:
    """A block that begins within a character is as far as a cut gets: nothing is due until more is
    written, and then it is."""
    store = open_store(tmp_path, Limits(reserve_bytes=4_096, zero_ahead_bytes=0))
    euros = "€".encode()
    assert BLOCK_BYTES_MAX % len(euros)
    engine.create(store, b"s", TEXT, retention=NEWEST, body=euros * 30_000)
    assert settle(store) == 1
    stream = engine.seen(store, b"s")
    assert 0 < BLOCK_BYTES_MAX - stream.durable_earliest < len(euros)
    assert not list(store._index.entries("retention"))
    engine.append(store, b"s", euros * 1_000)
    assert settle(store) == 1
    assert engine.content(store, b"s") == euros * 1_000


def test_a_clock_that_goes_back_drops_nothing_early(tmp_path: Path) -> None:
    """Times go by the log: what follows counts as written no earlier than what was before it."""
    store = open_store(tmp_path)
    engine.create(store, b"s", retention=LAST_MINUTE, body=b"a")
    engine.commit(store)
    store.clock_ms -= 3_600_000
    engine.append(store, b"s", b"b")
    settle(store)
    store.clock_ms += 3_600_000 + 59_000
    settle(store)
    assert engine.content(store, b"s") == b"ab"
    store.clock_ms += 1_000
    settle(store)
    assert engine.content(store, b"s") == b""


def test_marks_are_bounded() -> None:
    """Without cuts a stream's marks become sparser, and stay in order."""
    retention = RetentionMeta(None, 64, asked=True)
    for number in range(2_000):
        note_run(retention, number, START_MS + number * 1_000)
        assert len(retention.marks) <= MARKS_MAX
    assert retention.marks == sorted(retention.marks)


def test_dead_ranges() -> None:
    """What lies between what is needed, and behind it."""
    assert dead_between([(5, 9), (7, 12), (3, 3), (20, 30)]) == [
        (0, 5),
        (12, 20),
        (30, (1 << 64) - 1),
    ]
    assert dead_between([(0, (1 << 64) - 1)]) == []


def test_offline_tools_know_cuts(tmp_path: Path) -> None:
    """`dump` shows them, and `verify` has nothing against them."""
    store = open_store(tmp_path)
    engine.create(store, b"s", retention=NEWEST)
    for _ in range(40):
        engine.append(store, b"s", b"x" * 100)
        engine.commit(store)
    settle(store)
    store.close()
    directory = DataDirectory(tmp_path)
    lines = list(dump(directory, payload=False))
    records = [record for line in lines for record in line.get("records", [])]
    assert {"type": "retain", "stream": 1, "offset": 3_000, "payload_bytes": 0} in records
    created = next(record for record in records if record["type"] == "create")
    assert created["configuration"]["retention"] == {"keep_bytes": 1_000, "asked": True}
    assert not list(check_log(directory, LogReport(), lambda done, total: None))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    assert not list(check_index(directory, scratch))


@pytest.mark.parametrize("earliest", [2, 7])
def test_a_cut_that_cannot_be_is_damage(tmp_path: Path, earliest: int) -> None:
    """A record that cuts before an earlier cut, or behind the tail, is refused by the indexer."""
    store = open_store(tmp_path)
    engine.create(store, b"s", body=b"abcdef")
    engine.commit(store)
    stream = engine.seen(store, b"s")
    store.cut(stream, 3)
    engine.commit(store)
    store._open.add_record(stream, encode(Record(RecordType.RETAIN, stream.id, earliest)))
    engine.commit(store)
    with pytest.raises(CorruptData):
        engine.index_all(store)
    engine.abandon(store)


BODIES = {
    BYTES: st.binary(min_size=1, max_size=300) | st.just(b"x" * 150_000),
    TEXT: st.text(min_size=1, max_size=99).map(str.encode) | st.just("ä€".encode() * 30_000),
    JSON: st.integers(1, 40).map(lambda count: b"[%b]" % b",".join([b'{"a":1}'] * count))
    | st.integers(60_000, 150_000).map(lambda size: b'"%b"' % (b"y" * size)),
}


@engine.bounded(120)
@given(st.data())
def test_any_history_is_cut_as_promised(data: st.DataObject) -> None:
    """Never less than is to be kept, never much more; between messages; and the index is the log's,
    however it came about."""
    content_type = data.draw(st.sampled_from(sorted(BODIES)))
    keep_bytes = data.draw(st.none() | st.sampled_from([1, 100, 3_000, 70_000]))
    keep_s = data.draw(st.integers(1, 100) if keep_bytes is None else st.none())
    root = Path(tempfile.mkdtemp(prefix="retention-"))
    limits = Limits(reserve_bytes=4_096, zero_ahead_bytes=0, tail_cache_bytes_max=4_096)
    store = open_store(root / "data", limits)
    retention = Retention(keep_bytes, keep_s, asked=True)
    engine.create(store, b"s", content_type, retention=retention)
    content = b""
    written: list[tuple[int, int]] = []
    try:
        for _ in range(data.draw(st.integers(5, 40))):
            body = data.draw(BODIES[content_type])
            engine.append(store, b"s", body)
            engine.commit(store)
            content += body if content_type != JSON else body.strip(b"[]") + b","
            written.append((store.clock_ms, len(content)))
            store.clock_ms += data.draw(st.sampled_from([0, 10, 900, 20_000]))
            step = data.draw(st.sampled_from(["", "index", "retain", "retain", "forget"]))
            if step == "index":
                engine.index_all(store)
            elif step == "retain":
                engine.retain(store)
                engine.commit(store)
            elif step == "forget":
                engine.forget(store)
            check(store, content_type, retention, content, written)
        settle(store)
        stream = engine.seen(store, b"s")
        kept_bytes = stream.durable_tail - stream.durable_earliest
        if keep_bytes is not None:
            assert kept_bytes < keep_bytes + 150_003 + BLOCK_BYTES_MAX
        else:
            assert keep_s is not None
            limit_ms = keep_s * 1_000 + keep_s * 1_000 // MARKS
            for at_ms, tail in written:
                if store.clock_ms - at_ms > limit_ms:
                    assert stream.durable_earliest >= tail - 3
        index_agrees_with_log(store, root / "scratch")
        store.close()
    finally:
        engine.abandon(store)
        shutil.rmtree(root)


def check(
    store: ManualStore,
    content_type: str,
    retention: Retention,
    content: bytes,
    written: list[tuple[int, int]],
) -> None:
    """What is there is the end of what was written, long enough, and new enough."""
    stream = engine.seen(store, b"s")
    earliest = stream.durable_earliest
    assert engine.content(store, b"s") == content[earliest:]
    if retention.keep_bytes is not None:
        assert not earliest or len(content) - earliest >= retention.keep_bytes
    if retention.keep_s is not None and earliest:
        until_ms = store.clock_ms - retention.keep_s * 1_000
        assert earliest <= max(tail for at_ms, tail in written if at_ms <= until_ms)
    if content_type == JSON and earliest:
        assert content[earliest - 1 : earliest] == b","
        message_lengths(content[earliest:])
    if content_type == TEXT:
        assert text_boundary(content[:earliest]) == earliest
