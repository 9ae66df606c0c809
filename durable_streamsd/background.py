"""Performs the effects of a coroutine that no request waits for: what `exchange` is to a request.

Only those effects that are about the store; there is no socket here. The coroutine runs within the
task that awaits `perform`, so it may also be cancelled there: that closes it, as losing the
connection does to a request's.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from durable_streamsd.core.effects import Durable, Effect, Offload, Resident, Room
from durable_streamsd.services import Services
from storage.errors import CommitError

__all__ = ["perform"]

T = TypeVar("T")


class _Waiter:
    """A task that waits for one effect."""

    def __init__(self) -> None:
        self.future: asyncio.Future[object] = asyncio.get_running_loop().create_future()

    def resume(self, result: object) -> None:
        """It has happened. A task that was cancelled meanwhile is let be."""
        if not self.future.done():
            self.future.set_result(result)

    def fail(self, error: Exception) -> None:
        """It will not happen."""
        if not self.future.done():
            self.future.set_exception(error)

    def settled(self, error: CommitError | None) -> None:
        """A batch is durable, or never will be."""
        if error is None:
            self.resume(None)
        else:
            self.fail(error)


async def perform(coroutine: Coroutine[Effect[Any], Any, T], services: Services) -> T:
    """Run a coroutine of effects to its end; its result, or what it raises."""
    result: object = None
    error: Exception | None = None
    try:
        while True:
            effect = coroutine.send(result) if error is None else coroutine.throw(error)
            result = error = None
            waiter = _Waiter()
            _begin(effect, waiter, services)
            try:
                result = await waiter.future
            except Exception as failure:
                error = failure
    except StopIteration as end:
        value: T = end.value
        return value
    finally:
        coroutine.close()


def _begin(effect: Effect[Any], waiter: _Waiter, services: Services) -> None:
    match effect:
        case Durable():
            effect.batch.waiters.append(waiter.settled)
            services.committer.kick()
        case Resident():
            if services.loader.look_up(effect.path, waiter):
                waiter.resume(None)
        case Offload():
            services.workers.submit(effect.call, waiter)
        case Room():
            services.room.wait(waiter)
        case _:
            raise TypeError(f"not an effect of the store: {effect!r}")
