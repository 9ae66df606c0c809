"""What the HTTP handlers have of subscriptions: `Context.subscriptions`.

The runner puts its own calls in; without one (in tests of handlers) nothing is delivered.
"""

import logging
from collections.abc import Callable, Iterable, Sequence

from durable_streamsd.subscriptions.keys import Keys
from durable_streamsd.subscriptions.model import Subscription
from durable_streamsd.subscriptions.registry import Registry
from durable_streamsd.subscriptions.rows import LINKS, WAKES
from durable_streamsd.subscriptions.targets import Reach
from durable_streamsd.subscriptions.work import Work
from storage.state import Batch, Stream
from storage.store import Store

__all__ = ["Desk"]

log = logging.getLogger(__name__)


class Desk:
    """The parts, wired; `reach` is how far webhooks may go."""

    def __init__(self, store: Store, reach: Reach) -> None:
        self.reach = reach
        self.registry = Registry(store)
        self.keys = Keys(store)
        self.work = Work(store, self.registry, self.keys)
        self.gate: Batch | None = None
        """What claims and acks wait for: until it opens, what was pending at the start is not
        known in full."""
        self.purge: Callable[[Iterable[bytes]], None] = lambda keys: None
        self.kick: Callable[[], None] = lambda: None

    def load(self) -> list[bytes]:
        """Take everything from the store; the keys of left-overs. Raises `CorruptData`."""
        self.keys.load()
        return self.registry.load()

    def created(self, stream: Stream) -> None:
        """A stream was accepted; its links go with it. Raises `CommitError`."""
        if self.registry.wanted:
            self.registry.created(stream)

    def committed(self, streams: Sequence[Stream]) -> None:
        """A batch changed these streams. Never raises: the batch's clients have to be told."""
        if self.registry.wanted:
            try:
                self.registry.committed(streams)
            except Exception:
                log.exception("subscriptions could not be told of a commit")

    def clean_up(self, subscription: Subscription) -> None:
        """Remove what is left of one that was deleted, or not made."""
        serial = subscription.serial
        self.purge([WAKES + serial, *(LINKS + serial + path for path in subscription.links)])
