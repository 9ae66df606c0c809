"""The HTTP client that calls webhooks (protocol 7.1): bounded in every direction.

What a receiver may do is answer, within `timeout_s` and `RESPONSE_BYTES_MAX`. Redirects are not
followed, proxies of the environment are not used, cookies are not kept, nothing is unpacked. Every
socket's address is judged right before it connects (`targets.check_address`), so that neither a
name nor an address in any spelling leads anywhere else than that.

Left out: when to call, and what an answer means to a subscription (`runner`).
"""

import errno
import json
import socket
from typing import Final

import aiohttp

from durable_streamsd.subscriptions.targets import Reach, TargetError, check_address

__all__ = ["DeliveryFailed", "Webhooks"]

CONNECT_TIMEOUT_S: Final = 5.0
RESPONSE_BYTES_MAX: Final = 64 * 1_024


class DeliveryFailed(Exception):
    """The receiver did not take it; one sentence for the log."""


class Webhooks:
    """Made inside the loop; `close` it there."""

    def __init__(self, reach: Reach, connections_max: int, timeout_s: float) -> None:
        self._reach = reach
        connector = aiohttp.TCPConnector(
            limit=connections_max,
            use_dns_cache=False,
            socket_factory=self._socket,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=timeout_s, connect=CONNECT_TIMEOUT_S),
            auto_decompress=False,
            trust_env=False,
        )

    async def close(self) -> None:
        """Give the connections up."""
        await self._session.close()

    async def post(self, url: str, body: bytes, signature: str) -> bool:
        """Deliver a wake; whether the receiver says that it is done with it.

        Raises `DeliveryFailed`.
        """
        headers = {
            "Content-Type": "application/json",
            "Webhook-Signature": signature,
            "Accept-Encoding": "identity",
        }
        try:
            async with self._session.post(
                url, data=body, headers=headers, allow_redirects=False
            ) as response:
                if not 200 <= response.status < 300:
                    raise DeliveryFailed(f"answered {response.status}")
                return _says_done(await _content(response))
        except TimeoutError:
            raise DeliveryFailed("did not answer in time") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise DeliveryFailed(f"{type(error).__name__}: {error}") from None

    def _socket(self, address: aiohttp.AddrInfoType) -> socket.socket:
        """A socket for this very address, unless it is not to be called."""
        family, kind, protocol, _, where = address
        try:
            check_address(str(where[0]), self._reach)
        except TargetError as error:
            raise PermissionError(errno.EACCES, str(error)) from None
        made = socket.socket(family, kind, protocol)
        made.setblocking(False)
        return made


async def _content(response: aiohttp.ClientResponse) -> bytes:
    """The body, or nothing when it is longer than any answer has to be."""
    content = bytearray()
    async for piece in response.content.iter_any():
        content += piece
        if len(content) > RESPONSE_BYTES_MAX:
            response.close()
            return b""
    return bytes(content)


def _says_done(content: bytes) -> bool:
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError):
        return False
    return isinstance(answer, dict) and answer.get("done") is True
