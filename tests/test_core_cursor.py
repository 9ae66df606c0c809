"""Cursors: intervals, and monotonic progress past what the client sent."""

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from durable_streamsd.core.cursor import INTERVAL_MS, current, following, parse_cursor

NOW_MS = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp() * 1_000)
SALTS = st.integers(0, 2**64 - 1)


def test_intervals_count_from_the_epoch_of_the_protocol() -> None:
    """The cursor is 0 for the first 20 s from 2024-10-09T00:00:00Z, then 1."""
    epoch_ms = int(datetime(2024, 10, 9, tzinfo=UTC).timestamp() * 1_000)
    assert current(epoch_ms) == 0
    assert current(epoch_ms + INTERVAL_MS - 1) == 0
    assert current(epoch_ms + INTERVAL_MS) == 1


def test_a_clock_before_the_epoch_gives_no_negative_cursor() -> None:
    """A machine with a wrong clock still sends decimal digits."""
    assert current(0) == 0


@given(st.integers(0, current(NOW_MS) - 1), SALTS)
def test_clients_behind_the_clock_share_the_current_cursor(client: int, salt: int) -> None:
    """A client whose cursor has passed gets the current one."""
    assert following(client, NOW_MS, salt) == following(None, NOW_MS, salt) == current(NOW_MS)


@given(st.integers(current(NOW_MS), 10**15 - 1), SALTS)
def test_a_cursor_never_stands_still(client: int, salt: int) -> None:
    """A client at or ahead of the clock moves on by 1 to 3,600 s, which is 1 to 180 intervals."""
    assert client < following(client, NOW_MS, salt) <= client + 180


@given(st.integers(current(NOW_MS), 10**15 - 1), SALTS)
def test_clients_with_one_cursor_get_one_answer(client: int, salt: int) -> None:
    """The jitter depends on the cursor sent, so that equal requests still share an answer."""
    assert following(client, NOW_MS, salt) == following(client, NOW_MS, salt)


def test_jitter_is_spread() -> None:
    """Neighbouring cursors do not all move on by the same step."""
    now = current(NOW_MS)
    steps = {following(client, NOW_MS, 1) - client for client in range(now, now + 1_000)}
    assert len(steps) > 100


@given(st.binary(max_size=40))
def test_junk_is_ignored(value: bytes) -> None:
    """A cursor is up to 15 ASCII digits; everything else counts as none."""
    valid = 0 < len(value) <= 15 and all(byte in b"0123456789" for byte in value)
    assert parse_cursor(value) == (int(value) if valid else None)
