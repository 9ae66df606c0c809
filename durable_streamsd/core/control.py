"""The control routes under `__ds` (protocol 6 and 7), and their errors.

    streams                                 GET HEAD, an extension: what streams there are
    tokens                                  POST, an extension: a token for one reader
    jwks.json                               GET
    subscriptions/{id}                      PUT GET DELETE
    subscriptions/{id}/streams              POST
    subscriptions/{id}/streams/{path}       DELETE
    subscriptions/{id}/callback             POST
    subscriptions/{id}/{claim,ack,release}  POST

The target is cut at its slashes before it is decoded, so that an id may hold an encoded one.
"""

import re
from collections.abc import Callable, Coroutine
from typing import Any, Final

from durable_streamsd.core.context import Context
from durable_streamsd.core.effects import Durable, Effect
from durable_streamsd.core.lending import lend_token
from durable_streamsd.core.lines import allow_line
from durable_streamsd.core.listing import list_streams
from durable_streamsd.core.message import Request, Response
from durable_streamsd.core.paths import STREAM_ROOT, check_path, decode_segment
from durable_streamsd.core.problems import Code, Problem, problem_of, reserved_error
from durable_streamsd.core.subscriptions import (
    add_streams,
    confirm,
    discard,
    remove_stream,
    show,
)
from durable_streamsd.core.workers import ack, claim, release
from durable_streamsd.subscriptions.desk import Desk
from durable_streamsd.subscriptions.refusal import Refusal, invalid
from storage.errors import StorageError

__all__ = ["control", "turned_away"]

ID_BYTES_MAX: Final = 256

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

Handler = Callable[[Request, str, Context, Desk], Coroutine[Effect[Any], Any, Response]]

_ROUTES: dict[tuple[str, ...], dict[str, Handler]] = {
    (): {"PUT": confirm, "GET": show, "DELETE": discard},
    ("streams",): {"POST": add_streams},
    ("callback",): {"POST": ack},
    ("claim",): {"POST": claim},
    ("ack",): {"POST": ack},
    ("release",): {"POST": release},
}


async def control(request: Request, context: Context) -> Response:
    """Answer a request for a reserved path."""
    try:
        return await _route(request, context)
    except Refusal as refusal:
        return reserved_error(
            context.common, refusal.status, refusal.code, refusal.message, **refusal.details
        )
    except Problem as problem:
        return _translated(problem, context)
    except StorageError as error:
        return _translated(problem_of(error), context)


def turned_away(problem: Problem, context: Context) -> Response:
    """The answer to a request for a reserved path that a lane refused before it got here."""
    context.on_problem(problem.code)
    return _translated(problem, context)


async def _route(request: Request, context: Context) -> Response:
    _, *segments = [
        decode_segment(raw).decode("utf-8", "replace")
        for raw in request.path[len(STREAM_ROOT) :].split(b"/")
    ]
    if segments == ["streams"]:
        return await list_streams(request, context)
    desk = context.subscriptions
    if desk is None or not segments:
        raise _nothing_here()
    if segments == ["jwks.json"]:
        _check_method(request, ("GET",))
        return await _jwks(context, desk)
    if segments == ["tokens"]:
        _check_method(request, ("POST",))
        return await lend_token(request, context, desk)
    if segments[0] != "subscriptions" or len(segments) < 2:
        raise _nothing_here()
    identity = segments[1]
    if not 0 < len(identity.encode()) <= ID_BYTES_MAX or _CONTROL.search(identity):
        raise invalid(f"A subscription's id has 1 to {ID_BYTES_MAX} bytes, none of them control.")
    if segments[2:3] == ["streams"] and len(segments) > 3:
        _check_method(request, ("DELETE",))
        path = check_path("/".join(segments[3:]).encode())
        return await remove_stream(request, path, identity, context, desk)
    handlers = _ROUTES.get(tuple(segments[2:]))
    if handlers is None:
        raise _nothing_here()
    _check_method(request, tuple(handlers))
    return await handlers[request.method](request, identity, context, desk)


async def _jwks(context: Context, desk: Desk) -> Response:
    """The public form of the signing key (protocol 6.5), which is made if there is none yet."""
    batch = desk.keys.ensure()
    if batch is not None:
        await Durable(batch)
    head = b"Content-Type: application/jwk-set+json\r\nCache-Control: public, max-age=300\r\n"
    return Response(200, (context.common, head), desk.keys.signer.jwks)


def _check_method(request: Request, methods: tuple[str, ...]) -> None:
    if request.method not in methods:
        allowed = ", ".join((*methods, "OPTIONS"))
        raise Problem(Code.METHOD_NOT_ALLOWED, allow_line(allowed))


def _nothing_here() -> Refusal:
    return Refusal(404, "NOT_FOUND", "This server has no control API at this path.")


def _translated(problem: Problem, context: Context) -> Response:
    """A problem in the shape of these routes: `bad-path` becomes `BAD_PATH`."""
    code = problem.code
    lines = problem.lines
    if code.retry_after_s is not None:
        lines = (*lines, b"Retry-After: %d\r\n" % code.retry_after_s)
    name = code.code.upper().replace("-", "_")
    message = f"{problem.detail} {code.advice}" if problem.detail else code.advice
    return reserved_error(context.common, code.status, name, message, *lines)
