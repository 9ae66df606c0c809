"""HTTP as clients should not, but do, speak it: against the real daemon, in both lanes, over TLS.

Whatever arrives, the answer is never a 5xx, nothing of a broken request is kept, and the next
connection works.
"""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from authority import LANES, lane_settings
from daemon import Daemon
from raw_http import Answer, Closed, RawClient, encode

BODY_BYTES_MAX = 100_000
DISCARD_BYTES_MAX = 1_000_000
TEXT = "Content-Type: text/plain"
HOST = b"Host: test\r\n"
POST = b"POST %b HTTP/1.1\r\nHost: test\r\nContent-Type: text/plain\r\n"

_names = itertools.count()


@pytest.fixture(scope="module", params=LANES)
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A daemon all of whose connections start in one lane, with small limits and usual times."""
    folder = tmp_path_factory.mktemp(request.param)
    environment = lane_settings(request.param, folder) | {
        "DURABLE_STREAMSD_DISCARD_BYTES_MAX": str(DISCARD_BYTES_MAX),
    }
    data_dir = folder / "data"
    with Daemon(data_dir, "--max-body", str(BODY_BYTES_MAX), env=environment) as daemon:
        yield daemon.url
        assert "trace=" not in daemon.stderr_tail()


@pytest.fixture
def client(url: str) -> Iterator[RawClient]:
    """A connection."""
    with RawClient(url) as connection:
        yield connection


@pytest.fixture
def path(url: str) -> str:
    """The path of an empty text stream."""
    path = f"/v1/stream/test/{next(_names)}"
    with RawClient(url) as connection:
        assert connection.request("PUT", path, TEXT).status == 201
    return path


def content(url: str, path: str) -> bytes:
    """What a stream holds."""
    with RawClient(url) as connection:
        answer = connection.request("GET", path)
    assert answer.status == 200
    return answer.body


def exists(url: str, path: str) -> bool:
    """Whether there is a stream."""
    with RawClient(url) as connection:
        return connection.request("HEAD", path).status == 200


def post_chunked(path: str, *chunks: bytes, trailer: bytes = b"") -> bytes:
    """A POST with a chunked body."""
    head = f"POST {path} HTTP/1.1\r\nHost: test\r\n{TEXT}\r\nTransfer-Encoding: chunked\r\n\r\n"
    body = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return head.encode() + body + b"0\r\n" + trailer + b"\r\n"


# ---- what is allowed


def test_pipelined_requests_are_answered_in_order(client: RawClient, path: str) -> None:
    """Many requests in one write: each sees the effects of those before it."""
    count = 200
    requests = [encode("POST", path, TEXT, body=b"%03d," % number) for number in range(count)]
    client.send(b"".join(requests) + encode("GET", path))
    for _ in range(count):
        assert client.answer().status == 204
    assert client.answer().body == b"".join(b"%03d," % number for number in range(count))


def test_pipelining_passes_between_the_lanes(client: RawClient, path: str) -> None:
    """Requests for both lanes in one write are answered in order, whoever answers them."""
    client.send(
        encode("POST", path, TEXT, body=b"one")
        + encode("GET", "/nowhere")
        + encode("POST", path, TEXT, body=b"two")
        + encode("POST", "/nowhere", body=b"GET /healthz HTTP/1.1\r\n\r\n")
        + encode("GET", path)
    )
    assert [client.answer().status for _ in range(4)] == [204, 404, 204, 404]
    assert client.answer().body == b"onetwo"


def test_more_pipelined_requests_than_are_held_do_no_harm(client: RawClient, path: str) -> None:
    """A client that sends megabytes of requests before it reads gets every answer."""
    request = encode("POST", path, TEXT, f"X-Padding: {'x' * 2000}", body=b".")
    count = 500
    client.send(request * count)
    for _ in range(count):
        assert client.answer().status == 204
    assert client.request("HEAD", path).headers["stream-next-offset"].endswith(f"{count:016}")


def test_a_request_may_arrive_byte_by_byte(client: RawClient, url: str, path: str) -> None:
    """Every byte in a segment of its own, sized and chunked."""
    sized = encode("POST", path, TEXT, body=b"sized ")
    for request in (sized, post_chunked(path, b"chun", b"ked")):
        for position in range(len(request)):
            client.send(request[position : position + 1])
        assert client.answer().status == 204
    assert content(url, path) == b"sized chunked"


def test_chunked_bodies_with_extensions_and_trailers(
    client: RawClient, url: str, path: str
) -> None:
    """What surrounds the data of a chunked body is read and dropped."""
    client.send(
        POST % path.encode()
        + b"transfer-encoding: Chunked\r\n\r\n"
        + b'3;name="value"\r\nabc\r\n000A;y=z\r\n0123456789\r\n'
        + b"0;last\r\nX-Trailer: 1\r\n\r\n"
    )
    assert client.answer().status == 204
    assert content(url, path) == b"abc0123456789"


def test_trailers_are_not_headers_of_the_next_request(
    client: RawClient, url: str, path: str
) -> None:
    """aiohttp 3.14 takes a trailer for a header of the request behind: that one is not served."""
    client.send(
        post_chunked(path, b"a", trailer=b"Stream-Closed: true\r\n")
        + encode("POST", path, TEXT, body=b"b")
    )
    assert client.answer().status == 204
    client.end()
    client.rest()
    with RawClient(url) as other:
        assert "stream-closed" not in other.request("HEAD", path).headers


def test_blank_lines_before_a_request_are_let_be(client: RawClient, path: str) -> None:
    """Old clients send an empty line after a body."""
    client.send(encode("POST", path, TEXT, body=b"a") + b"\r\n" + encode("GET", path))
    assert client.answer().status == 204
    assert client.answer().body == b"a"


def test_expect_100_continue(client: RawClient, path: str) -> None:
    """The body is asked for, and then belongs to the same request."""
    head, body = encode("POST", path, TEXT, "Expect: 100-continue", body=b"late").split(b"\r\n\r\n")
    client.send(head + b"\r\n\r\n")
    assert client.answer().status == 100
    client.send(body)
    assert client.answer().status == 204
    assert client.request("GET", path).body == b"late"


def test_expect_100_continue_chunked(client: RawClient, url: str, path: str) -> None:
    """The same with a body of unknown length."""
    head, body = post_chunked(path, b"late").split(b"\r\n\r\n", 1)
    client.send(head + b"\r\nExpect: 100-Continue\r\n\r\n")
    assert client.answer().status == 100
    client.send(body)
    assert client.answer().status == 204
    assert content(url, path) == b"late"


def test_expect_of_a_body_that_is_too_large(client: RawClient, path: str) -> None:
    """Whoever asks first is told before sending it."""
    length = f"Content-Length: {BODY_BYTES_MAX + 1}"
    client.send(POST % path.encode() + f"Expect: 100-continue\r\n{length}\r\n\r\n".encode())
    assert client.answer().status == 413
    assert client.closed()


def test_unknown_expectations_are_refused(client: RawClient, path: str) -> None:
    """Ignoring an expectation would be a lie."""
    assert client.request("POST", path, TEXT, "Expect: wonders", body=b"a").status == 417


def test_head_has_no_body(client: RawClient, path: str) -> None:
    """After the answer to HEAD the next answer follows at once, for errors too."""
    for target, status in ((path, 200), (f"{path}-missing", 404), ("/nowhere", 404)):
        client.send(encode("HEAD", target) + encode("GET", "/healthz"))
        assert client.answer(head_only=True).status == status
        assert client.answer().body == b"ok\n"


def test_connection_close_is_obeyed(client: RawClient, path: str) -> None:
    """The answer says so, and the connection ends behind it."""
    client.send(encode("POST", path, TEXT, "Connection: Close", body=b"a"))
    answer = client.answer()
    assert (answer.status, answer.headers["connection"]) == (204, "close")
    assert client.closed()


def test_http_10_closes_unless_asked(url: str, path: str) -> None:
    """An HTTP/1.0 client that does not ask to keep the connection reads to its end."""
    with RawClient(url) as client:
        client.send(f"GET {path} HTTP/1.0\r\n\r\n".encode())
        assert client.answer().status == 200
        assert client.closed()
    with RawClient(url) as client:
        for _ in range(2):
            client.send(f"GET {path} HTTP/1.0\r\nConnection: keep-alive\r\n\r\n".encode())
            answer = client.answer()
            assert answer.headers["connection"].lower() == "keep-alive"


def test_http_10_event_streams_end_with_the_connection(client: RawClient, url: str) -> None:
    """There are no chunks in HTTP/1.0."""
    path = f"/v1/stream/test/{next(_names)}"
    with RawClient(url) as other:
        other.request("PUT", path, TEXT, "Stream-Closed: true", body=b"all")
    client.send(f"GET {path}?offset=-1&live=sse HTTP/1.0\r\n\r\n".encode())
    assert b"chunked" not in client.head()
    events = client.rest()
    assert events.startswith(b"event: data\ndata:all\n\n")
    assert b'"streamClosed":true' in events


def test_a_half_closed_connection_is_answered(client: RawClient, path: str) -> None:
    """A client may say that it sends no more and still wait for its answers."""
    client.send(encode("POST", path, TEXT, body=b"a"))
    client.end()
    assert client.answer().status == 204
    assert client.closed()


def test_a_half_closed_long_poll_is_answered(client: RawClient, url: str, path: str) -> None:
    """Also when the answer takes its time."""
    client.send(encode("GET", f"{path}?offset=-1&live=long-poll"))
    client.end()
    with RawClient(url) as writer:
        assert writer.request("POST", path, TEXT, body=b"news").status == 204
    assert client.answer().body == b"news"
    assert client.closed()


def test_absolute_targets_are_understood(client: RawClient, url: str, path: str) -> None:
    """A client that takes us for a proxy (RFC 9112, 3.2.2) gets the resource all the same."""
    assert client.request("GET", f"http://elsewhere{path}?offset=-1").status == 200
    made = client.request("PUT", f"http://elsewhere:99{path}/made", TEXT)
    scheme = urlsplit(url).scheme  # how it came is known better than the client says
    assert made.headers["location"] == f"{scheme}://elsewhere:99{path}/made"


def test_a_body_with_get_is_dropped(client: RawClient, path: str) -> None:
    """It means nothing, but must not be taken for the next request."""
    smuggled = encode("PUT", f"{path}-smuggled", TEXT)
    assert client.request("GET", path, body=smuggled).status == 200
    assert client.request("HEAD", f"{path}-smuggled").status == 404


def test_an_upgrade_that_nobody_offers_is_ignored(client: RawClient, path: str) -> None:
    """The request is answered as HTTP/1.1, and so are those after it."""
    upgrade = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk")
    assert client.request("GET", path, *upgrade).status == 200
    assert client.request("GET", path).status == 200


def test_a_stored_body_is_what_was_sent(client: RawClient, path: str) -> None:
    """A content coding is the client's business: nothing is unpacked on the way."""
    body = b"\x1f\x8b\x08 not really gzip"
    answer = client.request("POST", path, TEXT, "Content-Encoding: gzip", body=body)
    assert answer.status == 204
    assert client.request("GET", path).body == body


