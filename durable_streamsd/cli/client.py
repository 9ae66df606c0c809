"""The commands that talk to a running daemon, or to any server of the protocol.

`write` has a module of its own, and so have following (`client_follow`), splitting JSON
(`client_json`) and standard input (`client_input`). Standard output carries only what was asked
for; everything else goes to standard error.
"""

import asyncio
import json
import sys

import click

from durable_streamsd.cli.client_common import (
    Server,
    connection_options,
    header_value,
    hint,
    print_chunk,
    run,
    server_options,
    watching_output,
)
from durable_streamsd.cli.client_follow import follow
from durable_streamsd.cli.client_write import write
from durable_streamsd.cli.output import WorkFailed, print_line, say
from durable_streamsd.client import Fork, StreamError, StreamInfo, Unavailable, Unreachable

__all__ = ["create", "delete", "head", "ls", "read", "tail", "write"]


@click.command(short_help="Create a stream; finding an identical one is fine.")
@server_options
@click.option(
    "--content-type",
    metavar="TYPE",
    callback=header_value,
    help="Type of the stream; the server's default is application/octet-stream.",
)
@click.option("--json", "as_json", is_flag=True, help="Short for --content-type application/json.")
@click.option(
    "--ttl",
    "ttl_seconds",
    type=click.IntRange(min=0),
    metavar="SECONDS",
    help="Expire the stream when nobody read or wrote it for so long.",
)
@click.option(
    "--expires-at",
    metavar="RFC3339",
    callback=header_value,
    help="Expire the stream at this time, such as 2030-01-31T12:00:00Z.",
)
@click.option(
    "--retain-bytes",
    type=click.IntRange(min=1),
    metavar="BYTES",
    help="Keep about the newest so many bytes, and drop what is older.",
)
@click.option(
    "--retain-seconds",
    type=click.IntRange(min=1),
    metavar="SECONDS",
    help="Keep what was written in about the last so many seconds, and drop what is older.",
)
@click.option("--closed", is_flag=True, help="Create it closed: empty for ever.")
@click.option(
    "--fork-from",
    metavar="PATH",
    help="Begin with what the stream at this path holds; nothing is copied.",
)
@click.option(
    "--fork-offset",
    metavar="OFFSET",
    callback=header_value,
    help="Only up to this offset, one that the server gave for that stream; else all.",
)
@click.option(
    "--fork-sub-offset",
    type=click.IntRange(min=0),
    metavar="N",
    help="And so many bytes behind --fork-offset, or messages of a JSON stream.",
)
def create(
    server: Server,
    path: str,
    content_type: str | None,
    as_json: bool,
    ttl_seconds: int | None,
    expires_at: str | None,
    retain_bytes: int | None,
    retain_seconds: int | None,
    closed: bool,
    fork_from: str | None,
    fork_offset: str | None,
    fork_sub_offset: int | None,
) -> None:
    """Create a stream; finding an identical one is fine.

    Prints "created URL", or "exists URL" if the stream is there already with the same type, expiry,
    retention and closure; if it is there with others, nothing is changed and the exit code is 1.

    \b
    Examples:
      durable-streamsd create chat/room-1 --content-type text/plain
      durable-streamsd create events --json --ttl 86400
      durable-streamsd create logs/web --retain-bytes 1000000000 --retain-seconds 604800
      durable-streamsd create chat/what-if --fork-from chat/room-1
    """
    if as_json and content_type:
        raise click.UsageError("--json and --content-type exclude each other.")
    if ttl_seconds is not None and expires_at:
        raise click.UsageError("--ttl and --expires-at exclude each other.")
    fork = None
    if fork_from is not None:
        fork = Fork(fork_from.removeprefix("/"), fork_offset, fork_sub_offset)
    elif fork_offset is not None or fork_sub_offset is not None:
        raise click.UsageError("--fork-offset and --fork-sub-offset go with --fork-from.")

    async def work() -> None:
        async with server.client() as client:
            info = await client.create(
                path,
                content_type="application/json" if as_json else content_type,
                ttl_seconds=ttl_seconds,
                expires_at=expires_at,
                retain_bytes=retain_bytes,
                retain_seconds=retain_seconds,
                closed=closed,
                fork=fork,
            )
        print_line(f"{'created' if info.created else 'exists'} {info.url}")

    run(work())


@click.command(short_help="Print a stream from an offset to its end, then stop.")
@server_options
@click.option(
    "--offset",
    default="-1",
    show_default=True,
    metavar="OFFSET",
    help="Where to begin: an offset that the server gave, or -1 for the start.",
)
@click.option("--show-offset", is_flag=True, help="Print the next offset to standard error.")
def read(server: Server, path: str, offset: str, show_offset: bool) -> None:
    """Print a stream from an offset to its end, then stop.

    Bytes come out as they are stored. A JSON stream comes out as JSON Lines, one message per line,
    each byte for byte as stored, except that a line break in the white space within a message
    becomes a space.

    If the connection breaks, what was printed is whole, and the error names the offset to go on
    from.

    \b
    Examples:
      durable-streamsd read chat/room-1
      durable-streamsd read events | jq .id
      durable-streamsd read events --offset 0000000000000000_0000000000000042
    """

    async def work() -> None:
        reached = None
        async with server.client() as client:
            try:
                async for chunk in client.read_chunks(path, offset):
                    print_chunk(chunk)
                    reached = chunk.next_offset
            except StreamError as error:
                if reached is None:
                    raise
                raise WorkFailed(f"{error}{hint(error)}; go on with --offset {reached}") from error
        if show_offset:
            click.echo(reached, err=True)

    run(work())


