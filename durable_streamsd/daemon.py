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
from durable_streamsd.access import set_up_access_log
from durable_streamsd.auth.exposure import exposed_without_authentication, wants_authentication
from durable_streamsd.auth.keeper import AuthError, Keeper
from durable_streamsd.committer import Committer
from durable_streamsd.conditions import Conditions
from durable_streamsd.config import Settings
from durable_streamsd.core.context import Context, Options
from durable_streamsd.core.retention import RetentionRules
from durable_streamsd.edge.certificates import CertificateError, Certificates
from durable_streamsd.edge.front import Front
from durable_streamsd.edge.memory import Memory, within_memory
from durable_streamsd.edge.tls_connection import TlsFactory
from durable_streamsd.express.lane import Lane
from durable_streamsd.general import General
from durable_streamsd.hub import Hub
from durable_streamsd.logs import fields, set_up_logging
from durable_streamsd.metrics.counts import Counts
from durable_streamsd.metrics.exposition import MetricsPage
from durable_streamsd.retainer import Retainer
from durable_streamsd.services import (
    Allowance,
    Clock,
    Loader,
    Room,
    Services,
    Workers,
)
from durable_streamsd.subscriptions.desk import Desk
from durable_streamsd.subscriptions.runner import Runner
from durable_streamsd.subscriptions.targets import Reach
from durable_streamsd.systemd import ActivationError, Service, Watchdog, take_listener
from durable_streamsd.wheel import Wheel
from storage.errors import CorruptData, DirectoryLocked, OpenError, StorageError
from storage.indexer_process import IndexerProcess
from storage.limits import Limits
from storage.store import Store

__all__ = ["build_services", "run"]

EXIT_FAILED = 1
EXIT_USAGE = 2
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

OPEN_TO_ALL = (
    "host: whoever reaches {} could read, change and delete everything, as there is no "
    "authentication; set tokens-file or jwt-keys (see durable-streamsd token --help), or say that "
    "this is meant: --allow-anonymous"
)

log = logging.getLogger(__name__)


def run(settings: Settings, on_listening: Callable[[str], None] | None = None) -> int:
    """Serve until a signal says stop; returns the process's exit code.

    `on_listening` is called with the URL after the first line was printed.
    """
    set_up_logging(settings.log_level, settings.log_format)
    if settings.access_log:
        set_up_access_log()
    faulthandler.enable()  # a damaged page of the index can end the process without a word
    try:
        passed = take_listener()
        certificates = Certificates(settings) if settings.tls_certificate else None
    except (ActivationError, CertificateError) as error:
        print(f"durable-streamsd: {error}", file=sys.stderr)
        return EXIT_FAILED
    if passed is not None:  # it says where we listen, whatever the settings say
        host, port = passed.getsockname()[:2]
        settings = msgspec.structs.replace(settings, host=host, port=port)
    settings = within_memory(settings)
    limits = Limits(
        # A batch never spans two segments, and one append may be as large as a body.
        segment_bytes=max(settings.segment_bytes, 2 * settings.body_bytes_max),
        tail_cache_bytes_max=settings.tail_cache_bytes_max,
        compact_bytes_per_s=settings.compact_bytes_per_s,
    )
    if exposed_without_authentication(settings):
        print(f"durable-streamsd: {OPEN_TO_ALL.format(settings.host)}", file=sys.stderr)
        return EXIT_USAGE
    try:
        store = Store.open(Path(settings.data_dir), limits)
    except OpenError as error:
        print(f"durable-streamsd: {error}", file=sys.stderr)
        return EXIT_LOCKED if isinstance(error, DirectoryLocked) else EXIT_FAILED
    try:
        listener = _listen(settings, passed)
    except OSError as error:
        store.close()
        where = f"{settings.host} port {settings.port}"
        print(f"durable-streamsd: cannot listen on {where}: {error.strerror}", file=sys.stderr)
        return EXIT_FAILED
    with listener, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        daemon = Daemon(_within_file_limit(settings), store, certificates)
        return runner.run(daemon.serve(listener, on_listening))


