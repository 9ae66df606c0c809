"""Answers that many waiting readers get at once: encoded by the first, reused by the rest.

A key names everything that the bytes depend on, the stream's durable state included, so an entry
is never wrong, only unused. The cache is small and forgets its oldest entries: an answer is wanted
within the one callback that wakes its readers.
"""

from collections.abc import Hashable
from typing import Final, Generic, TypeVar

__all__ = ["SharedAnswers"]

ENTRIES_MAX: Final = 256
BYTES_MAX: Final = 16 << 20
"""For all entries; an answer above it is not kept, and every reader encodes it anew."""

T = TypeVar("T")


class SharedAnswers(Generic[T]):
    """A bounded map from keys to encoded answers."""

    def __init__(self, entries_max: int = ENTRIES_MAX, bytes_max: int = BYTES_MAX) -> None:
        self._entries: dict[Hashable, tuple[T, int]] = {}
        self._bytes = 0
        self._entries_max = entries_max
        self._bytes_max = bytes_max

    def get(self, key: Hashable) -> T | None:
        """The answer that was kept for `key`."""
        found = self._entries.get(key)
        return found[0] if found is not None else None

    def keep(self, key: Hashable, answer: T, size_bytes: int) -> None:
        """Keep an answer, at the cost of the oldest ones. A key that is there already stays."""
        if size_bytes > self._bytes_max or key in self._entries:
            return
        self._entries[key] = answer, size_bytes
        self._bytes += size_bytes
        while self._bytes > self._bytes_max or len(self._entries) > self._entries_max:
            _, dropped_bytes = self._entries.pop(next(iter(self._entries)))
            self._bytes -= dropped_bytes

    def clear(self) -> None:
        """Forget all."""
        self._entries.clear()
        self._bytes = 0
