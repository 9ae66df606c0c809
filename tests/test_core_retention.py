"""Streams that are cut: what readers, forks and caches are told of where they begin."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_core_driving import Driver, Exchange
from test_core_live import controls_of, data_of

from durable_streamsd.core.context import Options
from durable_streamsd.core.effects import Hold, Offload, Send, Wake
from durable_streamsd.core.offsets import START_TOKEN, format_offset
from durable_streamsd.core.retention import RetentionRule, RetentionRules
from durable_streamsd.core.snapshot import SMALL_ANSWER_BYTES

EARLIEST = format_offset(1, 3)
OLDER = [START_TOKEN, format_offset(1, 1), format_offset(1, 2)]
START = [b"", b"offset=-1"]
RULES = (
    RetentionRule("logs/**", bytes=1_000),
    RetentionRule("**", seconds=86_400),
)


@pytest.fixture(params=[False, True], ids=["dispatched", "direct"])
def driver(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Driver]:
    """A driver with the text stream `t`, which held `abcdef` and was cut to `def`."""
    with Driver(tmp_path / "data", direct=request.param) as opened:
        opened.create(b"t", body=b"abcdef")
        cut(opened, b"t", 3)
        yield opened


def cut(driver: Driver, path: bytes, earliest: int) -> None:
    """Drop what a stream has before an offset."""
    stream = driver.store.visible(path)
    assert stream is not None
    driver.store.cut(stream, earliest)
    assert driver.store.commit() is None


def put(driver: Driver, path: bytes, **headers: str) -> Exchange:
    """PUT a text stream; keyword arguments are headers (`Stream_Seq="1"`)."""
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return driver.request("PUT", path, headers={"Content-Type": "text/plain", **fields})


def is_not_retained(exchange: Exchange, earliest: bytes = EARLIEST) -> bool:
    """Whether an answer is a 410 that tells where to go on, and that no cache keeps."""
    document = json.loads(exchange.answer.body or b"")
    return (
        exchange.status == 410
        and document["earliest_offset"] == earliest.decode()
        and exchange.fields["Stream-Earliest-Offset"] == earliest.decode()
        and exchange.fields["Cache-Control"] == "no-store"
        and "ETag" not in exchange.fields
    )


@pytest.mark.parametrize("query", START)
def test_the_start_is_the_earliest_that_is_there(driver: Driver, query: bytes) -> None:
    """Reads from the start begin behind the cut, at the offset that is the earliest."""
    for live in (b"", b"offset=-1&live=long-poll"):
        answer = driver.get(b"t", live or query)
        assert (answer.status, answer.answer.body) == (200, b"def")
        assert answer.next_offset == format_offset(1, 6)
    assert driver.get(b"t", b"offset=" + EARLIEST).answer.body == b"def"
    events = driver.get(b"t", b"offset=-1&live=sse")
    assert data_of(events) == ["def"]


@pytest.mark.parametrize("token", OLDER)
@pytest.mark.parametrize("live", [b"", b"&live=long-poll", b"&live=sse"])
def test_older_offsets_are_gone(driver: Driver, token: bytes, live: bytes) -> None:
    """Who was given an older offset is told that something is missing, and where to go on."""
    refused = driver.get(b"t", b"offset=" + token + live)
    assert refused.code == "offset-not-retained"
    assert is_not_retained(refused)
    driver.reopen()
    assert is_not_retained(driver.get(b"t", b"offset=" + token + live))


def test_an_empty_stream_that_once_had_something(driver: Driver) -> None:
    """A stream that was cut to its end is empty from the start, and goes on from there."""
    cut(driver, b"t", 6)
    answer = driver.get(b"t", b"offset=-1")
    assert (answer.status, answer.answer.body) == (200, b"")
    assert answer.next_offset == format_offset(1, 6)
    assert is_not_retained(driver.get(b"t", b"offset=" + EARLIEST), format_offset(1, 6))
    waiting = driver.get(b"t", b"offset=-1&live=long-poll")
    assert isinstance(waiting.waiting, Wake)
    driver.append(b"t", b"g")
    assert waiting.look_again().answer.body == b"g"


def test_head_tells(driver: Driver) -> None:
    """HEAD shows what is to be kept, and where what is there begins."""
    assert driver.request("HEAD", b"t").fields["Stream-Earliest-Offset"] == EARLIEST.decode()
    put(driver, b"r", Stream_Retain_Bytes="100", Stream_Retain_Seconds="60")
    for _ in range(2):
        fields = driver.request("HEAD", b"r").fields
        assert fields["Stream-Retain-Bytes"] == "100"
        assert fields["Stream-Retain-Seconds"] == "60"
        assert fields["Stream-Earliest-Offset"] == START_TOKEN.decode()
        driver.reopen()
    driver.create(b"plain")
    assert not [name for name in driver.request("HEAD", b"plain").fields if "Ret" in name]


@pytest.mark.parametrize("name", ["Stream-Retain-Bytes", "Stream-Retain-Seconds"])
@pytest.mark.parametrize(
    "value", ["0", "-1", "+1", "01", "1.0", "", " ", "1e3", "1KiB", "1, 2", "9" * 17]
)
def test_malformed_retention(driver: Driver, name: str, value: str) -> None:
    """What is to be kept is a whole number in decimal, and something."""
    refused = put(driver, b"r", **{name.replace("-", "_"): value})
    assert (refused.status, refused.code) == (400, "bad-retention")


def test_a_repeated_put_has_to_ask_for_the_same(driver: Driver) -> None:
    """Retention is a part of what a stream is created with."""
    assert put(driver, b"r", Stream_Retain_Bytes="100").status == 201
    assert put(driver, b"r", Stream_Retain_Bytes="100").status == 200
    for headers in ({}, {"Stream_Retain_Bytes": "101"}, {"Stream_Retain_Seconds": "100"}):
        assert put(driver, b"r", **headers).code == "config-conflict"


def test_rules(tmp_path: Path) -> None:
    """The first rule that matches holds for who does not say; it is no part of what was asked."""
    options = Options(retention_rules=RetentionRules(RULES))
    with Driver(tmp_path / "data", options) as driver:
        for path, headers, expected in (
            (b"logs/web/1", {}, ("1000", None)),
            (b"logs", {}, ("1000", None)),
            (b"chat", {}, (None, "86400")),
            (b"logs/own", {"Stream_Retain_Seconds": "5"}, (None, "5")),
        ):
            for status in (201, 200):
                assert put(driver, path, **headers).status == status
            fields = driver.request("HEAD", path).fields
            found = (fields.get("Stream-Retain-Bytes"), fields.get("Stream-Retain-Seconds"))
            assert found == expected
    with Driver(tmp_path / "data") as driver:
        assert put(driver, b"chat").status == 200, "the rule was taken away, the stream was not"
        assert driver.request("HEAD", b"chat").fields["Stream-Retain-Seconds"] == "86400"


def test_tags_change_when_the_start_moves(driver: Driver) -> None:
    """A cache that asks whether its answer from the start is still right is told that it is not."""
    tag = driver.get(b"t").fields["ETag"]
    assert driver.get(b"t", If_None_Match=tag).status == 304
    cut(driver, b"t", 4)
    fresh = driver.get(b"t", If_None_Match=tag)
    assert (fresh.status, fresh.answer.body) == (200, b"ef")
    assert fresh.fields["ETag"] != tag


def test_no_copy_outlives_its_time(driver: Driver) -> None:
    """What is kept for some seconds may not be served from a cache for longer."""
    put(driver, b"r", Stream_Retain_Seconds="40")
    driver.append(b"r", b"x")
    cached = driver.get(b"r", b"offset=" + START_TOKEN).fields["Cache-Control"]
    assert cached == "public, max-age=40, stale-while-revalidate=0"


def test_forks_at_what_is_gone(driver: Driver) -> None:
    """A fork begins within what its source has: 410 says where that is."""
    source = {"Stream_Forked_From": "/v1/stream/t"}
    for token in OLDER:
        refused = put(driver, b"f", **source, Stream_Fork_Offset=token.decode())
        assert refused.code == "fork-not-retained"
        assert is_not_retained(refused)
    foreign = format_offset(9, 1).decode()
    assert put(driver, b"f", **source, Stream_Fork_Offset=foreign).code == "bad-fork-offset"
    assert driver.get(b"f").status == 404
    assert (
        put(driver, b"f", **source, Stream_Fork_Offset=format_offset(1, 5).decode()).status == 201
    )
    cut(driver, b"t", 6)
    assert driver.get(b"f").answer.body == b"de"
    assert is_not_retained(driver.get(b"f", b"offset=" + format_offset(1, 2)))
    assert driver.request("HEAD", b"f").fields["Stream-Earliest-Offset"] == EARLIEST.decode()


def test_a_cut_that_is_not_durable_is_not_told(driver: Driver) -> None:
    """A fork that a cut under way rules out is refused when that is durable, not before."""
    stream = driver.store.visible(b"t")
    assert stream is not None
    driver.store.cut(stream, 5)
    assert driver.get(b"t").answer.body == b"def"
    offset = format_offset(1, 4).decode()
    source = {"Stream_Forked_From": "/v1/stream/t", "Stream_Fork_Offset": offset}
    refused = put(driver, b"f", **source)
    assert refused.effects[-1] == "Durable"
    assert is_not_retained(refused, format_offset(1, 5))


def test_a_slow_event_stream_ends_behind_the_cut(driver: Driver) -> None:
    """A reader that was overtaken is not made to skip anything: its stream ends cleanly after its
    last offset, which is then refused."""
    driver.direct = False
    exchange = driver.get(b"t", b"offset=-1&live=sse")
    driver.held = (Wake, Send)
    driver.append(b"t", b"ghi")
    exchange.look_again()
    assert isinstance(exchange.waiting, Send)
    driver.append(b"t", b"jkl")
    cut(driver, b"t", 11)
    exchange.frames.append(exchange.waiting.frame)
    driver.held = (Wake,)
    exchange.advance()
    assert exchange.over
    assert exchange.response is None, "the regular end"
    assert data_of(exchange) == ["def", "ghi"]
    last = str(controls_of(exchange)[-1]["streamNextOffset"]).encode()
    assert last == format_offset(1, 9)
    assert is_not_retained(driver.get(b"t", b"offset=" + last), format_offset(1, 11))


def test_an_event_stream_at_the_tail_does_not_notice(driver: Driver) -> None:
    """Who has all there is misses nothing when it is dropped."""
    exchange = driver.get(b"t", b"offset=-1&live=sse")
    cut(driver, b"t", 6)
    driver.append(b"t", b"ghi")
    assert data_of(exchange.look_again()) == ["def", "ghi"]
    assert not exchange.over


def test_a_long_poll_that_a_cut_overtakes(driver: Driver) -> None:
    """What came and went while it was on its way is told."""
    waiting = driver.get(b"t", b"offset=now&live=long-poll")
    driver.append(b"t", b"ghi")
    cut(driver, b"t", 8)
    assert is_not_retained(waiting.look_again(), format_offset(1, 8))


@pytest.mark.parametrize("live", [b"", b"&live=long-poll", b"&live=sse"])
def test_a_start_that_moves_while_it_is_looked_for(driver: Driver, live: bytes) -> None:
    """Who asks for the start gets the one that is there by then; who named an offset is refused."""
    driver.append(b"t", b"x" * 2 * SMALL_ANSWER_BYTES)
    driver.held = (Wake, Hold, Offload)
    from_start = driver.get(b"t", b"offset=-1" + live)
    named = driver.get(b"t", b"offset=" + EARLIEST + live)
    assert isinstance(from_start.waiting, Hold)
    cut(driver, b"t", 6)
    driver.held = (Wake,)
    assert is_not_retained(named.advance(), format_offset(1, 6))
    from_start.advance()
    if live == b"&live=sse":
        assert data_of(from_start)[0].startswith("xxx")
    else:
        assert from_start.status == 200
        assert (from_start.answer.body or b"").startswith(b"xxx")


def test_a_listing_tells_what_is_left(driver: Driver) -> None:
    """The size is that of what is there, and the earliest offset is told where it is not 0."""
    driver.create(b"u", body=b"ab")
    listing = driver.request("GET", b"/v1/stream/__ds/streams")
    cut_one, other = json.loads(listing.answer.body or b"")["streams"]
    assert (cut_one["size_bytes"], cut_one["earliest_offset"]) == (3, EARLIEST.decode())
    assert other["size_bytes"] == 2
    assert "earliest_offset" not in other


def test_browsers_have_the_headers(driver: Driver) -> None:
    """Browsers may read and send the headers of the extension."""
    fields = driver.request("OPTIONS", b"t").fields
    for name in ("Stream-Retain-Bytes", "Stream-Retain-Seconds"):
        assert name in fields["Access-Control-Allow-Headers"]
        assert name in fields["Access-Control-Expose-Headers"]
    assert "Stream-Earliest-Offset" in fields["Access-Control-Expose-Headers"]
