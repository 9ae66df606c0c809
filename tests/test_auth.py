"""Who may do what, asked of a real daemon in both lanes."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from os import kill

import pytest
from auth_lab import LIVE_SECONDS_MAX, RIGHTS, ROOT, Lab, code_of
from daemon import Daemon
from raw_http import RawClient, encode
from simple_http import wait_until

METHODS = {"read": "GET", "append": "POST", "create": "PUT", "delete": "DELETE"}
ALLOWED = (200, 201, 204)


@pytest.fixture(scope="module", params=["on", "off"], ids=["express", "general"])
def lab(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A daemon with one token for each right, on streams below `box`, and one for everything."""
    directory = tmp_path_factory.mktemp("auth")
    daemon = Daemon(
        directory / "data",
        *("--tokens-file", str(directory / "tokens.json"), "--log-level", "debug"),
        env={"DURABLE_STREAMSD_EXPRESS_LANE": request.param},
    )
    lab = Lab(daemon, directory / "tokens.json")
    lab.token("admin", "admin:**")
    for right in RIGHTS:
        lab.token(right, f"{right}:box/*")
    lab.token("elsewhere", "admin:other/**")
    with daemon:
        assert lab.status("PUT", "box/1", "admin", b"text") == 201
        yield lab


@pytest.mark.parametrize("wanted", RIGHTS)
@pytest.mark.parametrize("had", RIGHTS)
def test_each_method_needs_its_right(lab: Lab, had: str, wanted: str) -> None:
    """A token with one right does one thing, and is told 403 at the others."""
    path = f"box/{had}-{wanted}"
    assert lab.status("PUT", path, "admin", b"text") == 201
    answer = lab.ask(METHODS[wanted], path, had, b"more" if wanted != "read" else None)
    if had == wanted:
        assert answer.status in ALLOWED
    else:
        assert (answer.status, code_of(answer)) == (403, "forbidden")
        assert 'error="insufficient_scope"' in answer.headers["WWW-Authenticate"]


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "POST", "DELETE"])
@pytest.mark.parametrize("token", [None, "elsewhere", "dst_wrong", "e30.e30.e30"])
def test_a_stream_that_is_not_theirs_is_as_one_that_is_not_there(
    lab: Lab, method: str, token: str | None
) -> None:
    """The answer does not depend on whether the stream exists, lived once, or never did."""
    lab.ask("PUT", "box/gone", "admin")
    lab.ask("DELETE", "box/gone", "admin")
    told = []
    for path in ("box/1", "box/gone", "box/never"):
        for query in ("", "?offset=-1&live=sse", "?offset=5", "?live=long-poll&offset=now"):
            answer = lab.ask(
                method, path + query, token, b"x" if method in ("PUT", "POST") else b""
            )
            headers = {k: v for k, v in answer.headers.items() if k not in ("Date", "Connection")}
            told.append((answer.status, headers, answer.body))
    assert told == told[:1] * len(told)
    assert told[0][0] == (403 if token == "elsewhere" else 401)


