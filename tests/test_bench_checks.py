"""The benchmark notices wrong answers: a server that is fast because it is wrong has no figure."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
import uvloop
from daemon import Daemon

from bench.append import check_merged
from bench.bodies import JsonBatches
from bench.catchup import CatchUpReader
from bench.connections import connect, until, watch
from bench.measure import LoadError, Messages
from bench.wire import Address, ChunkedBody, Client, Head, SizedBody, SseBody, parse_answer

BYTES = "application/octet-stream"
SECONDS_MAX = 10.0


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the streams of a running daemon are that answers reads in pieces of 64 KiB."""
    data_dir = tmp_path_factory.mktemp("bench-checks") / "data"
    with Daemon(data_dir, env={"DURABLE_STREAMSD_READ_BYTES_MAX": "65536"}) as daemon:
        yield f"{daemon.url}/v1/stream"


def test_a_chunked_body_may_be_cut_anywhere() -> None:
    """Two pieces give the body, wherever they meet, and the end is seen with the last byte."""
    raw = b"5\r\nhello\r\n00a;x=y\r\n, \r\nworld!\r\n0\r\n\r\n"
    for at in range(len(raw)):
        body = ChunkedBody()
        pieces = body.feed(raw[:at])
        assert not body.ended
        pieces += body.feed(raw[at:])
        assert body.ended
        assert b"".join(pieces) == b"hello, \r\nworld!"


@pytest.mark.parametrize(
    "raw",
    [b"x\r\n", b"2\r\nabc\r\n", b"1\r\na\r\n0\r\n\r\nb", b"1" * 300],
    ids=["no number", "longer than it says", "more than an answer", "no end of the line"],
)
def test_a_wrong_chunked_body_is_an_error(raw: bytes) -> None:
    """What is no chunk is not guessed at."""
    with pytest.raises(LoadError):
        ChunkedBody().feed(raw)


def test_more_than_a_body_of_known_length_is_an_error() -> None:
    """Bytes behind an answer are nobody's."""
    body = SizedBody(3)
    body.feed(b"ab")
    with pytest.raises(LoadError, match="more than an answer"):
        body.feed(b"cd")


def test_an_event_may_be_cut_anywhere() -> None:
    """The payload of SSE events is the same however the bytes were cut on the way."""
    text = b"event: data\ndata:one\n\nevent: control\ndata: {}\n\n"
    raw = b"%x\r\n%b\r\n0\r\n\r\n" % (len(text), text)
    for at in range(len(raw)):
        body = SseBody()
        assert body.feed(raw[:at]) + body.feed(raw[at:]) == b"one"
        assert body.ended


def test_an_answer_is_there_when_its_last_byte_is() -> None:
    """Neither before, for both ways to tell where it ends."""
    for fields in (b"Content-Length: 12", b"Transfer-Encoding: chunked"):
        body = b"2\r\nab\r\n0\r\n\r\n"
        data = b"HTTP/1.1 200 OK\r\n%b\r\n\r\n%b" % (fields, body)
        assert all(parse_answer(data[:at]) is None for at in range(len(data)))
        answer = parse_answer(data)
        assert answer is not None
        assert isinstance(answer.head, Head)
        assert answer.body == (body if fields.startswith(b"Content") else b"ab")


def test_a_stream_of_many_writers_may_mix_them_but_holds_each_message_once() -> None:
    """Any order across writers is right; lost, repeated, swapped and foreign messages are not."""
    one, other = Messages(0, 50), Messages(1, 50)
    written = [(one, 2), (other, 1)]
    a, b, c = one.at(0), one.at(1), other.at(0)
    for right in ([a, b, c], [a, c, b], [c, a, b]):
        check_merged(b"".join(right), written)
    foreign = Messages(2, 50).at(0)
    for messages in ([a, b], [a, c], [a, b, b, c], [b, a, c], [a, b, c, foreign], [a, b, c[:-1]]):
        with pytest.raises(LoadError):
            check_merged(b"".join(messages), written)


def test_what_was_read_back_is_compared_whole(url: str) -> None:
    """A byte that differs, is missing, or is too many is told, in a stream of several answers."""
    client = Client(url)
    messages = Messages(0, 50_000)
    content = messages.first(3)
    client.fill("whole", BYTES, map(messages.at, range(3)))
    client.check("whole", content)
    for wrong in _wrong(content):
        with pytest.raises(LoadError):
            client.check("whole", wrong)
    client.end()


def test_json_that_was_read_back_is_compared_message_by_message(url: str) -> None:
    """Batches come back as the messages that they were, in as many answers as it takes."""
    client = Client(url)
    batches = JsonBatches(0, 10_000, 10)
    client.fill("json", "application/json", map(batches.at, range(2)))
    client.check_json("json", batches.first(2))
    for wrong in _wrong(batches.first(2)):
        with pytest.raises(LoadError):
            client.check_json("json", wrong)
    client.end()


def test_a_catch_up_reader_compares_every_byte(url: str) -> None:
    """It follows the offsets to the tail, again and again, and accepts nothing but the content."""
    client = Client(url)
    messages = Messages(0, 50_000)
    content = messages.first(3)
    client.fill("caught-up", BYTES, map(messages.at, range(3)))
    client.end()
    assert _read_twice(url, content) == 2 * len(content)
    for wrong in _wrong(content):
        with pytest.raises(LoadError):
            _read_twice(url, wrong)


def _wrong(content: bytes) -> list[bytes]:
    """The same with the last byte changed, without it, and with one more."""
    return [content[:-1] + b"?", content[:-1], content + b"?"]


def _read_twice(url: str, content: bytes) -> int:
    """Let a reader read the stream two times, and return how many bytes that were."""

    async def read() -> int:
        reads_left = 2
        finished = watch()

        def has_read(reader: CatchUpReader, _: int) -> None:
            nonlocal reads_left
            reads_left -= 1
            if reads_left:
                reader.read()
            else:
                finished.set_result(None)

        address = Address.of(url)
        reader = CatchUpReader(address, "caught-up", content, has_read)
        await connect(address, [reader], SECONDS_MAX)
        reader.read()
        await until(finished, SECONDS_MAX, lambda: f"{reads_left} reads are left")
        reader.end()
        return reader.bytes_read

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(read())
