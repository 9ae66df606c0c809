"""Commands on data directories: `verify`, `dump`, `reindex`, `compact`, `backup`, `restore`.

Progress goes to standard error when that is a terminal; results go to standard output.
"""

import contextlib
import itertools
import resource
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from durable_streamsd.cli.output import (
    EXIT_FAILED,
    EXIT_OUTPUT_CLOSED,
    OutputClosed,
    WorkFailed,
    counted,
    fail,
    print_line,
    say,
    write_out,
)
from durable_streamsd.cli.stream_paths import StreamPaths
from storage.backup import backup as copy_directory
from storage.batch import HEAD_BYTES
from storage.chain import LogEnd
from storage.directory import DataDirectory
from storage.disk import read_at
from storage.dump import dump as dump_log
from storage.errors import CorruptData, DirectoryLocked, StorageError
from storage.record import DecodeError
from storage.reindex import reindex as rebuild
from storage.scan import Scanner
from storage.segment import SegmentFile
from storage.store import Store
from storage.verify import LogReport, check_index_apart, check_log

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
data_dir_in_use_option = _directory_option(
    "--data-dir", "data_dir", "The data directory; a daemon may be using it."
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
def _working() -> Iterator[None]:
    """Turn errors into a sentence and an exit code.

    Each segment of the log takes an open file, so the system is asked for as many as it gives.
    """
    _, files_max = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files_max, files_max))
    try:
        yield
    except OutputClosed:
        sys.exit(EXIT_OUTPUT_CLOSED)
    except DirectoryLocked as error:
        say(str(error))
        sys.exit(EXIT_LOCKED)
    except (StorageError, WorkFailed) as error:
        fail(str(error))


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
    Prints what is damaged, one finding a line: file, position, stream with its path as far as the
    index can tell. Changes nothing. Exit code 0
    when all is well, 1 when something is damaged, 3 when a daemon has the directory open.
    """
    progress = ProgressLine("reading the log")
    report = LogReport()
    found = 0
    with _working():
        directory = DataDirectory(data_dir)
        directory.lock()
        with StreamPaths(directory.index) as paths:
            for finding in itertools.chain(
                check_log(directory, report, progress), check_index_apart(directory)
            ):
                progress.end()
                stream_id = finding.stream_id
                print_line(finding.line(paths.path(stream_id) if stream_id else ""))
                found += 1
        progress.end()
        print_line(
            f"{counted(report.segments, 'segment')}, {counted(report.batches, 'batch', 'es')}, "
            f"{counted(report.records, 'record')}, {counted(report.payload_bytes, 'byte')} of "
            f"payload: {counted(found, 'finding') if found else 'no damage found'}"
        )
        if report.torn_bytes:
            torn = counted(report.torn_bytes, "byte")
            print_line(f"ignored at the end: {torn} of an unfinished write")
    if found:
        sys.exit(EXIT_FAILED)


@click.command(
    epilog="""\b
Example:
  durable-streamsd dump --data-dir ./data --payload | head
