"""The file of tokens, and `durable-streamsd token`, which changes it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from daemon import ROOT

from durable_streamsd.auth.scopes import Scopes
from durable_streamsd.auth.token_file import (
    TokenFileError,
    build_table,
    decode,
    digest_of,
)
from durable_streamsd.cli import main

WRITERS = 4
TOKENS_EACH = 5


class Command:
    """`durable-streamsd token`, in this process."""

    def __init__(self, capfd: pytest.CaptureFixture[str]) -> None:
        self.capfd = capfd
        self.stdout = ""
        self.stderr = ""

    def __call__(self, *args: str, **env: str) -> int:
        """Run it; its exit code. What it printed is in `stdout` and `stderr`."""
        self.capfd.readouterr()
        result = CliRunner().invoke(main, ["token", *args], env=env)
        assert result.exception is None or isinstance(result.exception, SystemExit)
        self.stdout, self.stderr = self.capfd.readouterr().out, result.stderr
        return result.exit_code

    def create(self, file: Path, name: str, *args: str) -> str:
        """A new token."""
        assert self("create", name, "--file", str(file), *(args or ("--scope", "read:a"))) == 0
        return self.stdout.strip()

    def listed(self, file: Path) -> list[dict[str, object]]:
        """What `list` says."""
        assert self("list", "--json", "--file", str(file)) == 0
        return [json.loads(line) for line in self.stdout.splitlines()]


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str]) -> Command:
    """The command; standard output is written by its descriptor."""
    return Command(capfd)


def test_a_token_is_shown_once_and_kept_as_its_hash(tmp_path: Path, command: Command) -> None:
    """256 random bits behind a prefix; the file has the SHA-256, and is its owner's alone."""
    file = tmp_path / "tokens.json"
    token = command.create(
        file, "ci", "--scope", "read:a/*", "--scope", "append:b", "--expires-in", "2h"
    )
    assert re.fullmatch(r"dst_[A-Za-z0-9_-]{43}", token)
    assert token not in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600
    entry = decode(file.read_bytes()).tokens[0]
    assert bytes.fromhex(entry.sha256) == digest_of(token.encode())
    assert entry.expires_at is not None
    assert (entry.expires_at - entry.created_at).total_seconds() == 7_200
    (shown,) = command.listed(file)
    assert (shown["name"], shown["scopes"]) == ("ci", ["read:a/*", "append:b"])
    assert command.create(file, "other") != token


def test_a_token_is_revoked_by_name_or_id_all_or_none(tmp_path: Path, command: Command) -> None:
    """One that is not there makes the command fail, and nothing is revoked then."""
    file = tmp_path / "tokens.json"
    for name in ("a", "b", "c"):
        command.create(file, name)
    by_id = str(command.listed(file)[1]["id"])
    assert command("revoke", "a", "nobody", "--file", str(file)) == 1
    assert len(command.listed(file)) == 3
    assert command("revoke", "a", by_id, "--file", str(file)) == 0
    assert [entry["name"] for entry in command.listed(file)] == ["c"]


def test_the_file_is_found_in_the_settings(tmp_path: Path, command: Command) -> None:
    """Without --file it is the daemon's own, from its configuration or the environment."""
    file, config = tmp_path / "tokens.json", tmp_path / "daemon.toml"
    config.write_text(f"tokens-file = '{file}'\n")
    assert command("create", "a", "--scope", "read:a", "--config", str(config)) == 0
    assert command("list", DURABLE_STREAMSD_TOKENS_FILE=str(file)) == 0
    assert "read:a" in command.stdout
    assert command("list") == 2
    assert "--file" in command.stderr


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["create", "a", "--scope", "write:x"], 2),
        (["create", "a"], 2),
        (["create", "a", "--scope", "read:x", "--expires-in", "soon"], 2),
        (["create", "a", "--scope", "read:x", "--expires-in", "999999999d"], 2),
        (["create", "there", "--scope", "read:x"], 1),
        (["create", "0123abcd", "--scope", "read:x"], 1),
        (["create", "two\nlines", "--scope", "read:x"], 1),
        (["revoke"], 2),
    ],
)
def test_a_wrong_command_leaves_the_file_as_it_is(
    tmp_path: Path, command: Command, args: list[str], code: int
) -> None:
    """Usage is 2, what cannot be done is 1, and either says why without a traceback."""
    file = tmp_path / "tokens.json"
    command.create(file, "there")
    before = file.read_bytes()
    assert command(*args, "--file", str(file)) == code
    assert command.stderr
    assert file.read_bytes() == before


