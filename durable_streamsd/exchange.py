"""Drives the handler of one request: performs the effects it yields, hands its answer to a lane.

    lane --run(coroutine)--> Exchange --send/throw--> handler (core)
         <--respond, start, write, finish, abort--

A lane subclasses `Exchange` with its sinks and calls `drained` and `cancel`. Everything here runs
on the loop's thread.

Invariants:
- one effect is pending at a time, and `_coroutine` is None as soon as the handler has ended or was
  cancelled: whatever comes back late (a thread's result, a batch's outcome) then falls on deaf ears
- an error in a handler, or in a sink, ends this exchange and goes no further
- a handler that ends before its stream started was told nothing about; one that ends after it in
  any way but its own has its connection cut, so that no client takes the end for a regular one

A large answer has a share of the memory for all of them (`Hold`, `services.Answers`). The lane says
how large it came out (`fit`) and gives it back when the socket's buffer was emptied (`give_back`).

Cancelling (`cancel`, when the connection is lost) closes the coroutine. That leaves behind: an
accepted append, whose outcome is told to nobody; a running thread, whose result is dropped; and an
entry in a waiting list, which does nothing when its turn comes.

Left out: what is in a request or an answer (core), and how either looks on a socket (the lanes).
"""

import logging
from collections.abc import Coroutine
from typing import Any

from durable_streamsd.core.effects import (
    Durable,
    Effect,
    Follower,
    Hold,
    Offload,
    Resident,
    Room,
    Send,
    StartStream,
    StreamBroken,
    Wake,
)
from durable_streamsd.core.message import Frame, Response
from durable_streamsd.core.problems import Code
from durable_streamsd.core.snapshot import SMALL_ANSWER_BYTES
from durable_streamsd.hub import Group
from durable_streamsd.services import Services
from durable_streamsd.wheel import Timed, ticks_of
from storage.errors import CommitError

__all__ = ["Exchange", "Handler"]

Handler = Coroutine[Effect[Any], Any, Response | None]

log = logging.getLogger(__name__)


