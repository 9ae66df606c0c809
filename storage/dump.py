"""Dump: the log as plain values, one for each batch, for people who want to see what is there.

Reads whatever is readable: it stops in a segment at the first batch that is not, and says so.
"""

import os
from collections.abc import Iterator
from typing import Any

from storage.batch import BLOCK, ENDS_MESSAGE, LENGTH_MASK
from storage.chain import open_chain
from storage.compacted import Summary
from storage.directory import DataDirectory
from storage.disk import read_at
from storage.record import DecodeError, Record
from storage.scan import FIRST_BATCH_POSITION, BatchView, Scanner
from storage.segment import SegmentFile


def dump(directory: DataDirectory, *, payload: bool) -> Iterator[dict[str, Any]]:
    """Segments, batches and the ends of segments as dictionaries for JSON; compacted ones first.

    `payload` adds each run's bytes, as text with undecodable bytes escaped. Raises `OpenError`.
    """
    held = directory.keep_segments()
    try:
        yield from _dump(directory, payload)
    finally:
        os.close(held)


def _dump(directory: DataDirectory, payload: bool) -> Iterator[dict[str, Any]]:
    chain = open_chain(directory.segments)
    for file in chain.compacted:
        yield _head(file.segment)
        for batch in file.batches():
            yield {"compacted": file.name, **_batch(file.segment, batch, payload)}
        yield {"compacted": file.name, "stands_for": _stands_for(file.summary)}
    for at, segment in enumerate(chain.segments):
        yield _head(segment)
        known_end = chain.end(at)
        scanner = Scanner(segment)
        position = FIRST_BATCH_POSITION
        while known_end is None or position < known_end:
            try:
                batch = scanner.batch_at(position)
            except DecodeError as error:
                yield {"segment": segment.name, "end": position, "because": str(error)}
                break
            yield _batch(segment, batch, payload)
            position = batch.end


def _head(segment: SegmentFile) -> dict[str, Any]:
    header = segment.header._asdict()
    return {"segment": segment.name, "salt": f"{header.pop('salt'):016x}", **header}


def _stands_for(summary: Summary) -> dict[str, Any]:
    gaps = [gap._asdict() for gap in summary.gaps]
    return {**summary._asdict(), "gaps": gaps}


def _batch(segment: SegmentFile, batch: BatchView, payload: bool) -> dict[str, Any]:
    runs = []
    at = batch.payload_position
    for run in batch.runs:
        blocks = [
            {"length": coded & LENGTH_MASK, "ends": bool(coded & ENDS_MESSAGE), "crc": f"{crc:08x}"}
            for coded, crc in BLOCK.iter_unpack(run.blocks)
        ]
        value = {"stream": run.stream_id, "start": run.start, "position": at, "blocks": blocks}
        if payload:
            data = read_at(segment.fd, run.length, at)
            value["payload"] = data.decode("utf-8", "backslashreplace")
        runs.append(value)
        at += run.length
    return {
        "batch": batch.head.sequence,
        "position": batch.position,
        "end": batch.end,
        "time_ms": batch.head.time_ms,
        "checksum": f"{batch.checksum:08x}",
        "records": [_record(record) for record in batch.records],
        "runs": runs,
    }


def _record(record: Record) -> dict[str, Any]:
    """A record's set fields; bytes as text."""
    value: dict[str, Any] = {"type": record.type.name.lower(), "stream": record.stream_id}
    for name, field in record._asdict().items():
        if name in ("type", "stream_id") or field is None or field is False:
            continue
        if name == "value":  # may be a secret: a signing key
            value["key"], value["value_bytes"] = _plain(field.key), len(field.value)
            continue
        value[name] = _plain(field)
    return value


def _plain(field: Any) -> Any:
    if hasattr(field, "_asdict"):
        field = field._asdict()
    if isinstance(field, bytes):
        return field.decode("utf-8", "backslashreplace")
    if isinstance(field, dict):
        return {name: _plain(inner) for name, inner in field.items() if inner is not None}
    return field
