"""Finding the stream that a request is about."""

from collections.abc import Callable

from durable_streamsd.core.effects import Durable, Resident
from durable_streamsd.core.problems import Code, Problem
from storage.errors import NotResident, Unsettled
from storage.state import Stream

__all__ = ["look_up"]


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
        else:
            if stream is None:
                raise Problem(Code.NOT_FOUND)
            return stream
