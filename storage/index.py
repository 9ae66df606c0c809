"""The index: LMDB offset tables over the log. The only module that imports `lmdb`.

A checkpointed view: it holds nothing beyond what is durable in the log, remembers how far it got,
and can be rebuilt from the segments. Values end with a CRC-32 of key and value, because LMDB's
pages have none. Tables:

    state      b"checkpoint" → Checkpoint; b"directory" → id of the data directory;
               b"horizon" → up to which batch the log has gaps, while that is being rebuilt
    paths      path → stream id
    streams    stream id → StreamMeta
    runs       stream id, start offset → packed runs, up to about 1,900 bytes of them
    producers  stream id, producer id → epoch, seq
    expiry     deadline ms, stream id → nothing
    retention  ms from which something can be cut, stream id → nothing
    forks      source id, offset up to and from which the fork needs it, fork id → nothing
    segments   segment id → live payload bytes: those of its runs in `runs`; a compacted segment
               counts from when it is here
    values     key → value: what other subsystems keep in the log
    settled    kind, stream id or key → up to which batch compacted segments told it already: only
               while the index is being rebuilt behind its horizon (`storage.rebuild`)

No read transaction outlives a call, so that none can pin old pages or meet a map that grows.
"""

import contextlib
import os
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import Any
from zlib import crc32

import lmdb
import msgspec

from storage.errors import CorruptData, IndexFailed, OpenError
from storage.index_entries import (
    CRC,
    ENTRY_BYTES_MAX,
    ID,
    LIVE,
    NEED,
    OFFSET_MAX,
    PAIR,
    PRODUCER,
    Buffer,
    Checkpoint,
    Contents,
    ForkMeta,
    Need,
    RetentionMeta,
    RunPlace,
    StreamEntry,
    StreamMeta,
    damaged,
    decode_meta,
    encode_meta,
    pack_run,
    pair,
    seal,
    unpack_runs,
)

MAP_BYTES = 1 << 40
TABLES = (
    "state",
    "paths",
    "streams",
    "runs",
    "producers",
    "expiry",
    "retention",
    "forks",
    "segments",
    "values",
    "settled",
)
KEY_TABLES = frozenset({"expiry", "retention", "forks"})
"""Tables whose entries are keys without values."""
_CHECKPOINT_KEY = b"checkpoint"
_DIRECTORY_KEY = b"directory"
_HORIZON_KEY = b"horizon"


