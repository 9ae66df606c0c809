"""A mixed workload whose every byte is known, and the checks that a reopened store has to pass.

Each append carries a mark that says which it is: its place in its stream, and its producer's tuple.
A fork goes on counting where it branches off. A source that is deleted stays in the state as long
as it has forks, without content of its own to look at.
The checks are named after the guarantee they look at. `Workload.states[n]` is what a store holds
when n batches are durable; a batch has one number for ever, so a store tells which it should be.
"""

import random
import re
import shutil
from collections.abc import Generator
from dataclasses import dataclass, field, replace
from pathlib import Path

import engine
from engine import BYTES, JSON, START_MS, TEXT, ManualStore
from family_checks import family_is_whole

from storage.chain import Chain
from storage.compaction import Compactor
from storage.errors import CommitError, NotResident, OutOfSpace, SoftDeleted, Unsettled
from storage.index import TABLES, Index
from storage.index_entries import Checkpoint
from storage.indexer import Indexer
from storage.record import Producer, Retention
from storage.segment import COMPACTED_IDS
from storage.sources import Source, sources
from storage.state import Kind
from storage.store import Store
from storage.verify import _entries

PATHS = [b"orders", b"orders/eu", b"chat/1", b"chat/2", b"log", b"once"]
RETENTIONS = [Retention(700, None, True), Retention(None, 3, True), Retention(2_000, 5, False)]
MARK = re.compile(rb"<(\d+)(?: (\w+):(\d+):(\d+))?>")


@dataclass
class Expected:
    """One stream as it has to be."""

    stream_id: int
    content_type: str
    ttl_s: int | None
    data: bytes = b""
    appends: int = 0
    closed: bool = False
    closer: Producer | None = None
    stream_seq: bytes | None = None
    producers: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    used_ms: int = START_MS
    ends: list[tuple[int, int]] = field(default_factory=lambda: [(0, 0)])
    """Where the stream may be forked, and how many appends are before that."""
    source_id: int | None = None
    seam: int = 0
    retention: Retention | None = None
    earliest: int = 0
    soft_deleted: bool = False

    def copy(self) -> "Expected":
        """A copy that does not change with this one."""
        return replace(self, producers=dict(self.producers), ends=list(self.ends))


State = dict[bytes, Expected]
Values = dict[bytes, bytes]

KEYS = [b"s/one", b"s/two", b"t/one"]


def copy_of(state: State) -> State:
    """A copy of everything."""
    return {path: stream.copy() for path, stream in state.items()}


class AnyCompactor(Compactor):
    """Compacts whatever it is given."""

    def __init__(self, store: ManualStore, chance: random.Random) -> None:
        super().__init__(store.directory, store._index, store._disk, store.limits)
        self._chance = chance

    def _choose(self, chain: Chain, checkpoint: Checkpoint) -> list[Source]:
        self._make_room()
        found = sources(chain, checkpoint, self._index.live_bytes())
        return self._chance.sample(found, min(len(found), self._chance.randint(1, 4)))

    def _worth_it(self, chosen: list[Source]) -> Generator[int, None, list[Source]]:
        yield 1
        return chosen


def compact_any(store: ManualStore, chance: random.Random) -> None:
    """Compact some segments, whatever they are worth; the index gets further meanwhile."""
    try:
        for _ in AnyCompactor(store, chance).run():
            behind = store._backlog.indexed_sequence < store._durable_sequence
            if behind and chance.random() < 0.1 and not store.latched:
                store.index_step()
    except (OutOfSpace, OSError):
        return
    finally:
        store.segments_removed()


