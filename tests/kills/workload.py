"""The workload of a kill run: many writers and readers over HTTP, against a server that dies.

    python -m kills.workload --url URL --journals DIR --name NAME --seed SEED

Two kinds of streams. *Permanent* ones live as long as the run, with several producers and readers
each, so that their state crosses every kill. *Slots* go through short-lived streams one after the
other: created (some with their first messages), written, then left, closed (also with the last
append, also while others write), deleted and made again at the same path, or left to expire.

A line on standard input says stop: what is under way is brought to its end, nothing more begins.
Everything an actor does and sees goes to its journal; judging it is the checker's business.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from kills.client import Client
from kills.journal import CREATE, DELETE, Done, Intent, Journal, Miss, Send
from kills.messages import BYTES, JSON, MEDIA_TYPES, TEXT, join_messages
from kills.readers import CATCH_UP, MODES, Reader
from kills.writers import (
    BACKOFF_S,
    PlainWriter,
    Producer,
    SequencedWriter,
    Target,
    Writer,
    attempt,
    write_until,
)

SLOTS = 8
WRITERS_MAX = 5
PERMANENT_PAUSE_S = 0.12
SLOT_PAUSE_S = 0.06
SLOT_APPENDS_MAX = 40
TTL_S = (1, 3)
EXPIRY_SECONDS_MAX = 30.0
"""A stream that lives longer than this after its last access is deleted by hand."""
EXPIRY_LOOK_S = 0.25

LEAVE, CLOSE, CLOSE_AMID, DELETE_IT, EXPIRE = "leave", "close", "close-amid", "delete", "expire"
ENDINGS = (LEAVE, CLOSE, CLOSE, CLOSE_AMID, CLOSE_AMID, DELETE_IT, DELETE_IT, DELETE_IT, EXPIRE)


class Workload:
    """All actors of one process."""

    def __init__(self, name: str, client: Client, journals: Path, seed: str) -> None:
        self.name = name
        self.client = client
        self.stopping = False
        self._journals = journals
        self._seed = seed

    def stopped(self) -> bool:
        """Whether nothing more shall begin."""
        return self.stopping

    def rng(self, actor: str) -> random.Random:
        """An actor's own source of chance."""
        return random.Random(f"{self._seed}/{self.name}/{actor}")

    def journal(self, actor: str) -> Journal:
        """An actor's own journal."""
        return Journal(self._journals, f"{self.name}.{actor}")

    async def run(self) -> None:
        """Everything, until told to stop."""
        async with asyncio.TaskGroup() as actors:
            for number, media_type in enumerate((BYTES, TEXT, JSON, JSON)):
                actors.create_task(Permanent(self, f"permanent{number}", media_type).live())
            for number in range(SLOTS):
                actors.create_task(Slot(self, f"slot{number}").live())


