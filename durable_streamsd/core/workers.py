"""Claim, ack, callback and release: what workers say about a wake (protocol 7.1, 7.2).

A callback and an ack are the same; they differ in who was given the token, and how.
"""

from durable_streamsd.auth.scopes import Right
from durable_streamsd.core.access import check_subject
from durable_streamsd.core.context import Context
from durable_streamsd.core.control_bodies import Report, parse_report, parse_worker
from durable_streamsd.core.effects import Durable, Room
from durable_streamsd.core.lines import NO_STORE
from durable_streamsd.core.message import Request, Response
from durable_streamsd.core.subscriptions import check_subscription, find_live, settle
from durable_streamsd.subscriptions.desk import Desk
from durable_streamsd.subscriptions.documents import claim_document
from durable_streamsd.subscriptions.model import Subscription
from durable_streamsd.subscriptions.refusal import Refusal

__all__ = ["ack", "claim", "release"]

_JSON = b"Content-Type: application/json\r\n" + NO_STORE


async def claim(request: Request, identity: str, context: Context, desk: Desk) -> Response:
    """POST: take the lease of a pull-wake subscription."""
    check_subject(request, Right.READ, None, (), context)
    worker = parse_worker(request)
    keys = desk.keys.ensure()
    if keys is not None:
        await Durable(keys)
    subscription = await _ready(identity, context, desk)
    check_subscription(request, Right.READ, subscription, context)
    try:
        claimed = desk.work.claim(subscription, worker)
    except Refusal:
        await settle(subscription, desk)  # it may rest on what is not durable yet
        raise
    document = claim_document(subscription.config, claimed)
    await settle(subscription, desk)
    return Response(200, (context.common, _JSON), document)


async def ack(request: Request, identity: str, context: Context, desk: Desk) -> Response:
    """POST: move cursors; `done` ends the wake, without it the lease is extended."""
    report = parse_report(request)
    subscription = await _authorized(request, report, identity, context, desk)
    more = desk.work.ack(subscription, report.acks, report.done)
    await settle(subscription, desk)
    body = b'{"ok":true,"next_wake":%b}' % (b"true" if report.done and more else b"false")
    return Response(200, (context.common, _JSON), body)


async def release(request: Request, identity: str, context: Context, desk: Desk) -> Response:
    """POST: give a wake up; what is pending wakes again."""
    report = parse_report(request)
    subscription = await _authorized(request, report, identity, context, desk)
    desk.work.release(subscription)
    await settle(subscription, desk)
    return Response(204, (context.common,))


async def _authorized(
    request: Request, report: Report, identity: str, context: Context, desk: Desk
) -> Subscription:
    """The subscription, for the holder of its current wake. When this returns nothing has run
    since that was checked. Raises `Refusal`."""
    keys = desk.keys.ensure()
    if keys is not None:
        await Durable(keys)
    subscription = await _ready(identity, context, desk)
    scheme, _, token = request.headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() != b"bearer" or not token:
        raise Refusal(401, "TOKEN_INVALID", "Send the wake's token: 'Authorization: Bearer ...'.")
    try:
        desk.work.authorize(subscription, token.strip(), report.generation, report.wake_id)
    except Refusal:
        await settle(subscription, desk)
        raise
    return subscription


async def _ready(identity: str, context: Context, desk: Desk) -> Subscription:
    """The subscription, when the store takes changes and what is pending is known."""
    while True:
        subscription = await find_live(identity, desk)
        if desk.gate is not None:
            await Durable(desk.gate)
        elif not context.store.accepting:
            await Room()
        else:
            return subscription