class Workload:
    """Drives a store, and knows what it must hold after each batch."""

    def __init__(self, store: ManualStore, seed: int) -> None:
        self.store = store
        self.chance = random.Random(seed)
        self.accepted: State = {}
        self.states: list[State] = [{}]
        self.values: Values = {}
        self.values_of: list[Values] = [{}]
        self.acknowledged = 0
        self.in_flight = False
        self.stream_ids_max = 0
        self.compactions = 0.0
        """How often a turn compacts something."""

    def turn(self) -> CommitError | None:
        """Some changes, and a commit; sometimes the index gets further, or the store ticks."""
        chance = self.chance
        for _ in range(chance.randint(1, 6)):
            self.change()
        error = self.commit()
        if error is None:
            if chance.random() < 0.4:
                engine_store = self.store
                if engine_store._backlog.indexed_sequence < engine_store._durable_sequence:
                    engine_store.index_step()
            if chance.random() < 0.3:
                self.store.tick(self.store.now_ms())
            if chance.random() < 0.5:
                self.retain()
            if chance.random() < self.compactions:
                self.compact()
        self.store.clock_ms += chance.randint(0, 1_500)
        return error

    def compact(self) -> None:
        """Compact some segments, whatever they are worth; the index gets further meanwhile."""
        compact_any(self.store, self.chance)

    def change(self) -> None:
        """One change of some stream. Raises `CommitError` when the store takes none."""
        if self.chance.random() < 0.15:
            self.keep()
            return
        path = self.chance.choice(PATHS)
        stream = self.accepted.get(path)
        if stream is not None and stream.soft_deleted:
            assert engine.create(self.store, path).kind is Kind.SOFT_DELETED
        elif stream is None and self.chance.random() < 0.5 and self.live():
            self.fork(path, self.chance.choice(self.live()))
        elif stream is None:
            self.create(path)
        elif self.chance.random() < (0.4 if stream.closed else 0.08):
            self.delete(path)
        elif self.chance.random() < 0.1:
            self.touch(path)
        else:
            self.append(path, stream)

    def keep(self) -> None:
        """Keep a value under a key, or nothing any more."""
        key = self.chance.choice(KEYS)
        before = self.values.get(key, b"")
        value = self.chance.randbytes(self.chance.choice([0, 1, 30, 900]))
        self.store.put_value(key, value, self._kept, key, before)
        self._kept(key, value)

    def _kept(self, key: bytes, value: bytes) -> None:
        if value:
            self.values[key] = value
        else:
            self.values.pop(key, None)

    def create(self, path: bytes) -> None:
        """Create a stream, sometimes with content."""
        content_type = self.chance.choice([BYTES, TEXT, JSON])
        ttl_s = self.chance.choice([None, None, 1_000])
        retention = self.chance.choice([None, None, *RETENTIONS])
        now_ms = self.store.now_ms()
        stream = Expected(0, content_type, ttl_s, used_ms=now_ms, retention=retention)
        body = self.body(stream, None) if self.chance.random() < 0.5 else b""
        outcome = engine.create(
            self.store, path, content_type, ttl_s=ttl_s, retention=retention, body=body
        )
        assert outcome.kind is Kind.CREATED
        assert outcome.stream is not None
        stream.stream_id = outcome.stream.id
        self.accepted[path] = stream

    def live(self) -> list[bytes]:
        """The paths of streams that were not deleted."""
        return [path for path, stream in self.accepted.items() if not stream.soft_deleted]

    def fork(self, path: bytes, source_path: bytes) -> None:
        """Fork a stream where one of its appends ends, sometimes with content."""
        source = self.accepted[source_path]
        ends = [end for end in source.ends if end[0] >= source.earliest]
        seam, appends = self.chance.choice([*ends, ends[-1]])
        ttl_s = self.chance.choice([None, 2_000])
        stream = Expected(
            0,
            source.content_type,
            source.ttl_s if ttl_s is None else ttl_s,
            source.data[:seam],
            appends,
            used_ms=self.store.now_ms(),
            ends=[end for end in source.ends if source.earliest <= end[0] <= seam],
            source_id=source.stream_id,
            seam=seam,
            earliest=source.earliest,
        )
        body = self.body(stream, None) if self.chance.random() < 0.5 else b""
        outcome = engine.fork(self.store, path, source_path, seam, ttl_s=ttl_s, body=body)
        assert outcome.kind is Kind.CREATED
        assert outcome.stream is not None
        stream.stream_id = outcome.stream.id
        self.accepted[path] = stream

    def body(self, stream: Expected, producer: Producer | None) -> bytes:
        """The next append's body, marked; its payload is added to what is expected."""
        mark = b"<%d" % stream.appends
        if producer is not None:
            mark += b" %b:%d:%d" % producer
        stream.appends += 1
        filler = b"." * self.chance.choice([0, 5, 60, 400, 1_300])
        if stream.content_type != JSON:
            body = mark + b">" + filler
            stream.data += body
            stream.ends.append((len(stream.data), stream.appends))
            return body
        messages = [b'"%b>%b"' % (mark, filler)]
        messages += [b'{"n":%d}' % number for number in range(self.chance.randint(0, 3))]
        stream.data += b"".join(message + b"," for message in messages)
        stream.ends.append((len(stream.data), stream.appends))
        return b"[" + b", ".join(messages) + b"]"

    def append(self, path: bytes, stream: Expected) -> None:
        """Append or retry, by a producer or not, with Stream-Seq or not, closing or not."""
        chance = self.chance
        producer = None
        if chance.random() < 0.5:
            identity = chance.choice([b"p", b"q"])
            epoch, seq = stream.producers.get(identity, (0, -1))
            if seq >= 0 and chance.random() < 0.2:
                retry = Producer(identity, epoch, seq)
                outcome = engine.append(self.store, path, b"1", producer=retry)
                closing = stream.closed and stream.closer != retry
                assert outcome.kind is (Kind.CLOSED if closing else Kind.DUPLICATE)
                return
            new_epoch = chance.random() < 0.1
            producer = Producer(identity, epoch + 1, 0) if new_epoch else None
            producer = producer or Producer(identity, epoch, seq + 1)
        if stream.closed:
            outcome = engine.append(self.store, path, b"1", producer=producer)
            assert outcome.kind is Kind.CLOSED
            return
        stream_seq = None
        if chance.random() < 0.3:
            stream_seq = b"%06d" % (int(stream.stream_seq or b"0") + 1)
        close = chance.random() < 0.08
        before = stream.copy()
        body = b"" if close and chance.random() < 0.5 else self.body(stream, producer)
        try:
            outcome = engine.append(
                self.store, path, body, producer=producer, stream_seq=stream_seq, close=close
            )
        except CommitError:
            self.accepted[path] = before
            raise
        assert outcome.kind is Kind.APPENDED
        if producer is not None:
            stream.producers[producer.id] = producer[1:]
        stream.stream_seq = stream_seq or stream.stream_seq
        stream.closed = close
        stream.closer = producer if close else None
        stream.used_ms = self.store.now_ms()

    def delete(self, path: bytes) -> None:
        """Delete a stream, and what was only kept for it."""
        assert engine.delete(self.store, path).kind is Kind.DELETED
        end: bytes | None = path
        while end is not None:
            stream = self.accepted[end]
            if stream.stream_id in [other.source_id for other in self.accepted.values()]:
                stream.soft_deleted = True
                return
            del self.accepted[end]
            kept = [
                at
                for at, other in self.accepted.items()
                if other.stream_id == stream.source_id and other.soft_deleted
            ]
            end = kept[0] if kept else None

    def retain(self) -> None:
        """Cut what is due; where, the store knows, and that it may."""
        due = self.store.due_cuts(self.store.now_ms())
        cuts = due.run()
        self.store.retain(due, cuts)
        for path, stream in self.accepted.items():
            found = None if stream.soft_deleted else engine.find(self.store, path)
            if found is not None and found.earliest != stream.earliest:
                assert stream.retention is not None
                assert stream.earliest < found.earliest <= len(stream.data)
                stream.earliest = found.earliest

    def touch(self, path: bytes) -> None:
        """Begin a read."""
        stream = engine.visible(self.store, path)
        if stream is not None and not stream.deleted:
            self.store.touch(stream)
            if stream.id == self.accepted[path].stream_id:
                self.accepted[path].used_ms = self.store.now_ms()

    def commit(self) -> CommitError | None:
        """Commit, and note what that makes true."""
        before = self.store._durable_sequence
        if not self.store._open.records:
            return None
        self.states[before + 1 :] = [copy_of(self.accepted)]
        self.values_of[before + 1 :] = [dict(self.values)]
        self.in_flight = True
        error = self.store.commit()
        if error is None:
            assert self.store._durable_sequence == before + 1
            self.acknowledged = before + 1
            ids = [stream.stream_id for stream in self.accepted.values()]
            self.stream_ids_max = max([self.stream_ids_max, *ids])
        else:
            self.accepted = copy_of(self.states[before])
            assert self.values == self.values_of[before], "a value was not taken back"
        self.in_flight = False
        return error


