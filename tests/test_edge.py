"""The parts of the network's edge by themselves: addresses, proxies, rates, admission, memory."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durable_streamsd.config import Settings
from durable_streamsd.core.problems import Code
from durable_streamsd.edge import rates as rates_module
from durable_streamsd.edge.addresses import block_of, normal_address
from durable_streamsd.edge.connections import Connections
from durable_streamsd.edge.memory import Memory, anonymous_bytes, system_bytes, within_memory
from durable_streamsd.edge.proxies import HOPS_MAX, Client, Proxies
from durable_streamsd.edge.rates import Rates
from durable_streamsd.settings.loading import load_settings

PROXY = "10.0.0.1"


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("192.0.2.1", "192.0.2.1"),
        (" 192.0.2.1:4711 ", "192.0.2.1"),
        ("[2001:DB8::1]:80", "2001:db8::1"),
        ("2001:db8:0:0::1", "2001:db8::1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("fe80::1%eth0", "fe80::1"),
        ("unknown", None),
        ("_hidden", None),
        ("", None),
        ("[", None),
        ("1.2.3.4.5", None),
        ("0x7f.1", None),
        ("1" * 1_000, None),
    ],
)
def test_addresses_have_one_spelling(text: str, address: str | None) -> None:
    """However a proxy or the system writes it; what is none is told apart."""
    assert normal_address(text) == address


def test_an_ipv6_network_counts_as_one() -> None:
    """Whoever has one address of it has them all."""
    assert block_of("2001:db8:1:2:3::4") == block_of("2001:db8:1:2:ffff::") == "2001:db8:1:2::/64"
    assert block_of("2001:db8:1:3::") != block_of("2001:db8:1:2::")
    assert block_of("192.0.2.1") == "192.0.2.1"


# ---- proxies

X = "x-forwarded"


def client(headers: dict[str, str], family: str = X, address: str = PROXY) -> Client:
    """Who is found behind proxies in 10.0.0.0/8."""
    proxies = Proxies(["10.0.0.0/8", "2001:db8::/32"], family)
    return proxies.client({k.encode(): v.encode() for k, v in headers.items()}, address)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, Client(PROXY)),
        ({"x-forwarded-for": "192.0.2.1"}, Client("192.0.2.1")),
        ({"x-forwarded-for": "1.1.1.1, 192.0.2.1"}, Client("192.0.2.1")),
        ({"x-forwarded-for": "1.1.1.1, 192.0.2.1, 10.9.9.9,2001:db8::5"}, Client("192.0.2.1")),
        ({"x-forwarded-for": "10.2.2.2, 10.3.3.3"}, Client("10.2.2.2")),
        ({"x-forwarded-for": "192.0.2.1, unknown"}, Client(PROXY)),
        ({"x-forwarded-for": "192.0.2.1, nonsense, 10.2.2.2"}, Client("10.2.2.2")),
        ({"forwarded": "for=192.0.2.1;proto=https"}, Client(PROXY)),
        (
            {"x-forwarded-proto": "HTTPS", "x-forwarded-host": "a.example:8443"},
            Client(PROXY, "https", b"a.example:8443"),
        ),
        (
            {
                "x-forwarded-for": "6.6.6.6, 192.0.2.1, 10.2.2.2",
                "x-forwarded-proto": "gopher, https, http",
                "x-forwarded-host": "evil, a.example, inner",
            },
            Client("192.0.2.1", "https", b"a.example"),
        ),
        (
            {"x-forwarded-for": "192.0.2.1, 10.2.2.2", "x-forwarded-proto": "https"},
            Client("192.0.2.1", "https"),
        ),
        ({"x-forwarded-proto": "javascript", "x-forwarded-host": "a b/c"}, Client(PROXY)),
    ],
)
def test_the_client_is_the_first_from_the_right_that_is_not_trusted(
    headers: dict[str, str], expected: Client
) -> None:
    """With scheme and host of the same hop; what stands further left the client made up."""
    assert client(headers) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("for=192.0.2.1;proto=https;host=a.example", Client("192.0.2.1", "https", b"a.example")),
        ('For="[2001:DB9::1]:4711" ; Proto=http', Client("2001:db9::1", "http")),
        (
            "for=6.6.6.6;host=evil, for=192.0.2.1;proto=https;host=a.example, "
            "for=10.2.2.2;proto=http;host=inner",
            Client("192.0.2.1", "https", b"a.example"),
        ),
        ('for="6.6.6.6, for=192.0.2.1', Client("192.0.2.1")),
        ("for=_hidden;proto=https", Client(PROXY, "https")),
        ("rubbish for=192.0.2.1", Client(PROXY)),
        ("", Client(PROXY)),
    ],
)
def test_forwarded_is_understood(value: str, expected: Client) -> None:
    """RFC 7239, from the right; the other family of headers is then not looked at."""
    headers = {"forwarded": value, "x-forwarded-for": "7.7.7.7", "x-forwarded-proto": "https"}
    assert client(headers, "forwarded") == expected


def test_strangers_are_not_believed() -> None:
    """From an address that is no proxy's, headers mean nothing."""
    headers = {"x-forwarded-for": "192.0.2.1", "x-forwarded-host": "evil"}
    assert client(headers, address="203.0.113.5") == Client("203.0.113.5")
    assert Proxies([], X).client({b"x-forwarded-for": b"1.1.1.1"}, PROXY) == Client(PROXY)


