"""Long-poll and event streams: no lost wake, one encoding for all, and clean ends."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_core_driving import Driver, Exchange
from test_core_sse import Event, parse_events

from durable_streamsd.core.context import Options
from durable_streamsd.core.cursor import current
from durable_streamsd.core.effects import Offload, Send, StreamBroken, Wake
from durable_streamsd.core.offsets import format_offset
from durable_streamsd.core.sse import HEARTBEAT
from storage.errors import CorruptData

NOW = b"offset=now&live="
START = b"offset=-1&live="


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Driver]:
    """A driver with the text stream `t`, which holds `abc`, and an empty JSON stream `j`."""
    with Driver(tmp_path / "data") as opened:
        opened.create(b"t", body=b"abc")
        opened.create(b"j", "application/json")
        yield opened


def events_of(exchange: Exchange) -> list[Event]:
    """All events that were sent; each frame must be whole events, and end with a control."""
    events = []
    for frame in exchange.frames:
        parsed = parse_events(frame.data)
        if frame is not HEARTBEAT:
            assert [event.type for event in parsed] in (["data", "control"], ["control"])
        events += parsed
    return events


def controls_of(exchange: Exchange) -> list[dict[str, object]]:
    """The control events that were sent."""
    return [json.loads(event.data) for event in events_of(exchange) if event.type == "control"]


def data_of(exchange: Exchange) -> list[str]:
    """The data events that were sent."""
    return [event.data for event in events_of(exchange) if event.type == "data"]


# Long-poll


def test_long_poll_with_data_answers_at_once(driver: Driver) -> None:
    """Data that is there needs no wait, and comes like a catch-up read with a cursor."""
    exchange = driver.get(b"t", START + b"long-poll")
    assert (exchange.status, exchange.answer.body) == (200, b"abc")
    assert exchange.next_offset == format_offset(1, 3)
    assert exchange.fields["Stream-Up-To-Date"] == "true"
    assert exchange.fields["Stream-Cursor"] == str(current(driver.store.now_ms()))
    assert exchange.fields["Cache-Control"].startswith("public, max-age=60")
    assert exchange.fields["ETag"] == driver.get(b"t").fields["ETag"]


@pytest.mark.parametrize("query", [NOW, b"offset=" + format_offset(1, 3) + b"&live="])
def test_long_poll_waits_for_data(driver: Driver, query: bytes) -> None:
    """A reader at the tail waits, is not woken by what is not durable, and gets what is new."""
    exchange = driver.get(b"t", query + b"long-poll")
    assert isinstance(exchange.waiting, Wake)
    driver.append(b"j", b"1", "application/json")
    assert not exchange.look_again().over
    driver.append(b"t", b"def")
    assert exchange.look_again().answer.body == b"def"
    cached = exchange.fields["Cache-Control"] != "no-store"
    assert cached is ("ETag" in exchange.fields) is (query != NOW)


def test_long_poll_times_out(driver: Driver) -> None:
    """Nothing new is 204 with the tail and a cursor, and is not kept."""
    exchange = driver.get(b"t", NOW + b"long-poll")
    assert isinstance(exchange.waiting, Wake)
    assert exchange.waiting.timeout_s == driver.context.options.long_poll_timeout_s
    exchange.time_out()
    assert (exchange.status, exchange.answer.body) == (204, None)
    assert exchange.next_offset == format_offset(1, 3)
    assert exchange.fields["Stream-Up-To-Date"] == "true"
    assert exchange.fields["Stream-Cursor"].isdigit()
    assert exchange.fields["Cache-Control"] == "no-store"


def test_data_wins_over_a_time_out_of_the_same_moment(driver: Driver) -> None:
    """A timer that fires just before the wake loses nothing."""
    exchange = driver.get(b"t", NOW + b"long-poll")
    driver.append(b"t", b"def")
    assert exchange.time_out().answer.body == b"def"


def test_long_poll_at_the_end(driver: Driver) -> None:
    """A closed stream is never waited for: 204, the end, and no cursor."""
    waiting = driver.get(b"t", NOW + b"long-poll")
    driver.close_stream(b"t")
    for exchange in (waiting.look_again(), driver.get(b"t", NOW + b"long-poll")):
        assert exchange.status == 204
        assert exchange.fields["Stream-Closed"] == exchange.fields["Stream-Up-To-Date"] == "true"
        assert "Stream-Cursor" not in exchange.fields


def test_last_data_and_the_end_come_together(driver: Driver) -> None:
    """A close right after an append takes nothing from a waiting reader."""
    poll = driver.get(b"t", NOW + b"long-poll")
    stream = driver.get(b"t", NOW + b"sse")
    driver.append(b"t", b"def")
    driver.close_stream(b"t")
    assert poll.look_again().answer.body == b"def"
    assert poll.fields["Stream-Closed"] == "true"
    assert "Stream-Cursor" not in poll.fields
    assert data_of(stream.look_again()) == ["def"]
    assert stream.over
    assert controls_of(stream)[-1]["streamClosed"] is True


def test_a_deleted_stream_ends_its_readers(driver: Driver) -> None:
    """A long-poll gets 404, an event stream ends; both also when the path is taken anew."""
    poll = driver.get(b"t", NOW + b"long-poll")
    stream = driver.get(b"t", NOW + b"sse")
    driver.request("DELETE", b"t")
    driver.create(b"t", body=b"another stream")
    assert poll.look_again().status == 404
    assert stream.look_again().over
    assert data_of(stream) == []


def test_a_deleted_stream_is_not_read(driver: Driver) -> None:
    """What was appended just before a deletion is gone with it."""
    stream = driver.get(b"t", NOW + b"sse")
    driver.append(b"t", b"def")
    driver.request("DELETE", b"t")
    assert stream.look_again().over
    assert data_of(stream) == []


def test_a_stream_deleted_while_its_bytes_are_looked_for(driver: Driver) -> None:
    """Where the deletion overtakes a look-up, a read gets 404 and an event stream just ends."""
    size = 3 * driver.context.options.event_bytes_max
    driver.create(b"b", "application/octet-stream", bytes(size))
    driver.reopen()
    driver.context.store = driver.store
    driver.held = (Wake, Offload)
    events = driver.get(b"b", START + b"sse")
    assert isinstance(events.waiting, Offload)
    events.advance(events.waiting.call())
    read = driver.get(b"b")
    assert events.head is not None
    driver.request("DELETE", b"b")
    driver.store.index_step()
    for exchange in (events, read):
        assert isinstance(exchange.waiting, Offload)
        with pytest.raises(CorruptData) as overtaken:
            exchange.waiting.call()
        exchange.advance(error=overtaken.value)
        assert exchange.over
    assert events.response is None
    assert read.status == 404


@pytest.mark.parametrize("live", [b"long-poll", b"sse"])
def test_live_readers_are_counted(driver: Driver, live: bytes) -> None:
    """A live read holds its stream while it lasts, however it ends."""
    stream = driver.store.visible(b"t")
    assert stream is not None
    finished, lost = driver.get(b"t", NOW + live), driver.get(b"t", NOW + live)
    assert stream.live_readers == 2
    lost.lose_connection()
    assert stream.live_readers == 1
    driver.close_stream(b"t")
    assert finished.look_again().over
    assert stream.live_readers == 0


def test_waiters_share_one_answer(driver: Driver) -> None:
    """All who wait at one offset with one cursor are handed the same object."""
    now = b"%d" % current(driver.store.now_ms())
    waiters = [driver.get(b"t", NOW + b"long-poll&cursor=%b" % now) for _ in range(3)]
    behind = [driver.get(b"t", NOW + b"long-poll&cursor=1") for _ in range(3)]
    driver.append(b"t", b"def")
    shared = {id(waiter.look_again().answer) for waiter in waiters}
    assert len(shared) == 1
    assert {id(waiter.look_again().answer) for waiter in behind}.isdisjoint(shared)
    assert waiters[0].fields["Stream-Cursor"] > behind[0].fields["Stream-Cursor"]


def test_a_kept_answer_is_not_handed_out_after_a_change(driver: Driver) -> None:
    """What was encoded before an append or a close is not what comes after it."""
    query = START + b"long-poll"
    first = driver.get(b"t", query)
    assert driver.get(b"t", query).answer is first.answer
    driver.append(b"t", b"d")
    assert driver.get(b"t", query).answer.body == b"abcd"
    driver.close_stream(b"t")
    assert driver.get(b"t", query).fields["Stream-Closed"] == "true"
    private = driver.get(b"t", query, Authorization="x")
    assert private.fields["Cache-Control"].startswith("private")


def test_shared_answers_are_let_go(driver: Driver) -> None:
    """A second later nothing is kept any more, and the next reader encodes anew."""
    first = driver.get(b"t", START + b"long-poll").answer
    driver.context.tick()
    assert driver.get(b"t", START + b"long-poll").answer is not first


# Event streams


def test_event_stream_head(driver: Driver) -> None:
    """The head comes at once, without a length, and names base64 only where it is used."""
    driver.create(b"b", "image/png")
    for path, encoding in ((b"t", None), (b"j", None), (b"b", "base64")):
        exchange = driver.get(path, START + b"sse")
        assert exchange.effects[:2] == ["StartStream", "Send"]
        assert exchange.head is not None
        assert (exchange.head.status, exchange.head.body) == (200, None)
        assert exchange.fields["Content-Type"] == "text/event-stream"
        assert exchange.fields["Cache-Control"] == "no-cache"
        assert exchange.fields.get("Stream-SSE-Data-Encoding") == encoding


def test_catch_up_then_follow(driver: Driver) -> None:
    """What is there comes first, then each append; every control says where to resume."""
    exchange = driver.get(b"t", START + b"sse")
    driver.append(b"t", b"de")
    exchange.look_again()
    driver.append(b"t", b"f")
    exchange.look_again()
    assert data_of(exchange) == ["abc", "de", "f"]
    offsets = [control["streamNextOffset"] for control in controls_of(exchange)]
    assert offsets == [format_offset(1, end).decode() for end in (3, 5, 6)]
    assert all(control["upToDate"] is True for control in controls_of(exchange))
    assert len(exchange.frames) == 3


@pytest.mark.parametrize(("path", "query"), [(b"t", NOW), (b"j", START)])
def test_an_event_stream_begins_with_a_control(driver: Driver, path: bytes, query: bytes) -> None:
    """Without data the first event tells the tail, and that the client is up to date."""
    exchange = driver.get(path, query + b"sse")
    (control,) = controls_of(exchange)
    assert control["streamNextOffset"] == driver.request("HEAD", path).next_offset.decode()
    assert control["upToDate"] is True
    assert data_of(exchange) == []


def test_event_stream_at_the_end(driver: Driver) -> None:
    """A closed stream ends the event stream right after its last control, which has no cursor."""
    driver.close_stream(b"t")
    for query, data in ((START, ["abc"]), (NOW, [])):
        exchange = driver.get(b"t", query + b"sse")
        assert exchange.over
        assert exchange.response is None
        assert data_of(exchange) == data
        (control,) = controls_of(exchange)
        assert control == {
            "streamNextOffset": format_offset(1, 3).decode(),
            "upToDate": True,
            "streamClosed": True,
        }


def test_closing_ends_an_event_stream(driver: Driver) -> None:
    """A close without data is told by a control event of its own."""
    exchange = driver.get(b"t", NOW + b"sse")
    driver.close_stream(b"t")
    assert exchange.look_again().over
    assert data_of(exchange) == []
    assert ["streamClosed" in control for control in controls_of(exchange)] == [False, True]


def test_readers_share_one_frame(driver: Driver) -> None:
    """One append is one frame object, whoever follows."""
    readers = [driver.get(b"j", NOW + b"sse") for _ in range(3)]
    driver.append(b"j", b'[1,"x"]', "application/json")
    frames = {id(reader.look_again().frames[-1]) for reader in readers}
    assert len(frames) == 1
    assert data_of(readers[0]) == ['[1,"x"]']


def test_a_slow_reader_is_not_pushed(driver: Driver) -> None:
    """While a socket is full nothing is read; then everything missed comes in one event."""
    exchange = driver.get(b"t", NOW + b"sse")
    driver.held = (Wake, Send)
    driver.append(b"t", b"1")
    exchange.look_again()
    assert isinstance(exchange.waiting, Send)
    for body in (b"2", b"3", b"4"):
        driver.append(b"t", body)
    driver.held = (Wake,)
    exchange.frames.append(exchange.waiting.frame)
    exchange.advance()
    assert data_of(exchange) == ["1", "234"]


def test_catch_up_comes_in_pieces(tmp_path: Path) -> None:
    """A long stream comes in bounded events, and only the last control says up to date."""
    with Driver(tmp_path / "data", Options(event_bytes_max=100_000)) as driver:
        text = "".join(f"line {number} äöü\n" for number in range(30_000))
        driver.create(b"t", body=text.encode())
        exchange = driver.get(b"t", START + b"sse")
        assert len(exchange.frames) > 3
        assert max(len(frame.data) for frame in exchange.frames) < 250_000
        assert "".join(data_of(exchange)) == text
        flags = ["upToDate" in control for control in controls_of(exchange)]
        assert flags == [False] * (len(flags) - 1) + [True]


def test_a_piece_does_not_end_within_a_line_end(tmp_path: Path) -> None:
    """CR and LF go in one event, because a client takes them for two line ends otherwise."""
    with Driver(tmp_path / "data", Options(event_bytes_max=70_000)) as driver:
        driver.create(b"t", body=b"x" + b"\r\n" * 150_000)
        exchange = driver.get(b"t", START + b"sse")
        assert len(exchange.frames) > 2
        assert "".join(data_of(exchange)) == "x" + "\n" * 150_000


@pytest.mark.parametrize("step", [1, 2, 3, 5])
def test_no_event_ends_within_a_character(driver: Driver, step: int) -> None:
    """A text that arrives in pieces of any size is read whole, event by event."""
    text = "aä€😀\n\u2028é" * 3
    exchange = driver.get(b"t", NOW + b"sse")
    encoded = text.encode()
    for start in range(0, len(encoded), step):
        driver.append(b"t", encoded[start : start + step])
        exchange.look_again()
    assert "".join(data_of(exchange)) == text
    offsets = [str(control["streamNextOffset"]) for control in controls_of(exchange)]
    assert offsets == sorted(set(offsets))


def test_a_broken_end_of_a_closed_text_is_not_held_back(driver: Driver) -> None:
    """When nothing more can come, the bytes that are there are sent as they are."""
    exchange = driver.get(b"t", NOW + b"sse")
    driver.append(b"t", b"x\xe2\x82")
    assert data_of(exchange.look_again()) == ["x"]
    driver.close_stream(b"t")
    exchange.look_again()
    assert data_of(exchange) == ["x", "\ufffd"]
    assert controls_of(exchange)[-1]["streamNextOffset"] == format_offset(1, 6).decode()


def test_heartbeats_and_the_regular_end(driver: Driver) -> None:
    """An idle stream has a comment every 15 s, and ends cleanly after a minute or so."""
    exchange = driver.get(b"t", NOW + b"sse")
    began_s = driver.time_s
    while not exchange.over:
        exchange.time_out()
    assert exchange.response is None
    assert 54 <= driver.time_s - began_s <= 66
    assert exchange.frames[1:] == [HEARTBEAT] * (len(exchange.frames) - 1)
    assert len(exchange.frames) - 1 == int(driver.time_s - began_s) // 15
    assert len(controls_of(exchange)) == 1


def test_a_busy_stream_ends_after_an_event(driver: Driver) -> None:
    """The end comes after a control event, and data of the same moment is left to the next read."""
    exchange = driver.get(b"t", NOW + b"sse")
    driver.time_s += 100
    driver.append(b"t", b"x")
    driver.append(b"t", b"y")
    exchange.look_again()
    assert exchange.over
    assert data_of(exchange) == ["xy"]


@pytest.mark.parametrize("lifetime_s", [0.0, 0.5])
def test_no_event_stream_is_shorter_than_a_second(tmp_path: Path, lifetime_s: float) -> None:
    """Clients take very short connections for a broken server."""
    with Driver(tmp_path / "data", Options(sse_lifetime_s=lifetime_s, sse_jitter_s=0)) as driver:
        driver.create(b"t")
        exchange = driver.get(b"t", NOW + b"sse")
        began_s = driver.time_s
        while not exchange.over:
            exchange.time_out()
        assert driver.time_s - began_s >= 1


def test_cursors_of_an_event_stream(driver: Driver) -> None:
    """The first cursor passes the client's, and none of the following falls back."""
    now = current(driver.store.now_ms())
    exchange = driver.get(b"t", NOW + b"sse&cursor=%d" % (now + 5))
    driver.append(b"t", b"x")
    exchange.look_again()
    first, second = (int(str(control["streamCursor"])) for control in controls_of(exchange))
    assert now + 5 < first <= second


