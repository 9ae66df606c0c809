"""Verification of a closed data directory: every batch, every block, and the index against the log.

The index is checked by building another one from the log, in memory-mapped scratch space, and
comparing them entry by entry. The new one then goes on to the log's end, which shows whether every
record makes sense: above all that a fork has a source, and begins within it. LMDB's pages have no
checksum, so walking damaged ones can end the process: `python -m storage.verify DIRECTORY SCRATCH`
is the child that does it, one finding a line, its fields parted by tabs.
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from storage.batch import BLOCK, LENGTH_MASK, block_checksum
from storage.chain import Chain, LogEnd, open_chain
from storage.child import child_command, child_environment
from storage.compacted import Compacted
from storage.directory import DataDirectory
from storage.disk import read_at
from storage.errors import CorruptData, OpenError, StorageError
from storage.index import TABLES, Index
from storage.index_entries import pack_run, unpack_runs
from storage.indexer import Indexer
from storage.record import DecodeError
from storage.scan import FIRST_BATCH_POSITION, BatchView, Scanner
from storage.segment import COMPACTED_IDS, SegmentFile, compacted_id, list_segments

STEP_RECORDS = 100_000
FINDINGS_MAX = 1_000


class Finding(NamedTuple):
    """Something wrong: in which file, where, with which stream (0: none), and what."""

    file: str
    position: int
    stream_id: int
    reason: str

    def __str__(self) -> str:
        return self.line()

    def line(self, path: str = "") -> str:
        """The finding in a line, with the stream's path where that is known."""
        position = "" if self.file.startswith("index/") else f", position {self.position}"
        name = f" ({path})" if path else ""
        stream = f", stream {self.stream_id}{name}" if self.stream_id else ""
        return f"{self.file}{position}{stream}: {self.reason}"


class LogReport:
    """What `check_log` counted."""

    def __init__(self) -> None:
        self.segments = 0
        self.batches = 0
        self.records = 0
        self.payload_bytes = 0
        self.torn_bytes = 0


def check_log(
    directory: DataDirectory, report: LogReport, progress: Callable[[int, int], None]
) -> Iterator[Finding]:
    """Read all of the log. `progress` is told the bytes read and the bytes there are.

    A compaction that was cut off may have left a compacted segment and all that it was made of.
    Which of them counts only the index knows, so both are read.

    Raises `OpenError` where the chain of segments is broken.
    """
    chain = open_chain(directory.segments)
    found = set()
    for finding in _check_chain(chain, report, progress):
        found.add(finding)
        yield finding
    if not chain.obsolete:
        return
    there = [compacted_id(path) for path in list_segments(directory.segments).compacted]
    try:
        before = open_chain(directory.segments, sorted(there)[:-1])
    except OpenError:
        return  # Some of them were removed, so the newest compacted segment is what counts.
    for finding in _check_chain(before, LogReport(), progress):
        if finding not in found:
            yield finding


def _check_chain(
    chain: Chain, report: LogReport, progress: Callable[[int, int], None]
) -> Iterator[Finding]:
    ends = [chain.end(at) for at in range(len(chain.segments))]
    total = sum(file.size_bytes() for file in chain.compacted) + sum(
        segment.size_bytes() if end is None else end
        for segment, end in zip(chain.segments, ends, strict=True)
    )
    done = 0
    for file in chain.compacted:
        yield from _check_compacted(file, report)
        done += file.size_bytes()
        progress(done, total)
    last = LogEnd(0, 0, 0, 0)
    for segment, end in zip(chain.segments, ends, strict=True):
        report.segments += 1
        header = segment.header
        last = _behind_gap(chain, header.predecessor) or last
        first = (header.first_sequence - 1, header.predecessor_checksum)
        if header.predecessor and last[2:] != first:
            yield Finding(segment.name, 40, 0, "it does not follow its predecessor")
        last = LogEnd(header.segment_id, FIRST_BATCH_POSITION, *first)
        scanner = Scanner(segment)
        while end is None or last.position < end:
            try:
                batch = scanner.batch_at(last.position)
                if (batch.head.sequence, batch.head.predecessor) != (last[2] + 1, last[3]):
                    raise DecodeError("the batch does not follow its predecessor")
                yield from _check_payload(segment, batch, end is None)
            except DecodeError as error:
                yield from _end_of_segment(scanner, last, end, report, str(error))
                break
            except OSError as error:
                reason = f"it cannot be read from here on: {error.strerror}"
                yield Finding(segment.name, last.position, 0, reason)
                break
            last = LogEnd(header.segment_id, batch.end, batch.head.sequence, batch.checksum)
            report.batches += 1
            report.records += batch.head.records
            report.payload_bytes += batch.head.payload_bytes
            progress(done + last.position, total)
        done += segment.size_bytes() if end is None else end


