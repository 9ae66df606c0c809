"""Decisions on appends: every kind, and the protocol's order of checks when several apply."""

from itertools import combinations

import pytest
from engine import JSON, START_MS, TEXT

from storage.framing import Framed
from storage.record import Producer
from storage.state import GRAIN_MS_MAX, GRAIN_MS_MIN, Append, Kind, Outcome, Stream, decide
from storage.stream_config import StreamConfig

PRODUCERS_MAX = 3
KNOWN = b"known"


def stream_of(content_type: str = JSON, *, closer: Producer | None = None) -> Stream:
    """An open stream with a tail, a producer at epoch 3, seq 5, and a Stream-Seq of "m"."""
    stream = Stream(1, b"s", StreamConfig(content_type), START_MS)
    stream.tail = 40
    stream.stream_seq = b"m"
    stream.producers[KNOWN] = (3, 5)
    stream.producer_count = 1
    stream.closer = closer
    return stream


def closed_stream(closer: Producer | None = None) -> Stream:
    """`stream_of`, closed."""
    stream = stream_of(closer=closer)
    stream.closed = True
    return stream


def post(
    body: bytes = b"1",
    media_type: str | None = JSON,
    producer: Producer | None = None,
    stream_seq: bytes | None = None,
    close: bool = False,
) -> Append:
    """An append to a JSON stream."""
    return Append(body, media_type if body else None, producer, stream_seq, close)


def by(epoch: int, seq: int, identity: bytes = KNOWN) -> Producer:
    """A producer's tuple."""
    return Producer(identity, epoch, seq)


CLOSER = by(3, 5)

# name: (stream, append, kind, epoch, seq, expected)
TABLE: dict[str, tuple[Stream, Append, Kind, int, int, int]] = {
    "plain": (stream_of(), post(), Kind.APPENDED, 0, 0, 0),
    "close only": (stream_of(), post(b"", close=True), Kind.APPENDED, 0, 0, 0),
    "close with data": (stream_of(), post(close=True), Kind.APPENDED, 0, 0, 0),
    "next seq": (stream_of(), post(producer=by(3, 6)), Kind.APPENDED, 0, 0, 0),
    "next epoch": (stream_of(), post(producer=by(4, 0)), Kind.APPENDED, 0, 0, 0),
    "far epoch": (stream_of(), post(producer=by(2**53 - 1, 0)), Kind.APPENDED, 0, 0, 0),
    "unknown producer": (stream_of(), post(producer=by(0, 0, b"new")), Kind.APPENDED, 0, 0, 0),
    "unknown producer, any epoch": (
        stream_of(), post(producer=by(9, 0, b"new")), Kind.APPENDED, 0, 0, 0,
    ),
    "Stream-Seq advances": (stream_of(), post(stream_seq=b"n"), Kind.APPENDED, 0, 0, 0),
    "Stream-Seq compares as bytes": (stream_of(), post(stream_seq=b"mm"), Kind.APPENDED, 0, 0, 0),
    "empty array": (stream_of(), post(b"[]"), Kind.EMPTY_ARRAY, 0, 0, 0),
    "empty array, closing": (stream_of(), post(b"[ ]", close=True), Kind.EMPTY_ARRAY, 0, 0, 0),
    "bad JSON": (stream_of(), post(b"{"), Kind.BAD_JSON, 0, 0, 0),
    "only white space": (stream_of(), post(b"  "), Kind.BAD_JSON, 0, 0, 0),
    "other type": (stream_of(), post(media_type=TEXT), Kind.TYPE_MISMATCH, 0, 0, 0),
    "Stream-Seq repeats": (stream_of(), post(stream_seq=b"m"), Kind.STREAM_SEQ, 0, 0, 0),
    "Stream-Seq falls back": (stream_of(), post(stream_seq=b"a"), Kind.STREAM_SEQ, 0, 0, 0),
    "Stream-Seq of another length": (stream_of(), post(stream_seq=b"10"), Kind.STREAM_SEQ, 0, 0, 0),
    "retry": (stream_of(), post(producer=by(3, 5)), Kind.DUPLICATE, 3, 5, 6),
    "old retry": (stream_of(), post(producer=by(3, 0)), Kind.DUPLICATE, 3, 5, 6),
    "gap": (stream_of(), post(producer=by(3, 7)), Kind.SEQ_GAP, 3, 5, 6),
    "unknown with a seq": (stream_of(), post(producer=by(0, 1, b"new")), Kind.SEQ_GAP, 0, 0, 0),
    "stale epoch": (stream_of(), post(producer=by(2, 6)), Kind.STALE_EPOCH, 3, 5, 6),
    "stale epoch at zero": (stream_of(), post(producer=by(2, 0)), Kind.STALE_EPOCH, 3, 5, 6),
    "epoch must begin at zero": (
        stream_of(), post(producer=by(4, 6)), Kind.EPOCH_START, 0, 0, 0,
    ),
    "closed": (closed_stream(), post(), Kind.CLOSED, 0, 0, 0),
    "closed, data and close": (closed_stream(), post(close=True), Kind.CLOSED, 0, 0, 0),
    "closed, closed again": (
        closed_stream(), post(b"", close=True), Kind.ALREADY_CLOSED, 0, 0, 0,
    ),
    "closed by a producer, closed again without": (
        closed_stream(CLOSER), post(b"", close=True), Kind.ALREADY_CLOSED, 0, 0, 0,
    ),
    "closing tuple repeated": (
        closed_stream(CLOSER), post(producer=CLOSER, close=True), Kind.DUPLICATE, 3, 5, 0,
    ),
    "closing tuple repeated with another body": (
        closed_stream(CLOSER), post(b"{", producer=CLOSER), Kind.DUPLICATE, 3, 5, 0,
    ),
    "closing tuple repeated, close only": (
        closed_stream(CLOSER), post(b"", producer=CLOSER, close=True), Kind.DUPLICATE, 3, 5, 0,
    ),
    "closed, older tuple": (closed_stream(CLOSER), post(producer=by(3, 4)), Kind.CLOSED, 3, 4, 0),
    "closed, stale epoch": (closed_stream(CLOSER), post(producer=by(2, 5)), Kind.CLOSED, 2, 5, 0),
    "closed, next seq": (closed_stream(CLOSER), post(producer=by(3, 6)), Kind.CLOSED, 3, 6, 0),
    "closed, same numbers of another producer": (
        closed_stream(CLOSER), post(producer=by(3, 5, b"new")), Kind.CLOSED, 3, 5, 0,
    ),
    "closed without a producer, close by one": (
        closed_stream(), post(b"", producer=by(3, 6), close=True), Kind.CLOSED, 3, 6, 0,
    ),
}  # fmt: skip


