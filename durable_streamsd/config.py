"""The daemon's settings: where they come from, and every limit of the network side.

Precedence: flag, then environment, then configuration file, then the default below. A setting
`body_bytes_max` is the key `body-bytes-max` in the TOML file, `DURABLE_STREAMSD_BODY_BYTES_MAX` in
the environment, and some have a flag (`FLAGS`) whose name, without the dashes in front, works in
the other two places as well. Dashes and underscores mean the same. Sizes may be strings such as
`64MiB`. A key that nobody knows is refused: it is a misspelt one that would otherwise not take
effect.

Left out: the limits of the storage engine that nobody has to choose (`storage.limits`).
"""

import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Literal, get_args, get_type_hints
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, inspect

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
    "webhook-targets": "webhook_targets",
}
"""Flags by the setting they set."""

KIB, MIB = 1 << 10, 1 << 20
UNITS = {"GiB": 1 << 30, "MiB": MIB, "KiB": KIB}
ORIGINS_MAX = 100
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[a-z0-9._~\[\]:-]+")
_SIZE = re.compile(rf"(\d+) ?({'|'.join(UNITS)})")

Seconds = Annotated[float, Meta(ge=0.05, le=86_400)]
Count = Annotated[int, Meta(ge=1, le=1 << 30)]
Bytes = Annotated[int, Meta(ge=1, le=1 << 40)]
Limit = Annotated[int, Meta(ge=0, le=1 << 30)]
"""0: none."""


class SettingsError(ValueError):
    """A setting is wrong; one sentence that names its key."""


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What an operator may choose. Units are in the names; defaults are the reference."""

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65_535)] = 4437
    data_dir: str = ""
    public_url: str | None = None
    """Scheme and authority of absolute URLs; without it they are built from `Host`."""
    cors_origins: tuple[str, ...] = ("*",)
    """From where browsers may call: `*`, or origins such as https://example.org."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    express_lane: bool = True
    """Off: every connection starts in the general lane. For tests and for suspicion."""

    # TLS, and what stands in front
    tls_certificate: str = ""
    """A PEM file: the certificate, and those between it and its authority. With it all is https."""
    tls_key: str = ""
    """A PEM file: its private key; by default that in `tls_certificate`."""
    tls_client_ca: str = ""
    """A PEM file of authorities; with it only clients with a certificate of theirs get in."""
    tls_handshake_timeout_s: Seconds = 10.0
    trusted_proxies: tuple[str, ...] = ()
    """Networks, such as 10.0.0.0/8, whose word about clients is taken."""
    proxy_headers: Literal["x-forwarded", "forwarded"] = "x-forwarded"
    """What they say it with: X-Forwarded-For, -Proto and -Host, or Forwarded."""

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
    answers_bytes_max: Bytes = 256 * MIB
    """Of all large answers and events that readers have not taken yet; beyond it others wait."""
    head_bytes_max: Annotated[int, Meta(ge=1_024, le=MIB)] = 16 * KIB
    head_fields_max: Count = 100
    read_ahead_bytes_max: Annotated[int, Meta(ge=KIB, le=16 * MIB)] = 64 * KIB
    """Pipelined bytes taken while a request is being answered; one more receive may pass it."""
    discard_bytes_max: Bytes = 128 * MIB
    """Of a body that is too large, read and dropped so that the client can read the answer."""

    # connections
    connections_max: Count = 20_000
    """In both lanes; above it a connection is answered 503. Lowered to what the system allows."""
    connections_per_address_max: Limit = 0
    """Of one IPv4 address, or of one IPv6 network of 64 bits; not of trusted proxies."""
    requests_per_second_max: Limit = 0
    """Of one address, in the long run; beyond it 429."""
    requests_burst_max: Count = 100
    """At once, of an address that asked for nothing for a while."""
    waiters_per_stream_max: Limit = 0
    """Long-polls and event streams on one stream; beyond it 503."""
    memory_bytes_max: Annotated[int, Meta(ge=0, le=1 << 50)] = 0
    """Of the process; above it large reads and new live readers are answered 503. 0: 80 % of what
    the control group or the machine has."""
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
    """For each further 64 KiB of a large answer; else until a reader is cut off."""
    linger_timeout_s: Seconds = 2.0
    """How long a connection stays half open after an error answer, so that it is not lost."""
    drain_timeout_s: Annotated[float, Meta(ge=0.05, le=9)] = 4.0
    """How long SIGTERM waits for answers in flight."""

    # webhooks
    webhook_targets: Literal["public", "loopback", "private"] = "public"
    """How far they may go, beyond public addresses by https."""
    webhook_connections_max: Annotated[int, Meta(ge=1, le=10_000)] = 64
    webhook_timeout_s: Annotated[float, Meta(ge=0.05, le=600)] = 10.0
    """From the beginning of a delivery to the end of its answer."""

    # storage
    segment_bytes: Annotated[int, Meta(ge=MIB, le=2048 * MIB)] = 256 * MIB
    """Of one file of the log; made twice `body_bytes_max` where that is more."""
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
            raise SettingsError(f"{source}: there is no such setting{_suggestion(name, source)}")
        given[name] = _checked(name, value, source)
        sources[name] = source
    settings = msgspec.convert(given, Settings)
    _check_url(settings, sources.get("public_url", ""))
    for name, sentence in wrong_edge(settings):
        raise SettingsError(f"{sources.get(name, name)}: {sentence}")
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
    return FLAGS.get(key.replace("_", "-"), key.replace("-", "_"))


