"""Batches: what one sync makes durable, and the runs and blocks that its payload is cut into.

     0       4        8        12       16              24           32           40       44     48
    ┌───────┬────────┬────────┬────────┬───────────────┬────────────┬────────────┬────────┬──────┐
    │ DSB1  │ runs   │ records│ header │ payload bytes │ sequence   │ time, ms   │ prede- │ head │
    │ u32   │ u32    │ u32    │ bytes  │ u64           │ u64        │ since 1970 │ cessor │ chk  │
    ├───────┴────────┴────────┴────────┴─────────┬─────┴────────────┴────────────┴────────┴──────┤
    │ header block: run table, then records       │ payload block: the runs' bytes, joined        │
    ├───────┬────────┬──────────┬────────┬───────┬┴──────────────────────────────────────────────┘
    │ DSC1  │ batch  │ sequence │ prede- │ frame │   commit frame, 24 bytes: without a valid one
    │ u32   │ chk u32│ u64      │ cessor │ chk   │   the batch never happened
    └───────┴────────┴──────────┴────────┴───────┘

Appends of one stream that meet in a batch are one **run**: contiguous payload. A run is cut into
**blocks** of at most 64 KiB, each with its checksum; a block of a JSON stream ends on a message
where a message fits (flag, top bit of its length). A run table entry:

     0          8            16        24      28
    ┌──────────┬────────────┬─────────┬───────┬ ─ ─ blocks × (length and flag u32, checksum u32)
    │ stream id│ start off. │ length  │ blocks│
    └──────────┴────────────┴─────────┴───────┴ ─ ─

All checksums are CRC-32 started from the segment's salt. The batch checksum covers head and header
block, and through the block checksums the payload. A block's checksum also covers stream id and
offset, so that bytes can never be served as another stream's, or as another part of their own.
"""

import struct
from collections.abc import Sequence
from typing import NamedTuple
from zlib import crc32

from storage.record import HEAD as RECORD_HEAD
from storage.record import PLAIN_APPEND, DecodeError, Record, decode

BATCH_MAGIC = 0x31425344
COMMIT_MAGIC = 0x31435344
BATCH_MAGIC_BYTES = BATCH_MAGIC.to_bytes(4, "little")

HEAD = struct.Struct("<IIIIQQQII")
COMMIT = struct.Struct("<IIQII")
RUN = struct.Struct("<QQQI")
BLOCK = struct.Struct("<II")
IDENTITY = struct.Struct("<QQ")
_SHORT_RUN = struct.Struct("<QQQIII")
_HEAD_UNSEALED = struct.Struct("<IIIIQQQI")
_COMMIT_UNSEALED = struct.Struct("<IIQI")
_U32 = struct.Struct("<I")
assert (HEAD.size, COMMIT.size, RUN.size, BLOCK.size) == (48, 24, 28, 8)
assert _SHORT_RUN.size == RUN.size + BLOCK.size

HEAD_BYTES = HEAD.size
RECORD_HEAD_BYTES = RECORD_HEAD.size
COMMIT_BYTES = COMMIT.size
BLOCK_BYTES_MAX = 64 * 1024
ENDS_MESSAGE = 0x8000_0000
LENGTH_MASK = 0x7FFF_FFFF


class BatchHead(NamedTuple):
    """The fixed first part of a batch."""

    runs: int
    records: int
    header_bytes: int
    payload_bytes: int
    sequence: int
    time_ms: int
    predecessor: int

    @property
    def size_bytes(self) -> int:
        """The whole batch, from its head to the end of its commit frame."""
        return HEAD_BYTES + self.header_bytes + self.payload_bytes + COMMIT_BYTES


class RunEntry(NamedTuple):
    """One stream's payload in a batch; `blocks` is the packed block table."""

    stream_id: int
    start: int
    length: int
    blocks: bytes

    def pack(self) -> bytes:
        """The entry as it stands in the run table."""
        count = len(self.blocks) // BLOCK.size
        return RUN.pack(self.stream_id, self.start, self.length, count) + self.blocks


class EncodedBatch(NamedTuple):
    """A batch ready to be written: `buffers` joined are its bytes; `payload_at` is where, from the
    batch's start, its payload block begins."""

    buffers: list[bytes]
    size_bytes: int
    checksum: int
    payload_at: int


def block_checksum(seed: int, stream_id: int, start: int, data: bytes | memoryview) -> int:
    """The checksum of the block that begins at offset `start` of a stream."""
    return crc32(data, crc32(IDENTITY.pack(stream_id, start), seed))


