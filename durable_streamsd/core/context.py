"""What handlers share: the store, the options, the clocks and the answers built once."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from durable_streamsd.core.lines import common_block
from durable_streamsd.core.message import Frame, Response, SharedResponse
from durable_streamsd.core.problems import Code, Problem
from durable_streamsd.core.retention import RetentionRules
from durable_streamsd.core.shared import SharedAnswers

if TYPE_CHECKING:
    from durable_streamsd.auth.gate import Gate
    from durable_streamsd.core.metrics import Exposition
    from durable_streamsd.subscriptions.desk import Desk
    from storage.store import Store

__all__ = ["Context", "Options"]


@dataclass(frozen=True, slots=True)
class Options:
    """The settings that the protocol core needs."""

    long_poll_timeout_s: float = 20.0
    sse_lifetime_s: float = 60.0
    """An event stream ends after this, plus or minus `sse_jitter_s`; never under 1 s."""
    sse_jitter_s: float = 6.0
    heartbeat_s: float = 15.0
    read_bytes_max: int = 4 << 20
    """Of one catch-up or long-poll answer; a JSON message is never cut."""
    event_bytes_max: int = 256 << 10
    """Of one SSE data event, before its encoding; also what a slow socket has to hold."""
    public_url: str | None = None
    """Scheme and authority of absolute URLs, such as `https://example.org`; else from `Host`."""
    waiters_per_stream_max: int = 0
    """Live readers of one stream; 0: as many as come."""
    cors_origins: tuple[str, ...] = ("*",)
    retention_rules: RetentionRules = field(default_factory=RetentionRules)


class Context:
    """One per daemon. `draining` is set by the daemon when it begins to stop."""

    def __init__(
        self,
        store: "Store",
        options: Options | None = None,
        monotonic_s: Callable[[], float] = time.monotonic,
        seed: int | None = None,
    ) -> None:
        self.store = store
        self.options = options or Options()
        self.monotonic_s = monotonic_s
        self.draining = False
        self.memory_short = False
        """Set by the daemon: large reads and new live readers are refused."""
        self.on_problem: Callable[[Code], None] = lambda code: None
        """Put in by the daemon: is told the code of every error answer outside `__ds`, and of those
        in there that a lane gives."""
        self.exposition: Exposition | None = None
        """Put in by the daemon; without it there is no `/metrics`."""
        self.subscriptions: Desk | None = None
        """Put in by the daemon; without it the control API of subscriptions is not served."""
        self.gate: Gate | None = None
        """Put in by the daemon if it has authentication; without it everybody may do everything."""
        self.common = common_block(self.options.cors_origins)
        url = self.options.public_url
        self.base_url = None if url is None else url.rstrip("/").encode("ascii")
        self.random = random.Random(seed)
        self.cursor_salt = self.random.getrandbits(64)
        self.long_polls: SharedAnswers[SharedResponse] = SharedAnswers()
        self.events: SharedAnswers[Event] = SharedAnswers()

    def tick(self) -> None:
        """Give the memory of shared answers back; called once a second."""
        self.long_polls.clear()
        self.events.clear()

    def problem(self, code: Code) -> Response:
        """An error answer for what a lane found before there was a request to dispatch."""
        return self.failed(Problem(code))

    def failed(self, problem: Problem) -> Response:
        """The answer that a problem is."""
        self.on_problem(problem.code)
        return problem.response(self.common)


@dataclass(frozen=True, slots=True)
class Event:
    """An SSE frame and what the reader has seen after it; `live` explains `sent` and `seen`."""

    frame: Frame
    sent: int
    seen: int
    closed: bool
