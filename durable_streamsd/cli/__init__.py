"""The command line: `durable-streamsd COMMAND`.

A command's module is imported when the command runs, and not before: reading a stream does not load
the storage engine, and `--help` loads nothing. The price is that each command's summary stands here
as well as in its docstring; a test compares them.

Exit codes: 0 done; 1 the work failed; 2 usage; 3 the data directory is locked by another process;
130 interrupted; 141 standard output was closed by its reader.
"""

from importlib import import_module
from typing import NamedTuple

import click

import durable_streamsd


class _Command(NamedTuple):
    module: str
    summary: str


CLIENT_COMMANDS = {
    "create": _Command("client", "Create a stream; finding an identical one is fine."),
    "write": _Command("client", "Append CONTENT, or standard input, to a stream."),
    "read": _Command("client", "Print a stream from an offset to its end, then stop."),
    "tail": _Command("client", "Print a stream and go on as it grows, until it is closed."),
    "head": _Command("client", "Print what the server knows about a stream."),
    "ls": _Command("client", "Print the paths of all streams."),
    "delete": _Command("client", "Delete a stream with all its data."),
}
DAEMON_COMMANDS = {
    "dev": _Command("server", "Start a daemon to try things with, without configuration."),
    "serve": _Command("server", "Start the daemon on a data directory."),
    "config": _Command("config", "Check a configuration file, or show what is in effect."),
    "token": _Command("token", "Make, list and revoke the tokens that a daemon lets in."),
    "verify": _Command("offline", "Check a data directory for damage."),
    "dump": _Command("offline", "Print the records of a data directory."),
    "backup": _Command("offline", "Copy a data directory, also while a daemon is using it."),
    "restore": _Command("offline", "Make a data directory of a backup."),
    "compact": _Command("offline", "Give back the disk space of deleted and expired data."),
    "reindex": _Command("offline", "Rebuild the index of a data directory from its log."),
}
COMMANDS = DAEMON_COMMANDS | CLIENT_COMMANDS


class LazyGroup(click.Group):
    """A group that knows its commands by name and imports one only to run it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f"durable_streamsd.cli.{COMMANDS[cmd_name].module}")
        command = getattr(module, cmd_name)
        assert isinstance(command, click.Command), f"{cmd_name} is not a click command"
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, commands in (
            ("Daemon and data directory", DAEMON_COMMANDS),
            ("Streams of a running daemon", CLIENT_COMMANDS),
        ):
            with formatter.section(title):
                formatter.write_dl([(name, command.summary) for name, command in commands.items()])


def _print_version(context: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        click.echo(f"durable-streamsd {durable_streamsd.__version__}")
        context.exit()


@click.command(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Example:
  durable-streamsd dev &
  durable-streamsd create chat/room-1 --content-type text/plain
  echo hello | durable-streamsd write chat/room-1
  durable-streamsd tail chat/room-1
""",
)
@click.option("--url", metavar="URL", help="As the option of the stream commands.", hidden=True)
@click.option("--auth", metavar="VALUE", help="As the option of the stream commands.", hidden=True)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version and exit.",
)
@click.pass_context
def main(context: click.Context, url: str | None, auth: str | None) -> None:
    """Store append-only streams and serve them over HTTP (the Durable Streams protocol)."""
    # --url and --auth are taken before the command too, where users of the protocol's own command
    # line put them; `client_common.server_options` looks here.
    if (url or auth) and context.invoked_subcommand in DAEMON_COMMANDS:
        raise click.UsageError(f"{context.invoked_subcommand} takes no --url and no --auth.")
