"""Reads: finding the bytes of a range in memory, in the page cache or on disk, and checking them.

A read is planned on the owner thread against one durable snapshot. What memory holds is answered at
once. Otherwise a `ColdRead` carries the snapshot to any thread, asks the index for what is older
than memory, and reads the segments; every block read is checked against its checksum, which also
covers the stream and the offset it claims to be.

A chunk ends on a block, hence on a message for JSON streams, and on a whole character for text. A
single message is never cut, however long.
"""

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from storage.batch import BLOCK, ENDS_MESSAGE, LENGTH_MASK, damaged_block
from storage.disk import read_at, read_cached
from storage.errors import CorruptData, FramingError, OffsetError, OpenError
from storage.framing import Framing, message_lengths, text_boundary
from storage.index import Index
from storage.index_entries import RunPlace
from storage.limits import Limits
from storage.runs import Run
from storage.segment import SegmentFile, segment_path

QUICK_PIECES_MAX = 1_024
QUICK_BYTES_MAX = 512 << 10
"""More than this is put together in a thread even if it is in memory."""
LOOKS_MAX = 3
"""At the index for one read, as long as what it says was compacted before it could be read."""
SCATTERED_PIECES = 64
"""A chunk of more is remembered with its bytes; of fewer, with the places where they lie."""


class Chunk:
    """Bytes of a stream from `start` up to `next`, and what was true of it at that moment.

    `data` is as stored: each JSON message is followed by a comma. `up_to_date`: `next` is the
    durable tail; `closed`: and there will be no more.
    """

    __slots__ = ("closed", "data", "next", "start", "up_to_date")

    def __init__(self, data: bytes, start: int, end: int, up_to_date: bool, closed: bool) -> None:
        self.data = data
        self.start = start
        self.next = end
        self.up_to_date = up_to_date
        self.closed = closed


class Snapshot(NamedTuple):
    """What a read was asked, and the durable state it is answered from."""

    stream_id: int
    framing: Framing
    offset: int
    limit_bytes: int
    tail: int
    closed: bool
    more: bool = False
    """It goes on with a chunk that has bytes already: none at all is an answer too."""


class Piece(NamedTuple):
    """Whole blocks of one run: where they lie, and which of their bytes are wanted."""

    run: Run | RunPlace
    start: int
    blocks: bytes
    skip: int
    size: int


class SegmentGone(CorruptData):
    """A segment is not there any more: it was compacted since its place was looked up, or lost."""


class Segments:
    """Segments open for reading, the least recently used closed first. Safe in any thread."""

    def __init__(self, directory: Path, open_max: int) -> None:
        self._directory = directory
        self._open_max = open_max
        self._open: OrderedDict[int, SegmentFile] = OrderedDict()
        self._lock = threading.Lock()

    def forget(self) -> None:
        """Close all, because some were removed: an open file keeps its space.

        In a thread, because that is when the file system gives the space back, and takes its time.
        """
        with self._lock:
            gone, self._open = self._open, OrderedDict()
        threading.Thread(target=gone.clear, name="close segments").start()

    def get(self, segment_id: int) -> SegmentFile:
        """A segment by its id. Raises `CorruptData` if it cannot be opened, `SegmentGone`."""
        with self._lock:
            segment = self._open.get(segment_id)
            if segment is None:
                path = segment_path(self._directory, segment_id)
                try:
                    segment = SegmentFile(path)
                except OpenError as error:
                    if not path.exists():
                        raise SegmentGone(path.name, 0, "the segment is missing") from error
                    raise CorruptData(path.name, 0, str(error)) from error
                self._open[segment_id] = segment
                if len(self._open) > self._open_max:
                    self._open.popitem(last=False)
            else:
                self._open.move_to_end(segment_id)
            return segment


class ReadCounts:
    """How many reads had their bytes from where; a fork's counts for each part of it.

    `memory`: the tail cache. `gathered`: put together before. `page_cache`: the system's memory.
    `thread`: whatever took a thread, because it may wait for the disk or is large.
    """

    __slots__ = ("gathered", "memory", "page_cache", "thread")

    def __init__(self) -> None:
        self.memory = 0
        self.gathered = 0
        self.page_cache = 0
        self.thread = 0


class Plans:
    """What the index answered to reads of older data: right until a segment is compacted."""

    def __init__(self, plans_max: int) -> None:
        self._plans_max = plans_max
        self._plans: OrderedDict[tuple[int, int, int], list[RunPlace]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, snapshot: Snapshot) -> list[RunPlace] | None:
        """The remembered answer for a stream, an offset and a limit."""
        return self._plans.get((snapshot.stream_id, snapshot.offset, snapshot.limit_bytes))

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._plans.clear()

    def put(self, snapshot: Snapshot, places: list[RunPlace]) -> None:
        """Remember an answer that reached the limit, and so will stay as it is."""
        if len(places) > SCATTERED_PIECES:
            return  # its bytes are remembered, which is less
        with self._lock:
            key = (snapshot.stream_id, snapshot.offset, snapshot.limit_bytes)
            self._plans[key] = places
            if len(self._plans) > self._plans_max:
                self._plans.popitem(last=False)


