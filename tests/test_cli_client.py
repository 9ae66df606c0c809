"""The stream commands as users run them: real processes against a real daemon.

What a daemon cannot be made to do at will (cutting a connection at a certain byte) is played by
`ScriptedServer`. The splitting of JSON and SSE into parts is tested without processes, at every
position where input can be cut.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import pytest
from daemon import Daemon, reconnectable_port

from durable_streamsd.cli import COMMANDS, main
from durable_streamsd.cli.client_input import characters_end
from durable_streamsd.cli.client_json import (
    ArraySplitter,
    InputSplitter,
    NotJson,
    check_message,
    to_lines,
)
from durable_streamsd.client import NotTheProtocol
from durable_streamsd.client.sse import SseEvent, SseParser

ROOT = Path(__file__).resolve().parent.parent
COMMAND_SECONDS_MAX = 60
FOLLOW = pytest.mark.parametrize("mode", ["--long-poll", "--sse"])

Run = Callable[..., subprocess.CompletedProcess[bytes]]


def environment(url: str) -> dict[str, str]:
    return {**os.environ, "STREAM_URL": url, "STREAM_AUTH": ""}


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "durable_streamsd", *args]


def run_at(url: str, *args: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        command(*args),
        input=stdin,
        capture_output=True,
        cwd=ROOT,
        env=environment(url),
        timeout=COMMAND_SECONDS_MAX,
    )


def done(result: subprocess.CompletedProcess[bytes]) -> bytes:
    """The output of a command that must have succeeded without a word on standard error."""
    assert (result.returncode, result.stderr) == (0, b"")
    return result.stdout


def sentence(result: subprocess.CompletedProcess[bytes]) -> str:
    """The one line in which a command must have said why it failed."""
    assert result.returncode == 1
    text = result.stderr.decode()
    assert text.startswith("durable-streamsd: ")
    assert text.count("\n") == 1
    return text


@contextmanager
def running(url: str, *args: str) -> Iterator[subprocess.Popen[bytes]]:
    """A command that is still at work; killed at the end, and when it hangs."""
    with subprocess.Popen(
        command(*args),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        env=environment(url),
    ) as process:
        watchdog = threading.Timer(COMMAND_SECONDS_MAX, process.kill)
        watchdog.start()
        try:
            yield process
        finally:
            watchdog.cancel()
            process.kill()


def next_line(pipe: object) -> bytes:
    readline: Callable[[], bytes] = pipe.readline  # type: ignore[attr-defined]
    return readline()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Stream URL of a daemon that the tests of this module share."""
    with Daemon(tmp_path_factory.mktemp("cli") / "data") as daemon:
        yield f"{daemon.url}/v1/stream"


@pytest.fixture
def run(url: str) -> Run:
    """Run a command against the shared daemon."""
    return lambda *args, stdin=b"": run_at(url, *args, stdin=stdin)


@pytest.fixture
def path(request: pytest.FixtureRequest) -> str:
    """A stream path of the test's own."""
    return f"cli/{request.node.name}"


class ScriptedServer:
    """Answers one connection after the other with bytes written beforehand, then hangs up."""

    def __init__(self, *answers: bytes) -> None:
        self.requests: list[bytes] = []
        self._answers = answers
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def _serve(self) -> None:
        for answer in self._answers:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return  # closed before everything was asked for
            with connection:
                request = b""
                while b"\r\n\r\n" not in request:
                    request += connection.recv(65536)
                head, _, body = request.partition(b"\r\n\r\n")
                length = 0
                for line in head.lower().split(b"\r\n"):
                    if line.startswith(b"content-length:"):
                        length = int(line.partition(b":")[2])
                while len(body) < length:
                    body += connection.recv(65536)
                self.requests.append(head + b"\r\n\r\n" + body)
                connection.sendall(answer)

    def __enter__(self) -> ScriptedServer:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._socket.close()


def answer(status: str, *headers: str, body: bytes = b"") -> bytes:
    lines = [f"HTTP/1.1 {status}", "Connection: close", *headers]
    if "Content-Type: text/event-stream" not in headers:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


SSE_HEADER = "Content-Type: text/event-stream"
AT_START = answer(
    "200 OK", "Content-Type: text/plain", "Stream-Next-Offset: 0", "Stream-Up-To-Date: true"
)


