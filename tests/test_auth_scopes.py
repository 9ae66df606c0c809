"""Scopes: what a pattern gives, and that none gives more than it says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable_streamsd.auth.scopes import EVERYTHING, Right, ScopeError, Scopes, parse_scope
from durable_streamsd.subscriptions.patterns import Pattern, Patterns

WORDS = st.sampled_from([b"a", b"b", b"c", b"ab"])
SEGMENTS = WORDS | st.sampled_from([b"*", b"**"])
PATHS = st.lists(SEGMENTS, min_size=1, max_size=6).map(b"/".join)
"""Of streams: an asterisk in one is a character like any other."""


def pattern_of(segments: list[bytes]) -> Pattern:
    kept: list[bytes] = []
    for segment in segments:
        if segment != b"**" or kept[-1:] != [b"**"]:
            kept.append(segment)
    return tuple(kept)


PATTERNS = st.lists(SEGMENTS, min_size=1, max_size=5).map(pattern_of)


def text(pattern: Pattern) -> str:
    return b"/".join(pattern).decode()


def readable(*patterns: Pattern) -> Scopes:
    return Scopes(parse_scope(f"read:{text(pattern)}") for pattern in patterns)


def matches(pattern: Pattern, path: bytes) -> bool:
    """By the subscriptions' own matching."""
    patterns: Patterns[int] = Patterns()
    patterns.add(pattern, 1)
    return any(patterns.match(path))


@given(PATTERNS, PATHS)
def test_a_scope_matches_what_a_subscription_would(pattern: Pattern, path: bytes) -> None:
    """There is one language of patterns, whoever reads it."""
    assert bool(readable(pattern).rights(path) & Right.READ) == matches(pattern, path)


@given(PATTERNS, PATTERNS, PATHS)
def test_what_covers_a_pattern_has_all_its_paths(
    outer: Pattern, inner: Pattern, path: bytes
) -> None:
    """Who may do something with a whole pattern may do it with each path that it matches."""
    if readable(outer).covers(Right.READ, inner) and matches(inner, path):
        assert matches(outer, path)


@given(PATTERNS, PATHS, st.lists(SEGMENTS, max_size=4))
def test_what_covers_a_prefix_has_all_its_paths(
    pattern: Pattern, prefix: bytes, more: list[bytes]
) -> None:
    """Who may list a prefix may read every path that begins with it, also within a segment."""
    if readable(pattern).covers_prefix(Right.READ, prefix):
        assert matches(pattern, prefix)
        assert matches(pattern, prefix + b"x" + b"".join(b"/" + segment for segment in more))


@pytest.mark.parametrize(
    ("outer", "inner", "covers"),
    [
        ("**", "**", True),
        ("**", "a/*/b", True),
        ("a/**", "a/*", True),
        ("a/**", "a/**", True),
        ("a/*", "a/b", True),
        ("a/*", "a/*", True),
        ("**/b", "a/**/b", True),
        ("a/*", "a/**", False),
        ("a/b", "a/*", False),
        ("*", "**", False),
        ("a/**", "**", False),
        ("*/*", "**", False),
    ],
)
def test_which_patterns_cover_which(outer: str, inner: str, covers: bool) -> None:
    """The usual cases, by hand."""
    scopes = Scopes([parse_scope(f"admin:{outer}")])
    assert scopes.covers(Right.ADMIN, parse_scope(f"read:{inner}").pattern) is covers


@pytest.mark.parametrize(
    ("pattern", "prefix", "covers"),
    [
        ("**", b"", True),
        ("users/42/**", b"users/42/", True),
        ("users/42/**", b"users/42", False),
        ("users/*/**", b"users/7/x", True),
        ("users/42/*", b"users/42/", False),
        ("users/42/**", b"", False),
    ],
)
def test_which_prefixes_may_be_listed(pattern: str, prefix: bytes, covers: bool) -> None:
    """A prefix without its slash goes on in other streams."""
    assert Scopes([parse_scope(f"read:{pattern}")]).covers_prefix(Right.READ, prefix) is covers


def test_rights_add_up_by_path() -> None:
    """Each scope adds its rights where it matches; admin has all of them; nothing else is there."""
    scopes = Scopes(map(parse_scope, ["read:a/*", "append,create:a/b", "admin:z/**"]))
    assert scopes.rights(b"a/c") == Right.READ
    assert scopes.rights(b"a/b") == Right.READ | Right.APPEND | Right.CREATE
    assert scopes.rights(b"z/1/2") == sum(Right)
    assert scopes.rights(b"a") == scopes.rights(b"a/b/c") == 0
    assert scopes.has(Right.DELETE)
    assert not Scopes().has(Right.READ)
    assert not scopes.covers(Right.ADMIN, EVERYTHING)


def test_one_readable_path_is_no_pattern() -> None:
    """A reader of a stream whose name has asterisks reads that stream and no other."""
    scopes = Scopes(readable=b"a/**")
    assert scopes.rights(b"a/**") == Right.READ
    assert scopes.rights(b"a/b") == scopes.rights(b"a") == 0
    assert not scopes.has(Right.READ)


@pytest.mark.parametrize(
    ("scope", "said"),
    [
        ("read", "has no colon"),
        (
            "write:a",
            "'write' in 'write:a' is none of the rights read, append, create, delete, admin",
        ),
        (":a", "'' in ':a' is none"),
        ("read,:a", "'' in 'read,:a' is none"),
        ("READ:a", "'READ' in"),
        ("read:", "1 to 480 bytes"),
        ("read:a//b", "empty segments"),
        ("read:a/../b", "'..'"),
        ("read:a*", "stand for whole segments"),
        ("read:" + "x" * 481, "1 to 480 bytes"),
    ],
)
def test_a_bad_scope_is_refused_with_its_reason(scope: str, said: str) -> None:
    """The sentence says what is wrong with which part."""
    with pytest.raises(ScopeError) as caught:
        parse_scope(scope)
    assert said in str(caught.value)
