"""From a request to its handler, and from whatever the handler raises to an answer.

The routes:

    /v1/stream/{path}            GET HEAD PUT POST DELETE
    /v1/stream/__ds/...          control APIs (protocol 6): see `control`
    /healthz /health /readyz     GET HEAD
    /metrics                     GET HEAD
    everything                   OPTIONS
"""

from collections.abc import Callable, Coroutine
from typing import Any

from durable_streamsd.core.access import admit, check_metrics
from durable_streamsd.core.append import DirectAppend, append
from durable_streamsd.core.caching import is_private
from durable_streamsd.core.context import Context
from durable_streamsd.core.control import control
from durable_streamsd.core.create import create
from durable_streamsd.core.delete import delete
from durable_streamsd.core.direct import Direct
from durable_streamsd.core.effects import Effect
from durable_streamsd.core.health import HEALTH_PATHS, health
from durable_streamsd.core.lines import allow_line
from durable_streamsd.core.live import follow, long_poll
from durable_streamsd.core.message import Request, Response
from durable_streamsd.core.metrics import METRICS_PATH, metrics
from durable_streamsd.core.offsets import EARLIEST
from durable_streamsd.core.paths import STREAM_ROOT, is_reserved, parse_path
from durable_streamsd.core.preflight import preflight
from durable_streamsd.core.problems import Code, Problem, problem_of
from durable_streamsd.core.query import Live, Query, parse_query
from durable_streamsd.core.read import DirectRead, catch_up, head
from storage.errors import StorageError

__all__ = ["barred_of", "direct_of", "dispatch", "failure"]

Handler = Callable[[Request, bytes, Context], Coroutine[Effect[Any], Any, Response | None]]


async def dispatch(request: Request, context: Context) -> Response | None:
    """Answer a request. Drive this as `effects` describes; None ends an event stream.

    Storage errors become answers here. Anything else that is raised is a bug, and the lane's to
    log; `StreamBroken` tells it to cut an event stream.
    """
    try:
        response = await _route(request, context)
    except (Problem, StorageError) as error:
        response = failure(error, context)
    return None if response is None else response.for_method(request.method)


def failure(error: Problem | StorageError, context: Context) -> Response:
    """The answer to a request that failed with this error. Raises it again if there is none."""
    problem = error if isinstance(error, Problem) else problem_of(error)
    return context.failed(problem)


def direct_of(
    method: str, target: bytes, headers: dict[bytes, bytes], context: Context
) -> Direct | None:
    """What to attempt before `dispatch`, for every request with this head; None for most kinds."""
    path, _, query = target.partition(b"?")
    if not path.startswith(STREAM_ROOT):
        return None
    try:
        stream_path = parse_path(path[len(STREAM_ROOT) :])
        if is_reserved(stream_path):
            return None
        if method not in ("POST", "GET"):
            return None
        caller, query = admit(method, stream_path, query, headers, context)
        if method == "POST":
            return DirectAppend(stream_path, headers, caller)
        parsed = parse_query(query)
        if parsed.live is None:
            private = is_private(headers, stream_path, context)
            return DirectRead(stream_path, parsed, headers, private, caller)
    except Problem:
        pass  # `dispatch` will say it
    return None


def barred_of(
    method: str, target: bytes, headers: dict[bytes, bytes], context: Context
) -> Problem | None:
    """Why a request for a stream is refused whatever its body is, if its sender lacks the right."""
    path, _, query = target.partition(b"?")
    if context.gate is None or not path.startswith(STREAM_ROOT) or method not in _HANDLERS:
        return None
    try:
        stream_path = parse_path(path[len(STREAM_ROOT) :])
        if not is_reserved(stream_path):
            admit(method, stream_path, query, headers, context)
    except Problem as problem:
        return problem
    return None


async def _route(request: Request, context: Context) -> Response | None:
    target = request.path
    if request.method == "OPTIONS":
        return preflight(context)
    if target.startswith(STREAM_ROOT):
        if target.startswith(_RESERVED):  # before the path is judged: ids have rules of their own
            return await control(request, context)
        path = parse_path(target[len(STREAM_ROOT) :])
        if is_reserved(path):
            return await control(request, context)
        handler = _HANDLERS.get(request.method)
        if handler is None:
            raise Problem(Code.METHOD_NOT_ALLOWED, allow_line())
        request.caller, request.query = admit(
            request.method, path, request.query, request.headers, context
        )
        return await handler(request, path, context)
    if target in HEALTH_PATHS:
        return health(request, context)
    if target == METRICS_PATH:
        check_metrics(request, context)
        return await metrics(request, context)
    raise Problem(Code.NO_SUCH_ROUTE)


async def _get(request: Request, path: bytes, context: Context) -> Response | None:
    query = parse_query(request.query)
    while True:
        try:
            return await _read(request, path, query, context)
        except Problem as problem:
            if problem.code is not Code.OFFSET_NOT_RETAINED or query.offset is not EARLIEST:
                raise
            # The stream was cut while its earliest bytes were looked for: there are others now.


async def _read(request: Request, path: bytes, query: Query, context: Context) -> Response | None:
    if query.live is Live.LONG_POLL:
        return await long_poll(request, path, query, context)
    if query.live is Live.SSE:
        private = is_private(request.headers, path, context)
        await follow(path, query, request.caller, private, context)
        return None
    return await catch_up(request, path, query, context)


_RESERVED = STREAM_ROOT + b"__ds/"

_HANDLERS: dict[str, Handler] = {
    "GET": _get,
    "HEAD": head,
    "POST": append,
    "PUT": create,
    "DELETE": delete,
}
