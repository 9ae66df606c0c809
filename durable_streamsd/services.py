"""What all requests share: the store and the ways to wait for it.

`Services` is built once by the daemon and handed to both lanes. Everything here runs on the loop's
thread, the calls given to `Workers` aside.

Bounded by the connections: each parks at most one request, so neither the queue of the worker
threads nor the two waiting lists hold more than `connections_max` entries.

Large answers pass one gate, `Answers`: it bounds both the memory that unsent ones take and how many
of their bytes are sent in one turn of the loop, so that readers who take whatever they are given
delay nobody.

Left out: what an effect means to a request (`exchange`), and sockets (the lanes).
"""

import asyncio
import logging
import resource
import socket
import struct
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any, Protocol

from durable_streamsd.committer import Committer
from durable_streamsd.config import Settings
from durable_streamsd.core.context import Context
from durable_streamsd.edge.addresses import normal_address
from durable_streamsd.edge.connections import Connections
from durable_streamsd.edge.front import Front
from durable_streamsd.hub import Hub
from durable_streamsd.metrics.counts import Counts
from durable_streamsd.subscriptions.desk import Desk
from durable_streamsd.wheel import Wheel
from storage.errors import Latched
from storage.residents import Loaded
from storage.store import Store

__all__ = [
    "SERVER",
    "Allowance",
    "Answers",
    "Clock",
    "Loader",
    "Room",
    "Services",
    "Workers",
    "address_of",
    "cut_off",
    "host_of",
]

WORKERS_MAX = 4
LOOKUPS_PER_HOP_MAX = 64
COLD_S = 1.0
ANSWERS_PER_TURN_BYTES_MAX = 1 << 20
"""Of large answers begun in one turn of the loop; one more answer may pass it."""
PAUSE_S = 0.001
"""After such a turn, so that the committer's thread gets at the interpreter: a loop that is never
idle lets go of it only for moments too short for another thread to wake up in."""
SERVER = "durable-streamsd"
"""The `Server` header of every answer."""

log = logging.getLogger(__name__)


def disk_faults() -> int:
    """How often this thread had to wait for a page of memory to come from the disk."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_majflt


class Resumable(Protocol):
    """Whoever waits here: `exchange.Exchange`. Neither call raises."""

    def resume(self, result: object) -> None: ...

    def fail(self, error: Exception) -> None: ...


class Workers:
    """A few threads for calls that touch cold pages."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._pool = ThreadPoolExecutor(WORKERS_MAX, thread_name_prefix="worker")

    def submit(self, call: Callable[[], object], waiter: Resumable) -> None:
        """Run `call` in a thread; `waiter` is resumed with its result, or failed with its error."""
        self._pool.submit(self._run, call, waiter)

    def stop(self) -> None:
        """Drop what has not begun, and wait for what has."""
        self._pool.shutdown(cancel_futures=True)

    def _run(self, call: Callable[[], object], waiter: Resumable) -> None:
        try:
            result = call()
        except Exception as error:
            self._loop.call_soon_threadsafe(waiter.fail, error)
        else:
            self._loop.call_soon_threadsafe(waiter.resume, result)