# ---- what is too much


@pytest.mark.parametrize(
    "lines",
    [
        [f"X-Long: {'x' * 20_000}"],
        [f"X-{number}: {'x' * 1_000}" for number in range(20)],
        [f"X-{number}: x" for number in range(101)],
        ["X-Same: x"] * 101,
    ],
    ids=["one long", "many long", "many", "many of one name"],
)
def test_large_heads_are_refused(client: RawClient, path: str, lines: list[str]) -> None:
    """431, an answer that arrives, and the end of the connection."""
    answer = client.request("GET", path, *lines)
    assert (answer.status, answer.headers["connection"]) == (431, "close")
    assert client.closed()


def test_a_head_may_be_one_long_line(client: RawClient, path: str) -> None:
    """What counts is the size of the head, not of a line in it."""
    assert client.request("GET", path, f"X-Long: {'x' * 9_000}").status == 200
    assert client.request("GET", f"{path}?offset=-1&x={'x' * 9_000}").status == 200


def test_a_long_target_is_refused(client: RawClient) -> None:
    """414 or 431, before anything looks at the path."""
    answer = client.request("GET", f"/v1/stream/{'x' * 20_000}")
    assert answer.status in (414, 431)
    assert answer.headers["connection"] == "close"
    assert client.closed()


def test_a_head_without_end_is_refused(client: RawClient) -> None:
    """Nobody has to wait for the end of what is too large already."""
    client.send(b"GET /v1/stream/a HTTP/1.1\r\n" + b"X-Header: value\r\n" * 2_000)
    answer = client.answer()
    assert (answer.status, answer.headers["connection"]) == (431, "close")
    assert client.closed()


