"""The servers that are measured: how each is started and stopped, and what it promises.

One server runs at a time, each measurement on an empty data directory of its own below the same
folder, so no server pays for what another one did, or for its own past. A server that somebody
else started (`NAME=URL`) is the exception: it runs all the time, and the kernel is not asked
about it.

Left out: checking that a server syncs. What it promises is reported as a promise.
"""

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from bench.load import ROOT
from bench.measure import LoadError

__all__ = ["Server", "Target", "TargetError", "external", "node_peer", "this_daemon"]

START_SECONDS_MAX = 30.0
STOP_SECONDS_MAX = 15.0
INSTALL_SECONDS_MAX = 300
OUTPUT_SHOWN_BYTES_MAX = 4_000

SYNCED = "durable: one sync before each acknowledgement"
UNKNOWN = "durability unknown: it was started by somebody else"

NODE = ROOT / "bench" / "node"

_LISTENING = re.compile(r"^listening on (http://\S+)\n", re.MULTILINE)


class TargetError(Exception):
    """A server cannot be installed, started or stopped; the message says why."""


class Server(msgspec.Struct, frozen=True):
    """A server that runs."""

    url: str
    """Under which streams are created, without a slash at the end."""
    pid: int | None
    """None if somebody else started it."""
    data_dir: str | None = None
    """None if somebody else started it."""


class Target(msgspec.Struct, frozen=True):
    """A server that can be measured."""

    name: str
    version: str
    durability: str
    command: Callable[[Path], list[str]] | None
    """Gives the command line for a data directory; None if it runs already."""
    streams: str
    """Where the streams are: a path, or the whole URL if it runs already."""

    @contextmanager
    def running(self, folder: Path) -> Iterator[Server]:
        """Run the server on an empty data directory in `folder`. Raises TargetError."""
        if self.command is None:
            yield Server(self.streams, None)
            return
        data_dir = folder / "data"
        data_dir.mkdir()
        output = folder / "output"
        with output.open("wb") as sink:
            process = subprocess.Popen(
                self.command(data_dir),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
            )
        try:
            url = _wait_for_url(process, output) + self.streams
            try:
                yield Server(url, process.pid, str(data_dir))
            except LoadError as error:
                if process.poll() is None:
                    raise
                raise TargetError(f"{error}\n{_ended(process, output)}") from error
            _stop(process, output)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            shutil.rmtree(data_dir, ignore_errors=True)


def this_daemon() -> Target:
    """The daemon of this source tree."""

    def command(data_dir: Path) -> list[str]:
        serve = [sys.executable, "-m", "durable_streamsd", "serve"]
        return [*serve, "--data-dir", str(data_dir), "--port", "0"]

    version = subprocess.run(
        [sys.executable, "-c", "import durable_streamsd; print(durable_streamsd.__version__)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if version.returncode != 0:
        raise TargetError(f"durable_streamsd cannot be imported:\n{version.stderr}")
    return Target("durable-streamsd", version.stdout.strip(), SYNCED, command, "/v1/stream")


def node_peer() -> Target:
    """The protocol's reference server from npm, with a data directory. Installs it if missing."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            raise TargetError(
                f"--peer node needs {program!r}: install Node.js 20.19 or newer with npm 10 or "
                "newer, and put both on PATH"
            )
    lock = NODE / "package-lock.json"
    installed = NODE / "node_modules" / ".package-lock.json"
    with lock.open() as mutex:
        fcntl.flock(mutex, fcntl.LOCK_EX)  # parallel runs install once
        if not installed.exists() or installed.stat().st_mtime < lock.stat().st_mtime:
            _npm_ci()
    package = NODE / "node_modules" / "@durable-streams" / "server" / "package.json"
    node = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True)
    version = f"{json.loads(package.read_text())['version']} on node {node.stdout.strip()}"

    def command(data_dir: Path) -> list[str]:
        return ["node", str(NODE / "server.mjs"), str(data_dir)]

    return Target("node", version, SYNCED, command, "/v1/stream")


def external(name: str, url: str) -> Target:
    """A server that runs already, with its streams below `url`. Raises TargetError."""
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname or parts.query or parts.fragment:
        raise TargetError(f"{name}: {url!r} is not http://HOST:PORT or http://HOST:PORT/PATH")
    return Target(name, "version unknown", UNKNOWN, None, url.rstrip("/"))


def _npm_ci() -> None:
    try:
        done = subprocess.run(
            ["npm", "ci"], cwd=NODE, capture_output=True, text=True, timeout=INSTALL_SECONDS_MAX
        )
    except subprocess.TimeoutExpired:
        raise TargetError(f"npm ci did not end within {INSTALL_SECONDS_MAX} s") from None
    if done.returncode != 0:
        raise TargetError(f"npm ci failed in {NODE}:\n{done.stdout}{done.stderr}")


def _wait_for_url(process: "subprocess.Popen[bytes]", output: Path) -> str:
    """Wait until the server says where it listens."""
    end = time.monotonic() + START_SECONDS_MAX
    while time.monotonic() < end:
        match = _LISTENING.search(output.read_text(errors="replace"))
        if match is not None:
            return match[1].rstrip("/")
        if process.poll() is not None:
            raise TargetError(
                f"the server ended before it listened, code {process.returncode}\n{_tail(output)}"
            )
        time.sleep(0.01)
    raise TargetError(f"the server did not listen within {START_SECONDS_MAX} s\n{_tail(output)}")


def _stop(process: "subprocess.Popen[bytes]", output: Path) -> None:
    """End the server with SIGTERM. Raises TargetError if it had ended before, or does not."""
    if process.poll() is not None:
        raise TargetError(_ended(process, output))
    process.terminate()
    try:
        code = process.wait(STOP_SECONDS_MAX)
    except subprocess.TimeoutExpired:
        raise TargetError(f"SIGTERM did not end it within {STOP_SECONDS_MAX} s") from None
    if code != 0:
        raise TargetError(f"SIGTERM ended the server with code {code}\n{_tail(output)}")


def _ended(process: "subprocess.Popen[bytes]", output: Path) -> str:
    return f"the server ended by itself, code {process.returncode}\n{_tail(output)}"


def _tail(output: Path) -> str:
    """The end of what the server wrote."""
    with output.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - OUTPUT_SHOWN_BYTES_MAX))
        return f"it wrote:\n{file.read().decode(errors='replace')}"
