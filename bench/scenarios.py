"""The table of what can be measured. A new scenario is a row here and a function that drives it.

The function gets a Job, does everything from creating the streams to reading them back, and
returns a Measurement or raises LoadError. It runs in the load generator's process. The quick
sizes show that everything works; their figures mean nothing.
"""

from collections.abc import Awaitable, Callable

import msgspec
from msgspec.structs import replace

from bench.append import append_json, append_large, append_to_one, append_to_own
from bench.fanout import fanout, fanout_longpoll
from bench.idle import idle
from bench.many_streams import many_streams, many_streams_turn
from bench.measure import Job, Measurement, Sizes
from bench.mixed import mixed
from bench.producer import produce
from bench.reading import read_large, read_scattered
from bench.restart import restart, restart_turn
from bench.slow import slow_readers
from bench.subscribed import SUBSCRIPTIONS, SUBSCRIPTIONS_QUICK, subscribed_turn
from bench.turns import Conduct, Yardstick, one_server
from bench.wake import wake_latency
from bench.wrk import read_small
from bench.yardsticks import NGINX, WRITES

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
    """What the load generator does."""
    conduct: Conduct = one_server
    """What happens around it: which servers are started, and when."""
    yardsticks: tuple[Yardstick, ...] = ()
    """What is measured beside the servers."""
    merit: str = "rate"
    """By what servers are compared: `rate`, of which more is better, or one of which less is
    better: `p50` or `p99`, the latencies, or one of the scenario's own figures by its name."""


ACKNOWLEDGED = "from sending a request to its acknowledgement"

APPENDS = Sizes(
    connections=64,
    message_bytes=100,
    warmup_seconds=1.5,
    measured_seconds=5.0,
    operations_max=2_000_000,
    rounds=5,
)
APPENDS_QUICK = Sizes(
    connections=16,
    message_bytes=100,
    warmup_seconds=0.2,
    measured_seconds=0.6,
    operations_max=50_000,
    rounds=2,
)
READS = Sizes(
    connections=64,
    message_bytes=1_000,
    warmup_seconds=1.0,
    measured_seconds=4.0,
    operations_max=10_000_000,
    rounds=3,
)
READS_QUICK = Sizes(
    connections=4,
    message_bytes=1_000,
    warmup_seconds=0.2,
    measured_seconds=0.6,
    operations_max=1_000_000,
    rounds=1,
)

