"""The benchmark tool works. No figure is asserted: what a machine does in a second is no test."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from daemon import ROOT

BENCH_SECONDS_MAX = 120


def test_a_quick_run_reports_every_scenario(tmp_path: Path) -> None:
    """`python -m bench --quick` measures the daemon, checks what it read, and exits with 0."""
    report = tmp_path / "report.json"
    command = [sys.executable, "-m", "bench", "--quick", "--json", str(report)]
    command += ["--scenario", "append-small", "--scenario", "fanout"]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=BENCH_SECONDS_MAX)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # the servers it started, too
        output, _ = process.communicate()
        raise AssertionError(f"it did not end within {BENCH_SECONDS_MAX} s:\n{output}") from None
    assert process.returncode == 0, output
    result = json.loads(report.read_text())
    assert [scenario["name"] for scenario in result["scenarios"]] == ["append-small", "fanout"]
    for scenario in result["scenarios"]:
        (outcome,) = scenario["outcomes"]
        assert outcome["error"] is None
        assert len(outcome["rounds"]) == scenario["sizes"]["rounds"]
        for one in outcome["rounds"]:
            assert one["operations"] > 0
            assert one["server"]["rss_bytes"] > 0
            assert "each once, in order" in one["checked"]
    assert "appends/s" in output
    assert "deliveries/s" in output
    assert "ERROR" not in output
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
