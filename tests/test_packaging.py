"""The files of a release: what is in them, that they can be built again, and that they run.

The one-file program runs under each CPython of this machine, and under Debian's 3.14.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import time
import tomllib
import zipfile
from collections.abc import Iterator
from email.parser import Parser
from pathlib import Path

import pytest
from daemon import ROOT, Daemon
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from released import PYTHONS, Release, build, pythons
from simple_http import ask, create

sys.path.append(str(ROOT / "packaging"))
import bundle
import toolbox

PATIENCE_S = 60.0
STREAM = "/v1/stream/s"
TEXT = {"Content-Type": "text/plain"}
NOBODY = 65534
ON_THIS_MACHINE = pythons()


def test_the_build_is_reproducible(release: Release, tmp_path: Path) -> None:
    """Another umask, time zone and folder, the same bytes."""
    native = ["--arch", platform.machine()]
    again = build(tmp_path / "d", *native, umask=0o077, TZ="Asia/Tokyo", PYTHONHASHSEED="7")
    made = sorted(path.name for path in again.folder.iterdir() if path.name != "SHA256SUMS")
    assert len(made) == 5
    for name in made:
        same = (release.folder / name).read_bytes() == (again.folder / name).read_bytes()
        assert same, f"{name} differs"


def test_the_sums_are_right(release: Release) -> None:
    """`sha256sum --check SHA256SUMS` covers every other file."""
    lines = (release.folder / "SHA256SUMS").read_text().splitlines()
    told = {line[66:]: line[:64] for line in lines}
    there = {path.name for path in release.folder.iterdir()}
    assert set(told) == there - {"SHA256SUMS"}
    for name, digest in told.items():
        assert hashlib.sha256((release.folder / name).read_bytes()).hexdigest() == digest


@pytest.mark.parametrize("architecture", ["x86_64", "aarch64"])
def test_every_licence_is_told(release: Release, architecture: str) -> None:
    """The list has each package that is inside, with its text; it lies inside as well."""
    listed = (release.folder / "THIRD-PARTY-LICENSES.txt").read_text()
    with zipfile.ZipFile(release.pyz(architecture)) as archive:
        names = archive.namelist()
        inside = [name for name in names if re.search(r"dist-info/licenses/THIRD-PARTY", name)]
        assert [archive.read(name).decode() for name in inside] == [listed]
        for name in names:
            if name.endswith(".dist-info/METADATA"):
                package = Parser().parsestr(archive.read(name).decode())
                said = f"{package['Name']} {package['Version']}: "
                assert (listed.count(said) >= 2) is (package["Name"] != "durable-streamsd"), said


@pytest.mark.parametrize("architecture", ["x86_64", "aarch64"])
def test_nothing_of_the_builder_is_inside(release: Release, architecture: str) -> None:
    """No folder, interpreter or bytecode of the machine that built it; the other one's modules."""
    with zipfile.ZipFile(release.pyz(architecture)) as archive:
        for entry in archive.infolist():
            assert not entry.filename.endswith((".pyc", "direct_url.json", "RECORD"))
            if entry.filename.endswith(".so"):
                magic = archive.read(entry)[:20]
                assert magic[:4] == b"\x7fELF"
                machine = {62: "x86_64", 183: "aarch64"}[int.from_bytes(magic[18:20], "little")]
                assert machine == architecture
                assert archive.read(entry)[40:48] == bytes(8)  # no sections: nothing for debuggers
            elif entry.file_size < 1 << 20:
                assert str(ROOT).encode() + b"/" not in archive.read(entry), entry.filename


