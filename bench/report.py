"""What the rounds of a scenario say together: a table for people, JSON for programs.

Of every figure the median of the rounds counts; of the rate the lowest and highest round are shown
too. The ratio compares a target's median rate with this daemon's. A target with an error in any
round has no figures, only the error.
"""

from collections.abc import Callable, Sequence
from statistics import median

import msgspec

from bench.machine import Machine
from bench.measure import Measurement, Sizes
from bench.scenarios import Scenario
from bench.targets import Target

__all__ = ["GENERATOR_BUSY_SHARE", "Outcome", "Report", "ScenarioReport", "TargetInfo", "table"]

GENERATOR_BUSY_SHARE = 0.9
"""From here on the generator may be what limits the rate; the report says so."""


class TargetInfo(msgspec.Struct, frozen=True):
    """What is reported about a server."""

    name: str
    version: str
    durability: str

    @classmethod
    def of(cls, target: Target) -> "TargetInfo":
        return cls(target.name, target.version, target.durability)


class Outcome(msgspec.Struct):
    """What one target did in one scenario, round by round."""

    target: str
    rounds: list[Measurement] = msgspec.field(default_factory=list)
    error: str | None = None

    def median(self, figure: Callable[[Measurement], float | None]) -> float | None:
        """Median over the rounds; None after an error or if the figure is not known."""
        values = [value for one in self.rounds if (value := figure(one)) is not None]
        return median(values) if values and self.error is None else None


class ScenarioReport(msgspec.Struct):
    """One scenario; the first outcome is this daemon's."""

    name: str
    operation: str
    sizes: Sizes
    outcomes: list[Outcome]


class Report(msgspec.Struct):
    """Everything, as the JSON file has it."""

    started: str
    quick: bool
    machine: Machine
    targets: list[TargetInfo]
    scenarios: list[ScenarioReport]

    @property
    def failed(self) -> bool:
        return any(one.error for scenario in self.scenarios for one in scenario.outcomes)


def table(scenario: Scenario, report: ScenarioReport) -> str:
    """The scenario's result as lines of text."""
    sizes = report.sizes
    plural = scenario.operation.removesuffix("y") + (
        "ies" if scenario.operation[-1] == "y" else "s"
    )
    rows: list[tuple[str, ...]] = [
        ("", f"{plural}/s", "lowest-highest", "ratio", "p50 ms", "p99 ms")
    ]
    rows[0] += (f"server CPU µs/{scenario.operation}", "server RSS MiB", "generator CPU")
    first = report.outcomes[0]
    rows += [_row(outcome, first) for outcome in report.outcomes]
    lines = [
        f"{scenario.name}: {scenario.summary}",
        f"  {sizes.connections} connections, {sizes.message_bytes} bytes a message, "
        f"{sizes.rounds} rounds of {sizes.measured_seconds:g} s; latency {scenario.latency}",
        *_aligned(rows),
    ]
    for outcome in report.outcomes:
        if outcome.error is not None:
            indented = outcome.error.replace("\n", "\n    ")
            lines.append(f"  ERROR {outcome.target}: {indented}")
        else:
            lines.append(
                f"  checked {outcome.target}, in the last round: {outcome.rounds[-1].checked}"
            )
    lines += [f"  {sentence}" for sentence in _sentences(report.outcomes)]
    return "\n".join(lines)


def _row(outcome: Outcome, first: Outcome) -> tuple[str, ...]:
    rate, own_rate = outcome.median(_rate), first.median(_rate)
    rates = [one.rate for one in outcome.rounds]
    return (
        outcome.target,
        _shown(rate, "{:,.0f}"),
        "-" if rate is None else f"{min(rates):,.0f}-{max(rates):,.0f}",
        "-" if rate is None or own_rate is None else f"{rate / own_rate:.3f}",
        _shown(outcome.median(lambda one: one.latency_p50_us / 1e3), "{:.2f}"),
        _shown(outcome.median(lambda one: one.latency_p99_us / 1e3), "{:.2f}"),
        _shown(outcome.median(lambda one: one.server_cpu_us_per_operation), "{:.1f}"),
        _shown(outcome.median(lambda one: one.server.rss_bytes / 2**20 if one.server else None)),
        _shown(outcome.median(lambda one: one.generator_cpu_share), "{:.0%}"),
    )


def _sentences(outcomes: Sequence[Outcome]) -> list[str]:
    """What a reader should not have to work out from the table."""
    own_rate = outcomes[0].median(_rate)
    said = []
    for outcome in outcomes:
        rate, share = outcome.median(_rate), outcome.median(lambda one: one.generator_cpu_share)
        if outcome is not outcomes[0] and rate and own_rate:
            said.append(f"{outcomes[0].target} does {own_rate / rate:.1f} times {outcome.target}")
        if share is not None and share > GENERATOR_BUSY_SHARE:
            said.append(
                f"beware: with {outcome.target} the load generator used {share:.0%} of a core and "
                "may be the limit, not the server"
            )
    return said


def _rate(one: Measurement) -> float:
    return one.rate


def _shown(value: float | None, form: str = "{:.0f}") -> str:
    return "-" if value is None else form.format(value)


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  "
        + row[0].ljust(widths[0])
        + "".join("  " + cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in rows
    ]
