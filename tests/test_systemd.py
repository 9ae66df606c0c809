"""What the daemon and a service manager tell each other, over real sockets.

The notifications go to a real datagram socket; a listening socket is handed over as systemd does
it, and once by systemd's own `systemd-socket-activate`.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from daemon import PROGRAM, Daemon, handing_over, reconnectable_port
from raw_http import RawClient
from simple_http import ask, create
from volumes import failing_disk

from durable_streamsd.systemd import Service, Watchdog

PATIENCE_S = 20.0
STREAM = "/v1/stream/s"


class Manager:
    """The service manager's end of the notification socket."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address.replace("@", "\0") if address.startswith("@") else address)
        self.socket.settimeout(PATIENCE_S)
        self.heard: list[str] = []

    def environment(self, watchdog_s: int = 30) -> dict[str, str]:
        """What the daemon's environment has to say."""
        return {"NOTIFY_SOCKET": self.address, "WATCHDOG_USEC": str(watchdog_s * 1_000_000)}

    def next(self) -> str:
        """The next message."""
        self.heard.append(self.socket.recv(4096).decode())
        return self.heard[-1]

    def until(self, beginning: str) -> str:
        """Wait for a message that begins like this, and pass over others."""
        give_up = time.monotonic() + PATIENCE_S
        while not self.next().startswith(beginning):
            assert time.monotonic() < give_up, self.heard
        return self.heard[-1]


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    """A service manager that listens, at both kinds of address."""
    name = f"durable-streamsd-test-{os.getpid()}"
    address = str(tmp_path / "notify") if request.param == "path" else f"@{name}"
    listening = Manager(address)
    with listening.socket:
        yield listening


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A socket that listens before, while and after a daemon runs."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listening:
        yield listening


def test_the_manager_is_told_how_the_daemon_is(tmp_path: Path, manager: Manager) -> None:
    """Ready when it answers, alive again and again, reloading, ready, and stopping."""
    with Daemon(tmp_path / "data", env=manager.environment()) as daemon:
        ready = manager.next()
        assert ready == f"READY=1\nSTATUS=serving {tmp_path / 'data'} at {daemon.url}"
        assert ask(daemon, "GET", "/readyz").status == 200
        assert manager.next() == "WATCHDOG=1"
        assert manager.next() == "WATCHDOG=1"
        before_usec = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1_000
        os.kill(daemon.pid, signal.SIGHUP)
        reloading = re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=(\d+)", manager.until("RELOADING"))
        assert reloading
        assert before_usec <= int(reloading[1]) <= time.clock_gettime_ns(1) // 1_000
        assert manager.next() == ready
        assert daemon.terminate() == 0
        assert manager.until("STOPPING=1").startswith("STOPPING=1\nSTATUS=stopping")


def test_children_are_not_told_of_the_manager(tmp_path: Path, manager: Manager) -> None:
    """The indexer gets neither the variables that were meant for the daemon nor the socket."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        Daemon(tmp_path / "data", env=manager.environment(), listener=listener) as daemon,
    ):
        children = Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().split()
        assert len(children) == 1
        environment = Path(f"/proc/{children[0]}/environ").read_bytes()
        assert b"PYTHONPATH=" in environment
        for name in (b"NOTIFY_SOCKET=", b"WATCHDOG_USEC=", b"LISTEN_FDS=", b"LISTEN_PID="):
            assert name not in environment
        inode = f"socket:[{os.fstat(listener.fileno()).st_ino}]"
        for file in Path(f"/proc/{children[0]}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # it is still starting
                assert str(file.readlink()) != inode


def test_a_latched_store_does_not_feed_the_watchdog(tmp_path: Path) -> None:
    """After a disk error reads go on, and the manager is told why it hears nothing any more."""
    manager = Manager(str(tmp_path / "notify"))
    environment = manager.environment() | {"DURABLE_STREAMSD_LONG_POLL_TIMEOUT_S": "3"}
    with manager.socket, failing_disk(tmp_path, 48 << 20) as disk:
        daemon = Daemon(disk.path / "data", env=environment)
        daemon.stderr_path = tmp_path / "stderr"
        daemon.start()
        assert create(daemon, STREAM, b"kept").status == 201
        manager.until("WATCHDOG=1")
        disk.fail()
        assert ask(daemon, "POST", STREAM, b"x", {"Content-Type": "text/plain"}).status == 503
        assert "no writes" in manager.until("STATUS=")
        poll = ask(daemon, "GET", f"{STREAM}?offset=now&live=long-poll")
        assert poll.status == 204  # some seconds, in which it would have been fed
        assert not select.select([manager.socket], [], [], 0)[0], manager.next()
        daemon.kill()


def test_nobody_is_fed_while_the_committer_hangs(tmp_path: Path) -> None:
    """Only an answer through the committer's thread counts; one question is open at a time."""
    manager = Manager(str(tmp_path / "notify"))
    questions: list[object] = []
    with manager.socket:
        service = Service(manager.environment())
        watchdog = Watchdog(service, questions.append, lambda: True)
        watchdog.tick()
        watchdog.tick()
        assert len(questions) == 1
        assert not select.select([manager.socket], [], [], 0)[0]
        answered = questions[0]
        assert callable(answered)
        answered()
        assert manager.next() == "WATCHDOG=1"
        watchdog.tick()
        assert len(questions) == 2


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"NOTIFY_SOCKET": "vsock:2:1234", "WATCHDOG_USEC": "1000000"},
        {"NOTIFY_SOCKET": "/nowhere/notify", "WATCHDOG_USEC": "1000000"},
    ],
)
def test_a_manager_that_is_not_there_is_no_trouble(environment: dict[str, str]) -> None:
    """Nothing is raised where there is nobody, or nobody who can be reached."""
    service = Service(environment)
    service.ready("here\nwe are")
    service.reloading()
    service.stopping()
    service.alive()
    assert environment == {}


