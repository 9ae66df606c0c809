"""`durable-streamsd write`: append an argument or standard input, in order, one request at a time.

Input from a pipe is never held whole: bytes go out as they come, JSON Lines in batches. So a
failure in the middle leaves the earlier part appended, and the error says how much that is. Only
the messages of one request are appended together or not at all.

A request whose outcome is unknown is not repeated (it could append twice), unless the user named a
producer, by which the server recognises it. But a producer's numbers are the user's to choose: a
request that the server takes for a repetition although it was sent once was not appended, and that
is a failure.
"""

import os
import sys
import time
from collections.abc import AsyncIterator

import click

from durable_streamsd.cli.client_common import (
    STDIN,
    Server,
    header_value,
    hint,
    run,
    server_options,
)
from durable_streamsd.cli.client_follow import Backoff
from durable_streamsd.cli.client_input import Piece, characters_end, from_argument, from_descriptor
from durable_streamsd.cli.client_json import (
    MESSAGE_BYTES_MAX,
    InputSplitter,
    NotJson,
    check_message,
)
from durable_streamsd.cli.output import WorkFailed, counted
from durable_streamsd.client import (
    Appended,
    Producer,
    StreamClient,
    StreamError,
    Unavailable,
    Unreachable,
    is_json,
)

BATCH_MESSAGES_MAX = 1000
BATCH_BYTES_MAX = 1024 * 1024
REPEATS_MAX = 10  # with the pauses of Backoff about 30 s, enough for a restart of the daemon
PROGRESS_SECONDS_MIN = 0.2
PRODUCER_NUMBER_MAX = 2**53 - 1


class Appender:
    """Sends appends of one stream one after the other and counts what was acknowledged."""

    def __init__(
        self, client: StreamClient, path: str, content_type: str | None, producer: Producer | None
    ) -> None:
        self._client = client
        self._path = path
        self._content_type = content_type
        self._producer = producer
        self._bytes = 0
        self._messages = 0
        self._progress_at = 0.0
        self.next_offset: str | None = None
        self.closed = False

    async def send(self, data: bytes, *, close: bool = False, messages: int = 0) -> None:
        """Append `data`; WorkFailed says what was appended before if it fails."""
        if not data and not close:
            return
        try:
            appended, repeated = await self._append(data, close)
        except StreamError as error:
            unknown = isinstance(error, Unreachable) and error.sent
            outcome = "; whether this part was appended is not known" if unknown else ""
            raise WorkFailed(f"{error}{hint(error)}{outcome}{self.before()}") from error
        if self._producer is not None:
            if appended.duplicate and not repeated:
                raise self._number_taken(self._producer, appended, data, close, messages)
            self._producer = self._producer._replace(seq=self._producer.seq + 1)
        self.next_offset = appended.next_offset
        self._bytes += len(data)
        self._messages += messages
        self.closed = close
        self._show_progress()

    async def _append(self, data: bytes, close: bool) -> tuple[Appended, bool]:
        """The answer, and whether an earlier attempt may have been carried out."""
        backoff = Backoff()
        repeated = False
        for repeats_left in range(REPEATS_MAX if self._producer else 0, -1, -1):
            try:
                appended = await self._client.append(
                    self._path,
                    data,
                    content_type=self._content_type,
                    close=close,
                    producer=self._producer,
                )
                return appended, repeated
            except (Unreachable, Unavailable) as error:
                if not repeats_left:
                    raise
                repeated = repeated or not isinstance(error, Unreachable) or error.sent
            await backoff.pause()
        raise AssertionError("the last attempt returns or raises")

    def _number_taken(
        self, producer: Producer, answer: Appended, data: bytes, close: bool, messages: int
    ) -> WorkFailed:
        if not data:
            lost = "the stream was not closed"
        else:
            lost = counted(messages, "message") if messages else counted(len(data), "byte")
            lost += " of the input not appended" + (", and the stream not closed" if close else "")
        used = producer.seq if answer.last_seq is None else answer.last_seq
        return WorkFailed(
            f"{lost}: the server has request number {producer.seq} of producer {producer.id!r}, "
            f"epoch {producer.epoch}, from before and takes this one for its repetition; "
            f"use a higher --epoch, or --seq {used + 1}{self.before()}"
        )

    def before(self) -> str:
        """What to add to an error about input of which some is appended already."""
        if self._messages:
            return f"; appended before it: {counted(self._messages, 'message')}"
        if self._bytes:
            return f"; appended before it: {counted(self._bytes, 'byte')}"
        return ""

    def _show_progress(self) -> None:
        now = time.monotonic()
        if sys.stderr.isatty() and now - self._progress_at >= PROGRESS_SECONDS_MIN:
            self._progress_at = now
            click.echo(f"\r{self._bytes / 2**20:.1f} MiB appended", err=True, nl=False)

    def end_progress(self) -> None:
        """Wipe the progress line, so that what follows begins at the margin."""
        if self._progress_at:
            click.echo("\r\x1b[K", err=True, nl=False)


