"""JWTs: which are good, with which keys, and the ways in which they are not."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from hypothesis import given
from hypothesis import strategies as st

from durable_streamsd.auth.caller import Caller
from durable_streamsd.auth.jwt_check import JwtRules, TokenRefused, UnknownKey, check_jwt
from durable_streamsd.auth.jwt_keys import KeyRing, KeysError, parse_keys, parse_set
from durable_streamsd.auth.scopes import Right, Scopes

SECRET = b"0123456789abcdef0123456789abcdef"
RSA_KEY = generate_private_key(65_537, 2_048)
ED_KEY = Ed25519PrivateKey.generate()
PLAIN = JwtRules(None, None, "scope")


def pem(key: RSAPrivateKey | Ed25519PrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def private_pem(key: RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def jwk(key: RSAPrivateKey | Ed25519PrivateKey, **more: Any) -> dict[str, Any]:
    algorithm = "RS256" if isinstance(key, RSAPrivateKey) else "EdDSA"
    public: Any = key.public_key()
    found = jwt.get_algorithm_by_name(algorithm).to_jwk(public, as_dict=True)
    return {**found, **more}


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def claims(**more: Any) -> dict[str, Any]:
    return {"exp": int(time.time()) + 60, "scope": "read:a/* append:b", **more}


def signed(key: Any, algorithm: str, payload: dict[str, Any], **headers: Any) -> str:
    return jwt.encode(payload, key, algorithm, headers=headers or None)


def by_hand(header: object, payload: object, secret: bytes) -> str:
    """What no library would make, signed with HMAC-SHA-256."""
    parts = ".".join(base64url(json.dumps(part).encode()) for part in (header, payload))
    return f"{parts}.{base64url(hmac.digest(secret, parts.encode(), hashlib.sha256))}"


def check(token: str, keys: KeyRing, rules: JwtRules = PLAIN) -> Caller:
    return check_jwt(token, keys, rules, Scopes())


HS_KEYS = parse_keys(SECRET, private=True)
KEYS: dict[str, tuple[Any, KeyRing]] = {
    "HS256": (SECRET, HS_KEYS),
    "RS256": (RSA_KEY, parse_keys(pem(RSA_KEY), private=False)),
    "EdDSA": (ED_KEY, parse_keys(pem(ED_KEY), private=False)),
}


@pytest.mark.parametrize("algorithm", KEYS)
def test_a_good_token_has_its_scopes_until_it_expires(algorithm: str) -> None:
    """Each algorithm, from a file of its own; the leeway is on top of `exp`."""
    key, ring = KEYS[algorithm]
    payload = claims()
    caller = check(signed(key, algorithm, payload), ring)
    assert caller.may(Right.READ, b"a/1")
    assert caller.may(Right.APPEND, b"b")
    assert not caller.may(Right.APPEND, b"a/1")
    assert caller.expires_ms == (payload["exp"] + 30) * 1_000


@pytest.mark.parametrize(
    ("scope", "readable"),
    [
        ("read:a", True),
        (["read:a", "read:b c"], True),
        ("openid user:read profile read:a", True),
        ("openid", False),
        ([1, None, {}], False),
        ({"read": "a"}, False),
        (None, False),
        ("read:a*", False),
    ],
)
def test_scopes_are_text_or_a_list_and_others_grant_nothing(scope: object, readable: bool) -> None:
    """A claim that is shared with other services, or malformed, gives what is ours in it."""
    caller = check(signed(SECRET, "HS256", claims(scope=scope)), HS_KEYS)
    assert caller.may(Right.READ, b"a") is readable


def test_the_claim_may_have_another_name() -> None:
    """`jwt-scopes-claim` says where scopes are; the usual place counts no more then."""
    rules = JwtRules(None, None, "https://example.org/streams")
    payload = claims(scope="admin:**", **{"https://example.org/streams": ["read:a"]})
    caller = check(signed(SECRET, "HS256", payload), HS_KEYS, rules)
    assert caller.scopes.rights(b"a") == Right.READ


def test_the_public_key_is_no_secret() -> None:
    """An HS256 token made with the bytes of a public key is not taken (algorithm confusion)."""
    for key in (RSA_KEY, ED_KEY):
        for secret in (pem(key), pem(key).strip()):
            token = by_hand({"alg": "HS256", "typ": "JWT"}, claims(scope="admin:**"), secret)
            for ring in (KEYS["RS256"][1], KEYS["EdDSA"][1], HS_KEYS):
                with pytest.raises(TokenRefused):
                    check(token, ring)


@pytest.mark.parametrize(
    "algorithm", ["none", "None", "NONE", "", "HS384", "RS512", None, 5, ["HS256"]]
)
def test_other_algorithms_are_refused(algorithm: object) -> None:
    """`none` in any spelling, stronger and weaker ones, and what is no algorithm at all."""
    token = by_hand({"alg": algorithm}, claims(), SECRET)
    for text in (token, token.rpartition(".")[0] + "."):
        for _, ring in KEYS.values():
            with pytest.raises(TokenRefused):
                check(text, ring)


NOW = int(time.time())


PAYLOADS: list[object] = [
    {"scope": "read:a"},
    {"exp": NOW - 31},
    {"exp": "soon"},
    {"exp": None},
    {"exp": [NOW + 60]},
    {"exp": float("inf")},
    {"exp": float("nan")},
    {"exp": NOW + 60, "nbf": NOW + 120},
    {"exp": NOW + 60, "nbf": "x"},
    {"exp": NOW + 60, "iat": NOW + 120},
    {"exp": NOW + 60, "aud": "another"},
    [],
    "exp",
    None,
]


@pytest.mark.parametrize("payload", PAYLOADS, ids=range(len(PAYLOADS)))
def test_claims_that_do_not_hold_are_refused(payload: object) -> None:
    """Missing, over, not begun, of another type, and meant for somebody else."""
    with pytest.raises(TokenRefused):
        check(by_hand({"alg": "HS256"}, payload, SECRET), HS_KEYS)


@pytest.mark.parametrize("exp", [10**400, 1e300, 253_402_300_799, 10**18])
def test_a_token_may_be_good_for_ever(exp: float) -> None:
    """However large its `exp` is, what is left of it can be told."""
    caller = check(signed(SECRET, "HS256", claims(exp=exp)), HS_KEYS)
    assert caller.left_s(lambda: NOW * 1_000, 20.0) == 20.0


def test_clocks_may_differ_a_little() -> None:
    """30 seconds either way."""
    check(signed(SECRET, "HS256", claims(exp=int(time.time()) - 25)), HS_KEYS)
    check(signed(SECRET, "HS256", claims(nbf=int(time.time()) + 25)), HS_KEYS)


@pytest.mark.parametrize(
    ("more", "good"),
    [
        ({"iss": "us", "aud": "streams"}, True),
        ({"iss": "us", "aud": ["other", "streams"]}, True),
        ({"iss": "us"}, False),
        ({"aud": "streams"}, False),
        ({"iss": "them", "aud": "streams"}, False),
        ({"iss": "us", "aud": "other"}, False),
        ({"iss": ["us"], "aud": "streams"}, False),
        ({"iss": "us", "aud": 5}, False),
    ],
)
def test_issuer_and_audience_are_required_where_configured(
    more: dict[str, Any], good: bool
) -> None:
    """A token without either is as wrong as one with another."""
    token = by_hand({"alg": "HS256"}, claims(**more), SECRET)
    rules = JwtRules("us", "streams", "scope")
    if good:
        check(token, HS_KEYS, rules)
    else:
        with pytest.raises(TokenRefused):
            check(token, HS_KEYS, rules)


def test_a_key_is_found_by_its_id() -> None:
    """With several keys the token has to name one; a name that nobody has is told apart."""
    other = Ed25519PrivateKey.generate()
    document = {"keys": [jwk(ED_KEY, kid="one"), jwk(other, kid="two"), jwk(RSA_KEY, kid="three")]}
    ring = parse_set(json.dumps(document).encode(), secrets=False)
    check(signed(ED_KEY, "EdDSA", claims(), kid="one"), ring)
    check(signed(RSA_KEY, "RS256", claims()), ring)  # the only one of its kind
    for key, headers in ((ED_KEY, {"kid": "two"}), (ED_KEY, {"kid": "four"}), (ED_KEY, {})):
        with pytest.raises(TokenRefused) as caught:
            check(signed(key, "EdDSA", claims(), **headers), ring)
        assert isinstance(caught.value, UnknownKey) == (headers != {"kid": "two"})


def test_what_a_token_says_of_keys_is_not_looked_at() -> None:
    """A key of its own (`jwk`), or where to find one (`jku`), makes no token good."""
    stranger = Ed25519PrivateKey.generate()
    token = signed(
        stranger, "EdDSA", claims(), jwk=jwk(stranger), jku="http://127.0.0.1:9/keys", kid="x"
    )
    with pytest.raises(TokenRefused):
        check(token, KEYS["EdDSA"][1])


def test_critical_headers_are_refused() -> None:
    """What the token says must be understood is not (RFC 7515, 4.1.11)."""
    headers: list[dict[str, Any]] = [
        {"crit": ["exp"]},
        {"crit": []},
        {"crit": "b64"},
        {"b64": False},
    ]
    for header in headers:
        with pytest.raises(TokenRefused):
            check(by_hand({"alg": "HS256", **header}, claims(), SECRET), HS_KEYS)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "..",
        "...",
        "a.b.c",
        "é.é.é",
        "eyJ.eyJ.",
        "=.=.=",
        f"{base64url(b'[' * 6000)}.e30.x",
    ],
)
def test_what_is_no_jwt_is_refused(text: str) -> None:
    """Whatever comes is answered with a refusal, deep JSON in the header too."""
    with pytest.raises(TokenRefused):
        check(text, HS_KEYS)


@given(st.data())
def test_no_altered_token_is_taken(data: st.DataObject) -> None:
    """One character changed anywhere, and it is not good; or it still says and proves the same."""
    token = signed(SECRET, "HS256", {"exp": 4_000_000_000, "scope": "read:a"})
    place = data.draw(st.integers(0, len(token) - 1))
    letter = data.draw(st.sampled_from("AZaz09-_.=\x00é"))
    changed = token[:place] + letter + token[place + 1 :]
    try:
        caller = check(changed, HS_KEYS)
    except TokenRefused:
        return
    assert place == len(token) - 1 or changed == token  # the last one's unused bits
    assert caller.scopes.rights(b"a") == Right.READ


# ---- keys


BAD_KEYS: list[tuple[bytes, bool, str]] = [
    (b"", True, "less than 32 bytes"),
    (b"short", True, "less than 32 bytes"),
    (SECRET, False, "others may read"),
    (b"two\nlines that are long enough for a secret", True, "neither"),
    (b"\x00" * 40, True, "neither"),
    (b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi", True, "SSH"),
    (pem(RSA_KEY)[:200], True, "no public key"),
    (private_pem(RSA_KEY), True, "private key"),
    (pem(generate_private_key(65_537, 1_024)), True, "2048"),
    (pem(ec.generate_private_key(ec.SECP256R1())), True, "neither RSA nor Ed25519"),
    (b"{", True, "no valid JSON"),
    (b'{"keys":' * 100_000, True, "bytes"),
    (b'{"keys": 5}', True, "no JSON Web Key Set"),
    (b'{"keys": []}', True, "no key for"),
    (b'{"keys": [5, null, {"kty": []}]}', True, "no key for"),
    (json.dumps({"kty": "oct", "k": base64url(SECRET)}).encode(), False, "a secret"),
    (json.dumps({"kty": "oct", "k": base64url(b"short")}).encode(), True, "less than 32"),
    (json.dumps(jwk(ED_KEY, use="enc")).encode(), True, "not for signatures"),
    (json.dumps(jwk(ED_KEY, key_ops=5)).encode(), True, "not for signatures"),
    (json.dumps(jwk(RSA_KEY, alg="RS512")).encode(), True, "another algorithm"),
    (json.dumps(jwk(RSA_KEY, d="AQAB")).encode(), True, "private key"),
    (json.dumps(jwk(RSA_KEY, n=5)).encode(), True, "cannot be read"),
    (json.dumps(jwk(ED_KEY, x="AAAA")).encode(), True, "cannot be read"),
]


@pytest.mark.parametrize(("content", "private", "said"), BAD_KEYS, ids=range(len(BAD_KEYS)))
def test_keys_that_will_not_do_are_refused(content: bytes, private: bool, said: str) -> None:
    """Weak, broken, private and misplaced ones, each with its reason."""
    with pytest.raises(KeysError, match=said):
        parse_keys(content, private=private)


def test_a_set_may_have_keys_for_others() -> None:
    """What is for another algorithm or purpose is passed over."""
    document = {"keys": [jwk(RSA_KEY, use="enc", kid="x"), {"kty": "EC"}, jwk(ED_KEY, kid="y")]}
    ring = parse_set(json.dumps(document).encode(), secrets=False)
    assert [key.kid for key in ring.keys] == ["y"]


def test_callers_of_a_key_end_with_it() -> None:
    """A new set ends the callers of keys that are not in it, and of no others."""
    one, two = jwk(ED_KEY, kid="one"), jwk(RSA_KEY, kid="two")
    old = parse_set(json.dumps({"keys": [one, two]}).encode(), secrets=False)
    stays = check(signed(ED_KEY, "EdDSA", claims(), kid="one"), old)
    goes = check(signed(RSA_KEY, "RS256", claims(), kid="two"), old)
    new = parse_set(json.dumps({"keys": [one]}).encode(), secrets=False)
    assert new.succeeds(old)
    assert (stays.source.live, goes.source.live) == (True, False)
    assert check(signed(ED_KEY, "EdDSA", claims(), kid="one"), new).source is stays.source
