"""What happens without a request: wakes are issued and delivered, leases run out, retries come due.

`look` is called whenever something about a subscription changed. It decides nothing but who is to
be served: a subscription without a wake that has pending links goes to a pool, and whatever has a
deadline goes to the daemon's timer wheel. A pool's task writes the wake down first, and delivers or
announces it when that is durable.

What a restart finds: a wake that was issued has its lease, delivered or not, and is followed by
another when that runs out; a failure has its time for the next attempt. A batch that fails takes
the change back, which is looked at again `AGAIN_S` later.

A receiver that has released its wake by a callback and still keeps the connection has `GRACE_S`
before the next wake cuts it.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from time import monotonic
from typing import Any, Final, TypeVar

import msgspec

from durable_streamsd.background import perform
from durable_streamsd.core.effects import Durable, Effect, Offload, Room
from durable_streamsd.core.lookup import look_up
from durable_streamsd.core.problems import Problem
from durable_streamsd.services import Services
from durable_streamsd.subscriptions.delivery import DeliveryFailed, Webhooks
from durable_streamsd.subscriptions.desk import Desk
from durable_streamsd.subscriptions.documents import wake_document
from durable_streamsd.subscriptions.model import Cursor, Kind, Subscription
from durable_streamsd.subscriptions.pool import Pool
from durable_streamsd.subscriptions.targets import Reach
from durable_streamsd.subscriptions.wake import Phase, retry_delay_ms
from durable_streamsd.subscriptions.work import Claim
from durable_streamsd.wheel import Timed, ticks_of
from storage.errors import CommitError, CorruptData, StorageError
from storage.state import Append, Batch
from storage.state import Kind as Outcome

__all__ = ["Runner"]

ANNOUNCEMENTS_MAX: Final = 64
"""Wake events written at once."""
AGAIN_S: Final = 1.0
GRACE_S: Final = 1.0
LOOKUPS_PER_HOP: Final = 500

T = TypeVar("T")
log = logging.getLogger(__name__)


class _Deadline(Timed):
    """A subscription's place in the wheel."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[[], None]) -> None:
        super().__init__()
        self._call = call

    def on_deadline(self) -> None:
        self._call()


