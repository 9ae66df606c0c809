"""POST: the order of the checks, and what each outcome looks like to a client."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from test_core_driving import Driver, Exchange

from durable_streamsd.core.effects import Durable
from durable_streamsd.core.offsets import format_offset
from storage.errors import Latched, OutOfSpace
from storage.limits import Limits


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Driver]:
    """A driver with an empty text stream `t` and an empty JSON stream `j`."""
    with Driver(tmp_path / "data") as opened:
        opened.create(b"t")
        opened.create(b"j", "application/json")
        yield opened


def produce(driver: Driver, epoch: int, seq: int, body: bytes = b"x", **headers: str) -> Exchange:
    """POST to `t` as producer `p`."""
    numbers = {"Producer_Epoch": str(epoch), "Producer_Seq": str(seq)}
    return driver.append(b"t", body, Producer_Id="p", **numbers, **headers)


def test_append(driver: Driver) -> None:
    """New data without a producer is 204, with the tail under both of its names."""
    exchange = driver.append(b"t", b"hello")
    assert exchange.status == 204
    assert exchange.answer.body is None
    assert exchange.next_offset == exchange.fields["X-Offset"].encode()
    assert driver.get(b"t", b"offset=" + exchange.next_offset).answer.body == b""
    assert driver.get(b"t").answer.body == b"hello"
    assert "Stream-Closed" not in exchange.fields


def test_media_types_are_compared_without_case_and_parameters(driver: Driver) -> None:
    """What follows the media type does not make it another one."""
    assert driver.append(b"t", b"x", "TEXT/Plain; charset=utf-8").status == 204


@pytest.mark.parametrize(
    ("headers", "body", "code"),
    [
        ({"Content-Type": "text/plain"}, b"", "body-required"),
        ({"Stream-Closed": "yes"}, b"", "body-required"),
        ({}, b"x", "content-type-required"),
        ({"Content-Type": "text"}, b"x", "bad-content-type"),
        ({"Content-Type": "text/plain", "Producer-Id": "p"}, b"x", "bad-producer"),
        ({"Content-Type": "text/plain", "Stream-Seq": ""}, b"x", "bad-stream-seq"),
        ({"Stream-Closed": "true", "Producer-Id": "p"}, b"", "bad-producer"),
    ],
)
def test_malformed_requests(
    driver: Driver, headers: dict[str, str], body: bytes, code: str
) -> None:
    """What is malformed is 400, on a stream that does not exist too."""
    for path in (b"t", b"missing"):
        exchange = driver.request("POST", path, headers=headers, body=body)
        assert (exchange.status, exchange.code) == (400, code)


def test_missing_stream(driver: Driver) -> None:
    """Nothing is created by appending or closing."""
    assert driver.append(b"missing", b"x").code == "not-found"
    assert driver.close_stream(b"missing").status == 404


def test_close_only(driver: Driver) -> None:
    """Closing is idempotent, and does not look at a Content-Type that comes with no body."""
    driver.append(b"t", b"x")
    for _ in range(2):
        exchange = driver.append(b"t", b"", "image/png", Stream_Closed="TRUE")
        assert exchange.status == 204
        assert exchange.fields["Stream-Closed"] == "true"
        assert exchange.next_offset == format_offset(1, 1)


def test_append_and_close(driver: Driver) -> None:
    """The last data and the end arrive together; doing it again is refused."""
    assert driver.append(b"t", b"x", Stream_Closed="true").fields["Stream-Closed"] == "true"
    assert driver.get(b"t").fields["Stream-Closed"] == "true"
    for exchange in (driver.append(b"t", b"x", Stream_Closed="true"), driver.append(b"t", b"y")):
        assert (exchange.status, exchange.code) == (409, "closed")
        assert exchange.fields["Stream-Closed"] == "true"
        assert exchange.next_offset == format_offset(1, 1)
        assert "Producer-Expected-Seq" not in exchange.fields


def test_closed_comes_before_the_content_type(driver: Driver) -> None:
    """A client that would be refused for several reasons learns that the stream has ended."""
    driver.close_stream(b"t")
    assert driver.append(b"t", b"x", "image/png").code == "closed"


def test_content_type_mismatch(driver: Driver) -> None:
    """Data of another type is a conflict."""
    assert driver.append(b"t", b"x", "image/png").code == "content-type-mismatch"


def test_stream_seq(driver: Driver) -> None:
    """Sequence strings increase byte by byte, and belong to the stream, not to a writer."""
    for value, status in (("2", 204), ("10", 409), ("2", 409), ("3", 204), ("a", 204), ("Z", 409)):
        assert driver.append(b"t", b"x", Stream_Seq=value).status == status, value
    assert produce(driver, 0, 0, Stream_Seq="Z").code == "stream-seq-regression"


def test_producer(driver: Driver) -> None:
    """New data 200, a retry 204 with the highest seq accepted, and it is there once."""
    for seq in range(3):
        exchange = produce(driver, 0, seq)
        assert (exchange.status, exchange.answer.body) == (200, b"")
        assert exchange.fields["Producer-Seq"] == str(seq)
    retry = produce(driver, 0, 1)
    assert retry.status == 204
    assert retry.fields["Producer-Epoch"] == "0"
    assert retry.fields["Producer-Seq"] == "2"
    assert retry.next_offset == format_offset(1, 3)
    assert driver.get(b"t").answer.body == b"xxx"


def test_a_retry_does_not_meet_its_own_stream_seq(driver: Driver) -> None:
    """Deduplication comes before Stream-Seq."""
    assert produce(driver, 0, 0, Stream_Seq="5").status == 200
    assert produce(driver, 0, 0, Stream_Seq="5").status == 204


def test_producer_gap(driver: Driver) -> None:
    """A gap names what is expected and what came, also for a producer never seen."""
    exchange = produce(driver, 0, 2)
    assert (exchange.status, exchange.code) == (409, "sequence-gap")
    assert exchange.fields["Producer-Expected-Seq"] == "0"
    assert exchange.fields["Producer-Received-Seq"] == "2"
    produce(driver, 0, 0)
    assert produce(driver, 0, 5).fields["Producer-Expected-Seq"] == "1"


def test_producer_epochs(driver: Driver) -> None:
    """A higher epoch takes over at seq 0 and fences the lower one."""
    produce(driver, 1, 0)
    wrong = produce(driver, 2, 1)
    assert (wrong.status, wrong.code) == (400, "epoch-start")
    assert produce(driver, 2, 0).status == 200
    stale = produce(driver, 1, 1)
    assert (stale.status, stale.code) == (403, "stale-epoch")
    assert stale.fields["Producer-Epoch"] == "2"


def test_a_conflict_that_is_no_gap_stops_a_producer(driver: Driver) -> None:
    """Every 409 carries both seqs, equal unless it is a gap: else the client sends for ever."""
    produce(driver, 0, 0)
    numbers = {"Producer_Id": "p", "Producer_Epoch": "0", "Producer_Seq": "1"}
    mismatch = driver.append(b"t", b"x", "image/png", **numbers)
    assert mismatch.code == "content-type-mismatch"
    driver.close_stream(b"t")
    closed = produce(driver, 0, 1)
    assert closed.code == "closed"
    for exchange in (mismatch, closed):
        assert exchange.fields["Producer-Expected-Seq"] == "1"
        assert exchange.fields["Producer-Received-Seq"] == "1"


def test_producer_closes(driver: Driver) -> None:
    """The tuple that closed may repeat itself with any body; a stale epoch is told of the end."""
    assert produce(driver, 1, 0, Stream_Closed="true").status == 200
    for body in (b"x", b"other", b""):
        retry = produce(driver, 1, 0, body, Stream_Closed="true")
        assert retry.status == 204
        assert retry.fields["Stream-Closed"] == "true"
    for epoch, seq in ((0, 0), (1, 1), (2, 0)):
        assert produce(driver, epoch, seq).code == "closed"


def test_producer_closes_without_data(driver: Driver) -> None:
    """A producer's close-only is 204 and advances its seq."""
    produce(driver, 0, 0)
    exchange = produce(driver, 0, 1, b"", Stream_Closed="true")
    assert exchange.status == 204
    assert exchange.fields["Producer-Seq"] == "1"


