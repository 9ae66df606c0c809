"""nginx in front, as in `packaging/nginx`: what it caches, and which requests it joins."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from authority import Authority
from daemon import Daemon
from nginx_proxy import Nginx
from raw_http import RawClient, encode
from simple_http import wait_until

TEXT = "Content-Type: text/plain"
READERS = 500
WAITERS_MAX = 5
LONG_POLL_S = 3

_names = itertools.count()


class Stack(NamedTuple):
    """What is running."""

    daemon: Daemon
    nginx: Nginx
    authority: Authority

    def client(self) -> RawClient:
        """A connection to nginx."""
        return RawClient(self.nginx.url, self.authority.client_context())


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """nginx before a daemon that answers no more than a handful of live readers of a stream."""
    folder = tmp_path_factory.mktemp("nginx")
    folder.chmod(0o755)
    authority = Authority(folder)
    environment = {
        "DURABLE_STREAMSD_TRUSTED_PROXIES": "127.0.0.1",
        "DURABLE_STREAMSD_WAITERS_PER_STREAM_MAX": str(WAITERS_MAX),
    }
    timeout = ("--long-poll-timeout", str(LONG_POLL_S))
    with (
        Daemon(folder / "data", *timeout, env=environment) as daemon,
        Nginx(folder, authority, daemon.url) as nginx,
    ):
        yield Stack(daemon, nginx, authority)


@pytest.fixture
def path(stack: Stack) -> str:
    """The path of an empty text stream."""
    path = f"/v1/stream/test/{next(_names)}"
    with stack.client() as client:
        assert client.request("PUT", path, TEXT).status == 201
    return path


def test_five_hundred_long_polls_become_a_handful(stack: Stack, path: str) -> None:
    """All get the data, then all are told that there is no more, then all get what comes next;
    each time the daemon is asked by no more than it allows."""
    clients = [stack.client() for _ in range(READERS)]

    def all_wait() -> bool:
        return stack.nginx.in_progress() >= READERS

    with stack.client() as writer:
        position, cursor = writer.request("HEAD", path).headers["stream-next-offset"], ""
        for round_number, news in enumerate((b"first", None, b"second")):
            target = f"{path}?cursor={cursor}&live=long-poll&offset={position}"
            for client in clients:
                client.send(encode("GET", target))
            wait_until(all_wait, 20, "nginx does not have all requests")
            if news is not None:
                assert writer.request("POST", path, TEXT, body=news).status == 204
            answers = [client.answer() for client in clients]
            assert {answer.status for answer in answers} == {204 if news is None else 200}
            assert {answer.body for answer in answers} == {news or b""}
            assert len({answer.headers["stream-cursor"] for answer in answers}) == 1
            headers = answers[0].headers
            position, cursor = headers["stream-next-offset"], headers["stream-cursor"]
            wait_until(lambda: stack.nginx.requests(target)[0] == READERS, 20, "log")  # noqa: B023
            asked = stack.nginx.requests(target)[1]
            assert 1 <= asked <= WAITERS_MAX, f"round {round_number}: {asked}"
    for client in clients:
        client.socket.close()


def test_urls_are_those_of_the_client(stack: Stack) -> None:
    """Location has the scheme and the host that the client used."""
    with stack.client() as client:
        made = client.request("PUT", "/v1/stream/location", TEXT)
    assert made.headers["location"] == "https://test/v1/stream/location"


def test_event_streams_are_passed_on_as_they_come(stack: Stack, path: str) -> None:
    """Each event at once, to several readers of one URL, none of which waits for another."""
    readers = [stack.client() for _ in range(3)]
    for reader in readers:
        reader.send(encode("GET", f"{path}?live=sse&offset=-1"))
        reader.head()
        assert b"upToDate" in reader.until(b"\n\n")
    with stack.client() as writer:
        for number in range(3):
            writer.request("POST", path, TEXT, body=b"<%d>" % number)
            for reader in readers:
                reader.until(b"data:<%d>" % number)
    for reader in readers:
        reader.socket.close()


def test_catch_up_reads_are_cached(stack: Stack, path: str) -> None:
    """What is there is asked for once; the tail, HEAD and `now` are asked for each time."""
    with stack.client() as client:
        client.request("POST", path, TEXT, body=b"text")
        for _ in range(3):
            assert client.request("GET", f"{path}?offset=-1").body == b"text"
        tail = client.request("HEAD", path).headers["stream-next-offset"]
        client.request("POST", path, TEXT, body=b"more")
        assert client.request("HEAD", path).headers["stream-next-offset"] > tail
        assert client.request("GET", f"{path}?offset={tail}").body == b"more"
        for _ in range(2):
            assert client.request("GET", f"{path}?offset=now").status == 200
    wait_until(lambda: stack.nginx.requests(f"{path}?offset=now ")[0] == 2, 20, "log")
    assert stack.nginx.requests(f"{path}?offset=now ") == (2, 2)
    assert stack.nginx.requests(f"{path}?offset=-1 ") == (3, 1)
    assert stack.nginx.requests(f"{path} ")[0] == stack.nginx.requests(f"{path} ")[1]


def test_long_polls_from_now_are_not_kept(stack: Stack, path: str) -> None:
    """`now` is another place each time: nobody gets the news of before."""
    with stack.client() as reader, stack.client() as writer:
        for news in (b"one", b"two"):
            reader.send(encode("GET", f"{path}?live=long-poll&offset=now"))
            with stack.client() as probe:  # an event stream begins after the reader does
                probe.send(encode("GET", f"{path}?live=sse&offset=now"))
                probe.until(b"upToDate")
            assert writer.request("POST", path, TEXT, body=news).status == 204
            assert reader.answer().body in (news, b"")
    assert (
        stack.nginx.requests(f"{path}?live=long-poll")[0]
        == stack.nginx.requests(f"{path}?live=long-poll")[1]
    )


@pytest.mark.parametrize("credentials", ["Authorization: Bearer x", "Cookie: session=x"])
def test_readers_with_credentials_share_nothing(stack: Stack, path: str, credentials: str) -> None:
    """Neither what others were given nor what they are given is kept."""
    with stack.client() as client:
        client.request("POST", path, TEXT, body=b"text")
        for _ in range(2):
            for query in ("?offset=-1", "?live=long-poll&offset=-1"):
                assert client.request("GET", path + query, credentials).body == b"text"
    wait_until(lambda: stack.nginx.requests(f"{path}?")[0] == 4, 20, "log")
    assert stack.nginx.requests(f"{path}?") == (4, 4)


def test_http_2(stack: Stack, path: str) -> None:
    """A client that speaks it is answered with it, event streams too."""
    url = f"{stack.nginx.url}{path}"
    curl = ["curl", "-sS", "--http2", "--cacert", str(stack.authority.ca)]
    said = subprocess.run(
        [*curl, "-o", "/dev/null", "-w", "%{http_version} %{http_code}", "-H", TEXT,
         "-d", "text", url],
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert said.stdout == "2 204", said.stderr
    with subprocess.Popen(
        [*curl, "-N", f"{url}?live=sse&offset=-1"], stdout=subprocess.PIPE
    ) as events:
        assert events.stdout is not None
        assert events.stdout.readline() == b"event: data\n"
        assert events.stdout.readline() == b"data:text\n"
        events.terminate()
