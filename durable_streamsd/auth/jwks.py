"""Keeps the keys of a JWKS URL fresh, in the background.

Fetched at the start, every `REFRESH_S`, and earlier when a token names a key that is not known yet,
but not more often than every `INTERVAL_S_MIN`: whoever makes up key ids causes a fetch now and
then, and no more. After a failure the keys there are stay, and it is tried again after 1 s, 2 s, …
up to `BACKOFF_S_MAX`. An answer has a time-out and a largest size; redirects are not followed and
proxies of the environment not used, as everything here rests on who answers.

Left out: `Cache-Control` of the answer. Key servers mean hours by it, or nothing.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import aiohttp

from durable_streamsd.auth.jwt_keys import KEYS_BYTES_MAX, KeyRing, KeysError, parse_set

__all__ = ["KeyFetcher"]

REFRESH_S: Final = 300.0
INTERVAL_S_MIN: Final = 10.0
BACKOFF_S_MAX: Final = 60.0
TIMEOUT_S: Final = 5.0

log = logging.getLogger(__name__)


class KeyFetcher:
    """Made and started inside the loop. `on_keys` gets what was fetched."""

    def __init__(self, url: str, on_keys: Callable[[KeyRing], None]) -> None:
        self._url = url
        self._on_keys = on_keys
        self._wanted = asyncio.Event()
        self._fetched_s = 0.0
        self._failures = 0
        self._fetching = True
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Fetch now, and from now on."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Fetch no more."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    def want(self) -> bool:
        """A key is missing: fetch soon. Whether there is any hope that it comes with that."""
        if self._fetching or self._failures:
            return True
        if asyncio.get_running_loop().time() - self._fetched_s < INTERVAL_S_MIN:
            return False
        self._wanted.set()
        return True

    async def _run(self) -> None:
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        async with aiohttp.ClientSession(
            timeout=timeout,
            headers={"Accept-Encoding": "identity"},  # a small answer stays small
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
        ) as session:
            while True:
                self._fetching = True
                await self._fetch(session)
                self._fetching = False
                self._wanted.clear()
                wait_s = min(2.0 ** (self._failures - 1), BACKOFF_S_MAX)
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait_s if self._failures else REFRESH_S):
                        await self._wanted.wait()

    async def _fetch(self, session: aiohttp.ClientSession) -> None:
        try:
            keys = parse_set(await self._content(session), secrets=False)
        except TimeoutError:
            self._failed(f"did not answer within {TIMEOUT_S:g} s")
        except (aiohttp.ClientError, OSError, KeysError, ValueError) as error:
            self._failed(str(error) or type(error).__name__)
        else:
            if self._failures:
                log.info("the keys at %s were fetched again", self._url)
            self._failures = 0
            self._fetched_s = asyncio.get_running_loop().time()
            self._on_keys(keys)

    async def _content(self, session: aiohttp.ClientSession) -> bytes:
        async with session.get(self._url, allow_redirects=False) as response:
            if response.status != 200:
                raise KeysError(f"answered {response.status}")
            content = bytearray()
            async for piece in response.content.iter_any():
                content += piece
                if len(content) > KEYS_BYTES_MAX:
                    raise KeysError(f"sent more than {KEYS_BYTES_MAX} bytes")
            return bytes(content)

    def _failed(self, why: str) -> None:
        self._failures += 1
        if self._failures == 1:  # the rest would only fill the log
            log.error("fetching keys: %s %s; those that are known stay", self._url, why)
