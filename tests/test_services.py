"""What requests wait for together: look-ups, room, memory for bodies, deadlines."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Awaitable, Callable
from typing import cast

import pytest

from durable_streamsd import services
from durable_streamsd import wheel as wheel_module
from durable_streamsd.services import Allowance, Loader, Room, Workers
from durable_streamsd.wheel import Timed, Wheel, ticks_of
from storage.errors import CorruptData, Latched
from storage.store import Store


class Waiter:
    """Notes what it was told, under its name."""

    def __init__(self, name: str, told: list[str]) -> None:
        self._name = name
        self._told = told

    def resume(self, result: object) -> None:
        self._told.append(self._name)

    def fail(self, error: Exception) -> None:
        self._told.append(f"{self._name} {type(error).__name__}")

    def granted(self) -> None:
        self._told.append(self._name)


class StandIn:
    """A store with an index that answers when it may."""

    def __init__(self) -> None:
        self.accepting = True
        self.latched = False
        self.looked_up: list[bytes] = []
        self.admitted: list[bytes] = []
        self.may_load = threading.Event()

    def load(self, path: bytes) -> bytes:
        self.may_load.wait()
        self.looked_up.append(path)
        if path == b"bad":
            raise CorruptData("index", 0, "for the test")
        return path

    def admit(self, path: bytes) -> None:
        self.admitted.append(path)
        if path == b"bad to admit":
            raise CorruptData("index", 1, "for the test")


def with_loader(
    scenario: Callable[[StandIn, Loader], Awaitable[None]], *, cold: bool = True
) -> StandIn:
    """Run a scenario with a loader on a stand-in store whose look-ups are slow, or are not."""
    store = StandIn()

    async def main() -> None:
        workers = Workers(asyncio.get_running_loop())
        try:
            async with asyncio.timeout(20):
                loader = Loader(cast(Store, store), workers)
                loader.cold_until_s = math.inf if cold else 0.0
                await scenario(store, loader)
        finally:
            store.may_load.set()
            workers.stop()

    asyncio.run(main())
    return store


def test_one_look_up_per_path_and_waiters_in_order() -> None:
    """Whoever asks for a path that is being looked up joins in; order of arrival is kept."""
    told: list[str] = []

    async def scenario(store: StandIn, loader: Loader) -> None:
        for number, path in enumerate((b"a", b"b", b"a", b"c", b"b", b"a")):
            loader.look_up(path, Waiter(f"{path.decode()}{number}", told))
        store.may_load.set()
        while len(told) < 6:
            await asyncio.sleep(0)

    store = with_loader(scenario)
    assert sorted(store.looked_up) == sorted(store.admitted) == [b"a", b"b", b"c"]
    assert [name for name in told if name[0] == "a"] == ["a0", "a2", "a5"]
    assert [name for name in told if name[0] == "b"] == ["b1", "b4"]


def test_a_failed_look_up_is_told_to_its_waiters_only() -> None:
    """Damage behind one path is no other path's concern, and can be asked for again."""
    told: list[str] = []

    async def scenario(store: StandIn, loader: Loader) -> None:
        store.may_load.set()
        for path in (b"first", b"bad", b"good", b"bad to admit", b"bad"):
            loader.look_up(path, Waiter(path.decode(), told))
        while len(told) < 5:
            await asyncio.sleep(0)
        loader.look_up(b"bad", Waiter("again", told))
        while len(told) < 6:
            await asyncio.sleep(0)

    with_loader(scenario)
    assert sorted(told) == [
        "again CorruptData",
        "bad CorruptData",
        "bad CorruptData",
        "bad to admit CorruptData",
        "first",
        "good",
    ]


def test_a_quick_look_up_is_made_at_once() -> None:
    """Nobody waits for what is in memory; a failure is told as from a thread, and asked again."""
    told: list[str] = []

    async def scenario(store: StandIn, loader: Loader) -> None:
        store.may_load.set()
        assert loader.look_up(b"a", Waiter("a", told))
        assert store.admitted == [b"a"]
        assert not loader.look_up(b"bad", Waiter("bad", told))
        while not told:
            await asyncio.sleep(0)

    with_loader(scenario, cold=False)
    assert told == ["bad CorruptData"]


