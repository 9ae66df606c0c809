"""The power-cut fuzzer: lives of a store, each ended by a kill or a power cut that a seed draws.

    python tests/storage/powercut.py --first 0 --seeds 10000

A seed decides the limits, the workload, the faults (a full disk, a failed write or sync), before or
after which sync the process ends, whether the power goes too, and what of the unsynced sectors and
names had reached the medium then. After a mere kill the page cache stays, with the sectors in it
that a failed sync lost. Each start is held to every guarantee, and to what the start before it
served. A seed that fails prints the command that repeats it alone.
"""

import argparse
import errno
import random
import shutil
import sys
import tempfile
import time
import traceback
from dataclasses import replace
from pathlib import Path

import engine
from crashdisk import CrashDisk, come_up
from engine import SMALL, abandon, open_store
from workload import Workload, check_store, index_agrees_with_log

from storage.errors import CommitError, OutOfSpace
from storage.limits import Limits

LIVES_MAX = 4
TURNS_MAX = 8


class Killed(BaseException):
    """The process ends here; what it wrote stays in the page cache."""


class Machine:
    """A directory, its disk, and the workload on it, over several lives of the store."""

    def __init__(self, seed: int, root: Path) -> None:
        self.chance = random.Random(seed)
        self.limits = limits_of(self.chance)
        self.root = root
        self.path = root / "0"
        self.disk = CrashDisk(self.path)
        self.cuts = 0
        self.work = Workload(open_store(self.path, self.limits, self.disk), seed)
        self.work.compactions = 0.3 if seed % 3 else 0.0

    def live(self) -> None:
        """One life: work, perhaps on a failing disk, until the process is killed, or its turns end.

        A kill happens before or after something became durable, so also within a commit.
        """
        events_left = self.chance.randint(1, 60)

        def event() -> None:
            nonlocal events_left
            events_left -= 1
            if not events_left:
                raise Killed

        self._arm()
        self.disk.on_event = event
        try:
            self._turns()
        except Killed:
            pass
        finally:
            self.disk.on_event = lambda: None
            abandon(self.work.store)

    def _arm(self) -> None:
        """Perhaps something on this disk will fail."""
        disk, chance = self.disk, self.chance
        disk.fail_write_at = disk.fail_sync_at = 0
        kind = chance.random()
        if kind < 0.2:
            disk.error = errno.ENOSPC
            disk.fail_write_at = disk.writes + chance.randint(1, 12)
            disk.short = chance.random() < 0.5
        elif kind < 0.35:
            disk.error = errno.EIO
            disk.fail_write_at = disk.writes + chance.randint(1, 12)
        elif kind < 0.55:
            disk.error = errno.EIO
            disk.fail_sync_at = disk.syncs + chance.randint(1, 12)

    def _turns(self) -> None:
        for _ in range(self.chance.randint(1, TURNS_MAX)):
            try:
                error = self.work.turn()
            except CommitError as refused:
                error = refused
            if isinstance(error, OutOfSpace):
                self.work.store.tick(self.work.store.now_ms())
            elif error is not None:
                # The batch in doubt may come back or not; a latched store takes nothing after it.
                self.work.in_flight = True
                return

    def come_back(self) -> None:
        """The process starts again, perhaps on a machine whose power went, perhaps more than once.

        What it served after one start it must serve after the next.
        """
        self.disk.fail_write_at = self.disk.fail_sync_at = 0
        for _ in range(self.chance.randint(0, 2)):
            self._perhaps_cut_power()
            self._start_and_be_killed()
        self._perhaps_cut_power()
        if self.work.compactions and self.chance.random() < 0.2:
            shutil.rmtree(self.path / "index")
            (self.path / "index").mkdir()
        work = self.work
        work.store = open_store(self.path, self.limits, self.disk, work.store.clock_ms)
        self._check()

    def _perhaps_cut_power(self) -> None:
        kind = self.chance.random()
        if kind < 0.4:
            return
        image = self.disk.durable() if kind < 0.6 else self.disk.torn(self.chance)
        shutil.rmtree(self.path)
        self.cuts += 1
        self.path = come_up(image, self.root / str(self.cuts))
        self.disk = CrashDisk(self.path)

    def _start_and_be_killed(self) -> None:
        """A start that is killed on its way, or right when it could have served."""
        events_left = self.chance.randint(1, 8)

        def event() -> None:
            nonlocal events_left
            events_left -= 1
            if not events_left:
                raise Killed

        self.disk.on_event = event
        try:
            store = open_store(self.path, self.limits, self.disk, self.work.store.clock_ms)
        except Killed:
            return
        finally:
            self.disk.on_event = lambda: None
        self.work.store = store
        self._check()
        abandon(store)

    def _check(self) -> None:
        """Whole batches only: all that were acknowledged or served, at most one more."""
        work = self.work
        sequence = work.store.recovered.end.sequence
        assert work.acknowledged <= sequence <= work.acknowledged + work.in_flight
        work.acknowledged, work.in_flight = sequence, False
        work.accepted = {key: stream.copy() for key, stream in work.states[sequence].items()}
        work.values = dict(work.values_of[sequence])
        check_store(work.store, work.accepted, work.values)


def limits_of(chance: random.Random) -> Limits:
    """Segments of a few batches or many, an index that lags or does not."""
    return replace(
        SMALL,
        segment_bytes=chance.choice([2_500, 4_096, 20_000]),
        index_step_records=chance.choice([3, 7, 50]),
        tail_cache_bytes_max=chance.choice([0, 2_048, 1 << 20]),
        reserve_bytes=512,
    )


def run_seed(seed: int, root: Path) -> int:
    """All lives of one seed; how many there were. Raises `AssertionError` and others."""
    machine = Machine(seed, root)
    lives = machine.chance.randint(1, LIVES_MAX)
    for _ in range(lives):
        machine.live()
        machine.come_back()
    store = machine.work.store
    engine.index_all(store)
    index_agrees_with_log(store, root / "scratch")
    store.close()
    return lives


def run(first: int, seeds: int, progress: bool) -> tuple[int, list[int]]:
    """Run seeds; how many lives there were, and which seeds failed."""
    lives = 0
    failed = []
    for seed in range(first, first + seeds):
        root = Path(tempfile.mkdtemp(prefix="powercut-"))
        try:
            lives += run_seed(seed, root)
        except Exception:
            failed.append(seed)
            traceback.print_exc()
            print(f"repeat: python tests/storage/powercut.py --first {seed} --seeds 1")
        finally:
            shutil.rmtree(root)
        if progress and not seed % 100:
            print(f"\rseed {seed}, {lives} lives, {len(failed)} failed", end="", flush=True)
    return lives, failed


def main() -> int:
    """The command line; 1 when a seed failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=int, default=1_000, help="how many seeds")
    arguments = parser.parse_args()
    begun = time.monotonic()
    lives, failed = run(arguments.first, arguments.seeds, sys.stdout.isatty())
    took_s = time.monotonic() - begun
    print(f"\n{arguments.seeds} seeds, {lives} lives, {len(failed)} failed, {took_s:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    sys.exit(main())
