"""What a caller is told who does not get in (RFC 6750, 3): 401 or 403 with `WWW-Authenticate`.

    no credentials, or of a kind that is not known     401
    a token that is not good (any more)                401  error="invalid_token"
    credentials that are malformed, or given twice     400  error="invalid_request"
    a good token without the scope                     403  error="insufficient_scope"

None of them depends on what streams there are.
"""

from typing import Final

from durable_streamsd.core.problems import Code, Problem

__all__ = ["bad_token", "forbidden", "malformed", "unauthenticated"]

_CHALLENGE: Final = b'WWW-Authenticate: Bearer realm="durable-streams"'


def unauthenticated() -> Problem:
    """Nothing in the request says who asks."""
    return Problem(Code.UNAUTHENTICATED, _CHALLENGE + b"\r\n")


def bad_token(detail: str) -> Problem:
    """A token was sent, and it opens nothing."""
    return Problem(Code.INVALID_TOKEN, _challenge(b"invalid_token"), detail=detail)


def malformed(detail: str) -> Problem:
    """What was sent cannot be a token."""
    return Problem(Code.BAD_AUTHORIZATION, _challenge(b"invalid_request"), detail=detail)


def forbidden(detail: str, *, producer: bool = False) -> Problem:
    """The token is good, and not for this.

    To a request of a producer that is 401, where RFC 6750 would have 403: that is how the protocol
    says *stale epoch*, and the TypeScript producer then claims one epoch after the other for ever.
    """
    code = Code.NOT_PERMITTED if producer else Code.FORBIDDEN
    return Problem(code, _challenge(b"insufficient_scope"), detail=detail)


def _challenge(error: bytes) -> bytes:
    return b'%b, error="%b"\r\n' % (_CHALLENGE, error)
