"""So many subscriptions are served at once, each by one task; the others wait, first come first.

A subscription is in here once: while its task runs it is not queued again, and whoever wants it
served after that is told when it ends (`on_end`).
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from durable_streamsd.subscriptions.model import Subscription

__all__ = ["Pool"]


class Pool:
    """On the loop's thread. `serve` is the task's coroutine, and does not raise."""

    def __init__(
        self,
        tasks_max: int,
        serve: Callable[[Subscription], Coroutine[Any, Any, None]],
        on_end: Callable[[Subscription], None],
    ) -> None:
        self._tasks_max = tasks_max
        self._serve = serve
        self._on_end = on_end
        self._queue: dict[Subscription, None] = {}
        self._tasks: dict[Subscription, asyncio.Task[None]] = {}

    def __contains__(self, subscription: Subscription) -> bool:
        return subscription in self._tasks

    def add(self, subscription: Subscription) -> None:
        """Serve it when it is its turn. One that is being served, or queued, is let be."""
        if subscription in self._tasks:
            return
        self._queue[subscription] = None
        self._fill()

    def cancel(self, subscription: Subscription) -> None:
        """Cut its task short, if there is one."""
        task = self._tasks.get(subscription)
        if task is not None:
            task.cancel()

    async def stop(self) -> None:
        """Cancel everything, and wait until it has ended."""
        self._queue.clear()
        self._tasks_max = 0
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _fill(self) -> None:
        while self._queue and len(self._tasks) < self._tasks_max:
            subscription = next(iter(self._queue))
            del self._queue[subscription]
            task = asyncio.get_running_loop().create_task(self._serve(subscription))
            self._tasks[subscription] = task
            task.add_done_callback(lambda _, served=subscription: self._ended(served))  # type: ignore[misc]

    def _ended(self, subscription: Subscription) -> None:
        del self._tasks[subscription]
        if self._tasks_max:
            self._on_end(subscription)
            self._fill()
