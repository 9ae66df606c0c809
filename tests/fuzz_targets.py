"""The parsers under arbitrary bytes: one function a parser, which raises where a property breaks.

The same functions run in two ways:

    python -m pytest tests/test_fuzz.py                      Hypothesis, bounded
    pip install atheris                                      coverage-guided, by hand:
    python tests/fuzz_targets.py record -max_total_time=60   one target, for a minute
    python tests/fuzz_targets.py all 60                      each target, for a minute each

A target says what a parser promises: nothing but its typed errors, what it accepts can be written
again to the same bytes, and where a second, plain way to read the bytes exists, both agree.
"""

import json
import os
import re
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar
from zlib import crc32

from durable_streamsd.core.forks import parse_fork
from durable_streamsd.core.headers import (
    INTEGER_MAX,
    TIME_MS_MAX,
    etag_matches,
    format_rfc3339,
    parse_content_type,
    parse_expires_at,
    parse_media_type,
    parse_producer,
    parse_stream_seq,
    parse_ttl,
)
from durable_streamsd.core.listing import BadListing, parse_listing
from durable_streamsd.core.offsets import EARLIEST, NOW, START, Offset, format_offset, parse_offset
from durable_streamsd.core.paths import PATH_BYTES_MAX, parse_path, quote_path
from durable_streamsd.core.problems import Problem
from durable_streamsd.core.query import parse_query
from durable_streamsd.express.body import Body, body_of
from durable_streamsd.express.head import CHUNKED, Refused, parse_head
from storage.batch import (
    BLOCK,
    HEAD,
    RUN,
    BatchHead,
    decode_block,
    decode_head,
    encode_batch,
    encode_run,
)
from storage.errors import FramingError, OpenError
from storage.framing import Framing, frame, message_lengths, text_boundary
from storage.listing import PAGE_STREAMS_MAX
from storage.record import (
    Configuration,
    DecodeError,
    Entry,
    Fork,
    Producer,
    Record,
    RecordType,
    decode,
    encode,
    encode_plain_append,
)
from storage.scan import FIRST_BATCH_POSITION, Scanner
from storage.segment import HEADER_BYTES, SegmentFile, decode_header, encode_header, new_header

Value = TypeVar("Value")


class Draw:
    """Values out of a fuzzer's bytes; zeroes when they are used up."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def integer(self, size_bytes: int) -> int:
        """An unsigned integer of so many bytes."""
        return int.from_bytes(self.take(size_bytes), "little")

    def take(self, size_bytes: int) -> bytes:
        """The next bytes, fewer at the end."""
        self._at += size_bytes
        return self._data[self._at - size_bytes : self._at]

    def short(self) -> bytes:
        """Some bytes, up to 31."""
        return self.take(self.integer(1) % 32)

    def optional(self, size_bytes: int) -> int | None:
        """An integer or none."""
        return self.integer(size_bytes) if self.integer(1) & 1 else None

    def rest(self) -> bytes:
        """All that is left."""
        return self.take(len(self._data))


# The log


def record(data: bytes) -> None:
    """What the decoder accepts, the encoder writes to the same bytes; the rest is refused."""
    try:
        found, end = decode(data, 0)
    except DecodeError:
        return
    assert encode(found) == data[:end]
    plain = found._replace(payload_bytes=0) == Record(found.type, found.stream_id, found.offset)
    if plain and found.type is RecordType.APPEND:
        written = encode_plain_append(found.stream_id, found.offset, found.payload_bytes)
        assert written == data[:end]


def drawn_record(draw: Draw) -> Record:
    """Any record that can be encoded."""
    sections = draw.integer(1)
    configuration = Configuration(draw.short(), draw.short(), draw.optional(8), draw.optional(8))
    numbers = [draw.integer(8) for _ in range(4)]
    asked = draw.integer(1) & 0b111
    fork = Fork(numbers[0], numbers[1], numbers[2], numbers[3], asked, draw.integer(4))
    return Record(
        RecordType(draw.integer(1) % len(RecordType) + 1),
        draw.integer(8),
        draw.integer(8),
        draw.integer(4),
        Producer(draw.short(), draw.integer(8), draw.integer(8)) if sections & 1 else None,
        draw.short() if sections & 2 else None,
        bool(sections & 4),
        draw.integer(8) if sections & 8 else None,
        configuration if sections & 16 else None,
        fork if sections & 32 else None,
        draw.integer(8) if sections & 64 else None,
        Entry(draw.short(), draw.short()) if sections & 128 else None,
    )


def record_round_trip(data: bytes) -> None:
    """A record comes back as it was; cut short it is refused, and with a byte changed it is refused
    or is the other record that those bytes are."""
    draw = Draw(data)
    written = drawn_record(draw)
    encoded = encode(written)
    assert decode(encoded, 0) == (written, len(encoded))
    assert decode(b"\x00" * 5 + encoded + b"\xff", 5) == (written, 5 + len(encoded))
    cut = draw.integer(2) % len(encoded)
    for damaged in (encoded[:cut], encoded[cut:]):
        record(damaged)
    try:
        decode(encoded[:cut], 0)
    except DecodeError:
        pass
    else:
        raise AssertionError("a record that is cut short was accepted")
    changed = bytearray(encoded)
    changed[cut] ^= draw.integer(1) or 1
    record(bytes(changed))


def header_block(data: bytes) -> None:
    """A header block that is accepted is its runs and records, to the byte."""
    draw = Draw(data)
    head = BatchHead(draw.integer(1) % 8, draw.integer(1) % 8, 0, draw.integer(2), 0, 0, 0)
    block = draw.rest()
    try:
        runs, records = decode_block(block, head)
    except DecodeError:
        return
    parts = [
        RUN.pack(run.stream_id, run.start, run.length, len(run.blocks) // BLOCK.size) + run.blocks
        for run in runs
    ]
    assert b"".join([*parts, *map(encode, records)]) == block
    assert (len(runs), len(records)) == head[:2]
    assert sum(run.length for run in runs) == head.payload_bytes


def batch_head(data: bytes) -> None:
    """A batch's head is accepted exactly if it is whole, begins as one and its checksum holds."""
    draw = Draw(data)
    seed = draw.integer(4)
    fields = draw.take(HEAD.size)
    if draw.integer(1) & 1 and len(fields) == HEAD.size:
        fields = b"DSB1" + fields[4:44]
        fields += struct.pack("<I", crc32(fields, seed))
    sound = (
        len(fields) == HEAD.size
        and fields.startswith(b"DSB1")
        and crc32(fields[:44], seed) == int.from_bytes(fields[44:], "little")
    )
    try:
        head = decode_head(fields, 0, seed)
    except DecodeError:
        assert not sound
        return
    assert sound
    assert HEAD.pack(0x31425344, *head, crc32(fields[:44], seed)) == fields


def segment_header(data: bytes) -> None:
    """A segment's header that is accepted is written again to the same bytes."""
    if len(data) >= HEADER_BYTES and data[-1] & 1:
        sealed = b"DSSEGMT\n" + data[8:12] + bytes(4) + data[16:HEADER_BYTES]
        checksum = crc32(sealed).to_bytes(4, "little")
        data = sealed[:12] + checksum + sealed[16:]
    try:
        header = decode_header(data, "file")
    except OpenError as error:
        assert str(error).startswith("file, position ")
        return
    assert encode_header(header) == data[:HEADER_BYTES]


_file = os.memfd_create("segment")


