"""What is compacted: which segments are worth it, and what lies in them.

Left out: rewriting them (`storage.compaction`).
"""

from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

from storage.chain import Chain
from storage.compacted import Compacted, Gap
from storage.errors import CorruptData
from storage.index_entries import Checkpoint
from storage.record import DecodeError
from storage.scan import FIRST_BATCH_POSITION, BatchView, Scanner
from storage.segment import SegmentFile, SegmentHeader

DEAD_SHARE_MIN = 0.5
"""A segment is sparse when at least this share of it is not live payload."""
SOURCES_MAX = 16
SOURCES_BYTES_MAX = 1 << 30
"""Of segments that are compacted at once: no place in a segment may need more than 32 bits."""
SMALL_SEGMENT_SHARE = 0.25
SMALL_SEGMENTS_MAX = 8
"""Compacted segments under that share of `Limits.segment_bytes`: so many are joined to one."""
DEAD_STREAMS_MIN = 10_000
"""States of streams in compacted segments that are worth a look, beside one for each stream."""
IDS_SHIFT = 10


class Source(NamedTuple):
    """A segment that may be compacted: a `gap` once it is gone, or a `compacted` one."""

    segment: SegmentFile
    end: int
    live_bytes: int
    gap: Gap | None
    compacted: Compacted | None

    @property
    def id(self) -> int:
        """The segment's id."""
        return self.segment.header.segment_id

    def batches(self) -> Iterator[tuple[int, BatchView]]:
        """All batches, each with its place in the order of the log. Raises `CorruptData`."""
        if self.compacted is not None:
            for batch in self.compacted.batches():
                yield self.compacted.summary.high, batch
            return
        scanner = Scanner(self.segment)
        position = FIRST_BATCH_POSITION
        while position < self.end:
            try:
                batch = scanner.batch_at(position, plain=False)
            except DecodeError as error:
                raise CorruptData(self.segment.name, position, str(error)) from error
            yield batch.head.sequence, batch
            position = batch.end
        if position != self.end:
            raise CorruptData(self.segment.name, self.end, "no batch ends here")


def sources(chain: Chain, checkpoint: Checkpoint, live_bytes: dict[int, int]) -> list[Source]:
    """All segments that could be compacted: sealed, and with everything of them in the index."""
    found = []
    for at, segment in enumerate(chain.segments):
        if segment.header.segment_id >= checkpoint.segment_id:
            break
        end = chain.end(at)
        assert end is not None
        live = live_bytes.get(segment.header.segment_id, 0)
        found.append(Source(segment, end, live, _gap(chain, at, end), None))
    found += (
        Source(file.segment, file.size_bytes(), live_bytes.get(file.id, 0), None, file)
        for file in chain.compacted
    )
    return found


def _gap(chain: Chain, at: int, end: int) -> Gap:
    header = chain.segments[at].header
    follower = None
    for gap in chain.gaps:
        if gap.first_id == header.segment_id + 1:
            follower = (gap.first_sequence, gap.predecessor_checksum)
    if follower is None:
        following = chain.segments[at + 1].header
        follower = (following.first_sequence, following.predecessor_checksum)
    return Gap(
        header.segment_id,
        header.segment_id,
        header.next_stream_id,
        header.next_stream_id,
        header.first_sequence,
        header.predecessor_end,
        header.predecessor_checksum,
        end,
        follower[0] - 1,
        follower[1],
    )


