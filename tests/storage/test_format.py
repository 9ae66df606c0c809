"""The bytes on disk: golden, sized as documented, read back, and never trusted."""

import struct
from zlib import crc32

import pytest
from engine import bounded
from hypothesis import example, given
from hypothesis import strategies as st

from storage import batch as batch_module
from storage import record as record_module
from storage.batch import (
    BLOCK_BYTES_MAX,
    COMMIT_BYTES,
    ENDS_MESSAGE,
    HEAD_BYTES,
    LENGTH_MASK,
    RunEntry,
    block_checksum,
    check_commit,
    cut_blocks,
    damaged_block,
    decode_block,
    decode_head,
    encode_batch,
    encode_run,
    reseal_blocks,
    run_bytes,
)
from storage.errors import OpenError
from storage.index_entries import RUN_HEAD, RunPlace, pack_run, seal, unpack_runs
from storage.record import (
    Configuration,
    DecodeError,
    Entry,
    Fork,
    Producer,
    Record,
    RecordType,
    Retention,
    decode,
    encode,
    encode_plain_append,
)
from storage.segment import HEADER_BYTES, SegmentHeader, decode_header, encode_header

SEGMENT_HEADER = SegmentHeader(3, 0x1122334455667788, 9, 5, 2, 4096, 0xAABBCCDD, 1_700_000_000_000)
SEED = crc32(bytes.fromhex("8877665544332211"))
HEADER_HEX = (
    "44535345474d540a" "0100" "01" "00" "bbbcd606"
    "0300000000000000" "8877665544332211" "0900000000000000"
    "0500000000000000" "0200000000000000" "0010000000000000"
    "ddccbbaa" "00000000" "0068e5cf8b010000"
)  # fmt: skip
PRODUCER = Producer(b"p1", 7, 8)

