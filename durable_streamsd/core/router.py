"""From a request to its handler, and from whatever the handler raises to an answer.

The routes:

    /v1/stream/{path}            GET HEAD PUT POST DELETE
    /v1/stream/__ds/...          reserved for control APIs (protocol 6), none of which exists yet
    /healthz /health /readyz     GET HEAD
    everything                   OPTIONS

Left out: `/metrics`, which needs what the lanes count.
"""

from collections.abc import Callable, Coroutine
from typing import Any

from durable_streamsd.core.append import append
from durable_streamsd.core.context import Context
from durable_streamsd.core.create import create
from durable_streamsd.core.delete import delete
from durable_streamsd.core.effects import Effect
from durable_streamsd.core.health import HEALTH_PATHS, health
from durable_streamsd.core.lines import allow_line
from durable_streamsd.core.live import follow, long_poll
from durable_streamsd.core.message import Request, Response
from durable_streamsd.core.paths import STREAM_ROOT, is_reserved, parse_path
from durable_streamsd.core.preflight import preflight
from durable_streamsd.core.problems import Code, Problem, reserved_error
from durable_streamsd.core.query import Live, parse_query
from durable_streamsd.core.read import catch_up, head
from storage.errors import CommitError, CorruptData, IndexFailed, OffsetError, OutOfSpace

__all__ = ["dispatch"]

Handler = Callable[[Request, bytes, Context], Coroutine[Effect[Any], Any, Response | None]]


async def dispatch(request: Request, context: Context) -> Response | None:
    """Answer a request. Drive this as `effects` describes; None ends an event stream.

    Storage errors become answers here. Anything else that is raised is a bug, and the lane's to
    log; `StreamBroken` tells it to cut an event stream.
    """
    try:
        response = await _route(request, context)
    except Problem as problem:
        response = problem.response(context.common)
    except OutOfSpace:
        response = context.problem(Code.OUT_OF_SPACE)
    except CommitError:
        response = context.problem(Code.OUTCOME_UNKNOWN)
    except OffsetError:
        response = context.problem(Code.OFFSET_INSIDE_MESSAGE)
    except IndexFailed:
        response = context.problem(Code.INDEX_UNAVAILABLE)
    except CorruptData:
        response = context.problem(Code.CORRUPT_DATA)
    if response is not None and request.method == "HEAD":
        return Response(response.status, response.headers)
    return response


async def _route(request: Request, context: Context) -> Response | None:
    target = request.path
    if request.method == "OPTIONS":
        return preflight(context)
    if target.startswith(STREAM_ROOT):
        path = parse_path(target[len(STREAM_ROOT) :])
        if is_reserved(path):
            message = "This server has no control API at this path."
            return reserved_error(context.common, 404, "NOT_FOUND", message)
        handler = _HANDLERS.get(request.method)
        if handler is None:
            raise Problem(Code.METHOD_NOT_ALLOWED, allow_line())
        return await handler(request, path, context)
    if target in HEALTH_PATHS:
        return health(request, context)
    raise Problem(Code.NO_SUCH_ROUTE)


async def _get(request: Request, path: bytes, context: Context) -> Response | None:
    query = parse_query(request.query)
    if query.live is Live.LONG_POLL:
        return await long_poll(request, path, query, context)
    if query.live is Live.SSE:
        await follow(path, query, context)
        return None
    return await catch_up(request, path, query, context)


_HANDLERS: dict[str, Handler] = {
    "GET": _get,
    "HEAD": head,
    "POST": append,
    "PUT": create,
    "DELETE": delete,
}
