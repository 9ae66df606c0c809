"""Framing: JSON as strict as the standard library, kept byte for byte; where text may end."""

import json
import re
import sys
from typing import NoReturn

import pytest
from engine import bounded
from hypothesis import example, given
from hypothesis import strategies as st

from storage.errors import FramingError, TooManyMessages
from storage.framing import (
    MESSAGES_MAX,
    Framing,
    frame,
    framing_of,
    message_lengths,
    text_boundary,
)

SPACE = st.sampled_from(["", "", "", " ", "\n", "\t \r\n"])
ESCAPES = st.sampled_from(
    [
        "\\n", "\\/", '\\"', "\\\\", "\\u0000", "\\ud800", "\\udc00\\ud800", "\\ud83d\\ude00",
        "\\u005d", ",", "[", "]", "{", "}", "é", "😀", "\x7f", "\u2028", "\ufeff",
    ]
)  # fmt: skip
STRINGS = st.lists(ESCAPES | st.sampled_from("abc 019:-"), max_size=6).map(
    lambda parts: '"' + "".join(parts) + '"'
)
NUMBERS = st.sampled_from(
    ["0", "-0", "1", "-1", "1.0", "1e5", "1E+05", "-1.5e-300", "1e999", "9" * 40, "0." + "1" * 30]
)
SCALARS = STRINGS | NUMBERS | st.sampled_from(["true", "false", "null"])


def arrays(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Array texts with space between."""
    spaced = st.tuples(SPACE, values, SPACE).map("".join)
    return st.tuples(st.lists(spaced, max_size=4).map(",".join), SPACE).map(
        lambda parts: "[" + "".join(parts) + "]"
    )


def objects(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Object texts; keys may repeat."""
    member = st.tuples(SPACE, STRINGS, SPACE, st.just(":"), SPACE, values, SPACE).map("".join)
    return st.lists(member, max_size=3).map(lambda members: "{" + ",".join(members) + "}")


PIECES = st.sampled_from(
    [
        b"", b",", b"[", b"]", b"{", b"}", b'"', b"\\", b"0", b"-", b".", b"e", b" ", b"\0", b":",
        b"NaN", b"\\u", b"\xff", b"\xc3", b"\xa9", b"\x0b", b"\xc2\xa0",
    ]
)  # fmt: skip
VALUES = st.recursive(SCALARS, lambda inner: arrays(inner) | objects(inner), max_leaves=12)
TEXTS = st.tuples(SPACE, VALUES | arrays(VALUES), SPACE).map("".join)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def values_of(body: bytes) -> object:
    """What the standard library reads, strictly: pairs and digits kept, no constants, no BOM."""
    return json.loads(
        body.decode(),
        parse_int=str,
        parse_float=str,
        parse_constant=_refuse,
        object_pairs_hook=lambda pairs: ("object", pairs),
    )


def check(body: bytes) -> None:
    """`frame` accepts exactly what the oracle does, and stores the elements as they were sent."""
    try:
        expected = values_of(body)
    except ValueError:
        with pytest.raises(FramingError):
            frame(Framing.JSON, body)
        return
    framed = frame(Framing.JSON, body)
    assert framed.lengths is not None
    messages = []
    at = 0
    for length in framed.lengths:
        assert framed.data[at + length - 1 : at + length] == b","
        messages.append(framed.data[at : at + length - 1])
        at += length
    assert at == len(framed.data)
    flat = isinstance(expected, list)
    assert [values_of(message) for message in messages] == (expected if flat else [expected])
    space = rb"[ \t\r\n]*"
    between = space + b"," + space
    joined = between.join(re.escape(message) for message in messages)
    if flat:
        joined = rb"\[" + space + joined + space + rb"\]"
    assert re.fullmatch(space + joined + space, body)
    assert all(message.strip(b" \t\r\n") == message for message in messages)
    if messages:
        assert message_lengths(framed.data) == framed.lengths


@bounded(300)
@given(TEXTS)
@example('["\\ud800", 1 , {"a":1,"a":2}]')
@example("[]")
@example(" [ ] ")
@example("[[]]")
@example("1")
def test_json_is_kept_as_sent(text: str) -> None:
    """Valid JSON is accepted, an array is flattened one level, and no byte of a message changes."""
    check(text.encode())


@bounded(400)
@given(TEXTS, st.data())
def test_mutated_json_is_judged_like_the_standard_library(text: str, data: st.DataObject) -> None:
    """A body with bytes changed, doubled or lost is accepted exactly if it is strict JSON."""
    body = bytearray(text.encode())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(body)))
        piece = data.draw(PIECES)
        body[at : at + data.draw(st.integers(0, 2))] = piece
    check(bytes(body))


@bounded(200)
@given(st.binary(max_size=30))
def test_arbitrary_bytes_are_judged_like_the_standard_library(body: bytes) -> None:
    """Garbage is a `FramingError` and nothing else."""
    check(body)


@pytest.mark.parametrize(
    "body",
    [
        b"NaN", b"[Infinity]", b'{"a":-Infinity}', b"\xef\xbb\xbf[1]", b"\xef\xbb\xbf1",
        b'"\xff"', b'["\xed\xa0\x80"]', b"[1,]", b"1 2", b"1,2", b"1],[2", b"]", b"[", b"",
        b" ", b"[1]]", b"[1][2]", b"'a'", b"01", b"+1", b"1.", b".5", b'"\n"', b'["\\x"]',
        b'["\\ud8"]', b'["\\ud800"] x', b'["\\ud800",]', b'["\\ud800" 1]', b'"\\ud800", 1',
        b"[1 // no\n]", b"\x00", b"[1]\x00", '{"a":1}'.encode("utf-16"),
        b"\xc2\xa0[1]",
    ],
)  # fmt: skip
def test_what_is_not_json_is_refused(body: bytes) -> None:
    """Constants, a byte order mark, bad UTF-8 and each near miss are refused with a sentence."""
    with pytest.raises(FramingError, match=r"^The .*\.$"):
        frame(Framing.JSON, body)


