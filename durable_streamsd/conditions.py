"""Says in the log, once each time, that the store has latched, is full, or has space again."""

import logging

from durable_streamsd.logs import fields
from storage.store import Store

__all__ = ["Conditions"]

log = logging.getLogger(__name__)


class Conditions:
    """What was said last. `look` is called after each batch and once a second."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._latched = store.latched
        self._full = store.full

    def look(self) -> None:
        """Say what has changed."""
        store = self._store
        if store.latched != self._latched:
            self._latched = store.latched
            log.critical(
                "latched: no more writes are taken until a restart; reads go on",
                extra=fields(data_dir=str(store.directory.path)),
            )
        if store.full != self._full:
            self._full = store.full
            if store.full:
                log.error(
                    "the disk is full: data is refused, reads and deletes go on",
                    extra=fields(data_dir=str(store.directory.path)),
                )
            else:
                log.warning("the disk has space again: writing resumes")
