"""The project's own rules, as tests: types, lint, layers, and what the README says to run."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("storage", "durable_streamsd")
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def imports(path: Path) -> set[str]:
    """The modules that a file imports, by their full names."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


@pytest.mark.parametrize(
    "command",
    [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]],
    ids=lambda command: " ".join(command),
)
def test_tools_find_nothing(command: list[str]) -> None:
    """Lint, format and the strict type checker pass on the whole tree."""
    result = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_storage_knows_nothing_of_the_daemon() -> None:
    """Arrows go one way: the engine imports neither the daemon nor anything of HTTP or loops."""
    foreign = {"durable_streamsd", "asyncio", "aiohttp", "uvloop", "httptools", "click"}
    for path in sources("storage"):
        assert not {name.partition(".")[0] for name in imports(path)} & foreign, path


def test_the_protocol_core_does_no_io() -> None:
    """The sans-I/O core imports no loop, no socket and no HTTP library."""
    foreign = {"asyncio", "aiohttp", "uvloop", "httptools", "socket", "threading", "lmdb"}
    for path in sources("durable_streamsd/core"):
        assert not {name.partition(".")[0] for name in imports(path)} & foreign, path


def test_one_module_imports_lmdb() -> None:
    """LMDB has one importer, `storage/index.py`."""
    assert [path.name for path in sources(*PACKAGES) if "lmdb" in imports(path)] == ["index.py"]


def test_one_module_changes_files() -> None:
    """Writes, syncs, truncations and renames of the engine go through `storage/disk.py` alone."""
    calls = {
        "pwrite", "pwritev", "write", "fsync", "fdatasync", "ftruncate", "truncate", "rename",
        "replace", "unlink", "remove", "posix_fallocate",
    }  # fmt: skip
    for path in sources("storage"):
        if path.name == "disk.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id == "os"
            ):
                assert node.attr not in calls, f"{path}: os.{node.attr}"


def test_every_module_says_what_it_is_for() -> None:
    """Each module opens with a docstring."""
    for path in sources(*PACKAGES, "bench", "tests"):
        text = path.read_text()
        assert not text or ast.get_docstring(ast.parse(text)), path


def test_ci_runs_the_readme_test_command() -> None:
    """The command that the README gives for the tests is the one that CI runs."""
    command = (ROOT / ".ci" / "run").read_text().splitlines()[-1]
    assert command.startswith("python3 -m venv")
    assert command in (ROOT / "README.md").read_text()


@pytest.mark.parametrize(
    "document", ["README.md", "CHANGELOG.md", "packaging/caches.md", "storage/FORMAT.md"]
)
def test_every_link_leads_somewhere(document: str) -> None:
    """Links to places in a document are links to its headings, others within the tree to files."""
    path = ROOT / document
    text = FENCED.sub("", path.read_text())
    anchors = [anchor_of(title) for title in re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)]
    assert len(anchors) == len(set(anchors))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        file, _, anchor = target.partition("#")
        if "://" not in target:
            assert (path.parent / file).exists(), target
            assert not anchor or (not file and anchor in anchors), target


def test_the_table_of_contents_has_every_section() -> None:
    """Each heading of the README but its title, and the one that only groups, is linked on top."""
    text = FENCED.sub("", (ROOT / "README.md").read_text())
    contents, *sections = re.split(r"^##+ (.+)$", text, flags=re.MULTILINE)
    titles = set(sections[::2]) - {"Operating it"}
    assert {anchor_of(title) for title in titles} == set(re.findall(r"\(#(.+?)\)", contents))


def anchor_of(title: str) -> str:
    """What a heading is called in links, as forges make it of its words."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")
