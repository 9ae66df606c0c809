"""Subscriptions of a real daemon: real receivers, real workers, kills in every state."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from daemon import Daemon
from simple_http import Answer, ask, create, wait_until
from webhook_receiver import Delivery, Receiver, broken, done, later, verify

SECONDS_MAX = 20
ROOT = "/v1/stream/"
JSON = {"Content-Type": "application/json"}


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon whose webhooks may go to this machine, and whose patience is short."""
    args = ("--webhook-targets", "loopback")
    with Daemon(tmp_path / "data", *args, env={"DURABLE_STREAMSD_WEBHOOK_TIMEOUT_S": "1"}) as run:
        yield run


def control(
    daemon: Daemon, method: str, target: str, body: object = None, token: str | None = None
) -> Answer:
    """A request under `subscriptions/`."""
    headers = JSON if token is None else {**JSON, "Authorization": f"Bearer {token}"}
    sent = None if body is None else json.dumps(body).encode()
    return ask(daemon, method, f"{ROOT}__ds/subscriptions/{target}", sent, headers)


def document(answer: Answer, status: int = 200) -> dict[str, Any]:
    """The answer's JSON."""
    assert answer.status == status, answer.body
    found: dict[str, Any] = json.loads(answer.body)
    return found


def hook(daemon: Daemon, identity: str, url: str, **changes: object) -> dict[str, Any]:
    """A new webhook subscription."""
    body = {"type": "webhook", "pattern": "events/*", "webhook": {"url": url}, **changes}
    return document(control(daemon, "PUT", identity, body), 201)


def pull(daemon: Daemon, identity: str = "s", **changes: object) -> dict[str, Any]:
    """A new pull-wake subscription."""
    body = {"type": "pull-wake", "pattern": "events/*", "wake_stream": "wake/pool", **changes}
    return document(control(daemon, "PUT", identity, body), 201)


def shown(daemon: Daemon, identity: str = "s") -> dict[str, Any]:
    """What GET shows."""
    return document(control(daemon, "GET", identity))


def cursors(daemon: Daemon, identity: str = "s") -> dict[str, str]:
    """Cursors by path."""
    return {item["path"]: item["acked_offset"] for item in shown(daemon, identity)["streams"]}


def append(daemon: Daemon, path: str, body: bytes = b"x") -> str:
    """Append text; the stream's end then."""
    answer = ask(daemon, "POST", ROOT + path, body, {"Content-Type": "text/plain"})
    assert answer.status == 204
    return answer.headers["Stream-Next-Offset"]


def jwks(daemon: Daemon) -> bytes:
    """The published keys."""
    return ask(daemon, "GET", ROOT + "__ds/jwks.json").body


def report(wake: dict[str, Any], **changes: object) -> dict[str, object]:
    """Everything of a wake is read, and done."""
    acks = [{"stream": item["path"], "offset": item["tail_offset"]} for item in wake["streams"]]
    told = {"wake_id": wake["wake_id"], "generation": wake["generation"]}
    return {**told, "acks": acks, "done": True, **changes}


def call_back(daemon: Daemon, wake: dict[str, Any], **changes: object) -> Answer:
    """What a receiver sends to a delivery's own callback URL."""
    path = wake["callback_url"].removeprefix(daemon.url)
    headers = {**JSON, "Authorization": f"Bearer {wake['callback_token']}"}
    return ask(daemon, "POST", path, json.dumps(report(wake, **changes)).encode(), headers)


def events(daemon: Daemon, path: str = "wake/pool") -> list[dict[str, Any]]:
    """All wake events."""
    found: list[dict[str, Any]] = json.loads(ask(daemon, "GET", ROOT + path).body)
    return found


def wait_for_events(daemon: Daemon, count: int) -> list[dict[str, Any]]:
    """The wake events, once there are so many; there must not be more."""
    wait_until(lambda: len(events(daemon)) >= count, SECONDS_MAX, "no wake event came")
    found = events(daemon)
    assert len(found) == count
    return found


def claim(daemon: Daemon, identity: str = "s", worker: str = "w") -> dict[str, Any]:
    """A claim that succeeds."""
    return document(control(daemon, "POST", f"{identity}/claim", {"worker": worker}))


# Webhooks


