"""A stream in memory: its accepted and its durable state, and the decision on an append.

*Accepted* state includes what is not durable yet; every decision is made against it. *Durable*
state is what readers see. `last_sequence` is the batch that the newest accepted change rests on: an
answer about accepted state may be told only when that batch is durable.

Left out: reading and writing. `storage.store` applies what is decided here.
"""

import enum
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from storage.errors import CommitError, FramingError, TooManyMessages
from storage.framing import Framed, try_frame
from storage.record import Producer
from storage.runs import NO_RUNS, Run, RunList
from storage.stream_config import StreamConfig

if TYPE_CHECKING:
    from storage.family import Origin

GRAIN_MS_MIN = 4_000
GRAIN_MS_MAX = 60_000


class Stream:
    """One incarnation of a stream. Attributes are read-only outside `storage`."""

    __slots__ = (
        "closed",
        "closer",
        "config",
        "created_ms",
        "deadline_ms",
        "deadline_sequence",
        "deleted",
        "durable",
        "durable_closed",
        "durable_earliest",
        "durable_soft_deleted",
        "durable_tail",
        "earliest",
        "forks",
        "gone",
        "id",
        "last_sequence",
        "live_readers",
        "origin",
        "path",
        "persisted_deadline_ms",
        "producer_count",
        "producers",
        "producers_complete",
        "resident_forks",
        "root",
        "runs",
        "shadowed",
        "soft_deleted",
        "stream_seq",
        "tail",
        "used_ms",
    )

    def __init__(self, stream_id: int, path: bytes, config: StreamConfig, created_ms: int) -> None:
        self.id = stream_id
        self.root = stream_id
        self.path = path
        self.config = config
        self.created_ms = created_ms
        # accepted
        self.tail = 0
        self.earliest = 0
        """What is below was dropped (`storage.retention`); a fork begins with its source's."""
        self.closed = False
        self.closer: Producer | None = None
        self.stream_seq: bytes | None = None
        self.producers: dict[bytes, tuple[int, int] | None] = {}
        self.producers_complete = True
        self.producer_count = 0
        self.deleted = False
        self.soft_deleted = False
        """Deleted, and kept for its forks. What is `deleted` and not this is no more."""
        self.forks = 0
        """How many streams that are there were forked from this one."""
        self.last_sequence = 0
        # durable
        self.durable = False
        self.durable_tail = 0
        self.durable_earliest = 0
        self.durable_closed = False
        self.gone = False
        self.durable_soft_deleted = False
        self.shadowed: Stream | None = None
        # memory and time
        self.origin: Origin | None = None
        self.resident_forks = 0
        """Streams in memory whose `origin` points here: they keep this one there."""
        self.runs = NO_RUNS
        self.deadline_ms: int | None = None
        self.persisted_deadline_ms: int | None = None
        self.deadline_sequence = 0
        """The batch that wrote the deadline down last."""
        self.live_readers = 0
        self.used_ms = created_ms

    def undo_point(self, producer_id: bytes | None) -> tuple[Any, ...]:
        """What `restore` needs to take one accepted change back."""
        known = self.producers.get(producer_id) if producer_id is not None else None
        return (
            self.tail,
            self.closed,
            self.closer,
            self.stream_seq,
            self.deleted,
            self.last_sequence,
            self.persisted_deadline_ms,
            self.deadline_sequence,
            self.producer_count,
            producer_id,
            known,
        )

    def restore(
        self,
        tail: int,
        closed: bool,
        closer: Producer | None,
        stream_seq: bytes | None,
        deleted: bool,
        last_sequence: int,
        persisted_deadline_ms: int | None,
        deadline_sequence: int,
        producer_count: int,
        producer_id: bytes | None,
        known: tuple[int, int] | None,
    ) -> None:
        """Go back to an `undo_point`."""
        self.tail = tail
        self.closed = closed
        self.closer = closer
        self.stream_seq = stream_seq
        self.deleted = deleted
        self.last_sequence = last_sequence
        self.persisted_deadline_ms = persisted_deadline_ms
        self.deadline_sequence = deadline_sequence
        self.producer_count = producer_count
        if producer_id is not None:
            self.producers[producer_id] = known

    def add_run(self, run: Run) -> None:
        """Remember where its newest payload is."""
        if self.runs is NO_RUNS:
            self.runs = RunList()
        self.runs.append(run)

    def restore_tail(self, tail: int, last_sequence: int) -> None:
        """Take plain appends back, which change nothing else."""
        self.tail = tail
        self.last_sequence = last_sequence

    def restore_earliest(self, tail: int, earliest: int, last_sequence: int) -> None:
        """Take a cut back, and plain appends as `restore_family` does."""
        self.tail = tail
        self.earliest = earliest
        self.last_sequence = last_sequence

    def restore_family(
        self, tail: int, forks: int, deleted: bool, soft_deleted: bool, last_sequence: int
    ) -> None:
        """Take back what the beginning or the end of a fork, or its own end, did to it.

        And plain appends, which do not note where they began in a batch that knows the stream.
        """
        self.tail = tail
        self.forks = forks
        self.deleted = deleted
        self.soft_deleted = soft_deleted
        self.last_sequence = last_sequence

    def expired(self, now_ms: int) -> bool:
        """Whether its time is over. A live reader keeps a stream with a TTL alive."""
        deadline = self.deadline_ms
        if deadline is None or now_ms < deadline:
            return False
        return self.config.ttl_s is None or not self.live_readers

    def slide(self, now_ms: int) -> int | None:
        """Note an access: a TTL's deadline moves. Returns the deadline to write down when due.

        What is written lies a grain past the real deadline and is renewed when half the grain is
        used, so that after a restart a stream may live a grain longer and never expires early.
        """
        ttl_s = self.config.ttl_s
        if ttl_s is None:
            return None
        deadline = now_ms + ttl_s * 1_000
        self.deadline_ms = deadline
        grain = min(max(ttl_s * 125, GRAIN_MS_MIN), GRAIN_MS_MAX)
        persisted = self.persisted_deadline_ms
        if persisted is not None and deadline + grain // 2 <= persisted:
            return None
        return deadline + grain


