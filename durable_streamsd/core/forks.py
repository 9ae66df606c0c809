"""PUT with `Stream-Forked-From`: what is asked for, and where in its source a fork begins.

Protocol 4.2 and 5.1. What it leaves open is decided here:

- The source is named by the path of its URL, percent-encoded as in a request; an absolute URL is
  refused, as it might be another server's.
- A fork offset is one that was given for the source, and that it still has. `-1` and `now`, which
  readers may use for a place, are refused.
- The "next data boundary" that a sub-offset may not pass is the source's tail: appends leave no
  boundary in a byte stream, and `MESSAGES_MAX` messages are the most that one append can have.
- Forking is no access: the source's TTL goes on.
"""

import re
from functools import partial
from typing import Final

from durable_streamsd.core.context import Context
from durable_streamsd.core.effects import Durable, Offload, Resident, Room
from durable_streamsd.core.headers import (
    parse_content_type,
    parse_fork_sub_offset,
    parse_media_type,
    says_closed,
)
from durable_streamsd.core.lookup import look_up, not_retained
from durable_streamsd.core.message import Request
from durable_streamsd.core.offsets import Offset, parse_offset
from durable_streamsd.core.paths import STREAM_ROOT, is_reserved, parse_path
from durable_streamsd.core.problems import Code, Problem
from durable_streamsd.core.snapshot import SMALL_ANSWER_BYTES, limit_of, read_chunk
from storage.errors import NotResident
from storage.family import Asked
from storage.framing import MESSAGES_MAX, Framing, is_heavy, message_lengths, try_frame
from storage.record import Retention
from storage.state import Outcome, Stream

__all__ = ["decide_fork", "fork_not_retained", "parse_fork"]

_URL_PATH: Final = re.compile(rb"[!-~]+")


def parse_fork(
    headers: dict[bytes, bytes],
    ttl_s: int | None,
    expires_ms: int | None,
    retention: Retention | None,
) -> Asked | None:
    """The fork that a PUT asks for; None when it asks for none. Raises `Problem`."""
    source = headers.get(b"stream-forked-from")
    token = headers.get(b"stream-fork-offset")
    number = headers.get(b"stream-fork-sub-offset")
    if source is None:
        if token is not None or number is not None:
            raise Problem(Code.FORK_SOURCE_REQUIRED)
        return None
    source_path = _parse_source(source)
    offset = None if token is None else _parse_fork_offset(token)
    sub_offset = 0 if number is None else parse_fork_sub_offset(number)
    if sub_offset and offset is None:
        raise Problem(Code.BAD_FORK_SUB_OFFSET)
    content_type = headers.get(b"content-type")
    return Asked(
        source_path,
        None if offset is None else offset.root,
        None if offset is None else offset.position,
        sub_offset,
        None if content_type is None else parse_content_type(content_type),
        None if content_type is None else parse_media_type(content_type),
        ttl_s,
        expires_ms,
        retention,
    )


def _parse_source(value: bytes) -> bytes:
    if not _URL_PATH.fullmatch(value) or b"?" in value or b"#" in value:
        raise Problem(Code.BAD_FORK_SOURCE)
    if not value.startswith(STREAM_ROOT):
        raise Problem(Code.BAD_FORK_SOURCE)
    try:
        path = parse_path(value[len(STREAM_ROOT) :])
    except Problem:
        raise Problem(Code.BAD_FORK_SOURCE) from None
    if is_reserved(path):
        raise Problem(Code.BAD_FORK_SOURCE)
    return path


def _parse_fork_offset(token: bytes) -> Offset:
    try:
        offset = parse_offset(token)
    except Problem:
        offset = None
    if not isinstance(offset, Offset):
        raise Problem(Code.BAD_FORK_OFFSET)
    return offset


async def decide_fork(path: bytes, asked: Asked, request: Request, context: Context) -> Outcome:
    """Have the store decide. Each wait is followed by looking again from the start.

    What was found out about a source is good for as long as it is the same incarnation: where its
    durable messages end does not change.
    """
    store = context.store
    body = request.body
    closed = says_closed(request.headers)
    known_id = seam = 0
    framed = None
    while True:
        if not store.accepting:
            await Room()
            continue
        try:
            told = store.existing(path, asked, closed)
            if told is not None:
                return told
            source = await _find_source(asked.source_path, context)
            config = source.config
            unknown = source.id != known_id or seam > source.tail
            if not unknown or asked.media_type not in (None, config.media_type):
                there = source.tail if asked.offset is None else seam
                return store.fork(path, asked, source, there, body, closed, framed)
        except NotResident:
            await Resident(path)
            continue
        if is_heavy(config.framing, body):
            framed = await Offload(partial(try_frame, config.framing, body))
        seam = await _find_seam(source, asked, context)
        known_id = source.id


async def _find_source(path: bytes, context: Context) -> Stream:
    """The stream to fork. When this returns nothing has run since the store was asked."""
    try:
        return await look_up(context.store.find, path)
    except Problem as problem:
        gone = problem.code is Code.GONE
        raise Problem(Code.FORK_SOURCE_GONE if gone else Code.FORK_SOURCE_NOT_FOUND) from None


async def _find_seam(source: Stream, asked: Asked, context: Context) -> int:
    """The offset at which a fork begins to differ from its source. Raises `Problem`.

    0 for the tail, which is only known when the store decides.
    """
    offset = asked.offset
    if offset is None:
        return 0
    if offset and asked.root != source.root:
        past = offset > source.tail
        raise Problem(Code.FORK_PAST_TAIL if past else Code.BAD_FORK_OFFSET)
    if offset < source.durable_earliest:
        raise fork_not_retained(source.root, source.durable_earliest)
    if source.config.framing is not Framing.JSON:
        if offset + asked.sub_offset > source.tail:
            raise Problem(Code.FORK_PAST_TAIL)
        return offset + asked.sub_offset
    if offset > source.tail or asked.sub_offset > MESSAGES_MAX:
        raise Problem(Code.FORK_PAST_TAIL)
    if not asked.sub_offset and not offset:
        return 0
    batch = context.store.batch_of(source)
    if batch is not None:
        await Durable(batch)  # only then can its messages be read
    return await _skip_messages(source, offset, asked.sub_offset, context)


def fork_not_retained(root: int, earliest: int) -> Problem:
    """What to say of an offset that the source has no more."""
    return not_retained(Code.FORK_NOT_RETAINED, root, earliest)


async def _skip_messages(source: Stream, offset: int, count: int, context: Context) -> int:
    """Where so many messages behind an offset end; for none, whether the offset is between two.

    `OffsetError` when it is not.
    """
    if not count and offset == source.durable_tail:
        return offset
    while offset < source.durable_tail:
        limit = await limit_of(context, source, offset, SMALL_ANSWER_BYTES)
        chunk = await read_chunk(context, source, offset, limit)
        if not count:
            return offset
        if len(chunk.data) > SMALL_ANSWER_BYTES:
            lengths = await Offload(partial(message_lengths, chunk.data))
        else:
            lengths = message_lengths(chunk.data)
        if count <= len(lengths):
            return offset + sum(lengths[:count])
        count -= len(lengths)
        offset = chunk.next
    raise Problem(Code.FORK_PAST_TAIL)
