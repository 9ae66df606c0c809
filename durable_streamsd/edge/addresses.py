"""Addresses of clients as text, in one spelling each, and the block that a limit counts.

A client has one IPv4 address, but as many IPv6 addresses as it likes: providers give out networks
of 64 bits at least. So a limit per address counts those of a network together.
"""

from functools import lru_cache
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Final

__all__ = ["block_of", "normal_address"]

REMEMBERED_MAX: Final = 4_096
BLOCK_BITS: Final = 64
ADDRESS_CHARACTERS_MAX: Final = 64


@lru_cache(REMEMBERED_MAX)
def normal_address(text: str) -> str | None:
    """An address in its usual spelling; without a port, brackets and zone. None: it is not one.

    An IPv4 address within an IPv6 one is that IPv4 address.
    """
    if len(text) > ADDRESS_CHARACTERS_MAX:
        return None
    bare = text.strip()
    if bare.startswith("["):
        bare = bare[1:].partition("]")[0]
    elif bare.count(":") == 1:
        bare = bare.partition(":")[0]
    try:
        address = ip_address(bare.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)


@lru_cache(REMEMBERED_MAX)
def block_of(address: str) -> str:
    """What stands for all addresses that count as one. `address` is normal, or no address."""
    if ":" not in address:
        return address
    return str(ip_network((address, BLOCK_BITS), strict=False))
