"""Forks: where a stream came from, and which of its bytes lie in which stream (protocol 4.2).

Nothing is copied. A fork has the offsets of its source: below its **seam** they lead to the
source's bytes, from there on to its own. A source may be a fork itself.

Invariants
    A source's id is lower than its forks', so that there are no loops; ids are never used again.
    The seam is within the source as accepted when the fork was made, in the same batch at the
    latest: whoever sees a fork sees all that it inherits.
    A stream in memory has its whole chain of sources there, up to `Limits.fork_depth_max`: making
    and ending a fork looks nothing up. Chains are walked by loops.

Left out: counting and collecting (`storage.accept`), reading (`storage.stitching`).
"""

from typing import NamedTuple

from storage.record import EXPIRES_ASKED, OFFSET_ASKED, TTL_ASKED, Fork, Retention
from storage.state import Stream
from storage.stream_config import StreamConfig, asked_for, stream_config


class Asked(NamedTuple):
    """A fork's parameters as they were asked for; None for those that were not.

    `retention` is its own, asked for or by a rule: it has none from its source.
    `root` and `offset` are the two parts of the fork offset; the root of the offset 0 is not told.
    """

    source_path: bytes
    root: int | None = None
    offset: int | None = None
    sub_offset: int = 0
    content_type: str | None = None
    media_type: str | None = None
    ttl_s: int | None = None
    expires_ms: int | None = None
    retention: Retention | None = None


class Origin:
    """Where a fork came from: `seam` is where its own bytes begin, `asked` what was asked for."""

    __slots__ = ("asked", "depth", "offset", "seam", "source", "sub_offset")

    def __init__(self, source: Stream, offset: int, sub_offset: int, seam: int, asked: int) -> None:
        self.source = source
        self.offset = offset
        self.sub_offset = sub_offset
        self.seam = seam
        self.asked = asked
        """Bits of `storage.record`: what was not asked for came from the source."""
        self.depth: int = 1 if source.origin is None else source.origin.depth + 1

    def record(self) -> Fork:
        """What the log says of it when it begins."""
        source = self.source
        return Fork(
            source.id, source.root, self.offset, self.sub_offset, self.asked, source.earliest
        )


def bits_of(asked: Asked) -> int:
    """Which parameters were asked for."""
    return (
        (asked.offset is not None) * OFFSET_ASKED
        + (asked.ttl_s is not None) * TTL_ASKED
        + (asked.expires_ms is not None) * EXPIRES_ASKED
    )


def fork_config(asked: Asked, source: StreamConfig) -> StreamConfig:
    """What a fork is created with: what was asked for, and what it inherits where nothing was."""
    ttl_s, expires_ms = asked.ttl_s, asked.expires_ms
    if ttl_s is None and expires_ms is None:
        ttl_s, expires_ms = source.ttl_s, source.expires_ms
    content_type = asked.content_type or source.content_type
    return stream_config(content_type, ttl_s, expires_ms, asked.retention)


def same_fork(stream: Stream, asked: Asked) -> bool:
    """Whether a PUT that asks for this fork asks for this very stream, closure aside.

    What was inherited does not count: asking for a TTL and inheriting the same one differ.
    """
    origin = stream.origin
    config = stream.config
    if origin is None or origin.source.path != asked.source_path or origin.asked != bits_of(asked):
        return False
    if asked.offset is not None and (
        asked.offset != origin.offset or (asked.offset and asked.root != stream.root)
    ):
        return False
    return (
        origin.sub_offset == asked.sub_offset
        and asked.media_type in (None, config.media_type)
        and (asked.ttl_s is None or asked.ttl_s == config.ttl_s)
        and (asked.expires_ms is None or asked.expires_ms == config.expires_ms)
        and asked_for(asked.retention) == asked_for(config.retention)
    )


class Part(NamedTuple):
    """The offsets `start` to `end` of a stream, which lie in `owner`'s own bytes."""

    owner: Stream
    start: int
    end: int


def parts(stream: Stream, offset: int, end: int) -> list[Part]:
    """In whose bytes the offsets from `offset` to `end` of a stream lie, the oldest first."""
    found: list[Part] = []
    owner = stream
    while True:
        origin = owner.origin
        seam = 0 if origin is None else origin.seam
        start = max(seam, offset)
        if start < end:
            found.append(Part(owner, start, end))
            end = start
        if origin is None or end <= offset:
            found.reverse()
            return found
        owner = origin.source
