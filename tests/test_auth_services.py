"""Authentication beyond streams: subscriptions, anybody's scopes, keys from a URL, and starting."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from subprocess import run
from sys import executable

import pytest
from auth_lab import ROOT, Lab, code_of
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from daemon import ROOT as CHECKOUT
from daemon import Daemon
from key_server import KeyServer, key_server, signed
from simple_http import wait_until

START_SECONDS_MAX = 30


@pytest.fixture(scope="module")
def keys() -> Iterator[KeyServer]:
    """A server of keys that has none yet."""
    with key_server() as server:
        yield server


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, keys: KeyServer) -> Iterator[Lab]:
    """A daemon with tokens, keys from a URL, and streams that anybody may read."""
    directory = tmp_path_factory.mktemp("services")
    daemon = Daemon(
        directory / "data",
        env={
            "DURABLE_STREAMSD_TOKENS_FILE": str(directory / "tokens.json"),
            "DURABLE_STREAMSD_JWT_KEYS": keys.url,
            "DURABLE_STREAMSD_JWT_ISSUER": "https://id.example.org",
            "DURABLE_STREAMSD_ANONYMOUS_SCOPES": "read:public/** append:inbox",
        },
    )
    lab = Lab(daemon, directory / "tokens.json")
    lab.token("admin", "admin:**")
    lab.token("writer", "create,append:public/*")
    lab.token("orders", "admin:orders/**", "admin:wake/*")
    lab.token("worker", "read:orders/**")
    lab.token("partial", "read:orders/*")
    with daemon:
        yield lab


# ---- keys from a URL


def test_a_jwt_counts_once_its_key_is_there(lab: Lab, keys: KeyServer) -> None:
    """503 while keys are being fetched, when other tokens are served, too; then it is judged."""
    one, two = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    token = signed(one, "one", "read,create:a/*")
    answer = lab.ask("GET", "a/1", token)
    assert (answer.status, code_of(answer)) == (503, "keys-unavailable")
    assert answer.headers["Retry-After"] == "1"
    keys.talks.clear()
    asked = keys.asked
    wait_until(lambda: keys.asked > asked, 30, "it is asked again")
    assert lab.status("GET", "a/1", token) == 503
    assert lab.status("GET", "a/1", "admin") == 404
    keys.publish(one=one)
    keys.talks.set()
    wait_until(lambda: lab.status("PUT", "a/1", token) == 201, 60, "keys are fetched")
    assert lab.status("GET", "a/1", token) == 200
    assert lab.status("DELETE", "a/1", token) == 403
    assert lab.status("GET", "a/1", signed(two, "one", "read:a/*")) == 401
    assert lab.status("GET", "a/1", signed(one, "one", "read:a/*", iss="other")) == 401
    assert lab.status("GET", f"a/1?access_token={token}") == 401


# ---- anybody


def test_anybody_has_the_anonymous_scopes(lab: Lab) -> None:
    """What is public needs no token, is cached by everybody, and is read with any good token."""
    assert lab.status("PUT", "public/a", "writer", b"news") == 201
    for token in (None, "writer", "admin", "worker"):
        answer = lab.ask("GET", "public/a", token)
        assert (answer.status, answer.body) == (200, b"news")
        assert answer.headers["Cache-Control"].startswith("public, max-age=")
        assert "Vary" not in answer.headers
    assert lab.ask("GET", "public/a", None, headers={"Authorization": "Basic eDp5"}).status == 200
    assert lab.status("GET", "public/a", "dst_wrong") == 401
    assert lab.status("POST", "public/a", None, b"x") == 401
    assert lab.status("POST", "public/a", "worker", b"x") == 403
    lab.ask("PUT", "inbox", "admin")
    assert lab.status("POST", "inbox", None, b"x") == 204
    assert lab.status("GET", "inbox") == 401
    assert lab.status("GET", "__ds/streams?prefix=public/") == 200
    assert lab.status("GET", "__ds/streams") == 401


# ---- subscriptions


def test_subscriptions_are_made_by_who_has_all_of_their_streams(lab: Lab) -> None:
    """Admin on pattern, streams and wake stream to make one; read on all of them to see it and to
    claim; the wake's own token for the rest."""
    body = {"type": "pull-wake", "pattern": "orders/**", "wake_stream": "wake/o"}
    target = "__ds/subscriptions/s"

    def put(token: str | None, **changes: object) -> int:
        wanted = json.dumps({**body, **changes}).encode()
        return lab.status("PUT", target, token, wanted)

    assert (put(None), put("worker"), put("writer")) == (401, 403, 403)
    assert put("orders", pattern="**") == 403
    assert put("orders", streams=["orders/1", "secret/a"]) == 403
    assert put("orders", wake_stream="public/w") == 403
    assert put("orders") == 201
    assert lab.status("PUT", "wake/o", "orders") == 201
    for token, status in ((None, 401), ("writer", 403), ("partial", 403), ("worker", 200)):
        assert lab.status("GET", target, token) == status
    assert lab.status("GET", "__ds/subscriptions/none", "worker") == 404
    assert lab.status("PUT", "orders/1", "orders", b"x") == 201
    claimed = b""
    for token, status in ((None, 401), ("writer", 403), ("partial", 403), ("worker", 200)):
        answer = lab.ask("POST", f"{target}/claim", token, b'{"worker": "w"}')
        assert answer.status == status
        claimed = answer.body
    claim = json.loads(claimed)
    report = {"wake_id": claim["wake_id"], "generation": claim["generation"], "done": True}
    for token, status in ((None, 401), ("admin", 401), (claim["token"], 200)):
        assert lab.status("POST", f"{target}/ack", token, json.dumps(report).encode()) == status
    for token, status in ((None, 401), ("worker", 403), ("orders", 403), ("admin", 204)):
        streams = json.dumps({"streams": ["secret/a"]}).encode()
        assert lab.status("POST", f"{target}/streams", token, streams) == status
    # now it has a stream that is not theirs
    assert lab.status("GET", target, "orders") == lab.status("GET", target, "worker") == 403
    assert put("orders") == 403
    for token, status in ((None, 401), ("worker", 403), ("orders", 403), ("admin", 204)):
        assert lab.status("DELETE", f"{target}/streams/secret/a", token) == status
    for token, status in ((None, 401), ("worker", 403), ("orders", 204)):
        assert lab.status("DELETE", target, token) == status


