"""TLS in front of both lanes: certificates, their change, those of clients, and who speaks none."""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import os
import select
import signal
import socket
import ssl
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
from authority import Authority, careless_context, tls_settings
from cryptography import x509
from daemon import ROOT, Daemon
from raw_http import Closed, RawClient, encode
from simple_http import wait_until
from tls_socket import TlsSocket

TEXT = "Content-Type: text/plain"
BYTES = "Content-Type: application/octet-stream"
PATH = "/v1/stream/test"
LARGE_BYTES = 8 << 20
HANDSHAKE_TIMEOUT_S = "0.5"
KEY_CHANGES_MAX = 1_000_000
"""Their answers have ten times what the system keeps for a connection."""


class Served(NamedTuple):
    """A daemon with TLS and the authority that signed its certificate."""

    daemon: Daemon
    authority: Authority


@pytest.fixture(scope="module", params=["on", "off"], ids=["express", "general"])
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """A daemon with TLS, in one lane."""
    folder = tmp_path_factory.mktemp("tls")
    authority = Authority(folder)
    environment = tls_settings(authority.issue("server")) | {
        "DURABLE_STREAMSD_EXPRESS_LANE": request.param,
        "DURABLE_STREAMSD_TLS_HANDSHAKE_TIMEOUT_S": HANDSHAKE_TIMEOUT_S,
    }
    with Daemon(folder / "data", env=environment) as daemon:
        yield Served(daemon, authority)
        assert "trace=" not in daemon.stderr_tail()


def connect(served: Served) -> RawClient:
    """A client that checks the certificate."""
    return RawClient(served.daemon.url, served.authority.client_context())


def bare(served: Served) -> socket.socket:
    """A connection without TLS."""
    host, port = served.daemon.url.removeprefix("https://").split(":")
    return socket.create_connection((host, int(port)), 20)


def plain_url(daemon: Daemon) -> str:
    """The same port, as a client takes it that knows of no TLS."""
    return daemon.url.replace("https:", "http:")


def test_urls_say_https(served: Served) -> None:
    """The first line of output and the Location of a new stream."""
    assert served.daemon.url.startswith("https://127.0.0.1:")
    with connect(served) as client:
        made = client.request("PUT", f"{PATH}/urls", TEXT)
    assert made.headers["location"] == f"https://test{PATH}/urls"


def test_pipelined_long_poll_and_event_stream(served: Served) -> None:
    """Requests in one record are answered in order; live readers get what comes, at once."""
    path = f"{PATH}/live"
    with connect(served) as writer, connect(served) as reader, connect(served) as events:
        writer.send(encode("PUT", path, TEXT) + encode("POST", path, TEXT, body=b"a") * 100)
        assert [writer.answer().status for _ in range(101)] == [201] + [204] * 100
        reader.send(encode("GET", f"{path}?offset=now&live=long-poll"))
        events.send(encode("GET", f"{path}?offset=now&live=sse"))
        events.head()
        assert b"upToDate" in events.chunk()
        writer.request("POST", path, TEXT, body=b"news")
        assert b"data:news" in events.chunk()
        reader.send(encode("GET", f"{path}?offset=-1"))
        assert reader.answer().body in (b"news", b"")  # the news may have come first
        assert reader.answer().body == b"a" * 100 + b"news"


def test_large_bodies_go_both_ways(served: Served) -> None:
    """Many records up and down, to a client that reads late."""
    path = f"{PATH}/large"
    body = os.urandom(LARGE_BYTES)
    with connect(served) as client:
        client.request("PUT", path, BYTES)
        assert client.request("POST", path, BYTES, body=body).status == 204
    with connect(served) as late:
        late.send(encode("GET", path) * 3 + encode("GET", "/healthz"))
        with connect(served) as other:
            first = other.request("GET", path)
            rest = other.request("GET", f"{path}?offset={first.headers['stream-next-offset']}")
            assert first.body + rest.body == body
        assert [late.answer().body for _ in range(3)] == [first.body] * 3
        assert late.answer().body == b"ok\n"


