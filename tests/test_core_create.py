"""PUT: creating, and making sure."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from test_core_driving import Driver

from durable_streamsd.core.context import Options
from durable_streamsd.core.effects import Durable
from durable_streamsd.core.offsets import START_TOKEN, format_offset
from storage.limits import Limits
from storage.state import Kind, Outcome

TEXT = {"Content-Type": "text/plain"}


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Driver]:
    """A driver with the default options."""
    with Driver(tmp_path / "data") as opened:
        yield opened


def test_create(driver: Driver) -> None:
    """201 says where the stream is, what it holds and where it ends."""
    exchange = driver.request("PUT", b"a/b", headers=TEXT)
    assert (exchange.status, exchange.answer.body) == (201, b"")
    assert exchange.fields["Location"] == "http://example.org:4437/v1/stream/a/b"
    assert exchange.fields["Content-Type"] == "text/plain"
    assert exchange.next_offset == exchange.fields["X-Offset"].encode() == START_TOKEN
    assert "Stream-Closed" not in exchange.fields


def test_create_with_data(driver: Driver) -> None:
    """A body is the first content, atomically with the stream and with its end."""
    exchange = driver.request("PUT", b"a", headers={**TEXT, "Stream-Closed": "true"}, body=b"abc")
    assert exchange.status == 201
    assert exchange.next_offset == format_offset(1, 3)
    assert exchange.fields["Stream-Closed"] == "true"
    read = driver.get(b"a")
    assert (read.answer.body, read.fields["Stream-Closed"]) == (b"abc", "true")


def test_repeated(driver: Driver) -> None:
    """A PUT of what is there is 200, neither compares nor appends its body, and has no Location."""
    driver.create(b"a", "Text/Plain; charset=utf-8", b"abc")
    exchange = driver.request("PUT", b"a", headers=TEXT, body=b"other")
    assert exchange.status == 200
    assert exchange.fields["Content-Type"] == "Text/Plain; charset=utf-8"
    assert exchange.next_offset == format_offset(1, 3)
    assert "Location" not in exchange.fields
    assert driver.get(b"a").answer.body == b"abc"


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/html"},
        {"Stream-TTL": "11"},
        {"Stream-TTL": ""},
        {"Stream-Closed": "true"},
        {"Stream-TTL": "", "Stream-Expires-At": "2099-01-01T00:00:00Z"},
    ],
)
def test_conflict(driver: Driver, headers: dict[str, str]) -> None:
    """Another type, lifetime or closed state is a conflict."""
    first = {**TEXT, "Stream-TTL": "10"}
    assert driver.request("PUT", b"a", headers=first).status == 201
    assert driver.request("PUT", b"a", headers=first).status == 200
    second = {name: value for name, value in {**first, **headers}.items() if value}
    exchange = driver.request("PUT", b"a", headers=second)
    assert (exchange.status, exchange.code) == (409, "config-conflict")


def test_default_content_type(driver: Driver) -> None:
    """A stream without a type holds bytes."""
    exchange = driver.request("PUT", b"a")
    assert exchange.fields["Content-Type"] == "application/octet-stream"


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"Content-Type": "text"}, 400, "bad-content-type"),
        ({"Stream-TTL": "1.0"}, 400, "bad-ttl"),
        ({"Stream-Expires-At": "soon"}, 400, "bad-expires-at"),
        (
            {"Stream-TTL": "1", "Stream-Expires-At": "2099-01-01T00:00:00Z"},
            400,
            "ttl-and-expires-at",
        ),
        ({"Host": "example.org/path"}, 400, "bad-host"),
        ({"Host": "user@example.org"}, 400, "bad-host"),
        ({"Host": "a, b"}, 400, "bad-host"),
        ({"Host": ""}, 400, "bad-host"),
        ({"Stream-Fork-Offset": START_TOKEN.decode()}, 400, "fork-source-required"),
        ({"Stream-Fork-Sub-Offset": "0"}, 400, "fork-source-required"),
    ],
)
def test_refusals(driver: Driver, headers: dict[str, str], status: int, code: str) -> None:
    """What is malformed or not there yet is refused, and creates nothing."""
    exchange = driver.request("PUT", b"a", headers={**TEXT, **headers})
    assert (exchange.status, exchange.code) == (status, code)
    assert driver.get(b"a").status == 404


def test_json_body(driver: Driver) -> None:
    """PUT takes an empty array, which is no messages, and refuses what is not JSON."""
    kind = {"Content-Type": "application/json"}
    assert driver.request("PUT", b"a", headers=kind, body=b"[]").next_offset == START_TOKEN
    assert driver.get(b"a").answer.body == b"[]"
    exchange = driver.request("PUT", b"b", headers=kind, body=b"[")
    assert (exchange.status, exchange.code) == (400, "bad-json")


@pytest.mark.parametrize(
    ("host", "base"),
    [
        ("localhost", "http://localhost"),
        ("127.0.0.1:80", "http://127.0.0.1:80"),
        ("[::1]:4437", "http://[::1]:4437"),
    ],
)
def test_location_from_host(driver: Driver, host: str, base: str) -> None:
    """Location is absolute, from the Host that the client used, with the path in canonical form."""
    exchange = driver.request("PUT", b"a%2fb%20c%41", headers={"Host": host})
    assert exchange.fields["Location"] == f"{base}/v1/stream/a/b%20cA"


def test_location_from_public_url(tmp_path: Path) -> None:
    """A configured URL is used instead, whatever the Host says."""
    options = Options(public_url="https://streams.example.org/")
    with Driver(tmp_path / "data", options) as driver:
        exchange = driver.request("PUT", b"a", headers={"Host": "<evil>"})
        assert exchange.fields["Location"] == "https://streams.example.org/v1/stream/a"


def test_lifetimes_are_told_by_head(driver: Driver) -> None:
    """HEAD tells the window or the moment, in UTC."""
    driver.request("PUT", b"a", headers={"Stream-TTL": "3600"})
    assert driver.request("HEAD", b"a").fields["Stream-TTL"] == "3600"
    driver.request("PUT", b"b", headers={"Stream-Expires-At": "2099-01-01T01:00:00.5+01:00"})
    fields = driver.request("HEAD", b"b").fields
    assert fields["Stream-Expires-At"] == "2099-01-01T00:00:00.500Z"
    assert "Stream-TTL" not in fields


def test_an_expired_path_is_free(driver: Driver) -> None:
    """A stream whose time is over is gone for every operation, and makes way for another."""
    past = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    driver.request("PUT", b"a", headers={**TEXT, "Stream-Expires-At": past}, body=b"old")
    for method in ("GET", "HEAD", "DELETE"):
        assert driver.request(method, b"a").status == 404
    assert driver.append(b"a", b"x").status == 404
    assert driver.request("PUT", b"a", headers={"Content-Type": "image/png"}).status == 201
    assert driver.get(b"a").answer.body == b""


def test_an_offset_of_the_deleted_stream_is_told_apart(driver: Driver) -> None:
    """A new stream at an old path refuses the old one's offsets."""
    old = driver.create(b"a", body=b"abc").next_offset
    assert driver.request("DELETE", b"a").status == 204
    driver.create(b"a", body=b"abcdef")
    assert driver.get(b"a", b"offset=" + old).code == "foreign-offset"