def test_a_delivery(daemon: Daemon) -> None:
    """It is signed by a published key, says what there is to read, and moves the cursor when the
    receiver is done; what comes meanwhile is another wake."""
    with Receiver() as receiver:
        create(daemon, ROOT + "events/a", b"before")
        hook(daemon, "s", receiver.url)
        start = cursors(daemon)["events/a"]
        tail = append(daemon, "events/a")
        delivery = receiver.next()
        assert abs(verify(delivery, jwks(daemon)) - time.time()) < 300
        assert delivery.headers["Content-Type"] == "application/json"
        wake = delivery.wake
        assert wake["subscription_id"] == "s"
        assert wake["callback_url"] == f"{daemon.url}{ROOT}__ds/subscriptions/s/callback"
        assert wake["streams"] == [
            {
                "path": "events/a",
                "link_type": "glob",
                "acked_offset": start,
                "tail_offset": tail,
                "has_pending": True,
            }
        ]
        wait_until(lambda: cursors(daemon)["events/a"] == tail, SECONDS_MAX, "no cursor moved")
        stale = document(call_back(daemon, wake), 409)
        assert stale["error"]["code"] == "FENCED"
        append(daemon, "events/a")
        second = receiver.next().wake
        assert second["generation"] == wake["generation"] + 1
        assert second["streams"][0]["acked_offset"] == tail
        assert receiver.nothing()


def test_a_callback(daemon: Daemon) -> None:
    """A receiver may take its time: nothing more is delivered until it says that it is done."""
    with Receiver(later) as receiver:
        hook(daemon, "s", receiver.url)
        create(daemon, ROOT + "events/a", b"1")
        wake = receiver.next().wake
        tail = append(daemon, "events/a")
        assert receiver.nothing()
        half = document(call_back(daemon, wake, done=False))
        assert half == {"ok": True, "next_wake": False}
        assert cursors(daemon)["events/a"] == wake["streams"][0]["tail_offset"]
        assert document(call_back(daemon, wake)) == {"ok": True, "next_wake": True}
        second = receiver.next().wake
        assert second["streams"][0]["tail_offset"] == tail
        receiver.answer = done


def test_a_callback_from_within_a_delivery(daemon: Daemon) -> None:
    """A receiver that calls back and then keeps the connection does not hold up the next wake."""

    async def call_and_hold(delivery: Delivery, _request: web.Request) -> web.StreamResponse:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, lambda: call_back(daemon, delivery.wake))
        await asyncio.sleep(0 if delivery.wake["generation"] > 1 else 60)
        return web.json_response({})

    with Receiver(call_and_hold) as receiver:
        hook(daemon, "s", receiver.url, lease_ttl_ms=60_000)
        create(daemon, ROOT + "events/a", b"1")
        first = receiver.next().wake
        path = "events/a"
        wait_until(lambda: cursors(daemon)[path] != "-1", SECONDS_MAX, "no cursor moved")
        append(daemon, path)
        assert receiver.next().wake["generation"] == first["generation"] + 1


def test_a_lease_that_runs_out(daemon: Daemon) -> None:
    """A receiver that never calls back is woken again, and its old wake is fenced."""
    with Receiver(later) as receiver:
        hook(daemon, "s", receiver.url, lease_ttl_ms=1_000)
        create(daemon, ROOT + "events/a", b"1")
        first = receiver.next().wake
        second = receiver.next().wake
        assert second["generation"] == first["generation"] + 1
        assert document(call_back(daemon, first), 409)["error"]["code"] == "FENCED"
        assert document(call_back(daemon, second)) == {"ok": True, "next_wake": False}
        assert receiver.nothing(1.5)


def test_a_receiver_that_fails(daemon: Daemon) -> None:
    """The same wake is sent again, later and later, while the subscription shows that it failed;
    once it is taken all is well."""
    with Receiver(broken) as receiver:
        hook(daemon, "s", receiver.url)
        create(daemon, ROOT + "events/a", b"1")
        first = receiver.next().wake
        wait_until(lambda: shown(daemon)["status"] == "failed", SECONDS_MAX, "not failed")
        second = receiver.next().wake
        assert (second["wake_id"], second["generation"]) == (first["wake_id"], 1)
        receiver.answer = done
        third = receiver.next().wake
        assert third["wake_id"] == first["wake_id"]
        tail = third["streams"][0]["tail_offset"]
        wait_until(lambda: cursors(daemon)["events/a"] == tail, SECONDS_MAX, "no cursor moved")
        assert shown(daemon)["status"] == "active"


async def endless(_delivery: Delivery, request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b" " * 10_000)


async def dripping(_delivery: Delivery, request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b" ")
        await asyncio.sleep(0.05)


async def silent(_delivery: Delivery, _request: web.Request) -> web.StreamResponse:
    await asyncio.sleep(3_600)
    return web.Response()


async def redirecting(_delivery: Delivery, request: web.Request) -> web.StreamResponse:
    return web.Response(status=307, headers={"Location": f"http://{request.host}/elsewhere"})


