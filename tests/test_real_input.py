"""Debian's package index, a message per package, through a daemon that is killed on the way.

A real idempotent producer writes while two real readers follow, one by server-sent events and
one by long-poll. Three times, as soon as a reader has seen enough, the daemon gets SIGKILL and
comes back on the same data and port. Both readers, and one that comes afterwards, must end up
with every package exactly once, in order, and byte for byte as it was sent.

Left out: power loss. SIGKILL leaves the page cache, so this says nothing about syncs.
"""

from __future__ import annotations

import itertools
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from daemon import Daemon, reconnectable_port
from interop.node_client import Log, NodeClient

APT_LISTS = Path("/var/lib/apt/lists")
APT_HELPER = "/usr/lib/apt/apt-helper"
APT_UPDATE_SECONDS_MAX = 120

PACKAGES_MAX = 20_000
FED_AT_ONCE = 500
AHEAD_PACKAGES_MAX = 2_000
"""How far the producer may be ahead of the slower reader, so that every kill is on the way."""
BATCH_BYTES = 32 * 1024

CONTENT_TYPE = "application/json"


@pytest.fixture(scope="module")
def packages() -> list[bytes]:
    """The first packages of the largest index that apt has here, each as one JSON message.

    Every other message is escaped to ASCII, and all have blanks between their tokens: a server
    that parses and writes them anew changes them.
    """
    if not package_indexes():
        subprocess.run(["apt-get", "update"], check=True, timeout=APT_UPDATE_SECONDS_MAX)
    assert package_indexes(), f"apt-get update left no package index in {APT_LISTS}"
    index = max(package_indexes(), key=lambda path: path.stat().st_size)
    command = [APT_HELPER, "cat-file", str(index)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8") as source:
        assert source.stdout is not None
        messages = [
            json.dumps(fields, ensure_ascii=number % 2 == 0).encode()
            for number, fields in enumerate(
                itertools.islice(parse_index(source.stdout), PACKAGES_MAX)
            )
        ]
        source.kill()
    assert len(messages) > 1000, f"{index} holds only {len(messages)} packages"
    assert len(set(messages)) == len(messages)
    return messages


def package_indexes() -> list[Path]:
    """The package indexes that apt has downloaded, compressed or not."""
    return [path for path in APT_LISTS.glob("*_Packages*") if path.is_file()]


def parse_index(lines: Iterator[str]) -> Iterator[dict[str, str]]:
    """The fields of each package; a line that begins with a blank continues the field before."""
    fields: dict[str, str] = {}
    name = ""
    for line in itertools.chain(lines, ["\n"]):
        if line == "\n":
            if fields:
                yield fields
            fields = {}
        elif line[0] in " \t":
            fields[name] += "\n" + line.strip()
        else:
            name, _, value = line.partition(":")
            fields[name] = value.strip()


def test_the_package_index_survives_three_kills(
    packages: list[bytes], node_modules: Path, tmp_path: Path
) -> None:
    """Two live readers and a later one get every package once, in order, byte for byte."""
    with (
        Daemon(tmp_path / "data", port=reconnectable_port()) as daemon,
        NodeClient(node_modules) as node,
    ):
        run = Run(node, f"{daemon.url}/v1/stream/debian/packages", packages)
        for quarter in (1, 2, 3):
            run.feed_until_seen(len(packages) * quarter // 4)
            daemon.kill()
            run.wait_until_noticed()
            daemon.start()
        run.feed_until_seen(len(packages))
        node.call("closeProducer", producer=run.producer.id)
        node.wait(lambda: run.sse.log.ended and run.long_poll.log.ended, "the end, twice")
        later = run.follow("long-poll")
        node.wait(lambda: later.log.ended, "the end, by a later reader")

    assert run.producer.failures == []
    assert "sse" in run.sse.log.requests
    assert "long-poll" in run.long_poll.log.requests
    assert set(later.log.requests) == {None}, "a closed stream leaves nothing to wait for"
    for reader in (run.sse, run.long_poll, later):
        assert reader.log.failures == []
        reader.take()
        for number, (got, sent) in enumerate(zip(reader.packages, packages, strict=False)):
            assert got == sent, f"package {number}"
        assert len(reader.packages) == len(packages)


class Reader:
    """What a reader has read, taken apart into the bytes of each message."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.packages: list[bytes] = []
        self._chunks_taken = 0
        self._messages = msgspec.json.Decoder(list[msgspec.Raw]).decode

    def take(self) -> int:
        """Take apart what has come since the last call; returns how many packages there are."""
        for chunk in self.log.data[self._chunks_taken :]:
            # A long-poll that timed out has no body at all.
            self.packages += map(bytes, self._messages(chunk.encode()) if chunk else [])
            self._chunks_taken += 1
        return len(self.packages)


class Run:
    """One stream with its producer and its two live readers, all in one Node process."""

    def __init__(self, node: NodeClient, url: str, packages: list[bytes]) -> None:
        self.node = node
        self.url = url
        self.to_feed = packages
        self.fed = 0
        node.call("create", url=url, contentType=CONTENT_TYPE)
        self.sse = self.follow("sse")
        self.long_poll = self.follow("long-poll")
        self.producer = node.open(
            "openProducer",
            url=url,
            contentType=CONTENT_TYPE,
            producerId="apt",
            epoch=0,
            answers="kept",
            batchBytes=BATCH_BYTES,
        )

    def follow(self, live: str) -> Reader:
        """Start a reader at the beginning of the stream; it takes the text as it comes."""
        log = self.node.open("follow", url=self.url, offset="-1", live=live, format="text")
        return Reader(log)

    def feed(self) -> None:
        """Give the producer the next few packages, to send when it likes."""
        messages = self.to_feed[self.fed : self.fed + FED_AT_ONCE]
        texts = [message.decode() for message in messages]
        self.node.call("produce", producer=self.producer.id, messages=texts)
        self.fed += len(messages)

    def feed_until_seen(self, seen_by_one: int) -> None:
        """Feed until one reader has seen so many packages, and never run away from the other."""
        seen_by_both = 0

        def look() -> bool:
            nonlocal seen_by_both
            seen = (self.sse.take(), self.long_poll.take())
            seen_by_both = min(seen)
            return max(seen) >= seen_by_one

        def may_feed() -> bool:
            return self.fed < len(self.to_feed) and self.fed - seen_by_both <= AHEAD_PACKAGES_MAX

        while True:
            self.node.wait(lambda: look() or may_feed(), f"{seen_by_one} packages")
            if look():
                return
            if may_feed():
                self.feed()

    def wait_until_noticed(self) -> None:
        """Return when the producer and both readers have met the daemon that is down."""
        self.feed()  # so that the producer has something to fail with
        logs = (self.producer, self.sse.log, self.long_poll.log)
        # Each keeps trying, so there is always one more outage to come.
        before = [len(log.outages) for log in logs]
        self.node.wait(
            lambda: all(len(log.outages) > n for log, n in zip(logs, before, strict=True)),
            "an outage for each",
        )
