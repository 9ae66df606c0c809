"""Globs: what they match, however they are built, and finding those of thousands that do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable_streamsd.subscriptions.patterns import (
    PATTERN_BYTES_MAX,
    PATTERN_GLOBSTARS_MAX,
    PatternError,
    Patterns,
    literal_prefix,
    parse_pattern,
)

NAMES = st.sampled_from(["a", "b", "c", "*", "**", "a*", "é"])
PATHS = st.lists(st.sampled_from(["a", "b", "c", "*", "**", "a*", "é"]), min_size=1, max_size=6)
SEGMENTS = st.lists(st.sampled_from(["a", "b", "é", "*", "**"]), min_size=1, max_size=6)


def naive(pattern: list[str], path: list[str]) -> bool:
    """The protocol's words, one case after the other."""
    if not pattern:
        return not path
    first, rest = pattern[0], pattern[1:]
    if first == "**":
        return any(naive(rest, path[at:]) for at in range(len(path) + 1))
    return bool(path) and first in ("*", path[0]) and naive(rest, path[1:])


def matches(pattern: str, path: str) -> bool:
    """Whether one pattern, alone, matches."""
    patterns: Patterns[str] = Patterns()
    patterns.add(parse_pattern(pattern), "x")
    return list(patterns.match(path.encode())) == ["x"]


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("events/*", "events/a", True),
        ("events/*", "events", False),
        ("events/*", "events/a/b", False),
        ("/events/*/", "events/a", True),
        ("events/**", "events", True),
        ("events/**", "events/a/b", True),
        ("events/**", "eventsx/a", False),
        ("**", "a", True),
        ("**/c", "c", True),
        ("**/c", "a/b/c", True),
        ("a/**/**/c", "a/c", True),
        ("*", "*", True),
        ("a/*/c", "a/**/c", True),
        ("tenants/*/orders/**/done", "tenants/7/orders/x/y/done", True),
        ("tenants/*/orders/**/done", "tenants/7/8/orders/done", False),
    ],
)
def test_what_the_protocol_says(pattern: str, path: str, expected: bool) -> None:
    """`*` is one segment, `**` any number of them."""
    assert matches(pattern, path) is expected


@given(SEGMENTS, PATHS)
def test_any_pattern_matches_as_the_words_say(pattern: list[str], path: list[str]) -> None:
    """The walk down the trie and the naive recursion agree."""
    if pattern.count("**") <= PATTERN_GLOBSTARS_MAX:
        assert matches("/".join(pattern), "/".join(path)) is naive(pattern, path)


@given(st.lists(SEGMENTS, max_size=12), PATHS, st.data())
def test_many_patterns_are_found_and_forgotten(
    all_segments: list[list[str]], path: list[str], data: st.DataObject
) -> None:
    """Of many patterns in one trie exactly those that match are found; nothing stays of removed
    ones."""
    patterns: Patterns[int] = Patterns()
    parsed = [parse_pattern("/".join(segments)) for segments in all_segments]
    for number, pattern in enumerate(parsed):
        patterns.add(pattern, number)
    removed = {number for number in range(len(parsed)) if data.draw(st.booleans())}
    for number in removed:
        patterns.remove(parsed[number], number)
        patterns.remove(parsed[number], number)
    expected = [
        number
        for number, segments in enumerate(all_segments)
        if number not in removed and naive(segments, path)
    ]
    assert sorted(patterns.match("/".join(path).encode())) == expected
    for number, pattern in enumerate(parsed):
        patterns.remove(pattern, number)
    assert not patterns


def test_patterns_that_are_built_to_backtrack() -> None:
    """What costs a backtracking matcher longer than anybody waits is answered all the same."""
    pattern = "/".join(["**", "a"] * PATTERN_GLOBSTARS_MAX + ["b"])
    path = "/".join(["a"] * 240)
    assert not matches(pattern, path)
    assert matches(pattern, path + "/b")


def test_a_path_among_ten_thousand_patterns() -> None:
    """Patterns that begin otherwise are not looked at."""
    patterns: Patterns[int] = Patterns()
    for number in range(10_000):
        kind = number % 4
        segments = [f"t/{number}/**", f"*/{number}", f"**/{number}/x", f"t/{number}/*/y"][kind]
        patterns.add(parse_pattern(segments), number)
    assert list(patterns.match(b"t/4/a/b")) == [4]
    assert list(patterns.match(b"q/5")) == [5]
    assert list(patterns.match(b"q/r/6/x")) == [6]
    assert list(patterns.match(b"t/7/u/y")) == [7]
    assert list(patterns.match(b"t/7/u/z")) == []


@given(SEGMENTS, PATHS)
def test_the_literal_beginning_is_a_beginning(pattern: list[str], path: list[str]) -> None:
    """Every path that matches begins with the pattern's literal part, which a listing asks for."""
    if pattern.count("**") <= PATTERN_GLOBSTARS_MAX and naive(pattern, path):
        prefix = literal_prefix(parse_pattern("/".join(pattern)))
        assert "/".join(path).encode().startswith(prefix)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "a//b",
        "a/./b",
        "../a",
        "user-*",
        "***",
        "a" * (PATTERN_BYTES_MAX + 1),
        "/".join(["**", "a"] * (PATTERN_GLOBSTARS_MAX + 1)),
    ],
)
def test_what_is_no_pattern(text: str) -> None:
    """Empty and relative segments, wildcards within a segment, and too much of anything."""
    with pytest.raises(PatternError):
        parse_pattern(text)
