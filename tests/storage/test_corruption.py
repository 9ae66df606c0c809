"""Any damage to a closed directory is reported by `verify` or provably harmless; what is served is
right or is refused.

What does not matter, precisely: what a segment holds past its end (its successor says where that
is), `LOCK`, `INDEXER`, `RESERVE`, LMDB's `lock.mdb`, and those bytes of `index/data.mdb` that no
look-up, and no walk over all entries, reads (free pages, free space within pages). The long
versions are `python tests/storage/corrupt.py log` and `… index`.
"""

import itertools
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import engine
import pytest
from corrupt import (
    PAGE_BYTES,
    Apart,
    check_index_damage,
    check_log_flip,
    check_unindexed_flip,
    index_flips,
    without_index,
)
from corrupt_lab import (
    HARMLESS_FILES,
    LIMITS,
    Lab,
    Layout,
    Seen,
    index_findings,
    layout,
    log_findings,
    make_lab,
    observe,
)
from engine import abandon, open_store

import storage.disk
import storage.scan
from storage.chain import LogEnd
from storage.directory import DataDirectory
from storage.disk import Disk
from storage.errors import CorruptData, OpenError
from storage.index import Index
from storage.indexer import Indexer
from storage.indexer_process import IndexerProcess
from storage.reindex import reindex
from storage.verify import check_index_apart

SECTOR_BYTES = 512
INDEX = "index/data.mdb"
INDEX_FLIPS = 220
LAST_SEQUENCE = 12
"""Of the small directory's batches."""
STREAMS = 120
SOUND = Seen(None, {})


@pytest.fixture(scope="module")
def swift() -> Iterator[Path]:
    """A folder in memory if there is one: thousands of openings are waited for here."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def made(swift: Path) -> tuple[Lab, Layout]:
    """A small directory, and what lies where in its log."""
    lab = make_lab(swift / "small")
    return lab, layout(lab)


@pytest.fixture
def lab(made: tuple[Lab, Layout]) -> Iterator[Lab]:
    """The small directory, intact before and after."""
    made[0].restore()
    yield made[0]
    made[0].restore()


@pytest.fixture
def plan(made: tuple[Lab, Layout]) -> Layout:
    """What lies where in the small directory's log."""
    return made[1]


@pytest.fixture(scope="module")
def bare(swift: Path) -> tuple[Lab, Layout]:
    """Another small directory, whose index is lost."""
    lab = make_lab(swift / "bare")
    without_index(lab)
    return lab, layout(lab)


@pytest.fixture(scope="module")
def wide(swift: Path) -> Iterator[tuple[Lab, Apart]]:
    """A directory whose index has branches, and a process that opens it apart."""
    lab = make_lab(swift / "wide", streams=STREAMS)
    apart = Apart(lab)
    yield lab, apart
    apart.close()


def changing_mask(position: int) -> int:
    """Another bit for each byte, and sometimes all of them."""
    return [1, 2, 4, 8, 16, 32, 64, 128, 255][position % 9]


def reported(lab: Lab) -> list[str]:
    """What `verify` would say, with LMDB's pages intact."""
    return [str(finding) for finding in log_findings(lab) or index_findings(lab)]


# The log


def test_the_directory_has_all_there_is(lab: Lab, plan: Layout) -> None:
    """The intact directory is sound, has several segments, void bytes, and runs of many blocks."""
    assert reported(lab) == []
    assert observe(lab) == SOUND
    assert len(plan.ends) >= 5
    assert any(plan.ends[name] < len(lab.intact[name]) for name in plan.ends)
    blocks = [block.stream_id for block in plan.payloads]
    assert max(map(blocks.count, blocks)) > 10


@pytest.mark.parametrize("number", range(7))
def test_every_byte_of_the_log(lab: Lab, plan: Layout, number: int) -> None:
    """A flip in any byte of any segment is reported with its place and stream unless it is void,
    and refuses that stream's reads at most."""
    name = lab.segments()[number]
    for position in range(len(lab.intact[name])):
        check_log_flip(lab, plan, name, position, changing_mask(position))


