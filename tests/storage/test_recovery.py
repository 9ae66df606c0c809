"""Opening what a crash, or damage, left: an exact prefix of whole batches, or a refusal that names
the place and changes nothing."""

import errno
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import engine
import pytest
from engine import SMALL, abandon, digest, open_store, segment_files

from storage.batch import COMMIT_BYTES, HEAD_BYTES, RunEntry, cut_blocks, encode_batch
from storage.chain import LogEnd
from storage.disk import Disk
from storage.errors import CorruptData, DirectoryLocked, OpenError
from storage.index import Index
from storage.limits import Limits
from storage.record import Configuration, Record, RecordType, encode
from storage.segment import KIND_COMPACTED, encode_header, new_header, segment_path
from storage.step import INDEXED_TYPES
from storage.store import Store

BATCHES = 6
ROOMY = replace(SMALL, segment_bytes=1 << 20, tail_cache_bytes_max=0)


def payload(number: int) -> bytes:
    """What batch `number` appends."""
    return b"<batch %d>" % number


def content_after(batches: int) -> bytes:
    """What the stream holds after so many batches."""
    return b"".join(payload(number) for number in range(1, batches + 1))


@dataclass
class Left:
    """A directory as a crash left it: batches of one stream, and the index up to one of them."""

    path: Path
    ends: list[LogEnd]
    segment: Path
    data: bytes

    def write(self, data: bytes) -> None:
        """Put other bytes into the last segment."""
        self.segment.write_bytes(data)

    def start(self, number: int) -> int:
        """Where batch `number` begins in its segment."""
        return self.ends[number - 1].position

    def place(self, number: int) -> int:
        """Where the payload of batch `number` lies in its segment."""
        return self.data.index(payload(number))


def leave(path: Path, checkpoint: int | None, limits: Limits = ROOMY) -> Left:
    """Write the batches, and crash; with None the index is lost."""
    store = open_store(path, limits)
    ends = []
    for number in range(BATCHES + 1):
        if number == 0:
            engine.create(store, b"s")
            engine.create(store, b"other", body=b"untouched")
        else:
            engine.append(store, b"s", payload(number))
        engine.commit(store)
        ends.append(store._log.end)
        if number == checkpoint:
            engine.index_all(store)
    abandon(store)
    if checkpoint is None:
        shutil.rmtree(path / "index")
    segment = segment_files(path)[-1]
    return Left(path, ends, segment, segment.read_bytes())


def opened(path: Path, batches: int) -> None:
    """The directory opens and holds exactly these batches; and so it does a second time."""
    for _ in range(2):
        store = open_store(path, ROOMY)
        try:
            assert engine.content(store, b"s") == content_after(batches)
            assert engine.content(store, b"other") == b"untouched"
            assert store.recovered.end.sequence == batches + 1
        finally:
            abandon(store)


def refused(path: Path, *names: str) -> None:
    """The directory is refused by a sentence with these words, and nothing in it is changed."""
    before = digest(path)
    with pytest.raises(OpenError) as caught:
        open_store(path, ROOMY)
    assert type(caught.value) is OpenError
    for name in names:
        assert name in str(caught.value)
    assert digest(path) == before


@pytest.mark.parametrize("checkpoint", [BATCHES - 2, BATCHES - 1, None])
def test_the_log_cut_at_every_byte(tmp_path: Path, checkpoint: int | None) -> None:
    """However much of the last two batches is gone, the whole batches before the cut survive, no
    more and no fewer; a cut into what the index has is refused."""
    original = leave(tmp_path / "original", checkpoint)
    for cut in range(original.start(BATCHES - 1), len(original.data) + 1):
        for zeroes in (0, 700) if cut % 7 == 0 else (0,):
            path = tmp_path / "cut"
            shutil.copytree(original.path, path)
            segment = path / "segments" / original.segment.name
            left = original.data[:cut] + bytes(zeroes)
            segment.write_bytes(left)
            # Zeroes may happen to be what was cut off.
            whole = sum(left.startswith(original.data[: end.position]) for end in original.ends) - 1
            if checkpoint is not None and whole < checkpoint:
                position = original.ends[checkpoint].position
                refused(path, segment.name, f"position {position}", "ahead of the log")
            else:
                opened(path, whole)
            shutil.rmtree(path)


