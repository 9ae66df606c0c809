"""The front door: one object that decides, commits, reads and forgets.

The owner thread (the daemon's event loop) calls everything but `write`, `load`, `load_producer` and
`ColdRead.run`. An append goes: `append` decides and fills the open batch, `seal` joins it, `write`
(another thread) writes and syncs, `finish` makes it durable state. Only after `finish` may anybody
be told, so the caller waits on `Outcome.batch`. One sealed batch at most is under way.

Invariants
    durable ≤ accepted: readers see `durable_*` only; decisions are made on accepted state.
    A stream stays in memory until accepted = durable = indexed, so that the index alone is enough
    for what is not in memory.
    A path leads to its newest incarnation; an older one that readers still see is its `shadowed`.
"""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Self

from storage.accept import (
    accept_append,
    accept_create,
    accept_cut,
    accept_deadline,
    accept_delete,
    accept_plain_append,
    accept_value,
)
from storage.backlog import Backlog
from storage.chain import LogEnd
from storage.compaction import Compactor, Grant, Reclaimed
from storage.directory import DataDirectory
from storage.disk import Disk
from storage.errors import (
    CommitError,
    CorruptData,
    FramingError,
    IndexFailed,
    Latched,
    NotRetained,
    OutOfSpace,
    SoftDeleted,
    Unsettled,
)
from storage.family import Asked, Origin, bits_of, fork_config, same_fork
from storage.framing import Framed, Framing, is_heavy, try_frame
from storage.index import Index
from storage.index_entries import Checkpoint
from storage.indexer import Indexer
from storage.limits import Limits
from storage.listing import Listing
from storage.log import Log
from storage.pending import PendingBatch, Sealed
from storage.reading import Chunk, ColdRead, Reader, Segments, Snapshot
from storage.recovery import Recovered, recover, tidy
from storage.residents import Loaded, Residents, TailCache
from storage.retention import Cut, DueCuts
from storage.state import Append, Batch, Kind, Outcome, Stream, decide, misframed
from storage.stitching import stitched
from storage.stream_config import StreamConfig
from storage.values import Values

DUE_STREAMS_PER_TICK = 1_000
BUSY_BYTES_PER_S = 64 << 10
"""Of log written: compaction gives way to more than that."""
BUSY_SHARE = 16
"""The part that it then has of a processor, and of `Limits.compact_bytes_per_s` at least."""
FULL = "The disk is full: nothing was kept, and writing resumes when there is space."
LATCHED = "A write to disk failed: the store takes no more writes until the daemon is restarted."


class Finished(NamedTuple):
    """What a finished commit means: batches to answer, streams whose readers have to look."""

    batches: list[PendingBatch]
    woken: list[Stream]


class IndexLag(NamedTuple):
    """How far the index is behind; `seconds` is since the oldest batch that it lacks was sealed."""

    records: int
    size_bytes: int
    seconds: float


