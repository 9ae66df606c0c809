"""What the rounds of a scenario say together: a table for people, JSON for programs.

Of every figure the median of the rounds counts; of the rate the lowest and highest round are shown
too. The ratio compares a target with this daemon in what the scenario is about, its merit: above 1
is better. A target with an error in any round has no figures, only the error; one that cannot be
compared has none either, but the reason.
"""

from collections.abc import Callable, Sequence
from statistics import median

import msgspec

from bench.machine import Machine
from bench.measure import Measurement, Sizes
from bench.processes import Usage
from bench.scenarios import Scenario
from bench.targets import Durability, Target

__all__ = [
    "GENERATOR_BUSY_SHARE",
    "Outcome",
    "Report",
    "ScenarioReport",
    "TargetInfo",
    "shown",
    "table",
]

GENERATOR_BUSY_SHARE = 0.9
"""From here on the generator may be what limits the rate; the report says so."""


class TargetInfo(msgspec.Struct, frozen=True):
    """What is reported about a server."""

    name: str
    version: str
    durability: Durability

    @classmethod
    def of(cls, target: Target) -> "TargetInfo":
        return cls(target.name, target.version, target.durability)


class Outcome(msgspec.Struct):
    """What one target, or one yardstick, did in one scenario, round by round."""

    name: str
    durability: Durability | None
    """What the target promises; None for a yardstick, which promises nothing."""
    rounds: list[Measurement] = msgspec.field(default_factory=list)
    error: str | None = None
    not_comparable: str | None = None
    """Why it takes no part in this scenario."""

    @property
    def is_over(self) -> bool:
        """No further round is of use."""
        return self.error is not None or self.not_comparable is not None

    def median(self, figure: Callable[[Measurement], float | None]) -> float | None:
        """Median over the rounds; None after an error or if the figure is not known."""
        values = [value for one in self.rounds if (value := figure(one)) is not None]
        return median(values) if values and not self.is_over else None

    def value(self, name: str) -> float | None:
        """Median of a figure with this name: `rate`, `p50` or `p99` in ms, or one of the
        scenario's own."""
        match name:
            case "rate":
                return self.median(lambda one: one.rate)
            case "p50":
                return self.median(lambda one: one.latency_p50_us / 1e3)
            case "p99":
                return self.median(lambda one: one.latency_p99_us / 1e3)
        return self.median(
            lambda one: next((each.value for each in one.figures if each.name == name), None)
        )

    def goodness(self, merit: str) -> float | None:
        """A number of which more is better; None if there is nothing to compare."""
        value = self.value(merit)
        if value is None or value <= 0:
            return None
        return value if merit == "rate" else 1 / value


class ScenarioReport(msgspec.Struct):
    """One scenario; the first outcome is this daemon's."""

    name: str
    summary: str
    operation: str
    merit: str
    sizes: Sizes
    outcomes: list[Outcome]
    yardsticks: list[Outcome]

    @property
    def everything(self) -> list[Outcome]:
        return self.outcomes + self.yardsticks

    @property
    def promises_differ(self) -> bool:
        """Whether the ratios compare servers that do not promise the same."""
        measured = [one for one in self.outcomes if not one.is_over]
        return len({one.durability for one in measured}) > 1

    @property
    def plural(self) -> str:
        """Of the operation."""
        stem = self.operation.removesuffix("y")
        return f"{stem}s" if stem == self.operation else f"{stem}ies"

    @property
    def unit(self) -> str:
        """Of the merit."""
        if self.merit == "rate":
            return f"{self.plural}/s"
        if self.merit in ("p50", "p99"):
            return f"ms {self.merit}"
        rounds = [each for one in self.everything for each in one.rounds]
        units = [each.unit for one in rounds for each in one.figures if each.name == self.merit]
        return f"{units[0]} {self.merit}" if units else self.merit

    def ratio(self, outcome: Outcome) -> float | None:
        """How many times as good as this daemon; None if that is not known."""
        own, other = self.outcomes[0].goodness(self.merit), outcome.goodness(self.merit)
        return other / own if own and other else None


class Report(msgspec.Struct):
    """Everything, as the JSON file has it."""

    started: str
    quick: bool
    machine: Machine
    targets: list[TargetInfo]
    scenarios: list[ScenarioReport]

    @property
    def failed(self) -> bool:
        return any(one.error for scenario in self.scenarios for one in scenario.everything)