ENTRY_OVERHEAD_BYTES = 512


class Gathered:
    """Chunks that took many small reads to put together, the least recently used forgotten first.

    The page cache has their bytes too, but to find, check and join 10,000 appends of 50 bytes with
    others' appends between them takes 20 ms, and a conversation is replayed again and again.
    Nothing in here can be outdated: bytes never change, and a chunk that ended at the tail counts
    only while that is the tail.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._chunks: OrderedDict[tuple[int, int, int, bool], tuple[bytes, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, snapshot: Snapshot) -> Chunk | None:
        """The chunk that a read of this snapshot gives, if it is here."""
        key = (snapshot.stream_id, snapshot.offset, snapshot.limit_bytes, snapshot.more)
        with self._lock:
            found = self._chunks.get(key)
            if found is None:
                return None
            data, tail = found
            end = snapshot.offset + len(data)
            if tail != snapshot.tail and (end == tail or end >= snapshot.tail):
                return None
            self._chunks.move_to_end(key)
        up_to_date = end == snapshot.tail
        return Chunk(data, snapshot.offset, end, up_to_date, up_to_date and snapshot.closed)

    def put(self, snapshot: Snapshot, chunk: Chunk) -> None:
        """Remember what a read of this snapshot gave."""
        size = len(chunk.data) + ENTRY_OVERHEAD_BYTES
        if size > self._bytes_max // 4:
            return
        key = (snapshot.stream_id, snapshot.offset, snapshot.limit_bytes, snapshot.more)
        with self._lock:
            older = self._chunks.pop(key, None)
            if older is not None:
                self._bytes -= len(older[0]) + ENTRY_OVERHEAD_BYTES
            self._bytes += size
            self._chunks[key] = (chunk.data, snapshot.tail)
            while self._bytes > self._bytes_max:
                _, (data, _) = self._chunks.popitem(last=False)
                self._bytes -= len(data) + ENTRY_OVERHEAD_BYTES


def select(snapshot: Snapshot, runs: Sequence[Run | RunPlace]) -> list[Piece]:
    """The blocks that make up a chunk; `runs` are contiguous and begin with the offset's own."""
    if not runs or runs[0].start > snapshot.offset:
        raise CorruptData("index/data.mdb, table runs", 0, "the index lacks a run: run reindex")
    pieces: list[Piece] = []
    wanted = snapshot.limit_bytes
    expected = runs[0].start
    ends_message = True
    for run in runs:
        if run.start >= snapshot.tail:
            break  # A fork reads its source no further than this.
        if (pieces or snapshot.more) and wanted <= 0:
            break  # What the index was asked for ends here; memory may go on much further.
        if run.start != expected:
            raise CorruptData("index/data.mdb, table runs", 0, "the index lacks a run: run reindex")
        if len(run.blocks) == BLOCK.size:
            length = BLOCK.unpack(run.blocks)[0] & LENGTH_MASK
            expected = run.start + length
            skip = max(snapshot.offset - run.start, 0)
            if (pieces or snapshot.more) and length > wanted:
                break
            if skip < length:
                pieces.append(Piece(run, run.start, run.blocks, skip, length - skip))
                wanted -= length - skip
            continue
        piece, ends_message, full = _select_blocks(
            snapshot, run, wanted, bool(pieces) or snapshot.more
        )
        if piece is not None:
            pieces.append(piece)
            wanted -= piece.size
            expected = piece.start + piece.skip + piece.size
        if full:
            break
    if not ends_message:
        raise CorruptData("index/data.mdb, table runs", 0, "a message has no end: run reindex")
    # An offset at the tail is not looked up: there are bytes, somewhere.
    if not pieces and not snapshot.more:
        raise CorruptData("index/data.mdb, table runs", 0, "the index lacks a run: run reindex")
    return pieces


