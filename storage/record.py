"""Records: one framed change each, and the only truth the store has.

A record says everything about its change, so that data, producer state, closure and `Stream-Seq` of
one append commit together or not at all. Payload bytes are not in it: they follow in the batch (see
`storage.batch`). Sections appear in the order of their flag bits.

     0        4    5    6        8                16               24       28
    ┌────────┬────┬────┬────────┬────────────────┬────────────────┬────────┬ ─ ─ ─ ─ ─
    │ length │type│sect│ zero   │ stream id      │ offset         │ payload│ sections
    │ u32    │ u8 │ u8 │ u16    │ u64            │ u64            │ u32    │
    └────────┴────┴────┴────────┴────────────────┴────────────────┴────────┴ ─ ─ ─ ─ ─

    length   whole record in bytes, head included
    offset   where the payload starts in the stream; the stream's tail for records without any; of a
             cut (RETAIN) the earliest offset that is there from now on
    payload  bytes of payload in this batch's payload block

    0x01 producer       epoch u64 · seq u64 · length u16 · id
    0x02 Stream-Seq     length u16 · value
    0x04 closes         (empty; the closing tuple is the record's own producer section)
    0x08 deadline       u64, ms since 1970: expires then unless accessed (persisted, with its grain)
    0x10 configuration  present u8 (1: TTL, 2: Expires-At, 4: bytes to retain, 8: seconds to retain,
                        16: the creator asked for retention) · TTL u64 s · Expires-At u64 ms ·
                        path length u16 · content type length u16 · path · content type ·
                        with 4 or 8 also: bytes to retain u64 · seconds to retain u64
    0x20 fork           source id u64 · root id u64 · fork offset u64 · requested sub-offset u64 ·
                        asked u8 (1: the offset was asked for, 2: TTL, 4: Expires-At were) ·
                        with 8 in it also: the earliest offset that the source had then u64

                        The record's own offset is where the fork's own bytes begin: the fork offset
                        with the sub-offset resolved.
    0x40 origin         u64: sequence of the batch that first held the record (set when it is moved)
    0x80 value          key length u16 · value length u32 · key · value: what other subsystems keep
                        in the log (subscriptions); an empty value removes the key

Left out on purpose: a checksum per record. A batch is checked as a whole, as it commits as one.
"""

import enum
import struct
from typing import NamedTuple

HEAD = struct.Struct("<IBBHQQI")
assert HEAD.size == 28

PRODUCER = struct.Struct("<QQH")
CONFIGURATION = struct.Struct("<BQQHH")
RETENTION = struct.Struct("<QQ")
FORK = struct.Struct("<QQQQB")
ENTRY = struct.Struct("<HI")
U16 = struct.Struct("<H")
U64 = struct.Struct("<Q")

HAS_PRODUCER = 0x01
HAS_STREAM_SEQ = 0x02
CLOSES = 0x04
HAS_DEADLINE = 0x08
HAS_CONFIGURATION = 0x10
HAS_FORK = 0x20
HAS_ORIGIN = 0x40
HAS_VALUE = 0x80

OFFSET_ASKED = 1
TTL_ASKED = 2
EXPIRES_ASKED = 4
_HAS_EARLIEST = 8

HAS_TTL = 1
HAS_EXPIRES = 2
HAS_KEEP_BYTES = 4
HAS_KEEP_S = 8
RETENTION_ASKED = 16


class RecordType(enum.IntEnum):
    """What changed. Zero is invalid: preallocated space is full of it."""

    APPEND = 1
    CREATE = 2
    DELETE = 3
    TOUCH = 4
    SOFT_DELETE = 5
    STATE = 6
    VALUE = 7
    RETAIN = 8


class DecodeError(Exception):
    """Bytes that are not what the format says; the caller knows where they lie."""


class Producer(NamedTuple):
    """An idempotent producer's tuple (protocol 5.2.1): `id` as UTF-8, epoch and seq below 2^53."""

    id: bytes
    epoch: int
    seq: int


class Retention(NamedTuple):
    """How much of a stream is kept: its newest bytes, or what was written in the last seconds; with
    both, what either drops is dropped. `asked`: by its creator, not by a rule."""

    keep_bytes: int | None
    keep_s: int | None
    asked: bool


class Configuration(NamedTuple):
    """What a stream was created with: TTL in seconds, Expires-At in ms since 1970."""

    path: bytes
    content_type: bytes
    ttl_s: int | None
    expires_ms: int | None
    retention: Retention | None = None


class Fork(NamedTuple):
    """Where a forked stream came from, and which of its parameters were asked for; `earliest` is of
    its source, as it was then."""

    source_id: int
    root_id: int
    offset: int
    sub_offset: int
    asked: int
    earliest: int = 0


class Entry(NamedTuple):
    """A key of another subsystem, and its value from now on: empty when it has none any more."""

    key: bytes
    value: bytes


class Record(NamedTuple):
    """One change. Without sections it is a plain append."""

    type: RecordType
    stream_id: int
    offset: int
    payload_bytes: int = 0
    producer: Producer | None = None
    stream_seq: bytes | None = None
    closes: bool = False
    deadline_ms: int | None = None
    configuration: Configuration | None = None
    fork: Fork | None = None
    origin: int | None = None
    value: Entry | None = None


def encode(record: Record) -> bytes:
    """The record's bytes in a batch's header block."""
    sections = 0
    parts: list[bytes] = []
    if record.producer is not None:
        sections |= HAS_PRODUCER
        identity, epoch, seq = record.producer
        parts += (PRODUCER.pack(epoch, seq, len(identity)), identity)
    if record.stream_seq is not None:
        sections |= HAS_STREAM_SEQ
        parts += (U16.pack(len(record.stream_seq)), record.stream_seq)
    if record.closes:
        sections |= CLOSES
    if record.deadline_ms is not None:
        sections |= HAS_DEADLINE
        parts.append(U64.pack(record.deadline_ms))
    if record.configuration is not None:
        sections |= HAS_CONFIGURATION
        parts += _pack_configuration(record.configuration)
    if record.fork is not None:
        sections |= HAS_FORK
        parts.append(_pack_fork(record.fork))
    if record.origin is not None:
        sections |= HAS_ORIGIN
        parts.append(U64.pack(record.origin))
    if record.value is not None:
        sections |= HAS_VALUE
        key, value = record.value
        parts += (ENTRY.pack(len(key), len(value)), key, value)
    body = b"".join(parts)
    return (
        HEAD.pack(
            HEAD.size + len(body),
            record.type,
            sections,
            0,
            record.stream_id,
            record.offset,
            record.payload_bytes,
        )
        + body
    )


def _pack_fork(fork: Fork) -> bytes:
    if not fork.earliest:
        return FORK.pack(*fork[:5])
    return FORK.pack(*fork[:4], fork.asked | _HAS_EARLIEST) + U64.pack(fork.earliest)


def _pack_configuration(configuration: Configuration) -> list[bytes]:
    path, content_type, ttl_s, expires_ms, retention = configuration
    present = (ttl_s is not None) * HAS_TTL | (expires_ms is not None) * HAS_EXPIRES
    tail = b""
    if retention is not None:
        keep_bytes, keep_s, asked = retention
        present |= (keep_bytes is not None) * HAS_KEEP_BYTES | (keep_s is not None) * HAS_KEEP_S
        present |= asked * RETENTION_ASKED
        tail = RETENTION.pack(keep_bytes or 0, keep_s or 0)
    sizes = (len(path), len(content_type))
    head = CONFIGURATION.pack(present, ttl_s or 0, expires_ms or 0, *sizes)
    return [head, path, content_type, tail]


_APPEND = int(RecordType.APPEND)
PLAIN_APPEND = HEAD.pack(HEAD.size, _APPEND, 0, 0, 0, 0, 0)[:8]
"""How an append without sections begins: it says nothing that its run does not say too."""


def encode_plain_append(stream_id: int, offset: int, payload_bytes: int) -> bytes:
    """`encode` of an append without sections: the common one, at a third of the cost."""
    return HEAD.pack(HEAD.size, _APPEND, 0, 0, stream_id, offset, payload_bytes)


_TYPES: dict[int, RecordType] = {int(kind): kind for kind in RecordType}


