"""A daemon that asks who requests are from, and tokens to answer it with."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from daemon import Daemon
from raw_http import RawClient
from simple_http import Answer, ask

from durable_streamsd.auth.token_editor import create_token, revoke_tokens

ROOT = "/v1/stream/"
RIGHTS = ("read", "append", "create", "delete")
LIVE_SECONDS_MAX = 10.0
"""Within this a live read has ended whose right has; it is a second, on an idle machine."""


class Lab:
    """The daemon, its file of tokens, and tokens by name."""

    def __init__(self, daemon: Daemon, file: Path) -> None:
        self.daemon = daemon
        self.file = file
        self.tokens: dict[str, str] = {}

    def token(self, name: str, *scopes: str, lifetime_s: float | None = None) -> str:
        """Make a token; the daemon knows it soon."""
        expires = None
        if lifetime_s is not None:
            expires = datetime.now(UTC) + timedelta(seconds=lifetime_s)
        _, self.tokens[name] = create_token(self.file, name, list(scopes), expires)
        return self.tokens[name]

    def revoke(self, name: str) -> None:
        """Take a token out of the file; the daemon knows soon."""
        revoke_tokens(self.file, [name])

    def ask(
        self,
        method: str,
        path: str,
        token: str | None = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send a request for a stream, or for a target that begins with a slash."""
        target = path if path.startswith("/") else ROOT + path
        fields = {"Content-Type": "text/plain", **(headers or {})}
        if token is not None:
            fields["Authorization"] = f"Bearer {self.tokens.get(token, token)}"
        return ask(self.daemon, method, target, body, fields)

    def status(
        self, method: str, path: str, token: str | None = None, body: bytes | None = None
    ) -> int:
        """Only the status of that."""
        return self.ask(method, path, token, body).status

    @contextmanager
    def live(self, path: str, query: str, token: str) -> Iterator[RawClient]:
        """An event stream, or a long-poll, that has begun."""
        with RawClient(self.daemon.url) as client:
            line = f"Authorization: Bearer {self.tokens[token]}\r\n" if token in self.tokens else ""
            request = f"GET {ROOT}{path}?{query} HTTP/1.1\r\nHost: x\r\n{line}\r\n"
            client.send(request.encode())
            yield client


def code_of(answer: Answer) -> str:
    """The code of an error, in either shape."""
    document = json.loads(answer.body)
    code = document["code"] if "code" in document else document["error"]["code"]
    assert isinstance(code, str)
    return code
