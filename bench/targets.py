"""The servers that can be measured: this daemon, its peers, and any that runs already.

Ours and its peers get an empty data directory for each measurement. What each promises about an
acknowledged append stands beside its figures; a server that somebody else started promises
nothing that we know of. Left out: checking that a server syncs.
"""

import fcntl
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from bench.load import ROOT
from bench.servers import Command, OwnServer, Server, TargetError

__all__ = ["Durability", "Target", "external", "node_peer", "rust_peer", "this_daemon"]

INSTALL_SECONDS_MAX = 300

NODE = ROOT / "bench" / "node"
NODE_FILES_MAX = 100
"""It keeps this many files open, one a stream, and has no setting for it. With more streams than
that it closes files that are in use, and answers the appends that use them with 404."""
RUST_PROGRAM = "durable-streams-server"
RUST_CRATE = "durable-streams"


class Durability(Enum):
    """What a server promises when it acknowledges an append."""

    SYNCED = "synced"
    """It survives a loss of power: it was synced to disk before it was acknowledged."""
    UNKNOWN = "unknown"


class Target(msgspec.Struct, frozen=True):
    """A server that can be measured."""

    name: str
    version: str
    durability: Durability
    command: Command | None
    """None if it runs already."""
    streams: str
    """Where the streams are: a path, or the whole URL if it runs already."""
    imports: tuple[str, ...] = ()
    """A command that starts the server's language and loads its code, and no more."""
    streams_max: int | None = None
    """With how many streams it can still append to several at once; None: with any number."""
    file_per_stream: bool = False
    """Whether it keeps a file open for each stream."""

    @contextmanager
    def running(self, folder: Path) -> Iterator[Server]:
        """Run the server on an empty data directory in `folder`. Raises TargetError."""
        if self.command is None:
            yield Server(self.streams)
            return
        server = OwnServer(self.command, folder, self.streams)
        with server.running():
            yield server


def this_daemon() -> Target:
    """The daemon of this source tree."""

    def command(data_dir: Path, port: int) -> list[str]:
        serve = [sys.executable, "-m", "durable_streamsd", "serve"]
        return [*serve, "--data-dir", str(data_dir), "--port", str(port)]

    version = subprocess.run(
        [sys.executable, "-c", "import durable_streamsd; print(durable_streamsd.__version__)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if version.returncode != 0:
        raise TargetError(f"durable_streamsd cannot be imported:\n{version.stderr}")
    return Target(
        name="durable-streamsd",
        version=version.stdout.strip(),
        durability=Durability.SYNCED,
        command=command,
        streams="/v1/stream",
        imports=(
            sys.executable,
            "-c",
            "import durable_streamsd.cli.server, durable_streamsd.daemon",
        ),
    )


def node_peer() -> Target:
    """The protocol's reference server from npm, with a data directory. Installs it if missing."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            raise TargetError(
                f"--peer node needs {program!r}: install Node.js 20.19 or newer with npm 10 or "
                "newer, and put both on PATH"
            )
    lock = NODE / "package-lock.json"
    installed = NODE / "node_modules" / ".package-lock.json"
    with lock.open() as mutex:
        fcntl.flock(mutex, fcntl.LOCK_EX)  # parallel runs install once
        if not installed.exists() or installed.stat().st_mtime < lock.stat().st_mtime:
            _npm_ci()
    package = NODE / "node_modules" / "@durable-streams" / "server" / "package.json"
    node = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True)

    def command(data_dir: Path, port: int) -> list[str]:
        return ["node", str(NODE / "server.mjs"), str(data_dir), str(port)]

    return Target(
        name="node",
        version=f"{json.loads(package.read_text())['version']} on node {node.stdout.strip()}",
        durability=Durability.SYNCED,
        command=command,
        streams="/v1/stream",
        imports=("node", str(NODE / "server.mjs")),
        streams_max=NODE_FILES_MAX,
    )


def rust_peer() -> Target:
    """The protocol's server in Rust, in its default mode, which syncs a write-ahead log."""
    if shutil.which(RUST_PROGRAM) is None:
        raise TargetError(
            f"--peer rust needs {RUST_PROGRAM!r} on PATH: `cargo install {RUST_CRATE} --locked`"
        )

    def command(data_dir: Path, port: int) -> list[str]:
        return [RUST_PROGRAM, "--data-dir", str(data_dir), "--port", str(port)]

    return Target(
        name="rust",
        version=_rust_version(),
        durability=Durability.SYNCED,
        command=command,
        streams="",
        file_per_stream=True,
    )


def external(name: str, url: str) -> Target:
    """A server that runs already, with its streams below `url`. Raises TargetError."""
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname or parts.query or parts.fragment:
        raise TargetError(f"{name}: {url!r} is not http://HOST:PORT or http://HOST:PORT/PATH")
    return Target(name, "version unknown", Durability.UNKNOWN, None, url.rstrip("/"))


def _rust_version() -> str:
    """What the program says, or else what cargo remembers to have installed."""
    said = subprocess.run([RUST_PROGRAM, "--version"], capture_output=True, text=True)
    if said.returncode == 0 and said.stdout.strip():
        return said.stdout.strip()
    if shutil.which("cargo") is not None:
        listed = subprocess.run(["cargo", "install", "--list"], capture_output=True, text=True)
        match = re.search(rf"^{RUST_CRATE} v(\S+?):?$", listed.stdout, re.MULTILINE)
        if match is not None:
            return match[1]
    return "version unknown"


def _npm_ci() -> None:
    try:
        done = subprocess.run(
            ["npm", "ci"], cwd=NODE, capture_output=True, text=True, timeout=INSTALL_SECONDS_MAX
        )
    except subprocess.TimeoutExpired:
        raise TargetError(f"npm ci did not end within {INSTALL_SECONDS_MAX} s") from None
    if done.returncode != 0:
        raise TargetError(f"npm ci failed in {NODE}:\n{done.stdout}{done.stderr}")