# length · type · sections · zero · stream id · offset · payload · sections
GOLDEN_RECORDS = {
    "plain append": (
        Record(RecordType.APPEND, 5, 100, 3),
        "1c000000" "01" "00" "0000" "0500000000000000" "6400000000000000" "03000000",
    ),
    "producer": (
        Record(RecordType.APPEND, 5, 100, 3, producer=PRODUCER),
        "30000000" "01" "01" "0000" "0500000000000000" "6400000000000000" "03000000"
        "0700000000000000" "0800000000000000" "0200" "7031",
    ),
    "Stream-Seq": (
        Record(RecordType.APPEND, 5, 100, 3, stream_seq=b"0042"),
        "22000000" "01" "02" "0000" "0500000000000000" "6400000000000000" "03000000"
        "0400" "30303432",
    ),
    "closes": (
        Record(RecordType.APPEND, 5, 100, closes=True),
        "1c000000" "01" "04" "0000" "0500000000000000" "6400000000000000" "00000000",
    ),
    "deadline": (
        Record(RecordType.TOUCH, 5, 100, deadline_ms=1_700_000_000_000),
        "24000000" "04" "08" "0000" "0500000000000000" "6400000000000000" "00000000"
        "0068e5cf8b010000",
    ),
    "configuration with TTL": (
        Record(
            RecordType.CREATE, 6, 0,
            configuration=Configuration(b"a/b", b"text/plain", 60, None),
        ),
        "3e000000" "02" "10" "0000" "0600000000000000" "0000000000000000" "00000000"
        "01" "3c00000000000000" "0000000000000000" "0300" "0a00" "612f62" "746578742f706c61696e",
    ),
    "configuration with Expires-At": (
        Record(
            RecordType.CREATE, 6, 0,
            configuration=Configuration(b"a", b"b", None, 1_700_000_000_000),
        ),
        "33000000" "02" "10" "0000" "0600000000000000" "0000000000000000" "00000000"
        "02" "0000000000000000" "0068e5cf8b010000" "0100" "0100" "61" "62",
    ),
    "configuration with retention": (
        Record(
            RecordType.CREATE, 6, 0,
            configuration=Configuration(b"a", b"b", None, None, Retention(5, 6, True)),
        ),
        "43000000" "02" "10" "0000" "0600000000000000" "0000000000000000" "00000000"
        "1c" "0000000000000000" "0000000000000000" "0100" "0100" "61" "62"
        "0500000000000000" "0600000000000000",
    ),
    "cut": (
        Record(RecordType.RETAIN, 6, 9),
        "1c000000" "08" "00" "0000" "0600000000000000" "0900000000000000" "00000000",
    ),
    "fork": (
        Record(RecordType.CREATE, 6, 9, fork=Fork(2, 1, 9, 4, 5)),
        "3d000000" "02" "20" "0000" "0600000000000000" "0900000000000000" "00000000"
        "0200000000000000" "0100000000000000" "0900000000000000" "0400000000000000" "05",
    ),
    "fork of a stream that was cut": (
        Record(RecordType.CREATE, 6, 9, fork=Fork(2, 1, 9, 4, 5, 7)),
        "45000000" "02" "20" "0000" "0600000000000000" "0900000000000000" "00000000"
        "0200000000000000" "0100000000000000" "0900000000000000" "0400000000000000" "0d"
        "0700000000000000",
    ),
    "origin": (
        Record(RecordType.STATE, 6, 9, origin=77),
        "24000000" "06" "40" "0000" "0600000000000000" "0900000000000000" "00000000"
        "4d00000000000000",
    ),
    "value": (
        Record(RecordType.VALUE, 0, 0, value=Entry(b"k", b"xyz")),
        "26000000" "07" "80" "0000" "0000000000000000" "0000000000000000" "00000000"
        "0100" "03000000" "6b" "78797a",
    ),
    "delete": (
        Record(RecordType.DELETE, 6, 9),
        "1c000000" "03" "00" "0000" "0600000000000000" "0900000000000000" "00000000",
    ),
    "soft delete": (
        Record(RecordType.SOFT_DELETE, 6, 9),
        "1c000000" "05" "00" "0000" "0600000000000000" "0900000000000000" "00000000",
    ),
    "every section, in the order of the bits": (
        Record(
            RecordType.APPEND, 5, 100, 3, PRODUCER, b"s", True, 1,
            Configuration(b"a", b"b", 2, None), Fork(1, 2, 3, 4, 5), 6, Entry(b"k", b"v"),
        ),
        "83000000" "01" "ff" "0000" "0500000000000000" "6400000000000000" "03000000"
        "0700000000000000" "0800000000000000" "0200" "7031"
        "0100" "73"
        "0100000000000000"
        "01" "0200000000000000" "0000000000000000" "0100" "0100" "61" "62"
        "0100000000000000" "0200000000000000" "0300000000000000" "0400000000000000" "05"
        "0600000000000000"
        "0100" "01000000" "6b" "76",
    ),
}  # fmt: skip

U16 = st.integers(0, 2**16 - 1)
U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
SHORT = st.binary(max_size=40)
RETENTIONS = st.one_of(
    st.builds(Retention, U64, st.none() | U64, st.booleans()),
    st.builds(Retention, st.none(), U64, st.booleans()),
)
RECORDS = st.builds(
    Record,
    st.sampled_from(RecordType),
    U64,
    U64,
    U32,
    st.none() | st.builds(Producer, SHORT, U64, U64),
    st.none() | SHORT,
    st.booleans(),
    st.none() | U64,
    st.none()
    | st.builds(
        Configuration, SHORT, SHORT, st.none() | U64, st.none() | U64, st.none() | RETENTIONS
    ),
    st.none() | st.builds(Fork, U64, U64, U64, U64, st.integers(0, 7), U64),
    st.none() | U64,
    st.none() | st.builds(Entry, SHORT, SHORT),
)
PAYLOADS = st.lists(
    st.tuples(U32, U32, st.binary(min_size=1, max_size=50)),
    max_size=4,
    unique_by=lambda run: run[0],
)


