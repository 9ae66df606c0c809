"""Health: `/healthz` says that the process answers, `/readyz` that it takes writes.

`/health` is another name for `/healthz`.
"""

from durable_streamsd.core.context import Context
from durable_streamsd.core.lines import NO_STORE, allow_line
from durable_streamsd.core.message import Request, Response
from durable_streamsd.core.problems import Code, Problem

__all__ = ["HEALTH_PATHS", "health"]

HEALTH_PATHS = frozenset((b"/health", b"/healthz", b"/readyz"))

_HEAD = b"Content-Type: text/plain; charset=utf-8\r\n" + NO_STORE


def health(request: Request, context: Context) -> Response:
    """Answer a request for one of `HEALTH_PATHS`. Raises `Problem`."""
    if request.method not in ("GET", "HEAD"):
        raise Problem(Code.METHOD_NOT_ALLOWED, allow_line("GET, HEAD, OPTIONS"))
    if request.path == b"/readyz":
        if context.store.latched:
            raise Problem(Code.NOT_READY, detail="A write failed and the server takes no more.")
        if context.draining:
            raise Problem(Code.NOT_READY, detail="The server is shutting down.")
    return Response(200, (context.common, _HEAD), b"ok\n")