def scanner(data: bytes) -> None:
    """Of batches with garbage between them the scanner reads the ones before it, and finds the next
    one after it, exactly where they are."""
    draw = Draw(data)
    header = new_header(1, 1, 1, 0, 0, 0, 0)
    content = encode_header(header)
    batches: list[tuple[int, int]] = []
    garbage_at = -1
    predecessor = 0
    for sequence in range(1, 2 + draw.integer(1) % 4):
        if garbage_at < 0 and draw.integer(1) % 3 == 0:
            garbage_at = len(content)
            copy = content[batches[-1][0] :] if batches and draw.integer(1) & 1 else b""
            content += b"\x00" + copy[: draw.integer(1)] + draw.short() + b"DSB1" + draw.short()
        payload = draw.short()
        runs = [encode_run(header.seed, 7, 3, payload, None)] if payload else []
        records = [encode(drawn_record(draw))]
        encoded = encode_batch(
            header.seed, sequence, 0, predecessor, runs, [payload] if payload else [], records
        )
        batches.append((len(content), sequence))
        content += b"".join(encoded.buffers)
        predecessor = encoded.checksum
    os.ftruncate(_file, 0)
    os.pwrite(_file, content, 0)
    scan = Scanner(SegmentFile(Path(f"/proc/self/fd/{_file}")))
    position = FIRST_BATCH_POSITION
    read = []
    reading = True
    while reading:
        try:
            batch = scan.batch_at(position)
        except DecodeError:
            reading = False
        else:
            assert scan.damaged_payload(batch) is None
            read.append((position, batch.head.sequence))
            position = batch.end
    before = [place for place in batches if garbage_at < 0 or place[0] < garbage_at]
    assert read == before
    later = batches[len(before) :]
    found = scan.valid_batch_after(position, len(before))
    assert found == (later[0][0] if later else None)


# JSON and text


def _no_constant(name: str) -> None:
    raise ValueError(name)


def _plainly(text: str) -> object:
    """The standard library's reading, strict, with digits and pairs as they stand."""
    return json.loads(
        text,
        parse_int=str,
        parse_float=str,
        parse_constant=_no_constant,
        object_pairs_hook=lambda pairs: ("object", pairs),
    )


def json_body(data: bytes) -> None:
    """A JSON body is split exactly where the standard library would, or is no JSON for it either;
    what is stored can be told apart again."""
    try:
        framed = frame(Framing.JSON, data)
    except FramingError as error:
        assert re.fullmatch(r"The .*\.", str(error), re.DOTALL)
        try:
            _plainly(data.decode())
        except (ValueError, RecursionError):
            return
        assert "too deeply" in str(error), "valid JSON was refused"
        return
    assert framed.lengths is not None
    try:
        value = _plainly(data.decode())
    except RecursionError:
        return
    expected = value if isinstance(value, list) else [value]
    messages = []
    at = 0
    for length in framed.lengths:
        messages.append(framed.data[at : at + length - 1])
        at += length
        assert framed.data[at - 1 : at] == b","
    assert at == len(framed.data)
    assert [_plainly(message.decode()) for message in messages] == expected
    if messages:
        assert message_lengths(framed.data) == framed.lengths
        assert frame(Framing.JSON, b"[%b]" % framed.data[:-1]) == framed


def stored_json(data: bytes) -> None:
    """Lengths of messages in any bytes add up to them, or they are refused."""
    try:
        lengths = message_lengths(data)
    except FramingError:
        return
    assert sum(lengths) == len(data)
    at = 0
    for length in lengths:
        at += length
        assert data[at - 1 : at] == b","


def text(data: bytes) -> None:
    """A cut at a character holds back at most the start of one; of text that is valid so far
    exactly that."""
    end = text_boundary(data)
    assert len(data) - 3 <= end <= len(data)
    try:
        data.decode()
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data":
            assert end == error.start
    else:
        assert end == len(data)


# Requests


