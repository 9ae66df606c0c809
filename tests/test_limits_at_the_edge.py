"""Origins, proxies and limits as clients meet them: the real daemon, in both lanes and over TLS.

Every client has an address of its own, of those that are all this machine.
"""

from __future__ import annotations

import contextlib
import itertools
import resource
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from authority import LANES, lane_settings
from daemon import Daemon
from raw_http import Closed, RawClient, encode
from simple_http import wait_until

TEXT = "Content-Type: text/plain"
PROXY = "127.0.0.2"
CONNECTIONS_PER_ADDRESS = 10
BURST = 20
WAITERS = 3
ALLOWED = ("https://a.example", "http://localhost:3000")
LORIS_COUNT = 1_000
LORIS_LIMIT = 300
BEGINNING = b"GET /v1/stream/x HTTP/1.1\r\nHost: "

_names = itertools.count()
_addresses = (f"127.1.{high}.{low}" for high in range(256) for low in range(1, 255))


def started(lane: str, factory: pytest.TempPathFactory, **settings: object) -> Daemon:
    """A daemon in a lane with settings."""
    folder = factory.mktemp(lane)
    environment = {
        f"DURABLE_STREAMSD_{name.upper()}": str(value) for name, value in settings.items()
    }
    return Daemon(folder / "data", env=environment | lane_settings(lane, folder))


@pytest.fixture(scope="module", params=LANES)
def guarded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Daemon]:
    """A daemon with all of it on."""
    with started(
        request.param,
        tmp_path_factory,
        connections_per_address_max=CONNECTIONS_PER_ADDRESS,
        requests_per_second_max=1,
        requests_burst_max=BURST,
        waiters_per_stream_max=WAITERS,
        trusted_proxies=PROXY,
        cors_origins=",".join(ALLOWED),
    ) as daemon:
        yield daemon
        assert "trace=" not in daemon.stderr_tail()


def somebody(daemon: Daemon, address: str | None = None) -> RawClient:
    """A client from an address of its own."""
    return RawClient(daemon.url, source=address or next(_addresses))


def stream(daemon: Daemon, body: bytes = b"") -> str:
    """The path of a new text stream."""
    path = f"/v1/stream/test/{next(_names)}"
    with somebody(daemon) as client:
        assert client.request("PUT", path, TEXT, body=body).status == 201
    return path


# ---- origins


@pytest.mark.parametrize("origin", ALLOWED)
def test_an_origin_of_the_list_is_allowed_by_name(guarded: Daemon, origin: str) -> None:
    """In answers of every kind, and in the preflight; caches are told that it matters."""
    path = stream(guarded, b"text")
    asks = f"Origin: {origin}"
    with somebody(guarded) as client:
        for answer in (
            client.request("GET", path, asks),
            client.request("GET", f"{path}-missing", asks),
            client.request("GET", "/nowhere", asks),
            client.request("POST", path, asks),
            client.request("OPTIONS", path, asks, "Access-Control-Request-Method: PUT"),
        ):
            assert answer.headers["access-control-allow-origin"] == origin
            assert answer.headers["vary"] == "Origin"
        assert answer.status == 204
        assert "PUT" in answer.headers["access-control-allow-methods"]
        client.send(encode("GET", f"{path}?offset=-1&live=sse", asks))
        assert f"Access-Control-Allow-Origin: {origin}\r\n".encode() in client.head()


@pytest.mark.parametrize(
    "lines", [[], ["Origin: https://evil.example"], ["Origin: null"], [f"Origin: {ALLOWED[0]}x"]]
)
def test_others_are_not(guarded: Daemon, lines: list[str]) -> None:
    """Without the header a browser keeps the answer from the page; to the rest it is all the same.

    What was allowed on a connection before says nothing for the next request.
    """
    path = stream(guarded, b"text")
    with somebody(guarded) as client:
        assert (
            "access-control-allow-origin"
            in client.request("GET", path, f"Origin: {ALLOWED[0]}").headers
        )
        for method in ("GET", "OPTIONS"):
            answer = client.request(method, path, *lines)
            assert answer.status in (200, 204)
            assert "access-control-allow-origin" not in answer.headers
            assert answer.headers["vary"] == "Origin"