def test_every_byte_of_a_log_without_index(bare: tuple[Lab, Layout]) -> None:
    """Recovery from the log alone refuses any flip it meets, unchanged, but in the last batch: that
    is taken for torn, and everything before it is there (M4)."""
    lab, plan = bare
    became = {
        check_unindexed_flip(lab, plan, name, position, changing_mask(position))
        for name in lab.segments()
        for position in range(len(lab.intact[name]))
    }
    assert became == {"not opened", "read refused or not needed", "torn", "void"}


def test_the_last_batch_of_an_unclean_stop_is_undecidable(bare: tuple[Lab, Layout]) -> None:
    """Without an index, damage in the last batch alone costs that batch and nothing else (M4)."""
    lab, plan = bare
    lab.flip(lab.segments()[-1], plan.last_batch + 60, 0xFF)
    assert observe(lab, lab.before_last) == SOUND
    lab.restore()


def test_damage_up_to_the_end_of_an_unclean_stop_is_undecidable(bare: tuple[Lab, Layout]) -> None:
    """Without a checkpoint, a log that is spoilt from some place to its end is one that ends there;
    with the last batch still valid it is damaged (M4)."""
    lab, plan = bare
    name = lab.segments()[-1]
    data = lab.intact[name]
    lab.put(name, data[:100] + bytes(len(data) - 100))
    store = open_store(lab.path, LIMITS)
    assert store.recovered.end.sequence == LAST_SEQUENCE - 2
    abandon(store)
    lab.restore()
    lab.put(name, data[:100] + bytes(plan.last_batch - 100) + data[plan.last_batch :])
    assert f"a committed batch follows at position {plan.last_batch}" in (
        observe(lab).refused_to_open or ""
    )
    lab.restore()


def test_zeroed_sectors(lab: Lab, plan: Layout) -> None:
    """A sector of zeroes in any segment is reported, and nothing wrong is served."""
    for name in lab.segments():
        data = lab.intact[name]
        for start in range(0, len(data), SECTOR_BYTES):
            zeroed = data[:start] + bytes(min(SECTOR_BYTES, len(data) - start))
            lab.put(name, zeroed + data[start + SECTOR_BYTES :])
            assert bool(reported(lab)) == (start < plan.ends[name])
            observe(lab)
            lab.restore()


def test_truncated_segments(lab: Lab, plan: Layout) -> None:
    """A segment that is cut short anywhere is reported by name, and nothing wrong is served."""
    for name in lab.segments():
        data = lab.intact[name]
        for length in [*range(0, len(data), 13), len(data) - 1]:
            lab.put(name, data[:length])
            said = reported(lab)
            assert bool(said) == (length < plan.ends[name])
            assert all(Path(name).name in line for line in said[:1])
            observe(lab)
            lab.restore()


def test_missing_segments(lab: Lab) -> None:
    """A missing segment is named, by `verify` and by the refusal to open."""
    for name in lab.segments():
        (lab.path / name).unlink()
        assert Path(name).name in reported(lab)[0]
        assert Path(name).name in (observe(lab).refused_to_open or "")
        lab.restore()


def test_no_segments_at_all(lab: Lab) -> None:
    """An index without a log is refused, and reported in a sentence."""
    for name in lab.segments():
        (lab.path / name).unlink()
    assert reported(lab) == ["segments, position 0: the log is empty"]
    assert "the index is ahead of the log" in (observe(lab).refused_to_open or "")


def test_swapped_segments(lab: Lab) -> None:
    """Two segments that changed places are refused by name."""
    for one, other in itertools.combinations(lab.segments(), 2):
        lab.put(one, lab.intact[other])
        lab.put(other, lab.intact[one])
        assert Path(one).name in reported(lab)[0]
        assert Path(one).name in (observe(lab).refused_to_open or "")
        lab.restore()


def test_segments_of_another_directory(lab: Lab, tmp_path: Path) -> None:
    """A segment of another directory with the same history is reported, and never read from."""
    other = make_lab(tmp_path / "other")
    for name in lab.segments():
        lab.put(name, other.intact[name])
        assert reported(lab)
        observe(lab)
        lab.restore()
    for name in lab.segments():
        lab.put(name, other.intact[name])
    assert "the index is ahead of the log" in (observe(lab).refused_to_open or "")


# Other files


def test_every_byte_of_format(lab: Lab) -> None:
    """A flip in any byte of FORMAT is reported, and opening is refused."""
    for position in range(len(lab.intact["FORMAT"])):
        for bit in range(8):
            lab.flip("FORMAT", position, 1 << bit)
            try:
                said = [str(finding) for finding in check_index_apart_here(lab)]
            except OpenError as error:
                said = [str(error)]
            assert said
            assert observe(lab).refused_to_open
        lab.restore()


def check_index_apart_here(lab: Lab) -> list[str]:
    """What the child of `verify` would find, in this process. Raises `OpenError`."""
    DataDirectory(lab.path)
    return [str(finding) for finding in index_findings(lab)]


@pytest.mark.parametrize("name", HARMLESS_FILES)
def test_files_that_do_not_matter(lab: Lab, name: str) -> None:
    """Locks, the reserve and LMDB's table of readers may hold anything, or be missing."""
    data = lab.intact[name]
    chance = random.Random(1)
    for damaged in (chance.randbytes(len(data)), b"", b"\xff" * (len(data) + 1), None):
        if damaged is None:
            (lab.path / name).unlink()
        else:
            lab.put(name, damaged)
        assert reported(lab) == []
        assert observe(lab) == SOUND
        lab.restore()


@pytest.mark.parametrize("name", ["FORMAT", "segments", "index", INDEX])
def test_missing_files(lab: Lab, name: str) -> None:
    """Without FORMAT or the log nothing opens; without its index a store comes back whole."""
    target = lab.path / name
    if target.is_dir():
        shutil.rmtree(target)
    else:
        target.unlink()
    seen = observe(lab)
    if name.startswith("index"):
        assert seen == SOUND
        assert reported(lab) == []
    else:
        assert name in (seen.refused_to_open or "")
        assert not (lab.path / "segments").exists() or "FORMAT" in (seen.refused_to_open or "")


def test_an_index_of_another_directory_is_reported(lab: Lab, tmp_path: Path) -> None:
    """`verify` and opening agree that an index with another directory's id will not do."""
    other = make_lab(tmp_path / "other")
    lab.put("FORMAT", other.intact["FORMAT"])
    assert "the index is of another data directory: run reindex" in reported(lab)[0]
    assert "of another data directory" in (observe(lab).refused_to_open or "")


# The index


def test_flips_in_the_index(wide: tuple[Lab, Apart]) -> None:
    """A flip anywhere in LMDB's file is harmless, refused, or ends a process, and `verify` says so;
    nothing wrong is served."""
    lab, apart = wide
    flips = index_flips(lab, random.Random(0))
    for position, mask in itertools.islice(flips, INDEX_FLIPS):
        lab.flip(INDEX, position, mask)
        check_index_damage(lab, apart, position)
        lab.restore()


def test_pages_of_the_index_that_are_gone(wide: tuple[Lab, Apart]) -> None:
    """Pages of zeroes, and a file cut at any page, are refused or harmless; a short file never
    ends the process that opens it."""
    lab, apart = wide
    data = lab.intact[INDEX]
    for start in range(0, len(data), PAGE_BYTES):
        lab.put(INDEX, data[:start] + bytes(PAGE_BYTES) + data[start + PAGE_BYTES :])
        check_index_damage(lab, apart)
        lab.put(INDEX, data[:start])
        check_index_damage(lab, apart)
        lab.put(INDEX, data[:start])
        assert apart.ask("open").signal == 0
        lab.restore()


def test_reindex_brings_back_an_identical_store(wide: tuple[Lab, Apart]) -> None:
    """After any damage to the index, `reindex` leaves one that is as the log says, and a store
    that is as it was."""
    lab, _ = wide
    damages: list[Callable[[bytes, int], bytes]] = [
        lambda data, at: data[:at] + bytes(PAGE_BYTES) + data[at + PAGE_BYTES :],
        lambda data, at: data[:at],
        lambda data, at: data[:at] + random.Random(at).randbytes(len(data) - at),
    ]
    for number, damage in enumerate(damages * 2):
        lab.put(INDEX, damage(lab.intact[INDEX], number * 7 * PAGE_BYTES))
        reindex(lab.path, lambda reached, end: None)
        assert index_findings(lab) == []
        assert observe(lab) == SOUND
        lab.restore()


def deadly_flip(lab: Lab, apart: Apart) -> None:
    """Damage the index so that walking it ends the process."""
    for position, mask in index_flips(lab, random.Random(5)):
        lab.flip(INDEX, position, mask)
        if apart.ask("verify").result is None:
            return
        lab.restore()


