"""The file of tokens: who has which scopes, by the hash of their token.

    {"version": 1,
     "tokens": [{"id": "9f1c0a3e", "name": "ci", "sha256": "…64 hex digits…",
                 "scopes": ["read,append:chat/**"],
                 "created_at": "2026-01-31T12:00:00Z", "expires_at": null}]}

A token is `dst_` and 32 random bytes in base64url. It cannot be guessed, so that a plain SHA-256
keeps it: nothing is gained by a slow hash. It is looked up by that hash, whose time tells nothing
about any stored one. The token itself is shown once, when it is made, and written nowhere.

The file as a whole is good or refused: half of it could be somebody's rights, or their revocation.
"""

import hashlib
import re
import secrets
from datetime import datetime
from typing import Final

import msgspec

from durable_streamsd.auth.caller import Caller, Source
from durable_streamsd.auth.scopes import SCOPES_MAX, ScopeError, Scopes, parse_scope

__all__ = [
    "FILE_BYTES_MAX",
    "NO_ID",
    "TOKENS_MAX",
    "TOKEN_PREFIX",
    "Document",
    "Entry",
    "TokenFileError",
    "TokenTable",
    "build_table",
    "decode",
    "digest_of",
    "encode",
    "new_token",
]

TOKEN_PREFIX: Final = "dst_"
TOKEN_RANDOM_BYTES: Final = 32
TOKENS_MAX: Final = 10_000
FILE_BYTES_MAX: Final = 16 << 20
NAME_CHARACTERS_MAX: Final = 128

NO_ID: Final = "00000000"
"""The id of no token."""

_ID = re.compile(r"[0-9a-f]{8}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


class TokenFileError(Exception):
    """The file cannot be used; the rest of a sentence that begins with its name."""


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One token, as it stands in the file."""

    id: str
    name: str
    sha256: str
    scopes: list[str]
    created_at: datetime
    expires_at: datetime | None = None

    @property
    def expires_ms(self) -> int | None:
        """When it ends, in ms since 1970."""
        return None if self.expires_at is None else int(self.expires_at.timestamp() * 1_000)


class Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole file."""

    version: int
    tokens: list[Entry]


class TokenTable:
    """The callers behind a file's tokens, by the token's digest and by its id."""

    def __init__(self) -> None:
        self.by_digest: dict[bytes, Caller] = {}
        self.by_id: dict[bytes, Caller] = {}
        self.entries: dict[bytes, Entry] = {}


def new_token() -> str:
    """A token that nobody has."""
    return TOKEN_PREFIX + secrets.token_urlsafe(TOKEN_RANDOM_BYTES)


def digest_of(token: bytes) -> bytes:
    """What is kept of a token."""
    return hashlib.sha256(token).digest()


def decode(content: bytes) -> Document:
    """A file's content, checked from end to end. Raises `TokenFileError`."""
    if len(content) > FILE_BYTES_MAX:
        raise TokenFileError(f"has more than {FILE_BYTES_MAX} bytes")
    try:
        document = msgspec.json.decode(content, type=Document)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise TokenFileError(f"is no file of tokens: {error}") from None
    if document.version != 1:
        raise TokenFileError(f"has version {document.version}; this program knows 1")
    if len(document.tokens) > TOKENS_MAX:
        raise TokenFileError(f"has more than {TOKENS_MAX} tokens")
    seen: set[str] = set()
    for entry in document.tokens:
        wrong = _wrong_with(entry)
        if wrong is None and seen & {entry.id, entry.sha256}:
            wrong = "is there twice"
        if wrong is not None:
            raise TokenFileError(f"has a token {entry.id!r} that {wrong}")
        seen |= {entry.id, entry.sha256}
    return document


def encode(document: Document) -> bytes:
    """Undo `decode`."""
    return msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n"


def build_table(document: Document, common: Scopes, old: TokenTable | None) -> TokenTable:
    """The table for a file. Who is in `old` with the very same entry is the same caller in both.

    Everybody also has the `common` scopes. Looks at nothing that changes, so it may run anywhere.
    """
    table = TokenTable()
    for entry in document.tokens:
        token_id = bytes.fromhex(entry.id)
        if old is not None and old.entries.get(token_id) == entry:
            caller = old.by_id[token_id]
        else:
            scopes = Scopes(map(parse_scope, entry.scopes)).with_all(common)
            caller = Caller(scopes, Source(), entry.expires_ms, token_id, f"token {entry.id}")
        table.by_digest[bytes.fromhex(entry.sha256)] = caller
        table.by_id[token_id] = caller
        table.entries[token_id] = entry
    return table


def _wrong_with(entry: Entry) -> str | None:
    if not _ID.fullmatch(entry.id) or entry.id == NO_ID:
        return "has an id that is not 8 hexadecimal digits, or zero"
    if not _DIGEST.fullmatch(entry.sha256):
        return "has a sha256 that is not 64 hexadecimal digits"
    if not 0 < len(entry.name) <= NAME_CHARACTERS_MAX or not entry.name.isprintable():
        return f"needs a name of 1 to {NAME_CHARACTERS_MAX} printable characters"
    if _ID.fullmatch(entry.name):
        return "has a name that looks like an id"
    if not 0 < len(entry.scopes) <= SCOPES_MAX:
        return f"needs 1 to {SCOPES_MAX} scopes"
    for moment in (entry.created_at, entry.expires_at):
        if moment is not None and moment.tzinfo is None:
            return "has a time without its offset from UTC"
    try:
        for scope in entry.scopes:
            parse_scope(scope)
    except ScopeError as error:
        return f"has a bad scope: {error}"
    return None
