"""One subscription: what it was configured with, its links with their cursors, what is pending.

A link's cursor is the place up to which a worker has read: a position in the stream of a *root*
(offset tokens tell incarnations apart). When another stream is at the path now, the cursor says
nothing about it, and everything there is pending.

A link is pending when its stream's durable tail is past its cursor. `pending` holds those links,
the longest pending first, so that finding work costs nothing for links that have none.

Left out: what a wake is (`wake`), where this is stored (`rows`), when anything happens (`runner`).
"""

import enum
from typing import Final

import msgspec

from durable_streamsd.subscriptions.patterns import Pattern
from durable_streamsd.subscriptions.wake import Wake

__all__ = [
    "BEGINNING",
    "LINKS_MAX",
    "Configuration",
    "Cursor",
    "Kind",
    "Link",
    "Place",
    "Subscription",
]

LINKS_MAX: Final = 100_000
"""Of one subscription. A stream that would be one more is not linked, and the log says so."""

Cursor = tuple[int, int]
"""Root and position; (0, 0) is before everything."""
BEGINNING: Final[Cursor] = (0, 0)


class Kind(enum.StrEnum):
    """How workers are woken."""

    WEBHOOK = "webhook"
    PULL_WAKE = "pull-wake"


class Configuration(msgspec.Struct, frozen=True, array_like=True):
    """What a subscription was created with (protocol 6.2).

    `digest` is of the request in normal form: a repeated PUT has the same. `base_url` is scheme and
    authority of the URL that the client used, for URLs in deliveries. New fields go to the end,
    with a default.
    """

    id: str
    kind: Kind
    digest: bytes
    pattern: str | None
    url: str | None
    wake_stream: str | None
    lease_ttl_ms: int
    description: str | None
    created_ms: int
    base_url: str


class Place:
    """A path, with the durable tail of the stream there, for all subscriptions that have it.

    `quiet` are those links that have nothing to read: a commit concerns them, and no others.
    `known`: the tail was looked up, or told, since the start.
    """

    __slots__ = ("known", "links", "path", "quiet", "tail")

    def __init__(self, path: bytes) -> None:
        self.path = path
        self.tail: Cursor = BEGINNING
        self.known = False
        self.links: dict[Subscription, Link] = {}
        """Also those that are removed, until that is durable."""
        self.quiet: dict[Subscription, Link] = {}


class Link:
    """A subscription's cursor in one stream."""

    __slots__ = ("acked", "explicit", "glob", "place")

    def __init__(self, place: Place) -> None:
        self.place = place
        self.explicit = False
        self.glob = False
        self.acked: Cursor = BEGINNING

    @property
    def path(self) -> bytes:
        """The stream's path."""
        return self.place.path

    @property
    def tail(self) -> Cursor:
        """The stream's durable tail."""
        return self.place.tail

    @property
    def pending(self) -> bool:
        """Whether there is something to read."""
        root, tail = self.place.tail
        return tail > (self.acked[1] if self.acked[0] == root else 0)

    def state(self) -> tuple[bool, bool, Cursor]:
        """What is kept of it; `Subscription.put_link` puts it back."""
        return self.explicit, self.glob, self.acked


class Subscription:
    """Accepted state; all changes are made by `registry`."""

    __slots__ = (
        "config",
        "full",
        "links",
        "live",
        "pattern",
        "pending",
        "sequence",
        "serial",
        "wake",
    )

    def __init__(self, serial: bytes, config: Configuration, pattern: Pattern | None) -> None:
        self.serial = serial
        """Never used twice: what is left of a deleted subscription is nobody else's."""
        self.config = config
        self.pattern = pattern
        self.links: dict[bytes, Link] = {}
        self.pending: dict[bytes, Link] = {}
        self.wake = Wake()
        self.live = False
        """Created as a whole, and not deleted."""
        self.full = False
        self.sequence = 0
        """The batch that the newest accepted change rests on."""

    def put_link(self, link: Link, explicit: bool, glob: bool, acked: Cursor) -> None:
        """Let a link be like this; one that is neither explicit nor by a pattern is none."""
        link.explicit, link.glob, link.acked = explicit, glob, acked
        if explicit or glob:
            self.links[link.path] = link
            self.weigh(link)
        else:
            self.links.pop(link.path, None)
            self.pending.pop(link.path, None)
            link.place.quiet.pop(self, None)

    def weigh(self, link: Link) -> None:
        """Its tail or its cursor has changed: is it pending?"""
        if self.links.get(link.path) is not link:
            return  # It was removed, which may still be taken back.
        if link.pending:
            self.pending.setdefault(link.path, link)
            link.place.quiet.pop(self, None)
        else:
            self.pending.pop(link.path, None)
            link.place.quiet[self] = link