# ---- starting


def start(*args: str, **env: str) -> tuple[int, str]:
    """Exit code and error output of a daemon that does not start."""
    result = run(
        [executable, "-m", "durable_streamsd", *args],
        cwd=CHECKOUT,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=START_SECONDS_MAX,
        check=False,
    )
    assert not result.stdout
    return result.returncode, result.stderr


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.0.2.1", "localhost.invalid"])
@pytest.mark.parametrize("command", ["serve", "dev"])
def test_the_network_is_not_let_in_by_chance(tmp_path: Path, command: str, host: str) -> None:
    """Without authentication only the loopback address is listened on, unless told otherwise."""
    code, said = start(command, "--data-dir", str(tmp_path / "d"), "--host", host)
    assert code == 2
    assert "--allow-anonymous" in said
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("why", ["--allow-anonymous", "--tokens-file"])
def test_the_network_is_let_in_on_purpose(tmp_path: Path, why: str) -> None:
    """With authentication, or told that anybody may do everything."""
    args = [why]
    if why == "--tokens-file":
        Lab(Daemon(tmp_path / "x"), tmp_path / "tokens.json").token("a", "read:a")
        args.append(str(tmp_path / "tokens.json"))
    # An address of this machine that is no loopback one: that of any interface.
    with Daemon(tmp_path / "data", "--host", "0.0.0.0", *args) as daemon:
        assert daemon.url.startswith("http://0.0.0.0:")


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"TOKENS_FILE": "{tmp}/none.json"}, "tokens-file {tmp}/none.json: cannot read it"),
        ({"TOKENS_FILE": "{tmp}/bad"}, "tokens-file {tmp}/bad: it is no file of tokens"),
        ({"TOKENS_FILE": "{tmp}/open"}, "tokens-file {tmp}/open: anybody may write to it"),
        ({"JWT_KEYS": "{tmp}/open"}, "jwt-keys {tmp}/open: anybody may write to it"),
        ({"JWT_KEYS": "{tmp}/bad"}, "jwt-keys {tmp}/bad: it has a secret of less"),
        ({"JWT_KEYS": "http://192.0.2.1/keys"}, "jwt-keys: keys are fetched by https"),
        ({"ANONYMOUS_SCOPES": "read:a write:b"}, "ANONYMOUS_SCOPES: expected scopes such as"),
        ({"TOKENS_FILE": ""}, "TOKENS_FILE: expected text"),
    ],
)
def test_what_cannot_be_used_is_refused_at_the_start(
    tmp_path: Path, env: dict[str, str], said: str
) -> None:
    """With one sentence, and before anything is served."""
    for name, mode in (("bad", 0o600), ("open", 0o666)):
        (tmp_path / name).write_text("[]")
        (tmp_path / name).chmod(mode)
    settings = {f"DURABLE_STREAMSD_{k}": v.format(tmp=tmp_path) for k, v in env.items()}
    code, error = start("serve", "--data-dir", str(tmp_path / "d"), "--port", "0", **settings)
    assert code == 2
    assert said.format(tmp=tmp_path) in error
    assert "Traceback" not in error


def test_reader_tokens_survive_a_restart(tmp_path: Path) -> None:
    """The key that they are signed with is as durable as the streams."""
    file = tmp_path / "tokens.json"
    lab = Lab(Daemon(tmp_path / "data", "--tokens-file", str(file)), file)
    lab.token("admin", "admin:**")
    with lab.daemon as daemon:
        lab.ask("PUT", "a", "admin", b"text")
        body = b'{"path": "a"}'
        lent = json.loads(lab.ask("POST", "__ds/tokens", "admin", body).body)["token"]
        daemon.kill()
        daemon.start()
        assert lab.ask("GET", f"a?access_token={lent}").body == b"text"
        assert lab.ask("GET", f"{ROOT}b?access_token={lent}").status == 401


def test_without_authentication_tokens_are_not_looked_at(tmp_path: Path) -> None:
    """What a page does with a reader token works in `dev` as well."""
    lab = Lab(Daemon(tmp_path / "data"), tmp_path / "none")
    with lab.daemon:
        assert lab.ask("PUT", "a", "dst_any", b"text").status == 201
        lent = json.loads(lab.ask("POST", "__ds/tokens", None, b'{"path": "a"}').body)["token"]
        answer = lab.ask("GET", f"a?access_token={lent}")
        assert (answer.status, answer.body) == (200, b"text")
        assert answer.headers["Cache-Control"].startswith("public")
