"""A webhook receiver: a real HTTP server in a thread, whose answers a test decides.

Every delivery is checked against the server's published keys, as a receiver should.
"""

from __future__ import annotations

import asyncio
import base64
import json
import queue
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from aiohttp import web
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

DELIVERY_SECONDS_MAX = 20


@dataclass
class Delivery:
    """One request as it came."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def wake(self) -> dict[str, Any]:
        """The document."""
        found: dict[str, Any] = json.loads(self.body)
        return found


Answer = Callable[[Delivery, web.Request], Awaitable[web.StreamResponse]]


async def done(_delivery: Delivery, _request: web.Request) -> web.StreamResponse:
    """The receiver has read everything."""
    return web.json_response({"done": True})


async def later(_delivery: Delivery, _request: web.Request) -> web.StreamResponse:
    """The receiver will call back."""
    return web.json_response({})


async def broken(_delivery: Delivery, _request: web.Request) -> web.StreamResponse:
    """The receiver does not work."""
    return web.Response(status=500)


class Receiver:
    """Used as a context manager. `answer` may be changed at any time."""

    def __init__(self, answer: Answer = done) -> None:
        self.answer = answer
        self.deliveries: queue.SimpleQueue[Delivery] = queue.SimpleQueue()
        self.url = ""
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def next(self) -> Delivery:
        """The next delivery."""
        return self.deliveries.get(timeout=DELIVERY_SECONDS_MAX)

    def nothing(self, seconds: float = 0.3) -> bool:
        """Whether nothing came for a while."""
        try:
            self.deliveries.get(timeout=seconds)
        except queue.Empty:
            return True
        return False

    def __enter__(self) -> Receiver:
        self._thread.start()
        assert self._ready.wait(DELIVERY_SECONDS_MAX)
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(DELIVERY_SECONDS_MAX)

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        runner = web.ServerRunner(web.Server(self._handle), shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        self.url = f"http://{host}:{port}/hook"
        self._ready.set()
        await self._stop.wait()
        await runner.cleanup()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        delivery = Delivery(request.path, dict(request.headers), body)
        self.deliveries.put(delivery)
        return await self.answer(delivery, request)  # type: ignore[arg-type]


def verify(delivery: Delivery, jwks: bytes) -> int:
    """Check a delivery's signature against the published keys; the second it was signed.

    Raises `InvalidSignature`.
    """
    fields = dict(part.split("=", 1) for part in delivery.headers["Webhook-Signature"].split(","))
    (key,) = [key for key in json.loads(jwks)["keys"] if key["kid"] == fields["kid"]]
    public = Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(key["x"] + "=="))
    signature = base64.urlsafe_b64decode(fields["ed25519"] + "==")
    public.verify(signature, fields["t"].encode() + b"." + delivery.body)
    return int(fields["t"])
