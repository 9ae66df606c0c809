"""The clients that people have, npm's ``@durable-streams/client`` and PyPI's ``durable-streams``,
against the daemon: what they write, what they read back, and how they follow.

Both are driven through one small interface, so that the same tests judge both. What each client
can hand out is left as it is: lists of values, text or bytes.
"""

from __future__ import annotations

import base64
import contextlib
import itertools
import queue
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import httpx
import pytest
from daemon import Daemon
from durable_streams import DurableStream, RetentionGoneError, StreamExistsError
from interop.node_client import WAIT_SECONDS_MAX, ClientError, NodeClient
from simple_http import wait_until

from durable_streamsd.core.offsets import START_TOKEN

CONTENT_TYPES = {
    "json": "application/json",
    "text": "text/plain; charset=utf-8",
    "bytes": "application/octet-stream",
}

# Three to read at once, two to resume to, two to follow. The text has what server-sent events
# can lose: blanks at line starts, empty lines, a final newline, characters of several bytes.
MESSAGES: dict[str, list[Any]] = {
    "json": [{"n": 1}, [2, ["nested"]], "drei\n", None, {"ключ": "é 🙂 \x7f"}, 6.5e-3, "\n sieben"],
    "text": ["one\n", " two", "\n\n three \n", "vier é\n", "🙂\n", "\n data: x\n\n", "seven\n"],
    "bytes": [b"\0\1\2", b"\xff\xfe", b"\r\n\r\n", b"data: \n\n", b"five", b"\x80" * 999, b"\n"],
}

CUT_S_MAX = 30
"""Retention is looked after once a second, by what the index has, which is written every five."""

# PyPI's client does not decode the base64 events of a stream of bytes.
FOLLOWED = [
    combination
    for combination in itertools.product(["npm", "pypi"], CONTENT_TYPES, ["long-poll", "sse"])
    if combination != ("pypi", "bytes", "sse")
]


class Follower(Protocol):
    """A client that follows a stream live, from a given offset on."""

    def wait_live(self) -> None:
        """Return once the client has asked the server in the live mode it was told to use."""

    def take(self, wanted: Any) -> Any:
        """What the client has read once that is as long as ``wanted``, or at the deadline."""


class Client(Protocol):
    """A real client, as far as these tests use it; ``kind`` is a key of CONTENT_TYPES."""

    def create(self, url: str, kind: str) -> None:
        """Create the stream."""

    def append(self, url: str, kind: str, message: Any) -> None:
        """Append one message."""

    def read(self, url: str, kind: str, offset: str) -> tuple[Any, str]:
        """Read up to the tail; what was read, and the offset behind it."""

    def follow(self, url: str, kind: str, offset: str, live: str) -> Follower:
        """Begin to follow the stream from ``offset`` on."""


def joined(kind: str, messages: list[Any]) -> Any:
    """What a reader gets for these messages: values stay apart, text and bytes do not."""
    if kind == "json":
        return messages
    return "".join(messages) if kind == "text" else b"".join(messages)


class NpmClient:
    """npm's client, in a Node process."""

    def __init__(self, node: NodeClient) -> None:
        self.node = node

    def create(self, url: str, kind: str) -> None:
        self.node.call("create", url=url, contentType=CONTENT_TYPES[kind])

    def append(self, url: str, kind: str, message: Any) -> None:
        data = base64.b64encode(message).decode() if kind == "bytes" else message
        self.node.call("append", url=url, contentType=CONTENT_TYPES[kind], format=kind, data=data)

    def read(self, url: str, kind: str, offset: str) -> tuple[Any, str]:
        answer = self.node.call("read", url=url, offset=offset, format=kind)
        return self.plain(kind, [answer["data"]]), answer["offset"]

    def follow(self, url: str, kind: str, offset: str, live: str) -> Follower:
        return NpmFollower(self, url, kind, offset, live)

    @staticmethod
    def plain(kind: str, chunks: list[Any]) -> Any:
        """Put together the chunks of data that ``client.mjs`` reported."""
        if kind == "json":
            return [item for chunk in chunks for item in chunk]
        if kind == "text":
            return "".join(chunks)
        return b"".join(base64.b64decode(chunk) for chunk in chunks)


class NpmFollower:
    """npm's client, reading through its subscriber interface."""

    def __init__(self, client: NpmClient, url: str, kind: str, offset: str, live: str) -> None:
        self.client, self.kind, self.live = client, kind, live
        self.log = client.node.open("follow", url=url, offset=offset, live=live, format=kind)

    def wait_live(self) -> None:
        self.client.node.wait(lambda: self.live in self.log.requests, f"a {self.live} request")

    def take(self, wanted: Any) -> Any:
        def got() -> Any:
            return self.client.plain(self.kind, self.log.data)

        self.client.node.wait_or_not(lambda: len(got()) >= len(wanted))
        assert self.log.failures == self.log.outages == []
        return got()


