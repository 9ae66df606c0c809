"""PUT, GET and DELETE of a subscription, and its explicit streams (protocol 6.2 to 6.4)."""

from functools import partial

from durable_streamsd.auth.scopes import Right
from durable_streamsd.core.access import check_subject
from durable_streamsd.core.context import Context
from durable_streamsd.core.control_bodies import Wanted, parse_streams, parse_wanted
from durable_streamsd.core.effects import Durable, Hold, Offload, Room
from durable_streamsd.core.lines import NO_STORE
from durable_streamsd.core.message import Request, Response
from durable_streamsd.core.origin import origin_of
from durable_streamsd.core.problems import Code, Problem
from durable_streamsd.subscriptions.backfill import link_explicitly, link_matching
from durable_streamsd.subscriptions.desk import Desk
from durable_streamsd.subscriptions.documents import SERIALIZED_LINK_BYTES, subscription_document
from durable_streamsd.subscriptions.model import Configuration, Subscription
from durable_streamsd.subscriptions.refusal import Refusal, already_exists
from durable_streamsd.subscriptions.registry import SUBSCRIPTIONS_MAX

__all__ = [
    "add_streams",
    "check_subscription",
    "confirm",
    "discard",
    "find_live",
    "remove_stream",
    "settle",
    "show",
]

INLINE_LINKS_MAX = 1_000
"""A document with more is encoded in a thread, and takes its share of memory first."""

_JSON = b"Content-Type: application/json\r\n" + NO_STORE


async def confirm(request: Request, identity: str, context: Context, desk: Desk) -> Response:
    """PUT: make a subscription, or make sure that it is there as asked for (protocol 6.2)."""
    _check_any(request, Right.ADMIN, context)
    wanted = parse_wanted(request, desk.reach)
    wake_streams = [] if wanted.wake_stream is None else [wanted.wake_stream]
    paths = [*wanted.streams, *wake_streams]
    check_subject(request, Right.ADMIN, wanted.pattern, paths, context)
    origin = origin_of(request, context)
    if not origin:
        raise Problem(Code.BAD_HOST)
    keys = desk.keys.ensure()
    if keys is not None:
        await Durable(keys)
    status = 200
    existing = await _find(identity, desk)
    if existing is None:
        existing = await _make(identity, wanted, origin.decode(), context, desk)
        status = 201
    elif existing.config.digest != wanted.digest:
        raise already_exists()
    check_subscription(request, Right.READ, existing, context)  # others may have added streams
    await settle(existing, desk)
    return await _document(existing, status, context, desk)


async def show(request: Request, identity: str, context: Context, desk: Desk) -> Response:
    """GET: a subscription with its cursors (protocol 6.3)."""
    _check_any(request, Right.READ, context)
    subscription = await find_live(identity, desk)
    check_subscription(request, Right.READ, subscription, context)
    await settle(subscription, desk)
    return await _document(subscription, 200, context, desk)


async def discard(request: Request, identity: str, context: Context, desk: Desk) -> Response:
    """DELETE: end a subscription; one that is not there is fine too (protocol 6.3)."""
    _check_any(request, Right.ADMIN, context)
    subscription = await _find(identity, desk)
    if subscription is not None:
        check_subscription(request, Right.ADMIN, subscription, context)
        desk.registry.delete(subscription)
        desk.clean_up(subscription)
        await settle(subscription, desk)
    return Response(204, (context.common,))


async def add_streams(request: Request, identity: str, context: Context, desk: Desk) -> Response:
    """POST: link streams explicitly (protocol 6.4)."""
    _check_any(request, Right.ADMIN, context)
    paths = parse_streams(request)
    subscription = await find_live(identity, desk)
    check_subscription(request, Right.ADMIN, subscription, context)
    check_subject(request, Right.ADMIN, None, paths, context)
    wake_stream = subscription.config.wake_stream
    if wake_stream is not None and wake_stream.encode() in paths:
        message = "The wake stream cannot be one of the streams that wake."
        raise Refusal(400, "INVALID_REQUEST", message)
    await link_explicitly(paths, subscription, desk.registry, context.store)
    await settle(subscription, desk)
    return Response(204, (context.common,))