class Loader:
    """Looks streams up in the index: at once, as long as that is quick, otherwise in a thread.

    A look-up of pages that are in memory takes 5 µs, and a thread's is ten times as much: so it is
    made on the loop, until the system had to fetch a page from the disk for one. For `COLD_S` from
    then on threads wait for pages, and the loop does not. There, one look-up per path is in flight,
    and many paths are looked up in a hop.

    Those who wait for a path resume in the order in which they came, in the callback that admits
    it: the store evicts nothing within a callback, so the requests of one stream stay in order.
    """

    def __init__(self, store: Store, workers: Workers) -> None:
        self._store = store
        self._workers = workers
        self._waiters: dict[bytes, list[Resumable]] = {}
        self._queued: deque[bytes] = deque()
        self._in_flight: list[bytes] = []
        self.cold_until_s = 0.0
        """Before this (`time.monotonic`) no look-up is made on the loop."""

    def look_up(self, path: bytes, waiter: Resumable) -> bool:
        """True if `path` is resident now.

        Otherwise resume `waiter` once it is, or fail it with what `Store.load` raised.
        """
        waiters = self._waiters.get(path)
        if waiters is not None:
            waiters.append(waiter)
            return False
        began_s = time.monotonic()
        if began_s >= self.cold_until_s:
            faults = disk_faults()
            admitted = self._admit(self._look_up(path)) is None
            if disk_faults() != faults:
                self.cold_until_s = time.monotonic() + COLD_S
            if admitted:
                return True
        self._waiters[path] = [waiter]
        self._queued.append(path)
        if not self._in_flight:
            self._hop()
        return False

    def _hop(self) -> None:
        count = min(len(self._queued), LOOKUPS_PER_HOP_MAX)
        self._in_flight = [self._queued.popleft() for _ in range(count)]
        if self._in_flight:
            paths = self._in_flight
            self._workers.submit(lambda: [self._look_up(path) for path in paths], self)

    def _look_up(self, path: bytes) -> Loaded | Exception:  # in a thread
        try:
            return self._store.load(path)
        except Exception as error:
            return error

    def resume(self, result: Any) -> None:
        """A hop came back: `result` has what was loaded, or the error, for each path in flight."""
        paths = self._in_flight
        self._hop()
        for path, loaded in zip(paths, result, strict=True):
            error = self._admit(loaded)
            for waiter in self._waiters.pop(path):
                if error is not None:
                    waiter.fail(error)
                else:
                    waiter.resume(None)

    def _admit(self, loaded: Loaded | Exception) -> Exception | None:
        """Take in what was looked up, or say why that cannot be."""
        if isinstance(loaded, Exception):
            return loaded
        try:
            self._store.admit(loaded)
        except Exception as error:
            return error
        return None

    def fail(self, error: Exception) -> None:
        """A hop could not even begin."""
        self.resume([error] * len(self._in_flight))


class Room:
    """Requests that wait until the store accepts again, first come, first served."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiters: deque[Resumable] = deque()

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiters)

    def wait(self, waiter: Resumable) -> None:
        """Resume `waiter` when it is its turn; fail it when the store will take no more writes."""
        self._waiters.append(waiter)

    def release(self) -> None:
        """Look whether there is room; called whenever there may be."""
        waiters = self._waiters
        while waiters and self._store.accepting:
            waiters.popleft().resume(None)
        if self._store.latched:
            while waiters:
                waiters.popleft().fail(Latched("the store takes no writes until it is restarted"))


class Claimant(Protocol):
    """Whoever wants a share of an `Allowance`."""

    def granted(self) -> None: ...


class Allowance:
    """So many bytes for all large bodies together; first come, first served.

    A share is taken as a whole before a body is read, never piece by piece: bodies that each hold
    a part and wait for more would wait for each other.
    """

    def __init__(self, bytes_max: int) -> None:
        self._left = bytes_max
        self._granting = False
        self._queue: OrderedDict[Claimant, int] = OrderedDict()

    @property
    def left_bytes(self) -> int:
        """What is not taken."""
        return self._left

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._queue)

    def take(self, size: int, claimant: Claimant) -> bool:
        """Take a share. False: later, `claimant.granted` will say when."""
        if size > self._left or self._queue:
            self._queue[claimant] = size
            return False
        self._left -= size
        return True

    def give_up(self, claimant: Claimant) -> None:
        """Wait no more."""
        self._queue.pop(claimant, None)

    def give_back(self, size: int) -> None:
        """Return a share that was taken."""
        self._left += size
        if self._granting:
            return  # who was granted a share is done with it already; the loop below goes on
        self._granting = True
        try:
            while self._queue:
                claimant, wanted = next(iter(self._queue.items()))
                if wanted > self._left:
                    return
                del self._queue[claimant]
                self._left -= wanted
                claimant.granted()
        finally:
            self._granting = False


class Reader(Protocol):
    """Whoever wants to send a large answer: `exchange.Exchange`."""

    def may_send(self, size: int) -> None:
        """Its share is set aside, and it is its turn."""


class Answers:
    """So many bytes for all large unsent answers together, and so many in one turn of the loop;
    first come, first served.

    An answer that is larger than all may be passes when no other is there. Readers are called from
    the loop, never from within `take` or `give_back`.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._left = bytes_max
        self._turn_left = ANSWERS_PER_TURN_BYTES_MAX
        self._scheduled = False
        self._queue: OrderedDict[Reader, int] = OrderedDict()

    @property
    def outstanding_bytes(self) -> int:
        """What is set aside now."""
        return self._bytes_max - self._left

    @property
    def left_bytes(self) -> int:
        """What is not set aside; one answer that is larger than all may be makes it less than 0."""
        return self._left

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._queue)

    def take(self, size: int, reader: Reader) -> bool:
        """Take a share. False: later, `reader.may_send` will say when."""
        if self._queue or not self._may_have(size):
            self._queue[reader] = size
            return False
        self._give(size)
        return True

    def give_up(self, reader: Reader) -> None:
        """Wait no more. A reader that does not wait is let be."""
        self._queue.pop(reader, None)
        self._look_again()

    def give_back(self, size: int) -> None:
        """Return a share that was taken, or a part of it; a negative size adds to it."""
        self._left += size
        self._look_again()

    def _may_have(self, size: int) -> bool:
        return self._turn_left > 0 and (size <= self._left or self._left >= self._bytes_max)

    def _give(self, size: int) -> None:
        self._left -= size
        self._turn_left -= size
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_later(PAUSE_S, self._turn)

    def _look_again(self) -> None:
        if self._queue and not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._scheduled = False
        self._turn_left = ANSWERS_PER_TURN_BYTES_MAX
        while self._queue:
            reader, size = next(iter(self._queue.items()))
            if not self._may_have(size):
                return
            del self._queue[reader]
            self._give(size)
            reader.may_send(size)