@click.command(short_help="Append CONTENT, or standard input, to a stream.")
@server_options
@click.argument("content", required=False)
@click.option("--json", "as_json", is_flag=True, help="The input is one JSON message.")
@click.option(
    "--batch-json",
    is_flag=True,
    help="The input is JSON Lines, or one JSON array: each line or element is a message.",
)
@click.option(
    "--content-type",
    metavar="TYPE",
    callback=header_value,
    help="Type of the input; the stream's own, asked with HEAD, if not given.",
)
@click.option("--close", is_flag=True, help="Close the stream after the input.")
@click.option(
    "--producer-id",
    metavar="ID",
    callback=header_value,
    help="Number the requests as this producer's, so that lost ones are repeated safely.",
)
@click.option(
    "--epoch",
    type=click.IntRange(0, PRODUCER_NUMBER_MAX),
    metavar="N",
    help="Epoch of the producer; a higher one begins anew and locks out lower ones.  [default: 0]",
)
@click.option(
    "--seq",
    type=click.IntRange(0, PRODUCER_NUMBER_MAX),
    metavar="N",
    help="Number of the producer's first request in this epoch.  [default: 0]",
)
@click.option("--show-offset", is_flag=True, help="Print the next offset to standard error.")
def write(
    server: Server,
    path: str,
    content: str | None,
    as_json: bool,
    batch_json: bool,
    content_type: str | None,
    close: bool,
    producer_id: str | None,
    epoch: int | None,
    seq: int | None,
    show_offset: bool,
) -> None:
    """Append CONTENT, or standard input, to a stream.

    Without CONTENT, or with "-", standard input is appended as it comes, in order, in requests of
    at most 1 MiB; an empty one appends nothing. A failure in between leaves the earlier part
    appended. With an empty CONTENT, --close only closes the stream.

    The input of a JSON stream is one message unless --batch-json is given; an array is then one
    message too. With --batch-json at most 1,000 messages or 1 MiB go into one request (a larger
    message goes alone), which is appended as a whole or not at all. Messages are stored byte for
    byte and are checked before they are sent. If the first character of the input is "[", it is
    read as one array, not as lines.

    Nothing is repeated after a broken connection unless --producer-id is given. A producer's
    numbers count its requests, and the server takes a number that it has seen for a repetition, so
    each run needs a higher --epoch, or as --seq the number after the last run's last. A run that
    uses numbers again appends nothing with them and ends with 1. After a run that failed, use a
    higher --epoch.

    \b
    Examples:
      durable-streamsd write chat/room-1 "Hello, world!"
      tail -F app.log | durable-streamsd write logs/app
      durable-streamsd write events '{"id": 1}' --json
      durable-streamsd write events --batch-json < events.jsonl
      durable-streamsd write logs/app "started" --producer-id app --epoch 7
      durable-streamsd write chat/room-1 "" --close
    """
    if as_json and batch_json:
        raise click.UsageError("--json and --batch-json exclude each other.")
    if (as_json or batch_json) and content_type and not is_json(content_type):
        raise click.UsageError(f"--content-type {content_type} is not JSON.")
    if producer_id is None and (epoch is not None or seq is not None):
        raise click.UsageError("--epoch and --seq need --producer-id.")
    if content is None and sys.stdin.isatty():
        raise click.UsageError('Give CONTENT, or "-" to type it and end it with Ctrl-D.')
    if content == "" and not close:
        raise click.UsageError("CONTENT is empty, and --close is not given.")
    if as_json or batch_json:
        content_type = content_type or "application/json"
    producer = None if producer_id is None else Producer(producer_id, epoch or 0, seq or 0)
    if content is None or content == "-":
        source = from_descriptor(STDIN)
    else:
        source = from_argument(os.fsencode(content))
    run(_write(server, path, source, content_type, batch_json, close, producer, show_offset))


