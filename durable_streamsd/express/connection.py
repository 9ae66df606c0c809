"""One connection of the express lane: HTTP/1.1 by hand, without a task per request.

    HEAD --> BODY --> BUSY --answered--> HEAD ...
     |        |        |
     |        +--------+-- refused, or answered for the last time --> LINGER --> CLOSED
     +-- foreign --> general lane

A connection answers one request at a time, so it is its own `Exchange`. What arrives meanwhile
stays in `_buffer`; when that grows too long the socket is not read. Requests on one connection are
therefore answered in order, and see each other's effects.

Invariants:
- a request reaches the core only with its whole body; one that breaks off leaves nothing behind
- nothing is read while the buffer is above its limit, nothing is answered while the socket's own
  buffer is: what a client does not take costs one answer (or one SSE frame) at most, and all large
  ones together no more than their allowance: while a share of that is held, the socket's buffer
  counts as full until it is empty
- the one deadline means, by phase: HEAD idle, or a head that does not end, or an answer that is not
  taken; BODY no progress; BUSY what the handler waits for; LINGER and CLOSED patience
- a connection is given to the general lane only between requests, all answers written, with every
  byte from the foreign request on

A request whose head was here before, and which the core can answer at once, runs through
`data_received`, `_dispatch`, `settled` and `respond` and nothing else.

Left out: parsing (`head`, `body`); what to answer (core); TLS (`edge.tls_connection`).
"""

import asyncio
from time import monotonic
from typing import TYPE_CHECKING, Final, cast

from durable_streamsd.core.message import Frame, Request, Response
from durable_streamsd.core.problems import Code, Problem
from durable_streamsd.core.router import dispatch, failure
from durable_streamsd.exchange import Exchange
from durable_streamsd.express.body import Body, body_of
from durable_streamsd.express.head import CHUNKED, Head, Refused
from durable_streamsd.metrics.operations import Operation
from durable_streamsd.services import address_of, cut_off, host_of
from storage.errors import CommitError

if TYPE_CHECKING:
    from durable_streamsd.express.lane import Lane

__all__ = ["Connection"]

HEAD: Final = 0
BODY: Final = 1
BUSY: Final = 2
LINGER: Final = 3
CLOSED: Final = 4

COPIED_BODY_BYTES_MAX = 65_536
"""Up to this, joining head and body is cheaper than two buffers to send."""
SMALL_BODY_BYTES = 65_536
"""Up to this, a body is covered by `connections_max`; above, by the allowance for all bodies."""
PROGRESS_BYTES = 65_536
"""What a client has to send of a body within `body_timeout_s`, and to take of a large answer within
`write_timeout_s`."""

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_LAST_CHUNK = b"0\r\n\r\n"


