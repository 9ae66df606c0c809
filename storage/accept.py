"""Accepting: what a decided change does to a stream's accepted state and to the open batch.

Every function notes on the batch's undo list what it changes, writes one record, and leaves the
stream resting on the batch. Whoever makes a stream rest on a batch first notes its tail: plain
appends that follow need not. Whether a change may be made is decided before.
"""

from storage.framing import Framed
from storage.pending import PendingBatch
from storage.record import (
    Configuration,
    Entry,
    Record,
    RecordType,
    encode,
    encode_plain_append,
)
from storage.state import Append, Stream

PRODUCER_ID_BYTES_MAX = 480


def accept_create(
    batch: PendingBatch, stream: Stream, framed: Framed, closed: bool, now_ms: int
) -> None:
    """A new stream, with content or without. Its path is the caller's to give and to take back.

    A fork's source is one fork richer.
    """
    config = stream.config
    origin = stream.origin
    start = 0
    if origin is not None:
        start = origin.seam
        stream.earliest = stream.durable_earliest = origin.source.earliest
        _count_forks(batch, origin.source, 1)
    stream.deadline_ms = config.expires_ms
    stream.persisted_deadline_ms = stream.slide(now_ms) or config.expires_ms
    stream.deadline_sequence = batch.sequence
    size = len(framed.data)
    stream.tail = start + size
    stream.closed = closed
    record = Record(
        RecordType.CREATE,
        stream.id,
        start,
        size,
        closes=closed,
        deadline_ms=stream.persisted_deadline_ms,
        configuration=Configuration(
            stream.path,
            config.content_type.encode("latin-1"),
            config.ttl_s,
            config.expires_ms,
            config.retention,
        ),
        fork=None if origin is None else origin.record(),
    )
    batch.reclaims = False
    batch.add_record(stream, encode(record))
    if size:
        batch.add_payload(stream, start, framed.data, framed.lengths)


def accept_append(
    batch: PendingBatch, stream: Stream, append: Append, framed: Framed, now_ms: int
) -> None:
    """An append, a close, or both, with the producer state and `Stream-Seq` that came with it.

    Raises `ValueError` for a producer id that the index could not take.
    """
    producer = append.producer
    producer_id = None if producer is None else producer.id
    if producer_id is not None and len(producer_id) > PRODUCER_ID_BYTES_MAX:
        raise ValueError("the index takes no such producer id, and so could never go on")
    batch.undo.append((stream.restore, stream.undo_point(producer_id)))
    start = stream.tail
    size = len(framed.data)
    deadline_ms = stream.slide(now_ms)
    stream.tail = start + size
    record = Record(
        RecordType.APPEND,
        stream.id,
        start,
        size,
        producer,
        append.stream_seq,
        append.close,
        deadline_ms,
    )
    if producer is not None:
        if stream.producers.get(producer.id) is None:
            stream.producer_count += 1
        stream.producers[producer.id] = (producer.epoch, producer.seq)
    if append.stream_seq is not None:
        stream.stream_seq = append.stream_seq
    if append.close:
        stream.closed = True
        stream.closer = producer
    if deadline_ms is not None:
        stream.persisted_deadline_ms = deadline_ms
        stream.deadline_sequence = batch.sequence
    batch.reclaims = False
    batch.add_record(stream, encode(record))
    if size:
        batch.add_payload(stream, start, framed.data, framed.lengths)


def accept_plain_append(
    batch: PendingBatch, stream: Stream, data: bytes, lengths: list[int] | None
) -> None:
    """The append that carries nothing but payload, to a stream without a TTL; the common one.

    It does what `accept_append` does then, at a third of the cost: what came before it needs to be
    remembered only once in a batch, for the batch is taken back as a whole.
    """
    start = stream.tail
    size = len(data)
    if stream.last_sequence != batch.sequence:
        batch.undo.append((stream.restore_tail, (start, stream.last_sequence)))
    stream.tail = start + size
    batch.add_record(stream, encode_plain_append(stream.id, start, size))
    batch.add_payload(stream, start, data, lengths)


def accept_delete(batch: PendingBatch, stream: Stream) -> None:
    """The end of a stream; with forks, it is kept for them.

    The last fork of a source that was only kept for it takes that along, and so on up the chain.
    """
    while not stream.forks:
        _end(batch, stream, RecordType.DELETE)
        if stream.origin is None:
            return
        source = stream.origin.source
        _count_forks(batch, source, -1)
        if not source.soft_deleted:
            return
        stream = source
    if not stream.soft_deleted:
        _end(batch, stream, RecordType.SOFT_DELETE)


def _end(batch: PendingBatch, stream: Stream, kind: RecordType) -> None:
    batch.undo.append((stream.restore_family, _family(stream)))
    stream.deleted = True
    stream.soft_deleted = kind is RecordType.SOFT_DELETE
    batch.add_record(stream, encode(Record(kind, stream.id, stream.tail)))


def _count_forks(batch: PendingBatch, source: Stream, change: int) -> None:
    """A fork of `source` begins or ends: what is told of the source rests on that too."""
    batch.undo.append((source.restore_family, _family(source)))
    source.forks += change
    batch.touch(source)


def _family(stream: Stream) -> tuple[int, int, bool, bool, int]:
    """What `Stream.restore_family` needs."""
    return (
        stream.tail,
        stream.forks,
        stream.deleted,
        stream.soft_deleted,
        stream.last_sequence,
    )


def accept_deadline(batch: PendingBatch, stream: Stream, deadline_ms: int) -> None:
    """A deadline that is written down again, because the stream was accessed."""
    batch.undo.append((stream.restore, stream.undo_point(None)))
    stream.persisted_deadline_ms = deadline_ms
    stream.deadline_sequence = batch.sequence
    record = Record(RecordType.TOUCH, stream.id, stream.tail, deadline_ms=deadline_ms)
    batch.add_record(stream, encode(record))


def accept_value(batch: PendingBatch, key: bytes, value: bytes) -> None:
    """What another subsystem keeps under a key from now on; empty: nothing."""
    batch.add_value(key, value, encode(Record(RecordType.VALUE, 0, 0, value=Entry(key, value))))


def accept_cut(batch: PendingBatch, stream: Stream, earliest: int) -> None:
    """What lies below an offset is dropped; nobody is told before the batch is durable."""
    undo = (stream.tail, stream.earliest, stream.last_sequence)
    batch.undo.append((stream.restore_earliest, undo))
    stream.earliest = earliest
    batch.add_record(stream, encode(Record(RecordType.RETAIN, stream.id, earliest)))
    batch.cuts[stream] = earliest