@pytest.mark.parametrize("answer", [silent, dripping, redirecting, broken])
def test_receivers_that_do_not_take_it(daemon: Daemon, answer: Any) -> None:
    """One that never answers, one that never ends, one that sends elsewhere: each has failed, is
    tried again, and holds up neither the daemon nor other subscriptions."""
    with Receiver(answer) as receiver, Receiver() as healthy:
        hook(daemon, "s", receiver.url)
        hook(daemon, "t", healthy.url)
        create(daemon, ROOT + "events/a", b"1")
        assert healthy.next().wake["subscription_id"] == "t"
        assert receiver.next().path == "/hook"
        wait_until(lambda: shown(daemon)["status"] == "failed", SECONDS_MAX, "not failed")
        again = receiver.next()
        assert again.path == "/hook", "a redirect was followed"
        assert cursors(daemon)["events/a"] == "-1"


async def garbage(_delivery: Delivery, _request: web.Request) -> web.StreamResponse:
    return web.Response(body=b"\xff\x00[" * 1_000)


async def nested(_delivery: Delivery, _request: web.Request) -> web.StreamResponse:
    return web.Response(body=b"[" * 60_000)


async def not_done(_delivery: Delivery, _request: web.Request) -> web.StreamResponse:
    return web.json_response({"done": "true"})


@pytest.mark.parametrize("answer", [garbage, nested, not_done, endless])
def test_receivers_that_answer_nonsense(daemon: Daemon, answer: Any) -> None:
    """What does not say that it is done means that a callback will come."""
    with Receiver(answer) as receiver:
        hook(daemon, "s", receiver.url)
        create(daemon, ROOT + "events/a", b"1")
        wake = receiver.next().wake
        assert receiver.nothing()
        assert shown(daemon)["status"] == "active"
        assert document(call_back(daemon, wake)) == {"ok": True, "next_wake": False}


