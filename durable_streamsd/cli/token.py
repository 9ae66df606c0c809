"""`token`: who may do what. Makes, lists and revokes the tokens in a daemon's file.

A running daemon notices within a second. `lend` is the odd one out: it asks a daemon for a token
that reads one stream for a while.

Standard output has the token, or the list, and nothing else.
"""

import functools
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import click

from durable_streamsd.auth.scopes import ScopeError, parse_scope
from durable_streamsd.auth.token_editor import create_token, read_tokens, revoke_tokens
from durable_streamsd.auth.token_file import Entry, TokenFileError
from durable_streamsd.cli.client_common import Server, run, server_options
from durable_streamsd.cli.output import counted, fail, print_line, say
from durable_streamsd.settings.loading import load_settings
from durable_streamsd.settings.sources import SettingsError

__all__ = ["token"]

UNIT_S: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_DURATION = re.compile(r"([1-9][0-9]{0,8})([smhd])")


@click.group()
def token() -> None:
    """Make, list and revoke the tokens that a daemon lets in.

    Tokens are kept in a file, as hashes; the daemon that has it as its tokens-file asks every
    request for one, and notices changes within a second. Without --file it is the one that the
    daemon's settings name: DURABLE_STREAMSD_TOKENS_FILE, or tokens-file in --config.

    \b
    Examples:
      export DURABLE_STREAMSD_TOKENS_FILE=tokens.json
      durable-streamsd token create operator --scope 'admin:**'
      durable-streamsd token create ci --scope 'read,append:builds/*' --expires-in 90d
      durable-streamsd serve --data-dir ./data --host 0.0.0.0
      durable-streamsd token revoke ci
    """


def _file_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command --file and --config, and hand it `path`, where the tokens are."""

    @click.option("--file", metavar="FILE", help="Where the tokens are [as the daemon's settings].")
    @click.option("--config", metavar="FILE", help="The daemon's settings, in TOML.")
    @functools.wraps(command)
    def with_path(*args: Any, file: str | None, config: str | None, **options: Any) -> None:
        path = _path(file, config)
        try:
            command(*args, path=path, **options)
        except TokenFileError as error:
            fail(f"{path} {error}")

    return with_path


def _path(file: str | None, config: str | None) -> Path:
    if file is None:
        try:
            file = load_settings({}, file=None if config is None else Path(config)).tokens_file
        except SettingsError as error:
            raise click.UsageError(str(error)) from None
    if not file:
        raise click.UsageError("Say with --file where the tokens are, or set tokens-file.")
    return Path(file)


@token.command()
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    required=True,
    metavar="RIGHTS:PATTERN",
    help="What it may do, such as read:chat/* or read,append:users/42/**; repeatable.",
)
@click.option("--expires-in", metavar="TIME", help="Such as 30m, 12h or 90d [never].")
@_file_options
def create(path: Path, name: str, scopes: tuple[str, ...], expires_in: str | None) -> None:
    """Make a token and print it: the only time that it is seen.

    NAME is for you, to know it again. Rights are read, append, create, delete, metrics, and admin,
    which is all of them, with subscriptions. In a pattern * is one segment of a path, ** any number
    of them. The file is made if it is missing, readable to you alone: run this as the daemon's
    user, or give it the file once; a file that is changed keeps its owner.

    \b
    Examples:
      durable-streamsd token create operator --scope 'admin:**' --file tokens.json
      durable-streamsd token create ci --scope 'read,append:builds/*' --expires-in 90d
    """
    for scope in scopes:
        try:
            parse_scope(scope)
        except ScopeError as error:
            raise click.BadParameter(str(error), param_hint="--scope") from None
    entry, made = create_token(path, name, list(scopes), _moment(expires_in))
    print_line(made)
    say(f"that is token {entry.id} ({name}); {path} has only its hash")


@token.command("list")
@click.option("--json", "as_json", is_flag=True, help="One object a line.")
@_file_options
def list_tokens(path: Path, as_json: bool) -> None:
    """Print what tokens there are, and what each may do.

    \b
    Example:
      durable-streamsd token list --file tokens.json
    """
    for entry in read_tokens(path):
        if as_json:
            print_line(json.dumps(_described(entry)))
        else:
            until = _shown(entry.expires_at) if entry.expires_at is not None else "-"
            print_line(f"{entry.id}  {until}  {entry.name}  {' '.join(entry.scopes)}")


@token.command(short_help="Take tokens out of the file.")
@click.argument("wanted", nargs=-1, required=True, metavar="ID-OR-NAME...")
@_file_options
def revoke(path: Path, wanted: tuple[str, ...]) -> None:
    """Take tokens out of the file: what they were used for ends within a second.

    \b
    Example:
      durable-streamsd token revoke ci --file tokens.json
    """
    revoked = revoke_tokens(path, list(wanted))
    say(f"revoked {counted(len(revoked), 'token')}")


@token.command()
@server_options
@click.option(
    "--ttl",
    "ttl_s",
    type=click.IntRange(1, 3_600),
    default=300,
    metavar="SECONDS",
    help="For how long it is good, up to 3600 [300].",
)
def lend(server: Server, path: str, ttl_s: int) -> None:
    """Print a token that reads one stream for a while.

    It is made for you by the daemon, with the --auth of somebody who may read the stream, and may
    stand in a URL, as browsers need it: URL?offset=-1&live=sse&access_token=TOKEN. It lives 300
    seconds, or --ttl, but no longer than the token that it was asked for with.

    \b
    Example:
      durable-streamsd token lend chat/room-1 --auth "Bearer $TOKEN"
    """

    async def work() -> None:
        async with server.client() as client:
            print_line(await client.lend(path, ttl_s))

    run(work())


def _moment(expires_in: str | None) -> datetime | None:
    if expires_in is None:
        return None
    match = _DURATION.fullmatch(expires_in)
    try:
        if match is not None:
            left = timedelta(seconds=int(match[1]) * UNIT_S[match[2]])
            return datetime.now(UTC).replace(microsecond=0) + left
    except OverflowError:
        pass
    raise click.BadParameter(
        "is a number and s, m, h or d, such as 90d.", param_hint="--expires-in"
    )


def _described(entry: Entry) -> dict[str, Any]:
    return {
        "id": entry.id,
        "name": entry.name,
        "scopes": entry.scopes,
        "created_at": _shown(entry.created_at),
        "expires_at": None if entry.expires_at is None else _shown(entry.expires_at),
    }


def _shown(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