class Exchange(Timed):
    """One request being answered, or a connection that answers one after the other."""

    __slots__ = ("_coroutine", "_pending", "_started", "group", "services", "share")

    def __init__(self, services: Services) -> None:
        super().__init__()
        self.services = services
        self.group: Group | None = None  # the hub's
        self.share = 0  # of the memory for large answers, in bytes
        self._coroutine: Handler | None = None
        self._pending: Effect[Any] | None = None
        self._started = False

    # ---- what a lane calls

    def run(self, coroutine: Handler) -> None:
        """Start a handler. A sink may be called before this returns."""
        self._coroutine = coroutine
        self._started = False
        self._advance(coroutine, None, None)

    def drained(self) -> None:
        """The socket's buffer is below its limit again."""
        if type(self._pending) is Send:
            self.resume(None)

    def cancel(self) -> None:
        """The connection is lost: nobody is there to be answered."""
        coroutine, self._coroutine = self._coroutine, None
        if type(self._pending) is Hold:
            self.services.answers.give_up(self)
        self._pending = None
        self.services.hub.leave(self)
        self.services.wheel.forget(self)
        if coroutine is not None:
            try:
                coroutine.close()
            except Exception:
                log.exception("a handler failed while it was being cancelled")
        self.give_back()

    def fit(self, size: int) -> None:
        """What is about to be sent has `size` bytes: correct the share, if there is one."""
        if size <= SMALL_ANSWER_BYTES:
            size = 0
        if self.share and size != self.share:
            self.services.answers.give_back(self.share - size)
            self.share = size

    def give_back(self) -> None:
        """Nothing large is on its way to the client any more."""
        if self.share:
            self.services.answers.give_back(self.share)
            self.share = 0

    # ---- what a lane provides

    def respond(self, response: Response, last: bool = False) -> None:
        """Send the whole answer; the exchange is over. `last`: and so is the connection."""
        raise NotImplementedError

    def start(self, response: Response) -> None:
        """Send the head of an event stream."""
        raise NotImplementedError

    def write(self, frame: Frame) -> bool:
        """Send a frame. False: the socket's buffer is full, and `drained` will be called."""
        raise NotImplementedError

    def finish(self) -> None:
        """End the event stream regularly; the exchange is over."""
        raise NotImplementedError

    def abort(self) -> None:
        """Cut the connection, as nothing that could be sent would be true; the exchange is over."""
        raise NotImplementedError

    # ---- how the world comes back

    def resume(self, result: object) -> None:
        """The pending effect has its result."""
        if self._coroutine is not None:
            self._advance(self._coroutine, result, None)

    def fail(self, error: Exception) -> None:
        """The pending effect has failed."""
        if self._coroutine is not None:
            self._advance(self._coroutine, None, error)

    def settled(self, error: CommitError | None) -> None:
        """The batch that the handler waits for is durable, or never will be."""
        if self._coroutine is not None:
            self._advance(self._coroutine, None, error)

    def may_send(self, size: int) -> None:
        """The share of a large answer is set aside."""
        self.share = size
        self.resume(None)

    def woken(self) -> None:
        """The hub has news of the stream, or the daemon drains."""
        wake = self._pending
        if type(wake) is not Wake:
            return
        if wake.follower is not None:
            try:
                frame = wake.follower.next_frame()
                if frame is not None:
                    self._sent_to(wake.follower, wake, frame)
                    return
            except Exception:
                self.crashed()
                return
        if wake.due:
            self.resume(True)
        elif self.services.context.draining or wake.revoked:
            self.resume(False)
        else:
            self.services.hub.register(self, wake.stream)

    def _sent_to(self, follower: Follower, wake: Wake, frame: Frame) -> None:
        """Send a frame without the handler, which goes on waiting for what comes after it."""
        self._count(frame)
        if self.write(frame):
            wake.offset = follower.seen
            self.services.hub.register(self, wake.stream)
            if wake.due:  # the frame did not have everything
                self.services.hub.leave(self)
                self.resume(True)
            return
        self._pending = Send(frame)
        self.services.wheel.arm(self, ticks_of(self.services.settings.write_timeout_s))

    def _count(self, frame: Frame) -> None:
        counts = self.services.counts
        counts.events += 1
        counts.event_bytes += frame.size

    def on_deadline(self) -> None:
        """A wait has lasted as long as it may. (The deadline of one that is over is ignored.)"""
        if type(self._pending) is Wake:
            self.services.hub.leave(self)
            self.resume(False)
        elif type(self._pending) is Send:
            self.services.counts.refusals.hit("write_timeout_s")
            self.cancel()
            self.abort()

    # ---- the handler's turn

    def _advance(self, coroutine: Handler, result: object, error: Exception | None) -> None:
        """Let the handler run to its next wait, or to its end."""
        try:
            while True:
                effect = coroutine.send(result) if error is None else coroutine.throw(error)
                self._pending = effect
                result = error = None
                if type(effect) is Durable:  # first, because it ends nearly every append
                    effect.batch.waiters.append(self.settled)
                    self.services.committer.kick()
                    return
                if type(effect) is Wake:
                    result = self._wait_for_news(effect)
                    if result is None:
                        return
                elif not self._perform(effect):
                    return
        except StopIteration as end:
            response: Response | None = end.value
        except StreamBroken:
            self.cancel()
            self.abort()
            return
        except Exception:
            self.crashed()
            return
        self._coroutine = self._pending = None
        self._started = False
        try:
            if response is not None:
                self.respond(response)
            else:
                self.finish()
        except Exception:
            self.crashed(told=True)

    def _wait_for_news(self, wake: Wake) -> bool | None:
        """What `wake` comes to, if that is known already. First register, then compare."""
        hub = self.services.hub
        if self.share:
            self.give_back()  # nothing came of what it was taken for
        hub.register(self, wake.stream)
        if wake.due or self.services.context.draining:
            hub.leave(self)
            return wake.due
        self.services.wheel.arm(self, ticks_of(wake.timeout_s))
        return None

    def _perform(self, effect: Effect[Any]) -> bool:
        """Begin any other effect. True when it is over already."""
        services = self.services
        match effect:
            case Send():
                self._count(effect.frame)
                if self.write(effect.frame):
                    return True
                services.wheel.arm(self, ticks_of(services.settings.write_timeout_s))
            case StartStream():
                self._started = True
                self.start(effect.response)
                return True
            case Hold():
                size = max(
                    effect.size_bytes,
                    min(effect.message_bytes, services.settings.body_bytes_max),
                )
                self.give_back()
                if services.answers.take(size, self):
                    self.share = size
                    return True
            case Resident():
                return services.loader.look_up(effect.path, self)
            case Offload():
                services.workers.submit(effect.call, self)
            case Room():
                services.room.wait(self)
            case _:
                raise TypeError(f"not an effect: {effect!r}")
        return False

    def crashed(self, told: bool = False) -> None:
        """A bug, ours: say so in the log, and to the client if it was `told` nothing yet."""
        log.exception("the handler of a request failed")
        told = told or self._started
        self.cancel()
        if told:
            self.abort()
        else:
            self.respond(self.services.context.problem(Code.INTERNAL_ERROR), last=True)
