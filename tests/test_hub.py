"""The hub: who is woken, when, and how often."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from durable_streamsd import hub as hub_module
from durable_streamsd.hub import Group, Hub
from storage.state import Stream
from storage.stream_config import StreamConfig


class Reader:
    """A waiter that counts its wakes, and does something at each if told to."""

    def __init__(self, at_wake: Callable[[], None] = lambda: None) -> None:
        self.group: Group | None = None
        self.wakes = 0
        self._at_wake = at_wake

    def woken(self) -> None:
        self.wakes += 1
        self._at_wake()


def stream(stream_id: int) -> Stream:
    return Stream(stream_id, b"a/%d" % stream_id, StreamConfig("text/plain"), 0)


def test_wakes_the_waiters_of_touched_streams_only() -> None:
    """A wake reaches those who wait for one of its streams, before it returns."""
    hub = Hub(asyncio.new_event_loop())
    one, other = stream(1), stream(2)
    readers = [Reader(), Reader(), Reader()]
    hub.register(readers[0], one)
    hub.register(readers[1], one)
    hub.register(readers[2], other)
    hub.wake([one])
    assert [reader.wakes for reader in readers] == [1, 1, 0]
    assert len(hub) == 1


def test_a_waiter_is_woken_once() -> None:
    """Who was woken has left the hub, until it registers again."""
    hub = Hub(asyncio.new_event_loop())
    it = stream(1)
    reader = Reader()
    hub.register(reader, it)
    hub.wake([it])
    hub.wake([it])
    assert reader.wakes == 1
    hub.register(reader, it)
    hub.wake([it])
    assert reader.wakes == 2


def test_a_waiter_that_left_is_not_woken() -> None:
    """Leaving forgets the waiter, leaving again does nothing, and no group stays behind."""
    hub = Hub(asyncio.new_event_loop())
    it = stream(1)
    reader, other = Reader(), Reader()
    hub.register(reader, it)
    hub.register(other, it)
    hub.leave(reader)
    hub.leave(reader)
    hub.wake([it])
    assert (reader.wakes, other.wakes) == (0, 1)
    hub.register(reader, it)
    hub.leave(reader)
    assert not hub._groups


def test_registering_while_being_woken_waits_for_the_next_commit() -> None:
    """A reader that has seen everything and registers again is not woken in the same turn."""
    hub = Hub(asyncio.new_event_loop())
    it = stream(1)
    reader = Reader(lambda: hub.register(reader, it))
    hub.register(reader, it)
    hub.wake([it])
    assert reader.wakes == 1
    assert len(hub) == 1


def test_one_waiter_can_make_another_leave_while_both_are_being_woken() -> None:
    """A wake that ends another request (a closed connection, say) does not wake it afterwards."""
    hub = Hub(asyncio.new_event_loop())
    it = stream(1)
    first: Reader
    second: Reader
    first = Reader(lambda: hub.leave(second))
    second = Reader(lambda: hub.leave(first))
    hub.register(first, it)
    hub.register(second, it)
    hub.wake([it])
    assert first.wakes + second.wakes == 1
    assert len(hub) == 0


def test_many_waiters_are_woken_over_several_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn wakes a bounded number; all others follow, also of streams woken meanwhile."""
    monkeypatch.setattr(hub_module, "WAKES_PER_TURN_MAX", 10)

    async def scenario() -> None:
        hub = Hub(asyncio.get_running_loop())
        streams = [stream(1), stream(2)]
        readers = [Reader() for _ in range(25)]
        for reader in readers:
            hub.register(reader, streams[0])
        late = Reader()
        hub.register(late, streams[1])
        gone = next(reader for reader in readers)
        hub.wake([streams[0]])
        assert sum(reader.wakes for reader in readers) == 10
        hub.wake([streams[1]])
        assert late.wakes == 0
        unwoken = next(reader for reader in readers if not reader.wakes)
        hub.leave(unwoken)
        turns = 0
        while not late.wakes:
            await asyncio.sleep(0)
            turns += 1
        assert turns <= 3
        assert sum(reader.wakes for reader in readers) == 24
        assert not unwoken.wakes
        assert gone.wakes == 1 or gone is unwoken

    asyncio.run(scenario())


def test_wake_all_reaches_everybody() -> None:
    """When the daemon stops, nobody is left waiting."""
    hub = Hub(asyncio.new_event_loop())
    readers = [Reader() for _ in range(5)]
    for number, reader in enumerate(readers):
        hub.register(reader, stream(number))
    hub.wake_all()
    assert all(reader.wakes == 1 for reader in readers)
    assert len(hub) == 0


def test_a_waiter_that_fails_keeps_no_other_from_being_woken(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is logged; the rest of the stream's readers get their news, now and later."""

    def fail() -> None:
        raise ZeroDivisionError

    hub = Hub(asyncio.new_event_loop())
    it = stream(1)
    readers = [Reader(fail), Reader(), Reader(fail), Reader()]
    for _ in range(2):
        for reader in readers:
            hub.register(reader, it)
        hub.wake([it])
    assert [reader.wakes for reader in readers] == [2, 2, 2, 2]
    assert "ZeroDivisionError" in caplog.text
