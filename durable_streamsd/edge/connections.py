"""Which connections are open, in both lanes together, and who has to go when there are too many.

A connection is a *stranger* until it has sent one whole head, and *idle* when it waits for the next
one. When there are as many as there may be, the oldest stranger is ended in favour of a new one; if
there is none, the one that was idle when it was looked at first. Nobody loses an answer with that:
a thousand that send a byte now and then keep nobody out. Only if all are being answered a new one
is refused.

Connections of one address (`addresses.block_of`) can have a limit of their own. Those of trusted
proxies have none: many clients come through one.

Left out: time-outs (each connection has its own), and requests (`front`).
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from durable_streamsd.core.problems import Code
from durable_streamsd.edge.addresses import block_of
from durable_streamsd.edge.proxies import Proxies

__all__ = ["Connections", "Guest"]

LOOKS_MAX: Final = 64
"""How many are looked at for one that is idle; the next look goes on behind them."""


class Guest(Protocol):
    """A connection, or one whose TLS handshake is under way."""

    @property
    def stranger(self) -> bool:
        """Whether it is open and has not sent a whole head yet."""

    @property
    def idle(self) -> bool:
        """Whether it is open and nothing is asked or answered (any more)."""

    def evict(self) -> None:
        """Make room: go at once, if a stranger; else in order."""

    def drain(self) -> None:
        """The daemon stops: go, unless a request is being received or answered."""

    def abort(self) -> None:
        """Go now."""


class Connections:
    """Counts and admits; on the loop's thread only."""

    def __init__(
        self,
        connections_max: int,
        per_address_max: int,
        proxies: Proxies,
        hit: Callable[[str], None],
    ) -> None:
        self._connections_max = connections_max
        self._per_address_max = per_address_max
        self._proxies = proxies
        self._hit = hit
        self._guests: OrderedDict[Guest, str] = OrderedDict()  # to the block that it counts for
        self._strangers: OrderedDict[Guest, None] = OrderedDict()  # and some that were
        self._blocks: dict[str, int] = {}
        self._none = asyncio.Event()

    @property
    def guests(self) -> Iterable[Guest]:
        """Those that are open."""
        return self._guests

    @property
    def count(self) -> int:
        """How many are open."""
        return len(self._guests)

    def enter(self, guest: Guest, address: str) -> Code | None:
        """A connection was made: it counts, and None. Or why it has to go; it counts until then."""
        if guest in self._guests:
            return None  # it took another's place
        refusal = None
        block = ""
        if self._per_address_max and not self._proxies.trusts(address):
            block = block_of(address)
            here = self._blocks[block] = self._blocks.get(block, 0) + 1
            if here > self._per_address_max:
                refusal = Code.TOO_MANY_CONNECTIONS
        if refusal is None and len(self._guests) >= self._connections_max:
            self._hit("connections_max")
            if not self._make_room():
                refusal = Code.NOT_READY
        self._guests[guest] = block
        if refusal is None:
            self._strangers[guest] = None
        return refusal

    def replace(self, guest: Guest, by: Guest) -> None:
        """The same connection goes on as another object."""
        self._guests[by] = self._guests.pop(guest)
        if guest in self._strangers:
            del self._strangers[guest]
            self._strangers[by] = None

    def leave(self, guest: Guest) -> None:
        """A connection is lost."""
        block = self._guests.pop(guest)
        self._strangers.pop(guest, None)
        if block:
            left = self._blocks[block] - 1
            if left:
                self._blocks[block] = left
            else:
                del self._blocks[block]
        if not self._guests:
            self._none.set()

    def tick(self) -> None:
        """Once a second: forget that those who are known by now were strangers."""
        for guest in [guest for guest in self._strangers if not guest.stranger]:
            del self._strangers[guest]

    def _make_room(self) -> bool:
        while self._strangers:
            guest, _ = self._strangers.popitem(last=False)
            if guest.stranger:
                guest.evict()
                return True
        for _ in range(min(LOOKS_MAX, len(self._guests))):
            guest = next(iter(self._guests))
            self._guests.move_to_end(guest)
            if guest.idle:
                guest.evict()
                return True
        return False

    def drain(self) -> None:
        """Close the connections that wait for a request; the others end with their answer."""
        for guest in list(self._guests):
            guest.drain()

    def abort(self) -> None:
        """Cut the connections that are left."""
        for guest in list(self._guests):
            guest.abort()

    async def none(self) -> None:
        """Return when no connection is open; only sensible once nobody accepts new ones."""
        while self._guests:
            self._none.clear()
            await self._none.wait()
