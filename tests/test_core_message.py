"""Responses and frames as bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable_streamsd.core.message import Frame, Response, SharedResponse

LANE = b"Date: Thu, 01 Jan 1970 00:00:00 GMT\r\n"


def test_encoding_with_a_body() -> None:
    """Head, length, the lane's lines, blank line, body: in that order."""
    response = Response(200, (b"A: 1\r\nB: 2\r\n", b"C: 3\r\n"), b"body")
    head = b"HTTP/1.1 200 OK\r\nA: 1\r\nB: 2\r\nC: 3\r\nContent-Length: 4\r\n" + LANE + b"\r\n"
    assert response.encode(LANE) == head + b"body"
    assert response.encode_head(LANE) == head


@pytest.mark.parametrize("status", [204, 304, 200])
def test_no_body_has_no_length(status: int) -> None:
    """Without a body there is no Content-Length: 204, 304, HEAD and event streams want none."""
    encoded = Response(status, (b"A: 1\r\n",)).encode(LANE)
    assert encoded.endswith(b"\r\nA: 1\r\n" + LANE + b"\r\n")
    assert b"Content-Length" not in encoded
    assert Response(status, (b"A: 1\r\n",)).encode_head(LANE) == encoded


def test_an_empty_body_has_a_length() -> None:
    """An empty body is not the same as none."""
    assert b"\r\nContent-Length: 0\r\n" in Response(200, (), b"").encode(b"")


def test_fields_take_the_blocks_apart() -> None:
    """A lane on top of a library gets every field, in order, whatever blocks they came in."""
    response = Response(200, (b"A: 1\r\nB: b: c\r\n", b"", b"C: \r\n"))
    assert response.fields() == [("A", "1"), ("B", "b: c"), ("C", "")]
    assert Response(200, ()).fields() == []


def test_a_shared_answer_is_encoded_once() -> None:
    """Waiters of one wake get one bytes object; other lane lines make another encoding."""
    shared = SharedResponse(200, (b"A: 1\r\n",), b"body")
    first = shared.encode(LANE)
    assert shared.encode(LANE) is first
    assert shared.encode(b"Connection: close\r\n") != first
    assert shared.encode(LANE) == Response(200, (b"A: 1\r\n",), b"body").encode(LANE)


@given(st.binary(min_size=1, max_size=5_000))
def test_a_frame_is_one_chunk(data: bytes) -> None:
    """The chunked form holds the data after its length in hex, and is made once."""
    frame = Frame(data)
    size, _, rest = frame.chunked.partition(b"\r\n")
    assert int(size, 16) == len(data)
    assert rest == data + b"\r\n"
    assert frame.chunked is frame.chunked
    assert frame.plain == frame.data == data
    assert Frame(b"", data[:1], data[1:]).chunked == frame.chunked


def test_an_empty_frame_would_end_the_stream() -> None:
    """A chunk of length 0 is the terminator, so there is no empty frame."""
    with pytest.raises(ValueError, match="end the response"):
        Frame(b"")
