"""Glob patterns over stream paths, and which of thousands match one path (protocol 6.2).

A pattern is segments parted by `/`: `*` matches one segment, `**` zero or more, anything else
itself. Matching is a walk down one trie of all patterns, with the set of nodes that the path so
far can have led to: no backtracking, and patterns that begin alike are walked once. A path's cost
is its segments times the nodes that are possible at once, which a pattern adds to only where its
`**` are; so these are few (`PATTERN_GLOBSTARS_MAX`).

Left out: wildcards within a segment (`user-*`), which the protocol does not have. They are refused
rather than taken literally.
"""

from collections.abc import Iterator
from typing import Final, Generic, TypeVar

__all__ = ["PATTERN_BYTES_MAX", "PatternError", "Patterns", "literal_prefix", "parse_pattern"]

PATTERN_BYTES_MAX: Final = 480
PATTERN_GLOBSTARS_MAX: Final = 8

Owner = TypeVar("Owner")
Pattern = tuple[bytes, ...]


class PatternError(ValueError):
    """Not a pattern; one sentence for the client."""


def parse_pattern(text: str) -> Pattern:
    """A pattern's segments; a slash at either end, and a `**` behind another, change nothing.

    Raises `PatternError`.
    """
    pattern = text.encode("utf-8", "replace").strip(b"/")
    if not pattern or len(pattern) > PATTERN_BYTES_MAX:
        raise PatternError(f"pattern must have 1 to {PATTERN_BYTES_MAX} bytes.")
    segments: list[bytes] = []
    for segment in pattern.split(b"/"):
        if segment in (b"", b".", b".."):
            raise PatternError("pattern must not have empty segments, '.' or '..'.")
        if b"*" in segment and segment not in (b"*", b"**"):
            raise PatternError("'*' and '**' stand for whole segments, as in 'events/*'.")
        if segment != b"**" or segments[-1:] != [b"**"]:
            segments.append(segment)
    if segments.count(b"**") > PATTERN_GLOBSTARS_MAX:
        raise PatternError(f"pattern may have '**' {PATTERN_GLOBSTARS_MAX} times.")
    return tuple(segments)


def literal_prefix(pattern: Pattern) -> bytes:
    """What every path that matches begins with."""
    literal = []
    for segment in pattern:
        if segment in (b"*", b"**"):
            break
        literal.append(segment)
    return b"/".join(literal)


class _Node(Generic[Owner]):
    """A place in the trie; `loops`: behind a `**`, so any further segment leads here again."""

    __slots__ = ("children", "loops", "owners")

    def __init__(self, loops: bool = False) -> None:
        self.children: dict[bytes, _Node[Owner]] = {}
        self.owners: dict[Owner, None] = {}
        self.loops = loops


class Patterns(Generic[Owner]):
    """Patterns and who has them; `match` finds the owners of those that match."""

    def __init__(self) -> None:
        self._root: _Node[Owner] = _Node()

    def __bool__(self) -> bool:
        return bool(self._root.children)

    def add(self, pattern: Pattern, owner: Owner) -> None:
        """Let `owner` be found by a pattern."""
        node = self._root
        for segment in pattern:
            child = node.children.get(segment)
            if child is None:
                child = node.children[segment] = _Node(segment == b"**")
            node = child
        node.owners[owner] = None

    def remove(self, pattern: Pattern, owner: Owner) -> None:
        """Undo `add`; nothing stays of a pattern that nobody has."""
        way = [self._root]
        for segment in pattern:
            child = way[-1].children.get(segment)
            if child is None:
                return
            way.append(child)
        way[-1].owners.pop(owner, None)
        for parent, segment, node in zip(way[-2::-1], pattern[::-1], way[:0:-1], strict=True):
            if node.owners or node.children:
                return
            del parent.children[segment]

    def match(self, path: bytes) -> Iterator[Owner]:
        """The owners of all patterns that match a path, each as often as it has such patterns."""
        nodes = _with_empty([self._root])
        for segment in path.split(b"/"):
            reached: dict[_Node[Owner], None] = {}
            for node in nodes:
                children = node.children
                if segment in children and segment not in (b"*", b"**"):
                    reached[children[segment]] = None
                if b"*" in children:
                    reached[children[b"*"]] = None
                if node.loops:
                    reached[node] = None
            nodes = _with_empty(list(reached))
            if not nodes:
                return
        for node in nodes:
            yield from node.owners


def _with_empty(nodes: list[_Node[Owner]]) -> list[_Node[Owner]]:
    """These nodes, and those behind a `**` that matches nothing here."""
    behind = [node.children[b"**"] for node in nodes if b"**" in node.children]
    return [*nodes, *(node for node in behind if node not in nodes)] if behind else nodes
