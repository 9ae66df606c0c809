"""A small closed directory whose every byte is known, to be damaged, and what became of it.

`observe` opens a damaged directory and reads everything: each stream is right or is refused, and
what is neither raises `Wrong`.
"""

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import engine
from engine import BYTES, JSON, SMALL, START_MS, TEXT, ManualStore, abandon, open_store

import storage.batch
import storage.chain
from storage.directory import DataDirectory
from storage.errors import CorruptData, OpenError, StorageError
from storage.record import DecodeError, Producer
from storage.scan import FIRST_BATCH_POSITION, Scanner
from storage.verify import Finding, LogReport, check_index, check_log

BLOCK_BYTES = 48
"""Of the blocks that payload is cut into here, so that small runs have many."""
LIMITS = replace(SMALL, segment_bytes=1_400, tail_cache_bytes_max=0, reserve_bytes=512)
HARMLESS_FILES = ("LOCK", "INDEXER", "RESERVE", "index/lock.mdb")
"""Files whose content says nothing: locks, reserved space, and LMDB's table of readers."""


class Wrong(AssertionError):
    """A store served what it never held, or kept silent about what it lacks."""


class Missed(Wrong):
    """A store said that something is not there which is."""


@dataclass
class Truth:
    """One stream as the intact directory has it."""

    stream_id: int
    content_type: str
    data: bytes = b""
    closed: bool = False
    closer: Producer | None = None
    stream_seq: bytes | None = None
    deadline_ms: int | None = None
    producers: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    source_id: int = 0
    """Of a fork: whose bytes it begins with."""


@dataclass
class Lab:
    """A closed directory to damage, with its intact content."""

    path: Path
    truth: dict[bytes, Truth]
    """What it holds; paths of deleted streams lead to nothing."""
    before_last: dict[bytes, Truth]
    """What it would hold without its last batch."""
    gone: list[bytes]
    values: dict[bytes, bytes]
    """What other subsystems keep, with its last batch and without."""
    intact: dict[str, bytes] = field(default_factory=dict)
    _stamps: dict[str, tuple[int, int]] = field(default_factory=dict)

    def keep(self) -> None:
        """Take what is there now for the intact content."""
        self.intact = {name: (self.path / name).read_bytes() for name in self._names()}
        self._stamps = {name: self._stamp(name) for name in self.intact}

    def restore(self) -> None:
        """Undo all damage, and whatever an opening did."""
        for name in self._names():
            if name not in self.intact:
                (self.path / name).unlink()
        for name, data in self.intact.items():
            file = self.path / name
            if not file.exists() or self._stamp(name) != self._stamps[name]:
                file.parent.mkdir(exist_ok=True)
                file.write_bytes(data)
                self._stamps[name] = self._stamp(name)

    def put(self, name: str, data: bytes) -> None:
        """Give a file another content."""
        (self.path / name).write_bytes(data)

    def flip(self, name: str, position: int, mask: int) -> None:
        """Change bits of one byte of the intact content."""
        data = bytearray(self.intact[name])
        data[position] ^= mask
        self.put(name, bytes(data))

    def segments(self) -> list[str]:
        """The log's files, oldest first."""
        return [name for name in sorted(self.intact) if name.startswith("segments/")]

    def _names(self) -> list[str]:
        return [str(file.relative_to(self.path)) for file in self.path.rglob("*") if file.is_file()]

    def _stamp(self, name: str) -> tuple[int, int]:
        stat = (self.path / name).stat()
        return stat.st_mtime_ns, stat.st_size


@contextlib.contextmanager
def small_blocks() -> Iterator[None]:
    """Cut payload into small blocks meanwhile; whoever reads takes the sizes from the log."""
    usual = storage.batch.BLOCK_BYTES_MAX
    storage.batch.BLOCK_BYTES_MAX = BLOCK_BYTES
    try:
        yield
    finally:
        storage.batch.BLOCK_BYTES_MAX = usual


def make_lab(path: Path, *, streams: int = 0) -> Lab:
    """A closed directory with all there is in it, and so many streams more."""
    with small_blocks():
        lab = _fill(path, streams)
    lab.keep()
    return lab


