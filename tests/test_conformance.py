"""The protocol's own conformance suite, run against the daemon on a real data directory.

Everything the suite has must run and pass, in both lanes.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from daemon import Daemon

SUITE_TESTS = 338
"""How many tests the pinned suite has, with its six for subscriptions."""

LONG_POLL_SECONDS = "2"
"""Two of the suite's tests wait this out, and vitest gives a test 5 s."""

SUITE_SECONDS_MAX = 240


@pytest.mark.parametrize("lane", ["express", "general"])
def test_the_conformance_suite_passes(lane: str, node_modules: Path, tmp_path: Path) -> None:
    """Every test of the suite runs and passes."""
    env = {} if lane == "express" else {"DURABLE_STREAMSD_EXPRESS_LANE": "off"}
    args = ("--long-poll-timeout", LONG_POLL_SECONDS, "--webhook-targets", "loopback")
    with Daemon(tmp_path / "data", *args, env=env) as daemon:
        tests = run_suite(daemon.url, node_modules, tmp_path / "report.json")
    not_run = [name(test) for test in tests if test["status"] not in ("passed", "failed")]
    assert not_run == []
    assert len(tests) == SUITE_TESTS
    failed = [
        f"{name(test)}\n    {first_line(test)}" for test in tests if test["status"] == "failed"
    ]
    assert not failed, f"{len(failed)} tests failed:\n" + "\n".join(failed)


def run_suite(url: str, node_modules: Path, report: Path) -> list[dict[str, object]]:
    """Run the suite against ``url`` and return one entry per test, as vitest reports it."""
    vitest = ["node", "node_modules/vitest/vitest.mjs", "run", "conformance.test.mjs"]
    result = subprocess.run(
        [*vitest, "--reporter=json", f"--outputFile={report}"],
        cwd=node_modules,
        env={**os.environ, "CONFORMANCE_URL": url},
        capture_output=True,
        text=True,
        timeout=SUITE_SECONDS_MAX,
    )
    output = result.stdout + result.stderr
    assert report.exists(), f"vitest wrote no report:\n{output}"
    tests = [
        test
        for file in json.loads(report.read_text())["testResults"]
        for test in file["assertionResults"]
    ]
    # Errors outside any test show in nothing but the exit code.
    all_passed = all(test["status"] == "passed" for test in tests)
    assert result.returncode == 0 or not all_passed, f"vitest failed:\n{output}"
    return tests


def name(test: dict[str, object]) -> str:
    """Name of a test, which begins with that of its outermost group."""
    groups = test["ancestorTitles"]
    assert isinstance(groups, list)
    return " > ".join([*groups, str(test["title"])])


def first_line(test: dict[str, object]) -> str:
    """What a failed test says, without its stack."""
    messages = test["failureMessages"]
    assert isinstance(messages, list)
    return str(messages[0]).partition("\n    at ")[0] if messages else "no message"
