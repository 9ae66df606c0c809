"""From a JWT to a caller (RFC 7519, RFC 8725): PyJWT checks it, with the key that it must have.

Which key and which algorithm is decided by the keys that are trusted, never by the token: its `alg`
has to be that of the key, and what it says of where to find keys (`jku`, `x5u`, `jwk`) is not
looked at. `exp` is required; `nbf`, `iat`, `aud` and `iss` are checked where they are there, and
required where a value is configured. A token with an audience is refused if none is configured: it
may have been meant for somebody else.

The scopes stand in one claim, as text with spaces between (RFC 8693, 4.2) or as a list, beside
those of other services: what is none of ours grants nothing.
"""

import hashlib
from typing import Any, Final, NamedTuple

import jwt

from durable_streamsd.auth.caller import Caller
from durable_streamsd.auth.jwt_keys import KeyRing
from durable_streamsd.auth.scopes import SCOPES_MAX, Scope, ScopeError, Scopes, parse_scope

__all__ = ["LEEWAY_S", "JwtRules", "TokenRefused", "UnknownKey", "check_jwt"]

LEEWAY_S: Final = 30
"""For clocks that differ."""
EXPIRES_S_MAX: Final = 253_402_300_799
"""The end of the year 9999: beyond it, it makes no difference."""


class TokenRefused(Exception):
    """The token is not good; one sentence for whoever sent it."""


class UnknownKey(TokenRefused):
    """None of the keys is the one that the token names."""


class JwtRules(NamedTuple):
    """What tokens have to say."""

    issuer: str | None
    audience: str | None
    scopes_claim: str


def check_jwt(token: str, keys: KeyRing, rules: JwtRules, common: Scopes) -> Caller:
    """The caller that a token is good for. Everybody has the `common` scopes too.

    Raises `TokenRefused`.
    """
    try:
        header = jwt.get_unverified_header(token)
    except _WRONG:
        raise TokenRefused("The token is no JWT.") from None
    algorithm = header.get("alg")
    key = keys.find(header.get("kid"), algorithm)
    if key is None:
        raise UnknownKey("The token is not signed with a key that this server knows.")
    try:
        claims = jwt.decode(
            token,
            key.material,
            algorithms=[key.algorithm],
            audience=rules.audience,
            issuer=rules.issuer,
            leeway=LEEWAY_S,
            options={"require": ["exp"]},
        )
        expires_ms = (min(int(claims["exp"]), EXPIRES_S_MAX) + LEEWAY_S) * 1_000
    except jwt.ExpiredSignatureError:
        raise TokenRefused("The token has expired.") from None
    except jwt.ImmatureSignatureError:
        raise TokenRefused("The token is not valid yet.") from None
    except jwt.InvalidSignatureError:
        raise TokenRefused("The token's signature is wrong.") from None
    except jwt.InvalidAudienceError:
        raise TokenRefused("The token's audience (aud) is not this server.") from None
    except jwt.InvalidIssuerError:
        raise TokenRefused("The token's issuer (iss) is not trusted here.") from None
    except jwt.MissingRequiredClaimError as error:
        raise TokenRefused(f"The token has no claim {error.claim!r}.") from None
    except _WRONG:
        raise TokenRefused("The token is not valid.") from None
    scopes = Scopes(_scopes(claims.get(rules.scopes_claim))).with_all(common)
    return Caller(scopes, key.source, expires_ms, account=_account(claims))


# Whoever sends a token decides what is decoded here: deep JSON, numbers without end, other types.
_WRONG: Final = (
    jwt.PyJWTError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    OverflowError,
    RecursionError,
)


def _account(claims: dict[str, Any]) -> str:
    """The subject, whatever token it shows; of the same size, however long its name is."""
    subject = claims.get("sub")
    if not isinstance(subject, str) or not subject:
        return ""
    return "jwt " + hashlib.sha256(repr((claims.get("iss"), subject)).encode()).hexdigest()


def _scopes(claim: Any) -> list[Scope]:
    texts = claim.split() if isinstance(claim, str) else claim if isinstance(claim, list) else []
    scopes = []
    for text in texts:
        try:
            scopes.append(parse_scope(text))
        except (ScopeError, AttributeError):  # another service's, or no text
            continue
        if len(scopes) > SCOPES_MAX:
            raise TokenRefused(f"The token has more than {SCOPES_MAX} scopes.")
    return scopes