def offset(data: bytes) -> None:
    """A token is accepted exactly if it is one of ours, and is written again to the same bytes."""
    ours = (
        len(data) == 33
        and data[16:17] == b"_"
        and all(byte in b"0123456789" for byte in data[:16] + data[17:])
    )
    try:
        found = parse_offset(data)
    except Problem:
        assert not ours
        assert data not in (b"-1", b"now")
        return
    if data == b"now":
        assert found is NOW
    elif data == b"-1":
        assert found is EARLIEST
    else:
        assert ours
        assert isinstance(found, Offset)
        assert format_offset(*found) == (data if found.position else format_offset(0, 0))


def _plain_integer(value: bytes) -> int | None:
    digits = value.decode("latin-1")
    if not (digits.isascii() and digits.isdigit()) or str(int(digits)) != digits:
        return None
    return int(digits) if int(digits) <= INTEGER_MAX else None


def headers(data: bytes) -> None:
    """Header values are read as their grammars say, or refused with a `Problem`."""
    value = data[:400]
    ttl_s = _accepted(lambda: parse_ttl(value))
    assert ttl_s == _plain_integer(value)
    expires_ms = _accepted(lambda: parse_expires_at(value))
    if expires_ms is not None:
        assert 0 <= expires_ms <= TIME_MS_MAX
        assert parse_expires_at(format_rfc3339(expires_ms)) == expires_ms
    content_type = _accepted(lambda: parse_content_type(value))
    if content_type is not None:
        assert content_type.encode() == value
        media_type = parse_media_type(value)
        assert media_type == content_type.partition(";")[0].rstrip(" \t").lower()
        assert re.fullmatch(r"[^\x00-\x20()<>@,;:\\\"/\[\]?={}\x7f]+/[^\x00-\x20/;,]+", media_type)
    seq = _accepted(lambda: parse_stream_seq({b"stream-seq": value}))
    assert seq == (value if 0 < len(value) <= 256 else None)
    etag_matches(value, b'"a"')
    parts = value.split(b"\n", 2)
    names = (b"producer-epoch", b"producer-seq", b"producer-id")
    given = dict(zip(names, parts, strict=False))
    producer = _accepted(lambda: parse_producer(given))
    if producer is not None:
        assert producer.epoch == _plain_integer(parts[0])
        assert producer.seq == _plain_integer(parts[1])
        assert producer.id == parts[2]
        assert 0 < len(producer.id) <= 256
    elif len(parts) == 3 and 0 < len(parts[2]) <= 256:
        assert _plain_integer(parts[0]) is None or _plain_integer(parts[1]) is None


def times(data: bytes) -> None:
    """Any moment that can be written is read again as itself, in any zone."""
    draw = Draw(data)
    time_ms = draw.integer(6) % (TIME_MS_MAX + 1)
    written = format_rfc3339(time_ms)
    assert parse_expires_at(written) == time_ms
    assert parse_expires_at(written.replace(b"T", b"t").replace(b"Z", b"+00:00")) == time_ms
    minutes = draw.integer(2) % 1_440
    zone = b"%c%02d:%02d" % (b"+-"[draw.integer(1) & 1], *divmod(minutes, 60))
    shifted = _accepted(lambda: parse_expires_at(written.replace(b"Z", zone)))
    shift_ms = minutes * 60_000 * (1 if zone.startswith(b"-") else -1)
    if 0 <= time_ms + shift_ms <= TIME_MS_MAX:
        assert shifted == time_ms + shift_ms


def _accepted(read: Callable[[], Value]) -> Value | None:
    try:
        return read()
    except Problem:
        return None


