"""Damage to closed data directories: a small one whose every byte is known, and what became of it.

    python tests/storage/corrupt.py log              every byte of every segment, all eight bits
    python tests/storage/corrupt.py index --all      every byte of the index (hours)
    python tests/storage/corrupt.py index --flips 5000 --seed 1

`observe` opens a damaged directory and reads everything: each stream is right or is refused, and
what is neither raises `Wrong`. LMDB's pages have no checksum, so whoever walks damaged ones may
die: `Apart` does it in processes that may.

Left out: damage while a store is open (the crash sweep and the power-cut fuzzer do that).
"""

import argparse
import itertools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import engine
from corrupt_lab import (
    GONE,
    LIMITS,
    USUAL,
    Lab,
    Layout,
    Missed,
    Seen,
    Wrong,
    index_findings,
    layout,
    log_findings,
    make_lab,
    observe,
    state_of,
)
from engine import abandon, open_store

from storage.verify import Finding

WATCHDOG_S = 20
PAGE_BYTES = 4_096


# Every byte of the log


def check_log_flip(lab: Lab, plan: Layout, name: str, position: int, mask: int) -> None:
    """One flip in a segment of a directory whose index is complete. Raises `Wrong` and others.

    Void bytes do not matter. Any other flip is reported with its segment, at or before the place,
    for payload with its stream; and no stream but that one and its forks is refused.
    """
    lab.flip(name, position, mask)
    segment = Path(name).name
    void = position >= plan.ends[name]
    findings = log_findings(lab) or index_findings(lab)
    if bool(findings) == void:
        raise Wrong(f"verify says {findings}")
    seen = observe(lab)
    if void and seen != Seen(None, {}):
        raise Wrong(f"void bytes matter: {seen}")
    if not void:
        first = findings[0]
        if segment not in str(first) or first.position > position:
            raise Wrong(f"verify names another place: {first}")
        if seen.refused_to_open is not None and segment not in seen.refused_to_open:
            raise Wrong(f"the refusal names another place: {seen.refused_to_open}")
        owner = [
            block
            for block in plan.payloads
            if block.segment == name and block.start <= position < block.end
        ]
        if owner and first != Finding(segment, owner[0].start, owner[0].stream_id, first.reason):
            raise Wrong(f"verify names another block: {first}")
        ids = {path: (was.stream_id, was.source_id) for path, was in lab.truth.items()}
        if any(not owner or owner[0].stream_id not in ids[path] for path in seen.refused):
            raise Wrong(f"reads are refused that did not need the byte: {seen.refused}")
    lab.restore()


def check_unindexed_flip(lab: Lab, plan: Layout, name: str, position: int, mask: int) -> str:
    """One flip in a segment of a directory that lost its index; says what became of it.

    The last batch is taken for torn (M4). Any other damage that recovery meets is refused, with
    nothing changed; what it does not meet (payload) is refused when it is read.
    """
    lab.flip(name, position, mask)
    before = engine.digest(lab.path, "segments/*")
    last = name == lab.segments()[-1] and position >= plan.last_batch
    seen = observe(lab, lab.before_last if last else lab.truth)
    if seen.refused_to_open is not None and engine.digest(lab.path, "segments/*") != before:
        raise Wrong("a refused opening changed the log")
    void = position >= plan.ends[name]
    if (last or void) and seen != Seen(None, {}):
        raise Wrong(f"this should not matter: {seen}")
    lab.restore()
    if last:
        return "torn"
    if void:
        return "void"
    return "not opened" if seen.refused_to_open is not None else "read refused or not needed"


# The index, in processes that may die


class Verdict(NamedTuple):
    """What one process said: its result, or the signal that ended it."""

    result: list[str] | None
    signal: int


class Apart:
    """A process that forks for each question, so that damaged pages end only the fork."""

    def __init__(self, lab: Lab) -> None:
        truth = {path.decode(): vars(stream) for path, stream in lab.truth.items()}
        self._child = subprocess.Popen(
            [sys.executable, __file__, "child", str(lab.path), str(len(truth) - len(USUAL))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path))),
        )
        assert self._child.stdout is not None
        self._child.stdout.readline()

    def ask(self, question: str) -> Verdict:
        """`verify` or `open`: the findings or refusals; asked of the directory as it is now."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        print(question, file=self._child.stdin, flush=True)
        return Verdict(*json.loads(self._child.stdout.readline()))

    def close(self) -> None:
        """End the process."""
        self._child.communicate()


def serve_child(path: Path, streams: int) -> None:
    """The process behind `Apart`: it takes the intact directory for the truth."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    store = open_store(path, LIMITS)
    kept = dict(store.values(b"key/"))
    lab = Lab(path, state_of(store, streams), {}, GONE, kept)
    abandon(store)
    print(json.dumps(["ready"]), flush=True)
    for line in sys.stdin:
        question = line.strip()
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # LMDB says why it aborts
            signal.alarm(WATCHDOG_S)
            said = [line[:1_000] for line in answer(lab, question)]
            os.write(writer, json.dumps(said).encode())
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            answered = pipe.read()
        _, status = os.waitpid(child, 0)
        result = json.loads(answered) if answered and not status else None
        print(json.dumps([result, os.WTERMSIG(status)]), flush=True)