class Kind(enum.Enum):
    """What became of a request."""

    APPENDED = enum.auto()
    DUPLICATE = enum.auto()
    ALREADY_CLOSED = enum.auto()
    CLOSED = enum.auto()
    TYPE_MISMATCH = enum.auto()
    STALE_EPOCH = enum.auto()
    EPOCH_START = enum.auto()
    SEQ_GAP = enum.auto()
    STREAM_SEQ = enum.auto()
    TOO_MANY_PRODUCERS = enum.auto()
    BAD_JSON = enum.auto()
    TOO_MANY_MESSAGES = enum.auto()
    EMPTY_ARRAY = enum.auto()
    PRODUCER_NOT_LOADED = enum.auto()
    MISSING = enum.auto()
    CREATED = enum.auto()
    EXISTS = enum.auto()
    CONFLICT = enum.auto()
    DELETED = enum.auto()
    SOFT_DELETED = enum.auto()
    FORK_TOO_DEEP = enum.auto()
    FORK_NOT_RETAINED = enum.auto()


class Append:
    """A POST's values. `media_type` is in lower case without parameters; None goes with no body.

    `framed` is the body as payload, or why it is none, where that was found out before.
    """

    __slots__ = ("body", "close", "framed", "media_type", "producer", "stream_seq")

    def __init__(
        self,
        body: bytes,
        media_type: str | None,
        producer: Producer | None = None,
        stream_seq: bytes | None = None,
        close: bool = False,
    ) -> None:
        self.body = body
        self.media_type = media_type
        self.producer = producer
        self.stream_seq = stream_seq
        self.close = close
        self.framed: Framed | FramingError | None = None