def _check_compacted(file: Compacted, report: LogReport) -> Iterator[Finding]:
    report.segments += 1
    try:
        for batch in file.batches():
            yield from _check_payload(file.segment, batch, False)
            report.batches += 1
            report.records += batch.head.records
            report.payload_bytes += batch.head.payload_bytes
    except CorruptData as error:
        yield Finding(error.file, error.position, 0, error.reason)


def _behind_gap(chain: Chain, predecessor: int) -> LogEnd | None:
    """The end of the gap whose last segment this is."""
    for gap in chain.gaps:
        if gap.last_id == predecessor:
            return LogEnd(gap.last_id, gap.end, gap.last_sequence, gap.last_checksum)
    return None


def _end_of_segment(
    scanner: Scanner, last: LogEnd, end: int | None, report: LogReport, reason: str
) -> Iterator[Finding]:
    segment = scanner.segment
    if end is not None:
        yield Finding(segment.name, last.position, 0, reason)
        return
    later = scanner.valid_batch_after(last.position, last.sequence + 1)
    if later is not None:
        yield Finding(
            segment.name, last.position, 0, f"{reason}, but a batch follows at position {later}"
        )
        return
    if any(read_at(segment.fd, 48, last.position)):
        report.torn_bytes = segment.size_bytes() - last.position


def _check_payload(segment: SegmentFile, batch: BatchView, active: bool) -> Iterator[Finding]:
    position = batch.payload_position
    for run in batch.runs:
        at = run.start
        for coded, checksum in BLOCK.iter_unpack(run.blocks):
            length = coded & LENGTH_MASK
            data = read_at(segment.fd, length, position)
            if block_checksum(segment.seed, run.stream_id, at, data) != checksum:
                doubt = " (in the last segment: a torn write, if the batch is the last)"
                yield Finding(
                    segment.name,
                    position,
                    run.stream_id,
                    f"the payload at offset {at} is damaged{doubt if active else ''}",
                )
            at += length
            position += length


def check_index(directory: DataDirectory, scratch: Path) -> Iterator[Finding]:
    """Compare the index with one built from the log up to the same batch. Raises `StorageError`.

    May end the process if LMDB's pages are damaged.
    """
    index = Index(directory.index, writable=False)
    try:
        checkpoint = index.checkpoint()
        if checkpoint is None:
            return
        if index.directory_id() != directory.id:
            reason = "the index is of another data directory: run reindex"
            yield Finding("index/data.mdb, table state", 0, 0, reason)
        fresh = Index(scratch, writable=True)
        try:
            known = index.live_bytes(COMPACTED_IDS)
            indexer = Indexer(directory.segments, fresh, known)
            target = LogEnd(*checkpoint[:4])
            _index_up_to(indexer, target)
            for table in TABLES:
                if table != "state":
                    yield from _differences(table, index, fresh)
            yield from _gaps_in_runs(index)
            _index_up_to(indexer, _last_batch(directory, target, known))
        finally:
            fresh.close()
    finally:
        index.close()


def _index_up_to(indexer: Indexer, target: LogEnd) -> None:
    while indexer.step(target, STEP_RECORDS).sequence < target.sequence:
        pass


