"""What is told about a stream's time rests on what is durable, and is the same after a restart."""

from pathlib import Path

import engine
from engine import abandon, open_store

TTL_S = 10


def test_every_access_rests_on_the_deadline_it_needs(tmp_path: Path) -> None:
    """While a deadline is on its way to the disk, each read that relies on it waits for it."""
    store = open_store(tmp_path / "data")
    engine.create(store, b"s", ttl_s=TTL_S)
    assert store.commit() is None
    stream = engine.seen(store, b"s")
    store.clock_ms += 3_000
    first = store.touch(stream)
    assert first is not None
    assert store.touch(stream) is first
    sealed = store.seal()
    assert sealed is not None
    assert store.touch(stream) is first
    store.write(sealed)
    store.finish(sealed, None)
    assert store.touch(stream) is None
    store.close()


def test_a_deadline_that_was_taken_back_is_not_waited_for(tmp_path: Path) -> None:
    """After a batch failed, a read relies on a deadline that is written again, or on none."""
    store = open_store(tmp_path / "data")
    engine.create(store, b"s", ttl_s=TTL_S)
    assert store.commit() is None
    stream = engine.seen(store, b"s")
    before = stream.persisted_deadline_ms
    store.clock_ms += 3_000
    assert store.touch(stream) is not None
    for restore, arguments in reversed(store._open.undo):
        restore(*arguments)
    assert stream.persisted_deadline_ms == before
    assert stream.deadline_sequence <= store._durable_sequence
    abandon(store)


def test_a_restart_finds_the_time_of_creation(tmp_path: Path) -> None:
    """The time of creation, which tells incarnations apart, is the batch's, before and after."""
    store = open_store(tmp_path / "data")
    engine.create(store, b"s")
    store.clock_ms += 1_234
    assert store.commit() is None
    created_ms = engine.seen(store, b"s").created_ms
    store.close()
    store = open_store(tmp_path / "data")
    assert engine.seen(store, b"s").created_ms == created_ms
    store.close()


def test_a_live_reader_learns_of_the_end_before_the_index_does(tmp_path: Path) -> None:
    """A stream with a fixed end that somebody follows ends on time, though nothing is indexed."""
    store = open_store(tmp_path / "data")
    engine.create(store, b"s", expires_ms=store.clock_ms + 1_000)
    assert store.commit() is None
    stream = engine.seen(store, b"s")
    store.hold(stream)
    store.clock_ms += 1_000
    store.tick(store.now_ms())
    assert store.commit() is None
    assert stream.gone
    store.release(stream)
    store.close()
