"""Requests about subscriptions, driven by hand: no sockets, no deliveries, the test's own clock."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_core_driving import SMALL, Driver, Exchange

from durable_streamsd.core.control_bodies import BODY_BYTES_MAX, STREAMS_MAX
from durable_streamsd.core.effects import Durable, Offload
from durable_streamsd.core.offsets import START_TOKEN
from durable_streamsd.subscriptions import backfill, model, registry
from durable_streamsd.subscriptions.desk import Desk
from durable_streamsd.subscriptions.targets import Reach
from storage.errors import CommitError, OutOfSpace
from storage.pending import Sealed
from storage.store import Finished

PULL: dict[str, Any] = {"type": "pull-wake", "pattern": "events/*", "wake_stream": "wake/pool"}
HOOK: dict[str, Any] = {
    "type": "webhook",
    "pattern": "events/*",
    "webhook": {"url": "https://worker.example/hook"},
}


class Office(Driver):
    """A driver whose store tells the desk of every commit, as the committer does."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, limits=SMALL)
        self.clock_ms = 1_700_000_000_000
        self.fail_next: CommitError | None = None
        self.equip()

    def equip(self) -> list[bytes]:
        """A desk for the store as it is; the keys of left-overs."""
        store = self.store
        self.desk = desk = Desk(store, Reach.PUBLIC)
        self.context.subscriptions = desk
        finish, write = store.finish, store.write

        def finish_and_tell(sealed: Sealed, error: CommitError | None) -> Finished:
            finished = finish(sealed, error)
            desk.registry.committed(finished.woken)
            return finished

        def write_or_fail(sealed: Sealed) -> None:
            error, self.fail_next = self.fail_next, None
            if error is not None:
                raise error
            write(sealed)

        store.finish = finish_and_tell  # type: ignore[method-assign]
        store.write = write_or_fail  # type: ignore[method-assign]
        store.now_ms = lambda: self.clock_ms  # type: ignore[method-assign]
        left_over = desk.load()
        for path in desk.registry.linked_paths():
            chain = store.load(path).chain
            desk.registry.learn(path, (chain[0][1].root, chain[0][1].tail) if chain else None)
        return left_over

    def reopen(self) -> None:
        """A restart."""
        super().reopen()
        self.equip()

    def ask(
        self, method: str, target: str, body: object = None, token: str | None = None
    ) -> Exchange:
        """A request under `subscriptions/`."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        sent = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.request(
            method,
            b"__ds/subscriptions/" + target.encode(),
            headers=headers,
            body=b"" if body is None else sent,
        )

    def streams(self, identity: str = "s") -> dict[str, tuple[str, str]]:
        """What GET shows: link type and cursor by path."""
        shown = document(self.ask("GET", identity))
        return {
            item["path"]: (item["link_type"], item["acked_offset"]) for item in shown["streams"]
        }

    def tail(self, path: bytes) -> str:
        """A stream's end."""
        return self.request("HEAD", path).next_offset.decode()

    def claim(self, identity: str = "s", worker: str = "w") -> dict[str, Any]:
        """A claim that succeeds."""
        exchange = self.ask("POST", f"{identity}/claim", {"worker": worker})
        assert exchange.status == 200, exchange.answer.body
        return document(exchange)


def document(exchange: Exchange) -> dict[str, Any]:
    """The answer's JSON."""
    found: dict[str, Any] = json.loads(exchange.answer.body or b"{}")
    return found


def error(exchange: Exchange) -> tuple[int, str]:
    """Status and code of an error, which has the control API's own shape."""
    assert exchange.fields["Content-Type"] == "application/json"
    found = document(exchange)["error"]
    assert found["message"].endswith(".")
    return exchange.status, found["code"]


def report(claimed: dict[str, Any], **changes: object) -> dict[str, object]:
    """What a worker sends: everything read, and done."""
    acks = [{"stream": item["path"], "offset": item["tail_offset"]} for item in claimed["streams"]]
    wake = {"wake_id": claimed["wake_id"], "generation": claimed["generation"]}
    return {**wake, "acks": acks, "done": True, **changes}


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    """An office with the streams `events/old`, which holds something, and `wake/pool`."""
    with Office(tmp_path / "data") as opened:
        opened.create(b"events/old", body=b"abc")
        opened.create(b"wake/pool", "application/json")
        yield opened


