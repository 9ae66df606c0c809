"""What the whole test suite shares: npm packages, a built release, and what a daemon said when a
test failed."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Generator
from pathlib import Path

import pytest
from daemon import Daemon
from released import Release, build

INTEROP = Path(__file__).resolve().parent / "interop"
NPM_CI_SECONDS_MAX = 300


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """The folder ``tests/interop``, with its npm packages installed as its lock file says."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.fail(
                f"the interoperability tests need {program!r}: install Node.js 20.19 or newer "
                "with npm 10 or newer, and put both on PATH",
                pytrace=False,
            )
    lock = INTEROP / "package-lock.json"
    installed = INTEROP / "node_modules" / ".package-lock.json"
    with lock.open() as mutex:
        fcntl.flock(mutex, fcntl.LOCK_EX)  # parallel test processes install once
        if not installed.exists() or installed.stat().st_mtime < lock.stat().st_mtime:
            result = subprocess.run(
                ["npm", "ci"],
                cwd=INTEROP,
                capture_output=True,
                text=True,
                timeout=NPM_CI_SECONDS_MAX,
            )
            if result.returncode != 0:
                pytest.fail(f"npm ci failed:\n{result.stdout}{result.stderr}", pytrace=False)
    return INTEROP


@pytest.fixture(scope="session")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """Everything that a release offers, built once for all test processes."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    folder = base / "release"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as mutex:
        fcntl.flock(mutex, fcntl.LOCK_EX)
        if (folder / "dist" / "SHA256SUMS").exists():
            return Release(folder / "dist")
        return build(folder / "dist")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Function,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the error output of each daemon that a failed test was given as a fixture."""
    report = yield
    if report.failed:
        for fixture, value in item.funcargs.items():
            if isinstance(value, Daemon):
                report.sections.append((f"fixture {fixture}", value.stderr_tail()))
    return report
