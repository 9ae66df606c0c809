"""An asynchronous client for the Durable Streams protocol.

    errors    what can go wrong
    values    what requests and answers hold
    sse       a body of Server-Sent Events, in pieces
    answers   what a server's answers say
    client    the requests

Left out: subscriptions, `Stream-Seq`, caching.
"""

from durable_streamsd.client.client import StreamClient
from durable_streamsd.client.errors import (
    Closed,
    Missing,
    NotTheProtocol,
    Refused,
    StreamError,
    Unavailable,
    Unreachable,
)
from durable_streamsd.client.values import (
    Appended,
    Chunk,
    Fork,
    Listed,
    Producer,
    StreamInfo,
    is_json,
)

__all__ = [
    "Appended",
    "Chunk",
    "Closed",
    "Fork",
    "Listed",
    "Missing",
    "NotTheProtocol",
    "Producer",
    "Refused",
    "StreamClient",
    "StreamError",
    "StreamInfo",
    "Unavailable",
    "Unreachable",
    "is_json",
]