@pytest.mark.parametrize(
    ("lines", "status", "error"),
    [
        ([], 401, None),
        (["Authorization: Basic dXNlcjpwYXNz"], 401, None),
        (["Authorization: Bearerx {token}"], 401, None),
        (["Authorization: {token}"], 401, None),
        (["Authorization: Bearer"], 400, "invalid_request"),
        (["Authorization: Bearer {token} {token}"], 400, "invalid_request"),
        (["Authorization: Bearer {token},Bearer {token}"], 400, "invalid_request"),
        (
            ["Authorization: Bearer {token}", "Authorization: Bearer {token}"],
            400,
            "invalid_request",
        ),
        (["Authorization: Bearer {token}", "authorization: Basic x"], 400, "invalid_request"),
        (["Authorization: Bearer t\xe9st"], 400, "invalid_request"),
        (["Authorization: Bearer \x7ftest"], 400, None),
        (["Authorization: Bearer\t{token}"], 401, None),
        (["Authorization: Bearer {short}"], 401, "invalid_token"),
        (["Authorization: Bearer {token}A"], 401, "invalid_token"),
        (["Authorization: Bearer {upper}"], 401, "invalid_token"),
        (["Authorization: Bearer " + "a" * 9_000], 400, "invalid_request"),
        (["Authorization: Bearer dsr_AAAA"], 401, "invalid_token"),
        (["Authorization: Bearer dsr_" + "A" * 59], 401, "invalid_token"),
        (["Authorization: Bearer a.b.c"], 401, "invalid_token"),
        (["Authorization: Bearer ===="], 400, "invalid_request"),
        (["Authorization: Bearer {token}"], 200, None),
        (["authorization: bearer {token}"], 200, None),
        (["AUTHORIZATION: BEARER   {token}  "], 200, None),
    ],
)
def test_credentials_in_any_shape(
    lab: Lab, lines: list[str], status: int, error: str | None
) -> None:
    """What is malformed is 400, what is not good 401; only the whole token, once, opens."""
    token = lab.tokens["read"]
    values = {"token": token, "short": token[:-1], "upper": token.upper()}
    with RawClient(lab.daemon.url) as client:
        client.send(encode("GET", f"{ROOT}box/1", *(line.format(**values) for line in lines)))
        answer = client.answer()
    assert answer.status == status
    challenge = answer.headers.get("www-authenticate", "")
    if status == 401 or error is not None:
        assert challenge.startswith('Bearer realm="durable-streams"')
    assert ("error=" in challenge) == (error is not None)
    assert error is None or f'error="{error}"' in challenge
    assert token.encode() not in answer.body


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("box/1", 200),
        ("box%2F1", 200),
        ("%62ox/%31", 200),
        ("other/../box/1", 400),
        ("box/../other/1", 400),
        ("box/%2e%2e/other/1", 400),
        ("box/..%2fother%2f1", 400),
        ("box//1", 400),
        ("/box/1", 400),
        ("box/1/", 400),
        ("box/1%00", 400),
        ("box/%2E", 400),
        ("box/a%2Fb", 403),
        ("box%252F1", 403),
        ("BOX/1", 403),
        ("box\\1", 403),
        ("other/1", 403),
        ("box/1%3Foffset", 404),
        ("box/*", 404),
        ("box/**", 404),
        ("*/1", 403),
    ],
)
def test_no_spelling_steps_around_a_pattern(lab: Lab, path: str, status: int) -> None:
    """Scopes are compared with the path that the store would use, decoded once."""
    lab.ask("PUT", "other/1", "admin", b"secret")
    target = path if path.startswith("/v1") else ROOT + path
    for prefix in ("", lab.daemon.url):  # in absolute form too
        with RawClient(lab.daemon.url) as client:
            answer = client.request(
                "GET", prefix + target, f"Authorization: Bearer {lab.tokens['read']}"
            )
        assert answer.status == status
        assert b"secret" not in answer.body


def test_a_fork_needs_its_source_to_be_readable(lab: Lab) -> None:
    """Whoever may create, but not read the source, does not get at it by forking."""
    lab.token("forker", "create:mine/*", "read:mine/*")
    wait_until(lambda: lab.status("PUT", "mine/a", "forker", b"own") in (200, 201), 10, "known")
    for source in ("box/1", "box/never", "%62ox%2F1"):
        answer = lab.ask(
            "PUT", "mine/b", "forker", headers={"Stream-Forked-From": f"{ROOT}{source}"}
        )
        assert (answer.status, code_of(answer)) == (403, "forbidden")
    good = {"Stream-Forked-From": f"{ROOT}mine/a"}
    assert lab.ask("PUT", "mine/c", "forker", headers=good).status == 201


def test_what_is_open_stays_open(lab: Lab) -> None:
    """Health, preflight, and the key that webhooks are signed with need no token."""
    for path in ("/healthz", "/health", "/readyz", ROOT + "__ds/jwks.json"):
        assert lab.status("GET", path) == 200
    for path in ("box/1", "__ds/streams", "__ds/subscriptions/x", "__ds/tokens"):
        answer = lab.ask("OPTIONS", path)
        assert answer.status == 204
        assert "Authorization" in answer.headers["Access-Control-Allow-Headers"]


def test_metrics_are_for_those_who_watch(lab: Lab) -> None:
    """A right of its own, on everything; none to read streams is needed, and none is enough."""
    lab.token("watcher", "metrics:**")
    lab.token("part", "metrics:box/**", "read:**")
    wait_until(lambda: lab.status("GET", "box/1", "part") == 200, 10, "known")
    for watcher in ("watcher", "admin"):
        assert lab.status("GET", "/metrics", watcher) not in (401, 403)
    for token, status in ((None, 401), ("dst_wrong", 401), ("part", 403), ("read", 403)):
        assert lab.ask("GET", "/metrics", token).status == status
    assert lab.status("GET", "box/1", "watcher") == 403