def test_writers_at_the_same_time_lose_nothing(tmp_path: Path, command: Command) -> None:
    """Processes that change the file at once wait for each other, and every token is there."""
    file = tmp_path / "tokens.json"
    script = (
        "import sys; from pathlib import Path\n"
        "from durable_streamsd.auth.token_editor import create_token\n"
        f"for n in range({TOKENS_EACH}):\n"
        "    create_token(Path(sys.argv[1]), f'{sys.argv[2]}-{n}', ['read:a'], None)\n"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", script, str(file), f"w{number}"], cwd=ROOT)
        for number in range(WRITERS)
    ]
    assert [writer.wait(60) for writer in writers] == [0] * WRITERS
    assert len(command.listed(file)) == WRITERS * TOKENS_EACH
    assert {path.name for path in tmp_path.iterdir()} == {"tokens.json", "tokens.json.lock"}


def test_a_changed_file_keeps_mode_and_owner_and_a_link_stays_one(
    tmp_path: Path, command: Command
) -> None:
    """A daemon of another user can go on reading it, wherever it really lies."""
    real, link = tmp_path / "real.json", tmp_path / "tokens.json"
    command.create(real, "a")
    real.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(real, 65_534, 65_534)
    owner = real.stat().st_uid
    link.symlink_to(real)
    command.create(link, "b")
    assert link.is_symlink()
    assert (real.stat().st_mode & 0o777, real.stat().st_uid) == (0o640, owner)
    assert len(command.listed(real)) == 2


GOOD = {
    "id": "0000000a",
    "name": "n",
    "sha256": "0" * 64,
    "scopes": ["read:a"],
    "created_at": "2026-01-31T12:00:00Z",
    "expires_at": None,
}


BAD_FILES: list[tuple[bytes, str]] = [
    (b"", "no file of tokens"),
    (b"[]", "no file of tokens"),
    (b"[" * 100_000, "no file of tokens"),
    (b"\xff\xfe", "no file of tokens"),
    (json.dumps({"version": 2, "tokens": []}).encode(), "version 2"),
    (json.dumps({"version": 1, "tokens": [], "more": 1}).encode(), "no file of tokens"),
    *(
        (json.dumps({"version": 1, "tokens": [{**GOOD, **wrong}]}).encode(), said)
        for wrong, said in (
            ({"id": "x"}, "an id"),
            ({"id": "00000000"}, "an id"),
            ({"sha256": "0" * 63}, "sha256"),
            ({"name": ""}, "a name"),
            ({"scopes": []}, "1 to 100 scopes"),
            ({"scopes": ["read:a"] * 101}, "1 to 100 scopes"),
            ({"scopes": ["rule:a"]}, "a bad scope"),
            ({"expires_at": "2026-01-31T12:00:00"}, "offset from UTC"),
            ({"expires_at": "soon"}, "no file of tokens"),
            ({"scope": "read:a"}, "no file of tokens"),
        )
    ),
    (json.dumps({"version": 1, "tokens": [GOOD, GOOD]}).encode(), "twice"),
]


@pytest.mark.parametrize(("content", "said"), BAD_FILES, ids=range(len(BAD_FILES)))
def test_a_bad_file_is_refused_as_a_whole(content: bytes, said: str) -> None:
    """Half a file could be somebody's rights, or lack somebody's revocation."""
    with pytest.raises(TokenFileError, match=said):
        decode(content)


def test_who_did_not_change_is_the_same_caller(tmp_path: Path, command: Command) -> None:
    """A new file ends those who are not in it, or not as they were, and nobody else."""
    file = tmp_path / "tokens.json"
    for name in ("stays", "goes", "changes"):
        command.create(file, name)
    before = build_table(decode(file.read_bytes()), Scopes(), None)
    command("revoke", "goes", "--file", str(file))
    file.write_text(file.read_text().replace('"name": "changes"', '"name": "changed"'))
    after = build_table(decode(file.read_bytes()), Scopes(), before)
    callers = before.by_id.values()
    same = [entry.name for key, entry in after.entries.items() if after.by_id[key] in callers]
    assert same == ["stays"]