def test_the_largest_body_is_taken(client: RawClient, url: str, path: str) -> None:
    """The limit itself is allowed, sized and chunked."""
    body = b"x" * BODY_BYTES_MAX
    assert client.request("POST", path, TEXT, body=body).status == 204
    client.send(post_chunked(path, body[:70_000], body[70_000:]))
    assert client.answer().status == 204
    assert content(url, path) == 2 * body


@pytest.mark.parametrize("size", [BODY_BYTES_MAX + 1, 5 * BODY_BYTES_MAX, 3 * DISCARD_BYTES_MAX])
@pytest.mark.parametrize("chunked", [False, True], ids=["sized", "chunked"])
def test_a_body_that_is_too_large_is_answered(
    client: RawClient, url: str, path: str, size: int, chunked: bool
) -> None:
    """A client that sends all before it reads gets its 413, and nothing of the body is kept."""
    body = b"x" * size
    if chunked:
        client.send(post_chunked(path, *(body[at : at + 9_999] for at in range(0, size, 9_999))))
    else:
        client.send(encode("POST", path, TEXT, body=body))
    if size < DISCARD_BYTES_MAX:
        assert client.answer().status == 413
        assert client.closed()
    else:
        client.rest()  # where reading on would cost too much the answer may be lost
    assert content(url, path) == b""