BAD_BODIES: list[tuple[object, str]] = [
    (b"", "INVALID_REQUEST"),
    (b"{", "INVALID_REQUEST"),
    (b"\xff", "INVALID_REQUEST"),
    (b"[" * 100_000, "INVALID_REQUEST"),
    ([], "INVALID_REQUEST"),
    ({}, "INVALID_REQUEST"),
    ({**HOOK, "type": "email"}, "INVALID_REQUEST"),
    ({**HOOK, "pattern": None}, "INVALID_REQUEST"),
    ({**HOOK, "pattern": 7}, "INVALID_REQUEST"),
    ({**HOOK, "pattern": "user-*"}, "INVALID_REQUEST"),
    ({**HOOK, "pattern": None, "streams": []}, "INVALID_REQUEST"),
    ({**HOOK, "streams": ["a//b"]}, "INVALID_REQUEST"),
    ({**HOOK, "streams": ["../a"]}, "INVALID_REQUEST"),
    ({**HOOK, "streams": ["a\n"]}, "INVALID_REQUEST"),
    ({**HOOK, "streams": [""]}, "INVALID_REQUEST"),
    ({**HOOK, "streams": ["__ds/x"]}, "INVALID_REQUEST"),
    ({**HOOK, "streams": ["x" * 481]}, "INVALID_REQUEST"),
    ({**HOOK, "streams": [f"s{n}" for n in range(STREAMS_MAX + 1)]}, "INVALID_REQUEST"),
    ({**HOOK, "lease_ttl_ms": 999}, "INVALID_REQUEST"),
    ({**HOOK, "lease_ttl_ms": 600_001}, "INVALID_REQUEST"),
    ({**HOOK, "lease_ttl_ms": 1.5}, "INVALID_REQUEST"),
    ({**HOOK, "description": "x" * 1_025}, "INVALID_REQUEST"),
    ({**HOOK, "webhook": None}, "INVALID_REQUEST"),
    ({**HOOK, "webhook": {}}, "INVALID_REQUEST"),
    ({**HOOK, "webhook": {"url": "http://worker.example/"}}, "WEBHOOK_URL_REJECTED"),
    ({**HOOK, "webhook": {"url": "https://127.0.0.1/"}}, "WEBHOOK_URL_REJECTED"),
    ({**HOOK, "webhook": {"url": "https://[::ffff:10.0.0.1]/"}}, "WEBHOOK_URL_REJECTED"),
    ({**PULL, "wake_stream": None}, "INVALID_REQUEST"),
    ({**PULL, "wake_stream": "a//b"}, "INVALID_REQUEST"),
    ({**PULL, "streams": ["wake/pool"]}, "INVALID_REQUEST"),
]


@pytest.mark.parametrize(("body", "code"), BAD_BODIES, ids=lambda value: str(value)[:60])
def test_bodies_that_are_refused(office: Office, body: object, code: str) -> None:
    """Each is a 400 that says why, and leaves nothing behind."""
    assert error(office.ask("PUT", "s", body)) == (400, code)
    assert error(office.ask("GET", "s")) == (404, "SUBSCRIPTION_NOT_FOUND")


def test_a_body_that_is_too_large(office: Office) -> None:
    """What no control request needs is not even parsed."""
    assert error(office.ask("PUT", "s", b" " * (BODY_BYTES_MAX + 1))) == (413, "BODY_TOO_LARGE")


def test_confirming(office: Office) -> None:
    """The same configuration, in any spelling, is the same subscription; another is a conflict."""
    body: dict[str, object] = {**HOOK, "streams": ["b", "a"], "description": "d"}
    created = office.ask("PUT", "s", body)
    assert created.status == 201
    shown = document(created)
    assert shown["subscription_id"] == shown["id"] == "s"
    assert (shown["type"], shown["pattern"], shown["status"]) == ("webhook", "events/*", "active")
    assert shown["webhook"]["url"] == "https://worker.example/hook"
    signing = shown["webhook"]["signing"]
    assert signing["alg"] == "ed25519"
    assert signing["jwks_url"] == "http://example.org:4437/v1/stream/__ds/jwks.json"
    again = {**body, "pattern": "/events/*/", "streams": ["/a/", "b", "b"], "lease_ttl_ms": 30_000}
    confirmed = office.ask("PUT", "s", again)
    assert confirmed.status == 200
    assert document(confirmed) == shown == document(office.ask("GET", "s"))
    for change in (
        {"type": "pull-wake", "wake_stream": "w"},
        {"pattern": "events/**"},
        {"streams": ["a"]},
        {"webhook": {"url": "https://worker.example/other"}},
        {"lease_ttl_ms": 1_000},
        {"description": "e"},
    ):
        conflict = office.ask("PUT", "s", {**body, **change})
        assert error(conflict) == (409, "SUBSCRIPTION_ALREADY_EXISTS"), change


def test_streams_that_are_there_are_linked_at_their_tails(office: Office) -> None:
    """Indexed or not, changed since, deleted since: whatever is there, nothing is replayed."""
    for number in range(30):
        office.create(b"events/%d" % number, body=b"x" * (number + 1))
    office.store.index_step()
    office.append(b"events/3", b"more")
    office.request("DELETE", b"events/4")
    office.create(b"events/new", body=b"new")
    office.create(b"events/deep/er", body=b"no match")
    office.ask("PUT", "s", PULL)
    expected = {f"events/{number}" for number in range(30)} - {"events/4"}
    assert set(office.streams()) == expected | {"events/old", "events/new"}
    for path, (link_type, acked) in office.streams().items():
        assert (link_type, acked) == ("glob", office.tail(path.encode()))
    assert error(office.ask("POST", "s/claim", {"worker": "w"})) == (409, "NO_PENDING_WORK")


def test_appends_while_a_subscription_is_made(office: Office) -> None:
    """What is appended, created and deleted while streams are being linked is not lost."""
    for name in (b"events/a", b"events/b"):
        office.create(name, body=b"1")
    while office.store.index_due() is not None or office.store._backlog.records:
        office.store.index_step()
    office.held = (Offload,)
    making = office.ask("PUT", "s", PULL)
    assert isinstance(making.waiting, Offload), "the index is being asked"
    page = making.waiting.call()
    office.held = ()
    office.append(b"events/a", b"2")
    office.request("DELETE", b"events/b")
    office.create(b"events/c", body=b"3")
    office.held = (Durable,)
    second = office.ask("GET", "s")
    assert not second.over, "one that is being made is neither there nor missing"
    office.held = ()
    making.advance(page)
    assert making.status == 201
    assert set(office.streams()) == {"events/a", "events/c", "events/old"}
    pending = {item["path"] for item in office.claim()["streams"]}
    assert pending == {"events/a", "events/c"}


def test_a_connection_that_is_lost_while_a_subscription_is_made(office: Office) -> None:
    """Nothing stays of it: not the id, not the pattern, not after a restart."""
    office.held = (Offload,)
    making = office.ask("PUT", "s", PULL)
    office.held = (Durable,)
    waiting = office.ask("PUT", "s", PULL)
    making.lose_connection()
    office.held = ()
    assert waiting.advance().status == 201
    assert office.ask("DELETE", "s").status == 204
    office.create(b"events/x", body=b"x")
    assert not office.desk.registry.wanted
    office.reopen()
    assert not office.desk.registry.wanted


def test_streams_that_come_later_start_at_the_beginning(office: Office) -> None:
    """A stream that is created is linked by the very batch that creates it."""
    office.ask("PUT", "s", PULL)
    office.held = (Durable,)
    creating = office.request("PUT", b"events/new", body=b"x")
    assert isinstance(creating.waiting, Durable)
    office.held = ()
    office.store.commit()
    assert office.streams()["events/new"] == ("glob", "-1")
    (item,) = office.claim()["streams"]
    assert item["path"] == "events/new"
    assert item["has_pending"] is True
    assert item["tail_offset"] == office.tail(b"events/new")


def test_the_wake_stream_wakes_nobody(office: Office) -> None:
    """A pattern that matches the subscription's own wake stream passes it over."""
    office.ask("PUT", "s", {**PULL, "pattern": "**", "wake_stream": "events/wake"})
    office.create(b"events/wake", "application/json", b"[1]")
    assert "events/wake" not in office.streams()
    refused = office.ask("POST", "s/streams", {"streams": ["events/wake"]})
    assert error(refused) == (400, "INVALID_REQUEST")