def test_endless_chains_end() -> None:
    """No more hops are looked at than anybody has proxies."""
    chain = ", ".join(["192.0.2.1", *["10.1.1.1"] * (2 * HOPS_MAX)])
    assert client({"x-forwarded-for": chain}) == Client("10.1.1.1")


PIECES = st.sampled_from(
    ["for=", "proto=", "host=", ";", ",", '"', "\\", "[", "]", ":", "10.0.0.1", "::1", "%", "/",
     "²", "ÿ", " ", "\t", "https", "a.b:99", "fe80::1%x", "1"]
)  # fmt: skip
VALUES = st.lists(PIECES, max_size=8).map(lambda pieces: "".join(pieces).encode("latin-1"))


@given(VALUES, VALUES, VALUES, VALUES, st.sampled_from(["forwarded", X]))
def test_whatever_a_proxy_passes_on_is_survived(
    forwarded: bytes, addresses: bytes, scheme: bytes, host: bytes, family: str
) -> None:
    """What is found is an address, a scheme and a host, or nothing."""
    headers = {
        b"forwarded": forwarded,
        b"x-forwarded-for": addresses,
        b"x-forwarded-proto": scheme,
        b"x-forwarded-host": host,
    }
    found = Proxies(["10.0.0.0/8", "::/64"], family).client(headers, PROXY)
    assert normal_address(found.address) == found.address
    assert block_of(found.address)
    assert found.scheme in ("", "http", "https")
    assert found.host.isascii()
    assert b" " not in found.host


# ---- rates


class Time:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


def test_a_bucket_empties_and_fills() -> None:
    """So many at once, then so many a second; a refusal says when, and costs nothing."""
    time = Time()
    rates = Rates(2, 3, time)
    assert [rates.wait_s("a") for _ in range(3)] == [0, 0, 0]
    assert rates.wait_s("a") == pytest.approx(0.5)
    assert rates.wait_s("a") == pytest.approx(0.5)
    assert rates.wait_s("b") == 0
    time.now_s += 0.5
    assert rates.wait_s("a") == 0
    assert rates.wait_s("a") == pytest.approx(0.5)
    time.now_s += 100
    assert [rates.wait_s("a") for _ in range(3)] == [0, 0, 0]
    assert rates.wait_s("a") > 0


def test_in_the_long_run_the_rate_holds() -> None:
    """Whatever the pace of asking, over many periods in which buckets are forgotten."""
    time = Time()
    rates = Rates(10, 20, time)
    for step_s in (0.001, 0.013, 0.09):
        allowed = 0
        began_s = time.now_s
        while time.now_s < began_s + 30:
            allowed += rates.wait_s("a") == 0
            time.now_s += step_s
        assert 299 <= allowed <= 321
        time.now_s += 10


