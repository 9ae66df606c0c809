"""What all build steps share: the pinned tools, running them, file modes and time stamps."""

import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "packaging" / "requirements.lock"
TOOLS_WANTED = ROOT / "packaging" / "build-requirements.in"
TOOLS_LOCK = ROOT / "packaging" / "build-requirements.lock"
OLDEST_PYTHON = "3.11"


class BuildError(Exception):
    """The build cannot go on; a sentence."""


def run(*command: str | Path, cwd: Path = ROOT, env: Mapping[str, str] | None = None) -> str:
    """Run a program and return what it printed. Raises BuildError with all it said."""
    arguments = [str(part) for part in command]
    try:
        result = subprocess.run(
            arguments,
            cwd=cwd,
            env={**os.environ, **(env or {}), "SOURCE_DATE_EPOCH": str(epoch())},
            capture_output=True,
            text=True,
        )
    except OSError as error:
        raise BuildError(f"{arguments[0]} is needed: {error.strerror}") from None
    if result.returncode != 0:
        raise BuildError(f"{' '.join(arguments)} failed:\n{result.stdout}{result.stderr}")
    return result.stdout


@functools.cache
def epoch() -> int:
    """The time stamp of everything that is built, in seconds."""
    given = os.environ.get("SOURCE_DATE_EPOCH")
    if given is not None:
        return int(given)
    command = ["git", "log", "-1", "--format=%ct"]
    return int(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)


def version() -> str:
    """Of this project."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert isinstance(project["version"], str)
    return project["version"]


def normalise(tree: Path) -> None:
    """Give everything below `tree` the modes and times that do not depend on who builds."""
    for path in [tree, *tree.rglob("*")]:
        runs = path.is_dir() or bool(path.stat().st_mode & 0o100)
        path.chmod(0o755 if runs else 0o644)
        os.utime(path, (epoch(), epoch()))


class Tools:
    """The build's own programs, in a virtual environment that is made when it is first used."""

    def __init__(self, folder: Path) -> None:
        wanted = hashlib.sha256(TOOLS_LOCK.read_bytes() + sys.version.encode()).hexdigest()
        self.bin = folder / f"tools-{wanted[:16]}" / "bin"
        if not (self.bin / "complete").exists():
            shutil.rmtree(self.bin.parent, ignore_errors=True)
            run(sys.executable, "-m", "venv", self.bin.parent)
            pip = ("-m", "pip", "install", "--quiet", "--require-hashes", "--only-binary", ":all:")
            run(self.bin / "python", *pip, "-r", TOOLS_LOCK)
            (self.bin / "complete").touch()

    def run(self, program: str, *arguments: str | Path, cwd: Path = ROOT) -> str:
        """Run one of them. Raises BuildError."""
        return run(self.bin / program, *arguments, cwd=cwd)


def lock() -> None:
    """Write both lock files anew: the newest versions, every one with its hashes."""
    tools = Tools(ROOT / "build")
    common = ["pip", "compile", "--quiet", "--universal", "--python-version", OLDEST_PYTHON]
    common += ["--generate-hashes", "--no-header", "--no-annotate", "--no-config", "--upgrade"]
    for wanted, locked in ((ROOT / "pyproject.toml", LOCK), (TOOLS_WANTED, TOOLS_LOCK)):
        tools.run("uv", *common, wanted, "--output-file", locked)