class Index:
    """The index open for look-ups; safe in any thread. Raises `CorruptData` for damaged values."""

    def __init__(self, path: Path, *, writable: bool) -> None:
        """Open the environment; a writable one is created where missing. Raises `OpenError`."""
        self.path = path
        self.reopen(writable=writable)

    def reopen(self, *, writable: bool) -> None:
        """Open the environment again after `close`. Raises `OpenError`."""
        path = self.path
        try:
            self._env = lmdb.open(
                str(path),
                map_size=MAP_BYTES,
                max_dbs=len(TABLES),
                max_readers=512,
                readonly=not writable,
                create=writable,
                readahead=False,
                max_spare_txns=8,
            )
            if writable:
                self._fill_up()
            self._tables = self._open_tables(writable)
        except (lmdb.Error, OSError) as error:
            raise OpenError(f"{path}: the index cannot be opened ({error}): run reindex") from error

    def _fill_up(self) -> None:
        """Lengthen a file that was cut short with zeroes, which LMDB refuses where it needs them.

        Touching what is not there would end the process. A file may be short and sound: LMDB never
        writes pages at its end that were taken and given back in one transaction.
        """
        pages = self._env.info()["last_pgno"] + 1
        length_bytes = pages * self._env.stat()["psize"]
        with (self.path / "data.mdb").open("r+b") as file:
            if file.seek(0, os.SEEK_END) < length_bytes <= MAP_BYTES:
                file.truncate(length_bytes)

    def _open_tables(self, writable: bool) -> dict[str, Any]:
        """The tables, made in one transaction in an index that is empty.

        Making one that another index lacks would hide that it is lost.
        """
        if writable and not self._env.stat()["entries"]:
            with self._env.begin(write=True) as txn:
                for name in TABLES:
                    self._env.open_db(name.encode(), txn)
        return {name: self._env.open_db(name.encode(), create=False) for name in TABLES}

    def close(self) -> None:
        """Close the environment."""
        self._env.close()

    @contextlib.contextmanager
    def _look(self) -> Iterator[lmdb.Transaction]:
        """A read transaction for the length of one look-up."""
        try:
            with self._env.begin() as txn:
                yield txn
        except lmdb.Error as error:
            raise IndexFailed(f"{self.path}: {error}: run reindex") from error

    def _get(self, txn: lmdb.Transaction, table: str, key: bytes) -> bytes | None:
        value = txn.get(key, db=self._tables[table])
        if value is None:
            self._check_absent(txn, table, key)
            return None
        return self._checked(table, key, value)

    def _check_absent(self, txn: lmdb.Transaction, table: str, key: bytes) -> None:
        """Raise `CorruptData` unless the neighbours of a missing key are whole and in order.

        One flipped key, or pointer to a page, leads a search to where the key cannot be.
        """
        with txn.cursor(db=self._tables[table]) as cursor:
            if cursor.set_range(key):
                self._checked(table, cursor.key(), cursor.value())
                astray = bytes(cursor.key()) <= key
                more = cursor.prev()
            else:
                astray = False
                more = cursor.last()
            if more:
                self._checked(table, cursor.key(), cursor.value())
                astray = astray or bytes(cursor.key()) >= key
        if astray:
            raise damaged(table, key, "is out of order")

    def _checked(self, table: str, key: Buffer, sealed: Buffer) -> bytes:
        value = bytes(sealed[:-4])
        if len(sealed) < 4 or CRC.unpack(sealed[-4:])[0] != crc32(value, crc32(key)):
            raise damaged(table, key, "is damaged")
        return value

    def checkpoint(self) -> Checkpoint | None:
        """How far the index got; None for an empty one."""
        with self._look() as txn:
            value = self._get(txn, "state", _CHECKPOINT_KEY)
            if value is None and txn.stat(self._tables["streams"])["entries"]:
                raise CorruptData(
                    "index/data.mdb, table state", 0, "the checkpoint is lost: run reindex"
                )
        return None if value is None else Checkpoint(*msgspec.msgpack.decode(value))

    def directory_id(self) -> str | None:
        """The data directory that the index was made for."""
        with self._look() as txn:
            value = self._get(txn, "state", _DIRECTORY_KEY)
        return None if value is None else value.decode()

    def horizon(self) -> int:
        """Up to which batch the index has to be rebuilt from a log with gaps; 0 when it is not."""
        with self._look() as txn:
            value = self._get(txn, "state", _HORIZON_KEY)
        return 0 if value is None else int(ID.unpack(value)[0])

    def live_bytes(self, from_id: int = 0) -> dict[int, int]:
        """The live payload of each segment whose id is not below `from_id`."""
        found = {}
        with self._look() as txn, txn.cursor(db=self._tables["segments"]) as cursor:
            more = cursor.set_range(ID.pack(from_id))
            while more:
                value = self._checked("segments", cursor.key(), cursor.value())
                found[ID.unpack(cursor.key())[0]] = LIVE.unpack(value)[0]
                more = cursor.next()
        return found

    def stream_count(self) -> int:
        """How many streams there are, those included that are kept for their forks."""
        with self._look() as txn:
            return int(txn.stat(self._tables["streams"])["entries"])

    def alive(self, stream_ids: Iterable[int]) -> int:
        """How many of these streams there are."""
        with self._look() as txn:
            return sum(self._meta(txn, stream_id) is not None for stream_id in stream_ids)

    def contents(self, stream_ids: Iterable[int]) -> tuple[int, list[Contents]]:
        """Those of these streams that there are, and as of which batch that is."""
        found = []
        with self._look() as txn:
            value = self._get(txn, "state", _CHECKPOINT_KEY)
            sequence = 0 if value is None else Checkpoint(*msgspec.msgpack.decode(value)).sequence
            for stream_id in stream_ids:
                meta = self._meta(txn, stream_id)
                if meta is None:
                    continue
                producers = [
                    (key[ID.size :], *PRODUCER.unpack(state))
                    for key, state in self._prefixed(txn, "producers", ID.pack(stream_id))
                ]
                found.append(Contents(stream_id, meta, producers))
        return sequence, found

    def places(self, stream_id: int, offset: int, places_max: int) -> list[RunPlace]:
        """A stream's runs from the first that begins at `offset` or behind it, about so many."""
        found: list[RunPlace] = []
        with self._look() as txn, txn.cursor(db=self._tables["runs"]) as cursor:
            more = self._seek_floor(cursor, stream_id, offset)
            more = more or cursor.set_range(PAIR.pack(stream_id, offset))
            while more and len(found) < places_max:
                key = cursor.key()
                if pair("runs", key)[0] != stream_id:
                    break
                runs = unpack_runs(self._checked("runs", key, cursor.value()))
                found += [place for place in runs if place.start >= offset]
                more = cursor.next()
        return found

    def _prefixed(
        self, txn: lmdb.Transaction, table: str, prefix: bytes
    ) -> Iterator[tuple[bytes, bytes]]:
        with txn.cursor(db=self._tables[table]) as cursor:
            more = cursor.set_range(prefix)
            while more and (key := bytes(cursor.key())).startswith(prefix):
                yield key, self._checked(table, key, cursor.value())
                more = cursor.next()

    def chain_at(self, path: bytes) -> list[tuple[int, StreamMeta]]:
        """The id and state of the stream at a path, and of its sources; empty if there is none."""
        chain: list[tuple[int, StreamMeta]] = []
        with self._look() as txn:
            value = self._get(txn, "paths", path)
            stream_id = 0 if value is None else ID.unpack(value)[0]
            while stream_id:
                meta = self._meta(txn, stream_id)
                if meta is None or (not chain and meta.path != path):
                    what = f"stream {stream_id} is not at its path: run reindex"
                    raise CorruptData("index/data.mdb, table paths", 0, what)
                chain.append((stream_id, meta))
                source_id = 0 if meta.fork is None else meta.fork.source_id
                if source_id >= stream_id:
                    what = f"stream {stream_id} is older than its source: run reindex"
                    raise CorruptData("index/data.mdb, table streams", 0, what)
                stream_id = source_id
        return chain

    def _meta(self, txn: lmdb.Transaction, stream_id: int) -> StreamMeta | None:
        value = self._get(txn, "streams", ID.pack(stream_id))
        return None if value is None else decode_meta(value)

    def streams_after(self, prefix: bytes, after: bytes | None, limit: int) -> list[StreamEntry]:
        """Streams whose paths begin with `prefix` and sort after `after`, in order of their paths.

        As many as `limit`, or all that there are. Soft-deleted ones are among them.
        """
        found: list[StreamEntry] = []
        start = prefix if after is None or after < prefix else after + b"\0"
        with self._look() as txn, txn.cursor(db=self._tables["paths"]) as cursor:
            more = cursor.set_range(start) if start else cursor.first()
            while more and len(found) < limit:
                path = bytes(cursor.key())
                if not path.startswith(prefix):
                    break
                (stream_id,) = ID.unpack(self._checked("paths", path, cursor.value()))
                meta = self._meta(txn, stream_id)
                if meta is None or meta.path != path:
                    raise damaged("paths", path, "leads to another stream")
                source = None if meta.fork is None else self._meta(txn, meta.fork.source_id)
                found.append(StreamEntry(path, meta, None if source is None else source.path))
                more = cursor.next()
        return found

    def path_of(self, stream_id: int) -> bytes | None:
        """The path of the stream with this id (for people who read a finding)."""
        with self._look() as txn:
            meta = self._meta(txn, stream_id)
        return None if meta is None else meta.path

    def producer(self, stream_id: int, producer_id: bytes) -> tuple[int, int] | None:
        """A producer's epoch and highest accepted seq."""
        with self._look() as txn:
            value = self._get(txn, "producers", ID.pack(stream_id) + producer_id)
        if value is None:
            return None
        epoch, seq = PRODUCER.unpack(value)
        return epoch, seq

    def runs(self, stream_id: int, offset: int, end: int, limit_bytes: int) -> list[RunPlace]:
        """The runs from the one with `offset` on, to `end` or past `limit_bytes`, in one pass."""
        found: list[RunPlace] = []
        stop = min(end, offset + limit_bytes)
        with self._look() as txn, txn.cursor(db=self._tables["runs"]) as cursor:
            if not self._seek_floor(cursor, stream_id, offset):
                return found
            while True:
                key = cursor.key()
                owner, first = pair("runs", key)
                if owner != stream_id or first > stop or (first == stop and found):
                    return found
                for place in unpack_runs(self._checked("runs", key, cursor.value())):
                    if place.start <= offset:
                        found.clear()
                    elif place.start > stop:
                        return found
                    found.append(place)
                if not cursor.next():
                    return found

    @staticmethod
    def _seek_floor(cursor: lmdb.Cursor, stream_id: int, offset: int) -> bool:
        """Put the cursor on the stream's last entry that starts at or before `offset`."""
        if cursor.set_range(PAIR.pack(stream_id, offset)):
            if cursor.key() == PAIR.pack(stream_id, offset):
                return True
            found = cursor.prev()
        else:
            found = cursor.last()
        return bool(found) and pair("runs", cursor.key())[0] == stream_id

    def due(self, now_ms: int, limit: int) -> list[bytes]:
        """Paths of streams whose written-down deadline has passed, the oldest first."""
        paths: list[bytes] = []
        with self._look() as txn, txn.cursor(db=self._tables["expiry"]) as cursor:
            for key in cursor.iternext(keys=True, values=False):
                try:
                    deadline, stream_id = pair("expiry", key)
                    if deadline > now_ms or len(paths) == limit:
                        break
                    meta = self._meta(txn, stream_id)
                except CorruptData:
                    continue  # Whoever asks for it is told; the time of the others is over.
                if meta is not None:
                    paths.append(meta.path)
        return paths

    def value(self, key: bytes) -> bytes | None:
        """What another subsystem keeps under a key."""
        with self._look() as txn:
            return self._get(txn, "values", key)

    def values(self, prefix: bytes) -> list[tuple[bytes, bytes]]:
        """All keys that begin with `prefix`, in order, and their values.

        Walks the whole table, because a damaged page can hide others from a search.
        """
        found = []
        count = 0
        last = b""
        with self._look() as txn, txn.cursor(db=self._tables["values"]) as cursor:
            for key, value in cursor:
                if bytes(key) <= last:
                    raise damaged("values", key, "is out of order")
                last = bytes(key)
                count += 1
                checked = self._checked("values", key, value)
                if last.startswith(prefix):
                    found.append((last, checked))
            if count != txn.stat(self._tables["values"])["entries"]:
                raise damaged("values", prefix, "is lost, or one that follows it is")
        return found

    def retention_due(
        self, now_ms: int, after: tuple[int, int], limit: int
    ) -> list[tuple[int, int]]:
        """When what can be cut now was due, and its stream's id, behind `after` in that order."""
        found: list[tuple[int, int]] = []
        with self._look() as txn, txn.cursor(db=self._tables["retention"]) as cursor:
            more = cursor.set_range(PAIR.pack(after[0], after[1] + 1))
            while more and len(found) < limit:
                due_ms, stream_id = pair("retention", cursor.key())
                if due_ms > now_ms:
                    break
                found.append((due_ms, stream_id))
                more = cursor.next()
        return found

    def run_at(self, stream_id: int, offset: int) -> RunPlace | None:
        """The run that holds an offset."""
        with self._look() as txn:
            return self._run_at(txn, stream_id, offset)

    def _run_at(self, txn: lmdb.Transaction, stream_id: int, offset: int) -> RunPlace | None:
        with txn.cursor(db=self._tables["runs"]) as cursor:
            if not self._seek_floor(cursor, stream_id, offset):
                return None
            found = None
            for place in unpack_runs(self._checked("runs", cursor.key(), cursor.value())):
                if place.start > offset:
                    break
                found = place
        return found

    def copy(self, destination: Path) -> None:
        """Write a compact copy, as of now, into an empty folder. Raises `IndexFailed`."""
        try:
            self._env.copy(str(destination), compact=True)
        except lmdb.Error as error:
            raise IndexFailed(f"{destination}: {error}") from error

    def streams(self) -> Iterator[tuple[int, StreamMeta]]:
        """All streams in order of their ids (for offline tools: holds one read transaction)."""
        with self._look() as txn, txn.cursor(db=self._tables["streams"]) as cursor:
            for key, value in cursor:
                meta = decode_meta(self._checked("streams", key, value))
                yield ID.unpack(key)[0], meta

    def plain_streams(self) -> Iterator[tuple[bytes, bytes]]:
        """The entries of `streams` without what they say of how runs are packed."""
        for key, value in self.entries("streams"):
            meta = decode_meta(value)
            if meta.retention is None:
                yield key, value
                continue
            meta.retention.entry_start = meta.retention.entry_bytes = 0
            yield key, encode_meta(meta)

    def entries(self, table: str) -> Iterator[tuple[bytes, bytes]]:
        """All keys and checked values of a table, each found by its key too (for offline tools)."""
        with self._look() as txn, txn.cursor(db=self._tables[table]) as cursor:
            for key, value in cursor:
                if txn.get(key, db=self._tables[table]) != value:
                    raise damaged(table, key, "is not found by its key")
                keyed = table in KEY_TABLES
                yield bytes(key), b"" if keyed else self._checked(table, key, value)

    def write(self) -> "IndexTransaction":
        """Begin the one write transaction; committed at the end of its `with` block."""
        try:
            self._env.reader_check()
            return IndexTransaction(self)
        except lmdb.Error as error:
            raise IndexFailed(f"{self.path}: {error}") from error