# Round trips


def test_binary_round_trip(run: Run, path: str) -> None:
    """Bytes piped in come out the same, NUL, invalid UTF-8 and several requests' worth of them."""
    data = bytes(range(256)) * 4096 * 3 + b"\x00\xff\xfe\r\n\xc3"
    done(run("create", path))
    done(run("write", path, stdin=data))
    assert done(run("read", path)) == data


def test_text_round_trip(run: Run, path: str) -> None:
    """Text keeps its line ends and its lack of one, and an argument is written as given."""
    done(run("create", path, "--content-type", "text/plain"))
    done(run("write", path, "grüße\r\n"))
    done(run("write", path, "-", stdin="\r  ünd\n\n😀".encode()))
    assert done(run("read", path)) == "grüße\r\n\r  ünd\n\n😀".encode()


def test_json_lines_round_trip(run: Run, path: str) -> None:
    """Messages of a batch are stored and printed byte for byte, whatever a parser would change."""
    lines = [
        b'{"b": 1,  "a":2, "b":3}',
        b"123456789012345678901234567890.50e+99",
        rb'"\ud800 \u0041 \/"',
        b"[1, [2 ,3]]",
        b'"' + "grüße".encode() + b'"',
        b"null",
        *(b'{"n":%d}' % number for number in range(2500)),
    ]
    done(run("create", path, "--json"))
    done(run("write", path, "--batch-json", stdin=b"\r\n\n".join(lines)))
    assert done(run("read", path)) == b"\n".join(lines) + b"\n"


def test_json_array_is_many_messages(run: Run, path: str) -> None:
    """With --batch-json the elements of one array, however laid out, are the messages."""
    done(run("create", path, "--json"))
    done(run("write", path, "--batch-json", stdin=b'\n[ {"a":\n 1},\n "],[",\n [2] ]\n'))
    assert done(run("read", path)) == b'{"a":  1}\n"],["\n[2]\n'


def test_json_array_is_one_message(run: Run, path: str) -> None:
    """With --json, and on a JSON stream without it, an array is one message."""
    done(run("create", path, "--json"))
    done(run("write", path, " [1, 2]\n", "--json"))
    done(run("write", path, stdin=b"[3,4]"))
    assert done(run("read", path)) == b"[1, 2]\n[3,4]\n"


def test_read_resumes_at_the_offset_shown(run: Run, path: str) -> None:
    """What --show-offset prints on standard error is where the next read begins."""
    done(run("create", path))
    done(run("write", path, "one"))
    first = run("read", path, "--show-offset")
    done(run("write", path, "two"))
    assert first.stdout == b"one"
    offset = first.stderr.decode().strip()
    assert done(run("read", path, "--offset", offset)) == b"two"


@pytest.mark.parametrize("name", ["a b", "100%25", "q?x=1#f", "ü/é", "plus+and&"])
def test_path_is_encoded_once(run: Run, url: str, path: str, name: str) -> None:
    """A path of any characters names the same stream to every command."""
    path = f"{path.partition('[')[0]}/{name}"
    done(run("create", "/" + path, "--content-type", "text/plain"))
    done(run("write", path, name))
    assert done(run("read", path)) == name.encode()
    done(run("delete", path))


@pytest.mark.parametrize("name", ["a b", "100%25", "q?x=1#f", "ü/é"])
def test_path_may_be_a_url(run: Run, path: str, name: str) -> None:
    """The URL that a command prints names the same stream when it is given as PATH."""
    path = f"{path.partition('[')[0]}/{name}"
    printed = done(run("create", path)).decode().split()[1]
    done(run("write", path, name))
    assert done(run("read", printed)) == name.encode()
    done(run("delete", printed))


def test_options_before_the_command(url: str, path: str) -> None:
    """--url before the command counts, and one after it counts more."""
    wrong = "http://127.0.0.1:1"
    done(run_at(wrong, "--url", url, "create", path))
    done(run_at(wrong, "--url", wrong, "head", path, "--url", url))


