"""Real clients with tokens: npm's, PyPI's, and the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from auth_lab import ROOT, Lab
from daemon import ROOT as CHECKOUT
from daemon import Daemon
from durable_streams import DurableStream
from interop.node_client import ClientError, NodeClient
from simple_http import wait_until

JSON = "application/json"
COMMAND_SECONDS_MAX = 30


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A daemon with a token for writers and one for readers."""
    directory = tmp_path_factory.mktemp("auth-clients")
    file = directory / "tokens.json"
    lab = Lab(Daemon(directory / "data", "--tokens-file", str(file)), file)
    lab.token("writer", "read,create,append,delete:chat/**")
    lab.token("reader", "read:chat/**")
    with lab.daemon:
        yield lab


@pytest.fixture
def node(node_modules: Path) -> Iterator[NodeClient]:
    """A Node process."""
    with NodeClient(node_modules) as node:
        yield node


def bearer(lab: Lab, name: str) -> dict[str, Any]:
    return {"Authorization": f"Bearer {lab.tokens[name]}"}


def test_npms_client_works_with_a_token_and_not_without(lab: Lab, node: NodeClient) -> None:
    """It writes, reads and follows with a token in its headers; without one it says 401."""
    url = f"{lab.daemon.url}{ROOT}chat/npm"
    writer, reader = bearer(lab, "writer"), bearer(lab, "reader")
    where: dict[str, Any] = {"url": url, "contentType": JSON}
    nobody: dict[str, str] = {}
    for headers, status in ((nobody, "401"), (reader, "403")):
        with pytest.raises(ClientError, match=status):
            node.call("create", **where, headers=headers)
    node.call("create", **where, headers=writer)
    node.call("append", **where, format="json", data=1, headers=writer)
    with pytest.raises(ClientError, match="401"):
        node.call("read", url=url, offset="-1", format="json")
    assert node.call("read", url=url, offset="-1", format="json", headers=reader)["data"] == [1]
    follower = node.open("follow", url=url, offset="-1", live="sse", format="json", headers=reader)
    node.wait(lambda: "sse" in follower.requests, "it follows")
    node.call("append", **where, format="json", data=2, headers=writer)
    node.wait(lambda: list(chain(*follower.data)) == [1, 2], "both messages")
    assert follower.failures == []


@pytest.mark.parametrize("live", ["sse", "long-poll"])
def test_npms_client_hears_that_its_token_was_revoked(
    lab: Lab, node: NodeClient, live: str
) -> None:
    """A live reader comes again, and gives up with the 401 that it gets."""
    url = f"{lab.daemon.url}{ROOT}chat/revoked-{live}"
    lab.token(live, "read:chat/*")
    wait_until(lambda: lab.status("GET", "chat/none", live) == 404, 10, "known")
    node.call("create", url=url, contentType=JSON, headers=bearer(lab, "writer"))
    headers = bearer(lab, live)
    log = node.open("follow", url=url, offset="-1", live=live, format="json", headers=headers)
    node.wait(lambda: live in log.requests, "it follows")
    lab.revoke(live)
    node.wait(lambda: "401" in str(log.failures), "it gives up")


def test_npms_producer_gives_up_without_the_right(lab: Lab, node: NodeClient) -> None:
    """One that claims new epochs by itself does not take the refusal for a stale epoch."""
    url = f"{lab.daemon.url}{ROOT}chat/producer"
    node.call("create", url=url, contentType=JSON, headers=bearer(lab, "writer"))
    producer = node.open(
        "openProducer",
        url=url,
        contentType=JSON,
        producerId="p",
        epoch=0,
        answers="kept",
        batchBytes=64,
        autoClaim=True,
        headers=bearer(lab, "reader"),
    )
    node.call("produce", producer=producer.id, messages=["1"])
    with suppress(ClientError):
        node.call("flushProducer", producer=producer.id)
    node.wait(lambda: bool(producer.failures), "it says so")
    assert "401" in producer.failures[0]


def test_pypis_client_works_with_a_token(lab: Lab) -> None:
    """It writes and reads with a token in its headers; without one it fails."""
    url = f"{lab.daemon.url}{ROOT}chat/pypi"
    writer = bearer(lab, "writer")
    with pytest.raises(Exception, match="401"):
        DurableStream.create(url, content_type=JSON)
    with DurableStream.create(url, content_type=JSON, headers=writer) as handle:
        handle.append({"n": 1})
    with (
        DurableStream(url, headers=bearer(lab, "reader")) as handle,
        handle.stream(offset="-1", live=False) as answer,
    ):
        assert answer.read_json() == [{"n": 1}]


def command(lab: Lab, *args: str, auth: str | None) -> subprocess.CompletedProcess[str]:
    """`durable-streamsd ARGS` on the daemon."""
    more = ["--url", f"{lab.daemon.url}/v1/stream"]
    more += [] if auth is None else ["--auth", f"Bearer {auth}"]
    return subprocess.run(
        [sys.executable, "-m", "durable_streamsd", *args, *more],
        cwd=CHECKOUT,
        input="",
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS_MAX,
        check=False,
    )


def test_the_command_line_works_with_a_token(lab: Lab) -> None:
    """All of it with --auth; without, or without the right, it says what is missing."""
    writer, reader = lab.tokens["writer"], lab.tokens["reader"]
    assert command(lab, "create", "chat/cli", "--json", auth=writer).returncode == 0
    assert command(lab, "write", "chat/cli", '{"n": 1}', auth=writer).returncode == 0
    lent = command(lab, "token", "lend", "chat/cli", auth=reader).stdout.strip()
    for auth in (reader, lent):
        read = command(lab, "read", "chat/cli", auth=auth)
        assert [json.loads(line) for line in read.stdout.splitlines()] == [{"n": 1}]
    assert command(lab, "head", "chat/cli", auth=reader).returncode == 0
    assert "chat/cli" in command(lab, "ls", "chat/", auth=reader).stdout
    refused: list[tuple[list[str], str | None, str]] = [
        (["read", "chat/cli"], None, "401"),
        (["read", "chat/cli"], None, "--auth or STREAM_AUTH"),
        (["write", "chat/cli", "2"], reader, "403"),
        (["ls"], reader, "403"),
        (["delete", "chat/cli"], lent, "401"),
        (["token", "lend", "other"], reader, "403"),
    ]
    for args, token, said in refused:
        result = command(lab, *args, auth=token)
        assert result.returncode == 1
        assert said in result.stderr
    assert command(lab, "delete", "chat/cli", auth=writer).returncode == 0
