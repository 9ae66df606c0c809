"""What the daemon logs: one schema in two formats, limits at a measured pace, requests if asked."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
from daemon import Daemon
from raw_http import RawClient, encode
from simple_http import ask, create, wait_until

from durable_streamsd.conditions import Conditions
from durable_streamsd.logs import JsonFormatter, TextFormatter, fields
from durable_streamsd.metrics.refusals import Refusals
from storage.store import Store

STREAM = "/v1/stream/a"
TEXT = {"Content-Type": "text/plain"}
PATIENCE_S = 20
WAITS = b'durable_streamsd_waiters{kind="long-poll"} 1.0'
PAIR = re.compile(r'(\w+)=("(?:[^"\\]|\\.)*"|\S+)')


def entries(daemon: Daemon) -> list[dict[str, Any]]:
    """The log of a daemon that logs JSON."""
    return [json.loads(line) for line in daemon.stderr_path.read_text().splitlines()]


def requests(daemon: Daemon) -> list[dict[str, Any]]:
    """The lines of its access log; what a test asks for its own sake is left out."""
    lines = [entry for entry in entries(daemon) if entry["logger"] == "access"]
    return [entry for entry in lines if entry["path"] != "/metrics"]


def test_both_formats_have_the_same_fields() -> None:
    """A record with fields and an exception says the same as text and as JSON, on one line."""
    try:
        raise ValueError("first\nsecond")
    except ValueError as error:
        caught = (type(error), error, error.__traceback__)
    record = logging.LogRecord(
        "durable_streamsd.committer", logging.ERROR, "x", 1, "it %s\nbroke", ("all",), caught
    )
    vars(record).update(fields(path="/a b", count=3, ratio=0.5, said=True))
    as_json = JsonFormatter().format(record)
    as_text = TextFormatter().format(record)
    assert "\n" not in as_json + as_text
    entry = json.loads(as_json)
    assert list(entry) == [
        *("time", "level", "logger", "message", "path", "count", "ratio", "said", "trace")
    ]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", entry["time"])
    assert (entry["level"], entry["logger"]) == ("error", "committer")
    assert entry["message"] == "it all\nbroke"
    assert (entry["path"], entry["count"], entry["ratio"], entry["said"]) == ("/a b", 3, 0.5, True)
    assert entry["trace"].startswith("Traceback ")
    pairs = dict(PAIR.findall(as_text))
    assert list(pairs) == list(entry)
    assert json.loads(pairs["message"]) == entry["message"]
    assert pairs["count"] == "3"


def test_a_life_is_logged_as_json(tmp_path: Path) -> None:
    """Recovery, start and stop are one line each, with the fields that a machine wants."""
    with Daemon(tmp_path / "data", "--log-format", "json") as daemon:
        url = daemon.url
        assert daemon.terminate() == 0
    said = entries(daemon)
    recovered, started, stopping, stopped = said
    assert recovered["records"] == recovered["unfinished_bytes"] == 0
    assert (started["message"], started["url"]) == ("started", url)
    assert started["data_dir"] == str(tmp_path / "data")
    assert (stopping["message"], stopped["message"]) == ("stopping", "stopped")


@pytest.mark.parametrize("lane", ["on", "off"])
def test_requests_are_logged_when_asked_for(tmp_path: Path, lane: str) -> None:
    """One line for each request, with what was asked but no query, in either lane."""
    env = {"DURABLE_STREAMSD_EXPRESS_LANE": lane}
    options = ("--access-log", "--log-level", "error", "--log-format", "json")
    with Daemon(tmp_path / "data", *options, env=env) as daemon:
        assert create(daemon, STREAM).status == 201
        assert ask(daemon, "POST", STREAM, b"12345", TEXT).status == 204
        assert ask(daemon, "GET", f"{STREAM}?offset=-1&token=secret").status == 200
        assert ask(daemon, "GET", "/v1/stream/%22%0A?token=secret").status == 400
        assert ask(daemon, "GET", "/v1/stream/__ds/streams?token=secret").status == 200
        with RawClient(daemon.url) as client:
            client.send(b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n")
            assert client.answer().status == 400
        with RawClient(daemon.url) as client:  # two in one packet
            client.send(encode("HEAD", STREAM) + encode("GET", "/readyz"))
            assert client.answer(head_only=True).status == 200
            assert client.answer().status == 200
            client.send(encode("GET", f"{STREAM}?offset=-1&live=sse&token=secret"))
            client.until(b"12345")
            peer = client.socket.getsockname()
            client.vanish()
        with RawClient(daemon.url) as client:
            client.send(encode("GET", f"{STREAM}?offset=now&live=long-poll&token=secret"))
            wait_until(lambda: WAITS in ask(daemon, "GET", "/metrics").body, PATIENCE_S, "no wait")
            client.vanish()
        wait_until(lambda: len(requests(daemon)) == 10, PATIENCE_S, "a line is missing")
        assert "secret" not in daemon.stderr_path.read_text()
    said = requests(daemon)
    seen = [(entry["method"], entry["path"], entry["status"], entry["bytes"]) for entry in said]
    listing = seen.pop(4)
    assert listing[:3] == ("GET", "/v1/stream/__ds/streams", 200)
    bad_path, unread = seen.pop(3), seen.pop(3)
    assert bad_path[:3] == ("GET", "/v1/stream/%22%0A", 400)
    assert unread[2] == 400
    assert seen[:5] == [
        ("PUT", STREAM, 201, 0),
        ("POST", STREAM, 204, 0),
        ("GET", STREAM, 200, 5),
        ("HEAD", STREAM, 200, 0),
        ("GET", "/readyz", 200, 3),
    ]
    assert sorted(entry[:3] for entry in seen[5:]) == [("GET", STREAM, 0), ("GET", STREAM, 200)]
    stream = next(
        entry
        for entry in said
        if entry["peer"] == f"{peer[0]}:{peer[1]}"
        and entry["path"] == STREAM
        and entry["method"] == "GET"
    )
    assert stream["bytes"] > 5
    assert all(0 <= entry["seconds"] < PATIENCE_S for entry in said)


def test_requests_are_not_logged_unless_asked_for(tmp_path: Path) -> None:
    """By default a request leaves no line."""
    with Daemon(tmp_path / "data", "--log-format", "json") as daemon:
        assert create(daemon, STREAM).status == 201
        assert ask(daemon, "GET", "/v1/stream/__ds/streams").status == 200
    assert requests(daemon) == []


def test_a_limit_is_logged_once_a_second(caplog: pytest.LogCaptureFixture) -> None:
    """The first hit is said at once, what follows within the second as a number, and none twice."""
    refusals = Refusals()

    def said() -> list[tuple[str, int]]:
        found = [vars(record)["fields"] for record in caplog.records]
        caplog.clear()
        return [(entry["limit"], entry["count"]) for entry in found]

    for _ in range(1_000):
        refusals.hit("body_bytes_max")
    refusals.hit("connections_max")
    assert said() == [("body_bytes_max", 1), ("connections_max", 1)]
    refusals.tick()
    assert said() == [("body_bytes_max", 999)]
    refusals.hit("body_bytes_max")
    assert said() == []
    refusals.tick()
    assert said() == [("body_bytes_max", 1)]
    refusals.tick()
    refusals.tick()
    assert said() == []
    refusals.hit("body_bytes_max")
    assert said() == [("body_bytes_max", 1)]
    assert refusals.limits["body_bytes_max"] == 1_002


def test_a_latch_and_a_full_disk_are_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each change of the store's state is one line, however often it is looked at."""
    store = Store.open(tmp_path / "data")
    try:
        conditions = Conditions(store)
        for latched, full in ((False, True), (False, False), (True, False)):
            store.latched, store.full = latched, full
            conditions.look()
            conditions.look()
    finally:
        store.latched = False
        store.close()
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING", "CRITICAL"]
