"""Streams in memory: loaded on first use, evicted when idle, and the tail cache of their bytes.

A stream stays while anything about it is not in the index yet (its newest change, a run), while a
reader follows it, or while the tail cache holds bytes of it that are not idle.
"""

from collections import deque
from itertools import islice
from typing import NamedTuple

from storage.errors import NotResident
from storage.family import Origin
from storage.index_entries import StreamMeta
from storage.limits import Limits
from storage.record import Producer, Retention
from storage.runs import Run
from storage.state import Stream
from storage.stream_config import stream_config

RUN_OVERHEAD_BYTES = 512
SWEEP_STREAMS = 5_000
ROOM_STEP = 128
"""How many newcomers there are between two looks at who could go."""
EVICTED_REMEMBERED_MAX = 8_192


class Loaded(NamedTuple):
    """What the index says about a path: the stream's id and state, and those of its sources.

    `chain` is empty when there is no stream. `evicted` is `Residents.evicted` of before the index
    was asked.
    """

    path: bytes
    chain: list[tuple[int, StreamMeta]]
    evicted: int


class TailCache:
    """The newest payload of all streams, up to a bound that counts each run's overhead too."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._runs: deque[Run] = deque()

    @property
    def size_bytes(self) -> int:
        """What is kept, each run's overhead included."""
        return self._bytes

    def add(self, runs: list[Run], indexed_sequence: int) -> None:
        """Keep the bytes of a batch's runs, and let go of the oldest."""
        kept = self._runs
        kept.extend(runs)
        size = self._bytes + len(runs) * RUN_OVERHEAD_BYTES
        for run in runs:
            size += run.end - run.start
        if size > self._bytes_max:
            # Somewhat more than necessary, so that each stream is looked at once for many runs.
            goal = self._bytes_max - (self._bytes_max >> 6)
            losers: dict[Stream, None] = {}
            while size > goal and kept:
                oldest = kept.popleft()
                if oldest.data is not None:  # else `forget` was faster
                    size -= len(oldest.data)
                    oldest.data = None
                size -= RUN_OVERHEAD_BYTES
                losers[oldest.stream] = None
            for stream in losers:
                stream.runs.drop(indexed_sequence)
        self._bytes = size

    def forget(self, runs: list[Run]) -> None:
        """Let go of the bytes of runs that nobody will read; what they cost beside is counted until
        their time comes."""
        for run in runs:
            if run.data is not None:
                self._bytes -= len(run.data)
                run.data = None


