"""A disk that fails under the daemon, for real: syncs report EIO, and the page cache lies.

After the failure the store is latched: nothing more is acknowledged, reads go on, and the log says
what to do. After a restart on the repaired disk exactly the durable state is there: everything that
was acknowledged, and of what was in flight each append whole or not at all.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon import Daemon
from simple_http import Answer, append, ask, create, wait_until
from volumes import FailingDisk, failing_disk

DISK_BYTES = 48 << 20
WRITERS = 16
APPENDS_BEFORE = 200
WAIT_SECONDS_MAX = 20.0
SETTINGS = {"DURABLE_STREAMSD_LONG_POLL_TIMEOUT_S": "1"}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[FailingDisk]:
    """A disk that works, so far."""
    with failing_disk(tmp_path, DISK_BYTES) as mounted:
        yield mounted


@pytest.fixture
def daemon(disk: FailingDisk) -> Iterator[Daemon]:
    """A daemon on that disk, which writes its log elsewhere."""
    running = Daemon(disk.path / "data", env=SETTINGS)
    running.stderr_path = disk.path.with_name("stderr")
    running.start()
    try:
        yield running
    finally:
        with contextlib.suppress(RuntimeError, AssertionError):
            running.kill()


class Writer(threading.Thread):
    """An idempotent producer with a stream of its own, until an append is not acknowledged."""

    def __init__(self, daemon: Daemon, number: int) -> None:
        super().__init__(daemon=True)
        self.path = f"/v1/stream/writer/{number}"
        self.acknowledged = 0
        self.ended_with: Answer | None = None
        self._daemon = daemon
        assert create(daemon, self.path).status == 201

    def send(self, seq: int) -> Answer:
        """The append with this number."""
        return append(self._daemon, self.path, self.line(seq), seq)

    def line(self, seq: int) -> bytes:
        """The bytes of an append."""
        return b"%s %06d %s\n" % (self.path.encode(), seq, b"x" * (seq % 700))

    def run(self) -> None:
        """Write as fast as acknowledgements come."""
        while True:
            answer = self.send(self.acknowledged)
            if answer.status != 200:
                self.ended_with = answer
                return
            self.acknowledged += 1

    def content(self, appends: int) -> bytes:
        """What the stream holds after so many appends."""
        return b"".join(self.line(seq) for seq in range(appends))


def test_an_eio_from_the_sync_latches_the_store(disk: FailingDisk, daemon: Daemon) -> None:
    """Nothing is acknowledged any more, reads go on, and a restart brings the durable state."""
    writers = [Writer(daemon, number) for number in range(WRITERS)]
    for writer in writers:
        writer.start()
    wait_until(
        lambda: all(writer.acknowledged >= APPENDS_BEFORE for writer in writers),
        WAIT_SECONDS_MAX,
        "the writers get on",
    )
    disk.fail()
    wait_until(
        lambda: all(writer.ended_with for writer in writers),
        WAIT_SECONDS_MAX,
        "all appends are refused",
    )

    assert {writer.ended_with.status for writer in writers if writer.ended_with} == {503}
    for writer in writers:
        late = writer.send(writer.acknowledged + 1)
        assert late.status in (409, 503), "an append after the failure"
        again = writer.send(writer.acknowledged)
        assert again.status == 503, "the append in flight, repeated"
        assert int(again.headers["Retry-After"]) > 0
        seen = ask(daemon, "GET", writer.path)
        assert seen.status == 200
        assert seen.body == writer.content(writer.acknowledged), "readers see durable bytes only"
    first = writers[0].path
    assert ask(daemon, "GET", "/readyz").status == 503
    assert ask(daemon, "GET", "/healthz").status == 200
    assert create(daemon, "/v1/stream/new").status == 503
    assert ask(daemon, "DELETE", first).status == 503
    tail = ask(daemon, "HEAD", first).headers["Stream-Next-Offset"]
    assert ask(daemon, "GET", f"{first}?offset={tail}&live=long-poll").status == 204
    log = daemon.stderr_path.read_text()
    assert "syncing the log failed: Input/output error" in log
    assert "restart" in log, "the log says what to do"
    assert "Traceback" not in log
    assert log.count("latched: no more writes are taken") == 1
    metrics = ask(daemon, "GET", "/metrics").body
    assert b"\ndurable_streamsd_latched 1.0\n" in metrics
    assert b"\ndurable_streamsd_ready 0.0\n" in metrics
    assert b'\ndurable_streamsd_commit_failures_total{reason="latched"} 1.0\n' in metrics

    daemon.kill()
    disk.repair()
    daemon.start()
    for writer in writers:
        body = ask(daemon, "GET", writer.path).body
        whole = [writer.content(writer.acknowledged), writer.content(writer.acknowledged + 1)]
        assert body in whole, "what was acknowledged, and the append in flight whole or not"
        kept = writer.acknowledged + whole.index(body)
        if kept:
            assert writer.send(kept - 1).status == 204, "a duplicate"
        assert writer.send(kept).status == 200
    assert ask(daemon, "GET", "/readyz").status == 200
    assert daemon.terminate() == 0


def test_an_eio_from_a_read_is_told_and_harms_nobody_else(
    disk: FailingDisk, daemon: Daemon
) -> None:
    """What cannot be read any more is refused by name; all else is served."""
    cached, lost = Writer(daemon, 0), Writer(daemon, 1)
    assert lost.send(0).status == 200
    daemon.kill()  # so that memory does not have it
    daemon.start()
    assert cached.send(0).status == 200
    disk.fail()
    for segment in (daemon.data_dir / "segments").iterdir():
        with segment.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    answer = ask(daemon, "GET", lost.path)
    assert answer.status == 500
    assert json.loads(answer.body)["code"] == "corrupt-data"
    assert ask(daemon, "GET", cached.path).body == cached.line(0)
    assert ask(daemon, "GET", "/healthz").status == 200
    log = daemon.stderr_path.read_text()
    assert "it cannot be read: Input/output error" in log
    assert "Traceback" not in log
