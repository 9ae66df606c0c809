"""Segments: the files of the log, their header, their names, and how they follow each other.

     0          8     10   11   12       16          24          32
    ┌──────────┬─────┬────┬────┬────────┬───────────┬───────────┬────────────┐
    │ DSSEGMT\\n│vers.│kind│zero│checksum│ segment id│ salt      │ next stream│
    │ 8 bytes  │ u16 │ u8 │ u8 │ u32    │ u64       │ u64       │ id u64     │
    ├──────────┴─────┴────┴──┬─┴────────┴──┬────────┴───┬───────┴───┬────────┤
    │ first sequence         │ predecessor │ pred. end  │ pred.     │ zero   │
    │ u64                 40 │ u64      48 │ u64     56 │ chk u32 64│ u32  68│
    ├────────────────────────┼─────────────┴────────────┴───────────┴────────┘
    │ created, ms u64     72 │ 80
    └────────────────────────┘

The salt is random and enters every checksum of the segment, so that bytes of an older file in the
same place of the disk never look valid. `predecessor` and `predecessor end` say where the log
before this segment ends: whatever the older file holds past that position is void. A segment gets
its name only after its header (and what recovery moved into it) is synced, so a named segment whose
header does not check is damage, and everything before its predecessor's end was durable.

A compacted segment (kind 2, `storage.compacted`) holds records and payload that were moved. It has
no place in the chain: `predecessor` is 0, and `pred. end` and `pred. chk` are the position and the
checksum of its last batch, which says what it stands for. Its id has the top bit of 32 set.
"""

import os
import struct
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

from storage.disk import read_at
from storage.errors import OpenError

MAGIC = b"DSSEGMT\n"
FORMAT_VERSION = 1
KIND_LOG = 1
KIND_COMPACTED = 2
COMPACTED_IDS = 1 << 31
"""Compacted segments have ids from here on: the index names both kinds by id."""

HEADER = struct.Struct("<8sHBBIQQQQQQIIQ")
assert HEADER.size == 80
HEADER_BYTES = HEADER.size
_CHECKSUM_AT = 12

SUFFIX = ".log"
COMPACTED_PREFIX = "compacted-"
UNFINISHED_SUFFIX = ".tmp"


class SegmentHeader(NamedTuple):
    """What a segment says about itself and about the end of its predecessor."""

    segment_id: int
    salt: int
    next_stream_id: int
    first_sequence: int
    predecessor: int
    predecessor_end: int
    predecessor_checksum: int
    created_ms: int
    kind: int = KIND_LOG

    @property
    def seed(self) -> int:
        """The salt as the starting value of this segment's checksums."""
        return crc32(self.salt.to_bytes(8, "little"))


def encode_header(header: SegmentHeader) -> bytes:
    """The 80 bytes at the start of a segment."""
    data = bytearray(
        HEADER.pack(
            MAGIC,
            FORMAT_VERSION,
            header.kind,
            0,
            0,
            header.segment_id,
            header.salt,
            header.next_stream_id,
            header.first_sequence,
            header.predecessor,
            header.predecessor_end,
            header.predecessor_checksum,
            0,
            header.created_ms,
        )
    )
    struct.pack_into("<I", data, _CHECKSUM_AT, crc32(data))
    return bytes(data)


def decode_header(data: bytes, file: str) -> SegmentHeader:
    """The header in the first bytes of `file`. Raises `OpenError` naming the file."""
    if len(data) < HEADER_BYTES or not data.startswith(MAGIC):
        raise OpenError(f"{file}, position 0: this is not a segment of a durable-streamsd log")
    (
        _magic,
        version,
        kind,
        zero,
        checksum,
        segment_id,
        salt,
        next_stream_id,
        first_sequence,
        predecessor,
        predecessor_end,
        predecessor_checksum,
        zero_2,
        created_ms,
    ) = HEADER.unpack_from(data)
    plain = bytearray(data[:HEADER_BYTES])
    struct.pack_into("<I", plain, _CHECKSUM_AT, 0)
    if crc32(plain) != checksum or zero or zero_2:
        raise OpenError(f"{file}, position 0: the segment's header is damaged")
    if version != FORMAT_VERSION:
        raise OpenError(
            f"{file}, position 8: segment format {version}; this program reads {FORMAT_VERSION}"
        )
    if kind not in (KIND_LOG, KIND_COMPACTED):
        raise OpenError(f"{file}, position 10: segment kind {kind} is of a newer release")
    if (kind == KIND_COMPACTED) != (segment_id >= COMPACTED_IDS):
        raise OpenError(f"{file}, position 16: segment kind {kind} has no such ids")
    return SegmentHeader(
        segment_id,
        salt,
        next_stream_id,
        first_sequence,
        predecessor,
        predecessor_end,
        predecessor_checksum,
        created_ms,
        kind,
    )


def new_header(
    segment_id: int,
    next_stream_id: int,
    first_sequence: int,
    predecessor: int,
    predecessor_end: int,
    predecessor_checksum: int,
    created_ms: int,
) -> SegmentHeader:
    """A header with a fresh random salt."""
    return SegmentHeader(
        segment_id,
        int.from_bytes(os.urandom(8), "little"),
        next_stream_id,
        first_sequence,
        predecessor,
        predecessor_end,
        predecessor_checksum,
        created_ms,
    )


def segment_path(directory: Path, segment_id: int) -> Path:
    """Where a segment lies: sixteen decimal digits, so that names sort as ids do."""
    if segment_id >= COMPACTED_IDS:
        return directory / f"{COMPACTED_PREFIX}{segment_id - COMPACTED_IDS:016d}{SUFFIX}"
    return directory / f"{segment_id:016d}{SUFFIX}"


def compacted_id(path: Path) -> int:
    """The id of a compacted segment, by its name."""
    return COMPACTED_IDS + int(path.stem.removeprefix(COMPACTED_PREFIX))


class SegmentFile:
    """A segment open for reading; its descriptor lives as long as somebody holds the object."""

    __slots__ = ("fd", "header", "name", "path", "seed")

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        self.fd = -1
        try:
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            header = read_at(self.fd, HEADER_BYTES, 0)
        except OSError as error:
            raise OpenError(f"{path.name}: it cannot be read: {error.strerror}") from error
        self.header = decode_header(header, path.name)
        self.seed = self.header.seed

    def size_bytes(self) -> int:
        """The file's length now."""
        return os.fstat(self.fd).st_size

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


class SegmentPaths(NamedTuple):
    """The files of the log and the compacted ones, each in order of their ids."""

    log: list[Path]
    compacted: list[Path]


def list_segments(directory: Path) -> SegmentPaths:
    """The segments' files. Raises `OpenError` for a name of another kind."""
    paths = SegmentPaths([], [])
    try:
        found = sorted(directory.iterdir())
    except OSError as error:
        raise OpenError(f"{directory}: it cannot be read: {error.strerror}") from error
    for path in found:
        if path.suffix == UNFINISHED_SUFFIX:
            continue
        digits = path.stem.removeprefix(COMPACTED_PREFIX)
        if path.suffix != SUFFIX or not (digits.isascii() and digits.isdigit()):
            raise OpenError(f"{path.name}: not a file of durable-streamsd")
        (paths.log if digits == path.stem else paths.compacted).append(path)
    return paths
