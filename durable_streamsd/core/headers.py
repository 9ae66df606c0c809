"""Request headers: from bytes to values, or a `Problem`.

Everything is matched as a whole. A lane joins the values of a repeated header with a comma, which
none of these formats allows (free-form strings aside), so a repeated header is refused rather than
read one way here and another way in front.
"""

import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final

from durable_streamsd.core.problems import Code, Problem
from storage.record import Producer, Retention

__all__ = [
    "INTEGER_MAX",
    "etag_matches",
    "format_rfc3339",
    "parse_content_type",
    "parse_expires_at",
    "parse_fork_sub_offset",
    "parse_media_type",
    "parse_producer",
    "parse_retention",
    "parse_stream_seq",
    "parse_ttl",
    "says_closed",
]

INTEGER_MAX: Final = 2**53 - 1
"""The largest integer that every client can represent (protocol 5.2.1)."""
CONTENT_TYPE_BYTES_MAX: Final = 256
STREAM_SEQ_BYTES_MAX: Final = 256
PRODUCER_ID_BYTES_MAX: Final = 256
TIME_MS_MAX: Final = 253_402_300_799_999
"""The end of the year 9999: RFC 3339 cannot say more."""
MEDIA_TYPES_MAX: Final = 256
"""Remembered results of `parse_media_type`."""

_INTEGER = re.compile(rb"0|[1-9][0-9]{0,15}")
_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_QUOTED = rb'"(?:[\t \x21\x23-\x5b\x5d-\x7e]|\\[\t -\x7e])*"'
_MEDIA_TYPE = re.compile(
    rb"(?P<type>%b/%b)(?:[ \t]*;[ \t]*(?:%b=(?:%b|%b))?)*"
    % (_TOKEN, _TOKEN, _TOKEN, _TOKEN, _QUOTED)
)
_RFC3339 = re.compile(
    r"(\d{4}-\d{2}-\d{2})[Tt]((?:[01]\d|2[0-3]):\d{2}:)(\d{2})(?:\.(\d+))?"
    r"(?:[Zz]|([+-])([01]\d|2[0-3]):([0-5]\d))",
    re.ASCII,
)
_ENTITY_TAG = re.compile(rb'"[\x21\x23-\x7e\x80-\xff]*"')
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def says_closed(headers: dict[bytes, bytes]) -> bool:
    """Whether `Stream-Closed` is true, in any case; else it is as if absent (protocol 4.1)."""
    value = headers.get(b"stream-closed")
    return value is not None and value.lower() == b"true"


def parse_content_type(value: bytes) -> str:
    """A `Content-Type`, checked and otherwise as it came: it is echoed like that."""
    parse_media_type(value)
    return value.decode("ascii")


@lru_cache(MEDIA_TYPES_MAX)
def parse_media_type(value: bytes) -> str:
    """The media type of a `Content-Type`, in lower case and without parameters."""
    match = _MEDIA_TYPE.fullmatch(value) if len(value) <= CONTENT_TYPE_BYTES_MAX else None
    if match is None:
        raise Problem(Code.BAD_CONTENT_TYPE)
    return match["type"].decode("ascii").lower()


def parse_ttl(value: bytes) -> int:
    """`Stream-TTL` in seconds."""
    ttl_s = _integer(value)
    if ttl_s is None:
        raise Problem(Code.BAD_TTL)
    return ttl_s


def parse_retention(headers: dict[bytes, bytes]) -> Retention | None:
    """How much of the stream is to be kept, if the request says so: an extension."""
    keep_bytes = headers.get(b"stream-retain-bytes")
    keep_s = headers.get(b"stream-retain-seconds")
    if keep_bytes is None and keep_s is None:
        return None
    return Retention(_parse_amount(keep_bytes), _parse_amount(keep_s), asked=True)


def _parse_amount(value: bytes | None) -> int | None:
    amount = None if value is None else _integer(value)
    if value is not None and not amount:
        raise Problem(Code.BAD_RETENTION)
    return amount


def parse_fork_sub_offset(value: bytes) -> int:
    """`Stream-Fork-Sub-Offset`: bytes, or messages of a JSON stream."""
    sub_offset = _integer(value)
    if sub_offset is None:
        raise Problem(Code.BAD_FORK_SUB_OFFSET)
    return sub_offset


def parse_expires_at(value: bytes) -> int:
    """`Stream-Expires-At` in ms since 1970; a fraction of a ms counts as a whole one.

    A leap second is the second that follows it, and must stand at the end of a UTC day.
    """
    match = _RFC3339.fullmatch(value.decode("latin-1"))
    if match is None:
        raise Problem(Code.BAD_EXPIRES_AT)
    date, clock, second, fraction, sign, hours, minutes = match.groups()
    leap = second == "60"
    try:
        moment = datetime.fromisoformat(f"{date}T{clock}{'59' if leap else second}+00:00")
        if sign:
            offset = timedelta(hours=int(hours), minutes=int(minutes))
            moment = moment - offset if sign == "+" else moment + offset
        if leap and (moment.hour, moment.minute) != (23, 59):
            raise ValueError("no leap second there")
    except (ValueError, OverflowError):
        raise Problem(Code.BAD_EXPIRES_AT) from None
    digits = f"{fraction or ''}000"
    fraction_ms = int(digits[:3]) + bool(digits[3:].strip("0"))
    expires_ms = (moment - _EPOCH) // timedelta(milliseconds=1) + leap * 1_000 + fraction_ms
    if expires_ms < 0:
        raise Problem(Code.BAD_EXPIRES_AT)
    return min(expires_ms, TIME_MS_MAX)


def format_rfc3339(time_ms: int) -> bytes:
    """A time in ms since 1970 as RFC 3339, in UTC."""
    moment = _EPOCH + timedelta(milliseconds=time_ms)
    timespec = "milliseconds" if time_ms % 1_000 else "seconds"
    return moment.isoformat(timespec=timespec).replace("+00:00", "Z").encode("ascii")


def parse_stream_seq(headers: dict[bytes, bytes]) -> bytes | None:
    """`Stream-Seq`, opaque bytes."""
    value = headers.get(b"stream-seq")
    if value is not None and not 0 < len(value) <= STREAM_SEQ_BYTES_MAX:
        raise Problem(Code.BAD_STREAM_SEQ)
    return value


def parse_producer(headers: dict[bytes, bytes]) -> Producer | None:
    """The three producer headers, all or none (protocol 5.2.1)."""
    identity = headers.get(b"producer-id")
    epoch_value = headers.get(b"producer-epoch")
    seq_value = headers.get(b"producer-seq")
    if identity is None and epoch_value is None and seq_value is None:
        return None
    epoch = None if epoch_value is None else _integer(epoch_value)
    seq = None if seq_value is None else _integer(seq_value)
    if not identity or len(identity) > PRODUCER_ID_BYTES_MAX or epoch is None or seq is None:
        raise Problem(Code.BAD_PRODUCER)
    return Producer(identity, epoch, seq)


def etag_matches(if_none_match: bytes, etag: bytes) -> bool:
    """Whether `If-None-Match` names `etag` (with its quotes): a list, weak or not, or `*`."""
    return if_none_match == b"*" or etag in _ENTITY_TAG.findall(if_none_match)


def _integer(value: bytes) -> int | None:
    if _INTEGER.fullmatch(value):
        number = int(value)
        if number <= INTEGER_MAX:
            return number
    return None