class IndexTransaction:
    """Changes to the index that become durable together, checkpoint included."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._tables = index._tables
        self._txn = index._env.begin(write=True)

    def __enter__(self) -> "IndexTransaction":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exception: BaseException | None, _: object
    ) -> None:
        try:
            if kind is None:
                self._txn.commit()
            else:
                self._txn.abort()
        except lmdb.Error as error:
            raise IndexFailed(f"{self._index.path}: {error}") from error
        if kind is not None and issubclass(kind, lmdb.Error):
            raise IndexFailed(f"{self._index.path}: {exception}") from exception

    def _put(self, table: str, key: bytes, value: bytes) -> None:
        self._txn.put(key, seal(key, value), db=self._tables[table])

    def meta(self, stream_id: int) -> StreamMeta | None:
        """A stream's state as this transaction sees it."""
        return self._index._meta(self._txn, stream_id)

    def put_stream(
        self,
        stream_id: int,
        meta: StreamMeta,
        old_deadline_ms: int | None,
        old_due_ms: int | None,
    ) -> None:
        """Write a stream's state, and its deadline and next cut where those changed."""
        self._put("streams", ID.pack(stream_id), encode_meta(meta))
        self._put_time("expiry", stream_id, meta.deadline_ms, old_deadline_ms)
        if meta.retention is not None:
            self._put_time("retention", stream_id, meta.retention.due_ms, old_due_ms)

    def _put_time(self, table: str, stream_id: int, new_ms: int | None, old_ms: int | None) -> None:
        if new_ms == old_ms:
            return
        if old_ms is not None:
            self._txn.delete(PAIR.pack(old_ms, stream_id), db=self._tables[table])
        if new_ms is not None:
            self._txn.put(PAIR.pack(new_ms, stream_id), b"", db=self._tables[table])

    def put_path(self, path: bytes, stream_id: int) -> None:
        """Say which stream a path leads to."""
        self._put("paths", path, ID.pack(stream_id))

    def add_runs(
        self, stream_id: int, places: Iterable[RunPlace], retention: RetentionMeta | None
    ) -> None:
        """Add a stream's next runs behind those it has; what has retention knows its last entry."""
        if retention is None:
            key, packed = self._last_entry(stream_id)
            filled = len(packed)
        else:
            key = PAIR.pack(stream_id, retention.entry_start)
            filled = retention.entry_bytes
            packed = (self._index._get(self._txn, "runs", key) or b"") if filled else b""
        for place in places:
            run = pack_run(place)
            if not filled or filled + len(run) > ENTRY_BYTES_MAX:
                if packed:
                    self._put("runs", key, packed)
                key, packed, filled = PAIR.pack(stream_id, place.start), b"", 0
            packed += run
            filled += len(run)
        if packed:
            self._put("runs", key, packed)
        if retention is not None:
            retention.entry_start, retention.entry_bytes = PAIR.unpack(key)[1], filled

    def note_last_entry(self, stream_id: int, retention: RetentionMeta) -> None:
        """Its entries were written anew: the last one is what is filled from now on."""
        key, packed = self._last_entry(stream_id)
        retention.entry_start = PAIR.unpack(key)[1] if key else 0
        retention.entry_bytes = len(packed)

    def _last_entry(self, stream_id: int) -> tuple[bytes, bytes]:
        """Key and runs of a stream's last entry; empty where it has none."""
        with self._txn.cursor(db=self._tables["runs"]) as cursor:
            if not self._index._seek_floor(cursor, stream_id, OFFSET_MAX):
                return b"", b""
            key = bytes(cursor.key())
            return key, self._index._checked("runs", key, cursor.value())

    def place_runs(
        self, stream_id: int, places: list[RunPlace], moved_from: Container[int] | None
    ) -> tuple[list[RunPlace], list[RunPlace]]:
        """Put runs of a stream, in order of their offsets, where they belong among those it has.

        With `moved_from` each takes the place of those that it was made of, which lie in these
        segments; one of which none is left is dropped. Without it, there may be none. Returns the
        places that are dead now and those that were put. Raises `CorruptData` for two of the same
        bytes that must not be.
        """
        old: list[RunPlace] = []
        end = places[-1].start + places[-1].length
        with self._txn.cursor(db=self._tables["runs"]) as cursor:
            found = self._index._seek_floor(cursor, stream_id, places[0].start)
            if not found:
                found = cursor.set_range(PAIR.pack(stream_id, places[0].start))
            while found:
                key = bytes(cursor.key())
                owner, first = pair("runs", key)
                if owner != stream_id or first >= end:
                    break
                old += unpack_runs(self._index._checked("runs", key, cursor.value()))
                cursor.delete()
                found = bool(cursor.key())  # none behind the last entry
        dead: list[RunPlace] = []
        put: list[RunPlace] = []
        kept: list[RunPlace] = []
        at = 0
        for place in places:
            stop = place.start + place.length
            while at < len(old) and old[at].start + old[at].length <= place.start:
                kept.append(old[at])
                at += 1
            parts = []
            while at < len(old) and old[at].start < stop:
                parts.append(old[at])
                at += 1
            if moved_from is None:
                fits = not parts
            else:
                fits = all(
                    part.start >= place.start
                    and part.start + part.length <= stop
                    and part.segment_id in moved_from
                    for part in parts
                )
            if not fits:
                raise damaged("runs", PAIR.pack(stream_id, place.start), "is there twice")
            if parts or moved_from is None:
                dead += parts
                put.append(place)
                kept.append(place)
        kept += old[at:]
        self._write_runs(stream_id, kept)
        return dead, put

    def _write_runs(self, stream_id: int, places: list[RunPlace]) -> None:
        """Write whole entries; those that were there are removed."""
        key = packed = b""
        for place in places:
            run = pack_run(place)
            if packed and len(packed) + len(run) > ENTRY_BYTES_MAX:
                self._put("runs", key, packed)
                packed = b""
            if not packed:
                key = PAIR.pack(stream_id, place.start)
            packed += run
        if packed:
            self._put("runs", key, packed)

    def run_at(self, stream_id: int, offset: int) -> RunPlace | None:
        """The run that holds an offset, as this transaction sees it."""
        return self._index._run_at(self._txn, stream_id, offset)

    def remove_runs(self, stream_id: int, dead: Iterable[tuple[int, int]]) -> list[RunPlace]:
        """Remove a stream's runs that lie wholly between any two offsets; which those were."""
        removed: list[RunPlace] = []
        owner = ID.pack(stream_id)
        with self._txn.cursor(db=self._tables["runs"]) as cursor:
            for low, high in dead:
                start = PAIR.pack(stream_id, low)
                found = self._index._seek_floor(cursor, stream_id, low) or cursor.set_range(start)
                while found:
                    key = bytes(cursor.key())
                    if not key.startswith(owner) or pair("runs", key)[1] >= high:
                        break
                    places = list(unpack_runs(self._index._checked("runs", key, cursor.value())))
                    kept: list[RunPlace] = []
                    for place in places:
                        inside = low <= place.start and place.start + place.length <= high
                        (removed if inside else kept).append(place)
                    if not kept:
                        found = cursor.delete()
                        continue
                    if len(kept) < len(places):
                        cursor.put(key, seal(key, b"".join(map(pack_run, kept))))
                    found = cursor.next()
        return removed

    def put_fork(self, source_id: int, fork: ForkMeta, fork_id: int) -> None:
        """Say from where to where a fork needs its source."""
        key = NEED.pack(source_id, fork.reach, fork.floor, fork_id)
        self._txn.put(key, b"", db=self._tables["forks"])

    def delete_fork(self, source_id: int, fork: ForkMeta, fork_id: int) -> None:
        """Undo `put_fork`."""
        key = NEED.pack(source_id, fork.reach, fork.floor, fork_id)
        self._txn.delete(key, db=self._tables["forks"])

    def forks_of(self, source_id: int) -> list[int]:
        """The ids of a stream's forks."""
        return [fork_id for *_, fork_id in self._needs(source_id)]

    def needs_of_forks(self, source_id: int) -> list[Need]:
        """From where to where each of its forks needs a stream, the least reach first."""
        return [(floor, reach) for reach, floor, _ in self._needs(source_id)]

    def _needs(self, source_id: int) -> Iterator[tuple[int, int, int]]:
        """Reach, floor and id of each of its forks."""
        with self._txn.cursor(db=self._tables["forks"]) as cursor:
            found = cursor.set_range(ID.pack(source_id))
            while found:
                key = cursor.key()
                if len(key) != NEED.size:
                    raise damaged("forks", key, "is damaged")
                owner, reach, floor, fork_id = NEED.unpack(key)
                if owner != source_id:
                    return
                yield reach, floor, fork_id
                found = cursor.next()

    def stream_before(self, stream_id: int) -> tuple[int, StreamMeta] | None:
        """The last stream whose id is lower than this."""
        with self._txn.cursor(db=self._tables["streams"]) as cursor:
            found = cursor.set_range(ID.pack(stream_id))
            if not (cursor.prev() if found else cursor.last()):
                return None
            key = bytes(cursor.key())
        (before_id,) = ID.unpack(key)
        meta = self.meta(before_id)
        if meta is None or before_id >= stream_id:
            raise damaged("streams", key, "is out of order")
        return before_id, meta

    def put_producer(self, stream_id: int, producer_id: bytes, epoch: int, seq: int) -> bool:
        """Write a producer's state; whether the stream did not have it before."""
        key = ID.pack(stream_id) + producer_id
        new = self._index._get(self._txn, "producers", key) is None
        self._put("producers", key, PRODUCER.pack(epoch, seq))
        return new

    def put_value(self, key: bytes, value: bytes) -> None:
        """Write what another subsystem keeps under a key; an empty value removes it."""
        if value:
            self._put("values", key, value)
        else:
            self._txn.delete(key, db=self._tables["values"])

    def add_live_bytes(self, segment_id: int, change_bytes: int) -> None:
        """Count payload of a segment that streams still need."""
        key = ID.pack(segment_id)
        value = self._index._get(self._txn, "segments", key)
        live = change_bytes + (0 if value is None else LIVE.unpack(value)[0])
        self._put("segments", key, LIVE.pack(live))

    def forget_segment(self, segment_id: int) -> int:
        """Count a segment no more, and its live payload until now."""
        key = ID.pack(segment_id)
        value = self._index._get(self._txn, "segments", key)
        self._txn.delete(key, db=self._tables["segments"])
        return 0 if value is None else int(LIVE.unpack(value)[0])

    def put_settled(self, key: bytes, sequence: int) -> None:
        """Say up to which batch something was told by compacted segments."""
        self._put("settled", key, ID.pack(max(sequence, self.settled(key))))

    def settled(self, key: bytes) -> int:
        """Up to which batch it was; 0 if not at all."""
        value = self._index._get(self._txn, "settled", key)
        return 0 if value is None else int(ID.unpack(value)[0])

    def put_horizon(self, sequence: int) -> None:
        """Begin to rebuild a log with gaps up to this batch; 0 when that is done."""
        if sequence:
            self._put("state", _HORIZON_KEY, ID.pack(sequence))
            return
        self._txn.delete(_HORIZON_KEY, db=self._tables["state"])
        self._txn.drop(self._tables["settled"], delete=False)

    def newest_at(self, path: bytes) -> int:
        """The id of the stream that a path leads to; 0 if there is none."""
        value = self._index._get(self._txn, "paths", path)
        return 0 if value is None else int(ID.unpack(value)[0])

    def delete_stream(self, stream_id: int, meta: StreamMeta) -> list[RunPlace]:
        """Remove a stream and all it has; the runs that are dead now."""
        key = ID.pack(stream_id)
        self._txn.delete(key, db=self._tables["streams"])
        if self._index._get(self._txn, "paths", meta.path) == key:
            self._txn.delete(meta.path, db=self._tables["paths"])
        self._put_time("expiry", stream_id, None, meta.deadline_ms)
        if meta.retention is not None:
            self._put_time("retention", stream_id, None, meta.retention.due_ms)
        dead: list[RunPlace] = []
        for entry, value in self._remove_prefix("runs", key):
            dead.extend(unpack_runs(self._index._checked("runs", entry, value)))
        for _ in self._remove_prefix("producers", key):
            pass
        return dead

    def _remove_prefix(self, table: str, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        with self._txn.cursor(db=self._tables[table]) as cursor:
            found = cursor.set_range(prefix)
            while found and cursor.key().startswith(prefix):
                yield cursor.key(), cursor.value()
                found = cursor.delete()

    def put_directory_id(self, directory_id: str) -> None:
        """Bind the index to its data directory."""
        self._put("state", _DIRECTORY_KEY, directory_id.encode())

    def put_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Say how far the index is with this transaction."""
        self._put("state", _CHECKPOINT_KEY, msgspec.msgpack.encode(checkpoint))