# What a reopened store is held to


def check_store(store: ManualStore, state: State, values: Values) -> None:
    """All guarantees about content, for a store that holds exactly `state` and `values`."""
    values_are_kept(store, values)
    acknowledged_is_present(store, state)
    deleted_stays_deleted(store, state)
    for path, expected in state.items():
        if expected.soft_deleted:
            continue
        nothing_is_dropped_early(store, path, expected)
        content = engine.content(store, path, limit_bytes=700)
        bytes_identical(content, expected)
        content = expected.data[: expected.earliest] + content
        exactly_once(content, expected)
        in_order(content)
        closed_stays_closed(store, path, expected)
        producer_state_agrees_with_data(store, path, expected, content)
        never_expires_early(store, path, expected)


def acknowledged_is_present(store: Store, state: State) -> None:
    """Every stream that was acknowledged is there, with all it was told to hold."""
    for path, expected in state.items():
        if expected.soft_deleted:
            continue
        stream = engine.visible(store, path)
        assert stream is not None, f"{path!r} is lost"
        assert stream.id == expected.stream_id, "another incarnation is there"
        assert stream.durable_tail >= len(expected.data), f"{path!r} lost its end"
        assert stream.config.content_type == expected.content_type


def deleted_stays_deleted(store: Store, state: State) -> None:
    """What was deleted, or never acknowledged as created, is not there, in neither view; of what is
    kept for forks that is told."""
    for path in PATHS:
        expected = state.get(path)
        kept = expected is not None and expected.soft_deleted
        assert engine.is_soft_deleted(store, path) == kept
        if expected is None or kept:
            assert engine.visible(store, path) is None
            assert engine.find(store, path) is None