def test_origins_are_told_apart_where_answers_are_shared(guarded: Daemon) -> None:
    """Readers from several origins that wait for the same data each get their own."""
    path = stream(guarded)
    origins = [*ALLOWED, "https://evil.example"]
    readers = [somebody(guarded) for _ in origins]
    for reader, origin in zip(readers, origins, strict=True):
        reader.send(encode("GET", f"{path}?offset=-1&live=long-poll", f"Origin: {origin}"))
    with somebody(guarded) as writer:
        assert writer.request("POST", path, TEXT, body=b"news").status == 204
    allowed = [reader.answer().headers.get("access-control-allow-origin") for reader in readers]
    assert allowed == [*ALLOWED, None]
    for reader in readers:
        reader.socket.close()


# ---- proxies


def test_a_trusted_proxy_says_what_the_url_is(guarded: Daemon) -> None:
    """Scheme and host of absolute URLs; the same headers of others mean nothing."""
    told = ("X-Forwarded-For: 192.0.2.1", "X-Forwarded-Proto: https", "X-Forwarded-Host: a.example")
    path = f"/v1/stream/test/{next(_names)}"
    with somebody(guarded, PROXY) as proxy:
        made = proxy.request("PUT", path, TEXT, *told)
        assert made.headers["location"] == f"https://a.example{path}"
        plain = proxy.request("PUT", f"{path}-plain", TEXT, "X-Forwarded-For: 192.0.2.1")
    scheme = urlsplit(guarded.url).scheme
    assert plain.headers["location"] == f"{scheme}://test{path}-plain"
    with somebody(guarded) as other:
        made = other.request("PUT", f"{path}-other", TEXT, *told)
        assert made.headers["location"] == f"{scheme}://test{path}-other"


# ---- requests in a second


def exhaust(client: RawClient, *lines: str) -> int:
    """Ask until it is too much; returns how often it was not."""
    for count in range(2 * BURST):
        answer = client.request("HEAD", "/v1/stream/test/rates", *lines)
        if answer.status == 429:
            return count
    raise AssertionError("nothing was too much")


def test_too_many_requests_are_told_when_to_come_again(guarded: Daemon) -> None:
    """429 with Retry-After, also for what is not the lane's own; then it works again."""
    address = next(_addresses)
    with somebody(guarded, address) as client:
        assert BURST <= exhaust(client) <= BURST + 3
        for method, path, body in (
            ("GET", "/v1/stream/test/rates", b""),
            ("POST", "/v1/stream/test/rates", b"x" * 100_000),
            ("GET", "/nowhere", b""),
        ):
            refused = client.request(method, path, TEXT, f"Origin: {ALLOWED[0]}", body=body)
            assert refused.status == 429
            assert refused.headers["retry-after"] == "1"
            assert refused.headers["access-control-allow-origin"] == ALLOWED[0]
            assert b'"too-many-requests"' in refused.body
        assert client.request("GET", "/healthz").status == 200
        with somebody(guarded, address) as again:
            assert (
                again.request("GET", "/nowhere").status == 429
            )  # another connection is no way out
        with somebody(guarded) as other:
            assert other.request("GET", "/nowhere").status == 404
        wait_until(lambda: client.request("GET", "/nowhere").status == 404, 20, "never again")


def test_those_behind_a_proxy_are_told_apart(guarded: Daemon) -> None:
    """On one connection of the proxy; what a client claims to be makes no difference."""
    with somebody(guarded, PROXY) as proxy:
        assert exhaust(proxy, "X-Forwarded-For: 192.0.2.77") >= BURST
        for claimed in ("192.0.2.77", "6.6.6.6, 192.0.2.77", "[::1], 192.0.2.77:99"):
            answer = proxy.request("GET", "/nowhere", f"X-Forwarded-For: {claimed}")
            assert answer.status == 429
        assert proxy.request("GET", "/nowhere", "X-Forwarded-For: 192.0.2.78").status == 404