def test_draining(driver: Driver) -> None:
    """A daemon that stops ends its live readers as if their time was over."""
    poll, stream = driver.get(b"t", NOW + b"long-poll"), driver.get(b"t", NOW + b"sse")
    driver.context.draining = True
    assert poll.advance(False).status == 204
    assert stream.advance(False).over
    late = driver.get(b"t", START + b"sse")
    assert late.over
    assert data_of(late) == ["abc"]


def test_an_error_before_the_head_is_an_answer(driver: Driver) -> None:
    """The first event is read before the head is sent, so the client gets a proper error."""
    driver.append(b"j", b'"abc"', "application/json")
    query = b"offset=%b&live=sse" % format_offset(2, 2)
    exchange = driver.get(b"j", query)
    assert exchange.head is None
    assert exchange.code == "offset-inside-message"


def test_an_error_after_the_head_breaks_the_stream(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Damage found later must not look like the regular end."""
    exchange = driver.get(b"t", NOW + b"sse")
    driver.append(b"t", b"x")

    def damaged(*_: object) -> None:
        raise CorruptData("segment", 1, "bad checksum")

    monkeypatch.setattr(driver.store, "read", damaged)
    with pytest.raises(StreamBroken):
        exchange.look_again()
    stream = driver.store.visible(b"t")
    assert stream is not None
    assert stream.live_readers == 0
    assert driver.get(b"t").code == "corrupt-data"


def test_offsets_of_one_stream_serve_every_mode(driver: Driver) -> None:
    """What a control event names is where any other read goes on."""
    exchange = driver.get(b"t", START + b"sse")
    offset = str(controls_of(exchange)[0]["streamNextOffset"]).encode()
    driver.append(b"t", b"def")
    for live in (b"", b"&live=long-poll"):
        assert driver.get(b"t", b"offset=" + offset + live).answer.body == b"def"
