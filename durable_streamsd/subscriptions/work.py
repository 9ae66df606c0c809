"""What workers ask for and receivers answer, decided: claim, ack, release, and how a wake ends.

Every decision is made in one go against accepted state, and alters it through `Registry`; nothing
here waits. Fencing (protocol 7.3): a request counts only with a valid token of the current
generation that names the current generation and wake. An expired lease is seen here too, whenever
the timer comes.

Decided where the protocol leaves it open:

- acks of streams that are not linked (any more), or of an earlier stream at the same path, are
  passed over: it may have been deleted while a worker was at it
- a cursor never goes back: an ack below it changes nothing
- all acks of a request are judged before the first counts
"""

import secrets
from collections.abc import Iterable
from typing import Final, NamedTuple

from durable_streamsd.core.offsets import START, Offset
from durable_streamsd.subscriptions.keys import Keys
from durable_streamsd.subscriptions.model import Cursor, Kind, Link, Subscription
from durable_streamsd.subscriptions.refusal import Refusal, fenced, invalid
from durable_streamsd.subscriptions.registry import Registry
from durable_streamsd.subscriptions.tokens import TokenError, make_token, read_token
from durable_streamsd.subscriptions.wake import Phase, Wake
from storage.state import Batch
from storage.store import Store

__all__ = ["WAKE_STREAMS_MAX", "Claim", "Work"]

WAKE_STREAMS_MAX: Final = 1_000
"""Streams in one wake; the others of those that are pending come with the next."""


class Claim(NamedTuple):
    """A wake as a worker is told of it: the streams it should read, each with its tail then."""

    wake: Wake
    token: str
    streams: list[tuple[Link, Cursor]]


