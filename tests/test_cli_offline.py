"""The offline commands on real data directories, and their exit codes."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from daemon import Daemon

from storage.errors import NotResident
from storage.limits import Limits
from storage.state import Append
from storage.store import Store
from storage.stream_config import StreamConfig

SEGMENT_BYTES = 8_192


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "durable_streamsd", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def digest(directory: Path) -> str:
    """Names and contents of all files under a directory, the locks aside."""
    total = hashlib.sha256()
    for path in sorted(directory.rglob("*")):
        if path.is_file() and path.name not in ("LOCK", "INDEXER", "lock.mdb"):
            total.update(str(path.relative_to(directory)).encode())
            total.update(path.read_bytes())
    return total.hexdigest()


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A closed directory of several segments: a JSON and a byte stream, and a deleted one."""
    path = tmp_path / "data"
    store = Store.open(path, Limits(segment_bytes=SEGMENT_BYTES, zero_ahead_bytes=0))
    for name, kind in (
        (b"json", "application/json"),
        (b"bytes", "application/octet-stream"),
        (b"gone", "text/plain"),
    ):
        with pytest.raises(NotResident):
            store.find(name)
        store.admit(store.load(name))
        store.create(name, StreamConfig(kind), b"", False)
    for number in range(60):
        for name, body in ((b"json", b'{"n":%d}' % number), (b"bytes", bytes(200))):
            stream = store.find(name)
            assert stream is not None
            store.append(stream, Append(body, stream.config.media_type))
        assert store.commit() is None
    gone = store.find(b"gone")
    assert gone is not None
    store.delete(gone)
    store.close()
    return path


def segments(data_dir: Path) -> list[Path]:
    return sorted((data_dir / "segments").iterdir())


def test_verify_finds_nothing_in_a_sound_directory(data_dir: Path) -> None:
    """A sound directory verifies with exit code 0, and is not changed."""
    before = digest(data_dir)
    result = run("verify", "--data-dir", data_dir)
    assert (result.returncode, result.stderr) == (0, "")
    assert "no damage found" in result.stdout
    assert digest(data_dir) == before


def test_verify_names_segment_position_and_stream(data_dir: Path) -> None:
    """Damaged payload is reported with its segment, position and stream, and exit code 1."""
    segment = segments(data_dir)[1]
    data = bytearray(segment.read_bytes())
    position = data.index(bytes(150)) + 75
    data[position] ^= 0xFF
    segment.write_bytes(data)
    result = run("verify", "--data-dir", data_dir)
    assert result.returncode == 1
    line = result.stdout.splitlines()[0]
    assert line.startswith(f"{segment.name}, position ")
    assert ", stream 2 (bytes): the payload at offset " in line
    assert result.stdout.endswith(": 1 finding\n")


@pytest.mark.parametrize("damage", ["no index", "damaged pages", "no page"])
def test_verify_needs_no_index_to_name_a_stream(data_dir: Path, damage: str) -> None:
    """Whatever became of the index, damaged payload is reported, with the stream's id at least."""
    segment = segments(data_dir)[1]
    data = bytearray(segment.read_bytes())
    data[data.index(bytes(150)) + 75] ^= 0xFF
    segment.write_bytes(data)
    index = data_dir / "index" / "data.mdb"
    pages = index.read_bytes()
    if damage == "no index":
        index.unlink()
    elif damage == "damaged pages":
        index.write_bytes(pages[:8192] + bytes(byte ^ 0xFF for byte in pages[8192:]))
    else:
        index.write_bytes(pages[:8192])
    result = run("verify", "--data-dir", data_dir)
    assert (result.returncode, result.stderr) == (1, "")
    first, *others = result.stdout.splitlines()
    assert ", stream 2: the payload at offset " in first
    assert others[0].startswith("index/data.mdb")


