"""`python -m bench`: measure this daemon, and others beside it.

The targets take turns within each round, so that whatever else the machine does meets all of
them. One target's error does not stop the others: it is reported in its place, and the exit code
is 1. Codes: 0 everything has a figure, 1 something has an error instead, 2 usage.
"""

import os
import resource
import shutil
import signal
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

import click
import msgspec

from bench.load import measure
from bench.machine import NOT_A_DISK, describe
from bench.measure import Job, LoadError, Measurement, Sizes
from bench.report import Outcome, Report, ScenarioReport, TargetInfo, table
from bench.scenarios import SCENARIOS, Scenario
from bench.targets import Target, TargetError, external, node_peer, this_daemon

FILES_SPARE = 1_000
"""Descriptors that a server or the generator needs, or keeps back, beside its connections."""

PEERS = {"node": node_peer}


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
    help="Another server to install and start: node, the protocol's npm reference server.",
)
@click.option("--quick", is_flag=True, help="Show within seconds that it works; no real figures.")
@click.option(
    "--json",
    "json_path",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    metavar="FILE",
    help="Also write everything, round by round, to FILE.",
)
def main(
    names: tuple[str, ...],
    urls: tuple[str, ...],
    peers: tuple[str, ...],
    quick: bool,
    json_path: Path | None,
) -> None:
    """Measure this daemon, and other servers of the protocol beside it.

    Data directories are made below $TMPDIR, or /var/tmp if it is not set: the disk that is there
    is the disk that is measured. Example:

        python -m bench --peer node --scenario append-small
    """
    signal.signal(signal.SIGTERM, _end)  # so that servers are stopped and folders removed
    scenarios = [SCENARIOS[name] for name in dict.fromkeys(names)] or list(SCENARIOS.values())
    if json_path is not None and not json_path.absolute().parent.is_dir():
        raise click.UsageError(f"--json {json_path}: its folder does not exist")
    parent = os.environ.get("TMPDIR") or "/var/tmp"
    try:
        data_root = Path(tempfile.mkdtemp(prefix="bench-", dir=parent))
    except OSError as error:
        raise click.ClickException(f"no data directory can be made: {error}") from None
    try:
        targets = _targets(urls, peers)
        _raise_file_limit(max(_sizes(scenario, quick).connections for scenario in scenarios))
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
    sys.exit(1 if report.failed else 0)


def _end(_: int, __: FrameType | None) -> None:
    sys.exit(128 + signal.SIGTERM)


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


def _raise_file_limit(connections: int) -> None:
    """Raise the limit of open files, which servers and generator inherit, as far as needed."""
    needed = connections + FILES_SPARE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise click.ClickException(
            f"{needed} open files are needed, but the limit is {hard}: raise it (ulimit -Hn)"
        )
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _heading(report: Report) -> str:
    lines = [f"{report.started}  {report.machine}"]
    lines += [f"{one.name}: {one.version}; {one.durability}" for one in report.targets]
    if report.machine.file_system in NOT_A_DISK:
        lines.append("beware: NOT DURABLE, the data lies in memory; set TMPDIR to a disk")
    if len({one.durability for one in report.targets}) > 1:
        lines.append("beware: these servers may not promise the same durability")
    if report.quick:
        lines.append("beware: --quick shows that it works, its figures mean nothing")
    return "\n".join(lines)


def _run(scenario: Scenario, targets: list[Target], sizes: Sizes, root: Path) -> ScenarioReport:
    """Measure every target in every round; one that had an error takes no further part."""
    outcomes = [Outcome(target.name) for target in targets]
    for number in range(1, sizes.rounds + 1):
        for target, outcome in zip(targets, outcomes, strict=True):
            if outcome.error is not None:
                continue
            try:
                measurement = _measure(scenario, target, sizes, root)
            except (LoadError, TargetError) as error:
                outcome.error = str(error)
                continue
            outcome.rounds.append(measurement)
            if sys.stderr.isatty():
                click.echo(
                    f"{scenario.name}, round {number} of {sizes.rounds}, {target.name}: "
                    f"{measurement.rate:,.0f}/s",
                    err=True,
                )
    return ScenarioReport(scenario.name, scenario.operation, sizes, outcomes)


def _measure(scenario: Scenario, target: Target, sizes: Sizes, root: Path) -> Measurement:
    folder = Path(tempfile.mkdtemp(prefix=f"{scenario.name}-", dir=root))
    with target.running(folder) as server:
        return measure(
            Job(
                scenario=scenario.name,
                sizes=sizes,
                url=server.url,
                run=folder.name,
                server_pid=server.pid,
                data_dir=server.data_dir,
            )
        )


if __name__ == "__main__":
    main(prog_name="python -m bench")