@click.command(short_help="Print a stream and go on as it grows, until it is closed.")
@server_options
@click.option(
    "--offset",
    default="-1",
    show_default=True,
    metavar="OFFSET",
    help="Where to begin: an offset that the server gave, -1 for the start, or now.",
)
@click.option(
    "--sse/--long-poll",
    default=False,
    help="Server-Sent Events (text comes without CRs), or one request per wait (the default).",
)
@click.option(
    "--max-time",
    "max_seconds",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="Stop after so long, with exit code 0.",
)
@click.option(
    "--show-offset", is_flag=True, help="At the end, print the next offset to standard error."
)
def tail(
    server: Server,
    path: str,
    offset: str,
    sse: bool,
    max_seconds: float | None,
    show_offset: bool,
) -> None:
    """Print a stream and go on as it grows, until it is closed.

    Output is that of "read". After a broken connection or a restart of the daemon it goes on where
    it was, with every byte printed once, and tries for ever with growing pauses of up to 5 s.

    Ends with 0 when the stream is closed, with 1 when it is deleted or expires or the first request
    fails, with 130 on Ctrl-C.

    \b
    Examples:
      durable-streamsd tail chat/room-1
      durable-streamsd tail events --offset now --sse | jq .id
    """

    def on_outage(error: Unreachable | Unavailable, reached: str) -> None:
        say(f"{error}; trying again from offset {reached}")

    async def work() -> None:
        reached = None
        try:
            async with server.client() as client, asyncio.timeout(max_seconds) as limit:
                with watching_output():
                    chunks = follow(client, path, offset, sse=sse, on_outage=on_outage)
                    async for chunk in chunks:
                        print_chunk(chunk)
                        reached = chunk.next_offset
        except TimeoutError:
            if not limit.expired():
                raise
        finally:
            if show_offset and reached is not None:
                click.echo(reached, err=True)

    run(work())


@click.command(short_help="Print what the server knows about a stream.")
@server_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def head(server: Server, path: str, as_json: bool) -> None:
    """Print what the server knows about a stream.

    Lines of "name: value": url, content-type, next-offset, closed (yes or no), and ttl-seconds or
    expires-at, retain-bytes, retain-seconds and earliest-offset if the stream has them. With --json
    the same as one object, in which closed is a boolean, seconds and bytes are numbers, and what
    the stream has not is null.

    \b
    Examples:
      durable-streamsd head chat/room-1
      durable-streamsd head events --json | jq -r .next_offset
    """

    async def work() -> None:
        async with server.client() as client:
            info = await client.head(path)
        print_line(json.dumps(_described(info)) if as_json else _listed(info))

    run(work())


def _described(info: StreamInfo) -> dict[str, str | int | bool | None]:
    return {
        "url": info.url,
        "content_type": info.content_type,
        "next_offset": info.next_offset,
        "closed": info.closed,
        "ttl_seconds": info.ttl_seconds,
        "expires_at": info.expires_at,
        "retain_bytes": info.retain_bytes,
        "retain_seconds": info.retain_seconds,
        "earliest_offset": info.earliest_offset,
    }


def _listed(info: StreamInfo) -> str:
    lines = []
    for name, value in _described(info).items():
        if value is not None:
            shown = ("yes" if value else "no") if isinstance(value, bool) else value
            lines.append(f"{name.replace('_', '-')}: {shown}")
    return "\n".join(lines)


@click.command(short_help="Print the paths of all streams.")
@click.argument("prefix", default="")
@connection_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a stream.")
def ls(server: Server, prefix: str, as_json: bool) -> None:
    """Print the paths of all streams.

    Or of those that begin with PREFIX; sorted, one a line.

    With --json one object a line: path, content_type, next_offset, closed, created_at, size_bytes,
    forked_from, which is null unless the stream is a fork, and earliest_offset, which is null
    unless retention dropped something. The listing is an extension: other servers of the protocol
    do not have it.

    \b
    Examples:
      durable-streamsd ls
      durable-streamsd ls chat/
      durable-streamsd ls --json | jq -r 'select(.closed | not).path'
    """

    async def work() -> None:
        async with server.client() as client:
            async for stream in client.streams(prefix.removeprefix("/")):
                print_line(json.dumps(stream._asdict()) if as_json else stream.path)

    run(work())


@click.command(short_help="Delete a stream with all its data.")
@server_options
@click.option("--yes", is_flag=True, help="Do not ask. Never asked without a terminal.")
def delete(server: Server, path: str, yes: bool) -> None:
    """Delete a stream with all its data.

    On a terminal it asks first. A stream that has forks is hidden at once and goes with the last of
    them.

    \b
    Example:
      durable-streamsd delete chat/room-1 --yes
    """

    async def work() -> None:
        async with server.client() as client:
            on_terminal = sys.stdin.isatty() and sys.stderr.isatty()
            if on_terminal and not yes:
                question = f"Delete {client.url(path)} with all its data?"
                if not click.confirm(question, err=True):
                    raise WorkFailed("nothing was deleted")
            await client.delete(path)

    run(work())
