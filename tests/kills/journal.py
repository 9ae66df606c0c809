"""What the actors of a kill run write down: one file each, one JSON object a line.

An actor writes what it is about to do before it does it, and what came of it afterwards; it
judges nothing. Times are seconds of the system's monotonic clock, the same for all processes of
one machine; `started` and `ended` are those of a request as its client saw them.

Shared by the workload and the checker; knows nothing of the server.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TextIO

CREATE = "create"
DELETE = "delete"

ProducerTuple = tuple[str, int, int]


@dataclass(frozen=True)
class Event:
    """A line of a journal."""

    kinds: ClassVar[dict[str, type[Event]]] = {}

    def __init_subclass__(cls) -> None:
        cls.kinds[cls.__name__] = cls


@dataclass(frozen=True)
class Intent(Event):
    """A stream is about to be created or deleted for the first time."""

    what: str
    path: str
    incarnation: str
    media_type: str
    ttl_s: int | None
    at: float


@dataclass(frozen=True)
class Done(Event):
    """A stream was created or deleted, or that was refused.

    `in_doubt`: an earlier request for it had no answer, so that the last one may find it done.
    """

    what: str
    incarnation: str
    status: int
    in_doubt: bool
    offset: str
    started: float
    ended: float


@dataclass(frozen=True)
class Send(Event):
    """An append is about to be sent for the first time; `messages` are (id, digest, size).

    `key` names it in its attempts. Without messages it only closes. `put` is for a stream's first
    messages, which came with its creation.
    """

    key: str
    incarnation: str
    messages: list[tuple[str, str, int]]
    closes: bool
    producer: ProducerTuple | None
    stream_seq: str | None
    put: bool
    at: float


@dataclass(frozen=True)
class Attempt(Event):
    """One request for an append came to an end; `status` 0 is a connection that broke."""

    key: str
    status: int
    code: str
    offset: str
    started: float
    ended: float


@dataclass(frozen=True)
class Read(Event):
    """A reader got data, or was told that there is none; `size` is in units of `Message.size`.

    The reads of a `run` follow each other from the stream's start. `messages` are those that are
    complete with this read: (id, digest).
    """

    run: str
    path: str
    mode: str
    begin: str
    end: str
    messages: list[tuple[str, str]]
    size: int
    up_to_date: bool
    closed: bool
    started: float
    ended: float


@dataclass(frozen=True)
class Miss(Event):
    """A reader was told that there is no such stream (404), or no such offset (400)."""

    run: str
    path: str
    mode: str
    status: int
    code: str
    started: float
    ended: float


@dataclass(frozen=True)
class Nonsense(Event):
    """A reader got something that no writer can have written."""

    run: str
    path: str
    detail: str


class Journal:
    """One actor's file. Lines reach the system at once: the actor may be killed too."""

    def __init__(self, folder: Path, actor: str) -> None:
        self._file: TextIO = (folder / f"{actor}.jsonl").open("a", buffering=1)

    def write(self, event: Event) -> None:
        """Add a line."""
        self._file.write(json.dumps({"kind": type(event).__name__, **vars(event)}) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_journals(folder: Path) -> Iterator[Event]:
    """All events of all actors, each actor's in order."""
    for path in sorted(folder.glob("*.jsonl")):
        with path.open() as lines:
            for line in lines:
                yield _decode(json.loads(line))


def _decode(fields: dict[str, Any]) -> Event:
    if fields.get("producer") is not None:
        fields["producer"] = tuple(fields["producer"])
    return Event.kinds[fields.pop("kind")](**fields)
