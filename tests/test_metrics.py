"""What `/metrics` says after requests whose effects are known, in both lanes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import promql_parser
import pytest
import yaml
from daemon import Daemon
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse_text
from raw_http import RawClient, encode
from simple_http import ask, create, wait_until

from durable_streamsd.core.problems import Code
from durable_streamsd.metrics.commits import Arrivals
from durable_streamsd.metrics.histogram import SECONDS, Histogram
from durable_streamsd.metrics.operations import MEASURED_PER_S, STRIDE_MAX, Operation, Operations
from durable_streamsd.metrics.refusals import LIMITS

ROOT = Path(__file__).resolve().parent.parent
STREAM = "/v1/stream/a"
PATIENCE_S = 20
OWN = "durable_streamsd_"

Labels = tuple[tuple[str, str], ...]


class Scrape:
    """One answer of `/metrics`, by sample."""

    def __init__(self, daemon: Daemon) -> None:
        answer = ask(daemon, "GET", "/metrics")
        assert answer.status == 200
        assert str(answer.headers["Content-Type"]).startswith("text/plain; version=")
        self.families: list[Metric] = list(parse_text(answer.body.decode()))
        self.samples = {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in self.families
            for sample in family.samples
        }

    def of(self, name: str, **labels: str) -> float:
        """The value of one of the daemon's own samples; 0 if it is not there."""
        return self.samples.get((OWN + name, tuple(sorted(labels.items()))), 0)

    @property
    def names(self) -> set[str]:
        """Of samples that are there, or would be as soon as there is something to say."""
        found = {name for name, _ in self.samples}
        for family in self.families:
            if family.type == "histogram":
                found |= {f"{family.name}_{part}" for part in ("bucket", "sum", "count")}
            elif family.type == "counter":
                found.add(f"{family.name}_total")
        return found


@pytest.fixture(scope="module", params=["on", "off"], ids=["express", "general"])
def daemon(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Daemon]:
    """A daemon of either lane, with small limits."""
    data_dir = tmp_path_factory.mktemp("metrics") / "data"
    env = {"DURABLE_STREAMSD_EXPRESS_LANE": request.param, "DURABLE_STREAMSD_MAX_BODY": "1KiB"}
    with Daemon(data_dir, env=env) as running:
        assert create(running, STREAM).status == 201
        yield running


def test_requests_are_counted_by_operation_and_status(daemon: Daemon) -> None:
    """Each answer counts once, under what was asked and what was said."""
    text = {"Content-Type": "text/plain"}
    before = Scrape(daemon)
    for _ in range(3):
        assert ask(daemon, "POST", STREAM, b"12345", text).status == 204
    assert ask(daemon, "POST", "/v1/stream/none", b"x", text).status == 404
    assert ask(daemon, "GET", STREAM + "?offset=-1").status == 200
    assert ask(daemon, "GET", STREAM + "?offset=-1&live=long-poll").status == 200
    assert ask(daemon, "HEAD", STREAM).status == 200
    assert ask(daemon, "OPTIONS", STREAM).status == 204
    assert ask(daemon, "GET", "/readyz").status == 200
    assert ask(daemon, "GET", "/v1/stream/__ds/streams").status == 200
    assert ask(daemon, "GET", "/nowhere").status == 404
    assert create(daemon, "/v1/stream/gone").status == 201
    assert ask(daemon, "DELETE", "/v1/stream/gone").status == 204
    after = Scrape(daemon)
    for operation, status, count in (
        ("append", 204, 3),
        ("append", 404, 1),
        ("read", 200, 1),
        ("long-poll", 200, 1),
        ("head", 200, 1),
        ("preflight", 204, 1),
        ("health", 200, 1),
        ("control", 200, 1),
        ("other", 404, 1),
        ("create", 201, 1),
        ("delete", 204, 1),
        ("metrics", 200, 1),
    ):
        labels = {"operation": operation, "status": str(status)}
        for name in ("http_requests_total", "http_request_duration_seconds_count"):
            assert after.of(name, **labels) - before.of(name, **labels) == count, (name, labels)
    sizes = "http_request_size_bytes"
    assert (
        after.of(f"{sizes}_sum", operation="append") - before.of(f"{sizes}_sum", operation="append")
        == 16
    )
    problems = "problems_total"
    assert after.of(problems, code="not-found") - before.of(problems, code="not-found") == 1
    assert after.of("store_reads_total", source="tail-cache") > 0
    assert after.of("commit_batch_records_sum") - before.of("commit_batch_records_sum") >= 5
    acks = after.of("ack_seconds_count") - before.of("ack_seconds_count")
    assert acks == 5
    for name in ("commit_sync_seconds", "commit_seconds", "commit_batch_bytes"):
        assert after.of(f"{name}_count") > before.of(f"{name}_count"), name