def test_producer_after_a_restart(driver: Driver) -> None:
    """A producer that is only in the index is loaded before the store decides."""
    produce(driver, 0, 0)
    driver.reopen()
    exchange = produce(driver, 0, 0)
    assert exchange.effects == ["Resident", "Offload"]
    assert exchange.status == 204
    assert produce(driver, 0, 1).effects == ["Durable"]


@pytest.mark.parametrize("body", [b"{", b"1 2", b"NaN", b"\xff", b"\xef\xbb\xbf1", b" "])
def test_bad_json(driver: Driver, body: bytes) -> None:
    """What is not JSON is 400, says why, and appends nothing."""
    exchange = driver.append(b"j", body, "application/json")
    assert (exchange.status, exchange.code) == (400, "bad-json")
    assert driver.get(b"j").answer.body == b"[]"


def test_json_is_flattened_by_one_level(driver: Driver) -> None:
    """An array is a batch of messages, kept byte for byte; an empty one is refused."""
    driver.append(b"j", b'[{"a": 1, "a":2} , [3]]', "application/json; charset=utf-8")
    driver.append(b"j", b'"\\ud800"', "application/json")
    assert driver.get(b"j").answer.body == b'[{"a": 1, "a":2},[3],"\\ud800"]'
    assert driver.append(b"j", b"[ ]", "application/json").code == "empty-array"


