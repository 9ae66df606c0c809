"""Stream paths: from the raw request target to the bytes that name a stream.

Percent-encoding is decoded exactly once, so `a%2Fb` and `a/b` name the same stream, and what is
stored, compared and logged is the decoded form. A path consists of non-empty UTF-8 segments
without control characters; `.` and `..` are no segments. A path never becomes a file name.
"""

import re
from functools import lru_cache
from typing import Final
from urllib.parse import quote_from_bytes, unquote_to_bytes

from durable_streamsd.core.problems import Code, Problem

__all__ = [
    "PATH_BYTES_MAX",
    "STREAM_ROOT",
    "check_path",
    "decode_path",
    "decode_segment",
    "is_reserved",
    "parse_path",
    "quote_path",
    "quote_segment",
]

STREAM_ROOT: Final = b"/v1/stream/"
PATH_BYTES_MAX: Final = 480
"""Decoded. The index refuses keys that are much longer."""
PARSED_PATHS_MAX: Final = 4_096
"""Remembered results; an encoded path has at most three times the bytes of the decoded one."""

_BAD_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_CONTROL = re.compile(rb"[\x00-\x1f\x7f]")


@lru_cache(PARSED_PATHS_MAX)
def parse_path(raw: bytes) -> bytes:
    """The stream path behind `STREAM_ROOT`, decoded. Raises `Problem`."""
    return check_path(decode_segment(raw))


def decode_path(raw: bytes) -> bytes:
    """A path or a part of one, decoded, its segments not looked at. Raises `Problem`."""
    return _check_characters(decode_segment(raw))


def decode_segment(raw: bytes) -> bytes:
    """Anything that is percent-encoded, decoded and not looked at. Raises `Problem`."""
    if _BAD_ESCAPE.search(raw):
        raise Problem(Code.BAD_PATH)
    return unquote_to_bytes(raw)


def check_path(path: bytes) -> bytes:
    """A stream path that is decoded already. Raises `Problem`."""
    if any(segment in (b"", b".", b"..") for segment in path.split(b"/")):
        raise Problem(Code.BAD_PATH)
    return _check_characters(path)


def _check_characters(path: bytes) -> bytes:
    if len(path) > PATH_BYTES_MAX or _CONTROL.search(path):
        raise Problem(Code.BAD_PATH)
    try:
        path.decode()
    except UnicodeDecodeError:
        raise Problem(Code.BAD_PATH) from None
    return path


def is_reserved(path: bytes) -> bool:
    """Whether a parsed path belongs to the control routes (protocol 6)."""
    return path == b"__ds" or path.startswith(b"__ds/")


def quote_segment(segment: bytes) -> bytes:
    """One segment of a URL's path, percent-encoded."""
    return quote_from_bytes(segment, safe="~!$&'()*+,;=:@").encode("ascii")


def quote_path(path: bytes) -> bytes:
    """The path in its canonical percent-encoding, for URLs."""
    return quote_from_bytes(path, safe="/~!$&'()*+,;=:@").encode("ascii")