def test_head(run: Run, path: str, url: str) -> None:
    """The human form has one line per fact, and the JSON form the same facts."""
    done(run("create", path, "--json", "--ttl", "3600"))
    done(run("write", path, "1", "--close"))
    lines = done(run("head", path)).decode().splitlines()
    facts = json.loads(done(run("head", path, "--json")))
    assert facts.pop("expires_at") is None
    assert facts["ttl_seconds"] == 3600
    assert lines == [
        f"url: {url}/{path}",
        "content-type: application/json",
        f"next-offset: {facts['next_offset']}",
        "closed: yes",
        "ttl-seconds: 3600",
    ]


def test_create_tells_new_from_old(run: Run, path: str, url: str) -> None:
    """Creating again as before is fine and says so; as something else it fails."""
    assert done(run("create", path)).decode() == f"created {url}/{path}\n"
    assert done(run("create", path)).decode() == f"exists {url}/{path}\n"
    assert "409" in sentence(run("create", path, "--json"))


def test_a_fork(run: Run, path: str, url: str) -> None:
    """A fork begins with what its source holds, up to an offset and so many messages more."""
    source = f"{path}/the source"
    done(run("create", source, "--json"))
    done(run("write", source, "--batch-json", stdin=b"1\n2\n3\n"))
    assert done(run("create", f"{path}/all", "--fork-from", source)).startswith(b"created ")
    at = ["--fork-from", f"/{source}", "--fork-offset", "0000000000000000_0000000000000000"]
    done(run("create", f"{path}/two", *at, "--fork-sub-offset", "2"))
    assert done(run("create", f"{path}/two", *at, "--fork-sub-offset", "2")).startswith(b"exists ")
    done(run("write", f"{path}/two", '"own"'))
    assert done(run("read", f"{path}/all")) == b"1\n2\n3\n"
    assert done(run("read", f"{path}/two")) == b'1\n2\n"own"\n'
    assert "409" in sentence(run("create", f"{path}/two", *at))
    past = sentence(run("create", f"{path}/four", *at, "--fork-sub-offset", "4"))
    assert "Fork at or before" in past
    none = sentence(run("create", f"{path}/none", "--fork-from", f"{path}/nothing"))
    assert none == "durable-streamsd: there is no such stream to fork\n"
    assert run("create", path, "--fork-offset", "1").returncode == 2
    done(run("delete", source))
    assert "is gone" in sentence(run("head", source))
    assert "read by forks" in sentence(run("create", source))
    assert done(run("read", f"{path}/two")) == b'1\n2\n"own"\n'


def test_ls(run: Run, path: str) -> None:
    """Paths in their order, those with a prefix, and as JSON all that the server tells."""
    for name in ("b c", "a", "é"):
        done(run("create", f"{path}/{name}", "--content-type", "text/plain"))
    done(run("create", f"{path}/f", "--fork-from", f"{path}/a", "--closed"))
    names = ["a", "b c", "f", "é"]
    assert done(run("ls", f"/{path}/")).decode().splitlines() == [f"{path}/{at}" for at in names]
    assert done(run("ls", f"{path}/b ")).decode() == f"{path}/b c\n"
    assert done(run("ls", f"{path}/none")) == b""
    assert f"{path}/a" in done(run("ls")).decode().splitlines()
    fork = json.loads(done(run("ls", f"{path}/f", "--json")))
    assert fork.pop("created_at").endswith("Z")
    assert fork == {
        "path": f"{path}/f",
        "content_type": "text/plain",
        "next_offset": "0000000000000000_0000000000000000",
        "closed": True,
        "size_bytes": 0,
        "forked_from": f"{path}/a",
        "earliest_offset": None,
    }
    assert "INVALID" not in sentence(run("ls", "a" * 500))


def test_ls_of_a_server_that_lists_nothing() -> None:
    """Another server of the protocol does not have it, and the command says so."""
    refusal = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    server = ScriptedServer(refusal)
    with server:
        assert "does not list streams" in sentence(run_at(f"{server.url}/v1/stream", "ls"))


# Following


