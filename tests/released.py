"""What a release offers, built once for all tests, and the Pythons that it is tried with."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from daemon import ROOT

BUILD_SECONDS_MAX = 400
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
WHERE_PYTHONS_ARE = ("usr/bin", "usr/local/bin", "opt/*/bin")
WHERE_USERS_HAVE_THEM = ".pyenv/versions/*/bin"


class Release:
    """The folder that the build made, and the files in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        self.version = str(project["version"])

    def pyz(self, architecture: str = platform.machine()) -> Path:
        """The one-file program."""
        return self.folder / f"durable-streamsd-{self.version}-linux-{architecture}.pyz"

    @property
    def deb(self) -> Path:
        """The Debian package for this machine."""
        debian = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
        return self.folder / f"durable-streamsd_{self.version}_{debian}.deb"

    @property
    def wheel(self) -> Path:
        """The wheel of this project alone."""
        return self.folder / f"durable_streamsd-{self.version}-py3-none-any.whl"

    @property
    def sdist(self) -> Path:
        """The source distribution."""
        return self.folder / f"durable_streamsd-{self.version}.tar.gz"


def build(out: Path, *arguments: str, umask: int = 0o022, **environment: str) -> Release:
    """Build into `out` as the README says it."""
    for program in ("git", "dpkg-deb"):
        if shutil.which(program) is None:
            pytest.fail(f"building a release needs {program!r} on PATH", pytrace=False)
    result = subprocess.run(
        [sys.executable, "packaging/build.py", "--out", str(out), *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=BUILD_SECONDS_MAX,
        umask=umask,
    )
    if result.returncode != 0:
        pytest.fail(f"packaging/build.py failed:\n{result.stderr}", pytrace=False)
    return Release(out)


def pythons() -> dict[str, str]:
    """The CPythons on this machine that the one file is for, by version."""
    found = {"{}.{}".format(*sys.version_info): sys.executable}
    for version in PYTHONS:
        name = f"python{version}"
        candidates = [
            path for where in WHERE_PYTHONS_ARE for path in Path("/").glob(f"{where}/{name}")
        ]
        candidates += Path.home().glob(f"{WHERE_USERS_HAVE_THEM}/{name}")
        for path in sorted(candidates):
            found.setdefault(version, str(path))
    return found
