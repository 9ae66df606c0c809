"""A histogram of plain numbers."""

from bisect import bisect_left
from collections.abc import Sequence

__all__ = ["BYTES", "RECORDS", "SECONDS", "Histogram"]

SECONDS = (
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0, 30.0, 60.0,
)  # fmt: skip
BYTES = tuple(64 << (2 * step) for step in range(11))
"""64 B to 64 MiB, each four times the one before."""
RECORDS = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 50_000)


class Histogram:
    """How many values were up to each bound, and their sum; `counts` ends with those above all."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, weight: int = 1) -> None:
        """Count a value that stands for so many like it."""
        self.counts[bisect_left(self.bounds, value)] += weight
        self.sum += value * weight
