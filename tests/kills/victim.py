"""The daemon as a victim: started, watched from outside, and killed at a moment of our choice.

Unlike `daemon.Daemon`, which tests use, it can be killed before it says that it listens, and its
indexer child can be killed alone. The moments are found by looking at the data directory and at
`/proc`, so a kill hits what it aims at most of the time, not always.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from volumes import FailingDisk

ROOT = Path(__file__).resolve().parent.parent.parent
PROGRAM = (sys.executable, "-m", "durable_streamsd")
START_SECONDS_MAX = 30.0
STOP_SECONDS_MAX = 20.0
STDERR_SHOWN_MAX = 4_000
LOOK_S = 0.0005

_LISTENING = re.compile(r"listening on (http://\S+)\n")


class RunFailed(Exception):
    """The daemon did something that no kill explains."""


class Victim:
    """A daemon on one directory and port, through all its lives."""

    def __init__(
        self,
        folder: Path,
        port: int,
        settings: Mapping[str, str],
        disk: FailingDisk | None = None,
    ) -> None:
        """On a `disk` each kill is a power cut: what had not reached it is gone as well."""
        self.data_dir = (folder if disk is None else disk.path) / "data"
        self.url = f"http://127.0.0.1:{port}"
        self.stderr_path = folder / "daemon.stderr"
        self.starts = 0
        self._disk = disk
        self._port = port
        self._settings = settings
        self._process: subprocess.Popen[str] | None = None
        self._listening = threading.Event()

    @property
    def process(self) -> subprocess.Popen[str]:
        """The running process."""
        if self._process is None:
            raise RuntimeError("the daemon is not running")
        return self._process

    @property
    def listening(self) -> bool:
        """Whether it has said so."""
        return self._listening.is_set()

    def spawn(self) -> None:
        """Start it, and do not wait."""
        self.starts += 1
        self._listening = listening = threading.Event()
        command = [*PROGRAM, "serve", "--data-dir", str(self.data_dir), "--port", str(self._port)]
        with self.stderr_path.open("ab") as stderr:
            self._process = process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                cwd=ROOT,
                env={**os.environ, **self._settings},
            )

        def watch() -> None:
            assert process.stdout is not None
            with process.stdout:
                for line in process.stdout:
                    if _LISTENING.fullmatch(line):
                        listening.set()

        threading.Thread(target=watch, daemon=True).start()

    def wait_until_listening(self) -> None:
        """Raises `RunFailed` if it ends, or takes too long."""
        give_up = time.monotonic() + START_SECONDS_MAX
        while not self._listening.wait(0.02):
            self.check_alive()
            if time.monotonic() > give_up:
                raise RunFailed(f"it did not listen in time\n{self.stderr_tail()}")

    def check_alive(self) -> None:
        """Raises `RunFailed` if it has ended by itself."""
        code = self.process.poll()
        if code is not None:
            raise RunFailed(f"the daemon ended by itself with code {code}\n{self.stderr_tail()}")

    def stderr_tail(self) -> str:
        """The end of what it wrote to its error output."""
        return self.stderr_path.read_text(errors="replace")[-STDERR_SHOWN_MAX:]

    def kill(self, *, with_indexer: bool = False) -> None:
        """SIGKILL, and wait until it is gone; its child goes first, or lives on for a moment."""
        self.check_alive()
        process, self._process = self.process, None
        if self._disk is not None:
            self._disk.fail()
        if with_indexer or self._disk is not None:
            _kill_all(_children(process.pid))
        process.kill()
        process.wait()
        if self._disk is not None:
            self._disk.repair()

    def kill_indexer(self) -> bool:
        """SIGKILL to the indexer child alone; whether there was one."""
        self.check_alive()
        return _kill_all(_children(self.process.pid))

    def stop(self) -> None:
        """SIGTERM. Raises `RunFailed` if that does not end it with exit code 0."""
        self.check_alive()
        process, self._process = self.process, None
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise RunFailed(f"SIGTERM did not end it within {STOP_SECONDS_MAX} s") from None
        if code != 0:
            raise RunFailed(f"SIGTERM ended it with code {code}\n{self.stderr_tail()}")

    def discard(self) -> None:
        """End whatever is left."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    # Moments

    def recovering(self) -> bool:
        """It has opened the data directory, and does not listen yet."""
        if self.listening:
            return False
        with contextlib.suppress(OSError):
            for fd in Path(f"/proc/{self.process.pid}/fd").iterdir():
                if fd.readlink() == self.data_dir / "LOCK":
                    return True
        return False

    def rolled(self) -> Callable[[], bool]:
        """A condition that holds once a segment begins to be made, after now."""
        folder = self.data_dir / "segments"
        before = set(folder.iterdir())
        return lambda: not before.issuperset(folder.iterdir())

    def checkpointed(self) -> Callable[[], bool]:
        """A condition that holds once the index is written to, after now."""
        file = self.data_dir / "index" / "data.mdb"
        before = file.stat().st_mtime_ns
        return lambda: file.stat().st_mtime_ns != before

    def wait_for(self, moment: Callable[[], bool], seconds_max: float) -> bool:
        """Whether the moment came; `LOOK_S` is how closely it is watched."""
        give_up = time.monotonic() + seconds_max
        while not moment():
            self.check_alive()
            if time.monotonic() > give_up:
                return False
            time.sleep(LOOK_S)
        return True


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    return found


def _kill_all(pids: list[int]) -> bool:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return bool(pids)
