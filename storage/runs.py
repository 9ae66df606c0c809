"""The newest payload of a stream in memory: runs, whose bytes the tail cache may keep or drop."""

from bisect import bisect_right
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from storage.state import Stream


class Run:
    """Contiguous durable payload of one stream in one batch, and its place in the log.

    `data` is there while the tail cache keeps it.
    """

    __slots__ = ("blocks", "data", "end", "position", "segment_id", "sequence", "start", "stream")

    def __init__(
        self,
        stream: "Stream",
        start: int,
        sequence: int,
        segment_id: int,
        blocks: bytes,
        data: bytes,
    ) -> None:
        self.stream = stream
        self.start = start
        self.end = start + len(data)
        self.sequence = sequence
        self.segment_id = segment_id
        self.position = 0  # until the batch's size is known
        self.blocks = blocks
        self.data: bytes | None = data


class RunList:
    """A stream's runs in memory, oldest first: added at the end, dropped from the front."""

    __slots__ = ("_head", "_runs", "_starts")

    def __init__(self) -> None:
        self._runs: list[Run] = []
        self._starts: list[int] = []
        self._head = 0

    def __len__(self) -> int:
        return len(self._runs) - self._head

    def append(self, run: Run) -> None:
        """Add the stream's newest run."""
        self._runs.append(run)
        self._starts.append(run.start)

    def drop(self, indexed_sequence: int) -> None:
        """Forget leading runs that the index has and whose bytes are not cached."""
        head = self._head
        runs = self._runs
        while head < len(runs) and runs[head].data is None:
            if runs[head].sequence > indexed_sequence:
                break
            head += 1
        if head == len(runs):
            self.clear()
        elif head > 64 and head * 2 > len(runs):
            del runs[:head], self._starts[:head]
            self._head = 0
        else:
            self._head = head

    def cut(self, earliest: int) -> list[Run]:
        """Forget the runs that end at or before an offset, and say which."""
        head = self._head
        runs = self._runs
        end = head
        while end < len(runs) and runs[end].end <= earliest:
            end += 1
        gone = runs[head:end]
        if end == len(runs):
            self.clear()
        else:
            del runs[:end], self._starts[:end]
            self._head = 0
        return gone

    def clear(self) -> None:
        """Forget all."""
        self._runs = []
        self._starts = []
        self._head = 0

    def newest(self) -> Run | None:
        """The last run that was added, if it was not forgotten."""
        return self._runs[-1] if self._head < len(self._runs) else None

    def first_start(self) -> int | None:
        """The lowest offset that memory knows of."""
        return self._starts[self._head] if self._head < len(self._starts) else None

    def covering(self, offset: int, limit_bytes: int) -> list[Run]:
        """The runs from the one that holds `offset`, until `limit_bytes` are passed."""
        at = bisect_right(self._starts, offset, lo=self._head) - 1
        at = max(at, self._head)
        found = []
        end = offset + limit_bytes
        for index in range(at, len(self._runs)):
            run = self._runs[index]
            found.append(run)
            if run.end > end:
                break
        return found


NO_RUNS = RunList()
"""What most streams have. It stays empty: whoever adds the first one makes a list for it."""