def test_appends_wait_for_room(tmp_path: Path) -> None:
    """When the store is full of what is not yet written, an append waits for its turn."""
    limits = Limits(reserve_bytes=4_096, zero_ahead_bytes=0, batch_records_max=1)
    with Driver(tmp_path / "data", limits=limits) as driver:
        driver.create(b"a")
        driver.held = (Durable,)
        first = driver.append(b"a", b"1")
        second = driver.append(b"a", b"2")
        assert second.effects[0] == "Room"
        assert driver.append(b"missing", b"2").status == 404
        driver.store.commit()
        assert first.advance().status == second.advance().status == 204


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (OutOfSpace("full"), 507, "out-of-space"),
        (Latched("broken"), 503, "outcome-unknown"),
    ],
)
def test_failed_commit(driver: Driver, error: Exception, status: int, code: str) -> None:
    """A batch that fails is told apart by what became of it, and says when to try again."""
    driver.held = (Durable,)
    exchange = driver.append(b"t", b"x").advance(error=error)
    assert (exchange.status, exchange.code) == (status, code)
    assert int(exchange.fields["Retry-After"]) > 0


def test_refused_writes(driver: Driver) -> None:
    """A latched store answers appends at once, and goes on being read."""
    driver.store.latched = True
    assert driver.append(b"t", b"x").code == "outcome-unknown"
    assert driver.get(b"t").status == 200
    driver.store.latched = False


def test_a_heavy_body_is_framed_elsewhere(driver: Driver) -> None:
    """Bodies that take long to split do so in a worker thread, and are judged in the same order."""
    driver.create(b"heavy", "application/json")
    many = b"[" + b"0," * 70_000 + b"0]"
    for body, code in ((many, "too-many-messages"), (b'["\\u0041"' + b" " * 70_000, "bad-json")):
        refused = driver.append(b"heavy", body, "application/json")
        assert (refused.effects[0], refused.code) == ("Offload", code)
        created = driver.request(
            "PUT", b"heavier", headers={"Content-Type": "application/json"}, body=body
        )
        assert (created.effects[0], created.code) == ("Offload", code)
    driver.close_stream(b"heavy")
    assert driver.append(b"heavy", many, "application/json").code == "closed"
    driver.create(b"text")
    assert driver.append(b"text", many, "application/json").code == "content-type-mismatch"
    assert driver.append(b"text", many).effects == ["Durable"]
