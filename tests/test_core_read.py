"""GET without waiting, HEAD, and what caches are told."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from test_core_driving import Driver

from durable_streamsd.core.context import Options
from durable_streamsd.core.offsets import START_TOKEN, format_offset
from storage.limits import Limits

PUBLIC = "public, max-age=60, stale-while-revalidate=300"


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Driver]:
    """A driver with the text stream `t`, which holds `abc`, and an empty JSON stream `j`."""
    with Driver(tmp_path / "data") as opened:
        opened.create(b"t", "text/plain;charset=UTF-8", b"abc")
        opened.create(b"j", "application/json")
        yield opened


def test_from_the_start(driver: Driver) -> None:
    """No offset, -1 and the zero token are the same read."""
    answers = [driver.get(b"t", query) for query in (b"", b"offset=-1", b"offset=" + START_TOKEN)]
    for exchange in answers:
        assert (exchange.status, exchange.answer.body) == (200, b"abc")
        assert exchange.fields == answers[0].fields
    assert answers[0].fields["Content-Type"] == "text/plain;charset=UTF-8"
    assert answers[0].fields["Stream-Up-To-Date"] == "true"
    assert answers[0].next_offset == format_offset(1, 3)
    assert answers[0].fields["Cache-Control"] == PUBLIC


def test_at_the_tail(driver: Driver) -> None:
    """The tail of an open stream is an empty answer that must be asked again each time."""
    for path, offset, body in ((b"t", format_offset(1, 3), b""), (b"j", START_TOKEN, b"[]")):
        exchange = driver.get(path, b"offset=" + offset)
        assert (exchange.status, exchange.answer.body) == (200, body)
        assert exchange.next_offset == offset
        assert exchange.fields["Stream-Up-To-Date"] == "true"
        assert exchange.fields["Cache-Control"] == "no-cache"
        assert "Stream-Closed" not in exchange.fields


def test_end_of_a_closed_stream(driver: Driver) -> None:
    """The end is told with the last data, and again by the tail."""
    driver.close_stream(b"t")
    for offset in (START_TOKEN, format_offset(1, 3)):
        fields = driver.get(b"t", b"offset=" + offset).fields
        assert fields["Stream-Closed"] == fields["Stream-Up-To-Date"] == "true"
        assert fields["Cache-Control"] == PUBLIC


@pytest.mark.parametrize(("path", "body"), [(b"t", b""), (b"j", b"[]")])
def test_now(driver: Driver, path: bytes, body: bytes) -> None:
    """offset=now has no data, no tag, and is never kept."""
    if path == b"j":
        driver.append(b"j", b"1", "application/json")
    exchange = driver.get(path, b"offset=now")
    tail = driver.request("HEAD", path).next_offset
    assert (exchange.answer.body, exchange.next_offset) == (body, tail)
    assert exchange.fields["Stream-Up-To-Date"] == "true"
    assert exchange.fields["Cache-Control"] == "no-store"
    assert "ETag" not in exchange.fields
    assert "Stream-Closed" not in exchange.fields
    driver.close_stream(path)
    assert driver.get(path, b"offset=now").fields["Stream-Closed"] == "true"


@pytest.mark.parametrize(
    ("query", "code"),
    [
        (b"offset=" + format_offset(1, 4), "offset-past-tail"),
        (b"offset=9999999999999999_9999999999999999", "foreign-offset"),
        (b"offset=" + format_offset(2, 1), "foreign-offset"),
        (b"offset=0000000000000000_0000000000000001", "foreign-offset"),
        (b"offset=x", "bad-offset"),
        (b"live=sse", "offset-required"),
        (b"offset=-1&live=maybe", "bad-live-mode"),
    ],
)
def test_refusals(driver: Driver, query: bytes, code: str) -> None:
    """Offsets that this stream never issued and queries that make no sense are 400."""
    exchange = driver.get(b"t", query)
    assert (exchange.status, exchange.code) == (400, code)


def test_offset_inside_a_message(driver: Driver) -> None:
    """A JSON stream is never read from the middle of a message."""
    driver.append(b"j", b'["abc",{"d":1}]', "application/json")
    for position in range(1, 14):
        exchange = driver.get(b"j", b"offset=" + format_offset(2, position))
        if position == 6:
            assert exchange.answer.body == b'[{"d":1}]'
        else:
            assert exchange.code == "offset-inside-message"


def test_missing(driver: Driver) -> None:
    """A stream that is not there is 404 in every mode, with the problem left out of HEAD."""
    for query in (b"", b"offset=now", b"offset=now&live=long-poll", b"offset=-1&live=sse"):
        assert driver.get(b"missing", query).code == "not-found"
    head = driver.request("HEAD", b"missing")
    assert (head.status, head.answer.body) == (404, None)


def test_pages(tmp_path: Path) -> None:
    """A limit cuts between messages; only the last page is up to date and closed."""
    with Driver(tmp_path / "data", Options(read_bytes_max=20_000)) as driver:
        messages = b",".join(b'{"n":%d}' % number for number in range(40_000))
        driver.create(b"j", "application/json", b"[" + messages + b"]")
        driver.close_stream(b"j")
        bodies, offset, tags = [], START_TOKEN, set()
        while True:
            page = driver.get(b"j", b"offset=" + offset)
            bodies.append((page.answer.body or b"")[1:-1])
            tags.add(page.fields["ETag"])
            assert page.next_offset > offset
            offset = page.next_offset
            if "Stream-Closed" in page.fields:
                break
            assert "Stream-Up-To-Date" not in page.fields
        assert b",".join(bodies) == messages
        assert len(tags) == len(bodies) > 5


def test_a_cold_read_is_one_snapshot(tmp_path: Path) -> None:
    """What a read in a thread returns is of one moment, though the stream has moved on."""
    limits = Limits(reserve_bytes=4_096, zero_ahead_bytes=0, tail_cache_bytes_max=0)
    with Driver(tmp_path / "data", limits=limits) as driver:
        driver.create(b"a", body=b"abc")
        driver.reopen()
        exchange = driver.get(b"a")
        assert (exchange.status, exchange.answer.body) == (200, b"abc")
        assert exchange.next_offset == format_offset(1, 3)


def test_entity_tag(driver: Driver) -> None:
    """A tag holds until the answer changes, by data or by closing."""
    seen: set[str] = set()
    for change in (None, driver.append, driver.close_stream):
        if change == driver.append:
            driver.append(b"t", b"d")
        elif change is not None:
            driver.close_stream(b"t")
        tag = driver.get(b"t").fields["ETag"]
        assert tag not in seen
        for old in seen:
            assert driver.get(b"t", If_None_Match=old).status == 200
        seen.add(tag)
        unchanged = driver.get(b"t", If_None_Match=f'"x", W/{tag}')
        assert (unchanged.status, unchanged.answer.body) == (304, None)
        assert unchanged.fields["ETag"] == tag
        assert "Content-Type" not in unchanged.fields


def test_a_page_that_was_the_end_is_not_unchanged_when_more_follows(tmp_path: Path) -> None:
    """304 must not hide that a full page no longer reaches the tail."""
    with Driver(tmp_path / "data", Options(read_bytes_max=4)) as driver:
        driver.create(b"t", body=b"abcd")
        first = driver.get(b"t")
        assert first.fields["Stream-Up-To-Date"] == "true"
        driver.append(b"t", b"e")
        second = driver.get(b"t", If_None_Match=first.fields["ETag"])
        assert (second.status, second.answer.body) == (200, b"abcd")
        assert "Stream-Up-To-Date" not in second.fields


def test_tags_differ_between_incarnations(driver: Driver) -> None:
    """A new stream at an old path has other tags for the same bytes."""
    tag = driver.get(b"t").fields["ETag"]
    driver.request("DELETE", b"t")
    driver.create(b"t", "text/plain", b"abc")
    assert driver.get(b"t", If_None_Match=tag).status == 200


@pytest.mark.parametrize(
    ("ttl", "headers", "expected"),
    [
        ("1", {}, "public, max-age=1, stale-while-revalidate=0"),
        ("100", {}, "public, max-age=60, stale-while-revalidate=40"),
        ("360", {}, PUBLIC),
        ("360", {"Authorization": "Bearer x"}, PUBLIC.replace("public", "private")),
        ("360", {"Cookie": "a=b"}, PUBLIC.replace("public", "private")),
    ],
)
def test_cache_control(driver: Driver, ttl: str, headers: dict[str, str], expected: str) -> None:
    """A copy does not outlive its stream, and is not shared between users."""
    driver.request("PUT", b"x", headers={"Stream-TTL": ttl}, body=b"abc")
    assert driver.get(b"x", b"", **headers).fields["Cache-Control"] == expected


def test_cache_control_before_a_deadline(driver: Driver) -> None:
    """Near its end a stream is kept for what is left of it."""
    deadline_ms = driver.store.now_ms() + 30_500
    stream = driver.store.visible(b"t")
    assert stream is not None
    stream.config.expires_ms = deadline_ms
    value = driver.get(b"t").fields["Cache-Control"]
    assert value in (
        "public, max-age=30, stale-while-revalidate=0",
        "public, max-age=29, stale-while-revalidate=0",
    )


def test_head(driver: Driver) -> None:
    """HEAD tells type, tail and closure, reads nothing, is never kept, and ignores the query."""
    open_fields = driver.request("HEAD", b"t", b"offset=junk&live=sse").fields
    assert open_fields["Content-Type"] == "text/plain;charset=UTF-8"
    assert open_fields["Stream-Next-Offset"].encode() == format_offset(1, 3)
    assert open_fields["Cache-Control"] == "no-store"
    assert not {"Stream-Closed", "ETag", "Stream-TTL"} & set(open_fields)
    driver.close_stream(b"t")
    closed = driver.request("HEAD", b"t")
    assert (closed.answer.body, closed.fields["Stream-Closed"]) == (None, "true")


def test_only_reads_slide_a_ttl(driver: Driver) -> None:
    """A GET moves the deadline, HEAD does not."""
    driver.request("PUT", b"x", headers={"Stream-TTL": "100"})
    stream = driver.store.visible(b"x")
    assert stream is not None
    for method, moved in (("HEAD", False), ("GET", True)):
        stream.deadline_ms = before = driver.store.now_ms() + 50_000
        driver.request(method, b"x")
        assert (stream.deadline_ms > before) is moved


def test_a_read_without_a_wait_is_answered_in_one_go(driver: Driver) -> None:
    """Reading what is in memory needs no effect at all."""
    assert driver.get(b"t").effects == driver.request("HEAD", b"t").effects == []
