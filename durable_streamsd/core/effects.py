"""What a handler may wait for. Awaiting an effect yields it to whoever drives the coroutine.

    coroutine = dispatch(request, context)
    effect = coroutine.send(None)       # the first effect, or StopIteration with the response
    effect = coroutine.send(result)     # resumes with the effect's result
    effect = coroutine.throw(error)     # resumes with an error: see the effect's docstring
    coroutine.close()                   # the connection is lost

A driver performs one effect at a time and resumes the coroutine on the loop's thread, the owner
of the store. It may resume at once, inside the same call (an effect whose condition already
holds), but never re-entrantly from within the coroutine itself.

Ends of a coroutine:

    returns a Response      answer it (StartStream was not performed)
    returns None            after StartStream: end the event stream cleanly (chunked terminator)
    raises StreamBroken     after StartStream: cut the connection, *without* the terminator
    raises anything else    a bug: log it; before StartStream answer
                            `context.problem("internal-error")`, after it cut the connection

`close()` may come while any effect is pending. The driver then drops the effect; handlers undo
what they hold in `finally` clauses, which never await. An append that is waiting for `Durable`
stays accepted: its outcome is merely told to nobody.
"""

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from durable_streamsd.core.message import Frame, Response
from storage.state import Batch, Stream

if TYPE_CHECKING:
    from durable_streamsd.auth.caller import Caller

__all__ = [
    "Durable",
    "Effect",
    "Follower",
    "Hold",
    "Offload",
    "Resident",
    "Room",
    "Send",
    "StartStream",
    "StreamBroken",
    "Wake",
]

T = TypeVar("T")


class StreamBroken(Exception):
    """An event stream cannot go on, and the client must not take this for its regular end."""


class Effect(Generic[T]):
    """Something to wait for, with a result of type `T`."""

    __slots__ = ()

    def __await__(self) -> Generator["Effect[Any]", Any, T]:
        result: T = yield self
        return result


class Durable(Effect[None]):
    """Wait until `batch` is on disk. Throws the `CommitError` when it will not be."""

    __slots__ = ("batch",)

    def __init__(self, batch: Batch) -> None:
        self.batch = batch


class Resident(Effect[None]):
    """Wait until the state behind `path` was loaded and admitted to the store.

    One look-up per path is in flight; those who wait for it resume in the order in which they
    came. The store may evict again before a waiter runs, so the handler asks again in a loop.
    Throws whatever `Store.load` raised.
    """

    __slots__ = ("path",)

    def __init__(self, path: bytes) -> None:
        self.path = path


class Offload(Effect[T]):
    """Run `call` in a worker thread; the result is its result. Throws what `call` raises."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[[], T]) -> None:
        self.call = call


class Room(Effect[None]):
    """Wait until `Store.accepting` holds.

    While any coroutine waits here its connection should not be read. The condition may be gone
    again when the handler resumes, so it asks again in a loop. Throws the `CommitError` that made
    the store refuse writes, if that happens meanwhile.
    """

    __slots__ = ()


class Hold(Effect[None]):
    """Set memory aside for a large answer or event, before its bytes are read.

    `size_bytes` is how large it may become; `message_bytes` as well, if no message in it is cut (a
    message is no larger than a body may be). It resumes when all unsent answers together leave
    room, and when it is this one's turn to keep the loop busy. Whoever waits must hold no bytes.
    The memory is the lane's again when the answer, or the frame that is sent next, was taken.
    """

    __slots__ = ("message_bytes", "size_bytes")

    def __init__(self, size_bytes: int, message_bytes: int = 0) -> None:
        self.size_bytes = size_bytes
        self.message_bytes = message_bytes


class Follower:
    """A reader of an event stream whose common events the driver sends without its handler.

    `seen` is how far in the stream it has been told of.
    """

    __slots__ = ("seen",)

    def __init__(self, seen: int) -> None:
        self.seen = seen

    def next_frame(self) -> Frame | None:
        """The frame with the news, which then counts as sent; None if the handler has to look."""
        raise NotImplementedError


class Wake(Effect[bool | None]):
    """Wait for news about a stream beyond what the handler has seen: its only use of the hub.

    The driver registers the waiter and, *in the same callback*, compares; if any of

        stream.gone                                       deleted or expired, durably
        stream.durable_tail > offset                      data
        stream.durable_closed and not closed_seen         closure

    holds already, it resumes at once. Result: True when woken (one of the three holds), False
    after `timeout_s` seconds, or at once while the daemon drains (`context.draining`).

    With a `follower` the driver may, each time there is news, send the follower's next frame and
    wait on, from where the follower is then. If that fills the socket's buffer it resumes with
    None, when there is room again.

    Whose `caller` was revoked is woken by that, too, with False.
    """

    __slots__ = ("caller", "closed_seen", "follower", "offset", "stream", "timeout_s")

    def __init__(
        self,
        stream: Stream,
        offset: int,
        closed_seen: bool,
        timeout_s: float,
        follower: Follower | None = None,
        caller: "Caller | None" = None,
    ) -> None:
        self.stream = stream
        self.offset = offset
        self.closed_seen = closed_seen
        self.timeout_s = timeout_s
        self.follower = follower
        self.caller = caller

    @property
    def revoked(self) -> bool:
        """Whether the caller's right to wait has ended."""
        return self.caller is not None and not self.caller.source.live

    @property
    def due(self) -> bool:
        """Whether the condition holds now; for the driver, so that it is written down once."""
        stream = self.stream
        return (
            stream.gone
            or stream.durable_tail > self.offset
            or (stream.durable_closed and not self.closed_seen)
        )


class StartStream(Effect[None]):
    """Send the head of an event stream at once; the body follows in chunks (`Send`).

    `response.body` is None. The lane adds `Transfer-Encoding: chunked` (HTTP/1.1).
    """

    __slots__ = ("response",)

    def __init__(self, response: Response) -> None:
        self.response = response


class Send(Effect[None]):
    """Write one frame, and resume when the socket's buffer is below its limit.

    This is what keeps a slow reader from being pushed: the handler reads nothing more until it
    resumes, and then reads on from its own offset.
    """

    __slots__ = ("frame",)

    def __init__(self, frame: Frame) -> None:
        self.frame = frame