class Outcome:
    """The decision on a request. With a `batch`, it may be told only when that batch is durable."""

    __slots__ = (
        "batch",
        "closed",
        "detail",
        "epoch",
        "expected",
        "kind",
        "root",
        "seq",
        "stream",
        "tail",
    )

    def __init__(self, kind: Kind, stream: Stream | None = None, detail: str = "") -> None:
        self.kind = kind
        self.stream = stream
        self.detail = detail
        self.tail = stream.tail if stream is not None else 0
        self.closed = stream.closed if stream is not None else False
        self.root = stream.root if stream is not None else 0
        self.epoch = 0
        self.seq = 0
        self.expected = 0
        self.batch: Batch | None = None


class Batch:
    """What an answer waits for: `waiters` are called once it is durable (None) or has failed."""

    __slots__ = ("sequence", "waiters")

    def __init__(self, sequence: int) -> None:
        self.sequence = sequence
        self.waiters: list[Callable[[CommitError | None], None]] = []


def decide(stream: Stream, append: Append, producers_max: int) -> Outcome | Framed:
    """Judge an append against accepted state: the payload to store, or why nothing is stored.

    The order of the checks is the protocol's (5.2): closed, content type, producer, `Stream-Seq`,
    and the JSON last. Nothing is changed here.
    """
    producer = append.producer
    if stream.closed:
        if producer is not None:
            kind = Kind.DUPLICATE if producer == stream.closer else Kind.CLOSED
        else:
            kind = Kind.ALREADY_CLOSED if append.close and not append.body else Kind.CLOSED
        return _with_producer(Outcome(kind, stream), producer)
    if append.body and append.media_type != stream.config.media_type:
        return Outcome(Kind.TYPE_MISMATCH, stream)
    if producer is not None:
        refused = _judge_producer(stream, producer, producers_max)
        if refused is not None:
            return refused
    last_seq = stream.stream_seq
    if append.stream_seq is not None and last_seq is not None and append.stream_seq <= last_seq:
        return Outcome(Kind.STREAM_SEQ, stream)
    if not append.body:
        return Framed(b"", None)
    framed = append.framed or try_frame(stream.config.framing, append.body)
    if isinstance(framed, FramingError):
        return misframed(framed, stream)
    if not framed.data:
        return Outcome(Kind.EMPTY_ARRAY, stream)
    return framed


def misframed(error: FramingError, stream: Stream | None) -> Outcome:
    """The outcome of a body that is not what its stream is made of."""
    too_many = isinstance(error, TooManyMessages)
    return Outcome(Kind.TOO_MANY_MESSAGES if too_many else Kind.BAD_JSON, stream, str(error))


def _judge_producer(stream: Stream, producer: Producer, producers_max: int) -> Outcome | None:
    known = stream.producers.get(producer.id)
    if known is None:
        if not stream.producers_complete and producer.id not in stream.producers:
            return Outcome(Kind.PRODUCER_NOT_LOADED, stream)
        if producer.seq:
            return Outcome(Kind.SEQ_GAP, stream)
        if stream.producer_count >= producers_max:
            return Outcome(Kind.TOO_MANY_PRODUCERS, stream)
        return None
    epoch, seq = known
    if producer.epoch > epoch:
        return Outcome(Kind.EPOCH_START, stream) if producer.seq else None
    if producer.epoch == epoch and producer.seq == seq + 1:
        return None
    if producer.epoch < epoch:
        kind = Kind.STALE_EPOCH
    else:
        kind = Kind.DUPLICATE if producer.seq <= seq else Kind.SEQ_GAP
    outcome = Outcome(kind, stream)
    outcome.epoch, outcome.seq = known
    outcome.expected = seq + 1
    return outcome


def _with_producer(outcome: Outcome, producer: Producer | None) -> Outcome:
    if producer is not None:
        outcome.epoch, outcome.seq = producer.epoch, producer.seq
    return outcome