@FOLLOW
def test_tail_survives_a_crash_of_the_daemon(tmp_path: Path, mode: str) -> None:
    """A tail goes on after SIGKILL and restart of the daemon, and prints each message once."""
    with Daemon(tmp_path / "data", port=reconnectable_port()) as daemon:
        url = f"{daemon.url}/v1/stream"
        done(run_at(url, "create", "s", "--json"))
        done(run_at(url, "write", "s", '"zero"'))
        with running(url, "tail", "s", mode) as tail:
            assert next_line(tail.stdout) == b'"zero"\n'
            for message in (b'"one"', b'"two"'):
                daemon.kill()
                assert re.fullmatch(
                    rb"durable-streamsd: (connection lost: \S+|cannot connect to .+)"
                    rb"; trying again from offset \S+\n",
                    next_line(tail.stderr),
                )
                daemon.start()
                done(run_at(url, "write", "s", stdin=message))
                assert next_line(tail.stdout) == message + b"\n"
            done(run_at(url, "write", "s", '"three"', "--close"))
            assert tail.stdout is not None
            assert tail.stdout.read() == b'"three"\n'
            assert tail.wait(COMMAND_SECONDS_MAX) == 0


@FOLLOW
@pytest.mark.parametrize(
    "content_type", ["application/octet-stream", "text/plain", "application/json"]
)
def test_tail_ends_when_the_stream_closes(
    run: Run, url: str, path: str, mode: str, content_type: str
) -> None:
    """A tail prints what is there and what comes, then ends with 0 on the closing append."""
    done(run("create", path, "--content-type", content_type))
    done(run("write", path, '"one\\u0000"\n'))
    with running(url, "tail", path, mode) as tail:
        assert next_line(tail.stdout) == b'"one\\u0000"\n'
        done(run("write", path, '" two"\n', "--close"))
        assert tail.communicate(timeout=COMMAND_SECONDS_MAX) == (b'" two"\n', b"")
        assert tail.returncode == 0


@FOLLOW
def test_tail_from_now_on_a_closed_stream(run: Run, path: str, mode: str) -> None:
    """From now on nothing comes on a closed stream, so the tail ends at once."""
    done(run("create", path))
    done(run("write", path, "data", "--close"))
    assert done(run("tail", path, mode, "--offset", "now")) == b""


@FOLLOW
def test_tail_ends_when_the_stream_is_deleted(run: Run, url: str, path: str, mode: str) -> None:
    """A tail of a stream that goes away ends with 1 and says so."""
    done(run("create", path, "--content-type", "text/plain"))
    done(run("write", path, "here\n"))
    with running(url, "tail", path, mode) as tail:
        assert next_line(tail.stdout) == b"here\n"
        done(run("delete", path))
        _, errors = tail.communicate(timeout=COMMAND_SECONDS_MAX)
        assert tail.returncode == 1
        assert f"no stream at {url}/" in errors.decode()


def test_tail_interrupted(run: Run, url: str, path: str) -> None:
    """Ctrl-C ends a tail with 130 and still shows where to go on."""
    done(run("create", path, "--content-type", "text/plain"))
    done(run("write", path, "here\n"))
    with running(url, "tail", path, "--show-offset") as tail:
        assert next_line(tail.stdout) == b"here\n"
        tail.send_signal(signal.SIGINT)
        _, offset = tail.communicate(timeout=COMMAND_SECONDS_MAX)
        assert tail.returncode == 130
    done(run("write", path, "more\n"))
    assert done(run("read", path, "--offset", offset.decode().strip())) == b"more\n"


def test_tail_stops_in_time(run: Run, path: str) -> None:
    """With --max-time a tail of an open stream ends with 0."""
    done(run("create", path, "--content-type", "text/plain"))
    done(run("write", path, "here\n"))
    assert done(run("tail", path, "--max-time", "1")) == b"here\n"


def test_tail_ends_when_nobody_reads_it(run: Run, url: str, path: str) -> None:
    """A tail whose output is closed ends at once and quietly, without waiting for more to print."""
    done(run("create", path, "--content-type", "text/plain"))
    done(run("write", path, "here\n"))
    with running(url, "tail", path) as tail:
        assert next_line(tail.stdout) == b"here\n"
        assert tail.stdout is not None
        tail.stdout.close()
        assert tail.wait(COMMAND_SECONDS_MAX) == 141
        assert tail.stderr is not None
        assert tail.stderr.read() == b""


