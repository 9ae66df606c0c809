"""Running a program with a configuration from `packaging/`, changed where it has to be."""

from __future__ import annotations

import socket


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def listens(port: int) -> bool:
    """Whether somebody does."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def substituted(text: str, changes: dict[str, str]) -> str:
    """The text with each of these changed. All have to be there, or the test tests another file."""
    for old, new in changes.items():
        assert old in text, f"the configuration has no {old!r}"
        text = text.replace(old, new)
    return text
