"""Request headers: what is taken, what is refused, and with which code."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable_streamsd.core.headers import (
    CONTENT_TYPE_BYTES_MAX,
    INTEGER_MAX,
    PRODUCER_ID_BYTES_MAX,
    STREAM_SEQ_BYTES_MAX,
    TIME_MS_MAX,
    etag_matches,
    format_rfc3339,
    parse_content_type,
    parse_expires_at,
    parse_media_type,
    parse_producer,
    parse_stream_seq,
    parse_ttl,
    says_closed,
)
from durable_streamsd.core.problems import Code, Problem
from storage.record import Producer


def refused(code: Code, parse: Callable[..., object], value: object) -> bool:
    """Whether a parser refuses a value with `code`."""
    try:
        parse(value)
    except Problem as problem:
        return problem.code is code
    return False


@pytest.mark.parametrize(
    ("value", "media_type"),
    [
        (b"text/plain", "text/plain"),
        (b"Text/Plain;charset=UTF-8", "text/plain"),
        (b'application/json ; charset="utf-8" ;', "application/json"),
        (b'multipart/mixed; boundary="a;b, \\" c"', "multipart/mixed"),
        (b"application/vnd.api+json", "application/vnd.api+json"),
    ],
)
def test_media_type(value: bytes, media_type: str) -> None:
    """Parameters and case are set aside for comparing, and kept for echoing."""
    assert parse_media_type(value) == media_type
    assert parse_content_type(value) == value.decode()


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"text",
        b"text/",
        b"/plain",
        b"text/plain, text/html",
        b"text/plain text/html",
        b"text/plain; charset",
        b'text/plain; a="b',
        b"text/plain\r\nX: 1",
        b"text/plain\n",
        b"text/pl\xc3\xa4in",
        b"text/" + b"x" * CONTENT_TYPE_BYTES_MAX,
    ],
)
def test_malformed_content_type(value: bytes) -> None:
    """Broken, repeated, over-long and non-ASCII types are refused."""
    assert refused(Code.BAD_CONTENT_TYPE, parse_media_type, value)


@given(st.integers(0, INTEGER_MAX))
def test_ttl(ttl_s: int) -> None:
    """Every whole number of seconds up to 2^53-1 is taken."""
    assert parse_ttl(b"%d" % ttl_s) == ttl_s


@pytest.mark.parametrize(
    "value",
    [
        *(b"", b"+1", b"-1", b"01", b"00", b"1.0", b"1e3", b"1 ", b" 1", b"1\n", b"0x1", b"1_0"),
        *(b"5, 5", b"%d" % (INTEGER_MAX + 1), b"9" * 10_000, "٣".encode()),
    ],
)
def test_malformed_ttl(value: bytes) -> None:
    """Signs, leading zeros, exponents and huge numbers are refused, never wrapped."""
    assert refused(Code.BAD_TTL, parse_ttl, value)


MOMENTS = st.datetimes(datetime(1970, 1, 2), datetime(9999, 12, 30), timezones=st.just(UTC)).map(
    lambda moment: moment.replace(microsecond=moment.microsecond // 1_000 * 1_000)
)
ZONES = st.integers(-23 * 60 - 59, 23 * 60 + 59).map(
    lambda minutes: timezone(timedelta(minutes=minutes))
)


@given(MOMENTS, ZONES)
def test_expires_at_in_any_zone(moment: datetime, zone: timezone) -> None:
    """The same moment parses to the same time, whatever offset from UTC it is written with."""
    expected = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
    assert parse_expires_at(moment.astimezone(zone).isoformat().encode()) == expected
    assert parse_expires_at(format_rfc3339(expected)) == expected


@pytest.mark.parametrize(
    ("value", "expires_ms"),
    [
        (b"2030-01-31T12:00:00Z", 1_896_091_200_000),
        (b"2030-01-31t12:00:00z", 1_896_091_200_000),
        (b"2030-01-31T12:00:00.5Z", 1_896_091_200_500),
        (b"2030-01-31T12:00:00.0001Z", 1_896_091_200_001),
        (b"2030-01-31T12:00:00.000000000000Z", 1_896_091_200_000),
        (b"2030-01-31T12:00:00-00:00", 1_896_091_200_000),
        (b"2016-12-31T23:59:60Z", 1_483_228_800_000),
        (b"2017-01-01T01:29:60.25+01:30", 1_483_228_800_250),
        (b"9999-12-31T23:59:59.9999Z", TIME_MS_MAX),
    ],
)
def test_expires_at(value: bytes, expires_ms: int) -> None:
    """A stream never expires early: fractions round up, a leap second is the one after it."""
    assert parse_expires_at(value) == expires_ms


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"tomorrow",
        b"1896091200",
        b"2030-01-31",
        b"2030-01-31T12:00:00",
        b"2030-01-31 12:00:00Z",
        b"2030-01-31T12:00Z",
        b"2030-01-31T12:00:00+0100",
        b"2030-01-31T12:00:00+24:00",
        b"2030-01-31T12:00:00+01:60",
        b"2030-01-31T24:00:00Z",
        b"2030-01-31T12:60:00Z",
        b"2030-01-31T12:00:61Z",
        b"2030-01-31T12:00:60Z",
        b"2030-02-30T12:00:00Z",
        b"2030-13-01T12:00:00Z",
        b"0000-01-01T12:00:00Z",
        b"1969-12-31T23:59:59Z",
        b"0001-01-01T00:00:00+01:00",
        b"9999-12-31T23:59:59-23:59",
        b"2030-01-31T12:00:00.Z",
        b"2030-01-31T12:00:00,5Z",
        b"2030-01-31T12:00:00Z\n",
        b"2030-W05-4T12:00:00Z",
        "٢030-01-31T12:00:00Z".encode(),
    ],
)
def test_malformed_expires_at(value: bytes) -> None:
    """Only RFC 3339 is taken: what ISO 8601 or a library allows beyond it is refused."""
    assert refused(Code.BAD_EXPIRES_AT, parse_expires_at, value)


@given(st.integers(0, TIME_MS_MAX))
def test_every_time_can_be_written(time_ms: int) -> None:
    """Whatever `parse_expires_at` returns can be told to a client again."""
    assert parse_expires_at(format_rfc3339(time_ms)) == time_ms


@pytest.mark.parametrize(
    ("value", "closed"),
    [(b"true", True), (b"TRUE", True), (b"True", True)]
    + [(junk, False) for junk in (b"false", b"yes", b"1", b"", b"true, true", b"truee")],
)
def test_closed(value: bytes, closed: bool) -> None:
    """Only `true` closes, in any case; everything else is as if absent."""
    assert says_closed({b"stream-closed": value}) is closed
    assert not says_closed({})


def test_stream_seq() -> None:
    """A sequence string is opaque, has 1 to 256 bytes, and may be left out."""
    longest = b"\xff" * STREAM_SEQ_BYTES_MAX
    assert parse_stream_seq({}) is None
    assert parse_stream_seq({b"stream-seq": longest}) == longest
    for value in (b"", longest + b"x"):
        assert refused(Code.BAD_STREAM_SEQ, parse_stream_seq, {b"stream-seq": value})


def producer_headers(identity: bytes, epoch: bytes, seq: bytes) -> dict[bytes, bytes]:
    """The three producer headers."""
    return {b"producer-id": identity, b"producer-epoch": epoch, b"producer-seq": seq}


@given(
    st.binary(min_size=1, max_size=256), st.integers(0, INTEGER_MAX), st.integers(0, INTEGER_MAX)
)
def test_producer(identity: bytes, epoch: int, seq: int) -> None:
    """All ids up to 256 bytes and all integers up to 2^53-1 are taken."""
    headers = producer_headers(identity, b"%d" % epoch, b"%d" % seq)
    assert parse_producer(headers) == Producer(identity, epoch, seq)


@pytest.mark.parametrize(
    "number", [b"", b"-1", b"+1", b"1.5", b"1e3", b"1abc", b"0x1", b"1 ", b"9007199254740992"]
)
def test_malformed_producer_numbers(number: bytes) -> None:
    """Epoch and seq are plain decimal integers."""
    for headers in (producer_headers(b"p", number, b"0"), producer_headers(b"p", b"0", number)):
        assert refused(Code.BAD_PRODUCER, parse_producer, headers)


def test_producer_headers_come_together() -> None:
    """None of them is no producer; one or two, or an unusable id, are an error."""
    assert parse_producer({b"stream-seq": b"1"}) is None
    whole = producer_headers(b"p", b"0", b"0")
    for name in whole:
        rest = {key: value for key, value in whole.items() if key != name}
        assert refused(Code.BAD_PRODUCER, parse_producer, rest)
        alone = {name: whole[name]}
        assert refused(Code.BAD_PRODUCER, parse_producer, alone)
    for identity in (b"", b"x" * (PRODUCER_ID_BYTES_MAX + 1)):
        headers = producer_headers(identity, b"0", b"0")
        assert refused(Code.BAD_PRODUCER, parse_producer, headers)


@pytest.mark.parametrize(
    ("condition", "matches"),
    [
        (b'"1:0:9t"', True),
        (b'W/"1:0:9t"', True),
        (b'"x", "1:0:9t"', True),
        (b'"x",W/"1:0:9t" , "y"', True),
        (b"*", True),
        (b'"1:0:9"', False),
        (b"1:0:9t", False),
        (b"", False),
        (b'"a*"', False),
        (b'"x1:0:9t"', False),
    ],
)
def test_if_none_match(condition: bytes, matches: bool) -> None:
    """Lists, weak tags and `*` match; parts of a tag and unquoted tags do not."""
    assert etag_matches(condition, b'"1:0:9t"') is matches
