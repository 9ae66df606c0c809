"""Listing over HTTP: parameters, pages, and what is refused."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from test_core_driving import Driver, Exchange

from durable_streamsd.core.effects import Durable
from durable_streamsd.core.offsets import format_offset

STREAMS = b"__ds/streams"


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Driver]:
    """A driver with a few streams, none of them indexed."""
    with Driver(tmp_path / "data") as opened:
        for path in (b"a", b"a%2Fb", b"a%20b", b"a+b", "é/ü".encode(), b"z%25"):
            opened.create(path, body=b"x" * len(path))
        yield opened


def page(exchange: Exchange) -> tuple[list[str], str | None]:
    """The paths of a page, and where to go on."""
    assert exchange.status == 200
    assert exchange.fields["Content-Type"] == "application/json"
    assert exchange.fields["Cache-Control"] == "no-store"
    document: dict[str, Any] = json.loads(exchange.answer.body or b"")
    return [stream["path"] for stream in document["streams"]], document.get("next")


def test_all_that_is_told_of_a_stream(driver: Driver) -> None:
    """Path, type, where it ends, closure, when it was made, size; of a fork its source."""
    driver.close_stream(b"a")
    fork = {"Stream-Forked-From": "/v1/stream/a"}
    driver.request("PUT", b"b", headers=fork, body=b"yz")
    document = json.loads(driver.get(STREAMS, b"limit=1").answer.body or b"")
    first = document["streams"][0]
    assert first.pop("created_at").startswith("20")
    assert first == {
        "path": "a",
        "content_type": "text/plain",
        "next_offset": format_offset(1, 1).decode(),
        "closed": True,
        "size_bytes": 1,
    }
    assert document["next"] == "a"
    (second,) = json.loads(driver.get(STREAMS, b"prefix=b").answer.body or b"")["streams"]
    assert (second["forked_from"], second["size_bytes"], second["closed"]) == ("a", 3, False)


def test_pages(driver: Driver) -> None:
    """Pages follow each other by `next`, in the order of the paths' bytes, after a restart too."""
    everything = ["a", "a b", "a+b", "a/b", "z%", "é/ü"]
    for _ in range(2):
        assert page(driver.get(STREAMS)) == (everything, None)
        for limit in range(1, 7):
            found: list[str] = []
            query, after = b"limit=%d" % limit, None
            while True:
                paths, after = page(driver.get(STREAMS, query))
                found += paths
                if after is None:
                    break
                query = b"limit=%d&after=%b" % (limit, quote(after).encode())
            assert found == everything
        driver.reopen()


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (b"prefix=", ["a", "a b", "a+b", "a/b", "z%", "é/ü"]),
        (b"prefix=a%2f", ["a/b"]),
        (b"prefix=a/", ["a/b"]),
        (b"prefix=a%20", ["a b"]),
        (b"prefix=a+", ["a+b"]),
        (b"prefix=a%2B", ["a+b"]),
        (b"prefix=%C3%A9/", ["é/ü"]),
        (b"prefix=z%25", ["z%"]),
        (b"prefix=z%2525", []),
        (b"prefix=/", []),
        (b"prefix=a&after=a+b", ["a/b"]),
        (b"prefix=b&after=a", []),
        (b"prefix=a&after=b", []),
        (b"after=", ["a", "a b", "a+b", "a/b", "z%", "é/ü"]),
        (b"after=a/b/c&other=1&other=2", ["z%", "é/ü"]),
        (b"limit=1000&pre%66ix=z", ["z%"]),
    ],
)
def test_prefix_and_after(driver: Driver, query: bytes, expected: list[str]) -> None:
    """Both are decoded as stream paths are: percent-encoding once, and a plus is a plus."""
    assert page(driver.get(STREAMS, query)) == (expected, None)


@pytest.mark.parametrize(
    "query",
    [
        b"limit=",
        b"limit=0",
        b"limit=-1",
        b"limit=01",
        b"limit=1001",
        b"limit=99999999999999999999",
        b"limit=1.5",
        b"limit=1&limit=1",
        b"prefix=a&prefix=a",
        b"after=a&%61fter=b",
        b"prefix=%zz",
        b"prefix=%",
        b"prefix=%00",
        b"after=a%0Ab",
        b"prefix=%C3",
        b"after=" + b"a" * 481,
    ],
)
def test_bad_parameters(driver: Driver, query: bytes) -> None:
    """What is malformed, too long or repeated is refused in the shape of the reserved routes."""
    exchange = driver.get(STREAMS, query)
    assert exchange.status == 400
    assert exchange.fields["Content-Type"] == "application/json"
    error = json.loads(exchange.answer.body or b"")["error"]
    assert error["code"] == "INVALID_REQUEST"
    assert error["message"].endswith(".")


@pytest.mark.parametrize("method", ["PUT", "POST", "DELETE"])
def test_other_methods(driver: Driver, method: str) -> None:
    """A listing is read, and nothing else."""
    exchange = driver.request(method, STREAMS)
    assert (exchange.status, exchange.fields["Allow"]) == (405, "GET, HEAD, OPTIONS")
    assert driver.request("HEAD", STREAMS).answer.body is None
    assert driver.get(b"__ds/streams/a").status == 404


def test_it_is_made_in_a_thread_and_of_durable_streams(driver: Driver) -> None:
    """The loop waits for nothing, and what is not durable is not told."""
    driver.held = (Durable,)
    driver.request("PUT", b"new")
    driver.request("DELETE", b"a")
    exchange = driver.get(STREAMS)
    assert exchange.effects[-1] == "Offload"
    assert page(exchange)[0] == ["a", "a b", "a+b", "a/b", "z%", "é/ü"]
    driver.store.commit()
    assert page(driver.get(STREAMS))[0] == ["a b", "a+b", "a/b", "new", "z%", "é/ü"]