# ---- what is broken

BROKEN_HEADS = {
    "no HTTP": b"hello\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(64)) + b"\r\n\r\n",
    "HTTP/0.9": b"GET /healthz\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/3.0": b"GET /healthz HTTP/3.0\r\n" + HOST + b"\r\n",
    "HTTP/1.1x": b"GET /healthz HTTP/1.1x\r\n" + HOST + b"\r\n",
    "unknown method": b"FROBNICATE /healthz HTTP/1.1\r\n" + HOST + b"\r\n",
    "lower-case method": b"get /healthz HTTP/1.1\r\n" + HOST + b"\r\n",
    "space in target": b"GET /v1/stream/a b HTTP/1.1\r\n" + HOST + b"\r\n",
    "no slash": b"GET healthz HTTP/1.1\r\n" + HOST + b"\r\n",
    "NUL in target": b"GET /v1/stream/a\x00b HTTP/1.1\r\n" + HOST + b"\r\n",
    "bare LF": b"GET /healthz HTTP/1.1\nHost: test\n\n",
    "bare LF after CRLF": b"GET /healthz HTTP/1.1\r\nHost: test\nX: y\r\n\r\n",
    "bare CR": b"GET /healthz HTTP/1.1\r\nHost: test\rX: y\r\n\r\n",
    "NUL in value": b"GET /healthz HTTP/1.1\r\n" + HOST + b"X: a\x00b\r\n\r\n",
    "folded": b"GET /healthz HTTP/1.1\r\n" + HOST + b"X: a\r\n b\r\n\r\n",
    "folded first": b"GET /healthz HTTP/1.1\r\n X: a\r\n" + HOST + b"\r\n",
    "space before colon": b"GET /healthz HTTP/1.1\r\n" + HOST + b"X : a\r\n\r\n",
    "no colon": b"GET /healthz HTTP/1.1\r\n" + HOST + b"X\r\n\r\n",
    "no name": b"GET /healthz HTTP/1.1\r\n" + HOST + b": a\r\n\r\n",
    "bad name": b"GET /healthz HTTP/1.1\r\n" + HOST + b"X(y): a\r\n\r\n",
    "no host": b"GET /healthz HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /healthz HTTP/1.1\r\n" + HOST + b"Host: other\r\n\r\n",
    "bad host": b"GET /healthz HTTP/1.1\r\nHost: a b\r\n\r\n",
}


@pytest.mark.parametrize("request_bytes", BROKEN_HEADS.values(), ids=BROKEN_HEADS.keys())
def test_malformed_heads_are_refused(client: RawClient, url: str, request_bytes: bytes) -> None:
    """A 4xx (505 for other versions) and the end of the connection; the next one works."""
    client.send(request_bytes)
    try:
        answer = client.answer()
    except Closed:
        answer = None  # aiohttp may end a connection that never spoke HTTP without a word
    assert answer is None or 400 <= answer.status < 500 or answer.status == 505
    assert client.closed()
    with RawClient(url) as other:
        assert other.request("GET", "/healthz").status == 200


