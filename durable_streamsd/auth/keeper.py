"""Keeps the gate up to date while the daemon runs: the files of tokens and keys, and fetched keys.

A file is read when the daemon starts, when it is told to reload, and when it looks different than a
second ago. What cannot be used is refused at the start; later it is logged, and what was in force
stays in force: a file that is just being written, or a full disk, must neither let anybody in nor
lock anybody out. Reading is done in a thread; what was read is put in place on the loop.
"""

import asyncio
import logging
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from durable_streamsd.auth.exposure import is_loopback
from durable_streamsd.auth.gate import Gate
from durable_streamsd.auth.jwks import KeyFetcher
from durable_streamsd.auth.jwt_check import JwtRules
from durable_streamsd.auth.jwt_keys import KeyRing, KeysError, parse_keys
from durable_streamsd.auth.scopes import parse_scopes
from durable_streamsd.auth.token_file import FILE_BYTES_MAX, TokenFileError, build_table, decode
from durable_streamsd.config import Settings

__all__ = ["AuthError", "Keeper"]

Put = Callable[[], bool]
"""Puts in place what was read; whether somebody's right has ended with that."""

log = logging.getLogger(__name__)


class AuthError(Exception):
    """The daemon cannot start like this; one sentence for the operator."""


class WatchedFile:
    """A file, and how it looked when it was looked at last. `make` may run in any thread."""

    def __init__(self, setting: str, path: str, make: Callable[[bytes, bool], Put]) -> None:
        self._setting = setting
        self._path = Path(path)
        self._make = make
        self._seen: object = None

    def changed(self) -> bool:
        """Whether it looks different now, which is asked once each time."""
        try:
            seen: object = _looks(self._path.stat())
        except OSError as error:
            seen = error.errno
        before, self._seen = self._seen, seen
        return seen != before

    def load(self) -> Put:
        """Read it. Raises `AuthError`."""
        try:
            with self._path.open("rb") as file:
                status = os.fstat(file.fileno())
                self._seen = _looks(status)  # before reading: what is written now shows later
                content = file.read(FILE_BYTES_MAX + 1)
        except OSError as error:
            raise AuthError(f"{self}: cannot read it: {error.strerror}") from None
        if status.st_mode & stat.S_IWOTH:
            raise AuthError(f"{self}: anybody may write to it; run: chmod o-w {self._path}")
        try:
            return self._make(content, not status.st_mode & (stat.S_IRWXG | stat.S_IRWXO))
        except (TokenFileError, KeysError) as error:
            raise AuthError(f"{self}: it {error}") from None

    def __str__(self) -> str:
        return f"{self._setting} {self._path}"


class Keeper:
    """See the module. Raises `AuthError` when made."""

    def __init__(
        self,
        settings: Settings,
        now_ms: Callable[[], int],
        reader_secret: Callable[[], bytes | None],
    ) -> None:
        self._common = parse_scopes(settings.anonymous_scopes)
        rules = JwtRules(settings.jwt_issuer, settings.jwt_audience, settings.jwt_scopes_claim)
        self.gate = Gate(self._common, rules, now_ms, reader_secret)
        self._on_changed: Callable[[bool], None] = lambda revoked: None
        self._files: list[WatchedFile] = []
        self._due: list[WatchedFile] = []
        self._task: asyncio.Task[None] | None = None
        self._fetcher: KeyFetcher | None = None
        self._url = ""
        if settings.tokens_file is not None:
            self._files.append(WatchedFile("tokens-file", settings.tokens_file, self._tokens))
        keys = settings.jwt_keys
        if keys is not None and keys.startswith(("https://", "http://")):
            self._url = _checked_url(keys)
        elif keys is not None:
            self._files.append(WatchedFile("jwt-keys", keys, self._keys))
        for file in self._files:
            file.load()()

    def start(self, on_changed: Callable[[bool], None]) -> None:
        """Inside the loop: look after all this. `on_changed` is called after each change, with
        whether somebody's right has ended."""
        self._on_changed = on_changed
        if self._url:
            self._fetcher = KeyFetcher(self._url, self._fetched)
            self.gate.fetch_keys = self._fetcher.want
            self._fetcher.start()

    async def stop(self) -> None:
        """Look after nothing any more."""
        if self._fetcher is not None:
            await self._fetcher.stop()
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    def tick(self) -> None:
        """Once a second: read what has changed."""
        self._read([file for file in self._files if file.changed()])

    def reload(self) -> None:
        """Read everything again, changed or not."""
        self._read(self._files)
        if self._fetcher is not None:
            self._fetcher.want()

    def _read(self, files: list[WatchedFile]) -> None:
        self._due += [file for file in files if file not in self._due]
        if self._due and self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._read_due())

    async def _read_due(self) -> None:
        try:
            while self._due:
                file = self._due.pop(0)
                try:
                    put = await asyncio.to_thread(file.load)
                except AuthError as error:
                    log.error("%s. What was in force stays so.", error)
                else:
                    self._on_changed(put())
                    log.info("%s was read again", file)
        finally:
            self._task = None

    def _tokens(self, content: bytes, _private: bool) -> Put:
        table = build_table(decode(content), self._common, self.gate.tokens)
        return lambda: self.gate.put_tokens(table)

    def _keys(self, content: bytes, private: bool) -> Put:
        keys = parse_keys(content, private=private)
        return lambda: self.gate.put_keys(keys)

    def _fetched(self, keys: KeyRing) -> None:
        self._on_changed(self.gate.put_keys(keys))


def _looks(status: os.stat_result) -> tuple[int, ...]:
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _checked_url(text: str) -> str:
    """A URL that keys may come from: nobody on the way may change what it says."""
    url = urlsplit(text)
    if not url.hostname or (url.scheme == "http" and not is_loopback(url.hostname)):
        raise AuthError("jwt-keys: keys are fetched by https, or by http from this machine alone")
    return text
