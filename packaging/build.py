#!/usr/bin/env python3
"""Builds what a release offers, from what git tracks, into `dist/`.

    python3 packaging/build.py           everything
    python3 packaging/build.py lock      pin the newest versions that pyproject.toml allows

    durable_streamsd-V.tar.gz, .whl           sources, and what pip, pipx and uv install
    durable-streamsd-V-linux-ARCH.pyz         one file that runs under CPython 3.11 to 3.14
    durable-streamsd_V_ARCH.deb               the same with a hardened systemd service
    THIRD-PARTY-LICENSES.txt, SHA256SUMS

It needs Python 3.11 or newer with venv, git and dpkg-deb; the tools it uses are pinned by
build-requirements.lock, what goes into the zipapp by requirements.lock, both by hash. The same
commit, Python and zlib give the same bytes: every time stamp is SOURCE_DATE_EPOCH, by default that
of the commit.
"""

import argparse
import hashlib
import os
import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import bundle
import deb
import licences
import python_packages
import toolbox

ARCHITECTURES = ("x86_64", "aarch64")


def build(out: Path, work: Path, architectures: tuple[str, ...]) -> None:
    """Build everything into `out`, whose contents are replaced; `work` is for what is between."""
    tools = toolbox.Tools(toolbox.ROOT / "build")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    version = toolbox.version()
    wheel = python_packages.build(tools, work / "source", out)

    def for_one(architecture: str) -> str:
        tree = bundle.assemble(tools, wheel, architecture, work / architecture)
        text = licences.describe(tree)
        licences.add(tree, text)
        pyz = out / f"durable-streamsd-{version}-linux-{architecture}.pyz"
        bundle.zip_up(tools, tree, pyz)
        deb.build(pyz, architecture, version, text, work / f"deb-{architecture}", out)
        return text

    with ThreadPoolExecutor(len(architectures)) as pool:
        told = set(pool.map(for_one, architectures))
    if len(told) != 1:
        raise toolbox.BuildError("the architectures' packages have different licences")
    (out / licences.NAME).write_text(told.pop())
    (out / "SHA256SUMS").write_text(sums(out))


def sums(folder: Path) -> str:
    """Names and hashes of the files, for `sha256sum --check`."""
    return "".join(
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
        for path in sorted(folder.iterdir())
        if path.name != "SHA256SUMS"
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Build what a release offers.")
    parser.add_argument("command", nargs="?", choices=["all", "lock"], default="all")
    parser.add_argument("--out", type=Path, default=toolbox.ROOT / "dist")
    parser.add_argument("--arch", action="append", choices=ARCHITECTURES, help="[all]")
    arguments = parser.parse_args()
    os.umask(0o022)
    try:
        if arguments.command == "lock":
            toolbox.lock()
            return
        out = arguments.out.absolute()
        architectures = tuple(arguments.arch or ARCHITECTURES)
        with tempfile.TemporaryDirectory(prefix="durable-streamsd-build-") as work:
            build(out, Path(work), architectures)
    except toolbox.BuildError as error:
        sys.exit(f"build: {error}")
    print((out / "SHA256SUMS").read_text(), end="")


if __name__ == "__main__":
    main()
