"""`config check` and `config show`: what `serve` would make of flags, environment and a file.

`check` looks at a file alone, and at whatever it names on this machine. It finds everything in it
that `serve` would refuse; a port that is taken and a data directory in use are no fault of a file.
"""

import os
import socket
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click

from durable_streamsd.cli.output import (
    EXIT_FAILED,
    EXIT_OUTPUT_CLOSED,
    OutputClosed,
    WorkFailed,
    counted,
    fail,
    print_line,
    say,
)
from durable_streamsd.cli.server import EXIT_USAGE, config_option, settings_options
from durable_streamsd.settings.listing import listing
from durable_streamsd.settings.loading import Gathered, gather
from durable_streamsd.settings.sources import SettingsError

__all__ = ["config"]


@click.group()
def config() -> None:
    """Check a configuration file, or show what is in effect.

    \b
    Examples:
      durable-streamsd config check daemon.toml
      durable-streamsd config show --config daemon.toml --port 8080
    """


@config.command()
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@click.pass_context
def check(context: click.Context, file: Path) -> None:
    """Name the line of whatever is wrong with a configuration file.

    The exit code is 0 if there is nothing, 1 if there is something, 2 if FILE cannot be read.

    \b
    Example:
      durable-streamsd config check /etc/durable-streamsd/durable-streamsd.toml
    """
    try:
        file.read_bytes()
    except OSError as error:
        say(f"cannot read {file}: {error.strerror}")
        context.exit(EXIT_USAGE)
    try:
        gathered = gather({}, {}, file)
    except SettingsError as error:
        problems = [str(error)]
    else:
        problems = [*gathered.problems, *_wrong_here(gathered)]
    if not problems:
        _print([f"{file}: {counted(len(gathered.sources), 'setting')}, nothing wrong"])
        return
    _print(problems)
    context.exit(EXIT_FAILED)


def _wrong_here(gathered: Gathered) -> Iterator[str]:
    """What is wrong on this machine with settings that are right by themselves."""
    settings = gathered.settings
    for name, sentence in (
        ("host", _wrong_host(settings.host)),
        ("data_dir", _wrong_directory(settings.data_dir)),
    ):
        if sentence and name in gathered.sources:
            yield f"{gathered.sources[name].place()}: {sentence}"


def _wrong_host(host: str) -> str | None:
    try:
        socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        return "there is no such address to listen on"
    return None


def _wrong_directory(directory: str) -> str | None:
    path = Path(directory)
    return "it is not a directory" if path.exists() and not path.is_dir() else None


@config.command()
@config_option
@settings_options
@click.pass_context
def show(context: click.Context, /, config: Path | None, **flags: Any) -> None:
    """Show all settings in effect, each with where it comes from.

    The output is a configuration file again. Secrets are not in it.

    \b
    Examples:
      durable-streamsd config show
      durable-streamsd config show --config daemon.toml --max-body 16MiB | grep -v default
    """
    try:
        gathered = gather(flags, os.environ, config)
    except SettingsError as error:
        say(str(error))
        context.exit(EXIT_USAGE)
    for problem in gathered.problems:
        say(problem)
    if gathered.problems:
        context.exit(EXIT_USAGE)
    _print(listing(gathered))


def _print(lines: Iterable[str]) -> None:
    try:
        for line in lines:
            print_line(line)
    except OutputClosed:
        sys.exit(EXIT_OUTPUT_CLOSED)
    except WorkFailed as error:
        fail(str(error))
