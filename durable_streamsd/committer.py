"""Makes batches durable: a thread writes and syncs, the loop tells.

    loop     ... appends fill the open batch ...   seal | ... the next batch fills ...   settle
    thread                                              write, sync (GIL released)

Order on the loop, in one callback per batch: the durable tail advances (`Store.finish`), the hub
wakes readers, the batch's waiters are told (their clients acknowledged). While one batch is being
written the next one fills, so batches grow with the load and no timer is needed.

Invariants:
- at most one batch is in flight; only the thread calls `Store.write`
- every waiter of a sealed batch is called exactly once, whatever the thread meets: an error that
  nobody foresaw latches the store, because what it left on disk is not known
- an error in `Store.seal` or `Store.finish` is one in our own state: nothing that the process
  would say after that can be trusted, so `on_fatal` ends it, unacknowledged
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from time import monotonic

from durable_streamsd.hub import Hub
from durable_streamsd.metrics.commits import Arrivals, CommitCounts
from storage.errors import CommitError, Latched
from storage.pending import Sealed
from storage.state import Stream
from storage.store import Store

__all__ = ["Committer"]

log = logging.getLogger(__name__)


class Committer:
    """Turns accepted into durable, one batch at a time.

    `on_settled` is called after each batch, when there may be room for more; `on_fatal` ends the
    process. `on_woken` is told which streams a batch changed, before anybody is acknowledged.
    """

    def __init__(
        self,
        store: Store,
        hub: Hub,
        loop: asyncio.AbstractEventLoop,
        on_settled: Callable[[], None],
        on_fatal: Callable[[], None],
        counts: CommitCounts,
        on_woken: Callable[[Sequence[Stream]], None] = lambda streams: None,
    ) -> None:
        self._store = store
        self._hub = hub
        self._loop = loop
        self._on_settled = on_settled
        self._on_fatal = on_fatal
        self._on_woken = on_woken
        self._counts = counts
        self._arriving, self._arrived = Arrivals(), Arrivals()
        """For the batch that fills, and for the one in flight."""
        self._turn_s = 0.0
        self._queue: SimpleQueue[Sealed | Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="committer", daemon=True)
        self._scheduled = False
        self._in_flight = False
        self._idle: asyncio.Event = asyncio.Event()
        self._idle.set()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def kick(self) -> None:
        """Something was accepted: seal it at the end of this turn of the loop.

        Not at once, so that all appends that arrived in this turn share a batch.
        """
        if not self._scheduled:
            self._scheduled = True
            self._turn_s = monotonic()
            self._loop.call_soon(self._seal)

    def ask(self, answered: Callable[[], None]) -> None:
        """Have the thread say that it works: `answered` is called on the loop, after the batch
        that is being written."""
        self._queue.put(answered)

    async def drained(self) -> None:
        """Return when everything accepted so far is durable, or has failed."""
        self.kick()
        self._idle.clear()
        await self._idle.wait()

    def stop(self) -> None:
        """End the thread; call it when `drained`, nothing may be accepted after it."""
        self._queue.put(None)
        self._thread.join()

    def _seal(self) -> None:
        self._scheduled = False
        # In the middle of the turn, which is when they came on the average.
        came_s = (self._turn_s + monotonic()) / 2
        waiting = len(self._store.open_batch.waiters)
        self._arriving.note(came_s, waiting, last=not self._in_flight)
        if self._in_flight:
            return  # `_settle` seals again
        try:
            sealed = self._store.seal()
        except Exception:
            log.critical("sealing a batch failed", exc_info=True)
            self._on_fatal()
            return
        if sealed is None:
            self._idle.set()
            return
        self._in_flight = True
        self._arrived, self._arriving = self._arriving, Arrivals()
        self._queue.put(sealed)

    def _run(self) -> None:
        while self._write_next():
            pass

    def _write_next(self) -> bool:
        """Wait for a batch and write it. False: there is none any more."""
        sealed = self._queue.get()
        if sealed is None:
            return False
        if callable(sealed):
            self._loop.call_soon_threadsafe(sealed)
            return True
        error: CommitError | None = None
        began_s = monotonic()
        try:
            self._store.write(sealed)
        except CommitError as failure:
            error = failure
        except BaseException as failure:
            log.critical("writing a batch failed in a way nobody foresaw", exc_info=True)
            error = Latched(f"an unexpected {type(failure).__name__} while writing")
        took_s = monotonic() - began_s
        self._loop.call_soon_threadsafe(self._settle, sealed, error, took_s)
        return True

    def _settle(self, sealed: Sealed, error: CommitError | None, took_s: float) -> None:
        try:
            finished = self._store.finish(sealed, error)
        except Exception:
            log.critical("finishing a batch failed", exc_info=True)
            self._on_fatal()
            return
        if error is not None:
            log.error("a batch did not become durable: %s", error)
            self._arriving = Arrivals()  # they are told now, too
        self._counts.settled(sealed, error, took_s)
        self._in_flight = False
        self._hub.wake(finished.woken)
        self._on_woken(finished.woken)
        began_s = monotonic()
        for batch in finished.batches:
            for waiter in batch.waiters:
                try:
                    waiter(error)
                except Exception:
                    log.exception("a waiter failed when it was told about its batch")
            batch.waiters.clear()  # a batch outlives its answers, connections must not
        if error is None:
            self._arrived.told((began_s + monotonic()) / 2, self._counts.ack_s)
        self._on_settled()
        self.kick()
