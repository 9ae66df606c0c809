"""The daemon's settings: what there is to choose, and every limit of the network side.

A setting is a field of `Settings` and an entry in `packaging/durable-streamsd.toml`, which explains
it to operators; a test compares the two. The rest follows from its type: how it is read from a
flag, the environment or a file, what a wrong value is answered with, and how it is shown.

Left out: where values come from (`settings`), and the limits of the storage engine that nobody has
to choose (`storage.limits`).
"""

from collections.abc import Iterator
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

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
    "webhook-targets": "webhook_targets",
}
"""Flags by the setting they set."""

KIB, MIB = 1 << 10, 1 << 20

Seconds = Annotated[float, Meta(ge=0.05, le=86_400)]
Count = Annotated[int, Meta(ge=1, le=1 << 30)]
Bytes = Annotated[int, Meta(ge=1, le=1 << 40)]
Secret = Annotated[str, Meta(extra={"secret": True})]
"""Text that no output and no error shows."""


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
    compact_bytes_per_s: Annotated[int, Meta(ge=0, le=1 << 40)] = 32 * MIB
    """Read and written to give back the space of what was deleted; 0: no compaction."""
    retention: Annotated[tuple[RetentionRule, ...], Meta(max_length=RULES_MAX)] = ()
    """How much is kept of streams whose creator does not say; only in the file."""


def wrong_together(settings: Settings) -> Iterator[tuple[str, str]]:
    """What no type says: the setting at fault, and a sentence on what is expected of it."""
    if settings.public_url is not None:
        url = urlsplit(settings.public_url)
        if url.scheme not in ("http", "https") or not url.netloc or url.path.strip("/"):
            yield "public_url", "expected scheme and host, such as https://streams.example.org"