def _select_blocks(
    snapshot: Snapshot, run: Run | RunPlace, wanted: int, have_any: bool
) -> tuple[Piece | None, bool, bool]:
    """The wanted blocks of a long run: piece, whether it ends a message, whether it is cut."""
    whole = snapshot.framing is Framing.JSON
    first = last = -1
    at = start = run.start
    size = skip = 0
    ended = True
    full = False
    table = [coded for coded, _ in BLOCK.iter_unpack(run.blocks)]
    for number, coded in enumerate(table):
        length = coded & LENGTH_MASK
        if at >= snapshot.tail:
            full = True
            break
        if at + length > snapshot.offset:
            if first < 0:
                if whole and not ended:
                    raise OffsetError("The offset lies inside a message.")
                first, start, skip = number, at, max(snapshot.offset - at, 0)
                size = -skip
            if (have_any or last >= 0) and (ended or not whole):
                needed = _message_bytes(table, number) if whole else length
                if size + needed > wanted:
                    full = True
                    break
            last = number
            size += length
        at += length
        ended = bool(coded & ENDS_MESSAGE)
    if last < 0:
        return None, True, full
    blocks = run.blocks[first * BLOCK.size : (last + 1) * BLOCK.size]
    return Piece(run, start, blocks, skip, size), ended or not whole, full


def _message_bytes(table: list[int], number: int) -> int:
    """The bytes of the blocks from this one to the first that ends a message."""
    size = 0
    for coded in table[number:]:
        size += coded & LENGTH_MASK
        if coded & ENDS_MESSAGE:
            break
    return size


def join(snapshot: Snapshot, pieces: list[Piece], parts: list[bytes | bytearray]) -> Chunk:
    """The chunk that `parts`, the pieces' whole blocks, make."""
    if not pieces:
        return Chunk(b"", snapshot.offset, snapshot.offset, False, False)
    first = pieces[0]
    if first.skip:
        if snapshot.framing is Framing.JSON:
            _check_boundary(parts[0], first)
        parts[0] = parts[0][first.skip :]
    only = parts[0] if len(parts) == 1 else None
    data = only if isinstance(only, bytes) else b"".join(parts)
    end = snapshot.offset + len(data)
    if end > snapshot.tail:  # The last block goes on behind what a fork has of its source.
        data = data[: snapshot.tail - end]
        end = snapshot.tail
    up_to_date = end == snapshot.tail
    if not up_to_date and snapshot.framing is Framing.TEXT:
        whole = text_boundary(data)
        if whole:
            data = data[:whole]
            end = snapshot.offset + whole
    return Chunk(data, snapshot.offset, end, up_to_date, up_to_date and snapshot.closed)


def _check_boundary(data: bytes | bytearray, piece: Piece) -> None:
    """Refuse an offset inside a message. The first block's messages tell."""
    length, _ = BLOCK.unpack_from(piece.blocks)
    if not length & ENDS_MESSAGE:
        raise OffsetError("The offset lies inside a message.")
    at = 0
    try:
        for size in message_lengths(data[: length & LENGTH_MASK]):
            at += size
            if at >= piece.skip:
                break
    except FramingError:
        at = -1
    if at != piece.skip:
        raise OffsetError("The offset lies inside a message.")