def test_the_log_cut_below_the_checkpoint(tmp_path: Path) -> None:
    """An index that is ahead of the log is refused at every cut, and not followed."""
    left = leave(tmp_path / "data", BATCHES)
    for cut in (len(left.data) - 1, left.start(BATCHES), left.start(2) + 5, 80):
        left.write(left.data[:cut])
        refused(left.path, left.segment.name, "the index is ahead of the log")
    left.segment.unlink()
    refused(left.path, "ahead of the log")
    left.segment.parent.rmdir()
    with pytest.raises(OpenError, match="segments: the folder is missing"):
        open_store(left.path, ROOMY)


def test_damage_in_the_middle_is_refused(tmp_path: Path) -> None:
    """A changed byte in the head, header block or commit frame of a batch that another follows is
    refused with file and position: it was acknowledged, and is not cut off as torn."""
    left = leave(tmp_path / "data", 2)
    number = BATCHES - 1
    start, end = left.start(number), left.start(number + 1)
    place = left.place(number)
    for at in range(start, end):
        if place <= at < place + len(payload(number)):
            continue
        data = bytearray(left.data)
        data[at] ^= 0x40
        left.write(bytes(data))
        refused(left.path, left.segment.name, f"position {start}", f"follows at position {end}")


def test_damage_in_an_older_segment_is_refused(tmp_path: Path) -> None:
    """Where the log goes on in another segment the same damage is refused, too."""
    left = leave(tmp_path / "data", None, replace(ROOMY, segment_bytes=500))
    files = segment_files(left.path)
    assert len(files) > 2
    for at in (90, 150, files[0].stat().st_size - 1):
        data = bytearray(files[0].read_bytes())
        data[at] ^= 1
        files[0].write_bytes(data)
        with pytest.raises(OpenError, match=rf"{files[0].name}, position \d+"):
            open_store(left.path, ROOMY)
        data[at] ^= 1
        files[0].write_bytes(data)
    opened(left.path, BATCHES)


def test_damage_in_the_last_batch_counts_as_torn(tmp_path: Path) -> None:
    """After an unclean stop a damaged last batch cannot be told from a torn one (assumption M4)."""
    left = leave(tmp_path / "original", BATCHES - 2)
    for at in range(left.start(BATCHES), len(left.data)):
        path = tmp_path / "damaged"
        shutil.copytree(left.path, path)
        data = bytearray(left.data)
        data[at] ^= 0x01
        (path / "segments" / left.segment.name).write_bytes(data)
        opened(path, BATCHES - 1)
        shutil.rmtree(path)


@pytest.mark.parametrize("clean", [True, False])
def test_damaged_payload_is_refused_where_it_is_read(tmp_path: Path, clean: bool) -> None:
    """A read of damaged bytes names file and position; other ranges, other streams and new appends
    are served, and the next start neither hides nor drops anything."""
    left = leave(tmp_path / "data", BATCHES if clean else 1)
    number = 3
    place = left.place(number)
    data = bytearray(left.data)
    data[place + 2] ^= 0x80
    left.write(bytes(data))
    for _ in range(2):
        store = open_store(left.path, ROOMY)
        stream = engine.seen(store, b"s")
        damaged = len(content_after(number - 1))
        for offset in (damaged, damaged + 4):
            with pytest.raises(CorruptData, match=rf"{left.segment.name}, position {place}: "):
                engine.read(store, stream, offset, 1)
        before = engine.read(store, stream, 0, damaged)
        assert before.data == content_after(number - 1)
        after = damaged + len(payload(number))
        assert engine.read(store, stream, after).data[: len(payload(4))] == payload(4)
        assert engine.content(store, b"other") == b"untouched"
        engine.append(store, b"other", b"")
        engine.append(store, b"s", b"more")
        engine.commit(store)
        store.close()


def test_a_damaged_index_entry_is_refused_where_it_is_used(tmp_path: Path) -> None:
    """A stream whose entry in the index is damaged is refused by name; another is served."""
    left = leave(tmp_path / "data", BATCHES)
    file = left.path / "index" / "data.mdb"
    file.write_bytes(file.read_bytes().replace(b"octet-stream", b"0ctet-stream"))
    store = open_store(left.path, ROOMY)
    with pytest.raises(CorruptData, match="table streams"):
        store.load(b"s")
    engine.create(store, b"new", body=b"fine")
    engine.commit(store)
    assert engine.content(store, b"new") == b"fine"
    store.tick(store.now_ms())
    abandon(store)


