"""Retention: how much of a stream is kept, and what can be cut off its front now.

The index knows: `due_ms`, worked out whenever a stream with retention changes, says from when on a
cut would get anything, and its table is in that order, so that nobody looks at the others. The
store asks it once a second (`DueCuts`, in a thread), and a cut is a record like any other. So an
append costs nothing more, and what is written in the index's interval is there beyond the limit.

A cut keeps at least what it has to. How much more:

    by bytes     up to where a block (64 KiB at most) begins, or one message of any size
    by seconds   what was written in the same `keep_s / MARKS` seconds
    text         up to three bytes, so that it begins with a character

Whether a text was cut before such a character is not known, so one that was cut is not due for that
few bytes. By seconds it is: with nothing left but a part of a character it is looked at in vain.

Invariants
    A cut lies between two messages, within what is durable and indexed, and never goes back.
    What `next_due_ms` says depends on nothing but the log, so that `verify` can compare it.

Left out: who refuses offsets before a cut (`Store.read`), and which runs are dead (`Step`).
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from storage.batch import BLOCK, ENDS_MESSAGE, LENGTH_MASK
from storage.errors import CorruptData
from storage.framing import Framing, text_boundary
from storage.index import Index
from storage.index_entries import OFFSET_MAX, ForkMeta, Need, RetentionMeta, RunPlace, StreamMeta
from storage.reading import Reader, Snapshot
from storage.residents import Loaded
from storage.stream_config import stream_config

MARKS = 64
"""How many there are in the time that a stream is kept."""
MARKS_MAX = 256
"""Of one stream; if cuts do not come, every other one goes."""
DUE_CUTS_MAX = 1_000
"""Looked for in one go."""
CHARACTER_BYTES_MAX = 4


def note_run(retention: RetentionMeta, start: int, time_ms: int) -> None:
    """A run was written that begins at `start`; times go by the log's clock, in its order."""
    before_ms = retention.newest_ms
    retention.newest_ms = newest_ms = max(before_ms, time_ms)
    if (
        retention.keep_s is None
        or newest_ms - retention.group_ms < retention.keep_s * 1_000 // MARKS
    ):
        return
    retention.group_ms = newest_ms
    retention.marks.append((start, before_ms))
    if len(retention.marks) > MARKS_MAX:
        del retention.marks[::2]


def note_cut(meta: StreamMeta, earliest: int) -> None:
    """A stream was cut."""
    meta.earliest = earliest
    if meta.retention is not None:
        meta.retention.marks = [mark for mark in meta.retention.marks if mark[0] >= earliest]


Look = Callable[[int, int], RunPlace | None]
"""The run of a stream that holds an offset."""


def next_due_ms(
    meta: StreamMeta, sources: Iterable[ForkMeta], stream_id: int, look: Look
) -> int | None:
    """From when on a cut gets anything; None if it takes another append for that."""
    retention = meta.retention
    if retention is None or meta.kept is not None:
        return None
    spared = CHARACTER_BYTES_MAX - 1 if meta.earliest and _framing_of(meta) is Framing.TEXT else 0
    if _cut_by_bytes(meta, sources, stream_id, look) > meta.earliest + spared:
        return retention.newest_ms
    if retention.keep_s is None or meta.tail == meta.earliest:
        return None
    written_ms = next((ms for offset, ms in retention.marks if offset > meta.earliest), None)
    return (written_ms or retention.newest_ms) + retention.keep_s * 1_000


def _framing_of(meta: StreamMeta) -> Framing:
    return stream_config(meta.content_type).framing


def _cut_by_bytes(meta: StreamMeta, sources: Iterable[ForkMeta], stream_id: int, look: Look) -> int:
    """The highest offset where a block begins that leaves as many bytes as are to be kept."""
    assert meta.retention is not None
    keep_bytes = meta.retention.keep_bytes
    target = 0 if keep_bytes is None else meta.tail - keep_bytes
    if target <= meta.earliest:
        return 0
    owner, _ = owner_at(sources, stream_id, target)
    place = look(owner, target)
    if place is None:
        raise CorruptData("index/data.mdb, table runs", 0, "the index lacks a run: run reindex")
    at = cut = place.start
    for coded, _ in BLOCK.iter_unpack(place.blocks):
        at += coded & LENGTH_MASK
        if at > target:
            break
        if coded & ENDS_MESSAGE:
            cut = at
    return cut


