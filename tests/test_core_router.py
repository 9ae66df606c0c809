"""Routes, methods, and what every answer carries."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from test_core_driving import Driver

from durable_streamsd.core.context import Options
from durable_streamsd.core.lines import common_block
from storage.errors import CorruptData, IndexFailed, OutOfSpace, StorageError


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Driver]:
    """A driver with the text stream `t`, which holds `abc`."""
    with Driver(tmp_path / "data") as opened:
        opened.create(b"t", body=b"abc")
        yield opened


TARGETS = [
    ("GET", b"t", 200),
    ("HEAD", b"t", 200),
    ("POST", b"t", 400),
    ("PUT", b"new", 201),
    ("DELETE", b"missing", 404),
    ("PATCH", b"t", 405),
    ("GET", b"a//b", 400),
    ("GET", b"__ds/streams", 200),
    ("HEAD", b"__ds/streams", 200),
    ("PUT", b"__ds/streams", 405),
    ("GET", b"__ds/streams/x", 404),
    ("GET", b"__ds/subscriptions/x", 404),
    ("PUT", b"__ds", 404),
    ("GET", b"/", 404),
    ("GET", b"/v1/stream", 404),
    ("GET", b"/v1/stream/", 400),
    ("GET", b"/v2/stream/t", 404),
    ("GET", b"/healthz", 200),
    ("GET", b"/health", 200),
    ("GET", b"/readyz", 200),
    ("HEAD", b"/readyz", 200),
    ("POST", b"/healthz", 405),
    ("OPTIONS", b"t", 204),
    ("OPTIONS", b"__ds/x", 204),
    ("OPTIONS", b"/healthz", 204),
    ("OPTIONS", b"/anything", 204),
]


@pytest.mark.parametrize(("method", "target", "status"), TARGETS)
def test_every_answer_carries_the_common_headers(
    driver: Driver, method: str, target: bytes, status: int
) -> None:
    """Security and CORS headers are on every answer, errors too; HEAD has no body ever."""
    exchange = driver.request(method, target)
    assert exchange.status == status
    assert exchange.fields["X-Content-Type-Options"] == "nosniff"
    assert exchange.fields["Cross-Origin-Resource-Policy"] == "cross-origin"
    assert exchange.fields["Access-Control-Allow-Origin"] == "*"
    exposed = exchange.fields["Access-Control-Expose-Headers"].split(", ")
    assert {"Stream-Next-Offset", "Producer-Received-Seq", "ETag", "X-Offset"} <= set(exposed)
    no_body = method == "HEAD" or status in (204, 304)
    assert (exchange.answer.body is None) is no_body


def test_every_own_header_is_exposed(driver: Driver) -> None:
    """Whatever Stream or Producer header an answer has, a browser may read it."""
    answers = [
        driver.get(b"t"),
        driver.get(b"t", b"offset=-1&live=long-poll"),
        driver.append(b"t", b"x", Producer_Id="p", Producer_Epoch="0", Producer_Seq="0"),
        driver.append(b"t", b"x", Producer_Id="p", Producer_Epoch="0", Producer_Seq="9"),
        driver.request("PUT", b"ttl", headers={"Stream-TTL": "9"}),
        driver.request("HEAD", b"ttl"),
        driver.close_stream(b"t"),
    ]
    for exchange in answers:
        exposed = exchange.fields["Access-Control-Expose-Headers"].split(", ")
        own = {name for name in exchange.fields if name.startswith(("Stream-", "Producer-", "X-O"))}
        assert own <= set(exposed)


def test_preflight(driver: Driver) -> None:
    """A browser may send every method and every header of the protocol."""
    fields = driver.request("OPTIONS", b"t").fields
    methods = set(fields["Access-Control-Allow-Methods"].split(", "))
    assert {"GET", "HEAD", "PUT", "POST", "DELETE"} <= methods
    allowed = set(fields["Access-Control-Allow-Headers"].split(", "))
    assert {"Content-Type", "If-None-Match", "Authorization", "Producer-Id"} <= allowed
    assert {"Stream-Closed", "Stream-Seq", "Stream-TTL", "Stream-Expires-At"} <= allowed
    assert int(fields["Access-Control-Max-Age"]) > 0


def test_unknown_method(driver: Driver) -> None:
    """405 lists what would be allowed."""
    exchange = driver.request("PATCH", b"t")
    assert exchange.code == "method-not-allowed"
    assert exchange.fields["Allow"] == "GET, HEAD, PUT, POST, DELETE, OPTIONS"
    assert driver.request("POST", b"/readyz").fields["Allow"] == "GET, HEAD, OPTIONS"


def test_reserved_routes(driver: Driver) -> None:
    """The control prefix is no stream, in any spelling, and answers in its own error shape."""
    for path in (b"__ds", b"__ds/subscriptions/x", b"%5f_ds/x"):
        exchange = driver.request("PUT", path, headers={"Content-Type": "text/plain"})
        assert exchange.status == 404
        assert exchange.fields["Content-Type"] == "application/json"
        assert exchange.answer.body is not None
        assert exchange.answer.body.startswith(b'{"error": {"code": "NOT_FOUND"')


def test_readiness(driver: Driver) -> None:
    """A daemon that takes no writes, or is about to stop, lives but is not ready."""
    driver.context.draining = True
    assert driver.request("GET", b"/readyz").code == "not-ready"
    driver.context.draining = False
    driver.store.latched = True
    assert driver.request("GET", b"/readyz").code == "not-ready"
    assert driver.request("GET", b"/healthz").status == 200
    driver.store.latched = False


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (IndexFailed("no space"), "index-unavailable"),
        (CorruptData("index", 1, "bad page"), "corrupt-data"),
        (OutOfSpace("full"), "out-of-space"),
    ],
)
def test_look_ups_that_fail(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, error: StorageError, code: str
) -> None:
    """What goes wrong below is told by a code, without a word on files."""

    def fail(_path: bytes) -> None:
        raise error

    monkeypatch.setattr(driver.store, "load", fail)
    exchange = driver.get(b"unknown")
    assert exchange.code == code
    assert str(error).encode() not in (exchange.answer.body or b"")


def test_cors_origin(tmp_path: Path) -> None:
    """A configured origin replaces the asterisk; which of several is allowed is not said here."""
    with Driver(tmp_path / "data", Options(cors_origins=("https://example.org",))) as driver:
        fields = driver.get(b"missing").fields
        assert fields["Access-Control-Allow-Origin"] == "https://example.org"
        assert "Vary" not in fields
    several = common_block(("https://a.example", "https://b.example"))
    assert b"Vary: Origin\r\n" in several
    assert b"Allow-Origin" not in several