def test_a_regular_end_is_told_from_a_cut_one(served: Served) -> None:
    """What the daemon ends, it ends with a close_notify."""
    with connect(served) as client:
        client.send(encode("GET", "/healthz", "Connection: close"))
        assert client.answer().body == b"ok\n"
        assert client.socket.recv(1) == b""  # TlsSocket raises where there is none


def test_a_half_closed_session_is_answered(served: Served) -> None:
    """A close_notify ends one direction; the answer still comes."""
    with connect(served) as client, connect(served) as writer:
        writer.request("PUT", f"{PATH}/half", TEXT)
        client.send(encode("GET", f"{PATH}/half?offset=-1&live=long-poll"))
        client.end()
        writer.request("POST", f"{PATH}/half", TEXT, body=b"news")
        assert client.answer().body == b"news"
        assert client.closed()


def test_versions_and_protocols(served: Served) -> None:
    """TLS 1.2 and 1.3; http/1.1 is what is agreed on; nothing older is spoken."""
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context = served.authority.client_context()
        context.minimum_version = context.maximum_version = version
        context.set_alpn_protocols(["h2", "http/1.1"])
        with RawClient(served.daemon.url, context) as client:
            assert client.request("GET", "/healthz").status == 200
            assert isinstance(client.socket, TlsSocket)
            assert client.socket.ssl.selected_alpn_protocol() == "http/1.1"
    old = careless_context()
    old.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        old.minimum_version = ssl.TLSVersion.TLSv1
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError, match=r"(?i)protocol"):
        RawClient(served.daemon.url, old)


def test_openssl_agrees(served: Served) -> None:
    """Another implementation's client verifies, asks, and sees the session ended in order."""
    address = served.daemon.url.removeprefix("https://")
    command = ["openssl", "s_client", "-connect", address, "-CAfile", str(served.authority.ca)]
    result = subprocess.run(
        [*command, "-verify_return_error", "-quiet"],
        input=encode("GET", "/healthz", "Connection: close"),
        capture_output=True,
        timeout=30,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith(b"\r\n\r\nok\n")


def test_the_command_line_speaks_https(served: Served) -> None:
    """With the authority that SSL_CERT_FILE names; without, it says what is wrong."""
    command = [sys.executable, "-m", "durable_streamsd", "head", "cli"]
    with connect(served) as client:
        client.request("PUT", "/v1/stream/cli", TEXT)
    for trusted, said in (
        ({"SSL_CERT_FILE": str(served.authority.ca)}, "text/plain"),
        ({}, "its certificate is not accepted: unable to get local issuer certificate"),
    ):
        environment = {**os.environ, "STREAM_URL": f"{served.daemon.url}/v1/stream", **trusted}
        result = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
        )
        assert result.returncode == (0 if trusted else 1)
        assert said in result.stdout + result.stderr


def test_plain_http_is_told(served: Served) -> None:
    """A client that speaks plain HTTP gets an answer that it understands."""
    with RawClient(plain_url(served.daemon)) as client:
        answer = client.request("POST", PATH, TEXT, body=b"x" * 100_000)
        assert answer.status == 400
        assert b'"tls-required"' in answer.body
        assert client.closed()


@pytest.mark.parametrize("sent", [b"\x00" * 50, b"\x16\x03\x01\x00\x05hello", b"\x80\x2e\x01"])
def test_what_is_no_tls_is_ended(served: Served, sent: bytes) -> None:
    """Neither TLS nor HTTP: the connection ends, and others go on."""
    with bare(served) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            while connection.recv(1_000):
                pass
    with connect(served) as client:
        assert client.request("GET", "/healthz").status == 200


