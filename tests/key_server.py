"""A JWKS URL on this machine, and tokens that are signed with its keys."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PATIENCE_S = 30.0


class KeyServer:
    """`answer` is what it says, `asked` how often it was asked; it waits while `silent`."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.answer: tuple[int, bytes] = (503, b"")
        self.asked = 0
        self.talks = threading.Event()
        self.talks.set()

    def publish(self, **keys: Ed25519PrivateKey) -> None:
        """Let it have these keys, by their ids."""
        listed = []
        for kid, key in keys.items():
            found = jwt.get_algorithm_by_name("EdDSA").to_jwk(key.public_key(), as_dict=True)
            listed.append({**found, "kid": kid})
        self.answer = 200, json.dumps({"keys": listed}).encode()


@contextmanager
def key_server() -> Iterator[KeyServer]:
    """One that has no keys yet."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            keys.asked += 1
            keys.talks.wait(PATIENCE_S)
            status, body = keys.answer
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            if status == 302:
                self.send_header("Location", "/elsewhere")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    keys = KeyServer(f"http://127.0.0.1:{server.server_address[1]}/jwks.json")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield keys
    finally:
        keys.talks.set()
        server.shutdown()
        thread.join()
        server.server_close()


def signed(key: Ed25519PrivateKey, kid: str, scope: str, **more: object) -> str:
    """A token that is good for ten minutes."""
    payload = {"exp": int(time.time()) + 600, "iss": "https://id.example.org", "scope": scope}
    return jwt.encode({**payload, **more}, key, "EdDSA", headers={"kid": kid})
