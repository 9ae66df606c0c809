"""Callback and claim tokens: which wake of which subscription their bearer was given.

    base64url(SERIAL 8 bytes · generation u64 · expiry, s since 1970, u64 · HMAC-SHA-256 of these)

A token is good for one generation, and the wake's own state decides whether that is still the
current one (`wake.Wake.is_held`); the expiry only bounds how long a lost token is worth anything
(protocol 12.9).
"""

import base64
import binascii
import hmac
import struct
from typing import Final, NamedTuple

__all__ = ["SECRET_BYTES", "TOKEN_LIFETIME_S", "Token", "TokenError", "make_token", "read_token"]

SECRET_BYTES: Final = 32
TOKEN_LIFETIME_S: Final = 24 * 3_600
"""A wake that is worked on for longer has to be given up and claimed again."""

_BODY = struct.Struct(">8sQQ")
_TAG_BYTES = 32


class TokenError(Exception):
    """A token that is not, or no more, worth anything; `code` is the protocol's."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class Token(NamedTuple):
    """What a token says."""

    serial: bytes
    generation: int
    expires_s: int


def make_token(secret: bytes, serial: bytes, generation: int, now_ms: int) -> str:
    """A token for a wake that is issued or claimed now."""
    body = _BODY.pack(serial, generation, now_ms // 1_000 + TOKEN_LIFETIME_S)
    token = body + hmac.digest(secret, body, "sha256")
    return base64.urlsafe_b64encode(token).rstrip(b"=").decode("ascii")


def read_token(secret: bytes, text: bytes, now_ms: int) -> Token:
    """What a token says, once its signature holds. Raises `TokenError`."""
    try:
        token = base64.b64decode(text + b"=" * (-len(text) % 4), b"-_", validate=True)
    except binascii.Error:
        raise TokenError("TOKEN_INVALID") from None
    if len(token) != _BODY.size + _TAG_BYTES:
        raise TokenError("TOKEN_INVALID")
    body, tag = token[: _BODY.size], token[_BODY.size :]
    if not hmac.compare_digest(hmac.digest(secret, body, "sha256"), tag):
        raise TokenError("TOKEN_INVALID")
    found = Token(*_BODY.unpack(body))
    if now_ms // 1_000 >= found.expires_s:
        raise TokenError("TOKEN_EXPIRED")
    return found
