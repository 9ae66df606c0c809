"""OPTIONS: what a browser asks before a request across origins. Every route answers it alike."""

from durable_streamsd.core.context import Context
from durable_streamsd.core.lines import allow_line, preflight_block
from durable_streamsd.core.message import Response

__all__ = ["preflight"]

_LINES = allow_line() + preflight_block()


def preflight(context: Context) -> Response:
    """Answer an OPTIONS request."""
    return Response(204, (context.common, _LINES))