# ---- connections


def test_one_address_has_so_many_connections(guarded: Daemon) -> None:
    """More are turned away, those there go on; others, and proxies, are not concerned."""
    address = next(_addresses)
    clients = [somebody(guarded, address) for _ in range(CONNECTIONS_PER_ADDRESS)]
    assert clients[0].request("GET", "/healthz").status == 200
    if guarded.url.startswith("https:"):
        with pytest.raises(ConnectionResetError):
            somebody(guarded, address)
    else:
        with somebody(guarded, address) as extra:
            answer = extra.answer()
            assert answer.status == 429
            assert answer.headers["retry-after"] == "5"
            assert extra.closed()
    with somebody(guarded) as other:
        assert other.request("GET", "/healthz").status == 200
    proxies = [somebody(guarded, PROXY) for _ in range(2 * CONNECTIONS_PER_ADDRESS)]
    for client in (*proxies, *clients):
        assert client.request("GET", "/healthz").status == 200
    for client in (*proxies, *clients):
        client.socket.close()
    said = "limit=connections_per_address_max count="
    wait_until(lambda: said in guarded.stderr_path.read_text(), 20, "nothing was logged")

    def room() -> bool:
        with (
            contextlib.suppress(Closed, ConnectionResetError),
            somebody(guarded, address) as client,
        ):
            return client.request("GET", "/healthz").status == 200
        return False

    wait_until(room, 20, "there was no room again")


# ---- waiters


@pytest.mark.parametrize("mode", ["long-poll", "sse"])
def test_a_stream_has_so_many_waiters(guarded: Daemon, mode: str) -> None:
    """503 with Retry-After beyond; those who need not wait are answered, and leavers make room."""
    path = stream(guarded, b"old")
    waiters = [somebody(guarded) for _ in range(WAITERS)]
    for waiter in waiters:
        waiter.send(encode("GET", f"{path}?offset=now&live=sse"))
        waiter.head()
        assert b"upToDate" in waiter.chunk()
    with somebody(guarded) as client:
        refused = client.request("GET", f"{path}?offset=now&live={mode}")
        assert (refused.status, refused.headers["retry-after"]) == (503, "5")
        assert b'"too-many-readers"' in refused.body
        assert client.request("GET", f"{path}?offset=-1&live=long-poll").body == b"old"
        assert client.request("GET", f"{path}?offset=-1").body == b"old"
        elsewhere = stream(guarded)
        client.send(encode("GET", f"{elsewhere}?offset=now&live=sse"))
        assert b"200 OK" in client.head()
    waiters[0].vanish()

    def room() -> bool:
        with somebody(guarded) as client:
            client.send(encode("GET", f"{path}?offset=now&live=sse"))
            return b"200 OK" in client.head()

    wait_until(room, 20, "there was no room again")
    for waiter in waiters[1:]:
        waiter.socket.close()


def test_what_was_turned_away_is_logged(guarded: Daemon) -> None:
    """By the limit's name, and how often it was met."""
    with somebody(guarded) as client:
        exhaust(client)
    said = "limit=requests_per_second_max count="
    wait_until(lambda: said in guarded.stderr_path.read_text(), 20, "nothing was logged")


# ---- memory


@pytest.fixture(scope="module", params=LANES)
def short(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Daemon]:
    """A daemon that may have less memory than it takes to run."""
    with started(request.param, tmp_path_factory, memory_bytes_max="32MiB") as daemon:
        said = "memory is short"
        wait_until(lambda: said in daemon.stderr_path.read_text(), 20, "nothing was logged")
        yield daemon
        assert "trace=" not in daemon.stderr_tail()


