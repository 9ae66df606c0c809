"""A store driven at random beside a dictionary that says what it must hold.

The model keeps two views, as the store does: what was accepted, and what is durable. Crashes copy
the directory as it lies and open the copy, so that nothing a clean close does can help.
"""

import errno
import os
import random
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import engine
from engine import BYTES, JSON, SMALL, START_MS, TEXT, ManualStore, abandon, open_store
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from workload import compact_any

from storage.disk import Disk
from storage.errors import CommitError, OffsetError, OutOfSpace
from storage.framing import text_boundary
from storage.record import Producer
from storage.state import GRAIN_MS_MAX, GRAIN_MS_MIN, Kind, Outcome, Stream
from storage.store import Store

EXAMPLES_MAX = int(os.environ.get("MODEL_EXAMPLES_MAX", "150"))
"""Stories per run; a search over night takes more."""
PATHS = [b"a", b"b/c", b"d"]
TYPES = [BYTES, TEXT, JSON]
PRODUCERS = [b"p", b"q"]
KEYS = [b"k", b"k/1", b"l"]
BODIES = st.one_of(
    st.binary(min_size=1, max_size=30),
    st.integers(100, 1_500).map(lambda size: b"x" * size),
    st.just(b"y" * 6_000),
)
TEXT_BODIES = st.sampled_from(["é", "a€", "😀😀", "plain " * 20]).map(str.encode) | st.sampled_from(
    ["é€😀".encode()[:4], "é€😀".encode()[4:]]
)
MESSAGES = [
    b"1",
    b'"a,b]"',
    b'{"k":[1,2]}',
    b'"\\ud800"',
    b"[[]]",
    b'"' + b"m" * 900 + b'"',
    b'"' + b"l" * 70_000 + b'"',
]
JSON_BODIES = st.lists(
    st.integers(0, len(MESSAGES) - 1).map(lambda at: MESSAGES[at]), min_size=1, max_size=4
)


@dataclass
class Life:
    """The deadlines of one incarnation: where it may and where it must have ended."""

    ttl_s: int | None
    expires_ms: int | None
    deadline_ms: int | None
    committed_ms: int | None
    latest_ms: int | None = None

    def slide(self, now_ms: int) -> None:
        """An access."""
        if self.ttl_s is not None:
            self.deadline_ms = now_ms + self.ttl_s * 1_000
            grain = min(max(self.ttl_s * 125, GRAIN_MS_MIN), GRAIN_MS_MAX)
            self.latest_ms = max(self.latest_ms or 0, self.deadline_ms + grain)
        else:
            self.latest_ms = self.deadline_ms

    def alive(self, now_ms: int) -> bool:
        """It must be there."""
        return self.deadline_ms is None or now_ms < self.deadline_ms

    def over(self, now_ms: int) -> bool:
        """It must be gone."""
        return self.latest_ms is not None and now_ms >= self.latest_ms


@dataclass
class State:
    """One incarnation, as accepted or as durable."""

    life: Life
    content_type: str
    data: bytes = b""
    ends: list[int] = field(default_factory=list)
    closed: bool = False
    closer: Producer | None = None
    stream_seq: bytes | None = None
    producers: dict[bytes, tuple[int, int]] = field(default_factory=dict)

    def copy(self) -> "State":
        """A view that later changes do not reach; time is shared."""
        return replace(self, ends=list(self.ends), producers=dict(self.producers))

    def add(self, body: bytes | list[bytes]) -> None:
        """Append a body: bytes, or messages."""
        if isinstance(body, list):
            for message in body:
                self.data += message + b","
                self.ends.append(len(self.data))
        else:
            self.data += body

    def judge(self, producer: Producer | None, stream_seq: bytes | None, close_only: bool) -> Kind:
        """The protocol's decision on a well-formed append of the right type."""
        if self.closed:
            if producer is None:
                return Kind.ALREADY_CLOSED if close_only else Kind.CLOSED
            return Kind.DUPLICATE if producer == self.closer else Kind.CLOSED
        if producer is not None:
            known = self.producers.get(producer.id)
            if known is None:
                if producer.seq != 0:
                    return Kind.SEQ_GAP
            elif producer.epoch < known[0]:
                return Kind.STALE_EPOCH
            elif producer.epoch > known[0]:
                if producer.seq != 0:
                    return Kind.EPOCH_START
            elif producer.seq <= known[1]:
                return Kind.DUPLICATE
            elif producer.seq > known[1] + 1:
                return Kind.SEQ_GAP
        if stream_seq is not None and self.stream_seq is not None and stream_seq <= self.stream_seq:
            return Kind.STREAM_SEQ
        return Kind.APPENDED


