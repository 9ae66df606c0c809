"""Offset tokens: what clients hold instead of positions (protocol 8).

    {root:016d}_{position:016d}      the position 0 is always 0000000000000000_0000000000000000

`root` tells incarnations apart (a fork has its source's), so that a token from a deleted stream
does not silently read the stream that came after it. Tokens of one stream sort like its positions.
`-1` stands for the earliest position that is there, `now` for the tail at the time of the request.

Tokens are matched as a whole, never searched: the rest of the core handles positions only.
"""

import enum
import re
from typing import Final, Literal, NamedTuple

from durable_streamsd.core.problems import Code, Problem

__all__ = [
    "EARLIEST",
    "NOW",
    "START",
    "START_TOKEN",
    "Offset",
    "Place",
    "Sentinel",
    "format_offset",
    "parse_offset",
]


class Offset(NamedTuple):
    """A place in the stream family that `root` began."""

    root: int
    position: int

    def is_in(self, root: int, tail: int) -> bool:
        """Whether the stream with this root and durable tail has such a position."""
        return (self.root == root or self == START) and self.position <= tail

    def position_in(self, root: int, tail: int) -> int:
        """The position in the stream with this root and durable tail; `Problem` if it has none."""
        if self.root != root and self != START:
            raise Problem(Code.FOREIGN_OFFSET)
        if self.position > tail:
            raise Problem(Code.OFFSET_PAST_TAIL)
        return self.position


class Sentinel(enum.Enum):
    """A place that is no token."""

    EARLIEST = b"-1"
    NOW = b"now"


EARLIEST: Final[Literal[Sentinel.EARLIEST]] = Sentinel.EARLIEST
NOW: Final[Literal[Sentinel.NOW]] = Sentinel.NOW
Place = Offset | Sentinel
START: Final = Offset(0, 0)
START_TOKEN: Final = b"0000000000000000_0000000000000000"

_TOKEN = re.compile(rb"([0-9]{16})_([0-9]{16})")


def format_offset(root: int, position: int) -> bytes:
    """The token for a position."""
    return b"%016d_%016d" % (root, position) if position else START_TOKEN


def parse_offset(token: bytes) -> Place:
    """A decoded `offset` parameter. Raises `Problem` for what this server cannot have issued."""
    match = _TOKEN.fullmatch(token)
    if match:
        return Offset(int(match[1]), int(match[2]))
    if token == b"-1":
        return EARLIEST
    if token == b"now":
        return NOW
    raise Problem(Code.BAD_OFFSET)
