"""Families of forks, whose fronts are cut, driven at random beside byte strings that say what they
must hold.

The model copies what a fork inherits, which is what the store never does. Everything about ends is
in it: soft deletion, expiry, collecting from the last fork upwards, paths that are free again.
"""

import copy
import os
import random
import shutil
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import engine
import pytest
from engine import BYTES, SMALL, START_MS, ManualStore, abandon, open_store
from family_checks import family_is_whole
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)
from test_model import FailingDisk
from workload import compact_any

from storage.errors import NotRetained, OutOfSpace
from storage.state import Kind

EXAMPLES_MAX = int(os.environ.get("MODEL_EXAMPLES_MAX", "150"))
PATHS = [b"a", b"b/c", b"d", b"e", b"f/g"]
BODIES = st.one_of(
    st.binary(min_size=1, max_size=20),
    st.integers(100, 1_500).map(lambda size: b"x" * size),
    st.sampled_from([b"y" * 5_000, b"z" * 70_000]),
)

LATER = [
    "check_everything",
    "commit",
    "commit_on_a_full_disk",
    "compact",
    "crash_in_a_commit",
    "everything_is_evicted",
    "index_step",
    "restart",
]


@dataclass
class Node:
    """One incarnation of a stream; `soft`: deleted, and there for its forks alone."""

    number: int
    data: bytes
    parent: int | None = None
    seam: int = 0
    asked: tuple[bytes, int | None, int, int | None] | None = None
    expires_ms: int | None = None
    closed: bool = False
    soft: bool = False
    earliest: int = 0


@dataclass
class Family:
    """All streams by number, and which of them has a path."""

    nodes: dict[int, Node] = field(default_factory=dict)
    paths: dict[bytes, int] = field(default_factory=dict)
    numbers: int = 0

    def at(self, path: bytes) -> Node | None:
        """What has a path, be it soft-deleted."""
        number = self.paths.get(path)
        return None if number is None else self.nodes[number]

    def live(self, path: bytes) -> Node | None:
        """The stream at a path."""
        node = self.at(path)
        return None if node is None or node.soft else node

    def add(self, path: bytes, node: Node) -> None:
        """A new stream."""
        self.numbers += 1
        node.number = self.numbers
        self.nodes[node.number] = node
        self.paths[path] = node.number

    def end(self, path: bytes) -> None:
        """Delete a stream, and what was only there for it."""
        node: Node | None = self.nodes[self.paths[path]]
        while node is not None:
            if any(other.parent == node.number for other in self.nodes.values()):
                node.soft = True
                return
            del self.nodes[node.number]
            self.paths = {at: number for at, number in self.paths.items() if number != node.number}
            parent = None if node.parent is None else self.nodes[node.parent]
            node = parent if parent is not None and parent.soft else None

    def needed(self, node: Node) -> int:
        """Up to which offset somebody can read a stream's data."""
        if not node.soft:
            return len(node.data)
        forks = [other for other in self.nodes.values() if other.parent == node.number]
        return max(min(fork.seam, self.needed(fork)) for fork in forks)