def _fill(path: Path, streams: int) -> Lab:
    store = open_store(path, LIMITS)
    engine.create(store, b"bytes", BYTES, body=bytes(range(100)))
    engine.create(store, b"text", TEXT, ttl_s=1_000)
    engine.create(store, b"json", JSON, body=b'[{"n":1}, "two"]')
    engine.create(store, b"gone", TEXT, body=b"never to be seen again")
    engine.commit(store)
    engine.create(store, b"again", BYTES, body=b"the first life")
    engine.create(store, b"until", JSON, expires_ms=START_MS + 3_600_000)
    engine.append(store, b"text", "grüße ".encode() * 12, producer=Producer(b"p", 0, 0))
    engine.append(store, b"json", b'["%b", 3, [4]]' % (b"long" * 40), stream_seq=b"01")
    values = {b"key/%03d" % number: b"value %d" % number for number in range(max(2, streams))}
    for key, value in [(b"key/gone", b"gone"), *values.items()]:
        store.put_value(key, value, print)
    engine.create(store, b"kept", JSON, body=b'[1, "for a fork", 2]')
    engine.commit(store)
    engine.index_all(store)
    store.put_value(b"key/gone", b"", print)
    engine.fork(store, b"fork", b"bytes", 60, 7, body=b"its own")
    engine.fork(store, b"heir", b"kept", 17, ttl_s=700)
    engine.append(store, b"kept", b'"nobody sees this"')
    for number in range(6):
        engine.append(store, b"bytes", bytes([number]) * (30 * number), stream_seq=b"%d" % number)
        engine.append(store, b"text", b"<%d>" % number, producer=Producer(b"q", 2, number))
        engine.append(store, b"until", b"%d" % number)
        engine.commit(store)
    engine.append(store, b"json", b'"last"', producer=Producer(b"c", 1, 0), close=True)
    engine.delete(store, b"gone")
    engine.delete(store, b"again")
    engine.delete(store, b"kept")
    engine.commit(store)
    _fill_more(store, streams)
    engine.create(store, b"again", BYTES, body=b"the second life")
    engine.commit(store)
    abandon(store)  # Its last batch is moved, and stays behind in its segment as void bytes.
    store = open_store(path, LIMITS)
    engine.append(store, b"bytes", b"tail" * 20)
    engine.append(store, b"heir", b"[3]")
    engine.append(store, b"text", b"end", producer=Producer(b"p", 0, 1))
    engine.commit(store)
    before = state_of(store, streams)
    engine.append(store, b"bytes", b"!" * 70)
    engine.append(store, b"again", b", and its last word", close=True)
    engine.commit(store)
    truth = state_of(store, streams)
    store.close()
    return Lab(path, truth, before, GONE, values)


def _fill_more(store: ManualStore, streams: int) -> None:
    """Streams and producers enough for the index's trees to have branches."""
    for number in range(streams):
        path = b"more/%03d" % number
        engine.create(store, path, TEXT, ttl_s=500 + number, body=b"%d" % number)
        engine.append(store, b"until", b"0", producer=Producer(b"producer-%03d" % number, 0, 0))
        if number % 10 == 9:
            engine.commit(store)
            engine.index_all(store)


USUAL = [b"bytes", b"text", b"json", b"again", b"until", b"fork", b"heir"]
GONE = [b"gone", b"never", b"kept"]


def state_of(store: ManualStore, streams: int) -> dict[bytes, Truth]:
    """What a store holds now, as it says itself before anything is damaged."""
    state = {}
    for path in (*USUAL, *(b"more/%03d" % number for number in range(streams))):
        stream = engine.seen(store, path)
        state[path] = Truth(
            stream.id,
            stream.config.content_type,
            engine.content(store, path),
            stream.durable_closed,
            stream.closer,
            stream.stream_seq,
            stream.persisted_deadline_ms,
            {
                identity: known
                for identity in identities(path, streams)
                if (known := engine.producer(store, stream, identity)) is not None
            },
            0 if stream.origin is None else stream.origin.source.id,
        )
    return state


def identities(path: bytes, streams: int) -> list[bytes]:
    """Producers to ask a stream for: it has some of them."""
    more = [b"producer-%03d" % number for number in range(streams)] if path == b"until" else []
    return [b"p", b"q", b"c", *more]


# What became of a damaged directory


class Seen(NamedTuple):
    """What an opening and reading everything gave: the refusals, typed and with a sentence."""

    refused_to_open: str | None
    refused: dict[bytes, str]


