"""The server's two secrets: the webhook signing key and the one that tokens are made with.

They are made when they are first needed, kept in the store, and used only once they are durable:
whoever calls `ensure` waits for its batch first.
"""

import secrets
from functools import partial

from durable_streamsd.subscriptions.rows import SIGNING_KEY, TOKEN_SECRET
from durable_streamsd.subscriptions.signing import Signer, new_private_key
from durable_streamsd.subscriptions.tokens import SECRET_BYTES
from storage.state import Batch
from storage.store import Store

__all__ = ["Keys"]


class Keys:
    """See the module."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._signer: Signer | None = None
        self._token_secret: bytes | None = None
        self._sequence = 0

    def load(self) -> None:
        """Take the secrets that there are from the store. Raises `CorruptData`."""
        private_key = self._store.value(SIGNING_KEY)
        self._signer = None if private_key is None else Signer(private_key)
        self._token_secret = self._store.value(TOKEN_SECRET)

    def ensure(self) -> Batch | None:
        """Make what is missing; the batch to wait for, if there is one. Raises `CommitError`."""
        if self._signer is None or self._token_secret is None:
            private_key, secret = new_private_key(), secrets.token_bytes(SECRET_BYTES)
            forget = partial(self._set, None, None, self._sequence)
            self._store.put_value(SIGNING_KEY, private_key, forget)
            batch = self._store.put_value(TOKEN_SECRET, secret, forget)
            self._set(Signer(private_key), secret, batch.sequence)
        return self._store.resting_on(self._sequence)

    @property
    def signer(self) -> Signer:
        """The signing key; after `ensure`."""
        assert self._signer is not None
        return self._signer

    @property
    def token_secret(self) -> bytes:
        """What tokens are made with; after `ensure`."""
        assert self._token_secret is not None
        return self._token_secret

    def reader_secret(self) -> bytes | None:
        """What tokens for readers are signed with; None before the first `ensure`."""
        return self._token_secret

    def _set(self, signer: Signer | None, token_secret: bytes | None, sequence: int) -> None:
        self._signer, self._token_secret, self._sequence = signer, token_secret, sequence
