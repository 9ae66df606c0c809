"""Keys that JWTs are checked with: from a file's or a URL's bytes to keys, each for one algorithm.

    a JSON Web Key Set, or one key    RSA, Ed25519, and in a file `oct`
    PEM                               one public key, RSA or Ed25519
    any other text                    a secret for HS256, in a file that only its owner may read

A key is good for its own algorithm alone, so that no token chooses how it is checked: a public key
never serves as a secret (which is also why the file of a secret must be a private one). Keys of a
set that are for something else are passed over; a file or an answer without any that will do is
refused.
"""

import hashlib
import json
from collections.abc import Iterable
from typing import Any, Final

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from durable_streamsd.auth.caller import Source

__all__ = ["Key", "KeyRing", "KeysError", "Material", "parse_keys", "parse_set"]

KEYS_MAX: Final = 64
KEYS_BYTES_MAX: Final = 256 << 10
SECRET_BYTES_MIN: Final = 32
"""For HS256: as many as its hash has (RFC 7518, 3.2)."""
RSA_BITS_MIN: Final = 2_048
RSA_BITS_MAX: Final = 8_192
"""Above it a check takes too long."""

Material = RSAPublicKey | Ed25519PublicKey | bytes

_ALGORITHMS: Final = {"RSA": "RS256", "OKP": "EdDSA", "oct": "HS256"}


class KeysError(ValueError):
    """No keys; the rest of a sentence that begins with where they were looked for."""


class Key:
    """One key. `mark` is the same for the same key, id and all."""

    __slots__ = ("algorithm", "kid", "mark", "material", "source")

    def __init__(self, kid: str | None, algorithm: str, material: Material) -> None:
        self.kid = kid
        self.algorithm = algorithm
        self.material = material
        self.mark = _mark(kid, algorithm, material)
        self.source = Source()


class KeyRing:
    """The keys that are trusted now."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self.keys = list(keys)

    def find(self, kid: object, algorithm: object) -> Key | None:
        """The key that a token with this header must have been signed with.

        A key that has an id is found by it; without one on either side there must be one key only.
        """
        found = [key for key in self.keys if key.algorithm == algorithm]
        if kid is not None:
            found = [key for key in found if key.kid == kid] or [
                key for key in found if key.kid is None
            ]
        return found[0] if len(found) == 1 else None

    def succeeds(self, old: "KeyRing | None") -> bool:
        """Let callers of keys that are in both go on; whether there were others."""
        before = {key.mark: key.source for key in old.keys} if old is not None else {}
        for key in self.keys:
            key.source = before.pop(key.mark, key.source)
        for source in before.values():
            source.live = False
        return bool(before)


def parse_keys(content: bytes, *, private: bool) -> KeyRing:
    """The keys in a file. `private`: only its owner may read it. Raises `KeysError`."""
    if len(content) > KEYS_BYTES_MAX:
        raise KeysError(f"has more than {KEYS_BYTES_MAX} bytes")
    text = content.strip()
    if text.startswith(b"{"):
        return parse_set(text, secrets=private)
    if text.startswith(b"-----"):
        return KeyRing([_from_pem(text)])
    if b"\n" in text or not text.isascii() or not text.decode("ascii").isprintable():
        raise KeysError("has neither a JSON Web Key Set, nor a public key in PEM, nor a secret")
    if text.startswith((b"ssh-", b"ecdsa-")):
        raise KeysError("has an SSH key; write it as PEM: ssh-keygen -e -m PKCS8 -f FILE")
    if not private:
        raise KeysError("holds a secret that others may read; run: chmod 600 FILE")
    return KeyRing([Key(None, "HS256", _checked(text))])


def parse_set(content: bytes, *, secrets: bool) -> KeyRing:
    """The keys of a JSON Web Key Set or of one key. `secrets`: also HS256. Raises `KeysError`."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        raise KeysError("has no valid JSON") from None
    listed = document.get("keys", [document]) if isinstance(document, dict) else None
    if not isinstance(listed, list) or len(listed) > KEYS_MAX:
        raise KeysError(f"has no JSON Web Key Set of up to {KEYS_MAX} keys")
    keys: dict[bytes, Key] = {}
    wrong = ""
    for entry in listed:
        try:
            key = _from_jwk(entry, secrets)
        except KeysError as error:
            wrong = f" (one {error})"
            continue
        keys[key.mark] = key
    if not keys:
        raise KeysError(f"has no key for RS256, EdDSA or HS256{wrong}")
    return KeyRing(keys.values())


def _from_jwk(entry: Any, secrets: bool) -> Key:
    if not isinstance(entry, dict):
        raise KeysError("is no JSON object")
    kty = entry.get("kty")
    algorithm = _ALGORITHMS.get(kty) if isinstance(kty, str) else None
    if algorithm is None or entry.get("alg", algorithm) != algorithm:
        raise KeysError("is for another algorithm")
    operations = entry.get("key_ops", ["verify"])
    verifies = isinstance(operations, list) and "verify" in operations
    if entry.get("use", "sig") != "sig" or not verifies:
        raise KeysError("is not for signatures")
    if algorithm == "HS256" and not secrets:
        raise KeysError("is a secret where others can read it")
    if algorithm != "HS256" and "d" in entry:
        raise KeysError("is a private key; only its public part belongs here")
    kid = entry.get("kid")
    if kid is not None and not isinstance(kid, str):
        raise KeysError("has a kid that is not text")
    try:
        material = jwt.PyJWK(entry, algorithm).key
    except (jwt.PyJWTError, ValueError, TypeError, KeyError, UnsupportedAlgorithm):
        raise KeysError("cannot be read") from None
    return Key(kid, algorithm, _checked(material))


def _from_pem(text: bytes) -> Key:
    if b"PRIVATE KEY-----" in text:
        raise KeysError("has a private key; only its public part belongs here")
    try:
        loaded = serialization.load_pem_public_key(text)
    except (ValueError, UnsupportedAlgorithm):
        raise KeysError("has no public key that can be read") from None
    material = _checked(loaded)
    return Key(None, "RS256" if isinstance(material, RSAPublicKey) else "EdDSA", material)


def _checked(material: object) -> Material:
    """Key material that is strong enough. Raises `KeysError`."""
    if isinstance(material, bytes):
        if len(material) < SECRET_BYTES_MIN:
            raise KeysError(f"has a secret of less than {SECRET_BYTES_MIN} bytes")
        return material
    if isinstance(material, RSAPublicKey):
        if not RSA_BITS_MIN <= material.key_size <= RSA_BITS_MAX:
            raise KeysError(f"has an RSA key of less than {RSA_BITS_MIN} bits or too many")
        return material
    if isinstance(material, Ed25519PublicKey):
        return material
    raise KeysError("has a key that is neither RSA nor Ed25519")


def _mark(kid: str | None, algorithm: str, material: Material) -> bytes:
    if isinstance(material, bytes):
        plain = material
    else:
        plain = material.public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    return hashlib.sha256(repr((kid, algorithm)).encode() + plain).digest()
