"""Why a daemon that lets anybody do anything does not listen to the network by itself.

Whoever reaches such a daemon may read, write and delete everything. On the loopback address that is
this machine; anywhere else it has to be said on purpose.
"""

import ipaddress
import socket

from durable_streamsd.config import Settings

__all__ = ["exposed_without_authentication", "is_loopback", "wants_authentication"]


def wants_authentication(settings: Settings) -> bool:
    """Whether requests are asked who they are from."""
    return bool(settings.tokens_file or settings.jwt_keys or settings.anonymous_scopes)


def exposed_without_authentication(settings: Settings) -> bool:
    """Whether others than this machine could do everything, and nobody said that they may."""
    if wants_authentication(settings) or settings.allow_anonymous:
        return False
    return not is_loopback(settings.host)


def is_loopback(host: str) -> bool:
    """Whether a name or an address, in all its meanings, is this machine alone.

    A name that means nothing is not; listening or connecting will say so.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        return False
    return bool(found) and all(_is_loopback_address(str(address[0])) for *_, address in found)


def _is_loopback_address(text: str) -> bool:
    address = ipaddress.ip_address(text.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback
