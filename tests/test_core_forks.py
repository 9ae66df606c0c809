"""Forks as clients meet them: what is refused, what is inherited, what a deletion leaves behind."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from test_core_driving import SMALL, Driver, Exchange
from test_core_live import START, data_of, events_of

from durable_streamsd.core.effects import Durable, Resident, Wake
from durable_streamsd.core.offsets import START_TOKEN, format_offset
from storage.framing import MESSAGES_MAX

JSON = "application/json"
MESSAGES = b'[{"a":1}, "b,b", [3,4], {"d":"\xc3\xa9"}]'
STORED = b'{"a":1},"b,b",[3,4],{"d":"\xc3\xa9"},'
ENDS = [0, 8, 14, 20, 31]
BEYOND = "9999999999999999_9999999999999999"


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Driver]:
    """A driver with the text stream `t` (`abcdef`) and the JSON stream `j` of four messages."""
    with Driver(tmp_path / "data") as opened:
        opened.create(b"t", body=b"abc")
        opened.append(b"t", b"def")
        opened.create(b"j", JSON, MESSAGES)
        yield opened


def fork(
    driver: Driver,
    path: bytes,
    source: str = "t",
    offset: bytes | str | None = None,
    sub_offset: int | str | None = None,
    body: bytes = b"",
    **more: str,
) -> Exchange:
    """PUT a fork; keyword arguments are further headers."""
    headers = {"Stream-Forked-From": f"/v1/stream/{source}"}
    if offset is not None:
        headers["Stream-Fork-Offset"] = offset if isinstance(offset, str) else offset.decode()
    if sub_offset is not None:
        headers["Stream-Fork-Sub-Offset"] = str(sub_offset)
    headers.update({name.replace("_", "-"): value for name, value in more.items()})
    return driver.request("PUT", path, headers=headers, body=body)


def content(driver: Driver, path: bytes) -> bytes:
    """A stream's whole content."""
    answer = driver.get(path)
    assert answer.status == 200
    assert answer.answer.body is not None
    return answer.answer.body


def test_a_fork_has_what_is_before_it_and_nothing_after(driver: Driver) -> None:
    """The offsets of the source lead to the same bytes; what either appends is its own."""
    created = fork(driver, b"f", offset=format_offset(1, 3))
    assert (created.status, created.next_offset) == (201, format_offset(1, 3))
    assert created.fields["Content-Type"] == "text/plain"
    assert created.fields["Location"].endswith("/v1/stream/f")
    driver.append(b"f", b"XYZ")
    driver.append(b"t", b"ghi")
    assert (content(driver, b"f"), content(driver, b"t")) == (b"abcXYZ", b"abcdefghi")
    for position in range(7):
        answer = driver.get(b"f", b"offset=" + format_offset(1, position))
        assert answer.answer.body == b"abcXYZ"[position:]
    assert driver.get(b"f", b"offset=" + format_offset(1, 7)).code == "offset-past-tail"


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"Stream-Forked-From": ""}, 400, "bad-fork-source"),
        ({"Stream-Forked-From": "t"}, 400, "bad-fork-source"),
        ({"Stream-Forked-From": "/t"}, 400, "bad-fork-source"),
        ({"Stream-Forked-From": "/v1/stream/"}, 400, "bad-fork-source"),
        ({"Stream-Forked-From": "/v1/stream/../t"}, 400, "bad-fork-source"),
        ({"Stream-Forked-From": "/v1/stream/%zz"}, 400, "bad-fork-source"),
        ({"Stream-Forked-From": "/v1/stream/t?offset=-1"}, 400, "bad-fork-source"),
        ({"Stream-Forked-From": "/v1/stream/t#x"}, 400, "bad-fork-source"),
        ({"Stream-Forked-From": "/v1/stream/__ds/t"}, 400, "bad-fork-source"),
        ({"Stream-Forked-From": "/v1/stream/t, /v1/stream/j"}, 400, "bad-fork-source"),
        ({"Stream-Forked-From": "http://example.org:4437/v1/stream/t"}, 400, "bad-fork-source"),
        ({"Stream-Forked-From": "//example.org/v1/stream/t"}, 400, "bad-fork-source"),
        ({"Stream-Forked-From": "/v1/stream/none"}, 404, "fork-source-not-found"),
        ({"Stream-Forked-From": "/v1/stream/f"}, 404, "fork-source-not-found"),
        ({"Stream-Forked-From": "/v1/stream/j"}, 409, "content-type-mismatch"),
        ({"Stream-Fork-Offset": ""}, 400, "bad-fork-offset"),
        ({"Stream-Fork-Offset": "-1"}, 400, "bad-fork-offset"),
        ({"Stream-Fork-Offset": "now"}, 400, "bad-fork-offset"),
        ({"Stream-Fork-Offset": "3"}, 400, "bad-fork-offset"),
        ({"Stream-Fork-Offset": f"{START_TOKEN.decode()}, 1"}, 400, "bad-fork-offset"),
        ({"Stream-Fork-Offset": format_offset(2, 3).decode()}, 400, "bad-fork-offset"),
        ({"Stream-Fork-Offset": format_offset(1, 7).decode()}, 400, "fork-past-tail"),
        ({"Stream-Fork-Offset": BEYOND}, 400, "fork-past-tail"),
        ({"Stream-Fork-Sub-Offset": "1"}, 400, "bad-fork-sub-offset"),
        ({"Stream-TTL": "1", "Stream-Expires-At": "2099-01-01T00:00:00Z"}, 400, None),
    ],
)
def test_what_is_refused(
    driver: Driver, headers: dict[str, str], status: int, code: str | None
) -> None:
    """What is malformed, not there or of another type is refused, and holds nothing back."""
    fields = {"Content-Type": "text/plain", "Stream-Forked-From": "/v1/stream/t", **headers}
    refused = driver.request("PUT", b"f", headers=fields)
    assert (refused.status, refused.code) == (status, code or "ttl-and-expires-at")
    assert driver.get(b"f").status == 404
    for path in (b"t", b"j"):
        assert driver.request("DELETE", path).status == 204
        assert driver.get(path).status == 404, "a refused fork kept its source"


@pytest.mark.parametrize("value", ["-1", "+1", "01", "1.0", "", " ", "1e3", "x", "1, 2", "9" * 17])
def test_malformed_sub_offsets(driver: Driver, value: str) -> None:
    """A sub-offset is a whole number in decimal."""
    assert fork(driver, b"f", offset=START_TOKEN, sub_offset=value).code == "bad-fork-sub-offset"


def test_sub_offsets_count_bytes(driver: Driver) -> None:
    """In a byte stream a sub-offset is so many bytes more, up to the tail."""
    at = format_offset(1, 2)
    created = fork(driver, b"f", offset=at, sub_offset=3)
    assert (created.status, created.next_offset) == (201, format_offset(1, 5))
    assert content(driver, b"f") == b"abcde"
    assert fork(driver, b"all", offset=at, sub_offset=4).status == 201
    assert content(driver, b"all") == b"abcdef"
    assert fork(driver, b"more", offset=at, sub_offset=5).code == "fork-past-tail"


def test_a_sub_offset_within_a_character(driver: Driver) -> None:
    """Bytes are bytes: a fork may end within a character, and nothing of it is lost."""
    driver.create(b"u", body="aé€".encode())
    for count in range(7):
        assert fork(driver, b"u%d" % count, "u", START_TOKEN, count).status == 201
        driver.append(b"u%d" % count, b"!")
        assert content(driver, b"u%d" % count) == "aé€".encode()[:count] + b"!"


def test_sub_offsets_count_messages(driver: Driver) -> None:
    """In a JSON stream a sub-offset is so many messages more, and offsets lie between messages."""
    source = driver.store.find(b"j")
    assert source is not None
    for first, start in enumerate(ENDS):
        for count in range(6 - first):
            path = b"j%d-%d" % (first, count)
            created = fork(driver, path, "j", format_offset(source.id, start), count)
            if first + count > 4:
                assert created.code == "fork-past-tail"
                continue
            end = ENDS[first + count]
            assert (created.status, created.next_offset) == (201, format_offset(source.id, end))
            assert content(driver, path) == b"[" + STORED[:end].rstrip(b",") + b"]"
    for at in range(32):
        made = fork(driver, b"k%d" % at, "j", format_offset(source.id, at))
        if at in ENDS:
            assert made.status == 201
        else:
            assert made.code == "offset-inside-message"