def test_a_limit_that_turns_away_is_named(daemon: Daemon) -> None:
    """A body past the limit counts for the limit and as an answer, and is logged."""
    before = Scrape(daemon)
    text = {"Content-Type": "text/plain"}
    assert ask(daemon, "POST", STREAM, bytes(2_000), text).status == 413
    after = Scrape(daemon)
    limit = {"limit": "body_bytes_max"}
    assert after.of("limited_total", **limit) - before.of("limited_total", **limit) == 1
    label = {"operation": "append", "status": "413"}
    assert after.of("http_requests_total", **label) - before.of("http_requests_total", **label) == 1
    assert "limit=body_bytes_max count=" in daemon.stderr_path.read_text()


def test_what_cannot_be_read_is_counted(daemon: Daemon) -> None:
    """A request that is not HTTP has a status, and no operation."""
    label = {"operation": "unread", "status": "400"}
    before = Scrape(daemon).of("http_requests_total", **label)
    with RawClient(daemon.url) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n")
        assert client.answer().status == 400
    assert Scrape(daemon).of("http_requests_total", **label) - before == 1


@pytest.mark.parametrize(("kind", "live"), [("long-poll", "long-poll"), ("sse", "sse")])
def test_waiters_come_and_go(daemon: Daemon, kind: str, live: str) -> None:
    """Live readers are told by kind while they wait, and no more when they have gone."""
    assert Scrape(daemon).of("waiters", kind=kind) == 0
    with RawClient(daemon.url) as client:
        client.send(encode("GET", f"{STREAM}?offset=now&live={live}"))
        wait_until(lambda: Scrape(daemon).of("waiters", kind=kind) == 1, PATIENCE_S, "no waiter")
        assert Scrape(daemon).of("http_requests_in_flight", operation=kind) == 1
        client.vanish()
    wait_until(lambda: Scrape(daemon).of("waiters", kind=kind) == 0, PATIENCE_S, "it stays")
    if kind == "long-poll":
        assert Scrape(daemon).of("http_requests_broken_total", operation=kind) == 1


def test_a_reader_that_takes_nothing_lags(daemon: Daemon) -> None:
    """A client that does not read what it asked for is told as lagging, until it is gone."""
    path = "/v1/stream/long"
    text = {"Content-Type": "text/plain"}
    assert create(daemon, path).status == 201
    for _ in range(100):
        assert ask(daemon, "POST", path, bytes(1_000), text).status == 204
    assert Scrape(daemon).of("lagging_readers") == 0
    with RawClient(daemon.url) as client:
        read = encode("GET", f"{path}?offset=-1")

        def lags() -> bool:
            client.send(read * 20)
            return Scrape(daemon).of("lagging_readers") == 1

        wait_until(lags, PATIENCE_S, "nobody lags")
        client.vanish()
    wait_until(lambda: Scrape(daemon).of("lagging_readers") == 0, PATIENCE_S, "it stays")


def test_the_state_of_the_store_is_told(daemon: Daemon) -> None:
    """State, disk and index are there, and plausible."""
    scrape = Scrape(daemon)
    assert scrape.of("ready") == 1
    for name in ("latched", "draining", "disk_full"):
        assert (OWN + name, ()) in scrape.samples
        assert scrape.of(name) == 0
    assert 0 < scrape.of("disk_free_bytes") < scrape.of("disk_size_bytes")
    assert scrape.of("disk_reserve_bytes") > 0
    assert scrape.of("segments") >= 1
    assert scrape.of("segments_bytes") > 0
    assert scrape.of("resident_streams") >= 1
    assert scrape.of("connections") >= 1
    assert scrape.of("tail_cache_bytes") > 0
    text = {"Content-Type": "text/plain"}
    assert ask(daemon, "POST", STREAM, b"x", text).status == 204
    lags = [Scrape(daemon).of("index_lag_records")]
    wait_until(
        lambda: Scrape(daemon).of("index_lag_records") == 0, PATIENCE_S, "the index never follows"
    )
    assert lags[0] >= 0
    assert Scrape(daemon).of("index_lag_seconds") == 0


def test_every_code_and_limit_is_there_from_the_start(daemon: Daemon) -> None:
    """A rate can be taken of what has not happened yet."""
    samples = Scrape(daemon).samples
    for code in Code:
        assert (OWN + "problems_total", (("code", code.code),)) in samples
    for limit in LIMITS:
        assert (OWN + "limited_total", (("limit", limit),)) in samples


def test_openmetrics_is_spoken_to_who_asks_for_it(daemon: Daemon) -> None:
    """The Accept header chooses the format; both are valid, and have the process's metrics."""
    accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
    answer = ask(daemon, "GET", "/metrics", headers=accept)
    assert answer.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    families = parse_openmetrics(answer.body.decode())  # type: ignore[no-untyped-call]
    names = {family.name for family in families}
    assert {"process_cpu_seconds", "python_gc_collections", "durable_streamsd_build"} <= names
    for strange in ("application/openmetrics-text; version=x", "application/openmetrics-text;\xe9"):
        assert ask(daemon, "GET", "/metrics", headers={"Accept": strange}).status == 200
    head = ask(daemon, "HEAD", "/metrics")
    assert (head.status, head.body) == (200, b"")
    assert ask(daemon, "POST", "/metrics", b"x").status == 405