@pytest.mark.parametrize(
    ("body", "stored"),
    [
        (b'["\\ud800"]', b'"\\ud800",'),
        (b'[{"a":1,"a":2}]', b'{"a":1,"a":2},'),
        (b"[1e400, -0, 1.0]", b"1e400,-0,1.0,"),
        (b"9" * 6000, b"9" * 6000 + b","),
        (b'["\\ud800", ' + b"9" * 6000 + b"]", b'"\\ud800",' + b"9" * 6000 + b","),
        (b'[[1, 2], { "b" : [ ] }]', b'[1, 2],{ "b" : [ ] },'),
        (b'"\\u0000\\/"', b'"\\u0000\\/",'),
        (b"[]", b""),
    ],
)
def test_messages_are_stored_byte_for_byte(body: bytes, stored: bytes) -> None:
    """Lone surrogates, repeated keys, huge numbers and inner white space are stored as sent."""
    assert frame(Framing.JSON, body).data == stored


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
@pytest.mark.parametrize("extra", [b"", b'"\\ud800",'])
@pytest.mark.parametrize("depth", [100, 500, 900, 990, 1_000, 1_500, 100_000])
def test_deep_nesting_is_accepted_or_refused(opening: bytes, extra: bytes, depth: int) -> None:
    """Any depth is framed or a `FramingError`; a few hundred levels are always framed, and what
    was framed can be told apart again by a reader whose own stack is deeper."""
    closing = b"]" if opening == b"[" else b"}"
    body = b"[" + extra + opening * depth + b"1" + closing * depth + b"]"
    try:
        framed = frame(Framing.JSON, body)
    except FramingError:
        assert depth > 500
        return

    def deeper(frames: int) -> list[int]:
        return message_lengths(framed.data) if not frames else deeper(frames - 1)

    assert deeper(sys.getrecursionlimit() // 4) == framed.lengths


@bounded(60)
@given(st.lists(VALUES, min_size=1, max_size=6))
def test_message_lengths_are_told_of_joined_bodies(values: list[str]) -> None:
    """Messages of several bodies that were joined have the lengths they were stored with."""
    frames = [frame(Framing.JSON, f"[{value}]".encode()) for value in values]
    lengths = [length for framed in frames for length in framed.lengths or []]
    assert message_lengths(b"".join(framed.data for framed in frames)) == lengths


# Text


@bounded(200)
@given(st.text(max_size=12), st.integers(0, 50))
@example("aé", 2)
@example("😀", 3)
@example("\u20ac", 1)
def test_text_ends_on_a_character(text: str, cut: int) -> None:
    """Of valid UTF-8 that was cut anywhere, all whole characters are kept and nothing else."""
    data = text.encode()[:cut]
    end = text_boundary(data)
    assert data[:end].decode() == data.decode(errors="ignore")


@bounded(200)
@given(st.binary(max_size=12))
def test_text_boundary_of_garbage_keeps_all_but_a_character(data: bytes) -> None:
    """Of any bytes at most three are held back, and only what could begin a character."""
    end = text_boundary(data)
    assert len(data) - 3 <= end <= len(data)
    held = data[end:]
    assert not held or held[0] >= 0xC0


def test_other_framings_store_the_body() -> None:
    """Text and bytes are stored as they are, without messages."""
    for framing in (Framing.BYTES, Framing.TEXT):
        assert frame(framing, b"[1, \xff") == (b"[1, \xff", None)


@pytest.mark.parametrize(
    ("media_type", "framing"),
    [
        ("application/json", Framing.JSON),
        ("application/ld+json", Framing.BYTES),
        ("text/json", Framing.TEXT),
        ("text/plain", Framing.TEXT),
        ("text/event-stream", Framing.TEXT),
        ("application/octet-stream", Framing.BYTES),
        ("textual/plain", Framing.BYTES),
        ("", Framing.BYTES),
    ],
)
def test_media_type_decides_the_framing(media_type: str, framing: Framing) -> None:
    """Only `application/json` is JSON, and only `text/*` is text."""
    assert framing_of(media_type) is framing


@pytest.mark.parametrize(
    "body",
    [
        b"[" + b"0," * MESSAGES_MAX + b"0]",
        b"0," * MESSAGES_MAX + b"0",
        b"[[1,2]," + b'{"a":[3,4]},' * MESSAGES_MAX + b"5]",
        b"[" + b'",]",' * MESSAGES_MAX,
    ],
    ids=["array", "no array", "nested", "cut short"],
)
def test_too_many_messages(body: bytes) -> None:
    """A body with more messages than may be appended at once is refused before they are made."""
    with pytest.raises(TooManyMessages):
        frame(Framing.JSON, body)


def test_many_commas_in_few_messages() -> None:
    """Only messages are counted: one may have as many elements and brackets as it likes."""
    message = b'{"a":[' + b'[1,"],["],' * MESSAGES_MAX + b"0]}"
    assert frame(Framing.JSON, b"[%b,2]" % message) == (message + b",2,", [len(message) + 1, 2])
    most = b"[" + b"0," * (MESSAGES_MAX - 1) + b"0]"
    assert frame(Framing.JSON, most).lengths == [2] * MESSAGES_MAX