class Reader:
    """Reads durable bytes for a store. Safe in any thread; only `cold` may wait for the disk."""

    def __init__(self, segments: Segments, index: Index, limits: Limits) -> None:
        self._segments = segments
        self._index = index
        self._plans = Plans(limits.read_plans_max)
        self._gathered = Gathered(limits.gathered_bytes_max)
        self.counts = ReadCounts()
        self._from_files = 0
        """Pieces that were not in the tail cache, of reads on the owner thread."""
        self._counting = threading.Lock()

    def quick(self, snapshot: Snapshot, runs: Sequence[Run | RunPlace]) -> Chunk | None:
        """The chunk, if all its bytes are in memory or in the page cache, and it is soon done."""
        if len(runs) > QUICK_PIECES_MAX:
            return None
        pieces = select(snapshot, runs)
        if sum(piece.size for piece in pieces) > QUICK_BYTES_MAX:
            return None
        parts: list[bytes | bytearray] = []
        before = self._from_files
        for piece in pieces:
            try:
                part = self._cached_part(snapshot, piece)
            except SegmentGone:
                return None  # The index knows where it is now.
            if part is None:
                return None
            parts.append(part)
        if self._from_files == before:
            self.counts.memory += 1
        else:
            self.counts.page_cache += 1
        return join(snapshot, pieces, parts)

    def remembered(self, snapshot: Snapshot) -> Chunk | None:
        """The chunk, if it was put together before and is remembered with its bytes."""
        chunk = self._gathered.get(snapshot)
        if chunk is not None:
            self.counts.gathered += 1
        return chunk

    def segments_removed(self) -> None:
        """Some segments were compacted, and are gone."""
        self._plans.clear()
        self._segments.forget()

    def planned(self, snapshot: Snapshot) -> Chunk | None:
        """The chunk, if the index was asked before and memory or the page cache has the bytes."""
        remembered = self.remembered(snapshot)
        if remembered is not None:
            return remembered
        places = self._plans.get(snapshot)
        return None if places is None else self.quick(snapshot, places)

    def cold(self, snapshot: Snapshot, runs: list[Run], memory_start: int) -> Chunk:
        """The chunk, from wherever it is. Raises `CorruptData`, `OffsetError`.

        Where a segment is gone the index is asked again, for what memory had places of, too: it was
        told of the new ones before the segment was removed, which it had completely.
        """
        with self._counting:
            self.counts.thread += 1
        for _ in range(LOOKS_MAX):
            with contextlib.suppress(SegmentGone):
                found = self._placed(snapshot, memory_start)
                return self._cold(snapshot, found, runs, memory_start)
            memory_start = snapshot.tail
            indexed = self._placed(snapshot, memory_start)
            end = indexed[-1].start + indexed[-1].length if indexed else snapshot.offset
            runs = [run for run in runs if run.start >= end]
        return self._cold(snapshot, self._placed(snapshot, memory_start), runs, memory_start)

    def _placed(self, snapshot: Snapshot, end: int) -> list[RunPlace]:
        """What the index has of a snapshot's chunk, up to an offset."""
        if snapshot.offset >= end:
            return []
        return self._index.runs(snapshot.stream_id, snapshot.offset, end, snapshot.limit_bytes)

    def _cold(
        self, snapshot: Snapshot, found: list[RunPlace], runs: list[Run], memory_start: int
    ) -> Chunk:
        places: list[Run | RunPlace] = [place for place in found if place.start < memory_start]
        if found and found[-1].start + found[-1].length > snapshot.offset + snapshot.limit_bytes:
            self._plans.put(snapshot, found)
        pieces = select(snapshot, [*places, *runs])
        parts = self._parts(snapshot, pieces)
        chunk = join(snapshot, pieces, parts)
        if len(pieces) > SCATTERED_PIECES:
            self._gathered.put(snapshot, chunk)
        return chunk

    def _cached_part(self, snapshot: Snapshot, piece: Piece) -> bytes | bytearray | None:
        run = piece.run
        if isinstance(run, Run) and run.data is not None:
            return _slice(run.data, run, piece)
        self._from_files += 1
        segment = self._segments.get(run.segment_id)
        position = run.position + piece.start - run.start
        try:
            data = read_cached(segment.fd, piece.skip + piece.size, position)
        except OSError as error:
            raise _unreadable(segment, position, error) from error
        if data is not None:
            self._verify(snapshot, piece, segment, data, position)
        return data

    def _parts(self, snapshot: Snapshot, pieces: Iterable[Piece]) -> list[bytes | bytearray]:
        """The pieces' whole blocks, checked, from memory or from disk."""
        parts: list[bytes | bytearray] = []
        segment: SegmentFile | None = None
        segment_id = 0
        for piece in pieces:
            run = piece.run
            if type(run) is Run:
                data = run.data
                if data is not None:
                    parts.append(_slice(data, run, piece))
                    continue
            if segment is None or segment_id != run.segment_id:
                segment_id = run.segment_id
                segment = self._segments.get(segment_id)
            position = run.position + piece.start - run.start
            try:
                data = read_at(segment.fd, piece.skip + piece.size, position)
            except OSError as error:
                raise _unreadable(segment, position, error) from error
            self._verify(snapshot, piece, segment, data, position)
            parts.append(data)
        return parts

    @staticmethod
    def _verify(
        snapshot: Snapshot,
        piece: Piece,
        segment: SegmentFile,
        data: bytes | bytearray,
        position: int,
    ) -> None:
        wrong = damaged_block(segment.seed, snapshot.stream_id, piece.start, piece.blocks, data)
        if wrong is not None:
            raise CorruptData(
                segment.name,
                position + wrong,
                f"the payload of stream {snapshot.stream_id} at its offset {piece.start + wrong} "
                "is damaged",
            )


def _unreadable(segment: SegmentFile, position: int, error: OSError) -> CorruptData:
    return CorruptData(segment.name, position, f"it cannot be read: {error.strerror}")


def _slice(data: bytes, run: Run, piece: Piece) -> bytes:
    """A piece's blocks out of a run's bytes in memory."""
    start = piece.start - run.start
    size = piece.skip + piece.size
    return data if size == len(data) else data[start : start + size]


class ColdRead:
    """A planned read that needs the index or the disk: `run` it in any thread."""

    __slots__ = ("_memory_start", "_reader", "_runs", "_snapshot")

    def __init__(
        self, reader: Reader, snapshot: Snapshot, runs: list[Run], memory_start: int
    ) -> None:
        self._reader = reader
        self._snapshot = snapshot
        self._runs = runs
        self._memory_start = memory_start

    def run(self) -> Chunk:
        """Do the read. Raises `CorruptData`, `OffsetError`."""
        return self._reader.cold(self._snapshot, self._runs, self._memory_start)
