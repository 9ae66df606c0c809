"""Once a second: streams that hold more than they are to keep are found in a thread, and cut.

One look at a time. What a look finds is accepted on the loop, as any other change is.
"""

import logging
from typing import Any

from durable_streamsd.services import Services
from storage.errors import StorageError
from storage.retention import DueCuts

__all__ = ["Retainer"]

log = logging.getLogger(__name__)


class Retainer:
    """Looks for due cuts; on the loop's thread, the look itself aside."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._due: DueCuts | None = None

    def look(self) -> None:
        """Begin a look, unless one is under way."""
        store = self._services.store
        if self._due is None and not store.latched:
            self._due = store.due_cuts(store.now_ms())
            self._services.workers.submit(self._due.run, self)

    def resume(self, result: Any) -> None:
        """A look ended: `result` is the cuts."""
        due, self._due = self._due, None
        assert due is not None
        try:
            self._services.store.retain(due, result)
        except StorageError as error:
            log.error("streams could not be cut: %s", error)
        self._services.committer.kick()

    def fail(self, error: Exception) -> None:
        """A look failed: the next one is in a second."""
        self._due = None
        log.error("what streams are to be cut could not be found out: %s", error)
