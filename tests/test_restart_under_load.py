"""Restarts while everybody is busy, behind a socket that stays open as systemd's does.

What is promised of each stop: exit code 0 within 10 s, no connection refused, every acknowledged
append kept, once and in order, and every event stream ended cleanly, so that its reader goes on
from the offset that it was told last.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from daemon import Daemon
from raw_http import Answer, Closed, RawClient, encode
from simple_http import ask, create, wait_until

RESTARTS = 3
WRITERS = 8
APPENDS_BETWEEN = 400
"""Of all writers together, before the next stop."""
PATIENCE_S = 30.0


class Worker(threading.Thread):
    """A thread of the test; what it meets that it should not is in `wrong`."""

    def __init__(self, url: str, number: int, done: threading.Event) -> None:
        super().__init__(daemon=True)
        self.url = url
        self.path = f"/v1/stream/load/{number}"
        self.done = done
        self.wrong: list[str] = []

    def run(self) -> None:
        """Work until it is `done`."""
        try:
            self.work()
        except Exception as error:
            self.wrong.append(f"{type(self).__name__} of {self.path}: {error!r}")

    def work(self) -> None:
        """What it does."""
        raise NotImplementedError

    def connect(self) -> RawClient:
        """A connection; never refused."""
        return RawClient(self.url)


class Writer(Worker):
    """An idempotent producer: an append is sent again until it is acknowledged."""

    def __init__(self, url: str, number: int, done: threading.Event) -> None:
        super().__init__(url, number, done)
        self.acknowledged = 0
        self._keeps_connection = number % 2 == 0

    def line(self, seq: int) -> bytes:
        """The bytes of an append."""
        return b"%s %06d;" % (self.path.encode(), seq)

    def content(self) -> bytes:
        """What the stream has to hold."""
        return b"".join(self.line(seq) for seq in range(self.acknowledged))

    def work(self) -> None:
        """Write as fast as acknowledgements come."""
        client = self.connect()
        while not self.done.is_set():
            answer = self._send(client)
            if answer is not None and answer.status in (200, 204):
                self.acknowledged += 1
            else:
                assert answer is None or answer.status == 503, answer
            if answer is None or not self._keeps_connection or "connection" in answer.headers:
                client.socket.close()
                client = self.connect()

    def _send(self, client: RawClient) -> Answer | None:
        seq = self.acknowledged
        lines = ["Content-Type: text/plain", "Producer-Id: p", "Producer-Epoch: 0"]
        lines.append(f"Producer-Seq: {seq}")
        try:
            return client.request("POST", self.path, *lines, body=self.line(seq))
        except (Closed, OSError):
            return None  # it stopped before it read this request


class Follower(Worker):
    """Follows a stream and puts together what it was sent."""

    def __init__(self, url: str, number: int, done: threading.Event) -> None:
        super().__init__(url, number, done)
        self.received = b""
        self.ends = 0
        self._offset = "-1"


class EventFollower(Follower):
    """By an event stream, which has to end with the last chunk of its body."""

    def work(self) -> None:
        """Follow, and go on from the last control event."""
        while not self.done.is_set():
            with self.connect() as client:
                client.send(encode("GET", f"{self.path}?offset={self._offset}&live=sse"))
                try:
                    head = client.head()
                except Closed:
                    continue  # it stopped before it read this request
                assert head.startswith(b"HTTP/1.1 200"), head
                self._follow(client)
                self.ends += 1

    def _follow(self, client: RawClient) -> None:
        pending = b""
        held = b""
        for chunk in iter(client.chunk, b""):
            *events, pending = (pending + chunk).split(b"\n\n")
            for event in events:
                data = b"".join(
                    line.removeprefix(b"data:").removeprefix(b" ")
                    for line in event.split(b"\n")
                    if line.startswith(b"data:")
                )
                if event.startswith(b"event: data"):
                    held += data
                elif event.startswith(b"event: control"):
                    self._offset = json.loads(data)["streamNextOffset"]
                    self.received += held
                    held = b""
        assert (pending, held) == (b"", b""), "an event stream ended within an event"


class PollFollower(Follower):
    """By long-polls, on one connection as long as it lasts."""

    def work(self) -> None:
        """Ask for what comes after the last answer."""
        client = self.connect()
        while not self.done.is_set():
            try:
                answer = client.request("GET", f"{self.path}?offset={self._offset}&live=long-poll")
            except Closed as closed:
                assert "after b''" in str(closed), "an answer was cut"
                answer = None
            if answer is not None:
                assert answer.status in (200, 204, 503), answer
                if answer.status != 503:
                    self.received += answer.body
                    self._offset = answer.headers["stream-next-offset"]
            if answer is None or "connection" in answer.headers:
                self.ends += 1
                client.socket.close()
                client = self.connect()


def test_restarts_under_load(tmp_path: Path) -> None:
    """Stopped and started again while all write and read: nothing is lost, doubled or refused."""
    done = threading.Event()
    environment = {"DURABLE_STREAMSD_LONG_POLL_TIMEOUT_S": "1"}
    with (
        socket.create_server(("127.0.0.1", 0), backlog=1024) as listener,
        Daemon(tmp_path / "data", env=environment, listener=listener) as daemon,
    ):
        url = daemon.url
        writers = [Writer(url, number, done) for number in range(WRITERS)]
        kinds: list[Callable[[str, int, threading.Event], Follower]] = [EventFollower, PollFollower]
        followers = [kind(url, number, done) for number in range(WRITERS) for kind in kinds]
        workers: list[Worker] = [*writers, *followers]
        for writer in writers:
            assert create(daemon, writer.path).status == 201
        for worker in workers:
            worker.start()
        for _ in range(RESTARTS):
            _wait_for_appends(writers, workers)
            assert daemon.terminate() == 0
            daemon.start()
        _wait_for_appends(writers, workers)
        done.set()
        for writer in writers:
            writer.join(PATIENCE_S)
        for writer in writers:
            assert ask(daemon, "GET", writer.path).body == writer.content()
        assert daemon.terminate() == 0  # wakes the followers
        daemon.start()
        for follower in followers:
            follower.join(PATIENCE_S)
            assert not follower.is_alive()
        assert [wrong for worker in workers for wrong in worker.wrong] == []
        for follower in followers:
            assert follower.ends >= RESTARTS
            whole = writers[int(follower.path.rpartition("/")[2])].content()
            assert whole.startswith(follower.received)
            assert len(follower.received) > len(whole) / 2


def _wait_for_appends(writers: list[Writer], workers: list[Worker]) -> None:
    """Until enough more were acknowledged, or something went wrong."""
    enough = sum(writer.acknowledged for writer in writers) + APPENDS_BETWEEN

    def reached() -> bool:
        wrong = [wrong for worker in workers for wrong in worker.wrong]
        assert wrong == []
        return sum(writer.acknowledged for writer in writers) >= enough

    wait_until(reached, PATIENCE_S, "the writers do not get further")
