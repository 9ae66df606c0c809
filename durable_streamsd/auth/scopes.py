"""Scopes: rights on the streams whose paths match a pattern.

    read:chat/*             one scope: rights, a colon, a pattern
    read,append:users/42/** several rights
    admin:**                everything

The patterns are those of subscriptions (`subscriptions.patterns`): `*` is one segment, `**` any
number of them, none too. They are matched with the decoded path that the store knows, so no other
spelling of a path steps around one.

`admin` is every right on its streams, and that to make and delete subscriptions to them. `metrics`
counts on `**` only: who watches a daemon need not be able to read or change anything.

Left out: rights that are taken away again. A scope only ever adds.
"""

import enum
from collections.abc import Iterable
from functools import lru_cache
from typing import Final, NamedTuple

from durable_streamsd.subscriptions.patterns import Pattern, PatternError, parse_pattern

__all__ = [
    "EVERYTHING",
    "SCOPES_MAX",
    "Right",
    "Scope",
    "ScopeError",
    "Scopes",
    "parse_scope",
    "parse_scopes",
]

SCOPES_MAX: Final = 100
"""Of one token."""
REMEMBERED_MAX: Final = 8_192
"""Remembered answers, by scopes and path."""
EVERYTHING: Final[Pattern] = (b"**",)


class ScopeError(ValueError):
    """Not a scope; one sentence for whoever wrote it."""


class Right(enum.IntFlag):
    """What may be done with a stream, or (`METRICS`, on `**`) be known of all together."""

    READ = 1
    APPEND = 2
    CREATE = 4
    DELETE = 8
    ADMIN = 16
    METRICS = 32


_ALL = ~Right(0)
_RIGHTS: Final = {right.name.lower(): right for right in Right if right.name is not None}


class Scope(NamedTuple):
    """Rights on all streams that match a pattern."""

    rights: Right
    pattern: Pattern


def parse_scope(text: str) -> Scope:
    """The scope that `RIGHT[,RIGHT...]:PATTERN` says. Raises `ScopeError`."""
    names, colon, pattern = text.partition(":")
    if not colon:
        raise ScopeError(f"{text!r} has no colon: a scope is such as read:chat/* or admin:**.")
    rights = Right(0)
    for name in names.split(","):
        right = _RIGHTS.get(name)
        if right is None:
            raise ScopeError(f"{name!r} in {text!r} is none of the rights {', '.join(_RIGHTS)}.")
        rights |= right
    try:
        parsed = parse_pattern(pattern)
    except PatternError as error:
        raise ScopeError(f"in {text!r}: {error}") from None
    return Scope(_ALL if Right.ADMIN in rights else rights, parsed)


class Scopes:
    """All scopes of a caller; immutable. `readable` is one path that may be read besides."""

    __slots__ = ("_readable", "_scopes")

    def __init__(self, scopes: Iterable[Scope] = (), readable: bytes | None = None) -> None:
        self._scopes = tuple(scopes)
        self._readable = readable  # no scope: there may be an asterisk in a path

    def with_all(self, other: "Scopes") -> "Scopes":
        """These and those of another."""
        return Scopes((*self._scopes, *other._scopes), self._readable)

    def rights(self, path: bytes) -> int:
        """Every right on the stream at a path, a parsed one, as bits of `Right`."""
        if self._readable is None:
            return _remembered_rights(self, path)
        return _rights(self, path) | (Right.READ if path == self._readable else 0)

    def has(self, right: Right) -> bool:
        """Whether there is any stream, be it only a possible one, with this right."""
        return any(right in scope.rights for scope in self._scopes)

    def covers(self, right: Right, pattern: Pattern) -> bool:
        """Whether one scope has this right on whatever matches a pattern."""
        return any(
            right in scope.rights and _leads_through(scope.pattern, pattern, literal=False)
            for scope in self._scopes
        )

    def covers_prefix(self, right: Right, prefix: bytes) -> bool:
        """Whether one scope has this right on every path that begins with these bytes."""
        *segments, _ = prefix.split(b"/")  # the last one may go on
        return any(
            right in scope.rights
            and scope.pattern[-1:] == (b"**",)
            and _leads_through(scope.pattern, segments, literal=True)
            for scope in self._scopes
        )


def parse_scopes(text: str) -> Scopes:
    """Scopes with spaces between. Raises `ScopeError`."""
    words = text.split()
    if len(words) > SCOPES_MAX:
        raise ScopeError(f"there may be {SCOPES_MAX} scopes.")
    return Scopes(map(parse_scope, words))


def _rights(scopes: Scopes, path: bytes) -> int:
    segments = path.split(b"/")
    rights = 0
    for scope in scopes._scopes:
        if _leads_through(scope.pattern, segments, literal=True):
            rights |= scope.rights
    return rights


_remembered_rights = lru_cache(REMEMBERED_MAX)(_rights)


def _leads_through(pattern: Pattern, segments: Iterable[bytes], *, literal: bool) -> bool:
    """Whether a pattern matches a path; or, not `literal`, all paths that another pattern matches.

    A walk with the set of places in the pattern that were possible so far. Another pattern's `*` is
    a segment that nobody knows, and its `**` any number of them, for which the walk has to stand
    at a `**` itself.
    """
    places = _behind_empty(pattern, {0})
    end = len(pattern)
    for segment in segments:
        reached = set()
        for place in places:
            if place == end:
                continue
            wanted = pattern[place]
            if wanted == b"**":
                reached.add(place)
            elif (literal or segment != b"**") and wanted in (b"*", segment):
                reached.add(place + 1)
        if not reached:
            return False
        places = _behind_empty(pattern, reached)
    return end in places


def _behind_empty(pattern: Pattern, places: set[int]) -> set[int]:
    """These places, and those behind a `**` that matches nothing here."""
    more = {place + 1 for place in places if pattern[place : place + 1] == (b"**",)}
    return places | more
