"""What must be true of the forks in any index, whatever it was built from.

`family_is_whole` looks at nothing but the index: every fork's source is there, forks are counted,
kept data is what forks still reach, and a segment's live bytes are those of its runs.
"""

import struct
from collections import Counter

from storage.index import Index, StreamMeta, unpack_runs

TRIPLE = struct.Struct(">QQQ")


def family_is_whole(index: Index) -> None:
    """Sources, counts, reaches and live bytes agree with each other."""
    metas = dict(index.streams())
    wanted = set()
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
        wanted.add((fork.source_id, fork.reach, stream_id))
    assert {TRIPLE.unpack(key) for key, _ in index.entries("forks")} == wanted
    for stream_id, meta in metas.items():
        assert meta.forks == forks[stream_id]
        if meta.kept is not None:
            assert meta.forks, "what was kept for forks goes with the last of them"
            assert meta.deadline_ms is None
            reaches = [reach for source, reach, _ in wanted if source == stream_id]
            assert meta.kept == max(reaches)
    live_bytes_are_those_of_the_runs(index, metas)


def live_bytes_are_those_of_the_runs(index: Index, metas: dict[int, StreamMeta]) -> None:
    """Each byte that somebody can read is live, once, and hardly any other."""
    live: Counter[int] = Counter()
    covered: dict[int, int] = {}
    for key, value in index.entries("runs"):
        stream_id = int.from_bytes(key[:8], "big")
        meta = metas[stream_id]
        for place in unpack_runs(value):
            seam = 0 if meta.fork is None else meta.fork.seam
            assert place.start == covered.get(stream_id, seam), "runs leave no gap"
            covered[stream_id] = place.start + place.length
            live[place.segment_id] += place.length
            if meta.kept is not None:
                assert place.start < meta.kept, "what no fork reaches is not live"
    for stream_id, meta in metas.items():
        seam = 0 if meta.fork is None else meta.fork.seam
        needed = meta.tail if meta.kept is None else meta.kept
        assert covered.get(stream_id, seam) >= max(needed, seam)
    counted = {
        int.from_bytes(key, "big"): int.from_bytes(value, "little", signed=True)
        for key, value in index.entries("segments")
    }
    assert {segment: size for segment, size in counted.items() if size} == dict(live)