def test_read_ends_when_nobody_reads_it(run: Run, url: str, path: str) -> None:
    """A broken pipe ends a read quietly with the code that a shell knows as SIGPIPE."""
    done(run("create", path))
    done(run("write", path, stdin=bytes(1_000_000)))
    with running(url, "read", path) as read:
        assert read.stdout is not None
        assert read.stdout.read(1) == b"\x00"
        read.stdout.close()
        assert read.wait(COMMAND_SECONDS_MAX) == 141
        assert read.stderr is not None
        assert read.stderr.read() == b""


@pytest.mark.parametrize("how", [[], ["--batch-json"]])
def test_write_sends_what_is_there(run: Run, url: str, path: str, how: list[str]) -> None:
    """Input from an open pipe is appended as it comes, and Ctrl-C ends the wait for more."""
    done(run("create", path, "--content-type", "application/json" if how else "text/plain"))
    with running(url, "write", path, *how) as write, running(url, "tail", path) as tail:
        assert write.stdin is not None
        for line in (b'"one"\n', b'"two"\n'):
            write.stdin.write(line)
            write.stdin.flush()
            assert next_line(tail.stdout) == line
        write.send_signal(signal.SIGINT)
        assert write.wait(COMMAND_SECONDS_MAX) == 130


def test_long_poll_that_loses_data() -> None:
    """Data behind an empty answer that moves the offset or tells the end is read all the same."""
    text = "Content-Type: text/plain"
    with ScriptedServer(
        AT_START,
        answer("204 No Content", "Stream-Next-Offset: 1", "Stream-Up-To-Date: true"),
        answer("200 OK", text, "Stream-Next-Offset: 1", "Stream-Up-To-Date: true", body=b"a"),
        answer("204 No Content", "Stream-Next-Offset: 2", "Stream-Closed: true"),
        answer("200 OK", text, "Stream-Next-Offset: 2", "Stream-Closed: true", body=b"b"),
    ) as server:
        assert done(run_at(server.url, "tail", "s")) == b"ab"


def test_sse_cut_between_data_and_offset() -> None:
    """Data whose offset was cut off is not printed before it comes again."""
    data = b"event: data\ndata:hello\n\n"
    end = b'event: control\ndata:{"streamNextOffset":"5","streamClosed":true}\n\n'
    with ScriptedServer(
        AT_START,
        answer("200 OK", SSE_HEADER, body=data),
        answer("200 OK", SSE_HEADER, body=data + end),
    ) as server:
        assert done(run_at(server.url, "tail", "s", "--sse")) == b"hello"
        assert [b"offset=0&live=sse" in request for request in server.requests[1:]] == [True, True]


def test_lost_connection_is_told_plainly() -> None:
    """A cut event stream is a lost connection to who reads it, with its URL and offset."""
    cut = answer("200 OK", SSE_HEADER, "Transfer-Encoding: chunked", body=b"5\r\nevent")
    end = answer(
        "200 OK",
        SSE_HEADER,
        body=b'event: control\ndata:{"streamNextOffset":"0","streamClosed":true}\n\n',
    )
    with ScriptedServer(AT_START, cut, end) as server:
        result = run_at(server.url, "tail", "s", "--sse")
    lost = f"connection lost: {server.url}/s; trying again from offset 0"
    assert (result.returncode, result.stderr.decode()) == (0, f"durable-streamsd: {lost}\n")


def test_sse_base64() -> None:
    """Base64 data, also over several lines, comes out as bytes."""
    body = b'event: data\ndata: AAH/\ndata: /gA=\n\nevent: control\ndata: {"streamNextOffset": "5"'
    body += b', "streamClosed": true}\n\n'
    sse = answer("200 OK", SSE_HEADER, "stream-sse-data-encoding: base64", body=body)
    with ScriptedServer(AT_START, sse) as server:
        assert done(run_at(server.url, "tail", "s", "--sse")) == b"\x00\x01\xff\xfe\x00"


# Failing


def test_missing_stream(run: Run, url: str, path: str) -> None:
    """Each command but create says that the stream is not there, and ends with 1."""
    for args in (["read"], ["tail"], ["head"], ["delete"], ["write", "--content-type", "a/b"]):
        assert f"no stream at {url}/{path}" in sentence(run(*args, path, stdin=b"x"))


