"""What the stream commands share: the server they talk to, how they end, and printing chunks."""

import asyncio
import fcntl
import functools
import os
import shlex
import stat
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import unquote

import click
from yarl import URL

from durable_streamsd.cli.client_json import NotJson, to_lines
from durable_streamsd.cli.output import (
    EXIT_OUTPUT_CLOSED,
    STDOUT,
    OutputClosed,
    WorkFailed,
    fail,
    write_out,
)
from durable_streamsd.client import (
    Chunk,
    Refused,
    StreamClient,
    StreamError,
    Unreachable,
    is_json,
)

STREAM_ROOT = "/v1/stream"
DEFAULT_URL = f"http://localhost:4437{STREAM_ROOT}"
STDIN = 0
EXIT_INTERRUPTED = 128 + 2  # as a shell reports SIGINT


class Server(NamedTuple):
    """Where the streams are, and the Authorization header to send there."""

    url: str
    auth: str | None

    def client(self) -> StreamClient:
        return StreamClient(self.url, authorization=self.auth)


def server_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command PATH, --url and --auth, and hand it `path` and `server`."""
    return click.argument("path", callback=_checked_path)(connection_options(command))


def connection_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command --url and --auth, and hand it `server`."""

    @click.option(
        "--url",
        envvar="STREAM_URL",
        default=DEFAULT_URL,
        show_default=True,
        show_envvar=True,
        metavar="URL",
        is_eager=True,  # PATH may have to be compared with it
        callback=_checked_url,
        help="Server URL that PATH is relative to; PATH may also be a whole URL below it.",
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


def hint(error: StreamError) -> str:
    """What the user can do about an error, where the error does not say it."""
    if isinstance(error, Unreachable) and not error.sent:
        return '; start a daemon with "durable-streamsd dev", or name one with --url or STREAM_URL'
    if not isinstance(error, Refused):
        return ""
    if error.status == 401:
        return "; give credentials with --auth or STREAM_AUTH"
    return _hint_of_missing(error) if error.status == 404 else ""


def _hint_of_missing(error: Refused) -> str:
    context = click.get_current_context()
    url = URL(context.params["url"])
    # An answer to HEAD cannot tell, for want of a body, whether the stream or the route is missing.
    in_doubt = error.code is None and not url.path.rstrip("/").endswith(STREAM_ROOT)
    if error.code == "no-such-route" or in_doubt:
        return f"; is {url} the right server URL, or should it end in {STREAM_ROOT}?"
    if context.info_name == "ls":
        return "; that server does not list streams"
    if context.info_name in ("create", "delete"):
        return ""
    path = shlex.quote(context.params["path"])
    return f"; create it with: durable-streamsd create {path}"


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


def _checked_path(context: click.Context, _parameter: click.Parameter, value: str) -> str:
    if value.lower().startswith(("http://", "https://")):
        path = _path_below(context.params["url"], value)
    else:
        path = value.removeprefix("/")
    if not path:
        raise click.BadParameter("is empty.")
    return path


def _path_below(server: str, value: str) -> str:
    """The plain path of a stream's whole URL."""
    try:
        root, url = URL(server), URL(value)
        below = url.origin() == root.origin()
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not a URL ({error}).") from error
    prefix = root.raw_path.rstrip("/") + "/"
    if not below or not url.raw_path.startswith(prefix):
        raise click.BadParameter(
            f"{value!r} is not below the server URL {server}: give a path, or name the server "
            "with --url or STREAM_URL."
        )
    if url.query_string or url.fragment:
        raise click.BadParameter(f"{value!r} has a query or fragment, which names no stream.")
    return unquote(url.raw_path.removeprefix(prefix), errors="surrogateescape")
