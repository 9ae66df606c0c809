"""Compaction: what is live of sparse segments is rewritten, and they are removed.

Sources are sealed segments of the log that the index has completely, and compacted segments. What
is live of them goes into a new compacted segment (`storage.compacted`), stream by stream: a state
that says all that the stream's records said, and the payload that somebody can read, joined to
larger runs. Then the index is told in one transaction, and then the sources are removed.

Invariants
    A1  Every stream that is there, and has anything in a source, has its whole state in the output,
        as of a batch that the index had then, and so later than all of the sources.
    A2  A deletion stays told, by a tombstone in the output, as long as a segment that is not among
        the sources may hold the stream's creation or its state.
    A3  The output has its name only when all of it is synced. From then on it stands for its
        sources; the index is told only when the directory is synced too. No source is removed
        before that is durable.
    A4  The index is told only if its own count of live bytes then says that no run of any stream
        lies in a source any more. Otherwise the output is removed, and the sources stay.
    A5  There is one compaction at a time. It begins by removing what an earlier one left: an output
        that the index was not told of, or sources that were still there; if a backup has them, it
        does not begin.

A crash between any two steps leaves either all sources and an output that says nothing yet, or an
output that stands for them. Damage in a source ends it: what cannot be read cannot be moved.

`run` is a generator that yields after each piece of work, so that whoever runs it decides when, and
how fast. While it waits the index may get further, but nothing else may write it.
"""

import time
from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from storage.batch import damaged_block
from storage.chain import Chain, open_chain
from storage.compacted import Compacted, Summary, join_gaps, state_record
from storage.directory import DataDirectory
from storage.disk import NO_SPACE, Disk, read_at
from storage.errors import CorruptData, OpenError, OutOfSpace
from storage.index import Index, IndexTransaction
from storage.index_entries import Checkpoint, Contents, RunPlace
from storage.limits import Limits
from storage.output import Output
from storage.rebuild import placed, sources_of
from storage.record import Entry, Producer, Record, RecordType
from storage.removal import remove
from storage.retention import next_due_ms
from storage.segment import COMPACTED_IDS, list_segments, segment_path
from storage.sources import (
    DEAD_SHARE_MIN,
    SOURCES_MAX,
    IdSet,
    Source,
    Survivors,
    choose,
    sources,
    worth_alone,
)

RUN_BYTES_MAX = 1 << 20
"""A stream's payload is joined to runs of about this size: large reads, and yet what is deleted of
a stream's front or end is given back."""
PLACES_PER_LOOK = 1_000
STATE_BYTES = 160
"""About what a stream's state takes."""
GAIN_SHARE_MIN = 0.2
"""Sources that would not shrink by this share are left alone for a while."""
LEFT_ALONE_S = 600.0
RESERVE_LENT_SHARE = 0.75
"""Of the reserve, at most, where the disk is full; the rest stays for deletions."""
WAITING_SEGMENTS_MAX = 8
"""What so many segments would hold may wait to be given back, for `Compactor.pressure` to be 1."""
STREAMS_MAX = 200_000
"""In the sources together, but for the first: the index is told of all of them in one transaction,
and indexing waits for that."""
STEP_BYTES = 256 * 1024
"""What one look at something counts as, where no bytes are read or written."""


@dataclass(slots=True)
class Reclaimed:
    """What compaction has done: how many segments it removed and wrote, and their bytes."""

    removed: int = 0
    written: int = 0
    removed_bytes: int = 0
    written_bytes: int = 0
    changes: int = 0
    """How often files went: who has some open should let go of them then."""


class Grant(NamedTuple):
    """How much compaction may do in some time: bytes read and written, ms on a processor."""

    size_bytes: int
    processor_ms: int


