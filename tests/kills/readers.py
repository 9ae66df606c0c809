"""Readers of a kill run: catch-up, long-poll and SSE, resuming by offset, judging nothing."""

from __future__ import annotations

import asyncio
import base64
import itertools
import random
import time
from collections.abc import Callable

from kills.client import Client, Reply, SseEvent
from kills.journal import Journal, Miss, Nonsense, Read
from kills.messages import BYTES, JSON, Garbage, Splitter
from kills.writers import BACKOFF_S

CATCH_UP = "catch-up"
LONG_POLL = "long-poll"
SSE = "sse"
MODES = (CATCH_UP, LONG_POLL, SSE)

PAUSE_S = (0.05, 0.3)
AGAIN_SHARE = 0.005
"""How often a reader gives up its place and starts from the beginning."""

_runs = itertools.count()


class Reader:
    """Follows one path in one mode, from the start, over and over."""

    def __init__(
        self,
        name: str,
        path: str,
        media_type: str,
        mode: str,
        client: Client,
        journal: Journal,
        rng: random.Random,
    ) -> None:
        self._name = name
        self._path = path
        self._media_type = media_type
        self._mode = mode
        self._client = client
        self._journal = journal
        self._rng = rng
        self._begin_run()

    def _begin_run(self) -> None:
        self._run = f"{self._name}-{next(_runs)}"
        self._offset = "-1"
        self._splitter = Splitter(self._media_type)
        self.complete = False
        """The last answer said that there is no more."""
        self.missing = False
        """The last answer said that there is no such stream."""
        self.confused = False
        """The last answer made no sense."""

    async def follow(self, stopped: Callable[[], bool]) -> None:
        """Read until told to stop. Cancelling it loses an answer that was under way, no more."""
        while not stopped():
            begun = self._run
            await (self._follow_sse() if self._mode == SSE else self.read_once())
            if self._rng.random() < AGAIN_SHARE:
                self._begin_run()
            if self._mode == CATCH_UP or self._run != begun:
                await asyncio.sleep(self._rng.uniform(*PAUSE_S))

    async def read_once(self) -> bool:
        """One request from where the last one ended; False when it brought nothing to go on."""
        query = {"offset": self._offset}
        if self._mode == LONG_POLL:
            query["live"] = "long-poll"
        reply = await self._client.request("GET", self._path, query=query)
        if reply.status not in (200, 204):
            return await self._missed(reply)
        return self._took(
            reply.body,
            reply.offset,
            "Stream-Up-To-Date" in reply.headers,
            "Stream-Closed" in reply.headers,
            reply.started,
            reply.ended,
        )

    async def _follow_sse(self) -> None:
        started = time.monotonic()
        async for item in self._client.sse(self._path, self._offset):
            if isinstance(item, SseEvent):
                data = item.data or b""
                if self._media_type == BYTES:
                    data = base64.b64decode(data)
                going_on = self._took(
                    data,
                    str(item.control["streamNextOffset"]),
                    "upToDate" in item.control,
                    "streamClosed" in item.control,
                    started,
                    item.at,
                )
                if not going_on:
                    return
            elif item.status != 200:
                await self._missed(item)

    def _took(
        self, data: bytes, offset: str, up_to_date: bool, closed: bool, started: float, ended: float
    ) -> bool:
        """Note what came; False when this run is over."""
        try:
            messages = self._splitter.feed(data)
        except Garbage as garbage:
            self._journal.write(Nonsense(self._run, self._path, str(garbage)))
            self._begin_run()
            self.confused = True
            return False
        size = len(messages) if self._media_type == JSON else len(data)
        self._journal.write(
            Read(
                self._run,
                self._path,
                self._mode,
                self._offset,
                offset,
                [(message.id, message.digest) for message in messages],
                size,
                up_to_date,
                closed,
                started,
                ended,
            )
        )
        self._offset = offset
        self.complete = up_to_date
        if closed and up_to_date:
            self._begin_run()
            self.complete = True
            return False
        return True

    async def _missed(self, reply: Reply) -> bool:
        if reply.unknown:
            await asyncio.sleep(self._rng.uniform(*BACKOFF_S))
            return False
        self._journal.write(
            Miss(
                self._run,
                self._path,
                self._mode,
                reply.status,
                reply.code,
                reply.started,
                reply.ended,
            )
        )
        self._begin_run()
        self.missing = True
        return False