def values_are_kept(store: Store, values: Values) -> None:
    """Every key has the value it was given last, and no other key has one."""
    assert store.values(b"") == sorted(values.items())
    for key in KEYS:
        assert store.value(key) == values.get(key)
        named = [(name, value) for name, value in sorted(values.items()) if name.startswith(key)]
        assert store.values(key) == named


def nothing_is_dropped_early(store: Store, path: bytes, expected: Expected) -> None:
    """A stream begins where it was durably cut, in both views, and between two messages."""
    stream = engine.seen(store, path)
    assert stream.earliest == stream.durable_earliest == expected.earliest
    assert stream.config.retention == expected.retention
    if expected.retention is not None and expected.retention.keep_s is None:
        assert expected.retention.keep_bytes is not None
        kept_bytes = len(expected.data) - expected.earliest
        assert not expected.earliest or kept_bytes >= expected.retention.keep_bytes


Seen = dict[bytes, tuple[int, int, int]]
"""What readers could have read at a moment: by path the stream's id, and from where to where."""


def seen(store: Store) -> Seen:
    """What readers of a running store can see of the streams that are in memory."""
    found: Seen = {}
    for path in PATHS:
        try:
            stream = store.visible(path)
        except (NotResident, Unsettled, SoftDeleted):
            continue
        if stream is not None:
            found[path] = (stream.id, stream.durable_earliest, stream.durable_tail)
    return found


def no_reader_saw_what_is_gone(store: Store, state: State, readers: Seen) -> None:
    """What a reader was shown before the crash is there after it, unless it was deleted since; and
    what it was told to be dropped is."""
    for path, (stream_id, earliest, tail) in readers.items():
        expected = state.get(path)
        gone = expected is None or expected.soft_deleted
        if expected is not None and not gone and expected.stream_id == stream_id:
            stream = engine.seen(store, path)
            assert stream.durable_tail >= tail
            assert stream.durable_earliest >= earliest


def bytes_identical(content: bytes, expected: Expected) -> None:
    """A stream's content is what was sent, to the byte."""
    assert content == expected.data[expected.earliest :]


def exactly_once(content: bytes, expected: Expected) -> None:
    """No append is there twice, and none that was acknowledged is missing."""
    numbers = [int(mark[1]) for mark in MARK.finditer(content)]
    assert len(set(numbers)) == len(numbers) == expected.appends


def in_order(content: bytes) -> None:
    """Appends are in the order in which they were accepted."""
    numbers = [int(mark[1]) for mark in MARK.finditer(content)]
    assert numbers == sorted(numbers)


def closed_stays_closed(store: Store, path: bytes, expected: Expected) -> None:
    """Closure survives with the tuple that closed, and an open stream is open."""
    stream = engine.seen(store, path)
    assert stream.durable_closed == stream.closed == expected.closed
    assert stream.closer == expected.closer


def producer_state_agrees_with_data(
    store: Store, path: bytes, expected: Expected, content: bytes
) -> None:
    """Each producer's state is the tuple of its last append that is in the data."""
    stream = engine.seen(store, path)
    assert stream.stream_seq == expected.stream_seq
    in_data: dict[bytes, tuple[int, int]] = {}
    for mark in MARK.finditer(content, expected.seam):
        if mark[2]:
            in_data[mark[2]] = (int(mark[3]), int(mark[4]))
    for identity in (b"p", b"q"):
        known = engine.producer(store, stream, identity)
        assert known == expected.producers.get(identity)
        closer = expected.closer
        if closer is not None and closer.id == identity and known == closer[1:]:
            continue  # A close without data leaves no mark.
        assert known == in_data.get(identity)


def never_expires_early(store: Store, path: bytes, expected: Expected) -> None:
    """A deadline is never before the last durable access and the stream's TTL."""
    stream = engine.seen(store, path)
    if expected.ttl_s is not None:
        assert stream.deadline_ms is not None
        assert stream.deadline_ms >= expected.used_ms + expected.ttl_s * 1_000


def index_agrees_with_log(store: Store, scratch: Path) -> None:
    """An index that is built from the segments alone is the one that recovery left."""
    scratch.mkdir()
    end = store._log.end
    rebuilt = Index(scratch, writable=True)
    known = store._index.live_bytes(COMPACTED_IDS)
    indexer = Indexer(store.directory.segments, rebuilt, known)
    while end.sequence and indexer.step(end, 3).sequence < end.sequence:
        pass
    for table in TABLES:
        if table != "state":
            found = list(_entries(store._index, table))
            wanted = list(_entries(rebuilt, table))
            assert found == wanted, (
                f"table {table} differs from the log: {set(found) ^ set(wanted)}"
            )
    family_is_whole(store._index)
    family_is_whole(rebuilt)
    rebuilt.close()
    shutil.rmtree(scratch)
