"""The Debian package: the zipapp with a systemd service, built by dpkg-deb alone.

Templates are in `packaging/debian/`; units and user are those of `systemd/`.

    /usr/bin/durable-streamsd                        runs the zipapp with Debian's Python
    /usr/lib/durable-streamsd/durable-streamsd.pyz
    /usr/lib/systemd/system/durable-streamsd.*       service: enabled; socket: for who wants it
    /usr/lib/sysusers.d/durable-streamsd.conf
    /etc/durable-streamsd/durable-streamsd.toml      a conffile: every setting, commented out
"""

import gzip
import shutil
import zipfile
from email.utils import formatdate
from json import loads
from pathlib import Path

import bundle
import toolbox
from licences import NAME as THIRD_PARTY

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
TEMPLATES = toolbox.ROOT / "packaging" / "debian"
UNITS = toolbox.ROOT / "systemd"
CONFIGURATION = toolbox.ROOT / "packaging" / "durable-streamsd.toml"
MAINTAINER = "durable-streamsd developers <durable-streamsd@localhost.invalid>"


def build(pyz: Path, architecture: str, version: str, licences: str, work: Path, out: Path) -> Path:
    """Build the package of a zipapp into `out`; returns it."""
    tree = work / "tree"
    place(pyz, tree / "usr/lib/durable-streamsd/durable-streamsd.pyz", 0o644)
    place(TEMPLATES / "durable-streamsd.sh", tree / "usr/bin/durable-streamsd", 0o755)
    for unit in ("durable-streamsd.service", "durable-streamsd.socket"):
        place(UNITS / unit, tree / "usr/lib/systemd/system" / unit, 0o644)
    users = tree / "usr/lib/sysusers.d/durable-streamsd.conf"
    place(UNITS / "durable-streamsd.sysusers", users, 0o644)
    place(CONFIGURATION, tree / "etc/durable-streamsd/durable-streamsd.toml", 0o644)
    _document(tree / "usr/share/doc/durable-streamsd", version, licences)

    values = {
        "VERSION": version,
        "ARCHITECTURE": ARCHITECTURES[architecture],
        "MAINTAINER": MAINTAINER,
        "OLDEST": bundle.PYTHONS[0],
        "TOO_NEW": f"3.{int(bundle.PYTHONS[-1].partition('.')[2]) + 1}",
        "GLIBC": bundle.PLATFORM.removeprefix("manylinux_").replace("_", "."),
        "KIB": str(sum(path.stat().st_size for path in tree.rglob("*")) >> 10),
        "UNPACKED": f"durable-streamsd.pyz_{_build_id(pyz)}",
    }
    control = tree / "DEBIAN"
    control.mkdir()
    for name in ("control", "conffiles", "postinst", "prerm", "postrm"):
        text = (TEMPLATES / name).read_text()
        for key, value in values.items():
            text = text.replace(f"@{key}@", value)
        (control / name).write_text(text)
        (control / name).chmod(0o644 if name in ("control", "conffiles") else 0o755)
    toolbox.normalise(tree)
    made = out / f"durable-streamsd_{version}_{ARCHITECTURES[architecture]}.deb"
    # The zipapp is compressed already: more effort would only take time.
    pack = ("dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build")
    toolbox.run(*pack, tree, made)
    return made


def place(source: Path, target: Path, mode: int) -> None:
    """Copy a file to where it will be installed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(mode)


def _document(folder: Path, version: str, licences: str) -> None:
    folder.mkdir(parents=True)
    (folder / "copyright").write_text(
        "durable-streamsd is under the Apache License, version 2.0, which Debian has in\n"
        f"/usr/share/common-licenses/Apache-2.0. What it contains of others: {THIRD_PARTY}.\n"
    )
    (folder / THIRD_PARTY).write_text(licences)
    entry = (
        f"durable-streamsd ({version}) stable; urgency=medium\n\n"
        "  * See CHANGELOG.md of this version's sources.\n\n"
        f" -- {MAINTAINER}  {formatdate(toolbox.epoch())}\n"
    )
    (folder / "changelog.gz").write_bytes(gzip.compress(entry.encode(), mtime=0))


def _build_id(pyz: Path) -> str:
    """By which the zipapp names what it unpacks."""
    with zipfile.ZipFile(pyz) as archive:
        return str(loads(archive.read("environment.json"))["build_id"])
