"""A kill run: a workload, a daemon that is killed again and again, and the checker at the end.

    PYTHONPATH=tests python -m kills.run --kills 200 --seconds-max 600 --seed 1

The kills are SIGKILL at random moments: under load, during recovery (before the first line of
output), while a segment is made, while the index is written, and of the indexer child alone. The
daemon comes back at the same port with the same directory. At the end the checker compares what
everybody saw with what is there, `verify` must find nothing, and after `reindex` all of that again.

The seed decides which kills come in which order, and what the actors do; not when the system lets
them. A run that fails keeps its directory and prints the command that repeats it.

SIGKILL leaves the page cache, so it says nothing about syncs. With `--power-cuts` (as root) the
data directory is on a file system whose disk stops taking writes at each kill, and which is mounted
again before the next start: then only what was synced is sure to be there.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from daemon import reconnectable_port
from volumes import FailingDisk, failing_disk

from kills.victim import PROGRAM, ROOT, RunFailed, Victim

LOAD, RECOVERY, ROLL, CHECKPOINT, INDEXER = "load", "recovery", "roll", "checkpoint", "indexer"
WEIGHTS = {LOAD: 4, RECOVERY: 3, ROLL: 3, CHECKPOINT: 3, INDEXER: 1}

SETTINGS = {
    "DURABLE_STREAMSD_SEGMENT_BYTES": str(1 << 20),
    "DURABLE_STREAMSD_BODY_BYTES_MAX": str(1 << 19),  # segments hold two bodies at least
    "DURABLE_STREAMSD_READ_BYTES_MAX": str(1 << 17),
    "DURABLE_STREAMSD_TAIL_CACHE_BYTES_MAX": str(1 << 18),
    "DURABLE_STREAMSD_LONG_POLL_TIMEOUT_S": "2",
    "DURABLE_STREAMSD_SSE_LIFETIME_S": "3",
    "DURABLE_STREAMSD_LOG_LEVEL": "warning",
}

DISK_BYTES = 1 << 30
"""Of the file system whose power is cut; twice that of the file under it."""

LIFE_S = (0.1, 1.5)
"""How long the daemon lives under load before it is killed, or before a moment is waited for."""
MOMENT_SECONDS_MAX = 3.0
ROLL_DELAY_S_MAX = 0.004
CHECKPOINT_DELAY_S_MAX = 0.015
RECOVERY_DELAY_S_MAX = 0.03
RECOVERIES_IN_A_ROW_MAX = 3
WORKLOAD_STOP_SECONDS_MAX = 90.0
TOOL_SECONDS_MAX = 600.0


class Run:
    """One run in one directory."""

    def __init__(self, folder: Path, options: argparse.Namespace, disk: FailingDisk | None) -> None:
        self._folder = folder
        self._options = options
        self._rng = random.Random(options.seed)
        self._journals = folder / "journals"
        self._journals.mkdir()
        self.victim = Victim(folder, reconnectable_port(), SETTINGS, disk)
        self._workloads: list[subprocess.Popen[bytes]] = []
        self.kills: Counter[str] = Counter()
        self.report: dict[str, Any] = {}

    def go(self) -> None:
        """Everything. Raises `RunFailed` with a sentence."""
        self.victim.spawn()
        self.victim.wait_until_listening()
        for number in range(self._options.workloads):
            self._start_workload(f"w{number}")
        give_up = time.monotonic() + self._options.seconds_max
        while self.kills.total() < self._options.kills and time.monotonic() < give_up:
            self._kill_once()
        self._stop_workloads()
        self._check("check")
        self.victim.stop()
        self._tool("verify")
        self._tool("reindex")
        self._tool("verify")
        self.victim.spawn()
        self.victim.wait_until_listening()
        self._check("check after reindex")
        self.victim.stop()

    # Kills

    def _kill_once(self) -> None:
        kind = self._rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        self._check_workloads()
        time.sleep(self._rng.uniform(*LIFE_S))
        if kind == RECOVERY:
            self.victim.kill(with_indexer=self._rng.random() < 0.3)
            self.kills[LOAD] += 1
            for _ in range(self._rng.randint(1, RECOVERIES_IN_A_ROW_MAX)):
                self._kill_in_recovery()
        elif kind == INDEXER:
            self.kills[INDEXER] += self.victim.kill_indexer()
            return
        else:
            if kind == ROLL:
                self._wait_for(self.victim.rolled(), ROLL_DELAY_S_MAX)
            elif kind == CHECKPOINT:
                self._wait_for(self.victim.checkpointed(), CHECKPOINT_DELAY_S_MAX)
            self.victim.kill(with_indexer=self._rng.random() < 0.3)
            self.kills[kind] += 1
        self.victim.spawn()
        self.victim.wait_until_listening()

    def _kill_in_recovery(self) -> None:
        self.victim.spawn()
        self.victim.wait_for(
            lambda: self.victim.recovering() or self.victim.listening, MOMENT_SECONDS_MAX
        )
        time.sleep(self._rng.uniform(0, RECOVERY_DELAY_S_MAX))
        kind = LOAD if self.victim.listening else RECOVERY
        self.victim.kill(with_indexer=self._rng.random() < 0.3)
        self.kills[kind] += 1

    def _wait_for(self, moment: Any, delay_s_max: float) -> None:
        if self.victim.wait_for(moment, MOMENT_SECONDS_MAX):
            time.sleep(self._rng.uniform(0, delay_s_max))

    # The other programs

    def _start_workload(self, name: str) -> None:
        command = [sys.executable, "-m", "kills.workload", "--url", self.victim.url]
        command += ["--journals", str(self._journals), "--name", name]
        command += ["--seed", str(self._options.seed)]
        with (self._folder / f"{name}.stderr").open("wb") as stderr:
            self._workloads.append(
                subprocess.Popen(command, stdin=subprocess.PIPE, stderr=stderr, cwd=ROOT / "tests")
            )

    def _check_workloads(self) -> None:
        for number, workload in enumerate(self._workloads):
            if workload.poll() is not None:
                text = (self._folder / f"w{number}.stderr").read_text()
                raise RunFailed(f"workload {number} ended by itself:\n{text[-4_000:]}")

    def _stop_workloads(self) -> None:
        self._check_workloads()
        for workload in self._workloads:
            assert workload.stdin is not None
            workload.stdin.close()
        for number, workload in enumerate(self._workloads):
            try:
                code = workload.wait(WORKLOAD_STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                raise RunFailed(f"workload {number} did not come to its end") from None
            if code != 0:
                text = (self._folder / f"w{number}.stderr").read_text()
                raise RunFailed(f"workload {number} failed:\n{text[-4_000:]}")

    def _check(self, name: str) -> None:
        command = [sys.executable, "-m", "kills.checker", "--url", self.victim.url]
        command += ["--journals", str(self._journals), "--seed", str(self._options.seed)]
        result = subprocess.run(
            command, cwd=ROOT / "tests", capture_output=True, text=True, timeout=TOOL_SECONDS_MAX
        )
        if result.returncode not in (0, 1) or not result.stdout:
            raise RunFailed(f"the checker failed:\n{result.stderr}")
        report = json.loads(result.stdout)
        self.report.setdefault("counts", report["counts"])
        self.report[name] = report["violations_total"]
        if report["violations_total"]:
            raise RunFailed(f"{name}: violations\n{json.dumps(report['violations'], indent=1)}")

    def _tool(self, name: str) -> None:
        command = [*PROGRAM, name, "--data-dir", str(self.victim.data_dir)]
        result = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=TOOL_SECONDS_MAX
        )
        if result.returncode != 0:
            raise RunFailed(f"{name}: code {result.returncode}\n{result.stdout}{result.stderr}")
        self.report[name] = result.stdout.strip()

    def end(self) -> None:
        """Let nothing run on."""
        for workload in self._workloads:
            if workload.poll() is None:
                workload.kill()
                workload.wait()
        self.victim.discard()

    def tracebacks(self) -> int:
        """How often the daemon met something that it did not expect."""
        return self.victim.stderr_path.read_text(errors="replace").count("Traceback")


def main(options: argparse.Namespace) -> int:
    """The exit code: 0 when every guarantee held."""
    folder = Path(tempfile.mkdtemp(prefix="kills-", dir=options.directory))
    with contextlib.ExitStack() as mounted:
        disk = None
        if options.power_cuts:
            disk = mounted.enter_context(failing_disk(folder, DISK_BYTES))
        failure = _go(Run(folder, options, disk), options)
        if failure and disk is not None:
            shutil.copytree(disk.path / "data", folder / "data")
    if not failure:
        shutil.rmtree(folder)
        return 0
    print(f"FAILED: {failure}\nkept: {folder}")
    print(
        f"to repeat: PYTHONPATH=tests {sys.executable} -m kills.run --kills {options.kills} "
        f"--seconds-max {options.seconds_max:g} --seed {options.seed} "
        f"--workloads {options.workloads}" + " --power-cuts" * options.power_cuts
    )
    return 1


def _go(run: Run, options: argparse.Namespace) -> str:
    """Why the run failed; empty if it did not."""
    failure = ""
    try:
        run.go()
        if run.tracebacks():
            failure = f"{run.tracebacks()} tracebacks in {run.victim.stderr_path}"
    except RunFailed as error:
        failure = str(error)
    finally:
        run.end()
    kills = {"seed": options.seed, "kills": run.kills.total(), **run.kills}
    if options.power_cuts:
        kills["power_cuts"] = True
    print(json.dumps({**kills, "starts": run.victim.starts, **run.report}, indent=1))
    return failure


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=12, help="stop after so many")
    parser.add_argument("--seconds-max", type=float, default=60.0, help="or after this time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workloads", type=int, default=2, help="processes that write and read")
    parser.add_argument("--power-cuts", action="store_true", help="lose unsynced writes (as root)")
    parser.add_argument("--directory", type=Path, help="where to make the run's directory")
    sys.exit(main(parser.parse_args()))