def test_changes_of_keys_whose_answers_nobody_takes_are_not_read(served: Served) -> None:
    """Each is answered by TLS itself; for one who reads nothing the answers must not pile up."""
    library = ctypes.util.find_library("ssl")
    assert library is not None, "this test needs OpenSSL's library"
    openssl = ctypes.CDLL(library)
    for name in ("TLS_client_method", "SSL_CTX_new", "SSL_new"):
        getattr(openssl, name).restype = ctypes.c_void_p
    context = ctypes.c_void_p(openssl.SSL_CTX_new(ctypes.c_void_p(openssl.TLS_client_method())))
    session = ctypes.c_void_p(openssl.SSL_new(context))
    with bare(served) as connection:
        connection.settimeout(None)  # OpenSSL has the file
        openssl.SSL_set_fd(session, connection.fileno())
        assert openssl.SSL_connect(session) == 1
        connection.setblocking(False)
        for _ in range(KEY_CHANGES_MAX):
            openssl.SSL_key_update(session, 1)  # and asks for one of the server's
            sent = openssl.SSL_do_handshake(session) == 1
            if not sent and not select.select([], [connection], [], 1)[1]:
                break  # the server takes no more
        else:
            raise AssertionError("all of them were taken")
        with connect(served) as other:
            assert other.request("GET", "/healthz").status == 200
    openssl.SSL_free(session)
    openssl.SSL_CTX_free(context)


@pytest.mark.parametrize("sent", [b"", b"\x16", b"\x16\x03\x01\x02\x00\x01\x00"])
def test_a_handshake_has_its_time(served: Served, sent: bytes) -> None:
    """Who does not go on with it is cut off."""
    with bare(served) as connection:
        connection.sendall(sent)
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(1) == b""


def test_damaged_records_end_the_connection(served: Served) -> None:
    """Bytes that were changed on the way do no harm, and nothing of them counts."""
    path = f"{PATH}/damaged"
    with connect(served) as client:
        client.request("PUT", path, TEXT)
        assert isinstance(client.socket, TlsSocket)
        client.socket.plain.sendall(b"\x17\x03\x03\x00\x40" + os.urandom(64))
        with pytest.raises((Closed, ssl.SSLError)):
            client.answer()
    with connect(served) as client:
        assert client.request("GET", path).body == b""


def test_a_cut_session_appends_nothing_of_a_part(served: Served) -> None:
    """The end of the connection within a body is no end of the body."""
    path = f"{PATH}/cut"
    with connect(served) as client:
        client.request("PUT", path, TEXT)
        client.send(encode("POST", path, TEXT, body=b"x" * 50_000)[:-1])
        assert isinstance(client.socket, TlsSocket)
        client.socket.plain.shutdown(socket.SHUT_WR)  # without a close_notify
        with contextlib.suppress(Closed):
            assert client.answer().status == 400
    with connect(served) as client:
        assert client.request("GET", path).body == b""


def serial(connection: RawClient) -> int:
    """Of the certificate that the daemon showed."""
    assert isinstance(connection.socket, TlsSocket)
    shown = connection.socket.ssl.getpeercert(binary_form=True)
    assert shown is not None
    return x509.load_der_x509_certificate(shown).serial_number