class Daemon:
    """The running daemon; made inside the loop that `serve` runs in."""

    def __init__(self, settings: Settings, store: Store, certificates: Certificates | None) -> None:
        self._settings = settings
        self._store = store
        self._service = Service()
        self._certificates = certificates
        self._conditions = Conditions(store)

    async def serve(
        self, listener: socket.socket, on_listening: Callable[[str], None] | None
    ) -> int:
        """Serve until told to stop; returns the exit code."""
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        loop.add_signal_handler(signal.SIGTERM, stop.set)
        loop.add_signal_handler(signal.SIGINT, stop.set)
        loop.add_signal_handler(signal.SIGHUP, self._reload)

        self._indexer = IndexerProcess(self._store, self._room_made)
        services = build_services(self._settings, self._store, loop, self._room_made)
        self._services = services
        self._memory = Memory(self._settings.memory_bytes_max, lambda: services.promised_bytes)
        self._retainer = Retainer(services)
        desk = services.desk
        try:
            left_over = desk.load()
        except CorruptData as error:
            print(f"durable-streamsd: {error}", file=sys.stderr)
            self._store.close()
            return EXIT_FAILED
        try:
            self._keeper = open_gate(self._settings, services)
        except AuthError as error:
            print(f"durable-streamsd: {error}", file=sys.stderr)
            self._store.close()
            return EXIT_USAGE
        services.committer.start()
        self._runner = Runner(services, desk)
        self._runner.start(left_over)
        self._indexer.start(loop.call_soon_threadsafe)
        self._watchdog = Watchdog(
            self._service, services.committer.ask, lambda: not self._store.latched
        )
        if self._keeper is not None:
            self._keeper.start(self._callers_changed)
        server = await loop.create_server(
            self._protocols(services),
            sock=listener,
            backlog=self._settings.backlog,
        )
        # What is here now stays: the collector need not look at it again. Handlers make next to
        # no cycles, so rare collections do, and a full one, which holds up everybody, hardly ever.
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 20, 100)
        url = _url_of(listener, "http" if self._certificates is None else "https")
        _say_what_opening_took(self._store)
        data_dir = str(self._store.directory.path.absolute())
        version = durable_streamsd.__version__
        log.info("started", extra=fields(version=version, data_dir=data_dir, url=url))
        self._serving = f"serving {data_dir} at {url}"
        self._service.ready(self._serving)
        print(f"listening on {url}", flush=True)
        if on_listening is not None:
            on_listening(url)
        self._tick()
        await stop.wait()

        log.info("stopping")
        self._service.stopping()
        await self._drain(server)
        self._ticker.cancel()
        return self._close()

    def _protocols(self, services: Services) -> Callable[[], asyncio.Protocol]:
        """What makes a protocol for each connection."""
        general = General(services)
        self._lane = Lane(services, general)
        services.context.exposition = MetricsPage(services, self._lane)
        plain = self._lane if self._settings.express_lane else general
        if self._certificates is None:
            return plain
        return TlsFactory(services, self._certificates, plain)

    def _tick(self) -> None:
        """What is done once a second."""
        self._ticker = asyncio.get_running_loop().call_later(TICK_S, self._tick)
        self._services.tick()
        self._services.context.tick()
        if self._keeper is not None:
            self._keeper.tick()
        self._services.context.memory_short = self._memory.tick()
        self._services.committer.kick()  # for what the store's tick finds: expiries are records
        self._room_made()
        self._watchdog.tick()
        self._retainer.look()
        self._indexer.grant(self._store.compaction_grant())
        self._store.tick(self._store.now_ms())  # last: it may meet a damaged index

    def _reload(self) -> None:
        """SIGHUP: read again what can be read again."""
        self._service.reloading()
        if self._certificates is None and self._keeper is None:
            log.info("SIGHUP: there is nothing to reload")
        if self._certificates is not None:
            self._certificates.reload()
        if self._keeper is not None:
            log.info("SIGHUP: reading tokens and keys again")
            self._keeper.reload()
        self._service.ready(self._serving)

    def _callers_changed(self, revoked: bool) -> None:
        """Other tokens or keys count; `revoked`: and somebody's do no more."""
        self._lane.heads.clear()
        if revoked:
            self._services.hub.wake_all()

    def _room_made(self) -> None:
        """A batch was settled or the index got further: there may be room for more."""
        self._indexer.poll()
        self._services.room.release()
        self._conditions.look()

    async def _drain(self, server: asyncio.Server) -> None:
        """Take no more requests; let those that are here end, but not for ever."""
        services = self._services
        server.close()
        services.context.draining = True
        services.connections.drain()
        services.hub.wake_all()
        await self._runner.stop()
        if self._keeper is not None:
            await self._keeper.stop()
        try:
            async with asyncio.timeout(self._settings.drain_timeout_s):
                await services.connections.none()
        except TimeoutError:
            log.warning("cutting %d connections that did not end", services.connections.count)
            services.connections.abort()
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