def path(data: bytes) -> None:
    """A path is accepted exactly if its decoded segments are names, and its canonical spelling, and
    any other, lead to it again."""
    found = _accepted(lambda: parse_path(data))
    pieces = data.split(b"%")
    escapes = [piece[:2] for piece in pieces[1:]]
    sound = all(re.fullmatch(rb"[0-9A-Fa-f]{2}", escape) for escape in escapes)
    if sound:
        decoded = pieces[0] + b"".join(bytes.fromhex(p[:2].decode()) + p[2:] for p in pieces[1:])
        sound = 0 < len(decoded) <= PATH_BYTES_MAX and not re.search(rb"[\x00-\x1f\x7f]", decoded)
        sound = sound and not {b"", b".", b".."} & set(decoded.split(b"/"))
        sound = sound and decoded.decode(errors="replace").encode() == decoded
    assert (found is not None) == sound
    if found is not None:
        assert found == decoded
        assert parse_path(quote_path(found)) == found
        assert parse_path(b"".join(b"%%%02x" % byte for byte in found)) == found
        assert quote_path(found).isascii()


def query(data: bytes) -> None:
    """A query is read or refused, and means the same with all its values percent-encoded."""
    found = _accepted(lambda: parse_query(data))
    names = [b"offset", b"live", b"cursor"]
    fields = [field.partition(b"=") for field in data.split(b"&")] if data else []
    encoded = b"&".join(
        name + b"=" + b"".join(b"%%%02X" % byte for byte in value)
        for name, _, value in fields
        if b"%" not in value and b"%" not in name and name in names
    )
    if all(b"%" not in name + value for name, _, value in fields):
        assert _accepted(lambda: parse_query(encoded)) == found
    if found is not None and isinstance(found.offset, Offset) and found.live is None:
        assert parse_query(b"offset=" + format_offset(*found.offset)).offset in (
            found.offset,
            START,
        )


def fork(data: bytes) -> None:
    """A fork is asked for by a path and an offset of ours and a plain number, or not at all."""
    parts = data.split(b"\n", 2)
    names = (b"stream-forked-from", b"stream-fork-offset", b"stream-fork-sub-offset")
    given = dict(zip(names, parts, strict=False))
    asked = _accepted(lambda: parse_fork(given, None, None, None))
    assert _accepted(lambda: parse_fork({**given, b"host": b"a"}, None, None, None)) == asked
    if asked is None:
        return
    source = parts[0]
    assert source.startswith(b"/v1/stream/")
    assert parse_path(source.removeprefix(b"/v1/stream/")) == asked.source_path
    assert parse_fork({names[0]: b"/v1/stream/" + quote_path(asked.source_path)}, 1, None, None)
    if len(parts) > 1:
        assert asked.offset == int(parts[1][17:])
        assert asked.root == int(parts[1][:16])
    if len(parts) > 2:
        assert asked.sub_offset == _plain_integer(parts[2])


def listing(data: bytes) -> None:
    """A listing's query is read or refused, and what was read means the same when it is encoded."""
    try:
        prefix, after, limit = parse_listing(data)
    except BadListing as refused:
        assert str(refused).endswith(".")
        return
    assert 1 <= limit <= PAGE_STREAMS_MAX
    fields = [(b"prefix", prefix), (b"limit", b"%d" % limit)]
    if after is not None:
        fields.append((b"after", after))
    encoded = b"&".join(
        name + b"=" + b"".join(b"%%%02X" % byte for byte in value) for name, value in fields
    )
    assert parse_listing(encoded) == (prefix, after, limit)


_REQUEST_LINE = re.compile(rb"([A-Z-]+) +(\S+) +HTTP/1\.([01])")  # llhttp takes several spaces
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*(.*?)[ \t]*", re.DOTALL)