def test_large_reads_are_refused_before_memory_is_gone(short: Daemon) -> None:
    """503 with Retry-After for those and for new live readers; appends and small reads go on."""
    path = stream(short)
    with somebody(short) as client:
        for size in (60_000, 600_000):
            assert client.request("POST", path, TEXT, body=b"x" * size).status == 204
        for query in ("", "?offset=-1&live=long-poll", "?offset=now&live=sse",
                      "?offset=now&live=long-poll", "?offset=-1&live=sse"):  # fmt: skip
            refused = client.request("GET", path + query)
            assert (refused.status, refused.headers["retry-after"]) == (503, "5"), query
            assert b'"memory-short"' in refused.body
        small = stream(short, b"x" * 60_000)
        assert client.request("GET", small).status == 200
        assert client.request("GET", f"{small}?offset=-1&live=long-poll").status == 200
        assert client.request("HEAD", path).status == 200
        assert client.request("GET", "/readyz").status == 200
        assert client.request("DELETE", path).status == 204
    assert short.stderr_path.read_text().count("memory is short") == 1


# ---- a thousand who never finish


@contextlib.contextmanager
def slow_lorises(daemon: Daemon, addresses: Iterator[str]) -> Iterator[list[socket.socket]]:
    """Connections that have sent a part of a head, or over TLS of a handshake, and stay."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4 * LORIS_COUNT)), hard))
    url = urlsplit(daemon.url)
    beginning = BEGINNING if url.scheme == "http" else b"\x16\x03\x01\x02\x00\x01\x00"
    with contextlib.ExitStack() as stack:
        lorises = []
        for address in itertools.islice(addresses, LORIS_COUNT):
            loris = socket.create_connection((url.hostname, url.port), 20, (address, 0))
            stack.enter_context(loris)
            with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                loris.sendall(beginning)
            lorises.append(loris)
        yield lorises


@pytest.fixture(scope="module", params=LANES)
def crowded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Daemon]:
    """A daemon with fewer connections than there are lorises, and all the patience in the world."""
    with started(
        request.param,
        tmp_path_factory,
        connections_max=LORIS_LIMIT,
        connections_per_address_max=LORIS_LIMIT // 3,
        head_timeout_s=600,
        tls_handshake_timeout_s=600,
        linger_timeout_s=600,
    ) as daemon:
        yield daemon
        assert "trace=" not in daemon.stderr_tail()


@pytest.mark.parametrize("many", [False, True], ids=["one address", "many addresses"])
def test_a_thousand_slow_lorises_keep_nobody_out(crowded: Daemon, many: bool) -> None:
    """A client that was there goes on, a new one gets in, again and again while they push."""
    path = f"/v1/stream/test/{next(_names)}"
    addresses = _addresses if many else itertools.repeat(next(_addresses))
    with somebody(crowded) as before:
        assert before.request("PUT", path, TEXT).status == 201
        with slow_lorises(crowded, iter(addresses)):
            for number in range(20):
                with somebody(crowded) as client:
                    body = b"%02d" % number
                    assert client.request("POST", path, TEXT, body=body).status == 204
                    assert client.request("GET", path).body.endswith(body)
                with slow_loris_burst(crowded, _addresses if many else iter(addresses)):
                    assert before.request("HEAD", path).status == 200


def test_those_who_were_refused_and_stay_keep_nobody_out(crowded: Daemon) -> None:
    """They have their answer, be it that this port speaks TLS, and do not go."""
    url = urlsplit(crowded.url)
    with contextlib.ExitStack() as stack:
        for address in itertools.islice(_addresses, LORIS_LIMIT + 50):
            other = socket.create_connection((url.hostname, url.port), 20, (address, 0))
            stack.enter_context(other)
            other.sendall(b"NONSENSE / HTTP/9\r\n\r\n")
            assert other.recv(12).startswith(b"HTTP/1.")
        for _ in range(20):
            with somebody(crowded) as client:
                assert client.request("GET", "/healthz").status == 200


@contextlib.contextmanager
def slow_loris_burst(daemon: Daemon, addresses: Iterator[str]) -> Iterator[None]:
    """Ten more."""
    url = urlsplit(daemon.url)
    with contextlib.ExitStack() as stack:
        for address in itertools.islice(addresses, 10):
            connection = socket.create_connection((url.hostname, url.port), 20, (address, 0))
            stack.enter_context(connection)
        yield
