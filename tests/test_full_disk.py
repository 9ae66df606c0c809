"""A disk that fills up under the daemon, for real: a small tmpfs, and a small ext4.

While it is full: appends and creations answer 507 and nothing of them is kept, readers go on, live
ones too, deletions are written from the reserve, and the daemon can be killed and started. Once
there is space, writing resumes by itself, and everything acknowledged is there.
"""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from daemon import ROOT, Daemon
from volumes import small_volume

VOLUME_BYTES = 56 << 20
LEFT_BYTES = 3 << 20
"""What the filler leaves, so that it is an append that fills the disk."""
APPENDS_MAX = 400
LARGE_BYTES = 60_000
DOOMED = 60
RESUME_SECONDS_MAX = 10.0
WAIT_SECONDS_MAX = 20.0
TOOL_SECONDS_MAX = 60
SETTINGS = {
    "DURABLE_STREAMSD_SEGMENT_BYTES": str(4 << 20),
    "DURABLE_STREAMSD_BODY_BYTES_MAX": str(1 << 20),
    "DURABLE_STREAMSD_LONG_POLL_TIMEOUT_S": "1",
}
LOG = "/v1/stream/log"


class Answer:
    """A response, read to its end."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()


def ask(
    daemon: Daemon, method: str, path: str, body: bytes | None = None, seq: int | None = None
) -> Answer:
    """One request on a connection of its own; with `seq`, as a producer."""
    connection = http.client.HTTPConnection(daemon.url.removeprefix("http://"), timeout=30)
    try:
        headers = {"Content-Type": "text/plain"}
        if seq is not None:
            headers |= {"Producer-Id": "p", "Producer-Epoch": "0", "Producer-Seq": str(seq)}
        connection.request(method, path, body, headers)
        return Answer(connection.getresponse())
    finally:
        connection.close()


def code(answer: Answer) -> str:
    """The stable code of an error answer."""
    return str(json.loads(answer.body)["code"])


def read(daemon: Daemon, path: str) -> bytes:
    """A stream, from its start to its end."""
    data = b""
    offset = "-1"
    while True:
        answer = ask(daemon, "GET", f"{path}?offset={offset}")
        assert answer.status == 200, answer.body
        data += answer.body
        offset = answer.headers["Stream-Next-Offset"]
        if "Stream-Up-To-Date" in answer.headers:
            return data


def wait_until(condition: Callable[[], bool], seconds_max: float, what: str) -> None:
    """Look again until it holds. Raises AssertionError with `what` after a time."""
    give_up = time.monotonic() + seconds_max
    while not condition():
        assert time.monotonic() < give_up, what
        time.sleep(0.02)


class Follower(threading.Thread):
    """A live reader on one SSE connection."""

    def __init__(self, daemon: Daemon, path: str, offset: str) -> None:
        super().__init__(daemon=True)
        self.received = b""
        self.ended = False
        self._connection = http.client.HTTPConnection(daemon.url.removeprefix("http://"))
        self._connection.request("GET", f"{path}?offset={offset}&live=sse")
        self._response = self._connection.getresponse()
        assert self._response.status == 200
        self.start()

    def run(self) -> None:
        """Collect what comes."""
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
            while data := self._response.read1():
                self.received += data
        self.ended = True


class Filler:
    """A file that somebody else fills the disk with."""

    def __init__(self, volume: Path) -> None:
        self._path = volume / "filler"

    def leave(self, left_bytes: int) -> None:
        """Take space until only so much is left."""
        stat = os.statvfs(self._path.parent)
        self._write((stat.f_bavail * stat.f_frsize - left_bytes) // 4096 * 4096)

    def take_all(self) -> None:
        """Take whatever is left."""
        self._write(1 << 40)

    def _write(self, size_bytes: int) -> None:
        block = bytes(4096)
        with self._path.open("ab", buffering=0) as file:
            try:
                for _ in range(size_bytes // len(block)):
                    file.write(block)
                os.fsync(file.fileno())
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise

    def give_back(self) -> None:
        """Take nothing any more."""
        self._path.unlink()


@pytest.fixture(params=["tmpfs", "ext4"])
def volume(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A small file system."""
    with small_volume(tmp_path, request.param, VOLUME_BYTES) as mounted:
        yield mounted


@pytest.fixture
def daemon(volume: Path) -> Iterator[Daemon]:
    """A daemon on that file system, which writes its log elsewhere."""
    running = Daemon(volume / "data", env=SETTINGS)
    running.stderr_path = volume.with_name("stderr")
    running.start()
    try:
        yield running
    finally:
        with contextlib.suppress(RuntimeError, AssertionError):
            running.kill()


