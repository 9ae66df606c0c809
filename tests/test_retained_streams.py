"""Retention as a user meets it: real processes, both lanes, and the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from daemon import ROOT, Daemon
from simple_http import Answer, ask, wait_until

from durable_streamsd.core.offsets import START_TOKEN, format_offset

LANES = {"express": "on", "general": "off"}
PATH = "/v1/stream/logs/web"
TEXT = {"Content-Type": "text/plain"}
CUT_S_MAX = 30
"""The index is written every five seconds, and looked at once a second."""
LINE_BYTES = 100
RULES = """
[[retention]]
pattern = "logs/**"
bytes = "4KiB"
"""


@pytest.fixture(params=LANES)
def lane(request: pytest.FixtureRequest) -> dict[str, str]:
    """The environment that makes every connection start in one of the lanes."""
    return {"DURABLE_STREAMSD_EXPRESS_LANE": LANES[request.param]}


def earliest(daemon: Daemon, path: str = PATH) -> str:
    """Where a stream begins."""
    return str(ask(daemon, "HEAD", path).headers["Stream-Earliest-Offset"])


def write(daemon: Daemon, count: int, path: str = PATH) -> None:
    """Append numbered lines, one by one."""
    for number in range(count):
        line = b"%06d" % number + b"." * (LINE_BYTES - 7) + b"\n"
        assert ask(daemon, "POST", path, line, TEXT).status == 204


def refused(daemon: Daemon, query: str) -> Answer:
    """The answer to a read from an offset that is no more."""
    answer = ask(daemon, "GET", f"{PATH}?{query}")
    assert answer.status == 410
    assert answer.headers["Content-Type"] == "application/problem+json"
    return answer


def test_a_stream_is_cut_and_stays_so(tmp_path: Path, lane: dict[str, str]) -> None:
    """By bytes, by a rule, through a kill; readers are told, and go on where they are told to."""
    config = tmp_path / "daemon.toml"
    config.write_text(RULES)
    with Daemon(tmp_path / "data", "--config", str(config), env=lane) as daemon:
        assert ask(daemon, "PUT", PATH, headers=TEXT).status == 201
        assert ask(daemon, "HEAD", PATH).headers["Stream-Retain-Bytes"] == "4096"
        write(daemon, 100)
        first = format_offset(1, 10_000 - 4_100).decode()
        wait_until(lambda: earliest(daemon) == first, CUT_S_MAX, "the stream is cut")
        for _ in range(2):
            whole = ask(daemon, "GET", PATH)
            assert whole.status == 200
            assert len(whole.body) == 4_100
            assert whole.body.startswith(b"000059")
            for live in ("", "&live=long-poll", "&live=sse"):
                answer = refused(daemon, f"offset={START_TOKEN.decode()}{live}")
                assert json.loads(answer.body)["earliest_offset"] == first
                assert answer.headers["Stream-Earliest-Offset"] == first
            assert ask(daemon, "GET", f"{PATH}?offset={first}").body == whole.body
            daemon.kill()
            daemon.start()
            assert earliest(daemon) == first


def test_old_data_goes_by_itself(tmp_path: Path) -> None:
    """What was written some seconds ago goes without anybody asking, also while a reader follows,
    who is then not disturbed."""
    with Daemon(tmp_path / "data") as daemon:
        headers = {**TEXT, "Stream-Retain-Seconds": "1"}
        assert ask(daemon, "PUT", PATH, b"old", headers).status == 201
        tail = format_offset(1, 3).decode()
        wait_until(lambda: earliest(daemon) == tail, CUT_S_MAX, "the old data is dropped")
        assert ask(daemon, "GET", PATH).body == b""
        assert ask(daemon, "POST", PATH, b"new", TEXT).status == 204
        assert ask(daemon, "GET", f"{PATH}?offset={tail}").body == b"new"


def test_on_the_command_line(tmp_path: Path) -> None:
    """`create` takes what is to be kept, `head` shows it."""
    with Daemon(tmp_path / "data") as daemon:

        def call(*arguments: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "durable_streamsd", *arguments]
            command += ["--url", f"{daemon.url}/v1/stream"]
            return subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=CUT_S_MAX
            )

        def run(*arguments: str) -> str:
            done = call(*arguments)
            assert done.returncode == 0, done.stderr
            return done.stdout

        retention = ("--retain-bytes", "1000", "--retain-seconds", "60")
        assert run("create", "s", *retention).startswith("created ")
        assert run("create", "s", *retention).startswith("exists ")
        shown = run("head", "s").splitlines()
        assert "retain-bytes: 1000" in shown
        assert "retain-seconds: 60" in shown
        assert f"earliest-offset: {START_TOKEN.decode()}" in shown
        document = json.loads(run("head", "s", "--json"))
        assert (document["retain_bytes"], document["retain_seconds"]) == (1000, 60)
        run("create", "t", "--content-type", "text/plain", "--retain-bytes", "3")
        for word in ("one", "two"):
            run("write", "t", word)
        path = "/v1/stream/t"
        first = format_offset(2, 3).decode()
        wait_until(lambda: earliest(daemon, path) == first, CUT_S_MAX, "the stream is cut")
        assert run("read", "t") == "two"
        listed = [json.loads(line) for line in run("ls", "--json").splitlines()]
        assert {at["path"]: at["earliest_offset"] for at in listed} == {"s": None, "t": first}
        late = call("read", "t", "--offset", START_TOKEN.decode())
        assert late.returncode == 1
        assert f"that offset is not kept any more, the stream begins at {first}" in late.stderr