def test_deleting(driver: Driver) -> None:
    """DELETE is 204 once, then 404, and the answer waits until the deletion is durable."""
    driver.create(b"a")
    assert driver.request("DELETE", b"a").effects == ["Durable"]
    assert driver.request("DELETE", b"a").status == 404
    assert driver.get(b"a").status == 404


def test_a_stream_that_expires_while_it_is_deleted(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deletion that finds nothing more to delete is 404."""
    driver.create(b"a")
    monkeypatch.setattr(driver.store, "delete", lambda stream: Outcome(Kind.MISSING, stream))
    assert driver.request("DELETE", b"a").code == "not-found"


def test_creating_waits_for_room(tmp_path: Path) -> None:
    """When the store is full of what is not yet written, a PUT waits for its turn."""
    limits = Limits(reserve_bytes=4_096, zero_ahead_bytes=0, batch_records_max=1)
    with Driver(tmp_path / "data", limits=limits) as driver:
        driver.held = (Durable,)
        first = driver.request("PUT", b"a")
        second = driver.request("PUT", b"b")
        assert second.effects[0] == "Room"
        driver.store.commit()
        assert first.advance().status == second.advance().status == 201


def test_creating_is_like_appending_for_a_latched_store(driver: Driver) -> None:
    """A store that takes no writes says so to PUT and DELETE."""
    driver.create(b"a")
    driver.store.latched = True
    assert driver.request("PUT", b"b").code == "outcome-unknown"
    assert driver.request("DELETE", b"a").code == "outcome-unknown"
    assert driver.request("PUT", b"a", headers=TEXT).status == 200
    driver.store.latched = False