def test_another_ones_watchdog_is_let_be(tmp_path: Path) -> None:
    """WATCHDOG_PID names another process: it feeds, not we."""
    manager = Manager(str(tmp_path / "notify"))
    with manager.socket:
        assert Service(manager.environment() | {"WATCHDOG_PID": str(os.getpid())}).watched
        assert not Service(manager.environment() | {"WATCHDOG_PID": "1"}).watched


def test_a_socket_that_was_handed_over_is_served(tmp_path: Path, listener: socket.socket) -> None:
    """Its address counts, not the settings'; and it outlives the daemon."""
    port = listener.getsockname()[1]
    with Daemon(tmp_path / "data", port=1, listener=listener) as daemon:
        assert daemon.url == f"http://127.0.0.1:{port}"
        assert create(daemon, STREAM, b"1").status == 201
        assert daemon.terminate() == 0
        waiting = RawClient(f"http://127.0.0.1:{port}")
        daemon.start()
        assert waiting.request("GET", STREAM).body == b"1"


def test_a_socket_for_another_process_is_not_taken(tmp_path: Path, listener: socket.socket) -> None:
    """LISTEN_PID names another process: the daemon listens where the settings say."""
    environment = {"LISTEN_PID": "1", "LISTEN_FDS": "1"}
    with Daemon(tmp_path / "data", env=environment) as daemon:
        assert daemon.url != f"http://127.0.0.1:{listener.getsockname()[1]}"
        assert ask(daemon, "GET", "/readyz").status == 200


@pytest.mark.parametrize(
    ("sockets", "told"),
    [
        ("tcp tcp", "expected one socket from the service manager, not 2"),
        ("", "expected one socket from the service manager, not 0"),
        ("udp", "not a listening TCP socket"),
        ("unix", "not a listening TCP socket"),
        ("unbound", "not a listening TCP socket"),
        ("file", "not a socket"),
    ],
)
def test_what_cannot_be_served_is_exit_1(tmp_path: Path, sockets: str, told: str) -> None:
    """One sentence says what is wrong; the data directory is not touched."""
    made = [_open(kind, tmp_path) for kind in sockets.split()]
    command = [*PROGRAM, "serve", "--data-dir", str(tmp_path / "data")]
    result = subprocess.run(
        handing_over(made, command),
        pass_fds=made,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    for fd in made:
        os.close(fd)
    assert result.returncode == 1
    assert told in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "data").exists()


def _open(kind: str, folder: Path) -> int:
    """An open file of this kind."""
    match kind:
        case "tcp":
            return socket.create_server(("127.0.0.1", 0)).detach()
        case "udp":
            return socket.socket(socket.AF_INET, socket.SOCK_DGRAM).detach()
        case "unix":
            listening = socket.socket(socket.AF_UNIX)
            listening.bind(str(folder / "socket"))
            listening.listen()
            return listening.detach()
        case "unbound":
            return socket.socket().detach()
    return os.open("/dev/null", os.O_RDONLY)


def test_systemd_starts_it_at_the_first_connection(tmp_path: Path) -> None:
    """`systemd-socket-activate`: the connection that started the daemon is answered."""
    port = reconnectable_port()
    address = f"127.0.0.1:{port}"
    command = ["systemd-socket-activate", f"--listen={address}"]
    command += [f"--setenv={name}={value}" for name, value in os.environ.items() if value]
    command += [*PROGRAM, "serve", "--data-dir", str(tmp_path / "data")]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    assert process.stderr is not None
    assert f"Listening on {address}" in process.stderr.readline()
    with RawClient(f"http://{address}") as client:
        assert client.request("GET", "/readyz").status == 200
    process.terminate()
    said, errors = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, said) == (0, f"listening on http://{address}\n"), errors