CHUNKED = b"Transfer-Encoding: chunked\r\n"
SMUGGLING = {
    "two lengths": b"Content-Length: 6\r\nContent-Length: 7\r\n\r\nabcdef",
    "the same length twice": b"Content-Length: 6\r\nContent-Length: 6\r\n\r\nabcdef",
    "lengths in one line": b"Content-Length: 6, 6\r\n\r\nabcdef",
    "plus": b"Content-Length: +6\r\n\r\nabcdef",
    "minus": b"Content-Length: -6\r\n\r\nabcdef",
    "hexadecimal": b"Content-Length: 0x6\r\n\r\nabcdef",
    "underscore": b"Content-Length: 1_0\r\n\r\nabcdefghij",
    "other digits": "Content-Length: ٦\r\n\r\nabcdef".encode(),
    "empty length": b"Content-Length: \r\n\r\n",
    "huge length": b"Content-Length: 99999999999999999999999\r\n\r\nabcdef",
    "length and chunked": b"Content-Length: 6\r\n" + CHUNKED + b"\r\n0\r\n\r\n",
    "chunked and length": CHUNKED + b"Content-Length: 6\r\n\r\n0\r\n\r\n",
    "other coding": b"Transfer-Encoding: gzip\r\n\r\nabcdef",
    "chunked, identity": b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "gzip, chunked": b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked twice": CHUNKED + CHUNKED + b"\r\n0\r\n\r\n",
    "xchunked": b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "vertical tab": b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "space before colon": b"Transfer-Encoding : chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "no size": CHUNKED + b"\r\n\r\nabc\r\n0\r\n\r\n",
    "bad size": CHUNKED + b"\r\nxyz\r\nabc\r\n0\r\n\r\n",
    "negative size": CHUNKED + b"\r\n-1\r\nabc\r\n0\r\n\r\n",
    "0x size": CHUNKED + b"\r\n0x3\r\nabc\r\n0\r\n\r\n",
    "huge size": CHUNKED + b"\r\nffffffffffffffffff\r\nabc\r\n0\r\n\r\n",
    "chunk too long": CHUNKED + b"\r\n3\r\nabcd\r\n0\r\n\r\n",
    "chunk too short": CHUNKED + b"\r\n5\r\nabc\r\n0\r\n\r\n",
    "size ends with LF": CHUNKED + b"\r\n3\nabc\r\n0\r\n\r\n",
    "data ends with LF": CHUNKED + b"\r\n3\r\nabc\n0\r\n\r\n",
    "LF in extension": CHUNKED + b"\r\n3;a\nb\r\nabc\r\n0\r\n\r\n",
    "CR in extension": CHUNKED + b"\r\n3;a\rb\r\nabc\r\n0\r\n\r\n",
    "bad trailer": CHUNKED + b"\r\n3\r\nabc\r\n0\r\nno colon\r\n\r\n",
}


@pytest.mark.parametrize("rest", SMUGGLING.values(), ids=SMUGGLING.keys())
def test_ambiguous_bodies_are_refused(client: RawClient, url: str, path: str, rest: bytes) -> None:
    """What two servers could read differently ends the connection: a request hidden behind it is
    not served, and nothing is appended."""
    hidden = f"{path}-hidden"
    client.send(POST % path.encode() + rest + encode("PUT", hidden, TEXT))
    answer = client.answer()
    assert 400 <= answer.status < 500 or answer.status == 501
    assert client.closed()
    assert content(url, path) == b""
    assert not exists(url, hidden)


