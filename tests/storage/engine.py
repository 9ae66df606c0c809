"""Driving a store by hand: a clock that stands still, look-ups that load, reads to the end.

What the daemon does with effects and threads is done inline here, so that a test is one story in
one thread. Nothing is faked: real files, real LMDB.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from hypothesis import settings

from storage.disk import Disk
from storage.errors import NotResident, SoftDeleted, Unsettled
from storage.family import Asked
from storage.limits import Limits
from storage.reading import Chunk, ColdRead
from storage.record import Producer, Retention
from storage.state import Append, Kind, Outcome, Stream
from storage.store import Store
from storage.stream_config import StreamConfig

START_MS = 1_700_000_000_000
JSON = "application/json"
TEXT = "text/plain"
BYTES = "application/octet-stream"
READ_BYTES = 1 << 20

SMALL = Limits(
    segment_bytes=4_096,
    index_step_records=7,
    tail_cache_bytes_max=2_048,
    read_plans_max=8,
    open_segments_max=2,
    reserve_bytes=4_096,
    zero_ahead_bytes=0,
)
"""Segments roll, most reads are cold, and an index step ends before it has everything."""


def bounded(examples_max: int) -> settings:
    """Hypothesis settings for a property that runs this many examples at most."""
    return settings(max_examples=examples_max, deadline=None, print_blob=True, derandomize=False)


class ManualStore(Store):
    """A store whose clock only moves when a test moves it."""

    clock_ms = START_MS

    def now_ms(self) -> int:
        """The test's time."""
        return self.clock_ms


def open_store(
    path: Path, limits: Limits = SMALL, disk: Disk | None = None, clock_ms: int = START_MS
) -> ManualStore:
    """A store at a given time."""
    store = ManualStore.open(path, limits, disk)
    store.clock_ms = clock_ms
    return store


def abandon(store: Store) -> None:
    """Let go of a store as a crash would: descriptors and locks go, nothing is written."""
    if store._log._ahead is not None:
        store._log._ahead.close()
    store._log._active = None
    store._log.close()
    store._index.close()
    store.directory.unlock()


def find(store: Store, path: bytes) -> Stream | None:
    """The stream in accepted state, loaded if need be; a deletion under way counts as done."""
    while True:
        try:
            return store.find(path)
        except NotResident:
            store.admit(store.load(path))
        except (Unsettled, SoftDeleted):
            return None


def is_soft_deleted(store: Store, path: bytes) -> bool:
    """Whether readers are told that the stream is gone, while its forks read it."""
    while True:
        try:
            store.visible(path)
            return False
        except NotResident:
            store.admit(store.load(path))
        except Unsettled:
            return False
        except SoftDeleted:
            return True


def present(store: Store, path: bytes) -> Stream:
    """`find` of a stream that is there."""
    stream = find(store, path)
    assert stream is not None
    return stream


def visible(store: Store, path: bytes) -> Stream | None:
    """The stream in durable state, loaded if need be; one whose expiry is under way is gone."""
    while True:
        try:
            return store.visible(path)
        except NotResident:
            store.admit(store.load(path))
        except (Unsettled, SoftDeleted):
            return None


def seen(store: Store, path: bytes) -> Stream:
    """`visible` of a stream that is there."""
    stream = visible(store, path)
    assert stream is not None
    return stream


def create(
    store: Store,
    path: bytes,
    content_type: str = BYTES,
    *,
    ttl_s: int | None = None,
    expires_ms: int | None = None,
    retention: Retention | None = None,
    body: bytes = b"",
    closed: bool = False,
) -> Outcome:
    """Create a stream, loading what is at its path."""
    while True:
        try:
            config = StreamConfig(content_type, ttl_s, expires_ms, retention)
            return store.create(path, config, body, closed)
        except NotResident:
            store.admit(store.load(path))


def fork(
    store: Store,
    path: bytes,
    source: bytes,
    offset: int | None = None,
    sub_offset: int = 0,
    *,
    content_type: str | None = None,
    ttl_s: int | None = None,
    expires_ms: int | None = None,
    retention: Retention | None = None,
    body: bytes = b"",
    closed: bool = False,
) -> Outcome:
    """Fork a stream that is there; the sub-offset counts bytes. A path in use is told first."""
    while True:
        root = None
        if offset:
            root = present(store, source).root
        types = (content_type, content_type)
        asked = Asked(source, root, offset, sub_offset, *types, ttl_s, expires_ms, retention)
        try:
            told = store.existing(path, asked, closed)
        except NotResident:
            store.admit(store.load(path))
            continue
        if told is not None:
            return told
        parent = present(store, source)
        seam = parent.tail if offset is None else offset + sub_offset
        return store.fork(path, asked, parent, seam, body, closed)


