"""The paths of streams by their ids, for findings: from an index that may be damaged itself.

LMDB's pages have no checksum, so a look-up in damaged ones can end the process, or go on for ever.
Therefore a child does it, `python -m durable_streamsd.cli.stream_paths INDEX`: an id a line in,
a path a line out, empty where the index cannot tell. When the child is gone no path is known.
"""

import contextlib
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from storage.child import child_command, child_environment
from storage.errors import StorageError
from storage.index import Index

LOOKUP_S_MAX = 5


class StreamPaths:
    """Asks the child, which is started by the first question; use it as a context manager."""

    def __init__(self, index: Path) -> None:
        self._index = index
        self._child: subprocess.Popen[str] | None = None

    def path(self, stream_id: int) -> str:
        """The stream's path, fit to be printed, or an empty string."""
        if self._child is None:
            self._child = subprocess.Popen(
                child_command(__name__, str(self._index)),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=child_environment(),
                text=True,
            )
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        try:
            print(stream_id, file=self._child.stdin, flush=True)
        except BrokenPipeError:
            return ""
        return self._child.stdout.readline().rstrip("\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._child is not None:
            with contextlib.suppress(BrokenPipeError):
                self._child.communicate()


def main(path: str) -> None:
    """The child."""
    index = Index(Path(path), writable=False)
    for line in sys.stdin:
        signal.alarm(LOOKUP_S_MAX)
        try:
            found = (index.path_of(int(line)) or b"").decode("utf-8", "backslashreplace")
        except StorageError:
            found = ""
        signal.alarm(0)
        print(found if found.isprintable() else ascii(found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
