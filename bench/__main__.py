"""`python -m bench`: measure this daemon, and others beside it.

The targets take turns within each round, so that whatever else the machine does meets all of
them. One target's error does not stop the others: it is reported in its place, and the exit code
is 1. Codes: 0 everything has a figure, 1 something has an error instead, 2 usage.
"""

import contextlib
import os
import resource
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import FrameType

import click
import msgspec

from bench.machine import NOT_A_DISK, describe
from bench.measure import LoadError, Measurement, Sizes
from bench.plot import SUFFIXES, can_plot, plot
from bench.report import Outcome, Report, ScenarioReport, TargetInfo, table
from bench.scenarios import SCENARIOS, Scenario
from bench.servers import FILES_SPARE, TargetError
from bench.targets import Target, external, node_peer, rust_peer, this_daemon
from bench.turns import NotComparable, Turn

PEERS = {"node": node_peer, "rust": rust_peer}

Measure = Callable[[Path], Measurement]
"""Measures once in an empty folder. Raises LoadError, TargetError or NotComparable."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--scenario",
    "names",
    multiple=True,
    type=click.Choice(list(SCENARIOS)),
    help="What to measure; may be repeated. Default: everything.",
)
@click.option(
    "--target",
    "urls",
    multiple=True,
    metavar="NAME=URL",
    help="Another server that runs already, with its streams below URL; may be repeated.",
)
@click.option(
    "--peer",
    "peers",
    multiple=True,
    type=click.Choice(list(PEERS)),
    help="Another server to start: node, the protocol's reference server (installed from npm), or "
    "rust, a durable-streams-server that is on PATH.",
)
@click.option("--quick", is_flag=True, help="Show within seconds that it works; no real figures.")
@click.option(
    "--json",
    "json_path",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    metavar="FILE",
    help="Also write everything, round by round, to FILE.",
)
@click.option(
    "--plot",
    "plot_path",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    metavar="FILE",
    help="Also draw a picture, SVG or PNG as the suffix of FILE says.",
)
def main(
    names: tuple[str, ...],
    urls: tuple[str, ...],
    peers: tuple[str, ...],
    quick: bool,
    json_path: Path | None,
    plot_path: Path | None,
) -> None:
    """Measure this daemon, and other servers of the protocol beside it.

    Data directories are made below $TMPDIR, or /var/tmp if it is not set: the disk that is there
    is the disk that is measured. Example:

        python -m bench --peer node --scenario append-small
    """
    signal.signal(signal.SIGTERM, _end)  # so that servers are stopped and folders removed
    scenarios = [SCENARIOS[name] for name in dict.fromkeys(names)] or list(SCENARIOS.values())
    for option, path in (("--json", json_path), ("--plot", plot_path)):
        if path is not None and not path.absolute().parent.is_dir():
            raise click.UsageError(f"{option} {path}: its folder does not exist")
    if plot_path is not None:
        _check_plot(plot_path)
    parent = os.environ.get("TMPDIR") or "/var/tmp"
    try:
        data_root = Path(tempfile.mkdtemp(prefix="bench-", dir=parent))
    except OSError as error:
        raise click.ClickException(f"no data directory can be made: {error}") from None
    try:
        targets = _targets(urls, peers)
        _raise_file_limit([_sizes(scenario, quick) for scenario in scenarios])
        report = Report(
            started=datetime.now(UTC).isoformat(timespec="seconds"),
            quick=quick,
            machine=describe(data_root),
            targets=[TargetInfo.of(target) for target in targets],
            scenarios=[],
        )
        click.echo(_heading(report))
        for scenario in scenarios:
            result = _run(scenario, targets, _sizes(scenario, quick), data_root)
            report.scenarios.append(result)
            click.echo("\n" + table(scenario, result))
    except TargetError as error:
        raise click.ClickException(str(error)) from None
    finally:
        shutil.rmtree(data_root, ignore_errors=True)
    if json_path is not None:
        json_path.write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
    if plot_path is not None:
        plot(report, plot_path)
    sys.exit(1 if report.failed else 0)


def _end(_: int, __: FrameType | None) -> None:
    sys.exit(128 + signal.SIGTERM)


def _check_plot(path: Path) -> None:
    """Raises a UsageError now, not after the measurement, if there can be no such picture."""
    if path.suffix not in SUFFIXES:
        raise click.UsageError(f"--plot {path}: give a name with one of {', '.join(SUFFIXES)}")
    if not can_plot():
        raise click.UsageError("--plot needs matplotlib: pip install -e '.[bench]'")


def _sizes(scenario: Scenario, quick: bool) -> Sizes:
    return scenario.quick if quick else scenario.sizes


def _targets(urls: tuple[str, ...], peers: tuple[str, ...]) -> list[Target]:
    """This daemon first, then the others in the order of the table. Raises TargetError."""
    targets = [this_daemon()]
    targets += [PEERS[peer]() for peer in dict.fromkeys(peers)]
    for argument in urls:
        name, equals, url = argument.partition("=")
        if not equals or not name or name in [target.name for target in targets]:
            raise click.UsageError(f"--target {argument}: give NAME=URL, with a NAME of its own")
        try:
            targets.append(external(name, url))
        except TargetError as error:
            raise click.UsageError(f"--target {error}") from None
    return targets


def _raise_file_limit(sizes: list[Sizes]) -> None:
    """Raise the limit of open files, which servers and generator inherit, as far as needed.

    Some servers keep a file open for each stream, so as many more are asked for, but not insisted
    on: a server that cannot have them says so itself.
    """
    needed = max(one.connections for one in sizes) + FILES_SPARE
    wished = needed + max(one.streams for one in sizes)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wished:
        with contextlib.suppress(ValueError, OSError):  # only root may
            resource.setrlimit(resource.RLIMIT_NOFILE, (wished, wished))
            return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise click.ClickException(
            f"{needed} open files are needed, but the limit is {hard}: raise it (ulimit -Hn)"
        )
    if soft != resource.RLIM_INFINITY and soft < wished:
        most = wished if hard == resource.RLIM_INFINITY else min(wished, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _heading(report: Report) -> str:
    lines = [f"{report.started}  {report.machine}"]
    lines += [f"{one.name}: {one.version}; {one.durability.value}" for one in report.targets]
    if report.machine.file_system in NOT_A_DISK:
        lines.append("beware: NOT DURABLE, the data lies in memory; set TMPDIR to a disk")
    if report.quick:
        lines.append("beware: --quick shows that it works, its figures mean nothing")
    return "\n".join(lines)


def _run(scenario: Scenario, targets: list[Target], sizes: Sizes, root: Path) -> ScenarioReport:
    """Measure every target and yardstick in every round; one whose part is over, no more."""
    report = ScenarioReport(
        name=scenario.name,
        summary=scenario.summary,
        operation=scenario.operation,
        merit=scenario.merit,
        sizes=sizes,
        outcomes=[Outcome(target.name, target.durability) for target in targets],
        yardsticks=[Outcome(yardstick.name, None) for yardstick in scenario.yardsticks],
    )

    def conduct(target: Target, folder: Path) -> Measurement:
        return scenario.conduct(Turn(scenario.name, target, sizes, folder))

    measures: list[Measure] = [partial(conduct, target) for target in targets]
    measures += [partial(yardstick.measure, sizes) for yardstick in scenario.yardsticks]
    for number in range(1, sizes.rounds + 1):
        for outcome, measure in zip(report.everything, measures, strict=True):
            if outcome.is_over:
                continue
            _measure(measure, outcome, Path(tempfile.mkdtemp(prefix=f"{scenario.name}-", dir=root)))
            if sys.stderr.isatty() and not outcome.is_over:
                click.echo(
                    f"{scenario.name}, round {number} of {sizes.rounds}, {outcome.name}: "
                    f"{outcome.rounds[-1].rate:,.0f}/s",
                    err=True,
                )
    return report


def _measure(measure: Measure, outcome: Outcome, folder: Path) -> None:
    """Measure once, and note what came of it."""
    try:
        outcome.rounds.append(measure(folder))
    except (LoadError, TargetError) as error:
        outcome.error = str(error)
    except NotComparable as reason:
        outcome.not_comparable = str(reason)


if __name__ == "__main__":
    main(prog_name="python -m bench")