class PypiClient:
    """PyPI's client, in this process."""

    def create(self, url: str, kind: str) -> None:
        DurableStream.create(url, content_type=CONTENT_TYPES[kind]).close()

    def append(self, url: str, kind: str, message: Any) -> None:
        with DurableStream(url, content_type=CONTENT_TYPES[kind]) as handle:
            assert handle.append(message).next_offset

    def read(self, url: str, kind: str, offset: str) -> tuple[Any, str]:
        with DurableStream(url) as handle, handle.stream(offset=offset, live=False) as answer:
            data: Any
            if kind == "json":
                data = answer.read_json()
            else:
                data = answer.read_text() if kind == "text" else answer.read_bytes()
            return data, answer.offset

    def follow(self, url: str, kind: str, offset: str, live: str) -> Follower:
        return PypiFollower(url, kind, offset, live)


class PypiFollower:
    """PyPI's client, iterating over events in a thread that ends with the daemon."""

    def __init__(self, url: str, kind: str, offset: str, live: str) -> None:
        self.asked_live = threading.Event()
        self.chunks: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.thread = threading.Thread(
            target=self._run, args=(url, kind, offset, live), daemon=True
        )
        self.thread.start()

    def _run(self, url: str, kind: str, offset: str, live: Any) -> None:
        def note(request: httpx.Request) -> None:
            if request.url.params.get("live") == live:
                self.asked_live.set()

        mode: Any = kind
        with httpx.Client(event_hooks={"request": [note]}, timeout=WAIT_SECONDS_MAX) as client:
            handle = DurableStream(url, client=client)
            try:
                with handle.stream(offset=offset, live=live) as answer:
                    for event in answer.iter_events(mode=mode):
                        self.chunks.put(event.data)
            except Exception as error:
                self.chunks.put(error)

    def wait_live(self) -> None:
        assert self.asked_live.wait(WAIT_SECONDS_MAX)

    def take(self, wanted: Any) -> Any:
        got = type(wanted)()
        deadline = time.monotonic() + WAIT_SECONDS_MAX
        with contextlib.suppress(queue.Empty):
            while len(got) < len(wanted):
                chunk = self.chunks.get(timeout=max(0.0, deadline - time.monotonic()))
                if isinstance(chunk, Exception):
                    raise chunk
                got += chunk
        return got


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon for the module: every test has a stream of its own."""
    data_dir = tmp_path_factory.mktemp("clients") / "data"
    with Daemon(data_dir, "--long-poll-timeout", "2") as daemon:
        yield daemon


@pytest.fixture
def node(node_modules: Path) -> Iterator[NodeClient]:
    """A Node process, with which every reader and producer of the test ends."""
    with NodeClient(node_modules) as node:
        yield node


@pytest.fixture
def url(daemon: Daemon) -> str:
    """The URL of a stream that does not exist yet."""
    return f"{daemon.url}/v1/stream/clients/{uuid.uuid4()}"


@pytest.fixture(params=["npm", "pypi"])
def client(request: pytest.FixtureRequest) -> Client:
    """Each of the two clients in turn."""
    if request.param == "npm":
        return NpmClient(request.getfixturevalue("node"))
    return PypiClient()


@pytest.mark.parametrize("kind", CONTENT_TYPES)
def test_a_client_reads_what_it_wrote(client: Client, url: str, kind: str) -> None:
    """A client creates a stream, appends, reads all, and resumes from the offset it saved."""
    messages = MESSAGES[kind]
    client.create(url, kind)
    assert client.read(url, kind, "-1")[0] == joined(kind, [])
    for message in messages[:3]:
        client.append(url, kind, message)
    first, saved = client.read(url, kind, "-1")
    for message in messages[3:]:
        client.append(url, kind, message)
    rest, end = client.read(url, kind, saved)
    assert first == joined(kind, messages[:3])
    assert rest == joined(kind, messages[3:])
    assert client.read(url, kind, end) == (joined(kind, []), end)
    assert client.read(url, kind, "-1") == (joined(kind, messages), end)


@pytest.mark.parametrize(("client", "kind", "live"), FOLLOWED, indirect=["client"])
def test_a_client_follows_a_stream(client: Client, url: str, kind: str, live: str) -> None:
    """A client that resumes from a saved offset gets the rest, then each append as it comes."""
    messages = MESSAGES[kind]
    client.create(url, kind)
    for message in messages[:3]:
        client.append(url, kind, message)
    _, saved = client.read(url, kind, "-1")
    for message in messages[3:5]:
        client.append(url, kind, message)
    follower = client.follow(url, kind, saved, live)
    follower.wait_live()
    for message in messages[5:]:
        client.append(url, kind, message)
    wanted = joined(kind, messages[3:])
    assert follower.take(wanted) == wanted


@pytest.mark.parametrize("live", ["long-poll", "sse"])
def test_a_follower_sees_the_end(node: NodeClient, url: str, live: str) -> None:
    """A reader that waits at the tail gets the last message and then the end of the stream."""
    npm = NpmClient(node)
    npm.create(url, "json")
    log = node.open("follow", url=url, offset="-1", live=live, format="json")
    node.wait(lambda: live in log.requests, f"a {live} request")
    npm.append(url, "json", "last")
    node.call("close", url=url, contentType=CONTENT_TYPES["json"])
    node.wait(lambda: log.ended, "the end of the stream")
    assert npm.plain("json", log.data) == ["last"]
    assert log.failures == log.outages == []


def open_producer(node: NodeClient, url: str, epoch: int, answers: str = "kept") -> Any:
    """An IdempotentProducer of npm's client; its batches hold a handful of messages."""
    return node.open(
        "openProducer",
        url=url,
        contentType=CONTENT_TYPES["json"],
        producerId="writer",
        epoch=epoch,
        answers=answers,
        batchBytes=64,
    )


