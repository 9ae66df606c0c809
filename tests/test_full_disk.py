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
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon import ROOT, Daemon
from simple_http import Answer, append, ask, create, wait_until
from volumes import small_volume

VOLUME_BYTES = 56 << 20
LEFT_BYTES = 3 << 20
"""What the filler leaves, so that it is an append that fills the disk."""
RESERVE_LEFT_BYTES = 4 << 20
"""Of the reserve of 8 MiB, after a few small deletions."""
APPENDS_MAX = 400
LARGE_BYTES = 60_000
DOOMED = 60
MANY = 600
"""So many deletions need more than the rest of a block that was written before."""
RESUME_SECONDS_MAX = 10.0
WAIT_SECONDS_MAX = 20.0
GIVE_BACK_SECONDS_MAX = 60.0
"""Compaction looks every ten seconds."""
TOOL_SECONDS_MAX = 60
SETTINGS = {
    "DURABLE_STREAMSD_SEGMENT_BYTES": str(4 << 20),
    "DURABLE_STREAMSD_BODY_BYTES_MAX": str(1 << 20),
    "DURABLE_STREAMSD_LONG_POLL_TIMEOUT_S": "1",
}
LOG = "/v1/stream/log"


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


def free_bytes(volume: Path) -> int:
    """What is left."""
    stat = os.statvfs(volume)
    return stat.f_bavail * stat.f_frsize


class Filler:
    """A file that somebody else fills the disk with."""

    def __init__(self, volume: Path) -> None:
        self._path = volume / "filler"

    def leave(self, left_bytes: int) -> None:
        """Take space until only so much is left."""
        self._write((free_bytes(self._path.parent) - left_bytes) // 4096 * 4096)

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
        assert create(daemon, LOG).status == 201

    def write(self, size_bytes: int) -> Answer:
        """Send the next append, or again the one that was not acknowledged."""
        seq = len(self.acknowledged)
        body = (b"%06d " % seq).ljust(size_bytes, b"x") + b"\n"
        answer = append(self.daemon, LOG, body, seq)
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


def prepare(daemon: Daemon, volume: Path, doomed: int = DOOMED) -> tuple[Writer, Filler]:
    """Streams to delete, a stream to write to, and a disk that is full."""
    for number in range(doomed):
        assert create(daemon, f"/v1/stream/doomed/{number}", b"here\n").status == 201
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
    assert create(daemon, "/v1/stream/new").status == 507
    assert ask(daemon, "GET", "/v1/stream/new").status == 404
    assert read(daemon, LOG) == writer.content
    assert ask(daemon, "GET", f"{LOG}?offset={tail}&live=long-poll").status == 204
    assert ask(daemon, "GET", "/healthz").status == 200
    metrics = ask(daemon, "GET", "/metrics").body
    assert b"\ndurable_streamsd_disk_full 1.0\n" in metrics
    assert b'\ndurable_streamsd_limited_total{limit="disk_space"} 0.0\n' not in metrics
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


def test_the_reserve_is_left_to_those_who_need_it(volume: Path) -> None:
    """What deletions on a full disk leave of the reserve is there for a start after a kill."""
    # Large segments have a long way to go ahead of their end.
    daemon = Daemon(volume / "data")
    daemon.stderr_path = volume.with_name("stderr")
    with daemon:
        writer, filler = prepare(daemon, volume, MANY)
        filler.take_all()
        for number in range(MANY):
            assert ask(daemon, "DELETE", f"/v1/stream/doomed/{number}").status == 204
        daemon.kill()
        assert not (daemon.data_dir / "RESERVE").exists(), "it was needed"
        assert free_bytes(volume) > RESERVE_LEFT_BYTES
        daemon.start()
        assert read(daemon, LOG) == writer.content
        assert ask(daemon, "GET", "/v1/stream/doomed/0").status == 404
        assert writer.write(LARGE_BYTES).status == 507
        filler.give_back()
        wait_until(
            lambda: writer.write(100).status == 200,
            RESUME_SECONDS_MAX,
            "writing resumes when there is space",
        )


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


def test_deleting_gives_a_full_disk_its_space_back(daemon: Daemon) -> None:
    """A disk that is full of streams has space again when most of them are deleted, though every
    file of the log still holds some that are live; what stays is read back whole."""
    body = b"y" * LARGE_BYTES
    count = 0
    while (answer := create(daemon, f"/v1/stream/{count}", body)).status == 201:
        count += 1
    assert answer.status == 507
    kept = range(0, count, 10)
    for number in set(range(count)) - set(kept):
        assert ask(daemon, "DELETE", f"/v1/stream/{number}").status == 204
    wait_until(
        lambda: create(daemon, "/v1/stream/more", body).status in (200, 201),
        GIVE_BACK_SECONDS_MAX,
        "no space was given back",
    )
    for number in kept:
        assert read(daemon, f"/v1/stream/{number}") == body
    assert daemon.terminate() == 0
    assert_clean(daemon)