def test_explicit_streams(office: Office) -> None:
    """They come and go beside the pattern's, and are shown as explicit while they are both."""
    office.ask("PUT", "s", {**PULL, "streams": ["events/old", "missing"]})
    assert office.streams() == {
        "events/old": ("explicit", office.tail(b"events/old")),
        "missing": ("explicit", "-1"),
    }
    office.create(b"other/b", body=b"b")
    for _ in range(2):
        added = office.ask("POST", "s/streams", {"streams": ["other/b", "/other/b/"]})
        assert added.status == 204
    assert office.streams()["other/b"] == ("explicit", office.tail(b"other/b"))
    for path in ("other%2Fb", "events/old", "missing", "never"):
        assert office.ask("DELETE", f"s/streams/{path}").status == 204
        assert office.ask("DELETE", f"s/streams/{path}").status == 204
    assert office.streams() == {"events/old": ("glob", office.tail(b"events/old"))}
    bodies: list[object] = [{}, {"streams": []}, {"streams": "x"}, {"streams": ["a//b"]}]
    for body in bodies:
        assert error(office.ask("POST", "s/streams", body)) == (400, "INVALID_REQUEST")
    for method, target in (("POST", "t/streams"), ("DELETE", "t/streams/a")):
        missing = office.ask(method, target, {"streams": ["a"]})
        assert error(missing) == (404, "SUBSCRIPTION_NOT_FOUND")


def test_claim_ack_release(office: Office) -> None:
    """A lease is one worker's; an ack moves the cursor; what is left is claimed again."""
    office.ask("PUT", "s", PULL)
    office.append(b"events/old", b"1")
    first = office.claim(worker="one")
    busy = office.ask("POST", "s/claim", {"worker": "two"})
    assert error(busy) == (409, "ALREADY_CLAIMED")
    details = document(busy)["error"]
    assert (details["current_holder"], details["generation"]) == ("one", first["generation"])
    office.append(b"events/old", b"2")
    heart = office.ask("POST", "s/ack", report(first, done=False), first["token"])
    assert document(heart) == {"ok": True, "next_wake": False}
    assert office.streams()["events/old"][1] == first["streams"][0]["tail_offset"]
    done = office.ask("POST", "s/ack", report(first), first["token"])
    assert document(done) == {"ok": True, "next_wake": True}
    second = office.claim(worker="two")
    assert second["generation"] == first["generation"] + 1
    assert second["wake_id"] != first["wake_id"]
    assert second["streams"][0]["acked_offset"] == first["streams"][0]["tail_offset"]
    released = office.ask("POST", "s/release", report(second), second["token"])
    assert released.status == 204
    third = office.claim()
    assert third["generation"] == second["generation"] + 1
    final = office.ask("POST", "s/ack", report(third), third["token"])
    assert document(final) == {"ok": True, "next_wake": False}
    assert error(office.ask("POST", "s/claim", {"worker": "w"})) == (409, "NO_PENDING_WORK")


def test_fencing(office: Office) -> None:
    """Token, generation and wake id have to be the current ones, all of them."""
    office.ask("PUT", "s", PULL)
    office.ask("PUT", "t", PULL)
    office.append(b"events/old", b"1")
    claimed, other = office.claim("s"), office.claim("t")
    good = report(claimed)
    refused = [
        (None, good, 401, "TOKEN_INVALID"),
        ("junk", good, 401, "TOKEN_INVALID"),
        (claimed["token"][:-4] + "AAAA", good, 401, "TOKEN_INVALID"),
        (other["token"], good, 401, "TOKEN_INVALID"),
        (claimed["token"], {**good, "generation": 99}, 409, "FENCED"),
        (claimed["token"], {**good, "wake_id": other["wake_id"]}, 409, "FENCED"),
        (claimed["token"], {"done": True}, 400, "INVALID_REQUEST"),
        (claimed["token"], {**good, "generation": 1 << 70}, 400, "INVALID_REQUEST"),
    ]
    for token, body, status, code in refused:
        for action in ("ack", "callback", "release"):
            exchange = office.ask("POST", f"s/{action}", body, token)
            assert error(exchange) == (status, code), (action, code)
    basic = office.request(
        "POST",
        b"__ds/subscriptions/s/ack",
        headers={"Authorization": f"Basic {claimed['token']}"},
        body=json.dumps(good).encode(),
    )
    assert error(basic) == (401, "TOKEN_INVALID")
    assert office.streams()["events/old"][1] != office.tail(b"events/old")
    assert office.ask("POST", "s/ack", good, claimed["token"]).status == 200
    for action in ("ack", "callback", "release"):
        assert error(office.ask("POST", f"s/{action}", good, claimed["token"])) == (409, "FENCED")
    office.append(b"events/old", b"2")
    newer = office.claim("s")
    stale = office.ask("POST", "s/ack", report(newer), claimed["token"])
    assert error(stale) == (409, "FENCED"), "an old token with the new wake's numbers"