def test_sighup_changes_the_certificate(served: Served) -> None:
    """New connections get the new one, open ones go on; a bad file is logged, and not used."""
    daemon, authority = served

    def serial_of_new() -> int:
        with connect(served) as client:
            return serial(client)

    with connect(served) as before:
        old = serial(before)
        _, key = authority.issue("server")
        os.kill(daemon.pid, signal.SIGHUP)
        wait_until(lambda: serial_of_new() != old, 20, "the certificate stayed the old one")
        new = serial_of_new()
        assert before.request("GET", "/healthz").status == 200

        whole = key.read_bytes()
        key.write_bytes(whole[: len(whole) // 2])
        os.kill(daemon.pid, signal.SIGHUP)
        said = "the old certificate stays in use: tls_key: "
        wait_until(lambda: said in daemon.stderr_path.read_text(), 20, "nothing was logged")
        assert serial_of_new() == new
        key.write_bytes(whole)
        assert before.request("GET", "/healthz").status == 200


def test_reloads_under_load_drop_nothing(served: Served) -> None:
    """While certificates change, every request of every connection is answered."""
    daemon, authority = served
    stop = threading.Event()
    failures: list[Exception] = []
    counts = [0] * 4

    def ask(number: int) -> None:
        try:
            while not stop.is_set():
                with connect(served) as client:
                    for _ in range(10):
                        assert client.request("GET", "/healthz").status == 200
                        counts[number] += 1
        except Exception as error:
            failures.append(error)

    def asked(enough: int) -> bool:
        return bool(failures) or sum(counts) > enough

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(10):
        enough = sum(counts) + 20
        authority.issue("next")
        for kind in ("crt", "key"):  # a reload in between sees two that do not belong together
            (authority.folder / f"next.{kind}").replace(authority.folder / f"server.{kind}")
        os.kill(daemon.pid, signal.SIGHUP)
        wait_until(partial(asked, enough), 20, "nothing is asked")
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures


# ---- certificates of clients


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A daemon that asks clients for a certificate."""
    folder = tmp_path_factory.mktemp("mtls")
    authority = Authority(folder)
    environment = tls_settings(authority.issue("server"), authority.ca)
    with Daemon(folder / "data", env=environment) as daemon:
        yield Served(daemon, authority)


def test_a_client_with_a_certificate_gets_in(guarded: Served) -> None:
    """One that the authority signed."""
    context = guarded.authority.client_context(guarded.authority.issue("client"))
    with RawClient(guarded.daemon.url, context) as client:
        assert client.request("PUT", PATH, TEXT).status == 201


def test_other_clients_do_not(guarded: Served, tmp_path: Path) -> None:
    """Not without one, not with another authority's, not with one that has expired."""
    stranger = Authority(tmp_path, "stranger").issue("client")
    expired = guarded.authority.issue("expired", lasts=-timedelta(days=1))
    for own in (None, stranger, expired):
        context = guarded.authority.client_context(own)
        with pytest.raises((Closed, OSError)), RawClient(guarded.daemon.url, context) as client:
            client.socket.sendall(encode("PUT", f"{PATH}/other", TEXT))
            client.socket.recv(1_000)  # TLS 1.3 tells the client here
            raise AssertionError("it was answered")
    context = guarded.authority.client_context(guarded.authority.issue("client"))
    with RawClient(guarded.daemon.url, context) as client:
        assert client.request("HEAD", f"{PATH}/other").status == 404


# ---- files that are no good


def refused(folder: Path, environment: dict[str, str]) -> str:
    """What a daemon says that does not start, which is exit code 1 and one sentence."""
    daemon = Daemon(folder / "data", env=environment)
    with pytest.raises(AssertionError, match="first line was ''"):
        daemon.start()
    said = daemon.stderr_path.read_text()
    assert said.startswith("durable-streamsd: ") or "\ndurable-streamsd: " in said
    assert "Traceback" not in said
    assert not (folder / "data").exists()
    return said


def test_bad_files_are_refused_at_the_start(tmp_path: Path) -> None:
    """A clear sentence for each, naming the setting and the file; nothing is made on disk."""
    authority = Authority(tmp_path)
    good = authority.issue("good")
    missing = tmp_path / "missing"
    junk = tmp_path / "junk"
    junk.write_text("no PEM")
    assert f"tls_certificate: cannot read {missing}" in refused(
        tmp_path, tls_settings((missing, good[1]))
    )
    assert f"tls_certificate: {junk} is not a PEM file" in refused(
        tmp_path, tls_settings((junk, good[1]))
    )
    assert f"tls_key: {junk} is not a PEM file" in refused(tmp_path, tls_settings((good[0], junk)))
    other = authority.issue("other")
    assert f"tls_key: the key in {other[1]} is not that of the certificate in {good[0]}" in refused(
        tmp_path, tls_settings((good[0], other[1]))
    )
    closed = authority.issue("closed", passphrase=b"secret")
    assert f"tls_key: {closed[1]} needs a passphrase" in refused(tmp_path, tls_settings(closed))
    assert f"tls_client_ca: {junk} is not a PEM file" in refused(
        tmp_path, tls_settings(good, client_ca=junk)
    )


def test_one_file_may_hold_both(tmp_path: Path) -> None:
    """Without tls_key, the key is looked for in the certificate's file."""
    authority = Authority(tmp_path)
    certificate, key = authority.issue("both")
    certificate.write_bytes(certificate.read_bytes() + key.read_bytes())
    environment = {"DURABLE_STREAMSD_TLS_CERTIFICATE": str(certificate)}
    with (
        Daemon(tmp_path / "data", env=environment) as daemon,
        RawClient(daemon.url, authority.client_context()) as client,
    ):
        assert client.request("GET", "/healthz").status == 200
        os.kill(daemon.pid, signal.SIGHUP)