class Owner:
    """Creates and deletes streams at its paths; nobody else does."""

    def __init__(self, workload: Workload, name: str) -> None:
        self.workload = workload
        self.name = name
        self.client = workload.client
        self.rng = workload.rng(name)
        self.journal = workload.journal(name)
        self.followed: list[asyncio.Task[None]] = []
        self._incarnations = 0
        self._readers = [
            (workload.journal(f"{name}.reader{number}"), workload.rng(f"{name}.reader{number}"))
            for number in range(1 + len(MODES))
        ]
        self._writers = [
            (workload.journal(f"{name}.writer{number}"), workload.rng(f"{name}.writer{number}"))
            for number in range(WRITERS_MAX + 1)
        ]

    async def create(self, path: str, media_type: str, ttl_s: int | None) -> Target:
        """Make a stream, half the time with its first messages."""
        name = f"{self.workload.name}.{self.name}#{self._incarnations}"
        target = Target(path, name, media_type, ttl_s)
        self._incarnations += 1
        drawn = []
        key = f"{target.incarnation}/creator:0"
        now = time.monotonic()
        self.journal.write(Intent(CREATE, path, target.incarnation, media_type, ttl_s, now))
        if self.rng.random() < 0.5:
            drawn = Writer("creator", target, self.client, self.journal, self.rng).draw()
            messages = [(message.id, message.digest, message.size) for message, _ in drawn]
            self.journal.write(
                Send(key, target.incarnation, messages, False, None, None, True, now)
            )
        headers = {"Content-Type": media_type}
        if ttl_s is not None:
            headers["Stream-TTL"] = str(ttl_s)
        body = join_messages(media_type, [data for _, data in drawn])
        in_doubt = False
        while True:
            reply = await self.client.request("PUT", path, headers, body)
            if drawn:
                self.journal.write(attempt(key, reply))
            if not reply.unknown and reply.status != 507:
                break
            in_doubt = in_doubt or reply.unknown
            await asyncio.sleep(self.rng.uniform(*BACKOFF_S))
        status, ended = reply.status, reply.ended
        self.journal.write(
            Done(CREATE, target.incarnation, status, in_doubt, reply.offset, now, ended)
        )
        return target

    async def delete(self, target: Target) -> None:
        """Delete a stream and look that it is gone."""
        started = time.monotonic()
        self.journal.write(
            Intent(DELETE, target.path, target.incarnation, target.media_type, None, started)
        )
        in_doubt = False
        while True:
            reply = await self.client.request("DELETE", target.path)
            if not reply.unknown and reply.status != 507:
                break
            in_doubt = in_doubt or reply.unknown
            await asyncio.sleep(self.rng.uniform(*BACKOFF_S))
        status, ended = reply.status, reply.ended
        self.journal.write(Done(DELETE, target.incarnation, status, in_doubt, "", started, ended))
        reader = self.reader(target, CATCH_UP, 0)
        await reader.read_once()

    def reader(self, target: Target, mode: str, number: int) -> Reader:
        """A reader of a stream; each number has a journal of its own."""
        journal, rng = self._readers[number]
        name = f"{self.workload.name}.{self.name}.reader{number}"
        return Reader(name, target.path, target.media_type, mode, self.client, journal, rng)

    def follow(self, target: Target, modes: Sequence[str]) -> None:
        """Let readers follow the stream, one in each of the modes."""
        for number, mode in enumerate(modes, 1):
            reader = self.reader(target, mode, number)
            self.followed.append(asyncio.create_task(reader.follow(lambda: False)))

    async def part(self) -> None:
        """End the readers; raises what one of them met that it did not expect."""
        for task in self.followed:
            task.cancel()
        for end in await asyncio.gather(*self.followed, return_exceptions=True):
            if isinstance(end, BaseException) and not isinstance(end, asyncio.CancelledError):
                raise end
        self.followed.clear()

    def writer(self, target: Target, kind: type[Writer], number: int) -> Writer:
        """A writer to a stream; each number has a journal of its own."""
        journal, rng = self._writers[number]
        name = f"writer{number}" if number >= 0 else "closer"
        return kind(name, target, self.client, journal, rng)

    async def read_all(self, target: Target) -> None:
        """Read a stream to its end, once, so that what it held is known after it is gone."""
        reader = self.reader(target, CATCH_UP, 0)
        while not (reader.complete or reader.missing or reader.confused):
            await reader.read_once()


class Permanent(Owner):
    """A stream that lives as long as the run."""

    def __init__(self, workload: Workload, name: str, media_type: str) -> None:
        super().__init__(workload, name)
        self._media_type = media_type

    async def live(self) -> None:
        """Write and read until told to stop."""
        path = f"{self.workload.name}/{self.name}/ü {self.name}"
        target = await self.create(path, self._media_type, None)
        kinds = (Producer, Producer, Producer, SequencedWriter, PlainWriter)
        writers = [self.writer(target, kind, number) for number, kind in enumerate(kinds)]
        assert isinstance(writers[0], Producer)
        writers[0].window = 4
        self.follow(target, MODES)
        try:
            await asyncio.gather(
                *(
                    write_until(writer, None, self.workload.stopped, PERMANENT_PAUSE_S)
                    for writer in writers
                )
            )
            await self.read_all(target)
        finally:
            await self.part()


