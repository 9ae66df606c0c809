"""The one-file program: site-packages for several interpreters side by side, zipped by shiv.

A compiled module carries interpreter and architecture in its file name
(`_core.cpython-313-x86_64-linux-gnu.so`), so the wheels of all interpreters go into one folder.
Where two wheels bring a file of the same name it has to hold the same bytes; anything else stops
the build. Only what describes one wheel's own installation differs by nature, and is left out: a
zipapp is never uninstalled.

shiv's bootstrap unpacks it at the first start, under a lock, and renames it into place whole.
"""

import hashlib
import importlib.metadata
import re
import shutil
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import elf
import toolbox

PYTHONS = ("3.11", "3.12", "3.13", "3.14")
PLATFORM = "manylinux_2_28"
"""The newest C library that may be asked for: 2.28."""
OF_ONE_WHEEL = frozenset({"RECORD", "WHEEL", "INSTALLER", "REQUESTED", "direct_url.json"})
MAIN = toolbox.ROOT / "packaging" / "zipapp_main.py"


def assemble(tools: toolbox.Tools, wheel: Path, architecture: str, work: Path) -> Path:
    """Install `wheel` and what it needs for each interpreter; returns the merged folder.

    Raises BuildError, also when the lock file lacks something that pyproject.toml asks for.
    """
    work.mkdir(parents=True)
    wanted = work / "requirements.txt"
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    wanted.write_text(f"{wheel.as_uri()} --hash=sha256:{digest}\n{toolbox.LOCK.read_text()}")
    merged = work / "site-packages"

    def install(python: str) -> Path:
        tree = work / python
        command = ["pip", "install", "--quiet", "--no-config", "--require-hashes"]
        command += ["--only-binary", ":all:", "--link-mode", "copy", "--python-version", python]
        command += ["--python-platform", f"{architecture}-{PLATFORM}", "--target", str(tree)]
        try:
            tools.run("uv", *command, "-r", wanted)
        except toolbox.BuildError as error:
            hint = "if it names a package that is not locked, run: packaging/build.py lock"
            raise toolbox.BuildError(f"{error}\n{hint}") from None
        return tree

    with ThreadPoolExecutor(len(PYTHONS)) as pool:  # they wait for the network more than they work
        for tree in pool.map(install, PYTHONS):
            merge(tree, merged)
    _check_architecture(merged, architecture)
    for module in merged.rglob("*.so"):
        module.write_bytes(elf.without_debugging(module.read_bytes()))
    toolbox.normalise(merged)
    return merged


def merge(tree: Path, merged: Path) -> None:
    """Put the files of `tree` beside those of `merged`. Raises BuildError where they differ."""
    shutil.rmtree(tree / "bin", ignore_errors=True)  # scripts that name the builder's interpreter
    for path in sorted(tree.rglob("*")):
        inside = path.relative_to(tree)
        described = inside.parts[0].endswith(".dist-info") and inside.name in OF_ONE_WHEEL
        if path.is_dir() or described or inside.name in (".lock", "uv_cache.json"):
            continue
        target = merged / inside
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        elif target.read_bytes() != path.read_bytes():
            raise toolbox.BuildError(f"{inside} differs between the interpreters' wheels")


def _check_architecture(merged: Path, architecture: str) -> None:
    """Every package has its compiled modules for all interpreters, or for none in particular."""
    found: dict[str, set[str]] = {}
    for path in merged.rglob("*.so"):
        tag = re.fullmatch(rf"(.+)\.cpython-3(\d+)-{architecture}-linux-gnu\.so", path.name)
        if tag is not None:
            found.setdefault(str(path.with_name(tag[1])), set()).add(f"3.{tag[2]}")
        elif not path.name.endswith(".abi3.so"):
            raise toolbox.BuildError(f"{path} is not a module for {architecture}")
    for module, pythons in found.items():
        if pythons != set(PYTHONS):
            raise toolbox.BuildError(f"{module} is only there for {sorted(pythons)}")


def zip_up(tools: toolbox.Tools, tree: Path, pyz: Path) -> None:
    """Make the executable zipapp of a site-packages folder."""
    toolbox.normalise(tree)
    plain = tree.parent / "plain.pyz"
    command = ["--site-packages", str(tree), "--console-script", "durable-streamsd"]
    command += ["--reproducible", "--uncompressed", "--output-file", str(plain)]
    tools.run("shiv", *command)
    suffixes = sorted(
        path.name.removeprefix("_cffi_backend") for path in tree.glob("_cffi_backend.*.so")
    )
    main = MAIN.read_text().replace("SUFFIXES = ()", f"SUFFIXES = {tuple(suffixes)!r}", 1)
    with pyz.open("wb") as file:
        file.write(b"#!/usr/bin/env python3\n")
        with zipfile.ZipFile(plain) as source, zipfile.ZipFile(file, "w") as target:
            for entry in source.infolist():
                data = source.read(entry) if entry.filename != "__main__.py" else main.encode()
                clean = zipfile.ZipInfo(entry.filename, time.gmtime(toolbox.epoch())[:6])
                clean.external_attr = 0o100644 << 16
                target.writestr(clean, data, zipfile.ZIP_DEFLATED)
    pyz.chmod(0o755)


def distributions(tree: Path) -> list[importlib.metadata.Distribution]:
    """What is installed in a site-packages folder, by name."""
    found = importlib.metadata.distributions(path=[str(tree)])
    return sorted(found, key=lambda one: one.metadata["Name"].lower())
