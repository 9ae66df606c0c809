"""Listing: what streams there are, in the order of their paths, a page at a time.

Only durable state is told. Each stream is told as it was at some moment while the page was made,
and those that were there, or not, all that time are told rightly; a page is no snapshot of all.

The index is read in a thread. What it lacks is in the backlog, whose streams were copied before on
the owner thread: the copy is of lists, and their streams are looked at in the thread, where
`Backlog.added_sequence` tells whether the owner was changing them just then.

Left out: streams that are soft-deleted, or whose time is over.
"""

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from storage.index import Index
from storage.index_entries import StreamMeta
from storage.state import Stream

PAGE_STREAMS_MAX = 1_000
"""Of one page; its index entries are read in one pass."""


class Listed(NamedTuple):
    """A stream as a listing tells it; `source_path` is that of a fork's source."""

    path: bytes
    content_type: str
    root: int
    earliest: int
    tail: int
    closed: bool
    created_ms: int
    source_path: bytes | None


class Page(NamedTuple):
    """Some streams, perhaps none; go on after `next` unless it is None."""

    streams: list[Listed]
    next: bytes | None


class Listing:
    """A planned page: `run` it in any thread.

    `unindexed` are the streams that durable batches touched which the index may lack, oldest first.
    `settled` tells twice the same number when no batch was made durable in between.
    """

    def __init__(
        self,
        index: Index,
        unindexed: list[list[Stream]],
        settled: Callable[[], int | None],
        now_ms: int,
        prefix: bytes,
        after: bytes | None,
        limit: int,
    ) -> None:
        self._index = index
        self._unindexed = unindexed
        self._settled = settled
        self._now_ms = now_ms
        self._prefix = prefix
        self._after = after
        self._limit = min(limit, PAGE_STREAMS_MAX)

    def run(self) -> Page:
        """Make the page. Raises `CorruptData`, `IndexFailed`."""
        newer = dict(self._newer())
        entries = self._index.streams_after(self._prefix, self._after, self._limit)
        horizon = entries[-1].path if len(entries) == self._limit else None
        known = {entry.path: entry for entry in entries}
        paths = [path for path in newer if horizon is None or path <= horizon]
        streams: list[Listed] = []
        for path in sorted({*known, *paths}):
            if len(streams) == self._limit:
                return Page(streams, streams[-1].path)
            stream = newer.get(path)
            if stream is not None:
                listed = self._of_memory(stream)
            else:
                listed = self._of_index(known[path].meta, known[path].source_path)
            if listed is not None:
                streams.append(listed)
        return Page(streams, horizon)

    def _newer(self) -> Iterator[tuple[bytes, Stream]]:
        """Path and stream, of streams that memory knows better; a path's newest comes last."""
        prefix, after = self._prefix, self._after
        for streams in self._unindexed:
            for stream in streams:
                path = stream.path
                if path.startswith(prefix) and (after is None or path > after):
                    yield path, stream

    def _of_memory(self, stream: Stream) -> Listed | None:
        origin = stream.origin
        while True:
            before = self._settled()
            gone = stream.gone or stream.expired(self._now_ms)
            listed = Listed(
                stream.path,
                stream.config.content_type,
                stream.root,
                stream.durable_earliest,
                stream.durable_tail,
                stream.durable_closed,
                stream.created_ms,
                None if origin is None else origin.source.path,
            )
            if before is not None and before == self._settled():
                return None if gone else listed
            time.sleep(0)  # lets the owner go on

    def _of_index(self, meta: StreamMeta, source_path: bytes | None) -> Listed | None:
        over = meta.deadline_ms is not None and self._now_ms >= meta.deadline_ms
        if over or meta.kept is not None:
            return None
        return Listed(
            meta.path,
            meta.content_type,
            meta.root,
            meta.earliest,
            meta.tail,
            meta.closed,
            meta.created_ms,
            source_path,
        )
