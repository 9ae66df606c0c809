"""Backups of a running daemon: what was acknowledged before is in them, consistently."""

import http.client
import subprocess
import sys
import threading
from pathlib import Path
from urllib.parse import urlsplit

from daemon import Daemon

STREAMS = 4
BACKUPS = 3


def backup(data_dir: Path, destination: Path) -> None:
    command = [sys.executable, "-m", "durable_streamsd", "backup"]
    arguments = ["--data-dir", str(data_dir), "--to", str(destination)]
    subprocess.run([*command, *arguments], check=True, capture_output=True, timeout=60)


class Writer(threading.Thread):
    """Appends rising numbers to one stream, as a producer, until told to stop."""

    def __init__(self, url: str, number: int) -> None:
        super().__init__()
        self.path = f"/v1/stream/s{number}"
        self.acknowledged = 0
        self.failure: Exception | None = None
        self._address = urlsplit(url).netloc
        self._stop_asked = threading.Event()
        self.begun = threading.Event()

    def run(self) -> None:
        try:
            connection = http.client.HTTPConnection(self._address, timeout=30)
            headers = {
                "Content-Type": "application/json",
                "Producer-Id": "p",
                "Producer-Epoch": "0",
            }
            assert request(
                connection, "PUT", self.path, headers={"Content-Type": "application/json"}
            )
            while not self._stop_asked.is_set():
                headers["Producer-Seq"] = str(self.acknowledged)
                body = b"%d" % self.acknowledged
                assert request(connection, "POST", self.path, body, headers) == (200, b"")
                self.acknowledged += 1
                self.begun.set()
        except Exception as error:
            self.failure = error
            self.begun.set()

    def finish(self) -> None:
        self._stop_asked.set()
        self.join()
        assert self.failure is None, self.failure


def request(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    body: bytes = b"",
    headers: dict[str, str] | None = None,
) -> tuple[int, bytes]:
    connection.request(method, path, body, headers or {})
    response = connection.getresponse()
    return response.status, response.read()


def test_a_backup_of_a_running_daemon_is_a_moment_of_it(tmp_path: Path) -> None:
    """Every append acknowledged before the backup is in it, in order, with the producer's state."""
    promised: list[list[int]] = []
    with Daemon(tmp_path / "data") as daemon:
        writers = [Writer(daemon.url, number) for number in range(STREAMS)]
        for writer in writers:
            writer.start()
        for writer in writers:
            assert writer.begun.wait(30)
        for number in range(BACKUPS):
            promised.append([writer.acknowledged for writer in writers])
            backup(tmp_path / "data", tmp_path / f"copy{number}")
        for writer in writers:
            writer.finish()
    for number, counts in enumerate(promised):
        with Daemon(tmp_path / f"copy{number}") as daemon:
            connection = http.client.HTTPConnection(urlsplit(daemon.url).netloc, timeout=30)
            for writer, count in zip(writers, counts, strict=True):
                status, body = request(connection, "GET", writer.path)
                have = body.count(b",") + 1
                assert (status, body) == (
                    200,
                    b"[" + b",".join(b"%d" % n for n in range(have)) + b"]",
                )
                assert have >= count
                again = {
                    "Content-Type": "application/json",
                    "Producer-Id": "p",
                    "Producer-Epoch": "0",
                    "Producer-Seq": str(have - 1),
                }
                assert request(connection, "POST", writer.path, b"0", again)[0] == 204
