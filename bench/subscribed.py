"""What subscriptions cost those who append: the same appends with none, and with very many.

The subscriptions are pull-wake, each with a pattern of its own. Measured three times, each time on
a fresh server: without any, with patterns that match none of the streams appended to, and with
patterns of which one matches each of those streams. Its worker never claims: the first append
announces the work, and all others find it announced. The operation is the append of the second.
"""

import msgspec

from bench.measure import Figure, LoadError, Measurement
from bench.turns import NotComparable, Turn
from bench.wire import Client

__all__ = ["SUBSCRIPTIONS", "SUBSCRIPTIONS_QUICK", "subscribed_turn"]

SUBSCRIPTIONS = 10_000
SUBSCRIPTIONS_QUICK = 200
WAKE_STREAM = "wakes"


def subscribed_turn(turn: Turn) -> Measurement:
    """Take a turn in the scenario `subscribed`. Raises NotComparable if it takes no patterns."""
    alone = _measure(turn, "alone")
    beside = _measure(turn, "beside")
    watched = _measure(turn, "watched")
    figures = (
        Figure("appends without subscriptions", alone.rate, "1/s"),
        Figure("ratio: beside them, to without", beside.rate / alone.rate, ""),
        Figure("appends that are subscribed to", watched.rate, "1/s"),
        Figure("ratio: subscribed to, to without", watched.rate / alone.rate, ""),
        Figure("CPU of an append without", alone.server_cpu_us_per_operation or 0, "µs"),
        Figure("CPU of one subscribed to", watched.server_cpu_us_per_operation or 0, "µs"),
    )
    checked = f"{alone.checked}; {beside.checked}; {watched.checked}"
    return msgspec.structs.replace(beside, figures=figures, checked=checked)


def _measure(turn: Turn, phase: str) -> Measurement:
    folder = turn.folder / phase
    folder.mkdir()
    part = msgspec.structs.replace(turn, folder=folder)
    with turn.target.running(folder) as server:
        if phase != "alone":
            client = Client(server.url)
            client.create(WAKE_STREAM, "application/json")
            for number in range(turn.sizes.streams):
                watched = phase == "watched" and number < turn.sizes.connections
                pattern = f"{phase}-{number}" if watched else f"others/{number}/**"
                try:
                    client.subscribe(f"worker-{number}", pattern, WAKE_STREAM)
                except LoadError as error:
                    if number:
                        raise
                    raise NotComparable(f"it takes no such subscriptions: {error}") from None
            client.end()
        return part.measure(server, phase)
