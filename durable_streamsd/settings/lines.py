"""On which line of a TOML file each key stands, which `tomllib` does not tell.

A statement of TOML ends with a line. So the file is cut where what was taken so far parses by
itself: a value that goes on over several lines does not. No grammar is repeated here for that.

Left out: speed. It is used when there is something to say about a file.
"""

import tomllib
from collections.abc import Iterator
from typing import Any

__all__ = ["Place", "key_lines", "unfinished_line"]

Place = tuple[str | int, ...]
"""Keys from the outside in; a number picks one table of an array."""


def key_lines(text: str) -> dict[Place, int]:
    """The line, from 1 on, on which the statement begins that sets a key. `text` is valid TOML."""
    lines: dict[Place, int] = {}
    table: Place = ()
    for begun, statement, parsed in _statements(text):
        if statement.startswith("["):
            table = _table(parsed, lines)
            for depth in range(1, len(table) + 1):
                lines.setdefault(table[:depth], begun)
        else:
            _enter(parsed, table, begun, lines)
    return lines


def unfinished_line(text: str) -> int:
    """The line on which the last statement begins, of a text that ends within it."""
    return [begun for begun, _, parsed in _statements(text) if parsed is None][-1]


def _statements(text: str) -> Iterator[tuple[int, str, Any]]:
    """Each statement with its first line, and what it is parsed by itself; None: nothing yet."""
    begun, statement = 1, ""
    for number, line in enumerate(text.split("\n"), 1):
        statement += line + "\n"
        try:
            parsed = tomllib.loads(statement)
        except tomllib.TOMLDecodeError:
            continue
        yield begun, statement.lstrip(), parsed
        begun, statement = number + 1, ""
    yield begun, statement, None


def _table(header: Any, known: dict[Place, int]) -> Place:
    """The place that `[a.b]` or `[[a.b]]`, parsed by itself, opens."""
    place: Place = ()
    while header:
        if isinstance(header, list):
            place = (*place, _tables(place, known))
            header = header[0]
        else:
            (key, header), *_ = header.items()
            place = (*place, key)
            # Within an array of tables, the newest one is meant.
            count = _tables(place, known)
            if count and not isinstance(header, list):
                place = (*place, count - 1)
    return place


def _tables(place: Place, known: dict[Place, int]) -> int:
    """How many tables of an array were opened."""
    count = 0
    while (*place, count) in known:
        count += 1
    return count


def _enter(value: Any, place: Place, line: int, lines: dict[Place, int]) -> None:
    """Note a line for all keys within a value."""
    items: list[tuple[str | int, Any]] = []
    if isinstance(value, dict):
        items += value.items()
    elif isinstance(value, list):
        items += enumerate(value)
    for key, inner in items:
        lines.setdefault((*place, key), line)
        _enter(inner, (*place, key), line, lines)