class Connection(Exchange, asyncio.Protocol):
    """See the module."""

    __slots__ = (
        "_asked_bytes",
        "_began_s",
        "_body",
        "_buffer",
        "_claiming",
        "_clock",
        "_deferred",
        "_eof",
        "_head",
        "_head_began",
        "_http_11",
        "_keep_alive",
        "_lane",
        "_operation",
        "_peer",
        "_phase",
        "_progress_due",
        "_pumping",
        "_reading_paused",
        "_share",
        "_start",
        "_transport",
        "_unsent",
        "_weight",
        "_writing_paused",
    )

    _transport: asyncio.Transport

    def __init__(self, lane: "Lane") -> None:
        super().__init__(lane.services)
        self._lane = lane
        self._clock = lane.services.clock
        self._phase = HEAD
        self._peer = ""
        # what was received: `_buffer` from `_start` on was not looked at yet
        self._buffer = b""
        self._start = 0
        self._eof = False
        self._reading_paused = False
        self._writing_paused = False
        self._unsent = 0
        self._pumping = False
        # the request that is being received or answered
        self._head_began = False
        self._head: Head | None = None
        self._body: Body | None = None
        self._progress_due = 0
        self._claiming = False
        self._share = 0  # of the allowance for bodies, in bytes
        self._http_11: bool | None = None  # nor of any request before
        self._keep_alive = True
        self._deferred: Response | None = None  # until what it rests on is durable
        self._operation = lane.services.counts.operations.unread
        # of a request that is measured: for how many it stands, when it began, its body's size
        self._weight = 0
        self._began_s = 0.0
        self._asked_bytes = 0

    # ---- the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast(asyncio.Transport, transport)
        transport.set_write_buffer_limits(high=self.services.settings.write_buffer_bytes_max)
        self._peer = address_of(transport)
        refusal = self.services.connections.enter(self, host_of(transport))
        if refusal is not None:
            # Without lingering: that would keep what there is too much of.
            self.respond(self.services.context.problem(refusal), last=True)
        else:
            self.services.wheel.arm(self, self._lane.idle_ticks)

    def data_received(self, data: bytes) -> None:
        if self._phase == HEAD and not self._buffer and not self._writing_paused:
            # The common case, in one piece: a request whose like was here before.
            end = data.find(b"\r\n\r\n") + 4
            head = self._lane.heads.get(data[:end])
            if head is not None and len(data) == end + head.length:
                self._http_11 = head.http_11
                self._keep_alive = head.keep_alive
                self._dispatch(head, data[end:])
                return
        elif self._phase >= LINGER:
            self._discard(len(data))
            return
        self._buffer = self._buffer[self._start :] + data if self._buffer else data
        self._start = 0
        if self._phase == BUSY or self._writing_paused or self._claiming:
            if len(self._buffer) > self.services.settings.read_ahead_bytes_max:
                self._pause_reading()
        else:
            self._pump()

    def eof_received(self) -> bool:
        self._eof = True
        if self._phase == LINGER:
            self._shut()
        elif self._phase < BUSY and not self._writing_paused and not self._claiming:
            self._broke_off()
        return True  # what was asked before is still answered

    def pause_writing(self) -> None:
        self._writing_paused = True

    def resume_writing(self) -> None:
        self._writing_paused = False
        if self.share:
            self._taken()
        if self._phase == BUSY:
            self.drained()
        elif self._phase < BUSY and not self._claiming:
            if self._phase == HEAD and not self._head_began:
                self.services.wheel.arm(self, self._lane.idle_ticks)
            self._pump()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._phase == BUSY:
            self._count_lost()
        self._phase = CLOSED
        self._deferred = None
        self.services.connections.leave(self)
        self._release_body()
        self.cancel()
        self._buffer = b""

    # ---- receiving

    def _pump(self) -> None:
        """Go through what was received until more is needed or an answer is awaited."""
        self._pumping = True
        try:
            while self._start < len(self._buffer) and not self._writing_paused:
                if self._phase == HEAD:
                    if not self._take_head():
                        break
                elif self._phase == BODY and not self._claiming:
                    self._take_body()
                else:
                    break
        except Refused as refused:
            self._refuse(refused.problem)
        finally:
            self._pumping = False
        if self._start >= len(self._buffer):
            self._buffer = b""
            self._start = 0
        if self._phase < BUSY and not self._writing_paused and not self._claiming:
            if self._eof:
                self._broke_off()
            elif self._reading_paused:
                self._resume_reading()

    def _take_head(self) -> bool:
        """Take a request's head, and its body too if that is here. False: more is needed."""
        data = self._buffer
        while data.startswith(b"\r\n", self._start):
            self._start += 2  # blank lines before a request are let be (RFC 9112, 2.2)
        start = self._start
        end = data.find(b"\r\n\r\n", start) + 4
        if end < 4 or end - start > self.services.settings.head_bytes_max:
            self._await_head(data, start)
            return False
        raw = data[start:end]
        head = self._lane.heads.get(raw) or self._lane.parse(raw)
        self._head_began = False
        if not head.served:
            self._hand_over()
            return False
        self._http_11 = head.http_11
        self._keep_alive = head.keep_alive
        length = head.length
        if 0 <= length <= len(data) - end and length <= self.services.settings.body_bytes_max:
            self._start = end + length
            self._dispatch(head, data[end : end + length])
        else:
            self._start = end
            self._begin_body(head)
        return True

    def _await_head(self, data: bytes, start: int) -> None:
        """A head's end is not here yet; maybe it never will be."""
        size = len(data) - start
        if size > self.services.settings.head_bytes_max:
            one_line = data.find(b"\r\n", start, start + self.services.settings.head_bytes_max) < 0
            raise Refused(Code.TARGET_TOO_LONG if one_line else Code.HEADERS_TOO_LARGE)
        if data.find(b"\n\n", start) >= 0:
            raise Refused(Code.BAD_REQUEST)  # bare line feeds: to its sender, this head has ended
        if size and not self._head_began:
            self._head_began = True
            self.services.wheel.arm(self, self._lane.head_ticks)

    def _begin_body(self, head: Head) -> None:
        settings = self.services.settings
        self._head = head
        large = head.length == CHUNKED or head.length > SMALL_BODY_BYTES
        # One that leads to nothing anyhow gets no memory; it is dropped as if it were too large.
        barred = self._lane.barred(head) if large else None
        self._body = body = body_of(head.length, 0 if barred else settings.body_bytes_max)
        self._phase = BODY
        if body.too_large and head.expects_100:
            raise self._refusal(head)  # nobody is sending it yet
        if head.length > SMALL_BODY_BYTES and not body.too_large:
            self._claim(body)
        if not self._claiming:
            self._await_body()

    def _await_body(self) -> None:
        assert self._head is not None
        assert self._body is not None
        if self._head.expects_100 and not self._body.received and self._start == len(self._buffer):
            self._transport.write(_CONTINUE)
        self._progress_due = self._body.received + PROGRESS_BYTES
        self.services.wheel.arm(self, self._lane.body_ticks)

    def _take_body(self) -> None:
        head, body = self._head, self._body
        assert head is not None
        assert body is not None
        self._start = body.feed(self._buffer, self._start)
        if body.done:
            if body.too_large:
                raise self._refusal(head)
            self._head = self._body = None
            self._dispatch(head, bytes(body.data))
        elif body.too_large:
            if body.received > self.services.settings.discard_bytes_max:
                raise self._refusal(head)
        elif len(body.data) > SMALL_BODY_BYTES and not self._share:
            self._claim(body)
        if body.received >= self._progress_due and self._phase == BODY:
            self._progress_due = body.received + PROGRESS_BYTES
            self.services.wheel.arm(self, self._lane.body_ticks)

    def _claim(self, body: Body) -> None:
        """Set aside memory for a body that is not small, or wait for it without reading on."""
        self._share = body.reserve_bytes
        if not self.services.bodies.take(self._share, self):
            self._claiming = True
            self._pause_reading()

    def granted(self) -> None:
        """The memory for the body is set aside."""
        self._claiming = False
        self._await_body()
        self._pump()

    def _release_body(self) -> None:
        self._head = self._body = None
        if self._claiming:
            self._claiming = False
            self.services.bodies.give_up(self)
        elif self._share:
            self.services.bodies.give_back(self._share)
        self._share = 0

    def _dispatch(self, head: Head, body: bytes) -> None:
        self._phase = BUSY
        operation = self._operation = head.operation
        operation.left -= 1
        if not operation.left:
            self._weight = operation.sample()
            self._began_s = monotonic()
            self._asked_bytes = len(body)
        if head.direct is not None:
            try:
                answer = head.direct.attempt(body, self.services.context)
            except Exception:
                self.crashed()
                return
            if answer is not None:
                self._deferred = answer
                if answer.rests_on is None:
                    self.settled(None)
                else:
                    answer.rests_on.waiters.append(self.settled)
                    self.services.committer.kick()
                return
        self.run(dispatch(self._request(head, body), self.services.context))

    def _refusal(self, head: Head) -> Refused:
        """What is told of a body that was not kept."""
        return Refused(self._lane.barred(head) or Code.BODY_TOO_LARGE)

    def _request(self, head: Head, body: bytes) -> Request:
        path, _, query = head.target.partition(b"?")
        scheme = self._lane.scheme
        return Request(head.method, path, query, head.headers, body, scheme, self._peer)

    def _hand_over(self) -> None:
        """Give the connection to the general lane, from the request at `_start` on."""
        data, self._buffer = self._buffer[self._start :], b""
        self._phase = CLOSED
        if self._reading_paused:
            self._resume_reading()
        self.services.wheel.forget(self)
        self._lane.hand_over(self, self._transport, data, self._eof)

    def _broke_off(self) -> None:
        """The client sends no more, and nothing is being answered."""
        if self._phase == BODY or self._buffer:
            self._refuse(Problem(Code.BAD_REQUEST))
        else:
            self._shut()

    def _pause_reading(self) -> None:
        if not self._reading_paused and not self._eof:
            self._reading_paused = True
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        self._reading_paused = False
        if not self._eof and not self._transport.is_closing():
            self._transport.resume_reading()

    # ---- answering

    def settled(self, error: CommitError | None) -> None:
        response = self._deferred
        if response is None:
            super().settled(error)
            return
        self._deferred = None
        try:
            self.respond(response if error is None else failure(error, self.services.context))
        except Exception:
            self.crashed(told=True)

    def respond(self, response: Response, last: bool = False) -> None:
        keep = self._keep_alive and not last and not self.services.context.draining
        clock = self._clock
        lines = clock.last if not keep else clock.keep_11 if self._http_11 else clock.keep_10
        body = response.body
        self._operation.statuses[response.status] += 1
        if self._weight:
            self._measured(response)
        if body is not None and len(body) > COPIED_BODY_BYTES_MAX:
            self._write_large(len(body), response.encode_head(lines), body)
        else:
            if self.share:
                self.give_back()
            self._transport.write(response.encode(lines))
        self._answered(keep)

    def start(self, response: Response) -> None:
        clock = self._clock
        if not self._http_11:
            self._keep_alive = False  # only the connection's end can end the body
            lines = clock.last
        else:
            lines = clock.stream if self._keep_alive else clock.stream_last
        self._operation.statuses[response.status] += 1
        if self._weight:
            self._measured(response)
        self._transport.write(response.encode_head(lines))

    def write(self, frame: Frame) -> bool:
        data = frame.chunked if self._http_11 else frame.plain
        if self.share:
            self._write_large(frame.size, data)
        else:
            self._transport.write(data)
        return not self._writing_paused

    def _write_large(self, size: int, *data: bytes | memoryview) -> None:
        """Write, and hold the share until all of it was taken: at once, or `resume_writing`."""
        self.fit(size)
        if self.share:
            # The transport keeps what it has not written as a whole, down to the last byte.
            self._transport.set_write_buffer_limits(high=0)
        self._transport.writelines(data)
        self._unsent = self._transport.get_write_buffer_size()
        if self.share and not self._writing_paused:
            self._taken()

    def _taken(self) -> None:
        """The client, or its kernel, has all of a large answer."""
        self.give_back()
        if not self._transport.is_closing():
            self._transport.set_write_buffer_limits(self.services.settings.write_buffer_bytes_max)

    def finish(self) -> None:
        if self._http_11:
            self._transport.write(_LAST_CHUNK)
        self._answered(self._keep_alive and not self.services.context.draining)

    def abort(self) -> None:
        if self._phase == BUSY:
            self._count_lost()
        self._phase = CLOSED
        self._deferred = None
        cut_off(self._transport)

    def _answered(self, keep: bool) -> None:
        """An answer was handed to the transport as a whole."""
        if self._share:
            self._release_body()
        if not keep:
            self._end()
            return
        self._phase = HEAD
        lane = self._lane
        self.services.wheel.arm(self, lane.write_ticks if self._writing_paused else lane.idle_ticks)
        if not self._pumping and (self._buffer or self._eof or self._reading_paused):
            self._pump()

    def _refuse(self, problem: Problem) -> None:
        """Answer that the request is no good, and end the connection with it."""
        operation = self._head.operation if self._head is not None else None
        self._release_body()
        answer = self.services.context.failed(problem)
        operation = operation or self.services.counts.operations.unread
        operation.statuses[answer.status] += 1
        self._transport.write(answer.encode(self._clock.last))
        self._end(linger=True)

    # ---- counting

    def _measured(self, response: Response) -> None:
        weight, self._weight = self._weight, 0
        size = 0 if response.body is None else len(response.body)
        self._operation.measured(response.status, self._began_s, weight, self._asked_bytes, size)

    def _count_lost(self) -> None:
        """What was being answered ends with its connection."""
        if not self._started:
            self._operation.broken += 1

    @property
    def answering(self) -> Operation | None:
        """What is being answered."""
        return self._operation if self._phase == BUSY else None

    @property
    def lagging(self) -> bool:
        """Whether the client has not taken what was written."""
        return self._writing_paused

    # ---- ending

    @property
    def stranger(self) -> bool:
        """Whether it is open and has not sent a whole head yet."""
        return self._phase == HEAD and self._http_11 is None

    @property
    def idle(self) -> bool:
        """Whether it is open and nothing is asked or answered, or it lingers behind its answer."""
        if self._phase == LINGER:
            transport = self._transport
            return not (transport.is_closing() or transport.get_write_buffer_size())
        return self._phase == HEAD and not self._writing_paused

    def evict(self) -> None:
        """Make room for another connection."""
        if self.stranger or self._phase == LINGER:
            self.abort()
        else:
            self._shut()

    def drain(self) -> None:
        """The daemon stops: go, unless a request is being received or answered."""
        if self._phase == HEAD and not self._buffer:
            self._shut()

    def on_deadline(self) -> None:
        if self._writing_paused and self._progressed():
            self.services.wheel.arm(self, self._lane.write_ticks)
        elif self._phase == BUSY:
            super().on_deadline()
        elif self._phase == CLOSED or self._writing_paused:
            if self._writing_paused:
                self.services.counts.refusals.hit("write_timeout_s")
            self.abort()
        elif self._phase == LINGER or (self._phase == HEAD and not self._head_began):
            self._shut()
        elif not self._claiming:
            late = "head_timeout_s" if self._phase == HEAD else "body_timeout_s"
            self.services.counts.refusals.hit(late)
            self._refuse(Problem(Code.REQUEST_TIMEOUT))

    def _progressed(self) -> bool:
        """Whether the client is slow, but takes what is sent."""
        unsent = self._transport.get_write_buffer_size()
        taken = self._unsent - unsent
        self._unsent = unsent
        return taken >= PROGRESS_BYTES

    def _end(self, linger: bool = False) -> None:
        """No more answers. Closing over unread bytes would take the last one from the client."""
        unread = linger or self._start < len(self._buffer)
        self._buffer = b""
        self._start = 0
        if not unread or self._eof or self._transport.is_closing():
            self._shut()
            return
        self._phase = LINGER  # where `_start` counts what is dropped
        self._transport.write_eof()
        if self._reading_paused:
            self._resume_reading()
        self.services.wheel.arm(self, self._lane.linger_ticks)

    def _discard(self, size: int) -> None:
        self._start += size
        if self._start > self.services.settings.discard_bytes_max:
            self._shut()

    def _shut(self) -> None:
        """Close once everything is written, if the client takes it in time."""
        self._phase = CLOSED
        self._transport.close()
        self.services.wheel.arm(self, self._lane.write_ticks)
