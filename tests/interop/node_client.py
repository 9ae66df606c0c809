"""The TypeScript client, driven from Python: a Node process that runs ``client.mjs``.

Calls are answered in turn; what readers and producers meet arrives as events, which a thread
files under their id. Tests wait for conditions on what has arrived, each wait with a deadline.
"""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

WAIT_SECONDS_MAX = 30.0


@dataclass
class Log:
    """What happened so far to one reader or producer; grows behind the test's back."""

    id: int
    data: list[Any] = field(default_factory=list)
    """What a reader got, one entry per chunk."""
    offset: str = ""
    """Where a reader would resume."""
    requests: list[str | None] = field(default_factory=list)
    """The ``live`` parameter of each of a reader's requests."""
    outages: list[str] = field(default_factory=list)
    """Why a request was not answered, or a reader's connection broke."""
    answers: list[tuple[int, int]] = field(default_factory=list)
    """Statuses a producer got for its batches: lost on the way, then let through."""
    failures: list[str] = field(default_factory=list)
    """Errors that the client does not recover from."""
    ended: bool = False
    """Whether a reader came to the end of a closed stream."""

    def add(self, event: dict[str, Any]) -> None:
        """File one event of ``client.mjs``."""
        match event["event"]:
            case "data":
                self.data.append(event["data"])
                self.offset = event["offset"]
            case "request":
                self.requests.append(event["live"])
            case "outage":
                self.outages.append(event.get("reason", "unknown"))
            case "answers":
                self.answers.append((event["lost"], event["kept"]))
            case "failed":
                self.failures.append(event["reason"])
            case "end":
                self.ended = True
            case other:
                raise AssertionError(f"client.mjs sent an unknown event {other!r}")


class ClientError(Exception):
    """The client refused or failed a call; the text is the client's own."""


class NodeClient:
    """One Node process; a context manager that ends it."""

    def __init__(self, interop: Path) -> None:
        self._process = subprocess.Popen(
            ["node", "client.mjs"],
            cwd=interop,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        self._changed = threading.Condition()
        self._logs: dict[int, Log] = {}
        self._replies: dict[int, dict[str, Any]] = {}
        self._last_id = 0
        self._ended = False
        self._pump = threading.Thread(target=self._read, daemon=True)
        self._pump.start()

    def call(self, op: str, **arguments: Any) -> Any:
        """Have one command done and return its value; raises ClientError with what it says."""
        return self._call(self._next_id(), op, arguments)

    def open(self, op: str, **arguments: Any) -> Log:
        """Start a reader or a producer and return the log that its events go to."""
        log = Log(self._next_id())
        self._logs[log.id] = log
        self._call(log.id, op, arguments)
        return log

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        """Return as soon as ``condition`` holds; AssertionError after WAIT_SECONDS_MAX."""
        if not self.wait_or_not(condition):
            raise AssertionError(f"not seen within {WAIT_SECONDS_MAX} s: {what}\n{self._state()}")

    def wait_or_not(self, condition: Callable[[], bool]) -> bool:
        """Return as soon as ``condition`` holds, or False after WAIT_SECONDS_MAX."""
        with self._changed:
            self._changed.wait_for(lambda: condition() or self._ended, WAIT_SECONDS_MAX)
            return condition()

    def _next_id(self) -> int:
        self._last_id += 1
        return self._last_id

    def _call(self, id: int, op: str, arguments: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"id": id, "op": op, **arguments}) + "\n")
        self._process.stdin.flush()
        self.wait(lambda: id in self._replies, f"the answer to {op}")
        reply = self._replies.pop(id)
        if "error" in reply:
            raise ClientError(reply["error"])
        return reply["value"]

    def _read(self) -> None:
        assert self._process.stdout is not None
        try:
            for line in self._process.stdout:
                if not line.endswith("\n"):
                    break  # the process was ended in the middle of a line
                message = json.loads(line)
                with self._changed:
                    if "log" in message:
                        self._logs[message["log"]].add(message)
                    else:
                        self._replies[message["id"]] = message
                    self._changed.notify_all()
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _state(self) -> str:
        lines = [] if not self._ended else ["the Node process has ended"]
        lines += [
            f"{log.id}: {len(log.data)} chunks up to {log.offset!r}, requests {log.requests[-5:]}, "
            f"outages {log.outages[-5:]}, failures {log.failures}, ended {log.ended}"
            for log in self._logs.values()
        ]
        return "\n".join(lines)

    def __enter__(self) -> NodeClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        self._pump.join()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