def test_a_page_that_ends_the_process_is_reported(wide: tuple[Lab, Apart]) -> None:
    """`verify` outlives the walk over a damaged page, says `run reindex`, and leaves nothing in the
    temporary folder; `reindex` needs no page of the old index."""
    lab, apart = wide
    deadly_flip(lab, apart)
    before = scratch_folders()
    said = [str(finding) for finding in check_index_apart(DataDirectory(lab.path))]
    assert said[-1].startswith(INDEX)
    assert said[-1].endswith(": reading it ends the process: run reindex")
    assert scratch_folders() == before
    reindex(lab.path, lambda reached, end: None)
    assert observe(lab) == SOUND
    lab.restore()


def scratch_folders() -> set[str]:
    """Folders that `verify` makes for the index it compares with."""
    return {path.name for path in Path(tempfile.gettempdir()).glob("durable-streamsd-verify-*")}


# Found by the flips above


def test_a_lost_table_is_not_made_anew(lab: Lab) -> None:
    """An index that lacks a table is refused: an empty one would forget every producer."""
    lab.put(INDEX, lab.intact[INDEX].replace(b"producers", b"qroducers"))
    assert "run reindex" in (observe(lab).refused_to_open or "")
    assert "run reindex" in reported(lab)[0]


def test_a_lost_checkpoint_is_not_a_new_index(lab: Lab) -> None:
    """Without its checkpoint an index is refused: the log would be indexed twice into it."""
    lab.put(INDEX, lab.intact[INDEX].replace(b"checkpoint", b"checkpainx"))
    assert "run reindex" in (observe(lab).refused_to_open or "")
    assert "run reindex" in reported(lab)[0]


def test_a_damaged_key_does_not_hide_its_stream(lab: Lab) -> None:
    """A look-up that a damaged key led astray is refused, not answered with `not there`."""
    for wrong in (b"aytes", b"zytes", b"bytez"):
        lab.put(INDEX, lab.intact[INDEX].replace(b"bytes\x00\x00", wrong + b"\x00\x00"))
        seen = observe(lab)
        assert "damaged" in seen.refused[b"bytes"] or "order" in seen.refused[b"bytes"]
        lab.restore()