def encoded(
    payloads: list[tuple[int, int, bytes]], records: list[Record], sequence: int = 12
) -> batch_module.EncodedBatch:
    """A batch of these runs and records."""
    runs = [encode_run(SEED, stream_id, start, data, None) for stream_id, start, data in payloads]
    return encode_batch(
        SEED,
        sequence,
        1_700_000_000_000,
        0xDEADBEEF,
        runs,
        [data for _, _, data in payloads],
        [encode(record) for record in records],
    )


def decoded(data: bytes, seed: int = SEED) -> tuple[list[RunEntry], list[Record]]:
    """What a reader makes of a batch's bytes. Raises `DecodeError`."""
    head = decode_head(data, 0, seed)
    framed = data[: HEAD_BYTES + head.header_bytes]
    end = head.size_bytes
    check_commit(data[max(end - COMMIT_BYTES, 0) : end], seed, head, framed)
    return decode_block(framed[HEAD_BYTES:], head)


# Golden bytes


def test_segment_header_is_golden() -> None:
    """The 80 bytes at the start of a segment are these, and mean this."""
    data = bytes.fromhex(HEADER_HEX)
    assert encode_header(SEGMENT_HEADER) == data
    assert decode_header(data, "x.log") == SEGMENT_HEADER
    assert SEGMENT_HEADER.seed == SEED
    assert int.from_bytes(data[12:16], "little") == crc32(data[:12] + bytes(4) + data[16:])


@pytest.mark.parametrize("name", GOLDEN_RECORDS)
def test_record_is_golden(name: str) -> None:
    """Every record type and section has these bytes, and they are read back as the record."""
    record, golden = GOLDEN_RECORDS[name]
    data = bytes.fromhex(golden)
    assert encode(record) == data
    assert decode(data, 0) == (record, len(data))


def test_every_type_and_section_has_golden_bytes() -> None:
    """No record type and no section bit is left out of the golden records."""
    golden = [bytes.fromhex(text) for _, text in GOLDEN_RECORDS.values()]
    assert {data[4] for data in golden} == {int(kind) for kind in RecordType}
    assert {data[5] for data in golden} >= {1 << bit for bit in range(8)} | {0}


def test_batch_is_golden() -> None:
    """Head, run table, records, payload and commit frame of a batch are these bytes."""
    batch = encoded([(5, 100, b"abc")], [Record(RecordType.APPEND, 5, 100, 3)])
    head = (
        "44534231" "01000000" "01000000" "40000000" "0300000000000000" "0c00000000000000"
        "0068e5cf8b010000" "efbeadde" "2a13bd15"
    )  # fmt: skip
    run_table = (
        "0500000000000000" "6400000000000000" "0300000000000000" "01000000"
        "03000080" "9a6dd551"
    )  # fmt: skip
    record = GOLDEN_RECORDS["plain append"][1]
    commit = "44534331" "e95e60a3" "0c00000000000000" "efbeadde" "f14a22eb"  # fmt: skip
    assert [buffer.hex() for buffer in batch.buffers] == [
        head,
        run_table + record,
        b"abc".hex(),
        commit,
    ]
    assert (batch.size_bytes, batch.checksum, batch.payload_at) == (139, 0xA3605EE9, 112)
    data = b"".join(batch.buffers)
    assert int.from_bytes(data[44:48], "little") == crc32(data[:44], SEED)
    assert batch.checksum == crc32(data[:112], SEED)
    assert int.from_bytes(data[-4:], "little") == crc32(data[-24:-4], SEED)
    identity = struct.pack("<QQ", 5, 100)
    assert int.from_bytes(data[80:84], "little") == crc32(identity + b"abc", SEED)


