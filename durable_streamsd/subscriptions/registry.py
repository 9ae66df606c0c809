"""All subscriptions, by id and by stream, and every change of one: accepted, written, taken back.

A change alters memory at once and puts a row into the store's open batch; if that batch fails the
store calls back, newest change first, and memory is as it was. So decisions see accepted state, and
whoever tells anybody about it waits for `resting_on` first. A link that is removed, alone or with
its subscription, is told of commits until that is durable: if it comes back it has to know.

Which subscriptions a stream concerns is known before anything is appended to it: a stream that is
there when a subscription is made is linked then (`backfill`), one that is created later is linked
by the very batch that creates it (`created`). So a commit costs one look-up for each stream that it
changed, and a little for each link that had nothing to read before (`committed`); and nothing where
there are no subscriptions (`wanted`).

Bounded by `SUBSCRIPTIONS_MAX` and `model.LINKS_MAX`.
"""

import contextlib
import logging
import secrets
from collections.abc import Callable, Iterable
from typing import Any, Final

from durable_streamsd.subscriptions.model import (
    BEGINNING,
    LINKS_MAX,
    Configuration,
    Cursor,
    Kind,
    Link,
    Place,
    Subscription,
)
from durable_streamsd.subscriptions.patterns import Pattern, Patterns, parse_pattern
from durable_streamsd.subscriptions.refusal import already_exists
from durable_streamsd.subscriptions.rows import (
    CONFIGURATIONS,
    LINKS,
    SERIAL_BYTES,
    SUBSCRIPTIONS,
    WAKES,
    decode_configuration,
    decode_link,
    decode_wake,
    encode_configuration,
    encode_link,
    encode_wake,
)
from durable_streamsd.subscriptions.wake import Wake
from storage.errors import CommitError, NotResident, SoftDeleted, Unsettled
from storage.state import Batch, Stream
from storage.store import Store

__all__ = ["SUBSCRIPTIONS_MAX", "Registry"]

SUBSCRIPTIONS_MAX: Final = 50_000

log = logging.getLogger(__name__)