def test_a_producer_whose_answers_are_lost_writes_once(node: NodeClient, url: str) -> None:
    """Each batch is sent again after it was stored, and is stored once, in order."""
    npm = NpmClient(node)
    npm.create(url, "json")
    messages = [{"number": number} for number in range(1000)]
    producer = open_producer(node, url, epoch=0, answers="lost")
    node.call("produce", producer=producer.id, messages=[f'{{"number":{n}}}' for n in range(1000)])
    node.call("flushProducer", producer=producer.id)
    assert producer.failures == []
    assert (200, 204) in producer.answers
    assert npm.read(url, "json", "-1")[0] == messages


def test_a_producer_that_starts_over_writes_nothing_twice(node: NodeClient, url: str) -> None:
    """A producer that lost its memory and sends the same batches again adds nothing."""
    npm = NpmClient(node)
    npm.create(url, "json")
    for _ in range(2):
        producer = open_producer(node, url, epoch=0)
        for number in range(20):
            node.call("produce", producer=producer.id, messages=[str(number)])
            node.call("flushProducer", producer=producer.id)
        assert producer.failures == []
    assert npm.read(url, "json", "-1")[0] == list(range(20))


def test_a_producer_of_an_old_epoch_is_fenced_off(node: NodeClient, url: str) -> None:
    """Once a producer has taken over with a higher epoch, its predecessor cannot write."""
    npm = NpmClient(node)
    npm.create(url, "json")
    old, new = open_producer(node, url, epoch=0), open_producer(node, url, epoch=1)
    for producer, message in ((old, '"old"'), (new, '"new"'), (old, '"late"')):
        node.call("produce", producer=producer.id, messages=[message])
        node.call("flushProducer", producer=producer.id)
    assert new.failures == []
    assert [failure.partition(":")[0] for failure in old.failures] == ["StaleEpochError"]
    assert npm.read(url, "json", "-1")[0] == ["old", "new"]


def test_a_client_may_create_twice_but_not_differently(client: Client, url: str) -> None:
    """Creating the same stream again is no error, and with another content type it is one."""
    client.create(url, "json")
    client.create(url, "json")
    with pytest.raises((ClientError, StreamExistsError), match=r"409|exists"):
        client.create(url, "text")


def test_clients_are_told_what_is_not_kept(node: NodeClient, url: str) -> None:
    """An offset that retention dropped is an error at once, never a retry or a gap; what the answer
    names, and the start, lead on."""
    headers = {"Content-Type": CONTENT_TYPES["json"], "Stream-Retain-Bytes": "1"}
    created = httpx.put(url, headers=headers)
    assert created.status_code == 201
    clients: list[Client] = [NpmClient(node), PypiClient()]
    for client, message in zip(clients, ["old", "new"], strict=True):
        client.append(url, "json", message)

    def earliest() -> str:
        return str(httpx.head(url).headers["Stream-Earliest-Offset"])

    start = START_TOKEN.decode()
    wait_until(lambda: earliest() != start, CUT_S_MAX, "the stream is cut")
    for client in clients:
        with pytest.raises((ClientError, RetentionGoneError), match="410"):
            client.read(url, "json", start)
        for offset in ("-1", earliest()):
            assert client.read(url, "json", offset)[0] == ["new"]
