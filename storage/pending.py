"""The batch that is filling, and what it becomes when it is sealed.

Accepting a change alters a stream's accepted state at once and puts the record here. What the
stream was before goes on an undo list, because a batch that fails takes all of it back.
"""

from collections.abc import Callable
from typing import Any

from storage.batch import RUN, EncodedBatch, encode_batch, encode_run
from storage.log import Placement
from storage.runs import Run
from storage.state import Batch, Stream


class PendingRun:
    """One stream's payload in the filling batch, in pieces as they came."""

    __slots__ = ("lengths", "pieces", "start")

    def __init__(self, start: int, data: bytes, lengths: list[int] | None) -> None:
        self.start = start
        self.pieces = [data]
        self.lengths = lengths

    def add(self, data: bytes, lengths: list[int] | None) -> None:
        """Append another piece."""
        self.pieces.append(data)
        if self.lengths is not None and lengths is not None:
            self.lengths += lengths


class PendingBatch(Batch):
    """A batch that still takes changes."""

    __slots__ = (
        "cuts",
        "payload_bytes",
        "reclaims",
        "record_bytes",
        "records",
        "runs",
        "touched",
        "undo",
        "values",
    )

    def __init__(self, sequence: int) -> None:
        super().__init__(sequence)
        self.records: list[bytes] = []
        self.record_bytes = 0
        self.payload_bytes = 0
        self.runs: dict[Stream, PendingRun] = {}
        self.touched: dict[Stream, None] = {}
        self.values: dict[bytes, bytes] = {}
        self.cuts: dict[Stream, int] = {}
        """The earliest offsets of streams that were cut."""
        self.undo: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self.reclaims = True

    def add_record(self, stream: Stream, record: bytes) -> None:
        """Put a record in; the stream's answers rest on this batch from now on."""
        self.records.append(record)
        self.record_bytes += len(record)
        self.touched[stream] = None
        stream.last_sequence = self.sequence

    def touch(self, stream: Stream) -> None:
        """The stream's answers rest on this batch from now on."""
        self.touched[stream] = None
        stream.last_sequence = self.sequence

    def add_payload(
        self, stream: Stream, start: int, data: bytes, lengths: list[int] | None
    ) -> None:
        """Put the payload of the stream's newest record in; `lengths` are as in `Framed`."""
        run = self.runs.get(stream)
        if run is None:
            self.runs[stream] = PendingRun(start, data, lengths)
        else:
            run.add(data, lengths)
        self.payload_bytes += len(data)
        self.reclaims = False

    def add_value(self, key: bytes, value: bytes, record: bytes) -> None:
        """Put in a value; empty: its key goes.

        It counts as payload too, so that a batch of many values is bounded like one of appends.
        """
        self.records.append(record)
        self.record_bytes += len(record)
        self.payload_bytes += len(value)
        self.values[key] = value
        if value:
            self.reclaims = False

    def size_bytes_max(self) -> int:
        """At least what the batch will take in the log."""
        blocks = len(self.runs) + (self.payload_bytes >> 14)
        return 128 + self.record_bytes + self.payload_bytes + 28 * len(self.runs) + 8 * blocks


class Sealed:
    """A batch that is full: framed for its place in the log, with what becomes true with it.

    `effects` are (stream, tail, closed, deleted, soft-deleted): what will be durable of each
    stream it touched. `sync_s` is how long its sync took, once it is written.
    """

    __slots__ = ("batch", "effects", "encoded", "placement", "runs", "sync_s", "time_ms")

    def __init__(
        self, batch: PendingBatch, placement: Placement, time_ms: int, predecessor: int
    ) -> None:
        seed = placement.header.seed
        segment_id = placement.header.segment_id
        sequence = batch.sequence
        runs = []
        entries = []
        payloads = []
        for stream, pending in batch.runs.items():
            pieces = pending.pieces
            start = pending.start
            data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            entry = encode_run(seed, stream.id, start, data, pending.lengths)
            entries.append(entry)
            payloads.append(data)
            runs.append(Run(stream, start, sequence, segment_id, entry[RUN.size :], data))
        self.batch = batch
        self.placement = placement
        self.time_ms = time_ms
        self.sync_s = 0.0
        self.runs = runs
        self.encoded: EncodedBatch = encode_batch(
            seed, sequence, time_ms, predecessor, entries, payloads, batch.records
        )
        position = placement.position + self.encoded.payload_at
        for run in runs:
            run.position = position
            position += run.end - run.start
        self.effects = [
            (stream, stream.tail, stream.closed, stream.deleted, stream.soft_deleted)
            for stream in batch.touched
        ]

    @property
    def records(self) -> int:
        """How many there are."""
        return len(self.batch.records)

    @property
    def size_bytes(self) -> int:
        """What it takes in the log."""
        return self.encoded.size_bytes
