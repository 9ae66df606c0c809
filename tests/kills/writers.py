"""Writers of a kill run: idempotent producers, `Stream-Seq` writers, and those that do not repeat.

An append whose outcome is not known (the connection broke, or 503) is sent again with the same
tuple or sequence, as often as it takes. A plain append is not: it may be there or not.
"""

from __future__ import annotations

import asyncio
import enum
import random
import time
from collections.abc import Callable

from kills.client import Client, Reply
from kills.journal import Attempt, Journal, ProducerTuple, Send
from kills.messages import JSON, Message, digest_of, join_messages, make_message

BACKOFF_S = (0.02, 0.08)
LARGE_BYTES = 100_000
GAP_WAIT_S = 0.005
"""Before an append is repeated that overtook its predecessor on another connection."""
GAP_SECONDS_MAX = 15.0
"""How long the predecessor may take; more is for the checker to judge."""


class End(enum.Enum):
    """What became of an append, as far as its sender can know."""

    ACKNOWLEDGED = enum.auto()
    REFUSED = enum.auto()
    UNKNOWN = enum.auto()


class Target:
    """One incarnation of a stream, as those who write to it know it."""

    def __init__(self, path: str, incarnation: str, media_type: str, ttl_s: int | None) -> None:
        self.path = path
        self.incarnation = incarnation
        self.media_type = media_type
        self.ttl_s = ttl_s


class Writer:
    """What all writers have: a name that is unique in their stream, and a journal."""

    def __init__(
        self, name: str, target: Target, client: Client, journal: Journal, rng: random.Random
    ) -> None:
        self.name = name
        self.target = target
        self.client = client
        self.journal = journal
        self.rng = rng
        self._messages = 0
        self._appends = 0

    async def write(self) -> bool:
        """Send the next append or appends; False when the stream takes no more."""
        raise NotImplementedError

    def draw(self) -> list[tuple[Message, bytes]]:
        """The next few messages; not many large ones, so that they fit into a body."""
        count = self.rng.choice((1, 1, 1, 2, 5))
        drawn: list[tuple[Message, bytes]] = []
        while len(drawn) < count and sum(len(data) for _, data in drawn) < LARGE_BYTES:
            message_id = f"{self.target.incarnation}/{self.name}/{self._messages}"
            self._messages += 1
            data = make_message(self.target.media_type, message_id, self.rng)
            size = 1 if self.target.media_type == JSON else len(data)
            drawn.append((Message(message_id, digest_of(data), size), data))
        return drawn

    async def append(
        self,
        *,
        closes: bool = False,
        empty: bool = False,
        producer: ProducerTuple | None = None,
        stream_seq: str | None = None,
        twin: bool = False,
    ) -> End:
        """Send one append until its outcome is known, twice at the same time for a `twin`."""
        drawn = [] if empty else self.draw()
        key = f"{self.target.incarnation}/{self.name}:{self._appends}"
        self._appends += 1
        self.journal.write(
            Send(
                key,
                self.target.incarnation,
                [(message.id, message.digest, message.size) for message, _ in drawn],
                closes,
                producer,
                stream_seq,
                False,
                time.monotonic(),
            )
        )
        headers = append_headers(self.target.media_type, closes, producer, stream_seq)
        if empty:
            del headers["Content-Type"]
        body = join_messages(self.target.media_type, [data for _, data in drawn])
        repeat = producer is not None or stream_seq is not None or empty
        copies = [self._settle(key, headers, body, repeat) for _ in range(2 if twin else 1)]
        return (await asyncio.gather(*copies))[0]

    async def _settle(self, key: str, headers: dict[str, str], body: bytes, repeat: bool) -> End:
        give_up = time.monotonic() + GAP_SECONDS_MAX
        while True:
            reply = await self.client.request("POST", self.target.path, headers, body)
            self.journal.write(attempt(key, reply))
            if reply.status in (200, 204):
                return End.ACKNOWLEDGED
            if reply.code == "sequence-gap" and reply.ended < give_up:
                await asyncio.sleep(GAP_WAIT_S)
            elif reply.code == "stream-seq-regression":
                return End.ACKNOWLEDGED  # by an earlier attempt, or the checker complains
            elif reply.status == 507 or (reply.unknown and repeat):
                await asyncio.sleep(self.rng.uniform(*BACKOFF_S))
            else:
                return End.UNKNOWN if reply.unknown else End.REFUSED


class Producer(Writer):
    """An idempotent producer with up to `window` appends under way."""

    epoch = 0
    seq = -1
    window = 1

    def next_tuple(self) -> ProducerTuple:
        """The tuple of the next append."""
        self.seq += 1
        return f"{self.target.incarnation}/{self.name}", self.epoch, self.seq

    async def write(self) -> bool:
        """Send a window of appends; False when the stream takes no more."""
        if self.rng.random() < 0.02:
            self.epoch += 1
            self.seq = -1
            # A new epoch begins with its number 0: what overtakes that is refused for good.
            return await self.append(producer=self.next_tuple()) is End.ACKNOWLEDGED
        appends = [
            self.append(producer=self.next_tuple(), twin=self.rng.random() < 0.05)
            for _ in range(self.window)
        ]
        return all(end is End.ACKNOWLEDGED for end in await asyncio.gather(*appends))


class SequencedWriter(Writer):
    """Writes with a rising `Stream-Seq`: a stream has one at most."""

    sequence = 0

    async def write(self) -> bool:
        """Send one append; False when the stream takes no more."""
        self.sequence += 1
        return await self.append(stream_seq=f"{self.sequence:08d}") is End.ACKNOWLEDGED


class PlainWriter(Writer):
    """Writes once, and does not repeat."""

    async def write(self) -> bool:
        """Send one append; False when the stream takes no more."""
        return await self.append() is not End.REFUSED


def append_headers(
    media_type: str, closes: bool, producer: ProducerTuple | None, stream_seq: str | None
) -> dict[str, str]:
    """The headers of a POST."""
    headers = {"Content-Type": media_type}
    if closes:
        headers["Stream-Closed"] = "true"
    if producer is not None:
        headers["Producer-Id"] = producer[0]
        headers["Producer-Epoch"] = str(producer[1])
        headers["Producer-Seq"] = str(producer[2])
    if stream_seq is not None:
        headers["Stream-Seq"] = stream_seq
    return headers


def attempt(key: str, reply: Reply) -> Attempt:
    """What a journal says about a reply."""
    return Attempt(key, reply.status, reply.code, reply.offset, reply.started, reply.ended)


async def write_until(
    writer: Writer,
    appends: int | None,
    stopped: Callable[[], bool],
    pause_s_max: float,
) -> None:
    """Write a number of appends (or without end) with small pauses, until told to stop."""
    written = 0
    while not stopped() and (appends is None or written < appends):
        if not await writer.write():
            return
        written += 1
        await asyncio.sleep(writer.rng.uniform(0, pause_s_max))
