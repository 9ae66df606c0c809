"""Plain numbers, cheap enough for the hot paths: no labels to look up, no locks, no allocation.

All of it is written by the loop's thread alone, and read by it when metrics are asked for.
"""

from durable_streamsd.metrics.commits import CommitCounts
from durable_streamsd.metrics.histogram import SECONDS, Histogram
from durable_streamsd.metrics.operations import Operations
from durable_streamsd.metrics.refusals import Refusals

__all__ = ["Counts", "DeliveryCounts"]


class DeliveryCounts:
    """Webhooks: what became of each, and how long it took.

    `done`: its receiver has read everything. `taken`: it will say so later. `failed`: tried again.
    """

    def __init__(self) -> None:
        self.outcomes = {"done": 0, "taken": 0, "failed": 0}
        self.duration_s = Histogram(SECONDS)


class Counts:
    """Everything that is counted; one per daemon."""

    __slots__ = (
        "commits",
        "deliveries",
        "event_bytes",
        "events",
        "lagging",
        "operations",
        "refusals",
    )

    def __init__(self) -> None:
        self.operations = Operations()
        self.refusals = Refusals()
        self.commits = CommitCounts()
        self.deliveries = DeliveryCounts()
        self.events = 0
        """Frames that were written to event streams."""
        self.event_bytes = 0
        self.lagging = 0
        """Connections of the general lane whose client has not taken what was written."""

    def tick(self) -> None:
        """A second has passed."""
        self.operations.tick()
        self.refusals.tick()