def test_index_run_is_golden() -> None:
    """A packed run of the index has these bytes, and a sealed value ends with its checksum."""
    place = RunPlace(100, 3, 208, bytes.fromhex("030000809a6dd551"))
    golden = "6400000000000000" "03000000" "d0000000" "0100" "030000809a6dd551"  # fmt: skip
    data = bytes.fromhex(golden)
    assert pack_run(place) == data
    assert list(unpack_runs(data + data)) == [place, place]
    assert place.length == 3
    assert seal(b"k", b"v") == b"v" + crc32(b"kv").to_bytes(4, "little")


def test_sizes_are_as_documented() -> None:
    """The fixed parts have the sizes that FORMAT.md's diagrams show."""
    assert HEADER_BYTES == 80
    assert record_module.HEAD.size == 28
    assert (HEAD_BYTES, COMMIT_BYTES, batch_module.RUN.size, batch_module.BLOCK.size) == (
        48,
        24,
        28,
        8,
    )
    assert RUN_HEAD.size == 18
    assert BLOCK_BYTES_MAX == 64 * 1024


def test_zeroes_are_no_record_and_no_batch() -> None:
    """Space that was zeroed ahead decodes as nothing."""
    with pytest.raises(DecodeError):
        decode(bytes(4096), 0)
    with pytest.raises(DecodeError):
        decode_head(bytes(4096), 0, SEED)


# Round trips


@bounded(150)
@given(RECORDS)
def test_record_round_trip(record: Record) -> None:
    """Whatever is encoded is decoded as itself, wherever it lies in a block."""
    data = encode(record)
    assert decode(b"\xaa" * 7 + data, 7) == (record, 7 + len(data))


@bounded(50)
@given(U64, U64, U32)
def test_plain_append_is_an_ordinary_record(stream_id: int, offset: int, size: int) -> None:
    """The short-cut for plain appends writes what the encoder would."""
    record = Record(RecordType.APPEND, stream_id, offset, size)
    assert encode_plain_append(stream_id, offset, size) == encode(record)


@bounded(100)
@given(PAYLOADS, st.lists(RECORDS, max_size=5))
def test_batch_round_trip(payloads: list[tuple[int, int, bytes]], records: list[Record]) -> None:
    """Runs and records of a batch are read back; its size is what it says it is."""
    batch = encoded(payloads, records)
    data = b"".join(batch.buffers)
    assert len(data) == batch.size_bytes
    runs, found = decoded(data)
    assert found == records
    assert [(run.stream_id, run.start, run.length) for run in runs] == [
        (stream_id, start, len(body)) for stream_id, start, body in payloads
    ]
    at = batch.payload_at
    for run in runs:
        body = data[at : at + run.length]
        assert damaged_block(SEED, run.stream_id, run.start, run.blocks, body) is None
        at += run.length


@bounded(60)
@given(
    st.lists(
        st.one_of(
            st.integers(1, 300),
            st.integers(BLOCK_BYTES_MAX - 2, BLOCK_BYTES_MAX + 2),
            st.integers(1, 3 * BLOCK_BYTES_MAX),
        ),
        min_size=1,
        max_size=8,
    )
)
@example([BLOCK_BYTES_MAX])
@example([BLOCK_BYTES_MAX + 1, 1, BLOCK_BYTES_MAX])
@example([2 * BLOCK_BYTES_MAX, 5])
def test_blocks_of_messages(lengths: list[int]) -> None:
    """A block is at most 64 KiB, is flagged exactly if a message ends with it, and holds either
    whole messages or a part of one."""
    data = bytes(sum(lengths))
    table = cut_blocks(SEED, 9, 50, data, lengths)
    ends = set()
    at = 0
    for length in lengths:
        at += length
        ends.add(at)
    starts = {0, *ends}
    at = 0
    for coded, checksum in batch_module.BLOCK.iter_unpack(table):
        size = coded & LENGTH_MASK
        assert 0 < size <= BLOCK_BYTES_MAX
        assert checksum == block_checksum(SEED, 9, 50 + at, data[at : at + size])
        assert bool(coded & ENDS_MESSAGE) == (at + size in ends)
        inside = [end for end in ends if at < end < at + size]
        assert not inside or {at, at + size} <= starts
        at += size
    assert at == len(data) == run_bytes(table)