class Store:
    """An open data directory. Use `open`."""

    def __init__(
        self,
        directory: DataDirectory,
        limits: Limits,
        disk: Disk,
        index: Index,
        recovered: Recovered,
    ) -> None:
        self.directory = directory
        self.limits = limits
        self.recovered = recovered
        self.latched = False
        self.full = False
        self.indexing = False
        """An index step is under way somewhere; `indexed` ends it."""
        self.reclaimed = Reclaimed()
        """What compaction has done since the store was opened."""
        self._committed_bytes = self._granted_at_bytes = 0
        self._disk = disk
        self._index = index
        self._log = Log(
            disk, directory.segments, recovered.end, limits.segment_bytes, limits.zero_ahead_bytes
        )
        self._residents = Residents(limits)
        self._cache = TailCache(limits.tail_cache_bytes_max)
        segments = Segments(directory.segments, limits.open_segments_max)
        self._reader = Reader(segments, index, limits)
        self.reads = self._reader.counts
        """Reads by where their bytes came from."""
        self._next_stream_id = recovered.next_stream_id
        self._durable_sequence = recovered.end.sequence
        self._open = PendingBatch(recovered.end.sequence + 1)
        self._sealed: Sealed | None = None
        self._held: dict[Stream, None] = {}
        self._backlog = Backlog(limits, recovered.end.sequence, self.now_ms())
        self._values = Values(index)
        self._cut_after = (0, 0)

    @classmethod
    def open(cls, path: Path, limits: Limits | None = None, disk: Disk | None = None) -> Self:
        """Lock, check, recover and open a data directory; an empty one is made into one.

        Raises `OpenError` with a sentence, nothing on disk being changed; `DirectoryLocked` when
        another process has it.
        """
        limits = limits or Limits()
        disk = disk or Disk()
        directory = DataDirectory.open(path, disk)
        with contextlib.ExitStack() as undo:
            undo.callback(directory.unlock)
            directory.lock()
            directory.lock_index()
            if not directory.has_index():
                undo.callback(directory.remove_index)
            index = Index(directory.index, writable=True)
            undo.callback(index.close)
            if disk.free_bytes(path) < limits.reserve_bytes:
                directory.release_reserve(disk)  # for what recovery writes
            recovered = recover(directory, disk, index, limits.index_step_records)
            tidy(directory, disk, recovered)
            store = cls(directory, limits, disk, index, recovered)
            store.full = not directory.make_reserve(disk, limits.reserve_bytes)
            undo.pop_all()
        return store

    def close(self) -> None:
        """Commit what was accepted, bring the index up to date, and give the directory back."""
        self.commit()
        # Without space for the index nothing is lost: whoever opens next brings it up to date.
        with contextlib.suppress(IndexFailed):
            while not self.latched and self._backlog.indexed_sequence < self._durable_sequence:
                self.index_step()
        self._log.close()
        self._index.close()
        self.directory.unlock()

    def now_ms(self) -> int:
        """Milliseconds since 1970."""
        return time.time_ns() // 1_000_000

    # Look-ups

    def find(self, path: bytes) -> Stream | None:
        """The stream that accepted state has at a path: for PUT, POST and DELETE.

        Raises `NotResident` when the index has to be asked, `Unsettled` when there is none because
        of a deletion that is not durable yet, `SoftDeleted` when it is kept for its forks alone.
        """
        stream = self._residents.get(path)
        if stream is None:
            return None
        now_ms = self.now_ms()
        if not stream.deleted:
            if not stream.expired(now_ms):
                stream.used_ms = now_ms
                return stream
            self._expire(stream)
        self._settled(stream)
        if stream.soft_deleted:
            raise SoftDeleted(path.decode("utf-8", "replace"))
        return None

    def visible(self, path: bytes) -> Stream | None:
        """The stream that is durably at a path: for GET and HEAD. Raises as `find` does."""
        stream = self._residents.get(path)
        while stream is not None and not stream.durable:
            stream = stream.shadowed
        if stream is None:
            return None
        now_ms = self.now_ms()
        if not stream.gone and stream.expired(now_ms):
            self._expire(stream)
            self._settled(stream)
        if stream.durable_soft_deleted:
            raise SoftDeleted(path.decode("utf-8", "replace"))
        if stream.gone or stream.expired(now_ms):
            return None
        stream.used_ms = now_ms
        return stream

    def visible_now(self, path: bytes) -> Stream | None:
        """What `visible` says of a stream in memory that neither expires nor waits for anything.

        None says that it is not this simple.
        """
        stream = self._residents.peek(path)
        if stream is None or stream.deadline_ms is not None or not stream.durable or stream.gone:
            return None
        stream.used_ms = self.now_ms()
        return stream

    def load(self, path: bytes) -> Loaded:
        """Ask the index for the stream at a path. Any thread. Raises `CorruptData`."""
        evicted = self._residents.evicted
        return Loaded(path, self._index.chain_at(path), evicted)

    def admit(self, loaded: Loaded) -> None:
        """Take in what `load` found: look-ups of its path are answered from now on.

        While it was on its way the stream may have been loaded otherwise, changed and evicted
        again, so then the index is asked once more. Raises as `load` does.
        """
        if self._residents.outdated(loaded):
            loaded = self.load(loaded.path)
        now_ms = self.now_ms()
        self._residents.admit(loaded, now_ms)
        self._residents.make_room(now_ms, self._backlog.indexed_sequence)

    def load_producer(self, stream: Stream, producer_id: bytes) -> tuple[int, int] | None:
        """Ask the index for a producer's epoch and seq. Any thread. Raises `CorruptData`."""
        return self._index.producer(stream.id, producer_id)

    def admit_producer(
        self, stream: Stream, producer_id: bytes, known: tuple[int, int] | None
    ) -> None:
        """Take in what `load_producer` found, unless something newer was accepted meanwhile."""
        producers = stream.producers
        if len(producers) >= self.limits.producers_per_stream_max:
            for other in [other for other, state in producers.items() if state is None]:
                del producers[other]
        producers.setdefault(producer_id, known)

    def _settled(self, stream: Stream) -> None:
        """Return if the stream's accepted state is durable, else raise `Unsettled`."""
        batch = self.batch_of(stream)
        if batch is not None:
            raise Unsettled(batch)

    def batch_of(self, stream: Stream) -> Batch | None:
        """The batch that the stream's accepted state rests on, if it is not durable yet."""
        return self.resting_on(stream.last_sequence)

    def resting_on(self, sequence: int) -> Batch | None:
        """The batch with this sequence number, if it is not durable yet."""
        if sequence <= self._durable_sequence:
            return None
        if sequence == self._open.sequence or self._sealed is None:
            return self._open
        return self._sealed.batch

    # Decisions

    @property
    def accepting(self) -> bool:
        """Whether there is room for more appends; when not, wait for a batch or an index step."""
        limits = self.limits
        return (
            self._open.payload_bytes < limits.batch_bytes_max
            and len(self._open.records) < limits.batch_records_max
            and self._backlog.bearable
        )

    def create(
        self,
        path: bytes,
        config: StreamConfig,
        body: bytes,
        closed: bool,
        framed: Framed | FramingError | None = None,
    ) -> Outcome:
        """Create a stream (protocol 5.1): CREATED, or as `existing`, or a body that is wrong.

        `framed` is as in `Append`.
        Raises `CommitError` when the store takes no writes, `NotResident` as `find` does.
        """
        told = self.existing(path, config, closed)
        return told or self._create(path, config, body, closed, framed, None)

    def fork(
        self,
        path: bytes,
        asked: Asked,
        source: Stream,
        seam: int,
        body: bytes,
        closed: bool,
        framed: Framed | FramingError | None = None,
    ) -> Outcome:
        """Fork a stream that `find` has just told (protocol 4.2): as `create`, or TYPE_MISMATCH,
        FORK_TOO_DEEP, FORK_NOT_RETAINED.

        `seam` is an offset of the source, up to its accepted tail: the fork inherits what is
        below it. Whether a message ends there is the caller's to know. Raises as `create` does.
        """
        told = self.existing(path, asked, closed)
        if told is not None:
            return told
        if asked.media_type not in (None, source.config.media_type):
            return self._resting(Outcome(Kind.TYPE_MISMATCH, source))
        offset = seam if asked.offset is None else asked.offset
        if offset < source.earliest:
            return self._resting(Outcome(Kind.FORK_NOT_RETAINED, source))
        origin = Origin(source, offset, asked.sub_offset, seam, bits_of(asked))
        if origin.depth > self.limits.fork_depth_max:
            return self._resting(Outcome(Kind.FORK_TOO_DEEP, source))
        assert not source.deleted
        assert origin.offset <= seam <= source.tail
        config = fork_config(asked, source.config)
        return self._create(path, config, body, closed, framed, origin)

    def _create(
        self,
        path: bytes,
        config: StreamConfig,
        body: bytes,
        closed: bool,
        framed: Framed | FramingError | None,
        origin: Origin | None,
    ) -> Outcome:
        """Create a stream, or a fork, at a path that is free."""
        now_ms = self.now_ms()
        existing = self._residents.get(path)
        if not body:
            framed = Framed(b"", None)
        elif framed is None:
            framed = try_frame(config.framing, body)
        if isinstance(framed, FramingError):
            return misframed(framed, None)
        self._check_writable()
        if existing is not None and not existing.deleted:
            accept_delete(self._open, existing)
        stream = Stream(self._next_stream_id, path, config, now_ms)
        if origin is not None:
            stream.origin = origin
            stream.root = origin.source.root
        self._next_stream_id += 1
        if existing is not None:
            stream.shadowed = existing if existing.durable else existing.shadowed
        self._open.undo.append((self._residents.put_back, (path, existing)))
        self._residents.put(stream)
        accept_create(self._open, stream, framed, closed, now_ms)
        self._residents.make_room(now_ms, self._backlog.indexed_sequence)
        return self._resting(Outcome(Kind.CREATED, stream))

    def existing(self, path: bytes, asked: StreamConfig | Asked, closed: bool) -> Outcome | None:
        """What a PUT meets at a path: EXISTS, CONFLICT, SOFT_DELETED, or None if it is free.

        Raises `NotResident` as `find` does, `Latched`.
        """
        if not 0 < len(path) <= self.limits.path_bytes_max:
            raise ValueError("the index takes no such path, and so could never go on")
        stream = self._residents.get(path)
        if stream is None:
            return None
        if not stream.deleted:
            if not stream.expired(self.now_ms()):
                same = stream.closed == closed and (
                    same_fork(stream, asked)
                    if isinstance(asked, Asked)
                    else stream.origin is None and stream.config.matches(asked)
                )
                return self._resting(Outcome(Kind.EXISTS if same else Kind.CONFLICT, stream))
            if not stream.forks:
                return None
            if self.latched:
                raise Latched(LATCHED)
            self._expire(stream)
        if stream.soft_deleted:
            return self._resting(Outcome(Kind.SOFT_DELETED, stream))
        return None

    def append(self, stream: Stream, append: Append) -> Outcome:
        """Append to, or close, a stream (protocol 5.2, 5.3), or say why not.

        Raises `CommitError` when the store takes no writes.
        """
        now_ms = self.now_ms()
        if stream.deleted or stream.expired(now_ms):
            return self._resting(Outcome(Kind.MISSING, stream))
        decision = decide(stream, append, self.limits.producers_per_stream_max)
        if isinstance(decision, Outcome):
            if decision.kind in (Kind.DUPLICATE, Kind.ALREADY_CLOSED) and not self.full:
                self.touch(stream)
            return self._resting(decision)
        self._check_writable()
        accept_append(self._open, stream, append, decision, now_ms)
        outcome = Outcome(Kind.APPENDED, stream)
        if append.producer is not None:
            _, outcome.epoch, outcome.seq = append.producer
        outcome.batch = self._open
        return outcome

    def append_plain(self, path: bytes, media_type: str, body: bytes) -> Stream | None:
        """Append to a stream in memory that neither expires nor refuses, if it can be at once.

        The way of nearly every append: no producer, no `Stream-Seq`, not closing, a body. None
        says that it is not this simple and nothing was done; then `find` and `append` decide.
        When it was accepted it rests on `open_batch`.
        """
        stream = self._residents.peek(path)
        if (
            stream is None
            or stream.deadline_ms is not None
            or stream.closed
            or stream.deleted
            or stream.config.media_type != media_type
            or self.latched
            or self.full
            or not self.accepting
        ):
            return None
        framing = stream.config.framing
        if framing is not Framing.JSON:
            accept_plain_append(self._open, stream, body, None)
            return stream
        framed = None if is_heavy(framing, body) else try_frame(framing, body)
        if not isinstance(framed, Framed) or not framed.data:
            return None
        accept_plain_append(self._open, stream, framed.data, framed.lengths)
        return stream

    @property
    def open_batch(self) -> Batch:
        """The batch that fills."""
        return self._open

    def delete(self, stream: Stream) -> Outcome:
        """Delete a stream (protocol 5.4): DELETED, or MISSING. Raises `Latched`."""
        if stream.deleted or stream.expired(self.now_ms()):
            return self._resting(Outcome(Kind.MISSING, stream))
        if self.latched:
            raise Latched(LATCHED)
        accept_delete(self._open, stream)
        return self._resting(Outcome(Kind.DELETED, stream))

    def touch(self, stream: Stream) -> Batch | None:
        """A read or a repeated write was begun: a TTL's window slides (protocol 5.1).

        Returns the batch that the new deadline rests on, at most once per half grain: who answers
        before it is durable tells what a crash could take back.
        """
        deadline_ms = stream.slide(self.now_ms())
        if self.latched or stream.deleted or not stream.durable:
            return None
        if deadline_ms is None:
            return self.resting_on(stream.deadline_sequence)
        accept_deadline(self._open, stream, deadline_ms)
        return self._open

    def cut(self, stream: Stream, earliest: int) -> None:
        """Drop what a stream has before an offset where a message begins, and that is durable.

        Nothing happens to a stream that has ended, or was cut there before. Raises `Latched`.
        """
        if stream.deleted or not stream.earliest < earliest <= stream.durable_tail:
            return
        if self.latched:
            raise Latched(LATCHED)
        accept_cut(self._open, stream, earliest)

    def hold(self, stream: Stream) -> None:
        """A live reader follows the stream from now on: it stays in memory, its TTL waits, and its
        end at a fixed time is not left to the index."""
        stream.live_readers += 1
        if stream.deadline_ms is not None:
            self._held[stream] = None

    def release(self, stream: Stream) -> None:
        """A live reader has gone."""
        stream.live_readers -= 1
        if not stream.live_readers:
            self._held.pop(stream, None)
        if not stream.gone:
            self.touch(stream)

    def put_value(
        self, key: bytes, value: bytes, restore: Callable[..., None], *arguments: Any
    ) -> Batch:
        """Keep a value under a key from now on; an empty one removes the key, also when full.

        Returns the batch it rests on. If that fails, `restore(*arguments)` is called: what fails
        together is taken back in the reverse order, before any waiter of the batch is told.
        Raises `CommitError` when the store takes no writes, `ValueError` for what is too long.
        """
        limits = self.limits
        if not 0 < len(key) <= limits.value_key_bytes_max or len(value) > limits.value_bytes_max:
            raise ValueError("the index takes no such key or value, and so could never go on")
        if value:
            self._check_writable()
        elif self.latched:
            raise Latched(LATCHED)
        self._open.undo.append((restore, arguments))
        accept_value(self._open, key, value)
        return self._open

    def value(self, key: bytes) -> bytes | None:
        """What is durably kept under a key. Raises `CorruptData`."""
        return self._values.get(key)

    def values(self, prefix: bytes) -> list[tuple[bytes, bytes]]:
        """What is durably kept under all keys that begin with `prefix`, in order of the keys.

        Raises `CorruptData`.
        """
        return self._values.scan(prefix)

    def _resting(self, outcome: Outcome) -> Outcome:
        if outcome.stream is not None:
            outcome.batch = self.batch_of(outcome.stream)
        return outcome

    def _check_writable(self) -> None:
        if self.latched:
            raise Latched(LATCHED)
        if self.full:
            raise OutOfSpace(FULL)

    def _expire(self, stream: Stream) -> None:
        """Write down that a stream's time is over, where writing is possible."""
        if not self.latched and not stream.deleted:
            accept_delete(self._open, stream)

    # Commits

    def seal(self) -> Sealed | None:
        """Close the open batch and frame it; None if there is nothing, or one is under way."""
        batch = self._open
        if self._sealed is not None or not batch.records:
            return None
        self._open = PendingBatch(batch.sequence + 1)
        placement = self._log.place(batch.size_bytes_max(), self._next_stream_id)
        self._sealed = Sealed(batch, placement, self.now_ms(), self._log.end.checksum)
        return self._sealed

    def write(self, sealed: Sealed) -> None:
        """Write and sync a sealed batch. Any thread. Raises `CommitError`."""
        encoded = sealed.encoded
        try:
            sealed.sync_s = self._log.write(sealed.placement, encoded.buffers, encoded.size_bytes)
        except OutOfSpace:
            if not sealed.batch.reclaims:
                raise
            try:
                self.directory.release_reserve(self._disk)
            except OSError as error:
                raise Latched(f"giving back the reserve failed: {error.strerror}") from error
            sealed.sync_s = self._log.write(sealed.placement, encoded.buffers, encoded.size_bytes)

    def finish(self, sealed: Sealed, error: CommitError | None) -> Finished:
        """Make a written batch durable state, or take it back, with all accepted since."""
        self._sealed = None
        if error is not None:
            return self._take_back(sealed, error)
        encoded = sealed.encoded
        batch = sealed.batch
        placement = sealed.placement
        self._committed_bytes += encoded.size_bytes
        self._log.advance(placement, encoded.size_bytes, batch.sequence, encoded.checksum)
        self._durable_sequence = batch.sequence
        for run in sealed.runs:
            run.stream.add_run(run)
        self._cache.add(sealed.runs, self._backlog.indexed_sequence)
        woken = []
        for stream, tail, closed, deleted, soft_deleted in sealed.effects:
            if tail != stream.durable_tail or closed != stream.durable_closed or deleted:
                woken.append(stream)
            if not stream.durable:
                stream.durable = True
                stream.created_ms = sealed.time_ms  # as a restart would find it
                stream.shadowed = None
            stream.durable_tail = tail
            stream.durable_closed = closed
            stream.used_ms = sealed.time_ms
            stream.gone = deleted
            stream.durable_soft_deleted = soft_deleted
        if batch.values:
            self._values.committed(batch.sequence, batch.values)
        for stream, earliest in batch.cuts.items():
            stream.durable_earliest = earliest
            if not stream.forks:  # else they may read it
                self._cache.forget(stream.runs.cut(earliest))
        self._backlog.add(sealed)
        return Finished([batch], woken)

    def commit(self) -> CommitError | None:
        """Seal, write and finish in one go (owner thread): for tests, tools and closing."""
        sealed = self.seal()
        if sealed is None:
            return None
        failure = None
        try:
            self.write(sealed)
        except CommitError as error:
            failure = error
        for batch in self.finish(sealed, failure).batches:
            for waiter in batch.waiters:
                waiter(failure)
        return failure

    def _take_back(self, sealed: Sealed, error: CommitError) -> Finished:
        failed = [sealed.batch, self._open]
        for batch in reversed(failed):
            for restore, arguments in reversed(batch.undo):
                restore(*arguments)
        self._open = PendingBatch(sealed.batch.sequence)
        if isinstance(error, OutOfSpace):
            self.full = True
            if self._log.end.position > self.limits.reserve_bytes:
                self._log.roll_soon()  # Most of what can be given back may lie in this segment.
        else:
            self.latched = True
        return Finished(failed, [])

    # The index

    def index_due(self) -> LogEnd | None:
        """How far the index should be taken now; None if that can wait."""
        due = not self.indexing and self._backlog.due(self.now_ms())
        return self._log.end if due else None

    def indexed(self, checkpoint: Checkpoint) -> None:
        """The index got this far: what it has need not stay in memory."""
        self.indexing = False
        self._backlog.reached(checkpoint.sequence, self.now_ms())
        self._values.reached(checkpoint.sequence)

    def index_lag(self) -> IndexLag:
        """What is durable and not in the index yet."""
        backlog = self._backlog
        oldest_ms = backlog.oldest_ms
        age_ms = 0 if oldest_ms is None else max(0, self.now_ms() - oldest_ms)
        return IndexLag(backlog.records, backlog.size_bytes, age_ms / 1_000)

    def index_step(self) -> None:
        """Take the index on by one step, here and now."""
        indexer = Indexer(self.directory.segments, self._index)
        self.indexed(indexer.step(self._log.end, self.limits.index_step_records))

    def share_index(self) -> None:
        """From now on another process writes the index; this one reads it."""
        self._index.close()
        self.directory.unlock_index()
        self._index.reopen(writable=False)

    def own_index(self) -> None:
        """The other process has ended: write the index here again. Raises `DirectoryLocked`."""
        self.directory.lock_index()
        self._index.close()
        self._index.reopen(writable=True)

    @property
    def resident_streams(self) -> int:
        """How many streams are in memory."""
        return len(self._residents)

    @property
    def tail_cache_bytes(self) -> int:
        """How much recent payload is in memory, each run's own overhead included."""
        return self._cache.size_bytes

    def compactor(self) -> Compactor:
        """What compacts this directory here and now: for who writes the index here."""
        return Compactor(self.directory, self._index, self._disk, self.limits)

    def segments_removed(self) -> None:
        """Some segments were compacted, and are gone."""
        self._reader.segments_removed()

    def compacted(self, removed: int, removed_bytes: int, written: int, written_bytes: int) -> None:
        """Another process removed so many segments, for what it wrote."""
        self.reclaimed.removed += removed
        self.reclaimed.removed_bytes += removed_bytes
        self.reclaimed.written += written
        self.reclaimed.written_bytes += written_bytes
        self.segments_removed()

    def compaction_grant(self) -> Grant:
        """How much may be compacted in the second that begins; call it once a second.

        While much is appended it is a small share, and yet enough bytes to keep up with it.
        """
        written_bytes = self._committed_bytes - self._granted_at_bytes
        self._granted_at_bytes = self._committed_bytes
        rate = self.limits.compact_bytes_per_s
        if self.latched:
            return Grant(0, 0)
        if written_bytes < BUSY_BYTES_PER_S:
            return Grant(rate, 1_000)
        return Grant(min(rate, max(rate // BUSY_SHARE, 2 * written_bytes)), 1_000 // BUSY_SHARE)

    def space(self) -> tuple[int, int]:
        """The bytes of the log's files, and how many of them are payload that somebody can read.

        Any thread. Raises `CorruptData`, `OSError`.
        """
        total = 0
        for file in self.directory.segments.iterdir():
            with contextlib.suppress(FileNotFoundError):  # It has just been compacted.
                total += file.stat().st_size
        return total, self.live_bytes()

    def live_bytes(self) -> int:
        """How many bytes of payload in the log somebody can read.

        Any thread. Raises `CorruptData`.
        """
        return sum(self._index.live_bytes().values())

    # Reading

    def read(self, stream: Stream, offset: int, limit_bytes: int) -> Chunk | ColdRead:
        """Durable bytes from `offset` (the earliest to the durable tail), about `limit_bytes`.

        A `Chunk` when memory or the page cache has them and they are not many, else a `ColdRead` to
        run in a thread: to copy and check some MiB takes milliseconds, and needs no interpreter.
        Raises `OffsetError` for an offset inside a JSON message, `NotRetained` for one before the
        earliest, `CorruptData` for damage, which a cut meanwhile may look like.
        """
        tail = stream.durable_tail
        if offset < stream.durable_earliest:
            raise NotRetained("The offset lies before the earliest that is kept.")
        if offset >= tail:
            return Chunk(b"", offset, offset, True, stream.durable_closed)
        newest = stream.runs.newest()
        if newest is not None and newest.start == offset and newest.end == tail:
            data = newest.data
            if data is not None and len(data) <= limit_bytes:  # what a live reader mostly asks for
                self.reads.memory += 1
                return Chunk(data, offset, tail, True, stream.durable_closed)
        snapshot = Snapshot(
            stream.id, stream.config.framing, offset, limit_bytes, tail, stream.durable_closed
        )
        origin = stream.origin
        if origin is not None and offset < origin.seam:
            return stitched(self._reader, snapshot, stream)
        first = stream.runs.first_start()
        if first is not None and first <= offset:
            runs = stream.runs.covering(offset, limit_bytes)
            chunk = self._reader.remembered(snapshot) or self._reader.quick(snapshot, runs)
            return chunk or ColdRead(self._reader, snapshot, runs, offset)
        chunk = self._reader.planned(snapshot)
        if chunk is not None:
            return chunk
        if first is None:
            return ColdRead(self._reader, snapshot, [], tail)
        return ColdRead(self._reader, snapshot, stream.runs.covering(first, limit_bytes), first)

    def listing(self, prefix: bytes, after: bytes | None, limit: int) -> Listing:
        """The first `limit` streams, or fewer, whose paths begin with `prefix` and sort after
        `after`: to run in a thread."""
        backlog = self._backlog

        def settled() -> int | None:
            """The newest durable batch, unless its streams are being changed just now."""
            sequence = self._durable_sequence
            return sequence if backlog.added_sequence == sequence else None

        unindexed = backlog.streams()
        return Listing(self._index, unindexed, settled, self.now_ms(), prefix, after, limit)

    # Once a second

    def tick(self, now_ms: int) -> None:
        """Expire, evict, and see whether a full disk has space again; may fill the open batch."""
        if self.full and self._has_space():
            self.full = False
        if not self.latched:
            self._expire_due(now_ms)
        self._residents.evict(now_ms, self._backlog.indexed_sequence)

    def _has_space(self) -> bool:
        free_bytes = self._disk.free_bytes(self.directory.path)
        if free_bytes < 2 * self.limits.reserve_bytes:
            return False
        return self.directory.make_reserve(self._disk, self.limits.reserve_bytes)

    def _expire_due(self, now_ms: int) -> None:
        """Reap streams whose written-down deadline has passed: an idle stream costs nothing.

        Streams with live readers are renewed before, so that a crash cannot end them early.
        """
        for held in self._held:
            if held.expired(now_ms):
                self._expire(held)  # the index may not know of it yet
            else:
                self.touch(held)
        for path in self._index.due(now_ms, DUE_STREAMS_PER_TICK):
            try:
                self.admit(self.load(path))
            except CorruptData:
                continue
            stream = self._residents.get(path)
            if stream is None or stream.deleted:
                continue
            if stream.expired(now_ms):
                self._expire(stream)
            elif stream.live_readers:
                self.touch(stream)

    def due_cuts(self, now_ms: int) -> DueCuts:
        """Looking for streams that hold more than they are to keep: to run in a thread, one at a
        time, and to be told to `retain`."""
        return DueCuts(self._index, self._reader, self.load, now_ms, self._cut_after)

    def retain(self, due: DueCuts, cuts: list[Cut]) -> None:
        """Cut the streams that a look found; may fill the open batch."""
        self._cut_after = due.after
        if self.latched:
            return
        for cut in cuts:
            loaded = cut.loaded
            try:
                self.admit(loaded)
            except CorruptData:
                continue
            stream = self._residents.get(loaded.path)
            if stream is not None and stream.id == loaded.chain[0][0]:
                self.cut(stream, cut.earliest)