class Slot(Owner):
    """One short-lived stream after the other."""

    async def live(self) -> None:
        """Go through streams until told to stop; a path that is free is used again."""
        number = -1
        free = False
        while not self.workload.stopped():
            if not free or self.rng.random() < 0.3:
                await self.part()
                number += 1
            path = f"{self.workload.name}/{self.name}/{number}"
            media_type = MEDIA_TYPES[number % len(MEDIA_TYPES)]
            free = await self._stream(path, media_type, self.rng.choice(ENDINGS))
        await self.part()

    async def _stream(self, path: str, media_type: str, ending: str) -> bool:
        """One stream's life; whether its path is free afterwards.

        Readers stay at the path when a stream is deleted, and meet the next one there.
        """
        ttl_s = self.rng.randint(*TTL_S) if ending == EXPIRE else None
        target = await self.create(path, media_type, ttl_s)
        if not self.followed:
            self.follow(target, self.rng.sample(MODES, k=self.rng.randint(1, 2)))
        closer = self.writer(target, Producer, -1)
        assert isinstance(closer, Producer)
        if ending == CLOSE_AMID:
            await asyncio.gather(self._write(target), self._close_soon(closer))
        else:
            await self._write(target)
            if ending == CLOSE:
                await self._close(closer)
        if ending in (CLOSE, CLOSE_AMID):
            await self._write_late(target)
        await self.read_all(target)
        if ending == EXPIRE:
            await self.part()
            if await self._expired(target):
                return True
        if ending in (DELETE_IT, EXPIRE) or self.rng.random() < 0.2:
            await self.delete(target)
            return True
        return False

    async def _write(self, target: Target) -> None:
        """A few writers at once, a number of appends each."""
        kinds: list[type[Writer]] = [Producer] * self.rng.randint(1, 2)
        kinds += self.rng.sample([SequencedWriter, PlainWriter], k=self.rng.randint(0, 2))
        writing = []
        for number, kind in enumerate(kinds):
            writer = self.writer(target, kind, number)
            if isinstance(writer, Producer):
                writer.window = self.rng.choice((1, 1, 3))
            appends = self.rng.randint(1, SLOT_APPENDS_MAX)
            writing.append(write_until(writer, appends, self.workload.stopped, SLOT_PAUSE_S))
        await asyncio.gather(*writing)

    async def _close_soon(self, closer: Producer) -> None:
        await asyncio.sleep(self.rng.uniform(0.1, 1))
        await self._close(closer)

    async def _close(self, closer: Producer) -> None:
        """Close with or without a last append, as a producer or not."""
        if self.rng.random() < 0.3:
            await closer.append(closes=True, empty=True)
            return
        await closer.append(producer=closer.next_tuple())
        empty = self.rng.random() < 0.3
        await closer.append(producer=closer.next_tuple(), closes=True, empty=empty)

    async def _write_late(self, target: Target) -> None:
        """What has to be refused, since the stream is closed."""
        late = Producer("late", target, self.client, self.journal, self.rng)
        await late.append()
        await late.append(producer=late.next_tuple())

    async def _expired(self, target: Target) -> bool:
        """Wait until a stream is gone by itself; HEAD does not count as an access."""
        give_up = time.monotonic() + EXPIRY_SECONDS_MAX
        while time.monotonic() < give_up and not self.workload.stopped():
            reply = await self.client.request("HEAD", target.path)
            if reply.status == 404:
                self.journal.write(
                    Miss("", target.path, "head", 404, "", reply.started, reply.ended)
                )
                return True
            await asyncio.sleep(EXPIRY_LOOK_S)
        return False


async def main(arguments: argparse.Namespace) -> None:
    """Run until standard input says stop, or ends."""
    async with Client(arguments.url) as client:
        workload = Workload(arguments.name, client, arguments.journals, arguments.seed)
        loop = asyncio.get_running_loop()

        def stop() -> None:
            workload.stopping = True
            loop.remove_reader(sys.stdin)

        loop.add_reader(sys.stdin, stop)
        await workload.run()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", required=True)
    parser.add_argument("--journals", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--seed", default="0")
    asyncio.run(main(parser.parse_args()))
