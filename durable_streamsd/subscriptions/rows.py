"""How subscriptions lie in the store's values (`storage.store.Store.put_value`).

    s/c SERIAL          Configuration
    s/k/signing         the private signing key, 32 bytes
    s/k/tokens          the secret that tokens are made with, 32 bytes
    s/l SERIAL PATH     a link: explicit, by pattern, cursor
    s/w SERIAL          Wake

SERIAL is 8 random bytes. The configuration is written last when a subscription is made and removed
first when it is deleted: rows of a serial without one are left-overs. Values are msgpack arrays.
"""

from typing import Final

import msgspec

from durable_streamsd.subscriptions.model import Configuration, Cursor
from durable_streamsd.subscriptions.wake import Phase, Wake
from storage.errors import CorruptData

__all__ = [
    "CONFIGURATIONS",
    "LINKS",
    "SERIAL_BYTES",
    "SIGNING_KEY",
    "SUBSCRIPTIONS",
    "TOKEN_SECRET",
    "WAKES",
    "decode_configuration",
    "decode_link",
    "decode_wake",
    "encode_configuration",
    "encode_link",
    "encode_wake",
]

SUBSCRIPTIONS: Final = b"s/"
"""What all keys begin with."""
CONFIGURATIONS: Final = b"s/c"
WAKES: Final = b"s/w"
LINKS: Final = b"s/l"
SIGNING_KEY: Final = b"s/k/signing"
TOKEN_SECRET: Final = b"s/k/tokens"
SERIAL_BYTES: Final = 8

_encode = msgspec.msgpack.Encoder().encode
_decode_configuration = msgspec.msgpack.Decoder(Configuration).decode
_decode_wake = msgspec.msgpack.Decoder(tuple[Phase, int, str, str, int, int]).decode
_decode_link = msgspec.msgpack.Decoder(tuple[bool, bool, int, int]).decode


def encode_configuration(config: Configuration) -> bytes:
    """The value under `CONFIGURATIONS`."""
    return _encode(config)


def decode_configuration(value: bytes) -> Configuration:
    """Undo `encode_configuration`. Raises `CorruptData`."""
    try:
        return _decode_configuration(value)
    except msgspec.MsgspecError as error:
        raise _damaged("configuration") from error


def encode_wake(wake: Wake) -> bytes:
    """The value under `WAKES`."""
    return _encode(tuple(wake))


def decode_wake(value: bytes) -> Wake:
    """Undo `encode_wake`. Raises `CorruptData`."""
    try:
        return Wake(*_decode_wake(value))
    except msgspec.MsgspecError as error:
        raise _damaged("wake") from error


def encode_link(explicit: bool, glob: bool, acked: Cursor) -> bytes:
    """The value under `LINKS`; empty, which removes it, for a link that is neither."""
    return _encode((explicit, glob, *acked)) if explicit or glob else b""


def decode_link(value: bytes) -> tuple[bool, bool, Cursor]:
    """Undo `encode_link`. Raises `CorruptData`."""
    try:
        explicit, glob, root, position = _decode_link(value)
    except msgspec.MsgspecError as error:
        raise _damaged("link") from error
    return explicit, glob, (root, position)


def _damaged(what: str) -> CorruptData:
    return CorruptData("the log", 0, f"a subscription's {what} is not what this release writes")
