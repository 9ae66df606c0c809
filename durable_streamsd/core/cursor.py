"""Cursors: what keeps a CDN from serving one cached live answer for ever (protocol 10.1).

A cursor is the number of 20 s intervals since 2024-10-09T00:00:00Z. A client that sends a cursor
which the clock has not passed gets a greater one, by 1 to 3,600 s. That jitter is drawn per
client *cursor*, not per client: clients that sent the same cursor get the same answer, so that
they still share one encoded response here and one cache key in a CDN.
"""

from typing import Final

__all__ = ["INTERVAL_MS", "current", "following", "parse_cursor"]

INTERVAL_MS: Final = 20_000
EPOCH_MS: Final = 1_728_432_000_000
JITTER_S_MAX: Final = 3_600
CURSOR_DIGITS_MAX: Final = 15


def parse_cursor(value: bytes) -> int | None:
    """A client's cursor, or None for junk, which is ignored."""
    if value.isdigit() and len(value) <= CURSOR_DIGITS_MAX:
        return int(value)
    return None


def current(now_ms: int) -> int:
    """The cursor of this moment, for clients that are behind it."""
    return max(0, (now_ms - EPOCH_MS) // INTERVAL_MS)


def following(client: int | None, now_ms: int, salt: int) -> int:
    """The cursor to answer with: the current one, or one strictly greater than the client's.

    `salt` is a random integer of this process; it makes the jitter unpredictable, not different
    from call to call.
    """
    now = current(now_ms)
    if client is None or client < now:
        return now
    jitter_s = 1 + hash((salt, client)) % JITTER_S_MAX
    return client + -(-jitter_s * 1_000 // INTERVAL_MS)
