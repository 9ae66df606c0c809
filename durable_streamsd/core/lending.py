"""POST /v1/stream/__ds/tokens: a token for one reader of one stream. An extension of the protocol.

    {"path": "chat/1", "ttl_s": 300}
    {"token": "dsr_…", "path": "chat/1", "expires_at": "2026-01-31T12:05:00Z"}

For whoever may read the stream, to hand it to somebody who may read only that, and only for a
while: as `?access_token=` of a GET, where headers cannot be sent (`auth.reader_tokens`). It lives
no longer than the token that it was asked for with. The stream need not exist yet.

Without authentication tokens are given too, and then not looked at.
"""

import json
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from durable_streamsd.auth.reader_tokens import make_reader_token, reader_key
from durable_streamsd.auth.scopes import Right
from durable_streamsd.core.access import check_stream
from durable_streamsd.core.context import Context
from durable_streamsd.core.control_bodies import decode_body, parse_body_path
from durable_streamsd.core.effects import Durable
from durable_streamsd.core.headers import format_rfc3339
from durable_streamsd.core.lines import NO_STORE
from durable_streamsd.core.message import Request, Response
from durable_streamsd.subscriptions.desk import Desk

__all__ = ["lend_token"]

LIFETIME_S: Final = 300
LIFETIME_S_MAX: Final = 3_600

_JSON = b"Content-Type: application/json\r\n" + NO_STORE


class _Wanted(msgspec.Struct):
    path: str
    ttl_s: Annotated[int, Meta(ge=1, le=LIFETIME_S_MAX)] = LIFETIME_S


async def lend_token(request: Request, context: Context, desk: Desk) -> Response:
    """Answer with a token; the request's caller is known."""
    wanted = decode_body(request, _Wanted)
    path = parse_body_path(wanted.path)
    check_stream(request, Right.READ, path, context)
    batch = desk.keys.ensure()
    if batch is not None:
        await Durable(batch)
    caller = request.caller
    expires_s = context.store.now_ms() // 1_000 + wanted.ttl_s
    if caller is not None and caller.expires_ms is not None:
        expires_s = min(expires_s, caller.expires_ms // 1_000)
    token_id = b"" if caller is None else caller.token_id
    key = reader_key(desk.keys.token_secret)
    document = {
        "token": make_reader_token(key, path, expires_s, token_id),
        "path": path.decode(),
        "expires_at": format_rfc3339(expires_s * 1_000).decode(),
    }
    return Response(200, (context.common, _JSON), json.dumps(document).encode())