def test_the_wheel_is_the_two_packages(release: Release) -> None:
    """Code, type markers, licence and the command; no tests, no benchmark."""
    with zipfile.ZipFile(release.wheel) as archive:
        names = set(archive.namelist())
        info = f"durable_streamsd-{release.version}.dist-info"
        tops = {name.partition("/")[0] for name in names}
        assert tops == {"durable_streamsd", "storage", info}
        assert {"durable_streamsd/py.typed", "storage/py.typed", "storage/FORMAT.md"} <= names
        assert f"{info}/licenses/LICENSE" in names
        script = archive.read(f"{info}/entry_points.txt").decode()
        assert "durable-streamsd = durable_streamsd.cli:main" in script
    tracked = subprocess.run(
        ["git", "ls-files", "durable_streamsd/*.py", "storage/*.py"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.split()  # fmt: skip
    assert {name for name in names if name.endswith(".py")} == set(tracked)


def test_the_sdist_builds_the_same_wheel(release: Release, tmp_path: Path) -> None:
    """What is in the sources is enough, and they are nobody's: no user, one time."""
    with tarfile.open(release.sdist) as archive:
        members = archive.getmembers()
        assert {(member.uid, member.gid, member.uname) for member in members} == {(0, 0, "")}
        assert len({member.mtime for member in members}) == 1
        assert not [member.name for member in members if "/tests/" in member.name]
        archive.extractall(tmp_path, filter="data")
    (tools,) = (ROOT / "build").glob("tools-*/bin/complete")
    folder = tmp_path / f"durable_streamsd-{release.version}"
    subprocess.run(
        [tools.with_name("python"), "-m", "build", "--wheel", "--no-isolation", "--outdir", "made"],
        cwd=folder,
        env={**os.environ, "SOURCE_DATE_EPOCH": str(int(members[0].mtime))},
        check=True,
        capture_output=True,
    )
    with (
        zipfile.ZipFile(folder / "made" / release.wheel.name) as made,
        zipfile.ZipFile(release.wheel) as offered,
    ):
        assert sorted(made.namelist()) == sorted(offered.namelist())
        for name in offered.namelist():
            assert made.read(name) == offered.read(name), name


def test_the_locks_hold_hashes_and_no_addresses() -> None:
    """Every package is pinned by hash, and no file says where it is to be had."""
    for name in ("requirements.lock", "build-requirements.lock"):
        text = (ROOT / "packaging" / name).read_text()
        assert "://" not in text
        assert not re.search(r"^ *--(?!hash)", text, re.MULTILINE)
        for pinned in re.split(r"\n(?=\S)", text.strip()):
            assert re.match(r"[\w.-]+==[\w.]+ ", pinned), pinned
            assert "--hash=sha256:" in pinned, pinned


def test_the_locks_have_what_the_project_asks_for() -> None:
    """Each dependency is locked at a version that pyproject.toml allows."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lock = (ROOT / "packaging" / "requirements.lock").read_text()
    locked = dict(re.findall(r"^([\w.-]+)==([\w.]+)", lock, re.MULTILINE))
    for wanted in map(Requirement, project["dependencies"]):
        version = locked.get(canonicalize_name(wanted.name), "")
        hint = f"{wanted} is not locked: run python3 packaging/build.py lock"
        assert wanted.specifier.contains(version or "0"), hint


def test_wheels_that_disagree_stop_the_build(tmp_path: Path) -> None:
    """Wheels with other bytes under one name are not mixed; what describes one wheel may differ."""
    for python, code in (("3.11", "1"), ("3.12", "1"), ("3.13", "2")):
        info = tmp_path / python / "x-1.dist-info"
        info.mkdir(parents=True)
        (info / "WHEEL").write_text(python)
        (tmp_path / python / "x.py").write_text(code)
        (tmp_path / python / f"x.cpython-{python}.so").write_text(python)
    merged = tmp_path / "merged"
    bundle.merge(tmp_path / "3.11", merged)
    bundle.merge(tmp_path / "3.12", merged)
    with pytest.raises(toolbox.BuildError, match=r"x\.py differs"):
        bundle.merge(tmp_path / "3.13", merged)
    there = {path.name for path in merged.iterdir()}
    assert {"x.cpython-3.11.so", "x.cpython-3.12.so", "x.py"} <= there
    assert "x-1.dist-info" not in there  # it had nothing but what is of one wheel


def test_the_readme_names_the_files(release: Release) -> None:
    """What the README says to install is there, under that name."""
    named = set(re.findall(r"durable[-_]streamsd[-_]\d[\w.-]+", (ROOT / "README.md").read_text()))
    assert len(named) == 3
    assert named <= {path.name for path in release.folder.iterdir()}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the one-file program unpacks."""
    return tmp_path_factory.mktemp("cache")


def write_kill_read(daemon: Daemon) -> None:
    """What was acknowledged before SIGKILL is there afterwards."""
    assert create(daemon, STREAM).status == 201
    for number in range(20):
        assert ask(daemon, "POST", STREAM, b"%d," % number, TEXT).status == 204
    daemon.kill()
    began_s = time.monotonic()
    daemon.start()
    print(f"ready {time.monotonic() - began_s:.2f} s after the second start: {daemon.program}")
    assert ask(daemon, "GET", STREAM).body == b"".join(b"%d," % number for number in range(20))


@pytest.mark.parametrize("python", sorted(ON_THIS_MACHINE))
def test_one_file_runs(release: Release, cache: Path, tmp_path: Path, python: str) -> None:
    """Starts, appends, is killed, starts again and has it all, under each CPython there is."""
    environment = {"SHIV_ROOT": str(cache), "PYTHONPATH": ""}
    program = [ON_THIS_MACHINE[python], str(release.pyz())]
    with Daemon(tmp_path / "data", env=environment, program=program) as daemon:
        write_kill_read(daemon)
    said = subprocess.run([*program, "--version"], env=environment, capture_output=True, text=True)
    assert said.stdout == f"durable-streamsd {release.version}\n"


@pytest.fixture
def debian(tmp_path: Path) -> Iterator[Path]:
    """A folder with Debian's newest Python, and nothing else but what that needs."""
    root = tmp_path / "debian"
    command = ["mmdebstrap", "--quiet", "--variant=extract", f"--include=python{PYTHONS[-1]}"]
    command += ["--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr"]
    command += ["--aptopt=Acquire::Check-Valid-Until false", "forky", str(root)]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=200)
    except FileNotFoundError:
        pytest.fail("this test needs 'mmdebstrap', as root: apt install mmdebstrap", pytrace=False)
    if result.returncode != 0:
        pytest.fail(f"mmdebstrap failed, as it does without root:\n{result.stderr}", pytrace=False)
    yield root
    shutil.rmtree(root, ignore_errors=True)


def test_one_file_runs_under_debians_newest_python(
    release: Release, debian: Path, tmp_path: Path
) -> None:
    """The same under a Python that a machine may not have yet, with the C library of its time."""
    shutil.copyfile(release.pyz(), debian / "durable-streamsd.pyz")
    python = f"/usr/bin/python{PYTHONS[-1]}"
    program = ["chroot", str(debian), python, "/durable-streamsd.pyz"]
    daemon = Daemon(Path("/data"), env={"SHIV_ROOT": "/cache", "PYTHONPATH": ""}, program=program)
    daemon.stderr_path = tmp_path / "stderr"
    with daemon:
        write_kill_read(daemon)
    assert (debian / "data").is_dir()


def test_first_starts_at_the_same_time(release: Release, tmp_path: Path) -> None:
    """Eight processes of three Pythons unpack into one place: each runs, once is unpacked."""
    programs = list(ON_THIS_MACHINE.values())
    environment = {"SHIV_ROOT": str(tmp_path / "cache")}
    running = [
        subprocess.Popen(
            [programs[number % len(programs)], release.pyz(), "--version"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(8)
    ]
    for process in running:
        said, errors = process.communicate(timeout=PATIENCE_S)
        assert (said, errors) == (f"durable-streamsd {release.version}\n", "")
    unpacked = [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    assert len(unpacked) == 1


def test_a_crash_while_unpacking_is_made_good(release: Release, tmp_path: Path) -> None:
    """Half of it is there, under the name that is used before it is whole."""
    environment = {"SHIV_ROOT": str(tmp_path)}
    command = [sys.executable, str(release.pyz()), "--version"]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    (whole,) = (path for path in tmp_path.iterdir() if path.is_dir())
    torn = whole.rename(whole.with_name(whole.name + ".tmp"))
    shutil.rmtree(torn / "site-packages" / "click")
    (torn / "site-packages" / "durable_streamsd" / "cli" / "__init__.py").write_text("cut")
    said = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert said.stdout == f"durable-streamsd {release.version}\n", said.stderr


IN_A_READ_ONLY_SYSTEM = """
set -e
mount --bind "$1" "$1"
mount --bind "$2" "$2"
mount -o remount,bind,ro /
shift 2
exec setpriv --reuid 65534 --regid 65534 --clear-groups "$@"
"""


def test_it_writes_only_its_cache_and_its_data(release: Release) -> None:
    """As a user without a home, on a file system that is read-only but for the two."""
    folder = Path("/var/tmp") / f"durable-streamsd-test-{os.getpid()}"  # where nobody may look
    try:
        for part in ("cache", "data"):
            (folder / part).mkdir(parents=True)
            os.chown(folder / part, NOBODY, NOBODY)
        pyz = Path(shutil.copy(release.pyz(), folder))
        environment = {"SHIV_ROOT": str(folder / "cache"), "HOME": "/nonexistent"}
        script = [
            "sh",
            "-c",
            IN_A_READ_ONLY_SYSTEM,
            "-",
            str(folder / "cache"),
            str(folder / "data"),
        ]
        program = ["unshare", "--mount", *script, "/usr/bin/python3", str(pyz)]
        daemon = Daemon(folder / "data" / "d", env=environment, program=program)
        daemon.stderr_path = folder / "stderr"
        with daemon:
            write_kill_read(daemon)
            said = subprocess.run(
                [*program, "serve", "--data-dir", str(folder / "other")],
                env={**os.environ, **environment},
                capture_output=True,
                text=True,
                timeout=PATIENCE_S,
            )
            assert said.returncode == 1
            assert "Read-only file system" in said.stderr
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"HOME": "/proc/1"}, "cannot unpack into /proc/1/.cache/durable-streamsd: "),
        ({"XDG_CACHE_HOME": "/proc/1", "HOME": "/"}, "cannot unpack into /proc/1/durable-streamsd"),
        ({"SHIV_ROOT": "/proc/1/x"}, "cannot unpack into /proc/1/x: "),
    ],
)
def test_where_it_cannot_unpack_is_told(
    release: Release, environment: dict[str, str], told: str
) -> None:
    """A sentence with what to do, no traceback."""
    result = subprocess.run(
        [sys.executable, release.pyz(), "--version"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert told in result.stderr
    assert "set SHIV_ROOT" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_python_that_it_is_not_for_is_told(release: Release, tmp_path: Path) -> None:
    """One of another architecture's files, here; nothing is unpacked."""
    result = subprocess.run(
        [sys.executable, release.pyz("aarch64"), "--version"],
        env={"SHIV_ROOT": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert re.fullmatch(
        r"durable-streamsd: this file runs under (cpython-31[1-4]-aarch64-linux-gnu(, )?){4}; "
        r"this is cpython-3\d+-x86_64-linux-gnu \(.*\)\n",
        result.stderr,
    )
    assert not (tmp_path / "cache").exists()
