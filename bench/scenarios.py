"""The table of what can be measured. A new scenario is a row here and a function that drives it.

The function gets a Job, does everything from creating the streams to reading them back, and
returns a Measurement or raises LoadError. It runs in the load generator's process. The quick
sizes show that everything works; their figures mean nothing.
"""

from collections.abc import Awaitable, Callable

import msgspec

from bench.append import append_small
from bench.fanout import fanout
from bench.measure import Job, Measurement, Sizes

__all__ = ["SCENARIOS", "Scenario"]


class Scenario(msgspec.Struct, frozen=True):
    """One thing that is measured, with the same sizes for every server."""

    name: str
    summary: str
    operation: str
    """What is counted, in the singular."""
    latency: str
    """From when to when."""
    sizes: Sizes
    quick: Sizes
    drive: Callable[[Job], Awaitable[Measurement]]


_ALL = (
    Scenario(
        name="append-small",
        summary="durable appends, each connection to a stream of its own, one in flight each",
        operation="append",
        latency="from sending a request to its acknowledgement",
        sizes=Sizes(
            connections=64,
            message_bytes=100,
            warmup_seconds=1.5,
            measured_seconds=5.0,
            operations_max=2_000_000,
            rounds=5,
        ),
        quick=Sizes(
            connections=16,
            message_bytes=100,
            warmup_seconds=0.2,
            measured_seconds=0.6,
            operations_max=50_000,
            rounds=2,
        ),
        drive=append_small,
    ),
    Scenario(
        name="fanout",
        summary="SSE readers of one stream; the next message when all readers have the last one",
        operation="delivery",
        latency="from sending an append to its event at a reader",
        sizes=Sizes(
            connections=1_000,
            message_bytes=100,
            warmup_seconds=1.5,
            measured_seconds=5.0,
            operations_max=2_000_000,
            rounds=5,
        ),
        quick=Sizes(
            connections=100,
            message_bytes=100,
            warmup_seconds=0.2,
            measured_seconds=0.6,
            operations_max=50_000,
            rounds=2,
        ),
        drive=fanout,
    ),
)

SCENARIOS = {scenario.name: scenario for scenario in _ALL}
