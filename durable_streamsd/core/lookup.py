"""Finding the stream that a request is about."""

from collections.abc import Callable

from durable_streamsd.core.effects import Durable, Resident
from durable_streamsd.core.lines import earliest_offset_line
from durable_streamsd.core.offsets import format_offset
from durable_streamsd.core.problems import Code, Problem
from storage.errors import NotResident, SoftDeleted, Unsettled
from storage.state import Stream

__all__ = ["look_up", "no_more", "not_retained"]


async def look_up(look: Callable[[bytes], Stream | None], path: bytes) -> Stream:
    """What `look` (`Store.find` or `Store.visible`) sees at `path`.

    Waits until the store can tell. Raises `Problem` when there is no stream, and `CommitError`
    when it cannot be known because a deletion did not become durable. When this returns nothing
    has run since the store was asked.
    """
    while True:
        try:
            stream = look(path)
        except NotResident:
            await Resident(path)
        except Unsettled as unsettled:
            await Durable(unsettled.batch)
        except SoftDeleted:
            raise Problem(Code.GONE) from None
        else:
            if stream is None:
                raise Problem(Code.NOT_FOUND)
            return stream


def no_more(stream: Stream) -> Problem:
    """What to say of a stream that ended while it was read."""
    return Problem(Code.GONE if stream.durable_soft_deleted else Code.NOT_FOUND)


def not_retained(code: Code, root: int, earliest: int) -> Problem:
    """What to say of an offset before the earliest, so that the client can go on from that."""
    members = {"earliest_offset": format_offset(root, earliest).decode("ascii")}
    return Problem(code, earliest_offset_line(root, earliest), members=members)
