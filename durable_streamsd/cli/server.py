"""`serve` and `dev`: settings from the command line, then the daemon.

The only difference between the two is what they do without configuration: `serve` insists on a data
directory, `dev` makes one that it removes at the end, and says what to try.
"""

import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from durable_streamsd.config import Settings
from durable_streamsd.settings.loading import load_settings
from durable_streamsd.settings.sources import SettingsError

__all__ = ["EXIT_USAGE", "config_option", "dev", "serve", "settings_options"]

EXIT_USAGE = 2

config_option = click.option(
    "--config",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Settings in TOML; flags and environment win.",
)


def settings_options(command: Callable[..., None]) -> Callable[..., None]:
    """The flags that set a setting. Their values are judged with those of the other sources."""
    for decorate in (
        click.option(
            "--log-level",
            metavar="LEVEL",
            help="What to log: debug, info, warning or error [info].",
        ),
        click.option(
            "--log-format", metavar="FORMAT", help="How to log: text or json lines [text]."
        ),
        click.option(
            "--access-log", is_flag=True, default=None, help="Log a line for every request."
        ),
        click.option(
            "--webhook-targets",
            metavar="HOW-FAR",
            help="Where webhooks may go: public, loopback or private addresses [public; dev: "
            "loopback].",
        ),
        click.option(
            "--tokens-file",
            metavar="FILE",
            help='Ask who requests are from: the tokens that "token create" wrote here.',
        ),
        click.option(
            "--allow-anonymous",
            is_flag=True,
            default=None,
            help="Listen to other machines although anybody may do everything.",
        ),
        click.option(
            "--public-url",
            metavar="URL",
            help="Scheme and host to use in absolute URLs, such as https://streams.example.org "
            "[those of the request].",
        ),
        click.option(
            "--max-body",
            "body_bytes_max",
            metavar="BYTES",
            help="Largest request body, a number of bytes or such as 16MiB [64MiB].",
        ),
        click.option(
            "--long-poll-timeout",
            "long_poll_timeout_s",
            metavar="SECONDS",
            help="How long a long-poll waits for data [20].",
        ),
        click.option("--port", metavar="PORT", help="Port to listen on [4437]; 0: a free one."),
        click.option("--host", metavar="HOST", help="Address to listen on [127.0.0.1]."),
        click.option(
            "--data-dir",
            metavar="DIR",
            help="Where the streams are; made if it is missing [serve: required, here or as a "
            "setting; dev: a temporary directory].",
        ),
    ):
        command = decorate(command)
    return command


@click.command()
@config_option
@settings_options
@click.pass_context
def serve(context: click.Context, /, config: Path | None, **flags: Any) -> None:
    """Start the daemon on a data directory.

    Every setting can also stand in the configuration file, or in the environment as
    DURABLE_STREAMSD_ and its name in capitals.

    SIGTERM or Ctrl-C stops it: it finishes what is in flight and exits with 0 within 10 s.

    \b
    Examples:
      durable-streamsd serve --data-dir /var/lib/durable-streamsd
      durable-streamsd serve --data-dir ./data --port 8080 --max-body 16MiB
      DURABLE_STREAMSD_LOG_LEVEL=debug durable-streamsd serve --config daemon.toml
    """
    settings = _load(context, flags, config)
    if not settings.data_dir:
        # A systemd unit with StateDirectory= says where its state belongs.
        flags["data_dir"] = os.environ.get("STATE_DIRECTORY")
        settings = _load(context, flags, config)
    if not settings.data_dir:
        _usage_error(context, "--data-dir: say where the streams are to be stored")
    context.exit(_run(settings))


@click.command()
@settings_options
@click.pass_context
def dev(context: click.Context, /, **flags: Any) -> None:
    """Start a daemon to try things with, without configuration.

    Its streams are gone when it ends, unless --data-dir is given. Ctrl-C stops it.

    \b
    Examples:
      durable-streamsd dev
      durable-streamsd dev --port 0 --data-dir ./data
    """
    settings = _load(context, flags, None)
    if flags["webhook_targets"] is None and settings.webhook_targets == Settings().webhook_targets:
        flags["webhook_targets"] = "loopback"
        settings = _load(context, flags, None)
    with contextlib.ExitStack() as stack:
        if settings.data_dir:
            said = f"streams are kept in {settings.data_dir}"
        else:
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="durable-streamsd-"))
            settings = _load(context, {**flags, "data_dir": directory}, None)
            said = f"streams are in {directory}, which is removed at exit"

        def greet(url: str) -> None:
            click.echo(said)
            click.echo("try:")
            click.echo(
                f"  curl -X PUT -H 'Content-Type: text/plain' -d 'hello' {url}/v1/stream/hello"
            )
            click.echo(f"  curl {url}/v1/stream/hello")
            click.echo("Ctrl-C stops it")

        context.exit(_run(settings, greet))


def _load(context: click.Context, flags: dict[str, Any], config: Path | None) -> Settings:
    try:
        return load_settings(flags, file=config)
    except SettingsError as error:
        _usage_error(context, str(error))
        raise  # unreachable: the line above has left


def _usage_error(context: click.Context, sentence: str) -> None:
    click.echo(f"durable-streamsd: {sentence}", err=True)
    context.exit(EXIT_USAGE)


def _run(settings: Settings, on_listening: Callable[[str], None] | None = None) -> int:
    from durable_streamsd.daemon import run  # not before the settings are known to be good

    return run(settings, on_listening)