def test_reads_are_for_their_caller_alone(lab: Lab) -> None:
    """No shared cache may keep what needs a token, nor a browser give it to its next user."""
    for query in ("", "?offset=-1", "?offset=-1&live=long-poll"):
        answer = lab.ask("GET", "box/1" + query, "read")
        assert answer.headers["Cache-Control"].startswith("private, max-age=")
        assert answer.headers["Vary"] == "Authorization"
    offset = answer.headers["Stream-Next-Offset"]
    assert lab.ask("GET", f"box/1?offset={offset}", "read").headers["Cache-Control"] == (
        "private, no-cache"
    )
    with lab.live("box/1", "offset=-1&live=sse", "read") as client:
        assert b"\r\nCache-Control: private, no-cache\r\n" in client.head()
    assert lab.ask("GET", "box/1", None).headers["Cache-Control"] == "no-store"


def test_a_producer_without_the_right_is_told_401(lab: Lab) -> None:
    """403 is how the protocol says that an epoch is stale: a producer would claim the next."""
    headers = {"Producer-Id": "p", "Producer-Epoch": "0", "Producer-Seq": "0"}
    answer = lab.ask("POST", "box/1", "read", b"x", headers)
    assert (answer.status, code_of(answer)) == (401, "not-permitted")
    assert 'error="insufficient_scope"' in answer.headers["WWW-Authenticate"]


@pytest.mark.parametrize("token", [None, "read", "dst_wrong"])
def test_a_large_body_of_a_stranger_is_not_kept(lab: Lab, token: str | None) -> None:
    """It is read and dropped, so that the answer arrives; nothing is sent after an Expect."""
    lines = [] if token is None else [f"Authorization: Bearer {lab.tokens.get(token, token)}"]
    status = 403 if token == "read" else 401
    with RawClient(lab.daemon.url) as client:
        client.send(encode("POST", f"{ROOT}box/1", *lines, body=b"x" * (8 << 20)))
        assert client.answer().status == status
    chunked = ["Transfer-Encoding: chunked", *lines]
    with RawClient(lab.daemon.url) as client:
        head = encode("GET", f"{ROOT}box/1", *chunked).replace(b"GET", b"PUT", 1)
        client.send(head + b"100000\r\n" + b"x" * 0x100000 + b"\r\n0\r\n\r\n")
        assert client.answer().status == status
    with RawClient(lab.daemon.url) as client:
        head = encode(
            "GET", f"{ROOT}box/1", "Content-Length: 9000000", "Expect: 100-continue", *lines
        )
        client.send(head.replace(b"GET", b"POST", 1))
        assert client.answer().status == status


# ---- listing


def test_a_listing_needs_everything_under_its_prefix(lab: Lab) -> None:
    """Whoever may read a part of it would learn of the rest, by where pages end."""
    lab.token("lister", "read:list/mine/**")
    lab.ask("PUT", "list/theirs", "admin")
    wait_until(lambda: lab.status("GET", "list/mine/x", "lister") == 404, 10, "known")
    lab.ask("PUT", "list/mine/1", "admin")
    forked = {"Stream-Forked-From": f"{ROOT}box/1"}
    assert lab.ask("PUT", "list/mine/2", "admin", headers=forked).status == 201
    wait_until(
        lambda: (
            len(
                json.loads(lab.ask("GET", "__ds/streams?prefix=list/mine/", "admin").body)[
                    "streams"
                ]
            )
            == 2
        ),
        10,
        "both are listed",
    )
    answer = lab.ask("GET", "__ds/streams?prefix=list/mine/", "lister")
    assert [entry["path"] for entry in json.loads(answer.body)["streams"]] == [
        "list/mine/1",
        "list/mine/2",
    ]
    assert b"forked_from" not in answer.body  # its source is none of theirs
    assert b"forked_from" in lab.ask("GET", "__ds/streams?prefix=list/mine/", "admin").body
    for query in ("", "?prefix=list/", "?prefix=list/mine", "?prefix=list%2Fmin"):
        answer = lab.ask("GET", f"__ds/streams{query}", "lister")
        assert (answer.status, code_of(answer)) == (403, "FORBIDDEN")
        assert lab.status("GET", f"__ds/streams{query}") == 401


# ---- tokens for one reader


def lend(lab: Lab, path: str, token: str | None = "read", **more: object) -> str:
    answer = lab.ask("POST", "__ds/tokens", token, json.dumps({"path": path, **more}).encode())
    assert answer.status == 200
    assert answer.headers["Cache-Control"] == "no-store"
    lent = json.loads(answer.body)["token"]
    assert isinstance(lent, str)
    return lent


