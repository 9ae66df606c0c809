"""The licences of everything that is inside the zipapp, as its packages state them."""

import re
from pathlib import Path

import bundle
import toolbox

COMPILED_IN = {
    "aiohttp": "llhttp (MIT)",
    "cffi": "libffi (MIT)",
    "cryptography": "OpenSSL (Apache-2.0), and crates under MIT, Apache-2.0 or BSD-3-Clause",
    "httptools": "llhttp (MIT), http-parser (MIT)",
    "lmdb": "LMDB (OLDAP-2.8)",
    "uvloop": "libuv (MIT)",
}
"""What the compiled modules contain of others, beside what the packages' metadata says."""
NAME = "THIRD-PARTY-LICENSES.txt"
RULE = "=" * 80


def describe(tree: Path) -> str:
    """A list of names, versions and licences, then their texts. Raises BuildError."""
    rows: list[str] = []
    texts: list[str] = []
    for one in bundle.distributions(tree):
        name = one.metadata["Name"]
        if name == "durable-streamsd":
            continue
        inside = f"; contains {COMPILED_IN[name]}" if name in COMPILED_IN else ""
        rows.append(f"{name} {one.version}: {_licence(one.metadata.json)}{inside}")
        folder = tree / _folder(tree, name)
        files = [
            path
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name.upper().startswith(("LICEN", "COPYING", "NOTICE"))
        ]
        if not files:
            raise toolbox.BuildError(f"{name} {one.version} brings no licence text")
        texts += [
            f"{RULE}\n{name} {one.version}: {path.name}\n{RULE}\n\n{path.read_text().strip()}\n"
            for path in files
        ]
    return "\n".join(
        [
            "The one-file program contains, unchanged but for debugging information:",
            "",
            *rows,
            "",
            *texts,
        ]
    )


def add(tree: Path, text: str) -> None:
    """Put the list beside the project's own licence."""
    (tree / _folder(tree, "durable-streamsd") / "licenses" / NAME).write_text(text)


def _folder(tree: Path, name: str) -> str:
    """The metadata folder of a package, by its name."""
    (found,) = [
        path.name
        for path in tree.glob("*.dist-info")
        if _plain(path.name.partition("-")[0]) == _plain(name)
    ]
    return found


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _licence(metadata: dict[str, str | list[str]]) -> str:
    """What the metadata says: an SPDX expression, a name, or a classifier."""
    for key in ("license_expression", "license"):
        value = metadata.get(key)
        if isinstance(value, str) and value.strip() and "\n" not in value.strip():
            return value.strip()
    for classifier in metadata.get("classifier", []):
        if classifier.startswith("License ::"):
            return classifier.rpartition(" :: ")[2]
    raise toolbox.BuildError(f"{metadata['name']} does not say its licence")
