"""Limits where callers are known: the real daemon with everything in front of it on, in both lanes
and over TLS."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator

import pytest
from auth_lab import Lab
from authority import LANES, lane_settings
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from daemon import Daemon
from key_server import key_server, signed
from raw_http import RawClient, encode
from simple_http import wait_until

from durable_streamsd.core.control_bodies import BODY_BYTES_MAX

BURST = 20
PATIENCE_S = 20
PATH = "/v1/stream/box/1"
TEXT = "Content-Type: text/plain"
PROXY = "127.0.0.2"
LARGE = b"x" * 100_000

_addresses = (f"127.2.{high}.{low}" for high in range(256) for low in range(1, 255))
UNUSED = 30
_unused = itertools.cycle(range(UNUSED))
KEY = Ed25519PrivateKey.generate()


@pytest.fixture(scope="module", params=LANES)
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A daemon that lets each caller ask `BURST` times at once, and then once in a second."""
    folder = tmp_path_factory.mktemp(request.param)
    with key_server() as keys:
        keys.publish(a=KEY)
        settings = {
            "requests_per_second_max": "1",
            "requests_burst_max": str(BURST),
            "connections_per_address_max": "20",
            "trusted_proxies": PROXY,
            "cors_origins": "https://a.example,https://b.example",
            "tokens_file": str(folder / "tokens.json"),
            "jwt_keys": keys.url,
            "access_log": "on",
        }
        daemon = Daemon(
            folder / "data",
            env={f"DURABLE_STREAMSD_{name.upper()}": value for name, value in settings.items()}
            | lane_settings(request.param, folder),
        )
        lab = Lab(daemon, folder / "tokens.json")
        for name in ("admin", *(f"unused-{number}" for number in range(UNUSED))):
            lab.token(name, "admin:**")
        with daemon:
            with RawClient(daemon.url, source=next(_addresses)) as client:
                assert (
                    client.request(
                        "PUT", PATH, TEXT, bearer(lab.tokens["admin"]), body=b"text"
                    ).status
                    == 201
                )
            yield lab
            assert "trace=" not in daemon.stderr_tail()


def bearer(token: str) -> str:
    """The header line for a token."""
    return f"Authorization: Bearer {token}"


def somebody(lab: Lab, address: str | None = None) -> RawClient:
    """A client from an address of its own."""
    return RawClient(lab.daemon.url, source=address or next(_addresses))


def known(lab: Lab) -> str:
    """The header line of a token that nobody has used."""
    return bearer(lab.tokens[f"unused-{next(_unused)}"])


def exhaust(ask: Callable[[int], int]) -> set[int]:
    """Ask until it is too much, which must not be too soon; returns the statuses before."""
    before: list[int] = []
    while (status := ask(len(before))) != 429:
        before.append(status)
        assert len(before) < 3 * BURST, "nothing was too much"
    assert len(before) >= BURST - 1
    return set(before)


def metric(lab: Lab, name: str, *labels: str) -> float:
    """The sum of the samples of a metric that have these labels."""
    with somebody(lab) as client:
        page = client.request("GET", "/metrics", known(lab)).body.decode()
    found = [line for line in page.splitlines() if line.startswith(f"durable_streamsd_{name}")]
    return sum(float(line.split()[-1]) for line in found if all(label in line for label in labels))


def test_a_known_caller_is_counted_wherever_they_are(lab: Lab) -> None:
    """One token, many addresses: one bucket. And one address, many tokens: each their own."""
    first, second = known(lab), known(lab)
    address = next(_addresses)
    with somebody(lab, address) as client:
        exhaust(lambda _: client.request("GET", PATH, first).status)
        with somebody(lab) as elsewhere:
            refused = elsewhere.request("GET", PATH, first)
            assert refused.status == 429
            assert refused.headers["retry-after"] == "1"
        assert client.request("GET", PATH, second).status == 200
        assert client.request("GET", PATH).status == 401  # nor did they use up their address's


def test_a_jwt_counts_for_its_subject(lab: Lab) -> None:
    """Whichever token they show; one without a subject counts for its address."""
    several = [
        bearer(signed(KEY, "a", "read:**", sub="carla", jti=str(number))) for number in range(3)
    ]
    with somebody(lab) as client:
        exhaust(lambda _: client.request("GET", PATH, several[0]).status)
        assert client.request("GET", PATH, several[1]).status == 429
        other = bearer(signed(KEY, "a", "read:**", sub="carlo"))
        assert client.request("GET", PATH, other).status == 200
        nameless = bearer(signed(KEY, "a", "read:**"))
        exhaust(lambda _: client.request("GET", PATH, nameless).status)
        assert client.request("GET", PATH).status == 429
    with somebody(lab) as elsewhere:
        assert elsewhere.request("GET", PATH, several[2]).status == 429
        assert elsewhere.request("GET", PATH, nameless).status == 200


@pytest.mark.parametrize("kind", ["wrong", "malformed", "forged", "expired", "none"])
@pytest.mark.parametrize("through", ["directly", "through a proxy"])
def test_who_makes_up_tokens_pays_with_their_address(lab: Lab, kind: str, through: str) -> None:
    """Each with another token; also through a trusted proxy, which says who they are."""
    forger = Ed25519PrivateKey.generate()

    def line(number: int) -> str:
        match kind:
            case "wrong":
                return bearer(f"dst_{number:043}")
            case "malformed":
                return bearer(f"{number} {number}")
            case "forged":
                return bearer(signed(forger, "a", "admin:**", sub=f"carla{number}"))
            case "expired":
                return bearer(signed(KEY, "a", "admin:**", sub=f"{number}", exp=time.time() - 99))
        return "Accept: */*"

    proxied = through != "directly"
    lines = [f"X-Forwarded-For: 203.0.113.{len(kind)}"] if proxied else []
    good = known(lab)
    with somebody(lab, PROXY if proxied else None) as client:
        before = exhaust(lambda number: client.request("GET", PATH, line(number), *lines).status)
        assert before == {400 if kind == "malformed" else 401}
        assert client.request("GET", PATH, good, *lines).status == 200


