"""`/metrics`: what the daemon counts, for Prometheus."""

from typing import Any, Final, Protocol

from durable_streamsd.core.context import Context
from durable_streamsd.core.effects import Offload
from durable_streamsd.core.lines import NO_STORE, allow_line
from durable_streamsd.core.message import Request, Response
from durable_streamsd.core.problems import Code, Problem

__all__ = ["METRICS_PATH", "Exposition", "metrics"]

METRICS_PATH: Final = b"/metrics"


class Exposition(Protocol):
    """What makes the answer, in three steps."""

    def survey(self) -> Any:
        """Ask the file system, which may take its time. Any thread."""

    def gather(self, survey: Any) -> Any:
        """Take down all numbers as they are now, on the loop's thread."""

    def write(self, gathered: Any, accept: str) -> tuple[str, bytes]:
        """Content type and body, in the format that suits an Accept header best. Any thread."""


async def metrics(request: Request, context: Context) -> Response:
    """Answer a request for `METRICS_PATH`. Raises `Problem`."""
    if request.method not in ("GET", "HEAD"):
        raise Problem(Code.METHOD_NOT_ALLOWED, allow_line("GET, HEAD, OPTIONS"))
    exposition = context.exposition
    if exposition is None:
        raise Problem(Code.NO_SUCH_ROUTE)
    gathered = exposition.gather(await Offload(exposition.survey))
    accept = request.headers.get(b"accept", b"").decode("latin-1")
    content_type, body = await Offload(lambda: exposition.write(gathered, accept))
    line = b"Content-Type: %b\r\n" % content_type.encode("ascii")
    return Response(200, (context.common, line, NO_STORE), body)
