"""The nginx configuration of `packaging/`, run as it is but for addresses and paths."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from types import TracebackType
from urllib.request import urlopen

from authority import Authority
from daemon import ROOT
from packaged import free_port, listens, substituted
from simple_http import wait_until

CONFIGURATION = ROOT / "packaging" / "nginx" / "durable-streamsd.conf"
START_SECONDS_MAX = 20
STOP_SECONDS_MAX = 20


class Nginx:
    """Used as a context manager. `url` is where it listens."""

    def __init__(self, folder: Path, authority: Authority, daemon_url: str) -> None:
        program = shutil.which("nginx", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
        assert program is not None, "install nginx: `apt-get install nginx-light`"
        self.port = free_port()
        self._status_port = free_port()
        self.url = f"https://127.0.0.1:{self.port}"
        self._folder = folder
        self._log = folder / "access.log"
        certificate, key = authority.issue("nginx")
        site = substituted(
            CONFIGURATION.read_text(),
            {
                "server 127.0.0.1:4437;": f"server {daemon_url.removeprefix('http://')};",
                "listen 443 ssl http2;": f"listen 127.0.0.1:{self.port} ssl http2 backlog=1024;",
                "listen [::]:443 ssl http2;": "",
                "/etc/ssl/streams.example.org.crt": str(certificate),
                "/etc/ssl/streams.example.org.key": str(key),
                "/var/cache/nginx/durable-streamsd": f"{folder}/cache",
            },
        )
        (folder / "site.conf").write_text(site)
        (folder / "nginx.conf").write_text(self._main())
        self._command = [program, "-e", f"{folder}/error.log", "-c", f"{folder}/nginx.conf"]
        self._process: subprocess.Popen[bytes] | None = None

    def _main(self) -> str:
        """What a distribution's nginx.conf has around the file."""
        folder = self._folder
        user = "user root;" if os.geteuid() == 0 else ""  # the folder is closed to others
        temporary = "\n".join(
            f"{kind}_temp_path {folder}/{kind};"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        return f"""
{user}
daemon off;
worker_processes 2;
pid {folder}/nginx.pid;
events {{ worker_connections 4096; }}
http {{
    log_format upstream "$request_uri $status upstream=$upstream_status";
    access_log {self._log} upstream;
    server {{
        listen 127.0.0.1:{self._status_port};
        access_log off;
        location / {{ stub_status; }}
    }}
    {temporary}
    include {folder}/site.conf;
}}
"""

    def requests(self, path: str) -> tuple[int, int]:
        """How many requests for a path were answered, and how many of them asked the daemon."""
        lines = [line for line in self._log.read_text().splitlines() if line.startswith(path)]
        return len(lines), sum(not line.endswith("upstream=-") for line in lines)

    def in_progress(self) -> int:
        """How many requests it is busy with, beside the one that asks for this."""
        with urlopen(f"http://127.0.0.1:{self._status_port}/", timeout=20) as answer:
            found = re.search(r"Writing: (\d+)", answer.read().decode())
        assert found is not None
        return int(found[1]) - 1

    def __enter__(self) -> Nginx:
        self._process = process = subprocess.Popen(self._command)

        def up() -> bool:
            assert process.poll() is None, (self._folder / "error.log").read_text()
            return listens(self.port)

        wait_until(up, START_SECONDS_MAX, "nginx does not listen")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.wait(STOP_SECONDS_MAX)
        if error is not None:
            error.add_note((self._folder / "error.log").read_text()[-4_000:])
