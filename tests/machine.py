"""A machine to install things on: this one's files, a systemd of its own, and nothing that stays.

    overlay:  this system's root, read only  +  a tmpfs that takes every change
    booted by systemd-nspawn, with a network of its own, up to basic.target

Left out: running without root, and without Debian below; both fail the test with a sentence.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from volumes import run, unmount

BOOT_SECONDS_MAX = 60.0
COMMAND_SECONDS_MAX = 60.0
NEEDED = {"systemd-nspawn": "systemd-container", "dpkg": "dpkg", "nsenter": "util-linux"}


class Machine:
    """A booted machine; `root` is its file system, seen from here."""

    def __init__(self, root: Path, leader: int) -> None:
        self.root = root
        self._leader = leader

    def try_run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command there, as root, and wait for its end."""
        return subprocess.run(
            ["nsenter", f"--target={self._leader}", "--all", *command],
            env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin", "HOME": "/root"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS_MAX,
        )

    def run(self, *command: str) -> str:
        """What a command printed there. Raises AssertionError if it failed."""
        result = self.try_run(*command)
        assert result.returncode == 0, f"{command}\n{result.stdout}{result.stderr}"
        return result.stdout

    def shown(self, unit: str, *properties: str) -> dict[str, str]:
        """Properties of a unit."""
        lines = self.run("systemctl", "show", f"--property={','.join(properties)}", unit)
        return dict(line.split("=", 1) for line in lines.splitlines())


@contextlib.contextmanager
def booted(folder: Path) -> Iterator[Machine]:
    """A machine for the length of the block."""
    for program, package in NEEDED.items():
        if shutil.which(program) is None:
            pytest.fail(f"this test needs {program!r}: apt install {package}", pytrace=False)
    changes, root = folder / "changes", folder / "root"
    for part in (changes, root):
        part.mkdir()
    run("mount", "-t", "tmpfs", "tmpfs", changes)
    try:
        for part in (changes / "upper", changes / "work"):
            part.mkdir()
        layers = f"lowerdir=/,upperdir={changes}/upper,workdir={changes}/work"
        run("mount", "-t", "overlay", "-o", layers, "overlay", root)
        try:
            with _running(root, folder) as leader:
                yield Machine(root, leader)
        finally:
            unmount(root)
    finally:
        unmount(changes)


@contextlib.contextmanager
def _running(root: Path, folder: Path) -> Iterator[int]:
    """The process id of the machine's init, which runs."""
    (root / "etc" / "machine-id").unlink(missing_ok=True)
    (root / "etc" / "machine-id").touch()  # it draws one of its own
    # Images for containers have it, and with it packages would start nothing.
    (root / "usr" / "sbin" / "policy-rc.d").unlink(missing_ok=True)
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifications,
        (folder / "console").open("wb") as console,
    ):
        notifications.bind(str(folder / "notify"))
        notifications.settimeout(BOOT_SECONDS_MAX)
        command = ["systemd-nspawn", "--quiet", f"--directory={root}", "--boot", "--register=no"]
        command += ["--keep-unit", "--private-network", "--console=pipe", "--notify-ready=yes"]
        process = subprocess.Popen(
            [*command, f"--machine=test-{os.getpid()}", "systemd.unit=basic.target"],
            env={**os.environ, "NOTIFY_SOCKET": str(folder / "notify")},
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
        )
        leader = 0
        try:
            told: dict[str, str] = {}
            give_up = time.monotonic() + BOOT_SECONDS_MAX
            while "READY" not in told or "X_NSPAWN_LEADER_PID" not in told:
                if time.monotonic() > give_up or process.poll() is not None:
                    said = (folder / "console").read_text()[-4000:]
                    pytest.fail(f"systemd-nspawn needs root, and said:\n{said}", pytrace=False)
                with contextlib.suppress(TimeoutError):
                    lines = notifications.recv(4096).decode().splitlines()
                    told.update(line.partition("=")[::2] for line in lines)
                leader = int(told.get("X_NSPAWN_LEADER_PID", 0))
            yield leader
        finally:
            if leader:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(leader, signal.SIGKILL)
            else:
                process.kill()
            process.wait()
