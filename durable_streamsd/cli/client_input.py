"""Input in bounded pieces, as it comes.

The descriptor stays blocking (it may be shared with other processes) and no thread reads it (one
that waits for input would keep an interrupted process alive): the event loop waits until a read
cannot block.
"""

import asyncio
import os
import select
from collections.abc import AsyncIterator
from typing import NamedTuple

PIECE_BYTES_MAX = 1024 * 1024


class Piece(NamedTuple):
    """Consecutive input; may be empty when it is the last."""

    data: bytes
    last: bool
    """The input ends here."""
    idle: bool
    """No more was ready: what is kept back in the hope of more should be sent now."""


async def from_argument(content: bytes) -> AsyncIterator[Piece]:
    """Input that is there already."""
    yield Piece(content, last=True, idle=True)


async def from_descriptor(descriptor: int) -> AsyncIterator[Piece]:
    """Whatever is ready, up to PIECE_BYTES_MAX at a time, until the input ends."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    last = False
    while not last:
        await _until_readable(descriptor)
        parts: list[bytes] = []
        room = PIECE_BYTES_MAX
        ready = True
        while ready and room and not last:
            part = os.read(descriptor, room)
            last = not part
            parts.append(part)
            room -= len(part)
            ready = bool(poll.poll(0))
        yield Piece(b"".join(parts), last, idle=not ready)


async def _until_readable(descriptor: int) -> None:
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    try:
        loop.add_reader(descriptor, readable.set)
    except PermissionError:
        return  # epoll refuses regular files, which never block
    try:
        await readable.wait()
    finally:
        loop.remove_reader(descriptor)


def characters_end(data: bytes) -> int:
    """Where the last whole UTF-8 character of `data` ends: what follows is the start of one.

    Bytes that are no UTF-8 at all count as whole.
    """
    for back in range(1, min(4, len(data) + 1)):
        byte = data[-back]
        if byte & 0xC0 == 0x80:
            continue
        if byte > 0xF4:
            return len(data)
        length = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC2 else 1
        return len(data) - back if length > back else len(data)
    return len(data)
