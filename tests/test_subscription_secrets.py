"""Tokens, signatures and webhook targets: what is let through, and nothing else."""

import base64
import json

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from durable_streamsd.subscriptions.signing import Signer, new_private_key
from durable_streamsd.subscriptions.targets import (
    URL_BYTES_MAX,
    Reach,
    TargetError,
    check_address,
    check_url,
)
from durable_streamsd.subscriptions.tokens import (
    TOKEN_LIFETIME_S,
    TokenError,
    make_token,
    read_token,
)

SECRET = b"s" * 32
SERIAL = b"12345678"
NOW_MS = 1_700_000_000_000


def test_a_token_says_whose_it_is() -> None:
    """It carries subscription, generation and expiry, in characters that a header may hold."""
    token = make_token(SECRET, SERIAL, 7, NOW_MS)
    assert token.isascii()
    assert not set(token) & set(" ,;=")
    found = read_token(SECRET, token.encode(), NOW_MS)
    assert (found.serial, found.generation) == (SERIAL, 7)


@given(st.integers(0, 10_000), st.integers(0, 255))
def test_a_token_that_was_tampered_with(at: int, byte: int) -> None:
    """Whatever is changed in a token, it is worth nothing."""
    token = bytearray(make_token(SECRET, SERIAL, 7, NOW_MS).encode())
    at %= len(token)
    before = bytes(token)
    token[at] = byte
    try:
        found = read_token(SECRET, bytes(token), NOW_MS)
    except TokenError as error:
        assert error.code == "TOKEN_INVALID"
    else:  # base64's last character has bits that say nothing
        assert found == read_token(SECRET, before, NOW_MS)


@given(st.binary(max_size=200))
def test_anything_as_a_token(text: bytes) -> None:
    """Junk is refused, never more."""
    with pytest.raises(TokenError):
        read_token(SECRET, text, NOW_MS)


def test_a_token_expires() -> None:
    """It is good for a day, and for one secret."""
    token = make_token(SECRET, SERIAL, 7, NOW_MS).encode()
    read_token(SECRET, token, NOW_MS + TOKEN_LIFETIME_S * 1_000 - 1)
    with pytest.raises(TokenError, match="TOKEN_EXPIRED"):
        read_token(SECRET, token, NOW_MS + TOKEN_LIFETIME_S * 1_000)
    with pytest.raises(TokenError, match="TOKEN_INVALID"):
        read_token(b"t" * 32, token, NOW_MS)


def test_a_signature_is_what_receivers_verify() -> None:
    """It holds for `<time>.<body>` with the key that the JWKS has under its `kid`."""
    private_key = new_private_key()
    signer = Signer(private_key)
    assert signer.kid == Signer(private_key).kid
    assert signer.kid != Signer(new_private_key()).kid
    (key,) = json.loads(signer.jwks)["keys"]
    assert {name: key[name] for name in ("kty", "crv", "alg", "use", "kid")} == {
        "kty": "OKP",
        "crv": "Ed25519",
        "alg": "EdDSA",
        "use": "sig",
        "kid": signer.kid,
    }
    fields = dict(part.split("=", 1) for part in signer.signature(b"{}", NOW_MS).split(","))
    assert fields["kid"] == signer.kid
    public = Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(key["x"] + "="))
    signature = base64.urlsafe_b64decode(fields["ed25519"] + "==")
    public.verify(signature, fields["t"].encode() + b".{}")
    with pytest.raises(InvalidSignature):
        public.verify(signature, fields["t"].encode() + b".[]")


