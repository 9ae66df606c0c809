"""Reader tokens: short-lived, for reading one stream, and fit to stand in a URL.

A browser's `EventSource` cannot send headers. So a backend, which has a real token, asks for a
reader token and hands it to the page, which sends it in the query, as `access_token` (RFC 6750,
2.3). What leaks with a URL is then worth little: one stream, read only, some minutes.

    dsr_ base64url(expiry, s since 1970, u64 · id of the token that it was made with, 4 bytes, or
    zeroes · HMAC-SHA-256 of these and the stream's path)

The path is not in the token, only under its signature: whoever asks names it anyway. With the token
that it was made with in the file, it ends when that one does.
"""

import base64
import binascii
import hmac
import struct
from typing import Final, NamedTuple

from durable_streamsd.auth.token_file import NO_ID

__all__ = [
    "QUERY_PARAMETER",
    "READER_TOKEN_PREFIX",
    "ReaderToken",
    "make_reader_token",
    "read_reader_token",
    "reader_key",
]

READER_TOKEN_PREFIX: Final = "dsr_"
QUERY_PARAMETER: Final = "access_token"

_BODY = struct.Struct(">Q4s")
_TAG_BYTES = 32
_TEXT_BYTES: Final = (_BODY.size + _TAG_BYTES) * 4 // 3 + 1
assert _TEXT_BYTES == 59

_NO_ID: Final = bytes.fromhex(NO_ID)


class ReaderToken(NamedTuple):
    """What a token says."""

    expires_s: int
    token_id: bytes
    """Empty if it rests on none of the file."""


def reader_key(secret: bytes) -> bytes:
    """The key for these tokens, from a secret that has other uses."""
    return hmac.digest(secret, b"durable-streamsd reader token", "sha256")


def make_reader_token(key: bytes, path: bytes, expires_s: int, token_id: bytes) -> str:
    """A token for reading the stream at a path until then."""
    body = _BODY.pack(expires_s, token_id or _NO_ID)
    token = body + hmac.digest(key, body + path, "sha256")
    return READER_TOKEN_PREFIX + base64.urlsafe_b64encode(token).rstrip(b"=").decode("ascii")


def read_reader_token(key: bytes, text: bytes, path: bytes) -> ReaderToken | None:
    """What a token says, if it was made for this path; whether it has expired is not looked at."""
    encoded = text.removeprefix(READER_TOKEN_PREFIX.encode())
    if len(encoded) != _TEXT_BYTES:
        return None
    try:
        token = base64.b64decode(encoded + b"=" * (-len(encoded) % 4), b"-_", validate=True)
    except binascii.Error:
        return None
    body, tag = token[: _BODY.size], token[_BODY.size :]
    if not hmac.compare_digest(hmac.digest(key, body + path, "sha256"), tag):
        return None
    expires_s, token_id = _BODY.unpack(body)
    return ReaderToken(expires_s, b"" if token_id == _NO_ID else token_id)