@pytest.mark.parametrize("table", ["streams", "paths"])
def test_a_damaged_index_entry_does_not_stop_the_clock(tmp_path: Path, table: str) -> None:
    """A damaged stream is not reaped, but the others are, and idle ones leave memory."""
    path = tmp_path / "data"
    store = open_store(path, ROOMY)
    for name in (b"bad-one", b"good-one"):
        engine.create(store, name, ttl_s=5)
    engine.create(store, b"between")  # what is next to damage is not believed to be missing
    engine.commit(store)
    store.close()
    index = Index(path / "index", writable=True)
    with index.write() as transaction:
        key = b"bad-one" if table == "paths" else (1).to_bytes(8, "big")
        transaction._txn.put(key, b"damaged!", db=transaction._tables[table])
    index.close()
    store = open_store(path, ROOMY)
    store.clock_ms += 10 * ROOMY.idle_ms
    store.tick(store.now_ms())
    engine.commit(store)
    engine.index_all(store)
    store.tick(store.now_ms())
    assert engine.find(store, b"good-one") is None
    assert len(store._residents) == 0
    with pytest.raises(CorruptData, match=table):
        store.load(b"bad-one")
    abandon(store)


def test_an_old_segment_is_never_written_to(tmp_path: Path) -> None:
    """Recovery moves the last batch to a new segment, and old files keep every byte and their
    time; appends go to new files too."""
    left = leave(tmp_path / "data", 2)
    left.write(left.data + b"torn")
    before = digest(left.path, "segments/*")
    times = {path: path.stat().st_mtime_ns for path in segment_files(left.path)}
    store = open_store(left.path, ROOMY)
    assert store.recovered.moved
    engine.append(store, b"s", b"more")
    engine.commit(store)
    store.close()
    after = digest(left.path, "segments/*")
    assert len(after) == len(before) + 2
    assert before.items() <= after.items()
    assert times.items() <= {p: p.stat().st_mtime_ns for p in segment_files(left.path)}.items()


def test_a_clean_start_moves_nothing(tmp_path: Path) -> None:
    """After a clean stop no segment is made before something is written."""
    left = leave(tmp_path / "data", BATCHES)
    before = digest(left.path, "segments/*")
    store = open_store(left.path, ROOMY)
    assert not store.recovered.moved
    assert not store.recovered.records
    store.close()
    assert digest(left.path, "segments/*") == before


def test_an_unfinished_segment_is_removed(tmp_path: Path) -> None:
    """What a crash left of a segment without a name goes."""
    left = leave(tmp_path / "data", BATCHES)
    unfinished = left.segment.with_name("0000000000000009.tmp")
    unfinished.write_bytes(b"half a header")
    opened(left.path, BATCHES)
    assert not unfinished.exists()


class Interrupted(BaseException):
    """The process ends here."""


class InterruptedDisk(Disk):
    """A disk whose N-th change does not happen any more."""

    def __init__(self, changes: int) -> None:
        self.changes = changes

    def _step(self) -> None:
        self.changes -= 1
        if self.changes < 0:
            raise Interrupted

    def create(self, path: Path) -> int:
        """Create, if it is not over."""
        self._step()
        return super().create(path)

    def write_some(self, fd: int, buffers: Sequence[bytes | memoryview], position: int) -> int:
        """Write, if it is not over."""
        self._step()
        return super().write_some(fd, buffers, position)

    def sync(self, fd: int) -> None:
        """Sync, if it is not over."""
        self._step()
        super().sync(fd)

    def replace(self, source: Path, target: Path) -> None:
        """Rename, if it is not over."""
        self._step()
        super().replace(source, target)

    def sync_directory(self, path: Path) -> None:
        """Sync, if it is not over."""
        self._step()
        super().sync_directory(path)

    def unlink(self, path: Path) -> None:
        """Remove, if it is not over."""
        self._step()
        super().unlink(path)


@pytest.mark.parametrize("checkpoint", [1, None])
def test_interrupted_recovery_begins_again(tmp_path: Path, checkpoint: int | None) -> None:
    """A recovery that ends at any of its steps leaves what the next one needs."""
    original = leave(tmp_path / "original", checkpoint)
    original.write(original.data + b"torn")
    original.segment.with_name("0000000000000009.tmp").write_bytes(b"half")
    steps = 0
    for steps in range(100):
        path = tmp_path / "copy"
        shutil.copytree(original.path, path)
        try:
            store = open_store(path, ROOMY, InterruptedDisk(steps))
        except Interrupted:
            opened(path, BATCHES)
            shutil.rmtree(path)
        else:
            abandon(store)
            break
    assert 5 < steps < 50


