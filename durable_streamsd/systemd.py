"""What a service manager and the daemon say to each other: systemd's notifications, its watchdog,
and the socket that it listens on for us.

    NOTIFY_SOCKET            Service.ready, reloading, stopping and status are datagrams sent there
    WATCHDOG_USEC, _PID      Watchdog feeds it, from the loop, through the committer's thread
    LISTEN_FDS, _PID         take_listener: the socket that is open across our restarts

The variables are taken out of the environment, so that no child takes them for its own. Where they
are missing nothing is sent and nothing is taken over: the daemon runs the same under anything else.

Left out: more than one socket, and sockets that are not TCP; both are refused.
"""

import logging
import os
import socket
import time
from collections.abc import Callable, MutableMapping

__all__ = ["ActivationError", "Service", "Watchdog", "take_listener"]

LISTEN_FDS_START = 3
"""The first descriptor that is passed, by sd_listen_fds(3)."""
NOTIFY_TIMEOUT_S = 0.1
"""How long a manager that does not read its socket may hold up the loop."""

log = logging.getLogger(__name__)


class ActivationError(Exception):
    """What was passed is not one listening TCP socket; one sentence."""


class Service:
    """Tells the service manager how we are; does nothing where there is none.

    None of the methods raises: a manager that does not listen is no reason to stop serving.
    """

    def __init__(self, environment: MutableMapping[str, str] = os.environ) -> None:
        address = environment.pop("NOTIFY_SOCKET", "")
        watched_usec = environment.pop("WATCHDOG_USEC", "")
        watched_pid = environment.pop("WATCHDOG_PID", str(os.getpid()))
        self.watched = bool(address and watched_usec and watched_pid == str(os.getpid()))
        """Whether the manager ends us when it is not told that we are alive."""
        self._socket: socket.socket | None = None
        if address.startswith(("/", "@")):
            notifications = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            notifications.settimeout(NOTIFY_TIMEOUT_S)
            self._socket = notifications
            self._address = address.replace("@", "\0", 1) if address[0] == "@" else address

    def ready(self, status: str) -> None:
        """Start-up, or a reload, is over."""
        self._send("READY=1", _status(status))

    def reloading(self) -> None:
        """A reload begins; `ready` ends it."""
        now_usec = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1_000
        self._send("RELOADING=1", f"MONOTONIC_USEC={now_usec}")

    def stopping(self) -> None:
        """We are on our way out."""
        self._send("STOPPING=1", _status("stopping: finishing what is in flight"))

    def alive(self) -> None:
        """Feed the watchdog."""
        self._send("WATCHDOG=1")

    def status(self, sentence: str) -> None:
        """What people see in `systemctl status`."""
        self._send(_status(sentence))

    def _send(self, *lines: str) -> None:
        if self._socket is None:
            return
        try:
            self._socket.sendto("\n".join(lines).encode("utf-8", "replace"), self._address)
        except OSError as error:
            log.warning("the service manager could not be told %s: %s", lines[0], error)


def _status(sentence: str) -> str:
    return f"STATUS={' '.join(sentence.splitlines())}"


class Watchdog:
    """Feeds the service's watchdog, as long as the store answers.

    Each call of `tick`, on the loop, sends a question through the committer's thread; only its
    answer, back on the loop, feeds. So a loop that hangs, a thread that died, a sync that does not
    return, and a latched store all end in a restart, which is what helps against them.
    """

    def __init__(
        self,
        service: Service,
        ask: Callable[[Callable[[], None]], None],
        healthy: Callable[[], bool],
    ) -> None:
        """`ask` has the committer's thread call back, on the loop; `healthy`: it takes writes."""
        self._service = service
        self._ask = ask
        self._healthy = healthy
        self._asked = False
        self._told = False

    def tick(self) -> None:
        """Ask, unless the last question is still open."""
        if not self._healthy():
            if not self._told:
                self._told = True
                self._service.status("no writes: the disk failed, see the log; reads go on")
        elif self._service.watched and not self._asked:
            self._asked = True
            self._ask(self._answered)

    def _answered(self) -> None:
        self._asked = False
        if self._healthy():
            self._service.alive()


def take_listener(environment: MutableMapping[str, str] = os.environ) -> socket.socket | None:
    """The listening TCP socket that was passed to this process; None if there is none.

    Raises ActivationError.
    """
    pid = environment.pop("LISTEN_PID", "")
    count = environment.pop("LISTEN_FDS", "")
    environment.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()):
        return None  # meant for whoever started us
    if count != "1":
        raise ActivationError(f"expected one socket from the service manager, not {count or 0}")
    try:
        listener = socket.socket(fileno=LISTEN_FDS_START)
    except OSError as error:
        raise ActivationError(f"LISTEN_FDS: not a socket: {error.strerror}") from None
    listener.set_inheritable(False)
    if (
        listener.family not in (socket.AF_INET, socket.AF_INET6)
        or listener.type != socket.SOCK_STREAM
        or not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    ):
        listener.close()
        raise ActivationError(
            "LISTEN_FDS: not a listening TCP socket; the socket unit needs ListenStream= with an "
            "address and Accept=no"
        )
    return listener
