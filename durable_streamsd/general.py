"""The general lane: the same core behind aiohttp's server, for whatever the express lane leaves.

A request is a task here, and its answer is written by aiohttp. The handler coroutine of the core is
driven by an `Exchange` all the same; what its sinks are told goes to the task through an outbox.

Limits are those of the express lane. aiohttp has no limit for a head as a whole: it is checked when
the head is there, and aiohttp's own (each line as long as a head may be, and so many lines) bound
what it may hold.

Frames go to the transport as they are, chunk by chunk: aiohttp would copy each.

Left out: everything that aiohttp offers beyond its low-level server (routes, middlewares, access
logs).
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Iterator
from typing import Final, NoReturn

from aiohttp import web
from aiohttp.http import HttpVersion10, HttpVersion11
from aiohttp.http_exceptions import LineTooLong

from durable_streamsd.core.control import turned_away
from durable_streamsd.core.control_bodies import BODY_BYTES_MAX as CONTROL_BODY_BYTES_MAX
from durable_streamsd.core.message import Frame, Request, Response
from durable_streamsd.core.paths import STREAM_ROOT
from durable_streamsd.core.problems import Code, Problem
from durable_streamsd.core.router import barred_of, dispatch
from durable_streamsd.edge.proxies import Client, retold
from durable_streamsd.exchange import Exchange
from durable_streamsd.express.connection import PROGRESS_BYTES, SMALL_BODY_BYTES
from durable_streamsd.express.head import CHUNKED, Head, Refused, judge_head
from durable_streamsd.metrics.tally import Tally
from durable_streamsd.services import SERVER, Services, address_of, cut_off, host_of

__all__ = ["General"]

_RESERVED = (STREAM_ROOT + b"__ds/").decode("ascii")

log = logging.getLogger(__name__)


class _End:
    """What an outbox ends with when not with a `Response`."""


_FINISHED: Final = _End()
_ABORTED: Final = _End()


class TaskExchange(Exchange):
    """An exchange whose sinks hand over to the task that runs `next`."""

    __slots__ = ("_outbox", "_ready", "last", "streaming", "tally")

    def __init__(self, services: Services, tally: Tally) -> None:
        super().__init__(services)
        self.tally = tally
        self.last = False
        self.streaming = False
        self._outbox: deque[Response | Frame | _End] = deque()
        self._ready = asyncio.Event()

    async def next(self) -> Response | Frame | _End:
        """What to do next; being asked means that everything before is written."""
        while not self._outbox:
            self._ready.clear()
            self.drained()
            if not self._outbox:
                await self._ready.wait()
        return self._outbox.popleft()

    def _put(self, item: Response | Frame | _End) -> None:
        self._outbox.append(item)
        self._ready.set()

    def respond(self, response: Response, last: bool = False) -> None:
        self.last = self.last or last
        self._put(response)

    def start(self, response: Response) -> None:
        self.streaming = True
        self._put(response)

    def write(self, frame: Frame) -> bool:
        self._put(frame)
        return False

    def finish(self) -> None:
        self._put(_FINISHED)

    def abort(self) -> None:
        self._put(_ABORTED)


def tally_of(request: web.BaseRequest, services: Services) -> Tally:
    """What counts a request, from here on."""
    peer = address_of(request.transport)
    return Tally(services.counts.operations, peer, log=services.settings.access_log)


class Claim:
    """A task's share of the allowance for large bodies."""

    def __init__(self, services: Services) -> None:
        self._bodies = services.bodies
        self._granted = asyncio.Event()
        self.size_bytes = 0

    async def take(self, size_bytes: int) -> None:
        """Wait for a share. `release` undoes it, also when this was cancelled."""
        self.size_bytes = size_bytes
        if self._bodies.take(size_bytes, self):
            self._granted.set()
        await self._granted.wait()

    def granted(self) -> None:
        self._granted.set()

    def release(self) -> None:
        """Give back the share, or the place in the queue for it."""
        if self._granted.is_set():
            self._bodies.give_back(self.size_bytes)
        elif self.size_bytes:
            self._bodies.give_up(self)


def _lane_fields(request: web.BaseRequest, services: Services) -> Iterator[tuple[str, str]]:
    """What this lane adds to the fields of every answer."""
    yield "Server", SERVER
    origin = request.headers.get("Origin", "").encode("utf-8", "surrogateescape")
    if origin in services.front.origins:
        yield "Access-Control-Allow-Origin", origin.decode("ascii")


