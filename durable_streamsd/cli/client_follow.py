"""Following a stream across broken connections, each byte exactly once.

All state is the offset behind the last chunk that was handed out. Whatever breaks, the next request
starts there. A round is one answer of a live mode: one long-poll or one SSE connection.
"""

import asyncio
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from durable_streamsd.client import Chunk, StreamClient, Unavailable, Unreachable

PAUSE_SECONDS_MIN = 0.1
PAUSE_SECONDS_MAX = 5.0
# A server that ends rounds faster than this, without data, is asked less often.
ROUND_SECONDS_MIN = 1.0


class Backoff:
    """Pauses that double up to a cap, each shortened at random by up to a half.

    The jitter keeps clients that lost the same server from coming back in step.
    """

    def __init__(self) -> None:
        self._pause_seconds = PAUSE_SECONDS_MIN

    def reset(self) -> None:
        self._pause_seconds = PAUSE_SECONDS_MIN

    async def pause(self) -> None:
        seconds = self._pause_seconds * random.uniform(0.5, 1.0)
        self._pause_seconds = min(2 * self._pause_seconds, PAUSE_SECONDS_MAX)
        await asyncio.sleep(seconds)


async def follow(
    client: StreamClient,
    path: str,
    offset: str,
    *,
    sse: bool,
    on_outage: Callable[[Unreachable | Unavailable, str], None],
) -> AsyncGenerator[Chunk, None]:
    """Chunks from `offset` (`-1` the start, `now` the tail) until the stream is closed.

    The first request is not repeated: it may be wrong altogether. Later ones are, for ever;
    `on_outage` is told the error and the offset once per outage. Any other StreamError is raised,
    Missing when the stream is deleted or expires.
    """
    loop = asyncio.get_running_loop()
    # Also fixes what `now` means, and tells the stream's type, which SSE does not.
    chunk = await client.read(path, offset)
    yield chunk
    backoff = Backoff()
    outage = False
    while not chunk.closed:
        began, start = loop.time(), chunk.next_offset
        failure: Unreachable | Unavailable | None = None
        try:
            async with aclosing(_round(client, path, chunk, sse=sse)) as answers:
                async for chunk in answers:
                    outage = False
                    yield chunk
        except (Unreachable, Unavailable) as error:
            failure = error
        steady = chunk.next_offset != start or loop.time() - began >= ROUND_SECONDS_MIN
        if steady:
            backoff.reset()
        if failure is not None and not outage:
            outage = True
            on_outage(failure, chunk.next_offset)
        if not chunk.closed and (failure is not None or not steady):
            await backoff.pause()


async def _round(
    client: StreamClient, path: str, chunk: Chunk, *, sse: bool
) -> AsyncGenerator[Chunk, None]:
    """What comes after `chunk`: plain reads until the tail is reached, then the live mode."""
    if sse and chunk.up_to_date:
        answers = client.listen(path, chunk.next_offset, chunk.content_type, chunk.cursor)
        async with aclosing(answers):
            async for answer in answers:
                yield answer
    elif chunk.up_to_date:
        answer = await client.poll(path, chunk.next_offset, chunk.cursor)
        if not answer.data and (answer.closed or answer.next_offset != chunk.next_offset):
            # Some servers lose data that came just as the wait ended or with the closing append
            # (the protocol's reference server 0.3.7): what a plain read says counts.
            answer = await client.read(path, chunk.next_offset)
        yield answer
    else:
        yield await client.read(path, chunk.next_offset)