# Directories that are not what they should be


def test_two_openers(tmp_path: Path) -> None:
    """A directory that is open is refused to a second opener, at once, and free afterwards."""
    store = open_store(tmp_path / "data")
    with pytest.raises(DirectoryLocked, match="another process"):
        open_store(tmp_path / "data")
    store.close()
    open_store(tmp_path / "data").close()


def test_a_foreign_directory(tmp_path: Path) -> None:
    """A folder with other things in it, and a file, are refused and left as they are."""
    (tmp_path / "letter.txt").write_text("Dear")
    refused(tmp_path, "not empty")
    with pytest.raises(OpenError, match="not a directory"):
        open_store(tmp_path / "letter.txt")
    (tmp_path / "letter.txt").unlink()
    (tmp_path / "FORMAT").write_text("something else\n")
    refused(tmp_path, "FORMAT, position 0")


def test_a_newer_format(tmp_path: Path) -> None:
    """A directory of a later format version is refused, and says which it is."""
    left = leave(tmp_path / "data", BATCHES)
    file = left.path / "FORMAT"
    file.write_bytes(file.read_bytes().replace(b"format 1", b"format 2"))
    refused(left.path, "format 2", "reads format 1")


def test_an_interrupted_first_start(tmp_path: Path) -> None:
    """A directory whose making was interrupted at any step is made again."""
    for changes in range(6):
        path = tmp_path / f"{changes}"
        with pytest.raises(Interrupted):
            open_store(path, ROOMY, InterruptedDisk(changes))
        store = open_store(path, ROOMY)
        engine.create(store, b"s")
        engine.commit(store)
        store.close()
    store = open_store(tmp_path / "5", ROOMY)
    assert engine.visible(store, b"s") is not None
    store.close()


def test_folders_that_were_made_are_made_durable(tmp_path: Path) -> None:
    """Each folder made on the way to a new directory is synced into its parent: else a power cut
    would take the directory with all that was acknowledged in it."""
    synced = []

    class Watching(Disk):
        def sync_directory(self, path: Path) -> None:
            synced.append(path)
            super().sync_directory(path)

    path = tmp_path / "a" / "b" / "c"
    open_store(path, ROOMY, Watching()).close()
    assert {tmp_path, path.parent.parent, path.parent, path} <= set(synced)


def several_segments(path: Path) -> list[Path]:
    """A crashed directory with at least four segments."""
    leave(path, 1, replace(ROOMY, segment_bytes=400))
    files = segment_files(path)
    assert len(files) >= 4
    return files


@pytest.mark.parametrize("missing", [0, 1, -2])
def test_a_missing_segment(tmp_path: Path, missing: int) -> None:
    """A gap in the log is refused by the name of the file that is missing."""
    files = several_segments(tmp_path / "data")
    files[missing].unlink()
    refused(tmp_path / "data", files[missing].name, "missing")


def test_a_segment_under_another_name(tmp_path: Path) -> None:
    """A segment that was renamed, or that is no segment, is refused by name."""
    files = several_segments(tmp_path / "data")
    other = files[-1].with_name("0000000000000099.log")
    files[-1].rename(other)
    refused(tmp_path / "data", other.name, "differ")
    other.rename(files[-1])
    stray = files[-1].with_name("notes.txt")
    stray.write_text("?")
    refused(tmp_path / "data", "notes.txt")
    stray.unlink()
    opened(tmp_path / "data", BATCHES)


def test_a_damaged_segment_header(tmp_path: Path) -> None:
    """A named segment whose header does not check is damage, not a torn end."""
    files = several_segments(tmp_path / "data")
    data = bytearray(files[-1].read_bytes())
    data[20] ^= 1
    files[-1].write_bytes(data)
    refused(tmp_path / "data", files[-1].name, "header is damaged")


def test_the_index_of_another_directory(tmp_path: Path) -> None:
    """An index that belongs to another directory is not believed."""
    one = leave(tmp_path / "one", BATCHES)
    two = leave(tmp_path / "two", BATCHES)
    shutil.rmtree(one.path / "index")
    shutil.copytree(two.path / "index", one.path / "index")
    refused(one.path, "another data directory")