class Compactor:
    """Compacts a data directory, for the process that writes its index."""

    def __init__(self, directory: DataDirectory, index: Index, disk: Disk, limits: Limits) -> None:
        self.done = Reclaimed()
        self._directory = directory
        self._index = index
        self._disk = disk
        self._limits = limits
        self._left_alone: dict[int, float] = {}
        self._room_bytes = 0
        self._sources_max = SOURCES_MAX
        self._lent = False

    def run(self) -> Generator[int, None, None]:
        """Compact some segments, if any are worth it; yields about the bytes read and written.

        Raises `OutOfSpace`, `CorruptData`, `OpenError` and `IndexFailed` when all is as before, or
        the next one will make it so; `OSError` when none should be tried before a restart.
        """
        index = self._index
        checkpoint = index.checkpoint()
        if checkpoint is None or index.horizon():
            return
        known = index.live_bytes(COMPACTED_IDS)
        chain = open_chain(self._directory.segments, known)
        left = [*chain.unknown, *chain.obsolete]
        if not remove(self._directory, self._disk, left):
            return
        if left:
            self.done.changes += 1
        chosen = self._choose(chain, checkpoint)
        try:
            if chosen:
                yield from self._compact(chain, chosen, checkpoint)
        except CorruptData as error:
            damaged = [source for source in chosen if source.segment.name == error.file]
            for source in damaged or chosen:
                self._left_alone[source.id] = float("inf")
            raise
        except OSError as error:
            if error.errno not in NO_SPACE:
                raise
            self._take_less(chosen)
            raise OutOfSpace(f"the disk is full: {error.strerror}") from error
        else:
            self._sources_max = SOURCES_MAX
        finally:
            if self._lent:
                self._lent = False
                self._directory.make_reserve(self._disk, self._limits.reserve_bytes)

    def pressure(self) -> float:
        """How much of the log waits to be compacted: up to 1 is as it should be.

        Raises `StorageError`, `OSError`.
        """
        live_bytes = self._index.live_bytes()
        waiting_bytes = 0
        for path in list_segments(self._directory.segments).log:
            segment_id = int(path.stem)
            size_bytes = path.stat().st_size
            dead_bytes = size_bytes - live_bytes.get(segment_id, 0)
            if dead_bytes >= DEAD_SHARE_MIN * size_bytes and segment_id not in self._left_alone:
                waiting_bytes += dead_bytes
        return waiting_bytes / (WAITING_SEGMENTS_MAX * self._limits.segment_bytes)

    def _choose(self, chain: Chain, checkpoint: Checkpoint) -> list[Source]:
        now = time.monotonic()
        found = [
            source
            for source in sources(chain, checkpoint, self._index.live_bytes())
            if self._left_alone.get(source.id, now) <= now
        ]
        stream_count = self._index.stream_count()
        self._make_room()
        segment_bytes = self._limits.segment_bytes
        chosen = choose(found, segment_bytes, stream_count, self._room_bytes)
        return chosen[: self._sources_max]

    def _make_room(self) -> None:
        """Find out how much may be written.

        The reserve is for deletions. Where nothing else is left, a part of it is lent for a little:
        whatever is compacted then gives back more than it takes.
        """
        reserve_bytes = self._limits.reserve_bytes
        lent_bytes = int(reserve_bytes * RESERVE_LENT_SHARE)
        free_bytes = self._disk.free_bytes(self._directory.path)
        self._room_bytes = max(free_bytes - reserve_bytes, 0)
        if self._room_bytes >= reserve_bytes:
            self._directory.make_reserve(self._disk, reserve_bytes)
        elif self._room_bytes < lent_bytes:
            if free_bytes < lent_bytes:
                self._lent = True
                self._directory.lend_reserve(self._disk, reserve_bytes - lent_bytes)
            self._room_bytes = lent_bytes
            self._sources_max = 1

    def _take_less(self, chosen: list[Source]) -> None:
        """What is live of these, and their streams' states, had no room: others may."""
        self._sources_max = max(len(chosen) // 2, 1)
        if len(chosen) == 1:
            self._left_alone[chosen[0].id] = time.monotonic() + LEFT_ALONE_S

    def _compact(self, chain: Chain, chosen: list[Source], checkpoint: Checkpoint) -> Iterator[int]:
        chosen = yield from self._worth_it(chosen)
        if not chosen:
            return
        newest = max([COMPACTED_IDS, *(file.id for file in chain.compacted)])
        output = Output(
            self._disk,
            self._directory,
            newest + 1,
            checkpoint.next_stream_id,
            self._room_bytes,
        )
        try:
            rewrite = Rewrite(self._index, output, chosen, Survivors(chain, chosen))
            yield from rewrite.scan()
            yield from rewrite.copy()
            after = self._index.checkpoint()
            assert after is not None
            output.finish(rewrite.summary(checkpoint.sequence, after.sequence))
        finally:
            output.close()
        path = segment_path(self._directory.segments, output.id)
        try:
            file = Compacted(path)
            yield from _read_back(file)
            self._switch(file, {source.id: source for source in chosen})
        except (CorruptData, OpenError):
            remove(self._directory, self._disk, [path])
            raise
        self.done.written += 1
        self.done.written_bytes += file.size_bytes()
        yield STEP_BYTES
        for source in chosen:
            self.done.removed += 1
            self.done.removed_bytes += source.end
        self.done.changes += 1
        remove(self._directory, self._disk, [source.segment.path for source in chosen])

    def _worth_it(self, chosen: list[Source]) -> Generator[int, None, list[Source]]:
        """Those that would shrink: many idle streams take space without any payload."""
        kept: list[Source] = []
        stream_count = self._index.stream_count()
        streams_left = STREAMS_MAX
        for source in chosen:
            streams = IdSet()
            worth_bytes = int((1 - GAIN_SHARE_MIN) * source.end) - source.live_bytes
            if source.compacted is not None:  # To have fewer of them is worth it, too.
                alive = min(source.compacted.summary.streams, stream_count)
                # Two of them are joined, however many streams they have: else they would add up.
                if len(kept) < 2 or alive <= streams_left:
                    streams_left -= alive
                    kept.append(source)
                continue
            if stream_count <= min(worth_bytes // STATE_BYTES, STREAMS_MAX):
                kept.append(source)  # Most are soon judged.
                continue
            for _, batch in source.batches():
                for record in batch.records:
                    streams.add(record.stream_id)
                for run in batch.runs:
                    streams.add(run.stream_id)
                yield batch.head.header_bytes
            alive = 0
            for group in streams.groups():
                alive += self._index.alive(group)
                yield STEP_BYTES // 16
            if alive * STATE_BYTES > worth_bytes:
                self._left_alone[source.id] = time.monotonic() + LEFT_ALONE_S
            elif not kept or alive <= streams_left:
                streams_left -= alive
                kept.append(source)
        if len(kept) == 1 and not worth_alone(kept[0], stream_count):
            return []
        return kept

    def _switch(self, file: Compacted, chosen: dict[int, Source]) -> None:
        """Tell the index where everything is now. Raises `CorruptData`, with nothing changed."""
        live: Counter[int] = Counter({file.id: 0})
        with_cuts: dict[int, None] = {}
        with self._index.write() as transaction:
            for batch in file.batches(records=False):
                for stream_id, places in placed(file.id, batch):
                    meta = transaction.meta(stream_id)
                    if meta is None:
                        continue  # It was deleted meanwhile.
                    dead, put = transaction.place_runs(stream_id, places, chosen)
                    for place in dead:
                        live[place.segment_id] -= place.length
                    for place in put:
                        live[file.id] += place.length
                    if meta.forks or meta.retention is not None:
                        with_cuts[stream_id] = None
            for segment_id, change_bytes in live.items():
                transaction.add_live_bytes(segment_id, change_bytes)
            for stream_id in with_cuts:
                _renew_cuts(transaction, stream_id)
            for segment_id, source in chosen.items():
                left_bytes = transaction.forget_segment(segment_id)
                if left_bytes:
                    what = f"{left_bytes} bytes of it are still needed after it was compacted"
                    raise CorruptData(source.segment.name, 0, what)


def _renew_cuts(transaction: IndexTransaction, moved_id: int) -> None:
    """Where a stream can be cut, and so when, depends on where its runs and their blocks begin; for
    forks on their sources' runs."""
    waiting = [moved_id]
    while waiting:
        stream_id = waiting.pop()
        meta = transaction.meta(stream_id)
        if meta is None:
            continue
        if meta.forks:
            waiting += transaction.forks_of(stream_id)
        retention = meta.retention
        if retention is not None:
            old_due_ms = retention.due_ms
            if stream_id == moved_id:
                transaction.note_last_entry(stream_id, retention)
            forks = sources_of(transaction, meta)
            retention.due_ms = next_due_ms(meta, forks, stream_id, transaction.run_at)
            transaction.put_stream(stream_id, meta, meta.deadline_ms, old_due_ms)


def _read_back(file: Compacted) -> Iterator[int]:
    """See that all of an output can be read, before anything rests on it. Raises `CorruptData`."""
    seed, fd = file.segment.seed, file.segment.fd
    for batch in file.batches():
        position = batch.payload_position
        for run in batch.runs:
            data = read_at(fd, run.length, position)
            wrong = damaged_block(seed, run.stream_id, run.start, run.blocks, data)
            if wrong is not None:
                raise CorruptData(file.name, position + wrong, "what was written reads differently")
            position += run.length
        yield batch.head.size_bytes


class Rewrite:
    """The work on one output: looking at the sources, then copying stream by stream."""

    def __init__(
        self, index: Index, output: Output, chosen: list[Source], survivors: Survivors
    ) -> None:
        self._index = index
        self._output = output
        self._chosen = {source.id: source for source in chosen}
        self._survivors = survivors
        self._streams = IdSet()
        self._values: dict[bytes, int] = {}
        """Keys that have a record in the sources, and the newest batch of one."""

    def scan(self) -> Iterator[int]:
        """Find out which streams and values lie in the sources, and keep tombstones."""
        for source in self._chosen.values():
            looked_bytes = 0
            for sequence, batch in source.batches():
                for record in batch.records:
                    self._look(record, sequence)
                for run in batch.runs:
                    self._streams.add(run.stream_id)
                looked_bytes += batch.head.header_bytes
                if looked_bytes >= STEP_BYTES or self._output.is_full():
                    yield looked_bytes + self._output_if_full()
                    looked_bytes = 0

    def _look(self, record: Record, sequence: int) -> None:
        if record.type is RecordType.VALUE:
            if record.value is not None:
                key = record.value.key
                self._values[key] = max(self._values.get(key, 0), sequence)
        elif record.type is RecordType.DELETE:
            deleted = sequence if record.origin is None else record.origin
            if self._survivors.may_hold_stream(record.stream_id, deleted):
                self._output.tombstones += 1
                tombstone = Record(
                    RecordType.DELETE, record.stream_id, record.offset, origin=deleted
                )
                self._output.add(tombstone)
        else:
            self._streams.add(record.stream_id)

    def copy(self) -> Iterator[int]:
        """Write what is live into the output."""
        for key, sequence in self._values.items():
            self._copy_value(key, sequence)
            if self._output.is_full():
                yield self._output_if_full()
        for group in self._streams.groups():
            for stream_id in group:
                origin, found = self._index.contents([stream_id])
                if found:
                    yield from self._copy_stream(found[0], origin)
            yield STEP_BYTES // 16
        yield self._output.flush()

    def _copy_value(self, key: bytes, sequence: int) -> None:
        checkpoint = self._index.checkpoint()
        assert checkpoint is not None
        value = self._index.value(key) or b""
        if value or self._survivors.may_hold_value(sequence):
            entry = Entry(key, value)
            record = Record(RecordType.VALUE, 0, 0, origin=checkpoint.sequence, value=entry)
            self._output.add(record)

    def _copy_stream(self, contents: Contents, origin: int) -> Iterator[int]:
        stream_id, meta, producers = contents
        output = self._output
        output.streams += 1
        output.add(state_record(stream_id, meta, origin))
        for producer in producers:
            record = Record(
                RecordType.STATE, stream_id, meta.tail, producer=Producer(*producer), origin=origin
            )
            output.add(record)
            if output.is_full():
                yield self._output_if_full()
        run: list[RunPlace] = []
        parts: list[bytes] = []
        size = 0
        for place in self._places(stream_id):
            follows = bool(run) and run[-1].start + run[-1].length == place.start
            if run and (not follows or size + place.length > RUN_BYTES_MAX):
                output.add_run(stream_id, run, parts)
                if output.is_full():
                    yield size + self._output_if_full()
                run, parts, size = [], [], 0
            run.append(place)
            parts.append(self._payload(stream_id, place))
            size += place.length
        if run:
            output.add_run(stream_id, run, parts)
        if output.is_full():
            yield size + self._output_if_full()

    def _places(self, stream_id: int) -> Iterator[RunPlace]:
        """A stream's runs in the sources."""
        offset = 0
        while found := self._index.places(stream_id, offset, PLACES_PER_LOOK):
            for place in found:
                if place.segment_id in self._chosen:
                    yield place
            offset = found[-1].start + 1

    def _payload(self, stream_id: int, place: RunPlace) -> bytes:
        segment = self._chosen[place.segment_id].segment
        data = read_at(segment.fd, place.length, place.position)
        wrong = damaged_block(segment.seed, stream_id, place.start, place.blocks, data)
        if wrong is not None:
            what = f"the payload of stream {stream_id} is damaged, and so cannot be moved"
            raise CorruptData(segment.name, place.position + wrong, what)
        return data

    def _output_if_full(self) -> int:
        return self._output.flush() if self._output.is_full() else 0

    def summary(self, low: int, high: int) -> Summary:
        """What the output stands for."""
        gaps = []
        replaced = []
        for source in self._chosen.values():
            if source.gap is not None:
                gaps.append(source.gap)
            elif source.compacted is not None:
                gaps += source.compacted.summary.gaps
                replaced.append(source.id)
        output = self._output
        return Summary(
            low,
            high,
            output.streams,
            output.tombstones,
            output.payload_bytes,
            join_gaps(gaps),
            replaced,
        )