def test_buckets_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many keys there are; those who keep asking stay limited unless there are too many."""
    monkeypatch.setattr(rates_module, "KEYS_MAX", 100)
    time = Time()
    rates = Rates(1, 1, time)
    assert rates.wait_s("kept") == 0
    for number in range(99):
        rates.wait_s(str(number))
    assert rates.wait_s("kept") > 0
    for number in range(10_000):
        rates.wait_s(str(number))
        assert len(rates) <= 200
    time.now_s += 10
    rates.wait_s("new")
    assert len(rates) == 1


# ---- connections


class Visitor:
    """A connection that is whatever a test says."""

    def __init__(self, connections: Connections, address: str = "192.0.2.1") -> None:
        self._connections = connections
        self.stranger = True
        self.idle = True
        self.evicted = False
        self.refusal = connections.enter(self, address)

    def evict(self) -> None:
        assert not self.evicted
        self.evicted = True
        self.stranger = self.idle = False

    def ask(self) -> None:
        """A whole head has come, and is being answered."""
        self.stranger = self.idle = False

    def leave(self) -> None:
        self._connections.leave(self)

    def drain(self) -> None:
        raise AssertionError

    def abort(self) -> None:
        raise AssertionError


limits: list[str] = []
"""That were met."""


def make_connections(
    connections_max: int = 1_000, per_address_max: int = 0, proxies: tuple[str, ...] = ()
) -> Connections:
    return Connections(connections_max, per_address_max, Proxies(proxies, X), limits.append)


def test_the_oldest_stranger_makes_room() -> None:
    """Those who have asked for something stay; when all are being answered the new one goes."""
    connections = make_connections(4)
    known, *strangers = [Visitor(connections) for _ in range(4)]
    known.ask()
    for stranger in strangers:
        new = Visitor(connections)
        assert new.refusal is None
        assert stranger.evicted
        stranger.leave()
        new.ask()
    assert connections.count == 4
    refused = Visitor(connections)
    assert refused.refusal is Code.NOT_READY
    refused.leave()
    known.idle = True  # it was answered
    assert Visitor(connections).refusal is None
    assert known.evicted


def test_many_at_once_each_find_room() -> None:
    """Also before those who made room are gone."""
    connections = make_connections(100)
    old = [Visitor(connections) for _ in range(100)]
    new = [Visitor(connections) for _ in range(100)]
    assert all(visitor.evicted for visitor in old)
    assert not any(visitor.refusal or visitor.evicted for visitor in new)
    for visitor in old:
        visitor.leave()
    assert connections.count == 100


def test_strangers_that_became_known_are_forgotten() -> None:
    """Once a second; what is remembered of each connection does not last for its life."""
    connections = make_connections(10)
    visitors = [Visitor(connections) for _ in range(10)]
    for visitor in visitors[1:]:
        visitor.ask()
    connections.tick()
    assert list(connections._strangers) == visitors[:1]


def test_one_address_has_its_limit() -> None:
    """A network of IPv6 too; those behind a trusted proxy are not counted together."""
    connections = make_connections(per_address_max=2, proxies=("10.0.0.0/8",))
    for network in ("192.0.2.1", "2001:db8:1:2::"):
        first, second, third = [Visitor(connections, network) for _ in range(3)]
        assert (first.refusal, second.refusal) == (None, None)
        assert third.refusal is Code.TOO_MANY_CONNECTIONS
        first.leave()
        third.leave()
        assert Visitor(connections, network).refusal is None
    assert Visitor(connections, "2001:db8:1:2:9::").refusal is Code.TOO_MANY_CONNECTIONS
    assert not any(Visitor(connections, PROXY).refusal for _ in range(10))


def test_counting_ends_with_the_last_one() -> None:
    """Nothing is left of addresses; whoever waits for the end is told."""

    async def main() -> None:
        connections = make_connections(per_address_max=2)
        visitors = [Visitor(connections, f"192.0.2.{number % 2}") for number in range(5)]
        ended = asyncio.create_task(connections.none())
        for visitor in visitors:
            assert not ended.done()
            visitor.leave()
            await asyncio.sleep(0)
        async with asyncio.timeout(20):
            await ended
        assert not connections._blocks
        assert not connections._strangers

    asyncio.run(main())


# ---- memory


def test_memory_is_short_until_there_is_a_margin(caplog: pytest.LogCaptureFixture) -> None:
    """Above the bound, with what is promised; said once when it begins and once when it ends."""
    caplog.set_level("INFO")
    used = [0]
    memory = Memory(1_000, promised=lambda: 100, measure=lambda: used[0])
    seen = []
    for used_bytes in (0, 900, 901, 2_000, 880, 851, 850, 900, 901):
        used[0] = used_bytes
        seen.append(memory.tick())
    assert seen == [False, False, True, True, True, True, False, False, True]
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO", "WARNING"]


def test_what_is_measured_is_what_was_taken() -> None:
    """Memory that this process writes to counts, as soon as it does."""
    before = anonymous_bytes()
    block = bytearray(b"x" * (64 << 20))
    assert before + (60 << 20) < anonymous_bytes() < before + (200 << 20)
    del block


def groups(root: Path, group: str, limits: dict[str, str]) -> int:
    """What there is for a process in a control group."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(f"1:cpu:/x\n0::{group}\n")
    for folder, limit in limits.items():
        path = root / "sys/fs/cgroup" / folder
        path.mkdir(parents=True, exist_ok=True)
        (path / "memory.max").write_text(f"{limit}\n")
    return system_bytes(root)


def test_control_groups_limit_memory(tmp_path: Path) -> None:
    """The least of the limits on the way up counts, and never more than the machine has."""
    machine = system_bytes(tmp_path / "nothing")
    assert machine > 100 << 20
    limits = {"a/b": "max", "a": "1000", ".": "2000"}
    assert groups(tmp_path / "1", "/a/b", limits) == 1_000
    assert groups(tmp_path / "2", "/", {".": "500"}) == 500
    assert groups(tmp_path / "3", "/a", {"a": str(machine * 2)}) == machine


def test_allowances_fit_into_memory() -> None:
    """What may be taken at once is no more than a part of what there is."""
    small = within_memory(Settings(memory_bytes_max=400 << 20))
    assert small.answers_bytes_max == small.bodies_bytes_max == 100 << 20
    large = within_memory(Settings(memory_bytes_max=4 << 30))
    assert large.answers_bytes_max == Settings().answers_bytes_max
    assert within_memory(Settings()).memory_bytes_max == int(system_bytes() * 0.8)
    assert not anonymous_bytes(Path("/nowhere"))  # where there is no /proc


def test_lists_come_from_the_environment(tmp_path: Path) -> None:
    """Separated by commas there, as an array in a file."""
    environment = {"DURABLE_STREAMSD_TRUSTED_PROXIES": "10.0.0.0/8, ::1,"}
    file = tmp_path / "daemon.toml"
    file.write_text('cors-origins = ["https://a.example", "http://localhost:3000"]\n')
    settings = load_settings({}, environment, file)
    assert settings.trusted_proxies == ("10.0.0.0/8", "::1")
    assert settings.cors_origins == ("https://a.example", "http://localhost:3000")
