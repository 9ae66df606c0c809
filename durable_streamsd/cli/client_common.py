"""What the stream commands share: the server they talk to, how they end, and standard output.

Output goes straight to the file descriptor, so that nothing waits in a buffer and a reader that
went away is noticed at the write that met it.
"""

import asyncio
import fcntl
import functools
import os
import stat
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, NoReturn

import click
from yarl import URL

from durable_streamsd.cli.client_json import NotJson, to_lines
from durable_streamsd.client import (
    Chunk,
    Refused,
    StreamClient,
    StreamError,
    Unreachable,
    is_json,
)

DEFAULT_URL = "http://localhost:4437/v1/stream"
STDIN, STDOUT = 0, 1
EXIT_FAILED = 1
EXIT_INTERRUPTED = 128 + 2  # as a shell reports SIGINT
EXIT_OUTPUT_CLOSED = 128 + 13  # as a shell reports SIGPIPE


class WorkFailed(Exception):
    """The command cannot do its work; the message is one sentence for standard error."""


class OutputClosed(Exception):
    """The reader of standard output went away: there is nobody left to tell."""


class Server(NamedTuple):
    """Where the streams are, and the Authorization header to send there."""

    url: str
    auth: str | None

    def client(self) -> StreamClient:
        return StreamClient(self.url, authorization=self.auth)


def server_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command PATH, --url and --auth, and hand it `path` and `server`."""

    @click.argument("path", callback=_checked_path)
    @click.option(
        "--url",
        envvar="STREAM_URL",
        default=DEFAULT_URL,
        show_default=True,
        show_envvar=True,
        metavar="URL",
        callback=_checked_url,
        help="Server URL that PATH is relative to.",
    )
    @click.option(
        "--auth",
        envvar="STREAM_AUTH",
        show_envvar=True,
        metavar="VALUE",
        callback=_checked_auth,
        help='Authorization header to send, such as "Bearer TOKEN".',
    )
    @functools.wraps(command)
    def with_server(*args: Any, url: str, auth: str | None, **options: Any) -> None:
        command(*args, server=Server(url, auth), **options)

    return with_server


def header_value(
    _context: click.Context, _parameter: click.Parameter, value: str | None
) -> str | None:
    """Click callback: a value that can stand in an HTTP header."""
    if value is not None and (not value.strip() or not value.isprintable()):
        raise click.BadParameter("must not be empty or hold control characters.")
    return value


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run a command's work and end the process as the package docstring says, without traceback."""
    try:
        asyncio.run(work)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except OutputClosed:
        sys.exit(EXIT_OUTPUT_CLOSED)
    except StreamError as error:
        fail(f"{error}{hint(error)}")
    except WorkFailed as error:
        fail(str(error))


def fail(sentence: str) -> NoReturn:
    """Say why on standard error and exit with 1."""
    say(sentence)
    sys.exit(EXIT_FAILED)


def say(sentence: str) -> None:
    """One line on standard error."""
    click.echo(f"durable-streamsd: {sentence}", err=True)


def hint(error: StreamError) -> str:
    """What the user can do about an error, where the error does not say it."""
    if isinstance(error, Unreachable) and not error.sent:
        return '; start a daemon with "durable-streamsd dev", or name one with --url or STREAM_URL'
    if isinstance(error, Refused) and error.status == 401:
        return "; give credentials with --auth or STREAM_AUTH"
    return ""


def print_chunk(chunk: Chunk) -> None:
    """A chunk on standard output: JSON as one message per line, everything else as it is."""
    if not is_json(chunk.content_type):
        write_out(chunk.data)
        return
    try:
        lines = to_lines(chunk.data)
    except NotJson as error:
        raise WorkFailed(f"the server's answer is not a JSON array: {error}") from error
    write_out(lines)


def write_out(data: bytes) -> None:
    """All of `data` on standard output; OutputClosed if its reader went away."""
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(STDOUT, rest) :]
        except BrokenPipeError:
            raise OutputClosed from None
        except OSError as error:
            raise WorkFailed(f"cannot write to standard output ({error.strerror})") from error


@contextmanager
def watching_output() -> Iterator[None]:
    """Cancel the current task and raise OutputClosed as soon as nobody reads standard output.

    Without it `tail PATH | head -1` would wait for a second message only to fail to print it.
    """
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None
    write_only = fcntl.fcntl(STDOUT, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY
    if not (stat.S_ISFIFO(os.fstat(STDOUT).st_mode) and write_only):
        yield
        return
    gone = False

    def stop() -> None:
        nonlocal gone
        gone = True
        loop.remove_reader(STDOUT)
        task.cancel()

    # The write end of a pipe is never readable: what wakes this is the error of a lost reader.
    loop.add_reader(STDOUT, stop)
    try:
        yield
    except asyncio.CancelledError:
        if not gone:
            raise
        task.uncancel()
        raise OutputClosed from None
    finally:
        loop.remove_reader(STDOUT)


def _before_command(context: click.Context, parameter: click.Parameter, value: Any) -> Any:
    """The option as given after the command, else before it, else from the environment."""
    assert parameter.name is not None
    if context.get_parameter_source(parameter.name) is click.core.ParameterSource.COMMANDLINE:
        return value
    return context.find_root().params.get(parameter.name) or value


def _checked_url(context: click.Context, parameter: click.Parameter, value: str) -> str:
    given = _before_command(context, parameter, value)
    try:
        url = URL(given)
    except ValueError as error:
        raise click.BadParameter(f"{given!r} is not a URL ({error}).") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise click.BadParameter(f"{given!r} does not begin with http:// or https:// and a host.")
    if url.user is not None or url.password is not None:
        raise click.BadParameter("credentials belong in --auth or STREAM_AUTH.")
    if url.query_string or url.fragment:
        raise click.BadParameter(f"{given!r} has a query or fragment; PATH would come after it.")
    return str(url)


def _checked_auth(
    context: click.Context, parameter: click.Parameter, value: str | None
) -> str | None:
    return header_value(context, parameter, _before_command(context, parameter, value) or None)


def _checked_path(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    path = value.removeprefix("/")
    if not path:
        raise click.BadParameter("is empty.")
    return path