class FailingDisk(Disk):
    """A disk that can be full for one write, after half of it."""

    def __init__(self) -> None:
        self.full = False

    def write(self, fd: int, buffers: Sequence[bytes], position: int) -> None:
        """Write half and fail, when full."""
        if self.full:
            self.full = False
            data = b"".join(buffers)
            super().write(fd, [data[: len(data) // 2]], position)
            raise OSError(errno.ENOSPC, "No space left on device")
        super().write(fd, buffers, position)

    def free_bytes(self, path: Path) -> int:
        """Room again."""
        return 1 << 40


class StoreMachine(RuleBasedStateMachine):
    """What a store accepts, keeps, serves and forgets, whatever happens in between."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="model-"))
        self.generation = 0
        self.disk = FailingDisk()
        self.limits = SMALL
        self.accepted: dict[bytes, State] = {}
        self.durable: dict[bytes, State] = {}
        self.accepted_values: dict[bytes, bytes] = {}
        self.durable_values: dict[bytes, bytes] = {}
        self.pending: dict[bytes, None] = {}
        self.waiting: list[list[CommitError | None]] = []
        self.now_ms = START_MS
        self.store: ManualStore

    @initialize(zero_ahead=st.sampled_from([0, 0, 4_096]), producers_max=st.just(64))
    def begin(self, zero_ahead: int, producers_max: int) -> None:
        """An empty directory."""
        self.limits = replace(
            SMALL, zero_ahead_bytes=zero_ahead, producers_per_stream_max=producers_max
        )
        self.reopen()

    def reopen(self) -> None:
        """Open the newest directory."""
        path = self.root / str(self.generation)
        self.store = open_store(path, self.limits, self.disk, self.now_ms)

    def teardown(self) -> None:
        """At the end everything is looked at once more, now and after a clean restart."""
        try:
            if hasattr(self, "store"):
                self.check_everything()
                self.check_values()
                self.restart()
                self.check_everything()
                self.check_values()
                self.store.close()
        finally:
            if hasattr(self, "store"):
                abandon(self.store)
            shutil.rmtree(self.root)

    # Helpers

    def accepted_at(self, path: bytes) -> State | None:
        """The accepted stream at a path; the store decides where time leaves that open."""
        state = self.accepted.get(path)
        found = engine.find(self.store, path)
        if state is None:
            assert found is None
            return None
        if found is None:
            assert not state.life.alive(self.now_ms), "a stream ended before its time"
            del self.accepted[path]
            self.pending[path] = None
            return None
        assert not state.life.over(self.now_ms), "a stream outlived its time"
        assert (found.tail, found.closed) == (len(state.data), state.closed)
        return state

    def resting(self, path: bytes, outcome: Outcome) -> None:
        """An answer that rests on something not durable has a batch, whose end it is told."""
        if path in self.pending:
            assert outcome.batch is not None
        if outcome.batch is not None:
            told: list[CommitError | None] = []
            self.waiting.append(told)
            outcome.batch.waiters.append(told.append)

    def settle(self, error_type: type[CommitError] | None) -> None:
        """Everybody who waited was told once, how it went."""
        for told in self.waiting:
            if error_type is None:
                assert told == [None]
            else:
                assert [type(error) for error in told] == [error_type]
        self.waiting.clear()
        self.pending.clear()

    def lose_accepted(self) -> None:
        """Accepted state goes back to durable state."""
        self.accepted = {path: state.copy() for path, state in self.durable.items()}
        self.accepted_values = dict(self.durable_values)
        self.pending.clear()
        self.waiting.clear()

    def keep_accepted(self) -> None:
        """Accepted state becomes durable state."""
        self.durable = {path: state.copy() for path, state in self.accepted.items()}
        self.durable_values = dict(self.accepted_values)
        for state in self.durable.values():
            state.life.committed_ms = state.life.deadline_ms
        self.pending.clear()

    # Changes

    @rule(
        path=st.sampled_from(PATHS),
        content_type=st.sampled_from(TYPES),
        ttl_s=st.sampled_from([None, None, 10, 100]),
        expires_in_ms=st.sampled_from([None, None, None, 30_000]),
        closed=st.sampled_from([False, False, False, True]),
        messages=st.none() | JSON_BODIES,
        broken=st.sampled_from([False] * 5 + [True]),
    )
    def create(
        self,
        path: bytes,
        content_type: str,
        ttl_s: int | None,
        expires_in_ms: int | None,
        closed: bool,
        messages: list[bytes] | None,
        broken: bool,
    ) -> None:
        """Create a stream, or meet the one that is there."""
        expires_ms = None
        if ttl_s is None and expires_in_ms is not None:
            expires_ms = self.now_ms + expires_in_ms
        existing = self.accepted_at(path)
        body = b"[" + b" ,\n".join(messages) + b"]" if messages else b""
        if broken:
            body += b"{"
        outcome = engine.create(
            self.store,
            path,
            content_type,
            ttl_s=ttl_s,
            expires_ms=expires_ms,
            body=body,
            closed=closed,
        )
        if existing is not None:
            same = (existing.content_type, existing.life.ttl_s, existing.life.expires_ms) == (
                content_type,
                ttl_s,
                expires_ms,
            ) and existing.closed == closed
            assert outcome.kind is (Kind.EXISTS if same else Kind.CONFLICT)
        elif broken and content_type == JSON:
            assert outcome.kind is Kind.BAD_JSON
            return
        else:
            assert outcome.kind is Kind.CREATED
            life = Life(ttl_s, expires_ms, expires_ms, None)
            life.slide(self.now_ms)
            state = State(life, content_type, closed=closed)
            if content_type == JSON:
                state.add(messages or [])
            else:
                state.add(body)
            self.accepted[path] = state
            self.pending[path] = None
            assert outcome.tail == len(state.data)
        self.resting(path, outcome)

    @rule(
        path=st.sampled_from(PATHS),
        plain=BODIES,
        text=TEXT_BODIES,
        messages=JSON_BODIES,
        producer=st.none() | st.sampled_from(PRODUCERS),
        epoch_step=st.sampled_from([0, 0, 0, 1, -1]),
        seq_step=st.sampled_from([1, 1, 1, 0, 2, -1]),
        stream_seq=st.none() | st.sampled_from([b"1", b"2", b"3", b"30"]),
        close=st.sampled_from([False] * 9 + [True]),
        empty=st.sampled_from([False, False, True]),
    )
    def append(
        self,
        path: bytes,
        plain: bytes,
        text: bytes,
        messages: list[bytes],
        producer: bytes | None,
        epoch_step: int,
        seq_step: int,
        stream_seq: bytes | None,
        close: bool,
        empty: bool,
    ) -> None:
        """Append, close, retry, skip: the answer is the protocol's."""
        state = self.accepted_at(path)
        if state is None:
            return
        bodies: dict[str, bytes | list[bytes]] = {BYTES: plain, TEXT: text, JSON: messages}
        body = bodies[state.content_type]
        if close and empty:
            body = b""
        sent = b"[" + b", ".join(body) + b"]" if isinstance(body, list) else body
        writer = None
        if producer is not None:
            epoch, seq = state.producers.get(producer, (0, -1))
            epoch = max(epoch + epoch_step, 0)
            seq = 0 if epoch_step == 1 and seq_step == 1 else max(seq + seq_step, 0)
            writer = Producer(producer, epoch, seq)
        expected = state.judge(writer, stream_seq, close and not sent)
        outcome = engine.append(
            self.store, path, sent, producer=writer, stream_seq=stream_seq, close=close
        )
        assert outcome.kind is expected
        if outcome.kind is Kind.APPENDED:
            state.add(body)
            state.closed = close
            if close:
                state.closer = writer
            if writer is not None:
                state.producers[writer.id] = (writer.epoch, writer.seq)
                assert (outcome.epoch, outcome.seq) == (writer.epoch, writer.seq)
            if stream_seq is not None:
                state.stream_seq = stream_seq
            self.pending[path] = None
        elif writer is not None and expected in (Kind.DUPLICATE, Kind.STALE_EPOCH, Kind.SEQ_GAP):
            known = state.producers.get(writer.id, (0, 0))
            assert (outcome.epoch, outcome.seq) == known
        if outcome.kind in (Kind.APPENDED, Kind.DUPLICATE, Kind.ALREADY_CLOSED):
            state.life.slide(self.now_ms)
        assert (outcome.tail, outcome.closed) == (len(state.data), state.closed)
        self.resting(path, outcome)

    @rule(path=st.sampled_from(PATHS))
    def delete(self, path: bytes) -> None:
        """Delete what is there."""
        if self.accepted_at(path) is None:
            return
        outcome = engine.delete(self.store, path)
        assert outcome.kind is Kind.DELETED
        del self.accepted[path]
        self.pending[path] = None
        self.resting(path, outcome)

    @rule(key=st.sampled_from(KEYS), value=st.sampled_from([b"", b"1", b"2" * 3_000]))
    def keep_a_value(self, key: bytes, value: bytes) -> None:
        """Keep a value under a key, or none."""
        before = self.accepted_values.get(key, b"")
        told: list[CommitError | None] = []
        self.waiting.append(told)
        batch = self.store.put_value(key, value, self.set_value, key, before)
        batch.waiters.append(told.append)
        self.set_value(key, value)

    def set_value(self, key: bytes, value: bytes) -> None:
        """What the store calls to take a value back."""
        self.accepted_values[key] = value

    @rule()
    def check_values(self) -> None:
        """What is durably kept is the model's, also by prefix."""
        kept = {key: value for key, value in self.durable_values.items() if value}
        for prefix in (b"", b"k", b"k/"):
            named = [item for item in sorted(kept.items()) if item[0].startswith(prefix)]
            assert self.store.values(prefix) == named
        assert [self.store.value(key) for key in KEYS] == [kept.get(key) for key in KEYS]

    # Reads

    def visible_at(self, path: bytes) -> tuple[Stream, State] | None:
        """The durable stream at a path; the store decides where time leaves that open."""
        state = self.durable.get(path)
        stream = engine.visible(self.store, path)
        if state is None:
            assert stream is None, "something is visible that is not durable"
            return None
        if stream is None:
            assert not state.life.alive(self.now_ms), "a stream ended before its time"
            accepted = self.accepted.get(path)
            if accepted is not None and accepted.life is state.life:
                del self.accepted[path]
                self.pending[path] = None
            return None
        assert not state.life.over(self.now_ms), "a stream outlived its time"
        assert (stream.durable_tail, stream.durable_closed) == (len(state.data), state.closed)
        assert stream.config.content_type == state.content_type
        return stream, state

    @rule(
        path=st.sampled_from(PATHS),
        at=st.floats(0, 1),
        limit_bytes=st.sampled_from([1, 3, 50, 700, 4_000, 68_000, 1 << 20]),
        touch=st.booleans(),
    )
    def read(self, path: bytes, at: float, limit_bytes: int, touch: bool) -> None:
        """Bytes from anywhere are the model's; offsets inside a message are refused."""
        found = self.visible_at(path)
        if found is None:
            return
        stream, state = found
        if touch:
            self.store.touch(stream)
            accepted = self.accepted.get(path)
            if accepted is not None and accepted.life is state.life:
                state.life.slide(self.now_ms)
            elif state.life.ttl_s is not None:
                # It is being deleted: what may keep it for those who read is not written down.
                state.life.latest_ms = self.now_ms + state.life.ttl_s * 1_000 + GRAIN_MS_MAX
        offset = round(at * len(state.data))
        if state.content_type == JSON and offset not in [0, *state.ends]:
            try:
                engine.read(self.store, stream, offset, limit_bytes)
            except OffsetError:
                offset = min(end for end in state.ends if end > offset)
            else:
                raise AssertionError("an offset inside a message was served")
        chunk = engine.read(self.store, stream, offset, limit_bytes)
        self.check_chunk(state, offset, chunk.next, chunk.data)
        assert chunk.up_to_date == (chunk.next == len(state.data))
        assert chunk.closed == (chunk.up_to_date and state.closed)

    @staticmethod
    def check_chunk(state: State, offset: int, end: int, data: bytes) -> None:
        """Bytes of this very incarnation, at least one, ending where a reader can stop."""
        assert data == state.data[offset:end]
        assert end > offset or offset == len(state.data)
        if end < len(state.data):
            if state.content_type == JSON:
                assert end in state.ends
            elif state.content_type == TEXT:
                assert text_boundary(data) in (len(data), 0)

    @rule()
    def check_everything(self) -> None:
        """Both views are the model's, to the byte."""
        for path in PATHS:
            self.accepted_at(path)
            found = self.visible_at(path)
            if found is None:
                continue
            stream, state = found
            parts = []
            for chunk in engine.chunks(self.store, stream, 0, 500):
                self.check_chunk(state, chunk.start, chunk.next, chunk.data)
                parts.append(chunk.data)
            assert b"".join(parts) == state.data

    # Time and commits

    @rule(step_ms=st.sampled_from([1, 500, 3_000, 9_000, 40_000, 70_000]))
    def time_passes(self, step_ms: int) -> None:
        """The clock moves on."""
        self.now_ms += step_ms
        self.store.clock_ms = self.now_ms

    @rule()
    def commit(self) -> None:
        """What was accepted becomes durable."""
        assert self.store.commit() is None
        self.keep_accepted()
        self.settle(None)

    @rule()
    def commit_on_a_full_disk(self) -> None:
        """What was accepted is taken back, the partial write too, and writing resumes."""
        if self.store._open.reclaims or not self.store._open.records:
            return
        self.disk.full = True
        assert isinstance(self.store.commit(), OutOfSpace)
        assert not self.disk.full
        told = list(self.waiting)
        kept = {key: value for key, value in self.accepted_values.items() if value}
        assert kept == {key: value for key, value in self.durable_values.items() if value}
        self.lose_accepted()
        self.waiting = told
        self.settle(OutOfSpace)
        assert self.store.full
        self.tick()
        assert not self.store.full

    @rule(steps=st.integers(1, 3))
    def index_step(self, steps: int) -> None:
        """The index gets further."""
        for _ in range(steps):
            if self.store._backlog.indexed_sequence < self.store._durable_sequence:
                self.store.index_step()

    @rule()
    def tick(self) -> None:
        """Streams expire and are evicted: never one whose time is not over."""
        self.store.tick(self.now_ms)

    @rule(seed=st.integers(0, 9))
    def compact(self, seed: int) -> None:
        """Some segments are rewritten, whatever they are worth."""
        compact_any(self.store, random.Random(seed))

    @rule()
    def everything_is_evicted(self) -> None:
        """Memory forgets what the index has."""
        self.commit()
        engine.index_all(self.store)
        later_ms = self.now_ms + self.limits.idle_ms
        self.store._residents.evict(later_ms, self.store._backlog.indexed_sequence)

    # Restarts

    @rule()
    def restart(self) -> None:
        """A clean restart keeps everything."""
        self.store.close()
        self.keep_accepted()
        self.settle(None)
        self.reopen()

    def crash(self) -> None:
        """The process is gone; a copy of what lies there is opened."""
        before = self.root / str(self.generation)
        self.generation += 1
        shutil.copytree(before, self.root / str(self.generation))
        abandon(self.store)
        shutil.rmtree(before)
        for state in [*self.accepted.values(), *self.durable.values()]:
            state.life.deadline_ms = state.life.committed_ms
        self.reopen()

    @rule()
    def crash_with_accepted_changes(self) -> None:
        """What was accepted and not committed is lost, and nothing else."""
        self.lose_accepted()
        self.crash()

    @rule(written=st.booleans())
    @precondition(lambda self: self.store._open.records)
    def crash_in_a_commit(self, written: bool) -> None:
        """A batch that was written and not acknowledged is there as a whole, or not at all."""
        sealed = self.store.seal()
        assert sealed is not None
        if written:
            self.store.write(sealed)
            self.keep_accepted()
            self.waiting.clear()
        else:
            self.lose_accepted()
        self.crash()

    @rule(path=st.sampled_from(PATHS))
    def a_late_look_up(self, path: bytes) -> None:
        """What a thread read in the index before changes is not believed after them."""
        loaded = self.store.load(path)
        self.everything_is_evicted()
        self.store.admit(loaded)
        self.accepted_at(path)


def test_store_and_model_agree() -> None:
    """A store and a dictionary answer alike, through crashes, evictions and full disks."""
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(
        StoreMachine,
        settings=settings(
            max_examples=EXAMPLES_MAX,
            stateful_step_count=40,
            deadline=None,
            print_blob=True,
            derandomize=False,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_store_type_is_the_real_one() -> None:
    """The machine drives the engine's own store, with nothing but its clock replaced."""
    assert set(vars(ManualStore)) - set(vars(object)) <= {
        "now_ms", "clock_ms", "__annotations__", "__doc__", "__module__",
        "__static_attributes__", "__firstlineno__", "__dict__", "__weakref__",
    }  # fmt: skip
    assert issubclass(ManualStore, Store)
