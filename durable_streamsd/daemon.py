"""The daemon: wires the parts together, listens, and stops in order.

    start   open the store -> listen -> say so on standard output -> serve
    stop    stop listening -> finish what is being answered, end live readers -> commit -> close

`run` returns the exit code. Until the first line is on standard output nothing was served; after a
stop nothing that was acknowledged is missing, as after a kill, but opening again is quicker.

Left out: what a request does (core, storage) and where settings come from (`config`).
"""

import asyncio
import contextlib
import faulthandler
import gc
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import uvloop

import durable_streamsd
from durable_streamsd.committer import Committer
from durable_streamsd.config import Settings
from durable_streamsd.core.context import Context, Options
from durable_streamsd.core.retention import RetentionRules
from durable_streamsd.express.lane import Lane
from durable_streamsd.general import General
from durable_streamsd.hub import Hub
from durable_streamsd.logs import set_up_logging
from durable_streamsd.retainer import Retainer
from durable_streamsd.services import (
    Allowance,
    Clock,
    Connections,
    Loader,
    Room,
    Services,
    Workers,
)
from durable_streamsd.subscriptions.desk import Desk
from durable_streamsd.subscriptions.runner import Runner
from durable_streamsd.subscriptions.targets import Reach
from durable_streamsd.wheel import Wheel
from storage.errors import CorruptData, DirectoryLocked, OpenError, StorageError
from storage.indexer_process import IndexerProcess
from storage.limits import Limits
from storage.store import Store

__all__ = ["build_services", "run"]

EXIT_FAILED = 1
EXIT_LOCKED = 3

TICK_S = 1.0
ABORT_TIMEOUT_S = 0.5
"""How long connections that were cut may take to be gone."""
COMMIT_TIMEOUT_S = 2.0
"""How long the last batch may take to be written."""
SPARE_FILES = 256
"""File descriptors that are neither connections nor webhooks: segments, index, pipes."""
TCP_NOTSENT_LOWAT = 25
"""Of <linux/tcp.h>; the standard library has no name for it."""
UNSENT_BYTES_MAX = 128 << 10
"""What the kernel keeps for a reader beside what is on its way. Without it, each of 1,000 readers
that stopped reading held 1.5 MiB of the kernel's memory, which all TCP of the machine shares."""
PEER_TIMEOUT_MS = 60_000
"""After so long without an acknowledgement of what was sent, a peer is taken for gone."""

log = logging.getLogger(__name__)


def run(settings: Settings, on_listening: Callable[[str], None] | None = None) -> int:
    """Serve until a signal says stop; returns the process's exit code.

    `on_listening` is called with the URL after the first line was printed.
    """
    set_up_logging(settings.log_level)
    faulthandler.enable()  # a damaged page of the index can end the process without a word
    limits = Limits(
        # A batch never spans two segments, and one append may be as large as a body.
        segment_bytes=max(settings.segment_bytes, 2 * settings.body_bytes_max),
        tail_cache_bytes_max=settings.tail_cache_bytes_max,
        compact_bytes_per_s=settings.compact_bytes_per_s,
    )
    try:
        store = Store.open(Path(settings.data_dir), limits)
    except OpenError as error:
        print(f"durable-streamsd: {error}", file=sys.stderr)
        return EXIT_LOCKED if isinstance(error, DirectoryLocked) else EXIT_FAILED
    try:
        listener = _listen(settings)
    except OSError as error:
        store.close()
        where = f"{settings.host} port {settings.port}"
        print(f"durable-streamsd: cannot listen on {where}: {error.strerror}", file=sys.stderr)
        return EXIT_FAILED
    with listener, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        daemon = Daemon(_within_file_limit(settings), store)
        return runner.run(daemon.serve(listener, on_listening))


