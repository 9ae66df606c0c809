"""The daemon's settings: what there is to choose, and every limit of the network side.

A setting is a field of `Settings` and an entry in `packaging/durable-streamsd.toml`, which explains
it to operators; a test compares the two. The rest follows from its type: how it is read from a
flag, the environment or a file, what a wrong value is answered with, and how it is shown.

Left out: where values come from (`settings`), and the limits of the storage engine that nobody has
to choose (`storage.limits`).
"""

import re
from collections.abc import Iterator
from ipaddress import ip_network
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from durable_streamsd.auth.scopes import ScopeError, parse_scopes
from durable_streamsd.core.retention import RULES_MAX, RetentionRule

__all__ = ["FLAGS", "Secret", "Settings", "wrong_together"]

FLAGS = {
    "host": "host",
    "port": "port",
    "data-dir": "data_dir",
    "long-poll-timeout": "long_poll_timeout_s",
    "max-body": "body_bytes_max",
    "public-url": "public_url",
    "log-level": "log_level",
    "log-format": "log_format",
    "access-log": "access_log",
    "webhook-targets": "webhook_targets",
    "tokens-file": "tokens_file",
    "allow-anonymous": "allow_anonymous",
}
"""Flags by the setting they set."""

KIB, MIB = 1 << 10, 1 << 20
ORIGINS_MAX = 100
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[a-z0-9._~\[\]:-]+")
_VISIBLE = re.compile(r"[!-~]*")

Seconds = Annotated[float, Meta(ge=0.05, le=86_400)]
Count = Annotated[int, Meta(ge=1, le=1 << 30)]
Bytes = Annotated[int, Meta(ge=1, le=1 << 40)]
Given = Annotated[str, Meta(min_length=1)]
"""Text that is not empty: an empty variable of the environment must not turn authentication off."""
Limit = Annotated[int, Meta(ge=0, le=1 << 30)]
"""0: none."""
Secret = Annotated[str, Meta(extra={"secret": True})]
"""Text that no output and no error shows."""


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
    log_format: Literal["text", "json"] = "text"
    access_log: bool = False
    """A line for every request."""
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
    """Of one caller (or address, of those who are not known), in the long run; beyond it 429."""
    requests_burst_max: Count = 100
    """At once, of one that asked for nothing for a while."""
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

    # who may do what
    tokens_file: Given | None = None
    """Tokens and their scopes, as `durable-streamsd token` writes them."""
    jwt_keys: Given | None = None
    """What JWTs are checked with: a file with keys, or the URL of a JSON Web Key Set."""
    jwt_issuer: Given | None = None
    jwt_audience: Given | None = None
    """What `iss` and `aud` of a JWT have to be."""
    jwt_scopes_claim: Given = "scope"
    anonymous_scopes: str = ""
    """What anybody may do, with spaces between."""
    allow_anonymous: bool = False
    """Listen to the network although nobody is asked who they are."""

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
    compact_bytes_per_s: Annotated[int, Meta(ge=0, le=1 << 40)] = 32 * MIB
    """Read and written to give back the space of what was deleted; 0: no compaction."""
    retention: Annotated[tuple[RetentionRule, ...], Meta(max_length=RULES_MAX)] = ()
    """How much is kept of streams whose creator does not say; only in the file."""


def wrong_together(settings: Settings) -> Iterator[tuple[str, str]]:
    """What no type says: the setting at fault, and a sentence on what is expected of it."""
    if settings.public_url is not None and not _is_origin(settings.public_url):
        yield "public_url", "expected scheme and host, such as https://streams.example.org"
    if "\0" in settings.data_dir:
        yield "data_dir", "expected the path of a directory"
    try:
        parse_scopes(settings.anonymous_scopes)
    except ScopeError as error:
        yield "anonymous_scopes", f"expected scopes such as read:public/** ({str(error)[:-1]})"
    yield from _wrong_at_the_edge(settings)


def _wrong_at_the_edge(settings: Settings) -> Iterator[tuple[str, str]]:
    origins = settings.cors_origins
    if origins != ("*",) and not (
        0 < len(origins) <= ORIGINS_MAX and all(map(_ORIGIN.fullmatch, origins))
    ):
        yield (
            "cors_origins",
            f"expected '*' alone, or 1 to {ORIGINS_MAX} origins as browsers spell them, such as "
            "https://example.org or http://localhost:3000",
        )
    try:
        for proxy in settings.trusted_proxies:
            ip_network(proxy)
    except ValueError:
        yield (
            "trusted_proxies",
            "expected addresses, or networks such as 10.0.0.0/8 with nothing behind their bits",
        )
    for name in ("tls_key", "tls_client_ca"):
        if getattr(settings, name) and not settings.tls_certificate:
            yield name, "expected a tls_certificate to use it with"


def _is_origin(text: str) -> bool:
    """Whether this is scheme and host of a URL, and may be put in front of a path."""
    try:
        url = urlsplit(text)
    except ValueError:  # brackets that hold no address
        return False
    plain = _VISIBLE.fullmatch(text) and not (url.path.strip("/") or url.query or url.fragment)
    return bool(plain and url.netloc and url.scheme in ("http", "https"))
