"""Listings of real stores: what is durable, each once, in order, wherever it is known."""

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import engine
import pytest
from engine import JSON, SMALL, abandon, bounded, open_store
from hypothesis import given
from hypothesis import strategies as st

from storage.listing import PAGE_STREAMS_MAX, Listed
from storage.store import Store


def listed(
    store: Store, prefix: bytes = b"", limit: int = 3, after: bytes | None = None
) -> list[Listed]:
    """All streams that pages of `limit` tell."""
    found: list[Listed] = []
    while True:
        page = store.listing(prefix, after, limit).run()
        assert len(page.streams) <= limit
        found += page.streams
        if page.next is None:
            return found
        assert page.next > (after or b""), "a listing has to get further"
        after = page.next


def paths(store: Store, prefix: bytes = b"", limit: int = 3) -> list[bytes]:
    """The paths that pages of `limit` tell."""
    return [stream.path for stream in listed(store, prefix, limit)]


def test_what_a_listing_tells(tmp_path: Path) -> None:
    """Type, tail, closure, time and source are those that readers see, indexed or not."""
    store = open_store(tmp_path)
    engine.create(store, b"s", JSON, body=b"[1,2]")
    engine.fork(store, b"f", b"s", 2, body=b"[3,4,5]", closed=True)
    engine.create(store, b"gone", ttl_s=10)
    engine.commit(store)
    stream = engine.seen(store, b"s")
    expected = [
        Listed(b"f", JSON, stream.id, 0, 8, True, stream.created_ms, b"s"),
        Listed(b"gone", engine.BYTES, 3, 0, 0, False, stream.created_ms, None),
        Listed(b"s", JSON, stream.id, 0, 4, False, stream.created_ms, None),
    ]
    assert listed(store) == expected
    engine.index_all(store)
    assert listed(store) == expected
    engine.forget(store)
    assert listed(store) == expected
    engine.append(store, b"s", b"6")
    assert listed(store) == expected, "what is not durable is not told"
    engine.commit(store)
    expected[2] = expected[2]._replace(tail=6)
    assert listed(store) == expected
    store.clock_ms += 1_000_000
    assert [stream.path for stream in listed(store)] == [b"f", b"s"], "its time is over"
    store.close()


def test_soft_deleted_streams_are_not_listed(tmp_path: Path) -> None:
    """A source that is only kept for its forks is not told, indexed or not."""
    store = open_store(tmp_path)
    engine.create(store, b"s", body=b"abc")
    engine.fork(store, b"f", b"s")
    engine.commit(store)
    engine.delete(store, b"s")
    assert paths(store) == [b"f", b"s"]
    engine.commit(store)
    for _ in range(2):
        for limit in (1, 2, 10):
            assert paths(store, limit=limit) == [b"f"]
        engine.forget(store)
    store.close()


def test_a_path_that_was_used_again(tmp_path: Path) -> None:
    """The newest incarnation of a path is told, wherever the index is."""
    store = open_store(tmp_path)
    for number in range(4):
        engine.create(store, b"s", body=b"x" * number)
        engine.commit(store)
        assert [stream.tail for stream in listed(store)] == [number]
        if number % 2:
            engine.index_all(store)
            assert [stream.tail for stream in listed(store)] == [number]
        engine.delete(store, b"s")
        engine.commit(store)
        assert listed(store) == []
    store.close()


NAMES = st.text(alphabet="ab/é\U0001f600", min_size=1, max_size=6).map(str.encode)


@bounded(60)
@given(
    names=st.lists(NAMES, unique=True, max_size=25),
    prefix=st.text(alphabet="ab/é", max_size=2).map(str.encode),
    limit=st.sampled_from([1, 2, 7, PAGE_STREAMS_MAX]),
    seed=st.integers(0, 1 << 30),
)
def test_pages_are_the_sorted_paths(
    tmp_path_factory: pytest.TempPathFactory,
    names: list[bytes],
    prefix: bytes,
    limit: int,
    seed: int,
) -> None:
    """Whatever is indexed, deleted or evicted: pages joined are the paths there are, in order."""
    chance = random.Random(seed)
    root = tmp_path_factory.mktemp("listing")
    store = open_store(root, SMALL)
    there = set()
    for name in names:
        engine.create(store, name)
        there.add(name)
        if there and chance.random() < 0.3:
            victim = chance.choice(sorted(there))
            engine.delete(store, victim)
            there.remove(victim)
        if chance.random() < 0.5:
            engine.commit(store)
        if chance.random() < 0.2 and store._backlog.indexed_sequence < store._durable_sequence:
            store.index_step()
    engine.commit(store)
    assert paths(store, prefix, limit) == sorted(path for path in there if path.startswith(prefix))
    abandon(store)


def test_a_listing_beside_a_writer(tmp_path: Path) -> None:
    """Pages made in a thread while batches become durable: streams that are always there are told
    once each, and no stream is closed before its last append."""
    store = open_store(tmp_path)
    stays = [b"stays/%02d" % number for number in range(20)]
    for path in stays:
        engine.create(store, path)
    engine.commit(store)
    with ThreadPoolExecutor(2) as threads:
        for number in range(200):
            path = b"comes/%d" % number
            engine.create(store, path, body=b"x")
            engine.commit(store)
            planned = [store.listing(b"", None, PAGE_STREAMS_MAX) for _ in range(2)]
            pages = [threads.submit(listing.run) for listing in planned]
            engine.append(store, path, b"y", close=True)
            engine.append(store, b"stays/%02d" % (number % 20), b"z")
            engine.commit(store)
            if number % 7 == 0:
                store.index_step()
            for page in pages:
                streams = page.result().streams
                assert [stream.path for stream in streams[number + 1 :]] == stays
                assert {stream.tail for stream in streams if stream.closed} <= {2}
    store.close()
