"""DELETE: remove a stream and all its data (protocol 5.4).

Deleting does not wait for room: it is what gives room back.
"""

from durable_streamsd.core.context import Context
from durable_streamsd.core.effects import Durable
from durable_streamsd.core.lookup import look_up
from durable_streamsd.core.message import Request, Response
from durable_streamsd.core.problems import Code, Problem
from storage.state import Kind

__all__ = ["delete"]


async def delete(_request: Request, path: bytes, context: Context) -> Response:
    """Answer a DELETE of the stream at `path`."""
    stream = await look_up(context.store.find, path)
    outcome = context.store.delete(stream)
    if outcome.batch is not None:
        await Durable(outcome.batch)
    if outcome.kind is not Kind.DELETED:
        raise Problem(Code.NOT_FOUND)
    return Response(204, (context.common,))
