"""The server's webhook signing key (protocol 6.5, 7.1): Ed25519, made once and kept in the store.

Its id is `ds_` and the thumbprint (RFC 7638) of its public form, so the same key has the same id
after every restart. Left out: rotation. Whoever needs another key removes the old one with its data
directory.
"""

import base64
import hashlib
import json

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

__all__ = ["Signer", "new_private_key"]


def new_private_key() -> bytes:
    """A private key, 32 bytes."""
    return Ed25519PrivateKey.generate().private_bytes_raw()


class Signer:
    """Signs deliveries with one key."""

    def __init__(self, private_key: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(private_key)
        x = _base64url(self._key.public_key().public_bytes_raw())
        # RFC 8037, 2: the members of an OKP thumbprint, in this order, without white space.
        canonical = json.dumps({"crv": "Ed25519", "kty": "OKP", "x": x}, separators=(",", ":"))
        self.kid = "ds_" + _base64url(hashlib.sha256(canonical.encode()).digest())
        key = {"kty": "OKP", "crv": "Ed25519", "kid": self.kid}
        self.jwks = json.dumps({"keys": [{**key, "use": "sig", "alg": "EdDSA", "x": x}]}).encode()

    def signature(self, body: bytes, now_ms: int) -> str:
        """The value of `Webhook-Signature` for a body that is sent now."""
        time_s = now_ms // 1_000
        signed = self._key.sign(b"%d.%b" % (time_s, body))
        return f"t={time_s},kid={self.kid},ed25519={_base64url(signed)}"


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")