def _suggestion(name: str, source: str) -> str:
    known = [*Settings.__struct_fields__, *(flag.replace("-", "_") for flag in FLAGS)]
    for nearest in get_close_matches(name, known, 1):
        if source.startswith(ENVIRONMENT_PREFIX):
            return f"; is it {ENVIRONMENT_PREFIX}{nearest.upper()}?"
        return f"; is it {nearest.replace('_', '-')}?"
    return ""


def _flag(name: str) -> str:
    flags = [flag for flag, setting in FLAGS.items() if setting == name]
    return f"--{flags[0]}" if flags else name


def _checked(name: str, value: object, source: str) -> object:
    """The value as its setting's type. One at a time, so that the sentence can name the place."""
    plain = _from_words(name, value) if isinstance(value, str) else value
    try:
        one = msgspec.convert({name: plain}, Settings, strict=not isinstance(plain, str))
    except msgspec.ValidationError:
        raise SettingsError(f"{source}: expected {_expected(name)}, not {_shown(value)}") from None
    return getattr(one, name)


def _from_words(name: str, text: str) -> object:
    """What people write for switches and sizes, as a value; other text as it is."""
    if isinstance(getattr(Settings(), name), bool):
        return {"on": True, "yes": True, "off": False, "no": False}.get(text.lower(), text)
    if isinstance(getattr(Settings(), name), tuple):
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if "bytes" in name and (size := _SIZE.fullmatch(text)):
        return int(size[1]) * UNITS[size[2]]
    return text


def _expected(name: str) -> str:
    """What a setting takes, in plain words."""
    described = inspect.type_info(Settings)
    assert isinstance(described, inspect.StructType)
    match next(field.type for field in described.fields if field.name == name):
        case inspect.LiteralType():  # whose values are sorted, where these are in order
            return f"one of {', '.join(get_args(get_type_hints(Settings)[name]))}"
        case inspect.VarTupleType():
            return 'a list of texts, such as ["a", "b"]'
        case inspect.BoolType():
            return "on or off"
        case inspect.IntType(ge=int(low), le=int(high)) if "bytes" in name:
            example = _size(getattr(Settings(), name))
            return f"a number of bytes from {_size(low)} to {_size(high)}, such as {example}"
        case inspect.IntType(ge=low, le=high):
            return f"a whole number from {low} to {high}"
        case inspect.FloatType(ge=low, le=high):
            return f"a number of seconds from {low:g} to {high:g}"
    return "text"


def _size(size_bytes: int) -> str:
    for unit, unit_bytes in UNITS.items():
        if size_bytes and size_bytes % unit_bytes == 0:
            return f"{size_bytes // unit_bytes}{unit}"
    return str(size_bytes)


def _shown(value: object) -> str:
    """A value as it may stand in a file."""
    return json.dumps(value, ensure_ascii=False, default=str)


def wrong_edge(settings: Settings) -> Iterator[tuple[str, str]]:
    """What no type says of the network's edge: the setting at fault, and what is expected of it."""
    for origin in settings.cors_origins if settings.cors_origins != ("*",) else ():
        if not _ORIGIN.fullmatch(origin):
            yield (
                "cors_origins",
                f"expected '*' alone, or origins as browsers spell them, such as \
https://example.org or http://localhost:3000, not {_shown(origin)}",
            )
    if not settings.cors_origins or len(settings.cors_origins) > ORIGINS_MAX:
        yield "cors_origins", f"expected 1 to {ORIGINS_MAX} origins"
    for proxy in settings.trusted_proxies:
        try:
            ip_network(proxy)
        except ValueError:
            yield (
                "trusted_proxies",
                f"expected addresses or networks such as 10.0.0.0/8, whose \
host bits are 0, not {_shown(proxy)}",
            )
    for name in ("tls_key", "tls_client_ca"):
        if getattr(settings, name) and not settings.tls_certificate:
            yield name, "there is nothing to use it with: set tls_certificate, too"


def _check_url(settings: Settings, source: str) -> None:
    if settings.public_url is None:
        return
    url = urlsplit(settings.public_url)
    if url.scheme not in ("http", "https") or not url.netloc or url.path.strip("/"):
        raise SettingsError(
            f"{source}: expected scheme and host, such as https://streams.example.org, "
            f"not {_shown(settings.public_url)}"
        )
