"""A server under measurement: a process that is started, stopped, killed and started again.

It listens on a port of its own choice of ours, and is ready when it accepts a connection: the one
sign that all servers give. Left out: protecting the port, which is free when it is chosen, from
other programs until the server listens there; a server that finds it taken ends, and is reported.
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.load import ROOT
from bench.measure import LoadError

__all__ = ["FILES_SPARE", "Command", "OwnServer", "Server", "TargetError", "free_port"]

FILES_SPARE = 1_000
"""Descriptors that a server or the generator needs, or keeps back, beside those for connections
and for streams."""

START_SECONDS_MAX = 120.0
"""A store of a million streams may have to be read before a server listens."""
STOP_SECONDS_MAX = 60.0
OUTPUT_SHOWN_BYTES_MAX = 4_000
HOST = "127.0.0.1"
POLL_SECONDS = 0.002

Command = Callable[[Path, int], list[str]]
"""Gives the command line for a data directory and a port."""


class TargetError(Exception):
    """A server cannot be installed, started or stopped; the message says why."""


class Server:
    """A server that runs, whoever started it."""

    def __init__(self, url: str) -> None:
        self.url = url
        """Under which streams are created, without a slash at the end."""

    @property
    def pid(self) -> int | None:
        """None if somebody else started it."""
        return None

    @property
    def data_dir(self) -> Path | None:
        """None if somebody else started it."""
        return None


class OwnServer(Server):
    """A server that is ours to start and to end, on a data directory that stays meanwhile."""

    def __init__(self, command: Command, folder: Path, streams: str) -> None:
        """The command is run in `start`; `streams` is the path below which its streams are."""
        self._port = free_port()
        super().__init__(f"http://{HOST}:{self._port}{streams}")
        self._command = command
        self._data_dir = folder / "data"
        self._output = folder / "output"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def data_dir(self) -> Path:
        return self._data_dir

    @contextmanager
    def running(self) -> Iterator[None]:
        """Start it on an empty data directory, stop it in the end and remove the directory.

        Raises TargetError if it does not start or stop as it should, or ends by itself.
        """
        self._data_dir.mkdir()
        try:
            self.start()
            try:
                yield
            except LoadError as error:
                if self._is_running:
                    raise
                raise TargetError(f"{error}\n{self._ended()}") from error
            self.stop()
        finally:
            self.kill()
            shutil.rmtree(self._data_dir, ignore_errors=True)

    def start(self) -> None:
        """Start it and wait until it accepts a connection. Raises TargetError."""
        assert not self._is_running
        with self._output.open("ab") as sink:
            self._process = subprocess.Popen(
                self._command(self._data_dir, self._port),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
            )
        end = time.monotonic() + START_SECONDS_MAX
        while time.monotonic() < end:
            if not self._is_running:
                raise TargetError(self._ended("before it listened"))
            try:
                with socket.create_connection((HOST, self._port), timeout=1):
                    return
            except OSError:
                time.sleep(POLL_SECONDS)
        raise TargetError(f"it did not listen within {START_SECONDS_MAX:g} s\n{self._tail()}")

    def stop(self) -> None:
        """End it with SIGTERM. Raises TargetError if it had ended before, or does not."""
        if self._process is None or not self._is_running:
            raise TargetError(self._ended())
        self._process.terminate()
        try:
            code = self._process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            raise TargetError(f"SIGTERM did not end it within {STOP_SECONDS_MAX:g} s") from None
        if code != 0:
            raise TargetError(f"SIGTERM ended it with code {code}\n{self._tail()}")

    def kill(self) -> None:
        """End it with SIGKILL, unless it has ended already."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    @property
    def _is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _ended(self, when: str = "by itself") -> str:
        assert self._process is not None
        return f"the server ended {when}, code {self._process.returncode}\n{self._tail()}"

    def _tail(self) -> str:
        """The end of what the server wrote."""
        with self._output.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - OUTPUT_SHOWN_BYTES_MAX))
            return f"it wrote:\n{file.read().decode(errors='replace')}"


def free_port() -> int:
    """A port on which nobody listens now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
