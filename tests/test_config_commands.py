"""The reference of settings, and the commands about them, as an operator has them."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from durable_streamsd.config import FLAGS, Settings
from durable_streamsd.settings.lines import key_lines
from durable_streamsd.settings.loading import load_settings

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "packaging" / "durable-streamsd.toml"
EXAMPLE = "  # example"
SETTING_LINE = re.compile(r"#(\[\[[a-z-]+\]\]|[a-z][a-z0-9-]* = .)")


def run(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "durable_streamsd", "config", *map(str, arguments)]
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("DURABLE_STREAMSD_")}
    return subprocess.run(
        command, capture_output=True, text=True, env={**inherited, **environment}, timeout=60
    )


def reference(examples: bool) -> str:
    """The reference with its comment signs taken away: the defaults, or the examples."""
    lines = [line[1:] for line in REFERENCE.read_text().splitlines() if SETTING_LINE.match(line)]
    return "\n".join(line for line in lines if line.endswith(EXAMPLE) is examples)


def test_the_reference_has_every_setting_and_its_default(tmp_path: Path) -> None:
    """All settings are in the reference file, each once, with the default that it has."""
    file = tmp_path / "defaults.toml"
    file.write_text(reference(examples=False))
    assert load_settings({}, {}, file) == Settings()
    defaults = set(tomllib.loads(file.read_text()))
    examples = set(tomllib.loads(reference(examples=True)))
    assert not defaults & examples
    assert {key.replace("-", "_") for key in defaults | examples} == set(
        Settings.__struct_fields__
    ), "add what is missing to packaging/durable-streamsd.toml"
    for key in examples:
        assert not getattr(Settings(), key.replace("-", "_")), f"{key} has a default"


def test_the_reference_changes_nothing_as_it_is() -> None:
    """Everything in it is a comment; its examples, too, are right."""
    assert tomllib.loads(REFERENCE.read_text()) == {}
    assert load_settings({}, {}, REFERENCE) == Settings()
    result = run("check", REFERENCE)
    assert (result.returncode, result.stderr) == (0, "")


def test_the_examples_of_the_reference_are_right(tmp_path: Path) -> None:
    """What it shows of settings without a default is accepted."""
    file = tmp_path / "examples.toml"
    file.write_text(reference(examples=True))
    result = run("check", file)
    assert result.returncode == 0, result.stdout


def test_the_reference_names_every_flag() -> None:
    """A flag whose name differs from its setting's is told beside it."""
    text = REFERENCE.read_text()
    for flag, name in FLAGS.items():
        assert f"#{flag} = " in text or f"--{flag}" in text, name


def test_check_names_the_line_of_everything_that_is_wrong(tmp_path: Path) -> None:
    """All problems of a file are told at once, each with its line and key; the exit code is 1."""
    file = tmp_path / "daemon.toml"
    file.write_text(
        'port = "x"\n\nprot = 1\npublic-url = "example.org"\nhost = "no such host"\n'
        f'data-dir = "{file}"\nmax-body = 1\nbody-bytes-max = 2\n'
    )
    result = run("check", file)
    assert result.returncode == 1
    told = [line.removeprefix(f"{file}:").split(": ")[:2] for line in result.stdout.splitlines()]
    assert sorted(told) == [
        ["1", "port"],
        ["3", "prot"],
        ["4", "public-url"],
        ["5", "host"],
        ["6", "data-dir"],
        ["8", "body-bytes-max"],
    ]


@pytest.mark.parametrize(
    ("text", "code"), [(b"port = 1\n", 0), (b"port = \n", 1), (b"\xff", 1), (None, 2)]
)
def test_check_exits_as_it_says(tmp_path: Path, text: bytes | None, code: int) -> None:
    """0 for a good file, 1 for a wrong one, 2 for one that is not there."""
    file = tmp_path / "daemon.toml"
    if text is not None:
        file.write_bytes(text)
    result = run("check", file)
    assert result.returncode == code
    assert str(file) in result.stdout + result.stderr


def test_check_looks_at_the_file_alone(tmp_path: Path) -> None:
    """What is wrong in the environment is no fault of the file."""
    file = tmp_path / "daemon.toml"
    file.write_text("port = 1\n")
    assert run("check", file, DURABLE_STREAMSD_PORT="x").returncode == 0


def test_show_tells_where_each_value_comes_from(tmp_path: Path) -> None:
    """Default, line of the file, variable or flag: each value's source is named."""
    file = tmp_path / "daemon.toml"
    file.write_text("# mine\nhead-fields-max = 7\nbacklog = 5\nport = 1\n")
    result = run(
        "show", "--config", file, "--port", "80", DURABLE_STREAMSD_BACKLOG="6", DURABLE_X="1"
    )
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert [line.partition(" = ")[0] for line in lines if line[0] != "#"] == [
        name.replace("_", "-")
        for name in Settings.__struct_fields__
        if getattr(Settings(), name) is not None
    ]
    origins = {line.split()[0].lstrip("#"): line.rpartition("# ")[2] for line in lines}
    assert origins["head-fields-max"] == f"{file}:2"
    assert origins["backlog"] == "environment DURABLE_STREAMSD_BACKLOG"
    assert origins["port"] == "flag --port"
    assert origins["host"] == "default"


def test_what_show_prints_is_a_configuration_file(tmp_path: Path) -> None:
    """Its output, read as a file, gives the settings that it was made from."""
    given = tmp_path / "given.toml"
    given.write_text(
        "host = 'say \"x\" \\ ü'\nmax-body = 4097\nlong-poll-timeout = 0.125\n"
        + reference(examples=True)
    )
    shown = tmp_path / "shown.toml"
    shown.write_text(run("show", "--config", given).stdout)
    assert load_settings({}, {}, shown) == load_settings({}, {}, given)


def test_show_refuses_what_serve_refuses(tmp_path: Path) -> None:
    """Wrong settings are not shown; the exit code is that of `serve`."""
    result = run("show", "--port", "x")
    assert (result.returncode, result.stdout) == (2, "")
    assert "--port: expected a whole number" in result.stderr


def test_keys_are_found_on_their_lines() -> None:
    """Values over several lines, tables and arrays of tables do not mislead the count."""
    text = '''
a = """
b = 1
[c]"""
d = [
  1, # [x]
  { e = 2 },
]
"f.g" = 3
[[h]]
i = 1
[h.j]
k = 1
[[h]]

i = 2
[l]
m.n = 1'''
    assert tomllib.loads(text)["d"] == [1, {"e": 2}]
    lines = key_lines(text)
    assert lines["a",] == 2
    assert lines["d",] == 5
    assert lines["f.g",] == 9
    assert lines["h",] == lines["h", 0] == 10
    assert lines["h", 0, "i"] == 11
    assert lines["h", 0, "j", "k"] == 13
    assert lines["h", 1, "i"] == 16
    assert lines["l", "m", "n"] == 18
    assert ("b",) not in lines
    assert ("c",) not in lines
