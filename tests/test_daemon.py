"""The daemon as a process: how it starts, stops, and says what is wrong."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from daemon import ROOT, Daemon
from raw_http import RawClient, encode
from simple_http import ask, create

from durable_streamsd import __version__
from durable_streamsd.config import Settings
from durable_streamsd.daemon import SPARE_FILES

TEXT = "Content-Type: text/plain"
PATH = "/v1/stream/test"
LANES = {"express": "on", "general": "off"}
ENDS_S_MAX = 20
LIMITED = """
import resource, sys
limit = int(sys.argv.pop(1))
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
from durable_streamsd.cli import main
main()
"""
"""Runs the command line with so many open files, its first argument, and no more."""


@pytest.fixture(params=LANES)
def lane(request: pytest.FixtureRequest) -> dict[str, str]:
    """The environment that makes every connection start in one of the lanes."""
    return {"DURABLE_STREAMSD_EXPRESS_LANE": LANES[request.param]}


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command that is expected to end by itself."""
    return subprocess.run(
        [sys.executable, "-m", "durable_streamsd", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=ENDS_S_MAX,
        check=False,
    )


def start(*arguments: str) -> subprocess.Popen[str]:
    """A command whose output the test reads line by line."""
    return subprocess.Popen(
        [sys.executable, "-m", "durable_streamsd", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def sentence(result: subprocess.CompletedProcess[str]) -> str:
    """The one line that the command said on standard error; nothing else is there."""
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("durable-streamsd: ")
    return lines[0]


def test_the_first_line_names_the_port_that_was_bound(tmp_path: Path) -> None:
    """Port 0 is a free one, and whoever reads the first line can connect."""
    with Daemon(tmp_path / "data") as daemon:
        assert re.fullmatch(r"http://127\.0\.0\.1:[1-9]\d*", daemon.url)
        with RawClient(daemon.url) as client:
            assert client.request("GET", "/healthz").body == b"ok\n"
            assert client.request("GET", "/readyz").status == 200


def test_an_ipv6_address_is_a_url(tmp_path: Path) -> None:
    """The address is in brackets, as it has to be."""
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    with Daemon(tmp_path / "data", "--host", "::1") as daemon:
        assert re.fullmatch(r"http://\[::1\]:\d+", daemon.url)
        with RawClient(daemon.url) as client:
            assert client.request("GET", "/healthz").status == 200


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_0(tmp_path: Path, signal_number: signal.Signals) -> None:
    """What was acknowledged is there after the next start."""
    data_dir = tmp_path / "data"
    process = start("serve", "--data-dir", str(data_dir), "--port", "0")
    assert process.stdout is not None
    url = process.stdout.readline().removeprefix("listening on ").strip()
    with RawClient(url) as client:
        assert client.request("PUT", PATH, TEXT).status == 201
        assert client.request("POST", PATH, TEXT, body=b"kept").status == 204
    process.send_signal(signal_number)
    rest, errors = process.communicate(timeout=ENDS_S_MAX)
    assert (process.returncode, rest) == (0, ""), errors
    with Daemon(data_dir) as daemon, RawClient(daemon.url) as client:
        assert client.request("GET", PATH).body == b"kept"


def test_a_stop_ends_live_readers_cleanly(tmp_path: Path, lane: dict[str, str]) -> None:
    """A long-poll gets its 204, an event stream its terminator, an idle connection its end."""
    with Daemon(tmp_path / "data", env=lane) as daemon:
        with RawClient(daemon.url) as client:
            client.request("PUT", PATH, TEXT, body=b"old")
        idle, poll, events = (RawClient(daemon.url) for _ in range(3))
        assert idle.request("GET", "/healthz").status == 200
        events.send(encode("GET", f"{PATH}?offset=-1&live=sse"))
        events.head()
        assert b"data:old" in events.chunk()
        # A pipelined answer proves that the long-poll behind it was received.
        poll.send(encode("GET", "/healthz") + encode("GET", f"{PATH}?offset=now&live=long-poll"))
        assert poll.answer().status == 200
        assert daemon.terminate() == 0
        assert poll.answer().status == 204
        assert poll.closed()
        assert events.rest() == b"0\r\n\r\n"
        assert idle.closed()


def test_forks_survive_kills(tmp_path: Path, lane: dict[str, str]) -> None:
    """What a fork holds, what is kept for it and what is listed is the same after each kill."""
    root = "/v1/stream/"
    with Daemon(tmp_path / "data", env=lane) as daemon:
        assert create(daemon, f"{root}s", b"abcdef").status == 201
        start = {"Stream-Forked-From": f"{root}s", "Stream-Fork-Offset": f"{0:016}_{0:016}"}
        for number in range(4):
            headers = start | {"Stream-Fork-Sub-Offset": str(number)}
            assert ask(daemon, "PUT", f"{root}f{number}", b"!", headers).status == 201
        assert ask(daemon, "DELETE", f"{root}s").status == 204
        for number in range(3):
            daemon.kill()
            daemon.start()
            assert ask(daemon, "GET", f"{root}s").status == 410
            assert create(daemon, f"{root}s").status == 409
            left = [f"f{at}" for at in range(number, 4)]
            assert listed(daemon) == left
            for path in left:
                body = ask(daemon, "GET", root + path).body
                assert body == b"abcdef"[: int(path[1:])] + b"!"
            assert ask(daemon, "DELETE", f"{root}f{number}").status == 204
        assert ask(daemon, "DELETE", f"{root}f3").status == 204
        daemon.kill()
        daemon.start()
        assert listed(daemon) == []
        assert create(daemon, f"{root}s", b"new").status == 201
        assert ask(daemon, "GET", f"{root}s").body == b"new"


def listed(daemon: Daemon) -> list[str]:
    """The paths of all streams."""
    answer = ask(daemon, "GET", "/v1/stream/__ds/streams")
    return [stream["path"] for stream in json.loads(answer.body)["streams"]]


def test_a_stop_answers_what_is_in_flight(tmp_path: Path, lane: dict[str, str]) -> None:
    """An append whose body is still arriving when the signal comes is taken and acknowledged."""
    data_dir = tmp_path / "data"
    with Daemon(data_dir, env=lane) as daemon:
        with RawClient(daemon.url) as client:
            client.request("PUT", PATH, TEXT)
        writer, witness = RawClient(daemon.url), RawClient(daemon.url)
        writer.send(encode("GET", "/healthz") + encode("POST", PATH, TEXT, body=b"late")[:-1])
        assert writer.answer().status == 200
        witness.send(encode("GET", f"{PATH}?offset=-1&live=sse"))
        witness.head()
        os.kill(daemon.pid, signal.SIGTERM)
        witness.rest()  # it is stopping now
        writer.send(b"e")
        answer = writer.answer()
        assert answer.status == 204
        assert answer.headers["connection"] == "close"
        assert writer.closed()
        with pytest.raises(ConnectionRefusedError):
            RawClient(daemon.url)
    with Daemon(data_dir) as daemon, RawClient(daemon.url) as client:
        assert client.request("GET", PATH).body == b"late"


def test_a_stop_does_not_wait_for_ever(tmp_path: Path, lane: dict[str, str]) -> None:
    """A request that does not end is cut off in time, and the exit code is 0 all the same."""
    environment = lane | {"DURABLE_STREAMSD_DRAIN_TIMEOUT_S": "0.2"}
    with Daemon(tmp_path / "data", env=environment) as daemon:
        stuck = RawClient(daemon.url)
        stuck.send(encode("GET", "/healthz") + encode("POST", PATH, TEXT, body=b"never")[:-1])
        assert stuck.answer().status == 200
        assert daemon.terminate() == 0
        assert stuck.rest()[:12] in (b"", b"HTTP/1.1 408")


def test_a_kill_loses_nothing_acknowledged(tmp_path: Path) -> None:
    """SIGKILL right after the answer: the append is there at the next start."""
    daemon = Daemon(tmp_path / "data").start()
    with RawClient(daemon.url) as client:
        client.request("PUT", PATH, TEXT)
        for number in range(100):
            assert client.request("POST", PATH, TEXT, body=b"%03d," % number).status == 204
    daemon.kill()
    with daemon, RawClient(daemon.url) as client:
        assert client.request("GET", PATH).body == b"".join(b"%03d," % n for n in range(100))


def test_sighup_is_survived(tmp_path: Path) -> None:
    """There is nothing to reload yet; it is logged, and the daemon stays."""
    with Daemon(tmp_path / "data") as daemon, RawClient(daemon.url) as client:
        os.kill(daemon.pid, signal.SIGHUP)
        while "SIGHUP" not in daemon.stderr_tail():
            assert client.request("GET", "/healthz").status == 200


def test_a_locked_directory_is_exit_3(tmp_path: Path) -> None:
    """Two daemons on one directory: the second says so and leaves, the first goes on."""
    with Daemon(tmp_path / "data") as daemon:
        result = run("serve", "--data-dir", str(tmp_path / "data"), "--port", "0")
        assert result.returncode == 3
        assert str(tmp_path / "data") in sentence(result)
        with RawClient(daemon.url) as client:
            assert client.request("GET", "/readyz").status == 200


def test_the_very_same_command_again_is_exit_3(tmp_path: Path) -> None:
    """With the port taken as well, the directory is what is reported."""
    with Daemon(tmp_path / "data") as daemon:
        port = daemon.url.rpartition(":")[2]
        result = run("serve", "--data-dir", str(tmp_path / "data"), "--port", port)
        assert result.returncode == 3


def test_a_directory_that_cannot_be_opened_is_exit_1(tmp_path: Path) -> None:
    """A folder with other people's files is not touched."""
    (tmp_path / "thesis.tex").write_text("ten years of work")
    result = run("serve", "--data-dir", str(tmp_path), "--port", "0")
    assert result.returncode == 1
    assert str(tmp_path) in sentence(result)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_port_in_use_is_exit_1(tmp_path: Path) -> None:
    """The sentence names it, and the directory is given back."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run("serve", "--data-dir", str(tmp_path / "data"), "--port", str(port))
    assert result.returncode == 1
    assert f"port {port}" in sentence(result)
    with Daemon(tmp_path / "data"):
        pass


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--port", "http"], "--port"),
        (["--long-poll-timeout", "soon"], "--long-poll-timeout"),
        (["--max-body", "-1"], "--max-body"),
        (["--config", "/nowhere/daemon.toml"], "--config"),
    ],
)
def test_a_bad_flag_is_exit_2(tmp_path: Path, arguments: Sequence[str], named: str) -> None:
    """A sentence that names the flag; nothing is created."""
    result = run("serve", "--data-dir", str(tmp_path / "data"), *arguments)
    assert result.returncode == 2
    assert named in sentence(result)
    assert not (tmp_path / "data").exists()


def test_a_bad_variable_is_exit_2(tmp_path: Path) -> None:
    """The environment is held to the same rules."""
    result = run("serve", "--data-dir", str(tmp_path / "data"), DURABLE_STREAMSD_PORT="x")
    assert result.returncode == 2
    assert "DURABLE_STREAMSD_PORT" in sentence(result)


def test_serve_insists_on_a_data_directory() -> None:
    """Nobody's data ends up where they did not say."""
    result = run("serve", "--port", "0")
    assert result.returncode == 2
    assert "--data-dir" in sentence(result)


def test_a_configuration_file_is_used(tmp_path: Path) -> None:
    """Settings of the file take effect, also the data directory."""
    (tmp_path / "daemon.toml").write_text(f"max_body = 10\ndata_dir = '{tmp_path / 'data'}'\n")
    process = start("serve", "--config", str(tmp_path / "daemon.toml"), "--port", "0")
    assert process.stdout is not None
    url = process.stdout.readline().removeprefix("listening on ").strip()
    with RawClient(url) as client:
        assert client.request("PUT", PATH, TEXT).status == 201
        assert client.request("POST", PATH, TEXT, body=b"x" * 10).status == 204
        assert client.request("POST", PATH, TEXT, body=b"x" * 11).status == 413
    process.terminate()
    process.communicate(timeout=ENDS_S_MAX)
    assert process.returncode == 0
    assert (tmp_path / "data").is_dir()


def test_dev_needs_nothing(tmp_path: Path) -> None:
    """It says what to try, that the data will be removed, and removes it; the line works."""
    process = start("dev", "--port", "0")
    assert process.stdout is not None
    url = process.stdout.readline().removeprefix("listening on ").strip()
    said = process.stdout.readline()
    match = re.search(r"in (\S+), which is removed at exit", said)
    assert match, said
    directory = Path(match[1])
    assert directory.is_dir()
    assert process.stdout.readline() == "try:\n"
    command = process.stdout.readline().strip()
    assert command.startswith("curl ")
    assert f"{url}/v1/stream/" in command
    assert process.stdout.readline().startswith("  curl ")
    assert process.stdout.readline() == "Ctrl-C stops it\n"
    with RawClient(url) as client:
        assert client.request("GET", "/healthz").status == 200
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=ENDS_S_MAX)
    assert process.returncode == 0
    assert not directory.exists()


def test_dev_keeps_a_directory_that_it_was_given(tmp_path: Path) -> None:
    """With --data-dir it is a daemon like any other."""
    process = start("dev", "--port", "0", "--data-dir", str(tmp_path / "data"))
    assert process.stdout is not None
    process.stdout.readline()
    assert "kept" in process.stdout.readline()
    process.terminate()
    process.communicate(timeout=ENDS_S_MAX)
    assert process.returncode == 0
    assert (tmp_path / "data").is_dir()


def test_the_start_is_logged(tmp_path: Path) -> None:
    """Lines say what runs where and what recovery did, after a clean stop and after a kill."""
    daemon = Daemon(tmp_path / "data").start()
    with RawClient(daemon.url) as client:
        assert client.request("PUT", PATH, TEXT, body=b"x").status == 201
    daemon.kill()
    with daemon:
        lines = daemon.stderr_path.read_text().splitlines()
        assert len(lines) == 4, lines
        assert lines[0].endswith(" records=0 unfinished_bytes=0 last_batch_moved=false")
        assert re.search(r" records=[1-9]\d* unfinished_bytes=\d+ last_batch_moved=true$", lines[2])
        where = f"data_dir={tmp_path / 'data'} url={daemon.url}"
        assert lines[3].endswith(f" message=started version={__version__} {where}")


@pytest.mark.parametrize(("spare", "told"), [(10_000, False), (9_999, True)])
def test_a_low_limit_of_files_is_told(tmp_path: Path, spare: int, told: bool) -> None:
    """How many connections are possible is worth a line only where it is far below the usual."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = spare + SPARE_FILES + Settings().webhook_connections_max
    assert hard == resource.RLIM_INFINITY or hard >= limit, f"raise ulimit -Hn to {limit}"
    process = subprocess.Popen(
        [sys.executable, "-c", LIMITED, str(limit), "serve", "--port", "0", "--data-dir", "data"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.terminate()
    _, errors = process.communicate(timeout=ENDS_S_MAX)
    assert ("connections_max" in errors) is told, errors


def test_logs_are_one_line_each(tmp_path: Path) -> None:
    """Every line on standard error can be taken apart."""
    with Daemon(tmp_path / "data") as daemon:
        with RawClient(daemon.url) as client:
            client.request("GET", "/healthz")
        assert daemon.terminate() == 0
        lines = daemon.stderr_path.read_text().splitlines()
    assert lines
    for line in lines:
        assert re.match(r"time=\d{4}-\d\d-\d\dT[\d:.]+Z level=\w+ logger=[\w.]+ message=", line), (
            line
        )
