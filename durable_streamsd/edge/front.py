"""What is asked of a request before it reaches the core, in both lanes alike.

Who sent it, if proxies stand in between (`proxies`); whether they may ask that often (`rates`); and
whether a browser may show the answer to the page that asked (CORS). All three are off by default,
and then `busy` is false and neither lane comes here.

Several origins are told apart for each request: the one that asks is allowed by name, and
`Vary: Origin` keeps caches from giving its answer to another. One origin, or `*`, is the same for
all answers, and is written by the core.
"""

from math import ceil
from typing import TYPE_CHECKING, Final

from durable_streamsd.config import Settings
from durable_streamsd.core.health import HEALTH_PATHS
from durable_streamsd.core.problems import Code, Problem
from durable_streamsd.edge.addresses import block_of
from durable_streamsd.edge.proxies import Proxies
from durable_streamsd.edge.rates import Rates

if TYPE_CHECKING:
    from durable_streamsd.auth.gate import Gate

__all__ = ["Front"]

RETRY_S_MAX: Final = 3_600


class Front:
    """Built once by the daemon. Raises ValueError for a proxy that is no network."""

    def __init__(self, settings: Settings) -> None:
        self.proxies = Proxies(settings.trusted_proxies, settings.proxy_headers)
        self._rates = (
            Rates(settings.requests_per_second_max, settings.requests_burst_max)
            if settings.requests_per_second_max
            else None
        )
        several = settings.cors_origins if len(settings.cors_origins) > 1 else ()
        self.origins = frozenset(origin.encode("ascii") for origin in several)
        """Those that are told apart."""
        self.busy = bool(self._rates or self.origins or settings.trusted_proxies)
        """Whether there is anything to ask."""

    def refusal(
        self, target: bytes, headers: dict[bytes, bytes], address: str, gate: "Gate | None"
    ) -> Problem | None:
        """Count a request, which came over a connection from `address`. Or why not."""
        if self._rates is None or target in HEALTH_PATHS:
            return None
        wait_s = self._rates.wait_s(self._payer(headers, address, gate))
        if not wait_s:
            return None
        retry_s = min(RETRY_S_MAX, ceil(wait_s))
        return Problem(Code.TOO_MANY_REQUESTS, b"Retry-After: %d\r\n" % retry_s)

    def _payer(self, headers: dict[bytes, bytes], address: str, gate: "Gate | None") -> str:
        """Whose bucket a request is taken from: the caller's, if they are known; else an address's.

        So whoever makes up tokens uses up no bucket but that of their own address.
        """
        account = "" if gate is None else gate.account(headers)
        return account or block_of(self.proxies.client(headers, address).address)