def decode(block: bytes, position: int) -> tuple[Record, int]:
    """The record at `position` of a header block, and the position after it.

    Raises `DecodeError` for anything that `encode` cannot have written.
    """
    if position + HEAD.size > len(block):
        raise DecodeError("the record's head is cut short")
    length, kind, sections, zero, stream_id, offset, payload = HEAD.unpack_from(block, position)
    end = position + length
    record_type = _TYPES.get(kind)
    if record_type is None or zero or length < HEAD.size or end > len(block):
        raise DecodeError("the record's head is not valid")
    if not sections:
        if length != HEAD.size:
            raise DecodeError("the record is longer than its sections")
        return Record(record_type, stream_id, offset, payload), end
    try:
        record, stop = _sections(
            block, position + HEAD.size, sections, record_type, stream_id, offset, payload
        )
    except struct.error as error:
        raise DecodeError("a section of the record is cut short") from error
    if stop != end:
        raise DecodeError("the record's length differs from its sections")
    return record, end


def _sections(
    block: bytes,
    at: int,
    sections: int,
    record_type: RecordType,
    stream_id: int,
    offset: int,
    payload: int,
) -> tuple[Record, int]:
    producer = stream_seq = deadline_ms = configuration = fork = origin = value = None
    if sections & HAS_PRODUCER:
        epoch, seq, size = PRODUCER.unpack_from(block, at)
        identity, at = _take(block, at + PRODUCER.size, size)
        producer = Producer(identity, epoch, seq)
    if sections & HAS_STREAM_SEQ:
        (size,) = U16.unpack_from(block, at)
        stream_seq, at = _take(block, at + U16.size, size)
    if sections & HAS_DEADLINE:
        (deadline_ms,) = U64.unpack_from(block, at)
        at += U64.size
    if sections & HAS_CONFIGURATION:
        configuration, at = _unpack_configuration(block, at)
    if sections & HAS_FORK:
        fork, at = _unpack_fork(block, at)
    if sections & HAS_ORIGIN:
        (origin,) = U64.unpack_from(block, at)
        at += U64.size
    if sections & HAS_VALUE:
        key_size, size = ENTRY.unpack_from(block, at)
        key, at = _take(block, at + ENTRY.size, key_size)
        content, at = _take(block, at, size)
        value = Entry(key, content)
    record = Record(
        record_type,
        stream_id,
        offset,
        payload,
        producer,
        stream_seq,
        bool(sections & CLOSES),
        deadline_ms,
        configuration,
        fork,
        origin,
        value,
    )
    return record, at


def _unpack_fork(block: bytes, at: int) -> tuple[Fork, int]:
    source_id, root_id, offset, sub_offset, asked = FORK.unpack_from(block, at)
    fork = Fork(source_id, root_id, offset, sub_offset, asked & ~_HAS_EARLIEST)
    at += FORK.size
    if not asked & _HAS_EARLIEST:
        return fork, at
    (earliest,) = U64.unpack_from(block, at)
    if not earliest:
        raise DecodeError("a fork's earliest offset is told, and is the first")
    return fork._replace(earliest=earliest), at + U64.size


def _unpack_configuration(block: bytes, at: int) -> tuple[Configuration, int]:
    present, ttl_s, expires_ms, path_size, type_size = CONFIGURATION.unpack_from(block, at)
    path, at = _take(block, at + CONFIGURATION.size, path_size)
    content_type, at = _take(block, at, type_size)
    retention = None
    keep_bytes = keep_s = 0
    if present & (HAS_KEEP_BYTES | HAS_KEEP_S):
        keep_bytes, keep_s = RETENTION.unpack_from(block, at)
        at += RETENTION.size
        retention = Retention(
            keep_bytes if present & HAS_KEEP_BYTES else None,
            keep_s if present & HAS_KEEP_S else None,
            bool(present & RETENTION_ASKED),
        )
    elif present > HAS_TTL | HAS_EXPIRES:
        raise DecodeError("the configuration is not valid")
    values = (
        (ttl_s, HAS_TTL),
        (expires_ms, HAS_EXPIRES),
        (keep_bytes, HAS_KEEP_BYTES),
        (keep_s, HAS_KEEP_S),
    )
    if present >= 2 * RETENTION_ASKED or any(value and not present & bit for value, bit in values):
        raise DecodeError("the configuration has a value that is not present")
    configuration = Configuration(
        path,
        content_type,
        ttl_s if present & HAS_TTL else None,
        expires_ms if present & HAS_EXPIRES else None,
        retention,
    )
    return configuration, at


def _take(block: bytes, at: int, size: int) -> tuple[bytes, int]:
    end = at + size
    if end > len(block):
        raise DecodeError("a value of the record is cut short")
    return block[at:end], end