def judge(stream: Stream, append: Append) -> Kind:
    """The kind of the decision."""
    decision = decide(stream, append, PRODUCERS_MAX)
    return Kind.APPENDED if isinstance(decision, Framed) else decision.kind


@pytest.mark.parametrize("name", TABLE)
def test_decision(name: str) -> None:
    """Each situation has its answer, with the producer's state that the protocol wants in it."""
    stream, append, kind, epoch, seq, expected = TABLE[name]
    before = stream.undo_point(KNOWN)
    decision = decide(stream, append, PRODUCERS_MAX)
    assert stream.undo_point(KNOWN) == before, "deciding changed the stream"
    assert set(stream.producers) == {KNOWN}
    if kind is Kind.APPENDED:
        assert isinstance(decision, Framed)
        assert decision.data == (append.body + b"," if append.body else b"")
    else:
        assert isinstance(decision, Outcome)
        assert decision.kind is kind
        assert (decision.epoch, decision.seq, decision.expected) == (epoch, seq, expected)
        assert (decision.tail, decision.closed) == (stream.tail, stream.closed)
        assert bool(decision.detail) == (kind is Kind.BAD_JSON)


# One thing wrong each, in the order in which the protocol looks at them.
FAULTS = {
    "closed": Kind.CLOSED,
    "type": Kind.TYPE_MISMATCH,
    "producer": Kind.SEQ_GAP,
    "stream_seq": Kind.STREAM_SEQ,
    "json": Kind.BAD_JSON,
}


@pytest.mark.parametrize(
    "faults",
    [faults for count in range(1, 6) for faults in combinations(FAULTS, count)],
    ids="+".join,
)
def test_the_first_fault_in_protocol_order_is_told(faults: tuple[str, ...]) -> None:
    """Closed comes before content type, before producer, before Stream-Seq, before the JSON."""
    stream = closed_stream() if "closed" in faults else stream_of()
    append = post(
        b"{" if "json" in faults else b"1",
        TEXT if "type" in faults else JSON,
        by(3, 9) if "producer" in faults else None,
        b"a" if "stream_seq" in faults else b"z",
    )
    assert judge(stream, append) is FAULTS[faults[0]]


def test_a_retry_is_a_duplicate_whatever_its_stream_seq_and_body() -> None:
    """Producers are judged before Stream-Seq and JSON: a retry is never refused for those."""
    assert judge(stream_of(), post(b"{", producer=by(3, 5), stream_seq=b"a")) is Kind.DUPLICATE


