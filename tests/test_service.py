"""The Debian package and its service, on a machine with a real systemd.

What systemd does to a service (its user, directories, system call filter, watchdog, sockets) is
tried, not read.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from machine import Machine, booted
from released import Release
from simple_http import wait_until

PACKAGE = "durable-streamsd"
SERVICE = f"{PACKAGE}.service"
PATIENCE_S = 30.0
EXPOSURE_MAX = 20
"""2.0, in the tenths that `systemd-analyze security --threshold` takes."""

APPEND_STEADILY = """
import http.client, sys, time
for number in range(int(sys.argv[1])):
    connection = http.client.HTTPConnection("127.0.0.1", 4437, timeout=20)
    connection.request("POST", "/v1/stream/kept", "x", {"Content-Type": "text/plain"})
    print(connection.getresponse().status)
    connection.close()
    time.sleep(0.005)
"""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory, release: Release) -> Iterator[Machine]:
    """A machine without the package, which lies in /root/new.deb."""
    with booted(tmp_path_factory.mktemp("machine")) as running:
        shutil.copyfile(release.deb, running.root / "root" / "new.deb")
        yield running


@pytest.fixture
def service(machine: Machine) -> Iterator[Machine]:
    """The machine with the package installed, its service running, and one stream in it."""
    if machine.try_run("systemctl", "is-active", SERVICE).returncode != 0:
        machine.run("dpkg", "--install", "/root/new.deb")
    machine.try_run(PACKAGE, "delete", "kept")
    machine.run(PACKAGE, "create", "kept", "--content-type", "text/plain")
    machine.run(PACKAGE, "write", "kept", "before;")
    yield machine
    machine.run("rm", "-rf", f"/etc/systemd/system/{SERVICE}.d")
    machine.run("systemctl", "daemon-reload")
    machine.try_run("systemctl", "disable", "--now", f"{PACKAGE}.socket")


def test_installing_it_is_running_it(service: Machine) -> None:
    """Enabled and ready, as a user of its own; it says so; and a reload is one."""
    properties = ("ActiveState", "StatusText", "User", "MainPID", "UnitFileState")
    shown = service.shown(SERVICE, *properties)
    pid = shown.pop("MainPID")
    assert shown == {
        "ActiveState": "active",
        "StatusText": "serving /var/lib/durable-streamsd at http://127.0.0.1:4437",
        "User": PACKAGE,
        "UnitFileState": "enabled",
    }
    assert service.run("ps", "-o", "user:20=", "-p", pid).strip() == PACKAGE
    assert (
        service.run("stat", "-c", "%U %a", "/var/lib/durable-streamsd").strip() == f"{PACKAGE} 700"
    )
    assert service.run(PACKAGE, "read", "kept") == "before;"
    service.run("systemctl", "reload", SERVICE)
    assert service.shown(SERVICE, "ActiveState", "MainPID") == {
        "ActiveState": "active",
        "MainPID": pid,
    }
    assert "error" not in service.run("journalctl", "--unit", SERVICE, "--output=cat")


def test_the_units_are_sound_and_closed_off(service: Machine) -> None:
    """systemd finds nothing wrong with the units, and little that the service could reach."""
    for unit in (SERVICE, f"{PACKAGE}.socket"):
        checked = service.try_run("systemd-analyze", "verify", f"/usr/lib/systemd/system/{unit}")
        about_it = [line for line in checked.stderr.splitlines() if PACKAGE in line]
        assert about_it == []
    judged = service.run(
        "systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE_MAX}",
        f"/usr/lib/systemd/system/{SERVICE}",
    )  # fmt: skip
    exposure = re.search(r"exposure level for \S+: ([\d.]+)", judged)
    assert exposure
    assert float(exposure[1]) <= EXPOSURE_MAX / 10


def test_the_watchdog_restarts_a_daemon_that_hangs(service: Machine) -> None:
    """A process that does not get on is ended and started again, with everything it had."""
    override = service.root / "etc/systemd/system" / f"{SERVICE}.d" / "test.conf"
    override.parent.mkdir()
    override.write_text("[Service]\nWatchdogSec=3\n")
    service.run("systemctl", "daemon-reload")
    service.run("systemctl", "restart", SERVICE)
    service.run("kill", "-STOP", service.shown(SERVICE, "MainPID")["MainPID"])

    def restarted() -> bool:
        shown = service.shown(SERVICE, "NRestarts", "ActiveState")
        return int(shown["NRestarts"]) > 0 and shown["ActiveState"] == "active"

    wait_until(restarted, PATIENCE_S, "the watchdog did not restart the daemon")
    assert service.run(PACKAGE, "read", "kept") == "before;"


def test_behind_the_socket_no_connection_is_refused(service: Machine) -> None:
    """Clients that append all the time see nothing of three restarts."""
    service.run("systemctl", "stop", SERVICE)
    service.run("systemctl", "enable", "--now", f"{PACKAGE}.socket")
    service.run("systemctl", "start", SERVICE)
    (service.root / "root" / "append.py").write_text(APPEND_STEADILY)
    appends = 400
    service.run(
        "systemd-run", "--unit=appending", "--property=StandardOutput=file:/root/answers",
        "/usr/bin/python3", "/root/append.py", str(appends),
    )  # fmt: skip
    answers = service.root / "root" / "answers"
    wait_until(lambda: answers.exists(), PATIENCE_S, "nothing is appended")
    for _ in range(3):
        service.run("systemctl", "restart", SERVICE)
    wait_until(
        lambda: service.try_run("systemctl", "is-active", "appending").returncode != 0,
        PATIENCE_S,
        "the appends do not end",
    )
    assert answers.read_text().split() == ["204"] * appends
    assert service.run(PACKAGE, "read", "kept") == "before;" + "x" * appends


def test_an_upgrade_keeps_what_is_the_operators(
    service: Machine, release: Release, tmp_path: Path
) -> None:
    """Configuration and streams stay; what runs is new, what was unpacked is not."""
    configuration = service.root / "etc/durable-streamsd/durable-streamsd.toml"
    edited = configuration.read_text() + "\nlong-poll-timeout = 7\n"
    configuration.write_text(edited)
    old = service.root / "var/cache/durable-streamsd/durable-streamsd.pyz_0123"
    old.mkdir()
    pid = service.shown(SERVICE, "MainPID")
    (service.root / "root" / "newer.deb").write_bytes(newer(release, tmp_path).read_bytes())
    service.run("dpkg", "--install", "/root/newer.deb")
    assert service.shown(SERVICE, "MainPID") != pid
    assert service.shown(SERVICE, "ActiveState") == {"ActiveState": "active"}
    assert configuration.read_text() == edited
    assert not old.exists()
    assert service.run(PACKAGE, "read", "kept") == "before;"


def test_removing_keeps_the_streams_and_purging_does_not(service: Machine) -> None:
    """Removed it is stopped and keeps its streams; purged it leaves nothing but the user."""
    service.run("dpkg", "--remove", PACKAGE)
    assert service.try_run("systemctl", "is-active", SERVICE).returncode != 0
    assert not (service.root / "usr/bin/durable-streamsd").exists()
    assert (service.root / "etc/durable-streamsd/durable-streamsd.toml").exists()
    assert not (service.root / "var/cache/durable-streamsd").exists()
    service.run("dpkg", "--install", "/root/new.deb")
    assert service.run(PACKAGE, "read", "kept") == "before;"
    service.run("dpkg", "--purge", PACKAGE)
    left = service.run("find", "/etc", "/usr", "/var", "-name", "*durable-streamsd*", "-not",
                       "-path", "*/src/*").split()  # fmt: skip
    assert [path for path in left if not path.startswith(("/var/tmp/", "/var/log/"))] == []
    assert service.run("id", "--user", "--name", PACKAGE).strip() == PACKAGE


def newer(release: Release, folder: Path) -> Path:
    """The same package with a higher version."""
    tree, made = folder / "tree", folder / "newer.deb"
    subprocess.run(["dpkg-deb", "--raw-extract", release.deb, tree], check=True)
    control = tree / "DEBIAN" / "control"
    lines = control.read_text().replace(
        f"Version: {release.version}", f"Version: {release.version}+1"
    )
    control.write_text(lines)
    pack = ["dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build"]
    subprocess.run([*pack, str(tree), str(made)], check=True, capture_output=True)
    return made