def test_sub_offsets_over_many_appends(driver: Driver) -> None:
    """Messages are counted across appends, blocks and the seams of the source."""
    driver.create(b"m", JSON)
    for number in range(50):
        driver.append(b"m", b"[%b]" % b",".join([b'"%04d"' % number] * 400), JSON)
    source = driver.store.find(b"m")
    assert source is not None
    driver.reopen()
    assert fork(driver, b"n", "m", format_offset(source.id, 700), 9_000).status == 201
    assert fork(driver, b"o", "n", format_offset(source.id, 63_000), 101).code == "fork-past-tail"
    driver.append(b"n", b'["x","y"]', JSON)
    made = fork(driver, b"o", "n", format_offset(source.id, 63_000), 101)
    assert made.next_offset == format_offset(source.id, 63_704)
    assert content(driver, b"o").endswith(b'"x"]')
    past = fork(driver, b"p", "m", START_TOKEN, MESSAGES_MAX + 1)
    assert past.code == "fork-past-tail"


def test_a_body_follows_what_is_inherited(driver: Driver) -> None:
    """A PUT's body is the fork's own first data, of the source's kind."""
    assert fork(driver, b"f", body=b"XY", Content_Type="text/plain").status == 201
    assert content(driver, b"f") == b"abcdefXY"
    assert fork(driver, b"g", "j", START_TOKEN, 1, b"[1, 2]").status == 201
    assert content(driver, b"g") == b'[{"a":1},1,2]'
    assert fork(driver, b"h", "j", body=b"[").code == "bad-json"
    assert driver.get(b"h").status == 404
    large = b"[%b]" % b",".join([b'"%01000d"' % 1] * 1_200)
    made = fork(driver, b"h", "j", body=large)
    assert (made.status, "Offload" in made.effects) == (201, True)


@pytest.mark.parametrize(
    ("first", "second", "status"),
    [
        ({}, {}, 200),
        ({}, {"Content-Type": "text/plain"}, 200),
        ({"Content-Type": "text/plain"}, {"Content-Type": "TEXT/plain; charset=utf-8"}, 200),
        ({}, {"Content-Type": JSON}, 409),
        ({}, {"Stream-Fork-Offset": format_offset(1, 6).decode()}, 409),
        ({"Stream-Fork-Offset": format_offset(1, 3).decode()}, {}, 409),
        ({"Stream-Fork-Offset": format_offset(1, 3).decode()}, None, 200),
        (
            {"Stream-Fork-Offset": format_offset(1, 3).decode()},
            {"Stream-Fork-Offset": format_offset(9, 3).decode()},
            409,
        ),
        (
            {"Stream-Fork-Offset": START_TOKEN.decode(), "Stream-Fork-Sub-Offset": "3"},
            {"Stream-Fork-Offset": format_offset(1, 3).decode()},
            409,
        ),
        ({}, {"Stream-Fork-Sub-Offset": "0"}, 200),
        ({"Stream-TTL": "10"}, {}, 409),
        ({}, {"Stream-TTL": "10"}, 409),
        ({"Stream-TTL": "10"}, {"Stream-TTL": "10"}, 200),
        ({"Stream-TTL": "10"}, {"Stream-TTL": "11"}, 409),
        ({}, {"Stream-Closed": "true"}, 409),
        ({"Stream-Closed": "true"}, None, 200),
        ({}, {"Stream-Forked-From": "/v1/stream/%74"}, 200),
        ({}, {"Stream-Forked-From": "/v1/stream/none"}, 409),
    ],
)
def test_a_repeated_put(
    driver: Driver, first: dict[str, str], second: dict[str, str] | None, status: int
) -> None:
    """A fork is found again by what was asked for, not by what it inherited, after a restart too;
    whether its source is still there does not matter."""
    source = {"Stream-Forked-From": "/v1/stream/t"}
    assert driver.request("PUT", b"f", headers={**source, **first}).status == 201
    driver.append(b"t", b"more")
    headers = {**source, **(first if second is None else second)}
    assert driver.request("PUT", b"f", headers=headers, body=b"z").status == status
    driver.reopen()
    assert driver.request("PUT", b"f", headers=headers).status == status
    driver.request("DELETE", b"t")
    assert driver.request("PUT", b"f", headers=headers).status == status
    plain = driver.request("PUT", b"f", headers={"Content-Type": "text/plain"})
    assert (plain.status, plain.code) == (409, "config-conflict")


