"""What the index holds: the keys and values of its tables, and how they are packed.

Integers in keys are 8 bytes, big-endian, so that they sort. A packed run:

     0          8         12         16       18
    ┌──────────┬─────────┬──────────┬────────┬ ─ ─ blocks × (length and flag u32, checksum u32)
    │ start u64│ segment │ position │ blocks │
    └──────────┴─────────┴──────────┴────────┴ ─ ─

Runs that nobody can read any more leave their entry, whose key and place stay those of its first
run: so what an index holds depends on the log alone, and not on when runs left it. Compaction
writes a stream's entries anew.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple
from zlib import crc32

import msgspec

from storage.batch import run_bytes
from storage.errors import CorruptData

ENTRY_BYTES_MAX = 1_900
KEY_BYTES_MAX = 511

RUN_HEAD = struct.Struct("<QIIH")
assert RUN_HEAD.size == 18
PAIR = struct.Struct(">QQ")
NEED = struct.Struct(">QQQQ")
OFFSET_MAX = (1 << 64) - 1
Buffer = bytes | memoryview
Need = tuple[int, int]
"""From which offset to which."""

ID = struct.Struct(">Q")
CRC = struct.Struct("<I")
PRODUCER = struct.Struct("<QQ")
LIVE = struct.Struct("<q")


class Checkpoint(NamedTuple):
    """How far in the log the index is: the end of the batch with this sequence and checksum."""

    segment_id: int
    position: int
    sequence: int
    checksum: int
    next_stream_id: int


class ForkMeta(msgspec.Struct, array_like=True):
    """Where a stream was forked from; it and its forks need its source from `floor` to `reach`."""

    source_id: int
    seam: int
    offset: int
    sub_offset: int
    asked: int
    reach: int
    floor: int = 0


class RetentionMeta(msgspec.Struct, array_like=True):
    """What a stream with retention keeps, and what tells when it has more (`storage.retention`)."""

    keep_bytes: int | None
    keep_s: int | None
    asked: bool
    newest_ms: int = 0
    """When its newest run was written, or else it was created; never goes back."""
    group_ms: int = 0
    """When the first of the runs was written that are dropped together with the newest."""
    marks: list[tuple[int, int]] = []
    """Where the next such group begins, and when writing had got there."""
    due_ms: int | None = None
    entry_start: int = 0
    entry_bytes: int = 0
    """The `runs` entry that is being filled, and how far it is with all that ever was in it."""


class StreamMeta(msgspec.Struct, array_like=True):
    """A stream as the index knows it. New fields go to the end, with a default."""

    path: bytes
    content_type: str
    ttl_s: int | None
    expires_ms: int | None
    created_ms: int
    root: int
    tail: int = 0
    closed: bool = False
    closer: tuple[bytes, int, int] | None = None
    stream_seq: bytes | None = None
    deadline_ms: int | None = None
    producer_count: int = 0
    fork: ForkMeta | None = None
    forks: int = 0
    kept: int | None = None
    """Soft-deleted, and kept up to this offset for its forks."""
    earliest: int = 0
    retention: RetentionMeta | None = None


class StreamEntry(NamedTuple):
    """A stream at its path, and the path of its source if it is a fork."""

    path: bytes
    meta: StreamMeta
    source_path: bytes | None


class RunPlace(NamedTuple):
    """Where one run of a stream lies."""

    start: int
    segment_id: int
    position: int
    blocks: bytes

    @property
    def length(self) -> int:
        """Bytes of payload."""
        return run_bytes(self.blocks)


class Contents(NamedTuple):
    """A stream and its producers."""

    stream_id: int
    meta: StreamMeta
    producers: list[tuple[bytes, int, int]]


encode_meta = msgspec.msgpack.Encoder().encode
decode_meta = msgspec.msgpack.Decoder(StreamMeta).decode


def pack_run(place: RunPlace) -> bytes:
    """A run as it stands in a `runs` value."""
    start, segment_id, position, blocks = place
    return RUN_HEAD.pack(start, segment_id, position, len(blocks) // 8) + blocks


def unpack_runs(value: bytes) -> Iterator[RunPlace]:
    """The runs of a `runs` value without its checksum. Raises `struct.error` if it is cut short."""
    at = 0
    while at < len(value):
        start, segment_id, position, count = RUN_HEAD.unpack_from(value, at)
        at += RUN_HEAD.size
        yield RunPlace(start, segment_id, position, value[at : at + 8 * count])
        at += 8 * count


def seal(key: bytes, value: bytes) -> bytes:
    """A value with its checksum."""
    return value + CRC.pack(crc32(value, crc32(key)))


def damaged(table: str, key: Buffer, what: str) -> CorruptData:
    where = f"index/data.mdb, table {table}"
    name = bytes(key[:KEY_BYTES_MAX]).hex()  # a damaged length can be anything
    return CorruptData(where, 0, f"the entry {name} {what}: run reindex")


def pair(table: str, key: Buffer) -> tuple[int, int]:
    """A key of two integers. Raises `CorruptData` for one of another length."""
    if len(key) != PAIR.size:
        raise damaged(table, key, "is damaged")
    first, second = PAIR.unpack(key)
    return first, second