"""
)
@data_dir_in_use_option
@click.option("--payload", is_flag=True, help="Print the payload too (as text).")
def dump(data_dir: Path, payload: bool) -> None:
    """Print the records of a data directory.

    One JSON object a line: segments, their batches with records and runs, and where the log ends.
    A segment that cannot be read any further before its end is "damage"; an unfinished write at the
    end of the log is none. Changes nothing, and does not need the index. Payload is not checked:
    that is what "verify" does.
    """
    with _working():
        directory = DataDirectory(data_dir)
        stopped: dict[str, Any] | None = None
        sequence = 0
        for value in dump_log(directory, payload=payload):
            if stopped is not None:  # and yet another segment comes after it
                _print_json(_damage(stopped))
                stopped = None
            if "because" in value:
                stopped = value
                continue
            _print_json(value)
            if "compacted" not in value:
                sequence = value["batch"] if "batch" in value else value["first_sequence"] - 1
        if stopped is not None:
            _print_json(_log_end(directory, stopped, sequence))


def _print_json(value: dict[str, Any]) -> None:
    write_out(msgspec.json.encode(value) + b"\n")


def _damage(stopped: dict[str, Any], but: str = "") -> dict[str, Any]:
    return {
        "segment": stopped["segment"],
        "end": stopped["end"],
        "damage": f"{stopped['because']}{but}",
    }


def _log_end(directory: DataDirectory, stopped: dict[str, Any], sequence: int) -> dict[str, Any]:
    """Why the last segment was read no further than batch `sequence`: it need not be damage."""
    scanner = Scanner(SegmentFile(directory.segments / stopped["segment"]))
    position = stopped["end"]
    later = scanner.valid_batch_after(position, sequence + 1)
    if later is not None and not _grown(scanner, position):
        return _damage(stopped, f", but a batch follows at position {later}")
    # Zeroes ahead of the end are no write; anything else is one that was not finished.
    torn = any(read_at(scanner.segment.fd, HEAD_BYTES, position))
    because = "the log ends here" + ("; an unfinished write behind it is ignored" if torn else "")
    return {"segment": stopped["segment"], "end": position, "because": because}


def _grown(scanner: Scanner, position: int) -> bool:
    """Whether there is a batch after all: a daemon may have written it since."""
    try:
        scanner.frame_at(position)
    except DecodeError:
        return False
    return True


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
    Payload is not checked: run "verify" for that.
    """
    line = ProgressLine("indexing")

    def progress(reached: LogEnd, end: LogEnd) -> None:
        line(reached.sequence, end.sequence)

    with _working():
        recovered = rebuild(data_dir, progress)
        line.end()
        indexed = counted(recovered.records, "record")
        print_line(f"indexed {indexed}, up to batch {recovered.end.sequence}")


@click.command(
    epilog="""\b
Example:
  durable-streamsd compact --data-dir /var/lib/durable-streamsd
"""
)
@data_dir_option
def compact(data_dir: Path) -> None:
    """Give back the disk space of deleted and expired data.

    A running daemon does this by itself, at leisure; this does it at once. Segments of which half
    or more is dead are rewritten, all but the newest one. Needs no more space than the live data of
    the segments it rewrites at a time. It may be interrupted at any moment. Exit code 1 when
    something is damaged: it stays as it is, and the message says where.
    """
    line = ProgressLine("compacting")
    damage = []
    with _working():
        store = Store.open(data_dir)
        try:
            compactor = store.compactor()
            before_bytes, _ = store.space()
            done_bytes, changes = 0, -1
            while compactor.done.changes != changes:
                changes = compactor.done.changes
                try:
                    for step_bytes in compactor.run():
                        done_bytes += step_bytes
                        line(min(done_bytes, before_bytes), before_bytes)
                except CorruptData as error:
                    damage.append(str(error))
                    changes = -1  # the others are still to do
            after_bytes, live_bytes = store.space()
        finally:
            store.close()
            line.end()
        print_line(
            f"gave back {counted(max(before_bytes - after_bytes, 0), 'byte')}; the log has "
            f"{counted(after_bytes, 'byte')}, {counted(live_bytes, 'byte')} of them live payload"
        )
        for what in damage:
            say(what)
    if damage:
        sys.exit(EXIT_FAILED)


@click.command(
    epilog="""\b
Example:
  durable-streamsd backup --data-dir /var/lib/durable-streamsd --to /backups/monday
"""
)
@data_dir_in_use_option
@_directory_option("--to", "destination", "Where the copy goes: an empty directory, or a new one.")
def backup(data_dir: Path, destination: Path) -> None:
    """Copy a data directory, also while a daemon is using it.

    The copy is the store at one moment, across all streams, with their producers' state; everything
    acknowledged before the command began is in it. It is a data directory itself, which a daemon
    can open. An interrupted backup is not one, and does not open. Payload is copied as it is and
    not checked: run "verify" on the copy.
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

    Refuses to overwrite anything. Payload is copied as it is and not checked: run "verify" on the
    result.
    """
    _copy(source, data_dir, "restoring")


def _copy(source: Path, destination: Path, label: str) -> None:
    line = ProgressLine(label)
    with _working():
        made = copy_directory(source, destination, line)
        line.end()
        copied = counted(made.log_bytes, "byte")
        print_line(f"copied {copied} of log, up to batch {made.sequence}")
        where = shlex.quote(str(destination))
        print_line(f"payload is not checked: run durable-streamsd verify --data-dir {where}")
