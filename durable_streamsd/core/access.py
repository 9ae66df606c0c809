"""What a request may do: each route asks here for the right that it needs, before it looks at a
stream. So an answer to somebody without it is the same whether there is a stream or not.

    GET HEAD   read                    PUT      create; for a fork also read, of its source
    POST       append (closing too)    DELETE   delete

    __ds/streams             read, on everything that begins with the prefix
    __ds/subscriptions/...   admin, on its pattern and streams, to make, change or end one; read on
                             them to look at it and to claim. Ack, release and callback have tokens
                             of their own (protocol 7.1, 7.2)
    __ds/tokens              read, on the stream
    /metrics                 metrics, on everything
    __ds/jwks.json, health, OPTIONS   nothing

Paths are compared as the store knows them: parsed, and decoded once. Without a gate everybody may
do everything, and there are no callers.
"""

from collections.abc import Iterable
from typing import Final, NoReturn
from urllib.parse import unquote_to_bytes

from durable_streamsd.auth.caller import Caller
from durable_streamsd.auth.reader_tokens import QUERY_PARAMETER
from durable_streamsd.auth.refusals import bad_token, forbidden, malformed, unauthenticated
from durable_streamsd.auth.scopes import EVERYTHING, Right
from durable_streamsd.core.context import Context
from durable_streamsd.core.message import Request
from durable_streamsd.subscriptions.patterns import Pattern

__all__ = [
    "admit",
    "check_metrics",
    "check_prefix",
    "check_still",
    "check_stream",
    "check_subject",
]

_PARAMETER: Final = QUERY_PARAMETER.encode() + b"="

_LISTING: Final = (
    "A listing needs the right 'read' on everything that begins with its prefix, as 'read:chat/**' "
    "is for the prefix 'chat/'."
)

_RIGHTS: Final = {
    "GET": Right.READ,
    "HEAD": Right.READ,
    "PUT": Right.CREATE,
    "POST": Right.APPEND,
    "DELETE": Right.DELETE,
}


def admit(
    method: str, path: bytes, query: bytes, headers: dict[bytes, bytes], context: Context
) -> tuple[Caller | None, bytes]:
    """Who does this with a stream, and the query without the token that may stand in it.

    Raises `Problem` if they may not.
    """
    gate = context.gate
    if gate is None:
        return None, query
    right = _RIGHTS[method]
    if right is Right.READ:
        query, token = _take_token(query)
        caller = gate.caller(headers, path, token)
    else:
        caller = gate.caller(headers)
    if not caller.may(right, path):
        _refuse(caller, _missing(right), headers, context)
    return caller, query


def _identify(request: Request, context: Context) -> Caller | None:
    """Who sends a request; found out here if `admit` was not asked. Raises `Problem`."""
    if context.gate is not None and request.caller is None:
        request.caller = context.gate.caller(request.headers)
    return request.caller


def check_stream(request: Request, right: Right, path: bytes, context: Context) -> None:
    """Let only those pass who have this right on a stream. Raises `Problem`."""
    caller = _identify(request, context)
    if caller is not None and not caller.may(right, path):
        _refuse(caller, _missing(right), request.headers, context)


def check_prefix(request: Request, prefix: bytes, context: Context) -> None:
    """Let only those pass who may read whatever begins with this. Raises `Problem`."""
    caller = _identify(request, context)
    if caller is not None and not caller.scopes.covers_prefix(Right.READ, prefix):
        _refuse(caller, _LISTING, request.headers, context)


def check_metrics(request: Request, context: Context) -> None:
    """Let only those pass who may see how the daemon is doing. Raises `Problem`."""
    check_subject(request, Right.METRICS, EVERYTHING, (), context)


def check_subject(
    request: Request,
    right: Right,
    pattern: Pattern | None,
    paths: Iterable[bytes],
    context: Context,
) -> None:
    """Let only those pass who have this right on all that a pattern matches, and on these paths.

    Raises `Problem`.
    """
    caller = _identify(request, context)
    if caller is None or caller.scopes.covers(right, EVERYTHING):
        return
    if (
        not caller.scopes.has(right)
        or (pattern is not None and not caller.scopes.covers(right, pattern))
        or not all(caller.may(right, path) for path in paths)
    ):
        _refuse(caller, _missing(right), request.headers, context)


def check_still(caller: Caller | None, context: Context) -> None:
    """Let only those pass who are what they were when their request came. Raises `Problem`."""
    if caller is not None and not caller.holds(context.store.now_ms):
        raise bad_token("The token has expired, or was revoked.")


def _refuse(caller: Caller, detail: str, headers: dict[bytes, bytes], context: Context) -> NoReturn:
    if context.gate is not None and caller is context.gate.anonymous:
        raise unauthenticated()
    raise forbidden(detail, producer=b"producer-epoch" in headers)


def _missing(right: Right) -> str:
    return f"This needs the right '{str(right.name).lower()}', which the token does not have here."


def _take_token(query: bytes) -> tuple[bytes, bytes]:
    """A query without its token, and that. What is kept, compared and cached never has it."""
    if _PARAMETER not in query:
        return query, b""
    fields = query.split(b"&")
    others = [field for field in fields if not field.startswith(_PARAMETER)]
    tokens = [field for field in fields if field.startswith(_PARAMETER)]
    if len(tokens) > 1:
        raise malformed("Send one access_token.")
    token = unquote_to_bytes(tokens[0].removeprefix(_PARAMETER)) if tokens else b""
    return b"&".join(others), token