def observe(lab: Lab, truth: dict[bytes, Truth] | None = None) -> Seen:
    """Open and read everything. Raises `Wrong`, or whatever should not have been raised."""
    try:
        store = open_store(lab.path, LIMITS)
    except OpenError as error:
        return Seen(str(error), {})
    refused = {}
    try:
        for path, expected in (lab.truth if truth is None else truth).items():
            try:
                check_stream(store, path, expected, identities(path, len(lab.truth) - len(USUAL)))
            except StorageError as error:
                if not isinstance(error, CorruptData) and "run reindex" not in str(error):
                    raise
                refused[path] = str(error)
        try:
            kept = store.values(b"key/")
            if kept != sorted(lab.values.items()):
                raise Wrong(f"of {len(lab.values)} values there are {kept}")
        except StorageError as error:
            refused[b"(values)"] = str(error)
        for path in lab.gone:
            try:
                if engine.visible(store, path) is not None:
                    raise Wrong(f"{path!r} was deleted, and is back")
            except StorageError as error:
                refused[path] = str(error)
    finally:
        abandon(store)
    return Seen(None, refused)


def check_stream(store: ManualStore, path: bytes, expected: Truth, producers: list[bytes]) -> None:
    """Hold one stream to what it was. Raises `Wrong`, or `StorageError` where it is refused."""
    stream = engine.visible(store, path)
    if stream is None:
        raise Missed(f"{path!r} is said not to be there")
    state = (
        stream.id,
        stream.config.content_type,
        stream.durable_closed,
        stream.closer,
        stream.stream_seq,
        stream.persisted_deadline_ms,
    )
    told = (
        expected.stream_id,
        expected.content_type,
        expected.closed,
        expected.closer,
        expected.stream_seq,
        expected.deadline_ms,
    )
    if state != told:
        raise Wrong(f"{path!r} is {state} instead of {told}")
    if stream.durable_tail != len(expected.data):
        raise Wrong(f"{path!r} ends at {stream.durable_tail} instead of {len(expected.data)}")
    refusal: StorageError | None = None
    for identity in producers:
        try:
            known = engine.producer(store, stream, identity)
        except StorageError as error:
            refusal = error
            continue
        if known != expected.producers.get(identity):
            raise (Wrong if known else Missed)(f"producer {identity!r} of {path!r} is {known}")
    for limit_bytes in (60, 1 << 20):
        offset = 0
        try:
            for chunk in engine.chunks(store, stream, 0, limit_bytes):
                if chunk.data != expected.data[offset : chunk.next]:
                    raise Wrong(f"{path!r} has other bytes at {offset}")
                offset = chunk.next
        except StorageError as error:
            refusal = error
        except Wrong:
            raise
        except AssertionError as error:
            raise Wrong(f"{path!r} at {offset}: the chunk contradicts itself") from error
        else:
            if offset != len(expected.data):
                raise Wrong(f"{path!r} ends early, at {offset}")
    if refusal is not None:
        raise refusal


def log_findings(lab: Lab) -> list[Finding]:
    """What `verify` says of the log, or of its refusal to read it; in this process."""
    try:
        return list(check_log(DataDirectory(lab.path), LogReport(), lambda done, total: None))
    except OpenError as error:
        return [Finding("", 0, 0, str(error))]


def index_findings(lab: Lab) -> list[Finding]:
    """What `verify` says of the index, in this process, which damaged pages may end."""
    try:
        with tempfile.TemporaryDirectory(prefix="corrupt-") as scratch:
            return list(check_index(DataDirectory(lab.path), Path(scratch)))
    except CorruptData as error:
        return [Finding(error.file, error.position, 0, error.reason)]
    except StorageError as error:
        return [Finding("", 0, 0, str(error))]


class Payload(NamedTuple):
    """Where a block of a stream's payload lies."""

    segment: str
    start: int
    end: int
    stream_id: int


class Layout(NamedTuple):
    """What lies where in the log."""

    ends: dict[str, int]
    """Where each segment ends; what it holds past that is void."""
    payloads: list[Payload]
    last_batch: int
    """Where the last batch begins in the last segment."""


def layout(lab: Lab) -> Layout:
    """What lies where in the intact log."""
    ends: dict[str, int] = {}
    payloads: list[Payload] = []
    last = 0
    chain = storage.chain.open_chain(lab.path / "segments")
    for at, segment in enumerate(chain.segments):
        name = f"segments/{segment.name}"
        position = FIRST_BATCH_POSITION
        known_end = chain.end(at)
        scanner = Scanner(segment)
        while known_end is None or position < known_end:
            try:
                batch = scanner.batch_at(position)
            except DecodeError:
                break
            last = position
            start = batch.payload_position
            for run in batch.runs:
                for coded, _ in storage.batch.BLOCK.iter_unpack(run.blocks):
                    end = start + (coded & storage.batch.LENGTH_MASK)
                    payloads.append(Payload(name, start, end, run.stream_id))
                    start = end
            position = batch.end
        ends[name] = position
    return Layout(ends, payloads, last)