class Work:
    """See the module."""

    def __init__(self, store: Store, registry: Registry, keys: Keys) -> None:
        self._store = store
        self._registry = registry
        self._keys = keys

    # A wake begins

    def issue(self, subscription: Subscription) -> Batch:
        """Begin a new wake, or deliver the one that failed again. Raises `CommitError`."""
        wake = subscription.wake
        if subscription.config.kind is Kind.PULL_WAKE:
            wake = wake.issued(_new_wake_id(), 0).delivered()
        elif wake.phase is Phase.FAILED and wake.id:
            wake = wake.resent(self._lease_end(subscription))
        else:
            wake = wake.issued(_new_wake_id(), self._lease_end(subscription))
        return self._registry.set_wake(subscription, wake)

    def claim(self, subscription: Subscription, worker: str) -> Claim:
        """Give a pull-wake's lease to a worker. Raises `Refusal`, `CommitError`."""
        if subscription.config.kind is not Kind.PULL_WAKE:
            raise invalid("Only pull-wake subscriptions are claimed.")
        self.expire(subscription)
        wake = subscription.wake
        if wake.phase is Phase.LEASED:
            raise Refusal(
                409,
                "ALREADY_CLAIMED",
                "Another worker holds the lease.",
                current_holder=wake.holder,
                generation=wake.generation,
            )
        if not subscription.pending:
            raise Refusal(409, "NO_PENDING_WORK", "There is nothing to read.")
        if not wake.id:
            wake = wake.issued(_new_wake_id(), 0)
        wake = wake.claimed(worker, self._lease_end(subscription)).delivered()
        self._registry.set_wake(subscription, wake)
        return self.describe(subscription)

    def describe(self, subscription: Subscription) -> Claim:
        """The current wake, and what there is to read now."""
        wake = subscription.wake
        token = make_token(
            self._keys.token_secret, subscription.serial, wake.generation, self._store.now_ms()
        )
        streams = []
        for link in subscription.pending.values():
            streams.append((link, link.tail))
            if len(streams) == WAKE_STREAMS_MAX:
                break
        return Claim(wake, token, streams)

    # A worker reports

    def authorize(
        self, subscription: Subscription, token: bytes, generation: int, wake_id: str
    ) -> None:
        """Let only the holder of the current wake pass. Raises `Refusal`."""
        try:
            found = read_token(self._keys.token_secret, token, self._store.now_ms())
        except TokenError as error:
            raise Refusal(401, error.code, "Send the token of this wake.") from None
        if found.serial != subscription.serial:
            raise Refusal(401, "TOKEN_INVALID", "The token is another subscription's.")
        self.expire(subscription)
        wake = subscription.wake
        if found.generation != wake.generation or not wake.is_held(generation, wake_id):
            raise fenced()

    def ack(
        self, subscription: Subscription, acks: Iterable[tuple[bytes, Offset]], done: bool
    ) -> bool:
        """Move cursors, and end the wake or extend its lease; whether more is pending then.

        Raises `Refusal`, `CommitError`.
        """
        judged = []
        for path, offset in acks:
            link = subscription.links.get(path)
            if link is not None:
                judged.append((link, _judge(link, offset)))
        self._move(subscription, judged)
        wake = subscription.wake
        wake = wake.released() if done else wake.extended(self._lease_end(subscription))
        self._registry.set_wake(subscription, wake)
        return bool(subscription.pending)

    def release(self, subscription: Subscription) -> None:
        """End the wake; what is pending stays so. Raises `CommitError`."""
        self._registry.set_wake(subscription, subscription.wake.released())

    # A delivery ends

    def delivered(self, subscription: Subscription, claim: Claim, done: bool) -> None:
        """The receiver took it. `done`: and has read what it was told of. Raises `CommitError`."""
        wake = subscription.wake
        if not subscription.live or not wake.is_held(claim.wake.generation, claim.wake.id):
            return
        if done:
            links = subscription.links
            self._move(
                subscription,
                [(link, tail) for link, tail in claim.streams if links.get(link.path) is link],
            )
            self._registry.set_wake(subscription, wake.released())
        elif wake.attempts:
            self._registry.set_wake(subscription, wake.delivered())

    def failed(self, subscription: Subscription, claim: Claim, due_ms: int) -> None:
        """The receiver did not take it: it is sent again at `due_ms`. Raises `CommitError`."""
        wake = subscription.wake
        held = wake.is_held(claim.wake.generation, claim.wake.id)
        if subscription.live and held and wake.phase is Phase.WOKEN:
            self._registry.set_wake(subscription, wake.failed(due_ms))

    def fence(self, subscription: Subscription, due_ms: int) -> None:
        """The lease ran out while the receiver had not answered. Raises `CommitError`."""
        self._registry.set_wake(subscription, subscription.wake.failed(due_ms, fenced=True))

    def expire(self, subscription: Subscription) -> bool:
        """End a wake whose lease has run out; whether it had. Raises `CommitError`."""
        wake = subscription.wake
        leased = wake.phase in (Phase.WOKEN, Phase.LEASED) and wake.due_ms
        if not leased or self._store.now_ms() < wake.due_ms:
            return False
        self._registry.set_wake(subscription, wake.expired())
        return True

    def _move(self, subscription: Subscription, acks: list[tuple[Link, Cursor]]) -> None:
        for link, cursor in acks:
            root, position = link.acked
            if cursor[0] != root or cursor[1] > position:
                explicit, glob, _ = link.state()
                self._registry.set_link(subscription, link.path, explicit, glob, cursor)

    def _lease_end(self, subscription: Subscription) -> int:
        return self._store.now_ms() + subscription.config.lease_ttl_ms


def _judge(link: Link, offset: Offset) -> Cursor:
    """The cursor that an acked offset makes. Raises `Refusal`."""
    root, tail = link.tail
    if offset == START or offset.root != root:
        return link.acked
    if offset.position > tail:
        path = link.path.decode()
        raise Refusal(409, "INVALID_OFFSET", f"The offset acked for {path} is past its tail.")
    return offset.root, offset.position


def _new_wake_id() -> str:
    return "w_" + secrets.token_urlsafe(16)