def log_of(path: Path, records: Callable[[int], list[bytes]], kind: int = 1) -> Path:
    """A directory whose one segment has two batches of these records."""
    open_store(path, ROOMY).close()
    shutil.rmtree(path / "index")
    header = new_header(1, 1, 1, 0, 0, 0, engine.START_MS)._replace(kind=kind)
    data = encode_header(header)
    checksum = 0
    for sequence in (1, 2):
        batch = encode_batch(
            header.seed, sequence, engine.START_MS, checksum, [], [], records(sequence)
        )
        data += b"".join(batch.buffers)
        checksum = batch.checksum
    segment = segment_path(path / "segments", 1)
    segment.write_bytes(data)
    return segment


def create_record(stream_id: int, path: bytes) -> bytes:
    """The record of an empty stream's creation."""
    configuration = Configuration(path, b"text/plain", None, None)
    return encode(Record(RecordType.CREATE, stream_id, 0, configuration=configuration))


def test_a_hand_made_log_opens(tmp_path: Path) -> None:
    """The two tests below would be refused for nothing else."""
    log_of(tmp_path / "data", lambda number: [create_record(number, b"s%d" % number)])
    store = open_store(tmp_path / "data", ROOMY)
    assert engine.visible(store, b"s2") is not None
    abandon(store)


@pytest.mark.parametrize("at", [1, 2], ids=["followed by another", "last"])
@pytest.mark.parametrize("kind", [99, *sorted(set(RecordType) - INDEXED_TYPES)])
def test_a_record_type_that_is_not_known(tmp_path: Path, at: int, kind: int) -> None:
    """A committed record of a type that this version cannot follow is refused, not skipped: a later
    version wrote it."""

    def records(number: int) -> list[bytes]:
        record = bytearray(create_record(number, b"s%d" % number))
        if number == at:
            record = bytearray(encode(Record(RecordType.DELETE, 1, 0)))
            record[4] = kind
        return [bytes(record)]

    segment = log_of(tmp_path / "data", records)
    before = digest(segment.parent)
    with pytest.raises(OpenError, match=segment.name):
        open_store(tmp_path / "data", ROOMY)
    assert digest(segment.parent) == before


def test_a_segment_kind_that_is_not_known(tmp_path: Path) -> None:
    """A segment of a kind that this version cannot follow is refused, not read as a log."""
    segment = log_of(
        tmp_path / "data", lambda number: [create_record(number, b"s%d" % number)], KIND_COMPACTED
    )
    with pytest.raises(OpenError, match=segment.name):
        open_store(tmp_path / "data", ROOMY)


def test_a_batch_larger_than_a_segment(tmp_path: Path) -> None:
    """A batch that no segment has room for gets one to itself, and is recovered like any other."""
    limits = replace(ROOMY, segment_bytes=1_000)
    store = open_store(tmp_path / "data", limits)
    engine.create(store, b"s", body=b"a")
    engine.commit(store)
    engine.append(store, b"s", b"x" * 200_000)
    engine.commit(store)
    engine.append(store, b"s", b"z")
    engine.commit(store)
    abandon(store)
    assert len(segment_files(tmp_path / "data")) == 3
    store = open_store(tmp_path / "data", limits)
    assert engine.content(store, b"s", 70_000) == b"a" + b"x" * 200_000 + b"z"
    store.close()


def test_many_starts_without_writes(tmp_path: Path) -> None:
    """Starting and crashing again and again adds no segment once nothing is in doubt."""
    left = leave(tmp_path / "data", 1)
    opened(left.path, BATCHES)
    before = digest(left.path, "segments/*")
    for _ in range(3):
        opened(left.path, BATCHES)
    assert digest(left.path, "segments/*") == before


def test_opening_fails_when_the_disk_does(tmp_path: Path) -> None:
    """An error of the disk while recovery moves the last batch is an `OpenError`, and the next
    start has everything."""
    left = leave(tmp_path / "data", 1)

    class Failing(Disk):
        def sync(self, fd: int) -> None:
            raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OpenError, match="Input/output error"):
        Store.open(left.path, ROOMY, Failing())
    opened(left.path, BATCHES)


def test_layout_of_the_damage_tests(tmp_path: Path) -> None:
    """The batches that the tests above cut and damage lie where they assume."""
    left = leave(tmp_path / "data", 1)
    head = left.start(BATCHES)
    assert left.data[head : head + 4] == b"DSB1"
    assert left.data[-COMMIT_BYTES:].startswith(b"DSC1")
    assert left.place(BATCHES) - head - HEAD_BYTES == 28 + 8 + 28
    blocks = cut_blocks(0, 1, 0, payload(BATCHES), None)
    assert RunEntry(1, 0, len(payload(BATCHES)), blocks).length == len(payload(BATCHES))