def test_close_only_looks_at_producer_and_stream_seq() -> None:
    """A close without data is judged like data, but for its type and body."""
    stream = stream_of()
    assert judge(stream, post(b"", producer=by(3, 7), close=True)) is Kind.SEQ_GAP
    assert judge(stream, post(b"", producer=by(2, 0), close=True)) is Kind.STALE_EPOCH
    assert judge(stream, post(b"", stream_seq=b"a", close=True)) is Kind.STREAM_SEQ
    assert judge(stream, post(b"", producer=by(3, 6), close=True)) is Kind.APPENDED


def test_producers_of_a_stream_are_bounded() -> None:
    """One more producer than allowed is refused; those that are known go on."""
    stream = stream_of()
    stream.producer_count = PRODUCERS_MAX
    assert judge(stream, post(producer=by(0, 0, b"new"))) is Kind.TOO_MANY_PRODUCERS
    assert judge(stream, post(producer=by(0, 4, b"new"))) is Kind.SEQ_GAP
    assert judge(stream, post(producer=by(3, 6))) is Kind.APPENDED
    stream.producer_count -= 1
    assert judge(stream, post(producer=by(0, 0, b"new"))) is Kind.APPENDED


def test_nothing_is_decided_on_a_producer_that_is_not_loaded() -> None:
    """A stream that came from the index asks for a producer before it judges it, but not for one
    known to be new, and not when an earlier check decides."""
    stream = stream_of()
    stream.producers_complete = False
    unknown = post(producer=by(0, 0, b"new"))
    assert judge(stream, unknown) is Kind.PRODUCER_NOT_LOADED
    assert judge(stream, post(producer=by(3, 6))) is Kind.APPENDED
    assert judge(stream, post(media_type=TEXT, producer=by(0, 0, b"new"))) is Kind.TYPE_MISMATCH
    stream.producers[b"new"] = None
    assert judge(stream, unknown) is Kind.APPENDED
    stream.closed = True
    assert judge(stream, post(producer=by(0, 0, b"other"))) is Kind.CLOSED


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (StreamConfig("text/plain"), StreamConfig("Text/Plain; charset=utf-8"), True),
        (StreamConfig("application/json"), StreamConfig("text/plain"), False),
        (StreamConfig("a/b", 60), StreamConfig("a/b"), False),
        (StreamConfig("a/b", 60), StreamConfig("a/b", 60), True),
        (StreamConfig("a/b", 60), StreamConfig("a/b", 61), False),
        (StreamConfig("a/b", None, 5), StreamConfig("a/b", None, 5), True),
        (StreamConfig("a/b", None, 5), StreamConfig("a/b", 5), False),
    ],
)
def test_what_a_repeated_create_may_match(
    one: StreamConfig, other: StreamConfig, same: bool
) -> None:
    """Media type without case and parameters, TTL and Expires-At have to be the same."""
    assert one.matches(other) is same
    assert other.matches(one) is same


@pytest.mark.parametrize("ttl_s", [0, 1, 4, 60, 3_600, 10**9])
def test_what_is_written_down_is_never_before_the_deadline(ttl_s: int) -> None:
    """However often a stream is used, the deadline on record is at least half a grain after the
    real one, at most a grain, and is not written more often than each half grain."""
    stream = Stream(1, b"s", StreamConfig(TEXT, ttl_s), START_MS)
    persisted: int | None = None
    written_at = START_MS
    for step_ms in [0, 1, 10, 100, 999, 1_000, 1_001, 2_500, 40_000, 1, 1_000_000] * 3:
        now_ms = stream.used_ms = stream.used_ms + step_ms
        due = stream.slide(now_ms)
        grain = min(max(ttl_s * 125, GRAIN_MS_MIN), GRAIN_MS_MAX)
        if due is not None:
            assert persisted is None or now_ms - written_at > grain // 2
            persisted = stream.persisted_deadline_ms = due
            written_at = now_ms
        assert stream.deadline_ms == now_ms + ttl_s * 1_000
        assert persisted is not None
        assert stream.deadline_ms + grain // 2 <= persisted <= stream.deadline_ms + grain


def test_expiry_and_live_readers() -> None:
    """A reader keeps a stream with a TTL alive, but not past an Expires-At."""
    sliding = Stream(1, b"s", StreamConfig(TEXT, 10), START_MS)
    sliding.slide(START_MS)
    assert not sliding.expired(START_MS + 9_999)
    assert sliding.expired(START_MS + 10_000)
    fixed = Stream(2, b"s", StreamConfig(TEXT, None, START_MS + 10), START_MS)
    fixed.deadline_ms = START_MS + 10
    assert fixed.slide(START_MS + 5) is None
    sliding.live_readers = fixed.live_readers = 1
    assert not sliding.expired(START_MS + 10_000)
    assert fixed.expired(START_MS + 10)