def test_a_receiver_that_does_not_speak_http(daemon: Daemon) -> None:
    """Bytes that are no answer, and a connection that is cut, are failures."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepted: list[bytes] = []

        def serve() -> None:
            for said in (b"\x00\x01\x02 hello\r\n\r\n", b""):
                connection, _ = listener.accept()
                accepted.append(connection.recv(65_536))
                connection.sendall(said)
                connection.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        hook(daemon, "s", f"http://127.0.0.1:{listener.getsockname()[1]}/")
        create(daemon, ROOT + "events/a", b"1")
        thread.join(SECONDS_MAX)
        assert len(accepted) == 2
        wait_until(lambda: shown(daemon)["status"] == "failed", SECONDS_MAX, "not failed")


def test_deletes_in_the_middle_of_a_delivery(daemon: Daemon) -> None:
    """The delivery is cut short, its late answer changes nothing, and the stream goes as well."""
    entered = threading.Event()

    async def hold(_delivery: Delivery, _request: web.Request) -> web.StreamResponse:
        entered.set()
        await asyncio.sleep(0.5)
        return web.json_response({"done": True})

    with Receiver(hold) as receiver:
        hook(daemon, "s", receiver.url)
        create(daemon, ROOT + "events/a", b"1")
        wake = receiver.next().wake
        assert entered.wait(SECONDS_MAX)
        assert ask(daemon, "DELETE", ROOT + "events/a").status == 204
        assert control(daemon, "DELETE", "s").status == 204
        gone = document(call_back(daemon, wake), 404)
        assert gone["error"]["code"] == "SUBSCRIPTION_NOT_FOUND"
        hook(daemon, "s", receiver.url)
        assert cursors(daemon) == {}
        create(daemon, ROOT + "events/b", b"1")
        assert [item["path"] for item in receiver.next().wake["streams"]] == ["events/b"]


def test_a_stream_is_deleted_while_it_is_delivered(daemon: Daemon) -> None:
    """Its delivery may end as it likes; nothing is pending after it."""
    with Receiver(later) as receiver:
        hook(daemon, "s", receiver.url)
        create(daemon, ROOT + "events/a", b"1")
        wake = receiver.next().wake
        assert ask(daemon, "DELETE", ROOT + "events/a").status == 204
        assert document(call_back(daemon, wake)) == {"ok": True, "next_wake": False}
        assert cursors(daemon) == {}


def test_addresses_are_judged_at_each_delivery(tmp_path: Path) -> None:
    """A name, or an odd spelling, that leads to this machine is not called, though its URL passed;
    what leads there plainly is refused at once."""
    with socket.create_server(("127.0.0.1", 0)) as listener, Daemon(tmp_path / "data") as daemon:
        port = listener.getsockname()[1]
        listener.settimeout(0.2)
        for url in (f"http://127.0.0.1:{port}/", f"https://127.0.0.1:{port}/", "https://10.0.0.1/"):
            body = {"type": "webhook", "pattern": "events/*", "webhook": {"url": url}}
            refused = document(control(daemon, "PUT", "s", body), 400)
            assert refused["error"]["code"] == "WEBHOOK_URL_REJECTED"
        spellings = {"short": "127.1", "number": "2130706433", "hex": "0x7f.0.0.1"}
        for identity, host in spellings.items():
            hook(daemon, identity, f"https://{host}:{port}/")
        create(daemon, ROOT + "events/a", b"1")
        for identity in spellings:
            wait_until(
                lambda identity=identity: shown(daemon, identity)["status"] == "failed",  # type: ignore[misc]
                SECONDS_MAX,
                "not failed",
            )
        with pytest.raises(TimeoutError):
            listener.accept()


# Pull-wake


def test_workers_share_a_wake_stream(daemon: Daemon) -> None:
    """One event for each wake, one lease for each event, and another wake for what is left."""
    create_json(daemon, "wake/pool")
    pull(daemon)
    create(daemon, ROOT + "events/a", b"1")
    (event,) = wait_for_events(daemon, 1)
    assert (event["type"], event["subscription_id"], event["stream"]) == ("wake", "s", "events/a")
    assert event["generation"] == 1
    append(daemon, "events/a")
    first = claim(daemon)
    assert (first["generation"], first["lease_ttl_ms"]) == (1, 30_000)
    append(daemon, "events/a")
    acked = control(daemon, "POST", "s/ack", report(first), first["token"])
    assert document(acked) == {"ok": True, "next_wake": True}
    wait_for_events(daemon, 2)
    second = claim(daemon)
    released = control(daemon, "POST", "s/release", report(second), second["token"])
    assert released.status == 204
    assert [event["generation"] for event in wait_for_events(daemon, 3)] == [1, 2, 3]
    third = claim(daemon)
    acked = control(daemon, "POST", "s/ack", report(third), third["token"])
    assert document(acked) == {"ok": True, "next_wake": False}
    assert len(events(daemon)) == 3


def create_json(daemon: Daemon, path: str) -> None:
    """A stream of JSON."""
    assert ask(daemon, "PUT", ROOT + path, None, JSON).status == 201


def test_a_worker_that_dies(daemon: Daemon) -> None:
    """Its lease runs out, and the work is announced again."""
    create_json(daemon, "wake/pool")
    pull(daemon, lease_ttl_ms=1_000)
    create(daemon, ROOT + "events/a", b"1")
    wait_for_events(daemon, 1)
    first = claim(daemon)
    wait_for_events(daemon, 2)
    second = claim(daemon, worker="other")
    assert second["generation"] == first["generation"] + 1
    late = control(daemon, "POST", "s/ack", report(first), first["token"])
    assert document(late, 409)["error"]["code"] == "FENCED"
    control(daemon, "POST", "s/ack", report(second), second["token"])


def test_a_wake_stream_that_is_missing(daemon: Daemon) -> None:
    """Work can be claimed all the same; it is announced when the stream is made, and again when it
    is made anew."""
    pull(daemon)
    create(daemon, ROOT + "events/a", b"1")
    wait_until(lambda: shown(daemon)["status"] == "failed", SECONDS_MAX, "not failed")
    create_json(daemon, "wake/pool")
    wait_for_events(daemon, 1)
    assert shown(daemon)["status"] == "active"
    assert ask(daemon, "DELETE", ROOT + "wake/pool").status == 204
    create_json(daemon, "wake/pool")
    wait_for_events(daemon, 1)
    assert claim(daemon)["streams"][0]["path"] == "events/a"


def test_a_wake_stream_of_text(daemon: Daemon) -> None:
    """Any stream will do: it gets a line of JSON for each wake."""
    create(daemon, ROOT + "wake/text")
    pull(daemon, wake_stream="wake/text")
    create(daemon, ROOT + "events/a", b"1")

    def line() -> bytes:
        return ask(daemon, "GET", ROOT + "wake/text").body

    wait_until(lambda: line() != b"", SECONDS_MAX, "no wake event came")
    assert line().endswith(b"\n")
    assert json.loads(line())["subscription_id"] == "s"


def test_a_claim_right_after_an_append(daemon: Daemon) -> None:
    """Whoever was told of an append finds it pending, whether its event is written or not."""
    create_json(daemon, "wake/pool")
    create(daemon, ROOT + "events/a")
    pull(daemon)
    for _ in range(30):
        append(daemon, "events/a")
        claimed = claim(daemon)
        control(daemon, "POST", "s/ack", report(claimed), claimed["token"])


# Restarts


def restart(daemon: Daemon) -> None:
    """A crash."""
    daemon.kill()
    daemon.start()


def test_kills_in_every_state_of_a_webhook(daemon: Daemon) -> None:
    """Idle, delivered, failed, acked: generations go on rising, cursors stay, and what was pending
    is delivered; the key is the same."""
    with Receiver(later) as receiver:
        hook(daemon, "s", receiver.url, lease_ttl_ms=1_000)
        keys = jwks(daemon)
        restart(daemon)
        assert jwks(daemon) == keys
        create(daemon, ROOT + "events/a", b"1")
        first = receiver.next().wake
        restart(daemon)
        second = receiver.next()
        verify(second, keys)
        assert second.wake["generation"] > first["generation"]
        tail = second.wake["streams"][0]["tail_offset"]
        url = second.wake["callback_url"]  # of the address before the restarts
        moved = {**second.wake, "callback_url": daemon.url + url[url.index("/v1/") :]}
        assert document(call_back(daemon, moved)) == {"ok": True, "next_wake": False}
        restart(daemon)
        assert cursors(daemon)["events/a"] == tail
        assert document(call_back(daemon, moved), 409)["error"]["code"] == "FENCED"
        receiver.answer = broken
        append(daemon, "events/a")
        third = receiver.next().wake
        wait_until(lambda: shown(daemon)["status"] == "failed", SECONDS_MAX, "not failed")
        restart(daemon)
        receiver.answer = done
        fourth = receiver.next().wake
        assert fourth["generation"] >= third["generation"]
        wait_until(lambda: cursors(daemon)["events/a"] > tail, SECONDS_MAX, "no cursor moved")
        restart(daemon)
        assert shown(daemon)["status"] == "active"
        assert receiver.nothing(1.5)


def test_kills_in_every_state_of_a_pull_wake(daemon: Daemon) -> None:
    """Announced, claimed, acked, released: a lease outlives the crash, and each wake is announced
    once."""
    create_json(daemon, "wake/pool")
    pull(daemon)
    create(daemon, ROOT + "events/a", b"1")
    wait_for_events(daemon, 1)
    restart(daemon)
    claimed = claim(daemon, worker="one")
    restart(daemon)
    busy = control(daemon, "POST", "s/claim", {"worker": "two"})
    assert document(busy, 409)["error"]["current_holder"] == "one"
    append(daemon, "events/a")
    restart(daemon)
    assert document(control(daemon, "POST", "s/ack", report(claimed), claimed["token"])) == {
        "ok": True,
        "next_wake": True,
    }
    wait_for_events(daemon, 2)
    restart(daemon)
    second = claim(daemon)
    assert second["generation"] == claimed["generation"] + 1
    released = control(daemon, "POST", "s/release", report(second), second["token"])
    assert released.status == 204
    restart(daemon)
    wait_for_events(daemon, 3)
    third = claim(daemon)
    assert third["generation"] == second["generation"] + 1
    assert control(daemon, "POST", "s/ack", report(third), third["token"]).status == 200
    restart(daemon)
    nothing = control(daemon, "POST", "s/claim", {"worker": "w"})
    assert document(nothing, 409)["error"]["code"] == "NO_PENDING_WORK"
    assert len(events(daemon)) == 3


def test_a_kill_in_the_middle_of_a_delivery(daemon: Daemon) -> None:
    """The receiver is told again, at least once for everything, and never of less."""
    with Receiver(silent) as receiver:
        hook(daemon, "s", receiver.url, lease_ttl_ms=1_000)
        create(daemon, ROOT + "events/a", b"1")
        first = receiver.next().wake
        daemon.kill()
        receiver.answer = done
        daemon.start()
        second = receiver.next().wake
        assert second["generation"] > first["generation"]
        assert second["streams"] == first["streams"]


def test_appends_before_a_kill_are_delivered_after_it(daemon: Daemon) -> None:
    """An acknowledged append to a linked stream wakes, even when the daemon dies right then."""
    with Receiver() as receiver:
        hook(daemon, "s", receiver.url, lease_ttl_ms=1_000)
        create(daemon, ROOT + "events/a")
        told = ""
        for _ in range(5):
            tail = append(daemon, "events/a")
            restart(daemon)
            while told < tail:
                told = receiver.next().wake["streams"][0]["tail_offset"]
