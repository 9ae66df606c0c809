"""What the client tells of streams, and is told."""

from typing import NamedTuple


class StreamInfo(NamedTuple):
    """What PUT and HEAD tell about a stream (PROTOCOL.md 5.1, 5.5)."""

    url: str
    content_type: str
    next_offset: str
    closed: bool
    ttl_seconds: int | None
    expires_at: str | None
    retain_bytes: int | None
    retain_seconds: int | None
    earliest_offset: str | None
    """Where what is kept begins; told of streams that were cut, or may be."""
    created: bool
    """Whether this request created the stream."""


class Fork(NamedTuple):
    """What a stream is to be forked from (PROTOCOL.md 4.2)."""

    source: str
    """The source's path below the base URL, as plain text."""
    offset: str | None = None
    sub_offset: int | None = None


class Listed(NamedTuple):
    """A stream in a listing, which is an extension of this project's daemon."""

    path: str
    content_type: str
    next_offset: str
    closed: bool
    created_at: str
    size_bytes: int
    forked_from: str | None
    earliest_offset: str | None
    """Where it begins, if retention dropped something."""


class Chunk(NamedTuple):
    """Consecutive bytes of a stream and what was true of it when they were read."""

    data: bytes
    """Raw bytes, or for a JSON stream one array of messages; may be empty."""
    next_offset: str
    content_type: str
    """The stream's, not the response's."""
    up_to_date: bool
    closed: bool
    cursor: str | None


class Appended(NamedTuple):
    """What the server says about an append (PROTOCOL.md 5.2, 5.2.1)."""

    next_offset: str
    duplicate: bool
    """Nothing was done: the server has a request of this producer with this number already."""
    last_seq: int | None
    """The highest number that the server has of the producer's epoch, if it told."""


class Producer(NamedTuple):
    """What makes an append safe to repeat: `seq` counts requests of one `epoch` (5.2.1)."""

    id: str
    epoch: int
    seq: int


def is_json(content_type: str) -> bool:
    """Whether a stream of this type is in JSON mode: only `application/json`, parameters aside."""
    return content_type.partition(";")[0].strip().lower() == "application/json"