def test_random_damage_is_survived(url: str, path: str) -> None:
    """Valid requests with bytes changed, cut, doubled: never a 5xx, and the daemon stays."""
    chance = random.Random(20_260_101)
    valid = [
        encode("POST", path, TEXT, body=b"0123456789"),
        post_chunked(path, b"01234", b"56789", trailer=b"X-Trailer: y\r\n"),
        encode("GET", f"{path}?offset=-1"),
        encode("PUT", path, TEXT, "Stream-TTL: 3600"),
        encode("HEAD", path) + encode("GET", "/healthz"),
    ]
    for _ in range(400):
        damaged = bytearray(chance.choice(valid) + chance.choice(valid))
        for _ in range(chance.choice((1, 1, 2, 5))):
            at = chance.randrange(len(damaged))
            match chance.randrange(4):
                case 0:
                    damaged[at] = chance.choice(b"\r\n\0 :;,/%0Aa\xff" + bytes([damaged[at] ^ 1]))
                case 1:
                    del damaged[at : at + chance.randrange(1, 9)]
                case 2:
                    damaged[at:at] = damaged[at : at + chance.randrange(1, 30)]
                case 3:
                    damaged[at:at] = chance.choice((b"\r\n", b"\n", b"\r\n\r\n", b"\x00", b"0"))
        with RawClient(url) as client:
            client.send(bytes(damaged))
            client.end()
            received = client.rest()
        for line in received.split(b"\r\n"):
            if line.startswith(b"HTTP/1.1 "):
                assert line[9:10] in b"1234" or line[9:12] in (b"501", b"505"), bytes(damaged)
    with RawClient(url) as client:
        assert client.request("GET", "/healthz").status == 200


# ---- who goes away


@pytest.mark.parametrize("how", ["close", "half-close", "reset"])
@pytest.mark.parametrize("chunked", [False, True], ids=["sized", "chunked"])
def test_a_body_that_breaks_off_leaves_nothing(
    client: RawClient, url: str, path: str, how: str, chunked: bool
) -> None:
    """A client that vanishes in the middle of a body has appended nothing, not even a part."""
    if chunked:
        client.send(post_chunked(path, b"x" * 1_000)[:-200])
    else:
        client.send(encode("POST", path, TEXT, body=b"x" * 1_000)[:-1])
    match how:
        case "close":
            client.socket.close()
        case "half-close":
            client.end()
            assert client.rest()[:12] in (b"", b"HTTP/1.1 400")
        case "reset":
            client.vanish()
    with RawClient(url) as other:
        assert other.request("POST", path, TEXT, body=b"whole").status == 204
    assert content(url, path) == b"whole"


def test_vanishing_readers_do_no_harm(url: str, path: str) -> None:
    """Live readers that are gone when the data comes are forgotten; the others get it."""
    staying = [RawClient(url) for _ in range(4)]
    for number, reader in enumerate(staying):
        reader.send(encode("GET", f"{path}?offset=-1&live={'sse' if number % 2 else 'long-poll'}"))
    for number in range(20):
        gone = RawClient(url)
        gone.send(encode("GET", f"{path}?offset=-1&live={'sse' if number % 2 else 'long-poll'}"))
        if number % 4 < 2:
            gone.vanish()
        else:
            gone.socket.close()
    for reader in staying[1::2]:
        reader.head()  # its first event is there: it waits
    with RawClient(url) as writer:
        assert writer.request("POST", path, TEXT, body=b"news").status == 204
    for number, reader in enumerate(staying):
        assert b"news" in reader.until(b"news"), number
        reader.socket.close()


def test_requests_after_a_live_read_on_the_same_connection(
    client: RawClient, url: str, path: str
) -> None:
    """A request that was sent while a long-poll waited is answered after it."""
    client.send(encode("GET", f"{path}?offset=-1&live=long-poll") + encode("GET", "/healthz"))
    with RawClient(url) as writer:
        writer.request("POST", path, TEXT, body=b"news")
    assert client.answer().body == b"news"
    assert client.answer().body == b"ok\n"


def test_an_event_stream_ends_with_its_terminator(client: RawClient, url: str, path: str) -> None:
    """A closed stream's events end as a complete response, and the connection goes on."""
    client.send(encode("GET", f"{path}?offset=-1&live=sse"))
    head = client.head()
    assert b"Transfer-Encoding: chunked\r\n" in head
    assert b"upToDate" in client.chunk()
    with RawClient(url) as writer:
        writer.request("POST", path, TEXT, "Stream-Closed: true", body=b"bye")
    events = client.chunk()
    assert events.startswith(b"event: data\ndata:bye\n\nevent: control\n")
    assert b'"streamClosed":true' in events
    assert client.chunk() == b""
    assert client.request("GET", "/healthz").status == 200