class Runner:
    """Made inside the loop. `start` once, `stop` before the last batch is committed."""

    def __init__(self, services: Services, desk: Desk) -> None:
        settings = services.settings
        self._services = services
        self._store = services.store
        self._desk = desk
        self._registry = desk.registry
        self._work = desk.work
        self._deadlines: dict[Subscription, _Deadline] = {}
        self._delivering: dict[Subscription, Claim] = {}
        self._hurried: set[Subscription] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._webhooks = Webhooks(
            Reach(settings.webhook_targets),
            settings.webhook_connections_max,
            settings.webhook_timeout_s,
        )
        self._deliveries = Pool(settings.webhook_connections_max, self._deliver, self.look)
        self._announcements = Pool(ANNOUNCEMENTS_MAX, self._announce, self.look)
        desk.purge = self._purge_soon
        desk.kick = services.committer.kick
        self._registry.on_news = self.look
        self._registry.on_wake_stream = self._announce_again

    def start(self, left_over: list[bytes]) -> None:
        """Begin with what the store holds; `left_over` are keys that belong to nobody."""
        for subscription in self._registry.by_id.values():
            self.look(subscription)
        if self._registry.wanted:
            self._desk.gate = Batch(0)
            self._spawn(self._learn_tails())
        self._purge_soon(left_over)

    async def stop(self) -> None:
        """End everything that is under way; nothing is lost, a restart goes on with it."""
        self._stopping = True
        for task in self._tasks:
            task.cancel()
        await self._deliveries.stop()
        await self._announcements.stop()
        await self._webhooks.close()

    # Who is to be served

    def look(self, subscription: Subscription) -> None:
        """Something about this subscription changed."""
        if self._stopping:
            return
        wake = subscription.wake
        deadline = self._deadlines.get(subscription)
        if not subscription.live or not wake.due_ms:
            if deadline is not None:
                self._services.wheel.forget(deadline)
                del self._deadlines[subscription]
        else:
            left_s = max(0.0, (wake.due_ms - self._store.now_ms()) / 1_000)
            self._call_in(left_s, subscription)
        if not subscription.live:
            self._deliveries.cancel(subscription)
        elif wake.phase is Phase.IDLE and subscription.pending:
            pool = self._pool_of(subscription)
            if subscription in self._delivering and subscription not in self._hurried:
                self._hurried.add(subscription)
                loop = asyncio.get_running_loop()
                loop.call_later(GRACE_S, self._cut, subscription, self._delivering[subscription])
            pool.add(subscription)

    def _call_in(self, seconds: float, subscription: Subscription) -> None:
        deadline = self._deadlines.get(subscription)
        if deadline is None:
            deadline = self._deadlines[subscription] = _Deadline(partial(self._due, subscription))
        self._services.wheel.arm(deadline, ticks_of(seconds))

    def _pool_of(self, subscription: Subscription) -> Pool:
        webhook = subscription.config.kind is Kind.WEBHOOK
        return self._deliveries if webhook else self._announcements

    def _cut(self, subscription: Subscription, claim: Claim) -> None:
        """A delivery whose wake is over has had its time, if it is still there."""
        if self._delivering.get(subscription) is claim:
            self._deliveries.cancel(subscription)

    def _due(self, subscription: Subscription) -> None:
        """A deadline has come."""
        wake = subscription.wake
        try:
            if not subscription.live or not wake.due_ms:
                return
            if self._store.now_ms() < wake.due_ms:
                self.look(subscription)
            elif wake.phase is Phase.FAILED:
                self._retry(subscription)
            elif subscription in self._delivering:
                log.warning("webhook of subscription %r: no answer", subscription.config.id)
                self._work.fence(subscription, self._retry_ms(subscription))
                self._deliveries.cancel(subscription)
            else:
                self._work.expire(subscription)
        except CommitError:
            self._call_in(AGAIN_S, subscription)
        self._services.committer.kick()

    def _retry(self, subscription: Subscription) -> None:
        if subscription.wake.id and subscription.pending:
            self._pool_of(subscription).add(subscription)
        else:
            wake = subscription.wake
            self._registry.set_wake(subscription, wake.expired())

    def _retry_ms(self, subscription: Subscription) -> int:
        delay_ms = retry_delay_ms(subscription.wake.attempts + 1, random.random())
        return self._store.now_ms() + delay_ms

    # Webhooks

    async def _deliver(self, subscription: Subscription) -> None:
        claim: Claim | None = None
        try:
            claim = await self._perform(self._issue(subscription))
            if claim is not None:
                self._delivering[subscription] = claim
                await self._post(subscription, claim)
        except StorageError as error:
            log.warning("subscription %r is tried again: %s", subscription.config.id, error)
            self._again(subscription)
        except Exception:
            log.exception("delivering to subscription %r failed", subscription.config.id)
            self._again(subscription)
        finally:
            self._delivering.pop(subscription, None)
            self._hurried.discard(subscription)
            self._services.committer.kick()

    async def _post(self, subscription: Subscription, claim: Claim) -> None:
        config = subscription.config
        assert config.url is not None
        body = wake_document(config, claim, self._services.context.base_url)
        signature = self._desk.keys.signer.signature(body, self._store.now_ms())
        counts = self._services.counts.deliveries
        began_s = monotonic()
        try:
            done = await self._webhooks.post(config.url, body, signature)
        except DeliveryFailed as failure:
            counts.outcomes["failed"] += 1
            log.warning("webhook of subscription %r: %s", config.id, failure)
            self._work.failed(subscription, claim, self._retry_ms(subscription))
        else:
            counts.outcomes["done" if done else "taken"] += 1
            self._work.delivered(subscription, claim, done)
        finally:
            counts.duration_s.observe(monotonic() - began_s)

    async def _issue(self, subscription: Subscription) -> Claim | None:
        """Write a wake down; what to deliver once it is durable, or nothing (any more)."""
        keys = self._desk.keys.ensure()
        if keys is not None:
            await Durable(keys)
        while not self._store.accepting:
            await Room()
        wake = subscription.wake
        early = wake.phase is Phase.FAILED and self._store.now_ms() < wake.due_ms
        if early or not self._wants_wake(subscription):
            return None
        batch = self._work.issue(subscription)
        issued = subscription.wake
        await Durable(batch)
        same = subscription.live and subscription.wake == issued
        return self._work.describe(subscription) if same else None

    @staticmethod
    def _wants_wake(subscription: Subscription) -> bool:
        waits = subscription.wake.phase in (Phase.IDLE, Phase.FAILED)
        return subscription.live and waits and bool(subscription.pending)

    # Pull-wake

    def _announce_again(self, subscription: Subscription) -> None:
        """The wake stream was made: what was announced before, or could not be, is not in it."""
        if subscription.live and subscription.wake.phase in (Phase.WOKEN, Phase.FAILED):
            self._announcements.add(subscription)

    async def _announce(self, subscription: Subscription) -> None:
        try:
            batch = await self._perform(self._write_event(subscription))
            if batch is not None:
                await self._perform(_durable(batch))
        except Problem:
            self._not_announced(subscription, "there is no such stream")
        except StorageError as error:
            log.warning("subscription %r is tried again: %s", subscription.config.id, error)
            self._again(subscription)
        except Exception:
            log.exception("announcing subscription %r failed", subscription.config.id)
            self._again(subscription)
        finally:
            self._services.committer.kick()

    async def _write_event(self, subscription: Subscription) -> Batch | None:
        """Put the wake's event and the wake itself into one batch. Raises `Problem`."""
        assert subscription.config.wake_stream is not None
        path = subscription.config.wake_stream.encode()
        while True:
            stream = await look_up(self._store.find, path)
            if self._store.accepting:
                break
            await Room()
        again = subscription.live and subscription.wake.phase is Phase.WOKEN
        if not subscription.pending or not (again or self._wants_wake(subscription)):
            return None
        generation = subscription.wake.generation + (not subscription.wake.id)
        event = {
            "type": "wake",
            "subscription_id": subscription.config.id,
            "stream": next(iter(subscription.pending)).decode(),
            "generation": generation,
            "ts": self._store.now_ms(),
        }
        body = msgspec.json.encode(event) + b"\n"
        media_type = stream.config.media_type
        outcome = self._store.append(stream, Append(body, media_type))
        if outcome.kind is not Outcome.APPENDED:
            self._not_announced(subscription, f"it answers {outcome.kind.name.lower()}")
            return None
        return outcome.batch if again else self._work.issue(subscription)

    def _not_announced(self, subscription: Subscription, why: str) -> None:
        """The wake stream is missing or closed: a wake is there to be claimed all the same."""
        config = subscription.config
        log.warning("wake stream %r of subscription %r: %s", config.wake_stream, config.id, why)
        try:
            self._work.fence(subscription, self._retry_ms(subscription))
        except CommitError:
            self._again(subscription)

    # Starting and cleaning up

    async def _learn_tails(self) -> None:
        """Look the linked streams up, some at a time: what is pending since before the start."""
        paths = self._registry.linked_paths()
        try:
            for at in range(0, len(paths), LOOKUPS_PER_HOP):
                await self._perform(self._learn_some(paths[at : at + LOOKUPS_PER_HOP]))
        except StorageError as error:
            log.error("what subscriptions have to do is not known in full: %s", error)
        finally:
            gate, self._desk.gate = self._desk.gate, None
            for waiter in gate.waiters if gate is not None else ():
                waiter(None)

    async def _learn_some(self, paths: list[bytes]) -> None:
        tails = await Offload(lambda: [self._tail_of(path) for path in paths])
        while not self._store.accepting:
            await Room()
        for path, tail in tails:
            self._registry.learn(path, tail)

    def _tail_of(self, path: bytes) -> tuple[bytes, Cursor | None]:  # in a thread
        try:
            chain = self._store.load(path).chain
        except CorruptData as error:
            log.error("%s", error)
            return path, (0, 0)
        if not chain or chain[0][1].kept is not None:  # none, or one that only its forks need
            return path, None
        meta = chain[0][1]
        return path, (meta.root, meta.tail)

    def _purge_soon(self, keys: Iterable[bytes]) -> None:
        if keys:
            self._spawn(self._purge(keys))

    async def _purge(self, keys: Iterable[bytes]) -> None:
        try:
            await self._perform(self._purge_all(keys))
        except StorageError as error:
            log.warning("left-overs of subscriptions stay until the next start: %s", error)

    async def _purge_all(self, keys: Iterable[bytes]) -> None:
        for number, key in enumerate(keys):
            while not self._store.accepting:
                await Room()
            batch = self._registry.purge(key)
            if number % LOOKUPS_PER_HOP == LOOKUPS_PER_HOP - 1:
                await Durable(batch)
        self._services.committer.kick()

    def _again(self, subscription: Subscription) -> None:
        if not self._stopping and not self._store.latched:
            asyncio.get_running_loop().call_later(AGAIN_S, self.look, subscription)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _perform(self, coroutine: Coroutine[Effect[Any], Any, T]) -> Coroutine[Any, Any, T]:
        return perform(coroutine, self._services)


async def _durable(batch: Batch) -> None:
    await Durable(batch)
