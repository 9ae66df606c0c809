"""Caddy in front, as in `packaging/caddy`: TLS of its own authority, HTTP/2, event streams."""

from __future__ import annotations

import http.client
import os
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from daemon import ROOT, Daemon
from packaged import free_port, substituted
from simple_http import Answer, wait_until

CADDYFILE = ROOT / "packaging" / "caddy" / "Caddyfile"
HOST = "localhost"
START_SECONDS_MAX = 30
STOP_SECONDS_MAX = 20


class Client(http.client.HTTPSConnection):
    """A connection that a block may own."""

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> Answer:
        """Send a request, and wait for the answer."""
        self.request(method, path, body, {"Content-Type": "text/plain", **headers})
        return Answer(self.getresponse())


class Stack(NamedTuple):
    """What is running: Caddy's URL, and the certificate of its authority."""

    url: str
    root: Path

    def client(self) -> Client:
        """A connection to Caddy, whose certificate is checked."""
        context = ssl.create_default_context(cafile=str(self.root))
        return Client(self.url.removeprefix("https://"), timeout=30, context=context)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Caddy before a daemon."""
    program = shutil.which("caddy")
    assert program is not None, "install Caddy: `apt-get install caddy`"
    folder = tmp_path_factory.mktemp("caddy")
    environment = {"DURABLE_STREAMSD_TRUSTED_PROXIES": "127.0.0.1"}
    with Daemon(folder / "data", env=environment) as daemon:
        url = f"https://{HOST}:{free_port()}"
        site = substituted(
            CADDYFILE.read_text(),
            {
                "streams.example.org {": f"{url} {{",
                "127.0.0.1:4437": daemon.url.removeprefix("http://"),
            },
        )
        options = (
            f"{{\n admin off\n local_certs\n skip_install_trust\n default_bind 127.0.0.1\n"
            f" auto_https disable_redirects\n storage file_system {folder}/storage\n}}\n"
        )
        (folder / "Caddyfile").write_text(options + site)
        root = folder / "storage" / "pki" / "authorities" / "local" / "root.crt"
        command = [program, "run", "--adapter", "caddyfile", "--config", f"{folder}/Caddyfile"]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, env={**os.environ, "HOME": str(folder)}
            )
        stack = Stack(url, root)

        def up() -> bool:
            assert process.poll() is None, (folder / "log").read_text()
            try:
                with stack.client() as client:
                    return client.ask("GET", "/healthz").status == 200
            except OSError:
                return False

        try:
            wait_until(up, START_SECONDS_MAX, "Caddy does not answer")
            yield stack
        finally:
            process.terminate()
            process.wait(STOP_SECONDS_MAX)


def test_requests_and_urls(stack: Stack) -> None:
    """Appends and reads go through; URLs are those of the client, whatever it claims."""
    path = "/v1/stream/urls"
    lies = {"X-Forwarded-Host": "evil", "Forwarded": "host=evil;proto=gopher"}
    with stack.client() as client:
        made = client.ask("PUT", path, b"", **lies)
        assert made.headers["location"] == stack.url + path
        assert client.ask("POST", path, b"text").status == 204
        assert client.ask("GET", path).body == b"text"


def test_http_2_and_event_streams(stack: Stack) -> None:
    """A client that speaks HTTP/2 gets each event when it comes."""
    path = "/v1/stream/events"
    curl = ["curl", "-sS", "--http2", "--cacert", str(stack.root)]
    with stack.client() as writer:
        assert writer.ask("PUT", path).status == 201
        with subprocess.Popen(
            [*curl, "-iN", f"{stack.url}{path}?live=sse&offset=-1"], stdout=subprocess.PIPE
        ) as reader:
            assert reader.stdout is not None
            assert reader.stdout.readline().startswith(b"HTTP/2 200")
            for number in range(3):
                writer.ask("POST", path, b"<%d>" % number)
                while reader.stdout.readline() != b"data:<%d>\n" % number:
                    assert reader.poll() is None
            reader.terminate()


def test_long_polls_wait(stack: Stack) -> None:
    """The answer comes with the data."""
    path = "/v1/stream/poll"
    with stack.client() as reader, stack.client() as writer:
        writer.ask("PUT", path)
        reader.request("GET", f"{path}?live=long-poll&offset=-1")
        writer.ask("POST", path, b"news")
        assert reader.getresponse().read() == b"news"