LIFETIMES = [{}, {"Stream-TTL": "100"}, {"Stream-Expires-At": "2099-01-01T00:00:00Z"}]


@pytest.mark.parametrize("of_source", LIFETIMES)
@pytest.mark.parametrize(
    "of_fork", [{}, {"Stream-TTL": "7"}, {"Stream-Expires-At": "2098-01-01T00:00:00Z"}]
)
def test_lifetimes(driver: Driver, of_source: dict[str, str], of_fork: dict[str, str]) -> None:
    """A fork has the lifetime that it asks for, else that of its source, after a restart too."""
    driver.request("PUT", b"s", headers=of_source)
    made = driver.request("PUT", b"f", headers={"Stream-Forked-From": "/v1/stream/s", **of_fork})
    assert made.status == 201
    for _ in range(2):
        fields = driver.request("HEAD", b"f").fields
        told = {name: value for name, value in fields.items() if name in LIFETIME_FIELDS}
        assert told == (of_fork or of_source)
        driver.reopen()


LIFETIME_FIELDS = ("Stream-TTL", "Stream-Expires-At")


def test_writers_start_anew(driver: Driver) -> None:
    """Producers, Stream-Seq and closure stay with the source."""
    numbers = {"Producer_Id": "p", "Producer_Epoch": "3", "Producer_Seq": "0", "Stream_Seq": "9"}
    assert driver.append(b"t", b"x", **numbers).status == 200
    driver.close_stream(b"t")
    assert fork(driver, b"f").status == 201
    assert "Stream-Closed" not in driver.request("HEAD", b"f").fields
    assert driver.append(b"f", b"y", **{**numbers, "Producer_Epoch": "0"}).status == 200
    assert content(driver, b"f") == b"abcdefxy"
    assert fork(driver, b"g", Stream_Closed="true").fields["Stream-Closed"] == "true"
    assert driver.append(b"g", b"y").code == "closed"


def test_a_source_is_kept_for_its_forks(driver: Driver) -> None:
    """A deleted source is 410 for everything, its path is taken, and goes with its last fork."""
    fork(driver, b"f", offset=format_offset(1, 3))
    fork(driver, b"g", "f")
    assert driver.request("DELETE", b"t").status == 204
    for _ in range(2):
        for method in ("GET", "HEAD", "DELETE"):
            assert driver.request(method, b"t").status == 410
        assert driver.get(b"t", START + b"long-poll").code == "gone"
        assert driver.get(b"t", START + b"sse").code == "gone"
        assert driver.append(b"t", b"x").code == "gone"
        assert driver.close_stream(b"t").code == "gone"
        text = {"Content-Type": "text/plain"}
        assert driver.request("PUT", b"t", headers=text).code == "path-retained"
        assert fork(driver, b"t", "j").code == "path-retained"
        assert fork(driver, b"h").code == "fork-source-gone"
        assert content(driver, b"g") == b"abc"
        driver.reopen()
    assert driver.request("DELETE", b"f").status == 204
    assert driver.request("HEAD", b"f").status == 410
    assert content(driver, b"g") == b"abc"
    assert driver.request("DELETE", b"g").status == 204
    assert [driver.request("HEAD", path).status for path in (b"t", b"f", b"g")] == [404] * 3
    driver.create(b"t", body=b"new")
    assert content(driver, b"t") == b"new"


def test_forks_make_no_loops(driver: Driver) -> None:
    """No stream begins in itself, by whatever way: its path is taken for as long as one lives that
    began in it, and a new stream at a path that is free again is another one."""
    assert fork(driver, b"t").code == "config-conflict"
    fork(driver, b"f")
    fork(driver, b"g", "f")
    assert fork(driver, b"t", "g").code == "config-conflict"
    assert driver.request("DELETE", b"t").status == 204
    for source in ("f", "g"):
        assert fork(driver, b"t", source).code == "path-retained"
    driver.reopen()
    assert fork(driver, b"t", "g").code == "path-retained"
    assert driver.request("DELETE", b"f").status == 204
    assert fork(driver, b"f", "g").code == "path-retained"
    driver.create(b"u", body=b"u")
    assert driver.request("DELETE", b"g").status == 204
    assert fork(driver, b"t", "u").status == 201
    assert driver.request("DELETE", b"u").status == 204
    assert fork(driver, b"u", "t").code == "path-retained"
    assert content(driver, b"t") == b"u"


