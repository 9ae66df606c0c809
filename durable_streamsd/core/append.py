"""POST: append, close, or both (protocol 5.2, 5.2.1, 5.3).

The order of the checks: malformed headers, empty body, missing Content-Type; then whether the
stream is there; then, inside `Store.append` and against accepted state: closed, content type,
producer, `Stream-Seq`, JSON. Nothing is answered before what the answer rests on is durable.
"""

from functools import partial

from durable_streamsd.auth.caller import Caller
from durable_streamsd.core.context import Context
from durable_streamsd.core.direct import Direct
from durable_streamsd.core.effects import Durable, Offload, Room
from durable_streamsd.core.headers import (
    parse_media_type,
    parse_producer,
    parse_stream_seq,
    says_closed,
)
from durable_streamsd.core.lines import CLOSED, next_offset_line, tail_lines
from durable_streamsd.core.lookup import look_up
from durable_streamsd.core.message import Request, Response
from durable_streamsd.core.problems import Code, Problem
from storage.errors import StorageError
from storage.framing import Framing, is_heavy, try_frame
from storage.state import Append, Kind, Outcome

__all__ = ["DirectAppend", "append"]


async def append(request: Request, path: bytes, context: Context) -> Response:
    """Answer a POST to the stream at `path`."""
    change = _parse(request.headers, request.body)
    outcome = await _decide(change, path, context)
    if outcome.batch is not None:
        await Durable(outcome.batch)
    return _answer(outcome, change, context)


class DirectAppend(Direct):
    """A POST with a body, to a stream in memory that takes it."""

    __slots__ = ("_change", "_path", "_plain")

    def __init__(self, path: bytes, headers: dict[bytes, bytes], caller: Caller | None) -> None:
        """Raises `Problem` for a malformed header."""
        change = _parse(headers, b"any")
        plain = change.producer is None and change.stream_seq is None and not change.close
        # A producer's next request has another number, so that its head does not come again.
        super().__init__(repeats=plain, caller=caller)
        self._path = path
        self._plain = plain
        self._change = change

    def attempt(self, body: bytes, context: Context) -> Response | None:
        if not body:
            return None
        store = context.store
        caller = self.caller
        if caller is not None and not caller.holds(store.now_ms):
            return None
        change = self._change
        if self._plain:
            assert change.media_type is not None
            stream = store.append_plain(self._path, change.media_type, body)
            if stream is None:
                return None
            tail = tail_lines(stream.root, stream.tail, closed=False)
            return Response(204, (context.common, tail), None, store.open_batch)
        if change.media_type == "application/json" and is_heavy(Framing.JSON, body):
            return None
        change.body = body
        try:
            found = store.find(self._path)
            if found is None or not store.accepting:
                return None
            outcome = store.append(found, change)
        except StorageError:
            return None
        if outcome.kind is not Kind.APPENDED or outcome.batch is None:
            return None
        response = _answer(outcome, change, context)
        response.rests_on = outcome.batch
        return response


def _parse(headers: dict[bytes, bytes], body: bytes) -> Append:
    close = says_closed(headers)
    producer = parse_producer(headers)
    stream_seq = parse_stream_seq(headers)
    if not body:
        # Whatever Content-Type a client library attaches to nothing is not looked at.
        if not close:
            raise Problem(Code.BODY_REQUIRED)
        return Append(body, None, producer, stream_seq, close)
    content_type = headers.get(b"content-type")
    if content_type is None:
        raise Problem(Code.CONTENT_TYPE_REQUIRED)
    return Append(body, parse_media_type(content_type), producer, stream_seq, close)


async def _decide(change: Append, path: bytes, context: Context) -> Outcome:
    """Have the store decide. Each wait is followed by looking again from the start."""
    store = context.store
    if change.media_type == "application/json" and is_heavy(Framing.JSON, change.body):
        change.framed = await Offload(partial(try_frame, Framing.JSON, change.body))
    while True:
        stream = await look_up(store.find, path)
        if not store.accepting:
            await Room()
            continue
        outcome = store.append(stream, change)
        if outcome.kind is not Kind.PRODUCER_NOT_LOADED:
            return outcome
        assert change.producer is not None
        identity = change.producer.id
        loaded = await Offload(partial(store.load_producer, stream, identity))
        store.admit_producer(stream, identity, loaded)


def _answer(outcome: Outcome, change: Append, context: Context) -> Response:
    kind = outcome.kind
    tail = tail_lines(outcome.root, outcome.tail, outcome.closed)
    if change.producer is None:
        if kind is Kind.APPENDED or kind is Kind.ALREADY_CLOSED:
            return Response(204, (context.common, tail))
    elif kind is Kind.APPENDED or kind is Kind.DUPLICATE:
        numbers = b"Producer-Epoch: %d\r\nProducer-Seq: %d\r\n" % (outcome.epoch, outcome.seq)
        headers = (context.common, tail, numbers)
        if kind is Kind.APPENDED and change.body:
            return Response(200, headers, b"")
        return Response(204, headers)
    raise _refusal(outcome, change)


_REFUSALS = {
    Kind.CLOSED: Code.CLOSED,
    Kind.TYPE_MISMATCH: Code.CONTENT_TYPE_MISMATCH,
    Kind.STALE_EPOCH: Code.STALE_EPOCH,
    Kind.EPOCH_START: Code.EPOCH_START,
    Kind.SEQ_GAP: Code.SEQUENCE_GAP,
    Kind.STREAM_SEQ: Code.STREAM_SEQ_REGRESSION,
    Kind.TOO_MANY_PRODUCERS: Code.TOO_MANY_PRODUCERS,
    Kind.BAD_JSON: Code.BAD_JSON,
    Kind.TOO_MANY_MESSAGES: Code.TOO_MANY_MESSAGES,
    Kind.EMPTY_ARRAY: Code.EMPTY_ARRAY,
    Kind.MISSING: Code.NOT_FOUND,
}


def _refusal(outcome: Outcome, change: Append) -> Problem:
    code = _REFUSALS[outcome.kind]
    lines = []
    if code is Code.CLOSED:
        lines += [CLOSED, next_offset_line(outcome.root, outcome.tail)]
    if code is Code.STALE_EPOCH:
        lines.append(b"Producer-Epoch: %d\r\n" % outcome.epoch)
    if change.producer is not None and code.status == 409:
        received = change.producer.seq
        # Beyond the specification, which has these headers for gaps only: a 409 without them, or
        # with an expectation below what it sent, makes the TypeScript producer send for ever.
        expected = outcome.expected if code is Code.SEQUENCE_GAP else received
        lines.append(b"Producer-Expected-Seq: %d\r\n" % expected)
        lines.append(b"Producer-Received-Seq: %d\r\n" % received)
    return Problem(code, *lines, detail=outcome.detail)
