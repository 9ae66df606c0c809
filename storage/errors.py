"""Everything the engine raises, by what the caller can do about it.

    StorageError
    ├── OpenError              the directory cannot be opened; nothing on disk was changed
    │   └── DirectoryLocked    another process has it
    ├── CorruptData            damaged bytes; the rest of the store is served
    ├── IndexFailed            the index could not be read or written; the log is not affected
    ├── CommitError            what was accepted did not become durable
    │   ├── OutOfSpace         nothing of it was kept; try again later
    │   └── Latched            outcome unknown; no more writes until a restart
    ├── FramingError           the body is not what the stream's content type says
    │   └── TooManyMessages    more in one body than may be appended at once
    ├── OffsetError            the offset lies inside a message
    ├── NotRetained            the offset lies before the earliest one that is kept
    ├── SoftDeleted            the stream was deleted, and is kept for its forks
    ├── NotResident            not in memory: load, admit, ask again
    └── Unsettled              the answer rests on a batch: wait for it, ask again

Each message is one sentence for the operator or the client; where a file is at fault it names the
file and the position.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from storage.state import Batch


class StorageError(Exception):
    """Base of all the engine's errors."""


class OpenError(StorageError):
    """The data directory cannot be opened, and nothing in it was changed."""


class DirectoryLocked(OpenError):
    """Another process holds the data directory."""


class CorruptData(StorageError):
    """Committed bytes are damaged: says in which file and where."""

    def __init__(self, file: str, position: int, reason: str) -> None:
        super().__init__(f"{file}, position {position}: {reason}")
        self.file = file
        self.position = position
        self.reason = reason


class IndexFailed(StorageError):
    """LMDB refused: no space, or a damaged page. The index can be rebuilt from the log."""


class CommitError(StorageError):
    """What was accepted did not become durable."""


class OutOfSpace(CommitError):
    """The disk is full: nothing of the batch was kept, and accepted state is back at durable."""


class Latched(CommitError):
    """A write or sync failed: its outcome is unknown; no more writes until a restart."""


class FramingError(StorageError):
    """A body is not valid for the stream's content type."""


class TooManyMessages(FramingError):
    """A body has more messages than may be appended at once."""


class OffsetError(StorageError):
    """An offset lies inside a message."""


class NotRetained(StorageError):
    """An offset lies before the earliest one that its stream keeps."""


class SoftDeleted(StorageError):
    """The stream at a path was deleted, and is kept for the forks that read its data."""


class NotResident(StorageError):
    """The stream at a path is not in memory: `Store.load` it, `Store.admit` it, ask again."""

    def __init__(self, path: bytes) -> None:
        super().__init__(path.decode("utf-8", "replace"))
        self.path = path


class Unsettled(StorageError):
    """What a look-up found is not durable yet: wait for `batch`, then ask again."""

    def __init__(self, batch: "Batch") -> None:
        super().__init__(f"waits for batch {batch.sequence}")
        self.batch = batch