class FamilyMachine(RuleBasedStateMachine):
    """What forks hold and keep alive, through crashes, full disks, evictions and lags."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="family-"))
        self.generation = 0
        self.disk = FailingDisk()
        self.limits = replace(SMALL, fork_depth_max=3)
        self.now_ms = START_MS
        self.accepted = Family()
        self.durable = Family()
        self.store: ManualStore
        self.reopen()

    def reopen(self) -> None:
        """Open the newest directory."""
        path = self.root / str(self.generation)
        self.store = open_store(path, self.limits, self.disk, self.now_ms)
        self.expire()

    def teardown(self) -> None:
        """At the end everything is looked at once more, now and after a clean restart."""
        try:
            self.check_everything()
            self.restart()
            self.check_everything()
            engine.index_all(self.store)
            self.check_index()
            self.store.close()
        finally:
            abandon(self.store)
            shutil.rmtree(self.root)

    # Changes

    @initialize(first=BODIES, second=BODIES, seam=st.floats(0, 1))
    def begin(self, first: bytes, second: bytes, seam: float) -> None:
        """A stream and its fork."""
        self.create(PATHS[0], first, None)
        self.fork(PATHS[1], PATHS[0], seam, 0, None, second)

    @rule(path=st.sampled_from(PATHS), source=st.sampled_from(PATHS), body=st.just(b"") | BODIES)
    def fork_at_the_tail(self, path: bytes, source: bytes, body: bytes) -> None:
        """Fork a stream with all it has."""
        self.fork(path, source, None, 0, None, body)

    @rule(
        path=st.sampled_from(PATHS),
        body=st.just(b"") | BODIES,
        expires_in_ms=st.sampled_from([None, None, 5_000]),
    )
    def create(self, path: bytes, body: bytes, expires_in_ms: int | None) -> None:
        """Create a stream; a path that is soft-deleted, or in use by a fork, is taken."""
        expires_ms = None if expires_in_ms is None else self.now_ms + expires_in_ms
        outcome = engine.create(self.store, path, BYTES, expires_ms=expires_ms, body=body)
        node = self.accepted.at(path)
        if node is None:
            assert outcome.kind is Kind.CREATED
            self.accepted.add(path, Node(0, body, expires_ms=expires_ms))
        elif node.soft:
            assert outcome.kind is Kind.SOFT_DELETED
        else:
            same = node.asked is None and not node.closed and node.expires_ms == expires_ms
            assert outcome.kind is (Kind.EXISTS if same else Kind.CONFLICT)

    @rule(
        path=st.sampled_from(PATHS),
        source=st.sampled_from(PATHS),
        at=st.none() | st.floats(0, 1),
        beyond=st.floats(0, 1),
        expires_in_ms=st.sampled_from([None, None, None, 3_000, 10_000]),
        body=st.just(b"") | BODIES,
    )
    def fork(
        self,
        path: bytes,
        source: bytes,
        at: float | None,
        beyond: float,
        expires_in_ms: int | None,
        body: bytes,
    ) -> None:
        """Fork a stream anywhere, onto any path."""
        parent = self.accepted.live(source)
        if parent is None:
            return
        offset = None if at is None else round(at * len(parent.data))
        sub_offset = 0 if offset is None else round(beyond * (len(parent.data) - offset))
        expires_ms = None if expires_in_ms is None else self.now_ms + expires_in_ms
        outcome = engine.fork(
            self.store, path, source, offset, sub_offset, expires_ms=expires_ms, body=body
        )
        asked = (source, offset, sub_offset, expires_ms)
        node = self.accepted.at(path)
        if node is not None and node.soft:
            assert outcome.kind is Kind.SOFT_DELETED
        elif node is not None:
            same = node.asked == asked and not node.closed
            assert outcome.kind is (Kind.EXISTS if same else Kind.CONFLICT)
        elif offset is not None and offset < parent.earliest:
            assert outcome.kind is Kind.FORK_NOT_RETAINED
        elif self.depth(parent) == self.limits.fork_depth_max:
            assert outcome.kind is Kind.FORK_TOO_DEEP
        else:
            assert outcome.kind is Kind.CREATED
            seam = len(parent.data) if offset is None else offset + sub_offset
            expires_ms = parent.expires_ms if expires_ms is None else expires_ms
            data = parent.data[:seam] + body
            node = Node(0, data, parent.number, seam, asked, expires_ms)
            node.earliest = parent.earliest
            self.accepted.add(path, node)
            assert outcome.tail == len(data)

    def depth(self, node: Node) -> int:
        """How many sources are behind a stream."""
        depth = 0
        while node.parent is not None:
            node = self.accepted.nodes[node.parent]
            depth += 1
        return depth

    @rule(path=st.sampled_from(PATHS), body=BODIES, close=st.sampled_from([False] * 5 + [True]))
    def append(self, path: bytes, body: bytes, close: bool) -> None:
        """Append: to no other stream of the family."""
        node = self.accepted.live(path)
        if node is None:
            return
        outcome = engine.append(self.store, path, body, close=close)
        assert outcome.kind is (Kind.CLOSED if node.closed else Kind.APPENDED)
        if not node.closed:
            node.data += body
            node.closed = close

    @rule(path=st.sampled_from(PATHS))
    def delete(self, path: bytes) -> None:
        """Delete what is there."""
        if self.accepted.live(path) is not None:
            assert engine.delete(self.store, path).kind is Kind.DELETED
            self.accepted.end(path)

    @rule(path=st.sampled_from(PATHS), at=st.floats(0, 1))
    def cut(self, path: bytes, at: float) -> None:
        """Drop the front of what a stream has durably; its forks keep what they inherited."""
        node = self.accepted.live(path)
        stream = engine.find(self.store, path)
        if node is None or stream is None:
            return
        earliest = round(at * stream.durable_tail)
        self.store.cut(stream, earliest)
        node.earliest = max(node.earliest, earliest)

    # Looks

    @rule(
        path=st.sampled_from(PATHS),
        at=st.floats(0, 1),
        limit_bytes=st.sampled_from([1, 3, 50, 700, 4_000, 68_000, 1 << 20]),
    )
    def read(self, path: bytes, at: float, limit_bytes: int) -> None:
        """Bytes from anywhere are the model's, and a chunk crosses the seams within its limit."""
        node = self.durable.live(path)
        stream = engine.visible(self.store, path)
        if node is None or stream is None:
            return
        offset = round(at * len(node.data))
        if offset < node.earliest:
            with pytest.raises(NotRetained):
                self.store.read(stream, offset, limit_bytes)
            return
        chunk = engine.read(self.store, stream, offset, limit_bytes)
        assert chunk.data == node.data[offset : chunk.next]
        assert chunk.next > offset or offset == len(node.data)
        assert len(chunk.data) <= max(limit_bytes, 65_536)
        assert chunk.up_to_date == (chunk.next == len(node.data))

    def check_everything(self) -> None:
        """Both views are the model's, to the byte."""
        for path in PATHS:
            found = engine.find(self.store, path)
            accepted = self.accepted.live(path)
            assert (found is None) == (accepted is None)
            if found is not None and accepted is not None:
                assert (found.tail, found.closed) == (len(accepted.data), accepted.closed)
                assert found.config.expires_ms == accepted.expires_ms
                assert found.earliest == accepted.earliest
            node = self.durable.at(path)
            expired = node is not None and not node.soft and self.over(node)
            if expired:
                assert engine.visible(self.store, path) is None
                continue
            assert engine.is_soft_deleted(self.store, path) == (node is not None and node.soft)
            stream = engine.visible(self.store, path)
            assert (stream is None) == (node is None or node.soft)
            if stream is not None and node is not None:
                found_data = b"".join(
                    chunk.data for chunk in engine.chunks(self.store, stream, node.earliest, 900)
                )
                assert stream.durable_earliest == node.earliest
                assert found_data == node.data[node.earliest :]
                assert stream.durable_closed == node.closed

    def check_index(self) -> None:
        """The index keeps what can be read, and what it keeps is whole."""
        family_is_whole(self.store._index)
        for path in PATHS:
            node = self.durable.at(path)
            if node is not None and node.soft:
                (_, meta), *_ = self.store._index.chain_at(path)
                assert meta.kept == self.durable.needed(node)

    # Time and commits

    def over(self, node: Node) -> bool:
        """Whether a stream's time is over."""
        return node.expires_ms is not None and self.now_ms >= node.expires_ms

    def expire(self) -> None:
        """Have the store see, in a known order, whose time is over."""
        for path in PATHS:
            node = self.accepted.live(path)
            if node is not None and self.over(node):
                assert engine.find(self.store, path) is None
                self.accepted.end(path)

    @rule(step_ms=st.sampled_from([1, 2_000, 6_000]))
    def time_passes(self, step_ms: int) -> None:
        """The clock moves on."""
        self.now_ms += step_ms
        self.store.clock_ms = self.now_ms
        self.expire()

    def keep_accepted(self) -> None:
        """Accepted state becomes durable state."""
        self.durable = copy.deepcopy(self.accepted)

    def lose_accepted(self) -> None:
        """Accepted state goes back to durable state."""
        self.accepted = copy.deepcopy(self.durable)

    @rule(what=st.sampled_from([*LATER, "commit", "check_everything"]), written=st.booleans())
    def something_else_happens(self, what: str, written: bool) -> None:
        """One of the things that change nothing that anybody asked for.

        One rule for all, so that most steps are changes and reads.
        """
        if what == "crash_in_a_commit":
            self.crash_in_a_commit(written)
        else:
            getattr(self, what)()

    def commit(self) -> None:
        """What was accepted becomes durable."""
        assert self.store.commit() is None
        self.keep_accepted()

    def commit_on_a_full_disk(self) -> None:
        """What was accepted is taken back, forks and ends of forks too."""
        if self.store._open.reclaims or not self.store._open.records:
            return
        self.disk.full = True
        assert isinstance(self.store.commit(), OutOfSpace)
        self.lose_accepted()
        self.store.tick(self.now_ms)
        self.expire()

    def index_step(self) -> None:
        """The index gets further; whatever it holds is whole."""
        if self.store._backlog.indexed_sequence < self.store._durable_sequence:
            self.store.index_step()
        family_is_whole(self.store._index)

    def compact(self) -> None:
        """Some segments are rewritten, whatever they are worth."""
        compact_any(self.store, random.Random(self.now_ms))
        self.check_index()

    def everything_is_evicted(self) -> None:
        """Memory forgets what the index has."""
        self.commit()
        engine.index_all(self.store)
        self.check_index()
        later_ms = self.now_ms + self.limits.idle_ms
        for _ in range(5):
            self.store._residents.evict(later_ms, self.store._backlog.indexed_sequence)

    def restart(self) -> None:
        """A clean restart keeps everything."""
        self.store.close()
        self.keep_accepted()
        self.reopen()

    def crash_in_a_commit(self, written: bool) -> None:
        """A batch that was written and not acknowledged is there as a whole, or not at all."""
        sealed = self.store.seal()
        if sealed is None:
            return
        if written:
            self.store.write(sealed)
            self.keep_accepted()
        else:
            self.lose_accepted()
        before = self.root / str(self.generation)
        self.generation += 1
        shutil.copytree(before, self.root / str(self.generation))
        abandon(self.store)
        shutil.rmtree(before)
        self.reopen()


def test_families_and_model_agree() -> None:
    """Forks and byte strings answer alike, through crashes, evictions and full disks."""
    run_state_machine_as_test(
        FamilyMachine,
        settings=settings(
            max_examples=EXAMPLES_MAX,
            stateful_step_count=50,
            deadline=None,
            print_blob=True,
            derandomize=False,
            suppress_health_check=list(HealthCheck),
        ),
    )