async def remove_stream(
    request: Request, path: bytes, identity: str, context: Context, desk: Desk
) -> Response:
    """DELETE: remove an explicit link; one by pattern stays (protocol 6.4)."""
    _check_any(request, Right.ADMIN, context)
    subscription = await find_live(identity, desk)
    check_subscription(request, Right.ADMIN, subscription, context)
    link = subscription.links.get(path)
    if link is not None and link.explicit:
        desk.registry.set_link(subscription, path, False, link.glob, link.acked)
    await settle(subscription, desk)
    return Response(204, (context.common,))


def check_subscription(
    request: Request, right: Right, subscription: Subscription, context: Context
) -> None:
    """Let only those pass who have this right on all of its streams. Raises `Problem`."""
    explicit = (path for path, link in subscription.links.items() if link.explicit)
    check_subject(request, right, subscription.pattern, explicit, context)


def _check_any(request: Request, right: Right, context: Context) -> None:
    """Let those who have no such right at all not even learn what subscriptions there are."""
    check_subject(request, right, None, (), context)


async def find_live(identity: str, desk: Desk) -> Subscription:
    """The subscription with this id. When this returns nothing has run since. Raises `Refusal`."""
    subscription = await _find(identity, desk)
    if subscription is None:
        raise Refusal(404, "SUBSCRIPTION_NOT_FOUND", "There is no subscription with this id.")
    return subscription


async def settle(subscription: Subscription, desk: Desk) -> None:
    """Wait until what was decided about it is durable."""
    batch = desk.registry.resting_on(subscription)
    if batch is not None:
        await Durable(batch)


async def _find(identity: str, desk: Desk) -> Subscription | None:
    """The subscription with this id, not before one that is being made is there, or is not."""
    while True:
        subscription = desk.registry.by_id.get(identity)
        if subscription is None or subscription.live:
            return subscription
        await Durable(desk.registry.gates[subscription])


async def _make(
    identity: str, wanted: Wanted, base_url: str, context: Context, desk: Desk
) -> Subscription:
    registry, store = desk.registry, context.store
    if len(registry.by_id) >= SUBSCRIPTIONS_MAX:
        message = f"This server has {SUBSCRIPTIONS_MAX} subscriptions at most."
        raise Refusal(409, "TOO_MANY_SUBSCRIPTIONS", message)
    config = Configuration(
        identity,
        wanted.kind,
        wanted.digest,
        None if wanted.pattern is None else b"/".join(wanted.pattern).decode(),
        wanted.url,
        None if wanted.wake_stream is None else wanted.wake_stream.decode(),
        wanted.lease_ttl_ms,
        wanted.description,
        store.now_ms(),
        base_url,
    )
    subscription = registry.begin(config, wanted.pattern)
    try:
        await link_explicitly(wanted.streams, subscription, registry, store)
        if wanted.pattern is not None:
            await link_matching(subscription, registry, store)
        while not store.accepting:
            await Room()
        registry.establish(subscription)
    finally:
        if not subscription.live:  # refused, or the connection is lost
            registry.abandon(subscription)
            desk.clean_up(subscription)
    return subscription


async def _document(
    subscription: Subscription, status: int, context: Context, desk: Desk
) -> Response:
    count = len(subscription.links)
    if count > INLINE_LINKS_MAX:
        await Hold(count * SERIALIZED_LINK_BYTES)
    links = [(link.path, link.explicit, link.acked) for link in subscription.links.values()]
    kid = desk.keys.signer.kid if subscription.config.url is not None else None
    encode = partial(
        subscription_document,
        subscription.config,
        subscription.wake,
        links,
        context.base_url,
        kid,
    )
    body = encode() if count <= INLINE_LINKS_MAX else await Offload(encode)
    return Response(status, (context.common, _JSON), body)