def _say_what_opening_took(store: Store) -> None:
    recovered = store.recovered
    log.info(
        "recovered: the index has all of the log; unfinished bytes were never acknowledged",
        extra=fields(
            records=recovered.records,
            unfinished_bytes=recovered.torn_bytes,
            last_batch_moved=bool(recovered.moved),
        ),
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
        cors_origins=settings.cors_origins,
        waiters_per_stream_max=settings.waiters_per_stream_max,
        retention_rules=RetentionRules(settings.retention),
    )
    counts = Counts()
    hub = Hub(loop)
    workers = Workers(loop)
    desk = Desk(store, Reach(settings.webhook_targets))
    context = Context(store, options)
    context.subscriptions = desk
    context.on_problem = counts.refusals.told
    return Services(
        settings=settings,
        store=store,
        context=context,
        hub=hub,
        wheel=Wheel(loop),
        committer=Committer(store, hub, loop, on_settled, _die, counts.commits, desk.committed),
        desk=desk,
        workers=workers,
        loader=Loader(store, workers),
        room=Room(store),
        bodies=Allowance(max(settings.bodies_bytes_max, settings.body_bytes_max)),
        clock=Clock(),
        front=Front(settings),
        counts=counts,
    )


def open_gate(settings: Settings, services: Services) -> Keeper | None:
    """Let only callers in who may, if that is wanted. Raises `AuthError`."""
    if not wants_authentication(settings):
        return None
    keeper = Keeper(settings, services.store.now_ms, services.desk.keys.reader_secret)
    services.context.gate = keeper.gate
    return keeper


def _die() -> None:
    """End at once, as a kill would: acknowledged data is safe, and nothing more is promised."""
    logging.shutdown()
    os._exit(EXIT_FAILED)


def _listen(settings: Settings, passed: socket.socket | None) -> socket.socket:
    """The one listening socket, the one that was `passed` if there is one. Raises OSError."""
    if passed is not None:
        _set_options(passed)
        return passed
    family, kind, protocol, _, address = socket.getaddrinfo(
        settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        _set_options(listener)
        listener.bind(address)
        listener.listen(settings.backlog)  # here, not in uvloop: the port may be taken
    except OSError:
        listener.close()
        raise
    return listener


def _set_options(listener: socket.socket) -> None:
    """Options that accepted sockets inherit. Raises OSError."""
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, PEER_TIMEOUT_MS)
    with contextlib.suppress(OSError):  # only to save memory
        listener.setsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, UNSENT_BYTES_MAX)


def _url_of(listener: socket.socket, scheme: str) -> str:
    host, port = listener.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


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
