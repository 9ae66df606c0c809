"""What a stream is created with, and when another PUT asks for the same."""

from functools import lru_cache

from storage.framing import Framing, framing_of
from storage.record import Retention

CONFIGS_MAX = 1_024


class StreamConfig:
    """What a stream is created with (protocol 5.1); equal when an idempotent PUT may match."""

    __slots__ = ("content_type", "expires_ms", "framing", "media_type", "retention", "ttl_s")

    def __init__(
        self,
        content_type: str,
        ttl_s: int | None = None,
        expires_ms: int | None = None,
        retention: Retention | None = None,
    ) -> None:
        self.content_type = content_type
        self.media_type = content_type.partition(";")[0].strip().lower()
        self.framing: Framing = framing_of(self.media_type)
        self.ttl_s = ttl_s
        self.expires_ms = expires_ms
        self.retention = retention

    def matches(self, other: "StreamConfig") -> bool:
        """Whether a PUT with `other` asks for this very stream: parameters of the type aside, and
        retention that its creator did not ask for."""
        return (self.media_type, self.ttl_s, self.expires_ms) == (
            other.media_type,
            other.ttl_s,
            other.expires_ms,
        ) and asked_for(self.retention) == asked_for(other.retention)


def asked_for(retention: Retention | None) -> Retention | None:
    """The retention that was asked for when a stream was created, and not given by a rule."""
    return retention if retention is not None and retention.asked else None


@lru_cache(CONFIGS_MAX)
def stream_config(
    content_type: str,
    ttl_s: int | None = None,
    expires_ms: int | None = None,
    retention: Retention | None = None,
) -> StreamConfig:
    """A configuration; one object for all streams in memory that are created alike."""
    return StreamConfig(content_type, ttl_s, expires_ms, retention)
