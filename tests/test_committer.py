"""The committer: what is told when, and that nobody is left waiting."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from durable_streamsd.committer import Committer
from durable_streamsd.hub import Group, Hub
from durable_streamsd.metrics.commits import CommitCounts
from storage.errors import CommitError, Latched, OutOfSpace
from storage.state import Batch, Stream
from storage.store import Finished, Store
from storage.stream_config import StreamConfig


class Sealed:
    """What the stand-in store seals."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.records, self.size_bytes, self.sync_s = len(batch.waiters), 100, 0.25


class StandIn:
    """A store that writes when it is told to, and notes the order of everything."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.open = Batch(1)
        self.accepted = 0
        self.stream = Stream(1, b"a", StreamConfig("text/plain"), 0)
        self.may_write = threading.Semaphore(0)
        self.failure: BaseException | None = None
        self.broken = ""
        self.counts = CommitCounts()

    @property
    def open_batch(self) -> Batch:
        return self.open

    def accept(self, waiter: Callable[[CommitError | None], None]) -> None:
        self.accepted += 1
        self.open.waiters.append(waiter)

    def seal(self) -> Sealed | None:
        if self.broken == "seal":
            raise ZeroDivisionError
        if not self.accepted:
            return None
        self.events.append(f"seal {self.accepted}")
        sealed = Sealed(self.open)
        self.open = Batch(self.open.sequence + 1)
        self.accepted = 0
        return sealed

    def write(self, sealed: Sealed) -> None:
        self.may_write.acquire()
        if self.failure is not None:
            raise self.failure

    def finish(self, sealed: Sealed, error: CommitError | None) -> Finished:
        if self.broken == "finish":
            raise ZeroDivisionError
        self.events.append("finish" if error is None else f"finish {type(error).__name__}")
        batches = [sealed.batch]
        if error is not None:
            batches.append(self.open)
            self.open = Batch(self.open.sequence)
            self.accepted = 0
        return Finished(cast(Any, batches), [self.stream])


class Reader:
    """A waiter of the hub."""

    group: Group | None = None

    def __init__(self, events: list[str]) -> None:
        self._events = events

    def woken(self) -> None:
        self._events.append("wake")


Scenario = Callable[[StandIn, Committer, Hub], Awaitable[None]]


def run(scenario: Scenario) -> StandIn:
    """Run a scenario with a committer on a stand-in store."""
    store = StandIn()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        hub = Hub(loop)
        committer = Committer(
            cast(Store, store),
            hub,
            loop,
            lambda: store.events.append("settled"),
            lambda: store.events.append("fatal"),
            store.counts,
        )
        committer.start()
        try:
            async with asyncio.timeout(20):
                await scenario(store, committer, hub)
        finally:
            store.may_write.release(100)
            committer.stop()

    asyncio.run(main())
    return store


def test_durable_then_wake_then_acknowledge() -> None:
    """The order of one commit: state, readers, writers; then whoever waits for room."""

    async def scenario(store: StandIn, committer: Committer, hub: Hub) -> None:
        hub.register(Reader(store.events), store.stream)
        store.accept(lambda error: store.events.append("acknowledge"))
        committer.kick()
        store.may_write.release()
        await committer.drained()

    assert run(scenario).events == ["seal 1", "finish", "wake", "acknowledge", "settled"]


def test_one_turn_is_one_batch_and_one_flight_fills_the_next() -> None:
    """However often it is kicked: appends of a turn share a batch, those of a flight the next."""

    async def scenario(store: StandIn, committer: Committer, hub: Hub) -> None:
        for _ in range(3):
            store.accept(lambda error: None)
            committer.kick()
        await asyncio.sleep(0)
        assert store.events == ["seal 3"]
        for _ in range(4):
            store.accept(lambda error: None)
            committer.kick()
            await asyncio.sleep(0)
        assert store.events == ["seal 3"]
        store.may_write.release(2)
        await committer.drained()

    events = run(scenario).events
    assert [event for event in events if event.startswith("seal")] == ["seal 3", "seal 4"]


def test_the_thread_answers_only_when_it_works() -> None:
    """A question asked during a batch is answered, on the loop, when that batch is settled."""

    async def scenario(store: StandIn, committer: Committer, hub: Hub) -> None:
        answered = asyncio.Event()
        committer.ask(answered.set)
        await answered.wait()
        answered.clear()
        store.accept(lambda error: None)
        committer.kick()
        await asyncio.sleep(0)
        committer.ask(answered.set)
        store.may_write.release()
        await answered.wait()
        store.events.append("answered")

    assert run(scenario).events == ["seal 1", "finish", "settled", "answered"]


@pytest.mark.parametrize(
    ("failure", "told"),
    [
        (OutOfSpace("full"), OutOfSpace),
        (Latched("EIO"), Latched),
        (ZeroDivisionError(), Latched),
        (KeyboardInterrupt(), Latched),
    ],
)
def test_a_failed_write_is_told_to_every_waiter(
    failure: BaseException, told: type[CommitError]
) -> None:
    """Also to those of the batch that was filling; what nobody foresaw latches."""
    answers: list[CommitError | None] = []

    async def scenario(store: StandIn, committer: Committer, hub: Hub) -> None:
        store.failure = failure
        store.accept(answers.append)
        store.accept(answers.append)
        committer.kick()
        await asyncio.sleep(0)
        store.accept(answers.append)
        store.may_write.release()
        await committer.drained()

    run(scenario)
    assert [type(answer) for answer in answers] == [told] * 3


def test_it_goes_on_after_a_failure_that_heals() -> None:
    """A full disk that has space again takes the next batch."""
    answers: list[CommitError | None] = []

    async def scenario(store: StandIn, committer: Committer, hub: Hub) -> None:
        store.may_write.release(2)
        store.failure = OutOfSpace("full")
        store.accept(answers.append)
        await committer.drained()
        store.failure = None
        store.accept(answers.append)
        await committer.drained()

    run(scenario)
    assert [type(answer) for answer in answers] == [OutOfSpace, type(None)]


@pytest.mark.parametrize("where", ["seal", "finish"])
def test_an_error_in_our_own_state_is_fatal(where: str) -> None:
    """Nothing is acknowledged that may not be true: the process ends instead."""
    answers: list[CommitError | None] = []

    async def scenario(store: StandIn, committer: Committer, hub: Hub) -> None:
        store.broken = where
        store.accept(answers.append)
        store.may_write.release()
        committer.kick()
        while "fatal" not in store.events:
            await asyncio.sleep(0)

    run(scenario)
    assert not answers


def test_nothing_accepted_is_nothing_to_do() -> None:
    """A kick without work seals nothing, and draining ends at once."""

    async def scenario(store: StandIn, committer: Committer, hub: Hub) -> None:
        committer.kick()
        await committer.drained()

    assert run(scenario).events == []
