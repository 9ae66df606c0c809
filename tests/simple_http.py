"""One request, one connection, one answer; and waiting for a condition."""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable, Mapping

from daemon import Daemon

ANSWER_SECONDS_MAX = 30


class Answer:
    """A response, read to its end."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()


def ask(
    daemon: Daemon,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """Send a request. Raises OSError when the daemon is not there."""
    address = daemon.url.removeprefix("http://")
    connection = http.client.HTTPConnection(address, timeout=ANSWER_SECONDS_MAX)
    try:
        connection.request(method, path, body, dict(headers or {}))
        return Answer(connection.getresponse())
    finally:
        connection.close()


def append(daemon: Daemon, path: str, body: bytes, seq: int) -> Answer:
    """Append text as the producer `p` in its epoch 0."""
    headers = {"Content-Type": "text/plain"}
    headers |= {"Producer-Id": "p", "Producer-Epoch": "0", "Producer-Seq": str(seq)}
    return ask(daemon, "POST", path, body, headers)


def create(daemon: Daemon, path: str, body: bytes | None = None) -> Answer:
    """Create a stream of text."""
    return ask(daemon, "PUT", path, body, {"Content-Type": "text/plain"})


def wait_until(condition: Callable[[], bool], seconds_max: float, what: str) -> None:
    """Look again until it holds. Raises AssertionError with `what` after a time."""
    give_up = time.monotonic() + seconds_max
    while not condition():
        assert time.monotonic() < give_up, what
        time.sleep(0.02)