def cut_blocks(
    seed: int, stream_id: int, start: int, data: bytes, lengths: Sequence[int] | None
) -> bytes:
    """The packed block table of a run; `lengths` are its messages' when it may not be cut anywhere.

    Without `lengths` each block counts as ending a message.
    """
    size = len(data)
    if size <= BLOCK_BYTES_MAX:
        return BLOCK.pack(size | ENDS_MESSAGE, block_checksum(seed, stream_id, start, data))
    view = memoryview(data)
    table = bytearray()
    at = 0
    for length in _cuts(size, lengths):
        block = view[at : at + (length & LENGTH_MASK)]
        table += BLOCK.pack(length, block_checksum(seed, stream_id, start + at, block))
        at += len(block)
    return bytes(table)


def encode_run(
    seed: int, stream_id: int, start: int, data: bytes, lengths: Sequence[int] | None
) -> bytes:
    """A run's entry in the run table, its block table included: the bytes from `RUN.size` on."""
    size = len(data)
    if size <= BLOCK_BYTES_MAX:  # as nearly all are: one block, packed at once
        checksum = crc32(data, crc32(IDENTITY.pack(stream_id, start), seed))
        return _SHORT_RUN.pack(stream_id, start, size, 1, size | ENDS_MESSAGE, checksum)
    blocks = cut_blocks(seed, stream_id, start, data, lengths)
    return RUN.pack(stream_id, start, size, len(blocks) // BLOCK.size) + blocks


def _cuts(size: int, lengths: Sequence[int] | None) -> list[int]:
    """Block lengths, with their flag, for a run of `size` bytes."""
    if lengths is None:
        full, rest = divmod(size, BLOCK_BYTES_MAX)
        cuts = [BLOCK_BYTES_MAX | ENDS_MESSAGE] * full
        if rest:
            cuts.append(rest | ENDS_MESSAGE)
        return cuts
    cuts = []
    filled = 0
    for length in lengths:
        if filled and filled + length > BLOCK_BYTES_MAX:
            cuts.append(filled | ENDS_MESSAGE)
            filled = 0
        filled += length
        if filled > BLOCK_BYTES_MAX:
            # One long message: its last block is its own, so that no block begins inside it and
            # goes on with others, whose offsets could then not be told.
            parts, rest = divmod(filled - 1, BLOCK_BYTES_MAX)
            cuts += [BLOCK_BYTES_MAX] * parts
            cuts.append((rest + 1) | ENDS_MESSAGE)
            filled = 0
    if filled:
        cuts.append(filled | ENDS_MESSAGE)
    return cuts


def reseal_blocks(seed: int, stream_id: int, start: int, blocks: bytes, data: bytes) -> bytes:
    """The block table of a run that moves to another segment: cut as before, checksums anew."""
    view = memoryview(data)
    table = bytearray()
    at = 0
    for length, _ in BLOCK.iter_unpack(blocks):
        block = view[at : at + (length & LENGTH_MASK)]
        table += BLOCK.pack(length, block_checksum(seed, stream_id, start + at, block))
        at += len(block)
    return bytes(table)


def joined_blocks(
    seed: int, stream_id: int, start: int, tables: Sequence[bytes], data: bytes
) -> bytes:
    """The block table of one run that is made of several: small blocks are joined.

    Only such as begin and end with a message; the parts of a long one stay as they are.
    """
    cuts: list[int] = []
    whole = False
    ended = True
    for blocks in tables:
        for coded, _ in BLOCK.iter_unpack(blocks):
            fits = whole and (cuts[-1] & LENGTH_MASK) + (coded & LENGTH_MASK) <= BLOCK_BYTES_MAX
            alone = not (ended and coded & ENDS_MESSAGE)
            if fits and not alone:
                cuts[-1] += coded & LENGTH_MASK
            else:
                cuts.append(coded)
            whole = not alone
            ended = bool(coded & ENDS_MESSAGE)
    unsealed = b"".join(BLOCK.pack(coded, 0) for coded in cuts)
    return reseal_blocks(seed, stream_id, start, unsealed, data)


def encode_batch(
    seed: int,
    sequence: int,
    time_ms: int,
    predecessor: int,
    runs: Sequence[bytes],
    payloads: Sequence[bytes],
    records: Sequence[bytes],
) -> EncodedBatch:
    """Frame a batch; `runs` are the packed entries of the run table, `payloads` their bytes."""
    payload_bytes = sum(map(len, payloads))
    block = b"".join((*runs, *records))
    head = _HEAD_UNSEALED.pack(
        BATCH_MAGIC,
        len(runs),
        len(records),
        len(block),
        payload_bytes,
        sequence,
        time_ms,
        predecessor,
    )
    head += _U32.pack(crc32(head, seed))
    checksum = crc32(block, crc32(head, seed))
    frame = _COMMIT_UNSEALED.pack(COMMIT_MAGIC, checksum, sequence, predecessor)
    frame += _U32.pack(crc32(frame, seed))
    payload_at = HEAD_BYTES + len(block)
    size_bytes = payload_at + payload_bytes + COMMIT_BYTES
    return EncodedBatch([head, block, *payloads, frame], size_bytes, checksum, payload_at)


def decode_head(data: bytes, at: int, seed: int) -> BatchHead:
    """The head at `at`. Raises `DecodeError` unless it is whole and its checksum holds."""
    if at + HEAD_BYTES > len(data):
        raise DecodeError("the batch's head is cut short")
    magic, runs, records, header, payload, sequence, time_ms, predecessor, checksum = (
        HEAD.unpack_from(data, at)
    )
    if magic != BATCH_MAGIC:
        raise DecodeError("no batch begins here")
    if crc32(data[at : at + HEAD_BYTES - 4], seed) != checksum:
        raise DecodeError("the batch's head is damaged")
    return BatchHead(runs, records, header, payload, sequence, time_ms, predecessor)


def check_commit(frame: bytes, seed: int, head: BatchHead, head_and_block: bytes) -> int:
    """The batch's checksum, if the commit frame is valid and belongs to it; else `DecodeError`."""
    if len(frame) < COMMIT_BYTES:
        raise DecodeError("the commit frame is cut short")
    magic, checksum, sequence, predecessor, frame_checksum = COMMIT.unpack(frame)
    if magic != COMMIT_MAGIC or crc32(frame[:-4], seed) != frame_checksum:
        raise DecodeError("the batch has no valid commit frame")
    if sequence != head.sequence or predecessor != head.predecessor:
        raise DecodeError("the commit frame belongs to another batch")
    actual = crc32(head_and_block[HEAD_BYTES:], crc32(head_and_block[:HEAD_BYTES], seed))
    if actual != checksum:
        raise DecodeError("the batch's header block is damaged")
    return int(checksum)


def decode_block(
    block: bytes, head: BatchHead, *, plain: bool = True, records: bool = True
) -> tuple[list[RunEntry], list[Record]]:
    """The run table and the records of a header block, without plain appends or any at all if not
    asked for.

    Raises `DecodeError`.
    """
    runs = []
    at = 0
    payload = 0
    end = len(block)
    unpack_run, size = RUN.unpack_from, RUN.size
    for _ in range(head.runs):
        if at + size > end:
            raise DecodeError("the run table is cut short")
        stream_id, start, length, count = unpack_run(block, at)
        at += size
        blocks = block[at : at + 8 * count]
        at += 8 * count
        if at > end or length != run_bytes(blocks):
            raise DecodeError("a run's blocks do not add up")
        payload += length
        runs.append(RunEntry(stream_id, start, length, blocks))
    if payload != head.payload_bytes:
        raise DecodeError("the runs do not add up to the payload")
    decoded: list[Record] = []
    if not records:
        return runs, decoded
    for _ in range(head.records):
        if not plain and block.startswith(PLAIN_APPEND, at):
            at += RECORD_HEAD_BYTES
            continue
        record, at = decode(block, at)
        decoded.append(record)
    if at != end:
        raise DecodeError("the header block is longer than its records")
    return runs, decoded


def run_bytes(blocks: bytes) -> int:
    """The length of a run, from its packed block table."""
    if len(blocks) == BLOCK.size:
        return int(BLOCK.unpack(blocks)[0]) & LENGTH_MASK
    total: int = sum(length & LENGTH_MASK for length, _ in BLOCK.iter_unpack(blocks))
    return total


def damaged_block(
    seed: int, stream_id: int, start: int, blocks: bytes, data: bytes | bytearray
) -> int | None:
    """Where in `data`, a whole run or some of its blocks, the first damaged block begins."""
    if len(blocks) == BLOCK.size:  # as most runs have it, and this is done for each
        length, checksum = BLOCK.unpack(blocks)
        actual = crc32(data, crc32(IDENTITY.pack(stream_id, start), seed))
        return None if actual == checksum and len(data) == length & LENGTH_MASK else 0
    at = 0
    view = memoryview(data)
    for length, checksum in BLOCK.iter_unpack(blocks):
        size = length & LENGTH_MASK
        block = view[at : at + size]
        if len(block) != size or block_checksum(seed, stream_id, start + at, block) != checksum:
            return at
        at += size
    return None