class Writer:
    """One producer and what was acknowledged to it."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.acknowledged: list[bytes] = []
        assert ask(daemon, "PUT", LOG).status == 201

    def write(self, size_bytes: int) -> Answer:
        """Send the next append, or again the one that was not acknowledged."""
        seq = len(self.acknowledged)
        body = (b"%06d " % seq).ljust(size_bytes, b"x") + b"\n"
        answer = ask(self.daemon, "POST", LOG, body, seq)
        if answer.status == 200:
            self.acknowledged.append(body)
        return answer

    def fill(self) -> Answer:
        """Write until the disk is full; the answer that said so."""
        for _ in range(APPENDS_MAX):
            answer = self.write(LARGE_BYTES)
            if answer.status != 200:
                return answer
        raise AssertionError("the disk is never full")

    @property
    def content(self) -> bytes:
        """What the stream has to hold."""
        return b"".join(self.acknowledged)


def prepare(daemon: Daemon, volume: Path) -> tuple[Writer, Filler]:
    """Streams to delete, a stream to write to, and a disk that is full."""
    for number in range(DOOMED):
        assert ask(daemon, "PUT", f"/v1/stream/doomed/{number}", b"here\n").status == 201
    writer = Writer(daemon)
    for _ in range(20):
        assert writer.write(100).status == 200
    filler = Filler(volume)
    filler.leave(LEFT_BYTES)
    answer = writer.fill()
    assert (answer.status, code(answer)) == (507, "out-of-space")
    assert int(answer.headers["Retry-After"]) > 0
    return writer, filler


def assert_clean(daemon: Daemon) -> None:
    """`verify` finds no damage in a stopped daemon's directory."""
    command = [sys.executable, "-m", "durable_streamsd", "verify"]
    command += ["--data-dir", str(daemon.data_dir)]
    result = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=TOOL_SECONDS_MAX
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_full_disk_refuses_writes_and_heals_by_itself(daemon: Daemon, volume: Path) -> None:
    """507 for appends, reads and deletes go on, writing resumes, and nothing is lost."""
    writer, filler = prepare(daemon, volume)
    tail = ask(daemon, "HEAD", LOG).headers["Stream-Next-Offset"]
    follower = Follower(daemon, LOG, tail)

    assert writer.write(LARGE_BYTES).status == 507, "again: no state is left of the first"
    assert ask(daemon, "PUT", "/v1/stream/new").status == 507
    assert ask(daemon, "GET", "/v1/stream/new").status == 404
    assert read(daemon, LOG) == writer.content
    assert ask(daemon, "GET", f"{LOG}?offset={tail}&live=long-poll").status == 204
    assert ask(daemon, "GET", "/healthz").status == 200
    for number in range(DOOMED):
        assert ask(daemon, "DELETE", f"/v1/stream/doomed/{number}").status == 204, number
        assert ask(daemon, "GET", f"/v1/stream/doomed/{number}").status == 404

    filler.give_back()
    wait_until(
        lambda: writer.write(LARGE_BYTES).status == 200,
        RESUME_SECONDS_MAX,
        "writing resumes when there is space",
    )
    wait_until(
        lambda: b"data:%06d " % (len(writer.acknowledged) - 1) in follower.received,
        WAIT_SECONDS_MAX,
        "the live reader goes on",
    )
    assert not follower.ended
    assert read(daemon, LOG) == writer.content
    daemon.kill()
    daemon.start()
    assert read(daemon, LOG) == writer.content
    assert ask(daemon, "GET", "/v1/stream/doomed/0").status == 404
    assert writer.write(100).status == 200
    assert daemon.terminate() == 0
    assert_clean(daemon)


def test_the_daemon_goes_on_when_its_index_cannot_grow(daemon: Daemon, volume: Path) -> None:
    """With not a byte left the index stays behind, and everything else is served."""
    writer, filler = prepare(daemon, volume)
    filler.take_all()
    deleted = 0
    for number in range(DOOMED):
        answer = ask(daemon, "DELETE", f"/v1/stream/doomed/{number}")
        assert answer.status in (204, 507)
        deleted += answer.status == 204
        filler.take_all()
    assert deleted, "the reserve is for deletions"
    wait_until(
        lambda: "the indexer ended" in daemon.stderr_path.read_text(),
        WAIT_SECONDS_MAX,
        "the index meets the full disk",
    )
    assert read(daemon, LOG) == writer.content
    assert ask(daemon, "GET", "/readyz").status == 200
    assert writer.write(100).status == 507

    filler.give_back()
    wait_until(
        lambda: writer.write(100).status == 200,
        RESUME_SECONDS_MAX,
        "writing resumes when there is space",
    )
    assert read(daemon, LOG) == writer.content
    assert daemon.terminate() == 0
    assert_clean(daemon)


def test_a_daemon_starts_on_a_full_disk(daemon: Daemon, volume: Path) -> None:
    """Killed and started while the disk is full, it serves what is there, and heals as well."""
    writer, filler = prepare(daemon, volume)
    daemon.kill()
    filler.take_all()
    daemon.start()
    assert read(daemon, LOG) == writer.content
    assert writer.write(100).status in (200, 507)
    assert ask(daemon, "DELETE", "/v1/stream/doomed/0").status == 204

    filler.give_back()
    wait_until(
        lambda: writer.write(100).status == 200,
        RESUME_SECONDS_MAX,
        "writing resumes when there is space",
    )
    assert read(daemon, LOG) == writer.content
    assert daemon.terminate() == 0
    assert_clean(daemon)


def test_stopping_on_a_full_disk_loses_nothing(daemon: Daemon, volume: Path) -> None:
    """SIGTERM while the disk is full ends the daemon cleanly, and all is there afterwards."""
    writer, filler = prepare(daemon, volume)
    filler.take_all()
    assert ask(daemon, "DELETE", "/v1/stream/doomed/0").status in (204, 507)
    filler.take_all()
    assert daemon.terminate() == 0
    filler.give_back()
    daemon.start()
    assert read(daemon, LOG) == writer.content
    assert writer.write(100).status == 200
    assert daemon.terminate() == 0
    assert_clean(daemon)
