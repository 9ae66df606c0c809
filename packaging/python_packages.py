"""The wheel and the sdist, from a copy of what git tracks: no stray file gets into them."""

import gzip
import io
import shutil
import tarfile
from pathlib import Path

import toolbox

SOURCES = ("durable_streamsd", "storage", "pyproject.toml", "README.md", "LICENSE")


def build(tools: toolbox.Tools, work: Path, out: Path) -> Path:
    """Build both into `out`; returns the wheel."""
    for name in toolbox.run("git", "ls-files", "-z", "--", *SOURCES).split("\0")[:-1]:
        target = work / "tree" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(toolbox.ROOT / name, target)
    toolbox.normalise(work / "tree")
    made = work / "made"
    tools.run("python", "-m", "build", "--no-isolation", "--outdir", made, cwd=work / "tree")
    (sdist,) = made.glob("*.tar.gz")
    (wheel,) = made.glob("*.whl")
    (out / sdist.name).write_bytes(_normalised(sdist))
    return Path(shutil.copyfile(wheel, out / wheel.name))


def _normalised(archive: Path) -> bytes:
    """The same tar.gz with nothing in it of who built it when."""
    tar = io.BytesIO()
    with (
        tarfile.open(archive) as source,
        tarfile.open(fileobj=tar, mode="w", format=tarfile.PAX_FORMAT) as target,
    ):
        for member in sorted(source.getmembers(), key=lambda member: member.name):
            clean = tarfile.TarInfo(member.name)
            clean.type, clean.size = member.type, member.size
            clean.mode = 0o755 if member.isdir() else 0o644
            clean.mtime = toolbox.epoch()
            target.addfile(clean, source.extractfile(member) if member.isfile() else None)
    return gzip.compress(tar.getvalue(), mtime=toolbox.epoch())