def choose(
    found: list[Source], segment_bytes: int, stream_count: int, room_bytes: int
) -> list[Source]:
    """What to compact next, together; empty if nothing is worth it, or nothing has room."""
    worth = [source for source in found if _is_sparse(source)]
    files = [source for source in found if source.compacted is not None]
    if not worth:
        small = [file for file in files if file.end < SMALL_SEGMENT_SHARE * segment_bytes]
        if len(small) >= SMALL_SEGMENTS_MAX:
            worth = small
    if not worth:
        states = [file for file in files if file.live_bytes < file.end // 2]
        told = sum(file.compacted.summary.streams for file in states if file.compacted is not None)
        if told > _states_max(stream_count):
            worth = states
    chosen: list[Source] = []
    size = 0
    for source in sorted(worth, key=lambda source: (source.live_bytes, source.id)):
        size += source.end
        room_bytes -= source.live_bytes
        if room_bytes < 0 or len(chosen) == SOURCES_MAX:
            break
        if chosen and size > SOURCES_BYTES_MAX:
            break
        chosen.append(source)
    return chosen


def worth_alone(source: Source, stream_count: int) -> bool:
    """Whether a segment would shrink if it is compacted without any other."""
    file = source.compacted
    return _is_sparse(source) or (
        file is not None and file.summary.streams > _states_max(stream_count)
    )


def _states_max(stream_count: int) -> int:
    """Of more states of streams in compacted segments, most are outdated."""
    return 2 * stream_count + DEAD_STREAMS_MIN


def _is_sparse(source: Source) -> bool:
    if source.compacted is None:
        return source.live_bytes <= (1 - DEAD_SHARE_MIN) * source.end
    dead_bytes = source.compacted.summary.payload_bytes - source.live_bytes
    return dead_bytes >= DEAD_SHARE_MIN * source.end


class _Bound(NamedTuple):
    """What a segment's header says: all streams that were created before the batch `sequence` have
    ids below `next_stream_id`; some that it creates may have such, too."""

    segment_id: int
    sequence: int
    next_stream_id: int


class Survivors:
    """The segments that are not compacted now: what of a deleted stream they may hold."""

    def __init__(self, chain: Chain, chosen: list[Source]) -> None:
        gone = {source.id for source in chosen}
        self._compacted = [file for file in chain.compacted if file.id not in gone]
        self._first_sequence: int | None = None
        self._lows: list[int] = []
        """From which id on each segment may have created streams."""
        self._highs: list[int] = []
        """Below which id it, or one before it, may have."""
        bounds = [
            _Bound(header.segment_id, header.first_sequence, header.next_stream_id)
            for header in _headers(chain)
        ]
        for gap in chain.gaps:
            is_empty = gap.end == FIRST_BATCH_POSITION
            bounds += {
                _Bound(gap.first_id, gap.first_sequence, gap.next_stream_id),
                _Bound(gap.last_id, gap.last_sequence + is_empty, gap.last_next_stream_id),
            }
        bounds.sort()
        there = {header.segment_id for header in _headers(chain)} - gone
        highest = 0
        for at, (segment_id, sequence, _) in enumerate(bounds):
            if segment_id not in there:
                continue
            before = at
            while before and bounds[before].sequence >= sequence:
                before -= 1
            low = bounds[before].next_stream_id if bounds[before].sequence < sequence else 1
            after = bounds[at + 1].next_stream_id if at + 1 < len(bounds) else 1 << 64
            highest = max(highest, after)
            self._lows.append(low)
            self._highs.append(highest)
        for header in _headers(chain):
            if header.segment_id in there:
                self._first_sequence = header.first_sequence
                break

    def may_hold_stream(self, stream_id: int, deleted_sequence: int) -> bool:
        """Whether one may say that a stream is there that this batch or an older one deleted."""
        at = bisect_right(self._lows, stream_id)
        if at and stream_id < self._highs[at - 1]:
            return True
        return any(file.may_hold(stream_id, deleted_sequence) for file in self._compacted)

    def may_hold_value(self, sequence: int) -> bool:
        """Whether one may have a value that was there before this batch."""
        first = self._first_sequence
        if first is not None and first <= sequence:
            return True
        return any(file.summary.low < sequence for file in self._compacted)


def _headers(chain: Chain) -> list[SegmentHeader]:
    return [segment.header for segment in chain.segments]


class IdSet:
    """Stream ids, many of which lie close together, in little memory."""

    def __init__(self) -> None:
        self._bits: dict[int, int] = {}

    def add(self, stream_id: int) -> None:
        """Put an id in."""
        place = stream_id >> IDS_SHIFT
        bit = 1 << (stream_id & ((1 << IDS_SHIFT) - 1))
        self._bits[place] = self._bits.get(place, 0) | bit

    def groups(self) -> Iterator[list[int]]:
        """The ids in order, some at a time."""
        for place in sorted(self._bits):
            bits = self._bits[place]
            base = place << IDS_SHIFT
            group = []
            while bits:
                lowest = bits & -bits
                group.append(base + lowest.bit_length() - 1)
                bits ^= lowest
            yield group
