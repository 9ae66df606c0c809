"""The JSON documents of subscriptions: what GET shows, what a delivery and a claim tell.

Offsets are tokens as everywhere in the protocol; a cursor before everything is `-1`.
"""

from collections.abc import Iterable
from typing import Any

import msgspec

from durable_streamsd.core.headers import format_rfc3339
from durable_streamsd.core.offsets import format_offset
from durable_streamsd.core.paths import STREAM_ROOT, quote_segment
from durable_streamsd.subscriptions.model import Configuration, Cursor, Kind, Link
from durable_streamsd.subscriptions.wake import Phase, Wake
from durable_streamsd.subscriptions.work import Claim

__all__ = ["SERIALIZED_LINK_BYTES", "claim_document", "subscription_document", "wake_document"]

SERIALIZED_LINK_BYTES = 640
"""At most what a link takes in a document, unless its path is full of characters to escape."""

_encode = msgspec.json.Encoder().encode


def subscription_document(
    config: Configuration,
    wake: Wake,
    links: Iterable[tuple[bytes, bool, Cursor]],
    base_url: bytes | None,
    kid: str | None,
) -> bytes:
    """What GET answers (protocol 6.3); each of `links` is path, whether explicit, cursor."""
    webhook: dict[str, Any] | None = None
    if config.url is not None:
        base = _base(config, base_url)
        signing = {"alg": "ed25519", "kid": kid, "jwks_url": f"{base}__ds/jwks.json"}
        webhook = {"url": config.url, "signing": signing}
    document = {
        "id": config.id,
        "subscription_id": config.id,
        "type": config.kind.value,
        "pattern": config.pattern,
        "streams": [
            {
                "path": path.decode(),
                "link_type": "explicit" if explicit else "glob",
                "acked_offset": _token(acked),
            }
            for path, explicit, acked in sorted(links)
        ],
        "webhook": webhook,
        "wake_stream": config.wake_stream,
        "lease_ttl_ms": config.lease_ttl_ms,
        "created_at": format_rfc3339(config.created_ms).decode(),
        "status": "failed" if wake.phase is Phase.FAILED else "active",
        "description": config.description,
    }
    if config.kind is not Kind.WEBHOOK:
        del document["webhook"]
    return _encode(document)


def wake_document(config: Configuration, claim: Claim, base_url: bytes | None) -> bytes:
    """The body of a delivery (protocol 7.1)."""
    segment = quote_segment(config.id.encode()).decode()
    return _encode(
        {
            "subscription_id": config.id,
            "wake_id": claim.wake.id,
            "generation": claim.wake.generation,
            "streams": _streams(claim),
            "callback_url": f"{_base(config, base_url)}__ds/subscriptions/{segment}/callback",
            "callback_token": claim.token,
        }
    )


def claim_document(config: Configuration, claim: Claim) -> bytes:
    """The answer to a claim (protocol 7.2)."""
    return _encode(
        {
            "wake_id": claim.wake.id,
            "generation": claim.wake.generation,
            "token": claim.token,
            "streams": _streams(claim),
            "lease_ttl_ms": config.lease_ttl_ms,
        }
    )


def _streams(claim: Claim) -> list[dict[str, object]]:
    return [_stream(link, tail) for link, tail in claim.streams]


def _stream(link: Link, tail: Cursor) -> dict[str, object]:
    return {
        "path": link.path.decode(),
        "link_type": "explicit" if link.explicit else "glob",
        "acked_offset": _token(link.acked),
        "tail_offset": _token(tail),
        "has_pending": True,
    }


def _token(cursor: Cursor) -> str:
    root, position = cursor
    return format_offset(root, position).decode() if position else "-1"


def _base(config: Configuration, base_url: bytes | None) -> str:
    """The stream root as an absolute URL: as configured, or as the client used it."""
    base = config.base_url if base_url is None else base_url.decode()
    return base + STREAM_ROOT.decode()