async def _write(
    server: Server,
    path: str,
    source: AsyncIterator[Piece],
    content_type: str | None,
    batch_json: bool,
    close: bool,
    producer: Producer | None,
    show_offset: bool,
) -> None:
    async with server.client() as client:
        if content_type is None:
            content_type = (await client.head(path)).content_type
        appender = Appender(client, path, content_type, producer)
        try:
            if batch_json:
                await _write_messages(appender, source, close)
            elif is_json(content_type):
                await _write_message(appender, source, close)
            else:
                in_text = content_type.lower().startswith("text/")
                await _write_bytes(appender, source, close, in_text)
        finally:
            appender.end_progress()
        if show_offset and appender.next_offset is not None:
            click.echo(appender.next_offset, err=True)


async def _write_bytes(
    appender: Appender, source: AsyncIterator[Piece], close: bool, in_text: bool
) -> None:
    """Send input as it comes; text is cut between characters, as live readers get it in parts."""
    kept = b""
    async for piece in source:
        data = kept + piece.data
        end = characters_end(data) if in_text and not piece.last else len(data)
        data, kept = data[:end], data[end:]
        await appender.send(data, close=close and piece.last)


async def _write_message(appender: Appender, source: AsyncIterator[Piece], close: bool) -> None:
    parts: list[bytes] = []
    size = 0
    async for piece in source:
        parts.append(piece.data)
        size += len(piece.data)
        if size > MESSAGE_BYTES_MAX:
            raise WorkFailed(
                f"the input is larger than {MESSAGE_BYTES_MAX} bytes, too much for one message"
            )
    message = b"".join(parts).strip(b" \t\r\n")
    if not message and close:
        await appender.send(b"", close=True)
        return
    try:
        check_message(message)
    except NotJson as error:
        raise WorkFailed(
            f"the input is not one JSON message: {error} (for JSON Lines, use --batch-json)"
        ) from error
    # The server takes an array apart; within an array of its own it stays one message.
    await appender.send(
        b"[" + message + b"]" if message.startswith(b"[") else message, close=close, messages=1
    )


async def _write_messages(appender: Appender, source: AsyncIterator[Piece], close: bool) -> None:
    splitter = InputSplitter()
    batch = _Batch(appender)
    async for piece in source:
        try:
            messages = splitter.feed(piece.data)
            if piece.last:
                messages += splitter.finish()
        except NotJson as error:
            raise batch.failure(error) from error
        for message in messages:
            await batch.add(message)
        if piece.idle or piece.last:
            await batch.send(close=close and piece.last)


class _Batch:
    """Messages for the next request."""

    def __init__(self, appender: Appender) -> None:
        self._appender = appender
        self._messages: list[bytes] = []
        self._bytes = 0
        self._number = 0  # of the input's messages, the last one added

    async def add(self, message: bytes) -> None:
        """Take one message, after sending the others if there is no room for it."""
        try:
            check_message(message)
        except NotJson as error:
            raise self.failure(error) from error
        size = self._bytes + len(message)
        if self._messages and (len(self._messages) >= BATCH_MESSAGES_MAX or size > BATCH_BYTES_MAX):
            await self.send()
        self._number += 1
        self._messages.append(message)
        self._bytes += len(message)

    async def send(self, *, close: bool = False) -> None:
        messages, self._messages, self._bytes = self._messages, [], 0
        body = b"[" + b",".join(messages) + b"]" if messages else b""
        await self._appender.send(body, close=close, messages=len(messages))

    def failure(self, error: NotJson) -> WorkFailed:
        where = f"message {self._number + 1} of the input is not JSON: {error}"
        return WorkFailed(where + self._appender.before())