def request_head(data: bytes) -> None:
    """A head is refused, or is what cutting it at its line ends gives; nothing in it can be read in
    two ways."""
    if data[:1] in (b"\x01", b"\x02"):  # so that fields are tried too, not only request lines
        data = b"POST /a HTTP/1.%d\r\nHost: h\r\n" % (data[0] - 1) + data[1:]
    raw = data.lstrip(b"\r\n") + b"\r\n\r\n"  # as the connection finds where a head ends
    raw = raw[: raw.find(b"\r\n\r\n") + 4]
    try:
        head = parse_head(raw, 100)
    except Refused:
        return
    first, *rest = raw[:-4].split(b"\r\n")
    line = _REQUEST_LINE.fullmatch(first)
    assert line is not None, first
    assert head.method.encode() == line[1]
    assert head.http_11 == (line[3] == b"1")
    target = line[2]
    if re.match(rb"https?://", target, re.IGNORECASE):
        target = b"/" + target.split(b"//", 1)[1].partition(b"/")[2]
    if b"?" not in line[2]:
        assert head.target == target or head.method in ("OPTIONS", "CONNECT")
    fields: dict[bytes, bytes] = {}
    for number, each in enumerate(rest):
        field = _FIELD.fullmatch(each)
        assert field is not None, (number, each)
        name = field[1].lower()
        fields[name] = fields[name] + b", " + field[2] if name in fields else field[2]
    assert head.headers == fields
    assert not any(byte in value for value in fields.values() for byte in b"\x00\r\n")
    length, coding = fields.get(b"content-length"), fields.get(b"transfer-encoding")
    assert length is None or coding is None
    if coding is not None:
        assert head.length == CHUNKED
    else:
        assert head.length == int(length or b"0") >= 0


def _plain_chunked(data: bytes) -> tuple[bytes, int] | None:
    """The body in complete chunks and where it ends; None if it is not complete yet.

    Raises `ValueError` for what is no chunked body.
    """
    body = b""
    position = 0
    trailer = False
    while True:
        end = data.find(b"\n", position)
        if end < 0:
            return None
        line = data[position:end]
        position = end + 1
        if not line.endswith(b"\r"):
            raise ValueError("a bare line feed")
        line = line[:-1]
        if trailer:
            if not line:
                return body, position
            if not re.fullmatch(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t -~\x80-\xff]*", line):
                raise ValueError("no trailer")
            continue
        if not re.fullmatch(rb"[0-9A-Fa-f]{1,15}(?:[ \t]*;[\t -~\x80-\xff]*)?", line):
            raise ValueError("no size")
        size = int(re.split(rb"[ \t;]", line)[0], 16)
        if not size:
            trailer = True
            continue
        if position + size > len(data):
            return None
        body += data[position : position + size]
        position += size
        if position == len(data) or data[position : position + 2] == b"\r":
            return None
        if data[position : position + 1] == b"\r" and position + 1 == len(data):
            return None
        if data[position : position + 2] != b"\r\n":
            if b"\n" not in data[position:]:
                return None
            raise ValueError("a chunk has no end")
        position += 2


def chunked_body(data: bytes) -> None:
    """However a chunked body arrives, it is what it is as a whole: the same bytes, end, or refusal
    as plain reading gives."""
    draw = Draw(data)
    cuts = [1 + draw.integer(1) % 16 for _ in range(draw.integer(1) % 8)]
    raw = draw.take(3_000)
    try:
        expected = _plain_chunked(raw)
    except ValueError:
        refused = True
    else:
        refused = False
    for pieces in ([], cuts, [1] * len(raw)):
        body = body_of(CHUNKED, 1 << 20)
        try:
            end = _feed(body, raw, pieces)
        except Refused:
            assert refused
            continue
        assert not refused
        assert body.done == (expected is not None)
        if expected is not None:
            assert (bytes(body.data), end) == expected
            assert body.received == end


def _feed(body: Body, raw: bytes, pieces: list[int]) -> int:
    """Feed in pieces of these sizes and a last one; where the body ended."""
    at = 0
    for size in [*pieces, len(raw)]:
        piece = raw[at : at + size]
        taken = body.feed(piece, 0)
        if body.done:
            return at + taken
        assert taken == len(piece)
        at += taken
    return at


