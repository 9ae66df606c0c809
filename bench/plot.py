"""A picture of a report: how other servers compare with this daemon, scenario by scenario.

A bar begins at this daemon and reaches to the other server, on a logarithmic axis: to the left is
worse, to the right better. What the figures are is written beside the bars. It looks right on a
light and on a dark page. Also: `python -m bench.plot REPORT.json PICTURE`, without measuring.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from bench.report import Outcome, Report, ScenarioReport, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["SUFFIXES", "can_plot", "plot"]

SUFFIXES = (".svg", ".png")

GREY = "#848d97"
"""Legible on white and on black."""
COLOURS = ("#2f81f7", "#db6d28", "#8957e5", "#2ea043", "#bf4b8a")
"""Of the other servers, in their order."""
YARDSTICK_COLOUR = "#b5bac1"

WIDTH_INCHES = 9.0
ROW_INCHES = 0.17
MARGIN_INCHES = 1.5
ROOM_SHARE = 0.22
"""Of the width between the longest bars; on both sides, for their figures."""


def can_plot() -> bool:
    """Whether what draws is installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        return False
    return True


def plot(report: Report, path: Path) -> None:
    """Draw the report into a file, whose suffix says the format, one of `SUFFIXES`."""
    import matplotlib
    from matplotlib.figure import Figure

    scenarios = [one for one in report.scenarios if one.outcomes[0].goodness(one.merit)]
    names = [one.name for one in report.targets[1:]]
    rows = sum(len(one.everything) for one in scenarios)
    with matplotlib.rc_context(
        {
            "font.size": 8.5,
            "font.family": "sans-serif",
            "text.color": GREY,
            "axes.labelcolor": GREY,
            "axes.edgecolor": GREY,
            "xtick.color": GREY,
            "ytick.color": GREY,
            "svg.fonttype": "none",
            "svg.hashsalt": "durable-streamsd",
        }
    ):
        figure = Figure((WIDTH_INCHES, MARGIN_INCHES + ROW_INCHES * rows), layout="constrained")
        axes = figure.subplots()
        _draw(axes, scenarios, names)
        figure.suptitle(f"compared with {report.targets[0].name}, which is 1×")
        figure.text(0.01, -0.01, _caption(report), va="top", fontsize=6.5, linespacing=1.4)
        # Without a date in the file, the same report gives the same file.
        metadata = {"Date": None} if path.suffix == ".svg" else {}
        figure.savefig(path, transparent=True, dpi=160, bbox_inches="tight", metadata=metadata)


def _draw(axes: "Axes", scenarios: list[ScenarioReport], names: list[str]) -> None:
    at = 0.0
    ticks: list[float] = []
    labels: list[str] = []
    ratios = [1.0]
    for scenario in scenarios:
        first, *others = scenario.everything
        ticks.append(at + (len(others) - 1) / 2 if others else at)
        own = shown(first.value(scenario.merit))
        labels.append(f"{scenario.name}\n{own} {scenario.unit}")
        for other in others:
            colour = COLOURS[names.index(other.name) % len(COLOURS)] if other.durability else None
            ratios.append(_bar(axes, at, other, scenario, colour or YARDSTICK_COLOUR))
            at += 1
        at += 0.8 if others else 1.8
    axes.axvline(1, color=GREY, linewidth=1)
    axes.set_yticks(ticks, labels)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(at - 0.8, -0.8)
    axes.set_xscale("log")
    room = (max(ratios) / min(ratios) * 10) ** ROOM_SHARE
    axes.set_xlim(min(ratios) / room, max(ratios) * room)
    axes.set_xlabel("← worse          better →")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}×")
    axes.grid(axis="x", color=GREY, alpha=0.25, linewidth=0.5)
    axes.set_axisbelow(True)
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)


def _bar(axes: "Axes", at: float, other: Outcome, scenario: ScenarioReport, colour: str) -> float:
    """Draw one bar with its figure, and return its ratio; 1 if there is none."""
    ratio = scenario.ratio(other)
    if ratio is None:
        said = "failed" if other.error else "not compared"
        axes.annotate(
            f"{other.name}: {said}",
            (1, at),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontstyle="italic",
        )
        return 1.0
    axes.barh(at, ratio - 1, left=1, height=0.8, color=colour)
    own_promise, promise = scenario.outcomes[0].durability, other.durability
    differs = f" (durability {promise.value})" if promise and promise != own_promise else ""
    axes.annotate(
        f"{other.name}{differs} {shown(other.value(scenario.merit))}",
        (ratio, at),
        (-4 if ratio < 1 else 4, 0),
        textcoords="offset points",
        ha="right" if ratio < 1 else "left",
        va="center",
    )
    return ratio


def _caption(report: Report) -> str:
    machine = str(report.machine).replace("\n", "; ")
    versions = ", ".join(f"{one.name} {one.version}" for one in report.targets)
    lines = [f"{report.started[:10]}, {versions}", *machine.split("; ")]
    if report.quick:
        lines.insert(0, "A QUICK RUN: THESE FIGURES MEAN NOTHING")
    return "\n".join(lines)


def main() -> None:
    """Draw a report that was written before."""
    if len(sys.argv) != 3 or Path(sys.argv[2]).suffix not in SUFFIXES:
        sys.exit("usage: python -m bench.plot REPORT.json PICTURE.svg|PICTURE.png")
    report = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Report)
    plot(report, Path(sys.argv[2]))


if __name__ == "__main__":
    main()
