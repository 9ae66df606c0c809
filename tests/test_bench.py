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

CHECKED = {
    "append-small": "each once, in order",
    "append-one": "each once, those of a connection in order",
    "append-serial": "each once, in order",
    "append-large": "each once, in order",
    "append-json-batch": "each once, in order",
    "producer": "a repeated append was recognised on each",
    "read-small": "each body compared",
    "read-large": "each byte compared",
    "read-scattered": "each byte compared",
    "mixed": "subscribers were sent the end of theirs",
    "fanout": "each once, in order",
    "fanout-longpoll": "each once, in order",
    "wake-latency": "each once, in order",
    "idle": "one append reached all 20 readers of its stream",
    "slow-readers": "what slow readers were sent was right, too",
    "subscribed": "each once, in order",
    "many-streams": "3,000 streams created",
    "restart": "all that were acknowledged, in order",
}
"""Scenarios, and what each must say that it has checked."""


def test_a_quick_run_reports_every_scenario(tmp_path: Path) -> None:
    """`python -m bench --quick` measures the daemon, checks what it read, and exits with 0."""
    report, picture = tmp_path / "report.json", tmp_path / "picture.svg"
    command = [sys.executable, "-m", "bench", "--quick"]
    command += ["--json", str(report), "--plot", str(picture)]
    for name in CHECKED:
        command += ["--scenario", name]
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
    assert [scenario["name"] for scenario in result["scenarios"]] == list(CHECKED)
    for scenario in result["scenarios"]:
        (outcome,) = scenario["outcomes"]
        assert outcome["error"] is None
        assert len(outcome["rounds"]) == scenario["sizes"]["rounds"]
        for one in outcome["rounds"]:
            assert one["operations"] > 0
            assert one["server"]["rss_bytes"] > 0
            assert CHECKED[scenario["name"]] in one["checked"]
    assert "appends/s" in output
    assert "deliveries/s" in output
    assert "ERROR" not in output
    assert all(name in picture.read_text() for name in CHECKED)
    assert {path.name for path in tmp_path.iterdir()} == {report.name, picture.name}