def test_a_reader_token_reads_one_stream(lab: Lab) -> None:
    """In the query or in the header, with GET and HEAD; no other stream, and nothing else."""
    lent = lend(lab, "box/1")
    for target in (f"box/1?access_token={lent}", f"%62ox%2F1?offset=-1&access_token={lent}"):
        answer = lab.ask("GET", target)
        assert (answer.status, answer.body) == (200, b"text")
        assert answer.headers["Cache-Control"].startswith("private")
        assert lent not in str(answer.headers)
        assert lab.status("HEAD", target) == 200
    assert lab.ask("GET", "box/1", lent).body == b"text"
    plain = lab.ask("GET", "box/1", "read").headers["ETag"]
    assert plain == answer.headers["ETag"]
    for method, path in (("GET", "box/2"), ("GET", "box/1/x"), ("HEAD", "box")):
        assert lab.status(method, f"{path}?access_token={lent}") == 401
    for method in ("PUT", "POST", "DELETE"):
        assert lab.status(method, f"box/1?access_token={lent}", None, b"x") == 401
        assert lab.status(method, "box/1", lent, b"x") == 401
    for path in ("__ds/streams?prefix=box/", "__ds/tokens", "__ds/subscriptions/x"):
        method = "POST" if path.endswith("tokens") else "GET"
        assert lab.status(method, path, lent, b'{"path": "box/1"}') == 401


def test_an_event_source_gets_in_by_the_query(lab: Lab) -> None:
    """The stream that it begins is as any other."""
    lent = lend(lab, "box/1")
    with lab.live("box/1", f"offset=-1&live=sse&access_token={lent}", "nobody") as client:
        assert client.head().startswith(b"HTTP/1.1 200 ")
        assert b"text" in client.chunk()


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("access_token={lent}&access_token={lent}", 400),
        ("access_token={lent}&access_token=", 400),
        ("access_token=", 401),
        ("access_token", 401),
        ("Access_Token={lent}", 401),
        ("access%5Ftoken={lent}", 401),
        ("xaccess_token={lent}", 401),
        ("access_token={lent}x", 401),
        ("access_token={read}", 401),
        ("access_token=%ff%00", 401),
        ("access_token={lent}&offset=-1&offset=-1", 400),
        ("offset=-1&access_token={lent}&cursor=1", 200),
    ],
)
def test_the_query_is_read_in_one_way(lab: Lab, query: str, status: int) -> None:
    """One token, by its exact name; a token for more than reading has no business in a URL."""
    values = {"lent": lend(lab, "box/1"), "read": lab.tokens["read"]}
    assert lab.status("GET", "box/1?" + query.format(**values)) == status


def test_two_ways_at_once_are_refused(lab: Lab) -> None:
    """RFC 6750, 2: one request, one way to send a token."""
    answer = lab.ask("GET", f"box/1?access_token={lend(lab, 'box/1')}", "read")
    assert (answer.status, code_of(answer)) == (400, "bad-authorization")


def test_who_may_lend(lab: Lab) -> None:
    """Whoever may read the stream, there or not; a lent token is never lent on."""
    for token, path, status in (
        ("append", "box/1", 403),
        ("read", "other/1", 403),
        ("read", "box/never", 200),
        ("admin", "any/thing", 200),
        (None, "box/1", 401),
        (lend(lab, "box/1"), "box/1", 401),
    ):
        body = json.dumps({"path": path}).encode()
        assert lab.status("POST", "__ds/tokens", token, body) == status
    for bad in (b"", b"{}", b'{"path": "a//b"}', b'{"path": "a", "ttl_s": 3601}', b"[]"):
        assert lab.ask("POST", "__ds/tokens", "admin", bad).status == 400
    assert lab.status("GET", "__ds/tokens", "admin") == 405


def test_a_lent_token_ends_in_time_and_with_its_lender(lab: Lab) -> None:
    """After its own time, after its lender's, and as soon as its lender is revoked."""
    short = lend(lab, "box/1", ttl_s=1)
    wait_until(lambda: lab.status("GET", f"box/1?access_token={short}") == 401, 10, "expired")
    lab.token("lender", "read:box/*", lifetime_s=3_000)
    wait_until(lambda: lab.status("GET", "box/1", "lender") == 200, 10, "known")
    body = json.dumps({"path": "box/1", "ttl_s": 3_600}).encode()
    answer = json.loads(lab.ask("POST", "__ds/tokens", "lender", body).body)
    ends = {entry["name"]: entry for entry in json.loads(lab.file.read_text())["tokens"]}
    assert answer["expires_at"][:19] <= ends["lender"]["expires_at"][:19]
    with lab.live("box/1", f"offset=-1&live=sse&access_token={answer['token']}", "x") as client:
        client.head()
        assert b"text" in client.chunk()
        lab.revoke("lender")
        ended(client)
    assert lab.status("GET", f"box/1?access_token={answer['token']}") == 401