def test_health_is_the_same_in_both_lanes(daemon: Daemon) -> None:
    """The process is up, and takes writes."""
    for path in ("/health", "/healthz", "/readyz"):
        answer = ask(daemon, "GET", path)
        assert (answer.status, answer.body) == (200, b"ok\n")


# What operators are given to watch it with


def expressions() -> Iterator[tuple[str, str]]:
    """Every query of the dashboard and of the alerts, with where it stands."""
    rules = yaml.safe_load((ROOT / "packaging" / "prometheus-alerts.yml").read_text())
    for group in rules["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]
    dashboard = json.loads((ROOT / "packaging" / "grafana-dashboard.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            call, _, rest = variable["definition"].partition("(")
            assert call == "label_values"
            yield variable["name"], rest.partition(",")[0]


def selectors(expression: str) -> list[promql_parser.VectorSelector]:
    """The metrics that a query asks for. Raises ValueError if it is none."""
    found = []

    def visit(node: promql_parser.Expr) -> bool:
        if isinstance(node, promql_parser.MatrixSelector):
            found.append(node.vector_selector)
        elif isinstance(node, promql_parser.VectorSelector):
            found.append(node)
        return True

    plain = expression.replace("$__rate_interval", "5m").replace("$instance", ".+")
    promql_parser.walk(promql_parser.parse(plain), visit)
    return found


def test_dashboard_and_alerts_ask_for_what_there_is(daemon: Daemon) -> None:
    """Every query parses, and every metric in it is one that a daemon has."""
    names = Scrape(daemon).names | {"up"}
    asked = set()
    for where, expression in expressions():
        metrics = {str(selector.name) for selector in selectors(expression)}
        assert metrics, where
        assert metrics <= names, (where, metrics - names)
        asked |= metrics
    own = {name for name in names if name.startswith(OWN) and not name.endswith("_created")}
    parts = ("_bucket", "_sum", "_count")
    told = {family for name in asked for family in {name, *(name.removesuffix(p) for p in parts)}}
    forgotten = {
        name for name in own if not {name, *(name.removesuffix(part) for part in parts)} & told
    }
    assert forgotten == {OWN + "commit_seconds" + part for part in parts} | {
        OWN + name for name in UNWATCHED
    }, forgotten


UNWATCHED = ("draining", "events_sent_bytes_total", "subscriptions")
"""What is not on the dashboard. Whoever adds a metric puts it there, or here."""


def test_labels_in_alerts_are_ones_that_there_are() -> None:
    """An alert on a code, an outcome or an operation that does not exist would never fire."""
    known = {
        "code": {code.code for code in Code},
        "operation": {operation.name for operation in Operations().all},
        "outcome": {"done", "taken", "failed"},
        "source": {"tail-cache", "gathered", "page-cache", "thread"},
    }
    for where, expression in expressions():
        for selector in selectors(expression):
            for matcher in selector.matchers.matchers:
                for value in matcher.value.split("|"):
                    assert value in known.get(matcher.name, {value}), (where, value)


# The parts that count


def test_a_histogram_counts_what_is_at_most_a_bound() -> None:
    """A value on a bound is below it, one above all has a place of its own."""
    histogram = Histogram((1, 2))
    for value in (0.5, 1, 2, 3):
        histogram.observe(value)
    histogram.observe(2, 10)
    assert histogram.counts == [2, 11, 1]
    assert histogram.sum == 26.5


@pytest.mark.parametrize("per_s", [1, MEASURED_PER_S - 1, 50 * MEASURED_PER_S, 10**9])
def test_sampled_requests_stand_for_all(per_s: int) -> None:
    """However many are not measured, those that are count for them."""
    operation = Operation("append")
    operation.statuses[204] = per_s
    operation.tick()
    measured = weights = 0
    rounds = 4 * STRIDE_MAX
    for _ in range(rounds + 1):
        operation.left -= 1
        if not operation.left:
            measured += 1
            weights += operation.sample()
    assert rounds - STRIDE_MAX < weights <= rounds + 1
    assert measured <= max(2, 1 + rounds * MEASURED_PER_S // per_s) or per_s > 10**8


def test_waits_are_counted_for_everybody_however_slow_the_disk() -> None:
    """Every waiter of a batch is entered once, and a long wait makes no long list."""
    arrivals = Arrivals()
    for number in range(1, 100_001):
        arrivals.note(number / 1_000, number, last=number == 100_000)
    waits = Histogram(SECONDS)
    arrivals.told(100.0, waits)
    assert sum(waits.counts) == 100_000
    assert waits.sum == pytest.approx(sum(range(100_000)) / 1_000, rel=0.1)
    assert len(arrivals._turns) < 250