def owner_at(sources: Iterable[ForkMeta], stream_id: int, offset: int) -> Need:
    """In whose own bytes an offset lies, and up to which offset that goes on.

    `sources` says where the stream, and each of its sources in turn, was forked from.
    """
    owner, end = stream_id, OFFSET_MAX
    for fork in sources:
        if offset >= fork.seam:
            break
        owner, end = fork.source_id, min(end, fork.seam)
    return owner, end


def dead_between(needs: Iterable[Need]) -> list[Need]:
    """What lies between, and behind, what is needed."""
    dead = []
    at = 0
    for low, high in sorted(needs):
        if low >= high:
            continue
        if low > at:
            dead.append((at, low))
        at = max(at, high)
    if at < OFFSET_MAX:
        dead.append((at, OFFSET_MAX))
    return dead


class Cut(NamedTuple):
    """A stream that is to be cut, as the index has it, and its earliest offset then."""

    loaded: Loaded
    earliest: int


class DueCuts:
    """Looking for what can be cut now, behind a place in the table: `run` it in any thread."""

    def __init__(
        self,
        index: Index,
        reader: Reader,
        load: Callable[[bytes], Loaded],
        now_ms: int,
        after: tuple[int, int],
    ) -> None:
        self._index = index
        self._reader = reader
        self._load = load
        self._now_ms = now_ms
        self.after = after
        """Where to go on; back at the beginning when there was nothing more."""

    def run(self) -> list[Cut]:
        """The cuts. A stream that is damaged has none, and keeps no other from its own."""
        due = self._index.retention_due(self._now_ms, self.after, DUE_CUTS_MAX)
        self.after = due[-1] if len(due) == DUE_CUTS_MAX else (0, 0)
        found = []
        for _, stream_id in due:
            try:
                path = self._index.path_of(stream_id)
                loaded = None if path is None else self._load(path)
                if loaded is not None and loaded.chain and loaded.chain[0][0] == stream_id:
                    cut = self._cut(loaded)
                    if cut is not None:
                        found.append(cut)
            except CorruptData:
                continue  # Whoever asks for it is told.
        return found

    def _cut(self, loaded: Loaded) -> Cut | None:
        stream_id, meta = loaded.chain[0]
        retention = meta.retention
        if retention is None or meta.kept is not None:
            return None
        forks = [level.fork for _, level in loaded.chain if level.fork is not None]
        earliest = _cut_by_bytes(meta, forks, stream_id, self._index.run_at)
        if retention.keep_s is not None:
            earliest = max(earliest, _cut_by_age(meta, self._now_ms - retention.keep_s * 1_000))
        if _framing_of(meta) is Framing.TEXT and earliest > meta.earliest:
            before = self._bytes_before(
                forks, stream_id, max(meta.earliest, earliest - CHARACTER_BYTES_MAX), earliest
            )
            earliest -= len(before) - text_boundary(before)
        return Cut(loaded, earliest) if earliest > meta.earliest else None

    def _bytes_before(self, forks: list[ForkMeta], stream_id: int, start: int, end: int) -> bytes:
        """A stream's bytes between two offsets; none where they are damaged, and so no text."""
        data = b""
        try:
            while start < end:
                owner, owned = owner_at(forks, stream_id, start)
                stop = min(owned, end)
                snapshot = Snapshot(owner, Framing.BYTES, start, stop - start, stop, False)
                chunk = self._reader.cold(snapshot, [], stop)
                data += chunk.data
                start = chunk.next
        except CorruptData:
            return b""
        return data


def _cut_by_age(meta: StreamMeta, until_ms: int) -> int:
    """The highest offset that is known to have been reached by then."""
    assert meta.retention is not None
    if meta.retention.newest_ms <= until_ms:
        return meta.tail
    reached = [offset for offset, ms in meta.retention.marks if ms <= until_ms]
    return reached[-1] if reached else 0
