"""Somebody who was recognised: what they may do, and for how long that holds.

A `Caller` may be kept with a parsed head or a live read. It holds until its time is over or its
`Source` is dead, which is when its token or key was taken away; whoever keeps one asks again each
time, which costs two look-ups.
"""

from collections.abc import Callable

from durable_streamsd.auth.scopes import Right, Scopes

__all__ = ["Caller", "Source"]


class Source:
    """What recognition rests on: one token of the file, or one key. Once dead it stays dead."""

    __slots__ = ("live",)

    def __init__(self) -> None:
        self.live = True


class Caller:
    """See the module. `expires_ms` is since 1970; None: at no time."""

    __slots__ = ("account", "expires_ms", "scopes", "source", "token_id")

    def __init__(
        self,
        scopes: Scopes,
        source: Source,
        expires_ms: int | None = None,
        token_id: bytes = b"",
        account: str = "",
    ) -> None:
        self.scopes = scopes
        self.source = source
        self.expires_ms = expires_ms
        self.token_id = token_id
        """Of the token in the file that this rests on, if it is one."""
        self.account = account
        """Whom limits count requests for; empty: nobody who has a name."""

    def holds(self, now_ms: Callable[[], int]) -> bool:
        """Whether the caller is still to be taken for what they were."""
        return self.source.live and (self.expires_ms is None or now_ms() < self.expires_ms)

    def left_s(self, now_ms: Callable[[], int], most_s: float) -> float:
        """For how many seconds that may go on, but `most_s`; 0 when it is over."""
        if not self.source.live:
            return 0.0
        if self.expires_ms is None:
            return most_s
        return min(most_s, max(0.0, (self.expires_ms - now_ms()) / 1_000))

    def may(self, right: Right, path: bytes) -> bool:
        """Whether a stream, by its parsed path, is theirs to do this with."""
        return bool(self.scopes.rights(path) & right)