def test_forks_of_forks_of_deleted_streams(driver: Driver) -> None:
    """What can be read can be forked, however many of those it began in are deleted; what can not
    is refused, and all of it goes with the last fork."""
    fork(driver, b"f1", offset=format_offset(1, 3), body=b"1")
    fork(driver, b"f2", "f1", body=b"2")
    for path in (b"t", b"f1"):
        assert driver.request("DELETE", path).status == 204
    for number in range(3, 6):
        driver.reopen()
        assert fork(driver, b"bad", "t").code == "fork-source-gone"
        assert fork(driver, b"bad", "f1").code == "fork-source-gone"
        assert fork(driver, b"f%d" % number, f"f{number - 1}", body=b"%d" % number).status == 201
        assert driver.request("DELETE", b"f%d" % (number - 1)).status == 204
    assert fork(driver, b"inner", "f5", format_offset(1, 2)).status == 201
    assert content(driver, b"f5") == b"abc12345"
    assert content(driver, b"inner") == b"ab"
    for path in (b"f5", b"inner"):
        assert driver.request("DELETE", path).status == 204
    for path in (b"t", b"f1", b"f2", b"f3", b"f4", b"f5", b"inner", b"bad"):
        assert driver.request("HEAD", path).status == 404


def test_ends_that_are_under_way_are_waited_for(driver: Driver) -> None:
    """410, 409 and 404 are told once what they rest on is durable, and readers see no sooner."""
    fork(driver, b"f")
    driver.held = (Wake, Durable)
    deletion = driver.request("DELETE", b"t")
    waiting = [
        driver.append(b"t", b"x"),
        driver.request("PUT", b"t"),
        fork(driver, b"h"),
        driver.request("DELETE", b"t"),
    ]
    assert all(isinstance(exchange.waiting, Durable) for exchange in (deletion, *waiting))
    assert driver.get(b"t").status == 200
    driver.store.commit()
    assert deletion.advance().status == 204
    codes = [exchange.advance().code for exchange in waiting]
    assert codes == ["gone", "path-retained", "fork-source-gone", "gone"]
    last = driver.request("DELETE", b"f")
    freed = driver.append(b"t", b"x")
    assert isinstance(freed.waiting, Durable)
    assert driver.get(b"t").code == "gone"
    driver.store.commit()
    assert (last.advance().status, freed.advance().status) == (204, 404)


def test_a_source_that_expires_with_forks(driver: Driver) -> None:
    """Expiry is a deletion: with forks the source is gone and its path is taken."""
    driver.request("PUT", b"s", headers={"Stream-TTL": "0"}, body=b"data")
    assert fork(driver, b"f", "s").code == "fork-source-not-found"
    source = {"Stream-Expires-At": "2099-01-01T00:00:00Z"}
    driver.request("PUT", b"s", headers=source, body=b"data")
    assert fork(driver, b"f", "s", Stream_TTL="1000").status == 201
    expired = driver.store.find(b"s")
    assert expired is not None
    expired.deadline_ms = driver.store.now_ms()
    assert driver.request("PUT", b"s").code == "path-retained"
    assert driver.request("HEAD", b"s").status == 410
    assert content(driver, b"f") == b"data"
    assert driver.request("DELETE", b"f").status == 204
    assert driver.request("HEAD", b"s").status == 404


def test_a_source_that_changes_while_it_is_looked_at(driver: Driver) -> None:
    """A fork that waited begins in the source that is there when it goes on, or nowhere."""
    source = driver.store.find(b"j")
    assert source is not None
    driver.held = (Wake, Durable)
    driver.append(b"j", b"[5]", JSON)
    waiting = fork(driver, b"f", "j", format_offset(source.id, 31), 1)
    assert isinstance(waiting.waiting, Durable), "its messages are read when they are durable"
    driver.store.commit()
    driver.held = (Wake,)
    assert waiting.advance().next_offset == format_offset(source.id, 33)
    driver.held = (Wake, Resident)
    waiting = fork(driver, b"g", "j", format_offset(source.id, 14))
    driver.held = (Wake,)
    driver.request("DELETE", b"f")
    driver.request("DELETE", b"j")
    driver.create(b"j", body=b"quite different")
    driver.store.admit(driver.store.load(b"g"))
    assert waiting.advance().code == "bad-fork-offset"


