"""How much disk a store takes through which far more was written than is live.

    python -m bench.reclaim [--quick]

Streams are created, written and deleted again by some clients at once; every so many of them stay.
In the end much more was written than is live. While that goes on, and until the daemon has caught
up, the size of its data directory is looked at: the largest is the figure. Then every stream that
stayed is read back and compared, and the daemon is started once more without its index, and they
are read again.

Exit code 1 when the directory outgrew the limit, or when anything read back was wrong.
"""

import argparse
import hashlib
import http.client
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

MIB = 1 << 20
CLIENTS = 8
APPENDS_PER_STREAM = 4
SETTLE_SECONDS_MAX = 180.0
STOP_SECONDS_MAX = 30.0


@dataclass(frozen=True)
class Size:
    """How much is written, stays, and may lie on disk at most; all in bytes."""

    written: int
    live: int
    disk_max: int
    append: int
    segment: int


FULL = Size(20_000 * MIB, 100 * MIB, 1_000 * MIB, 256 * 1024, 64 * MIB)
QUICK = Size(600 * MIB, 6 * MIB, 160 * MIB, 64 * 1024, 8 * MIB)


def body(stream: int, size_bytes: int) -> bytes:
    """What is appended to a stream: repeatable, and of no other stream."""
    seed = hashlib.sha256(b"%d" % stream).digest()
    return (seed * (size_bytes // len(seed) + 1))[:size_bytes]


class Daemon:
    """A daemon on a directory."""

    def __init__(self, folder: Path, size: Size) -> None:
        command = [sys.executable, "-m", "durable_streamsd", "serve", "--port", "0"]
        command += ["--data-dir", str(folder), "--log-level", "warning"]
        config = folder.with_suffix(".toml")
        config.write_text(f"segment-bytes = {size.segment}\nbody-bytes-max = {size.segment // 4}\n")
        self._process = subprocess.Popen(
            [*command, "--config", str(config)], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.address = urlsplit(self._process.stdout.readline().split()[-1]).netloc

    def stop(self) -> None:
        """End it as a service manager would."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(STOP_SECONDS_MAX)


class Client:
    """One connection. Raises `RuntimeError` for an answer that is none of those expected."""

    def __init__(self, address: str) -> None:
        self._connection = http.client.HTTPConnection(address, timeout=60)

    def ask(self, method: str, path: str, data: bytes | None = None) -> tuple[bytes, bool]:
        """The answer's body, and whether it goes up to the tail."""
        headers = {"Content-Type": "application/octet-stream"} if data is not None else {}
        self._connection.request(method, f"/v1/stream/{path}", data, headers)
        response = self._connection.getresponse()
        answer = response.read()
        if response.status >= 300:
            raise RuntimeError(f"{method} {path}: {response.status} {answer[:200]!r}")
        return answer, response.headers.get("Stream-Up-To-Date") is not None


class Writer(threading.Thread):
    """Creates, writes and deletes every `CLIENTS`-th stream, and leaves some."""

    def __init__(self, address: str, number: int, streams: int, every: int, size: Size) -> None:
        super().__init__()
        self._client = Client(address)
        self._numbers = range(number, streams, CLIENTS)
        self._every = every
        self._size = size
        self.error: Exception | None = None

    def run(self) -> None:
        """Do it."""
        try:
            for stream in self._numbers:
                path = f"short/{stream}"
                self._client.ask("PUT", path, b"")
                data = body(stream, self._size.append)
                for _ in range(APPENDS_PER_STREAM):
                    self._client.ask("POST", path, data)
                if stream % self._every:
                    self._client.ask("DELETE", path)
        except Exception as error:
            self.error = error


def disk_bytes(folder: Path) -> int:
    """What a folder's files take on disk."""
    total = 0
    for path in folder.glob("**/*"):
        try:
            total += path.stat().st_blocks * 512
        except FileNotFoundError:
            continue  # It has just been compacted.
    return total


def check(address: str, kept: range, size: Size) -> None:
    """Read back every stream that stayed. Raises `RuntimeError`."""
    client = Client(address)
    for stream in kept:
        answer, complete = client.ask("GET", f"short/{stream}?offset=-1")
        if not complete or answer != body(stream, size.append) * APPENDS_PER_STREAM:
            raise RuntimeError(f"stream {stream} came back differently")


def run(folder: Path, size: Size) -> int:
    """The whole story; the largest size of the directory, in bytes."""
    stream_bytes = size.append * APPENDS_PER_STREAM
    streams = size.written // stream_bytes
    every = size.written // size.live
    daemon = Daemon(folder, size)
    begun = time.monotonic()
    writers = [Writer(daemon.address, number, streams, every, size) for number in range(CLIENTS)]
    for writer in writers:
        writer.start()
    largest = 0
    while any(writer.is_alive() for writer in writers):
        largest = max(largest, disk_bytes(folder))
        time.sleep(0.1)
    failed = [writer.error for writer in writers if writer.error is not None]
    if failed:
        raise RuntimeError("a client failed") from failed[0]
    took = time.monotonic() - begun
    print(f"written: {size.written // MIB} MiB in {took:.0f} s, largest {largest // MIB} MiB")
    before, still_since = disk_bytes(folder), time.monotonic()
    give_up = still_since + SETTLE_SECONDS_MAX
    while time.monotonic() < min(give_up, still_since + 25):
        time.sleep(1)
        now = disk_bytes(folder)
        if now != before:
            before, still_since = now, time.monotonic()
    print(f"settled: {before // MIB} MiB for {size.live // MIB} MiB live")
    kept = range(0, streams, every)
    check(daemon.address, kept, size)
    daemon.stop()
    shutil.rmtree(folder / "index")
    again = Daemon(folder, size)
    check(again.address, kept, size)
    again.stop()
    print(f"{len(kept)} streams read back, and again with an index built from what is left")
    return largest


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="600 MiB instead of 20 GB")
    size = QUICK if parser.parse_args().quick else FULL
    with tempfile.TemporaryDirectory(prefix="durable-streamsd-reclaim-", dir=Path.cwd()) as root:
        largest = run(Path(root) / "data", size)
    fits = largest <= size.disk_max
    print(f"{'under' if fits else 'OVER'} {size.disk_max // MIB} MiB: {largest // MIB} MiB")
    return 0 if fits else 1


if __name__ == "__main__":
    sys.exit(main())
