"""Chunks that are remembered with their bytes, because they were put together from many places."""

from pathlib import Path

import engine
import pytest
from engine import SMALL, open_store

from storage.limits import Limits
from storage.reading import SCATTERED_PIECES, Chunk, ColdRead
from storage.store import Store

MESSAGES = 3 * SCATTERED_PIECES
MESSAGE = b"0123456789"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store with a stream whose every message lies in a batch of its own, known to the index."""
    limits = Limits(reserve_bytes=SMALL.reserve_bytes, zero_ahead_bytes=0, tail_cache_bytes_max=0)
    store = open_store(tmp_path / "data", limits)
    engine.create(store, b"s")
    grow(store, MESSAGES)
    return store


def grow(store: Store, messages: int) -> None:
    """Append more messages, and let go of them."""
    for _ in range(messages):
        engine.append(store, b"s", MESSAGE)
        engine.commit(store)
    store.index_step()


def read(store: Store, limit_bytes: int = 1 << 20) -> tuple[Chunk, bool]:
    """The first chunk, and whether it took a cold read."""
    found = store.read(engine.seen(store, b"s"), 0, limit_bytes)
    return (found.run(), True) if isinstance(found, ColdRead) else (found, False)


def test_it_is_gathered_once(store: Store) -> None:
    """The second read of a scattered chunk needs neither index nor log, and gives the same."""
    first, was_cold = read(store)
    assert was_cold
    again, is_cold = read(store)
    assert not is_cold
    assert (again.data, again.next, again.up_to_date) == (first.data, first.next, first.up_to_date)
    assert again.data == MESSAGE * MESSAGES


def test_a_chunk_up_to_the_tail_ends_with_it(store: Store) -> None:
    """When the stream has grown, what was its end before is not taken for its end."""
    read(store)
    grow(store, 1)
    chunk, _ = read(store)
    assert chunk.data == MESSAGE * (MESSAGES + 1)
    assert chunk.up_to_date


def test_a_chunk_up_to_the_limit_stays(store: Store) -> None:
    """A chunk that ended before the tail is the same when the stream has grown."""
    limit_bytes = 2 * SCATTERED_PIECES * len(MESSAGE)
    first, was_cold = read(store, limit_bytes)
    assert was_cold
    assert not first.up_to_date
    grow(store, 1)
    again, is_cold = read(store, limit_bytes)
    assert not is_cold
    assert (again.data, again.up_to_date) == (first.data, False)


def test_closing_is_told_with_a_remembered_chunk(store: Store) -> None:
    """Whether the stream is closed comes from its state, not from when the chunk was gathered."""
    first, _ = read(store)
    assert not first.closed
    engine.append(store, b"s", close=True)
    engine.commit(store)
    again, is_cold = read(store)
    assert not is_cold
    assert again.closed


def test_what_is_remembered_is_bounded(tmp_path: Path) -> None:
    """Chunks that are too large for the bound, and the oldest, are gathered anew."""
    limits = Limits(
        reserve_bytes=SMALL.reserve_bytes,
        zero_ahead_bytes=0,
        tail_cache_bytes_max=0,
        gathered_bytes_max=3 * MESSAGES * len(MESSAGE),
    )
    store = open_store(tmp_path / "data", limits)
    engine.create(store, b"s")
    grow(store, MESSAGES)
    for _ in range(2):
        _, was_cold = read(store)
        assert was_cold, "a chunk above a quarter of the bound was kept"