def test_verify_says_once_that_the_index_is_missing(data_dir: Path) -> None:
    """A missing index is one finding in plain words, and what to do about it."""
    shutil.rmtree(data_dir / "index")
    result = run("verify", "--data-dir", data_dir)
    assert result.returncode == 1
    finding, summary = result.stdout.splitlines()
    assert finding.startswith("index/data.mdb: the index is missing: run reindex")
    assert summary.endswith(": 1 finding")


def test_verify_finds_an_index_that_differs_from_the_log(data_dir: Path) -> None:
    """An index that lost what the log has is reported, and `reindex` mends it."""
    index = data_dir / "index" / "data.mdb"
    data = index.read_bytes()
    at = data.index(b"application/octet-stream")
    index.write_bytes(data[:at] + b"application/octet-strEam" + data[at + 24 :])
    result = run("verify", "--data-dir", data_dir)
    assert result.returncode == 1
    assert "reindex" in result.stdout
    assert run("reindex", "--data-dir", data_dir).returncode == 0
    assert run("verify", "--data-dir", data_dir).returncode == 0


def test_reindex_brings_back_a_lost_index(data_dir: Path) -> None:
    """With the index gone as a whole, `reindex` makes one that `verify` agrees with."""
    shutil.rmtree(data_dir / "index")
    assert run("reindex", "--data-dir", data_dir).returncode == 0
    result = run("verify", "--data-dir", data_dir)
    assert (result.returncode, result.stderr) == (0, "")


def test_reindex_of_a_damaged_log_changes_nothing(data_dir: Path) -> None:
    """A log damaged in the middle is refused with file and position, and the index stays."""
    segment = segments(data_dir)[1]
    data = bytearray(segment.read_bytes())
    data[100] ^= 0xFF
    segment.write_bytes(data)
    index_before = digest(data_dir / "index")
    result = run("reindex", "--data-dir", data_dir)
    assert result.returncode == 1
    assert result.stderr.startswith(f"durable-streamsd: {segment.name}, position ")
    assert digest(data_dir / "index") == index_before


def without_bytes(data_dir: Path) -> list[Path]:
    """Delete the byte stream, so that most of the log is dead; the segments there are."""
    store = Store.open(data_dir, Limits(segment_bytes=SEGMENT_BYTES, zero_ahead_bytes=0))
    store.admit(store.load(b"bytes"))
    stream = store.find(b"bytes")
    assert stream is not None
    store.delete(stream)
    store.close()
    return segments(data_dir)


def test_compact_gives_space_back(data_dir: Path) -> None:
    """`compact` shrinks the log, says by how much, and leaves what is live, whole: `verify`,
    `reindex` and `dump` take what it leaves."""
    before = without_bytes(data_dir)
    result = run("compact", "--data-dir", data_dir)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("gave back ")
    after = segments(data_dir)
    assert len(after) < len(before)
    assert run("verify", "--data-dir", data_dir).returncode == 0
    shutil.rmtree(data_dir / "index")
    assert run("reindex", "--data-dir", data_dir).returncode == 0
    result = run("verify", "--data-dir", data_dir)
    assert (result.returncode, result.stderr) == (0, "")
    values = [json.loads(line) for line in run("dump", "--data-dir", data_dir).stdout.splitlines()]
    assert len([value for value in values if "stands_for" in value]) == 1
    store = Store.open(data_dir)
    store.admit(store.load(b"json"))
    stream = store.find(b"json")
    assert stream is not None
    assert stream.tail == sum(len(b'{"n":%d},' % number) for number in range(60))
    store.close()
    assert run("compact", "--data-dir", data_dir).stdout.startswith("gave back 0 bytes")


def test_compact_leaves_what_is_damaged(data_dir: Path) -> None:
    """A damaged segment stays as it is, is named, and the exit code is 1; the others go."""
    damaged = without_bytes(data_dir)[1]
    content = bytearray(damaged.read_bytes())
    content[100] ^= 0xFF
    damaged.write_bytes(content)
    result = run("compact", "--data-dir", data_dir)
    assert result.returncode == 1
    assert damaged.name in result.stderr
    assert damaged.read_bytes() == content
    assert len(segments(data_dir)) == 3, "it, the newest, and what stands for the others"