def table(scenario: Scenario, report: ScenarioReport) -> str:
    """The scenario's result as lines of text."""
    sizes = report.sizes
    columns: tuple[str, ...] = ("", f"{report.plural}/s", "lowest-highest", "ratio")
    columns += ("p50 ms", "p99 ms", "p99.9 ms", f"CPU µs/{report.operation}")
    columns += ("RSS MiB", "RssAnon MiB", "generator CPU")
    rows = [columns, *(_row(outcome, report) for outcome in report.everything)]
    lines = [f"{scenario.name}: {scenario.summary}", f"  {_said_sizes(sizes)}"]
    latency = f"  latency {scenario.latency}"
    if report.merit != "rate":
        latency += f"; ratio by {report.merit}"
    lines += [latency, *_aligned(rows), *_figures(report.everything)]
    for outcome in report.everything:
        if outcome.error is not None:
            lines.append(f"  ERROR {outcome.name}: " + outcome.error.replace("\n", "\n    "))
        elif outcome.not_comparable is not None:
            lines.append(f"  not comparable: {outcome.name}: {outcome.not_comparable}")
        else:
            lines.append(
                f"  checked {outcome.name}, in the last round: {outcome.rounds[-1].checked}"
            )
    lines += [f"  {sentence}" for sentence in _sentences(report)]
    return "\n".join(lines)


def _said_sizes(sizes: Sizes) -> str:
    said = [_counted(sizes.connections, "connection")]
    if sizes.streams:
        said.append(_counted(sizes.streams, "stream"))
    if sizes.in_flight > 1:
        said.append(f"{sizes.in_flight} requests in flight on each")
    if sizes.messages_per_request > 1:
        said.append(f"{sizes.messages_per_request:,} messages a request")
    if sizes.stored_messages:
        said.append(f"{_counted(sizes.stored_messages, 'message')} stored")
    said.append(f"{sizes.message_bytes:,} bytes a message")
    said.append(_counted(sizes.rounds, "round"))
    if sizes.measured_seconds:
        said[-1] += f" of {sizes.measured_seconds:g} s"
    return ", ".join(said)


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _row(outcome: Outcome, report: ScenarioReport) -> tuple[str, ...]:
    rates = [one.rate for one in outcome.rounds]
    rate = outcome.value("rate")

    def memory(figure: Callable[[Usage], int]) -> str:
        return shown(outcome.median(lambda one: figure(one.server) / 2**20 if one.server else None))

    return (
        outcome.name if outcome.durability else f"({outcome.name})",
        shown(rate),
        "-" if rate is None else f"{shown(min(rates))}-{shown(max(rates))}",
        shown(report.ratio(outcome), "{:.3f}"),
        shown(outcome.value("p50"), "{:.2f}"),
        shown(outcome.value("p99"), "{:.2f}"),
        shown(outcome.median(lambda one: one.latency_p999_us / 1e3), "{:.2f}"),
        shown(outcome.median(lambda one: one.server_cpu_us_per_operation)),
        memory(lambda server: server.rss_bytes),
        memory(lambda server: server.rss_anonymous_bytes),
        shown(outcome.median(lambda one: one.generator_cpu_share), "{:.0%}"),
    )


def _figures(outcomes: Sequence[Outcome]) -> list[str]:
    """The scenario's own figures as lines of text: one row a figure, one column a target."""
    measured = [one for one in outcomes if not one.is_over]
    units = {each.name: each.unit for one in measured for each in one.rounds[-1].figures}
    if not units:
        return []
    rows = [("also", *(one.name for one in measured), "")]
    for name, unit in units.items():
        rows.append((name, *(shown(one.value(name)) for one in measured), unit))
    return _aligned(rows)


def _sentences(report: ScenarioReport) -> list[str]:
    """What a reader should not have to work out from the table."""
    first, *others = report.outcomes
    said = []
    if report.promises_differ:
        promises = ", ".join(
            f"{one.name} {one.durability.value}"
            for one in report.outcomes
            if one.durability and not one.is_over
        )
        said.append(
            f"BEWARE: NOT THE SAME PROMISE, so these ratios compare different work. When an "
            f"append is acknowledged it is: {promises}"
        )
    how = "does" if report.merit == "rate" else f"is, by {report.merit},"
    said += [
        f"{first.name} {how} {shown(1 / ratio)} times {other.name}"
        for other in others
        if (ratio := report.ratio(other)) is not None
    ]
    for outcome in report.everything:
        share = outcome.median(lambda one: one.generator_cpu_share)
        if share is not None and share > GENERATOR_BUSY_SHARE:
            said.append(
                f"beware: with {outcome.name} the load generator used {share:.0%} of a core and "
                "may be the limit, not the server"
            )
    return said


def shown(value: float | None, form: str | None = None) -> str:
    """A number with three digits that count, or whole."""
    if value is None:
        return "-"
    if form is None:
        decimals = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
        form = f"{{:,.{decimals}f}}"
    return form.format(value)


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  "
        + row[0].ljust(widths[0])
        + "".join("  " + cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in rows
    ]
