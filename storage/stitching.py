"""Reads of forks that begin in inherited data: one chunk across the seams of a chain.

The chunk is planned on the owner thread against the fork's durable state; below a seam nothing can
change any more. Each part of it is read as a chunk of the stream that has the bytes, with what the
limit leaves, so that a part that would pass the limit is left to the next read.

Left out: which parts there are (`storage.family`), and reading any of them (`storage.reading`).
"""

from collections.abc import Callable
from typing import NamedTuple

from storage.family import Part, parts
from storage.framing import Framing, text_boundary
from storage.reading import Chunk, ColdRead, Reader, Snapshot
from storage.runs import Run
from storage.state import Stream


class Planned(NamedTuple):
    """A part of a read, and what memory holds of it: `runs`, from `memory_start` on."""

    stream_id: int
    start: int
    end: int
    runs: list[Run]
    memory_start: int


class StitchedRead(ColdRead):
    """A cold read of several streams' bytes."""

    __slots__ = ("_planned",)

    def __init__(self, reader: Reader, snapshot: Snapshot, planned: list[Planned]) -> None:
        super().__init__(reader, snapshot, [], snapshot.tail)
        self._planned = planned

    def run(self) -> Chunk:
        """Do the read. Raises `CorruptData`, `OffsetError`."""

        def cold(snapshot: Snapshot, part: Planned) -> Chunk:
            return self._reader.cold(snapshot, part.runs, part.memory_start)

        chunk = _stitch(self._snapshot, self._planned, cold)
        assert chunk is not None
        return chunk


def stitched(reader: Reader, snapshot: Snapshot, stream: Stream) -> Chunk | ColdRead:
    """As `Store.read`, for an offset below the stream's seam."""
    planned: list[Planned] = []
    for part in parts(stream, snapshot.offset, snapshot.tail):
        if planned and part.start - snapshot.offset >= snapshot.limit_bytes:
            break
        planned.append(_plan(part, snapshot.limit_bytes))

    def quick(level: Snapshot, part: Planned) -> Chunk | None:
        if part.memory_start <= part.start:
            return reader.quick(level, part.runs)
        return reader.planned(level)

    return _stitch(snapshot, planned, quick) or StitchedRead(reader, snapshot, planned)


def _plan(part: Part, limit_bytes: int) -> Planned:
    owner, start, end = part
    first = owner.runs.first_start()
    if first is None or first >= end:
        return Planned(owner.id, start, end, [], end)
    memory_start = max(first, start)
    runs = owner.runs.covering(memory_start, limit_bytes)
    return Planned(owner.id, start, end, [run for run in runs if run.start < end], memory_start)


def _stitch(
    snapshot: Snapshot,
    planned: list[Planned],
    read: Callable[[Snapshot, Planned], Chunk | None],
) -> Chunk | None:
    """The chunk that the parts make; None when `read` has none of one of them."""
    pieces: list[bytes] = []
    at = snapshot.offset
    for part in planned:
        left = snapshot.limit_bytes - (at - snapshot.offset)
        if pieces and left <= 0:
            break
        level = Snapshot(part.stream_id, snapshot.framing, at, left, part.end, False, bool(pieces))
        chunk = read(level, part)
        if chunk is None:
            return None
        if chunk.data:
            pieces.append(chunk.data)
            at = chunk.next
        if at < part.end:
            break
    data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
    up_to_date = at == snapshot.tail
    if not up_to_date and snapshot.framing is Framing.TEXT:
        whole = text_boundary(data)
        if whole:
            at -= len(data) - whole
            data = data[:whole]
    return Chunk(data, snapshot.offset, at, up_to_date, up_to_date and snapshot.closed)