def test_missing_stream_can_be_created(run: Run, path: str) -> None:
    """The command that creates a missing stream is named, except to who wanted to delete it."""
    for args in (["read"], ["head"], ["write", "--content-type", "a/b"]):
        text = sentence(run(*args, f"{path} 1", stdin=b"x"))
        assert text.endswith(f"; create it with: durable-streamsd create '{path} 1'\n")
    assert "create" not in sentence(run("delete", "gone"))


@pytest.mark.parametrize("name", ["read", "head", "create"])
def test_server_url_without_its_path(url: str, name: str) -> None:
    """A server URL that stops short of /v1/stream is asked about, also where no body tells."""
    short = url.removesuffix("/v1/stream")
    assert f"is {short} the right server URL, or should it end in /v1/stream?" in sentence(
        run_at(short, name, "s")
    )


def test_path_is_a_url_elsewhere(run: Run, url: str) -> None:
    """A whole URL of another server is refused with what to do instead."""
    result = run("read", "http://elsewhere.example/v1/stream/s")
    assert result.returncode == 2
    assert f"is not below the server URL {url}: give a path, or name the server" in (
        result.stderr.decode()
    )


def test_no_daemon() -> None:
    """A refused connection names the URL and says how to start a daemon."""
    text = sentence(run_at("http://127.0.0.1:1/v1/stream", "read", "s"))
    assert "http://127.0.0.1:1/v1/stream/s" in text
    assert "durable-streamsd dev" in text


def test_wrong_url() -> None:
    """A web server that is none of ours is recognised as such."""
    with ScriptedServer(answer("200 OK", "Content-Type: text/html", body=b"<html>")) as server:
        assert "no Durable Streams server" in sentence(run_at(server.url, "read", "s"))


def test_problem_body() -> None:
    """The detail of a problem body is shown, without what could steer the terminal."""
    body = json.dumps({"code": "no", "detail": "Not\x1b[31m today.\nNo."}).encode()
    problem = answer("400 Bad Request", "Content-Type: application/problem+json", body=body)
    with ScriptedServer(problem) as server:
        assert "Not [31m today. No\n" in sentence(run_at(server.url, "read", "s"))


def test_closed_stream_takes_nothing(run: Run, path: str) -> None:
    """Closing needs no content, and a closed stream refuses more with a sentence."""
    done(run("create", path))
    done(run("write", path, "", "--close"))
    assert "is closed" in sentence(run("write", path, "more"))


def test_bad_message_names_its_number(run: Run, path: str) -> None:
    """Input that is not JSON is refused before it is sent, by number, and says what went before."""
    done(run("create", path, "--json"))
    lines = b"\n".join(b"%d" % number for number in range(1001)) + b"\nNaN\n"
    text = sentence(run("write", path, "--batch-json", stdin=lines))
    assert "message 1002 " in text
    assert "appended before it: 1000 messages" in text
    assert "--batch-json" in sentence(run("write", path, "1 2", "--json"))


def test_number_of_a_producer_used_again(run: Run, path: str) -> None:
    """A run that begins with a number the server has fails, and says what is not appended."""
    done(run("create", path, "--content-type", "text/plain"))
    done(run("write", path, "--producer-id", "p", stdin=b"one\n"))
    text = sentence(run("write", path, "--producer-id", "p", stdin=b"two!\n"))
    assert "5 bytes of the input not appended" in text
    assert "use a higher --epoch, or --seq 1" in text
    assert "not closed" in sentence(run("write", path, "", "--close", "--producer-id", "p"))
    done(run("write", path, "two\n", "--producer-id", "p", "--seq", "1"))
    done(run("write", path, "three\n", "--producer-id", "p", "--epoch", "1"))
    assert done(run("read", path)) == b"one\ntwo\nthree\n"


def test_number_of_a_producer_used_again_later() -> None:
    """The highest number is the one that the server told; what went before is told, too."""
    accepted = answer("200 OK", "Stream-Next-Offset: 5")
    taken = answer("204 No Content", "Stream-Next-Offset: 9", "Producer-Seq: 7")
    with ScriptedServer(accepted, taken) as server:
        args = ["--content-type", "application/json", "--batch-json", "--producer-id", "p"]
        lines = b"\n".join([b"1"] * 1002)
        text = sentence(run_at(server.url, "write", "s", *args, stdin=lines))
    assert "2 messages of the input not appended" in text
    assert "--seq 8; appended before it: 1000 messages\n" in text