def chunked_round_trip(data: bytes) -> None:
    """What a client encodes in chunks arrives as it was, and what follows is left alone."""
    draw = Draw(data)
    parts = [part for part in (draw.short() for _ in range(draw.integer(1) % 6)) if part]
    trailer = b"X: y\r\n" if draw.integer(1) & 1 else b""
    raw = b"".join(b"%x;e=f\r\n%b\r\n" % (len(part), part) for part in parts)
    raw += b"0\r\n" + trailer + b"\r\n"
    cuts = [1 + draw.integer(1) % 16 for _ in range(draw.integer(1) % 8)]
    limit = draw.integer(1)
    body = body_of(CHUNKED, limit)
    assert _feed(body, raw + draw.rest(), cuts) == len(raw)
    whole = b"".join(parts)
    assert body.too_large == (len(whole) > limit)
    assert bytes(body.data) == (b"" if body.too_large else whole)
    sized = body_of(len(whole), limit)
    assert _feed(sized, whole + b"next", cuts) == len(whole)
    assert bytes(sized.data) == (b"" if sized.too_large else whole)


Target = Callable[[bytes], None]
TARGETS: dict[str, Target] = {
    target.__name__: target
    for target in (
        record,
        record_round_trip,
        header_block,
        batch_head,
        segment_header,
        scanner,
        json_body,
        stored_json,
        text,
        offset,
        headers,
        times,
        path,
        query,
        fork,
        listing,
        request_head,
        chunked_body,
        chunked_round_trip,
    )
}


def seeds(name: str) -> Iterator[bytes]:
    """Inputs to begin with, and pieces to build others of: what the parser is made for."""
    plain = encode_plain_append(7, 0, 5)
    full = encode(
        Record(
            RecordType.CREATE, 1, 2, 3, Producer(b"p", 1, 2), b"seq", True, 5,
            Configuration(b"path", b"text/plain", 60, None), Fork(1, 2, 3, 4, 5, 6), 7,
            Entry(b"k", b"v"),
        )
    )  # fmt: skip
    if name in ("record", "record_round_trip"):
        yield from (plain, full, plain + full)
    elif name == "header_block":
        run = RUN.pack(7, 0, 5, 1) + BLOCK.pack(5 | 1 << 31, 9)
        yield from (b"\x01\x01\x05\x00" + run + plain, run, plain, b"\x01", full)
    elif name in ("batch_head", "segment_header"):
        yield from (b"DSB1" + bytes(44), b"DSSEGMT\n\x01\x00\x01" + bytes(69) + b"\x01", b"\x01")
    elif name in ("json_body", "stored_json"):
        yield from (
            b'[1, {"a": [true, null]}, "\\ud800"]', b"[", b"]", b"{", b"}", b",", b":", b'"',
            b"\\", b"\\u", b"ud83d\\ude00", b"1e5", b"-0.5", b"null", b" ", b"\xc3\xa9", b"0",
            b"NaN", b"[" * 300,
        )  # fmt: skip
    elif name == "text":
        yield from ("é€😀".encode(), b"\xf0\x9f\x98", b"a", b"\xe2\x82", b"\xff")
    elif name in ("offset", "query"):
        yield from (
            b"0000000000000001_0000000000000042", b"-1", b"now", b"offset=", b"live=", b"cursor=",
            b"long-poll", b"sse", b"&", b"=", b"%", b"%6e", b"12",
        )  # fmt: skip
    elif name in ("headers", "times"):
        yield from (
            b"2025-01-31T23:59:59.123Z", b"2016-12-31T23:59:60Z", b"+05:30", b"-00:00", b"T", b"Z",
            b"60", b"0", b"9007199254740992", b"text/plain", b"; charset=utf-8", b';a="\\""', b"\n",
            b"application/json", b"id", b'W/"a"', b"*", b".000000001", b"9999-12-31T23:59:59.9999Z",
        )  # fmt: skip
    elif name == "path":
        yield from (
            b"a/b",
            b"%2F",
            b"%2e",
            b".",
            b"..",
            b"/",
            b"%",
            b"%00",
            b"%c3%a9",
            b"\xff",
            b"a",
        )
    elif name == "fork":
        yield from (
            b"/v1/stream/a%2Fb\n0000000000000001_0000000000000042\n7", b"/v1/stream/", b"\n", b"%",
            b"/v1/stream/a", b"__ds", b"?", b"#", b" ", b"-1", b"now", b"0", b"http://h", b"..",
        )  # fmt: skip
    elif name == "listing":
        yield from (
            b"prefix=a%2Fb&after=a%2Fb%2Fc&limit=10", b"prefix=", b"after=", b"limit=", b"1000",
            b"1001", b"&", b"=", b"%", b"%00", b"%c3%a9", b"+", b"0", b"pre%66ix=",
        )  # fmt: skip
    elif name == "request_head":
        yield from (
            b"\x01", b"\x02X: y\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"POST /v1/stream/a?offset=-1 HTTP/1.1\r\n",
            b"Host: h:1\r\n", b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n",
            b"Connection: close, upgrade\r\n", b"Upgrade: x\r\n", b"Expect: 100-continue\r\n",
            b" ", b"\t", b"\r\n", b"\n", b"\r", b":", b"\x00", b"HTTP/1.0", b"http://h/p",
            b"CONNECT", b"OPTIONS * HTTP/1.1\r\n", b"\x0b", b"\xa0", b",", b"#",
        )  # fmt: skip
    elif name.startswith("chunked"):
        yield from (
            b"\x03\x05\x02\x015\r\nhello\r\n0\r\n\r\n", b"1\r\nx\r\n", b"0\r\n", b"\r\n", b"\n",
            b"a;b=c\r\n", b"X: y\r\n", b"\r", b"0", b" ", b";", b"00",
        )  # fmt: skip
    yield b""