class Residents:
    """The newest incarnation at each path in memory, and paths known to be free."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._streams: dict[bytes, Stream] = {}
        self._absent: dict[bytes, None] = {}
        self._newcomers = 0
        self.evicted = 0
        """How many streams were forgotten."""
        self._evicted_at: dict[bytes, int] = {}
        """The count at which each of the last of them was, the oldest first."""

    def __len__(self) -> int:
        return len(self._streams)

    def get(self, path: bytes) -> Stream | None:
        """The stream at a path, None if there is none. Raises `NotResident` if not known."""
        stream = self._streams.get(path)
        if stream is None and path not in self._absent:
            raise NotResident(path)
        return stream

    def peek(self, path: bytes) -> Stream | None:
        """The stream at a path if it is in memory."""
        return self._streams.get(path)

    def put(self, stream: Stream) -> None:
        """Let a path lead to this stream."""
        self._absent.pop(stream.path, None)
        self._pin(self._streams.get(stream.path), -1)
        self._pin(stream, 1)
        self._streams[stream.path] = stream

    def put_back(self, path: bytes, stream: Stream | None) -> None:
        """Undo `put`: let a path lead to what was there before."""
        self._pin(self._streams.get(path), -1)
        self._pin(stream, 1)
        if stream is None:
            self._streams.pop(path, None)
            self._note_absent(path)
        else:
            self._streams[path] = stream

    def admit(self, loaded: Loaded, now_ms: int) -> None:
        """Take what was loaded, unless the path became known meanwhile.

        A source that is in memory already may have changed since the index was written; the path
        is its own as long as it has forks.
        """
        if loaded.path in self._streams or loaded.path in self._absent:
            return
        if not loaded.chain:
            self._note_absent(loaded.path)
        source = None
        for stream_id, meta in reversed(loaded.chain):
            stream = self._streams.get(meta.path)
            if stream is None:
                stream = _revive(stream_id, meta, source, now_ms)
                self.put(stream)
            assert stream.id == stream_id
            source = stream

    def outdated(self, loaded: Loaded) -> bool:
        """Whether any stream of what was loaded may have been here, and have changed, since."""
        if loaded.evicted == self.evicted:
            return False
        if loaded.evicted < self.evicted - len(self._evicted_at):
            return True
        paths = [loaded.path, *(meta.path for _, meta in loaded.chain)]
        return any(self._evicted_at.get(path, 0) > loaded.evicted for path in paths)

    def make_room(self, now_ms: int, indexed_sequence: int) -> None:
        """Somebody new is here: if there are too many, look at two others for each newcomer.

        Never at the newest ones: whoever was just admitted is about to be asked for.
        """
        self._newcomers += 1
        if self._newcomers >= ROOM_STEP and len(self._streams) > self._limits.resident_streams_max:
            self._newcomers = 0
            self._visit(min(2 * ROOM_STEP, len(self._streams) // 2), now_ms, indexed_sequence)

    def evict(self, now_ms: int, indexed_sequence: int) -> None:
        """Look at some streams, the longest unvisited first, and forget those that can be."""
        self._visit(SWEEP_STREAMS, now_ms, indexed_sequence)

    def _visit(self, count: int, now_ms: int, indexed_sequence: int) -> None:
        for path in list(islice(self._streams, count)):
            stream = self._streams.pop(path)
            wanted = stream.live_readers or stream.resident_forks
            if stream.last_sequence > indexed_sequence or wanted:
                self._streams[path] = stream
                continue
            stream.runs.drop(indexed_sequence)
            crowded = len(self._streams) >= self._limits.resident_streams_max
            idle = now_ms - stream.used_ms >= self._limits.idle_ms
            ended = stream.deleted and not stream.soft_deleted
            if ended or idle or (crowded and not len(stream.runs)):
                stream.runs.clear()
                self._pin(stream, -1)
                self._note_evicted(path)
            else:
                self._streams[path] = stream

    @staticmethod
    def _pin(stream: Stream | None, change: int) -> None:
        """A stream comes or goes: its source stays as long as it is there."""
        if stream is not None and stream.origin is not None:
            stream.origin.source.resident_forks += change

    def _note_evicted(self, path: bytes) -> None:
        self.evicted += 1
        self._evicted_at.pop(path, None)
        self._evicted_at[path] = self.evicted
        if len(self._evicted_at) > EVICTED_REMEMBERED_MAX:
            del self._evicted_at[next(iter(self._evicted_at))]

    def _note_absent(self, path: bytes) -> None:
        self._absent[path] = None
        if len(self._absent) > self._limits.known_absent_max:
            del self._absent[next(iter(self._absent))]


def _revive(stream_id: int, meta: StreamMeta, source: Stream | None, now_ms: int) -> Stream:
    """A stream as the index has it: accepted, durable and indexed state are one."""
    kept = meta.retention
    retention = None if kept is None else Retention(kept.keep_bytes, kept.keep_s, kept.asked)
    config = stream_config(meta.content_type, meta.ttl_s, meta.expires_ms, retention)
    stream = Stream(stream_id, meta.path, config, meta.created_ms)
    stream.root = meta.root
    stream.tail = stream.durable_tail = meta.tail
    stream.earliest = stream.durable_earliest = meta.earliest
    stream.closed = stream.durable_closed = meta.closed
    stream.closer = None if meta.closer is None else Producer(*meta.closer)
    stream.stream_seq = meta.stream_seq
    stream.producer_count = meta.producer_count
    stream.producers_complete = not meta.producer_count
    stream.deadline_ms = stream.persisted_deadline_ms = meta.deadline_ms
    if meta.fork is not None and source is not None:
        fork = meta.fork
        stream.origin = Origin(source, fork.offset, fork.sub_offset, fork.seam, fork.asked)
    stream.forks = meta.forks
    stream.deleted = stream.gone = meta.kept is not None
    stream.soft_deleted = stream.durable_soft_deleted = meta.kept is not None
    stream.durable = True
    stream.used_ms = now_ms
    return stream
