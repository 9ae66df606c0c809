"""Commands that work on data directories: `verify`, `dump`, `reindex`, `backup`, `restore`.

Progress goes to standard error when that is a terminal; results go to standard output.
"""

import contextlib
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import click
import msgspec

from storage.backup import backup as copy_directory
from storage.directory import DataDirectory
from storage.dump import dump as dump_log
from storage.errors import DirectoryLocked, StorageError
from storage.log import LogEnd
from storage.reindex import reindex as rebuild
from storage.verify import LogReport, check_index_apart, check_log

EXIT_FAILED = 1
EXIT_LOCKED = 3
PROGRESS_INTERVAL_S = 0.2

Command = TypeVar("Command", bound=Callable[..., None])


def _directory_option(flag: str, name: str, help_text: str) -> Callable[[Command], Command]:
    return click.option(
        flag,
        name,
        metavar="DIRECTORY",
        required=True,
        type=click.Path(path_type=Path),
        help=help_text,
    )


data_dir_option = _directory_option(
    "--data-dir", "data_dir", "The data directory; no daemon may have it open."
)


class ProgressLine:
    """One line on standard error, rewritten while work goes on; nothing outside a terminal."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._shown = sys.stderr.isatty()
        self._next = 0.0

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self._shown and now >= self._next:
            self._next = now + PROGRESS_INTERVAL_S
            share = 100 * done // max(total, 1)
            click.echo(f"\r{self._label}: {share:3d} %", nl=False, err=True)

    def end(self) -> None:
        """Take the line away."""
        if self._shown:
            click.echo("\r\x1b[K", nl=False, err=True)


@contextlib.contextmanager
def _failures() -> Iterator[None]:
    """Turn the engine's errors into a sentence and an exit code."""
    try:
        yield
    except DirectoryLocked as error:
        click.echo(f"durable-streamsd: {error}", err=True)
        sys.exit(EXIT_LOCKED)
    except StorageError as error:
        click.echo(f"durable-streamsd: {error}", err=True)
        sys.exit(EXIT_FAILED)


@click.command(
    epilog="""\b
Example:
  durable-streamsd verify --data-dir /var/lib/durable-streamsd
"""
)
@data_dir_option
def verify(data_dir: Path) -> None:
    """Check a data directory for damage.

    Reads every batch of the log and every block of payload, and compares the index with the log.
    Prints what is damaged, one finding a line: file, position, stream. Changes nothing. Exit code 0
    when all is well, 1 when something is damaged, 3 when a daemon has the directory open.
    """
    progress = ProgressLine("reading the log")
    report = LogReport()
    found = 0
    with _failures():
        directory = DataDirectory(data_dir)
        directory.lock()
        for finding in itertools.chain(
            check_log(directory, report, progress), check_index_apart(directory)
        ):
            progress.end()
            click.echo(finding)
            found += 1
        progress.end()
    click.echo(
        f"{report.segments} segments, {report.batches} batches, {report.records} records, "
        f"{report.payload_bytes} bytes of payload: "
        + (f"{found} findings" if found else "no damage found")
    )
    if report.torn_bytes:
        click.echo(f"{report.torn_bytes} bytes of an unfinished write at the end are ignored")
    if found:
        sys.exit(EXIT_FAILED)


@click.command(
    epilog="""\b
Example:
  durable-streamsd dump --data-dir ./data --payload | head
"""
)
@data_dir_option
@click.option("--payload", is_flag=True, help="Print the payload too (as text).")
def dump(data_dir: Path, payload: bool) -> None:
    """Print the records of a data directory.

    One JSON object a line: segments, their batches with records and runs, and where each segment
    stops being readable. Changes nothing, and does not need the index.
    """
    encode = msgspec.json.encode
    with _failures():
        for value in dump_log(DataDirectory(data_dir), payload=payload):
            click.echo(encode(value))


@click.command(
    epilog="""\b
Example:
  durable-streamsd reindex --data-dir /var/lib/durable-streamsd
"""
)
@data_dir_option
def reindex(data_dir: Path) -> None:
    """Rebuild the index of a data directory from its log.

    The log is the truth and the index a view of it, so this loses nothing. The old index stays
    until the new one is complete. Exit code 1 when the log is damaged: the message says where.
    """
    line = ProgressLine("indexing")

    def progress(reached: LogEnd, end: LogEnd) -> None:
        line(reached.sequence, end.sequence)

    with _failures():
        recovered = rebuild(data_dir, progress)
    line.end()
    click.echo(f"indexed {recovered.records} records, up to batch {recovered.end.sequence}")


@click.command(
    epilog="""\b
Example:
  durable-streamsd backup --data-dir /var/lib/durable-streamsd --to /backups/monday
"""
)
@_directory_option("--data-dir", "data_dir", "The data directory; a daemon may be using it.")
@_directory_option("--to", "destination", "Where the copy goes: an empty directory, or a new one.")
def backup(data_dir: Path, destination: Path) -> None:
    """Copy a data directory, also while a daemon is using it.

    The copy is the store at one moment, across all streams, with their producers' state; everything
    acknowledged before the command began is in it. It is a data directory itself: `verify` checks
    it, a daemon can open it. An interrupted backup is not one, and does not open.
    """
    _copy(data_dir, destination, "backing up")


@click.command(
    epilog="""\b
Example:
  durable-streamsd restore --from /backups/monday --data-dir /var/lib/durable-streamsd
"""
)
@_directory_option("--from", "source", "The backup.")
@_directory_option(
    "--data-dir", "data_dir", "What to make of it: an empty directory, or a new one."
)
def restore(source: Path, data_dir: Path) -> None:
    """Make a data directory of a backup.

    Refuses to overwrite anything.
    """
    _copy(source, data_dir, "restoring")


def _copy(source: Path, destination: Path, label: str) -> None:
    line = ProgressLine(label)
    with _failures():
        made = copy_directory(source, destination, line)
    line.end()
    click.echo(f"copied {made.log_bytes} bytes of log, up to batch {made.sequence}")