def test_a_lost_run_is_not_the_end_of_its_stream(tmp_path: Path) -> None:
    """A read of bytes that the index has lost is refused; it is not an empty chunk at the tail."""
    store = open_store(tmp_path / "data", LIMITS)
    engine.create(store, b"s", body=b"first")
    engine.commit(store)
    engine.index_all(store)
    engine.append(store, b"s", b"second")
    engine.commit(store)
    engine.forget(store)
    with store._index.write() as transaction:
        lost = (1).to_bytes(8, "big") + (0).to_bytes(8, "big")
        value = transaction._index._get(transaction._txn, "runs", lost)
        assert value is not None
        transaction._put("runs", lost, value[: len(value) // 2])
    stream = engine.seen(store, b"s")
    assert engine.read(store, stream, 0).data == b"first"
    with pytest.raises(CorruptData, match="the index lacks a run: run reindex"):
        engine.read(store, stream, 5)
    abandon(store)


def test_a_key_of_another_length_is_damage(tmp_path: Path) -> None:
    """A key that is no pair of integers is refused by name, and does not stop the clock."""
    store = open_store(tmp_path / "data", LIMITS)
    engine.create(store, b"s", ttl_s=1, body=b"x")
    engine.commit(store)
    engine.forget(store)
    with store._index.write() as transaction:
        for table in ("runs", "expiry"):
            transaction._put(table, b"\x00", b"")
            transaction._put(table, b"\x00" * 7 + b"\x02", b"")
    assert store._index.due(store.now_ms() + 3_600_000, 10) == [b"s"]
    with pytest.raises(CorruptData, match="table runs"):
        store._index.runs(2, 0, 1, 1)
    abandon(store)


def test_reindex_does_not_drop_a_batch_that_was_durable(lab: Lab, plan: Layout) -> None:
    """The old index knows that the last batch was whole: `reindex` refuses a log that lacks it,
    until the index is removed."""
    name = lab.segments()[-1]
    lab.flip(name, plan.last_batch + 60, 0xFF)
    with pytest.raises(OpenError, match=rf"position {plan.last_batch}: the log ends here"):
        reindex(lab.path, lambda reached, end: None)
    shutil.rmtree(lab.path / "index")
    reindex(lab.path, lambda reached, end: None)
    assert observe(lab, lab.before_last) == SOUND


def test_the_walk_to_a_segment_that_is_missing_ends(tmp_path: Path) -> None:
    """An indexer that is sent past the end of the log is refused: it does not step on the spot."""
    lab = make_lab(tmp_path / "data")
    index = Index(tmp_path / "scratch", writable=True)
    indexer = Indexer(lab.path / "segments", index)
    with pytest.raises(CorruptData, match=r"0000000000000099\.log, position 687: .* missing"):
        indexer.step(LogEnd(99, 687, 1_000, 0), 1_000)
    index.close()


def test_a_segment_that_cannot_be_read_is_a_finding(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`verify` on a failing disk names the segment and the position, and goes on with the next."""

    def failing(fd: int, length_bytes: int, position: int) -> bytes:
        if Path(f"/proc/self/fd/{fd}").readlink().name.endswith("3.log"):
            raise OSError(5, "Input/output error")
        return storage.disk.read_at(fd, length_bytes, position)

    monkeypatch.setattr(storage.scan, "read_at", failing)
    findings = log_findings(lab)
    assert findings[0].file == "0000000000000003.log"
    assert findings[0].reason == "it cannot be read from here on: Input/output error"


def test_a_lock_that_cannot_be_opened_is_a_sentence(lab: Lab) -> None:
    """A LOCK that is no file is refused with its name, by every command."""
    (lab.path / "LOCK").unlink()
    (lab.path / "LOCK").mkdir()
    with pytest.raises(OpenError, match="LOCK: Is a directory"):
        DataDirectory.open(lab.path, Disk()).lock()
    (lab.path / "LOCK").rmdir()


@pytest.mark.parametrize("code", [signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT])
def test_an_indexer_that_damaged_pages_end_is_not_started_for_ever(
    tmp_path: Path, code: signal.Signals
) -> None:
    """After a few deaths by such signals, without progress, the store takes no more writes."""
    store = open_store(tmp_path / "data", LIMITS)
    indexer = IndexerProcess(store, lambda: None)
    for _ in range(3):
        assert not store.latched
        child = subprocess.Popen([sys.executable, "-c", "pass"])
        child.wait()
        indexer._child = child
        indexer._died(child, -code)
    assert store.latched
    abandon(store)


# The commands


def run(command: str, lab: Lab, *arguments: str) -> tuple[int, str]:
    """A command's exit code, and all it said."""
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "durable_streamsd",
            command,
            "--data-dir",
            str(lab.path),
            *arguments,
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return result.returncode, result.stdout + result.stderr


def test_the_commands_end_with_a_sentence(lab: Lab, plan: Layout, tmp_path: Path) -> None:
    """On a sample of damages each command ends with 0 or 1, without a traceback, and `verify`
    with 1, naming segment, position and stream."""
    block = plan.payloads[20]
    lab.flip(block.segment, block.start, 1)
    code, said = run("verify", lab)
    name = Path(block.segment).name
    assert code == 1
    assert f"{name}, position {block.start}, stream {block.stream_id}" in said
    for number, command in enumerate(("dump", "backup", "reindex", "verify")):
        lab.restore()
        lab.flip(lab.segments()[2], 90 + number, 4)
        arguments = ["--to", str(tmp_path / "copy")] if command == "backup" else []
        code, said = run(command, lab, *arguments)
        assert code == (command in ("reindex", "verify")), said
        assert Path(lab.segments()[2]).name in said or command == "backup"
        assert "Traceback" not in said


def test_verify_of_a_damaged_index_ends_with_a_sentence(wide: tuple[Lab, Apart]) -> None:
    """A page that ends the process that walks it is exit code 1 of `verify`, with what to do."""
    lab, apart = wide
    deadly_flip(lab, apart)
    code, said = run("verify", lab)
    assert (code, "run reindex" in said, "Traceback" in said) == (1, True, False)
    assert run("reindex", lab)[0] == 0
    assert run("verify", lab)[0] == 0
    lab.restore()