def run_all(seconds: int) -> int:
    """Each target in a process of its own, for so long; 1 if one failed."""
    failed = 0
    for name in TARGETS:
        command = [sys.executable, __file__, name, f"-max_total_time={seconds}", "-verbosity=0"]
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:  # libFuzzer leaves its own
            environment = dict(os.environ, TMPDIR=folder)
            result = subprocess.run(
                command, capture_output=True, text=True, check=False, env=environment
            )
        done = re.findall(r"stat::number_of_executed_units: *(\d+)|Done (\d+) runs", result.stderr)
        runs = "".join(done[0]) if done else "?"
        print(f"{name}: {runs} executions, exit code {result.returncode}", flush=True)
        if result.returncode:
            print(result.stderr[-3_000:])
            failed = 1
    return failed


def main() -> int:
    """Run a target under atheris; arguments after its name are libFuzzer's."""
    name = sys.argv[1]
    if name == "all":
        return run_all(int(sys.argv[2]))
    import atheris  # type: ignore[import-not-found,import-untyped,unused-ignore]

    with tempfile.TemporaryDirectory(prefix="corpus-") as folder:
        corpus = Path(folder, "corpus")
        corpus.mkdir()
        pieces = [piece for piece in seeds(name) if piece]
        for number, piece in enumerate(pieces):
            Path(corpus, str(number)).write_bytes(piece)
        words = Path(folder, "words")
        escaped = ["".join(f"\\x{byte:02x}" for byte in piece[:60]) for piece in pieces]
        words.write_text("".join(f'"{word}"\n' for word in escaped))
        options = [f"-dict={words}"] if pieces else []
        options.append(f"-artifact_prefix={tempfile.gettempdir()}/{name}-")
        arguments = ["-print_final_stats=1", *options, *sys.argv[2:], str(corpus)]
        atheris.instrument_all()
        atheris.Setup([sys.argv[0], *arguments], TARGETS[name])
        atheris.Fuzz()
    return 0


if __name__ == "__main__":
    os.environ.setdefault("PYTHONPATH", str(Path(__file__).resolve().parent.parent))
    sys.exit(main())
