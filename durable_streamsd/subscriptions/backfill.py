"""Linking streams that are there already (protocol 6.2, 6.4): each at its tail as it is now.

By pattern: the streams that the store lists under the pattern's literal beginning, once all that
was accepted before is durable; what is accepted since is linked as it comes (`Registry.created`).
A stream that changes while this goes on is noted by the registry (`Registry.seen`), so that nothing
appended meanwhile is lost to the new subscription.
"""

from collections.abc import Iterable

from durable_streamsd.core.effects import Durable, Offload, Room
from durable_streamsd.core.lookup import look_up
from durable_streamsd.core.problems import Code, Problem
from durable_streamsd.subscriptions.model import BEGINNING, LINKS_MAX, Cursor, Subscription
from durable_streamsd.subscriptions.patterns import Patterns, literal_prefix
from durable_streamsd.subscriptions.refusal import Refusal
from durable_streamsd.subscriptions.registry import Registry
from storage.listing import PAGE_STREAMS_MAX
from storage.state import Stream
from storage.store import Store

__all__ = ["link_explicitly", "link_matching"]


async def link_explicitly(
    paths: Iterable[bytes], subscription: Subscription, registry: Registry, store: Store
) -> None:
    """Link these streams, whether they exist or not. Raises `Refusal`, `CommitError`.

    One that is linked by pattern keeps its cursor.
    """
    for path in paths:
        try:
            stream: Stream | None = await look_up(store.visible, path)
        except Problem as problem:
            if problem.code not in (Code.NOT_FOUND, Code.GONE):
                raise
            stream = None
        while not store.accepting:
            await Room()
        link = subscription.links.get(path)
        if link is not None:
            if not link.explicit:
                registry.set_link(subscription, path, True, link.glob, link.acked)
            continue
        if not registry.has_room(subscription):
            raise _too_many()
        # What is durable now, not before the wait for room: nothing ran since `look_up` otherwise.
        tail = BEGINNING if stream is None or stream.gone else _tail(stream)
        registry.set_link(subscription, path, True, False, tail)
        registry.learn(path, tail)


async def link_matching(subscription: Subscription, registry: Registry, store: Store) -> None:
    """Link the streams that the pattern matches. Raises `Refusal`, `CommitError`."""
    pattern = subscription.pattern
    assert pattern is not None
    own: Patterns[None] = Patterns()
    own.add(pattern, None)
    while not store.accepting:
        await Room()
    await Durable(registry.set_wake(subscription, subscription.wake))
    prefix = literal_prefix(pattern)
    after: bytes | None = b""
    while after is not None:
        page = await Offload(store.listing(prefix, after or None, PAGE_STREAMS_MAX).run)
        after = page.next
        for stream in page.streams:
            if any(True for _ in own.match(stream.path)):
                tail = (stream.root, stream.tail)
                await _link(stream.path, tail, subscription, registry, store)


async def _link(
    path: bytes, tail: Cursor, subscription: Subscription, registry: Registry, store: Store
) -> None:
    while not store.accepting:
        await Room()
    changed = registry.seen[subscription].get(path)
    link = subscription.links.get(path)
    if path == (subscription.config.wake_stream or "").encode() or (link and link.glob):
        return
    if changed is not None and changed.gone:
        return
    if not registry.has_room(subscription):
        raise _too_many()
    explicit, acked = (False, tail) if link is None else (link.explicit, link.acked)
    registry.set_link(subscription, path, explicit, True, acked)
    registry.learn(path, tail if changed is None else _tail(changed))


def _tail(stream: Stream) -> Cursor:
    return stream.root, stream.durable_tail


def _too_many() -> Refusal:
    return Refusal(
        409, "TOO_MANY_STREAMS", f"A subscription has {LINKS_MAX} streams at most: part them."
    )