_ALL = (
    Scenario(
        name="append-small",
        summary="durable appends, each connection to a stream of its own, one in flight each",
        operation="append",
        latency=ACKNOWLEDGED,
        sizes=APPENDS,
        quick=APPENDS_QUICK,
        drive=append_to_own,
    ),
    Scenario(
        name="append-one",
        summary="durable appends, all connections to the same stream, one in flight each",
        operation="append",
        latency=ACKNOWLEDGED,
        sizes=replace(APPENDS, rounds=3),
        quick=replace(APPENDS_QUICK, rounds=1),
        drive=append_to_one,
    ),
    Scenario(
        name="append-serial",
        summary="durable appends, one after the other: how long a single one takes",
        operation="append",
        latency=ACKNOWLEDGED,
        sizes=replace(APPENDS, connections=1, rounds=3),
        quick=replace(APPENDS_QUICK, connections=1, rounds=1),
        drive=append_to_own,
    ),
    # Four: enough for the server to receive bodies while it writes and syncs others, and few
    # enough to be what a handful of uploads are.
    Scenario(
        name="append-large",
        summary="durable appends of 1 MiB, each connection to a stream of its own",
        operation="append",
        latency=ACKNOWLEDGED,
        sizes=replace(
            APPENDS, connections=4, message_bytes=1 << 20, operations_max=2_000, rounds=3
        ),
        quick=replace(APPENDS_QUICK, connections=4, message_bytes=1 << 20, rounds=1),
        drive=append_large,
        yardsticks=(WRITES,),
    ),
    Scenario(
        name="append-json-batch",
        summary="durable appends of arrays of JSON messages, each connection to its own stream",
        operation="message",
        latency=ACKNOWLEDGED,
        sizes=replace(
            APPENDS, connections=16, messages_per_request=100, operations_max=8_000_000, rounds=3
        ),
        quick=replace(APPENDS_QUICK, messages_per_request=100, operations_max=1_000_000, rounds=1),
        drive=append_json,
    ),
    Scenario(
        name="producer",
        summary="durable appends by idempotent producers, five in flight each",
        operation="append",
        latency="from first sending a request to its acknowledgement",
        sizes=replace(APPENDS, connections=80, streams=16, rounds=3),
        quick=replace(APPENDS_QUICK, connections=20, streams=4, rounds=1),
        drive=produce,
    ),
    Scenario(
        name="read-small",
        summary="catch-up reads of a stream of 1 KB",
        operation="read",
        latency="from sending a request to the end of its answer",
        sizes=READS,
        quick=READS_QUICK,
        drive=read_small,
    ),
    # Two: while one waits for the reader to take what was sent, the server can serve the other.
    Scenario(
        name="read-large",
        summary="catch-up reads of a stream of 64 MiB that was appended in pieces of 1 MiB",
        operation="read",
        latency="from asking for the first byte to having the last one",
        sizes=replace(READS, connections=2, message_bytes=1 << 20, stored_messages=64),
        quick=replace(READS_QUICK, connections=2, message_bytes=1 << 20, stored_messages=8),
        drive=read_large,
        yardsticks=(NGINX,),
    ),
    Scenario(
        name="read-scattered",
        summary="catch-up reads of a stream whose small messages lie among those of many others",
        operation="read",
        latency="from asking for the first byte to having the last one",
        sizes=replace(
            READS,
            connections=4,
            streams=1_001,
            message_bytes=50,
            stored_messages=10_000,
            rounds=2,
            setup_seconds_max=120.0,
        ),
        quick=replace(READS_QUICK, streams=101, message_bytes=50, stored_messages=1_000),
        drive=read_scattered,
    ),
    Scenario(
        name="mixed",
        summary="durable appends at 60 % of what is possible, beside replays and SSE subscribers",
        operation="append",
        latency="from when an append was due to its acknowledgement",
        sizes=replace(APPENDS, warmup_seconds=0.5, measured_seconds=3.0, rounds=3),
        quick=replace(APPENDS_QUICK, rounds=1),
        drive=mixed,
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
    Scenario(
        name="fanout-longpoll",
        summary="long-poll readers of one stream, each back at once; the next message when all are",
        operation="delivery",
        latency="from sending an append to its message at a reader",
        sizes=Sizes(
            connections=1_000,
            message_bytes=100,
            warmup_seconds=1.5,
            measured_seconds=5.0,
            operations_max=2_000_000,
            rounds=3,
        ),
        quick=Sizes(
            connections=100,
            message_bytes=100,
            warmup_seconds=0.2,
            measured_seconds=0.6,
            operations_max=50_000,
            rounds=1,
        ),
        drive=fanout_longpoll,
    ),
    Scenario(
        name="wake-latency",
        summary="one SSE and one long-poll reader; a round trip and a sync between two appends",
        operation="delivery",
        latency="from sending an append to its message at a reader",
        sizes=Sizes(
            connections=2,
            message_bytes=100,
            warmup_seconds=1.0,
            measured_seconds=4.0,
            operations_max=200_000,
            rounds=5,
        ),
        quick=Sizes(
            connections=2,
            message_bytes=100,
            warmup_seconds=0.1,
            measured_seconds=0.4,
            operations_max=50_000,
            rounds=1,
        ),
        drive=wake_latency,
        merit="p50",
    ),
    Scenario(
        name="idle",
        summary="SSE readers that wait for nothing, spread over the streams",
        operation="reader",
        latency="from a reader's request to the head of its answer",
        sizes=Sizes(
            connections=10_000,
            streams=100,
            message_bytes=100,
            warmup_seconds=0,
            measured_seconds=0,
            operations_max=10_000,
            rounds=3,
        ),
        quick=Sizes(
            connections=200,
            streams=10,
            message_bytes=100,
            warmup_seconds=0,
            measured_seconds=0,
            operations_max=200,
            rounds=1,
        ),
        drive=idle,
        merit="RssAnon a reader",
    ),
    Scenario(
        name="slow-readers",
        summary="deliveries to 50 SSE readers, beside these that do not read what they asked for",
        operation="delivery",
        latency="from sending an append to its event at a good reader",
        sizes=Sizes(
            connections=1_000,
            message_bytes=20_000,
            warmup_seconds=5.0,
            measured_seconds=3.0,
            operations_max=100_000,
            rounds=2,
        ),
        quick=Sizes(
            connections=50,
            message_bytes=20_000,
            warmup_seconds=0.2,
            measured_seconds=0.4,
            operations_max=50_000,
            rounds=1,
        ),
        drive=slow_readers,
        merit="p99",
    ),
    Scenario(
        name="subscribed",
        summary="durable appends as `append-small`, beside very many subscriptions with patterns",
        operation="append",
        latency=ACKNOWLEDGED,
        sizes=replace(APPENDS, streams=SUBSCRIPTIONS, rounds=3),
        quick=replace(APPENDS_QUICK, streams=SUBSCRIPTIONS_QUICK, rounds=1),
        drive=append_to_own,
        conduct=subscribed_turn,
    ),
    Scenario(
        name="many-streams",
        summary="durable appends to 1,000 hot streams among very many, one in flight each",
        operation="append",
        latency="from sending a request to its acknowledgement",
        sizes=Sizes(
            connections=64,
            message_bytes=100,
            warmup_seconds=1.5,
            measured_seconds=5.0,
            operations_max=2_000_000,
            rounds=1,
            streams=1_000_000,
            setup_seconds_max=180.0,
        ),
        quick=Sizes(
            connections=16,
            message_bytes=100,
            warmup_seconds=0.1,
            measured_seconds=0.3,
            operations_max=50_000,
            rounds=1,
            streams=3_000,
        ),
        drive=many_streams,
        conduct=many_streams_turn,
    ),
    Scenario(
        name="restart",
        summary="start again after SIGKILL under load, with very many streams in the store",
        operation="restart",
        latency="from starting the program to the first stream that can be read",
        sizes=Sizes(
            connections=64,
            message_bytes=100,
            warmup_seconds=0.5,
            measured_seconds=1.5,
            operations_max=5,
            rounds=1,
            streams=1_000_000,
            setup_seconds_max=180.0,
        ),
        quick=Sizes(
            connections=16,
            message_bytes=100,
            warmup_seconds=0.1,
            measured_seconds=0.3,
            operations_max=2,
            rounds=1,
            streams=3_000,
        ),
        drive=restart,
        conduct=restart_turn,
    ),
)

SCENARIOS = {scenario.name: scenario for scenario in _ALL}
