"""All metrics of the daemon's own, made of its counts and its state when somebody asks.

Names follow Prometheus' conventions: base units, `_total` for what only grows. What a metric means
is said here, in its help text, which is what an operator finds.
"""

from collections import Counter
from collections.abc import Iterator
from platform import python_version

from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric

import durable_streamsd
from durable_streamsd.express.lane import Lane
from durable_streamsd.metrics.families import (
    PREFIX,
    counter,
    counters,
    gauge,
    gauges,
    histogram,
    histograms,
)
from durable_streamsd.metrics.operations import Operation
from durable_streamsd.metrics.survey import Survey
from durable_streamsd.services import Services

__all__ = ["families"]

VERSION = durable_streamsd.__version__  # which is looked up each time


def families(services: Services, lane: Lane, survey: Survey) -> Iterator[Metric]:
    """Every family. On the loop's thread."""
    yield from _state(services)
    answering, lagging = lane.look()
    for operation in services.counts.operations.all:
        answering[operation] += operation.in_general_lane
    yield from _requests(services, answering)
    yield from _readers(services, answering, lagging)
    yield from _commits(services)
    yield from _store(services)
    yield from _disk(services, survey)
    yield from _webhooks(services)


def _state(services: Services) -> Iterator[Metric]:
    store, context = services.store, services.context
    yield InfoMetricFamily(
        f"{PREFIX}build",
        "Versions of the daemon and of Python.",
        value={"version": VERSION, "python": python_version()},
    )
    ready = not (store.latched or context.draining)
    yield gauge("ready", "1 if writes are taken, as /readyz says.", ready)
    yield gauge(
        "latched", "1 after a write failed: no more are taken until a restart.", store.latched
    )
    yield gauge("draining", "1 while the daemon stops.", context.draining)
    yield gauge(
        "disk_full", "1 while the disk is full: deletes are taken, data is not.", store.full
    )


def _requests(services: Services, answering: Counter[Operation]) -> Iterator[Metric]:
    operations = services.counts.operations.all
    yield counters(
        "http_requests",
        "Requests that were answered; an event stream when it begins.",
        ("operation", "status"),
        (
            ((operation.name, str(status)), count)
            for operation in operations
            for status, count in enumerate(operation.statuses)
            if count
        ),
    )
    yield counters(
        "http_requests_broken",
        "Requests whose client went away before it was answered.",
        ("operation",),
        (((operation.name,), operation.broken) for operation in operations),
    )
    yield gauges(
        "http_requests_in_flight",
        "Requests that are being answered, open event streams among them.",
        ("operation",),
        (((operation.name,), answering[operation]) for operation in operations),
    )
    yield histograms(
        "http_request_duration_seconds",
        "From when a request is here as a whole to its answer (live reads: with their wait; event "
        "streams: to their beginning). Above 1,000 requests a second of an operation every second, "
        "fourth, ... one is measured, and counts for as many.",
        ("operation", "status"),
        (
            ((operation.name, str(status)), seconds)
            for operation in operations
            for status, seconds in operation.durations_s.items()
        ),
    )
    for name, what in (("request", "Bodies of requests"), ("response", "Bodies of answers")):
        yield histograms(
            f"http_{name}_size_bytes",
            f"{what}, of the requests whose duration is measured.",
            ("operation",),
            (
                ((operation.name,), getattr(operation, f"{name}_bytes"))
                for operation in operations
                if operation.durations_s
            ),
        )
    refusals = services.counts.refusals
    yield counters(
        "problems",
        "Error answers, by their code.",
        ("code",),
        (((code,), count) for code, count in refusals.codes.items()),
    )
    yield counters(
        "limited",
        "How often a limit turned somebody away.",
        ("limit",),
        (((limit,), count) for limit, count in refusals.limits.items()),
    )


def _readers(services: Services, answering: Counter[Operation], lagging: int) -> Iterator[Metric]:
    counts = services.counts
    operations = counts.operations
    yield gauge("connections", "Open connections.", services.connections.count)
    yield gauge(
        "connections_max",
        "Connections above which new ones are turned away.",
        services.settings.connections_max,
    )
    yield gauges(
        "waiters",
        "Live readers: long-polls that wait, and open event streams.",
        ("kind",),
        (
            (("long-poll",), answering[operations.long_poll]),
            (("sse",), answering[operations.sse]),
        ),
    )
    yield gauge(
        "lagging_readers",
        "Connections whose client has not taken what was written, and that are written no more.",
        lagging + counts.lagging,
    )
    yield counter("events_sent", "Writes to event streams.", counts.events)
    yield counter("events_sent_bytes", "Bytes of those.", counts.event_bytes)
    yield gauge(
        "unsent_answers_bytes",
        "Memory set aside for large answers that readers have not taken.",
        services.answers.outstanding_bytes,
    )
    yield gauges(
        "waiting_requests",
        "Requests that wait for a limit: memory for large bodies or answers, or for the store to "
        "take more.",
        ("limit",),
        (
            (("bodies_bytes_max",), services.bodies.waiting),
            (("answers_bytes_max",), services.answers.waiting),
            (("unindexed_bytes_max",), services.room.waiting),
        ),
    )


def _commits(services: Services) -> Iterator[Metric]:
    commits = services.counts.commits
    yield histogram("commit_batch_records", "Records that share one sync.", commits.records)
    yield histogram(
        "commit_batch_bytes", "Bytes of the log that share one sync.", commits.size_bytes
    )
    yield histogram("commit_sync_seconds", "How long fdatasync took.", commits.sync_s)
    yield histogram("commit_seconds", "How long writing and syncing a batch took.", commits.write_s)
    yield histogram(
        "ack_seconds",
        "From when a change was accepted to when its client was told that it is durable.",
        commits.ack_s,
    )
    yield counters(
        "commit_failures",
        "Batches that did not become durable.",
        ("reason",),
        (((reason,), count) for reason, count in commits.failures.items()),
    )


def _store(services: Services) -> Iterator[Metric]:
    store = services.store
    reads = store.reads
    yield counters(
        "store_reads",
        "Reads by where their bytes were: tail-cache, gathered (put together before), page-cache, "
        "or thread (the disk, or too much for the loop).",
        ("source",),
        (
            (("tail-cache",), reads.memory),
            (("gathered",), reads.gathered),
            (("page-cache",), reads.page_cache),
            (("thread",), reads.thread),
        ),
    )
    yield gauge("tail_cache_bytes", "Recent payload in memory.", store.tail_cache_bytes)
    yield gauge("resident_streams", "Streams in memory.", store.resident_streams)
    lag = store.index_lag()
    yield gauge("index_lag_records", "Durable records that the index lacks.", lag.records)
    yield gauge("index_lag_bytes", "Bytes of the log that the index lacks.", lag.size_bytes)
    yield gauge("index_lag_seconds", "Age of the oldest batch that the index lacks.", lag.seconds)


def _disk(services: Services, survey: Survey) -> Iterator[Metric]:
    limits = services.store.limits
    yield gauge("segments", "Files of the log.", survey.segments)
    yield gauge("segments_bytes", "Disk space of those.", survey.segments_bytes)
    yield gauge("live_bytes", "Payload in them that somebody can read.", survey.live_bytes)
    dead_bytes = max(survey.segments_bytes - survey.live_bytes, 0)
    yield gauge(
        "dead_bytes",
        "The rest of them: what compaction can give back, heads, and space that is still empty.",
        dead_bytes,
    )
    reclaimed = services.store.reclaimed
    yield counter("compaction_removed_segments", "Files compacted away.", reclaimed.removed)
    yield counter("compaction_removed_bytes", "What those had.", reclaimed.removed_bytes)
    yield counter("compaction_written_bytes", "What was written for them.", reclaimed.written_bytes)
    yield gauge("disk_size_bytes", "Of the file system of the data directory.", survey.disk_bytes)
    yield gauge("disk_free_bytes", "What the daemon may still use of it.", survey.free_bytes)
    yield gauge(
        "disk_reserve_bytes",
        "What is kept back for deletes; writing resumes with twice as much free.",
        limits.reserve_bytes,
    )


def _webhooks(services: Services) -> Iterator[Metric]:
    deliveries = services.counts.deliveries
    subscriptions: GaugeMetricFamily = gauge(
        "subscriptions", "Subscriptions there are.", len(services.desk.registry.by_id)
    )
    yield subscriptions
    yield counters(
        "webhook_deliveries",
        "Webhooks by outcome: done (acknowledged), taken (acknowledged later) or failed.",
        ("outcome",),
        (((outcome,), count) for outcome, count in deliveries.outcomes.items()),
    )
    yield histogram("webhook_delivery_seconds", "How long a webhook took.", deliveries.duration_s)