def _is_for_stream(head: Head) -> bool:
    """Whether a request's body is data; there is no other that has to be large."""
    return head.target.startswith(STREAM_ROOT) and not head.target.startswith(STREAM_ROOT + b"__ds")


class Protocol(web.RequestHandler):
    """aiohttp's connection, counted with the others, half-closable, and with our error answers."""

    __slots__ = ("_services", "half_closed", "known")

    def __init__(self, lane: "General", services: Services) -> None:
        settings = services.settings
        super().__init__(
            lane,
            loop=asyncio.get_running_loop(),
            keepalive_timeout=settings.idle_timeout_s,
            lingering_time=settings.linger_timeout_s,
            max_line_size=settings.head_bytes_max,
            max_field_size=settings.head_bytes_max,
            max_headers=settings.head_fields_max,
            access_log=None,  # type: ignore[arg-type]  # None is how aiohttp turns it off
            auto_decompress=False,  # a body is stored as it was sent
            logger=log,
        )
        self._services = services
        self.half_closed = False
        self.known = False
        """Whether a whole head has come."""

    @property
    def _idle(self) -> bool:
        """Whether the connection waits for a request (or for its end)."""
        waiter = self._waiter
        return waiter is not None and not waiter.done()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        services = self._services
        refusal = services.connections.enter(self, host_of(transport))
        super().connection_made(transport)
        self.set_write_buffer(services.settings.write_buffer_bytes_max)
        if refusal is not None and self.transport is not None:
            self.transport.write(services.context.problem(refusal).encode(services.clock.last))
            self.force_close()

    def set_write_buffer(self, high: int) -> None:
        """From how many unsent bytes on `drain` waits."""
        if self.transport is not None and not self.transport.is_closing():
            self.transport.set_write_buffer_limits(high)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._services.connections.leave(self)
        super().connection_lost(exc)

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio allows it
        """Keep the connection open for answers to what has arrived as a whole."""
        request = self._current_request
        if self._idle or (request is not None and not request.content.is_eof()):
            return False
        self.half_closed = True
        self.close()
        return True

    @property
    def stranger(self) -> bool:
        """Whether it is open and has not sent a whole head yet."""
        return not self.known and self.transport is not None

    @property
    def idle(self) -> bool:
        """Whether it is open and nothing is asked or answered."""
        return self._idle and self.transport is not None

    def evict(self) -> None:
        """Make room for another connection."""
        if self.stranger:
            self.abort()
        self.force_close()

    def abort(self) -> None:
        """Go now."""
        if self.transport is not None:
            cut_off(self.transport)

    def drain(self) -> None:
        """The daemon stops: go, unless a request is being received or answered.

        (That one's answer says that it is the last. `close` would drop the rest of its body.)
        """
        if self._idle:
            self.force_close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what aiohttp found wrong, in our form."""
        if isinstance(exc, ConnectionError) or request.writer.output_size > 0:
            raise ConnectionError("nothing true can be answered any more")
        code = Code.BAD_REQUEST
        if isinstance(exc, LineTooLong) or "Too many headers" in str(exc):  # no class of its own
            code = Code.HEADERS_TOO_LARGE
        elif status != 400:
            log.error("the task of a request failed", exc_info=exc)
            code = Code.INTERNAL_ERROR
        problem = self._services.context.problem(code)
        if request.method == "UNKNOWN":  # aiohttp's word for what could not be parsed
            tally = tally_of(request, self._services)
            tally.answered(problem.status, len(problem.body or b""))
            tally.ended()
        # aiohttp takes a request that it could not parse for HTTP/1.0, where closing goes unsaid.
        fields = _lane_fields(request, self._services)
        headers = [*problem.fields(), *fields, ("Connection", "close")]
        answer = web.Response(status=problem.status, headers=headers, body=problem.body)
        answer.force_close()
        return answer


class General(web.Server):
    """Makes connections; a listening socket's protocol factory, or `express.lane`'s."""

    def __init__(self, services: Services) -> None:
        super().__init__(self._handle, handler_cancellation=True)
        self._services = services

    def __call__(self) -> web.RequestHandler:
        return Protocol(self, self._services)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        services = self._services
        claim = Claim(services)
        exchange = TaskExchange(services, tally_of(request, services))
        try:
            if isinstance(request.protocol, Protocol):
                request.protocol.known = True
            head = self._head_of(request)
            exchange.tally.is_for(head.method, head.target)
            client = self._client_of(head, request)
            if client is not None:
                exchange.tally.is_from(client.address)
            body = await self._body_of(request, head, claim)
            exchange.tally.begun(len(body))
            message = self._message(head, body, request)
            if client is not None:
                retold(message, client)
            if services.front.busy:
                problem = self._rate_refusal(head, request)
                if problem is not None:
                    refusal = self._failed(problem, request).for_method(head.method)
                    return await self._send(refusal, request, False, exchange)
            # aiohttp takes a chunked body's trailers for headers of the request behind it.
            exchange.last = head.length == CHUNKED
            exchange.run(dispatch(message, services.context))
            del message, body, head  # an event stream must not keep them
            return await self._relay(exchange, request)
        except Refused as refused:
            return await self._send(self._failed(refused.problem, request), request, True, exchange)
        finally:
            # Cancelled because the connection is lost, or all said: either way nothing is left.
            exchange.cancel()
            exchange.tally.ended()
            claim.release()

    def _message(self, head: Head, body: bytes, request: web.BaseRequest) -> Request:
        path, _, query = head.target.partition(b"?")
        peer = address_of(request.transport)
        return Request(head.method, path, query, head.headers, body, request.scheme, peer)

    def _client_of(self, head: Head, request: web.BaseRequest) -> Client | None:
        """Who asked, if it is a trusted proxy that says so."""
        proxies = self._services.front.proxies
        if request.transport is None or not proxies.trusts(host_of(request.transport)):
            return None
        return proxies.client(head.headers, host_of(request.transport))

    def _failed(self, problem: Problem, request: web.BaseRequest) -> Response:
        """The answer to what is refused here, in the shape of its route."""
        if request.raw_path.startswith(_RESERVED):
            return turned_away(problem, self._services.context)
        return self._services.context.failed(problem)

    def _rate_refusal(self, head: Head, request: web.BaseRequest) -> Problem | None:
        """Count a request, or why it comes too soon after others."""
        if request.transport is None:
            return None
        services = self._services
        address = host_of(request.transport)
        return services.front.refusal(head.target, head.headers, address, services.context.gate)

    def _head_of(self, request: web.BaseRequest) -> Head:
        settings = self._services.settings
        head = Head()
        head.method = request.method
        if request.version not in (HttpVersion10, HttpVersion11):
            raise Refused(Code.HTTP_VERSION)
        head.http_11 = request.version == HttpVersion11
        head.on_url(request.raw_path.encode("utf-8", "surrogateescape"))
        size = len(head.target)
        for name, value in request.raw_headers:
            size += len(name) + len(value) + 4
            head.on_header(name, value.lstrip(b" \t"))
        if size > settings.head_bytes_max or len(request.raw_headers) > settings.head_fields_max:
            raise Refused(Code.HEADERS_TOO_LARGE)
        judge_head(head)
        return head

    async def _body_of(self, request: web.BaseRequest, head: Head, claim: Claim) -> bytes:
        """The whole body. One that is too large, or of somebody who may not send it, is read on and
        dropped, so that the answer to it reaches a client that is still sending."""
        settings = self._services.settings
        content = request.content
        large = head.length == CHUNKED or head.length > SMALL_BODY_BYTES
        context = self._services.context
        barred = barred_of(head.method, head.target, head.headers, context) if large else None
        most = settings.body_bytes_max
        if not _is_for_stream(head):
            most = min(most, CONTROL_BODY_BYTES_MAX)
        too_large = barred is not None or head.length > most
        protocol = request.protocol
        if isinstance(protocol, Protocol) and protocol.half_closed and not content.is_eof():
            raise Refused(Code.BAD_REQUEST)
        if head.expects_100 and not content.is_eof():
            if too_large:
                raise self._refused(barred, head, request)
            if request.transport is not None:
                request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if head.length > SMALL_BODY_BYTES and not too_large:
            await claim.take(head.length)
        body = bytearray()
        received = 0
        while not content.at_eof() and received <= settings.discard_bytes_max:
            due = received + PROGRESS_BYTES
            try:
                async with asyncio.timeout(settings.body_timeout_s):
                    while received < due and (piece := await content.readany()):
                        received += len(piece)
                        if not too_large:
                            body += piece
                            too_large = len(body) > most
            except TimeoutError:
                self._services.counts.refusals.hit("body_timeout_s")
                raise Refused(Code.REQUEST_TIMEOUT) from None
            except web.RequestPayloadError:
                raise Refused(Code.BAD_REQUEST) from None
            if len(body) > SMALL_BODY_BYTES and not too_large and not claim.size_bytes:
                await claim.take(most)
        if too_large:
            raise self._refused(barred, head, request)
        return bytes(body)

    def _refused(self, barred: Problem | None, head: Head, request: web.BaseRequest) -> Refused:
        """What is told of a body that was not kept; it counts as much as one that is."""
        too_soon = self._rate_refusal(head, request)
        return Refused(too_soon or barred or Code.BODY_TOO_LARGE)

    async def _relay(self, exchange: TaskExchange, request: web.BaseRequest) -> web.StreamResponse:
        """Write what the exchange puts out, until it is over."""
        first = await exchange.next()
        if not isinstance(first, Response):
            self._cut(request)
        if not exchange.streaming:
            return await self._send(first, request, exchange.last, exchange)
        stream = self._aiohttp_response(first, exchange.last, request)
        exchange.tally.started(first.status)
        await self._in_time(stream.prepare(request), request)
        chunked = request.version == HttpVersion11
        while isinstance(item := await exchange.next(), Frame):
            await self._write_frame(item, chunked, exchange, request)
            del item  # the next one may be long in coming
        if item is _ABORTED:
            self._cut(request)
        await self._in_time(stream.write_eof(), request)
        if self._services.context.draining:
            stream.force_close()
        return stream

    async def _write_frame(
        self, frame: Frame, chunked: bool, exchange: TaskExchange, request: web.BaseRequest
    ) -> None:
        transport = request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError
        self._begin_write(frame.size, exchange, request)
        exchange.tally.sent(frame.size)
        transport.write(frame.chunked if chunked else frame.plain)
        await self._in_time(request.writer.drain(), request)
        self._end_write(exchange, request)

    async def _send(
        self,
        response: Response,
        request: web.BaseRequest,
        last: bool,
        exchange: TaskExchange,
    ) -> web.StreamResponse:
        body = response.body or b""
        answer = self._aiohttp_response(response, last, request)
        exchange.tally.answered(response.status, len(body))
        await self._in_time(answer.prepare(request), request)
        self._begin_write(len(body), exchange, request)
        await self._in_time(answer.write_eof(body), request)
        await self._in_time(request.writer.drain(), request)
        self._end_write(exchange, request)
        return answer

    def _begin_write(self, size: int, exchange: TaskExchange, request: web.BaseRequest) -> None:
        """So many bytes follow. A share of them is held until the socket's buffer is empty."""
        exchange.fit(size)
        if exchange.share and isinstance(request.protocol, Protocol):
            request.protocol.set_write_buffer(0)

    def _end_write(self, exchange: TaskExchange, request: web.BaseRequest) -> None:
        if exchange.share:
            exchange.give_back()
            if isinstance(request.protocol, Protocol):
                high = self._services.settings.write_buffer_bytes_max
                request.protocol.set_write_buffer(high)

    def _aiohttp_response(
        self, response: Response, last: bool, request: web.BaseRequest
    ) -> web.StreamResponse:
        headers = [*response.fields(), *_lane_fields(request, self._services)]
        answer = web.StreamResponse(status=response.status, headers=headers)
        if response.body is not None:
            answer.content_length = len(response.body)
        if last or self._services.context.draining:
            answer.force_close()
        return answer

    async def _in_time(self, step: Awaitable[object], request: web.BaseRequest) -> None:
        """Await a write, but not for ever: cut off a reader that takes nothing."""
        counts = self._services.counts
        counts.lagging += 1  # for as long as it takes: most often, until the next line
        try:
            async with asyncio.timeout(self._services.settings.write_timeout_s):
                await step
        except TimeoutError:
            counts.refusals.hit("write_timeout_s")
            self._cut(request)
        finally:
            counts.lagging -= 1

    def _cut(self, request: web.BaseRequest) -> NoReturn:
        if request.transport is not None:
            cut_off(request.transport)
        raise ConnectionResetError