@bounded(40)
@given(st.integers(1, 4 * BLOCK_BYTES_MAX), U32, st.integers(0, 2**40))
def test_resealed_blocks_check_in_their_new_segment(size: int, seed: int, start: int) -> None:
    """A run that moves to another segment keeps its cuts and checks with that segment's salt."""
    data = bytes(size)
    table = cut_blocks(SEED, 9, start, data, None)
    moved = reseal_blocks(seed, 9, start, table, data)
    assert damaged_block(seed, 9, start, moved, data) is None
    lengths = [length for length, _ in batch_module.BLOCK.iter_unpack(table)]
    assert [length for length, _ in batch_module.BLOCK.iter_unpack(moved)] == lengths


def test_a_block_belongs_to_its_stream_and_offset() -> None:
    """The same bytes do not check as another stream's, at another offset, or in another segment."""
    table = cut_blocks(SEED, 9, 50, b"payload", None)
    assert damaged_block(SEED, 9, 50, table, b"payload") is None
    for seed, stream_id, start in ((SEED ^ 1, 9, 50), (SEED, 8, 50), (SEED, 9, 51)):
        assert damaged_block(seed, stream_id, start, table, b"payload") == 0
    assert damaged_block(SEED, 9, 50, table, b"payloa") == 0


# Decoders meet garbage


@bounded(200)
@given(st.binary(max_size=200), st.integers(0, 210))
def test_record_decoder_refuses_garbage(data: bytes, position: int) -> None:
    """Arbitrary bytes are a record exactly as encoded, or a `DecodeError`: nothing else."""
    try:
        record, end = decode(data, position)
    except DecodeError:
        return
    assert encode(record) == data[position:end]


@bounded(200)
@given(RECORDS, st.data())
def test_record_decoder_refuses_mutations(record: Record, data: st.DataObject) -> None:
    """A record with bytes changed or cut off is another record or a `DecodeError`."""
    original = bytearray(encode(record))
    for _ in range(data.draw(st.integers(1, 3))):
        original[data.draw(st.integers(0, len(original) - 1))] = data.draw(st.integers(0, 255))
    mutated = bytes(original[: data.draw(st.integers(0, len(original)))])
    try:
        other, end = decode(mutated, 0)
    except DecodeError:
        return
    assert encode(other) == mutated[:end]


@bounded(200)
@given(st.binary(max_size=200), st.integers(0, 50), st.integers(0, 5))
def test_block_decoder_refuses_garbage(block: bytes, records: int, runs: int) -> None:
    """A header block of arbitrary bytes, whatever its head says, decodes or is a `DecodeError`."""
    head = batch_module.BatchHead(runs, records, len(block), 10, 1, 2, 3)
    try:
        _, found = decode_block(block, head)
    except DecodeError:
        return
    assert len(found) == records


def test_huge_counts_cost_nothing() -> None:
    """A head that claims billions of runs or records ends where the block ends."""
    for runs, records in ((2**32 - 1, 0), (0, 2**32 - 1)):
        head = batch_module.BatchHead(runs, records, 56, 0, 1, 2, 3)
        with pytest.raises(DecodeError):
            decode_block(bytes(56), head)