def _last_batch(directory: DataDirectory, start: LogEnd, known: Collection[int]) -> LogEnd:
    """The end of the last batch that can be followed from a known end; `check_log` says why."""
    chain = open_chain(directory.segments, known)
    end = start
    for at, segment in enumerate(chain.segments):
        segment_id = segment.header.segment_id
        if segment_id < start.segment_id:
            continue
        if segment_id > end.segment_id:
            end = end._replace(segment_id=segment_id, position=FIRST_BATCH_POSITION)
        known_end = chain.end(at)
        scanner = Scanner(segment)
        while known_end is None or end.position < known_end:
            try:
                batch = scanner.batch_at(end.position)
            except DecodeError:
                return end
            end = LogEnd(segment_id, batch.end, batch.head.sequence, batch.checksum)
    return end


def _entries(index: Index, table: str) -> Iterator[tuple[bytes, bytes]]:
    """A table's entries; runs one by one, because how they are packed depends on their history."""
    if table == "streams":
        yield from index.plain_streams()
        return
    for key, value in index.entries(table):
        if table != "runs":
            yield key, value
            continue
        for place in unpack_runs(value):
            yield key[:8] + place.start.to_bytes(8, "big"), pack_run(place)


def _gaps_in_runs(index: Index) -> Iterator[Finding]:
    """Streams whose runs do not cover all that they have: something was lost."""
    covered: dict[int, int] = {}
    for key, value in index.entries("runs"):
        stream_id = int.from_bytes(key[:8], "big")
        for place in unpack_runs(value):
            if place.start == covered.get(stream_id, place.start):
                covered[stream_id] = place.start + place.length
    for stream_id, meta in index.streams():
        seam = 0 if meta.fork is None else meta.fork.seam
        needed = meta.tail if meta.kept is None else min(meta.kept, meta.tail)
        if covered.get(stream_id, seam) < needed:
            reason = f"its bytes from {covered.get(stream_id, seam)} on are missing: run reindex"
            yield Finding("index/data.mdb, table runs", 0, stream_id, reason)


def _differences(table: str, index: Index, fresh: Index) -> Iterator[Finding]:
    file = f"index/data.mdb, table {table}"
    have = _entries(index, table)
    want = _entries(fresh, table)
    ours = next(have, None)
    theirs = next(want, None)
    while ours is not None or theirs is not None:
        if ours == theirs:
            ours, theirs = next(have, None), next(want, None)
        elif theirs is None or (ours is not None and ours[0] < theirs[0]):
            assert ours is not None
            yield Finding(file, 0, 0, f"the entry {ours[0].hex()} is not in the log: run reindex")
            ours = next(have, None)
        elif ours is None or ours[0] > theirs[0]:
            yield Finding(file, 0, 0, f"the entry {theirs[0].hex()} is missing: run reindex")
            theirs = next(want, None)
        else:
            yield Finding(
                file, 0, 0, f"the entry {ours[0].hex()} differs from the log: run reindex"
            )
            ours, theirs = next(have, None), next(want, None)


def check_index_apart(directory: DataDirectory) -> Iterator[Finding]:
    """`check_index` in a child process, which damaged pages may end."""
    if not directory.has_index():
        reason = "the index is missing: run reindex, or start the daemon, which makes it anew"
        yield Finding("index/data.mdb", 0, 0, reason)
        return
    with (
        tempfile.TemporaryDirectory(prefix="durable-streamsd-verify-") as scratch,
        subprocess.Popen(
            child_command("storage.verify", str(directory.path), scratch),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=child_environment(),
            text=True,
        ) as child,
    ):
        assert child.stdout is not None
        assert child.stderr is not None
        for number, line in enumerate(child.stdout):
            if number < FINDINGS_MAX:
                file, position, stream_id, reason = line.rstrip("\n").split("\t")
                yield Finding(file, int(position), int(stream_id), reason)
        said = child.stderr.read().strip()
    if child.returncode < 0:
        yield Finding("index/data.mdb", 0, 0, "reading it ends the process: run reindex")
    elif child.returncode:
        yield Finding("index/data.mdb", 0, 0, said.splitlines()[-1] if said else "run reindex")


def main(path: str, scratch: str) -> int:
    """The child: findings on standard output; 1 with a sentence when it cannot go on."""
    try:
        for finding in check_index(DataDirectory(Path(path)), Path(scratch)):
            print(*finding, sep="\t")
    except CorruptData as error:
        print(error.file, error.position, 0, error.reason, sep="\t")
    except StorageError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
