"""The batch that is filling, and what it becomes when it is sealed.

Accepting a change alters a stream's accepted state at once and puts the record here. What the
stream was before goes on an undo list, because a batch that fails takes all of it back.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from storage.batch import EncodedBatch, RunEntry, cut_blocks, encode_batch
from storage.framing import Framed
from storage.log import Placement
from storage.state import Batch, Stream


class PendingRun:
    """One stream's payload in the filling batch, in pieces as they came."""

    __slots__ = ("lengths", "pieces", "start")

    def __init__(self, start: int, framed: Framed) -> None:
        self.start = start
        self.pieces = [framed.data]
        self.lengths = framed.lengths

    def add(self, framed: Framed) -> None:
        """Append another piece."""
        self.pieces.append(framed.data)
        if self.lengths is not None and framed.lengths is not None:
            self.lengths += framed.lengths


class DurableState(NamedTuple):
    """What becomes true of a stream when its batch is durable."""

    stream: Stream
    tail: int
    closed: bool
    deleted: bool


class PendingBatch(Batch):
    """A batch that still takes changes."""

    __slots__ = ("payload_bytes", "reclaims", "record_bytes", "records", "runs", "touched", "undo")

    def __init__(self, sequence: int) -> None:
        super().__init__(sequence)
        self.records: list[bytes] = []
        self.record_bytes = 0
        self.payload_bytes = 0
        self.runs: dict[Stream, PendingRun] = {}
        self.touched: dict[Stream, None] = {}
        self.undo: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self.reclaims = True

    def add_record(self, stream: Stream, record: bytes) -> None:
        """Put a record in; the stream's answers rest on this batch from now on."""
        self.records.append(record)
        self.record_bytes += len(record)
        self.touched[stream] = None
        stream.last_sequence = self.sequence

    def add_payload(self, stream: Stream, start: int, framed: Framed) -> None:
        """Put the payload of the stream's newest record in."""
        run = self.runs.get(stream)
        if run is None:
            self.runs[stream] = PendingRun(start, framed)
        else:
            run.add(framed)
        self.payload_bytes += len(framed.data)
        self.reclaims = False

    def size_bytes_max(self) -> int:
        """At least what the batch will take in the log."""
        blocks = len(self.runs) + (self.payload_bytes >> 14)
        return 128 + self.record_bytes + self.payload_bytes + 28 * len(self.runs) + 8 * blocks


class Sealed:
    """A batch that is full: framed for its place in the log, with what becomes true with it."""

    __slots__ = ("batch", "effects", "encoded", "payloads", "placement", "runs", "time_ms")

    def __init__(
        self, batch: PendingBatch, placement: Placement, time_ms: int, predecessor: int
    ) -> None:
        seed = placement.header.seed
        runs = []
        payloads = []
        for stream, pending in batch.runs.items():
            pieces = pending.pieces
            data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            blocks = cut_blocks(seed, stream.id, pending.start, data, pending.lengths)
            runs.append(RunEntry(stream.id, pending.start, len(data), blocks))
            payloads.append(data)
        self.batch = batch
        self.placement = placement
        self.time_ms = time_ms
        self.runs = runs
        self.payloads = payloads
        self.encoded: EncodedBatch = encode_batch(
            seed, batch.sequence, time_ms, predecessor, runs, payloads, batch.records
        )
        self.effects = [
            DurableState(stream, stream.tail, stream.closed, stream.deleted)
            for stream in batch.touched
        ]
