"""The daemon as a process of its own: what tests start, kill and start again.

The process is the real one (``python -m durable_streamsd serve``) on a real data directory.
Nothing here waits for time to pass: the daemon is up when it says so on its first line of
output, and down when it has been waited for.

Left out: speaking HTTP to it. Tests bring the client that suits them.
"""

from __future__ import annotations

import os
import queue
import random
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

ROOT = Path(__file__).resolve().parent.parent

START_SECONDS_MAX = 30.0
STOP_SECONDS_MAX = 10.0
"""SIGTERM ends the daemon within this time; that is a promise, not patience."""

PROGRAM = (sys.executable, "-m", "durable_streamsd")
"""The daemon of the source tree."""

STDERR_SHOWN_BYTES_MAX = 8_000

_LISTENING = re.compile(r"listening on (https?://\S+)\n")


_HAND_OVER = """
import fcntl, os, sys
count = int(sys.argv[1])
away = [fcntl.fcntl(int(fd), fcntl.F_DUPFD_CLOEXEC, 100) for fd in sys.argv[2:2 + count]]
for place, fd in enumerate(away, 3):
    os.dup2(fd, place)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(count))
os.execvp(sys.argv[2 + count], sys.argv[2 + count:])
"""


def handing_over(fds: Sequence[int], command: Sequence[str]) -> list[str]:
    """A command that runs `command` with these open files, as a service manager would."""
    numbers = [str(number) for number in (len(fds), *fds)]
    return [sys.executable, "-c", _HAND_OVER, *numbers, *command]


class Daemon:
    """One daemon on one data directory, which may be started, killed and started again.

    Used as a context manager it starts at once. At the end it must still be up, unless the test
    itself stopped it, and must answer SIGTERM with exit code 0. Its error output collects in
    ``stderr_path``, and its end is added to any exception that leaves the block.
    """

    def __init__(
        self,
        data_dir: Path,
        *args: str,
        env: Mapping[str, str] | None = None,
        port: int = 0,
        program: Sequence[str] = PROGRAM,
        listener: socket.socket | None = None,
    ) -> None:
        """`listener` is handed over as systemd hands over the socket of a socket unit."""
        self.data_dir = data_dir
        self.args = args
        self.env = dict(env or {})
        self.port = port
        self.program = list(program)
        self.listener = listener
        self.stderr_path = data_dir.with_name(data_dir.name + ".stderr")
        self._url = ""
        self._process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        """Origin of the running daemon, without a slash at the end."""
        if self._process is None:
            raise RuntimeError("the daemon is not running")
        return self._url

    @property
    def pid(self) -> int:
        """Process id of the running daemon."""
        if self._process is None:
            raise RuntimeError("the daemon is not running")
        return self._process.pid

    def start(self) -> Daemon:
        """Start the process and wait until it says where it listens.

        Raises AssertionError, with the error output, if it does not within START_SECONDS_MAX.
        """
        if self._process is not None:
            raise RuntimeError("the daemon is running already")
        command = [*self.program, "serve"]
        command += ["--data-dir", str(self.data_dir), "--port", str(self.port), *self.args]
        handed: list[int] = []
        if self.listener is not None:
            handed.append(self.listener.fileno())
            command = handing_over(handed, command)
        with self.stderr_path.open("ab") as stderr:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                cwd=ROOT,
                env={**os.environ, **self.env},
                pass_fds=handed,
            )
        assert self._process.stdout is not None
        first_line = _first_line(self._process.stdout, START_SECONDS_MAX)
        match = _LISTENING.fullmatch(first_line)
        if match is None:
            self._discard()
            raise AssertionError(
                f"the daemon's first line was {first_line!r} after at most "
                f"{START_SECONDS_MAX} s\n{self.stderr_tail()}"
            )
        self._url = match[1]
        return self

    def kill(self) -> None:
        """End the process with SIGKILL, as a crash would, and wait until it is gone."""
        self._stop(signal.SIGKILL)

    def terminate(self) -> int:
        """Ask the process to end with SIGTERM and return its exit code.

        Raises AssertionError if it is still there after STOP_SECONDS_MAX.
        """
        return self._stop(signal.SIGTERM)

    def _stop(self, signal_number: signal.Signals) -> int:
        if self._process is None:
            raise RuntimeError("the daemon is not running")
        process, self._process = self._process, None
        code = process.poll()
        if code is not None:
            raise AssertionError(f"the daemon ended by itself, code {code}\n{self.stderr_tail()}")
        process.send_signal(signal_number)
        try:
            return process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(
                f"the daemon did not end within {STOP_SECONDS_MAX} s of {signal_number.name}\n"
                f"{self.stderr_tail()}"
            ) from None

    def stderr_tail(self) -> str:
        """The end of what the daemon wrote to its error output since the first start."""
        if not self.stderr_path.exists():
            return "the daemon's error output: none"
        with self.stderr_path.open("rb") as stderr:
            size = stderr.seek(0, os.SEEK_END)
            stderr.seek(max(0, size - STDERR_SHOWN_BYTES_MAX))
            tail = stderr.read().decode(errors="replace")
        return f"the daemon's error output ({self.stderr_path}):\n{tail}"

    def __enter__(self) -> Daemon:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            self._discard()
            error.add_note(self.stderr_tail())
        elif self._process is not None:
            code = self.terminate()
            if code != 0:
                raise AssertionError(f"SIGTERM gave exit code {code}\n{self.stderr_tail()}")

    def _discard(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()


def reconnectable_port() -> int:
    """A free port for a daemon that goes away and comes back at the same address.

    It lies below the ports that the kernel hands to outgoing connections. Otherwise a client
    that keeps trying while the daemon is down may be given that very port, and then either
    talks to itself or keeps the daemon from binding it again.
    """
    ephemeral = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    candidates = range(10_000, int(ephemeral[0]))
    for port in random.sample(candidates, k=min(100, len(candidates))):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no free port below the kernel's range for outgoing connections")


def _first_line(stdout: IO[str], seconds_max: float) -> str:
    """The first line, or an empty string; later lines are read and dropped, so no pipe fills."""
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def drain() -> None:
        with stdout:
            lines.put(stdout.readline())
            for _ in stdout:
                pass

    threading.Thread(target=drain, daemon=True).start()
    try:
        return lines.get(timeout=seconds_max)
    except queue.Empty:
        return ""
