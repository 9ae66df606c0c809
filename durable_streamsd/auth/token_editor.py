"""Changing the file of tokens: one writer at a time, and whole files only.

A writer holds a lock beside the file from reading to replacing it. The new content goes into a file
of its own, which is synced and then takes the old one's name, so that whoever reads sees the old
file or the new one; then the directory is synced. A new file is its owner's alone (0600); an
existing one keeps owner and mode, so that a daemon of another user can go on reading it.
"""

import contextlib
import fcntl
import os
import secrets
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from durable_streamsd.auth.token_file import (
    NO_ID,
    TOKENS_MAX,
    Document,
    Entry,
    TokenFileError,
    decode,
    digest_of,
    encode,
    new_token,
)

__all__ = ["create_token", "read_tokens", "revoke_tokens"]


def read_tokens(path: Path) -> list[Entry]:
    """What there is. Raises `TokenFileError`."""
    try:
        return decode(path.read_bytes()).tokens
    except OSError as error:
        raise TokenFileError(f"cannot be read: {error.strerror}") from None


def create_token(
    path: Path, name: str, scopes: list[str], expires_at: datetime | None
) -> tuple[Entry, str]:
    """Add a token; its entry and the token itself, which nothing else knows.

    The file is made if there is none. Raises `TokenFileError`.
    """
    with _locked(path) as target:
        tokens = read_tokens(target) if target.exists() else []
        if any(entry.name == name for entry in tokens):
            raise TokenFileError(f"has a token with the name {name!r} already")
        if len(tokens) >= TOKENS_MAX:
            raise TokenFileError(f"has {TOKENS_MAX} tokens, and may have no more")
        token = new_token()
        entry = Entry(
            id=_new_id({entry.id for entry in tokens}),
            name=name,
            sha256=digest_of(token.encode()).hex(),
            scopes=scopes,
            created_at=datetime.now(UTC).replace(microsecond=0),
            expires_at=expires_at,
        )
        _replace(target, Document(version=1, tokens=[*tokens, entry]))
    return entry, token


def revoke_tokens(path: Path, wanted: list[str]) -> list[Entry]:
    """Remove the tokens with these ids or names; all of them or, if one is missing, none.

    Raises `TokenFileError`.
    """
    with _locked(path) as target:
        tokens = read_tokens(target)
        revoked = [entry for entry in tokens if {entry.id, entry.name} & {*wanted}]
        known = {text for entry in revoked for text in (entry.id, entry.name)}
        for text in wanted:
            if text not in known:
                raise TokenFileError(f"has no token {text!r}")
        kept = [entry for entry in tokens if entry not in revoked]
        _replace(target, Document(version=1, tokens=kept))
    return revoked


def _new_id(known: set[str]) -> str:
    while (new := secrets.token_hex(4)) in known or new == NO_ID:
        pass
    return new


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[Path]:
    """Keep other writers out; the file's real path."""
    target = path.resolve()  # a link stays one
    lock_path = target.with_name(target.name + ".lock")
    try:
        lock = os.open(lock_path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise TokenFileError(f"cannot be locked: {lock_path}: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield target
    except OSError as error:
        raise TokenFileError(f"cannot be changed: {error.strerror}") from None
    finally:
        os.close(lock)


def _replace(target: Path, document: Document) -> None:
    """Let the file have this content, durably. Raises OSError, `TokenFileError`."""
    content = encode(document)
    decode(content)  # what would be refused later is not written
    handle, name = tempfile.mkstemp(prefix=target.name + ".", dir=target.parent)  # 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            with contextlib.suppress(FileNotFoundError):
                before = target.stat()
                if (before.st_uid, before.st_gid) != (os.geteuid(), os.getegid()):
                    os.fchown(file.fileno(), before.st_uid, before.st_gid)
                os.fchmod(file.fileno(), before.st_mode & 0o777)
            os.fsync(file.fileno())
        Path(name).replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise
    directory = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