def ended(client: RawClient) -> None:
    """Wait for an event stream's clean end."""
    client.socket.settimeout(LIVE_SECONDS_MAX)
    while client.chunk():
        pass


# ---- time, and changes


def test_live_readers_end_when_their_token_expires(lab: Lab) -> None:
    """An event stream cleanly, a long-poll with a 401; whoever comes again is told."""
    lab.token("brief", "read:box/*", lifetime_s=3)
    wait_until(lambda: lab.status("GET", "box/1", "brief") == 200, 3, "known")
    with (
        lab.live("box/1", "offset=-1&live=sse", "brief") as events,
        lab.live("box/1", "offset=now&live=long-poll", "brief") as poll,
    ):
        assert events.head().startswith(b"HTTP/1.1 200 ")
        ended(events)
        assert poll.answer().status == 401
        assert events.request("GET", f"{ROOT}box/1").status == 401  # the connection goes on
    answer = lab.ask("GET", "box/1", "brief")
    assert (answer.status, code_of(answer)) == (401, "invalid-token")


@pytest.mark.parametrize("by", ["itself", "SIGHUP"])
def test_revoking_ends_what_the_token_began(lab: Lab, by: str) -> None:
    """Live reads end, and the next request on a connection is refused, though its head was known;
    whoever has another token notices nothing."""
    name = f"victim-{by}"
    lab.token(name, "read,append:box/*")
    wait_until(lambda: lab.status("GET", "box/1", name) == 200, 10, "known")
    line = f"Authorization: Bearer {lab.tokens[name]}"
    with (
        lab.live("box/1", "offset=now&live=sse", name) as events,
        lab.live("box/1", "offset=now&live=long-poll", name) as poll,
        lab.live("box/1", "offset=now&live=sse", "read") as other,
        RawClient(lab.daemon.url) as client,
    ):
        for reader in (events, other):
            reader.head()
            assert b"control" in reader.chunk()
        for _ in range(3):
            assert client.request("GET", f"{ROOT}box/1", line).status == 200
        lab.revoke(name)
        if by == "SIGHUP":
            kill(lab.daemon.pid, signal.SIGHUP)
        ended(events)
        answer = poll.answer()
        assert answer.status == 401
        assert b"invalid-token" in answer.body
        assert client.request("GET", f"{ROOT}box/1", line).status == 401
        assert lab.status("POST", "box/1", name, b"x") == 401
        assert lab.status("POST", "box/1", "admin", b"news") == 204
        while b"news" not in other.chunk():
            pass


def test_a_bad_file_changes_nothing(lab: Lab) -> None:
    """Half written, empty or missing: the tokens in force stay so, and the log says why; the next
    good file counts again."""
    good = lab.file.read_bytes()

    def said() -> int:
        return lab.daemon.stderr_path.read_text().count("What was in force stays so")

    for content in (good[: len(good) // 2], b"", None):
        before = said()
        if content is None:
            lab.file.unlink()
        else:
            lab.file.write_bytes(content)
        wait_until(lambda: said() > before, 10, "the log says so")  # noqa: B023
        kill(lab.daemon.pid, signal.SIGHUP)
        wait_until(lambda: said() > before + 1, 10, "and again when told to reload")  # noqa: B023
        assert lab.status("GET", "box/1", "read") == 200
        assert lab.status("GET", "box/1", "dst_wrong") == 401
    lab.file.write_bytes(good)
    lab.token("after", "read:box/*")
    wait_until(lambda: lab.status("GET", "box/1", "after") == 200, 10, "known")


def test_no_token_is_in_the_log(lab: Lab) -> None:
    """Neither those of the file nor lent ones, at the most talkative level."""
    lent = lend(lab, "box/1")
    lab.ask("GET", f"box/1?access_token={lent}")
    lab.ask("GET", f"box/1?access_token={lent}&offset=junk")
    log = lab.daemon.stderr_path.read_text()
    assert lent not in log
    assert not [name for name, token in lab.tokens.items() if token in log]