def test_lost_answer_is_not_repeated() -> None:
    """Without a producer an append whose answer was lost is not sent again, and that is said."""
    with ScriptedServer(b"", b"") as server:
        text = sentence(run_at(server.url, "write", "s", "x", "--content-type", "a/b"))
        assert "not known" in text
        assert len(server.requests) == 1


def test_repeated_request_may_be_a_duplicate() -> None:
    """After a lost answer of our own the server knows the request, and all is well."""
    known = answer("204 No Content", "Stream-Next-Offset: 5", "Producer-Seq: 0")
    with ScriptedServer(b"", known) as server:
        args = ["--content-type", "a/b", "--producer-id", "p"]
        done(run_at(server.url, "write", "s", "x", *args))


def test_lost_answer_is_repeated_as_a_producer() -> None:
    """With a producer the same request goes out again, and the next one has the next number."""
    accepted = answer("200 OK", "Stream-Next-Offset: 5")
    with ScriptedServer(b"", accepted, accepted) as server:
        args = ["--content-type", "application/json", "--batch-json", "--producer-id", "p"]
        big = b'"' + b"x" * 1_000_000 + b'"\n'
        done(run_at(server.url, "write", "s", *args, "--epoch", "3", stdin=big + big[:-2] + b'y"'))
        numbers = [request.partition(b"Producer-Seq: ")[2][:1] for request in server.requests]
        assert numbers == [b"0", b"0", b"1"]
        assert server.requests[0] == server.requests[1]


@pytest.mark.parametrize(
    "args",
    [
        ["read"],
        ["read", ""],
        ["read", "s", "--url", "ftp://host"],
        ["read", "s", "--url", "http://user:secret@host"],
        ["read", "http://127.0.0.1:1/"],
        ["read", "http://127.0.0.1:1/s?offset=-1"],
        ["read", "http://127.0.0.1:2/s"],
        ["read", "http://[/s"],
        ["create", "s", "--json", "--content-type", "text/plain"],
        ["create", "s", "--ttl", "soon"],
        ["create", "s", "--content-type", "text/plain\n"],
        ["write", "s", "x", "--json", "--batch-json"],
        ["write", "s", ""],
        ["write", "s", "x", "--epoch", "1"],
        ["--url", "http://host", "serve"],
        ["nonsense"],
    ],
)
def test_usage_errors(args: list[str]) -> None:
    """Wrong usage ends with 2 and shows how to get help."""
    result = run_at("http://127.0.0.1:1", *args)
    assert result.returncode == 2
    assert b"for help" in result.stderr


# Help


@pytest.mark.parametrize("name", COMMANDS)
def test_help(name: str) -> None:
    """Each command's help has the summary that the overview shows, and an example."""
    context = click.Context(main)
    found = main.get_command(context, name)
    assert found is not None
    assert found.get_short_help_str(limit=200) == COMMANDS[name].summary
    text = found.get_help(click.Context(found, info_name=name))
    assert COMMANDS[name].summary in text
    assert f"durable-streamsd {name} " in text.partition("Example")[2]


def test_version_and_help_load_no_library() -> None:
    """The overview and the version load no client or engine, and reading loads no engine."""
    check = (
        "import sys\n"
        "from durable_streamsd.cli import main\n"
        "try: main(sys.argv[1:], prog_name='durable-streamsd')\n"
        "except SystemExit: pass\n"
        "loaded = {'aiohttp', 'lmdb', 'uvloop', 'storage'} & set(sys.modules)\n"
        "print(sorted(loaded), file=sys.stderr)\n"
    )
    for args, loaded in (("--help", []), ("--version", []), ("read --help", ["aiohttp"])):
        result = subprocess.run(
            [sys.executable, "-c", check, *args.split()], capture_output=True, cwd=ROOT, text=True
        )
        assert result.stderr.strip() == str(loaded)
    assert "durable-streamsd " in result.stdout


# Parts without processes


def cut_everywhere(data: bytes) -> Iterator[list[bytes]]:
    """`data` in two pieces, cut at each position, and in single bytes."""
    for position in range(len(data) + 1):
        yield [data[:position], data[position:]]
    yield [data[position : position + 1] for position in range(len(data))]