@pytest.mark.parametrize("command", ["verify", "compact", "reindex"])
def test_more_segments_than_files_may_be_open_by_default(tmp_path: Path, command: str) -> None:
    """A log of more segments than the usual limit of open files is no less looked after."""
    data_dir = tmp_path / "data"
    store = Store.open(data_dir, Limits(segment_bytes=400, zero_ahead_bytes=0))
    for number in range(100):
        store.put_value(b"key", b"%d" % number * 100, lambda: None)
        assert store.commit() is None
    store.close()
    assert len(segments(data_dir)) == 100
    limit = 'ulimit -S -n 80; exec "$@"'
    program = [sys.executable, "-m", "durable_streamsd", command, "--data-dir", str(data_dir)]
    result = subprocess.run(["sh", "-c", limit, "sh", *program], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


def test_dump_prints_every_batch(data_dir: Path) -> None:
    """`dump` prints the log as JSON lines: all records in order, payload if asked for."""
    result = run("dump", "--data-dir", data_dir, "--payload")
    assert result.returncode == 0
    values = [json.loads(line) for line in result.stdout.splitlines()]
    batches = [value for value in values if "batch" in value]
    assert [value["batch"] for value in batches] == list(range(1, len(batches) + 1))
    payload = "".join(
        run["payload"] for value in batches for run in value["runs"] if run["stream"] == 1
    )
    assert json.loads(f"[{payload[:-1]}]") == [{"n": number} for number in range(60)]


def test_dump_of_a_healthy_log_tells_of_no_damage(data_dir: Path) -> None:
    """The end of the log is called that, with what an unfinished write left behind it or not."""
    end = json.loads(run("dump", "--data-dir", data_dir).stdout.splitlines()[-1])
    assert end["because"] == "the log ends here"
    with segments(data_dir)[-1].open("r+b") as segment:
        segment.seek(end["end"])
        segment.write(b"half a head")
    result = run("dump", "--data-dir", data_dir)
    end = json.loads(result.stdout.splitlines()[-1])
    assert end["because"] == "the log ends here; an unfinished write behind it is ignored"
    assert "damage" not in result.stdout


@pytest.mark.parametrize("number", [0, -1])
def test_dump_tells_damage_from_the_end(data_dir: Path, number: int) -> None:
    """Where valid batches come later it is damage, in the last segment as in the others."""
    values = [json.loads(line) for line in run("dump", "--data-dir", data_dir).stdout.splitlines()]
    name = segments(data_dir)[number].name
    at = next(i for i, value in enumerate(values) if value.get("segment") == name)
    batch = values[at + 2]
    with segments(data_dir)[number].open("r+b") as segment:
        segment.seek(batch["position"])
        segment.write(bytes(8))
    result = run("dump", "--data-dir", data_dir)
    damaged = [line for line in map(json.loads, result.stdout.splitlines()) if "damage" in line]
    assert [(line["segment"], line["end"]) for line in damaged] == [(name, batch["position"])]


def test_dump_beside_a_daemon(tmp_path: Path) -> None:
    """A directory in use can be dumped, and its end is no damage."""
    with Daemon(tmp_path / "data") as daemon:
        subprocess.run(
            ["curl", "-sS", "-X", "PUT", f"{daemon.url}/v1/stream/s"], check=True, timeout=60
        )
        result = run("dump", "--data-dir", tmp_path / "data")
    assert result.returncode == 0
    assert "damage" not in result.stdout


@pytest.mark.parametrize("command", ["dump", "verify", "reindex"])
def test_a_reader_that_goes_away_is_exit_code_141(data_dir: Path, command: str) -> None:
    """Whoever closes the output early is told nothing more, as with the stream commands."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        result = subprocess.run(
            [sys.executable, "-m", "durable_streamsd", command, "--data-dir", data_dir],
            stdout=writer,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    finally:
        os.close(writer)
    assert (result.returncode, result.stderr) == (141, b"")


@pytest.mark.parametrize("command", ["reindex", "backup", "restore", "dump"])
def test_who_does_not_check_payload_says_so(command: str) -> None:
    """The help of what looks like a check but is none names the command that is one."""
    text = " ".join(run(command, "--help").stdout.split())
    assert "not checked" in text
    assert '"verify"' in text or 'run "verify"' in text


@pytest.mark.parametrize("command", ["dump", "backup"])
def test_what_works_beside_a_daemon_says_so(command: str) -> None:
    """The option's help tells whether a daemon may be using the directory."""
    assert "a daemon may be using it" in " ".join(run(command, "--help").stdout.split())


@pytest.mark.parametrize("command", ["verify", "reindex", "serve"])
def test_a_directory_in_use_is_exit_code_3(data_dir: Path, command: str) -> None:
    """A directory that a daemon has open is refused with exit code 3 and a sentence."""
    with Daemon(data_dir):
        result = run(command, "--data-dir", data_dir)
    assert result.returncode == 3
    assert "another process has this directory open" in result.stderr


@pytest.mark.parametrize("command", ["verify", "reindex", "dump", "serve"])
def test_a_foreign_directory_is_refused_unchanged(tmp_path: Path, command: str) -> None:
    """A folder that is not ours is refused with a sentence, exit code 1, and left as it is."""
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years of work")
    result = run(command, "--data-dir", foreign)
    assert result.returncode == 1
    assert str(foreign) in result.stderr
    assert "Traceback" not in result.stderr
    assert [path.name for path in foreign.iterdir()] == ["thesis.txt"]


def test_another_format_version_is_refused(data_dir: Path) -> None:
    """A directory of a newer format is refused with a sentence that says so."""
    file = data_dir / "FORMAT"
    file.write_text(file.read_text().replace("format 1", "format 2"))
    before = digest(data_dir)
    result = run("serve", "--data-dir", data_dir)
    assert result.returncode == 1
    assert "the directory has format 2" in result.stderr
    assert digest(data_dir) == before


def test_the_daemon_refuses_a_damaged_log_unchanged(data_dir: Path) -> None:
    """A log that is damaged where recovery has to read is refused with file and position."""
    shutil.rmtree(data_dir / "index")
    segment = segments(data_dir)[1]
    data = bytearray(segment.read_bytes())
    data[100] ^= 0xFF
    segment.write_bytes(data)
    before = digest(data_dir)
    result = run("serve", "--data-dir", data_dir, "--port", "0")
    assert result.returncode == 1
    assert f"{segment.name}, position " in result.stderr
    assert digest(data_dir) == before


def test_a_backup_opens_verifies_and_restores(data_dir: Path, tmp_path: Path) -> None:
    """A backup of a closed directory is sound, and restoring it gives the same log."""
    copy, back = tmp_path / "copy", tmp_path / "back"
    result = run("backup", "--data-dir", data_dir, "--to", copy)
    assert result.returncode == 0
    assert f"payload is not checked: run durable-streamsd verify --data-dir {copy}" in result.stdout
    assert run("verify", "--data-dir", copy).returncode == 0
    assert run("restore", "--from", copy, "--data-dir", back).returncode == 0
    assert digest(back / "segments") == digest(data_dir / "segments")


def test_backup_and_restore_refuse_to_overwrite(data_dir: Path, tmp_path: Path) -> None:
    """Neither command writes into a directory that has something in it."""
    occupied = tmp_path / "occupied"
    occupied.mkdir()
    (occupied / "thesis.txt").write_text("years of work")
    for arguments in (
        ("backup", "--data-dir", data_dir, "--to", occupied),
        ("restore", "--from", data_dir, "--data-dir", occupied),
    ):
        result = run(*arguments)
        assert result.returncode == 1
        assert "not an empty directory" in result.stderr
    assert [path.name for path in occupied.iterdir()] == ["thesis.txt"]
