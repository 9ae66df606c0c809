"""Who asked, and for which URL, when a proxy that is trusted stands in between.

Whoever connects may claim anything, so the headers are looked at only when the connection comes
from `trusted_proxies`. Each proxy adds, on the right, the address that it was asked from. Going
from right to left, the first that is not a trusted proxy itself is the client; what stands further
left is what the client made up. Scheme and host are those of the same hop.

Of the two families of headers one is believed, `X-Forwarded-*` or `Forwarded` (RFC 7239): a proxy
that sets one usually passes the other on, as its client sent it.

Left out: hosts and schemes that are none; they are passed over.
"""

import re
from collections.abc import Iterable
from ipaddress import ip_address, ip_network
from typing import Final, NamedTuple

from durable_streamsd.core.message import Request
from durable_streamsd.core.origin import HOST
from durable_streamsd.edge.addresses import normal_address

__all__ = ["Client", "Proxies", "retold"]

HOPS_MAX: Final = 32
"""As many proxies, one behind the other, are looked at."""
REMEMBERED_MAX: Final = 4_096

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_PAIR = re.compile(rb'[ \t]*(?:(%b)=(?:(%b)|"([^"\\]*)"))?[ \t]*' % (_TOKEN, _TOKEN))

Hop = tuple[bytes, bytes, bytes]
"""What one proxy said: whom it was asked by, by which scheme, for which host."""


class Client(NamedTuple):
    """Who asked: an address in its usual spelling, and if it is known how they call this server."""

    address: str
    scheme: str = ""
    host: bytes = b""


class Proxies:
    """The proxies that are trusted. Raises ValueError for what is no network."""

    def __init__(self, networks: Iterable[str], family: str) -> None:
        self._networks = [ip_network(network) for network in networks]
        self._hops = _forwarded if family == "forwarded" else _x_forwarded
        self._known: dict[str, bool] = {}

    def trusts(self, address: str) -> bool:
        """Whether what comes from this address is believed."""
        if not self._networks:
            return False
        known = self._known.get(address)
        if known is None:
            if len(self._known) >= REMEMBERED_MAX:
                self._known.clear()
            known = self._known[address] = self._is_in(address)
        return known

    def client(self, headers: dict[bytes, bytes], address: str) -> Client:
        """Who asked, over a connection from `address`."""
        client = Client(address)
        if not self.trusts(address):
            return client
        for told_by, scheme, host in self._hops(headers):
            hop = normal_address(told_by.decode("latin-1")) if told_by else None
            client = Client(
                hop or client.address,
                scheme.lower().decode("latin-1") if scheme.lower() in _SCHEMES else client.scheme,
                host if HOST.fullmatch(host) else client.host,
            )
            if hop is None or not self.trusts(hop):
                break
        return client

    def _is_in(self, address: str) -> bool:
        try:
            parsed = ip_address(address)
        except ValueError:
            return False
        return any(parsed in network for network in self._networks)


_SCHEMES = (b"http", b"https")


def retold(request: Request, client: Client) -> None:
    """Let a request say what the proxy in front was asked."""
    request.peer = client.address
    if client.scheme:
        request.scheme = client.scheme
    if client.host:
        request.headers = {**request.headers, b"host": client.host}  # others share the old ones


def _x_forwarded(headers: dict[bytes, bytes]) -> Iterable[Hop]:
    """The nearest hop first. A proxy may have set one value where others were added to."""
    names = (b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host")
    columns = [_from_the_right(headers.get(name, b"")) for name in names]
    for position in range(max(1, len(columns[0]))):
        addresses, schemes, hosts = (
            column[min(position, len(column) - 1)] if column else b"" for column in columns
        )
        yield addresses, schemes, hosts


def _forwarded(headers: dict[bytes, bytes]) -> Iterable[Hop]:
    for element in _from_the_right(headers.get(b"forwarded", b"")):
        said: dict[bytes, bytes] = {}
        for pair in element.split(b";"):
            match = _PAIR.fullmatch(pair)
            if match is None:
                return  # a comma or a semicolon in quotes, too: no address and no host has one
            if match[1]:
                said[match[1].lower()] = match[2] or match[3] or b""
        yield said.get(b"for", b""), said.get(b"proto", b""), said.get(b"host", b"")


def _from_the_right(value: bytes) -> list[bytes]:
    if not value:
        return []
    return [item.strip() for item in reversed(value.rsplit(b",", HOPS_MAX)[-HOPS_MAX:])]