class Daemon:
    """The running daemon; made inside the loop that `serve` runs in."""

    def __init__(self, settings: Settings, store: Store) -> None:
        self._settings = settings
        self._store = store

    async def serve(
        self, listener: socket.socket, on_listening: Callable[[str], None] | None
    ) -> int:
        """Serve until told to stop; returns the exit code."""
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        loop.add_signal_handler(signal.SIGTERM, stop.set)
        loop.add_signal_handler(signal.SIGINT, stop.set)
        loop.add_signal_handler(signal.SIGHUP, log.info, "SIGHUP: nothing can be reloaded yet")

        self._indexer = IndexerProcess(self._store, self._room_made)
        services = build_services(self._settings, self._store, loop, self._room_made)
        self._services = services
        self._retainer = Retainer(services)
        self._general = General(services)
        self._lane = Lane(services, self._general)
        desk = services.desk
        try:
            left_over = desk.load()
        except CorruptData as error:
            print(f"durable-streamsd: {error}", file=sys.stderr)
            self._store.close()
            return EXIT_FAILED
        services.committer.start()
        self._runner = Runner(services, desk)
        self._runner.start(left_over)
        self._indexer.start(loop.call_soon_threadsafe)
        server = await loop.create_server(
            self._lane if self._settings.express_lane else self._general,
            sock=listener,
            backlog=self._settings.backlog,
        )
        # What is here now stays: the collector need not look at it again. Handlers make next to
        # no cycles, so rare collections do, and a full one, which holds up everybody, hardly ever.
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 20, 100)
        url = _url_of(listener)
        log.info("%s", _introduction(self._store, url))
        print(f"listening on {url}", flush=True)
        if on_listening is not None:
            on_listening(url)
        self._tick()
        await stop.wait()

        log.info("stopping")
        await self._drain(server)
        self._ticker.cancel()
        return self._close()

    def _tick(self) -> None:
        """What is done once a second."""
        self._ticker = asyncio.get_running_loop().call_later(TICK_S, self._tick)
        self._services.clock.tick()
        self._services.context.tick()
        self._services.committer.kick()  # for what the store's tick finds: expiries are records
        self._room_made()
        self._retainer.look()
        self._indexer.grant(self._store.compaction_grant())
        self._store.tick(self._store.now_ms())  # last: it may meet a damaged index

    def _room_made(self) -> None:
        """A batch was settled or the index got further: there may be room for more."""
        self._indexer.poll()
        self._services.room.release()

    async def _drain(self, server: asyncio.Server) -> None:
        """Take no more requests; let those that are here end, but not for ever."""
        services = self._services
        server.close()
        services.context.draining = True
        self._lane.drain()
        self._general.drain()
        services.hub.wake_all()
        await self._runner.stop()
        try:
            async with asyncio.timeout(self._settings.drain_timeout_s):
                await services.connections.none()
        except TimeoutError:
            log.warning("cutting %d connections that did not end", services.connections.count)
            self._lane.abort()
            self._general.abort()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ABORT_TIMEOUT_S):
                    await services.connections.none()
        try:
            async with asyncio.timeout(COMMIT_TIMEOUT_S):
                await services.committer.drained()
        except TimeoutError:
            log.critical("the disk does not answer; appends in flight are not acknowledged")
            _die()

    def _close(self) -> int:
        services = self._services
        services.committer.stop()
        services.workers.stop()
        services.wheel.stop()
        try:
            self._indexer.stop()
            self._store.close()
        except StorageError as error:
            log.error("closing the store failed: %s", error)
            return EXIT_FAILED
        if self._store.latched:
            log.error("a write failed; see above, and check the disk before starting again")
            return EXIT_FAILED
        log.info("stopped")
        return 0


def _introduction(store: Store, url: str) -> str:
    """What is running where, and what opening the store took."""
    recovered = store.recovered
    data_dir = store.directory.path.absolute()
    return (
        f"version {durable_streamsd.__version__} serves {data_dir} at {url}; "
        f"recovery: {recovered.records} records indexed, "
        f"{recovered.torn_bytes} bytes of an unfinished write ignored, "
        f"{'the last' if recovered.moved else 'no'} batch moved to a new segment"
    )


def build_services(
    settings: Settings,
    store: Store,
    loop: asyncio.AbstractEventLoop,
    on_settled: Callable[[], None],
) -> Services:
    """Wire together what the lanes share; `on_settled` is called after each batch."""
    options = Options(
        long_poll_timeout_s=settings.long_poll_timeout_s,
        sse_lifetime_s=settings.sse_lifetime_s,
        sse_jitter_s=settings.sse_lifetime_s / 10,
        heartbeat_s=settings.sse_heartbeat_s,
        read_bytes_max=settings.read_bytes_max,
        public_url=settings.public_url,
        cors_origin=settings.cors_origin,
        retention_rules=RetentionRules(settings.retention),
    )
    hub = Hub(loop)
    workers = Workers(loop)
    desk = Desk(store, Reach(settings.webhook_targets))
    context = Context(store, options)
    context.subscriptions = desk
    return Services(
        settings=settings,
        store=store,
        context=context,
        hub=hub,
        wheel=Wheel(loop),
        committer=Committer(store, hub, loop, on_settled, _die, desk.committed),
        desk=desk,
        workers=workers,
        loader=Loader(store, workers),
        room=Room(store),
        bodies=Allowance(max(settings.bodies_bytes_max, settings.body_bytes_max)),
        clock=Clock(),
        connections=Connections(),
    )


def _die() -> None:
    """End at once, as a kill would: acknowledged data is safe, and nothing more is promised."""
    logging.shutdown()
    os._exit(EXIT_FAILED)


def _listen(settings: Settings) -> socket.socket:
    """The one listening socket. Raises OSError."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Accepted sockets inherit it.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, PEER_TIMEOUT_MS)
        with contextlib.suppress(OSError):  # only to save memory
            listener.setsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, UNSENT_BYTES_MAX)
        listener.bind(address)
        listener.listen(settings.backlog)  # here, not in uvloop: the port may be taken
    except OSError:
        listener.close()
        raise
    return listener


def _url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _within_file_limit(settings: Settings) -> Settings:
    """Ask the system for as many open files as it gives, and promise no more connections."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        hard = settings.connections_max + settings.webhook_connections_max + SPARE_FILES
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    possible = max(1, hard - settings.webhook_connections_max - SPARE_FILES)
    if possible < settings.connections_max:
        usual = possible >= Settings().connections_max / 2
        log.log(
            logging.DEBUG if usual else logging.INFO,
            "connections_max is %d: the system allows %d open files",
            possible,
            hard,
        )
        settings = msgspec.structs.replace(settings, connections_max=possible)
    return settings
