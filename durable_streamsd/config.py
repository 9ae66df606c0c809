"""The daemon's settings: where they come from, and every limit of the network side.

Precedence: flag, then environment, then configuration file, then the default below. A setting
`body_bytes_max` is the key `body_bytes_max` in the TOML file, `DURABLE_STREAMSD_BODY_BYTES_MAX` in
the environment, and some have a flag (`FLAGS`) whose name, without the dashes in front, works in
the other two places as well. A key that nobody knows is refused: it is a misspelt one that would
otherwise not take effect.

Left out: the limits of the storage engine that nobody has to choose (`storage.limits`).
"""

import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

__all__ = ["ENVIRONMENT_PREFIX", "FLAGS", "Settings", "SettingsError", "load_settings"]

ENVIRONMENT_PREFIX = "DURABLE_STREAMSD_"

FLAGS = {
    "host": "host",
    "port": "port",
    "data-dir": "data_dir",
    "long-poll-timeout": "long_poll_timeout_s",
    "max-body": "body_bytes_max",
    "public-url": "public_url",
    "log-level": "log_level",
}
"""Flags by the setting they set."""

KIB, MIB = 1 << 10, 1 << 20

Seconds = Annotated[float, Meta(ge=0.05, le=86_400)]
Count = Annotated[int, Meta(ge=1, le=1 << 30)]
Bytes = Annotated[int, Meta(ge=1, le=1 << 40)]


class SettingsError(ValueError):
    """A setting is wrong; one sentence that names its key."""


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What an operator may choose. Units are in the names; defaults are the reference."""

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65_535)] = 4437
    data_dir: str = ""
    public_url: str | None = None
    """Scheme and authority of absolute URLs; without it they are built from `Host`."""
    cors_origin: str = "*"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    express_lane: bool = True
    """Off: every connection starts in the general lane. For tests and for suspicion."""

    # reading
    long_poll_timeout_s: Seconds = 20.0
    sse_lifetime_s: Annotated[float, Meta(ge=2, le=86_400)] = 60.0
    """An event stream is ended after about this time, so that a CDN can join its readers."""
    sse_heartbeat_s: Seconds = 15.0
    read_bytes_max: Annotated[int, Meta(ge=KIB, le=256 * MIB)] = 4 * MIB
    """Of one answer to a read; a JSON message is never cut."""

    # requests
    body_bytes_max: Annotated[int, Meta(ge=1, le=1 << 30)] = 64 * MIB
    bodies_bytes_max: Bytes = 256 * MIB
    """Of all large bodies in memory before they are accepted; beyond it sockets are not read."""
    head_bytes_max: Annotated[int, Meta(ge=1_024, le=MIB)] = 16 * KIB
    head_fields_max: Count = 100
    read_ahead_bytes_max: Annotated[int, Meta(ge=KIB, le=16 * MIB)] = 64 * KIB
    """Pipelined bytes taken while a request is being answered; one more receive may pass it."""
    discard_bytes_max: Bytes = 128 * MIB
    """Of a body that is too large, read and dropped so that the client can read the answer."""

    # connections
    connections_max: Count = 20_000
    """In both lanes; above it a connection is answered 503. Lowered to what the system allows."""
    backlog: Count = 1_024
    write_buffer_bytes_max: Annotated[int, Meta(ge=KIB, le=64 * MIB)] = 256 * KIB
    """Of unsent bytes at which a connection is pushed nothing more; one write may pass it."""
    head_timeout_s: Seconds = 10.0
    """From a head's first byte to its last."""
    body_timeout_s: Seconds = 30.0
    """For each further 64 KiB of a body, or its end."""
    idle_timeout_s: Seconds = 75.0
    """Between two requests of a connection."""
    write_timeout_s: Seconds = 30.0
    """Until a reader that takes nothing is cut off."""
    linger_timeout_s: Seconds = 2.0
    """How long a connection stays half open after an error answer, so that it is not lost."""
    drain_timeout_s: Annotated[float, Meta(ge=0.05, le=9)] = 4.0
    """How long SIGTERM waits for answers in flight."""

    # storage
    segment_bytes: Annotated[int, Meta(ge=MIB, le=1 << 40)] = 256 * MIB
    tail_cache_bytes_max: Annotated[int, Meta(ge=0, le=1 << 40)] = 64 * MIB
    """Of recent payload in memory."""


def load_settings(
    flags: Mapping[str, object],
    environment: Mapping[str, str] = os.environ,
    file: Path | None = None,
) -> Settings:
    """Put the settings together. `flags` are settings by name; None means not given.

    Raises SettingsError.
    """
    given: dict[str, object] = {}
    sources: dict[str, str] = {}
    for name, value, source in (
        *_from_file(file),
        *_from_environment(environment),
        *((name, value, _flag(name)) for name, value in flags.items() if value is not None),
    ):
        if name not in Settings.__struct_fields__:
            raise SettingsError(f"{source}: there is no such setting")
        given[name] = _checked(name, value, source)
        sources[name] = source
    settings = msgspec.convert(given, Settings)
    _check_url(settings, sources.get("public_url", ""))
    return settings


def _from_file(path: Path | None) -> Iterator[tuple[str, object, str]]:
    if path is None:
        return
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise SettingsError(f"--config: cannot read {path}: {error.strerror}") from None
    except ValueError as error:  # of TOML or of UTF-8
        raise SettingsError(f"--config: {path} is not valid TOML: {error}") from None
    for key, value in document.items():
        yield _setting(key), value, f"{key} in {path}"


def _from_environment(environment: Mapping[str, str]) -> Iterator[tuple[str, object, str]]:
    for variable, value in environment.items():
        if variable.startswith(ENVIRONMENT_PREFIX):
            key = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
            yield _setting(key), value, variable


def _setting(key: str) -> str:
    return FLAGS.get(key.replace("_", "-"), key)


def _flag(name: str) -> str:
    flags = [flag for flag, setting in FLAGS.items() if setting == name]
    return f"--{flags[0]}" if flags else name


def _checked(name: str, value: object, source: str) -> object:
    """The value as its setting's type. One at a time, so that the sentence can name the place."""
    if isinstance(value, str) and isinstance(getattr(Settings(), name), bool):
        value = {"on": True, "yes": True, "off": False, "no": False}.get(value.lower(), value)
    try:
        one = msgspec.convert({name: value}, Settings, strict=not isinstance(value, str))
    except msgspec.ValidationError as error:
        reason = str(error).partition(" - at `$.")[0]
        raise SettingsError(f"{source}: {reason[0].lower()}{reason[1:]}, not {value!r}") from None
    return getattr(one, name)


def _check_url(settings: Settings, source: str) -> None:
    if settings.public_url is None:
        return
    url = urlsplit(settings.public_url)
    if url.scheme not in ("http", "https") or not url.netloc or url.path.strip("/"):
        raise SettingsError(
            f"{source}: expected scheme and host, such as 'https://streams.example.org', "
            f"not {settings.public_url!r}"
        )
