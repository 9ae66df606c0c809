"""Subscriptions at random, beside what was durable last: a batch that fails or a crash takes back
exactly what came after it, and links say of their streams what the store says."""

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from test_core_driving import Exchange
from test_subscription_requests import HOOK, PULL, Office, document, report

from durable_streamsd.core.effects import Durable
from storage.errors import NotResident, OutOfSpace, Unsettled
from storage.store import Store

sys.path.insert(0, str(Path(__file__).resolve().parent / "storage"))
from engine import abandon

IDS = st.sampled_from(["s", "t"])
PATHS = st.sampled_from(["events/a", "events/b", "other/c", "wake/pool"])
BODIES: list[dict[str, Any]] = [
    PULL,
    {**PULL, "pattern": "**", "streams": ["other/c"]},
    {**PULL, "pattern": None, "streams": ["events/a", "events/missing"]},
    HOOK,
]
State = dict[str, Any]


class SubscriptionMachine(RuleBasedStateMachine):
    """Requests whose answers wait until a batch is committed, fails, or the process is gone."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="subscriptions-"))
        self.office: Office
        self.waiting: list[Exchange] = []
        self.claims: list[tuple[str, dict[str, Any]]] = []
        self.durable: State = {}

    @initialize()
    def begin(self) -> None:
        """A store with keys, and nothing else."""
        self.office = Office(self.root / "data")
        self.office.request("GET", b"__ds/jwks.json")
        self.office.held = (Durable,)

    def teardown(self) -> None:
        """Leave nothing behind."""
        if hasattr(self, "office"):
            abandon(self.office.store)
        shutil.rmtree(self.root)

    def state(self) -> State:
        """All that is to survive, as accepted."""
        return {
            identity: (
                subscription.serial,
                subscription.config,
                subscription.wake,
                {path: link.state() for path, link in subscription.links.items()},
            )
            for identity, subscription in self.office.desk.registry.by_id.items()
            if subscription.live
        }

    def sent(self, exchange: Exchange) -> None:
        """A request waits, or was answered at once."""
        if not exchange.over:
            self.waiting.append(exchange)

    def resume(self, error: OutOfSpace | None = None) -> None:
        """Those who waited are told."""
        waiting, self.waiting = self.waiting, []
        for exchange in waiting:
            self.sent(exchange.advance(None, error))
            if exchange.over and exchange.status == 200:
                found = document(exchange)
                if "token" in found:
                    self.claims.append((found["token"], found))

    # What clients do

    @rule(path=PATHS, body=st.sampled_from([b"", b"x"]))
    def create(self, path: str, body: bytes) -> None:
        """Make a stream."""
        headers = {"Content-Type": "text/plain"}
        self.sent(self.office.request("PUT", path.encode(), headers=headers, body=body))

    @rule(path=PATHS)
    def append(self, path: str) -> None:
        """Append to a stream."""
        self.sent(self.office.append(path.encode(), b"y"))

    @rule(path=PATHS)
    def remove(self, path: str) -> None:
        """Delete a stream."""
        self.sent(self.office.request("DELETE", path.encode()))

    @rule(identity=IDS, body=st.sampled_from(BODIES))
    def subscribe(self, identity: str, body: dict[str, Any]) -> None:
        """Make a subscription, or confirm one."""
        self.sent(self.office.ask("PUT", identity, body))

    @rule(identity=IDS)
    def unsubscribe(self, identity: str) -> None:
        """Delete a subscription."""
        self.sent(self.office.ask("DELETE", identity))

    @rule(identity=IDS, path=PATHS)
    def link(self, identity: str, path: str) -> None:
        """Add an explicit stream."""
        self.sent(self.office.ask("POST", f"{identity}/streams", {"streams": [path]}))

    @rule(identity=IDS, path=PATHS)
    def unlink(self, identity: str, path: str) -> None:
        """Remove an explicit stream."""
        self.sent(self.office.ask("DELETE", f"{identity}/streams/{path}"))

    @rule(identity=IDS)
    def claim(self, identity: str) -> None:
        """Ask for work."""
        self.sent(self.office.ask("POST", f"{identity}/claim", {"worker": "w"}))

    @rule(identity=IDS, at=st.integers(0, 3), finished=st.booleans(), action=st.sampled_from("ar"))
    def work(self, identity: str, at: int, finished: bool, action: str) -> None:
        """Say something about a wake, this one's or an older or another's."""
        if self.claims:
            token, claimed = self.claims[-1 - at % len(self.claims)]
            target = f"{identity}/{'ack' if action == 'a' else 'release'}"
            self.sent(self.office.ask("POST", target, report(claimed, done=finished), token))

    @rule(step_ms=st.sampled_from([1_000, 31_000]))
    def time_passes(self, step_ms: int) -> None:
        """Leases run out."""
        self.office.clock_ms += step_ms

    # What becomes of it

    @rule()
    def commit(self) -> None:
        """What was accepted is durable."""
        self.durable = self.state()
        assert self.office.store.commit() is None
        self.resume()

    @rule()
    def fail(self) -> None:
        """What was accepted never happened."""
        if not self.office.store._open.records:
            return
        self.office.fail_next = OutOfSpace("full")
        assert self.office.store.commit() is not None
        self.office.store.full = False
        assert self.state() == self.durable
        self.resume(OutOfSpace("full"))

    @rule()
    def crash(self) -> None:
        """The process is gone, and another one finds what was durable."""
        for exchange in self.waiting:
            exchange.lose_connection()
        self.waiting.clear()
        abandon(self.office.store)
        self.office.store = Store.open(self.root / "data", self.office.store.limits)
        self.office.context.store = self.office.store
        self.office.equip()
        assert self.state() == self.durable | self.learned()

    def learned(self) -> State:
        """What a start finds out on its own: links by pattern of streams that are gone go too."""
        found = self.state()
        for identity, (*rest, links) in self.durable.items():
            kept = found[identity][-1]
            for path, (explicit, glob, acked) in links.items():
                if self.tail_of(path) is None and glob:
                    assert kept.get(path, (False, False, acked)) == (explicit, False, acked)
                else:
                    assert kept[path] == (explicit, glob, acked)
            assert found[identity][:-1] == tuple(rest)
        return found

    def tail_of(self, path: bytes) -> tuple[int, int] | None:
        """A stream's durable tail, as the store has it; None without a stream."""
        store = self.office.store
        try:
            stream = store.visible(path)
        except NotResident:
            store.admit(store.load(path))
            return self.tail_of(path)
        except Unsettled:
            return None
        return None if stream is None else (stream.root, stream.durable_tail)

    @invariant()
    def links_know_their_streams(self) -> None:
        """Each link has its stream's durable tail, and is pending when that is past its cursor."""
        if not hasattr(self, "office"):
            return
        for subscription in self.office.desk.registry.by_id.values():
            for path, link in subscription.links.items():
                assert link.place.known
                assert link.place.links[subscription] is link
                assert (subscription in link.place.quiet) is not link.pending
                tail = self.tail_of(path) or (0, 0)
                assert link.tail == tail or link.tail[1] == tail[1] == 0
                assert (path in subscription.pending) is link.pending
            assert set(subscription.pending) <= set(subscription.links)


def test_states() -> None:
    """Accepted, durable, taken back and found again: one state."""
    run_state_machine_as_test(
        SubscriptionMachine,
        settings=settings(
            max_examples=80,
            stateful_step_count=40,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
