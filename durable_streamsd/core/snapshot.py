"""Durable state for a read.

A `Chunk` is one snapshot: its bytes, next offset, up-to-date and closed belong together, and no
handler combines them with anything it looked up before or after.
"""

import contextlib
import logging

from durable_streamsd.core.context import Context
from durable_streamsd.core.effects import Durable, Hold, Offload
from durable_streamsd.core.lookup import look_up, no_more, not_retained
from durable_streamsd.core.offsets import EARLIEST, NOW, Place
from durable_streamsd.core.problems import Code
from storage.errors import CommitError, CorruptData, NotRetained
from storage.framing import Framing
from storage.reading import Chunk, ColdRead
from storage.state import Stream

__all__ = ["SMALL_ANSWER_BYTES", "begin_read", "limit_of", "read_chunk"]

SMALL_ANSWER_BYTES = 65_536
"""Up to this, an answer's bytes are covered by `connections_max`; above, it takes a `Hold`."""

log = logging.getLogger(__name__)


async def begin_read(context: Context, path: bytes, offset: Place) -> tuple[Stream, int]:
    """The stream at `path` and the position to read from; counts as an access to the stream.

    Raises `Problem` when the stream or the offset is not there. When this returns nothing has run
    since the store was asked.
    """
    store = context.store
    stream = await look_up(store.visible, path)
    while (batch := store.touch(stream)) is not None:
        # The answer tells the client that its stream lives on. Where that cannot be written down
        # reading goes on all the same.
        with contextlib.suppress(CommitError):
            await Durable(batch)
        stream = await look_up(store.visible, path)
        if store.full or store.latched:
            break
    if offset is NOW:
        position = stream.durable_tail
    elif offset is EARLIEST:
        position = stream.durable_earliest
    else:
        position = offset.position_in(stream.root, stream.durable_tail)
        if position < stream.durable_earliest:
            raise not_retained(Code.OFFSET_NOT_RETAINED, stream.root, stream.durable_earliest)
    return stream, position


async def limit_of(context: Context, stream: Stream, position: int, bytes_max: int) -> int:
    """How much to read from `position`; above `SMALL_ANSWER_BYTES` memory for it was set aside.

    Raises `Problem` when the stream was deleted meanwhile.
    """
    there = stream.durable_tail - position
    if there <= SMALL_ANSWER_BYTES:
        return bytes_max
    limit = min(there, bytes_max)
    size, message = limit, 0
    if stream.config.framing is Framing.JSON:
        message = there  # the first message is in what is there now, however long it is
    elif stream.config.framing is Framing.BYTES:
        size += limit // 3 + 4  # as an event, in base64
    context.store.hold(stream)  # or it might be evicted, and the object not be told of its end
    try:
        await Hold(size, message)
    finally:
        context.store.release(stream)
    if stream.gone:
        raise no_more(stream)
    return limit


async def read_chunk(context: Context, stream: Stream, position: int, bytes_max: int) -> Chunk:
    """Durable data from `position`, read in a worker thread when it is not in memory.

    Raises `Problem` when the stream was deleted, or cut, while its bytes were looked for.
    """
    try:
        found = context.store.read(stream, position, bytes_max)
        return await Offload(found.run) if isinstance(found, ColdRead) else found
    except (CorruptData, NotRetained) as error:
        if stream.gone:
            raise no_more(stream) from None
        earliest = stream.durable_earliest
        if position < earliest:
            raise not_retained(Code.OFFSET_NOT_RETAINED, stream.root, earliest) from None
        path = stream.path.decode("utf-8", "backslashreplace")
        log.error("damaged data of %s: %s; run verify", path, error)
        raise
