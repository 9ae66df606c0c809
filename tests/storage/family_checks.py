"""What must be true of the forks in any index, whatever it was built from.

`family_is_whole` looks at nothing but the index: every fork's source is there, forks are counted,
kept data is what forks still reach, and a segment's live bytes are those of its runs.
"""

import struct
from collections import Counter

from storage.index import Index
from storage.index_entries import OFFSET_MAX, StreamMeta, unpack_runs

NEED = struct.Struct(">QQQQ")
Needs = dict[int, list[tuple[int, int]]]


def family_is_whole(index: Index) -> None:
    """Sources, counts, what forks need and live bytes agree with each other."""
    metas = dict(index.streams())
    needs: Needs = {
        stream_id: [] if meta.kept is not None else [(meta.earliest, OFFSET_MAX)]
        for stream_id, meta in metas.items()
    }
    wanted = set()
    for meta in metas.values():
        if meta.fork is not None:
            needs[meta.fork.source_id].append((meta.fork.floor, meta.fork.reach))
    forks: Counter[int] = Counter()
    for stream_id, meta in metas.items():
        fork = meta.fork
        if fork is None:
            assert meta.root == stream_id
            continue
        source = metas[fork.source_id]
        assert fork.source_id < stream_id, "a source is older than its forks"
        assert fork.seam <= source.tail, "a fork begins within its source"
        assert meta.root == source.root
        forks[fork.source_id] += 1
        assert fork.reach == (fork.seam if meta.kept is None else min(fork.seam, meta.kept))
        assert fork.floor == min(floor for floor, _ in needs[stream_id])
        wanted.add((fork.source_id, fork.reach, fork.floor, stream_id))
    assert {NEED.unpack(key) for key, _ in index.entries("forks")} == wanted
    for stream_id, meta in metas.items():
        assert meta.forks == forks[stream_id]
        if meta.kept is not None:
            assert meta.forks, "what was kept for forks goes with the last of them"
            assert meta.deadline_ms is None
            assert meta.kept == max(reach for _, reach in needs[stream_id])
    live_bytes_are_those_of_the_runs(index, metas, needs)


def live_bytes_are_those_of_the_runs(
    index: Index, metas: dict[int, StreamMeta], needs: Needs
) -> None:
    """Each byte that somebody can read is live, once, and no run that nobody reads."""
    live: Counter[int] = Counter()
    covered: Counter[int] = Counter()
    last_end: dict[int, int] = {}
    for key, value in index.entries("runs"):
        stream_id = int.from_bytes(key[:8], "big")
        needed = _union(needs[stream_id])
        for place in unpack_runs(value):
            end = place.start + place.length
            assert place.start >= last_end.get(stream_id, 0), "runs do not overlap"
            last_end[stream_id] = end
            live[place.segment_id] += place.length
            read = sum(max(0, min(end, high) - max(place.start, low)) for low, high in needed)
            assert read, "what nobody reads is not live"
            covered[stream_id] += read
    for stream_id, meta in metas.items():
        seam = 0 if meta.fork is None else meta.fork.seam
        own = [(max(low, seam), min(high, meta.tail)) for low, high in _union(needs[stream_id])]
        assert covered[stream_id] == sum(high - low for low, high in own if low < high)
    counted = {
        int.from_bytes(key, "big"): int.from_bytes(value, "little", signed=True)
        for key, value in index.entries("segments")
    }
    assert {segment: size for segment, size in counted.items() if size} == dict(live)


def _union(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same offsets in ranges that do not touch."""
    union: list[tuple[int, int]] = []
    for low, high in sorted(pair for pair in ranges if pair[0] < pair[1]):
        if union and low <= union[-1][1]:
            union[-1] = (union[-1][0], max(high, union[-1][1]))
        else:
            union.append((low, high))
    return union