class Clock:
    """The lanes' own header lines, made once a second instead of once per answer."""

    __slots__ = ("_also", "keep_10", "keep_11", "last", "stream", "stream_last")

    def __init__(self, origin: bytes = b"") -> None:
        """`origin` is allowed to have the answers, if there is one."""
        self._also = b"Access-Control-Allow-Origin: %b\r\n" % origin if origin else b""
        self.tick()

    def tick(self) -> None:
        """A new second has begun."""
        date = f"Server: {SERVER}\r\nDate: {formatdate(usegmt=True)}\r\n".encode("ascii")
        date += self._also
        chunked = b"Transfer-Encoding: chunked\r\n"
        self.keep_11 = date
        self.keep_10 = date + b"Connection: keep-alive\r\n"
        self.last = date + b"Connection: close\r\n"
        self.stream = date + chunked
        self.stream_last = chunked + self.last


def address_of(transport: asyncio.BaseTransport | None) -> str:
    """Who is at the other end, for the log."""
    peer = transport.get_extra_info("peername") if transport is not None else None
    return f"{peer[0]}:{peer[1]}" if peer else ""


def host_of(transport: asyncio.BaseTransport) -> str:
    """The address at the other end, as limits and proxies know it."""
    peer = transport.get_extra_info("peername")
    return normal_address(peer[0]) or "" if peer else ""


def cut_off(transport: asyncio.Transport) -> None:
    """Reset the connection: what was not sent yet is dropped, by the kernel too."""
    connection = transport.get_extra_info("socket")
    if connection is not None and not transport.is_closing():
        linger_for_nothing = struct.pack("ii", 1, 0)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_for_nothing)
    transport.abort()


@dataclass(slots=True)
class Services:
    """Everything a request may need, apart from its own connection."""

    settings: Settings
    store: Store
    context: Context
    desk: Desk
    hub: Hub
    wheel: Wheel
    committer: Committer
    workers: Workers
    loader: Loader
    room: Room
    bodies: Allowance
    clock: Clock
    front: Front
    counts: Counts
    connections: Connections = field(init=False)
    answers: Answers = field(init=False)
    clocks: dict[bytes, Clock] = field(init=False)
    """For answers to the origins that are told apart."""

    def __post_init__(self) -> None:
        settings = self.settings
        self.answers = Answers(settings.answers_bytes_max)
        self.connections = Connections(
            settings.connections_max,
            settings.connections_per_address_max,
            self.front.proxies,
            self.counts.refusals.hit,
        )
        self.clocks = {origin: Clock(origin) for origin in self.front.origins}

    @property
    def promised_bytes(self) -> int:
        """What large answers and bodies may still take at once."""
        return self.answers.left_bytes + self.bodies.left_bytes

    def tick(self) -> None:
        """What is done once a second."""
        for clock in (self.clock, *self.clocks.values()):
            clock.tick()
        self.connections.tick()