def test_a_slow_reader_gets_everything_in_the_end(url: str) -> None:
    """Answers larger than any buffer wait for a reader that takes its time, one by one."""
    path = f"/v1/stream/test/{next(_names)}"
    block = b"".join(b"%08d" % number for number in range(BODY_BYTES_MAX // 8))
    with RawClient(url) as writer:
        writer.request("PUT", path, "Content-Type: application/octet-stream")
        for _ in range(40):
            writer.request("POST", path, "Content-Type: application/octet-stream", body=block)
    with RawClient(url) as slow:
        slow.send(encode("GET", path) * 5 + encode("GET", "/healthz"))
        with RawClient(url) as quick:
            assert quick.request("GET", path).body == block * 40
        for _ in range(5):
            assert slow.answer().body == block * 40
        assert slow.answer().body == b"ok\n"


# ---- who takes too long


@pytest.fixture(scope="module", params=LANES)
def hasty_url(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A daemon without patience."""
    times = ("HEAD_TIMEOUT_S", "BODY_TIMEOUT_S", "IDLE_TIMEOUT_S", "WRITE_TIMEOUT_S")
    environment = {f"DURABLE_STREAMSD_{name}": "0.5" for name in times}
    environment["DURABLE_STREAMSD_CONNECTIONS_MAX"] = "10"
    folder = tmp_path_factory.mktemp(f"hasty-{request.param}")
    environment |= lane_settings(request.param, folder)
    with Daemon(folder / "data", env=environment) as daemon:
        yield daemon.url
        assert "trace=" not in daemon.stderr_tail()


def refused_as_slow(client: RawClient) -> bool:
    """Whether the connection ends, with a 408 or without a word."""
    try:
        answer: Answer | None = client.answer()
    except Closed:
        answer = None
    return (answer is None or answer.status == 408) and client.closed()


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"G",
        b"GET /healthz HTTP/1.1\r\nHost: test\r\n",
        encode("GET", "/healthz")[:-2],
        encode("POST", "/v1/stream/a", TEXT, body=b"x" * 10)[:-1],
        encode("POST", "/v1/stream/a", TEXT, body=b"x" * 100_000)[:70_000],
        encode("POST", "/nowhere", TEXT, body=b"x" * 10)[:-1],
        post_chunked("/v1/stream/a", b"x" * 10)[:-3],
    ],
    ids=["nothing", "letter", "lines", "almost", "body", "large body", "foreign", "chunked"],
)
def test_what_does_not_go_on_is_ended(hasty_url: str, sent: bytes) -> None:
    """Nobody holds a connection by not finishing a request."""
    with RawClient(hasty_url) as client:
        client.send(sent)
        assert refused_as_slow(client)


def test_an_idle_connection_is_ended(hasty_url: str) -> None:
    """After an answer, too; without another byte."""
    with RawClient(hasty_url) as client:
        assert client.request("GET", "/healthz").status == 200
        assert client.closed()


def test_a_reader_that_takes_nothing_is_cut_off(hasty_url: str) -> None:
    """Neither a large answer nor an event stream waits for ever."""
    path = f"/v1/stream/test/{next(_names)}"
    with RawClient(hasty_url) as writer:
        writer.request("PUT", path, "Content-Type: application/octet-stream")
    for _ in range(8):
        with RawClient(hasty_url) as writer:
            body = b"x" * (4 << 20)
            writer.request("POST", path, "Content-Type: application/octet-stream", body=body)
    for target in (path, f"{path}?offset=-1&live=sse"):
        with RawClient(hasty_url) as client:
            client.send(encode("GET", target) * 3)
            assert client.hung_up()


def test_more_connections_than_allowed_are_turned_away(hasty_url: str) -> None:
    """503, and those that were there before go on; when they leave there is room again.

    Over TLS there is no answer, which would cost what a handshake does.
    """
    path = f"/v1/stream/test/{next(_names)}"
    with RawClient(hasty_url) as writer:
        writer.request("PUT", path, TEXT)
    readers = []
    for _ in range(10):
        readers.append(reader := RawClient(hasty_url))
        reader.send(encode("GET", f"{path}?offset=-1&live=sse"))
        reader.head()
    if hasty_url.startswith("https:"):
        with pytest.raises(ConnectionResetError):
            RawClient(hasty_url)
    else:
        with RawClient(hasty_url) as extra:
            extra.send(encode("GET", "/healthz"))
            assert extra.answer().status == 503
            assert extra.closed()
    for reader in readers:
        reader.vanish()
    while True:
        with contextlib.suppress(Closed, ConnectionResetError), RawClient(hasty_url) as again:
            again.send(encode("GET", "/healthz"))
            if again.answer().status == 200:
                break