def test_long_poll_on_a_fork(driver: Driver) -> None:
    """Inherited data comes at once; at the tail only the fork's own appends are news."""
    at = format_offset(1, 3)
    fork(driver, b"f", offset=at)
    answer = driver.get(b"f", START + b"long-poll")
    assert (answer.status, answer.answer.body, answer.next_offset) == (200, b"abc", at)
    waiting = driver.get(b"f", b"live=long-poll&offset=" + at)
    driver.append(b"t", b"not for the fork")
    assert not waiting.look_again().over
    driver.append(b"f", b"X")
    assert waiting.look_again().answer.body == b"X"
    waiting = driver.get(b"f", b"live=long-poll&offset=" + format_offset(1, 4))
    driver.request("DELETE", b"t")
    assert not waiting.look_again().over
    driver.request("DELETE", b"f")
    assert waiting.look_again().status == 404


def test_readers_of_a_source_that_is_deleted(driver: Driver) -> None:
    """Those who wait for a source are told that it is gone, those who follow it see it end."""
    fork(driver, b"f")
    waiting = driver.get(b"t", b"live=long-poll&offset=" + format_offset(1, 6))
    following = driver.get(b"t", b"live=sse&offset=" + format_offset(1, 6))
    driver.request("DELETE", b"t")
    assert waiting.look_again().code == "gone"
    assert following.look_again().over


def test_an_event_stream_on_a_fork(driver: Driver) -> None:
    """Inherited data, the fork's own, what is appended then; never what the source appends."""
    fork(driver, b"f", offset=format_offset(1, 3), body=b"X")
    stream = driver.get(b"f", START + b"sse")
    driver.append(b"t", b"not for the fork")
    assert not stream.look_again().over
    driver.append(b"f", b"Y", Stream_Closed="true")
    assert stream.look_again().over
    assert data_of(stream) == ["abcX", "Y"]
    assert '"streamClosed":true' in events_of(stream)[-1].data.replace(" ", "")


def test_a_chunk_crosses_the_seams_within_its_limit(tmp_path: Path) -> None:
    """A read goes on over every seam up to the limit, and ends on a message."""
    with Driver(tmp_path / "data") as driver:
        driver.create(b"0", JSON, b'["0"]')
        for level in range(1, 20):
            made = fork(driver, b"%d" % level, str(level - 1), body=b'["%d"]' % level)
            assert made.status == 201
        expected = b"[%b]" % b",".join(b'"%d"' % level for level in range(20))
        assert content(driver, b"19") == expected
        driver.reopen()
        assert content(driver, b"19") == expected
        stream = driver.store.visible(b"19")
        assert stream is not None
        driver.context.options = replace(driver.context.options, read_bytes_max=10)
        body = driver.get(b"19").answer.body
        assert body == b'["0","1"]'


def test_forks_of_forks_have_a_limit(tmp_path: Path) -> None:
    """A chain ends somewhere, and the refused fork leaves nothing behind."""
    with Driver(tmp_path / "data", limits=replace(SMALL, fork_depth_max=3)) as driver:
        driver.create(b"0", body=b"x")
        codes = [fork(driver, b"%d" % level, str(level - 1)).status for level in range(1, 5)]
        assert codes == [201, 201, 201, 409]
        assert fork(driver, b"4", "3").code == "fork-too-deep"
        assert driver.request("DELETE", b"3").status == 204
        assert driver.get(b"3").status == 404


def test_a_path_of_its_own(driver: Driver) -> None:
    """The source's path is decoded as a request's is; a fork's own path may hold anything too."""
    driver.create(b"a%2Fb%20c", body=b"x")
    assert fork(driver, b"f%C3%A9", "a/b%20c").status == 201
    assert content(driver, b"f%C3%A9") == b"x"
    itself = fork(driver, b"t", "t")
    assert (itself.status, itself.code) == (409, "config-conflict")


def test_answers_say_nothing_of_forks(driver: Driver) -> None:
    """Forks are transparent: no answer names a source."""
    exchanges = [fork(driver, b"f"), fork(driver, b"f"), driver.get(b"f")]
    exchanges += [driver.request("HEAD", b"f"), driver.append(b"f", b"x")]
    for exchange in exchanges:
        assert not [name for name in exchange.fields if "fork" in name.lower()]