EVERYWHERE = (Reach.PUBLIC, Reach.LOOPBACK, Reach.PRIVATE)
AROUND = (Reach.LOOPBACK, Reach.PRIVATE)


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        ("93.184.215.14", EVERYWHERE),
        ("2606:2800:21f:cb07:6820:80da:af6b:8b2c", EVERYWHERE),
        ("64:ff9b::5db8:d70e", EVERYWHERE),
        ("127.0.0.1", AROUND),
        ("127.8.9.10", AROUND),
        ("::1", AROUND),
        ("::ffff:127.0.0.1", AROUND),
        ("64:ff9b::7f00:1", AROUND),
        ("10.0.0.1", (Reach.PRIVATE,)),
        ("172.16.0.1", (Reach.PRIVATE,)),
        ("192.168.1.1", (Reach.PRIVATE,)),
        ("100.64.0.1", (Reach.PRIVATE,)),
        ("fd00::1", (Reach.PRIVATE,)),
        ("::ffff:10.0.0.1", (Reach.PRIVATE,)),
        ("2002:a00:1::", (Reach.PRIVATE,)),
        ("64:ff9b::a00:1", (Reach.PRIVATE,)),
        ("169.254.169.254", ()),
        ("::ffff:169.254.169.254", ()),
        ("64:ff9b::a9fe:a9fe", ()),
        ("fe80::1", ()),
        ("fe80::1%eth0", ()),
        ("0.0.0.0", ()),
        ("::", ()),
        ("::7f00:1", ()),
        ("224.0.0.1", ()),
        ("ff02::1", ()),
        ("255.255.255.255", ()),
        ("240.0.0.1", ()),
        ("fec0::1", ()),
        ("192.0.2.1", ()),
        ("not an address", ()),
    ],
)
def test_addresses(address: str, allowed: tuple[Reach, ...]) -> None:
    """Public ones always, loopback and private ones by leave, the others never, in any spelling."""
    for reach in Reach:
        if reach in allowed:
            check_address(address, reach)
        else:
            with pytest.raises(TargetError):
                check_address(address, reach)


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("https://worker.example/hooks?x=1", EVERYWHERE),
        ("https://worker.example:8443/", EVERYWHERE),
        ("https://93.184.215.14/", EVERYWHERE),
        ("http://127.0.0.1:8080/hook", AROUND),
        ("http://127.0.0.9/hook", AROUND),
        ("http://localhost/hook", AROUND),
        ("http://LOCALHOST./hook", AROUND),
        ("http://[::1]:80/hook", AROUND),
        ("https://localhost/", AROUND),
        ("https://10.0.0.1/", (Reach.PRIVATE,)),
        ("http://10.0.0.1/hook", ()),
        ("http://worker.example/", ()),
        ("https://169.254.169.254/latest/meta-data", ()),
        ("https://[::ffff:169.254.169.254]/", ()),
        ("https://user:secret@worker.example/", ()),
        ("https://worker.example@127.0.0.1/", ()),
        ("https://worker.example\\@127.0.0.1/", ()),
        ("https://worker.example/#fragment", ()),
        ("https://worker.example/a b", ()),
        ("https://worker.example/\r\nX: y", ()),
        ("https://wörker.example/", ()),
        ("https://worker.example:0/", ()),
        ("https://worker.example:99999/", ()),
        ("https://worker.example:port/", ()),
        ("https:///hooks", ()),
        ("https://[::1/", ()),
        ("file:///etc/passwd", ()),
        ("gopher://worker.example/", ()),
        ("//worker.example/", ()),
        ("worker.example", ()),
        ("", ()),
        ("https://worker.example/" + "x" * URL_BYTES_MAX, ()),
    ],
)
def test_urls(url: str, allowed: tuple[Reach, ...]) -> None:
    """https to names and public addresses; http to this machine only, where that is allowed."""
    for reach in Reach:
        if reach in allowed:
            check_url(url, reach)
        else:
            with pytest.raises(TargetError):
                check_url(url, reach)


@given(st.text(max_size=60))
def test_any_text_as_a_url(text: str) -> None:
    """Judging never fails otherwise than by refusing."""
    try:
        check_url(text, Reach.PRIVATE)
    except TargetError as error:
        assert str(error).endswith(".")