def test_sse_parser() -> None:
    """Line ends of all three kinds, comments and odd fields make the same events at every cut."""
    body = (
        b"\xef\xbb\xbf: hello\r\n\r\nevent: data\rdata:  a\r\ndata:\ndata:b\r\n\r\n"
        b"id: 7\nevent: nothing\n\nretry\ndata\ndata\n\nevent:control\rdata: {}\r\rdata: cut off\n"
    )
    events = [
        SseEvent(b"data", b" a\n\nb"),
        SseEvent(b"message", b"\n"),
        SseEvent(b"control", b"{}"),
    ]
    for pieces in cut_everywhere(body):
        parser = SseParser()
        assert [event for piece in pieces for event in parser.feed(piece)] == events


def test_sse_parser_is_bounded() -> None:
    """An event beyond the limit is refused, while any number of small ones is fine."""
    parser = SseParser(event_bytes_max=20)
    for _ in range(10):
        parser.feed(b": heartbeat\n\ndata: 1\n\n")
    parser.feed(b"data: 0123456789")
    with pytest.raises(NotTheProtocol):
        parser.feed(b"0123456789")


def test_array_splitter() -> None:
    """Elements come out byte for byte at every cut, whatever their strings hold."""
    elements = [rb'"a\"],[\\"', b'{"k": [1, {"]": 2}]}', b"[ ]", rb'"\ud800\\"', b"-1.50"]
    array = b" [ " + b" ,\n".join(elements) + b" ] \n"
    for pieces in cut_everywhere(array):
        splitter = ArraySplitter()
        found = [message for piece in pieces for message in splitter.feed(piece)]
        assert found + splitter.finish() == elements


@pytest.mark.parametrize(
    "array", [b"[1,]", b"[,1]", b"[1,,2]", b"[1", b"[1] 2", b"{}", b"[1}", b""]
)
def test_array_splitter_refuses(array: bytes) -> None:
    """What is not one array is refused."""
    splitter = ArraySplitter()
    with pytest.raises(NotJson):
        splitter.feed(array)
        splitter.finish()


def test_input_splitter() -> None:
    """Lines and arrays are told apart by their first character, and blank input is neither."""
    for data, messages in (
        (b'\n{"a":1}\r\n\n 2 \n[3]', [b'{"a":1}', b"2", b"[3]"]),
        (b"\r\n [1,\n[2]]\n", [b"1", b"[2]"]),
        (b" [ ] ", []),
        (b" \n ", []),
    ):
        for pieces in cut_everywhere(data):
            splitter = InputSplitter()
            found = [message for piece in pieces for message in splitter.feed(piece)]
            assert found + splitter.finish() == messages


def test_lines_of_an_array() -> None:
    """Only line breaks within a message change, and what the fast parser refuses is split too."""
    assert to_lines(b"[]") == b""
    assert to_lines(b'[1 ,{"a":\r\n "b\\n"}]') == b'1\n{"a":   "b\\n"}\n'
    assert to_lines(rb'["\ud800", 1.50]') == b'"\\ud800"\n1.50\n'
    deep = b"[" * 100_000 + b"]" * 100_000
    assert to_lines(b"[" + deep + b"]") == deep + b"\n"


@pytest.mark.parametrize(
    "message", [b"NaN", b"-Infinity", b"\xef\xbb\xbf1", b'"\xff"', b"1 2", b"", b"[1", b"[" * 9999]
)
def test_not_a_message(message: bytes) -> None:
    """What is no JSON value in UTF-8 is not sent."""
    with pytest.raises(NotJson):
        check_message(message)


@pytest.mark.parametrize("message", [rb'"\ud800"', b"9" * 5000, b"1e999", b'{"a":1,"a":2}'])
def test_unusual_messages(message: bytes) -> None:
    """JSON that parsers do not like is JSON all the same."""
    check_message(message)


def test_characters_end() -> None:
    """Text is cut before a character that is not whole yet; bytes that are none count as whole."""
    text = "aé€😀".encode()
    whole = {0, 1, 3, 6, 10}
    for length in range(len(text) + 1):
        assert characters_end(text[:length]) == max(end for end in whole if end <= length)
    assert characters_end(b"\x80\x80\x80\x80") == 4
    assert characters_end(b"\xff\xfe") == 2
