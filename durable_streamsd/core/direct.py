"""Requests that are answered without a coroutine: the common ones, when nothing has to be loaded.

What a head says does not depend on the body, so it is worked out once (`router.direct_of`) and kept
with the parsed head, which a client sends again and again. `Direct.attempt` then either has an
answer, or says that this request is not that simple and has done nothing; the request then goes
through `router.dispatch`, which decides the same way and can wait. Measured: an append costs 5 µs
less like this.

Left out: every refusal. It is not worth a second way.
"""

from typing import TYPE_CHECKING

from durable_streamsd.core.message import Response

if TYPE_CHECKING:
    from durable_streamsd.auth.caller import Caller
    from durable_streamsd.core.context import Context

__all__ = ["Direct"]


class Direct:
    """What a request's head says, and who it is from. `repeats`: it may well come again."""

    __slots__ = ("caller", "repeats")

    def __init__(self, *, repeats: bool, caller: "Caller | None") -> None:
        self.repeats = repeats
        self.caller = caller

    def attempt(self, body: bytes, context: "Context") -> Response | None:
        """The answer to the request with this body; None if `dispatch` has to find it, as when the
        `caller` holds no more.

        If it `rests_on` a batch, it may be told when that is durable.
        """
        raise NotImplementedError