def test_a_lease_runs_out(office: Office) -> None:
    """Then the worker is fenced and another may claim; a heartbeat puts that off."""
    office.ask("PUT", "s", {**PULL, "lease_ttl_ms": 1_000})
    office.append(b"events/old", b"1")
    first = office.claim()
    office.clock_ms += 900
    heart = report(first, acks=[], done=False)
    assert office.ask("POST", "s/ack", heart, first["token"]).status == 200
    office.clock_ms += 900
    assert office.ask("POST", "s/ack", heart, first["token"]).status == 200
    office.clock_ms += 1_000
    assert error(office.ask("POST", "s/ack", report(first), first["token"])) == (409, "FENCED")
    assert office.claim()["generation"] == first["generation"] + 1


def test_a_token_that_is_too_old(office: Office) -> None:
    """Even of a wake that is kept alive a token is good for a day only."""
    office.ask("PUT", "s", {**PULL, "lease_ttl_ms": 600_000})
    office.append(b"events/old", b"1")
    claimed = office.claim()
    heart = report(claimed, acks=[], done=False)
    for _ in range(24 * 60 // 9):
        office.clock_ms += 540_000
        exchange = office.ask("POST", "s/ack", heart, claimed["token"])
    assert exchange.status == 401
    assert error(exchange) == (401, "TOKEN_EXPIRED")


def test_offsets_of_acks(office: Office) -> None:
    """Past the tail is refused and nothing counts; back, elsewhere and unknown are passed over."""
    office.ask("PUT", "s", {**PULL, "streams": ["missing"]})
    start = office.tail(b"events/old")
    office.append(b"events/old", b"1")
    office.append(b"events/old", b"2")
    claimed = office.claim()
    root = start.partition("_")[0]

    def acks(*pairs: tuple[str, str]) -> Exchange:
        found = [{"stream": path, "offset": offset} for path, offset in pairs]
        body = report(claimed, acks=found, done=False)
        return office.ask("POST", "s/ack", body, claimed["token"])

    middle = f"{root}_{4:016d}"
    past = acks(("events/old", middle), ("events/old", f"{root}_{99:016d}"))
    assert error(past) == (409, "INVALID_OFFSET")
    assert office.streams()["events/old"][1] == start
    for junk in ("now", "", "7", "x" * 40, f"{root}_{4}"):
        assert error(acks(("events/old", junk))) == (400, "INVALID_REQUEST")
    assert acks(("events/old", middle)).status == 200
    ignored = [
        ("events/old", start),
        ("events/old", "-1"),
        ("events/old", f"{77:016d}_{5:016d}"),
        ("never/linked", middle),
        ("missing", middle),
    ]
    assert acks(*ignored).status == 200
    assert office.streams()["events/old"][1] == middle
    assert office.streams()["missing"][1] == "-1"
    too_many = acks(*[("events/old", middle)] * (STREAMS_MAX + 1))
    assert error(too_many) == (400, "INVALID_REQUEST")


def test_a_cursor_behind_a_cut(office: Office) -> None:
    """What retention drops stays pending where it was not read: a worker is woken, is refused the
    offset that it is told, goes on where it is sent, and is done; after a restart too."""
    office.ask("PUT", "s", PULL)
    acked = office.tail(b"events/old")
    office.append(b"events/old", b"lost, kept")
    stream = office.store.visible(b"events/old")
    assert stream is not None
    office.store.cut(stream, stream.durable_tail - 4)
    assert office.store.commit() is None
    for left in (b"kept", b""):
        assert office.streams()["events/old"][1] == acked
        claimed = office.claim()
        (told,) = claimed["streams"]
        assert (told["acked_offset"], told["has_pending"]) == (acked, True)
        refused = office.get(b"events/old", b"offset=" + acked.encode())
        assert refused.status == 410
        earliest = refused.fields["Stream-Earliest-Offset"]
        assert office.get(b"events/old", b"offset=" + earliest.encode()).answer.body == left
        token = claimed["token"]
        if left:
            assert office.ask("POST", "s/release", report(claimed), token).status == 204
            stream = office.store.visible(b"events/old")
            assert stream is not None
            office.store.cut(stream, stream.durable_tail)
            office.reopen()
    older = report(claimed, acks=[{"stream": "events/old", "offset": START_TOKEN.decode()}])
    assert office.ask("POST", "s/ack", {**older, "done": False}, token).status == 200
    assert office.streams()["events/old"][1] == acked, "an older ack is passed over"
    assert office.ask("POST", "s/ack", report(claimed), token).status == 200
    assert office.streams()["events/old"][1] == office.tail(b"events/old")
    assert error(office.ask("POST", "s/claim", {"worker": "w"})) == (409, "NO_PENDING_WORK")


def test_what_is_deleted_under_a_worker(office: Office) -> None:
    """A stream: its ack is passed over, and a new one at its path starts anew. The subscription:
    its worker is told so, and one that is made again knows nothing of it."""
    office.ask("PUT", "s", {**PULL, "streams": ["kept"]})
    office.create(b"kept", body=b"1")
    office.append(b"events/old", b"1")
    claimed = office.claim()
    assert {item["path"] for item in claimed["streams"]} == {"kept", "events/old"}
    for path in (b"kept", b"events/old"):
        office.request("DELETE", path)
    assert office.streams() == {"kept": ("explicit", "-1")}
    office.create(b"events/old", body=b"again")
    assert office.ask("POST", "s/ack", report(claimed), claimed["token"]).status == 200
    assert office.streams() == {"kept": ("explicit", "-1"), "events/old": ("glob", "-1")}
    claimed = office.claim()
    assert [item["path"] for item in claimed["streams"]] == ["events/old"]
    assert office.ask("DELETE", "s").status == 204
    assert office.ask("DELETE", "s").status == 204
    for action in ("ack", "callback", "release"):
        gone = office.ask("POST", f"s/{action}", report(claimed), claimed["token"])
        assert error(gone) == (404, "SUBSCRIPTION_NOT_FOUND")
    assert office.ask("PUT", "s", PULL).status == 201
    assert office.streams()["events/old"] == ("glob", office.tail(b"events/old"))
    gone = office.ask("POST", "s/ack", report(claimed), claimed["token"])
    assert error(gone) == (401, "TOKEN_INVALID")


def test_a_stream_that_is_replaced_in_one_batch(office: Office) -> None:
    """Deleted and created again before either is durable, it is linked, from its beginning."""
    office.ask("PUT", "s", PULL)
    office.held = (Durable,)
    deleting = office.request("DELETE", b"events/old")
    creating = office.request("PUT", b"events/old", body=b"anew")
    office.held = ()
    office.store.commit()
    assert (deleting.advance().status, creating.advance().status) == (204, 201)
    (item,) = office.claim()["streams"]
    assert item["tail_offset"] == office.tail(b"events/old")
    office.reopen()
    assert "events/old" in office.streams()


def test_odd_names(office: Office) -> None:
    """Ids and paths with any characters that a URL can carry, encoded, go in and come out."""
    odd = "a b/ü%?#\\'\"<>"
    encoded = "a%20b%2F%C3%BC%25%3F%23%5C%27%22%3C%3E"
    path = "events/ü &=+\\'\"<>"
    assert office.ask("PUT", encoded, {**PULL, "streams": [path]}).status == 201
    shown = document(office.ask("GET", encoded))
    assert shown["id"] == odd
    assert path in {item["path"] for item in shown["streams"]}
    assert (
        office.ask("DELETE", f"{encoded}/streams/events%2F%C3%BC%20&=+%5C'%22%3C%3E").status == 204
    )
    assert path not in {item["path"] for item in document(office.ask("GET", encoded))["streams"]}
    for bad in ("%00", "%0a", "x" * 257):
        assert error(office.ask("GET", bad)) == (400, "INVALID_REQUEST")
    assert error(office.ask("GET", "%zz")) == (400, "BAD_PATH")
    assert error(office.ask("GET", "")) == (400, "INVALID_REQUEST")


def test_routes_and_methods(office: Office) -> None:
    """What is not there is 404, what is there otherwise 405; both in the API's own shape."""
    for target in (b"__ds", b"__ds/", b"__ds/x", b"__ds/subscriptions", b"__ds/subscriptions/s/x"):
        exchange = office.request("GET", target)
        assert exchange.status in (400, 404)
        assert exchange.fields["Content-Type"] == "application/json"
    for method, target, allowed in (
        ("POST", b"__ds/subscriptions/s", "PUT, GET, DELETE, OPTIONS"),
        ("HEAD", b"__ds/subscriptions/s", "PUT, GET, DELETE, OPTIONS"),
        ("GET", b"__ds/subscriptions/s/claim", "POST, OPTIONS"),
        ("GET", b"__ds/subscriptions/s/streams/x", "DELETE, OPTIONS"),
        ("PUT", b"__ds/jwks.json", "GET, OPTIONS"),
    ):
        exchange = office.request(method, target)
        assert (exchange.status, exchange.fields["Allow"]) == (405, allowed)
    keys = office.request("GET", b"%5F%5Fds/jwks.json")
    assert keys.fields["Content-Type"] == "application/jwk-set+json"


def test_claims_of_webhooks_and_nonsense(office: Office) -> None:
    """A webhook's wake is not for claiming, and a worker has a name."""
    office.ask("PUT", "s", HOOK)
    assert error(office.ask("POST", "s/claim", {"worker": "w"})) == (400, "INVALID_REQUEST")
    for body in ({}, {"worker": ""}, {"worker": 7}, {"worker": "w" * 257}, b"x"):
        assert error(office.ask("POST", "s/claim", body)) == (400, "INVALID_REQUEST")
    missing = office.ask("POST", "t/claim", {"worker": "w"})
    assert error(missing) == (404, "SUBSCRIPTION_NOT_FOUND")


def test_nothing_is_told_before_it_is_durable(office: Office) -> None:
    """Making, claiming, acking and deleting are answered by the batch that holds them, and whoever
    looks meanwhile waits for it too."""
    office.request("GET", b"__ds/jwks.json")
    office.held = (Durable,)
    made = office.ask("PUT", "s", {**PULL, "pattern": None, "streams": ["events/old"]})
    seen = office.ask("GET", "s")
    assert isinstance(made.waiting, Durable)
    assert isinstance(seen.waiting, Durable)
    office.store.commit()
    assert (made.advance().status, seen.advance().status) == (201, 200)
    append = office.append(b"events/old", b"1")
    office.store.commit()
    append.advance()
    claiming = office.ask("POST", "s/claim", {"worker": "one"})
    busy = office.ask("POST", "s/claim", {"worker": "two"})
    assert isinstance(claiming.waiting, Durable)
    assert isinstance(busy.waiting, Durable), "a refusal that rests on accepted state"
    office.store.commit()
    claimed = document(claiming.advance())
    assert error(busy.advance()) == (409, "ALREADY_CLAIMED")
    acking = office.ask("POST", "s/ack", report(claimed), claimed["token"])
    stale = office.ask("POST", "s/ack", report(claimed), claimed["token"])
    assert isinstance(acking.waiting, Durable)
    assert isinstance(stale.waiting, Durable)
    office.store.commit()
    assert acking.advance().status == 200
    assert error(stale.advance()) == (409, "FENCED")
    deleting = office.ask("DELETE", "s")
    assert isinstance(deleting.waiting, Durable)
    office.store.commit()
    assert deleting.advance().status == 204


def test_a_full_disk_takes_everything_back(office: Office) -> None:
    """Whatever was accepted with the batch that failed never happened; then all goes on."""
    office.ask("PUT", "s", {**PULL, "lease_ttl_ms": 1_000})
    office.append(b"events/old", b"1")
    before = document(office.ask("GET", "s"))

    def fails(exchange: Exchange) -> None:
        assert error(exchange) == (507, "OUT_OF_SPACE")
        assert exchange.fields["Retry-After"]
        assert office.store.full
        office.store.full = False
        assert document(office.ask("GET", "s")) == before

    full = OutOfSpace("full")
    office.fail_next = full
    fails(office.ask("POST", "s/claim", {"worker": "w"}))
    claimed = office.claim()
    office.fail_next = full
    fails(office.ask("POST", "s/ack", report(claimed), claimed["token"]))
    office.fail_next = full
    fails(office.ask("POST", "s/streams", {"streams": ["x"]}))
    office.fail_next = full
    fails(office.ask("DELETE", "s"))
    office.fail_next = full
    assert error(office.ask("PUT", "t", HOOK)) == (507, "OUT_OF_SPACE")
    office.store.full = False
    assert error(office.ask("GET", "t")) == (404, "SUBSCRIPTION_NOT_FOUND")
    office.fail_next = full
    assert office.request("PUT", b"events/no", body=b"x").status == 507
    office.store.full = False
    assert document(office.ask("GET", "s")) == before, "a stream that was never made is linked"
    acked = office.ask("POST", "s/ack", report(claimed), claimed["token"])
    assert document(acked) == {"ok": True, "next_wake": False}
    assert office.ask("PUT", "t", HOOK).status == 201


def test_everything_is_there_after_a_restart(office: Office) -> None:
    """Configuration, links, cursors, a lease, the generation, tokens and the signing key."""
    office.ask("PUT", "s", PULL)
    office.ask("PUT", "h", HOOK)
    office.append(b"events/old", b"1")
    office.create(b"events/new", body=b"2")
    claimed = office.claim(worker="one")
    half = report(claimed, acks=report(claimed)["acks"][:1], done=False)  # type: ignore[index]
    assert office.ask("POST", "s/ack", half, claimed["token"]).status == 200
    shown = [document(office.ask("GET", identity)) for identity in ("s", "h")]
    keys = office.request("GET", b"__ds/jwks.json").answer.body
    office.reopen()
    assert [document(office.ask("GET", identity)) for identity in ("s", "h")] == shown
    assert office.request("GET", b"__ds/jwks.json").answer.body == keys
    busy = office.ask("POST", "s/claim", {"worker": "two"})
    assert document(busy)["error"]["current_holder"] == "one"
    assert office.ask("POST", "s/ack", report(claimed), claimed["token"]).status == 200
    office.append(b"events/new", b"3")
    assert office.claim()["generation"] == claimed["generation"] + 1


def test_left_overs_belong_to_nobody(office: Office) -> None:
    """Rows of links without their subscription are found at the start, to be removed."""
    office.ask("PUT", "s", PULL)
    left_over: list[bytes] = []
    office.desk.purge = left_over.extend
    office.ask("DELETE", "s")
    assert len(left_over) == 2, "a link, and a wake that is gone already"
    super(Office, office).reopen()
    assert office.equip() == left_over[1:]
    for key in left_over:
        office.desk.registry.purge(key)
    office.store.commit()
    super(Office, office).reopen()
    assert office.equip() == []


def test_more_streams_than_a_subscription_may_have(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pattern that matches too many is refused as a whole; later ones are not linked."""
    for module in (model, registry, backfill):
        monkeypatch.setattr(module, "LINKS_MAX", 5)
    for number in range(6):
        office.create(b"many/%d" % number, body=b"x")
    refused = office.ask("PUT", "s", {**PULL, "pattern": "many/*"})
    assert error(refused) == (409, "TOO_MANY_STREAMS")
    assert not office.desk.registry.wanted
    office.ask("PUT", "s", {**PULL, "pattern": "few/*"})
    for number in range(7):
        office.create(b"few/%d" % number, body=b"x")
    assert len(office.streams()) == 5
    added = office.ask("POST", "s/streams", {"streams": ["one/more"]})
    assert error(added) == (409, "TOO_MANY_STREAMS")


def test_a_commit_costs_what_changes_with_it(office: Office) -> None:
    """Of many subscriptions to a stream those are looked at that had nothing to read; one to
    another stream never is."""
    for number in range(20):
        office.ask("PUT", f"s{number}", PULL)
    office.ask("PUT", "other", {**PULL, "pattern": "tenants/*"})
    told: list[str] = []
    office.desk.registry.on_news = lambda subscription: told.append(subscription.config.id)
    office.append(b"events/old", b"1")
    assert sorted(told) == sorted(f"s{number}" for number in range(20))
    office.append(b"events/old", b"2")
    assert len(told) == 20
    claimed = office.claim("s7")
    assert claimed["streams"][0]["tail_offset"] == office.tail(b"events/old")
    office.ask("POST", "s7/ack", report(claimed), claimed["token"])
    told.clear()
    office.append(b"events/old", b"3")
    assert told == ["s7"]
