"""Requests by what they ask for: how many, with which status, how long and how large.

Every answer is counted. Duration and sizes are measured for all requests of an operation as long as
there are no more than `MEASURED_PER_S` a second of it; beyond that for every second, fourth, …
one, which then stands for as many. A request costs 0.15 µs, one that is measured 1 µs.
"""

from time import monotonic

from durable_streamsd.core.health import HEALTH_PATHS
from durable_streamsd.core.metrics import METRICS_PATH
from durable_streamsd.core.paths import STREAM_ROOT
from durable_streamsd.metrics.histogram import BYTES, SECONDS, Histogram

__all__ = ["Operation", "Operations"]

MEASURED_PER_S = 1_000
STRIDE_MAX = 256
STATUSES = 600

_RESERVED = STREAM_ROOT + b"__ds"


class Operation:
    """One kind of request. The lanes count down `left` and add to `statuses` themselves."""

    __slots__ = (
        "_answered_before",
        "_cycle",
        "_stride",
        "broken",
        "durations_s",
        "in_general_lane",
        "left",
        "name",
        "request_bytes",
        "response_bytes",
        "statuses",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.left = 1
        """The request that makes this 0 is measured. Always small: such numbers need no memory."""
        self.statuses = [0] * STATUSES
        self.broken = 0
        """Requests whose client went away before they were answered."""
        self.in_general_lane = 0
        """Those that are being answered there; the express lane looks at its connections."""
        self.durations_s: dict[int, Histogram] = {}
        self.request_bytes = Histogram(BYTES)
        self.response_bytes = Histogram(BYTES)
        self._stride = self._cycle = 1
        self._answered_before = 0

    def sample(self) -> int:
        """`left` is 0: for how many the request stands that is to be measured now."""
        weight = self._cycle
        self._cycle = self.left = self._stride
        return weight

    def measured(self, status: int, began_s: float, weight: int, asked: int, answered: int) -> None:
        """A request that stands for `weight` was answered; sizes are those of bodies, in bytes."""
        durations = self.durations_s.get(status)
        if durations is None:
            durations = self.durations_s[status] = Histogram(SECONDS)
        durations.observe(monotonic() - began_s, weight)
        self.request_bytes.observe(asked, weight)
        self.response_bytes.observe(answered, weight)

    def tick(self) -> None:
        """A second has passed: measure so many of the next one's requests."""
        answered = sum(self.statuses)
        per_s = answered - self._answered_before
        self._answered_before = answered
        self._stride = min(STRIDE_MAX, 1 << (per_s // MEASURED_PER_S).bit_length())


class Operations:
    """All kinds of requests."""

    def __init__(self) -> None:
        self.create = Operation("create")
        self.append = Operation("append")
        self.read = Operation("read")
        self.long_poll = Operation("long-poll")
        self.sse = Operation("sse")
        self.head = Operation("head")
        self.delete = Operation("delete")
        self.preflight = Operation("preflight")
        self.control = Operation("control")
        self.health = Operation("health")
        self.metrics = Operation("metrics")
        self.other = Operation("other")
        self.unread = Operation("unread")
        """What was refused before it could be told what it is."""
        self.all: tuple[Operation, ...] = tuple(vars(self).values())
        self._of_streams = {
            "GET": self.read,
            "HEAD": self.head,
            "POST": self.append,
            "PUT": self.create,
            "DELETE": self.delete,
        }

    def of(self, method: str, target: bytes) -> Operation:
        """What a request with this method and target asks for."""
        if method == "OPTIONS":
            return self.preflight
        path, _, query = target.partition(b"?")
        if path.startswith(STREAM_ROOT):
            if path.startswith(_RESERVED):
                return self.control
            if method == "GET" and b"live=" in query:
                return self._live(query)
            return self._of_streams.get(method, self.other)
        if path in HEALTH_PATHS:
            return self.health
        return self.metrics if path == METRICS_PATH else self.other

    def tick(self) -> None:
        """A second has passed."""
        for operation in self.all:
            operation.tick()

    def _live(self, query: bytes) -> Operation:
        fields = query.split(b"&")
        if b"live=sse" in fields:
            return self.sse
        return self.long_poll if b"live=long-poll" in fields else self.read
