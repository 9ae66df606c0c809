"""Events as bytes, judged by a strict parser that follows the SSE specification."""

import json
import re
from base64 import b64decode
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable_streamsd.core.sse import HEARTBEAT, control_event, data_event, sendable_bytes
from storage.framing import Framing


class Event(NamedTuple):
    """A dispatched event."""

    type: str
    data: str


def parse_events(stream: bytes) -> list[Event]:
    """Parse an event stream; every deviation from what the daemon means to send is an error.

    Beyond the specification: the stream ends after a blank line, fields other than `event` and
    `data` do not occur, and no event is dispatched without a type.
    """
    assert stream.endswith(b"\n\n")
    lines = re.split("\r\n|\r|\n", stream.decode("utf-8", "replace"))
    events = []
    kind: str | None = None
    data: list[str] = []
    for line in lines[:-1]:
        if not line:
            if data:
                assert kind is not None, "an event without a type"
                events.append(Event(kind, "\n".join(data)))
            else:
                assert kind is None, "an event without data"
            kind, data = None, []
            continue
        field, colon, value = line.partition(":")
        assert colon, f"a line without a colon: {line!r}"
        value = value.removeprefix(" ")
        if field == "event":
            assert kind is None, "two types"
            kind = value
        elif field == "data":
            data.append(value)
        else:
            assert not field, f"an unknown field: {line!r}"
    return events


LINE_ENDS = st.sampled_from(["\r", "\n", "\r\n", "\n\n", "\r\r", "\x0b", "\u2028", "\x85"])
TRAPS = st.sampled_from([" ", "  ", "data:", "event: control", ":", "\ufeff", "data: {}"])
TEXTS = (
    st.lists(st.one_of(LINE_ENDS, TRAPS, st.text(max_size=8)), min_size=1).map("".join).filter(bool)
)


@given(TEXTS)
def test_text_round_trip(text: str) -> None:
    """Text survives, spaces at line starts and final line ends too; line ends become LF."""
    encoded = data_event(Framing.TEXT, text.encode("utf-8", "surrogatepass"))
    (event,) = parse_events(encoded)
    expected = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
    assert event == Event("data", re.sub("\r\n|\r", "\n", expected))


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10),
    lambda children: (
        st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3)
    ),
    max_leaves=8,
)


@given(st.lists(JSON_VALUES, min_size=1, max_size=5), st.sampled_from([None, 1, "\t"]))
def test_json_is_one_array(values: list[object], indent: int | str | None) -> None:
    """Messages come as one array, also when they were sent with line ends between their parts."""
    stored = b"".join(json.dumps(value, indent=indent).encode() + b"," for value in values)
    (event,) = parse_events(data_event(Framing.JSON, stored))
    assert event.type == "data"
    assert json.loads(event.data) == values


@given(st.binary(min_size=1, max_size=300))
def test_bytes_are_base64(data: bytes) -> None:
    """Anything else comes as base64 of a length that is a multiple of 4."""
    (event,) = parse_events(data_event(Framing.BYTES, data))
    assert len(event.data) % 4 == 0
    assert b64decode(event.data, validate=True) == data


@given(st.binary(min_size=1, max_size=100))
def test_bytes_that_are_no_text_cannot_forge_an_event(data: bytes) -> None:
    """Whatever is in a text stream, it stays one event."""
    events = parse_events(data_event(Framing.TEXT, data) + control_event(b"x", 1, True, False))
    assert [event.type for event in events] == ["data", "control"]


def test_format_is_what_clients_and_the_conformance_suite_match() -> None:
    """One space after `event:`, none after `data:`."""
    assert data_event(Framing.TEXT, b"one\ntwo") == b"event: data\ndata:one\ndata:two\n\n"
    assert data_event(Framing.JSON, b'{"a":1},2,') == b'event: data\ndata:[{"a":1},2]\n\n'
    assert control_event(b"0_1", 7, True, False) == (
        b'event: control\ndata:{"streamNextOffset":"0_1","streamCursor":"7","upToDate":true}\n\n'
    )


@given(TEXTS, st.integers(4, 20))
def test_events_of_any_size_make_up_the_text(text: str, limit: int) -> None:
    """A text read piece by piece, each decoded by itself, is the text."""
    encoded = text.encode("utf-8", "replace")
    pieces, position = [], 0
    while position < len(encoded):
        chunk = encoded[position : position + limit]
        size = sendable_bytes(chunk, up_to_date=position + limit >= len(encoded))
        (event,) = parse_events(data_event(Framing.TEXT, chunk[:size]))
        pieces.append(event.data)
        position += size
    assert "".join(pieces) == re.sub("\r\n|\r", "\n", encoded.decode())


@pytest.mark.parametrize(
    ("text", "up_to_date", "size"),
    [
        (b"a\r", False, 1),
        (b"a\r", True, 2),
        (b"\r", False, 1),
        (b"a\xe2\x82", False, 1),
        (b"a\xe2\x82", True, 1),
        (b"\xe2\x82", True, 0),
        (b"\xe2\x82", False, 2),
        (b"a\r\xe2", False, 1),
        (b"\r\xf0\x90\x80", False, 1),
        (b"a\x82\x82\x82\x82", True, 5),
    ],
)
def test_sendable_bytes(text: bytes, up_to_date: bool, size: int) -> None:
    """Begun characters are held back, a CR only where more follows; not at the cost of progress."""
    assert sendable_bytes(text, up_to_date) == size


@pytest.mark.parametrize(
    ("up_to_date", "closed", "expected"),
    [
        (False, False, {"streamCursor": "7"}),
        (True, False, {"streamCursor": "7", "upToDate": True}),
        (True, True, {"upToDate": True, "streamClosed": True}),
    ],
)
def test_control(up_to_date: bool, closed: bool, expected: dict[str, object]) -> None:
    """Flags are present or absent, never false; a closed stream has no cursor."""
    (event,) = parse_events(control_event(b"0_1", 7, up_to_date, closed))
    assert event.type == "control"
    assert json.loads(event.data) == {"streamNextOffset": "0_1", **expected}


def test_heartbeat_is_no_event() -> None:
    """A heartbeat is a comment that dispatches nothing."""
    assert parse_events(HEARTBEAT.data) == []