@bounded(150)
@given(PAYLOADS, st.lists(RECORDS, max_size=3), st.data())
def test_a_damaged_batch_never_happened(
    payloads: list[tuple[int, int, bytes]], records: list[Record], data: st.DataObject
) -> None:
    """One changed byte anywhere but in the payload makes the whole batch invalid, and there the
    block's checksum tells."""
    batch = encoded(payloads, records)
    original = b"".join(batch.buffers)
    at = data.draw(st.integers(0, len(original) - 1))
    mutated = bytearray(original)
    mutated[at] ^= data.draw(st.integers(1, 255))
    payload_end = len(original) - COMMIT_BYTES
    if batch.payload_at <= at < payload_end:
        runs, _ = decoded(bytes(mutated))
        place = batch.payload_at
        wrong = []
        for run in runs:
            body = bytes(mutated[place : place + run.length])
            wrong.append(damaged_block(SEED, run.stream_id, run.start, run.blocks, body))
            place += run.length
        assert [found for found in wrong if found is not None] == [0]
    else:
        with pytest.raises(DecodeError):
            decoded(bytes(mutated))


@bounded(60)
@given(PAYLOADS, st.lists(RECORDS, max_size=3), st.data())
def test_a_batch_cut_short_never_happened(
    payloads: list[tuple[int, int, bytes]], records: list[Record], data: st.DataObject
) -> None:
    """A batch without its last bytes is a `DecodeError`, wherever it was cut."""
    original = b"".join(encoded(payloads, records).buffers)
    with pytest.raises(DecodeError):
        decoded(original[: data.draw(st.integers(0, len(original) - 1))])


def test_a_batch_of_another_segment_never_happened() -> None:
    """Bytes of a batch do not check with another segment's salt."""
    data = b"".join(encoded([(1, 0, b"x")], [Record(RecordType.APPEND, 1, 0, 1)]).buffers)
    decoded(data)
    with pytest.raises(DecodeError):
        decoded(data, SEED ^ 1)


def test_a_commit_frame_of_another_batch_is_refused() -> None:
    """A valid frame after a valid head commits nothing unless the two belong together."""
    one = encoded([], [Record(RecordType.DELETE, 1, 0)], sequence=1)
    two = encoded([], [Record(RecordType.DELETE, 1, 0)], sequence=2)
    with pytest.raises(DecodeError):
        decoded(b"".join((*one.buffers[:-1], two.buffers[-1])))


@bounded(150)
@given(st.binary(max_size=120))
def test_head_decoder_refuses_garbage(data: bytes) -> None:
    """Arbitrary bytes are no batch head and no segment header."""
    with pytest.raises(DecodeError):
        decode_head(data, 0, SEED)
    with pytest.raises(OpenError):
        decode_header(data, "x.log")


@bounded(100)
@given(st.integers(0, HEADER_BYTES - 1), st.integers(1, 255), st.integers(0, HEADER_BYTES))
def test_a_damaged_segment_header_is_refused(at: int, change: int, size: int) -> None:
    """A header with a changed byte, or cut short, is refused by the file's name."""
    data = bytearray(encode_header(SEGMENT_HEADER))
    data[at] ^= change
    with pytest.raises(OpenError, match=r"x\.log, position"):
        decode_header(bytes(data), "x.log")
    if size < HEADER_BYTES:
        with pytest.raises(OpenError, match=r"x\.log, position 0"):
            decode_header(encode_header(SEGMENT_HEADER)[:size], "x.log")


def test_a_newer_segment_format_is_named() -> None:
    """A segment of a later format version is refused, and not as damage."""
    data = bytearray(encode_header(SEGMENT_HEADER))
    data[8] = 2
    data[12:16] = bytes(4)
    data[12:16] = crc32(data).to_bytes(4, "little")
    with pytest.raises(OpenError, match="segment format 2"):
        decode_header(bytes(data), "x.log")


@bounded(100)
@given(st.lists(st.tuples(U64, U32, U32, st.lists(U64, max_size=4)), max_size=5))
def test_index_runs_round_trip(runs: list[tuple[int, int, int, list[int]]]) -> None:
    """Packed runs are unpacked as they were, however many share a value."""
    places = [
        RunPlace(
            start, segment_id, position, b"".join(struct.pack("<Q", block) for block in blocks)
        )
        for start, segment_id, position, blocks in runs
    ]
    assert list(unpack_runs(b"".join(map(pack_run, places)))) == places