def test_after_a_look_up_on_disk_the_loop_makes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that had to wait for a page is the last that holds the loop up, for a while."""
    told: list[str] = []
    faults = iter((7, 8))
    monkeypatch.setattr(services, "disk_faults", lambda: next(faults))

    async def scenario(store: StandIn, loader: Loader) -> None:
        store.may_load.set()
        before_s = time.monotonic()
        assert loader.look_up(b"slow", Waiter("slow", told))
        assert loader.cold_until_s > before_s
        store.may_load.clear()
        assert not loader.look_up(b"next", Waiter("next", told))
        store.may_load.set()
        while not told:
            await asyncio.sleep(0)

    with_loader(scenario, cold=False)
    assert told == ["next"]


def test_room_is_given_in_order_and_only_while_there_is_some() -> None:
    """First come, first served; who takes the last of it leaves the others waiting."""
    told: list[str] = []
    store = StandIn()
    store.accepting = False
    room = Room(cast(Store, store))
    for name in "abc":
        room.wait(Waiter(name, told))
    room.release()
    assert told == []

    class Greedy(list[str]):
        def append(self, name: str) -> None:
            super().append(name)
            store.accepting = len(self) % 2 == 1

    greedy = Greedy()
    room = Room(cast(Store, store))
    for name in "abcd":
        room.wait(Waiter(name, greedy))
    store.accepting = True
    room.release()
    assert greedy == ["a", "b"]
    store.accepting = True
    room.release()
    assert greedy == ["a", "b", "c", "d"]


def test_nobody_waits_for_room_in_a_latched_store() -> None:
    """It will not come: everybody is told."""
    told: list[str] = []
    store = StandIn()
    store.accepting = False
    room = Room(cast(Store, store))
    room.wait(Waiter("a", told))
    room.wait(Waiter("b", told))
    store.latched = True
    room.release()
    assert told == [f"a {Latched.__name__}", f"b {Latched.__name__}"]


def test_an_allowance_is_given_whole_and_in_order() -> None:
    """A small claim does not pass a large one that came first, and giving up makes way."""
    told: list[str] = []
    allowance = Allowance(100)
    large, small, gone = (Waiter(name, told) for name in ("large", "small", "gone"))
    assert allowance.take(60, Waiter("first", told))
    assert not allowance.take(80, gone)
    assert not allowance.take(90, large)
    assert not allowance.take(10, small)
    allowance.give_up(gone)
    allowance.give_back(60)
    assert told == ["large", "small"]
    allowance.give_back(90)
    allowance.give_back(10)
    assert allowance.take(100, Waiter("all", told))


def test_shares_that_are_given_back_at_once_do_not_nest() -> None:
    """Thousands that each return their share in the moment they get it are served in a loop."""
    allowance = Allowance(1)
    served: list[int] = []

    class Brief:
        def granted(self) -> None:
            served.append(1)
            allowance.give_back(1)

    assert allowance.take(1, Brief())
    for _ in range(5_000):
        assert not allowance.take(1, Brief())
    allowance.give_back(1)
    assert len(served) == 5_000


class Alarm(Timed):
    """Notes its deadlines."""

    def __init__(self, name: str, told: list[str]) -> None:
        super().__init__()
        self._name = name
        self._told = told

    def on_deadline(self) -> None:
        self._told.append(self._name)


class FakeLoop:
    """A loop whose clock the test moves."""

    def __init__(self) -> None:
        self.now_s = 1_000.0
        self._timer: tuple[float, Callable[[], None]] | None = None

    def time(self) -> float:
        return self.now_s

    def call_at(self, when: float, callback: Callable[[], None]) -> FakeLoop:
        assert self._timer is None
        self._timer = (when, callback)
        return self

    def cancel(self) -> None:
        self._timer = None

    @property
    def sleeps(self) -> bool:
        return self._timer is None

    def pass_time(self, seconds: float, steps: int = 1) -> None:
        for _ in range(steps):
            self.now_s += seconds / steps
            while self._timer is not None and self._timer[0] <= self.now_s:
                callback = self._timer[1]
                self._timer = None
                callback()


def wheel() -> tuple[Wheel, FakeLoop]:
    loop = FakeLoop()
    return Wheel(cast(asyncio.AbstractEventLoop, loop)), loop


def test_a_deadline_never_fires_early_and_at_most_two_ticks_late() -> None:
    """Wherever within a tick it was armed, and however long it is."""
    for offset in (0.0, 0.01, 0.13, 0.249):
        for seconds in (0.05, 0.25, 1.0, 7.3):
            told: list[str] = []
            timer, loop = wheel()
            loop.now_s += offset
            timer.arm(Alarm("other", []), 1)
            loop.pass_time(offset)
            timer.arm(Alarm("it", told), ticks_of(seconds))
            loop.pass_time(seconds - 0.001, steps=50)
            assert not told
            loop.pass_time(2 * wheel_module.TICK_S + 0.002, steps=50)
            assert told == ["it"]


def test_a_deadline_moves() -> None:
    """Later without a trace, earlier at once; forgotten it does not fire."""
    told: list[str] = []
    timer, loop = wheel()
    later, earlier, gone = (Alarm(name, told) for name in ("later", "earlier", "gone"))
    for alarm in (later, earlier, gone):
        timer.arm(alarm, ticks_of(10))
    timer.arm(later, ticks_of(20))
    timer.arm(earlier, ticks_of(5))
    timer.forget(gone)
    timer.forget(gone)
    loop.pass_time(9, steps=90)
    assert told == ["earlier"]
    loop.pass_time(10, steps=100)
    assert told == ["earlier"]
    loop.pass_time(2, steps=20)
    assert told == ["earlier", "later"]
    assert len(timer) == 0
    assert loop.sleeps


def test_a_loop_that_was_held_up_misses_no_deadline() -> None:
    """After a long pause all that is due fires, in order."""
    told: list[str] = []
    timer, loop = wheel()
    alarms = [Alarm(str(seconds), told) for seconds in (3, 1, 2, 60)]
    for alarm, seconds in zip(alarms, (3, 1, 2, 60), strict=True):
        timer.arm(alarm, ticks_of(seconds))
    loop.pass_time(30)
    assert told == ["1", "2", "3"]


def test_a_deadline_may_be_armed_again_when_it_fires() -> None:
    """And others may be forgotten meanwhile."""
    told: list[str] = []
    timer, loop = wheel()
    other = Alarm("other", told)

    class Again(Alarm):
        def on_deadline(self) -> None:
            super().on_deadline()
            timer.forget(other)
            timer.arm(self, ticks_of(1))

    again = Again("again", told)
    timer.arm(again, ticks_of(1))
    timer.arm(other, ticks_of(2))
    loop.pass_time(3.7, steps=37)
    assert told == ["again", "again"]