def test_a_large_body_that_is_not_kept_counts_too(lab: Lab) -> None:
    """Although its connection ends: whoever sends many is told 429, and 401 no more."""
    address = next(_addresses)
    wrong = bearer("dst_" + "0" * 43)

    def send(_: int) -> int:
        with somebody(lab, address) as client:
            return client.request("POST", PATH, TEXT, wrong, body=LARGE).status

    assert exhaust(send) == {401}


def test_a_reader_token_does_not_use_up_what_its_maker_has(lab: Lab) -> None:
    """What stands in a URL may leak; whoever floods with it uses up their own address's bucket."""
    maker = known(lab)
    with somebody(lab) as client:
        body = json.dumps({"path": "box/1"}).encode()
        made = client.request("POST", "/v1/stream/__ds/tokens", maker, body=body)
        target = f"{PATH}?access_token={json.loads(made.body)['token']}"
        assert exhaust(lambda _: client.request("GET", target).status) == {200}
        assert client.request("GET", PATH, maker).status == 200


def test_what_was_too_much_is_counted_as_what_it_was(lab: Lab) -> None:
    """Not as whatever the same connection asked before."""
    before = metric(lab, "http_requests_total", 'operation="append"', 'status="429"')
    with somebody(lab) as client:
        exhaust(lambda _: client.request("GET", PATH).status)
        client.send(encode("POST", PATH, TEXT, body=b"x") * 3)
        refused = [client.answer().status for _ in range(3)].count(429)
    after = metric(lab, "http_requests_total", 'operation="append"', 'status="429"')
    assert after - before == refused > 0


def test_pipelined_requests_are_each_counted(lab: Lab) -> None:
    """As many answers as requests, in order, the refused ones among them; the connection stays."""
    line = known(lab)
    with somebody(lab) as client:
        client.send(encode("GET", PATH, line) * 3 * BURST)
        statuses = [client.answer().status for _ in range(3 * BURST)]
        assert statuses.count(200) >= BURST - 1
        assert set(statuses) == {200, 429}
        assert client.request("GET", "/healthz").status == 200


def test_caches_are_told_of_all_that_an_answer_depends_on(lab: Lab) -> None:
    """The origin and the caller, of which each is told apart for its own reason."""
    line = known(lab)
    with somebody(lab) as client:
        for target in (PATH, f"{PATH}?offset=-1&live=long-poll"):
            answer = client.request("GET", target, line, "Origin: https://a.example")
            assert set(answer.headers["vary"].split(", ")) == {"Origin", "Authorization"}
            assert answer.headers["cache-control"].startswith("private")
            assert answer.headers["access-control-allow-origin"] == "https://a.example"


def test_large_bodies_that_are_no_data_get_no_memory(lab: Lab) -> None:
    """Strangers' and others' alike; refused as each of these routes refuses, and counted."""
    before = metric(lab, "limited_total", 'limit="body_bytes_max"')
    for target, code in (
        ("/v1/stream/__ds/tokens", "BODY_TOO_LARGE"),
        ("/nowhere", "body-too-large"),
    ):
        with somebody(lab) as client:
            head = f"POST {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {BODY_BYTES_MAX + 1}"
            client.send(f"{head}\r\nExpect: 100-continue\r\n\r\n".encode())
            refused = client.answer()
            assert refused.status == 413  # at once: no byte of the body was asked for
            assert code in refused.body.decode()
    assert metric(lab, "limited_total", 'limit="body_bytes_max"') - before == 2


def test_what_comes_too_soon_is_told_in_the_shape_of_its_route(lab: Lab) -> None:
    """Control routes have errors of their own form."""
    with somebody(lab) as client:
        exhaust(lambda _: client.request("GET", PATH).status)
        client.send(encode("GET", "/v1/stream/__ds/jwks.json") * 3)
        last = [client.answer() for _ in range(3)][-1]
        assert last.status == 429
        assert last.headers["retry-after"] == "1"
        assert json.loads(last.body)["error"]["code"] == "TOO_MANY_REQUESTS"


@pytest.mark.parametrize("early", [False, True], ids=["at its end", "at its head"])
def test_who_was_refused_behind_a_proxy_is_logged(lab: Lab, early: bool) -> None:
    """By the address that the proxy says, also when the body was not even read."""
    address = f"198.51.100.{1 + early}"
    told = f"X-Forwarded-For: {address}"
    with somebody(lab, PROXY) as proxy:
        if early:
            length = f"Content-Length: {len(LARGE)}"
            head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\n{TEXT}\r\n{told}\r\n{length}\r\n"
            proxy.send(f"{head}Expect: 100-continue\r\n\r\n".encode())
            assert proxy.answer().status == 401
        else:
            assert proxy.request("GET", PATH, told).status == 401
    log = lab.daemon.stderr_path
    wait_until(lambda: f"peer={address}" in log.read_text(), PATIENCE_S, "nobody was logged")