def append(
    store: Store,
    path: bytes,
    body: bytes = b"",
    *,
    producer: Producer | None = None,
    stream_seq: bytes | None = None,
    close: bool = False,
) -> Outcome:
    """Append to the stream at a path, loading it and its producer if need be.

    About every other plain append goes the short way, so that who appends here tests both.
    """
    while True:
        stream = present(store, path)
        media_type = stream.config.media_type if body else None
        if media_type is not None and stream.tail % 2 and not (producer or stream_seq or close):
            taken = store.append_plain(path, media_type, body)
            if taken is not None:
                outcome = Outcome(Kind.APPENDED, taken)
                outcome.batch = store.open_batch
                return outcome
        outcome = store.append(stream, Append(body, media_type, producer, stream_seq, close))
        if outcome.kind is not Kind.PRODUCER_NOT_LOADED:
            return outcome
        assert producer is not None
        store.admit_producer(stream, producer.id, store.load_producer(stream, producer.id))


def producer(store: Store, stream: Stream, identity: bytes) -> tuple[int, int] | None:
    """A producer's epoch and seq in accepted state, from memory or from the index."""
    if stream.producers_complete or identity in stream.producers:
        return stream.producers.get(identity)
    return store.load_producer(stream, identity)


def delete(store: Store, path: bytes) -> Outcome:
    """Delete the stream at a path."""
    return store.delete(present(store, path))


def commit(store: Store) -> None:
    """Commit what was accepted, which has to succeed."""
    assert store.commit() is None


def read(store: Store, stream: Stream, offset: int, limit_bytes: int = READ_BYTES) -> Chunk:
    """One chunk, from memory or from disk."""
    found = store.read(stream, offset, limit_bytes)
    return found.run() if isinstance(found, ColdRead) else found


def chunks(
    store: Store, stream: Stream, offset: int = 0, limit_bytes: int = READ_BYTES
) -> Iterator[Chunk]:
    """Chunks up to the durable tail; each has to go on where the one before it ended."""
    while True:
        chunk = read(store, stream, offset, limit_bytes)
        assert chunk.start == offset
        assert chunk.next == offset + len(chunk.data)
        assert chunk.up_to_date == (chunk.next == stream.durable_tail)
        assert chunk.closed == (chunk.up_to_date and stream.durable_closed)
        yield chunk
        if chunk.up_to_date:
            return
        assert chunk.data, "a read that is not at the tail has to get further"
        offset = chunk.next


def content(store: Store, path: bytes, limit_bytes: int = READ_BYTES) -> bytes:
    """All durable bytes of the stream at a path that are kept."""
    stream = seen(store, path)
    earliest = stream.durable_earliest
    return b"".join(chunk.data for chunk in chunks(store, stream, earliest, limit_bytes))


def retain(store: Store) -> int:
    """Accept the cuts that are due by what is indexed; how many those are."""
    due = store.due_cuts(store.now_ms())
    cuts = due.run()
    store.retain(due, cuts)
    return len(cuts)


def index_all(store: Store) -> None:
    """Bring the index up to what is durable."""
    while store._backlog.indexed_sequence < store._durable_sequence:
        store.index_step()


def forget(store: Store) -> None:
    """Index everything, and evict every stream from memory."""
    index_all(store)
    store.tick(store.now_ms())
    clock_ms = store.now_ms() + store.limits.idle_ms
    for _ in range(2 + store.limits.fork_depth_max):
        store._residents.evict(clock_ms, store._backlog.indexed_sequence)
    assert not len(store._residents)


def segment_files(directory: Path) -> list[Path]:
    """The log's files, oldest first."""
    return sorted((directory / "segments").glob("*.log"))


def digest(directory: Path, pattern: str = "**/*") -> dict[str, str]:
    """Each file's content, by name. LMDB's table of readers says nothing about data."""
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.glob(pattern))
        if path.is_file() and path.name != "lock.mdb"
    }
