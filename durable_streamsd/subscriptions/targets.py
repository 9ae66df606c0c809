"""Which webhook URLs and addresses may be called (protocol 6.2, 12.8).

A URL is judged when a subscription is made: its form, its scheme, and its host if that is an
address. What a name resolves to is judged at each delivery, by the very address that the socket is
about to connect to (`check_address`): a name cannot change between the look and the call.

What is allowed beyond public addresses, by `Reach`:

    PUBLIC     nothing
    LOOPBACK   loopback addresses, by http too
    PRIVATE    these, and private networks (RFC 1918, unique local, shared address space), by https

Never: link-local (cloud metadata), multicast, unspecified and reserved addresses. An IPv4 address
within an IPv6 one (mapped, 6to4, NAT64) is judged as what it is.
"""

import enum
import re
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final
from urllib.parse import urlsplit

__all__ = ["URL_BYTES_MAX", "Reach", "TargetError", "check_address", "check_url"]

URL_BYTES_MAX: Final = 2_048

_GLOBAL_UNICAST: Final = ip_network("2000::/3")
_NAT64: Final = ip_network("64:ff9b::/96")
_PRIVATE: Final = tuple(
    ip_network(network)
    for network in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7")
)
_VISIBLE = re.compile(r"[\x21-\x7e]+")
_HOST = re.compile(r"[0-9A-Za-z._-]+")
_LOCAL_NAMES = ("localhost", ".localhost")


class Reach(enum.StrEnum):
    """How far webhooks may go."""

    PUBLIC = "public"
    LOOPBACK = "loopback"
    PRIVATE = "private"


class TargetError(ValueError):
    """Not to be called; one sentence that says why."""


def check_url(url: str, reach: Reach) -> None:
    """Judge a URL as it is configured. Raises `TargetError`."""
    if len(url) > URL_BYTES_MAX or not _VISIBLE.fullmatch(url) or "\\" in url or "#" in url:
        raise TargetError(f"webhook.url must be a URL of at most {URL_BYTES_MAX} ASCII characters.")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or parts.scheme not in ("http", "https") or port == 0:
        raise TargetError("webhook.url must be an https URL with a host.")
    if "@" in parts.netloc:
        raise TargetError("webhook.url must not hold a user name or a password.")
    try:
        address: IPv4Address | IPv6Address | None = ip_address(host)
    except ValueError:
        address = None
        if not _HOST.fullmatch(host):
            raise TargetError("webhook.url must have a host name or an address.") from None
    local = host.rstrip(".").endswith(_LOCAL_NAMES)
    if address is not None:
        check_address(host, reach)
        local = _inner(address).is_loopback
    elif local and reach is Reach.PUBLIC:
        raise TargetError("webhook.url must not lead to this machine.")
    if parts.scheme == "http" and not local:
        raise TargetError("webhook.url must be https.")


def check_address(text: str, reach: Reach) -> None:
    """Judge the address that a socket is about to connect to. Raises `TargetError`."""
    try:
        address = _inner(ip_address(text.partition("%")[0]))
    except ValueError:
        raise TargetError("webhook.url does not lead to an address.") from None
    if address.is_loopback:
        allowed = reach is not Reach.PUBLIC
    elif any(address in network for network in _PRIVATE):
        allowed = reach is Reach.PRIVATE
    else:
        unicast = isinstance(address, IPv4Address) or address in _GLOBAL_UNICAST
        allowed = unicast and address.is_global and not address.is_multicast
    if not allowed:
        raise TargetError("webhook.url must not lead to a local or private network.")


def _inner(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """The IPv4 address that an IPv6 one stands for, or the address itself."""
    if isinstance(address, IPv6Address):
        if address in _NAT64:
            return IPv4Address(int(address) & 0xFFFF_FFFF)
        return address.ipv4_mapped or address.sixtofour or address
    return address
