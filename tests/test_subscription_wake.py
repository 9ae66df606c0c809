"""Wakes as values: generations only rise, a wake ends once, retries keep the protocol's pace."""

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from durable_streamsd.subscriptions.rows import decode_wake, encode_wake
from durable_streamsd.subscriptions.wake import (
    RETRY_MS_MAX,
    RETRY_MS_MIN,
    Phase,
    Wake,
    retry_delay_ms,
)


class WakeMachine(RuleBasedStateMachine):
    """Any order in which a daemon may call a wake's transitions."""

    def __init__(self) -> None:
        super().__init__()
        self.wake = Wake()
        self.now_ms = 1_000
        self.over: list[tuple[int, str]] = []
        self.generation = 0

    def end(self, wake: Wake) -> None:
        if self.wake.id:
            self.over.append((self.wake.generation, self.wake.id))
        self.wake = wake

    @precondition(lambda self: self.wake.phase is Phase.IDLE)
    @rule(lease_ms=st.sampled_from([0, 1_000]))
    def issue(self, lease_ms: int) -> None:
        """News, and nobody is at it."""
        due_ms = self.now_ms + lease_ms if lease_ms else 0
        self.wake = self.wake.issued(f"w{self.now_ms}", due_ms)
        assert self.wake.generation == self.generation + 1

    @precondition(lambda self: self.wake.phase is Phase.WOKEN)
    @rule()
    def claim(self) -> None:
        """A worker takes the lease."""
        self.wake = self.wake.claimed("worker", self.now_ms + 1_000)
        assert self.wake.holder == "worker"

    @precondition(lambda self: self.wake.id)
    @rule()
    def extend(self) -> None:
        """A worker lives."""
        self.wake = self.wake.extended(self.now_ms + 1_000)
        assert self.wake.phase in (Phase.WOKEN, Phase.LEASED)

    @precondition(lambda self: self.wake.phase is Phase.WOKEN)
    @rule(fenced=st.booleans())
    def fail(self, fenced: bool) -> None:
        """A delivery does not work."""
        attempts = self.wake.attempts
        failed = self.wake.failed(self.now_ms + 1_000, fenced=fenced)
        if fenced:
            self.end(failed)
        self.wake = failed
        assert self.wake.attempts == attempts + 1

    @precondition(lambda self: self.wake.phase is Phase.FAILED and self.wake.id)
    @rule()
    def resend(self) -> None:
        """The same wake goes out again."""
        before = self.wake
        self.wake = before.resent(self.now_ms + 1_000)
        assert (self.wake.generation, self.wake.id) == (before.generation, before.id)

    @precondition(lambda self: self.wake.id)
    @rule()
    def release(self) -> None:
        """The work is done: failures before it are forgotten."""
        self.end(self.wake.released())
        assert self.wake.attempts == 0

    @precondition(lambda self: self.wake.due_ms)
    @rule()
    def expire(self) -> None:
        """The time is over: how often it failed is not forgotten."""
        attempts = self.wake.attempts
        self.end(self.wake.expired())
        assert self.wake.attempts == attempts

    @rule()
    def time_passes(self) -> None:
        """The clock moves on."""
        self.now_ms += 1

    @invariant()
    def a_wake_that_is_over_stays_over(self) -> None:
        """No request about an earlier wake is let through, and generations never fall."""
        wake = self.wake
        assert wake.generation >= self.generation
        self.generation = wake.generation
        assert not any(wake.is_held(*earlier) for earlier in self.over if earlier[1] != wake.id)
        assert not wake.is_held(wake.generation, "")
        assert wake.is_held(wake.generation, wake.id) is bool(wake.id)
        assert (wake.phase is Phase.IDLE) <= (not wake.id and not wake.due_ms and not wake.holder)
        assert decode_wake(encode_wake(wake)) == wake


TestWakes = WakeMachine.TestCase


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_retries_back_off(attempts: int, chance: float) -> None:
    """From one second, doubled up to a minute, by a fifth more or less (protocol 7.1)."""
    base = min(RETRY_MS_MIN * 2 ** min(attempts - 1, 20), RETRY_MS_MAX)
    assert 0.8 * base - 1 <= retry_delay_ms(attempts, chance) <= 1.2 * base + 1
    assert retry_delay_ms(attempts, 0.5) == base