def answer(lab: Lab, question: str) -> list[str]:
    """Findings or refusals; what should not be begins with `WRONG` or `MISSED`."""
    try:
        if question == "verify":
            return [str(finding) for finding in index_findings(lab)][:5]
        seen = observe(lab)
        return [*filter(None, [seen.refused_to_open]), *seen.refused.values()][:5]
    except Missed as error:
        return [f"MISSED {error}"]
    except Exception as error:
        return [f"WRONG {type(error).__name__}: {error}"]


PAGE_COUNT = range(12, 14)
"""Where a page of LMDB says how many entries it has."""


def check_index_damage(lab: Lab, apart: Apart, position: int = 0) -> str:
    """The index as it is damaged now, at a position; says what became of it. Raises `Wrong`.

    What `verify` does not report is harmless. Everything is served right or is refused, whether
    `verify` was asked or not; a process that dies serves nothing, and then `verify` has a finding.
    One exception: entries that a page no longer counts are missed, and only `verify` can tell.
    """
    verified = apart.ask("verify")
    opened = apart.ask("open")
    missed = False
    for verdict in (verified, opened):
        if verdict.signal == signal.SIGALRM:
            raise Wrong(f"it goes on for ever: {verified}, {opened}")
        for said in verdict.result or []:
            if said.startswith("MISSED") and position % PAGE_BYTES in PAGE_COUNT:
                missed = True
            elif said.startswith(("WRONG", "MISSED")):
                raise Wrong(f"{said}; verify says {verified}")
    reported = verified.result != []
    if not reported and opened.result != []:
        raise Wrong(f"verify is silent, but {opened}")
    what = "opening died" if opened.result is None else "refused" if opened.result else "served"
    what = "entries are missed" if missed else what
    how = "verify died" if verified.result is None else "reported" if reported else "silent"
    return f"{how}, {what}"


def index_flips(lab: Lab, chance: random.Random) -> Iterator[tuple[int, int]]:
    """Places in the index and masks for ever: half of them in the heads of its pages."""
    size = len(lab.intact["index/data.mdb"])
    while True:
        position = chance.randrange(size)
        if chance.random() < 0.5:
            position = position // PAGE_BYTES * PAGE_BYTES + chance.randrange(160)
        yield position, 0xFF if chance.random() < 0.3 else 1 << chance.randrange(8)


# By hand


def run_log(lab: Lab) -> Counter[str]:
    """Every bit and the whole of every byte of every segment, with the index and without it."""
    plan = layout(lab)
    counts: Counter[str] = Counter()
    places = [(name, at) for name in lab.segments() for at in range(len(lab.intact[name]))]
    masks = [*(1 << bit for bit in range(8)), 0xFF]
    for name, position in places:
        for mask in masks:
            try:
                check_log_flip(lab, plan, name, position, mask)
                counts["with index"] += 1
            except Exception as error:
                counts["FAILED"] += 1
                print(f"{name} {position} {mask:#x}: {type(error).__name__}: {error}")
                lab.restore()
    without_index(lab)
    for name, position in places:
        for mask in masks:
            try:
                counts[check_unindexed_flip(lab, plan, name, position, mask)] += 1
            except Exception as error:
                counts["FAILED"] += 1
                print(f"no index: {name} {position} {mask:#x}: {type(error).__name__}: {error}")
                lab.restore()
    return counts


def without_index(lab: Lab) -> None:
    """Take the index away, for good."""
    shutil.rmtree(lab.path / "index")
    for name in [name for name in lab.intact if name.startswith("index/")]:
        del lab.intact[name]
    (lab.path / "index").mkdir()


def run_index(lab: Lab, flips: Iterator[tuple[int, int]]) -> Counter[str]:
    """These flips of the index, and what became of each."""
    counts: Counter[str] = Counter()
    apart = Apart(lab)
    for position, mask in flips:
        lab.flip("index/data.mdb", position, mask)
        try:
            counts[check_index_damage(lab, apart, position)] += 1
        except Exception as error:
            counts["FAILED"] += 1
            print(f"index {position} {mask:#x}: {type(error).__name__}: {error}", flush=True)
        lab.restore()
    apart.close()
    return counts


def main() -> int:
    """The command line; 1 when something was not as it has to be."""
    if sys.argv[1:2] == ["child"]:
        serve_child(Path(sys.argv[2]), int(sys.argv[3]))
        return 0
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["log", "index"])
    parser.add_argument("--flips", type=int, default=1_000, help="of the index, drawn by the seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--all", action="store_true", help="every bit of the index")
    arguments = parser.parse_args()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="corrupt-") as root:
        if arguments.what == "log":
            counts = run_log(make_lab(Path(root) / "data"))
        else:
            lab = make_lab(Path(root) / "data", streams=120)
            flips = index_flips(lab, random.Random(arguments.seed))
            chosen: Iterator[tuple[int, int]] = itertools.islice(flips, arguments.flips)
            if arguments.all:
                size = len(lab.intact["index/data.mdb"])
                chosen = ((at, 1 << bit) for at in range(size) for bit in range(8))
            counts = run_index(lab, chosen)
    for what, count in counts.most_common():
        print(f"{count:8} {what}")
    print(f"{time.monotonic() - begun:.0f} s")
    return 1 if counts["FAILED"] else 0


if __name__ == "__main__":
    sys.exit(main())
