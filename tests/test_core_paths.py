"""Stream paths: decoded once, and nothing that could be taken for something else."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable_streamsd.core.paths import PATH_BYTES_MAX, is_reserved, parse_path, quote_path
from durable_streamsd.core.problems import Code, Problem

SEGMENTS = st.text(
    st.characters(exclude_characters="/", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=20
).filter(lambda segment: segment not in (".", ".."))
PATHS = st.lists(SEGMENTS, min_size=1, max_size=4).map(lambda parts: "/".join(parts).encode())


@given(PATHS)
def test_quoting_round_trip(path: bytes) -> None:
    """A path in canonical percent-encoding parses to itself, and needs no second decoding."""
    quoted = quote_path(path)
    assert re.fullmatch(rb"[A-Za-z0-9/~!$&'()*+,;=:@._%-]+", quoted)
    assert parse_path(quoted) == path


@given(PATHS)
def test_every_spelling_names_the_same_stream(path: bytes) -> None:
    """Escaping every byte, in either case, changes nothing."""
    assert parse_path(b"".join(b"%%%02X" % byte for byte in path)) == path
    assert parse_path(b"".join(b"%%%02x" % byte for byte in path)) == path


@given(st.binary(max_size=60))
def test_what_is_taken_is_well_formed(raw: bytes) -> None:
    """Whatever the target's bytes, the result is a well-formed path or a refusal."""
    try:
        path = parse_path(raw)
    except Problem as problem:
        assert problem.code is Code.BAD_PATH
        return
    assert path.decode().isprintable() or not re.search(rb"[\x00-\x1f\x7f]", path)
    assert not {b"", b".", b".."} & set(path.split(b"/"))
    assert parse_path(quote_path(path)) == path


def test_percent_encoding_is_decoded_once() -> None:
    """An escaped percent sign is a percent sign, not the start of another escape."""
    assert parse_path(b"a%252Fb") == b"a%2Fb"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"/",
        b"a/",
        b"/a",
        b"a//b",
        b".",
        b"..",
        b"a/../b",
        b"a/%2e%2E/b",
        b"a%2F..",
        b"%2e",
        b"a%00",
        b"a%0d%0aX:1",
        b"a%7f",
        b"a\tb",
        b"a%",
        b"a%4",
        b"a%g0",
        b"%ff",
        b"a%C3",
    ],
)
def test_refusals(raw: bytes) -> None:
    """Empty segments, dot segments, control bytes, broken escapes and bytes that are no UTF-8."""
    with pytest.raises(Problem) as caught:
        parse_path(raw)
    assert caught.value.code is Code.BAD_PATH


def test_length_is_that_of_the_decoded_path() -> None:
    """The limit holds for the bytes that are stored, not for their spelling."""
    assert parse_path(b"%61" * PATH_BYTES_MAX) == b"a" * PATH_BYTES_MAX
    with pytest.raises(Problem):
        parse_path(b"a" * (PATH_BYTES_MAX + 1))


@pytest.mark.parametrize("name", [b"...", b".hidden", b"a.b", b"__dsx", b"x/__ds", "ü".encode()])
def test_unusual_names_are_streams(name: bytes) -> None:
    """What only resembles a special name is an ordinary stream."""
    assert not is_reserved(parse_path(name))


@pytest.mark.parametrize("raw", [b"__ds", b"__ds/subscriptions/x", b"%5F_ds", b"__d%73%2Fx"])
def test_control_routes_are_recognised_in_every_spelling(raw: bytes) -> None:
    """No spelling of the reserved prefix reaches a stream."""
    assert is_reserved(parse_path(raw))
