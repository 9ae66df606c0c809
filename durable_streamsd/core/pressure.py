"""What is refused so that the rest goes on: live readers beyond a stream's limit, and whatever
takes much memory while that is short.

Appends and small reads are never refused here.
"""

from durable_streamsd.core.context import Context
from durable_streamsd.core.problems import Code, Problem
from durable_streamsd.core.snapshot import SMALL_ANSWER_BYTES
from storage.state import Stream

__all__ = ["refuse_large", "refuse_waiter"]


def refuse_waiter(stream: Stream, context: Context) -> None:
    """Before a request begins to wait for news of a stream. Raises `Problem`."""
    most = context.options.waiters_per_stream_max
    if most and stream.live_readers >= most:
        raise Problem(Code.TOO_MANY_READERS)
    if context.memory_short:
        raise Problem(Code.MEMORY_SHORT)


def refuse_large(stream: Stream, position: int, context: Context) -> None:
    """Before what a stream has from `position` on is read. Raises `Problem`."""
    if context.memory_short and stream.durable_tail - position > SMALL_ANSWER_BYTES:
        raise Problem(Code.MEMORY_SHORT)