class Registry:
    """See the module.

    `on_news` is told of subscriptions that may have something to do now, or a new deadline;
    `on_wake_stream` of those whose wake stream was made (anew).
    """

    def __init__(self, store: Store) -> None:
        self.on_news: Callable[[Subscription], None] = lambda subscription: None
        self.on_wake_stream: Callable[[Subscription], None] = lambda subscription: None
        self.by_id: dict[str, Subscription] = {}
        """Those that are being made too: they are not `live` yet."""
        self.gates: dict[Subscription, Batch] = {}
        """What a second PUT waits for while the first is making the subscription: nothing that is
        written, but told like a batch (`effects.Durable`)."""
        self.seen: dict[Subscription, dict[bytes, Stream]] = {}
        """While one is being made: streams that changed meanwhile."""
        self._store = store
        self._places: dict[bytes, Place] = {}
        self._patterns: Patterns[Subscription] = Patterns()
        self._announced: dict[bytes, dict[Subscription, None]] = {}

    @property
    def wanted(self) -> bool:
        """Whether anybody has to be told of commits and creations."""
        return bool(self.by_id or self._places)

    # Starting

    def load(self) -> list[bytes]:
        """Take everything from the store's values; returns the keys of left-overs.

        Nothing is known of the linked streams' tails then (`Place.known`). Raises `CorruptData`.
        """
        by_serial: dict[bytes, Subscription] = {}
        left_over: list[bytes] = []
        start = len(CONFIGURATIONS)
        end = start + SERIAL_BYTES
        for key, value in self._store.values(SUBSCRIPTIONS):  # configurations come first
            owner = by_serial.get(key[start:end])
            if key.startswith(CONFIGURATIONS):
                config = decode_configuration(value)
                pattern = None if config.pattern is None else parse_pattern(config.pattern)
                subscription = Subscription(key[start:], config, pattern)
                subscription.live = True
                by_serial[subscription.serial] = subscription
            elif not key.startswith((WAKES, LINKS)):
                continue
            elif owner is None:
                left_over.append(key)
            elif key.startswith(WAKES):
                owner.wake = decode_wake(value)
            else:
                place = self._places.get(key[end:]) or Place(key[end:])
                self._put_link(owner, Link(place), *decode_link(value))
        for subscription in by_serial.values():
            self._attach(subscription)
        return left_over

    # What the store tells

    def created(self, stream: Stream) -> None:
        """A stream was accepted: its links are part of the same batch. Raises `CommitError`."""
        path = stream.path
        for subscription in list(self._patterns.match(path)):
            link = subscription.links.get(path)
            if _is_wake_stream(subscription, path) or (link is not None and link.glob):
                continue
            if self.has_room(subscription):
                explicit, acked = (link.explicit, link.acked) if link else (False, BEGINNING)
                self.set_link(subscription, path, explicit, True, acked).place.known = True
        for subscription in self._announced.get(path, ()):
            self.on_wake_stream(subscription)

    def committed(self, streams: Iterable[Stream]) -> None:
        """These streams changed durably: one look-up each."""
        places = self._places
        for stream in streams:
            path = stream.path
            place = places.get(path)
            for seen in self.seen.values():
                seen[path] = stream
            if place is None:
                continue
            if stream.gone:
                self._gone(stream, place)
                continue
            place.tail = (stream.root, stream.durable_tail)
            place.known = True
            self._weigh(place.quiet)

    def linked_paths(self) -> list[bytes]:
        """The paths of all streams that a subscription has."""
        return list(self._places)

    def learn(self, path: bytes, tail: Cursor | None) -> None:
        """The durable tail of a linked stream as it was at the start; None: there is no stream.

        Whatever was told since is newer. Raises `CommitError`.
        """
        place = self._places.get(path)
        if place is None or place.known:
            return
        if tail is None:
            for subscription, link in list(place.links.items()):
                if link.glob:
                    self.set_link(subscription, path, link.explicit, False, link.acked)
        place.known = True
        place.tail = tail or BEGINNING
        self._weigh(place.links)

    def _weigh(self, links: dict[Subscription, Link]) -> None:
        """Look which of these have something to read now."""
        for subscription, link in list(links.items()):
            subscription.weigh(link)
            if subscription.pending:
                self.on_news(subscription)

    def _gone(self, stream: Stream, place: Place) -> None:
        """A stream is gone: links by pattern go with it, unless there is another at its path."""
        try:
            newer = self._store.find(stream.path)
        except (NotResident, Unsettled, SoftDeleted):
            newer = None
        place.known = True
        place.tail = BEGINNING if newer is None else (newer.root, newer.durable_tail)
        if newer is None:
            # What cannot be written leads nowhere, and is found out when there is a restart.
            with contextlib.suppress(CommitError):
                for subscription, link in list(place.links.items()):
                    if link.glob:
                        self.set_link(subscription, stream.path, link.explicit, False, link.acked)
        self._weigh(place.links)

    # Changes

    def begin(self, config: Configuration, pattern: Pattern | None) -> Subscription:
        """Reserve an id: from now on streams that are created are linked, though nobody is woken.

        `establish` or `abandon` has to follow.
        """
        subscription = Subscription(secrets.token_bytes(SERIAL_BYTES), config, pattern)
        self._attach(subscription)
        self.gates[subscription] = Batch(0)
        self.seen[subscription] = {}
        return subscription

    def establish(self, subscription: Subscription) -> None:
        """All its links are there: write it down. Raises `CommitError`, `Refusal`."""
        if self.by_id[subscription.config.id] is not subscription:
            raise already_exists()  # the deletion of another one was taken back meanwhile
        value = encode_configuration(subscription.config)
        self._put(subscription, CONFIGURATIONS, b"", value, self._detach, subscription)
        subscription.live = True
        self._open_gate(subscription)
        self.on_news(subscription)

    def abandon(self, subscription: Subscription) -> None:
        """It will not be made. Rows of its links are left-overs, for `purge`."""
        if not subscription.live:
            self._detach(subscription)
            self._open_gate(subscription)

    def delete(self, subscription: Subscription) -> None:
        """It is no more. Rows of its links are left-overs, for `purge`. Raises `CommitError`."""
        self._put(subscription, CONFIGURATIONS, b"", b"", self._revive, subscription)
        batch = self._put(subscription, WAKES, b"", b"", _nothing)
        self._resign(subscription)

        def settled(error: CommitError | None) -> None:
            if error is None:
                for link in subscription.links.values():
                    self._untrack(subscription, link)

        batch.waiters.append(settled)
        self.on_news(subscription)

    def purge(self, key: bytes) -> Batch:
        """Remove a row that belongs to nobody. Raises `CommitError`."""
        return self._store.put_value(key, b"", _nothing)

    def set_link(
        self, subscription: Subscription, path: bytes, explicit: bool, glob: bool, acked: Cursor
    ) -> Link:
        """Let a link be like this; neither explicit nor by pattern: none. Raises `CommitError`."""
        place = self._places.get(path) or Place(path)
        link = place.links.get(subscription) or Link(place)
        value = encode_link(explicit, glob, acked)
        undo = (subscription, link, *link.state())
        batch = self._put(subscription, LINKS, path, value, self._put_link, *undo)
        self._track(subscription, link)
        subscription.put_link(link, explicit, glob, acked)
        if not explicit and not glob:
            batch.waiters.append(lambda error: self._unlinked(subscription, link))
        return link

    def set_wake(self, subscription: Subscription, wake: Wake) -> Batch:
        """Let a subscription be in this state; the batch it rests on. Raises `CommitError`."""
        before, value = subscription.wake, encode_wake(wake)
        batch = self._put(subscription, WAKES, b"", value, self._put_wake, subscription, before)
        subscription.wake = wake
        self.on_news(subscription)
        return batch

    def has_room(self, subscription: Subscription) -> bool:
        """Whether it may have one more link. Said once in the log when it may not."""
        if len(subscription.links) < LINKS_MAX:
            return True
        if not subscription.full:
            subscription.full = True
            log.warning(
                "subscription %r has %d streams, and gets no more",
                subscription.config.id,
                LINKS_MAX,
            )
        return False

    def resting_on(self, subscription: Subscription) -> Batch | None:
        """The batch that accepted state rests on, if it is not durable yet."""
        return self._store.resting_on(subscription.sequence)

    # How

    def _put(
        self,
        subscription: Subscription,
        table: bytes,
        rest: bytes,
        value: bytes,
        undo: Callable[..., object],
        *arguments: Any,
    ) -> Batch:
        batch = self._store.put_value(
            table + subscription.serial + rest,
            value,
            self._undo,
            subscription,
            subscription.sequence,
            undo,
            arguments,
        )
        subscription.sequence = batch.sequence
        return batch

    def _undo(
        self,
        subscription: Subscription,
        sequence: int,
        undo: Callable[..., object],
        arguments: tuple[Any, ...],
    ) -> None:
        subscription.sequence = sequence
        undo(*arguments)
        self.on_news(subscription)

    def _put_link(
        self, subscription: Subscription, link: Link, explicit: bool, glob: bool, acked: Cursor
    ) -> None:
        """Let a link be as it is, or was, on disk."""
        subscription.put_link(link, explicit, glob, acked)
        if explicit or glob:
            self._track(subscription, link)
        else:
            self._untrack(subscription, link)

    def _unlinked(self, subscription: Subscription, link: Link) -> None:
        """A removal is durable, or was taken back; it may also have been linked again since."""
        if subscription.links.get(link.path) is not link:
            self._untrack(subscription, link)

    def _track(self, subscription: Subscription, link: Link) -> None:
        self._places[link.path] = link.place
        link.place.links[subscription] = link

    def _untrack(self, subscription: Subscription, link: Link) -> None:
        place = link.place
        if place.links.get(subscription) is link:
            del place.links[subscription]
            place.quiet.pop(subscription, None)
            if not place.links:
                self._places.pop(place.path, None)

    @staticmethod
    def _put_wake(subscription: Subscription, wake: Wake) -> None:
        subscription.wake = wake

    def _attach(self, subscription: Subscription) -> None:
        config = subscription.config
        self.by_id[config.id] = subscription
        if subscription.pattern is not None:
            self._patterns.add(subscription.pattern, subscription)
        if config.wake_stream is not None:
            self._announced.setdefault(config.wake_stream.encode(), {})[subscription] = None

    def _detach(self, subscription: Subscription) -> None:
        self._resign(subscription)
        for link in subscription.links.values():
            self._untrack(subscription, link)

    def _revive(self, subscription: Subscription) -> None:
        self._attach(subscription)
        subscription.live = True

    def _resign(self, subscription: Subscription) -> None:
        config = subscription.config
        subscription.live = False
        if self.by_id.get(config.id) is subscription:
            del self.by_id[config.id]
        if subscription.pattern is not None:
            self._patterns.remove(subscription.pattern, subscription)
        if config.wake_stream is not None:
            path = config.wake_stream.encode()
            waiting = self._announced[path]
            del waiting[subscription]
            if not waiting:
                del self._announced[path]

    def _open_gate(self, subscription: Subscription) -> None:
        del self.seen[subscription]
        for waiter in self.gates.pop(subscription).waiters:
            waiter(None)


def _is_wake_stream(subscription: Subscription, path: bytes) -> bool:
    """Whether a stream is where the subscription's own wakes are announced: that wakes nobody."""
    config = subscription.config
    return config.kind is Kind.PULL_WAKE and config.wake_stream == path.decode()


def _nothing() -> None:
    """Nothing to take back."""
