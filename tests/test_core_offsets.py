"""Offset tokens: whole-string matching, sentinels, and tokens of other streams."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable_streamsd.core.offsets import (
    EARLIEST,
    NOW,
    START,
    START_TOKEN,
    Offset,
    format_offset,
    parse_offset,
)
from durable_streamsd.core.problems import Code, Problem

POSITIONS = st.integers(0, 10**16 - 1)
ROOTS = st.integers(1, 10**16 - 1)


def code_of(token: bytes) -> Code:
    """The code of the problem that a token is refused with."""
    with pytest.raises(Problem) as caught:
        parse_offset(token)
    return caught.value.code


@given(ROOTS, POSITIONS)
def test_token_round_trip(root: int, position: int) -> None:
    """A token parses to the position it was made from, and resolves in its own stream."""
    offset = parse_offset(format_offset(root, position))
    assert isinstance(offset, Offset)
    assert offset.position_in(root, tail=position) == position


@given(ROOTS, POSITIONS, POSITIONS)
def test_tokens_sort_like_positions(root: int, one: int, other: int) -> None:
    """Tokens of one stream compare like the positions they stand for."""
    tokens = format_offset(root, one), format_offset(root, other)
    assert (tokens[0] < tokens[1]) == (one < other)


def test_start_of_every_stream_is_the_zero_token() -> None:
    """Position 0 has one token, whatever the stream."""
    assert format_offset(7, 0) == START_TOKEN == b"0000000000000000_0000000000000000"
    assert parse_offset(START_TOKEN) == START
    assert parse_offset(b"-1") is EARLIEST
    assert parse_offset(b"now") is NOW


@given(st.binary(max_size=40))
def test_nothing_but_tokens_and_sentinels_is_taken(token: bytes) -> None:
    """Arbitrary bytes are refused unless the whole of them is a token or a sentinel."""
    if re.fullmatch(rb"[0-9]{16}_[0-9]{16}|-1|now", token):
        parse_offset(token)
    else:
        assert code_of(token) is Code.BAD_OFFSET


@pytest.mark.parametrize("spoiler", [b"\n", b"\r\n", b"\0", b" ", b",", b"/..", b"a"])
@pytest.mark.parametrize("token", [START_TOKEN, b"-1", b"now"])
def test_a_token_is_matched_as_a_whole(token: bytes, spoiler: bytes) -> None:
    """A valid token with anything before or after it is refused."""
    assert code_of(token + spoiler) is Code.BAD_OFFSET
    assert code_of(spoiler + token) is Code.BAD_OFFSET


@pytest.mark.parametrize("token", [b"", b"NOW", b"-2", b"0", "١".encode() * 16 + b"_" + b"1" * 16])
def test_near_misses_are_refused(token: bytes) -> None:
    """Empty, other case, other numbers and digits outside ASCII are no offsets."""
    assert code_of(token) is Code.BAD_OFFSET


def test_offset_of_another_stream_is_told_apart() -> None:
    """A token with another root is refused, but the zero token fits everywhere."""
    for position in (0, 5):
        with pytest.raises(Problem) as caught:
            Offset(3, position).position_in(root=4, tail=100)
        assert caught.value.code is Code.FOREIGN_OFFSET
    assert START.position_in(root=4, tail=0) == 0


def test_offset_past_the_tail_is_refused() -> None:
    """The tail itself can be read from, the position after it cannot."""
    assert Offset(3, 5).position_in(root=3, tail=5) == 5
    with pytest.raises(Problem) as caught:
        Offset(3, 6).position_in(root=3, tail=5)
    assert caught.value.code is Code.OFFSET_PAST_TAIL
